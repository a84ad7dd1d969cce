//! Budgets that are used up.

use std::time::Duration;

/// What a budget counts.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Budget {
    /// Requests to upstream that were in vain: what it does not have or does not show, and all other failures. And lists
    /// that are read anew, because each may take hundreds of requests. Per minute.
    Misses,
    /// Manifests that upstream has sent: what quotas count. Per hour.
    Pulls,
    /// Bytes of blobs that are newly stored. Per day.
    NewBytes,
}

impl Budget {
    /// How long it takes until an empty budget is full again, in seconds.
    pub(crate) const fn window(self) -> u64 {
        match self {
            Self::Misses => 60,
            Self::Pulls => 60 * 60,
            Self::NewBytes => 24 * 60 * 60,
        }
    }
}

/// A caller has used up a budget.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
#[error("{}, and may again in {}; what is stored still pulls", match budget {
    Budget::Misses => "you ask too often for what is not stored here",
    Budget::Pulls => "you have pulled as much that is new as you may in an hour",
    Budget::NewBytes => "you have had as many new bytes stored as you may in a day",
}, humantime::format_duration(*retry_after))]
pub struct OverBudget {
    /// The budget that is used up.
    pub budget: Budget,
    /// How long until enough of it is there again.
    pub retry_after: Duration,
}
