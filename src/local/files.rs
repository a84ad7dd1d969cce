//! Blobs as files.

use std::fs::{self, File};
use std::io::{self, Write as _};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::SystemTime;

use anyhow::Context as _;
use async_trait::async_trait;
use bytes::Bytes;
use futures_util::stream::{self, BoxStream, StreamExt as _, TryStreamExt as _};
use tempfile::NamedTempFile;
use tokio::sync::watch;

use crate::fill::FillError;
use crate::oci::{Algorithm, Digest};
use crate::ports::{Blobs, Body, Location, Progress, StoreError, StoredBlob};
use crate::time::Timestamp;

/// How much is handed to the file system at once: the blocking pool is visited a few times a megabyte, not a hundred.
const WRITE_BYTES: usize = 512 * 1024;
/// Free space that fills leave alone, so that the ledger can always be written: this much, or a hundredth of a small disk.
const RESERVE_BYTES: u64 = 64 * 1024 * 1024;

/// Blobs as files below one directory, each published by a rename.
#[derive(Clone)]
pub struct Files {
    published: PathBuf,
    unpublished: PathBuf,
}

impl Files {
    /// Opens or creates the store below `data`, and throws away what was on its way when a process died.
    pub fn open(data: &Path) -> anyhow::Result<Self> {
        let files = Self { published: data.join("blobs"), unpublished: data.join("unpublished") };
        let prepare = || -> io::Result<()> {
            match fs::remove_dir_all(&files.unpublished) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
                _ => {}
            }
            fs::create_dir_all(&files.unpublished)?;
            fs::create_dir_all(&files.published)?;
            sync_directory(data)
        };
        prepare().with_context(|| format!("cannot prepare the blob directories in {}", data.display()))?;
        Ok(files)
    }

    fn path(&self, digest: &Digest) -> PathBuf {
        let hex = digest.hex();
        self.published.join(digest.algorithm().name()).join(&hex[..2]).join(hex)
    }

    fn begin(&self, size: u64) -> Result<NamedTempFile, StoreError> {
        self.check_space(size)?;
        NamedTempFile::new_in(&self.unpublished).map_err(refused)
    }

    fn check_space(&self, size: u64) -> Result<(), StoreError> {
        let space = rustix::fs::statvfs(&self.unpublished).map_err(|error| refused(error.into()))?;
        let free = space.f_bavail.saturating_mul(space.f_frsize);
        let reserve = RESERVE_BYTES.min(space.f_blocks.saturating_mul(space.f_frsize) / 100);
        if free < size.saturating_add(reserve) {
            return Err(StoreError::Refused(format!(
                "the disk of {} is full: {free} bytes are free, the blob needs {size} and {reserve} are kept in reserve",
                self.published.display()
            )));
        }
        Ok(())
    }

    /// fsync, rename, fsync of the directory: after a crash the whole blob is there or none of it.
    fn publish(&self, file: NamedTempFile, digest: &Digest) -> io::Result<()> {
        file.as_file().sync_all()?;
        let path = self.path(digest);
        let directory = path.parent().unwrap_or(&self.published);
        if !directory.is_dir() {
            fs::create_dir_all(directory)?;
            sync_directory(&self.published)?;
            directory.parent().map_or(Ok(()), sync_directory)?;
        }
        file.persist(&path).map_err(|error| error.error)?;
        sync_directory(directory)
    }
}

fn sync_directory(path: &Path) -> io::Result<()> {
    File::open(path)?.sync_all()
}

#[expect(clippy::needless_pass_by_value, reason = "it stands in map_err")]
fn refused(error: io::Error) -> StoreError {
    match error.kind() {
        io::ErrorKind::Interrupted | io::ErrorKind::TimedOut | io::ErrorKind::WouldBlock => {
            StoreError::Unavailable(error.to_string())
        }
        _ => StoreError::Refused(error.to_string()),
    }
}

async fn blocking<T: Send + 'static>(work: impl FnOnce() -> io::Result<T> + Send + 'static) -> Result<T, StoreError> {
    match tokio::task::spawn_blocking(work).await {
        Ok(outcome) => outcome.map_err(refused),
        Err(error) => Err(StoreError::Unavailable(error.to_string())),
    }
}

fn absent<T>(outcome: io::Result<T>) -> io::Result<Option<T>> {
    match outcome {
        Ok(found) => Ok(Some(found)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error),
    }
}

#[async_trait]
impl Blobs for Files {
    async fn size(&self, digest: &Digest) -> Result<Option<u64>, StoreError> {
        let path = self.path(digest);
        blocking(move || Ok(absent(fs::metadata(path))?.map(|metadata| metadata.len()))).await
    }

    async fn locate(&self, digest: &Digest) -> Result<Option<Location>, StoreError> {
        let path = self.path(digest);
        let open = move || {
            let Some(file) = absent(File::open(path))? else {
                return Ok(None);
            };
            let size = file.metadata()?.len();
            Ok(Some(Location::File(Arc::new(file), size)))
        };
        blocking(open).await
    }

    async fn store(
        &self,
        digest: &Digest,
        size: u64,
        mut body: Body,
        progress: &watch::Sender<Progress>,
    ) -> Result<(), FillError> {
        let mut file = self.begin(size)?;
        let reader = Arc::new(file.reopen().map_err(refused)?);
        let mut written = 0;
        let mut pending: Vec<Bytes> = Vec::new();
        let mut pending_bytes = 0;
        loop {
            let chunk = body.next().await.transpose()?;
            let ended = chunk.is_none();
            if let Some(chunk) = chunk {
                pending_bytes += chunk.len();
                pending.push(chunk);
            }
            // A follower waits for the first bytes, so they are written at once.
            if pending_bytes >= WRITE_BYTES || written == 0 || ended {
                let chunks = std::mem::take(&mut pending);
                let write = move || {
                    chunks.iter().try_for_each(|chunk| file.write_all(chunk))?;
                    Ok(file)
                };
                file = blocking(write).await?;
                written += pending_bytes as u64;
                pending_bytes = 0;
                progress.send_replace(Progress::Growing { file: Arc::clone(&reader), written, size });
            }
            if ended {
                break;
            }
        }
        let (files, digest) = (self.clone(), digest.clone());
        Ok(blocking(move || files.publish(file, &digest)).await?)
    }

    /// One directory of hexadecimal digits at a time.
    fn list(&self) -> BoxStream<'_, Result<StoredBlob, StoreError>> {
        let directories = [Algorithm::Sha256, Algorithm::Sha512].into_iter().flat_map(|algorithm| {
            let parent = self.published.join(algorithm.name());
            (0..=u8::MAX).map(move |first| (algorithm, parent.join(format!("{first:02x}"))))
        });
        let list = |(algorithm, directory): (Algorithm, PathBuf)| async move {
            Ok(stream::iter(blocking(move || list(algorithm, &directory)).await?).map(Ok))
        };
        stream::iter(directories).then(list).try_flatten().boxed()
    }

    async fn remove(&self, digest: &Digest) -> Result<(), StoreError> {
        let path = self.path(digest);
        let remove = move || {
            let removed = absent(fs::remove_file(&path))?;
            removed.and(path.parent()).map_or(Ok(()), sync_directory)
        };
        blocking(remove).await
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
        // One that was removed meanwhile is not there.
        if let Some(metadata) = absent(entry.metadata())? {
            let modified = metadata.modified()?.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
            blobs.push(StoredBlob { digest, size: metadata.len(), modified: Timestamp(modified.as_secs()) });
        }
    }
    Ok(blobs)
}
