//! Manifests, from top to bottom. The numbers are those of README's data path.

use std::sync::Arc;
use std::time::Duration;

use futures_util::future::BoxFuture;
use tokio::time::Instant;

use super::known::before;
use super::{Pull, PulledManifest};
use crate::budget::MissReservation;
use crate::errors::{Limit, PullError, UpstreamError, beside};
use crate::identity::Payer;
use crate::oci::{Digest, Observed, Reference, Repository, Tag};
use crate::ports::{Attempts, Priority};
use crate::records::tag::{self, Step};
use crate::records::{Previous, TagRecord, Versioned};
use crate::upstream::{Evidence, Patience, Upstream};
use crate::values::deadline::bounded;
use crate::values::pull_counter::PullCounter;
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
    /// The caller that is charged. `None`: no caller is.
    pub payer: Option<Payer>,
    /// Counts what upstream sends for it.
    pub spent: PullCounter,
    /// A missing manifest is not a miss: clients ask about it with every image that they pull.
    pub expected: bool,
}

impl Want {
    /// The manifest, as fresh as the configuration says.
    pub const GET: Self = Self::plain(false);
    /// What HEAD answers, as fresh as the configuration says.
    pub const HEAD: Self = Self::plain(true);

    const fn plain(head: bool) -> Self {
        let (priority, spent) = (Priority::Interactive, PullCounter::UNCOUNTED);
        Self { head, check: false, priority, payer: None, spent, expected: false }
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
        let pulled = self.find(repository, reference, want.clone()).await?;
        if let Some(manifest) = pulled.manifest.as_ref().filter(|_| !want.head) {
            self.check_room(repository, manifest, want.payer).await?;
        }
        self.note_manifest(repository, &pulled, want.payer).await;
        Ok(pulled)
    }

