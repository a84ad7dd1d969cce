//! What storage answers when it does not do what it was asked.

/// Storage did not do what it was asked. Nothing may be concluded about what it holds.
#[derive(Debug, Clone, thiserror::Error)]
pub enum StoreError {
    /// It could not be reached, was throttled, or failed: asking again later may help.
    #[error("storage is unavailable: {0}")]
    Unavailable(String),
    /// It said no: permissions, a read-only or full disk. Only the operator can help.
    #[error("storage refused: {0}")]
    Refused(String),
    /// It answered with something that this version did not write.
    #[error("storage holds a record that cannot be read: {0}")]
    Corrupt(String),
}
