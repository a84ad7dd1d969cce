//! Whether stored content may be served for a repository. Upstream decides that, and its recent answers are remembered.
//!
//! Stored content of a private repository is served while upstream has shown us something of that repository within
//! `permission`; after that, upstream is asked first. Bytes that another repository's fill has stored are served once
//! upstream has shown them to this repository, unless they are open to all callers ([`BlobView::is_shown`]).

use std::sync::Arc;

use crate::budget::{Bill, MissReservation};
use crate::config::UpstreamConfig;
use crate::core::Core;
use crate::errors::{FillError, PullError, StoreError, UpstreamError, beside};
use crate::oci::{Digest, Repository};
use crate::ports::Job;
use crate::records::{BlobView, Member};
use crate::upstream::{Evidence, Patience};
use crate::values::flight::Flights;
use crate::values::served::Served;
use crate::values::time::Timestamp;

/// Permission checks under way. Without [`Evidence`] in the key: the check that all callers of a repository share,
/// whatever they ask for. With it: a check of that content alone.
pub(crate) type Questions = Flights<(Repository, Option<Evidence>), (Evidence, Result<(), PullError>)>;

/// Blobs that upstream is being asked for on behalf of a repository.
pub(crate) type Proofs = Flights<(Repository, Digest), Result<u64, FillError>>;

/// Decides whether stored content may be served, and asks upstream where that is due.
pub struct Membership {
    core: Arc<Core>,
    questions: Questions,
    proofs: Proofs,
}

impl Membership {
    pub(crate) fn new(core: Arc<Core>) -> Self {
        Self { core, questions: Flights::new(), proofs: Flights::new() }
    }

    /// The settings of a private repository, and when upstream last showed us something of it. `None`: it is public.
    async fn shown(&self, repository: &Repository) -> Result<Option<(&UpstreamConfig, Option<Timestamp>)>, PullError> {
        let config = self.core.upstreams.get(repository)?.config();
        if !config.is_private() {
            return Ok(None);
        }
        Ok(Some((config, self.core.upstreams.standings.shown_at(repository, config.permission).await?)))
    }

    /// Whether upstream has to be asked before stored content of this repository is served.
    pub(crate) async fn permission_is_due(&self, repository: &Repository) -> Result<bool, PullError> {
        let lasts = |config: &UpstreamConfig, at: Timestamp| {
            at.plus(config.permission).is_ahead(config.permission, self.core.clock.now())
        };
        let shown = self.shown(repository).await?;
        Ok(shown.is_some_and(|(config, at)| !at.is_some_and(|at| lasts(config, at))))
    }

    /// Whether stored content of this repository may be served while upstream is in trouble.
    pub(crate) async fn may_be_stale(&self, repository: &Repository) -> Result<bool, PullError> {
        let lasts = |config: &UpstreamConfig, at: Timestamp| {
            self.core.clock.now() < at.plus(config.permission.max(config.stale))
        };
        let shown = self.shown(repository).await?;
        Ok(shown.is_none_or(|(config, at)| at.is_some_and(|at| lasts(config, at))))
    }

    /// Asks upstream, where that is due, whether it still shows us this content, and says how stored content may be
    /// served then. If upstream does not have it, the caller is charged a miss.
    pub(crate) async fn check_permission(
        self: &Arc<Self>,
        repository: &Repository,
        evidence: Evidence,
        bill: &Bill,
    ) -> Result<Served, PullError> {
        if !self.permission_is_due(repository).await? {
            return Ok(Served::Hit);
        }
        let asked = match self.ask_permission(repository, None, &evidence, bill).await? {
            // The shared check was about other content, and a 404 for one digest does not imply a 404 for another.
            (other, Err(PullError::Upstream(UpstreamError::Missing))) if other != evidence => {
                self.ask_permission(repository, Some(evidence.clone()), &evidence, bill).await?.1
            }
            (_, asked) => asked,
        };
        match asked {
            Ok(()) => Ok(Served::Revalidated),
            Err(PullError::Upstream(UpstreamError::Missing)) => Err(match evidence {
                Evidence::Blob(_) => PullError::BlobUnknown,
                Evidence::Manifest(_) => PullError::ManifestUnknown(Served::Miss),
            }),
            Err(PullError::Upstream(error)) if !error.is_refusal() && self.may_be_stale(repository).await? => {
                tracing::warn!(%repository, %error, "upstream is in trouble: serving what it has shown us before");
                Ok(Served::Stale)
            }
            Err(error) => Err(error),
        }
    }

