//! Blobs: permission first, then stored bytes, then the upstream's policy. The numbers are those of README.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch;
use tokio::time::Instant;

use super::{Content, Pull, PulledBlob, Result, Want};
use crate::config::Cold;
use crate::errors::{OverBudget, PullError, StoreError, chain};
use crate::oci::{Digest, Repository};
use crate::ports::{Job, Location, Priority, Progress, Watched};
use crate::records::{BlobState, BlobView};
use crate::upstream::{BlobSource, Evidence};
use crate::values::served::Served;

/// How many fills of other repositories a client waits for, one after the other, if they fail.
const JOINED: usize = 3;

impl Pull {
    /// Answers a pull of a blob.
    pub async fn blob(self: &Arc<Self>, repository: &Repository, digest: &Digest, want: Want) -> Result<PulledBlob> {
        let asked_at = Instant::now();
        let upstream = self.core.upstreams.get(repository)?;
        let view = self.core.storage.ledger.blob(repository, digest).await?;
        // 9a. Permission first: stored bytes, or a manifest that names them, do not mean that this repository may serve
        // them.
        let (size, served) = match view.member.filter(|_| view.is_shown() || !view.is_stored()) {
            Some(member) => {
                let evidence = Evidence::Blob(digest.clone());
                (member.size, self.membership.check_permission(repository, evidence, &want.bill).await?)
            }
            None => (self.ask_membership(repository, digest, &want).await?, Served::Revalidated),
        };
        // What is stored was measured. A manifest may claim any size.
        let size = view.stored_size().unwrap_or(size);
        self.check_size(repository, size, None)?;
        let view = self.note_blob(repository, digest, view).await;
        if want.head {
            // A manifest names it, but only upstream knows whether it has it.
            let asked = if view.is_stored() { Ok(size) } else { self.ask_membership(repository, digest, &want).await };
            let size = match asked {
                Err(error @ PullError::BlobUnknown) => return Err(error),
                asked => asked.unwrap_or(size),
            };
            let served = if view.is_stored() { served } else { Served::Miss };
            return Ok(PulledBlob { size, content: Content::None, served });
        }
        // 9b. Stored: from storage.
        if let Some(pulled) = self.located(digest, &view, served).await? {
            return Ok(pulled);
        }
        // 9c. Not stored: request the fill, if the caller has the budget for it, then by the upstream's policy.
        let (priority, payer) = (Priority::Interactive, want.bill.payer);
        let job = Job { repository: repository.clone(), digest: digest.clone(), size, priority, payer };
        let now = self.core.clock.now();
        let filling = view.record.as_ref().is_some_and(|record| record.value.state.is_claimed(now));
        let admitted = if filling { Ok(()) } else { self.admit(&job) };
        match (upstream.cold(), admitted) {
            (Cold::Redirect, admitted) => self.redirect(&job, filling, admitted, asked_at).await,
            (_, Err(over)) => Err(over.into()),
            (cold, Ok(())) => match self.wait(&job, cold == Cold::Follow, asked_at).await {
                // A full disk: what cannot be stored is still to be had there.
                Err(PullError::Store(StoreError::Refused(full))) if cold == Cold::Follow => {
                    match self.blob_source(&job, &Ok(())).await? {
                        BlobSource::Public(url) => {
                            Ok(PulledBlob { size, content: Content::Redirect(url), served: Served::Miss })
                        }
                        BlobSource::Private => Err(StoreError::Refused(full).into()),
                    }
                }
                pulled => pulled,
            },
        }
    }

    /// Whether a blob is stored and may be read here. Also marks it as used, so that a sweep leaves it alone, or it is
    /// filled again.
    pub(crate) async fn has_blob(&self, repository: &Repository, digest: &Digest) -> Result<bool, StoreError> {
        let view = self.core.storage.ledger.blob(repository, digest).await?;
        let view = self.note_blob(repository, digest, view).await;
        // Nothing is opened: what is in memory is what clients pull.
        match view.stored_size() {
            Some(size) if view.is_shown() => self.core.storage.blobs.has(digest, size).await,
            _ => Ok(false),
        }
    }

    /// Asks upstream whether a blob belongs to a repository, and records that. Returns its length in bytes.
    async fn ask_membership(self: &Arc<Self>, repository: &Repository, digest: &Digest, want: &Want) -> Result<u64> {
        self.core.upstreams.standings.check_absent(repository).await?;
        let reservation = self.core.budgets.reserve_miss(want.bill.payer).await?;
        Ok(self.membership.prove(repository, digest, reservation).await?)
    }

    /// Whether the caller's budget has room for a fill.
    pub(super) fn admit(&self, job: &Job) -> Result<(), OverBudget> {
        let budgets = &self.core.budgets;
        budgets.check_miss(job.payer).and_then(|()| budgets.admit(job))
    }

