//! Records of tags and digests, and what follows from one: from the record and the time alone, no I/O, no clock.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::oci::{Digest, Observed};
use crate::values::time::Timestamp;

/// "Upstream said at time t that tag T is digest D": freshness, never content. For a digest it says only that a process
/// is fetching it, or that upstream does not have it.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct TagRecord {
    /// What upstream said; `None`: that there is no such tag.
    pub observed: Option<Observed>,
    /// The digest served before: kept until the manifest of `observed` is stored, or because upstream has deleted the
    /// tag.
    pub previous: Option<Previous>,
    /// When upstream said it.
    pub checked_at: Timestamp,
    /// Until when upstream is not asked again.
    pub fresh_until: Timestamp,
    /// The lease of the process that is asking upstream.
    pub lease: Option<Lease>,
}

impl TagRecord {
    /// Whether upstream need not be asked again yet.
    pub fn is_fresh(&self, now: Timestamp) -> bool {
        self.fresh_until.is_ahead(self.fresh_until.after(self.checked_at), now)
    }
}

/// What a tag was before it moved.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Previous {
    /// The digest.
    pub digest: Digest,
    /// When upstream last said so.
    pub checked_at: Timestamp,
}

/// The right to ask upstream about a reference while all others wait for the answer. It saves requests; that a holder
/// which lost it changes nothing is ensured by the version of the record.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Lease {
    /// The holder: unique to one request.
    pub owner: String,
    /// When another process may take over.
    pub until: Timestamp,
}

/// How long one process may ask upstream while all others wait. Longer than it may take to answer a client, so that it
/// expires only if its holder died.
pub const LEASE: Duration = Duration::from_secs(23);

/// Whether another process is asking upstream.
pub fn is_leased(record: Option<&TagRecord>, now: Timestamp) -> bool {
    let lease = record.and_then(|record| record.lease.as_ref());
    lease.is_some_and(|lease| lease.until.is_ahead(LEASE, now))
}

/// The record with a new lease: to be put, by a conditional write, over the one that was read.
pub fn leased(record: Option<&TagRecord>, now: Timestamp) -> TagRecord {
    let lease = Some(Lease { owner: format!("{:016x}", fastrand::u64(..)), until: now.plus(LEASE) });
    let unknown = || TagRecord { observed: None, previous: None, checked_at: now, fresh_until: now, lease: None };
    TagRecord { lease, ..record.cloned().unwrap_or_else(unknown) }
}

/// The last digest that the tag had.
pub fn before(known: &TagRecord) -> Option<Previous> {
    let observed = known.observed.as_ref();
    let last = observed.map(|observed| Previous { digest: observed.digest.clone(), checked_at: known.checked_at });
    last.or_else(|| known.previous.clone())
}

/// The digests that upstream reported no longer than `stale` ago, newest first. None, if it said that there is no such
/// tag.
pub fn last_known(record: &TagRecord, stale: Duration, now: Timestamp) -> impl Iterator<Item = &Digest> {
    let observed = record.observed.iter().map(|observed| (&observed.digest, record.checked_at));
    let previous = record.previous.iter().map(|previous| (&previous.digest, previous.checked_at));
    let known = observed.chain(previous).take_while(|_| record.observed.is_some());
    known.filter(move |(_, checked_at)| now < checked_at.plus(stale)).map(|(digest, _)| digest)
}

/// The record after upstream has answered: `observed`, or that there is no such thing. `previous` is what to keep
/// serving if the manifest of `observed` is not available.
pub fn answered(observed: Option<Observed>, previous: Option<Previous>, fresh: Duration, now: Timestamp) -> TagRecord {
    TagRecord { observed, previous, checked_at: now, fresh_until: now.plus(fresh), lease: None }
}

/// The record after upstream has deleted a tag that is still to be served: upstream is not asked again for `missing`,
/// and the digest stays known as long as it may be stale.
pub fn served_on(record: &TagRecord, stale: Duration, missing: Duration, now: Timestamp) -> TagRecord {
    let fresh_until = now.plus(missing).min(record.checked_at.plus(stale));
    TagRecord { fresh_until, lease: None, ..record.clone() }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::oci::{Algorithm, MediaType, Observed};

    const NOW: Timestamp = Timestamp(1_000_000);

    fn record(fresh_until: u64, lease_until: Option<u64>) -> TagRecord {
        let digest = Digest::of(Algorithm::Sha256, b"manifest");
        TagRecord {
            observed: Some(Observed { digest, media_type: MediaType::OciIndex, size: 8 }),
            previous: Some(Previous {
                digest: Digest::of(Algorithm::Sha256, b"previous"),
                checked_at: Timestamp(NOW.0 - 150),
            }),
            checked_at: Timestamp(NOW.0 - 100),
            fresh_until: Timestamp(fresh_until),
            lease: lease_until.map(|until| Lease { owner: "other".into(), until: Timestamp(until) }),
        }
    }

    #[test]
    fn a_lease_loses_nothing_that_is_known_and_makes_nothing_fresh() {
        assert!(is_leased(Some(&record(NOW.0, Some(NOW.0 + 1))), NOW));
        for free in [None, Some(record(NOW.0, None)), Some(record(NOW.0, Some(NOW.0)))] {
            assert!(!is_leased(free.as_ref(), NOW), "{free:?}");
            let leased = leased(free.as_ref(), NOW);
            assert_eq!(leased.lease.as_ref().map(|lease| lease.until), Some(NOW.plus(LEASE)));
            assert_eq!(leased.observed, free.and_then(|record| record.observed));
            assert!(!leased.is_fresh(NOW));
        }
    }

    #[test]
    fn a_record_of_a_clock_that_was_set_back_is_neither_fresh_nor_leased() {
        let record = TagRecord { checked_at: Timestamp(NOW.0 - 1), ..record(NOW.0 + 300, Some(NOW.0 + 15)) };
        for (back, counts) in [(0, true), (5, true), (3600, false), (NOW.0, false)] {
            let now = Timestamp(NOW.0 - back);
            assert_eq!((record.is_fresh(now), is_leased(Some(&record), now)), (counts, counts), "{back}");
        }
    }

    #[test]
    fn what_was_said_last_is_used_only_as_long_as_it_may_be_stale() {
        let record = record(0, None);
        let stale = Duration::from_secs(100);
        assert_eq!(last_known(&record, stale, Timestamp(NOW.0 - 51)).count(), 2);
        assert_eq!(last_known(&record, stale, Timestamp(NOW.0 - 50)).count(), 1, "each by its own age");
        assert_eq!(last_known(&record, stale, Timestamp(NOW.0 - 1)).count(), 1);
        assert_eq!(last_known(&record, stale, NOW).count(), 0);
        let deleted = TagRecord { observed: None, ..record };
        assert_eq!(last_known(&deleted, stale, Timestamp(NOW.0 - 51)).count(), 0, "what it was is not what it is");
    }
}
