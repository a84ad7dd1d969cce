//! The decision about a manifest, from what is known and the time alone: no I/O, no clock.
//!
//! The arms of [`answer_or_ask`] have the order and the numbers of README's data path:
//!
//! 3. Manifest by tag, fresh record
//! 4. Remembered "missing"
//! 5. Upstream in trouble, or its breaker open
//! 6. Stale record
//! 7. No record
//! 8. Manifest by digest

use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;

use super::WarmManifest;
use crate::config::Deleted;
use crate::errors::{OverBudget, PullError, UpstreamError};
use crate::oci::{Digest, Observed, Reference};
use crate::ports::Attempts;
use crate::records::{TagRecord, tag};
use crate::values::served::Served;
use crate::values::time::Timestamp;

/// What is known about a question.
#[expect(clippy::struct_excessive_bools, reason = "each is a fact of its own")]
#[derive(Clone, Debug)]
pub(super) struct Facts {
    /// What is asked for.
    pub(super) reference: Reference,
    /// What upstream said of it before.
    pub(super) record: Option<TagRecord>,
    /// Whether the manifest is stored: that of the digest, or that of the digest which the tag is.
    pub(super) stored: Found,
    /// What upstream said last, if it may still be served.
    pub(super) last_known: Found,
    /// What upstream has answered now.
    pub(super) heard: Heard,
    /// The client wants only what HEAD answers.
    pub(super) head: bool,
    /// Upstream is to be asked however fresh the record is.
    pub(super) check: bool,
    /// The repository is private, and upstream has not shown us anything of it lately.
    pub(super) permission_due: bool,
    /// Upstream said that there is no such repository.
    pub(super) absent: bool,
    /// What is done about a tag that upstream has deleted.
    pub(super) deleted: Deleted,
    /// Upstream has deleted the tag, and does not just hide it from us.
    pub(super) is_not_hidden: bool,
    /// The breaker of the upstream was looked at. That one is open is the same as if upstream had answered so.
    pub(super) breaker_known: bool,
    /// Whether the caller may spend another manifest from upstream.
    pub(super) budget: Allowed,
    /// Who may ask upstream now.
    pub(super) turn: Turn,
    /// The client has waited as long as it may for another process.
    pub(super) late: bool,
}

/// Whether the caller's budget has room for a manifest from upstream.
#[derive(Clone, Debug)]
pub(super) enum Allowed {
    /// The budget was not looked at yet: most answers cost nothing.
    Unknown,
    Yes,
    No(OverBudget),
}

/// Whose turn it is to ask upstream.
#[derive(Clone, Debug)]
pub(super) enum Turn {
    /// Not this caller's: it first joins the callers of its process that want the same.
    Caller,
    /// That of this process, for all of those callers. Other processes may be asking.
    Flight(Flight),
    /// Ours: we hold the lease of the reference. Upstream has to answer until `end`, which is `limit` from the beginning.
    Leased { end: Instant, limit: Duration },
}

/// What a process knows while it waits for the lease.
#[derive(Clone, Debug)]
pub(super) struct Flight {
    /// The version of the record when it was read last.
    pub(super) version: Option<u64>,
    /// When upstream said what it says, and how long that is fresh, when it was read first.
    pub(super) said: Option<(Timestamp, Timestamp)>,
    /// Until when its clients wait for another process.
    pub(super) end: Instant,
    /// Attempts to take the lease.
    pub(super) attempts: Attempts,
}

/// A manifest that has to be looked for.
#[derive(Clone, Debug, Default)]
pub(super) enum Found {
    /// It was not looked for yet.
    #[default]
    Unknown,
    No,
    Yes(Arc<WarmManifest>),
}

/// What upstream has answered.
#[derive(Clone, Debug, Default)]
pub(super) enum Heard {
    /// It was not asked.
    #[default]
    Nothing,
    /// To HEAD: what the reference is.
    Named(Observed),
    /// It does not answer HEAD: a GET has to do.
    Unnamed,
    /// To GET: this manifest, or one that was stored meanwhile.
    Sent(Arc<WarmManifest>, Served),
    /// It does not have it.
    Absent(UpstreamError),
    /// It says nothing about the content.
    Trouble(UpstreamError),
    /// It was asked in vain, or was not to be asked.
    Failed(PullError),
}

