//! Records of tags and digests, and what may be done about one: decided from the record and the time alone, no I/O, no
//! clock.

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
    fn is_fresh(&self, now: Timestamp) -> bool {
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

/// What may be done about a reference.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Step<'a> {
    /// Serve this: upstream said it lately.
    Fresh(&'a Observed),
    /// Say that it is missing: upstream said so lately.
    Missing,
    /// Another process asks upstream: serve what is known, or wait for it.
    Held,
    /// Ask upstream, once a conditional write has put this record over the one that was read.
    Ask(TagRecord),
}

/// The rule of freshness. `check`: the client wants upstream to be asked however fresh the record is.
pub fn decide<'a>(record: Option<&'a TagRecord>, owner: &str, check: bool, now: Timestamp) -> Step<'a> {
    let lease = Lease { owner: owner.to_owned(), until: now.plus(LEASE) };
    let Some(record) = record else {
        return Step::Ask(TagRecord {
            observed: None,
            previous: None,
            checked_at: now,
            fresh_until: now,
            lease: Some(lease),
        });
    };
    if !check && record.is_fresh(now) {
        return record.observed.as_ref().map_or(Step::Missing, Step::Fresh);
    }
    match &record.lease {
        Some(held) if held.until.is_ahead(LEASE, now) => Step::Held,
        _ => Step::Ask(TagRecord { lease: Some(lease), ..record.clone() }),
    }
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
    fn a_fresh_record_is_served_whoever_holds_its_lease() {
        let fresh = record(NOW.0 + 1, Some(NOW.0 + 1));
        assert_eq!(decide(Some(&fresh), "me", false, NOW), Step::Fresh(fresh.observed.as_ref().unwrap()));
        let missing = TagRecord { observed: None, ..fresh };
        assert!(matches!(decide(Some(&record(NOW.0 + 1, None)), "me", true, NOW), Step::Ask(_)), "it was asked for");
        assert_eq!(decide(Some(&missing), "me", false, NOW), Step::Missing);
    }

    #[test]
    fn one_asks_while_its_lease_runs_and_another_takes_over_after_it() {
        assert_eq!(decide(Some(&record(NOW.0, Some(NOW.0 + 1))), "me", false, NOW), Step::Held);
        for free in [None, Some(record(NOW.0, None)), Some(record(NOW.0, Some(NOW.0)))] {
            let Step::Ask(leased) = decide(free.as_ref(), "me", false, NOW) else { panic!("{free:?}") };
            assert_eq!(leased.lease, Some(Lease { owner: "me".into(), until: NOW.plus(LEASE) }));
            assert_eq!(leased.observed, free.and_then(|record| record.observed), "nothing known is lost");
            assert!(NOW >= leased.fresh_until, "a lease makes nothing fresh");
        }
    }

    #[test]
    fn a_record_of_a_clock_that_was_set_back_is_neither_fresh_nor_leased() {
        let record = TagRecord { checked_at: Timestamp(NOW.0 - 1), ..record(NOW.0 + 300, Some(NOW.0 + 15)) };
        for (back, fresh) in [(0, true), (5, true), (3600, false), (NOW.0, false)] {
            for record in [record.clone(), TagRecord { observed: None, ..record.clone() }] {
                let step = decide(Some(&record), "me", false, Timestamp(NOW.0 - back));
                assert_eq!(matches!(step, Step::Fresh(_) | Step::Missing), fresh, "{back}: {step:?}");
                assert_eq!(matches!(step, Step::Ask(_)), !fresh, "{back}: {step:?}");
            }
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
