//! What is written where an image is named.

use regex_lite::{Captures, Regex, Replacer};
use stopover::oci::Request;

/// What a text says, where an image may be named.
pub(super) enum Written {
    /// The name of an image, though maybe one that no registry can have.
    Image(String),
    /// Something that becomes the name of an image once it is filled in.
    Template,
    /// An image that podman has built, whose name begins with `localhost/`.
    Local,
    /// Something else: a path, a URL, prose.
    Other,
}

/// What names begin with in places that are not only for images.
const SCHEMES: [&str; 3] = ["docker://", "docker-image://", "oci://"];
/// What an image of a container never ends with: the names of pictures, disks, and units of Quadlet.
const OTHERS: &str = "dockerfile .png .jpg .jpeg .gif .svg .webp .ico .iso .img .qcow2 .build .image";

impl Written {
    pub(super) fn read(text: &str) -> Self {
        let text = text.trim();
        let name = SCHEMES.iter().find_map(|scheme| text.strip_prefix(scheme)).unwrap_or(text);
        if name.contains(['$', '{', '}', '<', '>', '%', '#']) || name.contains(is_hidden) {
            return Self::Template;
        }
        let known = |letter: char| letter.is_ascii_alphanumeric() || "._-/:@+".contains(letter);
        let begins = |begin: &&str| name.starts_with(*begin);
        let is_path = !name.contains(|letter: char| letter.is_ascii_alphabetic())
            || [".", "/", ":", "@", "-", "file:", "sha256:"].iter().any(begins);
        let lower = name.to_ascii_lowercase();
        let is_other = name.contains("://") || OTHERS.split(' ').any(|end| lower.ends_with(end));
        if is_path || is_other || !name.chars().all(known) {
            Self::Other
        } else if name.starts_with("localhost/") {
            Self::Local
        } else {
            Self::Image(name.to_owned())
        }
    }

    /// Whether a text has a scheme that only images have.
    pub(super) fn has_scheme(text: &str) -> bool {
        SCHEMES.iter().take(2).any(|scheme| text.starts_with(scheme))
    }

    /// Whether a text is the name of an image that a registry can have.
    pub(super) fn is_image(text: &str) -> bool {
        matches!(Self::read(text), Self::Image(name) if Request::image(&name).is_ok())
    }

    /// Whether a name has a tag or a digest.
    pub(super) fn is_tagged(text: &str) -> bool {
        text.rsplit('/').next().is_some_and(|last| last.contains([':', '@']))
    }

    /// Whether a text is an image even where nothing else says so.
    pub(super) fn is_plain(text: &str) -> bool {
        Self::is_image(text) && Self::is_tagged(text)
    }

    /// Whether a text is an image where words may stand, too.
    pub(super) fn is_named(text: &str) -> bool {
        Self::is_image(text) && text.contains([':', '@', '/'])
    }
}

/// The first of the letters for private use that stand for those of a template.
const HIDDEN: u32 = 0xe000;

/// A text whose templates (`{{ … }}`, `{% … %}`, `<% … %>`), which would break its syntax, are in letters for private
/// use. What does not end in its line is no template.
pub(super) fn hide_templates(text: &str) -> String {
    if !["{{", "{%", "<%"].iter().any(|begin| text.contains(begin)) {
        return text.to_owned();
    }
    let hide =
        |letter: char| char::from_u32(HIDDEN + u32::from(letter)).filter(|_| letter.is_ascii()).unwrap_or(letter);
    replace(text, r"\{\{.*?\}\}|\{%.*?%\}|<%.*?%>", |found: &Captures| {
        found.get(0).map_or("", |template| template.as_str()).chars().map(hide).collect::<String>()
    })
}

/// A text in which all that a regular expression matches is replaced.
pub(super) fn replace(text: &str, expression: &str, by: impl Replacer) -> String {
    Regex::new(expression).map_or_else(|_| text.to_owned(), |regex| regex.replace_all(text, by).into_owned())
}

/// Whether a letter stands for one of a template.
pub(super) fn is_hidden(letter: char) -> bool {
    u32::from(letter).wrapping_sub(HIDDEN) < 128
}

/// A text as it was before its templates were hidden.
pub(super) fn show_templates(text: &str) -> String {
    let show = |letter: char| char::from_u32(u32::from(letter) - HIDDEN);
    text.chars().map(|letter| if is_hidden(letter) { show(letter).unwrap_or(letter) } else { letter }).collect()
}
