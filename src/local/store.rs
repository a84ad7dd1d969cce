//! Versioned items in one redb file.
//!
//! One table maps a key to a value behind its version. Reads are snapshots and take microseconds. Writes go to one thread,
//! which puts all that wait into one commit: an fsync takes milliseconds however much it covers.

use std::any::Any;
use std::cell::Cell;
use std::error::Error;
use std::fs;
use std::io::ErrorKind;
use std::ops::Bound;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::sync::{Arc, PoisonError, RwLock, mpsc};
use std::thread::{self, JoinHandle};

use anyhow::Context as _;
use bytes::Bytes;
use quick_cache::Weighter;
use quick_cache::sync::Cache as MemoryCache;
use redb::{Database, ReadableDatabase as _, ReadableTable as _, TableDefinition, TableError};
use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio::sync::oneshot;

use super::files::{absent, check_space, sync_directory};
use crate::errors::{Failure, StoreError, chain};
use crate::ports::Result;
use crate::records::Versioned;

const ITEMS: TableDefinition<&str, &[u8]> = TableDefinition::new("items");
const VERSION_BYTES: usize = 8;
/// Bytes of pages kept in memory; the operating system keeps the rest.
const MEMORY_BYTES: usize = 8 * 1024 * 1024;
/// Bytes of items kept in memory as what they mean: one that is there costs neither a transaction nor a parser, which were
/// 12 of the 70 thousand instructions of a fresh tag.
const RECENT_BYTES: u64 = 2 * 1024 * 1024;
/// How many writes one commit takes at most.
const GROUP: usize = 256;
/// After how many bytes of items it takes no further write: the database holds all that a commit changes.
const GROUP_BYTES: usize = 1024 * 1024;

/// How many items one step of a scan reads.
const SCAN: usize = 1000;
/// About how many bytes one step reads: one manifest may have four megabytes.
const SCAN_BYTES: usize = 4 * 1024 * 1024;

/// Writes of more bytes than this leave the reserve of the disk alone; it is for records of a few hundred.
const LARGE_BYTES: usize = 4 * 1024;

thread_local! {
    static AT_WORK: Cell<bool> = const { Cell::new(false) };
}

/// Whether this thread is at work on the file of a ledger. A panic then is how the database reports what it cannot read:
/// it becomes an error that says what to do, and is no mistake of this program.
pub fn is_at_work() -> bool {
    AT_WORK.get()
}

/// The versioned items.
pub(super) struct Store {
    file: Arc<DatabaseFile>,
    /// `Some` until the store is dropped.
    writer: Option<(mpsc::Sender<Write>, JoinHandle<()>)>,
}

/// The database file. After an I/O error (a full disk) redb wants it closed and opened again.
struct DatabaseFile {
    path: PathBuf,
    database: RwLock<Option<Database>>,
    /// Items as they were last committed. A write removes its items once it is committed, and before it is acknowledged;
    /// with an item goes the place that a reader keeps for it, so that what was read before cannot come back.
    recent: MemoryCache<String, Recent, RecentBytes>,
}

/// A `Versioned` of what the item means, and how many bytes the item has.
type Recent = (Arc<dyn Any + Send + Sync>, usize);

#[derive(Clone)]
struct RecentBytes;

impl Weighter<String, Recent> for RecentBytes {
    fn weight(&self, key: &String, (_, bytes): &Recent) -> u64 {
        (key.len() + 2 * bytes) as u64 + 128
    }
}

impl DatabaseFile {
    /// Opens the file. A new one is made beside it and then renamed: a file that a power cut has left half made would
    /// never open.
    fn open(path: &Path) -> Result<Database> {
        let open = |path: &Path| Database::builder().set_cache_size(MEMORY_BYTES).create(path);
        let make = || -> Result<(), redb::Error> {
            let unfinished = path.with_extension("unfinished");
            absent(fs::remove_file(&unfinished))?;
            let database = open(&unfinished)?;
            let begin = database.begin_write()?;
            begin.open_table(ITEMS)?;
            begin.commit()?;
            fs::rename(&unfinished, path)?;
            Ok(path.parent().map_or(Ok(()), sync_directory)?)
        };
        at_work(path, || {
            if !path.try_exists()? {
                make()?;
            }
            let database = open(path)?;
            // Only a file of an earlier version, whose start was cut off, has no table. A full disk is not written.
            if let Err(TableError::TableDoesNotExist(_)) = database.begin_read()?.open_table(ITEMS) {
                let begin = database.begin_write()?;
                begin.open_table(ITEMS)?;
                begin.commit()?;
            }
            Ok(database)
        })
    }

