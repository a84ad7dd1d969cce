//! The ledger in one redb file.
//!
//! One table maps a key to a value that begins with its version; that of a manifest or a membership is when it was last
//! used. Reads are snapshots and take microseconds. Writes go to
//! one thread, which puts all that wait into one commit: an fsync takes milliseconds however much it covers.

use std::collections::HashSet;
use std::ops::Bound;
use std::path::{Path, PathBuf};
use std::sync::{Arc, PoisonError, RwLock, mpsc};
use std::thread::{self, JoinHandle};

use anyhow::Context as _;
use async_trait::async_trait;
use bytes::Bytes;
use futures_util::stream::{self, BoxStream, StreamExt as _, TryStreamExt as _};
use redb::{Database, ReadableDatabase as _, ReadableTable as _, TableDefinition};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use tokio::sync::oneshot;

use crate::gauge::Gauge;
use crate::oci::{Descriptor, Digest, Manifest, Reference, Repository};
use crate::ports::{
    BlobRecord, BlobState, BlobView, Entry, GaugeKey, ImageJob, Job, Ledger, Member, StoreError, StoredManifest,
    TagRecord, Versioned,
};
use crate::time::Timestamp;

const ITEMS: TableDefinition<&str, &[u8]> = TableDefinition::new("items");
const VERSION_BYTES: usize = 8;
/// Pages kept in memory; the operating system keeps the rest.
const MEMORY_BYTES: usize = 8 * 1024 * 1024;
/// How many writes one commit takes at the most.
const GROUP: usize = 256;

/// How many items one step of a scan reads.
const SCAN: usize = 1000;

const BLOB: &str = "blob ";
const FILL: &str = "fill ";
const IMAGE: &str = "image ";
const MANIFEST: &str = "manifest ";
const MEMBER: &str = "member ";
const REFERENCE: &str = "reference ";

fn reference_key(repository: &Repository, reference: &Reference) -> String {
    format!("{REFERENCE}{repository} {reference}")
}

fn absent_key(repository: &Repository) -> String {
    format!("absent {repository}")
}

fn manifest_key(repository: &Repository, digest: &Digest) -> String {
    format!("{MANIFEST}{repository} {digest}")
}

