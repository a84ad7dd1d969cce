//! The ledger in one redb file.
//!
//! One table maps a key to a value that begins with its version. Reads are snapshots and take microseconds. Writes go to
//! one thread, which puts all that wait into one commit: an fsync takes milliseconds however much it covers.

use std::collections::HashSet;
use std::path::{Path, PathBuf};
use std::sync::{Arc, PoisonError, RwLock, mpsc};
use std::thread::{self, JoinHandle};

use anyhow::Context as _;
use async_trait::async_trait;
use bytes::Bytes;
use redb::{Database, ReadableDatabase as _, ReadableTable as _, TableDefinition};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use tokio::sync::oneshot;

use crate::gauge::Gauge;
use crate::oci::{Descriptor, Digest, Manifest, Reference, Repository};
use crate::ports::{
    BlobRecord, BlobState, BlobView, GaugeKey, ImageJob, Job, Ledger, StoreError, TagRecord, Versioned,
};
use crate::time::Timestamp;

const ITEMS: TableDefinition<&str, &[u8]> = TableDefinition::new("items");
const VERSION_BYTES: usize = 8;
/// Pages kept in memory; the operating system keeps the rest.
const MEMORY_BYTES: usize = 8 * 1024 * 1024;
/// How many writes one commit takes at the most.
const GROUP: usize = 256;

const BLOB: &str = "blob ";
const FILL: &str = "fill ";
const IMAGE: &str = "image ";

fn reference_key(repository: &Repository, reference: &Reference) -> String {
    format!("reference {repository} {reference}")
}

fn absent_key(repository: &Repository) -> String {
    format!("absent {repository}")
}

fn manifest_key(repository: &Repository, digest: &Digest) -> String {
    format!("manifest {repository} {digest}")
}

fn member_key(repository: &Repository, digest: &Digest) -> String {
    format!("member {repository} {digest}")
}

fn blob_key(digest: &Digest) -> String {
    format!("{BLOB}{digest}")
}

fn fill_key(digest: &Digest) -> String {
    format!("{FILL}{digest}")
}

pub(super) fn image_key(image: &ImageJob) -> String {
    format!("{IMAGE}{} {}", image.repository, image.reference)
}

/// A requested fill as it is written down.
#[derive(Serialize, Deserialize)]
pub(super) struct WrittenFill {
    #[serde(flatten)]
    pub(super) job: Job,
    /// Why it is not tried again unless somebody asks.
    #[serde(default)]
    pub(super) given_up: Option<String>,
}

impl From<Job> for WrittenFill {
    /// A fill that is to be run.
    fn from(job: Job) -> Self {
        Self { job, given_up: None }
    }
}

/// The embedded ledger.
pub struct EmbeddedLedger {
    store: Arc<Store>,
    /// `Some` until the ledger is dropped.
    writer: Option<(mpsc::Sender<Write>, JoinHandle<()>)>,
}

/// The database file. After an I/O error (a full disk) redb wants it closed and opened again.
struct Store {
    path: PathBuf,
    database: RwLock<Option<Database>>,
}

impl Store {
    fn open(path: &Path) -> Result<Database, redb::Error> {
        let database = Database::builder().set_cache_size(MEMORY_BYTES).create(path)?;
        let begin = database.begin_write()?;
        begin.open_table(ITEMS)?;
        begin.commit()?;
        Ok(database)
    }

    fn with<T>(&self, work: impl FnOnce(&Database) -> Result<T, redb::Error>) -> Result<T, StoreError> {
        let database = self.database.read().unwrap_or_else(PoisonError::into_inner);
        work(database.as_ref().ok_or_else(|| failed("it could not be opened again"))?).map_err(failed)
    }

    fn reopen(&self) {
        let mut database = self.database.write().unwrap_or_else(PoisonError::into_inner);
        // The old one goes first: it holds the lock of the file.
        drop(database.take());
        match Self::open(&self.path) {
            Ok(opened) => *database = Some(opened),
            Err(error) => tracing::error!(%error, "the ledger could not be opened again"),
        }
    }
}

