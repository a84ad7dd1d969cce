//! Dockerfiles, as BuildKit reads them (its packages frontend/dockerfile/parser and shell).

use std::collections::HashMap;

use stopover::oci::Platform;

use super::Listed;
use super::variables::substitute;

/// An image in a Dockerfile: its name, or why it is not known; the platform that the file asks for, and its line.
type Found = (Result<String, (String, String)>, Option<Platform>, usize);

/// Adds the images that `FROM`, `COPY --from` and `RUN --mount=from` name, without the stages of the same file, and that
/// of `# syntax=`. Arguments have their defaults, unless they are `given`. `targets` are the platforms that are built
/// for, and `above` is how many lines stand above the text in its file.
pub(super) fn dockerfile(
    text: &str,
    targets: &[Platform],
    given: &dyn Fn(&str) -> Option<String>,
    above: usize,
    listed: &mut Listed,
) {
    let this = [Platform::of_this_machine()];
    let targets = if targets.is_empty() { &this } else { targets };
    let runs: Vec<Vec<Found>> = targets.iter().map(|target| images(text, target, given)).collect();
    for (target, run) in targets.iter().zip(&runs) {
        for found @ (name, platform, line) in run {
            // What is the same for all targets is wanted for all of them.
            let own = Some(target).filter(|_| !runs.iter().all(|run| run.contains(found)));
            match name {
                Ok(name) => listed.add(name, platform.as_ref().or(own).cloned(), Some(line + above)),
                Err((name, why)) => listed.skip(name, Some(line + above), why),
            }
        }
    }
    if runs.iter().all(Vec::is_empty) {
        listed.note("has only stages that are built from nothing");
    }
}

