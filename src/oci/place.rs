//! Places: an upstream, or a path at an upstream.

use super::{Name, Repository, UpstreamId};

/// A part of an upstream: all of its repositories, or those below a path.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Place {
    /// The upstream.
    pub upstream: UpstreamId,
    /// The first components of the repositories' names; `None`: all of the upstream.
    pub path: Option<Name>,
}

impl Place {
    /// All repositories of an upstream.
    pub fn whole(upstream: UpstreamId) -> Self {
        Self { upstream, path: None }
    }

    /// Whether a repository lies in this place.
    pub fn contains(&self, repository: &Repository) -> bool {
        let below = |path: &Name| repository.name.is_below(path);
        self.upstream == repository.upstream && self.path.as_ref().is_none_or(below)
    }

    /// Whether another place lies in this one, or is the same.
    pub fn encloses(&self, other: &Self) -> bool {
        let below = |path: &Name| other.path.as_ref().is_some_and(|other| other.is_below(path));
        self.upstream == other.upstream && self.path.as_ref().is_none_or(below)
    }

    /// How specific it is: of the places that enclose a third one, the one with the longer path lies in the other.
    pub fn depth(&self) -> usize {
        self.path.as_ref().map_or(0, |path| path.as_str().len())
    }

    /// The repository whose name is `name`, relative to this place.
    pub fn join(&self, name: &Name) -> Repository {
        let name = self.path.as_ref().map_or_else(|| name.clone(), |path| path.join(name));
        Repository { upstream: self.upstream.clone(), name }
    }
}

impl std::fmt::Display for Place {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match &self.path {
            Some(path) => write!(formatter, "{}/{path}", self.upstream),
            None => write!(formatter, "{}", self.upstream),
        }
    }
}
