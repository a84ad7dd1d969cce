//! Blobs as files.

use std::collections::HashSet;
use std::fs::{self, File};
use std::io;
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context as _;
use async_trait::async_trait;
use bytes::Bytes;
use futures_util::FutureExt as _;
use futures_util::future::BoxFuture;
use futures_util::stream::{self, BoxStream, StreamExt as _, TryStreamExt as _};
use quick_cache::sync::Cache as MemoryCache;
use tokio::sync::watch;

use crate::errors::{Failure, StoreError};
use crate::oci::{Algorithm, Digest};
use crate::ports::{Blobs, Location, Progress, Result, StoredBlob, Upload};
use crate::values::file::{open_at_once, read};

/// How much is handed to the file system at once: the blocking pool is visited a few times a megabyte, not a hundred.
const WRITE_BYTES: u64 = 512 * 1024;
/// How many pieces are handed over at once, however small they are.
const WRITE_PIECES: usize = 1024;
/// Checkpoints lie at multiples of this: a stop loses no more.
const UNIT_BYTES: u64 = 1024 * 1024;
/// Free space that blobs and manifests leave alone, so that small records can always be written: this many bytes, or a
/// hundredth of a small disk.
const RESERVE_BYTES: u64 = 64 * 1024 * 1024;

/// How many small blobs are kept in memory, each with its file open.
pub const KEPT_OPEN: usize = 128;
/// How many bytes a small blob has at most.
const SMALL_BYTES: u64 = 64 * 1024;

/// Blobs as files below one directory, each published by a rename.
#[derive(Clone)]
pub struct Files {
    published: PathBuf,
    unpublished: PathBuf,
    /// Small blobs that were sent lately: to open and to close a file takes a seventh of the time of a hit, and to read it costs
    /// another call.
    small: Arc<MemoryCache<Digest, Small>>,
}

/// A blob that is in memory as a whole.
#[derive(Clone)]
struct Small {
    content: Bytes,
    /// Says whether it was removed meanwhile.
    file: Arc<File>,
}

impl Files {
    /// Opens or creates the store below `data`.
    pub fn open(data: &Path) -> anyhow::Result<Self> {
        let (published, unpublished) = (data.join("blobs"), data.join("unpublished"));
        let files = Self { published, unpublished, small: Arc::new(MemoryCache::new(KEPT_OPEN)) };
        let prepare = || -> io::Result<()> {
            fs::create_dir_all(&files.unpublished)?;
            fs::create_dir_all(&files.published)?;
            sync_directory(data)
        };
        prepare().with_context(|| format!("cannot prepare the blob directories in {}", data.display()))?;
        Ok(files)
    }

    fn path(&self, digest: &Digest) -> PathBuf {
        self.published.join([digest.algorithm().name(), "/", digest.shard(), "/", digest.hex()].concat())
    }

    /// fsync, rename, fsync of the directory: after a crash the whole blob is there or none of it.
    fn publish(&self, file: &File, unpublished: &Path, digest: &Digest) -> io::Result<()> {
        file.sync_all()?;
        let path = self.path(digest);
        let directory = path.parent().unwrap_or(&self.published);
        if !directory.is_dir() {
            fs::create_dir_all(directory)?;
            sync_directory(&self.published)?;
            directory.parent().map_or(Ok(()), sync_directory)?;
        }
        fs::rename(unpublished, &path)?;
        sync_directory(directory)
    }
}

/// Refuses what would take of the reserve of the disk that `path` is on.
pub(super) fn check_space(path: &Path, size: u64) -> Result<()> {
    let space = rustix::fs::statvfs(path).map_err(|error| refused(error.into()))?;
    let free = space.f_bavail.saturating_mul(space.f_frsize);
    let reserve = RESERVE_BYTES.min(space.f_blocks.saturating_mul(space.f_frsize) / 100);
    if free < size.saturating_add(reserve) {
        let path = path.display();
        return Err(StoreError::Refused(
            format!(
                "the disk of {path} is full: {free} bytes are free, {size} are needed and {reserve} kept in reserve"
            )
            .into(),
        ));
    }
    Ok(())
}

