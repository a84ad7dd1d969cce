//! One blob from upstream into storage: read in order, hashed, stored, with checkpoints in the ledger.

use std::collections::VecDeque;
use std::pin::pin;
use std::sync::Arc;
use std::task::Poll;
use std::time::Duration;

use bytes::Bytes;
use futures_util::future::BoxFuture;
use futures_util::{FutureExt as _, poll};
use tokio::sync::watch;
use tokio::time::{Instant, MissedTickBehavior};

use super::source::SegmentReader;
use super::{Copied, Fill, Filled, HeldClaim};
use crate::errors::{FillError, StoreError, UpstreamError, chain};
use crate::oci::{Digest, Hasher, UpstreamId};
use crate::ports::{Blobs, Job, Location, Progress, Upload};
use crate::records::Checkpoint;
use crate::records::blob::CLAIM;
use crate::values::file::read;

/// The bytes between two checkpoints, or what comes within [`CHECKPOINT_PAUSE`] if that is more: what a crash loses at most.
const CHECKPOINT_BYTES: u64 = 64 * 1024 * 1024;
/// The shortest time between two checkpoints: each has storage write what a fast fill could read instead.
const CHECKPOINT_PAUSE: Duration = Duration::from_secs(2);
/// How many bytes, and how many pieces, wait for their hash at most: more than local files are written at once.
const UNHASHED_BYTES: usize = 1024 * 1024;
const UNHASHED_PIECES: usize = 4096;
/// How often the fill checks whether its claim is due for renewal while upstream is silent.
const TICK: Duration = Duration::from_secs(5);

/// Whether the bytes are stored although the record does not say so: a fill was killed between the two. A file may have lost
/// some instead, and the size of a job is what a manifest claims: only its digest says that it is whole.
async fn are_stored(blobs: &dyn Blobs, job: &Job) -> Result<bool, StoreError> {
    let size = job.size;
    if blobs.size(&job.digest).await? != Some(size) {
        return Ok(false);
    }
    let file = match blobs.locate(&job.digest, size).await? {
        None => return Ok(false),
        // An object is complete or not there.
        Some(Location::Url(_)) => return Ok(true),
        Some(Location::Memory(bytes)) => return Ok(Digest::of(job.digest.algorithm(), &bytes) == job.digest),
        Some(Location::File(file)) => file,
    };
    let mut hasher = Hasher::new(job.digest.algorithm());
    for first in (0..size).step_by(UNHASHED_BYTES) {
        let Ok(bytes) = read(&file, &(first..size.min(first + UNHASHED_BYTES as u64))).await else { return Ok(false) };
        hasher.update(&bytes);
        // Pieces that the kernel has in memory are read at once.
        tokio::task::yield_now().await;
    }
    Ok(hasher.finish() == job.digest)
}

