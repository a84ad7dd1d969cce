//! Errors of fills.

use super::{OverBudget, StoreError, UpstreamError};

/// Why a blob was not stored.
#[derive(Debug, Clone, thiserror::Error)]
pub enum FillError {
    /// Upstream did not send it.
    #[error(transparent)]
    Upstream(#[from] UpstreamError),
    /// The bytes that upstream sent have a wrong length or digest.
    #[error("{0}")]
    Mismatch(String),
    /// Storage failed.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The caller that it is for has had upstream asked in vain too often.
    #[error(transparent)]
    OverBudget(#[from] OverBudget),
    /// The claim expired and another fill took over.
    #[error("another fill took over")]
    ClaimLost,
    /// The fill panicked: the log says where.
    #[error("a mistake of this program broke the fill off; its log says where")]
    Panicked,
}

impl FillError {
    /// Whether upstream was asked in vain.
    pub fn is_miss(&self) -> bool {
        matches!(self, Self::Mismatch(_)) || matches!(self, Self::Upstream(error) if error.is_miss())
    }

    /// Whether trying again later can help.
    pub fn may_pass(&self) -> bool {
        !matches!(self, Self::Upstream(UpstreamError::Missing | UpstreamError::NoRepository | UpstreamError::Denied(_)))
    }
}
