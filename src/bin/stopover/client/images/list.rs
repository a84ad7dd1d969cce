//! Lists: one image a line, and nothing else.

use anyhow::bail;

use super::Listed;
use super::written::{Written, show_templates};

/// The most characters of a line that a message repeats.
const LONGEST: usize = 80;

/// Adds the image on a line of a list. `#` begins a comment. Several images may stand on a line if each has a tag or a
/// digest. Refuses everything else: prose may not be taken for images.
pub(super) fn entry(line: &str, number: Option<usize>, listed: &mut Listed) -> anyhow::Result<()> {
    let text = line.trim();
    let text = if text.starts_with(['#']) || text.starts_with("//") { "" } else { text };
    let text = text.split(" #").next().unwrap_or_default().split("\t#").next().unwrap_or_default();
    let words = text.strip_prefix("- ").unwrap_or(text).split(|letter: char| letter.is_whitespace() || letter == ',');
    let words: Vec<&str> = words.map(|word| word.trim_matches(['"', '\''])).filter(|word| !word.is_empty()).collect();
    for word in &words {
        // `oc image mirror` takes `source=destination`.
        let word = word.split_once('=').map_or(*word, |(source, _)| source);
        let is_one = match Written::read(word) {
            Written::Image(_) => Written::is_plain(word) || words.len() == 1 && Written::is_image(word),
            Written::Template | Written::Local => words.len() == 1,
            Written::Other => false,
        };
        if !is_one {
            let line: String = show_templates(line.trim()).chars().take(LONGEST).collect();
            let at = number.map_or_else(String::new, |number| format!("line {number}, "));
            bail!("{at}{line:?}, names no image: a list has one image a line, and its file nothing else");
        }
        listed.add(word, None, number);
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::super::tests::{images, parsed};

    #[test]
    fn a_list_has_an_image_a_line_and_comments() {
        let text = "# what we run\nnginx:1.27\n\n  ghcr.io/a/b  # ours\r\n$IMAGE\nnginx:1.27\nacme/{{ image }}:1\n// more\n\
                    docker://acme/c:1\t# x\n\"acme/d:1\"\nacme/e:1, acme/f@sha256:\
                    e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855\nacme/g:1=registry.example.com/g:1\n";
        assert_eq!(
            images("list", text),
            [
                "nginx:1.27 2",
                "ghcr.io/a/b 4",
                "acme/c:1 9",
                "acme/d:1 10",
                "acme/e:1 11",
                "acme/f@sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855 11",
                "acme/g:1 12"
            ]
        );
        assert_eq!(
            parsed("list", text).unwrap().skipped,
            [
                "list:5: skipped $IMAGE: a template that is not filled in",
                "list:7: skipped acme/{{ image }}:1: a template that is not filled in",
            ]
        );
    }

    #[test]
    fn sequences_of_yaml_and_json_are_lists_too() {
        for text in ["- acme/a:1\n- nginx # ours\n", "[\"acme/a:1\",\n\"nginx\"]"] {
            assert_eq!(images("list", text), ["acme/a:1 1", "nginx 2"], "{text}");
        }
    }

    #[test]
    fn what_is_no_list_is_refused_by_its_first_line_that_names_no_image() {
        for (text, line) in [
            ("nginx:1.27\nand then some words\nmore\n", "line 2, \"and then some words\""),
            ("acme/a   1   0123456789ab   2 days ago   10MB\n", "line 1"),
            ("acme/a:1 linux/arm64\n", "line 1"),
            ("Hello\n", "line 1, \"Hello\""),
            ("nginx:1.27\nhttps://example.com/x\n", "line 2"),
            ("- acme/a:1\n- two words\n", "line 2"),
            ("costs $5 a month\n", "line 1"),
        ] {
            let message = parsed("list", text).unwrap_err().to_string();
            assert!(message.starts_with(line) && message.contains("a list has one image a line"), "{text}: {message}");
        }
    }
}
