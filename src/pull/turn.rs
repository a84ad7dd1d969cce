//! Whose turn it is to ask upstream: the callers of a process that want the same manifest share one flight, and of all
//! processes only the holder of the lease in the ledger asks.

use std::sync::Arc;
use std::time::Duration;

use futures_util::future::BoxFuture;
use tokio::time::Instant;

use super::decide::{Allowed, Facts, Flight, Heard, Turn};
use super::{ANSWER, Pull, PulledManifest, Result, Want};
use crate::budget::MissReservation;
use crate::config::UpstreamConfig;
use crate::errors::{PullError, beside};
use crate::oci::{Observed, Reference, Repository, Tag};
use crate::ports::{Attempts, Priority};
use crate::records::{Previous, ReferenceKey, TagRecord, tag};
use crate::values::deadline::bounded;

/// How long a client waits while another process asks upstream: longer than that may take, shorter than clients wait
/// for headers.
const TURN: Duration = Duration::from_secs(25);

/// How long upstream may take to say what a known tag is now, and to send that manifest.
const DECISION: Duration = Duration::from_secs(9);

/// The same where nothing is known, so that a client has an answer within the 30 seconds that it waits for headers.
const PATIENT_DECISION: Duration = Duration::from_secs(22);

/// How long an immutable tag is fresh: thousands of years, a date that every ledger can hold.
const FOR_EVER: Duration = Duration::from_hours(24 * 365 * 5000);

/// The question that callers share one request for, whichever of them is charged.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub(crate) struct FlightKey {
    repository: Repository,
    reference: Reference,
    head: bool,
    check: bool,
    priority: Priority,
}

impl Pull {
    /// Asks together with all callers of this process that want the same.
    pub(super) async fn join(
        self: &Arc<Self>,
        repository: &Repository,
        facts: &mut Facts,
        want: &Want,
    ) -> Result<Option<PulledManifest>> {
        // A caller without budget for pulls asks with HEAD, which costs nothing: the manifest may be stored.
        let (known, over) = (facts.observed().is_some(), facts.over().is_some());
        let check = want.check || (known && facts.permission_due);
        let asked = Want { head: want.head || over, check, ..want.clone() };
        let mut reservation = if (known || want.expected) && !check {
            MissReservation::free()
        } else {
            self.core.budgets.reserve_miss(want.bill.payer).await?
        };
        // A check is charged whatever it finds: upstream is asked because the caller says so.
        if want.check {
            reservation.keep_once_sent();
        }
        let heard = match self.share(repository, &facts.reference, asked, known, reservation).await {
            Ok(PulledManifest { observed, manifest: None, .. }) if over => Heard::Named(observed),
            Err(error @ PullError::OverBudget(_)) if over => Heard::Failed(error),
            // The caller that started the request was over budget. A caller that is not starts another one.
            Err(PullError::OverBudget(_)) if !want.head || self.core.budgets.check_pull(want.bill.payer).is_ok() => {
                facts.budget = Allowed::Unknown;
                return Ok(None);
            }
            pulled => return pulled.map(Some),
        };
        // What was known may have become what was known before.
        self.read_record(repository, facts).await?;
        facts.hear(heard);
        Ok(None)
    }

