//! What the sweep keeps, as it is configured.

use std::time::Duration;

use crate::records::blob::NOTED;
use crate::values::pattern::Pattern;

/// The shortest time that may be set: uses are known to the day.
pub(crate) const SHORTEST: Duration = NOTED;

/// The rules of retention.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Retention {
    /// How long unused content is kept. `None`: for ever.
    pub keep: Option<Duration>,
    /// Images that never expire: patterns of `repository:tag`.
    pub pin: Vec<Pattern>,
    /// How many bytes of blobs are kept at the most, those that were used last. `None`: no limit.
    pub max_size: Option<u64>,
}
