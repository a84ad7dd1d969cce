//! How the counters came to be what they are: a day of samples.

use std::collections::VecDeque;
use std::time::Duration;

use crate::oci::UpstreamId;
use crate::values::time::Timestamp;

/// How often a sample is taken.
pub const EVERY: Duration = Duration::from_mins(15);
/// How many of them are remembered: those of a day.
pub const MOST: usize = 96;

/// What was counted until a time.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Sample {
    /// Until when.
    pub at: Timestamp,
    /// By upstream: how many requests were answered with what is stored, and how many not. Those that were not asked are
    /// left out.
    pub counted: Vec<(UpstreamId, u64, u64)>,
}

impl Sample {
    /// The sums over the upstreams that are shown.
    pub fn sums(&self, is_shown: impl Fn(&UpstreamId) -> bool) -> (u64, u64) {
        let shown = self.counted.iter().filter(|(upstream, ..)| is_shown(upstream));
        shown.fold((0, 0), |(stored, missed), (_, more, besides)| (stored + more, missed + besides))
    }
}

/// Adds a sample; the oldest go.
pub(super) fn add(samples: &mut VecDeque<Sample>, sample: Sample) {
    if samples.len() >= MOST {
        samples.pop_front();
    }
    samples.push_back(sample);
}
