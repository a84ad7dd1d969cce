//! The adapters under test, and what the clauses put into them.

use std::io::{Read as _, Seek as _};
use std::path::Path;
use std::pin::Pin;
use std::sync::Arc;

use anyhow::{Context as _, Result, ensure};
use aws::{DynamoLedger, S3Blobs};
use bytes::Bytes;
use futures_util::{Stream, StreamExt as _, stream};
use stopover::errors::{FillError, StoreError};
use stopover::local::{EmbeddedLedger, Files};
use stopover::oci::{Algorithm, Digest, Manifest, MediaType, Repository};
use stopover::ports::{Blobs, Ledger, Location, Progress, Upload};
use stopover::values::time::Timestamp;
use support::Random;
use support::aws::Endpoints;
use tempfile::TempDir;
use tokio::sync::watch;

/// When things are stored.
pub(crate) const NOW: Timestamp = Timestamp(1_800_000_000);

/// A blob store and a ledger that nobody else uses.
pub(crate) struct Storage {
    pub(crate) blobs: Arc<dyn Blobs>,
    pub(crate) ledger: Arc<dyn Ledger>,
    place: Place,
}

enum Place {
    Directory(TempDir),
    Aws(Box<Endpoints>),
}

impl Storage {
    /// The embedded adapters in a directory of their own.
    pub(crate) fn embedded() -> Result<Self> {
        let data = TempDir::new()?;
        let blobs = Arc::new(Files::open(data.path())?);
        let ledger = Arc::new(EmbeddedLedger::open(&data.path().join("ledger.redb"))?);
        Ok(Self { blobs, ledger, place: Place::Directory(data) })
    }

    /// The AWS adapters on services of their own.
    pub(crate) async fn aws() -> Result<Self> {
        let endpoints = Endpoints::start().await?;
        let config = endpoints.sdk_config();
        let blobs = S3Blobs::new(aws::s3_client(&config), endpoints.bucket());
        let ledger = DynamoLedger::new(aws::dynamo_client(&config), endpoints.table(), blobs.clone());
        Ok(Self { blobs: Arc::new(blobs), ledger: Arc::new(ledger), place: Place::Aws(Box::new(endpoints)) })
    }

    /// Whether a manifest is in the ledger however large it is.
    pub(crate) fn is_embedded(&self) -> bool {
        matches!(self.place, Place::Directory(_))
    }

    /// The services behind the AWS adapters.
    pub(crate) fn endpoints(&self) -> &Endpoints {
        match &self.place {
            Place::Aws(endpoints) => endpoints,
            Place::Directory(_) => panic!("the embedded adapters have no services"),
        }
    }

    /// Stores `content` in pieces of 100,000 bytes, as a network would bring it.
    pub(crate) async fn store(&self, digest: &Digest, content: &Bytes) -> Result<(), FillError> {
        self.store_body(digest, content.len(), body(content, None)).await
    }

    /// Stores what `body` brings, as a blob of `size` bytes.
    pub(crate) async fn store_body(&self, digest: &Digest, size: usize, mut body: Body) -> Result<(), FillError> {
        let mut upload = self.blobs.begin(digest, size as u64, &watch::Sender::new(Progress::Waiting)).await?;
        let mut written = 0;
        let stored = async {
            loop {
                upload.room().await?;
                let Some(bytes) = body.next().await else { break };
                write(&mut *upload, &mut written, bytes?).await?;
            }
            Ok(upload.publish().await?)
        };
        let stored = stored.await;
        if stored.is_err() {
            upload.discard().await;
        }
        stored
    }

    /// The bytes of a stored blob as a client gets them.
    pub(crate) async fn download(&self, digest: &Digest) -> Result<Bytes> {
        let size = self.blobs.size(digest).await?.context("the blob is nowhere")?;
        match self.blobs.locate(digest, size).await?.context("the blob is nowhere")? {
            Location::Url(url) => {
                let answer = support::http().get(url.expose().clone()).send().await?;
                Ok(answer.error_for_status()?.bytes().await?)
            }
            Location::Memory(content) => Ok(content),
            Location::File(file) => {
                let mut file = file.try_clone()?;
                let mut content = Vec::new();
                file.rewind()?;
                file.read_to_end(&mut content)?;
                ensure!(content.len() as u64 == size, "{} bytes in a file of {size}", content.len());
                Ok(content.into())
            }
        }
    }

