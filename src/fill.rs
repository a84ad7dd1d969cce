//! THE WRITE PATH: claim → fetch → hash while storing → publish.
//!
//! A fill may be run twice, at once, and killed at any point: bytes become visible only whole and verified, so a claim
//! saves work and correctness never depends on it.

use std::sync::Arc;
use std::time::Duration;

use futures_util::{StreamExt as _, stream};
use tokio::sync::watch;

use crate::Cache;
use crate::oci::Hasher;
use crate::ports::{BlobRecord, BlobState, Body, Job, Ledger, Progress, StoreError, Versioned};
use crate::retention::noted;
use crate::time::{Clock, Timestamp};
use crate::upstream::{BlobBody, UpstreamError};

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
        }),
    }
}

/// Copies one blob from upstream into storage, unless it is there or another fill is copying it.
pub async fn run(cache: &Cache, job: &Job, progress: &watch::Sender<Progress>) -> Result<Filled, FillError> {
    let owner = format!("{:016x}", fastrand::u64(..));
    let patience = std::time::Instant::now() + REMOVAL;
    let claimed = loop {
        let current = cache.ledger.blob(&job.repository, &job.digest).await?.record;
        let record = current.as_ref().map(|current| &current.value);
        let stored = record.is_some_and(|record| matches!(record.state, BlobState::Stored { .. }));
        // The record may say so of bytes that somebody has deleted.
        if stored && cache.blobs.size(&job.digest).await?.is_some() {
            // A manifest has come to name it, or a client wants it.
            let Some((current, used)) =
                current.and_then(|current| Some((current.version, noted(&current.value, cache.clock.now())?)))
            else {
                return Ok(Filled::Already);
            };
            if cache.ledger.swap_blob(&job.digest, Some(current), &used).await?.is_some() {
                return Ok(Filled::Already);
            }
            continue;
        }
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
            }
        }
    };
    let started = std::time::Instant::now();
    let outcome = copy(cache, job, &owner, progress).await;
    let (state, failure) = match &outcome {
        Ok(_) => (BlobState::Stored { size: job.size }, None),
        // The record is another's by now.
        Err(FillError::ClaimLost) => return outcome,
        Err(error) => (BlobState::Absent, Some(error.to_string())),
    };
    settle(cache, job, &owner, &BlobRecord { state, failure, ..claimed.clone() }).await?;
    match &outcome {
        Ok(_) => tracing::info!(
            blob.digest = %job.digest, repository = %job.repository, size_bytes = job.size,
            duration_ms = started.elapsed().as_millis(), "blob stored"
        ),
        Err(error) => tracing::warn!(
            blob.digest = %job.digest, repository = %job.repository, attempt = claimed.attempts, %error, "fill failed"
        ),
    }
    outcome
}

/// Writes how a fill ended. That the bytes are stored is true whoever holds the claim; a failure is noted only by the
/// claim's owner.
async fn settle(cache: &Cache, job: &Job, owner: &str, record: &BlobRecord) -> Result<(), StoreError> {
    loop {
        let current = cache.ledger.blob(&job.repository, &job.digest).await?.record;
        let stored = matches!(record.state, BlobState::Stored { .. });
        match &current {
            Some(current) if !stored && !owns(current, owner) => return Ok(()),
            _ => {}
        }
        if cache.ledger.swap_blob(&job.digest, current.map(|current| current.version), record).await?.is_some() {
            return Ok(());
        }
    }
}

fn owns(record: &Versioned<BlobRecord>, owner: &str) -> bool {
    matches!(&record.value.state, BlobState::Claimed { owner: holder, .. } if holder == owner)
}