    /// The request that callers share. The caller that starts it is charged; callers that join it are not.
    pub(super) fn share(
        self: &Arc<Self>,
        repository: &Repository,
        reference: &Reference,
        want: Want,
        known: bool,
        mut reservation: MissReservation,
    ) -> BoxFuture<'_, Result<PulledManifest>> {
        let question = FlightKey {
            repository: repository.clone(),
            reference: reference.clone(),
            head: want.head,
            check: want.check,
            priority: want.priority,
        };
        let (pull, FlightKey { repository, reference, .. }) = (Arc::clone(self), question.clone());
        let work = move || async move {
            if !known && !want.check {
                pull.core.upstreams.standings.check_absent(&repository).await?;
            }
            reservation.mark_sent();
            let pulled = async {
                let mut facts = pull.facts_in_turn(&repository, &reference, &want, None).await?;
                pull.run(&repository, &mut facts, &want).await
            };
            let pulled = pulled.await;
            // An outage costs the callers of what is known nothing.
            let is_trouble = |error: &PullError| matches!(error, PullError::Upstream(error) if error.is_trouble());
            reservation.settle(pulled.as_ref().is_err_and(|error| error.is_miss() && !(known && is_trouble(error))));
            if want.check && pulled.is_ok() {
                beside(pull.core.upstreams.standings.note_present(&repository).await, "that a repository exists");
            }
            pulled
        };
        Box::pin(async move { self.flights.join(question, work).await.unwrap_or(Err(PullError::NotYet)) })
    }

    /// What is known now that this process has the turn of its callers. The record comes first: the process that gave its
    /// lease back had stored the manifest before.
    async fn facts_in_turn(
        &self,
        repository: &Repository,
        reference: &Reference,
        want: &Want,
        before: Option<Flight>,
    ) -> Result<Facts> {
        let (mut facts, since) = (Facts::new(reference, want), Instant::now());
        let record = self.core.storage.ledger.get(&ReferenceKey(repository, reference)).await?;
        let version = record.as_ref().map(|record| record.version);
        let said = record.as_ref().map(|record| (record.value.checked_at, record.value.fresh_until));
        let begin = || Flight { version, said, end: since + bounded(TURN), attempts: Attempts::new() };
        let before = before.unwrap_or_else(begin);
        facts.record = record.map(|record| record.value);
        facts.permission_due = facts.observed().is_some() && self.membership.permission_is_due(repository).await?;
        if let Reference::Digest(digest) = reference {
            facts.stored = self.stored(repository, digest).await?.into();
        }
        // A check by another process since this one was requested will do, unless it came to nothing.
        let is_unchanged = before.said == said || facts.record.as_ref().is_some_and(|record| record.lease.is_some());
        facts.check = want.check && is_unchanged;
        facts.late = Instant::now() > before.end;
        facts.deleted = self.core.upstreams.get(repository)?.config().deleted;
        facts.budget = Allowed::Yes;
        facts.turn = Turn::Flight(Flight { version, ..before });
        Ok(facts)
    }

    /// Reads again what is known while another process asks upstream.
    pub(super) async fn look_again(&self, repository: &Repository, facts: &mut Facts, want: &Want) -> Result<()> {
        let Turn::Flight(before) = &facts.turn else { return Err(PullError::NotYet) };
        *facts = self.facts_in_turn(repository, &facts.reference, want, Some(before.clone())).await?;
        Ok(())
    }

    /// Takes the lease of the reference, asks upstream, and writes its answer, which also gives the lease back. A holder
    /// that lost its lease changes nothing: the process that took it over has asked later.
    pub(super) fn take_turn<'a>(
        self: &'a Arc<Self>,
        repository: &'a Repository,
        facts: &'a mut Facts,
        want: &'a Want,
    ) -> BoxFuture<'a, Result<Option<PulledManifest>>> {
        Box::pin(async move {
            let Turn::Flight(Flight { version, attempts, end, .. }) = &mut facts.turn else {
                return Err(PullError::NotYet);
            };
            let left = (*end + ANSWER.saturating_sub(TURN)).saturating_duration_since(Instant::now());
            let leased = tag::leased(facts.record.as_ref(), self.core.clock.now());
            let written =
                self.core.storage.ledger.swap(&ReferenceKey(repository, &facts.reference), *version, &leased).await;
            let version = match beside(written, "the lease of a reference") {
                Some(None) => {
                    attempts.again().await?;
                    return self.look_again(repository, facts, want).await.map(|()| None);
                }
                Some(version) => version,
                // Without room for a lease it asks without one.
                None => *version,
            };
            // If something is known, the client gets that rather than wait longer for what is new.
            let limit = bounded(if facts.observed().is_some() { DECISION } else { PATIENT_DECISION }).min(left);
            facts.turn = Turn::Leased { end: Instant::now() + limit, limit };
            facts.record = Some(leased.clone());
            let pulled = self.run(repository, facts, want).await;
            self.write_answer(repository, facts, (leased, version), &pulled).await?;
            pulled.map(Some)
        })
    }

    /// Writes what upstream has said, in place of the lease: that gives it back.
    async fn write_answer(
        &self,
        repository: &Repository,
        facts: &Facts,
        (leased, version): (TagRecord, Option<u64>),
        pulled: &Result<PulledManifest>,
    ) -> Result<()> {
        let config = self.core.upstreams.get(repository)?.config();
        let (now, missing) = (self.core.clock.now(), jittered(config.missing));
        let was_known = leased.observed.is_some();
        let is_known = pulled.is_ok() || matches!(pulled, Err(PullError::TooLarge { .. }));
        // That what is known could not be read makes nothing of it missing.
        let is_missing = match pulled {
            Err(PullError::Upstream(error)) => !error.is_trouble(),
            pulled => matches!(pulled, Err(PullError::ManifestUnknown(_))),
        };
        let (reference, heard) = (&facts.reference, &facts.heard);
        let record = match (reference, heard.observed().filter(|_| is_known), heard) {
            (Reference::Tag(tag), Some(observed), _) => self.observed(config, repository, tag, &leased, observed).await,
            (_, _, Heard::Absent(_)) if pulled.is_ok() => tag::served_on(&leased, config.stale, missing, now),
            // Clients may have pinned the last digest.
            (_, _, Heard::Absent(_)) if is_missing => tag::answered(None, tag::before(&leased), missing, now),
            // A digest needs no record: its manifest is stored, or is asked for again.
            _ => TagRecord { lease: None, ..leased },
        };
        let written = self.core.storage.ledger.swap(&ReferenceKey(repository, reference), version, &record).await;
        beside(written, "what upstream said of a reference");
        if let (Reference::Tag(tag), false, Some(_), Ok(_)) = (reference, was_known, &record.observed, pulled) {
            self.note_held(repository, |holding| holding.with_tag(tag, now)).await;
        }
        Ok(())
    }

    /// The record of what upstream observed of a tag.
    async fn observed(
        &self,
        config: &UpstreamConfig,
        repository: &Repository,
        tag: &Tag,
        known: &TagRecord,
        observed: Observed,
    ) -> TagRecord {
        let mut previous = known.previous.clone();
        if let Some(before) = known.observed.as_ref().filter(|before| before.digest != observed.digest)
            // Where it cannot be looked up, it may be stored.
            && !matches!(self.stored(repository, &before.digest).await, Ok(None))
        {
            previous = Some(Previous { digest: before.digest.clone(), checked_at: known.checked_at });
        }
        let fresh = config.tags.fresh(tag).map_or(FOR_EVER, jittered);
        tag::answered(Some(observed), previous, fresh, self.core.clock.now())
    }
}

/// Ten per cent more or less, so that tags pulled together do not become stale together.
pub(super) fn jittered(duration: Duration) -> Duration {
    duration.mul_f64(fastrand::f64().mul_add(0.2, 0.9))
}