impl Drop for EmbeddedLedger {
    /// Waits until the file is closed, so that the next one can open it.
    fn drop(&mut self) {
        if let Some((sender, thread)) = self.writer.take() {
            drop(sender);
            let _ = thread.join();
        }
    }
}

/// One acknowledged write: all of its changes or none, if the item of `expected` still has that version.
struct Write {
    expected: Option<(String, Option<u64>)>,
    changes: Vec<Change>,
    done: oneshot::Sender<Result<bool, StoreError>>,
}

enum Change {
    Put(String, Vec<u8>),
    Remove(String),
}

fn failed(error: impl std::fmt::Display) -> StoreError {
    StoreError::Unavailable(format!("ledger: {error}"))
}

fn corrupt(error: impl std::fmt::Display) -> StoreError {
    StoreError::Corrupt(format!("ledger: {error}"))
}

impl EmbeddedLedger {
    /// Opens or creates the ledger. Another process that has it open makes this fail.
    pub fn open(path: &Path) -> anyhow::Result<Self> {
        let store = Arc::new(Store { path: path.to_owned(), database: RwLock::new(Some(Store::open(path)?)) });
        let (sender, queued) = mpsc::channel();
        let target = Arc::clone(&store);
        let thread = thread::Builder::new()
            .name("ledger".into())
            .spawn(move || commit_in_groups(&target, &queued))
            .context("cannot start the ledger's thread")?;
        Ok(Self { store, writer: Some((sender, thread)) })
    }

    fn read<T>(
        &self,
        key: &str,
        decode: impl FnOnce(u64, &[u8]) -> Result<T, StoreError>,
    ) -> Result<Option<T>, StoreError> {
        let item = self.store.with(|database| {
            let table = database.begin_read()?.open_table(ITEMS)?;
            Ok(table.get(key)?.map(|item| item.value().to_vec()))
        })?;
        let Some(item) = item else { return Ok(None) };
        let (version, value) = split(&item)?;
        decode(version, value).map(Some)
    }

    fn read_json<T: DeserializeOwned>(&self, key: &str) -> Result<Option<Versioned<T>>, StoreError> {
        self.read(key, |version, value| {
            Ok(Versioned { value: serde_json::from_slice(value).map_err(corrupt)?, version })
        })
    }

    fn scan<T: DeserializeOwned>(&self, prefix: &str) -> Result<Vec<(String, Versioned<T>)>, StoreError> {
        let items = self.store.with(|database| {
            let table = database.begin_read()?.open_table(ITEMS)?;
            let mut items = Vec::new();
            for entry in table.range(prefix..)? {
                let (key, item) = entry?;
                if !key.value().starts_with(prefix) {
                    break;
                }
                items.push((key.value().to_owned(), item.value().to_vec()));
            }
            Ok(items)
        })?;
        let decode = |(key, item): (String, Vec<u8>)| {
            let (version, value) = split(&item)?;
            let value = serde_json::from_slice(value).map_err(corrupt)?;
            Ok((key, Versioned { value, version }))
        };
        items.into_iter().map(decode).collect()
    }

    /// Durable once it returns.
    async fn write(&self, expected: Option<(String, Option<u64>)>, changes: Vec<Change>) -> Result<bool, StoreError> {
        let (done, outcome) = oneshot::channel();
        let write = Write { expected, changes, done };
        let (sender, _) = self.writer.as_ref().ok_or_else(|| failed("it is closed"))?;
        sender.send(write).map_err(failed)?;
        outcome.await.map_err(failed)?
    }

    async fn swap<T: Serialize>(
        &self,
        key: String,
        expected: Option<u64>,
        value: &T,
    ) -> Result<Option<u64>, StoreError> {
        let version = expected.unwrap_or(0) + 1;
        let item = join(version, &serde_json::to_vec(value).map_err(corrupt)?);
        let written = self.write(Some((key.clone(), expected)), vec![Change::Put(key, item)]).await?;
        Ok(written.then_some(version))
    }

