//! What upstream registries answer when they do not answer what was asked.

use std::time::Duration;

use serde::{Deserialize, Serialize};

/// What an upstream answered when it did not answer what was asked.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum UpstreamError {
    /// It says there is no such thing, or (without credentials) does not tell a stranger apart from that.
    #[error("upstream does not have it")]
    Missing,
    /// It says that there is no such repository, or does not show it to strangers.
    #[error("upstream has no such repository, or does not show it to us")]
    NoRepository,
    /// It refuses us. Nothing cached may be served on the strength of an earlier permission.
    #[error("upstream refused: {0}")]
    Denied(String),
    /// It limits us.
    #[error("{detail}")]
    Throttled {
        /// What it limits.
        limit: Limit,
        /// When it wants to be asked again.
        retry_after: Option<Duration>,
        /// Whose limit, since when, and what helps.
        detail: String,
    },
    /// It could not be reached, was too slow, or failed.
    #[error("upstream is unavailable: {reason}")]
    Unavailable {
        /// It did not answer at all, or not in time.
        silent: bool,
        /// In words.
        reason: String,
    },
    /// It answered well, and where it redirects to (its CDN) fails. Says nothing about the registry itself.
    #[error("where upstream redirects to is unavailable: {0}")]
    Elsewhere(String),
    /// It answered something that may not be passed on: not a manifest, not the promised bytes, a forbidden redirect.
    #[error("upstream answered wrongly: {0}")]
    Invalid(String),
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
    /// Whether it says nothing about what was asked for: another upstream, or this one later, may well have it.
    pub fn is_trouble(&self) -> bool {
        matches!(self, Self::Throttled { .. } | Self::Unavailable { .. } | Self::Elsewhere(_))
    }

    /// Whether it says that the repository is not for us: whatever upstream has shown us of it before counts no more.
    pub fn is_refusal(&self) -> bool {
        matches!(self, Self::Denied(_) | Self::NoRepository)
    }

    /// Whether it was asked for what it does not have, or does not show.
    pub fn is_miss(&self) -> bool {
        *self == Self::Missing || self.is_refusal()
    }
}
