//! The bytes of one blob from upstream, in order. Uses several connections where upstream supports ranges and memory
//! allows, and survives broken connections and expired URLs.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use futures_util::{StreamExt as _, stream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc};
use tokio_util::task::AbortOnDropHandle;

use super::Fill;
use crate::errors::{FillError, UpstreamError};
use crate::ports::Job;
use crate::upstream::{BlobBody, BlobPlace, LEAST_BYTES, OpenBlob, Patience};

/// The bytes that one request asks for, where upstream supports ranges.
pub(crate) const SEGMENT_BYTES: u64 = 4 * 1024 * 1024;
/// How many connections fetch one blob at once.
const CONNECTIONS: usize = 4;
/// How many times in a row a connection may break before it has brought [`LEAST_BYTES`].
const RETRIES: u32 = 3;
/// Base of the exponential back-off: after n failures in a row the pause is 2ⁿ times this.
const PAUSE: Duration = Duration::from_millis(250);
/// How far the segment that is being read may be ahead of its reader, in chunks of some kilobytes. Other segments may
/// be ahead by all their bytes, and hold a permit for that memory.
const CHUNKS_AHEAD: usize = 8;
/// The smallest piece that is held ahead of its reader.
const PIECE_BYTES: usize = 64 * 1024;

/// An in-order reader of the bytes from an offset to the end.
pub(super) struct SegmentReader {
    upstream: Arc<SegmentFetcher>,
    /// Segments being fetched, in order.
    segments: VecDeque<Segment>,
    /// The first byte that belongs to no segment yet.
    next: u64,
    /// Whether no more segments are begun.
    ending: bool,
}

type Sender = mpsc::Sender<Result<Bytes, FillError>>;

/// What the segments of one blob share.
struct SegmentFetcher {
    fill: Arc<Fill>,
    job: Job,
    /// The URL that last served bytes. It is tried first, so that the registry is asked once and not for each segment.
    place: Mutex<Option<BlobPlace>>,
}

struct Segment {
    chunks: mpsc::Receiver<Result<Bytes, FillError>>,
    /// It waits for its reader by holding memory, or by holding the connection.
    _memory: Option<OwnedSemaphorePermit>,
    _task: AbortOnDropHandle<()>,
}

impl SegmentReader {
    /// Opens the blob at `offset`, and finds out whether upstream supports ranges.
    pub(super) async fn open(fill: &Arc<Fill>, job: &Job, offset: u64) -> Result<Self, FillError> {
        let upstream = Arc::new(SegmentFetcher { fill: Arc::clone(fill), job: job.clone(), place: Mutex::default() });
        let mut source = Self { upstream, segments: VecDeque::new(), next: job.size, ending: false };
        if offset >= job.size && job.size > 0 {
            return Ok(source);
        }
        let last = source.last_of_segment(offset);
        // A blob that fits one segment is requested without a range, as ordinary clients do.
        let whole = offset == 0 && last + 1 >= job.size;
        let opened = source.upstream.resolve(if whole { None } else { Some((offset, last)) }).await?;
        let end = if opened.partial { last + 1 } else { job.size };
        source.next = end;
        source.push(offset, end, Some(opened), None);
        Ok(source)
    }

    /// Finishes the segments that are under way, and begins no others.
    pub(super) fn wind_down(&mut self) {
        self.ending = true;
    }

    /// The next bytes; `None` at the end of the blob, or after it was wound down.
    pub(super) async fn next(&mut self) -> Result<Option<Bytes>, FillError> {
        loop {
            self.fetch_ahead();
            let Some(segment) = self.segments.front_mut() else { return Ok(None) };
            match segment.chunks.recv().await {
                Some(chunk) => return chunk.map(Some),
                None => _ = self.segments.pop_front(),
            }
        }
    }

    /// Begins further segments: always the one to be read next, others as memory allows.
    fn fetch_ahead(&mut self) {
        while !self.ending && self.next < self.upstream.job.size && self.segments.len() < CONNECTIONS {
            let memory = Arc::clone(&self.upstream.fill.memory).try_acquire_owned().ok();
            if memory.is_none() && !self.segments.is_empty() {
                return;
            }
            let (first, end) = (self.next, self.last_of_segment(self.next) + 1);
            self.next = end;
            self.push(first, end, None, memory);
        }
    }