    /// Gives back every claim. Only for the process that has just taken the data directory.
    pub(super) async fn release_claims(&self) -> Result<(), StoreError> {
        let mut changes = Vec::new();
        for (key, Versioned { value, version }) in self.scan::<BlobRecord>(BLOB)? {
            if matches!(value.state, BlobState::Claimed { .. }) {
                let record = BlobRecord { state: BlobState::Absent, ..value };
                changes.push(Change::Put(key, join(version + 1, &serde_json::to_vec(&record).map_err(corrupt)?)));
            }
        }
        self.write(None, changes).await.map(|_| ())
    }

    /// The uploads that checkpoints speak of.
    pub(super) fn checkpoints(&self) -> Result<HashSet<String>, StoreError> {
        let records = self.scan::<BlobRecord>(BLOB)?;
        Ok(records.into_iter().filter_map(|(_, record)| record.value.checkpoint).map(|known| known.upload).collect())
    }

    /// The fills that were requested and have not ended well.
    pub(super) fn fills(&self) -> Result<Vec<WrittenFill>, StoreError> {
        Ok(self.scan::<WrittenFill>(FILL)?.into_iter().map(|(_, fill)| fill.value).collect())
    }

    /// Remembers fills as they are now.
    pub(super) async fn put_fills(&self, fills: impl IntoIterator<Item = WrittenFill>) -> Result<(), StoreError> {
        let put = |fill: WrittenFill| {
            let item = join(0, &serde_json::to_vec(&fill).map_err(corrupt)?);
            Ok(Change::Put(fill_key(&fill.job.digest), item))
        };
        self.write(None, fills.into_iter().map(put).collect::<Result<_, _>>()?).await.map(|_| ())
    }

    /// The images that were requested and have not ended.
    pub(super) fn requested_images(&self) -> Result<Vec<ImageJob>, StoreError> {
        Ok(self.scan::<ImageJob>(IMAGE)?.into_iter().map(|(_, image)| image.value).collect())
    }

    /// Remembers requested images.
    pub(super) async fn put_images(&self, images: &[ImageJob]) -> Result<(), StoreError> {
        let put =
            |image: &ImageJob| Ok(Change::Put(image_key(image), join(0, &serde_json::to_vec(image).map_err(corrupt)?)));
        self.write(None, images.iter().map(put).collect::<Result<_, _>>()?).await.map(|_| ())
    }

    /// Forgets a requested image that has ended.
    pub(super) async fn remove_image(&self, image: &ImageJob) -> Result<(), StoreError> {
        self.write(None, vec![Change::Remove(image_key(image))]).await.map(|_| ())
    }

    /// Forgets a requested fill that has ended well.
    pub(super) async fn remove_fill(&self, digest: &Digest) -> Result<(), StoreError> {
        self.write(None, vec![Change::Remove(fill_key(digest))]).await.map(|_| ())
    }
}

fn join(version: u64, value: &[u8]) -> Vec<u8> {
    [&version.to_le_bytes(), value].concat()
}

fn split(item: &[u8]) -> Result<(u64, &[u8]), StoreError> {
    let (version, value) =
        item.split_first_chunk::<VERSION_BYTES>().ok_or_else(|| corrupt("an item without version"))?;
    Ok((u64::from_le_bytes(*version), value))
}

/// The writer thread. Ends when the ledger is dropped.
fn commit_in_groups(store: &Store, writes: &mpsc::Receiver<Write>) {
    while let Ok(first) = writes.recv() {
        let group: Vec<Write> = std::iter::once(first).chain(writes.try_iter().take(GROUP - 1)).collect();
        match store.with(|database| commit(database, &group)) {
            Ok(outcomes) => {
                for (write, outcome) in group.into_iter().zip(outcomes) {
                    let _ = write.done.send(Ok(outcome));
                }
            }
            Err(error) => {
                tracing::error!(%error, "the ledger could not be written");
                store.reopen();
                for write in group {
                    let _ = write.done.send(Err(error.clone()));
                }
            }
        }
    }
}