/// Copies the blob of a claim, continuing from its checkpoint if that still fits.
pub(super) async fn copy(
    fill: &Arc<Fill>,
    claim: &HeldClaim,
    checkpoint: Option<Checkpoint>,
    progress: &watch::Sender<Progress>,
    stop: impl Future<Output = Duration> + Send,
) -> Copied {
    let job = &claim.job;
    // Another upstream may have sent other bytes.
    let checkpoint = checkpoint.filter(|left| left.upstream.as_ref() == Some(&job.repository.upstream));
    let ended = |outcome| Copied { outcome, checkpoint: None, upload: None, known: false };
    match are_stored(&*fill.core.storage.blobs, job).await {
        Ok(true) => return ended(fill.membership.prove_for(job).await.map(|()| Filled::Already)),
        Ok(false) => {}
        Err(error) => return Copied { checkpoint, ..ended(Err(error.into())) },
    }
    // The partial bytes may have come for another repository, and clients may read them before upstream is asked for
    // the rest.
    if checkpoint.is_some()
        && let Err(error) = fill.membership.prove_for(job).await
    {
        return Copied { checkpoint, ..ended(Err(error)) };
    }
    let (mut writer, checkpoint) = match Writer::open(fill, job, checkpoint.clone(), progress).await {
        Ok(opened) => opened,
        Err(error @ StoreError::Refused(_)) => return ended(Err(error.into())),
        Err(error) => return Copied { checkpoint, ..ended(Err(error.into())) },
    };
    let begun = writer.begun;
    let mut copying = Copying { fill, claim, writer: &mut writer, saved: checkpoint };
    let outcome = copying.run(stop).await;
    let saved = copying.saved;
    let known = saved.is_some();
    let (outcome, checkpoint) = match outcome {
        // Only the owner of the claim publishes.
        Ok(Ended::Whole) => match claim.renew(saved.clone()).await {
            Ok(()) => match writer.upload.publish().await {
                Ok(()) => return ended(Ok(Filled::Stored)),
                Err(error) => (Err(error.into()), saved),
            },
            Err(error) => (Err(error), saved),
        },
        Ok(Ended::Stopped { store_until }) => {
            let checkpoint = writer.checkpoint_until(store_until).await.unwrap_or(saved);
            let reached = checkpoint.as_ref().map_or(0, |checkpoint| checkpoint.offset);
            (Ok(Filled::Parked { progress: reached > begun }), checkpoint)
        }
        Err(error @ FillError::Upstream(_)) if error.may_pass() => {
            (Err(error), writer.checkpoint(u64::MAX).await.unwrap_or(saved))
        }
        Err(error @ (FillError::Store(StoreError::Unavailable(_)) | FillError::ClaimLost)) => (Err(error), saved),
        // The bytes cannot be trusted, or no other fill will go on with them; and a full disk must not be kept full.
        Err(error) => (Err(error), None),
    };
    // Without a checkpoint the upload is of no use to another fill, so it is handed back to be discarded.
    let upload = checkpoint.is_none().then_some(writer.upload);
    Copied { outcome, checkpoint, upload, known }
}

/// How reading ended.
enum Ended {
    /// All bytes are written, and they are the right ones.
    Whole,
    /// Stopped early. Bytes on their way to storage have until then to arrive there.
    Stopped { store_until: Instant },
}

struct Copying<'a> {
    fill: &'a Arc<Fill>,
    claim: &'a HeldClaim,
    writer: &'a mut Writer,
    /// The checkpoint in the ledger.
    saved: Option<Checkpoint>,
}

