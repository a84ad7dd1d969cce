use std::str::FromStr;
use std::sync::Arc;

use super::{Digest, InvalidDigest};
use crate::values::text::as_text;

/// A tag: `[a-zA-Z0-9_][a-zA-Z0-9._-]{0,127}` (distribution-spec 1.1, "Pulling manifests").
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Debug)]
pub struct Tag(Arc<str>);

/// A string that is no tag.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("a tag has letters, digits, _ . and -, does not begin with . or -, and has at most 128 characters")]
pub struct InvalidTag;

impl Tag {
    /// The tag whose index lists the referrers of `subject`, where upstream has no API for that (distribution-spec 1.1,
    /// "Referrers Tag Schema").
    pub fn of_referrers(subject: &Digest) -> Self {
        // No algorithm has a name of more than 32 characters; a sha512 digest has more than 64 digits.
        let encoded = subject.hex();
        Self(format!("{}-{}", subject.algorithm().name(), encoded.get(..64).unwrap_or(encoded)).into())
    }

    /// Whether this text is a tag.
    pub(super) fn is_valid(text: &str) -> bool {
        let word = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'_';
        text.len() <= 128
            && text.bytes().next().is_some_and(word)
            && text.bytes().all(|byte| word(byte) || matches!(byte, b'.' | b'-'))
    }

    /// The tag as a URL spells it.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for Tag {
    type Err = InvalidTag;

    fn from_str(text: &str) -> Result<Self, InvalidTag> {
        if Self::is_valid(text) { Ok(Self(text.into())) } else { Err(InvalidTag) }
    }
}

/// What a request names a manifest by.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub enum Reference {
    /// A name that upstream may move.
    Tag(Tag),
    /// The address of the exact bytes.
    Digest(Digest),
}

/// Why a string is no reference.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum InvalidReference {
    /// No colon, so it was read as a tag.
    #[error(transparent)]
    Tag(#[from] InvalidTag),
    /// A colon, so it was read as a digest.
    #[error(transparent)]
    Digest(#[from] InvalidDigest),
}

impl FromStr for Reference {
    type Err = InvalidReference;

    fn from_str(text: &str) -> Result<Self, InvalidReference> {
        // No tag can contain a colon, and every digest does.
        if text.contains(':') { Ok(Self::Digest(text.parse()?)) } else { Ok(Self::Tag(text.parse()?)) }
    }
}

impl Reference {
    /// The tag or the digest as a URL spells it.
    pub fn as_str(&self) -> &str {
        match self {
            Self::Tag(tag) => tag.as_str(),
            Self::Digest(digest) => digest.as_str(),
        }
    }
}

as_text!(Tag, Reference);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tags_follow_the_grammar_of_the_specification() {
        for text in ["latest", "v1.2.3-alpine_3", "_x", "0", &"t".repeat(128)] {
            assert!(text.parse::<Tag>().is_ok(), "{text}");
        }
        for text in ["", ".a", "-a", "a/b", "a b", "a:b", "ä", "..", &"t".repeat(129)] {
            assert_eq!(text.parse::<Tag>(), Err(InvalidTag), "{text}");
        }
    }

    #[test]
    fn the_tag_of_referrers_is_made_of_the_digest() {
        use crate::oci::Algorithm;
        for algorithm in [Algorithm::Sha256, Algorithm::Sha512] {
            let digest = Digest::of(algorithm, b"subject");
            let tag = Tag::of_referrers(&digest);
            assert_eq!(tag.as_str(), format!("{}-{}", algorithm.name(), digest.hex().get(..64).unwrap()));
            assert_eq!(tag.as_str().parse(), Ok(tag));
        }
    }

    #[test]
    fn a_colon_makes_a_reference_a_digest() {
        assert!(matches!("latest".parse(), Ok(Reference::Tag(_))));
        assert!(matches!("sha256:abc".parse::<Reference>(), Err(InvalidReference::Digest(InvalidDigest::Malformed))));
        assert!(matches!("..".parse::<Reference>(), Err(InvalidReference::Tag(InvalidTag))));
    }
}
