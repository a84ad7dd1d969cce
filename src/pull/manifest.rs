//! Manifests, from top to bottom. The numbers are those of README's data path.

use std::sync::Arc;
use std::time::Duration;

use futures_util::future::BoxFuture;
use tokio::time::Instant;

use super::decide::{Facts, Heard, Step, decide};
use super::{Pull, PulledManifest};
use crate::budget::{Bill, MissReservation};
use crate::config::UpstreamConfig;
use crate::errors::{Limit, PullError, UpstreamError, beside};
use crate::oci::{Digest, Manifest, Observed, Reference, Repository, Tag};
use crate::ports::{Attempts, Priority};
use crate::records::{Previous, TagRecord, tag};
use crate::upstream::Patience;
use crate::values::deadline::bounded;
use crate::values::served::Served;

/// How long a client waits while another process asks upstream: longer than that may take, shorter than clients wait
/// for headers.
const TURN: Duration = Duration::from_secs(25);

/// How long upstream may take to say what a known tag is now, and to send that manifest.
const DECISION: Duration = Duration::from_secs(9);

/// The same where nothing is known, so that a client has an answer within the 30 seconds that it waits for headers.
const PATIENT_DECISION: Duration = Duration::from_secs(22);

/// How long an immutable tag is fresh: thousands of years, a date that every ledger can hold.
const FOR_EVER: Duration = Duration::from_hours(24 * 365 * 5000);

/// What a caller wants of a manifest.
#[derive(Clone, Debug)]
pub struct Want {
    /// Only what HEAD answers.
    pub head: bool,
    /// Ask upstream even if the record of the tag is fresh.
    pub check: bool,
    /// Who waits for it. Unless that is a client, the reserve of the quota is left alone.
    pub priority: Priority,
    /// Who pays for it.
    pub bill: Bill,
    /// A missing manifest is not a miss: clients ask about it with every image that they pull.
    pub expected: bool,
}

impl Want {
    /// The manifest, as fresh as the configuration says.
    pub const GET: Self = Self::plain(false);
    /// What HEAD answers, as fresh as the configuration says.
    pub const HEAD: Self = Self::plain(true);