    async fn find(
        self: &Arc<Self>,
        repository: &Repository,
        reference: &Reference,
        want: Want,
    ) -> Result<PulledManifest, PullError> {
        if let Reference::Digest(digest) = reference
            && let Some(manifest) = self.stored(repository, digest).await?
        {
            let served = self
                .membership
                .check_permission(repository, Evidence::Manifest(digest.clone()), want.payer, &want.spent)
                .await?;
            return Ok(PulledManifest::new(manifest, served));
        }
        let (mut known, mut want) = (false, want);
        if !want.check {
            let record = self.core.ledger.reference(repository, reference).await?.map(|record| record.value);
            known = record.as_ref().is_some_and(|record| record.observed.is_some());
            // Even if the record is fresh: upstream may not show the tag to us any more.
            if known && self.membership.permission_is_due(repository).await? {
                want.check = true;
            } else if let Some(answer) = self.answer(repository, record.as_ref(), &want).await? {
                return answer;
            }
        }
        if !known && !want.check {
            self.core.upstreams.standings.check_known_absent(repository)?;
        }
        loop {
            // A caller without budget for pulls asks with HEAD, which costs nothing: the manifest of the tag may be
            // stored.
            let over = if want.head { None } else { self.core.budgets.check_pull(want.payer).err() };
            if let Some(over) = over.clone().filter(|_| matches!(reference, Reference::Digest(_))) {
                return Err(over.into());
            }
            let asked = Want { head: want.head || over.is_some(), ..want.clone() };
            let reservation = if (known || want.expected) && !want.check {
                MissReservation::free()
            } else {
                self.core.budgets.reserve_miss(want.payer).await?
            };
            match (self.share(repository, reference, asked, known, reservation).await, over) {
                (Ok(PulledManifest { manifest: None, .. }) | Err(PullError::OverBudget(_)), Some(over)) => {
                    let upstream = self.core.upstreams.get(repository)?;
                    let record = self.core.ledger.reference(repository, reference).await?.map(|record| record.value);
                    return self.last_known(upstream, repository, record.as_ref()).await?.ok_or(over.into());
                }
                // The caller that started the request was over budget. A caller that is not starts another one.
                (Err(PullError::OverBudget(_)), None) if !want.head => {}
                (pulled, _) => return pulled,
            }
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
        let upstream = self.core.upstreams.get(repository)?;
        let owner = format!("{:016x}", fastrand::u64(..));
        let deadline = Instant::now() + bounded(TURN);
        let (mut found, mut attempts) = (None, Attempts::new());
        loop {
            let record = self.core.ledger.reference(repository, reference).await?;
            let (value, version) =
                record.map_or((None, None), |Versioned { value, version }| (Some(value), Some(version)));
            // A check by another process since this one was requested will do, unless it was refused.
            let unchanged = *found.get_or_insert(version) == version;
            let held = value.as_ref().is_some_and(|record| record.lease.is_some());
            let due = value.as_ref().is_some_and(|record| record.observed.is_some())
                && self.membership.permission_is_due(repository).await?;
            let check = due || (want.check && (unchanged || held));
            if !check && let Some(answer) = self.answer(repository, value.as_ref(), want).await? {
                return answer;
            }
            // After the record was read: the process that gave its lease back had stored the manifest before.
            if let Reference::Digest(digest) = reference
                && let Some(manifest) = self.stored(repository, digest).await?
            {
                return Ok(PulledManifest::new(manifest, Served::Hit));
            }
            match tag::decide(value.as_ref(), &owner, check, self.core.clock.now()) {
                // Fresh, but only HEAD has been asked for so far: the manifest is fetched by its digest.
                Step::Fresh(observed) => {
                    return self
                        .fetch_observed(upstream, repository, (reference, observed), value.as_ref(), want)
                        .await;
                }
                Step::Missing => return Err(PullError::ManifestUnknown(Served::Hit)),
                // Another process asks: what is known serves meanwhile.
                Step::Held => match self.last_known(upstream, repository, value.as_ref()).await? {
                    Some(stale) if !check => return Ok(stale),
                    Some(stale) if Instant::now() > deadline => return Ok(stale),
                    None if Instant::now() > deadline => return Err(PullError::NotYet),
                    // Its answer will be in the ledger, which does not notify: so this polls.
                    _ => tokio::time::sleep(Duration::from_millis(fastrand::u64(50..150))).await,
                },
                Step::Ask(leased) => {
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
                    return self.ask_with_lease(upstream, repository, reference, leased, version, want).await;
                }
            }
        }
    }

    /// Asks upstream and writes its answer, which also gives the lease back. A holder that lost its lease changes
    /// nothing: the process that took it over has asked later.
    async fn ask_with_lease(
        self: &Arc<Self>,
        upstream: &Upstream,
        repository: &Repository,
        reference: &Reference,
        leased: TagRecord,
        version: Option<u64>,
        want: &Want,
    ) -> Result<PulledManifest, PullError> {
        let asked = self.ask(repository, reference, &leased, want);
        // If something is known, the client gets that rather than wait longer for what is new.
        let limit = bounded(if leased.observed.is_some() { DECISION } else { PATIENT_DECISION });
        let late = || UpstreamError::Unavailable { silent: false, reason: format!("no answer within {limit:?}") };
        let asked = tokio::time::timeout(limit, asked).await.unwrap_or_else(|_| Err(late().into()));
        let mut deleted = None;
        let record = match &asked {
            // A manifest that is too large has been fetched once, so its digest is known.
            Ok(PulledManifest { observed, .. }) | Err(PullError::TooLarge { manifest: Some(observed), .. }) => {
                match reference {
                    Reference::Tag(tag) => self.observed(upstream, repository, tag, &leased, observed).await?,
                    // A digest needs no record: its manifest is stored, or is asked for again.
                    Reference::Digest(_) => TagRecord { lease: None, ..leased.clone() },
                }
            }
            Err(PullError::Upstream(UpstreamError::Missing | UpstreamError::NoRepository)) => {
                let (config, now) = (upstream.config(), self.core.clock.now());
                deleted = self.deleted(upstream, repository, &leased, &want.spent).await?;
                match deleted {
                    Some(_) => tag::served_on(&leased, config.stale, jittered(config.missing), now),
                    // Clients may have pinned the last digest.
                    None => tag::answered(None, before(&leased), jittered(config.missing), now),
                }
            }
            Err(_) => TagRecord { lease: None, ..leased.clone() },
        };
        let written = self.core.ledger.swap_reference(repository, reference, version, &record).await;
        beside(written, "what upstream said of a reference");
        if let Some(deleted) = deleted {
            return Ok(deleted);
        }
        match asked {
            Err(PullError::Upstream(UpstreamError::Missing)) => Err(PullError::ManifestUnknown(Served::Miss)),
            // 5. Upstream in trouble: what it said last. Not if it refuses us: our permission may have been revoked.
            Err(PullError::Upstream(error)) if !error.is_refusal() => {
                let stale = self.last_known(upstream, repository, Some(&leased)).await?;
                if stale.is_some() {
                    tracing::warn!(%repository, %reference, %error, "upstream is in trouble: serving what it said last");
                }
                stale.ok_or(error.into())
            }
            asked => asked,
        }
    }

    /// Asks upstream what a reference is, and stores the manifest before any record names it.
    async fn ask(
        self: &Arc<Self>,
        repository: &Repository,
        reference: &Reference,
        known: &TagRecord,
        want: &Want,
    ) -> Result<PulledManifest, PullError> {
        // 7. Nothing is known and the client wants the bytes: one GET answers both.
        let patience = if known.observed.is_some() { Patience::Known } else { Patience::Client };
        let observed = if want.head || known.observed.is_some() {
            self.core.upstreams.head_manifest(repository, reference, patience).await?
        } else {
            None
        };
        // Whatever digest upstream names for a request by digest, the requested one counts.
        let observed = observed.map(|observed| match reference {
            Reference::Tag(_) => observed,
            Reference::Digest(digest) => Observed { digest: digest.clone(), ..observed },
        });
        // 6. Otherwise HEAD, which costs no quota, and GET by digest of what is new.
        match observed {
            None => match self.fetch(repository, reference, want).await {
                Ok(manifest) => Ok(PulledManifest::new(manifest, Served::Miss)),
                // HEAD still tells the digest, and that manifest may be stored, or an alternate may have it.
                Err(PullError::Upstream(error))
                    if error.limit() == Some(Limit::Pulls) && !want.head && matches!(reference, Reference::Tag(_)) =>
                {
                    match self.core.upstreams.head_manifest(repository, reference, patience).await? {
                        Some(observed) => self.by_digest(repository, reference, observed.digest, want).await,
                        None => Err(PullError::ManifestUnknown(Served::Miss)),
                    }
                }
                Err(error) => Err(error),
            },
            Some(observed) => match self.stored(repository, &observed.digest).await? {
                Some(manifest) => Ok(PulledManifest::new(manifest, Served::Revalidated)),
                None if want.head => Ok(PulledManifest { observed, manifest: None, served: Served::Miss }),
                None => self.by_digest(repository, reference, observed.digest, want).await,
            },
        }
    }

    /// The record of what upstream observed of a tag.
    async fn observed(
        &self,
        upstream: &Upstream,
        repository: &Repository,
        tag: &Tag,
        known: &TagRecord,
        observed: &Observed,
    ) -> Result<TagRecord, PullError> {
        let mut previous = known.previous.clone();
        if let Some(before) = known.observed.as_ref().filter(|before| before.digest != observed.digest)
            && self.stored(repository, &before.digest).await?.is_some()
        {
            previous = Some(Previous { digest: before.digest.clone(), checked_at: known.checked_at });
        }
        let fresh = upstream.config().tags.fresh(tag).map_or(FOR_EVER, jittered);
        Ok(tag::answered(Some(observed.clone()), previous, fresh, self.core.clock.now()))
    }

    /// The manifest that upstream named recently and that is not stored yet; in trouble, the one before it.
    async fn fetch_observed(
        self: &Arc<Self>,
        upstream: &Upstream,
        repository: &Repository,
        (reference, observed): (&Reference, &Observed),
        record: Option<&TagRecord>,
        want: &Want,
    ) -> Result<PulledManifest, PullError> {
        match self.by_digest(repository, reference, observed.digest.clone(), want).await {
            Err(PullError::Upstream(error)) if !error.is_refusal() => {
                self.last_known(upstream, repository, record).await?.ok_or(error.into())
            }
            answer => answer,
        }
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
    ) -> BoxFuture<'a, Result<PulledManifest, PullError>> {
        Box::pin(async move {
            let want = Want { check: false, ..want.clone() };
            let by_digest = Reference::Digest(digest);
            let asked = self.share(repository, &by_digest, want.clone(), false, MissReservation::free());
            let found = match asked.await {
                Err(PullError::ManifestUnknown(_)) if matches!(reference, Reference::Tag(_)) => {
                    let fetched = self.fetch(repository, reference, &want).await;
                    fetched.map(|manifest| PulledManifest::new(manifest, Served::Miss))
                }
                found => found,
            };
            let named = || UpstreamError::Invalid("a tag is a manifest that it does not have".into());
            let is_missing = |error: &PullError| {
                matches!(error, PullError::ManifestUnknown(_) | PullError::Upstream(UpstreamError::Missing))
            };
            found.map_err(|error| if is_missing(&error) { named().into() } else { error })
        })
    }
}

/// Ten per cent more or less, so that tags pulled together do not become stale together.
pub(super) fn jittered(duration: Duration) -> Duration {
    duration.mul_f64(fastrand::f64().mul_add(0.2, 0.9))
}
