//! THE WRITE PATH: claim → fetch → hash while storing → publish.
//!
//! A fill may be run twice, at once, and killed at any point: bytes become visible only whole and verified, so a claim
//! saves work and correctness never depends on it. One that is stopped, or dies, leaves a checkpoint in the record of its
//! blob, and the next one goes on from there.
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
use crate::membership::Membership;
use crate::ports::{Attempts, Job, Ledger, Progress, Upload};
use crate::records::blob::{CLAIM, Claim, decide, noted};
use crate::records::{BlobRecord, BlobState, Checkpoint, Versioned};
use crate::values::time::Clock;

/// How long a fill waits for the removal of its blob, which takes as long as deleting an object does.
const REMOVAL: Duration = Duration::from_secs(2);

/// How a fill ended well.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Filled {
    /// This run stored the blob.
    Stored,
    /// It was stored before.
    Already,
    /// Another fill holds the claim; its own request brings it back should it die.
    Claimed,
    /// It was stopped before its end: somebody has to request it again.
    Parked {
        /// It has come further than the one before.
        progress: bool,
    },
}

/// How many segments may be fetched ahead within so many bytes: half of them, because an adapter holds parts on their way too.
fn segments_in(bytes: u64) -> usize {
    usize::try_from(bytes / 2 / source::SEGMENT_BYTES).unwrap_or_default()
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
        let memory = Arc::new(Semaphore::new(segments_in(core.config.fill_memory)));
        Self { core, membership, memory }
    }

    /// Copies one blob from upstream into storage, unless it is there or another fill is copying it. Ends early, with a
    /// checkpoint, once `stop` is ready: that says how long what is on its way from upstream may still be waited for.
    pub async fn run(
        self: &Arc<Self>,
        job: &Job,
        progress: &watch::Sender<Progress>,
        stop: impl Future<Output = Duration> + Send,
    ) -> Result<Filled, FillError> {
        let owner = format!("{:016x}", fastrand::u64(..));
        let patience = std::time::Instant::now() + REMOVAL;
        let mut attempts = Attempts::new();
        let claimed = loop {
            let view = self.core.ledger.blob(&job.repository, &job.digest).await?;
            // The record may say so of bytes that somebody has deleted.
            if view.is_stored() && self.core.blobs.size(&job.digest).await?.is_some() {
                // Before a client asks: then it may be read here although upstream is down.
                self.membership.prove_unless_shown(&view, &job.repository, &job.digest).await?;
                let current = view.record;
                // A manifest has come to name it, or a client wants it.
                let Some((current, used)) =
                    current.and_then(|current| Some((current.version, noted(&current.value, self.core.clock.now())?)))
                else {
                    return Ok(Filled::Already);
                };
                if self.core.ledger.swap_blob(&job.digest, Some(current), &used).await?.is_some() {
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
                    if self.core.ledger.swap_blob(&job.digest, expected, &claimed).await?.is_some() {
                        break claimed;
                    }
                    attempts.again().await?;
                }
            }
        };
        let started = std::time::Instant::now();
        let open = self.core.upstreams.is_open(&job.repository);
        let lease = HeldClaim {
            ledger: Arc::clone(&self.core.ledger),
            clock: self.core.clock.clone(),
            job: job.clone(),
            owner,
            open,
        };
        // The claim is given back even then, so that nobody waits until it runs out. What there is of an upload is left to
        // the sweep: whatever broke the fill off may be in its state.
        let copying = AssertUnwindSafe(copy::copy(self, &lease, claimed.checkpoint, progress, stop)).catch_unwind();
        let broken_off = |_| Copied { outcome: Err(FillError::Panicked), checkpoint: None, upload: None, known: false };
        let Copied { outcome, checkpoint, mut upload, known } = copying.await.unwrap_or_else(broken_off);
        let offset = checkpoint.as_ref().map_or(0, |checkpoint| checkpoint.offset);
        let (state, failure) = match &outcome {
            Ok(Filled::Stored | Filled::Already) => (BlobState::Stored { size: job.size }, None),
            Ok(Filled::Parked { .. } | Filled::Claimed) => (BlobState::Absent, claimed.failure),
            Err(error) => (BlobState::Absent, Some(chain(error))),
        };
        // At once where nobody else can know it, and where it fills a disk on which the ledger could not be written either.
        if (!known || matches!(outcome, Err(FillError::Store(StoreError::Refused(_)))))
            && let Some(upload) = upload.take()
        {
            upload.discard().await;
        }
        // The order matters: what a checkpoint in the ledger speaks of is not thrown away.
        let copied = matches!(outcome, Ok(Filled::Stored));
        if lease.settle(state, failure, checkpoint, copied).await?
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
}

/// How copying ended.
struct Copied {
    outcome: Result<Filled, FillError>,
    /// Where the next fill may go on.
    checkpoint: Option<Checkpoint>,
    /// What is of no use any more.
    upload: Option<Box<dyn Upload>>,
    /// The ledger has a checkpoint of that: whoever took the claim over may be going on with it.
    known: bool,
}

/// A claim that this fill holds until another takes it over.
#[derive(Clone)]
struct HeldClaim {
    ledger: Arc<dyn Ledger>,
    clock: Clock,
    job: Job,
    owner: String,
    /// Once this job has stored it, everybody may have it ([`BlobRecord::open`]).
    open: bool,
}

impl HeldClaim {
    /// Holds the claim for another while and writes down how far the fill has come, in one write. Only once upstream has
    /// begun to send the blob.
    async fn renew(&self, checkpoint: Option<Checkpoint>) -> Result<(), FillError> {
        let mut attempts = Attempts::new();
        loop {
            let record = self.ledger.blob(&self.job.repository, &self.job.digest).await?.record;
            let Some(Versioned { value, version }) = record.filter(|record| self.owns(record)) else {
                return Err(FillError::ClaimLost);
            };
            let state = BlobState::Claimed { owner: self.owner.clone(), until: self.clock.now().plus(CLAIM) };
            let renewed = BlobRecord { state, checkpoint: checkpoint.clone(), ..value };
            // What came between may be a write of our own that was given up while it was on its way: only the owner tells.
            if self.ledger.swap_blob(&self.job.digest, Some(version), &renewed).await?.is_some() {
                return Ok(());
            }
            attempts.again().await?;
        }
    }

    /// Writes how the fill ended, and gives the claim back. That the bytes are stored is true whoever holds the claim;
    /// anything else is noted only by its owner. `false`: it is another's.
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
            let current = self.ledger.blob(&self.job.repository, &self.job.digest).await?.record;
            let owned = current.as_ref().is_some_and(|current| self.owns(current));
            if !stored && !owned {
                return Ok(false);
            }
            // The bytes are going; once they are gone, the blob is filled again.
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
            // That upstream says it has a blob opens nothing: it has sent all of it, and that was verified.
            let open = before.open || (copied && self.open);
            let settled = BlobRecord { state, failure, checkpoint, open, ..before };
            if self.ledger.swap_blob(&self.job.digest, version, &settled).await?.is_some() {
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