fn member_key(repository: &Repository, digest: &Digest) -> String {
    format!("{MEMBER}{repository} {digest}")
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

    /// Up to [`SCAN`] items after a key.
    fn scan_after(&self, key: &str) -> Result<Vec<(String, Vec<u8>)>, StoreError> {
        self.store.with(|database| {
            let table = database.begin_read()?.open_table(ITEMS)?;
            let after = (Bound::Excluded(key), Bound::Unbounded);
            let items = table.range::<&str>(after)?.take(SCAN);
            items
                .map(|item| item.map(|(key, item)| (key.value().to_owned(), item.value().to_vec())))
                .collect::<Result<_, _>>()
                .map_err(Into::into)
        })
    }

    /// Gives back every claim. Only for the process that has just taken the data directory.
    pub(super) async fn release_claims(&self) -> Result<(), StoreError> {
        let mut changes = Vec::new();
        for (key, Versioned { value, version }) in self.scan::<BlobRecord>(BLOB)? {
            if matches!(value.state, BlobState::Claimed { .. } | BlobState::Removing { .. }) {
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

/// The media type, a line feed, the bytes.
fn parse_manifest(digest: Digest, value: &[u8]) -> Result<Manifest, StoreError> {
    let end = value.iter().position(|&byte| byte == b'\n').ok_or_else(|| corrupt("a manifest without type"))?;
    let media_type = std::str::from_utf8(&value[..end]).map_err(corrupt)?.parse().map_err(corrupt)?;
    Ok(Manifest { digest, media_type, bytes: Bytes::copy_from_slice(&value[end + 1..]) })
}

/// The entry of an item, if it is one.
fn entry(key: &str, item: &[u8]) -> Result<Option<Entry>, StoreError> {
    let wrong = |error: &dyn std::fmt::Display| corrupt(format!("{key}: {error}"));
    let (version, value) = split(item)?;
    let scoped = |rest: &str| -> Result<(Repository, String), StoreError> {
        let (repository, rest) = rest.split_once(' ').ok_or_else(|| wrong(&"no repository"))?;
        let (upstream, name) = repository.split_once('/').ok_or_else(|| wrong(&"no upstream"))?;
        let upstream = upstream.parse().map_err(|error| wrong(&error))?;
        Ok((Repository { upstream, name: name.parse().map_err(|error| wrong(&error))? }, rest.to_owned()))
    };
    let digest = |text: &str| text.parse::<Digest>().map_err(|error| wrong(&error));
    let entry = if let Some(rest) = key.strip_prefix(REFERENCE) {
        let (repository, reference) = scoped(rest)?;
        let reference = reference.parse().map_err(|error| wrong(&error))?;
        let value = serde_json::from_slice(value).map_err(|error| wrong(&error))?;
        Entry::Reference { repository, reference, record: Versioned { value, version } }
    } else if let Some(rest) = key.strip_prefix(MANIFEST) {
        let (repository, text) = scoped(rest)?;
        let digest = digest(&text)?;
        let names = parse_manifest(digest.clone(), value)?.references().map_err(|error| wrong(&error))?;
        Entry::Manifest(StoredManifest { repository, digest, used_at: Timestamp(version), names })
    } else if let Some(rest) = key.strip_prefix(MEMBER) {
        let (repository, text) = scoped(rest)?;
        Entry::Membership { repository, digest: digest(&text)?, used_at: Timestamp(version) }
    } else if let Some(text) = key.strip_prefix(BLOB) {
        let value = serde_json::from_slice(value).map_err(|error| wrong(&error))?;
        Entry::Blob { digest: digest(text)?, record: Versioned { value, version } }
    } else {
        return Ok(None);
    };
    Ok(Some(entry))
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
        self.read(&manifest_key(repository, digest), |_, value| parse_manifest(digest.clone(), value))
    }

    async fn put_manifest(
        &self,
        repository: &Repository,
        manifest: &Manifest,
        members: &[Descriptor],
        now: Timestamp,
    ) -> Result<(), StoreError> {
        let value = [manifest.media_type.as_str().as_bytes(), b"\n", &manifest.bytes].concat();
        let member = |blob: &Descriptor| {
            Change::Put(member_key(repository, &blob.digest), join(now.0, blob.size.to_string().as_bytes()))
        };
        let mut changes: Vec<Change> = members.iter().map(member).collect();
        changes.push(Change::Put(manifest_key(repository, &manifest.digest), join(now.0, &value)));
        self.write(None, changes).await.map(|_| ())
    }

    async fn touch_manifest(
        &self,
        repository: &Repository,
        digest: &Digest,
        since: Timestamp,
        now: Timestamp,
    ) -> Result<Option<Timestamp>, StoreError> {
        let key = manifest_key(repository, digest);
        loop {
            let Some((version, value)) = self.read(&key, |version, value| Ok((version, value.to_vec())))? else {
                return Ok(None);
            };
            if version >= since.0 {
                return Ok(Some(Timestamp(version)));
            }
            let changes = vec![Change::Put(key.clone(), join(now.0, &value))];
            if self.write(Some((key.clone(), Some(version))), changes).await? {
                return Ok(Some(now));
            }
        }
    }

    async fn blob(&self, repository: &Repository, digest: &Digest) -> Result<BlobView, StoreError> {
        let member = self.read_json(&member_key(repository, digest))?;
        let member = member.map(|size| Member { size: size.value, used_at: Timestamp(size.version) });
        Ok(BlobView { member, record: self.read_json(&blob_key(digest))? })
    }

    async fn put_membership(&self, repository: &Repository, digest: &Digest, member: Member) -> Result<(), StoreError> {
        let item = join(member.used_at.0, member.size.to_string().as_bytes());
        self.write(None, vec![Change::Put(member_key(repository, digest), item)]).await.map(|_| ())
    }

    fn entries(&self) -> BoxStream<'_, Result<Entry, StoreError>> {
        let pages = stream::try_unfold(String::new(), move |after| async move {
            let items = self.scan_after(&after)?;
            let Some((last, _)) = items.last().cloned() else { return Ok(None) };
            let entries = items.iter().filter_map(|(key, item)| entry(key, item).transpose()).collect::<Vec<_>>();
            Ok(Some((stream::iter(entries), last)))
        });
        pages.try_flatten().boxed()
    }

    async fn remove(&self, entry: &Entry) -> Result<bool, StoreError> {
        let (key, version) = match entry {
            Entry::Reference { repository, reference, record } => {
                (reference_key(repository, reference), record.version)
            }
            Entry::Manifest(manifest) => (manifest_key(&manifest.repository, &manifest.digest), manifest.used_at.0),
            Entry::Membership { repository, digest, used_at } => (member_key(repository, digest), used_at.0),
            Entry::Blob { digest, record } => (blob_key(digest), record.version),
        };
        self.write(Some((key.clone(), Some(version))), vec![Change::Remove(key)]).await
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
