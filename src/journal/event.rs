//! What has failed, in words.

use serde::{Deserialize, Serialize};

use crate::oci::{Digest, Repository, UpstreamId};
use crate::values::text::beginning;
use crate::values::time::Timestamp;

/// The most characters of a reason: upstreams write some of it.
const REASON: usize = 300;

/// What kind of thing has happened.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum EventKind {
    /// An attempt to copy a blob has failed.
    FailedFill,
    /// An upstream is not asked for a while.
    BreakerOpened,
    /// It is asked again.
    BreakerClosed,
    /// A pull was refused, because a quota or a budget is used up.
    RefusedPull,
    /// The configuration is wrong or cannot be read.
    ConfigurationError,
}

impl EventKind {
    /// What to do about it.
    pub const fn advice(self) -> &'static str {
        match self {
            Self::FailedFill => {
                "`stopover fills` says whether it is tried again by itself; `stopover fills retry` tries what was given up"
            }
            Self::BreakerOpened => {
                "what is stored is served on, and upstream is asked again by itself; `stopover quota` says when"
            }
            Self::BreakerClosed => "nothing: upstream is asked again",
            Self::RefusedPull => {
                "of a quota: give the upstream credentials of an account with more of it; of a budget: `misses`, `pulls` or \
                 `new_bytes` in stopover.toml"
            }
            Self::ConfigurationError => {
                "mend the file: `stopover config check` names the key; until then the settings before it are used"
            }
        }
    }
}

/// Something that has happened, once or more.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Event {
    /// When it happened last.
    pub at: Timestamp,
    /// When it happened first.
    pub first_at: Timestamp,
    /// How often.
    pub times: u64,
    /// What.
    pub kind: EventKind,
    /// The upstream that it is about.
    pub upstream: Option<UpstreamId>,
    /// The repository that it is about.
    pub repository: Option<Repository>,
    /// The blob that it is about.
    pub digest: Option<Digest>,
    /// Why, as short as [`beginning`] makes it.
    pub reason: String,
}

impl Event {
    /// An event that has not been noted yet.
    pub fn new(kind: EventKind, reason: &impl std::fmt::Display) -> Self {
        let (at, reason) = (Timestamp(0), beginning(reason, REASON));
        Self { at, first_at: at, times: 0, kind, upstream: None, repository: None, digest: None, reason }
    }

    /// The same, about an upstream.
    #[must_use]
    pub fn at_upstream(self, upstream: &UpstreamId) -> Self {
        Self { upstream: Some(upstream.clone()), ..self }
    }

    /// The same, about a repository.
    #[must_use]
    pub fn in_repository(self, repository: &Repository) -> Self {
        Self { repository: Some(repository.clone()), ..self.at_upstream(&repository.upstream) }
    }

    /// The same, about a blob.
    #[must_use]
    pub fn of_blob(self, digest: &Digest) -> Self {
        Self { digest: Some(digest.clone()), ..self }
    }

    /// Whether both are the same thing at two times: the reason may be another.
    pub(super) fn is_like(&self, other: &Self) -> bool {
        (self.kind, &self.upstream, &self.repository, &self.digest)
            == (other.kind, &other.upstream, &other.repository, &other.digest)
    }
}