/// What is done next.
#[derive(Clone, Debug)]
pub(super) enum Step {
    /// Look in storage for the manifest of this digest.
    FindStored(Digest),
    /// Look in storage for what upstream said last.
    FindLastKnown,
    /// Ask upstream whether it still shows us the stored manifest.
    AskPermission,
    /// Ask upstream whether it has deleted the tag, or hides it from us.
    AskIfHidden,
    /// See whether the upstream's breaker is open: then it is not asked, and nothing is written about it.
    CheckBreaker,
    /// See whether the caller's budget has room for a manifest.
    CheckBudget,
    /// Ask together with all callers of this process that want the same.
    Join,
    /// Ask for all processes: take the lease of the reference.
    TakeTurn,
    /// Another process asks upstream: look again what is known.
    Wait,
    /// Ask upstream.
    Ask(Ask),
    /// Answer with the manifest, or with what HEAD answers.
    Serve(Served),
    /// Answer with what upstream said last.
    ServeStale,
    /// Answer that there is no such manifest.
    Missing(Served),
    /// Answer that the pull failed.
    Refuse(PullError),
}

/// What upstream is asked.
#[derive(Clone, Debug)]
pub(super) enum Ask {
    /// What the reference is, which costs no quota.
    Head,
    /// For what the tag is.
    GetByTag,
    /// For the manifest of this digest.
    GetByDigest(Digest),
}

/// What is done next about a question: the answer, what it takes to find one, or what has to come before upstream is asked.
pub(super) fn decide(facts: &Facts, now: Timestamp) -> Step {
    answer_or_ask(facts, now).in_turn(facts)
}

/// The next step, whatever other callers and other processes do.
fn answer_or_ask(facts: &Facts, now: Timestamp) -> Step {
    let Facts { reference, record, stored, heard, .. } = facts;
    let observed = record.as_ref().and_then(|record| record.observed.as_ref());
    let fresh = record.as_ref().is_some_and(|record| record.is_fresh(now)) && !facts.ignores_freshness();
    let is_stored = matches!(stored, Found::Yes(_));
    match (reference, heard) {
        // 3. Manifest by tag, fresh record: its manifest, without upstream.
        (Reference::Tag(_), Heard::Nothing) if fresh && let Some(observed) = observed => match stored {
            _ if facts.head => Step::Serve(Served::Hit),
            Found::Unknown => Step::FindStored(observed.digest.clone()),
            Found::Yes(_) => Step::Serve(Served::Hit),
            // Only HEAD has been asked for so far.
            Found::No => Step::Ask(Ask::GetByDigest(observed.digest.clone())),
        },
        // 4. Remembered "missing": of the reference, or of its repository.
        (_, Heard::Nothing) if fresh && !is_stored => Step::Missing(Served::Hit),
        (_, Heard::Nothing) if facts.absent && !is_stored => Step::Refuse(UpstreamError::NoRepository.into()),
        // 5. Upstream in trouble, or its breaker open: what it said last, but not where it refuses us. So is a deleted tag that is kept, and
        // what another process asks about.
        (_, Heard::Absent(UpstreamError::Missing)) => facts.last_known_or(Step::Missing(Served::Miss)),
        (_, Heard::Trouble(error) | Heard::Absent(error)) => facts.last_known_or(Step::Refuse(error.clone().into())),
        (_, Heard::Failed(error @ PullError::OverBudget(_))) => facts.last_known_or(Step::Refuse(error.clone())),
        (_, Heard::Failed(error)) => Step::Refuse(error.clone()),
        (_, Heard::Nothing) if !is_stored && !facts.is_leased() && tag::is_leased(record.as_ref(), now) => {
            match facts.last_known {
                Found::Unknown => Step::FindLastKnown,
                Found::Yes(_) if facts.late || !(facts.check || facts.permission_due) => Step::ServeStale,
                Found::No if facts.late => Step::Refuse(PullError::NotYet),
                Found::Yes(_) | Found::No => Step::Wait,
            }
        }
        // 6. Stale record: HEAD, which is free. The same digest, or a new one, which is fetched by digest.
        (Reference::Tag(_), Heard::Nothing) if observed.is_some() => Step::Ask(Ask::Head),
        (_, Heard::Named(named)) => match (stored, facts.over()) {
            (Found::Unknown, _) => Step::FindStored(named.digest.clone()),
            (Found::Yes(_), _) => Step::Serve(Served::Revalidated),
            (Found::No, Some(over)) => facts.last_known_or(Step::Refuse(over.clone().into())),
            (Found::No, None) if facts.head => Step::Serve(Served::Miss),
            (Found::No, None) => Step::Ask(Ask::GetByDigest(named.digest.clone())),
        },
        // 7. No record: a client's HEAD is a HEAD, and so is that of a caller without budget; else one GET by tag.
        (Reference::Tag(_), Heard::Nothing) if facts.head || facts.over().is_some() => Step::Ask(Ask::Head),
        (Reference::Tag(_), Heard::Nothing | Heard::Unnamed) => Step::Ask(Ask::GetByTag),
        // 8. Manifest by digest: stored for this repository, or fetched.
        (Reference::Digest(_), Heard::Nothing) if is_stored && facts.permission_due => Step::AskPermission,
        (Reference::Digest(_), Heard::Nothing) if is_stored => Step::Serve(Served::Hit),
        (Reference::Digest(_), Heard::Nothing) if facts.head => Step::Ask(Ask::Head),
        (Reference::Digest(digest), Heard::Nothing | Heard::Unnamed) => match facts.over() {
            Some(over) => Step::Refuse(over.clone().into()),
            None => Step::Ask(Ask::GetByDigest(digest.clone())),
        },
        (_, Heard::Sent(_, served)) => Step::Serve(*served),
    }
}