    fn with<T>(&self, work: impl Fn(&Database) -> Result<T, redb::Error>) -> Result<T> {
        let work = || {
            let database = self.database.read().unwrap_or_else(PoisonError::into_inner);
            let database = database.as_ref().ok_or_else(|| failed("it could not be opened again"))?;
            at_work(&self.path, || match work(database) {
                // A write has failed, and its thread has not opened the file again yet.
                Err(redb::Error::PreviousIo) => Ok(None),
                done => done.map(Some),
            })
        };
        if let Some(done) = work()? {
            return Ok(done);
        }
        self.reopen();
        work()?.ok_or_else(|| failed("it fails again and again"))
    }

    fn item(&self, key: &str) -> Result<Option<Bytes>> {
        self.with(|database| {
            let table = database.begin_read()?.open_table(ITEMS)?;
            Ok(table.get(key)?.map(|item| Bytes::copy_from_slice(item.value())))
        })
    }

    fn close(&self, database: &mut Option<Database>) {
        let closed = at_work(&self.path, || {
            drop(database.take());
            Ok(())
        });
        if let Err(error) = closed {
            tracing::error!(error = %chain(&error), "the ledger could not be closed");
        }
    }

    fn reopen(&self) {
        let mut database = self.database.write().unwrap_or_else(PoisonError::into_inner);
        // The old one is dropped first: it holds the lock of the file.
        self.close(&mut database);
        match Self::open(&self.path) {
            Ok(opened) => *database = Some(opened),
            Err(error) => tracing::error!(error = %chain(&error), "the ledger could not be opened again"),
        }
    }
}

impl Drop for DatabaseFile {
    fn drop(&mut self) {
        let mut database = std::mem::take(self.database.get_mut().unwrap_or_else(PoisonError::into_inner));
        self.close(&mut database);
    }
}

impl Drop for Store {
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
    done: oneshot::Sender<Result<bool>>,
}

impl Write {
    /// The bytes of its items.
    fn bytes(&self) -> usize {
        let bytes = |change: &Change| match change {
            Change::Put(_, item) => item.len(),
            Change::PutShared(_, start, end) => start.len() + end.len(),
            Change::Remove(_) => 0,
        };
        self.changes.iter().map(bytes).sum()
    }
}

pub(super) enum Change {
    Put(String, Vec<u8>),
    /// An item whose end is in use elsewhere, and is copied only when its turn has come.
    PutShared(String, Vec<u8>, Bytes),
    Remove(String),
}

impl Change {
    /// Puts an item whose value is JSON.
    pub(super) fn put(key: String, version: u64, value: &impl Serialize) -> Result<Self> {
        Ok(Self::Put(key, join(version, &serde_json::to_vec(value).map_err(corrupt)?)))
    }

    fn key(&self) -> &str {
        match self {
            Self::Put(key, _) | Self::PutShared(key, ..) | Self::Remove(key) => key,
        }
    }
}

/// Works on the file at `path`, and says what to do if it is damaged: the database finds that out by an error or a panic.
fn at_work<T>(path: &Path, work: impl FnOnce() -> Result<T, redb::Error>) -> Result<T> {
    AT_WORK.set(true);
    let outcome = catch_unwind(AssertUnwindSafe(work));
    AT_WORK.set(false);
    let unreadable = |_| Err(redb::Error::Corrupted("the database cannot make sense of it".into()));
    outcome.unwrap_or_else(unreadable).map_err(|error| match error {
        redb::Error::Io(error) if matches!(error.kind(), ErrorKind::StorageFull | ErrorKind::QuotaExceeded) => {
            StoreError::Refused(Failure::because("ledger", error))
        }
        redb::Error::Io(error) if !matches!(error.kind(), ErrorKind::InvalidData | ErrorKind::UnexpectedEof) => {
            failed(error)
        }
        error @ (redb::Error::PreviousIo | redb::Error::DatabaseAlreadyOpen | redb::Error::UpgradeRequired(_)) => {
            failed(error)
        }
        error => damaged(path, error),
    })
}