pub(super) fn sync_directory(path: &Path) -> io::Result<()> {
    File::open(path)?.sync_all()
}

fn refused(error: io::Error) -> StoreError {
    match error.kind() {
        io::ErrorKind::Interrupted | io::ErrorKind::TimedOut | io::ErrorKind::WouldBlock => {
            StoreError::Unavailable(Failure::because("a file", error))
        }
        _ => StoreError::Refused(Failure::because("a file", error)),
    }
}

async fn blocking<T: Send + 'static>(work: impl FnOnce() -> io::Result<T> + Send + 'static) -> Result<T> {
    match tokio::task::spawn_blocking(work).await {
        Ok(outcome) => outcome.map_err(refused),
        Err(error) => Err(StoreError::Unavailable(Failure::because("the work on a file", error))),
    }
}

pub(super) fn absent<T>(outcome: io::Result<T>) -> io::Result<Option<T>> {
    match outcome {
        Ok(found) => Ok(Some(found)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error),
    }
}

#[async_trait]
impl Blobs for Files {
    async fn size(&self, digest: &Digest) -> Result<Option<u64>> {
        let path = self.path(digest);
        blocking(move || Ok(absent(fs::metadata(path))?.map(|metadata| metadata.len()))).await
    }

    async fn has(&self, digest: &Digest, size: u64) -> Result<bool> {
        Ok(self.size(digest).await? == Some(size))
    }

    async fn locate(&self, digest: &Digest, size: u64) -> Result<Option<Location>> {
        // The kernel has the metadata in memory as long as the file is open.
        if let Some(Small { content, file }) = self.small.get(digest)
            // 1.05 times as many hits as with `File::metadata`, which asks for more.
            && content.len() as u64 == size
            && rustix::fs::fstat(&file).map_err(|error| refused(error.into()))?.st_nlink > 0
        {
            return Ok(Some(Location::Memory(content)));
        }
        let path = self.path(digest);
        let found = match open_at_once(&path) {
            Some(file) => Some(file),
            None => blocking(move || absent(File::open(path))).await?,
        };
        let Some(file) = found.map(Arc::new) else { return Ok(None) };
        // A file system that was damaged may have kept the beginning of a file only.
        if file.metadata().map_err(refused)?.len() != size {
            return Ok(None);
        }
        if size > SMALL_BYTES {
            return Ok(Some(Location::File(file)));
        }
        let content = read(&file, &(0..size)).await.map_err(refused)?;
        self.small.insert(digest.clone(), Small { content: content.clone(), file });
        Ok(Some(Location::Memory(content)))
    }

    async fn check_room(&self) -> Result<()> {
        check_space(&self.unpublished, 0)
    }

    async fn begin(&self, digest: &Digest, size: u64, progress: &watch::Sender<Progress>) -> Result<Box<dyn Upload>> {
        check_space(&self.unpublished, size)?;
        let name = format!("{}.{:08x}", digest.hex(), fastrand::u32(..));
        let path = self.unpublished.join(&name);
        let open = move || File::options().write(true).read(true).create_new(true).open(path);
        let file = blocking(open).await?;
        Ok(Box::new(Unpublished::new(self, (digest, size), (name, file, 0), progress)))
    }