    /// Redirects a client to upstream. Requests the fill, unless one is running or the caller is over budget.
    async fn redirect(
        self: &Arc<Self>,
        job: &Job,
        filling: bool,
        admitted: Result<(), OverBudget>,
        asked_at: Instant,
    ) -> Result<PulledBlob> {
        if !filling
            && admitted.is_ok()
            && let Err(error) = self.core.storage.fills.request(std::slice::from_ref(job)).await
        {
            tracing::warn!(repository = %job.repository, blob.digest = %job.digest, error = %chain(&error), "fill could not be requested");
        }
        match self.blob_source(job, &admitted).await? {
            BlobSource::Public(url) => {
                Ok(PulledBlob { size: job.size, content: Content::Redirect(url), served: Served::Miss })
            }
            // A redirect would not help the client: the bytes come only with our credentials.
            BlobSource::Private => {
                admitted?;
                self.wait(job, false, asked_at).await
            }
        }
    }

    /// Waits for a fill: until the blob is stored, or (`follow`) until its first bytes have arrived.
    async fn wait(self: &Arc<Self>, job: &Job, follow: bool, asked_at: Instant) -> Result<PulledBlob> {
        let deadline = self.waits_until(asked_at);
        let found = async {
            for _ in 0..JOINED {
                let Some(Watched { repository, progress }) = self.core.storage.fills.request_now(job).await? else {
                    return self.poll(job).await;
                };
                if repository == job.repository {
                    match self.watch(job, progress, follow).await {
                        // The caller that the fill was begun for was over budget.
                        Err(PullError::OverBudget(_)) if self.core.budgets.check_miss(job.payer).is_ok() => continue,
                        watched => return watched,
                    }
                }
                // Another repository's fill: its bytes need the same permission as stored ones.
                if !self.core.upstreams.is_open(&repository) {
                    self.membership.prove_for(job).await?;
                }
                // Unverified bytes are as good as what the same upstream would send itself.
                let follow = follow && repository.upstream == job.repository.upstream;
                match self.watch(job, progress, follow).await {
                    Ok(pulled) => return Ok(pulled),
                    // The failure of another repository's fill says nothing about this one.
                    Err(error) => {
                        tracing::debug!(%repository, blob.digest = %job.digest, error = %chain(&error), "another's fill failed");
                    }
                }
            }
            Err(PullError::NotYet)
        };
        let pulled = tokio::time::timeout_at(deadline, found).await.unwrap_or(Err(PullError::NotYet))?;
        // Another's fill may have stored more than this repository's manifest claims.
        self.check_size(&job.repository, pulled.size, None)?;
        Ok(pulled)
    }

    async fn watch(&self, job: &Job, mut progress: watch::Receiver<Progress>, follow: bool) -> Result<PulledBlob> {
        loop {
            let latest = progress.borrow_and_update().clone();
            match latest {
                Progress::Stored => {
                    let view = self.core.storage.ledger.blob(&job.repository, &job.digest).await?;
                    return self.located(&job.digest, &view, Served::Miss).await?.ok_or(PullError::NotYet);
                }
                Progress::Failed(error) => return Err(error.into()),
                // Where two manifests claim two sizes, one is wrong. The end of the fill says which: one with a wrong size
                // fails. Until then no client is told either.
                Progress::Growing { file, size, .. } if follow && size == job.size => {
                    let content = Content::Growing(file, progress);
                    return Ok(PulledBlob { size, content, served: Served::Miss });
                }
                Progress::Waiting | Progress::Growing { .. } => {}
            }
            if progress.changed().await.is_err() {
                return Err(PullError::NotYet);
            }
        }
    }

    /// Polls the ledger while the fill runs in another process, until the blob is stored or the fill has failed.
    async fn poll(self: &Arc<Self>, job: &Job) -> Result<PulledBlob> {
        let mut pause = Duration::from_millis(50);
        let mut attempts = None;
        loop {
            let view = self.core.storage.ledger.blob(&job.repository, &job.digest).await?;
            if view.is_stored() {
                // Another repository's fill may have stored it.
                self.membership.prove_unless_shown(&view, &job.repository, &job.digest).await?;
                return self.located(&job.digest, &view, Served::Miss).await?.ok_or(PullError::NotYet);
            }
            let record = view.record.map(|record| record.value);
            let tried = record.as_ref().map_or(0, |record| record.attempts);
            match record.map(|record| record.state) {
                Some(BlobState::Absent) if tried > *attempts.get_or_insert(tried) => {
                    return Err(PullError::NotYet);
                }
                _ => _ = attempts.get_or_insert(tried),
            }
            tokio::time::sleep(pause).await;
            pause = (pause * 3 / 2).min(Duration::from_millis(500));
        }
    }

    /// A stored blob, with the length that was verified. `None`: it is not stored, or storage has lost some of it or all,
    /// and it is filled again.
    async fn located(
        &self,
        digest: &Digest,
        view: &BlobView,
        served: Served,
    ) -> Result<Option<PulledBlob>, StoreError> {
        let Some(size) = view.stored_size() else { return Ok(None) };
        let location = self.core.storage.blobs.locate(digest, size).await?;
        Ok(location.map(|location| {
            let content = match location {
                Location::Url(url) => Content::Redirect(url),
                Location::File(file) => Content::File(file),
                Location::Memory(bytes) => Content::Memory(bytes),
            };
            PulledBlob { size, content, served }
        }))
    }
}