    fn push(&mut self, first: u64, end: u64, opened: Option<OpenBlob>, memory: Option<OwnedSemaphorePermit>) {
        // Upstream may send tiny pieces: what is ahead of its reader is collected into few large ones.
        let (ahead, least) = if memory.is_some() { (Semaphore::MAX_PERMITS, PIECE_BYTES) } else { (CHUNKS_AHEAD, 1) };
        let (sender, chunks) = mpsc::channel(ahead);
        let upstream = Arc::clone(&self.upstream);
        let task = tokio::spawn(async move { upstream.read(first, end, opened, least, &sender).await });
        self.segments.push_back(Segment { chunks, _memory: memory, _task: AbortOnDropHandle::new(task) });
    }

    fn last_of_segment(&self, first: u64) -> u64 {
        (first + SEGMENT_BYTES).min(self.upstream.job.size).saturating_sub(1)
    }
}

impl SegmentFetcher {
    /// Reads the bytes from `first` up to `end`, in pieces of at least `least` of them, retrying over broken connections.
    async fn read(&self, first: u64, end: u64, mut opened: Option<OpenBlob>, least: usize, sender: &Sender) {
        let (mut at, mut failures) = (first, 0);
        loop {
            let before = at;
            match self.try_to_read(&mut at, end, opened.take(), least, sender).await {
                Ok(()) => return,
                // All bytes have arrived; how the connection ended after them does not matter.
                Err(FillError::Upstream(_)) if at == end => return,
                Err(error) => {
                    failures = if at - before >= LEAST_BYTES { 0 } else { failures + 1 };
                    let may_pass = matches!(
                        error,
                        FillError::Upstream(UpstreamError::Unavailable { .. } | UpstreamError::Elsewhere { .. })
                    );
                    if !may_pass || failures >= RETRIES {
                        _ = sender.send(Err(error)).await;
                        return;
                    }
                    tracing::debug!(blob.digest = %self.job.digest, at, %error, "asking upstream for the rest");
                    tokio::time::sleep(PAUSE * 2_u32.pow(failures)).await;
                }
            }
        }
    }

    async fn try_to_read(
        &self,
        at: &mut u64,
        end: u64,
        opened: Option<OpenBlob>,
        least: usize,
        sender: &Sender,
    ) -> Result<(), FillError> {
        let opened = match opened {
            Some(opened) => opened,
            None => self.open((*at, end.saturating_sub(1))).await?,
        };
        // Upstream sent the whole blob, because it does not support ranges: bytes before `at` are skipped.
        let mut skip = if opened.partial { 0 } else { *at };
        let mut body = pieces(opened.body, least);
        while let Some(chunk) = body.next().await {
            let mut chunk = chunk?;
            let skipped = chunk.len().min(usize::try_from(skip).unwrap_or(usize::MAX));
            skip -= skipped as u64;
            drop(chunk.split_to(skipped));
            if *at + chunk.len() as u64 > end {
                // More than this segment, of a whole blob; or more than there is.
                if opened.partial || end == self.job.size {
                    let Job { size, digest, .. } = &self.job;
                    let sentence = format!("upstream sends more than the {size} bytes of {digest}");
                    return Err(FillError::Mismatch(sentence));
                }
                chunk.truncate(usize::try_from(end - *at).unwrap_or_default());
            }
            if chunk.is_empty() {
                continue;
            }
            *at += chunk.len() as u64;
            if sender.send(Ok(chunk)).await.is_err() {
                // The reader is gone.
                return Ok(());
            }
            // A range is read to its end, so that its connection can be reused; the rest of a whole blob is dropped.
            if *at == end && end < self.job.size && !opened.partial {
                return Ok(());
            }
        }
        if *at < end {
            return Err(UpstreamError::failed(format!("it sent {at} of {} bytes", self.job.size)).into());
        }
        Ok(())
    }