    async fn ask_permission(
        self: &Arc<Self>,
        repository: &Repository,
        only: Option<Evidence>,
        evidence: &Evidence,
        bill: &Bill,
    ) -> Result<(Evidence, Result<(), PullError>), PullError> {
        loop {
            let reservation = self.core.budgets.reserve_miss(bill.payer).await?;
            let (membership, there, evidence) = (Arc::clone(self), repository.clone(), evidence.clone());
            let paid = bill.clone();
            let work = || async move {
                let shows = membership.ask_evidence(&there, &evidence, &paid, reservation).await;
                (evidence, shows)
            };
            match self.questions.join((repository.clone(), only.clone()), work).await.ok_or(PullError::NotYet)? {
                // The caller that started the check was over budget. A caller that is not starts another one.
                (_, Err(PullError::OverBudget(_))) if self.core.budgets.check_pull(bill.payer).is_ok() => {}
                answer => return Ok(answer),
            }
        }
    }

    async fn ask_evidence(
        &self,
        repository: &Repository,
        evidence: &Evidence,
        bill: &Bill,
        mut reservation: MissReservation,
    ) -> Result<(), PullError> {
        // Another caller's request may have renewed the permission meanwhile.
        if !self.permission_is_due(repository).await? {
            return Ok(());
        }
        reservation.mark_sent();
        let asked = match (self.core.upstreams.shows(repository, evidence).await, evidence) {
            (Ok(None), Evidence::Manifest(digest)) => {
                self.core.budgets.pay_pull(bill, self.core.upstreams.sends(repository, digest)).await
            }
            (asked, _) => asked.map(|_| ()).map_err(PullError::from),
        };
        // What is asked about is known: an outage costs its callers nothing.
        let vain = |error: &PullError| !matches!(error, PullError::Upstream(error) if error.is_trouble());
        reservation.settle(asked.as_ref().is_err_and(|error| error.is_miss() && vain(error)));
        asked
    }

    /// Asks upstream for a blob on behalf of this repository, unless it has shown it before, and records the
    /// membership: from then on the blob may be read here, whichever repository's fill stored it. Returns its length in
    /// bytes. Uses GET, because some registries refuse HEAD for blobs.
    pub(crate) async fn prove(
        self: &Arc<Self>,
        repository: &Repository,
        digest: &Digest,
        mut reservation: MissReservation,
    ) -> Result<u64, FillError> {
        let (membership, there, digest) = (Arc::clone(self), repository.clone(), digest.clone());
        let key = (repository.clone(), digest.clone());
        let work = || async move {
            let view = membership.core.storage.ledger.blob(&there, &digest).await?;
            if let Some(member) = view.member.filter(|_| view.is_shown()) {
                return Ok(member.size);
            }
            reservation.mark_sent();
            let unknown = || UpstreamError::Invalid("it does not say how long the blob is".into());
            let opened = membership.core.upstreams.open_blob(&there, &digest, None, Patience::Client).await;
            reservation.settle(opened.as_ref().is_err_and(UpstreamError::is_miss));
            let size = opened?.size.ok_or_else(unknown)?;
            membership.note_proven(&there, &digest, size).await;
            Ok(size)
        };
        let broken_off = || StoreError::Unavailable("a question to upstream was broken off".into());
        self.proofs.join(key, work).await.unwrap_or_else(|| Err(broken_off().into()))
    }

    /// Like [`Self::prove`], for the repository of a job, unless the ledger says that the blob may be read there.
    pub(crate) async fn prove_for(self: &Arc<Self>, job: &Job) -> Result<(), FillError> {
        let view = self.core.storage.ledger.blob(&job.repository, &job.digest).await?;
        self.prove_unless_shown(&view, &job.repository, &job.digest).await
    }

    /// Like [`Self::prove`], unless `view` says that the blob may be read: the stored bytes came from another
    /// repository's fill.
    pub(crate) async fn prove_unless_shown(
        self: &Arc<Self>,
        view: &BlobView,
        repository: &Repository,
        digest: &Digest,
    ) -> Result<(), FillError> {
        if !view.is_shown() {
            self.prove(repository, digest, MissReservation::free()).await?;
        }
        Ok(())
    }

    /// Records that upstream has shown a blob to this repository.
    pub(crate) async fn note_proven(&self, repository: &Repository, digest: &Digest, size: u64) {
        let member = Member { size, used_at: self.core.clock.now(), proven: true };
        beside(self.core.storage.ledger.put_membership(repository, digest, member).await, "a membership");
    }
}