    const fn plain(head: bool) -> Self {
        Self { head, check: false, priority: Priority::Interactive, bill: Bill::FREE, expected: false }
    }
}

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
    /// Answers a pull of a manifest. A client's HEAD never causes a GET to upstream that HEAD could replace.
    pub async fn manifest(
        self: &Arc<Self>,
        repository: &Repository,
        reference: &Reference,
        want: Want,
    ) -> Result<PulledManifest, PullError> {
        let pulled = self.find(repository, reference, &want).await?;
        if let Some(manifest) = pulled.manifest.as_ref().filter(|_| !want.head) {
            self.check_room(repository, manifest, &want).await?;
            self.wait_for_blobs(repository, &pulled, manifest, &want).await?;
        }
        self.note_manifest(repository, &pulled, &want).await;
        Ok(pulled)
    }

    /// Answers from what is known, or asks upstream together with all callers that want the same.
    async fn find(
        self: &Arc<Self>,
        repository: &Repository,
        reference: &Reference,
        want: &Want,
    ) -> Result<PulledManifest, PullError> {
        let mut facts = self.known_facts(repository, reference, want).await?;
        loop {
            let mut step = decide(&facts, self.core.clock.now());
            if step.needs_upstream() && !want.head {
                facts.over = self.core.budgets.check_pull(want.bill.payer).err();
                step = decide(&facts, self.core.clock.now());
            }
            if !step.needs_upstream() {
                match self.carry_out(repository, &mut facts, step, want).await? {
                    Some(answer) => return Ok(answer),
                    None => continue,
                }
            }
            // A caller without budget for pulls asks with HEAD, which costs nothing: the manifest may be stored.
            let (known, over) = (facts.observed().is_some(), facts.over.is_some());
            let check = want.check || (known && facts.permission_due);
            let asked = Want { head: want.head || over, check, ..want.clone() };
            let reservation = if (known || want.expected) && !check {
                MissReservation::free()
            } else {
                self.core.budgets.reserve_miss(want.bill.payer).await?
            };
            let heard = match self.share(repository, reference, asked, known, reservation).await {
                Ok(PulledManifest { observed, manifest: None, .. }) if over => Heard::Named(observed),
                Err(error @ PullError::OverBudget(_)) if over => Heard::Failed(error),
                // The caller that started the request was over budget. A caller that is not starts another one.
                Err(PullError::OverBudget(_)) if !want.head => continue,
                pulled => return pulled,
            };
            // What was known may have become what was known before.
            facts.record = self.core.ledger.reference(repository, reference).await?.map(|record| record.value);
            facts.hear(heard);
        }
    }

    /// Asks together with all callers that want the same. The caller that starts the request is charged; callers that
    /// join it are not.
    async fn share(
        self: &Arc<Self>,
        repository: &Repository,
        reference: &Reference,
        want: Want,
        known: bool,
        mut reservation: MissReservation,
    ) -> Result<PulledManifest, PullError> {
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
            let pulled = pull.ask_in_turn(&repository, &reference, &want).await;
            // A check is charged whatever it finds: upstream is asked because the caller says so.
            reservation.settle(want.check || pulled.as_ref().is_err_and(PullError::is_miss));
            if want.check && pulled.is_ok() {
                beside(pull.core.upstreams.standings.note_present(&repository).await, "that a repository exists");
            }
            pulled
        };
        self.flights.join(question, work).await.unwrap_or(Err(PullError::NotYet))
    }

    /// Asks upstream, or waits until another process has: the lease in the ledger decides. In this process only one
    /// caller gets here for a question.
    async fn ask_in_turn(
        self: &Arc<Self>,
        repository: &Repository,
        reference: &Reference,
        want: &Want,
    ) -> Result<PulledManifest, PullError> {
        let (deadline, mut attempts, mut found) = (Instant::now() + bounded(TURN), Attempts::new(), None);
        loop {
            let (mut facts, version) = self.facts_in_turn(repository, reference, want).await?;
            // A check by another process since this one was requested will do, unless it was refused.
            let unchanged = *found.get_or_insert(version) == version;
            facts.check =
                want.check && (unchanged || facts.record.as_ref().is_some_and(|record| record.lease.is_some()));
            facts.late = Instant::now() > deadline;
            let step = loop {
                let step = decide(&facts, self.core.clock.now());
                if step.needs_upstream() {
                    break step;
                }
                if let Some(answer) = self.carry_out(repository, &mut facts, step, want).await? {
                    return Ok(answer);
                }
            };
            match (step, reference) {
                // The other's answer will be in the ledger, which does not notify: so this polls.
                (Step::Wait, _) => tokio::time::sleep(Duration::from_millis(fastrand::u64(50..150))).await,
                // It is asked for by its own key, in a turn of its own.
                (Step::GetByDigest(_), Reference::Tag(_)) => return self.ask(repository, &mut facts, want, None).await,
                _ => {
                    let leased = tag::leased(facts.record.as_ref(), self.core.clock.now());
                    let written = self.core.ledger.swap_reference(repository, reference, version, &leased).await;
                    // Without room for a lease it asks without one.
                    let version = match beside(written, "the lease of a reference") {
                        Some(None) => {
                            attempts.again().await?;
                            continue;
                        }
                        Some(leased) => leased,
                        None => version,
                    };
                    facts = Facts { record: Some(leased), leased: true, ..facts };
                    return self.ask_with_lease(repository, facts, version, want).await;
                }
            }
        }
    }

    /// Asks upstream and writes its answer, which also gives the lease back. A holder that lost its lease changes
    /// nothing: the process that took it over has asked later.
    async fn ask_with_lease(
        self: &Arc<Self>,
        repository: &Repository,
        mut facts: Facts,
        version: Option<u64>,
        want: &Want,
    ) -> Result<PulledManifest, PullError> {
        // If something is known, the client gets that rather than wait longer for what is new.
        let limit = bounded(if facts.observed().is_some() { DECISION } else { PATIENT_DECISION });
        let pulled = self.ask(repository, &mut facts, want, Some(limit)).await;
        let config = self.core.upstreams.get(repository)?.config();
        let Facts { reference, record: Some(leased), heard, .. } = facts else { return pulled };
        let (now, missing) = (self.core.clock.now(), jittered(config.missing));
        let was_known = leased.observed.is_some();
        let is_known = pulled.is_ok() || matches!(pulled, Err(PullError::TooLarge { .. }));
        let record = match (&reference, heard.observed().filter(|_| is_known), &heard) {
            (Reference::Tag(tag), Some(observed), _) => {
                self.observed(config, repository, tag, &leased, observed).await?
            }
            (_, _, Heard::Absent(_)) if pulled.is_ok() => tag::served_on(&leased, config.stale, missing, now),
            // Clients may have pinned the last digest.
            (_, _, Heard::Absent(_)) => tag::answered(None, tag::before(&leased), missing, now),
            // A digest needs no record: its manifest is stored, or is asked for again.
            _ => TagRecord { lease: None, ..leased },
        };
        let written = self.core.ledger.swap_reference(repository, &reference, version, &record).await;
        beside(written, "what upstream said of a reference");
        if let (Reference::Tag(tag), false, Some(_), Ok(_)) = (&reference, was_known, &record.observed, &pulled) {
            self.note_held(repository, |holding| holding.with_tag(tag, now)).await;
        }
        pulled
    }

    /// Goes from step to step until there is an answer; upstream may take as long as `limit`.
    async fn ask(
        self: &Arc<Self>,
        repository: &Repository,
        facts: &mut Facts,
        want: &Want,
        limit: Option<Duration>,
    ) -> Result<PulledManifest, PullError> {
        let end = limit.map(|limit| Instant::now() + limit);
        loop {
            let step = decide(facts, self.core.clock.now());
            let asks = step.needs_upstream();
            let carried = self.carry_out(repository, facts, step, want);
            let carried = match end.filter(|_| asks) {
                Some(end) => tokio::time::timeout_at(end, carried).await,
                None => Ok(carried.await),
            };
            match carried {
                Ok(Ok(Some(answer))) => return Ok(answer),
                Ok(Ok(None)) => {}
                Ok(Err(error)) => return Err(error),
                Err(_) => {
                    let reason = format!("no answer within {:?}", limit.unwrap_or_default());
                    facts.hear(Heard::Trouble(UpstreamError::Unavailable { silent: false, reason }));
                }
            }
        }
    }

    /// Carries a step out: it answers, or there are new facts.
    async fn carry_out(
        self: &Arc<Self>,
        repository: &Repository,
        facts: &mut Facts,
        step: Step,
        want: &Want,
    ) -> Result<Option<PulledManifest>, PullError> {
        let reference = &facts.reference;
        let heard = match step {
            Step::FindStored(digest) => {
                facts.stored = self.stored(repository, &digest).await?.into();
                return Ok(None);
            }
            Step::FindLastKnown => {
                facts.last_known = self.servable(repository, facts, &want.bill).await?.into();
                return Ok(None);
            }
            Step::AskPermission => self.ask_permission(repository, facts, want).await?,
            Step::Head => self.head(repository, facts).await.unwrap_or_else(Heard::from),
            Step::GetByTag => self.get_by_tag(repository, reference, want).await.unwrap_or_else(Heard::from),
            Step::GetByDigest(digest) => match reference {
                Reference::Tag(_) => self.by_digest(repository, reference, digest, want).await,
                Reference::Digest(_) => self.fetch(repository, reference, want).await.map(fetched),
            }
            .unwrap_or_else(Heard::from),
            Step::Serve(served) => return Ok(Some(facts.answer(served)?)),
            Step::ServeStale => return Ok(Some(facts.stale(repository)?)),
            Step::Missing(served) => return Err(PullError::ManifestUnknown(served)),
            Step::Refuse(error) => return Err(error),
            Step::Wait => return Err(PullError::NotYet),
        };
        facts.hear(heard);
        Ok(None)
    }

    /// What upstream says with HEAD, which costs no quota.
    async fn head(&self, repository: &Repository, facts: &Facts) -> Result<Heard, PullError> {
        let patience = if facts.observed().is_some() { Patience::Known } else { Patience::Client };
        let named = self.core.upstreams.head_manifest(repository, &facts.reference, patience).await?;
        Ok(named.map_or(Heard::Unnamed, |observed| match &facts.reference {
            Reference::Tag(_) => Heard::Named(observed),
            // Whatever digest upstream names for a request by digest, the requested one counts.
            Reference::Digest(digest) => Heard::Named(Observed { digest: digest.clone(), ..observed }),
        }))
    }

    /// One GET: what the tag is, and its manifest.
    async fn get_by_tag(&self, repository: &Repository, tag: &Reference, want: &Want) -> Result<Heard, PullError> {
        match self.fetch(repository, tag, want).await {
            // HEAD still tells the digest, and that manifest may be stored, or an alternate may have it.
            Err(PullError::Upstream(error)) if error.limit() == Some(Limit::Pulls) && !want.head => {
                let named = self.core.upstreams.head_manifest(repository, tag, Patience::Client).await?;
                Ok(Heard::Named(named.ok_or(PullError::ManifestUnknown(Served::Miss))?))
            }
            manifest => Ok(fetched(manifest?)),
        }
    }

    /// The record of what upstream observed of a tag.
    async fn observed(
        &self,
        config: &UpstreamConfig,
        repository: &Repository,
        tag: &Tag,
        known: &TagRecord,
        observed: Observed,
    ) -> Result<TagRecord, PullError> {
        let mut previous = known.previous.clone();
        if let Some(before) = known.observed.as_ref().filter(|before| before.digest != observed.digest)
            && self.stored(repository, &before.digest).await?.is_some()
        {
            previous = Some(Previous { digest: before.digest.clone(), checked_at: known.checked_at });
        }
        let fresh = config.tags.fresh(tag).map_or(FOR_EVER, jittered);
        Ok(tag::answered(Some(observed), previous, fresh, self.core.clock.now()))
    }

    /// The manifest of the digest that upstream says a tag is. Asked by its own key, so that callers by digest and
    /// callers by tag share one GET. Some upstreams have it by its tag only (spegel#1378, moby#41687). If upstream does
    /// not have it at all, that is an error of upstream and no caller's miss, because upstream named it itself.
    fn by_digest<'a>(
        self: &'a Arc<Self>,
        repository: &'a Repository,
        reference: &'a Reference,
        digest: Digest,
        want: &'a Want,
    ) -> BoxFuture<'a, Result<Heard, PullError>> {
        Box::pin(async move {
            let want = Want { check: false, ..want.clone() };
            let by_digest = Reference::Digest(digest);
            let asked = self.share(repository, &by_digest, want.clone(), false, MissReservation::free());
            let found = match asked.await {
                Err(PullError::ManifestUnknown(_)) if matches!(reference, Reference::Tag(_)) => {
                    self.fetch(repository, reference, &want).await.map(fetched)
                }
                Ok(PulledManifest { manifest: Some(manifest), served, .. }) => Ok(Heard::Sent(manifest, served)),
                // It is asked with GET.
                Ok(PulledManifest { manifest: None, .. }) => Err(PullError::NotYet),
                Err(error) => Err(error),
            };
            let named = || UpstreamError::Invalid("a tag is a manifest that it does not have".into());
            let is_missing = |error: &PullError| {
                matches!(error, PullError::ManifestUnknown(_) | PullError::Upstream(UpstreamError::Missing))
            };
            found.map_err(|error| if is_missing(&error) { named().into() } else { error })
        })
    }
}

fn fetched(manifest: Arc<Manifest>) -> Heard {
    Heard::Sent(manifest, Served::Miss)
}

/// Ten per cent more or less, so that tags pulled together do not become stale together.
pub(super) fn jittered(duration: Duration) -> Duration {
    duration.mul_f64(fastrand::f64().mul_add(0.2, 0.9))
}