    /// Opens a range at the URL of the last one, or asks the registry.
    async fn open(&self, wanted: (u64, u64)) -> Result<OpenBlob, FillError> {
        let place = self.place.lock().unwrap_or_else(PoisonError::into_inner).clone();
        if let Some(place) = place {
            match self.fill.core.upstreams.open_again(&place, wanted).await {
                Ok(opened) => return self.checked(opened),
                // Signed URLs expire; the registry gives a new one.
                Err(error) => {
                    tracing::debug!(blob.digest = %self.job.digest, %error, "asking the registry where the blob is");
                    *self.place.lock().unwrap_or_else(PoisonError::into_inner) = None;
                }
            }
        }
        self.resolve(Some(wanted)).await
    }

    async fn resolve(&self, wanted: Option<(u64, u64)>) -> Result<OpenBlob, FillError> {
        let opened =
            self.fill.core.upstreams.open_blob(&self.job.repository, &self.job.digest, wanted, Patience::Fill).await?;
        // A part that names another size than the manifest is no part of this blob, but the whole may be right.
        if opened.partial && opened.size != Some(self.job.size) {
            return Box::pin(self.resolve(None)).await;
        }
        *self.place.lock().unwrap_or_else(PoisonError::into_inner) = Some(opened.place.clone());
        self.checked(opened)
    }

    fn checked(&self, opened: OpenBlob) -> Result<OpenBlob, FillError> {
        match opened.size {
            Some(size) if size != self.job.size => {
                Err(FillError::Mismatch(format!("upstream sends {size} bytes of a blob of {}", self.job.size)))
            }
            _ => Ok(opened),
        }
    }
}