fn commit(database: &Database, group: &[Write]) -> Result<Vec<bool>, redb::Error> {
    let transaction = database.begin_write()?;
    let mut outcomes = Vec::with_capacity(group.len());
    {
        let mut items = transaction.open_table(ITEMS)?;
        for write in group {
            let expected = match &write.expected {
                None => true,
                Some((key, expected)) => {
                    let current =
                        items.get(key.as_str())?.map(|item| split(item.value()).map_or(0, |(version, _)| version));
                    current == *expected
                }
            };
            if expected {
                for change in &write.changes {
                    match change {
                        Change::Put(key, item) => items.insert(key.as_str(), item.as_slice())?,
                        Change::Remove(key) => items.remove(key.as_str())?,
                    };
                }
            }
            outcomes.push(expected);
        }
    }
    transaction.commit()?;
    Ok(outcomes)
}

fn gauge_key(key: &GaugeKey) -> String {
    format!("gauge {} {}", key.upstream, key.credential)
}

#[async_trait]
impl Ledger for EmbeddedLedger {
    async fn gauge(&self, key: &GaugeKey) -> Result<Option<Versioned<Gauge>>, StoreError> {
        self.read_json(&gauge_key(key))
    }

    async fn swap_gauge(
        &self,
        key: &GaugeKey,
        expected: Option<u64>,
        gauge: &Gauge,
    ) -> Result<Option<u64>, StoreError> {
        self.swap(gauge_key(key), expected, gauge).await
    }

    async fn reference(
        &self,
        repository: &Repository,
        reference: &Reference,
    ) -> Result<Option<Versioned<TagRecord>>, StoreError> {
        self.read_json(&reference_key(repository, reference))
    }

    async fn swap_reference(
        &self,
        repository: &Repository,
        reference: &Reference,
        expected: Option<u64>,
        record: &TagRecord,
    ) -> Result<Option<u64>, StoreError> {
        self.swap(reference_key(repository, reference), expected, record).await
    }

    async fn absent_until(&self, repository: &Repository) -> Result<Option<Timestamp>, StoreError> {
        Ok(self.read_json(&absent_key(repository))?.map(|until| until.value))
    }

    async fn put_absent(&self, repository: &Repository, until: Timestamp) -> Result<(), StoreError> {
        let item = join(0, until.0.to_string().as_bytes());
        self.write(None, vec![Change::Put(absent_key(repository), item)]).await.map(|_| ())
    }

    async fn manifest(&self, repository: &Repository, digest: &Digest) -> Result<Option<Manifest>, StoreError> {
        self.read(&manifest_key(repository, digest), |_, value| {
            // The media type, a line feed, the bytes.
            let end = value.iter().position(|&byte| byte == b'\n').ok_or_else(|| corrupt("a manifest without type"))?;
            let media_type = std::str::from_utf8(&value[..end]).map_err(corrupt)?.parse().map_err(corrupt)?;
            Ok(Manifest { digest: digest.clone(), media_type, bytes: Bytes::copy_from_slice(&value[end + 1..]) })
        })
    }

    async fn put_manifest(
        &self,
        repository: &Repository,
        manifest: &Manifest,
        members: &[Descriptor],
    ) -> Result<(), StoreError> {
        let value = [manifest.media_type.as_str().as_bytes(), b"\n", &manifest.bytes].concat();
        let member = |blob: &Descriptor| {
            Change::Put(member_key(repository, &blob.digest), join(0, blob.size.to_string().as_bytes()))
        };
        let mut changes: Vec<Change> = members.iter().map(member).collect();
        changes.push(Change::Put(manifest_key(repository, &manifest.digest), join(0, &value)));
        self.write(None, changes).await.map(|_| ())
    }

    async fn blob(&self, repository: &Repository, digest: &Digest) -> Result<BlobView, StoreError> {
        let member = self.read_json(&member_key(repository, digest))?.map(|size| size.value);
        Ok(BlobView { member, record: self.read_json(&blob_key(digest))? })
    }

    async fn put_membership(&self, repository: &Repository, digest: &Digest, size: u64) -> Result<(), StoreError> {
        let item = join(0, size.to_string().as_bytes());
        self.write(None, vec![Change::Put(member_key(repository, digest), item)]).await.map(|_| ())
    }

    async fn swap_blob(
        &self,
        digest: &Digest,
        expected: Option<u64>,
        record: &BlobRecord,
    ) -> Result<Option<u64>, StoreError> {
        self.swap(blob_key(digest), expected, record).await
    }
}