async fn copy(cache: &Cache, job: &Job, owner: &str, progress: &watch::Sender<Progress>) -> Result<Filled, FillError> {
    // The bytes may be here although their record is not: a fill was killed between the two.
    match cache.blobs.size(&job.digest).await? {
        Some(size) if size == job.size => return Ok(Filled::Already),
        _ => {}
    }
    let (size, body) = cache.upstreams.open_blob(&job.repository, &job.digest).await?;
    if let Some(size) = size.filter(|&size| size != job.size) {
        return Err(FillError::Mismatch(format!("upstream sends {size} bytes of a blob of {}", job.size)));
    }
    let lease = Lease {
        ledger: Arc::clone(&cache.ledger),
        clock: cache.clock.clone(),
        job: job.clone(),
        owner: owner.to_owned(),
        renew_at: cache.clock.now().plus(CLAIM / 3),
    };
    cache.blobs.store(&job.digest, job.size, verified(body, job, lease), progress).await?;
    Ok(Filled::Stored)
}

/// A claim that is renewed while bytes arrive.
struct Lease {
    ledger: Arc<dyn Ledger>,
    clock: Clock,
    job: Job,
    owner: String,
    renew_at: Timestamp,
}

impl Lease {
    async fn keep(&mut self) -> Result<(), FillError> {
        let now = self.clock.now();
        if now < self.renew_at {
            return Ok(());
        }
        let record = self.ledger.blob(&self.job.repository, &self.job.digest).await?.record;
        let Some(Versioned { mut value, version }) = record.filter(|record| owns(record, &self.owner)) else {
            return Err(FillError::ClaimLost);
        };
        value.state = BlobState::Claimed { owner: self.owner.clone(), until: now.plus(CLAIM) };
        if self.ledger.swap_blob(&self.job.digest, Some(version), &value).await?.is_none() {
            return Err(FillError::ClaimLost);
        }
        self.renew_at = now.plus(CLAIM / 3);
        Ok(())
    }
}

/// Passes bytes on while hashing them. Ends well only after exactly `job.size` bytes with the digest `job.digest`.
fn verified(body: BlobBody, job: &Job, lease: Lease) -> Body {
    let state = (body, Hasher::new(job.digest.algorithm()), 0, lease);
    Box::pin(stream::try_unfold(state, |(mut body, mut hasher, seen, mut lease)| async move {
        lease.keep().await?;
        let size = lease.job.size;
        let Some(chunk) = body.next().await.transpose()? else {
            if seen < size {
                let reason = format!("it sent {seen} of {size} bytes");
                return Err(UpstreamError::Unavailable { silent: false, reason }.into());
            }
            let digest = hasher.finish();
            if digest != lease.job.digest {
                return Err(FillError::Mismatch(format!("the bytes of {} have the digest {digest}", lease.job.digest)));
            }
            return Ok(None);
        };
        let seen = seen + chunk.len() as u64;
        if seen > size {
            return Err(FillError::Mismatch(format!(
                "upstream sends more than the {size} bytes of {}",
                lease.job.digest
            )));
        }
        hasher.update(&chunk);
        Ok(Some((chunk, (body, hasher, seen, lease))))
    }))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record(state: BlobState) -> BlobRecord {
        BlobRecord { attempts: 2, ..BlobRecord::new(state) }
    }

    #[test]
    fn a_blob_is_claimed_unless_a_claim_on_it_runs() {
        let now = Timestamp(1000);
        let claimed = |until| record(BlobState::Claimed { owner: "other".into(), until: Timestamp(until) });
        assert_eq!(decide(Some(&claimed(1001)), "me", now), Claim::Held);
        for free in
            [None, Some(claimed(1000)), Some(record(BlobState::Absent)), Some(record(BlobState::Stored { size: 1 }))]
        {
            let Claim::Take(taken) = decide(free.as_ref(), "me", now) else { panic!("{free:?}") };
            assert_eq!(taken.state, BlobState::Claimed { owner: "me".into(), until: now.plus(CLAIM) });
            assert_eq!(taken.attempts, free.map_or(0, |record| record.attempts) + 1);
        }
    }
}
