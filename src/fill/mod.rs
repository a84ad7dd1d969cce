//! THE WRITE PATH: claim → fetch → hash while storing → publish.
//!
//! A fill may run twice, at the same time, and be killed at any point: bytes become visible only when whole and
//! verified, so claims save work and correctness never depends on them. A fill that is stopped or dies leaves a
//! checkpoint in the record of its blob, and the next fill continues from there.
//!
//! [`source`] brings the bytes in order, [`copy`] hashes and stores them.

mod copy;
mod source;

use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::time::Duration;

use futures_util::FutureExt as _;
use tokio::sync::{Semaphore, watch};

use crate::core::Core;
use crate::errors::{FillError, StoreError, chain};
use crate::journal::{Event, EventKind, Metric};
use crate::membership::Membership;
use crate::oci::Digest;
use crate::ports::{Attempts, Job, Progress, Upload};
use crate::records::blob::{CLAIM, Claim, decide, noted};
use crate::records::{BlobRecord, BlobState, BlobView, Checkpoint, Versioned};

/// How long a fill waits while a sweep removes its blob: as long as deleting an object takes.
const REMOVAL: Duration = Duration::from_secs(2);

/// How a fill ended without an error.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Filled {
    /// This fill stored the blob.
    Stored,
    /// The blob was stored before.
    Already,
    /// Another fill holds the claim. If that one dies, its own request starts it again.
    Claimed,
    /// It was stopped before its end: its caller has to request it again.
    Parked {
        /// Whether it got further than the fill before it.
        progress: bool,
    },
}

/// Copies blobs into storage.
pub struct Fill {
    core: Arc<Core>,
    membership: Arc<Membership>,
    /// One permit for each segment that fills may fetch ahead of what they store.
    memory: Arc<Semaphore>,
}

impl Fill {
    pub(crate) fn new(core: Arc<Core>, membership: Arc<Membership>) -> Self {
        // Half of the memory, because an adapter also holds parts in transit.
        let segments = core.config.fill_memory / 2 / source::SEGMENT_BYTES;
        let memory = Arc::new(Semaphore::new(usize::try_from(segments).unwrap_or_default()));
        Self { core, membership, memory }
    }

    /// Copies one blob from upstream into storage, unless it is stored or another fill is copying it. Ends early, with
    /// a checkpoint, once `stop` is ready; its value says how long to wait for bytes that are still on their way.
    ///
    /// The caller that it is for pays for what upstream is asked for in vain, and has nothing filled while it cannot.
    pub async fn run(
        self: &Arc<Self>,
        job: &Job,
        progress: &watch::Sender<Progress>,
        stop: impl Future<Output = Duration> + Send,
    ) -> Result<Filled, FillError> {
        self.core.budgets.check_miss(job.payer)?;
        let filled = self.try_to_run(job, progress, stop).await;
        let (journal, counters) = (&self.core.journal, self.core.journal.of(Some(&job.repository.upstream)));
        match &filled {
            Ok(Filled::Stored) => {
                counters.add(Metric::Fills, 1);
                counters.add(Metric::FilledBytes, job.size);
            }
            Ok(_) => {}
            Err(error) => {
                counters.add(Metric::FailedFills, 1);
                let event = Event::new(EventKind::FailedFill, &chain(error));
                journal.note(event.in_repository(&job.repository).of_blob(&job.digest));
            }
        }
        if filled.as_ref().is_err_and(FillError::is_miss) {
            // What was begun meanwhile may have used up the rest of the budget.
            _ = self.core.budgets.charge_miss(job.payer);
        }
        filled
    }

