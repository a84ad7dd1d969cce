//! Errors of fills.

use super::{StoreError, UpstreamError};

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
    /// The claim expired and another fill took over.
    #[error("another fill took over")]
    ClaimLost,
    /// The fill panicked: the log says where.
    #[error("a mistake of this program broke the fill off; its log says where")]
    Panicked,
}

impl FillError {
    /// Whether trying again later can help.
    pub fn may_pass(&self) -> bool {
        !matches!(self, Self::Upstream(UpstreamError::Missing | UpstreamError::NoRepository | UpstreamError::Denied(_)))
    }
}
