//! The images that a Dockerfile names.

use std::collections::HashMap;

use super::images::{Listed, substitute};

/// The images that `FROM`, `COPY --from` and `RUN --mount=from` name, without the stages of the same file. Arguments
/// have their defaults.
pub(super) fn dockerfile(text: &str) -> Listed {
    let mut listed = Listed::default();
    let mut arguments: HashMap<String, String> = HashMap::new();
    let mut stages: Vec<String> = Vec::new();
    let mut in_stage = false;
    for (line, text) in instructions(text) {
        let mut words = text.split_whitespace();
        let keyword = words.next().unwrap_or_default().to_ascii_uppercase();
        let mut words: Vec<&str> = words.collect();
        let own = |stages: &[String], name: &str| {
            name.eq_ignore_ascii_case("scratch") || stages.iter().any(|stage| stage.eq_ignore_ascii_case(name))
        };
        let lookup = |arguments: &HashMap<String, String>, name: &str| arguments.get(name).cloned();
        match keyword.as_str() {
            "ARG" if !in_stage => {
                for word in words {
                    let Some((name, default)) = word.split_once('=') else { continue };
                    let default = default.trim_matches(['"', '\'']);
                    if let Ok(default) = substitute(default, |name| lookup(&arguments, name)) {
                        arguments.insert(name.to_owned(), default);
                    }
                }
            }
            "FROM" => {
                in_stage = true;
                let flag = words.iter().find_map(|word| word.strip_prefix("--platform="));
                // $BUILDPLATFORM and its like depend on the machine that builds.
                let platform = flag
                    .and_then(|flag| substitute(flag, |name| lookup(&arguments, name)).ok())
                    .and_then(|flag| flag.parse().ok());
                words.retain(|word| !word.starts_with("--"));
                let image = words.first().copied().unwrap_or_default();
                match substitute(image, |name| lookup(&arguments, name)) {
                    Ok(name) if own(&stages, &name) => {}
                    Ok(name) => listed.add(&name, platform, Some(line)),
                    Err(unset) => listed.skip(image, Some(line), &format!("ARG {unset} has no default")),
                }
                if let [_, keyword, name, ..] = words[..]
                    && keyword.eq_ignore_ascii_case("as")
                {
                    stages.push(name.to_owned());
                }
            }
            "COPY" | "RUN" => {
                let flags = words.iter().take_while(|word| word.starts_with("--"));
                let from = flags.filter_map(|flag| match flag.strip_prefix("--mount=") {
                    Some(mount) => mount.split(',').find_map(|part| part.strip_prefix("from=")),
                    None => flag.strip_prefix("--from="),
                });
                for name in from.filter(|name| !own(&stages, name) && name.parse::<usize>().is_err()) {
                    listed.add(name, None, Some(line));
                }
            }
            _ => {}
        }
    }
    listed
}

/// The instructions of a Dockerfile and the lines they begin in: continued lines are joined, comments and
/// here-documents left out.
fn instructions(text: &str) -> Vec<(usize, String)> {
    let mut instructions: Vec<(usize, String)> = Vec::new();
    let mut lines = (1..).zip(text.lines());
    while let Some((number, line)) = lines.next() {
        let mut whole = String::new();
        let mut part = line.trim();
        loop {
            let comment = part.starts_with('#');
            let continued = part.strip_suffix('\\');
            if !comment {
                whole.push_str(continued.unwrap_or(part));
                whole.push(' ');
            }
            // A comment, or an empty line, does not end a continued instruction.
            if continued.is_none() && !((comment || part.is_empty()) && !whole.trim().is_empty()) {
                break;
            }
            match lines.next() {
                Some((_, next)) => part = next.trim(),
                None => break,
            }
        }
        for end in here_documents(&whole) {
            lines.by_ref().find(|(_, line)| line.trim() == end);
        }
        if !whole.trim().is_empty() {
            instructions.push((number, whole.trim().to_owned()));
        }
    }
    instructions
}

/// The words that end the here-documents of an instruction: `RUN <<EOF`, `COPY <<-"A" <<B /`.
fn here_documents(instruction: &str) -> Vec<String> {
    let end = |word: &str| {
        let text = word.trim_start_matches(|letter: char| letter.is_ascii_digit()).strip_prefix("<<")?;
        let text = text.strip_prefix('-').unwrap_or(text).trim_start_matches(['"', '\'']);
        text.split(|letter: char| !letter.is_alphanumeric() && letter != '_').next().map(str::to_owned)
    };
    instruction.split_whitespace().filter_map(end).filter(|end| !end.is_empty()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_images_of_a_dockerfile_are_found_and_its_stages_are_none() {
        let text = r#"# syntax=docker/dockerfile:1
ARG GO=1.23
ARG BASE="alpine:3.20" UNSET
FROM --platform=$BUILDPLATFORM golang:${GO} AS build
# from here
RUN --mount=type=bind,from=ghcr.io/a/tools:1,target=/t \
    # a comment inside

    go build \
    FROM not-an-image
RUN <<EOF
FROM not-an-image
EOF
from --platform=linux/arm64 $BASE as Final
ARG GO=2
COPY --from=build /a /a
COPY --chown=1:1 --from=busybox:1.36 /bin/x /x
COPY --from=0 /b /b
FROM scratch
FROM final
FROM ${UNSET}
"#;
        let listed = dockerfile(text);
        let expected = [
            ("golang:1.23", None),
            ("ghcr.io/a/tools:1", None),
            ("alpine:3.20", Some("linux/arm64".to_owned())),
            ("busybox:1.36", None),
        ];
        let found: Vec<(&str, Option<String>)> = listed
            .images
            .iter()
            .map(|image| (image.name.as_str(), image.platform.as_ref().map(ToString::to_string)))
            .collect();
        assert_eq!(found, expected);
        assert_eq!(listed.skipped, [":21: skipped ${UNSET}: ARG UNSET has no default"]);
    }

    #[test]
    fn only_a_word_that_begins_with_two_angles_begins_a_here_document() {
        for (instruction, ends) in [
            ("RUN <<EOF", &["EOF"][..]),
            ("COPY <<-\"A\" <<B /", &["A", "B"]),
            ("RUN cat 3<<EOF >file", &["EOF"]),
            ("RUN echo $((1<<20))", &[]),
            ("RUN echo $((1 << 20)) a<<b", &[]),
            ("RUN cat <<<word", &[]),
        ] {
            assert_eq!(here_documents(instruction), ends, "{instruction}");
        }
        let listed = dockerfile("FROM a\nRUN echo $((1<<20))\nFROM b\n");
        assert_eq!(listed.images.len(), 2);
    }
}
