//! What is written where an image is named.

use stopover::oci::{Operation, Reference, Request};

/// What a text says, where an image may be named.
pub(super) enum Written {
    /// The name of an image, though maybe one that no registry can have.
    Image(String),
    /// Something that becomes the name of an image once it is filled in.
    Template,
    /// An image that podman has built, whose name begins with `localhost/`.
    Local(String),
    /// Something else: a path, a URL, prose.
    Other,
}

/// What begins names of images in other places than registries' own.
const SCHEMES: [&str; 3] = ["docker://", "docker-image://", "oci://"];
/// What an image of a container never ends with: pictures, disks, and the units of Quadlet.
const OTHERS: [&str; 13] =
    [".png", ".jpg", ".jpeg", ".gif", ".svg", ".webp", ".ico", ".iso", ".img", ".qcow2", ".tar", ".build", ".image"];

impl Written {
    pub(super) fn read(text: &str) -> Self {
        let text = text.trim();
        let name = SCHEMES.iter().find_map(|scheme| text.strip_prefix(scheme)).unwrap_or(text);
        let last = name.rsplit('/').next().unwrap_or_default();
        let is_named = |letter: char| letter.is_ascii_alphanumeric() || "._-/:@+".contains(letter);
        if name.contains(['$', '{', '}', '<', '>', '%', '#', Templates::BEGIN]) {
            Self::Template
        } else if name.is_empty() || name.starts_with(['.', '/', ':', '@']) || !name.chars().all(is_named) {
            Self::Other
        } else if name.contains("://") || name.starts_with("file:") || last.to_ascii_lowercase().contains("dockerfile")
        {
            Self::Other
        } else if OTHERS.iter().any(|end| name.ends_with(end)) || is_id(name) {
            Self::Other
        } else if name.starts_with("localhost/") {
            Self::Local(name.to_owned())
        } else {
            Self::Image(name.to_owned())
        }
    }

    /// Whether a text has a scheme that only images have.
    pub(super) fn has_scheme(text: &str) -> bool {
        SCHEMES.iter().take(2).any(|scheme| text.starts_with(scheme))
    }

    /// Whether a text is an image even where nothing else says so: it has a tag or a digest.
    pub(super) fn is_plain(text: &str) -> bool {
        let last = text.rsplit('/').next().unwrap_or_default();
        Self::is_image(text) && last.contains([':', '@'])
    }

    /// Whether a text that is one of several names is an image: it has a tag, a digest or a slash.
    pub(super) fn is_named(text: &str) -> bool {
        Self::is_image(text) && text.contains([':', '@', '/'])
    }

    /// Whether a text is the name of an image that a registry can have.
    pub(super) fn is_image(text: &str) -> bool {
        matches!(Self::read(text), Self::Image(name) if Request::image(&name).is_ok())
    }

    /// Whether the name has a tag or a digest of its own.
    pub(super) fn is_tagged(text: &str) -> bool {
        let last = text.rsplit('/').next().unwrap_or_default();
        last.contains([':', '@'])
    }
}

/// Whether a name is the id of an image, `sha256:` with its digits.
fn is_id(name: &str) -> bool {
    name.strip_prefix("sha256:").is_some_and(|id| id.bytes().all(|byte| byte.is_ascii_hexdigit()))
}

/// What stands in for the templates of a text (`{{ … }}`, `{% … %}`, `<% … %>`), which would break its syntax.
#[derive(Default, Debug)]
pub(super) struct Templates(Vec<String>);

impl Templates {
    /// Letters for private use, around the number of a template.
    const BEGIN: char = '\u{e000}';
    const END: char = '\u{e001}';

    /// A text with something in the place of each template, and nothing in the lines that have only templates.
    pub(super) fn replace(&mut self, text: &str) -> String {
        let mut replaced = String::with_capacity(text.len());
        for line in text.split_inclusive('\n') {
            let (mut rest, mut only) = (line, line.contains("{{") || line.contains("{%"));
            while let Some((begin, template, after)) = template(rest) {
                only &= begin.trim().is_empty();
                replaced.push_str(begin);
                replaced.push_str(&format!("{}{}{}", Self::BEGIN, self.0.len(), Self::END));
                self.0.push(template.to_owned());
                rest = after;
            }
            if only && rest.trim().is_empty() {
                replaced.truncate(replaced.rfind('\n').map_or(0, |at| at + 1));
                replaced.push('\n');
            } else {
                replaced.push_str(rest);
            }
        }
        replaced
    }

    /// A text with its templates.
    pub(super) fn restore(&self, text: &str) -> String {
        let mut parts = text.split(Self::BEGIN);
        let first = parts.next().unwrap_or_default().to_owned();
        parts.fold(first, |restored, part| {
            let (number, rest) = part.split_once(Self::END).unwrap_or((part, ""));
            let template = number.parse().ok().and_then(|number: usize| self.0.get(number));
            restored + template.map_or("", String::as_str) + rest
        })
    }

    /// Whether there are templates in a text.
    pub(super) fn are_in(&self, text: &str) -> bool {
        !self.0.is_empty() && text.contains(Self::BEGIN)
    }
}

/// The first template of a line, and what stands before and after it.
fn template(line: &str) -> Option<(&str, &str, &str)> {
    let kinds = [("{{", "}}"), ("{%", "%}"), ("<%", "%>")];
    let (at, end) = kinds.iter().filter_map(|(begin, end)| Some((line.find(begin)?, end))).min()?;
    let length = line.get(at..)?.find(end)? + end.len();
    Some((line.get(..at)?, line.get(at..at + length)?, line.get(at + length..)?))
}
