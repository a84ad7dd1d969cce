//! Whether what is stored may be served: by upstream's word, not by ours.
//!
//! What is stored of a private repository is served for as long as upstream has shown us something of that repository
//! lately (`permission`); then it is asked first. Bytes that another repository's fill has stored are served once upstream
//! has shown them to this one, unless everybody may have them anyway ([`BlobView::is_shown`]).

use std::sync::Arc;

use crate::budget::MissReservation;
use crate::config::UpstreamConfig;
use crate::core::Core;
use crate::errors::{FillError, PullError, StoreError, UpstreamError};
use crate::identity::Payer;
use crate::oci::{Digest, Repository};
use crate::ports::Job;
use crate::records::{BlobView, Member};
use crate::upstream::Evidence;
use crate::values::flight::Flights;
use crate::values::pull_counter::PullCounter;
use crate::values::served::Served;
use crate::values::time::Timestamp;

/// The permissions that upstream is being asked about: of a repository by whatever is asked for first, else by this.
pub(crate) type Questions = Flights<(Repository, Option<Evidence>), (Evidence, Result<(), PullError>)>;

/// The blobs that upstream is being asked for on behalf of a repository.
pub(crate) type Proofs = Flights<(Repository, Digest), Result<u64, FillError>>;

/// Whether what is stored may be served, and what upstream is being asked about that.
pub struct Membership {
    core: Arc<Core>,
    questions: Questions,
    proofs: Proofs,
}

impl Membership {
    pub(crate) fn new(core: Arc<Core>) -> Self {
        Self { core, questions: Flights::new(), proofs: Flights::new() }
    }

    /// When upstream last showed us something of a private repository, with its settings. `None`: it is public.
    async fn shown(&self, repository: &Repository) -> Result<Option<(&UpstreamConfig, Option<Timestamp>)>, PullError> {
        let config = self.core.upstreams.get(repository)?.config();
        if !config.is_private() {
            return Ok(None);
        }
        Ok(Some((config, self.core.upstreams.standings.shown_at(repository, config.permission).await?)))
    }

    /// Whether upstream has to be asked before anything stored of this repository is served.
    pub(crate) async fn permission_is_due(&self, repository: &Repository) -> Result<bool, PullError> {
        let lasts = |config: &UpstreamConfig, at: Timestamp| self.core.clock.now() < at.plus(config.permission);
        let shown = self.shown(repository).await?;
        Ok(shown.is_some_and(|(config, at)| !at.is_some_and(|at| lasts(config, at))))
    }

    /// Whether what is stored of this repository may be served while upstream is in trouble.
    pub(crate) async fn may_be_stale(&self, repository: &Repository) -> Result<bool, PullError> {
        let lasts = |config: &UpstreamConfig, at: Timestamp| {
            self.core.clock.now() < at.plus(config.permission.max(config.stale))
        };
        let shown = self.shown(repository).await?;
        Ok(shown.is_none_or(|(config, at)| at.is_some_and(|at| lasts(config, at))))
    }

    /// Has upstream say that it still shows us this, where that is due: what is stored of it may then be served so. That it
    /// does not is a miss of whoever asks.
    pub(crate) async fn check_permission(
        self: &Arc<Self>,
        repository: &Repository,
        evidence: Evidence,
        payer: Option<Payer>,
        spent: &PullCounter,
    ) -> Result<Served, PullError> {
        if !self.permission_is_due(repository).await? {
            return Ok(Served::Hit);
        }
        let asked = match self.ask_permission(repository, None, &evidence, payer, spent).await? {
            // That one thing is missing says nothing of another.
            (other, Err(PullError::Upstream(UpstreamError::Missing))) if other != evidence => {
                self.ask_permission(repository, Some(evidence.clone()), &evidence, payer, spent).await?.1
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
        payer: Option<Payer>,
        spent: &PullCounter,
    ) -> Result<(Evidence, Result<(), PullError>), PullError> {
        loop {
            let reservation = self.core.budgets.reserve_miss(payer).await?;
            let (membership, there, evidence) = (Arc::clone(self), repository.clone(), evidence.clone());
            let spent = spent.clone();
            let work = || async move {
                let shows = membership.ask_evidence(&there, &evidence, payer, &spent, reservation).await;
                (evidence, shows)
            };
            match self.questions.join((repository.clone(), only.clone()), work).await.ok_or(PullError::NotYet)? {
                // Whoever began could not pay: somebody else, or the last of it has just gone.
                (_, Err(PullError::OverBudget(_))) if self.core.budgets.check_pull(payer).is_ok() => {}
                answer => return Ok(answer),
            }
        }
    }

    async fn ask_evidence(
        &self,
        repository: &Repository,
        evidence: &Evidence,
        payer: Option<Payer>,
        spent: &PullCounter,
        mut reservation: MissReservation,
    ) -> Result<(), PullError> {
        // It may have been shown since that was found to be due.
        if !self.permission_is_due(repository).await? {
            return Ok(());
        }
        reservation.mark_sent();
        let asked = match (self.core.upstreams.shows(repository, evidence).await, evidence) {
            (Ok(None), Evidence::Manifest(digest)) => {
                self.core.budgets.pay_pull(payer, spent, self.core.upstreams.sends(repository, digest)).await
            }
            (asked, _) => asked.map(|_| ()).map_err(PullError::from),
        };
        reservation.settle(asked.as_ref().is_err_and(PullError::is_miss));
        asked
    }

    /// Asks upstream for a blob on behalf of this repository, unless it has shown it before, and notes that it has it: from
    /// then on it may be read here, whoever has it stored. Returns its length in bytes. Not by HEAD, which some registries
    /// refuse.
    pub(crate) async fn prove(
        self: &Arc<Self>,
        repository: &Repository,
        digest: &Digest,
        mut reservation: MissReservation,
    ) -> Result<u64, FillError> {
        let (membership, there, digest) = (Arc::clone(self), repository.clone(), digest.clone());
        let key = (repository.clone(), digest.clone());
        let work = || async move {
            let view = membership.core.ledger.blob(&there, &digest).await?;
            if let Some(member) = view.member.filter(|_| view.is_shown()) {
                return Ok(member.size);
            }
            reservation.mark_sent();
            let unknown = || UpstreamError::Invalid("it does not say how long the blob is".into());
            let opened = membership.core.upstreams.open_blob(&there, &digest, None).await;
            reservation.settle(opened.as_ref().is_err_and(UpstreamError::is_miss));
            let size = opened?.size.ok_or_else(unknown)?;
            membership.note_proven(&there, &digest, size).await?;
            Ok(size)
        };
        let broken_off = || StoreError::Unavailable("a question to upstream was broken off".into());
        self.proofs.join(key, work).await.unwrap_or_else(|| Err(broken_off().into()))
    }

    /// The same for the repository of a job, by what the ledger says now.
    pub(crate) async fn prove_for(self: &Arc<Self>, job: &Job) -> Result<(), FillError> {
        let view = self.core.ledger.blob(&job.repository, &job.digest).await?;
        self.prove_unless_shown(&view, &job.repository, &job.digest).await
    }

    /// The same where a view of the blob does not say that it may be read: what is here of it came for another repository.
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

    /// Notes that upstream has shown a blob to this repository.
    pub(crate) async fn note_proven(
        &self,
        repository: &Repository,
        digest: &Digest,
        size: u64,
    ) -> Result<(), FillError> {
        let member = Member { size, used_at: self.core.clock.now(), proven: true };
        self.core.ledger.put_membership(repository, digest, member).await?;
        Ok(())
    }
}