impl Copying<'_> {
    /// Stores all bytes. Succeeds only with the right number of bytes and the right digest, or stopped early.
    ///
    /// `stop` gives the time for bytes on their way from upstream, and then as much for those on their way to storage.
    async fn run(&mut self, stop: impl Future<Output = Duration> + Send) -> Result<Ended, FillError> {
        let mut stop = pin!(stop);
        let job = &self.claim.job;
        let mut opening = pin!(SegmentReader::open(self.fill, job, self.writer.written));
        let mut source = loop {
            tokio::select! {
                biased;
                source = &mut opening => break source?,
                grace = &mut stop => return Ok(Ended::Stopped { store_until: Instant::now() + grace }),
                () = tokio::time::sleep(CLAIM / 2) => self.claim.renew(self.saved.clone()).await?,
            }
        };
        // Before any client can read a byte of it.
        self.fill.membership.note_proven(&job.repository, &job.digest, job.size).await;
        // Once the fill is to stop: when to give up bytes that are still on their way.
        let mut ends: Option<(Instant, Duration)> = None;
        let mut claimed_until = self.claim.core.clock.now().plus(CLAIM);
        let mut renew_at = self.claim.core.clock.now().plus(CLAIM / 3);
        let mut checkpoint_at = (self.writer.written + CHECKPOINT_BYTES, Instant::now() + CHECKPOINT_PAUSE);
        let mut saving: Option<BoxFuture<'_, Result<Option<Checkpoint>, FillError>>> = None;
        let mut tick = tokio::time::interval(TICK);
        tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            let is_due = self.writer.written >= checkpoint_at.0 && Instant::now() >= checkpoint_at.1;
            if saving.is_none() && (is_due || self.claim.core.clock.now() >= renew_at) {
                renew_at = self.claim.core.clock.now().plus(CLAIM / 6);
                checkpoint_at = (self.writer.written + CHECKPOINT_BYTES, Instant::now() + CHECKPOINT_PAUSE);
                let (claim, checkpoint) = (self.claim.clone(), self.writer.checkpoint(u64::MAX));
                let saved = async move {
                    let checkpoint = checkpoint.await?;
                    claim.renew(checkpoint.clone()).await.map(|()| checkpoint)
                };
                saving = Some(saved.boxed());
            }
            let saved = async {
                match &mut saving {
                    Some(saving) => saving.await,
                    None => std::future::pending().await,
                }
            };
            let ended = async {
                match ends {
                    Some((at, grace)) => {
                        tokio::time::sleep_until(at).await;
                        Ended::Stopped { store_until: at + grace }
                    }
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                biased;
                grace = &mut stop, if ends.is_none() => {
                    ends = Some((Instant::now() + grace, grace));
                    source.wind_down();
                }
                ended = ended => return Ok(ended),
                saved = saved => {
                    saving = None;
                    let before = self.saved.as_ref().map_or(0, |saved| saved.offset);
                    match saved {
                        Ok(saved) => (self.saved, claimed_until) = (saved, self.claim.core.clock.now().plus(CLAIM)),
                        // While the claim lasts there is time for another attempt.
                        Err(FillError::Store(error @ StoreError::Unavailable(_)))
                            if self.claim.core.clock.now() < claimed_until =>
                        {
                            tracing::warn!(blob.digest = %job.digest, error = %chain(&error), "a checkpoint could not be written");
                            continue;
                        }
                        Err(error) => return Err(error),
                    }
                    let offset = self.saved.as_ref().map_or(0, |saved| saved.offset);
                    if offset > before {
                        tracing::info!(
                            blob.digest = %job.digest, offset_bytes = offset, size_bytes = job.size,
                            "checkpoint written"
                        );
                    }
                }
                chunk = self.writer.next(&mut source) => match (chunk?, ends) {
                    (Some(chunk), _) => self.writer.write(chunk).await?,
                    (None, Some((_, grace))) if self.writer.written < job.size => {
                        return Ok(Ended::Stopped { store_until: Instant::now() + grace });
                    }
                    (None, _) => return self.writer.verify(job).map(|()| Ended::Whole),
                },
                _ = tick.tick() => {}
            }
        }
    }
}

/// What has been stored so far, and the hash over it.
struct Writer {
    upstream: UpstreamId,
    upload: Box<dyn Upload>,
    unit: u64,
    hash: Hash,
    /// How many of the bytes were stored by earlier fills.
    begun: u64,
    written: u64,
    /// What was read beyond the last multiple of the unit, and is not written yet.
    rest: Bytes,
    /// Where a checkpoint may lie, and the hash up to there: the last offset that storage has all bytes before, and those
    /// after it.
    boundaries: VecDeque<(u64, Hasher)>,
}

impl Writer {
    /// Continues from a checkpoint, or begins anew if there is none or it does not fit.
    async fn open(
        fill: &Fill,
        job: &Job,
        checkpoint: Option<Checkpoint>,
        progress: &watch::Sender<Progress>,
    ) -> Result<(Self, Option<Checkpoint>), StoreError> {
        let algorithm = job.digest.algorithm();
        let upstream = &job.repository.upstream;
        if let Some(checkpoint) = checkpoint.filter(|checkpoint| checkpoint.offset <= job.size)
            && let Some(hasher) = Hasher::restore(algorithm, &checkpoint.hash)
        {
            let Checkpoint { offset, upload, .. } = &checkpoint;
            if let Some(upload) =
                fill.core.storage.blobs.resume(&job.digest, job.size, *offset, upload, progress).await?
            {
                return Ok((Self::new(upstream, upload, hasher, *offset), Some(checkpoint)));
            }
            tracing::warn!(blob.digest = %job.digest, offset, "a checkpoint does not fit: beginning anew");
        }
        let upload = fill.core.storage.blobs.begin(&job.digest, job.size, progress).await?;
        Ok((Self::new(upstream, upload, Hasher::new(algorithm), 0), None))
    }