/// The same bytes in pieces of at least `least` bytes, except the last one.
fn pieces(body: BlobBody, least: usize) -> BlobBody {
    let state = Some((body, BytesMut::new()));
    Box::pin(stream::unfold(state, move |state| async move {
        let (mut body, mut collected) = state?;
        loop {
            match body.next().await {
                Some(Ok(chunk)) if collected.is_empty() && chunk.len() >= least => {
                    return Some((Ok(chunk), Some((body, collected))));
                }
                Some(Ok(chunk)) => {
                    collected.extend_from_slice(&chunk);
                    if collected.len() >= least {
                        return Some((Ok(collected.split().freeze()), Some((body, collected))));
                    }
                }
                // First what has arrived, then the error.
                Some(Err(error)) if collected.is_empty() => return Some((Err(error), None)),
                Some(Err(error)) => {
                    let ended: BlobBody = Box::pin(stream::once(std::future::ready(Err(error))));
                    return Some((Ok(collected.split().freeze()), Some((ended, collected))));
                }
                None if collected.is_empty() => return None,
                None => return Some((Ok(collected.freeze()), None)),
            }
        }
    }))
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    use tokio::net::TcpListener;
    use tokio::time::Instant;

    use super::*;
    use crate::config::{Cold, Config};
    use crate::local::Local;
    use crate::oci::{Algorithm, Digest, Repository};
    use crate::ports::Priority;
    use crate::values::time::Clock;

    #[tokio::test]
    async fn however_small_the_pieces_are_that_arrive_they_are_held_in_large_ones() {
        let broken = || Err(UpstreamError::Elsewhere { silent: false, reason: "broken off".into() });
        for (count, end) in
            [(0, None), (1, None), (99, None), (1000, None), (1001, Some(broken())), (0, Some(broken()))]
        {
            let arriving = (0..count).map(|number: u32| Ok(Bytes::copy_from_slice(&number.to_le_bytes()[..1])));
            let arriving = arriving.chain(end.clone());
            let arrived: Vec<_> = pieces(Box::pin(stream::iter(arriving)), 100).collect().await;
            let (whole, failed): (Vec<_>, Vec<_>) = arrived.iter().cloned().partition(Result::is_ok);
            let bytes: Vec<u8> = whole.iter().flatten().flat_map(|piece| piece.to_vec()).collect();
            let expected: Vec<u8> = (0..count).map(|number| number.to_le_bytes()[0]).collect();
            assert_eq!(bytes, expected);
            assert!(whole.iter().rev().skip(1).flatten().all(|piece| piece.len() >= 100), "{whole:?}");
            assert_eq!(
                (failed.len(), arrived.last().is_some_and(Result::is_err)),
                (usize::from(end.is_some()), end.is_some())
            );
        }
    }

    const SIZE: usize = 256 * 1024;

    /// Sends a blob of zeros in pieces of `piece` bytes, a second apart, and ends each connection after `pieces` of
    /// them.
    async fn drip(listener: TcpListener, piece: usize, pieces: usize) {
        while let Ok((mut connection, _)) = listener.accept().await {
            tokio::spawn(async move {
                let mut head = Vec::new();
                while !head.ends_with(b"\r\n\r\n") {
                    head.push(connection.read_u8().await?);
                }
                let head = String::from_utf8_lossy(&head);
                let range = head.split_once("range: bytes=").and_then(|(_, range)| range.split_once('-'));
                let first: usize = range.map_or(0, |(first, _)| first.parse().unwrap());
                let status = match range {
                    Some(_) => format!("206 \r\ncontent-range: bytes {first}-{}/{SIZE}", SIZE - 1),
                    None => "200 ".to_owned(),
                };
                let head = format!("HTTP/1.1 {status}\r\ncontent-length: {}\r\n\r\n", SIZE - first);
                connection.write_all(head.as_bytes()).await?;
                for piece in vec![0; SIZE - first].chunks(piece).take(pieces) {
                    connection.write_all(piece).await?;
                    tokio::time::sleep(Duration::from_secs(1)).await;
                }
                Ok::<_, std::io::Error>(())
            });
        }
    }

    /// How many bytes arrive of a blob that is sent like this, how that ends, and how long it takes. Time is paused: it
    /// advances when no task can run.
    async fn read(piece: usize, pieces: usize) -> (usize, Result<(), FillError>, Duration) {
        let (data, listener) = (tempfile::tempdir().unwrap(), TcpListener::bind("127.0.0.1:0").await.unwrap());
        let text = format!("[upstreams.\"test.local\"]\nurl = \"http://{}\"", listener.local_addr().unwrap());
        let mut config = Config::parse(&text, Path::new("stopover.toml"), Cold::Follow, |_| unreachable!()).unwrap();
        config.data_dir = data.path().to_owned();
        let local = Local::open(config, Clock::default()).await.unwrap();
        let upstream = AbortOnDropHandle::new(tokio::spawn(drip(listener, piece, pieces)));
        let job = Job {
            repository: Repository { upstream: "test.local".parse().unwrap(), name: "a".parse().unwrap() },
            digest: Digest::of(Algorithm::Sha256, &vec![0; SIZE]),
            size: SIZE as u64,
            priority: Priority::Interactive,
            payer: None,
        };
        let mut source = SegmentReader::open(&local.cache.fill, &job, 0).await.unwrap();
        // From here on: while a real disk notes that upstream shows the repository, paused time runs ahead.
        let (begun, mut bytes) = (Instant::now(), 0);
        let ended = loop {
            match source.next().await {
                Ok(Some(chunk)) => bytes += chunk.len(),
                ended => break ended.map(drop),
            }
        };
        let took = begun.elapsed();
        drop((source, upstream));
        local.stop(Duration::ZERO).await;
        (bytes, ended, took)
    }

    #[tokio::test(start_paused = true)]
    async fn an_upstream_that_drips_holds_no_fill_for_ever() {
        // A byte a second without end; and connections that bring next to nothing, one after the other.
        for (piece, pieces) in [(1, usize::MAX), (1, 1), (1000, 10)] {
            let (bytes, ended, took) = read(piece, pieces).await;
            let slow = matches!(ended, Err(FillError::Upstream(UpstreamError::Unavailable { .. })));
            assert!(slow && took < Duration::from_mins(3), "{piece} {pieces}: {bytes} bytes in {took:?}, {ended:?}");
        }
    }
}