    /// How many blobs are visible, and how many are on their way or left half-way.
    pub(crate) fn blobs_and_uploads(&self) -> Result<usize> {
        match &self.place {
            Place::Directory(data) => Ok(files(&data.path().join("blobs"))? + files(&data.path().join("unpublished"))?),
            Place::Aws(endpoints) => Ok(endpoints.objects().len() + endpoints.multipart_uploads()),
        }
    }

    /// Whether no byte of any blob is anywhere, visible or not.
    pub(crate) fn is_empty(&self) -> Result<bool> {
        let hidden = match &self.place {
            Place::Directory(_) => 0,
            Place::Aws(endpoints) => endpoints.stored_files()?,
        };
        Ok(hidden + self.blobs_and_uploads()? == 0)
    }
}

/// Writes bytes as the core does: in pieces that do not cross a multiple of the upload's unit.
pub(crate) async fn write(upload: &mut dyn Upload, written: &mut u64, mut bytes: Bytes) -> Result<(), StoreError> {
    while !bytes.is_empty() {
        let room = usize::try_from(upload.unit() - *written % upload.unit()).unwrap_or(usize::MAX);
        let piece = bytes.split_to(bytes.len().min(room));
        *written += piece.len() as u64;
        upload.room().await?;
        upload.write(piece).await?;
    }
    Ok(())
}

/// The bytes of a blob on their way into storage. An item that is an error ends it.
pub(crate) type Body = Pin<Box<dyn Stream<Item = Result<Bytes, FillError>> + Send>>;

fn files(directory: &Path) -> Result<usize> {
    let mut count = 0;
    for entry in std::fs::read_dir(directory)? {
        let entry = entry?;
        count += if entry.file_type()?.is_dir() { files(&entry.path())? } else { 1 };
    }
    Ok(count)
}

/// `content` in pieces, and at its end the error that is given.
pub(crate) fn body(content: &Bytes, error: Option<FillError>) -> Body {
    Box::pin(stream::iter(pieces(content).into_iter().map(Ok).chain(error.map(Err))))
}

/// `content` in pieces that fit no power of two.
pub(crate) fn pieces(content: &Bytes) -> Vec<Bytes> {
    (0..content.len()).step_by(100_000).map(|from| content.slice(from..content.len().min(from + 100_000))).collect()
}

/// `size` bytes that do not repeat, and their digest.
pub(crate) fn blob(size: usize) -> (Digest, Bytes) {
    let mut random = Random::new(size as u64);
    let mut content = Vec::with_capacity(size + 8);
    while content.len() < size {
        content.extend_from_slice(&random.number().to_le_bytes());
    }
    content.truncate(size);
    (Digest::of(Algorithm::Sha256, &content), content.into())
}

/// The digest of a text.
pub(crate) fn digest(text: &str) -> Digest {
    Digest::of(Algorithm::Sha256, text.as_bytes())
}

/// A repository at a test's upstream.
pub(crate) fn repository(name: &str) -> Result<Repository> {
    Ok(Repository { upstream: "upstream.test".parse()?, name: name.parse()? })
}

/// An index of about `size` bytes. Its bytes are what no serialiser would write.
pub(crate) fn manifest(size: usize) -> Manifest {
    let padding = " ".repeat(size.saturating_sub(60));
    let bytes = Bytes::from(format!("{{ \"manifests\" :[ ],\t\"note\":\"\u{e9}\\u00e9/\\/\"\r\n{padding}}}\n"));
    Manifest { digest: Digest::of(Algorithm::Sha256, &bytes), media_type: MediaType::OciIndex, bytes }
}