    async fn resume(
        &self,
        digest: &Digest,
        size: u64,
        offset: u64,
        upload: &str,
        progress: &watch::Sender<Progress>,
    ) -> Result<Option<Box<dyn Upload>>> {
        // Only a file in our directory is opened, and only one of this blob.
        let ours = upload.strip_prefix(digest.hex()).is_some_and(|rest| !rest.contains('/'));
        if !ours || !offset.is_multiple_of(UNIT_BYTES) {
            return Ok(None);
        }
        let path = self.unpublished.join(upload);
        if let Err(error) = check_space(&self.unpublished, size.saturating_sub(offset)) {
            // A full disk is not kept full.
            blocking(move || absent(fs::remove_file(path))).await?;
            return Err(error);
        }
        let open = move || {
            let Some(file) = absent(File::options().write(true).read(true).open(path))? else { return Ok(None) };
            if file.metadata()?.len() < offset {
                return Ok(None);
            }
            file.set_len(offset)?;
            Ok(Some(file))
        };
        let file = blocking(open).await?;
        Ok(file.map(|file| {
            let opened = (upload.to_owned(), file, offset);
            Box::new(Unpublished::new(self, (digest, size), opened, progress)) as Box<dyn Upload>
        }))
    }

    async fn abandon(&self, known: &HashSet<String>, idle: Duration) -> Result<usize> {
        let (directory, known) = (self.unpublished.clone(), known.clone());
        let remove = move || {
            let mut removed = 0;
            for entry in fs::read_dir(directory)? {
                let entry = entry?;
                // A file that was published meanwhile is not there.
                let Some(metadata) = absent(entry.metadata())? else { continue };
                let old = metadata.modified()?.elapsed().unwrap_or_default() >= idle;
                if old && !entry.file_name().to_str().is_some_and(|name| known.contains(name)) {
                    removed += usize::from(absent(fs::remove_file(entry.path()))?.is_some());
                }
            }
            Ok(removed)
        };
        blocking(remove).await
    }

    /// Lists one directory of hexadecimal digits at a time.
    fn list(&self) -> BoxStream<'_, Result<StoredBlob>> {
        let directories = [Algorithm::Sha256, Algorithm::Sha512].into_iter().flat_map(|algorithm| {
            let parent = self.published.join(algorithm.name());
            (0..=u8::MAX).map(move |first| (algorithm, parent.join(format!("{first:02x}"))))
        });
        let list = |(algorithm, directory): (Algorithm, PathBuf)| async move {
            Ok(stream::iter(blocking(move || list(algorithm, &directory)).await?).map(Ok))
        };
        stream::iter(directories).then(list).try_flatten().boxed()
    }

    async fn remove(&self, digest: &Digest) -> Result<()> {
        let path = self.path(digest);
        let remove = move || {
            let removed = absent(fs::remove_file(&path))?;
            removed.and(path.parent()).map_or(Ok(()), sync_directory)
        };
        blocking(remove).await
    }
}

/// A file that grows. Only one fill at a time writes it, because only one process owns the directory.
struct Unpublished {
    files: Files,
    digest: Digest,
    size: u64,
    /// Its name in the directory.
    name: String,
    file: Arc<File>,
    /// How many bytes are in it.
    written: u64,
    progress: watch::Sender<Progress>,
    /// Bytes that are not in the file yet.
    pending: Vec<Bytes>,
    pending_bytes: u64,
}

impl Unpublished {
    fn new(
        files: &Files,
        (digest, size): (&Digest, u64),
        (name, file, written): (String, File, u64),
        progress: &watch::Sender<Progress>,
    ) -> Self {
        let (files, digest, file, progress) = (files.clone(), digest.clone(), Arc::new(file), progress.clone());
        let (pending, pending_bytes) = (Vec::new(), 0);
        let this = Self { files, digest, size, name, file, written, progress, pending, pending_bytes };
        if written > 0 {
            this.tell(false);
        }
        this
    }

    fn tell(&self, verified: bool) {
        let (file, written, size) = (Arc::clone(&self.file), self.written, self.size);
        self.progress.send_replace(Progress::Growing { file, written, size, verified });
    }

