//! Bodies from files, in chunks small enough that a client that does not read costs little.

use std::fs::File;
use std::io;
use std::ops::Range;
use std::sync::Arc;

use axum::body::Body;
use bytes::Bytes;
use futures_util::stream::{self, Stream};
use tokio::sync::watch;

use crate::ports::Progress;
use crate::values::file::{read, read_at_once};

/// How much is read at once. The program holds one of these for each answer: a client that reads slowly costs no more.
const CHUNK: u64 = 24 * 1024;
/// How much of a file is read at once in order to have it in memory, and where that shows: twice what the kernel reads ahead.
const READ_AHEAD: u64 = 256 * 1024;

/// A part of a blob, in a file that is complete or that a fill is still writing. It is also an extension of its answer, for
/// programs that can send a file without reading it.
#[derive(Clone, Debug)]
pub struct FilePart {
    file: Arc<File>,
    next: u64,
    end: u64,
    /// How far the fill is, and how many bytes the blob has.
    growth: Option<(watch::Receiver<Progress>, u64)>,
}

impl FilePart {
    /// Of a file that is complete.
    pub fn stored(file: Arc<File>, part: Range<u64>) -> Self {
        Self { file, next: part.start, end: part.end, growth: None }
    }

    /// Of a file that a fill of `size` bytes is still writing. The blob's last byte is sent only once the fill has verified
    /// the whole, so a client never takes wrong bytes for complete ones; a fill that fails breaks the answer off. A client
    /// need not wait until the bytes would survive a crash: that costs another fill and nothing else.
    pub fn growing(file: Arc<File>, part: Range<u64>, progress: watch::Receiver<Progress>, size: u64) -> Self {
        Self { growth: Some((progress, size)), ..Self::stored(file, part) }
    }

    /// The file.
    pub fn file(&self) -> &Arc<File> {
        &self.file
    }

    /// Waits until the next bytes may be sent, and takes them off the part: where they are in the file, `most` at most. An
    /// empty range is the end.
    async fn take(&mut self, most: u64) -> io::Result<Range<u64>> {
        let (first, end) = (self.next, self.end);
        let mut available = end;
        if let Some((progress, size)) = self.growth.as_mut().filter(|_| first < end) {
            loop {
                available = match &*progress.borrow_and_update() {
                    Progress::Stored | Progress::Growing { verified: true, .. } => end,
                    Progress::Growing { written, .. } => end.min(*written).min(*size - 1),
                    Progress::Waiting => 0,
                    Progress::Failed(error) => return Err(io::Error::other(error.to_string())),
                };
                if available > first {
                    break;
                }
                progress.changed().await.map_err(|_| io::Error::other("the fill was stopped"))?;
            }
        }
        self.next = available.min(first + most);
        Ok(first..self.next)
    }

    /// Waits until the next bytes may be sent, and takes those off the part that the kernel has in memory, as far as that
    /// shows: to send them keeps no other task waiting for the disk. If it has none, it reads some first. The range says
    /// where they are in the file, `most` at most; an empty one is the end.
    pub async fn take_loaded(&mut self, most: u64) -> io::Result<Range<u64>> {
        let Range { start, end } = self.take(most).await?;
        let is_loaded = |at: u64| read_at_once(&self.file, at, 1).is_some();
        let mut loaded = start;
        while loaded < end {
            let next = end.min(loaded + READ_AHEAD);
            if !is_loaded(loaded) || !is_loaded(next - 1) {
                break;
            }
            loaded = next;
        }
        if loaded == start && start < end {
            loaded = end.min(start + READ_AHEAD);
            read(&self.file, &(start..loaded)).await?;
        }
        self.next = loaded;
        Ok(start..loaded)
    }

    /// The body that reads this part, in chunks. The part goes into the extensions of its answer, unless it is so small that
    /// it is in memory already.
    pub(super) fn into_body(self, extensions: &mut http::Extensions) -> Body {
        // One chunk needs no stream: the server writes it with the headers.
        if self.growth.is_none()
            && self.end - self.next <= CHUNK
            && let Some(bytes) = read_at_once(&self.file, self.next, self.end - self.next)
        {
            return bytes.into();
        }
        extensions.insert(self.clone());
        Body::from_stream(self.chunks())
    }

    fn chunks(self) -> impl Stream<Item = io::Result<Bytes>> {
        stream::try_unfold(self, |mut part| async move {
            let bytes = part.take(CHUNK).await?;
            if bytes.is_empty() { Ok(None) } else { Ok(Some((read(&part.file, &bytes).await?, part))) }
        })
    }
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
        let mut body = Box::pin(FilePart::growing(file, 0..size, progress, size).chunks());
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