    async fn try_to_run(
        self: &Arc<Self>,
        job: &Job,
        progress: &watch::Sender<Progress>,
        stop: impl Future<Output = Duration> + Send,
    ) -> Result<Filled, FillError> {
        let owner = format!("{:016x}", fastrand::u64(..));
        let patience = std::time::Instant::now() + REMOVAL;
        let mut attempts = Attempts::new();
        let claimed = loop {
            let view = self.core.storage.ledger.blob(&job.repository, &job.digest).await?;
            if self.is_whole(&job.digest, &view).await? {
                // Before a client asks: then it may be read here even while upstream is down.
                self.membership.prove_unless_shown(&view, &job.repository, &job.digest).await?;
                let current = view.record;
                // A manifest names it now, or a client wants it, so it counts as used.
                let Some((current, used)) =
                    current.and_then(|current| Some((current.version, noted(&current.value, self.core.clock.now())?)))
                else {
                    return Ok(Filled::Already);
                };
                if self.core.storage.ledger.swap(&job.digest, Some(current), &used).await?.is_some() {
                    return Ok(Filled::Already);
                }
                attempts.again().await?;
                continue;
            }
            let current = view.record;
            let record = current.as_ref().map(|current| &current.value);
            match decide(record, &owner, self.core.clock.now()) {
                Claim::Held if record.is_some_and(|record| matches!(record.state, BlobState::Removing { .. })) => {
                    if std::time::Instant::now() > patience {
                        return Err(StoreError::Unavailable("the blob is being removed".into()).into());
                    }
                    tokio::time::sleep(Duration::from_millis(50)).await;
                }
                Claim::Held => return Ok(Filled::Claimed),
                Claim::Take(claimed) => {
                    let expected = current.as_ref().map(|current| current.version);
                    if self.core.storage.ledger.swap(&job.digest, expected, &claimed).await?.is_some() {
                        break claimed;
                    }
                    attempts.again().await?;
                }
            }
        };
        let started = std::time::Instant::now();
        let open = self.core.upstreams.is_open(&job.repository);
        let claim = HeldClaim { core: Arc::clone(&self.core), job: job.clone(), owner, open };
        // Also after a panic the claim is given back, so that other fills need not wait for it to expire. The upload is
        // left to the sweep: the panic may have corrupted its state.
        let copying = AssertUnwindSafe(copy::copy(self, &claim, claimed.checkpoint, progress, stop)).catch_unwind();
        let broken_off = |_| Copied { outcome: Err(FillError::Panicked), checkpoint: None, upload: None, known: false };
        let Copied { outcome, checkpoint, mut upload, known } = copying.await.unwrap_or_else(broken_off);
        let offset = checkpoint.as_ref().map_or(0, |checkpoint| checkpoint.offset);
        let (state, failure) = match &outcome {
            Ok(Filled::Stored | Filled::Already) => (BlobState::Stored { size: job.size }, None),
            Ok(Filled::Parked { .. } | Filled::Claimed) => (BlobState::Absent, claimed.failure),
            Err(error) => (BlobState::Absent, Some(chain(error))),
        };
        // At once if no other fill can know it, or if it fills a disk on which the ledger could not be written either.
        if (!known || matches!(outcome, Err(FillError::Store(StoreError::Refused(_)))))
            && let Some(upload) = upload.take()
        {
            upload.discard().await;
        }
        // The order matters: an upload is discarded only after the ledger no longer has a checkpoint that names it.
        let copied = matches!(outcome, Ok(Filled::Stored));
        if claim.settle(state, failure, checkpoint, copied).await?
            && let Some(upload) = upload
        {
            upload.discard().await;
        }
        match &outcome {
            Ok(Filled::Parked { .. }) => tracing::info!(
                blob.digest = %job.digest, repository = %job.repository, offset_bytes = offset, size_bytes = job.size,
                "fill parked: the next one goes on from there"
            ),
            Ok(_) => tracing::info!(
                blob.digest = %job.digest, repository = %job.repository, size_bytes = job.size,
                duration_ms = started.elapsed().as_millis(), "blob stored"
            ),
            Err(error) => tracing::warn!(
                blob.digest = %job.digest, repository = %job.repository, attempt = claimed.attempts, offset_bytes = offset,
                error = %chain(error), "fill failed"
            ),
        }
        outcome
    }

