use std::borrow::Borrow;
use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use crate::values::text::as_text;

/// The most bytes a repository name may have at an upstream. The specification leaves it open; common clients stop at
/// 255 for host and name together (distribution-spec 1.1, "Pulling manifests").
const MAX_NAME_BYTES: usize = 255;
/// The most bytes of a name in a request path: the prefix that selects the upstream or rule precedes it, and may be as
/// long.
const MAX_PATH_BYTES: usize = 2 * MAX_NAME_BYTES + 1;

/// A repository name: `[a-z0-9]+((\.|_|__|-+)[a-z0-9]+)*(\/[a-z0-9]+((\.|_|__|-+)[a-z0-9]+)*)*`
/// (distribution-spec 1.1, "Pulling manifests").
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Debug)]
pub struct Name(Arc<str>);

/// A string that is no repository name.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "a repository name has lower-case letters, digits and single separators (. _ __ -) in components divided by /, \
     and at most {MAX_NAME_BYTES} characters"
)]
pub struct InvalidName;

impl Name {
    /// The name as a URL spells it.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The first component.
    pub fn first(&self) -> &str {
        self.0.split_once('/').map_or(&self.0, |(first, _)| first)
    }

    /// Its prefixes that end before a slash, the longest first.
    pub fn beginnings(&self) -> impl Iterator<Item = &str> {
        self.0.rmatch_indices('/').filter_map(|(at, _)| self.0.get(..at))
    }

    /// What follows one of its [`Self::beginnings`].
    pub fn after(&self, beginning: &str) -> Option<Self> {
        Some(Self(self.0.strip_prefix(beginning)?.strip_prefix('/')?.into()))
    }

    /// `<self>/<rest>`, of any length: [`Self::checked`] applies the limit of upstreams' names.
    #[must_use]
    pub fn join(&self, rest: &Self) -> Self {
        Self(format!("{self}/{rest}").into())
    }

    /// Whether it is `place`, or begins with the components of `place`.
    pub fn is_below(&self, place: &Self) -> bool {
        self.0.strip_prefix(&*place.0).is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
    }

    /// The name itself, unless it is longer than a name at an upstream may be.
    pub fn checked(self) -> Result<Self, InvalidName> {
        if self.0.len() <= MAX_NAME_BYTES { Ok(self) } else { Err(InvalidName) }
    }

    /// `library/<name>` for a name of one component: Docker Hub's official images.
    #[must_use]
    pub fn in_library(self) -> Self {
        if self.0.contains('/') { self } else { Self(format!("library/{}", self.0).into()) }
    }
}

fn is_component(bytes: &[u8]) -> bool {
    let alphanumeric = |byte: &u8| matches!(byte, b'a'..=b'z' | b'0'..=b'9');
    let mut parts = bytes.chunk_by(|one, next| alphanumeric(one) == alphanumeric(next));
    bytes.first().is_some_and(alphanumeric)
        && bytes.last().is_some_and(alphanumeric)
        && parts.all(|part| match part {
            b"." | b"_" | b"__" => true,
            part => part.iter().all(|byte| *byte == b'-') || part.iter().all(alphanumeric),
        })
}

impl FromStr for Name {
    type Err = InvalidName;

    fn from_str(text: &str) -> Result<Self, InvalidName> {
        if text.len() <= MAX_PATH_BYTES && text.as_bytes().split(|byte| *byte == b'/').all(is_component) {
            Ok(Self(text.into()))
        } else {
            Err(InvalidName)
        }
    }
}

/// The id of an upstream: one component of a name, because it is also the path prefix that selects it. Usually the
/// registry's host name: `docker.io`, `ghcr.io`.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Debug)]
pub struct UpstreamId(Arc<str>);

impl UpstreamId {
    /// The id as a path spells it.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl Borrow<str> for UpstreamId {
    fn borrow(&self) -> &str {
        &self.0
    }
}

impl FromStr for UpstreamId {
    type Err = InvalidName;

    fn from_str(text: &str) -> Result<Self, InvalidName> {
        if text.len() <= MAX_NAME_BYTES && is_component(text.as_bytes()) {
            Ok(Self(text.into()))
        } else {
            Err(InvalidName)
        }
    }
}

as_text!(Name, UpstreamId);

/// A repository after normalisation: the form every key and every permission uses.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Debug, Serialize, Deserialize)]
pub struct Repository {
    /// The registry that it is copied from.
    pub upstream: UpstreamId,
    /// Its name there.
    pub name: Name,
}

impl fmt::Display for Repository {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{}/{}", self.upstream, self.name)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_follow_the_grammar_of_the_specification() {
        for text in [
            "nginx",
            "library/nginx",
            "a/b/c/d/e",
            "docker.io/library/nginx",
            "a__b",
            "a---b/c.d_e",
            "0",
            &"a".repeat(511),
        ] {
            assert!(text.parse::<Name>().is_ok(), "{text}");
        }
        for text in [
            "",
            "/",
            "a/",
            "/a",
            "a//b",
            "A",
            "a..b",
            "a___b",
            ".a",
            "a.",
            "a-",
            "-a",
            "a._b",
            "a b",
            "a/../b",
            "é",
            "a%2fb",
            "host:5000/a",
            &"a".repeat(512),
        ] {
            assert_eq!(text.parse::<Name>(), Err(InvalidName), "{text}");
        }
    }

    #[test]
    fn a_name_is_divided_and_joined_between_components() {
        let name: Name = "a/b.c/d".parse().unwrap();
        let splits: Vec<_> = name.beginnings().map(|first| (first, name.after(first).unwrap().to_string())).collect();
        assert_eq!(splits, [("a/b.c", "d".to_owned()), ("a", "b.c/d".to_owned())]);
        for other in ["a/b", "a/b.c/d", "b"] {
            assert_eq!(name.after(other), None, "{other}");
        }
        assert_eq!((name.first(), "a".parse::<Name>().unwrap().first()), ("a", "a"));
        for (place, expected) in [("a", true), ("a/b.c", true), ("a/b.c/d", true), ("a/b", false), ("a/b.c/d/e", false)]
        {
            assert_eq!(name.is_below(&place.parse().unwrap()), expected, "{place}");
        }
        let (half, rest): (Name, Name) = ("a".repeat(127).parse().unwrap(), "b".repeat(127).parse().unwrap());
        assert!(half.join(&rest).checked().is_ok(), "255 characters");
        assert_eq!(half.join(&rest.join(&name)).checked(), Err(InvalidName));
    }

    #[test]
    fn an_upstream_id_is_a_single_component() {
        assert!("registry.k8s.io".parse::<UpstreamId>().is_ok());
        assert!("a/b".parse::<UpstreamId>().is_err());
        assert!("host:5000".parse::<UpstreamId>().is_err());
    }

    #[test]
    fn official_images_are_in_the_library() {
        assert_eq!("nginx".parse::<Name>().unwrap().in_library().as_str(), "library/nginx");
        assert_eq!("grafana/loki".parse::<Name>().unwrap().in_library().as_str(), "grafana/loki");
    }
}
