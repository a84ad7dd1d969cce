//! Bodies from files, in chunks small enough that a client that does not read costs little.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt as _;
use std::sync::Arc;

use axum::body::Body;
use bytes::Bytes;
use futures_util::stream::{self, Stream};
use tokio::sync::watch;

use crate::oci::ByteRange;
use crate::ports::Progress;

/// How much is read at once. The program holds one of these for each answer: a client that reads slowly costs no more.
const CHUNK: u64 = 24 * 1024;

/// A part of a stored blob that has its answer's bytes: an extension of the answer, for programs that can send a file
/// without reading it.
#[derive(Clone, Debug)]
pub struct StoredPart {
    /// The file.
    pub file: Arc<File>,
    /// Where the part begins.
    pub first: u64,
    /// Where it ends.
    pub end: u64,
}

impl StoredPart {
    /// `None`: it is so small that it is in memory already.
    pub(super) fn new(file: &Arc<File>, range: &ByteRange) -> Option<Self> {
        let (first, end) = (range.first, range.first + range.length);
        (range.length > CHUNK).then(|| Self { file: Arc::clone(file), first, end })
    }

    /// Waits until the kernel has these bytes in memory, as far as that shows at both ends: to send them keeps no other
    /// task waiting for the disk then.
    pub async fn load(&self, first: u64, end: u64) -> io::Result<()> {
        if [first, end - 1].iter().all(|at| read_at_once(&self.file, *at, 1).is_some()) {
            return Ok(());
        }
        read(&self.file, first, end - first).await.map(drop)
    }
}

/// A part of a file that is complete.
pub(super) fn file(file: Arc<File>, range: ByteRange) -> Body {
    // One chunk needs no stream: the server writes it with the headers.
    if range.length <= CHUNK
        && let Some(bytes) = read_at_once(&file, range.first, range.length)
    {
        return bytes.into();
    }
    let state = (file, range.first, range.first + range.length);
    Body::from_stream(stream::try_unfold(state, |(file, offset, end)| async move {
        let length = CHUNK.min(end - offset);
        if length == 0 {
            return Ok::<_, io::Error>(None);
        }
        let bytes = read(&file, offset, length).await?;
        Ok(Some((bytes, (file, offset + length, end))))
    }))
}

/// A part of a file that a fill is still writing. Its last byte is sent only once the fill has verified the whole, so a
/// client never takes wrong bytes for complete ones; a fill that fails breaks the answer off. A client need not wait
/// until the bytes would survive a crash: that costs another fill and nothing else.
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
    stream::try_unfold((file, progress, first), move |(file, mut progress, offset)| async move {
        if offset == end {
            return Ok(None);
        }
        let available = loop {
            let available = match &*progress.borrow_and_update() {
                Progress::Stored | Progress::Growing { verified: true, .. } => size,
                Progress::Growing { written, .. } => (*written).min(size - 1),
                Progress::Waiting => 0,
                Progress::Failed(error) => return Err(io::Error::other(error.to_string())),
            };
            if available > offset {
                break available;
            }
            progress.changed().await.map_err(|_| io::Error::other("the fill was stopped"))?;
        };
        let length = CHUNK.min(available.min(end) - offset);
        let bytes = read(&file, offset, length).await?;
        Ok(Some((bytes, (file, progress, offset + length))))
    })
}

async fn read(file: &Arc<File>, offset: u64, length: u64) -> io::Result<Bytes> {
    if let Some(bytes) = read_at_once(file, offset, length) {
        return Ok(bytes);
    }
    let (file, mut bytes) = (Arc::clone(file), vec![0; usize::try_from(length).map_err(io::Error::other)?]);
    let read = move || {
        file.read_exact_at(&mut bytes, offset)?;
        Ok(Bytes::from(bytes))
    };
    tokio::task::spawn_blocking(read).await.map_err(io::Error::other)?
}

/// Reads what the kernel has in memory: to hand that to another thread would cost more than to read it. `None`: it may
/// have to wait for the disk.
#[cfg(all(feature = "local", target_os = "linux"))]
fn read_at_once(file: &File, offset: u64, length: u64) -> Option<Bytes> {
    let mut bytes = vec![0; usize::try_from(length).ok()?];
    let (into, flags) = (&mut [io::IoSliceMut::new(&mut bytes)], rustix::io::ReadWriteFlags::NOWAIT);
    let read = rustix::io::preadv2(file, into, offset, flags).ok()?;
    (read == bytes.len()).then(|| bytes.into())
}

#[cfg(not(all(feature = "local", target_os = "linux")))]
fn read_at_once(_: &File, _: u64, _: u64) -> Option<Bytes> {
    None
}

#[cfg(all(test, feature = "local"))]
mod tests {
    use futures_util::{FutureExt as _, StreamExt as _};

    use crate::local::Files;
    use crate::oci::{Algorithm, Digest};
    use crate::ports::Blobs as _;

    use super::*;

    #[tokio::test]
    async fn the_last_byte_leaves_once_the_digest_is_right_even_if_the_disk_fails_then() {
        let data = tempfile::tempdir().unwrap();
        let (files, content) = (Files::open(data.path()).unwrap(), vec![7; 100_000]);
        let (digest, size) = (Digest::of(Algorithm::Sha256, &content), content.len() as u64);
        let (told, progress) = watch::channel(Progress::Waiting);
        let mut upload = files.begin(&digest, size, &told).await.unwrap();
        upload.write(content.clone().into()).await.unwrap();
        let Progress::Growing { file, written, verified: false, .. } = progress.borrow().clone() else { panic!() };
        assert_eq!(written, size, "all of it is written, and nothing is known of it");
        let mut body = Box::pin(follow(file, progress, 0, size, size));
        let mut got = Vec::new();
        while (got.len() as u64) < size - 1 {
            got.extend(body.next().await.unwrap().unwrap());
        }
        assert_eq!(body.next().now_or_never().map(|_| ()), None, "the last byte has to wait");
        // There is a directory in place of the blob.
        let blob = data.path().join("blobs").join("sha256").join(digest.shard()).join(digest.hex());
        std::fs::create_dir_all(blob.join("not empty")).unwrap();
        assert!(upload.publish().await.is_err());
        got.extend(body.next().await.unwrap().unwrap());
        assert!(got == content && body.next().await.is_none());
    }
}