fn damaged(path: &Path, error: impl Into<Box<dyn Error + Send + Sync>>) -> StoreError {
    let (file, advice) = (path.display(), "restore it from a backup, or move it away: the next start makes a new one");
    let sentence = format!(
        "the ledger {file} is damaged: {advice}, and fetches again what is pulled; robots have to be made anew"
    );
    StoreError::Corrupt(Failure::because(sentence, error))
}

pub(super) fn failed(error: impl Into<Box<dyn Error + Send + Sync>>) -> StoreError {
    StoreError::Unavailable(Failure::because("ledger", error))
}

pub(super) fn corrupt(error: impl Into<Box<dyn Error + Send + Sync>>) -> StoreError {
    StoreError::Corrupt(Failure::because("ledger", error))
}

impl Store {
    /// Opens or creates the store. Fails if another process has it open.
    pub(super) fn open(path: &Path) -> anyhow::Result<Self> {
        let database = RwLock::new(Some(DatabaseFile::open(path)?));
        let file = Arc::new(DatabaseFile {
            path: path.to_owned(),
            database,
            recent: MemoryCache::with_weighter(4096, RECENT_BYTES, RecentBytes),
        });
        let (sender, queued) = mpsc::channel();
        let target = Arc::clone(&file);
        let thread = thread::Builder::new()
            .name("ledger".into())
            .spawn(move || commit_in_groups(&target, &queued))
            .context("cannot start the ledger's thread")?;
        Ok(Self { file, writer: Some((sender, thread)) })
    }

    /// One item, decoded from its version and its value.
    pub(super) fn read<T>(&self, key: &str, decode: impl FnOnce(u64, Bytes) -> Result<T>) -> Result<Option<T>> {
        let Some(item) = self.file.item(key)? else { return Ok(None) };
        let (version, value) = split(&item)?;
        decode(version, item.slice_ref(value)).map(Some)
    }

    /// One item whose value is JSON.
    pub(super) fn read_json<T>(&self, key: &str) -> Result<Option<Versioned<T>>>
    where
        T: DeserializeOwned + Clone + Send + Sync + 'static,
    {
        let read = || -> Result<Recent, Option<StoreError>> {
            let item = self.file.item(key).map_err(Some)?.ok_or(None)?;
            let (version, value) = split(&item)?;
            let value: T = serde_json::from_slice(value).map_err(corrupt)?;
            Ok((Arc::new(Versioned { value, version }) as Arc<dyn Any + Send + Sync>, item.len()))
        };
        match self.file.recent.get_or_insert_with(key, read) {
            // Nothing but its type reads an item.
            Ok((item, _)) => item.downcast_ref().cloned().map(Some).ok_or_else(|| corrupt("an item of another type")),
            Err(failure) => failure.map_or(Ok(None), Err),
        }
    }

    /// Calls `act` with each item below a prefix, whose values are JSON. Holds the items of one step at a time.
    pub(super) fn each<T: DeserializeOwned>(
        &self,
        prefix: &str,
        mut act: impl FnMut(String, Versioned<T>) -> Result<()>,
    ) -> Result<()> {
        let mut after = prefix.to_owned();
        loop {
            let items = self.scan_after(&after)?;
            let Some((last, _)) = items.last() else { return Ok(()) };
            if *last <= after {
                return Err(damaged(&self.file.path, "its keys are in no order"));
            }
            last.clone_into(&mut after);
            for (key, item) in items {
                if !key.starts_with(prefix) {
                    return Ok(());
                }
                let (version, value) = split(&item)?;
                let value = serde_json::from_slice(value).map_err(|error| damaged(&self.file.path, error))?;
                act(key, Versioned { value, version })?;
            }
        }
    }

    /// All items below a prefix whose values are JSON.
    pub(super) fn scan<T: DeserializeOwned>(&self, prefix: &str) -> Result<Vec<(String, Versioned<T>)>> {
        let mut items = Vec::new();
        self.each(prefix, |key, item| {
            items.push((key, item));
            Ok(())
        })?;
        Ok(items)
    }