impl Facts {
    /// Whether upstream is asked, however fresh the record is.
    fn ignores_freshness(&self) -> bool {
        self.is_leased() || self.check || (self.permission_due && matches!(self.reference, Reference::Tag(_)))
    }

    fn last_known_or(&self, otherwise: Step) -> Step {
        let is_absent = matches!(self.heard, Heard::Absent(_));
        match self.last_known {
            _ if is_absent && self.deleted == Deleted::Missing => otherwise,
            Found::Unknown => Step::FindLastKnown,
            Found::Yes(_) if is_absent && !self.is_not_hidden => Step::AskIfHidden,
            Found::Yes(_) => Step::ServeStale,
            Found::No => otherwise,
        }
    }

    fn is_leased(&self) -> bool {
        matches!(self.turn, Turn::Leased { .. })
    }

    /// Which budget is used up.
    pub(super) fn over(&self) -> Option<&OverBudget> {
        if let Allowed::No(over) = &self.budget { Some(over) } else { None }
    }
}

impl Found {
    pub(super) fn manifest(&self) -> Option<&Arc<WarmManifest>> {
        if let Self::Yes(manifest) = self { Some(manifest) } else { None }
    }
}

impl From<Option<Arc<WarmManifest>>> for Found {
    fn from(manifest: Option<Arc<WarmManifest>>) -> Self {
        manifest.map_or(Self::No, Self::Yes)
    }
}

impl Heard {
    /// What the reference is, as upstream said.
    pub(super) fn observed(&self) -> Option<Observed> {
        match self {
            Self::Named(observed) => Some(observed.clone()),
            Self::Sent(manifest, _) => Some(Observed::of(manifest)),
            // It has been fetched once, so its digest is known.
            Self::Failed(PullError::TooLarge { manifest, .. }) => manifest.clone(),
            Self::Failed(_) | Self::Nothing | Self::Unnamed | Self::Absent(_) | Self::Trouble(_) => None,
        }
    }
}

impl From<PullError> for Heard {
    fn from(error: PullError) -> Self {
        match error {
            PullError::Upstream(error @ (UpstreamError::Missing | UpstreamError::NoRepository)) => Self::Absent(error),
            PullError::Upstream(error) if !error.is_refusal() => Self::Trouble(error),
            error => Self::Failed(error),
        }
    }
}

impl Step {
    /// This step, or the one before upstream is asked: callers of a process join each other, and of all processes only
    /// the holder of the lease asks.
    fn in_turn(self, facts: &Facts) -> Self {
        match (&facts.turn, &facts.budget, &self) {
            (Turn::Caller, _, Self::Ask(_)) if !facts.breaker_known => Self::CheckBreaker,
            (Turn::Caller, Allowed::Unknown, Self::Ask(_) | Self::Wait) if !facts.head => Self::CheckBudget,
            (Turn::Caller, _, Self::Ask(_) | Self::Wait) => Self::Join,
            // The request by digest takes a lease of its own.
            (Turn::Flight(_), _, Self::Ask(Ask::GetByDigest(_))) if matches!(facts.reference, Reference::Tag(_)) => {
                self
            }
            (Turn::Flight(_), _, Self::Ask(_)) => Self::TakeTurn,
            _ => self,
        }
    }
}

#[cfg(test)]
mod tests;
