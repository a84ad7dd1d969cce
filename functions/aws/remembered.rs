//! What is stored and may be read, as a process that answers clients has read it in the last minute: then a blob that it
//! has redirected to costs no call of DynamoDB.

use std::collections::HashMap;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use stopover::oci::{Digest, Repository};
use stopover::records::BlobView;
use stopover::values::time::Timestamp;

/// How long a view is believed. A sweep removes what was not used for a day at least, and what is redirected to counts as
/// used. What is removed in another way meanwhile is redirected to in vain.
const BELIEVED: Duration = Duration::from_mins(1);

/// The most blobs that are remembered: some megabytes.
const MOST: usize = 10_000;

/// The views that were read last, for one repository each.
#[derive(Debug, Default)]
pub(crate) struct Remembered(Mutex<HashMap<Digest, (Repository, BlobView, Timestamp)>>);

impl Remembered {
    fn views(&self) -> MutexGuard<'_, HashMap<Digest, (Repository, BlobView, Timestamp)>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn get(&self, repository: &Repository, digest: &Digest, now: Timestamp) -> Option<BlobView> {
        let views = self.views();
        let (of, view, until) = views.get(digest)?;
        (of == repository && until.is_ahead(BELIEVED, now)).then(|| view.clone())
    }

    /// Notes what was read, if it is an answer: absence ends at any moment.
    pub(crate) fn note(&self, repository: &Repository, digest: &Digest, view: &BlobView, now: Timestamp) {
        if !view.is_stored() || !view.is_shown() {
            return;
        }
        let mut views = self.views();
        if views.len() >= MOST {
            views.clear();
        }
        views.insert(digest.clone(), (repository.clone(), view.clone(), now.plus(BELIEVED)));
    }

    /// Forgets what this process is about to change.
    pub(crate) fn forget(&self, digest: &Digest) {
        self.views().remove(digest);
    }
}

#[cfg(test)]
mod tests {
    use stopover::records::{BlobRecord, BlobState, Member, Versioned};

    use super::*;

    #[test]
    fn what_is_stored_is_believed_for_a_minute_and_for_its_repository_only() {
        let repository = |name: &str| Repository { upstream: "a.test".parse().unwrap(), name: name.parse().unwrap() };
        let digest = format!("sha256:{}", "0".repeat(64)).parse().unwrap();
        let (remembered, one, now) = (Remembered::default(), repository("one"), Timestamp(1_800_000_000));
        let view = |state, proven| BlobView {
            member: Some(Member { size: 7, used_at: now, proven }),
            record: Some(Versioned { value: BlobRecord::new(state), version: 1 }),
        };
        let stored = BlobState::Stored { size: 7 };
        for unknown in [view(BlobState::Absent, true), view(stored.clone(), false)] {
            remembered.note(&one, &digest, &unknown, now);
            assert_eq!(remembered.get(&one, &digest, now), None, "{unknown:?}");
        }
        let view = view(stored, true);
        remembered.note(&one, &digest, &view, now);
        let at = |seconds: u64| remembered.get(&one, &digest, Timestamp(now.0 + seconds));
        assert_eq!([at(0), at(59), at(60)], [Some(view.clone()), Some(view.clone()), None]);
        assert_eq!(remembered.get(&one, &digest, Timestamp(now.0 - 3600)), None, "the clock was set back");
        assert_eq!(remembered.get(&repository("two"), &digest, now), None);
        remembered.forget(&digest);
        assert_eq!(at(0), None);
    }
}