    /// Whether the bytes that the ledger says are stored are there. They may have been deleted or damaged by other means.
    async fn is_whole(&self, digest: &Digest, view: &BlobView) -> Result<bool, StoreError> {
        let Some(size) = view.stored_size() else { return Ok(false) };
        let found = self.core.storage.blobs.size(digest).await?;
        if let Some(found) = found.filter(|found| *found != size) {
            tracing::error!(
                blob.digest = %digest, size_bytes = size, found_bytes = found,
                "a stored blob is damaged, because its length is another than was stored: filling it again"
            );
        }
        Ok(found == Some(size))
    }
}

/// How copying ended.
struct Copied {
    outcome: Result<Filled, FillError>,
    /// Where the next fill may continue.
    checkpoint: Option<Checkpoint>,
    /// An upload to discard.
    upload: Option<Box<dyn Upload>>,
    /// Whether the ledger has a checkpoint of the upload: a fill that took the claim over may be using it.
    known: bool,
}

/// A claim that this fill holds until another fill takes it over.
#[derive(Clone)]
struct HeldClaim {
    core: Arc<Core>,
    job: Job,
    owner: String,
    /// Whether the blob is open to all callers once this job has stored it ([`BlobRecord::open`]).
    open: bool,
}

impl HeldClaim {
    /// Extends the claim and saves a checkpoint, in one write.
    async fn renew(&self, checkpoint: Option<Checkpoint>) -> Result<(), FillError> {
        let mut attempts = Attempts::new();
        loop {
            let record = self.core.storage.ledger.blob(&self.job.repository, &self.job.digest).await?.record;
            let Some(Versioned { value, version }) = record.filter(|record| self.owns(record)) else {
                return Err(FillError::ClaimLost);
            };
            let state = BlobState::Claimed { owner: self.owner.clone(), until: self.core.clock.now().plus(CLAIM) };
            let renewed = BlobRecord { state, checkpoint: checkpoint.clone(), ..value };
            // The conflicting write may be our own, given up while it was in transit: only the owner field tells.
            if self.core.storage.ledger.swap(&self.job.digest, Some(version), &renewed).await?.is_some() {
                return Ok(());
            }
            attempts.again().await?;
        }
    }

    /// Writes how the fill ended, and gives the claim back. That the bytes are stored is written by any fill; other
    /// outcomes only by the owner of the claim. `false`: another fill owns it.
    async fn settle(
        &self,
        state: BlobState,
        failure: Option<String>,
        checkpoint: Option<Checkpoint>,
        copied: bool,
    ) -> Result<bool, StoreError> {
        let stored = matches!(state, BlobState::Stored { .. });
        let mut attempts = Attempts::new();
        loop {
            let current = self.core.storage.ledger.blob(&self.job.repository, &self.job.digest).await?.record;
            let owned = current.as_ref().is_some_and(|current| self.owns(current));
            if !stored && !owned {
                return Ok(false);
            }
            // A sweep is deleting the bytes; after that, the blob is filled again.
            if !owned
                && current.as_ref().is_some_and(|current| matches!(current.value.state, BlobState::Removing { .. }))
            {
                return Err(StoreError::Unavailable("the blob is being removed".into()));
            }
            let (before, version) = match current {
                Some(Versioned { value, version }) => (value, Some(version)),
                None => (BlobRecord::new(BlobState::Absent), None),
            };
            let (state, failure, checkpoint) = (state.clone(), failure.clone(), checkpoint.clone());
            // A blob is open only after a public upstream has sent all of it and it was verified; its word alone is not
            // enough.
            let open = before.open || (copied && self.open);
            let settled = BlobRecord { state, failure, checkpoint, open, ..before };
            if self.core.storage.ledger.swap(&self.job.digest, version, &settled).await?.is_some() {
                return Ok(owned);
            }
            attempts.again().await?;
        }
    }

    fn owns(&self, record: &Versioned<BlobRecord>) -> bool {
        matches!(&record.value.state, BlobState::Claimed { owner, .. } if *owner == self.owner)
    }
}

#[cfg(test)]
mod tests;
