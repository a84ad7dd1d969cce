//! Records of blobs, and the rule of the claim: decided from the record and the time alone.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::Versioned;
use crate::oci::UpstreamId;
use crate::values::time::Timestamp;

/// What the ledger knows of a blob, whatever the repository.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct BlobRecord {
    /// Whether its bytes are stored.
    pub state: BlobState,
    /// How many fills have begun.
    pub attempts: u32,
    /// Why the last fill failed, in words.
    pub failure: Option<String>,
    /// How far an unfinished fill has come: the next one resumes there.
    pub checkpoint: Option<Checkpoint>,
    /// When its bytes were last used, to the day: by a pull, or by a new manifest that references it.
    pub used_at: Option<Timestamp>,
    /// Upstream has sent it for a repository that every caller that is let in may pull from. Otherwise it is shown only
    /// where a membership is [proven](Member::proven).
    #[serde(default)]
    pub open: bool,
    /// Whether several repositories have it, as the last sweep has counted.
    #[serde(default)]
    pub shared: bool,
}

impl BlobRecord {
    /// A record with a state and nothing else.
    pub fn new(state: BlobState) -> Self {
        Self { state, attempts: 0, failure: None, checkpoint: None, used_at: None, open: false, shared: false }
    }
}

/// How far an unfinished fill has come. Written whole in one conditional write; one that does not match its upload is
/// discarded.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Checkpoint {
    /// How many bytes are stored, from the first one on.
    pub offset: u64,
    /// The state of the hash over them (see [`Hasher::save`](crate::oci::Hasher::save)).
    pub hash: String,
    /// What the adapter needs to resume, in a format of its own.
    pub upload: String,
    /// The upstream that sent them: until they are verified, only a fill from the same upstream resumes with them.
    #[serde(default)]
    pub upstream: Option<UpstreamId>,
}

/// The state of a blob in storage.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(tag = "state", rename_all = "snake_case")]
pub enum BlobState {
    /// No fill is copying it: one failed, or its claim was given back.
    Absent,
    /// A fill is copying it. Other fills leave it alone until the claim expires; correctness never depends on that.
    Claimed {
        /// The fill that holds the claim: unique to one run.
        owner: String,
        /// When another fill may take over.
        until: Timestamp,
    },
    /// A sweep is deleting its bytes, which takes a short time; if its process dies, another takes over later.
    Removing {
        /// When another process may take over.
        until: Timestamp,
    },
    /// Stored, verified, and this many bytes long.
    Stored {
        /// Length in bytes.
        size: u64,
    },
}

impl BlobState {
    /// Whether a fill or a sweep is at work on the blob, which others leave alone meanwhile.
    pub fn is_busy(&self, now: Timestamp) -> bool {
        match self {
            Self::Claimed { until, .. } => until.is_ahead(CLAIM, now),
            Self::Removing { until } => until.is_ahead(REMOVING, now),
            Self::Absent | Self::Stored { .. } => false,
        }
    }

    /// Whether a fill holds the claim: it runs, or has died recently.
    pub fn is_claimed(&self, now: Timestamp) -> bool {
        matches!(self, Self::Claimed { .. }) && self.is_busy(now)
    }
}

/// A blob as one repository sees it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct BlobView {
    /// Its membership in the repository.
    pub member: Option<Member>,
    /// Its record, which all repositories share.
    pub record: Option<Versioned<BlobRecord>>,
}

impl BlobView {
    /// Its length in bytes, as it was verified. `None`: it is not stored.
    pub fn stored_size(&self) -> Option<u64> {
        if let BlobState::Stored { size } = self.record.as_ref()?.value.state { Some(size) } else { None }
    }

    /// Whether its bytes are stored.
    pub fn is_stored(&self) -> bool {
        self.stored_size().is_some()
    }

    /// Whether bytes that a fill for another repository has stored may be read through this one. A manifest that
    /// references them is enough only for [open](BlobRecord::open) blobs, because a manifest may reference any digest.
    pub fn is_shown(&self) -> bool {
        self.member.is_some_and(|member| member.proven) || self.record.as_ref().is_some_and(|record| record.value.open)
    }
}

/// The membership of a blob in a repository.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Member {
    /// The blob's length in bytes, as upstream or a manifest says.
    pub size: u64,
    /// When it was last written: by a manifest that references the blob, or by a pull.
    pub used_at: Timestamp,
    /// Upstream has sent the blob for this repository, or confirmed that it has it. Otherwise only a manifest
    /// references it.
    pub proven: bool,
}

/// How long a claim lasts. It is renewed while bytes arrive, so this bounds how long others wait for a fill that died.
pub const CLAIM: Duration = Duration::from_mins(1);

/// How long the record of a blob blocks fills and other sweeps while its bytes are deleted.
pub const REMOVING: Duration = Duration::from_mins(1);

/// What a fill may do about a blob, decided from its record alone.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Claim {
    /// Nothing: another fill holds the claim, or the bytes are being deleted.
    Held,
    /// Fill it, once a conditional write has put this record over the one that was read.
    Take(BlobRecord),
}

/// The rule of the claim, for a blob whose bytes are not stored.
pub fn decide(record: Option<&BlobRecord>, owner: &str, now: Timestamp) -> Claim {
    if record.is_some_and(|record| record.state.is_busy(now)) {
        return Claim::Held;
    }
    let known = record.cloned().unwrap_or_else(|| BlobRecord::new(BlobState::Absent));
    let state = BlobState::Claimed { owner: owner.to_owned(), until: now.plus(CLAIM) };
    Claim::Take(BlobRecord { state, attempts: known.attempts.saturating_add(1), used_at: Some(now), ..known })
}

/// How often the use of an item is noted: one write a day, however often it is pulled.
pub const NOTED: Duration = Duration::from_hours(24);

/// The record of a blob that is used now, if it must be written.
pub fn noted(record: &BlobRecord, now: Timestamp) -> Option<BlobRecord> {
    let due = record.used_at.is_none_or(|used_at| used_at < now.minus(NOTED));
    due.then(|| BlobRecord { used_at: Some(now), ..record.clone() })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record(state: BlobState) -> BlobRecord {
        BlobRecord { attempts: 2, ..BlobRecord::new(state) }
    }

    #[test]
    fn a_blob_is_claimed_unless_a_claim_on_it_runs() {
        let now = Timestamp(1000);
        let claimed = |until| record(BlobState::Claimed { owner: "other".into(), until: Timestamp(until) });
        assert_eq!(decide(Some(&claimed(1001)), "me", now), Claim::Held);
        let set_back = decide(Some(&claimed(1_000_000)), "me", now);
        assert!(matches!(set_back, Claim::Take(_)), "the clock was set back since: {set_back:?}");
        for free in
            [None, Some(claimed(1000)), Some(record(BlobState::Absent)), Some(record(BlobState::Stored { size: 1 }))]
        {
            let Claim::Take(taken) = decide(free.as_ref(), "me", now) else { panic!("{free:?}") };
            assert_eq!(taken.state, BlobState::Claimed { owner: "me".into(), until: now.plus(CLAIM) });
            assert_eq!(taken.attempts, free.map_or(0, |record| record.attempts) + 1);
        }
    }
}