    /// Writes changes, which are durable once it returns.
    pub(super) async fn write(&self, expected: Option<(String, Option<u64>)>, changes: Vec<Change>) -> Result<bool> {
        let (done, outcome) = oneshot::channel();
        let write = Write { expected, changes, done };
        let bytes = write.bytes();
        if bytes > LARGE_BYTES {
            check_space(&self.file.path, bytes as u64)?;
        }
        let (sender, _) = self.writer.as_ref().ok_or_else(|| failed("it is closed"))?;
        sender.send(write).map_err(|_| failed("its thread has ended"))?;
        outcome.await.map_err(failed)?
    }

    /// Writes an item if it still has the version `expected`, and returns its new one.
    pub(super) async fn swap<T: Serialize>(
        &self,
        key: String,
        expected: Option<u64>,
        value: &T,
    ) -> Result<Option<u64>> {
        // An item that is removed and written again must not get a version that a reader has seen before.
        let version = expected.unwrap_or_else(|| fastrand::u64(..1 << 62)) + 1;
        let change = Change::put(key.clone(), version, value)?;
        let written = self.write(Some((key, expected)), vec![change]).await?;
        Ok(written.then_some(version))
    }

    /// The items after a key: at most [`SCAN`] and about [`SCAN_BYTES`].
    pub(super) fn scan_after(&self, key: &str) -> Result<Vec<(String, Vec<u8>)>> {
        self.scan_range((Bound::Excluded(key), Bound::Unbounded), SCAN)
    }

    /// The first `most` items from a key on, or behind it, that come before `end`; of large ones fewer.
    pub(super) fn scan_within(&self, key: &str, from: bool, end: &str, most: usize) -> Result<Vec<(String, Vec<u8>)>> {
        if end <= key {
            return Ok(Vec::new());
        }
        let start = if from { Bound::Included(key) } else { Bound::Excluded(key) };
        self.scan_range((start, Bound::Excluded(end)), most)
    }

    fn scan_range(&self, range: (Bound<&str>, Bound<&str>), most: usize) -> Result<Vec<(String, Vec<u8>)>> {
        self.file.with(|database| {
            let table = database.begin_read()?.open_table(ITEMS)?;
            let (mut items, mut bytes) = (Vec::new(), 0);
            for item in table.range::<&str>(range)?.take(most) {
                let (key, item) = item?;
                bytes += item.value().len();
                items.push((key.value().to_owned(), item.value().to_vec()));
                if bytes >= SCAN_BYTES {
                    break;
                }
            }
            Ok(items)
        })
    }
}

/// A value behind its version.
pub(super) fn join(version: u64, value: &[u8]) -> Vec<u8> {
    [&version.to_le_bytes(), value].concat()
}

pub(super) fn split(item: &[u8]) -> Result<(u64, &[u8])> {
    let (version, value) =
        item.split_first_chunk::<VERSION_BYTES>().ok_or_else(|| corrupt("an item without version"))?;
    Ok((u64::from_le_bytes(*version), value))
}

/// The writer thread. Ends when the ledger is dropped.
fn commit_in_groups(file: &DatabaseFile, writes: &mpsc::Receiver<Write>) {
    while let Ok(first) = writes.recv() {
        let (mut bytes, mut group) = (first.bytes(), vec![first]);
        while group.len() < GROUP
            && bytes < GROUP_BYTES
            && let Ok(next) = writes.try_recv()
        {
            bytes += next.bytes();
            group.push(next);
        }
        let committed = file.with(|database| commit(database, &group));
        if let Err(error) = &committed {
            tracing::error!(error = %chain(error), "the ledger could not be written");
            file.reopen();
        }
        // Of a commit that failed some may be there, too.
        for change in group.iter().flat_map(|write| &write.changes) {
            file.recent.remove(change.key());
        }
        let outcomes = match committed {
            Ok(outcomes) => outcomes.into_iter().map(Ok).collect(),
            Err(error) => vec![Err(error); group.len()],
        };
        for (write, outcome) in group.into_iter().zip(outcomes) {
            let _ = write.done.send(outcome);
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
                        Change::PutShared(key, start, end) => {
                            items.insert(key.as_str(), [start.as_slice(), end.as_ref()].concat().as_slice())?
                        }
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