    async fn flush(&mut self) -> Result<()> {
        let (file, chunks, mut at) = (Arc::clone(&self.file), std::mem::take(&mut self.pending), self.written);
        let write = move || {
            for chunk in chunks {
                file.write_all_at(&chunk, at)?;
                at += chunk.len() as u64;
            }
            Ok(())
        };
        blocking(write).await?;
        self.written += std::mem::take(&mut self.pending_bytes);
        self.tell(false);
        Ok(())
    }
}

#[async_trait]
impl Upload for Unpublished {
    fn unit(&self) -> u64 {
        UNIT_BYTES
    }

    async fn write(&mut self, bytes: Bytes) -> Result<()> {
        self.pending_bytes += bytes.len() as u64;
        self.pending.push(bytes);
        let end = self.written + self.pending_bytes;
        // A follower waits for the first bytes, so they are written at once; a checkpoint needs all before it in the
        // file.
        let enough = self.pending_bytes >= WRITE_BYTES || self.pending.len() >= WRITE_PIECES;
        if self.written == 0 || enough || end.is_multiple_of(UNIT_BYTES) {
            self.flush().await?;
        }
        Ok(())
    }

    fn arrived(&self) -> u64 {
        self.written
    }

    fn checkpoint(&mut self, _: u64) -> BoxFuture<'static, Result<String>> {
        let (file, name) = (Arc::clone(&self.file), self.name.clone());
        async move { blocking(move || file.sync_data()).await.map(|()| name) }.boxed()
    }

    async fn publish(&mut self) -> Result<()> {
        self.flush().await?;
        // Clients that follow need not wait for the disk.
        self.tell(true);
        let (files, file, digest) = (self.files.clone(), Arc::clone(&self.file), self.digest.clone());
        let unpublished = files.unpublished.join(&self.name);
        blocking(move || files.publish(&file, &unpublished, &digest)).await
    }

    async fn discard(self: Box<Self>) {
        let path = self.files.unpublished.join(&self.name);
        if let Err(error) = blocking(move || fs::remove_file(path)).await {
            tracing::warn!(blob.digest = %self.digest, %error, "the next start has to remove an unfinished file");
        }
    }
}

/// The blobs in one directory. Files of other names are not ours.
fn list(algorithm: Algorithm, directory: &Path) -> io::Result<Vec<StoredBlob>> {
    let mut blobs = Vec::new();
    for entry in absent(fs::read_dir(directory))?.into_iter().flatten() {
        let entry = entry?;
        let Ok(digest) = format!("{}:{}", algorithm.name(), entry.file_name().to_string_lossy()).parse() else {
            continue;
        };
        // A blob that was removed meanwhile is not there.
        if let Some(metadata) = absent(entry.metadata())? {
            let modified = metadata.modified()?.into();
            blobs.push(StoredBlob { digest, size: metadata.len(), modified });
        }
    }
    Ok(blobs)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_blob_is_nowhere_once_it_is_removed_even_behind_our_back() {
        let data = tempfile::tempdir().unwrap();
        let files = Files::open(data.path()).unwrap();
        for length in [300, 200_000] {
            for behind_our_back in [false, true] {
                let content = vec![7; length];
                let digest = Digest::of(Algorithm::Sha256, &content);
                let (told, _) = watch::channel(Progress::Waiting);
                let mut upload = files.begin(&digest, length as u64, &told).await.unwrap();
                upload.write(content.clone().into()).await.unwrap();
                upload.publish().await.unwrap();
                for _ in 0..2 {
                    match files.locate(&digest, length as u64).await.unwrap().unwrap() {
                        Location::Memory(bytes) => assert!(bytes == content && length == 300),
                        Location::File(file) => assert!(file.metadata().unwrap().len() == 200_000 && length == 200_000),
                        Location::Url(_) => panic!(),
                    }
                }
                if behind_our_back {
                    fs::remove_file(files.path(&digest)).unwrap();
                } else {
                    files.remove(&digest).await.unwrap();
                }
                assert!(files.locate(&digest, length as u64).await.unwrap().is_none(), "{length} {behind_our_back}");
            }
        }
    }
}
