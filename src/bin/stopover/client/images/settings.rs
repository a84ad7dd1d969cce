//! Settings of the form `name = value`: HCL, units of systemd and Quadlet, environment files, Makefiles.

use super::Listed;
use super::document::Key;

/// Whether a text has settings: its first line is one, or begins a section or a block of them.
pub(super) fn is_settings(text: &str) -> bool {
    let mut lines = text.lines().map(str::trim);
    let first = lines.find(|line| !line.is_empty() && !line.starts_with(['#', ';']) && !line.starts_with("//"));
    let is_section = |line: &str| line.starts_with('[') && line.ends_with(']') || line.ends_with('{');
    first.is_some_and(|line| is_section(line) || values(line, '=').next().is_some())
}

/// Adds the images that settings name. Also those of a template of YAML, whose settings have colons.
pub(super) fn settings(text: &str, listed: &mut Listed) {
    // In HCL what has no quotes is an expression.
    let has_blocks = text.lines().any(|line| line.trim_end().ends_with('{'));
    for (number, line) in (1..).zip(text.lines()) {
        if line.trim_start().starts_with(['#', ';']) || line.trim_start().starts_with("//") {
            continue;
        }
        for (key, value) in values(line, '=').chain(values(line, ':')) {
            let mut quoted = value.split(['"', '\'']).skip(1).step_by(2);
            let mut add = |text: &str| {
                if let Some(image) = Key::of(key).image(text) {
                    listed.add(image, None, Some(number));
                }
            };
            if value.starts_with('[') {
                quoted.for_each(add);
            } else if value.starts_with(['"', '\'']) {
                add(quoted.next().unwrap_or_default());
            } else {
                let word = value.split([' ', '\t', '#', ';']).next().unwrap_or_default();
                add(&if has_blocks { format!("${{{word}}}") } else { word.to_owned() });
            }
        }
    }
}

/// The names on a line that a sign follows, and what stands behind the sign.
fn values(line: &str, sign: char) -> impl Iterator<Item = (&str, &str)> {
    line.match_indices(sign).filter_map(move |(at, _)| {
        let (before, after) = (line.get(..at)?, line.get(at + sign.len_utf8()..)?);
        let before = before.trim_end_matches(['?', ':', '+', ' ', '\t', '"', '\'']);
        let key = before.rsplit(|letter: char| !letter.is_ascii_alphanumeric() && !"_.-".contains(letter)).next()?;
        let begins = before.strip_suffix(key)?.chars().next_back().is_none_or(|letter| " \t{([,\"'".contains(letter));
        let other = after.starts_with(['=', '>']) || sign == ':' && !after.starts_with([' ', '\t']);
        (!key.is_empty() && begins && !other).then_some((key, after.trim()))
    })
}

#[cfg(test)]
mod tests {
    use super::super::{images, parsed};

    #[test]
    fn settings_of_nomad_quadlet_and_environments_name_images() {
        let nomad = "job \"a\" {\n  task \"t\" {\n    driver = \"docker\"\n    config { image = \"acme/a:1\" }\n  }\n  \
                     config { image = \"acme/b:${var.tag}\" }\n  config { image = var.image }\n}\n";
        assert_eq!(images("job.nomad", nomad), ["acme/a:1 4"]);
        assert_eq!(parsed("job.nomad", nomad).unwrap().skipped.len(), 2);
        for (text, expected) in [
            ("# unit\n[Container]\nImage=docker.io/acme/a:1\nExec=sleep image\n", &["docker.io/acme/a:1 3"][..]),
            ("[Container]\nImage=mine.build\n", &[]),
            ("export APP_IMAGE=\"acme/a:1\" # now\nIMAGE_TAG=2\nDB_IMAGE=postgres\n", &["acme/a:1 1", "postgres 3"]),
            ("REGISTRY ?= acme\nIMAGE ?= acme/a:1\n", &["acme/a:1 2"]),
            ("target \"a\" {\n  contexts = { base = \"docker-image://acme/a:1\" }\n}\n", &["acme/a:1 2"]),
            ("images = [\"acme/a:1\", 'acme/b:1']\nx = {\n", &["acme/a:1 1", "acme/b:1 1"]),
        ] {
            assert_eq!(images("settings", text), expected, "{text}");
        }
    }
}
