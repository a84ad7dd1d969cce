//! Bodies from files. However slowly a client reads, its answer holds little memory.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt as _;
use std::sync::Arc;

use axum::body::Body;
use bytes::Bytes;
use futures_util::stream::{self, Stream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, watch};

use crate::oci::ByteRange;
use crate::ports::Progress;

/// How much is read at once, and how many of these an answer may hold until they are sent.
const CHUNK: u64 = 32 * 1024;
const UNSENT: usize = 2;

/// A part of a file that is complete.
pub(super) fn file(file: Arc<File>, range: ByteRange) -> Body {
    let state = (Chunks::of(file), range.first, range.first + range.length);
    Body::from_stream(stream::try_unfold(state, |(chunks, offset, end)| async move {
        if offset == end {
            return Ok::<_, io::Error>(None);
        }
        let bytes = chunks.read(offset, end).await?;
        let next = offset + bytes.len() as u64;
        Ok(Some((bytes, (chunks, next, end))))
    }))
}

/// A part of a file that a fill is still writing. Its last byte is sent only once the fill has verified the whole, so a
/// client never takes wrong bytes for complete ones; a fill that fails breaks the answer off.
pub(super) fn growing(file: Arc<File>, progress: watch::Receiver<Progress>, range: ByteRange, size: u64) -> Body {
    Body::from_stream(follow(file, progress, range.first, range.first + range.length, size))
}

fn follow(
    file: Arc<File>,
    progress: watch::Receiver<Progress>,
    first: u64,
    end: u64,
    size: u64,
) -> impl Stream<Item = io::Result<Bytes>> {
    let state = (Chunks::of(file), progress, first);
    stream::try_unfold(state, move |(chunks, mut progress, offset)| async move {
        if offset == end {
            return Ok(None);
        }
        let available = loop {
            let available = match &*progress.borrow_and_update() {
                Progress::Stored => size,
                Progress::Growing { written, .. } => (*written).min(size - 1),
                Progress::Waiting => 0,
                Progress::Failed(error) => return Err(io::Error::other(error.to_string())),
            };
            if available > offset {
                break available;
            }
            progress.changed().await.map_err(|_| io::Error::other("the fill was stopped"))?;
        };
        let bytes = chunks.read(offset, available.min(end)).await?;
        let next = offset + bytes.len() as u64;
        Ok(Some((bytes, (chunks, progress, next))))
    })
}

/// Reads a file for one answer.
struct Chunks {
    file: Arc<File>,
    unsent: Arc<Semaphore>,
}

/// A chunk, which the server drops once it is sent.
struct Chunk {
    bytes: Vec<u8>,
    _unsent: OwnedSemaphorePermit,
}

impl AsRef<[u8]> for Chunk {
    fn as_ref(&self) -> &[u8] {
        &self.bytes
    }
}

impl Chunks {
    fn of(file: Arc<File>) -> Self {
        Self { file, unsent: Arc::new(Semaphore::new(UNSENT)) }
    }

    /// Reads a chunk from `offset` on that ends at `end` at the latest, once there is room for it.
    async fn read(&self, offset: u64, end: u64) -> io::Result<Bytes> {
        let unsent = Arc::clone(&self.unsent).acquire_owned().await.map_err(io::Error::other)?;
        let length = usize::try_from(CHUNK.min(end - offset)).map_err(io::Error::other)?;
        let bytes = match read_cached(&self.file, offset, length) {
            Some(bytes) => bytes,
            None => {
                let file = Arc::clone(&self.file);
                let read = move || {
                    let mut bytes = vec![0; length];
                    file.read_exact_at(&mut bytes, offset).map(|()| bytes)
                };
                tokio::task::spawn_blocking(read).await.map_err(io::Error::other)??
            }
        };
        Ok(Bytes::from_owner(Chunk { bytes, _unsent: unsent }))
    }
}

/// What the kernel has in memory is read at once: handing small chunks to another thread would cost more than the copy.
/// It may be less than was asked for.
#[cfg(all(feature = "local", target_os = "linux"))]
fn read_cached(file: &File, offset: u64, length: usize) -> Option<Vec<u8>> {
    use rustix::io::{ReadWriteFlags, preadv2};

    let mut bytes = vec![0; length];
    let read = preadv2(file, &mut [io::IoSliceMut::new(&mut bytes)], offset, ReadWriteFlags::NOWAIT).ok()?;
    bytes.truncate(read);
    (read > 0).then_some(bytes)
}

#[cfg(not(all(feature = "local", target_os = "linux")))]
fn read_cached(_: &File, _: u64, _: usize) -> Option<Vec<u8>> {
    None
}
