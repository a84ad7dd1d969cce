//! Errors of upstream registries.

use std::time::Duration;

use serde::{Deserialize, Serialize};

/// Why an upstream did not give what was asked for.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum UpstreamError {
    /// It says that there is no such thing. Without credentials, this may also mean that it does not show it.
    #[error("upstream does not have it")]
    Missing,
    /// It says that there is no such repository, or that it does not show it to us.
    #[error("upstream has no such repository, or does not show it to us")]
    NoRepository,
    /// It refuses us. Nothing cached may be served on the strength of an earlier permission.
    #[error("upstream refused: {0}")]
    Denied(String),
    /// It limits our pulls, requests or logins.
    #[error("{detail}")]
    Throttled {
        /// Which of the limits.
        limit: Limit,
        /// How long to wait before asking again; `None`: it does not say.
        retry_after: Option<Duration>,
        /// Whose limit, since when, and what helps.
        detail: String,
    },
    /// It could not be reached, was too slow, or failed.
    #[error("upstream is unavailable: {reason}")]
    Unavailable {
        /// It did not answer at all, or not in time.
        silent: bool,
        /// What failed, in words.
        reason: String,
    },
    /// The host that it redirects to (its CDN) fails. This says nothing about the registry itself.
    #[error("where upstream redirects to is unavailable: {reason}")]
    Elsewhere {
        /// It did not answer at all, or not in time.
        silent: bool,
        /// What failed, in words.
        reason: String,
    },
    /// It answered something that may not be passed on: not a manifest, not the promised bytes, a forbidden redirect.
    #[error("upstream answered wrongly: {0}")]
    Invalid(String),
    /// It is not asked, because it has lately been in this trouble.
    #[error("{0}")]
    LeftAlone(Box<Self>),
}

/// The three limits of Docker Hub, which others have too (Docker Hub, "Usage and limits").
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Limit {
    /// Pulls in a window: counts manifests that are fetched, and nothing else.
    Pulls,
    /// Requests of any kind: protects the registry from abuse.
    Requests,
    /// Logins: the token server refuses for a while.
    Login,
}

impl std::fmt::Display for Limit {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.write_str(match self {
            Self::Pulls => "pulls",
            Self::Requests => "requests",
            Self::Login => "logins",
        })
    }
}

impl UpstreamError {
    /// It answered, and failed in these words.
    pub(crate) fn failed(reason: impl Into<String>) -> Self {
        Self::Unavailable { silent: false, reason: reason.into() }
    }

    /// Whether this says nothing about the content: another upstream, or this one later, may well have it.
    pub fn is_trouble(&self) -> bool {
        matches!(self, Self::Throttled { .. } | Self::Unavailable { .. } | Self::Elsewhere { .. } | Self::LeftAlone(_))
    }

    /// Whether upstream denies us the repository: what it has shown us of it before no longer counts.
    pub fn is_refusal(&self) -> bool {
        matches!(self, Self::Denied(_) | Self::NoRepository)
    }

    /// Whether upstream was asked in vain, whatever came of it.
    pub fn is_miss(&self) -> bool {
        !matches!(self, Self::LeftAlone(_))
    }

    /// The limit that is the reason.
    pub fn limit(&self) -> Option<Limit> {
        match self {
            Self::Throttled { limit, .. } => Some(*limit),
            Self::LeftAlone(error) => error.limit(),
            _ => None,
        }
    }

    /// The same of an upstream that was asked.
    #[must_use]
    pub fn asked(self) -> Self {
        if let Self::LeftAlone(error) = self { *error } else { self }
    }

    /// That upstream is not asked because of this.
    #[must_use]
    pub fn left_alone(self) -> Self {
        Self::LeftAlone(Box::new(self))
    }
}