    fn new(upstream: &UpstreamId, upload: Box<dyn Upload>, hasher: Hasher, written: u64) -> Self {
        Self {
            upstream: upstream.clone(),
            unit: upload.unit().max(1),
            upload,
            rest: Bytes::new(),
            boundaries: VecDeque::from([(written, hasher.clone())]),
            hash: Hash { hasher, pieces: Vec::new(), bytes: 0 },
            begun: written,
            written,
        }
    }

    /// The next bytes to write, once storage has room for them. Nothing is lost if this is dropped.
    async fn next(&mut self, source: &mut SegmentReader) -> Result<Option<Bytes>, FillError> {
        self.upload.room().await?;
        if self.rest.is_empty() { Ok(source.next().await?) } else { Ok(Some(std::mem::take(&mut self.rest))) }
    }

    /// Writes what [`Self::next`] gave, up to a multiple of the unit.
    async fn write(&mut self, mut bytes: Bytes) -> Result<(), StoreError> {
        let room = self.unit - self.written % self.unit;
        let piece = bytes.split_to(bytes.len().min(usize::try_from(room).unwrap_or(usize::MAX)));
        self.rest = bytes;
        self.written += piece.len() as u64;
        self.hash.note(&piece);
        {
            let mut writing = pin!(self.upload.write(piece));
            // While storage is at work, this thread has time for the hash.
            if let Poll::Ready(written) = poll!(&mut writing) {
                written?;
            } else {
                self.hash.catch_up();
                writing.await?;
            }
        }
        if self.written.is_multiple_of(self.unit) {
            self.boundaries.push_back((self.written, self.hash.catch_up().clone()));
            let arrived = self.upload.arrived();
            while self.boundaries.get(1).is_some_and(|(offset, _)| *offset <= arrived) {
                self.boundaries.pop_front();
            }
        }
        Ok(())
    }

    /// As far as storage has all bytes by then.
    async fn checkpoint_until(&mut self, end: Instant) -> Result<Option<Checkpoint>, StoreError> {
        if let Ok(Ok(checkpoint)) = tokio::time::timeout_at(end, self.checkpoint(u64::MAX)).await {
            return Ok(checkpoint);
        }
        self.checkpoint(self.upload.arrived()).await
    }

    /// The future is ready once the checkpoint, which lies at `limit` or before, would survive a crash. `None`: there is
    /// nothing to save yet.
    fn checkpoint(&mut self, limit: u64) -> BoxFuture<'static, Result<Option<Checkpoint>, StoreError>> {
        let last = self.boundaries.iter().rev().find(|(offset, _)| (1..=limit).contains(offset));
        let Some((offset, hash)) = last.map(|(offset, hasher)| (*offset, hasher.save())) else {
            return std::future::ready(Ok(None)).boxed();
        };
        let (upload, upstream) = (self.upload.checkpoint(offset), Some(self.upstream.clone()));
        async move { Ok(Some(Checkpoint { offset, hash, upload: upload.await?, upstream })) }.boxed()
    }

    fn verify(&mut self, job: &Job) -> Result<(), FillError> {
        if self.written != job.size {
            return Err(UpstreamError::failed(format!("it sent {} of {} bytes", self.written, job.size)).into());
        }
        match self.hash.catch_up().clone().finish() {
            digest if digest == job.digest => Ok(()),
            digest => Err(FillError::Mismatch(format!("the bytes of {} have the digest {digest}", job.digest))),
        }
    }
}

/// The hash over what was written, of which some pieces wait for it.
struct Hash {
    hasher: Hasher,
    pieces: Vec<Bytes>,
    bytes: usize,
}

impl Hash {
    fn note(&mut self, piece: &Bytes) {
        self.bytes += piece.len();
        self.pieces.push(piece.clone());
        if self.bytes >= UNHASHED_BYTES || self.pieces.len() >= UNHASHED_PIECES {
            self.catch_up();
        }
    }

    fn catch_up(&mut self) -> &Hasher {
        self.bytes = 0;
        for piece in self.pieces.drain(..) {
            self.hasher.update(&piece);
        }
        &self.hasher
    }
}
