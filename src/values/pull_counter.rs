//! How many pulls of an upstream's quota a request has spent. The request that starts a fetch passes its counter along;
//! requests that join the fetch, and background work, count nothing.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

/// What one request has spent so far, shared with the work it has started.
#[derive(Clone, Debug)]
pub struct PullCounter(Option<Arc<AtomicU64>>);

impl PullCounter {
    /// For background work, which belongs to no request.
    pub const UNCOUNTED: Self = Self(None);

    /// Counts a manifest that upstream has sent.
    pub(crate) fn note_manifest(&self) {
        if let Some(manifests) = &self.0 {
            manifests.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// How many manifests upstream has sent.
    pub fn manifests(&self) -> u64 {
        self.0.as_ref().map_or(0, |manifests| manifests.load(Ordering::Relaxed))
    }
}

/// A counter that starts at zero.
impl Default for PullCounter {
    fn default() -> Self {
        Self(Some(Arc::default()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_request_counts_what_goes_on_for_it_and_nothing_else() {
        let (one, other) = (PullCounter::default(), PullCounter::default());
        one.note_manifest();
        one.clone().note_manifest();
        PullCounter::UNCOUNTED.note_manifest();
        assert_eq!((one.manifests(), other.manifests(), PullCounter::UNCOUNTED.manifests()), (2, 0, 0));
    }
}
