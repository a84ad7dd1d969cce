//! Parts of the world of repositories.

use super::{Name, Repository, UpstreamId};

/// Where repositories are: at an upstream, below a path or anywhere.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Place {
    /// The upstream.
    pub upstream: UpstreamId,
    /// The first components of their names there.
    pub path: Option<Name>,
}

impl Place {
    /// Everything at an upstream.
    pub fn whole(upstream: UpstreamId) -> Self {
        Self { upstream, path: None }
    }

    /// Whether a repository is there.
    pub fn contains(&self, repository: &Repository) -> bool {
        let below = |path: &Name| repository.name.is_below(path);
        self.upstream == repository.upstream && self.path.as_ref().is_none_or(below)
    }

    /// Whether another place is there.
    pub fn encloses(&self, other: &Self) -> bool {
        let below = |path: &Name| other.path.as_ref().is_some_and(|other| other.is_below(path));
        self.upstream == other.upstream && self.path.as_ref().is_none_or(below)
    }

    /// How far down it is: of the places that enclose a third one, one with a longer path is below one with a shorter.
    pub fn depth(&self) -> usize {
        self.path.as_ref().map_or(0, |path| path.as_str().len())
    }

    /// The repository that is called `name` there.
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