/// Whether a text is a Dockerfile: it has a `FROM` with an image and nothing more than a name for the stage.
pub(super) fn is_dockerfile(text: &str) -> bool {
    text.lines().any(|line| {
        let words: Vec<&str> = line.split_whitespace().filter(|word| !word.starts_with("--")).collect();
        match words[..] {
            [from, _] => from.eq_ignore_ascii_case("from"),
            [from, _, r#as, _] => from.eq_ignore_ascii_case("from") && r#as.eq_ignore_ascii_case("as"),
            _ => false,
        }
    })
}

fn images(text: &str, target: &Platform, given: &dyn Fn(&str) -> Option<String>) -> Vec<Found> {
    let (escape, syntax) = directives(text);
    let mut found: Vec<Found> = syntax.into_iter().map(|(name, line)| (Ok(name), None, line)).collect();
    let mut arguments: HashMap<String, String> = HashMap::new();
    let mut stages: Vec<String> = vec!["scratch".to_owned()];
    let value = |arguments: &HashMap<String, String>, name: &str| {
        arguments.get(name).cloned().or_else(|| predefined(name, target))
    };
    for Instruction { keyword, words, line } in instructions(text, escape) {
        let flags = words.iter().take_while(|word| word.starts_with("--")).count();
        let (flags, words) = words.split_at_checked(flags).unwrap_or_default();
        let own = |name: &str| stages.contains(&name.to_ascii_lowercase());
        match keyword.as_str() {
            // Those of a stage are not for the names of images.
            "ARG" if stages.len() == 1 => {
                for word in words {
                    let (name, default) =
                        word.split_once('=').map_or((&**word, None), |(name, text)| (name, Some(text)));
                    let value = |name: &str| value(&arguments, name);
                    let default = default.and_then(|text| substitute(text, Some(escape), &value).ok());
                    if let Some(value) = given(name).or(default) {
                        arguments.insert(name.to_owned(), value);
                    }
                }
            }
            "FROM" => {
                // $BUILDPLATFORM and its like depend on the machine that builds.
                let flag = flags.iter().find_map(|flag| flag.strip_prefix("--platform="));
                let platform = flag.and_then(|flag| {
                    substitute(flag, Some(escape), &|name| arguments.get(name).cloned()).ok()?.parse().ok()
                });
                let image = words.first().map_or("", String::as_str);
                let name = substitute(image, Some(escape), &|name| value(&arguments, name));
                if !name.as_ref().is_ok_and(|name| own(name)) {
                    let why = |unset| (image.to_owned(), format!("ARG {unset} has no default"));
                    found.push((name.map_err(why), platform, line));
                }
                stages.push(words.get(2).map_or_else(String::new, |name| name.to_ascii_lowercase()));
            }
            "COPY" | "RUN" => {
                let from = flags.iter().filter_map(|flag| match flag.strip_prefix("--mount=") {
                    Some(mount) => mount.split(',').find_map(|part| part.trim_matches('"').strip_prefix("from=")),
                    None => flag.strip_prefix("--from="),
                });
                // Variables are not substituted here (BuildKit refuses them): they stay, and are no image.
                let from = from.map(|name| name.trim_matches(['"', '\'']).to_owned());
                let from = from.filter(|name| !own(name) && name.parse::<usize>().is_err());
                found.extend(from.map(|name| (Ok(name), None, line)));
            }
            _ => {}
        }
    }
    found
}

/// The arguments that BuildKit predefines for the platforms of what is built and of the machine that builds.
fn predefined(name: &str, target: &Platform) -> Option<String> {
    let (platform, part) = match (name.strip_prefix("TARGET"), name.strip_prefix("BUILD")) {
        (Some(part), _) => (target.to_string(), part),
        (_, part) => (Platform::of_this_machine().to_string(), part?),
    };
    let at = ["OS", "ARCH", "VARIANT"].iter().position(|known| *known == part);
    let value = at.map(|at| platform.split('/').nth(at).unwrap_or_default().to_owned());
    if part == "PLATFORM" { Some(platform) } else { value }
}

/// The character that `# escape=` sets, and the image that `# syntax=` names, with its line. Directives stand above
/// everything else.
fn directives(text: &str) -> (char, Option<(String, usize)>) {
    let (mut escape, mut syntax) = ('\\', None);
    for (line, text) in (1..).zip(text.lines()) {
        let Some((key, value)) = text.strip_prefix('#').and_then(|text| text.split_once('=')) else { break };
        match key.trim().to_ascii_lowercase().as_str() {
            "escape" if value.trim() == "`" => escape = '`',
            "syntax" => syntax = value.split_whitespace().next().map(|name| (name.to_owned(), line)),
            key if key.chars().all(|letter| letter.is_ascii_alphanumeric()) => {}
            _ => break,
        }
    }
    (escape, syntax)
}

struct Instruction {
    /// In upper case. Of `ONBUILD` that of the instruction which it keeps for later.
    keyword: String,
    /// The words behind it with their quotes, which keep spaces.
    words: Vec<String>,
    /// The line that it begins in.
    line: usize,
}

/// The instructions of a Dockerfile: continued lines are joined, comments and here-documents left out.
fn instructions(text: &str, escape: char) -> Vec<Instruction> {
    let is_text = |line: &str| !line.trim().is_empty() && !line.trim_start().starts_with('#');
    let mut instructions = Vec::new();
    let mut lines = (1..).zip(text.lines());
    while let Some((number, line)) = lines.find(|(_, line)| is_text(line)) {
        let (mut whole, mut part) = (String::new(), Some(line.trim_start()));
        while let Some(line) = part {
            let begin = line.trim_end_matches([' ', '\t']).strip_suffix(escape);
            // Two of them at the end are one, and continue nothing.
            let begin = begin.filter(|begin| !begin.ends_with(escape));
            whole.push_str(begin.unwrap_or(line));
            // A comment, or an empty line, does not end a continued instruction.
            part = begin.and_then(|_| lines.find(|(_, line)| is_text(line))).map(|(_, line)| line);
        }
        let instruction = Instruction::read(&whole, escape, number);
        for (end, tabs) in instruction.here_documents() {
            let ends = |line: &str| if tabs { line.trim_start_matches('\t') == end } else { line == end };
            // What never ends is no here-document, but a shift.
            if lines.clone().any(|(_, line)| ends(line)) {
                lines.find(|(_, line)| ends(line));
            }
        }
        instructions.push(instruction);
    }
    instructions
}

impl Instruction {
    fn read(text: &str, escape: char, line: usize) -> Self {
        let (mut words, mut quote, mut escaped) = (vec![String::new()], None, false);
        for letter in text.chars() {
            if quote.is_none() && !escaped && letter.is_whitespace() {
                words.push(String::new());
                continue;
            }
            if matches!(letter, '"' | '\'') && !escaped && quote.is_none_or(|open| open == letter) {
                quote = quote.xor(Some(letter));
            }
            escaped = !escaped && letter == escape && quote != Some('\'');
            words.last_mut().into_iter().for_each(|word| word.push(letter));
        }
        let mut words = words.into_iter().filter(|word| !word.is_empty() && !word.eq_ignore_ascii_case("onbuild"));
        Self { keyword: words.next().unwrap_or_default().to_ascii_uppercase(), words: words.collect(), line }
    }

    /// The words that end its here-documents, and whether tabs may stand before them: `RUN <<EOF`,
    /// `COPY <<-"A" <<B /`.
    fn here_documents(&self) -> impl Iterator<Item = (&str, bool)> {
        let words = self.words.iter().filter(|_| matches!(self.keyword.as_str(), "RUN" | "COPY" | "ADD"));
        words.filter_map(|word| {
            let text = word.trim_start_matches(|letter: char| letter.is_ascii_digit()).strip_prefix("<<")?;
            let name = text.strip_prefix('-').unwrap_or(text).trim_start_matches(['"', '\'']);
            let end = name.split(|letter: char| !letter.is_alphanumeric() && !"_.-".contains(letter)).next()?;
            (!end.is_empty()).then(|| (end, text.starts_with('-')))
        })
    }
}

#[cfg(test)]
mod tests {
    use super::super::tests::{images, parsed, shown};
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
COPY --chown=1:1 --from="busybox:1.36" /bin/x /x
COPY --from=0 /b /b
ADD --from=not-an-image /b /b
ONBUILD COPY --from=acme/later:1 /c /c
FROM scratch
FROM final
FROM ${UNSET}
COPY --from=acme/${X} / /
"#;
        assert_eq!(
            images("Dockerfile", text),
            [
                "docker/dockerfile:1 1",
                "golang:1.23 4",
                "ghcr.io/a/tools:1 6",
                "alpine:3.20 14 linux/arm64",
                "busybox:1.36 17",
                "acme/later:1 20"
            ]
        );
        assert_eq!(
            parsed("Dockerfile", text).unwrap().skipped,
            [
                "Dockerfile:23: skipped ${UNSET}: ARG UNSET has no default",
                "Dockerfile:24: skipped acme/${X}: a template that is not filled in"
            ]
        );
    }

    #[test]
    fn arguments_are_substituted_as_buildkit_does() {
        for (text, expected) in [
            ("ARG V=1.2.3\nFROM acme/a:${V%.*}\n", "acme/a:1.2 2"),
            ("ARG V=1_2\nFROM acme/a:${V/_/.}\n", "acme/a:1.2 2"),
            ("ARG I=reg.example.com/acme/a:1\nFROM ${I##*/}\n", "a:1 2"),
            ("ARG B=9\nFROM acme/a:${A:-${B}}\n", "acme/a:9 2"),
            ("ARG N=\"acme/a\" \\\n    T='3'\nFROM \"${N}:${T}\"\n", "acme/a:3 3"),
            ("# escape=`\nARG V=1\nFROM acme/`\na:$V\n", "acme/a:1 3"),
            ("ARG DIR=C:\\\\\nFROM acme/a:1\n", "acme/a:1 2"),
        ] {
            assert_eq!(images("Dockerfile", text), [expected], "{text}");
        }
    }

    #[test]
    fn predefined_arguments_are_those_of_each_platform_that_is_wanted() {
        let text = "ARG TARGETARCH\nARG BASE=acme/base-${TARGETOS}:1-${TARGETARCH}${TARGETVARIANT}\nFROM $BASE\nFROM acme/a:1\n";
        let platforms = ["linux/amd64", "linux/arm/v7"].map(|platform| platform.parse().unwrap());
        let mut listed = Listed::default();
        dockerfile(text, &platforms, &|_| None, 0, &mut listed);
        assert_eq!(
            shown(&listed),
            ["acme/base-linux:1-amd64 3 linux/amd64", "acme/a:1 4", "acme/base-linux:1-armv7 3 linux/arm/v7"]
        );
        let this = Platform::of_this_machine().to_string();
        let expected = format!("acme/base:{} 1", this.split('/').nth(1).unwrap());
        assert_eq!(images("Dockerfile", "FROM acme/base:${TARGETARCH}\n"), [expected]);
    }

    #[test]
    fn a_dockerfile_is_known_by_its_name_or_by_a_from_that_is_whole() {
        for (name, text, is_one) in [
            ("a.Dockerfile", "ARG A=1\nRUN true\n", true),
            ("Containerfile", "RUN true\n", true),
            ("x", "# syntax=docker/dockerfile:1\n\nFROM --platform=linux/amd64 acme/a:1 AS build\n", true),
            ("x", "ARG A=1\nFROM acme/a:$A\n", true),
            ("x", "From here on it is prose\n", false),
            ("x.yaml", "data: |\n  FROM acme/a:1\n", false),
        ] {
            assert_eq!(parsed(name, text).is_ok_and(|listed| listed.len() > 0), is_one, "{text}");
        }
    }

    #[test]
    fn only_a_word_that_begins_with_two_angles_begins_a_here_document() {
        for (instruction, ends) in [
            ("RUN <<EOF", &["EOF"][..]),
            ("COPY <<-\"A\" <<B /", &["A", "B"]),
            ("ONBUILD RUN cat 3<<EOF >file", &["EOF"]),
            ("RUN echo $((1<<20))", &[]),
            ("RUN echo '<<A' \"x <<B\" a<<b", &[]),
            ("RUN cat <<<word", &[]),
            ("CMD echo <<EOF", &[]),
        ] {
            let read = Instruction::read(instruction, '\\', 1);
            let found: Vec<&str> = read.here_documents().map(|(end, _)| end).collect();
            assert_eq!(found, ends, "{instruction}");
        }
        let text = "FROM a:1\nRUN echo $((1<<20)) $(( 1 <<2 ))\nFROM b:1\nCOPY <<-E /x\n\tFROM x\n\tE\nRUN <<E\n E\nFROM x\nE\n\
                    FROM c:1\n";
        assert_eq!(images("Dockerfile", text), ["a:1 1", "b:1 3", "c:1 11"]);
    }
}
