//! What the processes of a cache have counted together.

use async_trait::async_trait;

use super::Result;
use crate::journal::{Slot, Tally};

/// How many sums are added at once: an expression of `DynamoDB` may have 4 KB.
pub const MOST_SUMS: usize = 200;

/// The sums of each hour and each day.
#[async_trait]
pub trait Tallies: Send + Sync {
    /// Adds to the sums of a slot, which begin with 0. Of at most [`MOST_SUMS`] either all are added or none, even if other
    /// processes add at the same time. After an `Err` they may have been added all the same, and an adapter that repeats a call
    /// whose answer was lost may add them twice: they are for people to look at, and nothing is decided by them.
    async fn add_tally(&self, slot: Slot, tally: &Tally) -> Result<()>;

    /// The sums of those slots that have any, in no order. They may lag by a second on `DynamoDB`. Those of a slot that
    /// is over ([`Slot::kept_until`]) may be forgotten.
    async fn tallies(&self, slots: &[Slot]) -> Result<Vec<(Slot, Tally)>>;
}
