//! Settings of the form `name = value`: HCL, units of systemd and Quadlet, environment files, Makefiles.

use super::Listed;
use super::walk::Key;

/// Whether a text has settings: its first line is one, or begins a section or a block of them.
pub(super) fn is_settings(text: &str) -> bool {
    lines(text).next().is_some_and(|(_, line)| {
        line.ends_with('{') || line.starts_with('[') && line.ends_with(']') || values(line, '=').next().is_some()
    })
}

/// Adds the images that settings name. Also those of a template of YAML, whose settings have colons.
pub(super) fn settings(text: &str, listed: &mut Listed) {
    // In HCL what has no quotes is an expression.
    let has_blocks = text.lines().any(|line| line.trim_end().ends_with('{'));
    for (number, line) in lines(text) {
        // Elsewhere what follows the first sign is the value.
        let most = if has_blocks { usize::MAX } else { 1 };
        for (key, value) in values(line, '=').take(most).chain(values(line, ':')) {
            let many = if value.starts_with('[') { usize::MAX } else { 1 };
            let quoted = value.split(['"', '\'']).skip(1).step_by(2).take(many).map(str::to_owned);
            let bare = value.split([' ', '\t', '#', ';']).next().unwrap_or_default();
            let bare = if has_blocks && bare.starts_with(|letter: char| letter.is_ascii_alphabetic()) {
                format!("${{{bare}}}")
            } else {
                bare.to_owned()
            };
            let is_bare = !value.starts_with(['[', '"', '\'']);
            let texts: Vec<String> = if is_bare { vec![bare] } else { quoted.collect() };
            for image in texts.iter().filter_map(|text| Key::of(key).image(text)) {
                listed.add(image, None, Some(number));
            }
        }
    }
}

/// The lines of a text without comments.
fn lines(text: &str) -> impl Iterator<Item = (usize, &str)> {
    let is_text = |line: &&str| !line.is_empty() && !line.starts_with(['#', ';']) && !line.starts_with("//");
    (1..).zip(text.lines().map(str::trim)).filter(move |(_, line)| is_text(line))
}

/// The names on a line that a sign follows, and what stands behind the sign.
fn values(line: &str, sign: char) -> impl Iterator<Item = (&str, &str)> {
    line.match_indices(sign).filter_map(move |(at, _)| {
        let (before, after) = (line.get(..at)?, line.get(at + sign.len_utf8()..)?);
        let is_quoted = before.matches('"').count() % 2 == 1;
        let before = before.trim_end_matches(['?', ':', '+', ' ', '\t', '"', '\'']);
        let key = before.rsplit(|letter: char| !letter.is_ascii_alphanumeric() && !"_.-".contains(letter)).next()?;
        let begins = before.strip_suffix(key)?.chars().next_back().is_none_or(|letter| " \t{([,\"'".contains(letter));
        let other = after.starts_with(['=', '>']) || sign == ':' && !after.starts_with([' ', '\t']);
        (!key.is_empty() && begins && !other && !is_quoted).then_some((key, after.trim()))
    })
}

#[cfg(test)]
mod tests {
    use super::super::tests::{images, parsed};

    #[test]
    fn settings_of_nomad_quadlet_and_environments_name_images() {
        let nomad = "job \"a\" {\n  task \"t\" {\n    driver = \"docker\"\n    config { image = \"acme/a:1\" }\n  }\n  \
                     config { image = \"acme/b:${var.tag}\" }\n  config { image = var.image }\n  \
                     args = [\"image = no\"]\n}\n";
        assert_eq!(images("job.nomad", nomad), ["acme/a:1 4"]);
        assert_eq!(parsed("job.nomad", nomad).unwrap().skipped.len(), 2);
        for (text, expected) in [
            ("# unit\n[Container]\nImage=docker.io/acme/a:1\nExec=sleep image\n", &["docker.io/acme/a:1 3"][..]),
            (
                "[Unit]\nDescription=an image = thing\n[Container]\nImage=mine.build\nEnvironment=IMAGE=acme/a:1\n",
                &["acme/a:1 5"],
            ),
            ("export APP_IMAGE=\"acme/a:1\" # now\nIMAGE_TAG=2\nDB_IMAGE=postgres\n", &["acme/a:1 1", "postgres 3"]),
            ("REGISTRY ?= acme\nIMAGE ?= acme/a:1\n", &["acme/a:1 2"]),
            ("target \"a\" {\n  contexts = { base = \"docker-image://acme/a:1\" }\n}\n", &["acme/a:1 2"]),
            ("images = [\"acme/a:1\", 'acme/b:1']\nx = {\n", &["acme/a:1 1", "acme/b:1 1"]),
        ] {
            assert_eq!(images("settings", text), expected, "{text}");
        }
    }
}
