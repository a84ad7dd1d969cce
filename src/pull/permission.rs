//! Whether what is stored may be served: by upstream's word, not by ours.
//!
//! What is stored of a private repository is served for as long as upstream has shown us something of that repository
//! lately (`permission`); then it is asked first. Bytes that another repository's fill has stored are served once upstream
//! has shown them to this one, unless everybody may have them anyway ([`BlobView::is_shown`]).

use std::sync::Arc;

use super::{Served, flight};
use crate::Cache;
use crate::error::PullError;
use crate::fill::FillError;
use crate::oci::{Digest, Repository};
use crate::ports::{BlobRecord, Job, Member, Versioned};
use crate::upstream::{Evidence, UpstreamError};

/// The permissions that upstream is being asked about: of a repository by whatever is asked for first, else by this.
pub(crate) type Questions = flight::Flights<(Repository, Option<Evidence>), (Evidence, Result<(), UpstreamError>)>;

impl Cache {
    /// Whether upstream has to be asked before anything stored of this repository is served.
    pub(super) async fn permission_is_due(&self, repository: &Repository) -> Result<bool, PullError> {
        let config = self.upstreams.get(repository)?.config();
        if !config.is_private() {
            return Ok(false);
        }
        let shown_at = self.upstreams.standings.shown_at(repository, config.permission).await?;
        Ok(shown_at.is_none_or(|at| at.plus(config.permission) <= self.clock.now()))
    }

    /// Whether what is stored of this repository may be served while upstream is in trouble.
    pub(super) async fn may_be_stale(&self, repository: &Repository) -> Result<bool, PullError> {
        let config = self.upstreams.get(repository)?.config();
        if !config.is_private() {
            return Ok(true);
        }
        let shown_at = self.upstreams.standings.shown_at(repository, config.permission).await?;
        Ok(shown_at.is_some_and(|at| self.clock.now() < at.plus(config.permission.max(config.stale))))
    }

    /// Has upstream say that it still shows us this, where that is due: what is stored of it may then be served so.
    pub(super) async fn check_permission(
        self: &Arc<Self>,
        repository: &Repository,
        evidence: Evidence,
    ) -> Result<Served, PullError> {
        if !self.permission_is_due(repository).await? {
            return Ok(Served::Hit);
        }
        let asked = match self.ask_permission(repository, None, &evidence).await? {
            // That one thing is missing says nothing of another.
            (other, Err(UpstreamError::Missing)) if other != evidence => {
                self.ask_permission(repository, Some(evidence.clone()), &evidence).await?.1
            }
            (_, asked) => asked,
        };
        match asked {
            Ok(()) => Ok(Served::Revalidated),
            Err(UpstreamError::Missing) if matches!(evidence, Evidence::Blob(_)) => Err(PullError::BlobUnknown),
            Err(UpstreamError::Missing) => Err(PullError::ManifestUnknown(Served::Miss)),
            Err(error @ (UpstreamError::Denied(_) | UpstreamError::NoRepository)) => Err(error.into()),
            Err(error) if self.may_be_stale(repository).await? => {
                tracing::warn!(%repository, %error, "upstream is in trouble: serving what it has shown us before");
                Ok(Served::Stale)
            }
            Err(error) => Err(error.into()),
        }
    }

    async fn ask_permission(
        self: &Arc<Self>,
        repository: &Repository,
        only: Option<Evidence>,
        evidence: &Evidence,
    ) -> Result<(Evidence, Result<(), UpstreamError>), PullError> {
        let (cache, there, evidence) = (Arc::clone(self), repository.clone(), evidence.clone());
        let work = || async move {
            // It may have been shown since that was found to be due.
            let shown = matches!(cache.permission_is_due(&there).await, Ok(false));
            let shows = if shown { Ok(()) } else { cache.upstreams.shows(&there, &evidence).await };
            (evidence, shows)
        };
        self.questions.join((repository.clone(), only), work).await.ok_or(PullError::NotYet)
    }

    /// Asks upstream for a blob on behalf of this repository, and notes that it has it: from then on it may be read here,
    /// whoever has it stored. Returns its length in bytes. Not by HEAD, which some registries refuse.
    pub(crate) async fn prove(&self, repository: &Repository, digest: &Digest) -> Result<u64, FillError> {
        let unknown = || UpstreamError::Invalid("it does not say how long the blob is".into());
        let size = self.upstreams.open_blob(repository, digest, None).await?.size.ok_or_else(unknown)?;
        self.note_proven(repository, digest, size).await?;
        Ok(size)
    }

    /// Notes that upstream has shown a blob to this repository.
    pub(crate) async fn note_proven(
        &self,
        repository: &Repository,
        digest: &Digest,
        size: u64,
    ) -> Result<(), FillError> {
        let member = Member { size, used_at: self.clock.now(), proven: true };
        self.ledger.put_membership(repository, digest, member).await?;
        if !self.upstreams.is_open(repository) {
            return Ok(());
        }
        while let Some(Versioned { value, version }) = self.ledger.blob(repository, digest).await?.record
            && !value.open
        {
            let open = BlobRecord { open: true, ..value };
            if self.ledger.swap_blob(digest, Some(version), &open).await?.is_some() {
                break;
            }
        }
        Ok(())
    }

    /// Has upstream shown a blob to the repository of a job, unless it has before: what is here of it came for another one.
    pub(crate) async fn prove_for(&self, job: &Job) -> Result<(), FillError> {
        if !self.ledger.blob(&job.repository, &job.digest).await?.is_shown() {
            self.prove(&job.repository, &job.digest).await?;
        }
        Ok(())
    }
}
