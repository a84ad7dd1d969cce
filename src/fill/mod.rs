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
use tokio::sync::watch;

use crate::Cache;
use crate::ports::{
    Attempts, BlobRecord, BlobState, Checkpoint, Job, Ledger, Progress, StoreError, Upload, Versioned, chain,
};
use crate::retention::noted;
use crate::time::{Clock, Timestamp};
use crate::upstream::UpstreamError;

/// How long a claim keeps others away. It is renewed while bytes arrive, so this bounds how long a dead fill is waited for.
pub const CLAIM: Duration = Duration::from_mins(1);

/// How long a fill waits for the removal of its blob, which takes as long as deleting an object does.
const REMOVAL: Duration = Duration::from_secs(2);

/// Why a blob was not stored.
#[derive(Debug, Clone, thiserror::Error)]
pub enum FillError {
    /// Upstream did not send it.
    #[error(transparent)]
    Upstream(#[from] UpstreamError),
    /// Upstream sent something else: the length or the digest is wrong.
    #[error("{0}")]
    Mismatch(String),
    /// Storage did not take it.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The claim ran out and another fill took over.
    #[error("another fill took over")]
    ClaimLost,
    /// It panicked: the log says where.
    #[error("a mistake of this program broke the fill off; its log says where")]
    Panicked,
}

impl FillError {
    /// Whether trying again later can help.
    pub fn may_pass(&self) -> bool {
        !matches!(self, Self::Upstream(UpstreamError::Missing | UpstreamError::NoRepository | UpstreamError::Denied(_)))
    }
}

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
pub(crate) fn segments_in(bytes: u64) -> usize {
    usize::try_from(bytes / 2 / source::SEGMENT_BYTES).unwrap_or_default()
}

/// What a fill may do about a blob, decided from its record alone.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Claim {
    /// Nothing: another fill holds the claim.
    Held,
    /// Fill it, once this record is written over the one it was decided from.
    Take(BlobRecord),
}

/// The rule of the claim, for a blob whose bytes are not there.
pub fn decide(record: Option<&BlobRecord>, owner: &str, now: Timestamp) -> Claim {
    match record.map(|record| &record.state) {
        Some(BlobState::Claimed { until, .. }) if now < *until => Claim::Held,
        Some(BlobState::Removing { until }) if now < *until => Claim::Held,
        _ => Claim::Take(BlobRecord {
            state: BlobState::Claimed { owner: owner.to_owned(), until: now.plus(CLAIM) },
            attempts: record.map_or(0, |record| record.attempts).saturating_add(1),
            failure: record.and_then(|record| record.failure.clone()),
            checkpoint: record.and_then(|record| record.checkpoint.clone()),
            used_at: Some(now),
            open: record.is_some_and(|record| record.open),
        }),
    }
}

/// Copies one blob from upstream into storage, unless it is there or another fill is copying it. Ends early, with a
/// checkpoint, once `stop` is ready: that says how long what is on its way from upstream may still be waited for.
pub async fn run(
    cache: &Arc<Cache>,
    job: &Job,
    progress: &watch::Sender<Progress>,
    stop: impl Future<Output = Duration> + Send,
) -> Result<Filled, FillError> {
    let owner = format!("{:016x}", fastrand::u64(..));
    let patience = std::time::Instant::now() + REMOVAL;
    let mut attempts = Attempts::new();
    let claimed = loop {
        let view = cache.ledger.blob(&job.repository, &job.digest).await?;
        // The record may say so of bytes that somebody has deleted.
        if view.is_stored() && cache.blobs.size(&job.digest).await?.is_some() {
            // Before a client asks: then it may be read here although upstream is down.
            cache.prove_unless_shown(&view, &job.repository, &job.digest).await?;
            let current = view.record;
            // A manifest has come to name it, or a client wants it.
            let Some((current, used)) =
                current.and_then(|current| Some((current.version, noted(&current.value, cache.clock.now())?)))
            else {
                return Ok(Filled::Already);
            };
            if cache.ledger.swap_blob(&job.digest, Some(current), &used).await?.is_some() {
                return Ok(Filled::Already);
            }
            attempts.again().await?;
            continue;
        }
        let current = view.record;
        let record = current.as_ref().map(|current| &current.value);
        match decide(record, &owner, cache.clock.now()) {
            Claim::Held if record.is_some_and(|record| matches!(record.state, BlobState::Removing { .. })) => {
                if std::time::Instant::now() > patience {
                    return Err(StoreError::Unavailable("the blob is being removed".into()).into());
                }
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
            Claim::Held => return Ok(Filled::Claimed),
            Claim::Take(claimed) => {
                let expected = current.as_ref().map(|current| current.version);
                if cache.ledger.swap_blob(&job.digest, expected, &claimed).await?.is_some() {
                    break claimed;
                }
                attempts.again().await?;
            }
        }
    };
    let started = std::time::Instant::now();
    let open = cache.upstreams.is_open(&job.repository);
    let lease = Lease { ledger: Arc::clone(&cache.ledger), clock: cache.clock.clone(), job: job.clone(), owner, open };
    // The claim is given back even then, so that nobody waits until it runs out. What there is of an upload is left to the
    // sweep: whatever broke the fill off may be in its state.
    let copying = AssertUnwindSafe(copy::copy(cache, &lease, claimed.checkpoint, progress, stop)).catch_unwind();
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
            error = %chain(&error), "fill failed"
        ),
    }
    outcome
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
struct Lease {
    ledger: Arc<dyn Ledger>,
    clock: Clock,
    job: Job,
    owner: String,
    /// Once this job has stored it, everybody may have it ([`BlobRecord::open`]).
    open: bool,
}

impl Lease {
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
