//! The ledger in one redb file.
//!
//! One table maps a key to a value that begins with its version. Reads are snapshots and take microseconds. Writes go to
//! one thread, which puts all that wait into one commit: an fsync takes milliseconds however much it covers.

use std::path::Path;
use std::sync::mpsc;
use std::thread;

use anyhow::Context as _;
use async_trait::async_trait;
use bytes::Bytes;
use redb::{Database, ReadableDatabase as _, ReadableTable as _, TableDefinition};
use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio::sync::oneshot;

use crate::oci::{Descriptor, Digest, Manifest, Repository, Tag};
use crate::ports::{
    BlobRecord, BlobState, BlobView, Job, Ledger, StoreError, TagRecord, Versioned,
};

const ITEMS: TableDefinition<&str, &[u8]> = TableDefinition::new("items");
const VERSION_BYTES: usize = 8;
/// Pages kept in memory; the operating system keeps the rest.
const MEMORY_BYTES: usize = 8 * 1024 * 1024;
/// How many writes one commit takes at the most.
const GROUP: usize = 256;

const BLOB: &str = "blob ";
const FILL: &str = "fill ";

fn tag_key(repository: &Repository, tag: &Tag) -> String {
    format!("tag {repository} {tag}")
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

/// The embedded ledger.
pub struct EmbeddedLedger {
    database: std::sync::Arc<Database>,
    writer: mpsc::Sender<Write>,
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
        let database = Database::builder()
            .set_cache_size(MEMORY_BYTES)
            .create(path)?;
        let begin = database.begin_write()?;
        begin.open_table(ITEMS)?;
        begin.commit()?;
        let database = std::sync::Arc::new(database);
        let (writer, queued) = mpsc::channel();
        let target = std::sync::Arc::clone(&database);
        thread::Builder::new()
            .name("ledger".into())
            .spawn(move || commit_in_groups(&target, &queued))
            .context("cannot start the ledger's thread")?;
        Ok(Self { database, writer })
    }

    fn read<T>(
        &self,
        key: &str,
        decode: impl FnOnce(u64, &[u8]) -> Result<T, StoreError>,
    ) -> Result<Option<T>, StoreError> {
        let table = self
            .database
            .begin_read()
            .map_err(failed)?
            .open_table(ITEMS)
            .map_err(failed)?;
        let Some(item) = table.get(key).map_err(failed)? else {
            return Ok(None);
        };
        let (version, value) = split(item.value())?;
        decode(version, value).map(Some)
    }

    fn read_json<T: DeserializeOwned>(
        &self,
        key: &str,
    ) -> Result<Option<Versioned<T>>, StoreError> {
        self.read(key, |version, value| {
            Ok(Versioned {
                value: serde_json::from_slice(value).map_err(corrupt)?,
                version,
            })
        })
    }

    fn scan<T: DeserializeOwned>(
        &self,
        prefix: &str,
    ) -> Result<Vec<(String, Versioned<T>)>, StoreError> {
        let table = self
            .database
            .begin_read()
            .map_err(failed)?
            .open_table(ITEMS)
            .map_err(failed)?;
        let mut found = Vec::new();
        for entry in table.range(prefix..).map_err(failed)? {
            let (key, item) = entry.map_err(failed)?;
            if !key.value().starts_with(prefix) {
                break;
            }
            let (version, value) = split(item.value())?;
            let value = serde_json::from_slice(value).map_err(corrupt)?;
            found.push((key.value().to_owned(), Versioned { value, version }));
        }
        Ok(found)
    }

    /// Durable once it returns.
    async fn write(
        &self,
        expected: Option<(String, Option<u64>)>,
        changes: Vec<Change>,
    ) -> Result<bool, StoreError> {
        let (done, outcome) = oneshot::channel();
        self.writer
            .send(Write {
                expected,
                changes,
                done,
            })
            .map_err(failed)?;
        outcome.await.map_err(failed)?
    }

    async fn swap<T: Serialize>(
        &self,
        key: String,
        expected: Option<u64>,
        value: &T,
    ) -> Result<bool, StoreError> {
        let version = expected.unwrap_or(0) + 1;
        let item = join(version, &serde_json::to_vec(value).map_err(corrupt)?);
        self.write(Some((key.clone(), expected)), vec![Change::Put(key, item)])
            .await
    }

    /// Gives back every claim. Only for the process that has just taken the data directory.
    pub(super) async fn release_claims(&self) -> Result<(), StoreError> {
        let mut changes = Vec::new();
        for (key, Versioned { value, version }) in self.scan::<BlobRecord>(BLOB)? {
            if matches!(value.state, BlobState::Claimed { .. }) {
                let record = BlobRecord {
                    state: BlobState::Absent,
                    ..value
                };
                changes.push(Change::Put(
                    key,
                    join(version + 1, &serde_json::to_vec(&record).map_err(corrupt)?),
                ));
            }
        }
        self.write(None, changes).await.map(|_| ())
    }

    /// The fills that were requested and have not ended.
    pub(super) fn requested_fills(&self) -> Result<Vec<Job>, StoreError> {
        Ok(self
            .scan::<Job>(FILL)?
            .into_iter()
            .map(|(_, job)| job.value)
            .collect())
    }

    /// Remembers requested fills.
    pub(super) async fn put_fills(&self, jobs: &[Job]) -> Result<(), StoreError> {
        let put = |job: &Job| {
            Ok(Change::Put(
                fill_key(&job.digest),
                join(0, &serde_json::to_vec(job).map_err(corrupt)?),
            ))
        };
        self.write(None, jobs.iter().map(put).collect::<Result<_, _>>()?)
            .await
            .map(|_| ())
    }

    /// Forgets a requested fill that has ended.
    pub(super) async fn remove_fill(&self, digest: &Digest) -> Result<(), StoreError> {
        self.write(None, vec![Change::Remove(fill_key(digest))])
            .await
            .map(|_| ())
    }
}

fn join(version: u64, value: &[u8]) -> Vec<u8> {
    [&version.to_le_bytes(), value].concat()
}

fn split(item: &[u8]) -> Result<(u64, &[u8]), StoreError> {
    let (version, value) = item
        .split_first_chunk::<VERSION_BYTES>()
        .ok_or_else(|| corrupt("an item without version"))?;
    Ok((u64::from_le_bytes(*version), value))
}

/// The writer thread. Ends when the ledger is dropped.
fn commit_in_groups(database: &Database, writes: &mpsc::Receiver<Write>) {
    while let Ok(first) = writes.recv() {
        let group: Vec<Write> = std::iter::once(first)
            .chain(writes.try_iter().take(GROUP - 1))
            .collect();
        match commit(database, &group) {
            Ok(outcomes) => {
                for (write, outcome) in group.into_iter().zip(outcomes) {
                    let _ = write.done.send(Ok(outcome));
                }
            }
            Err(error) => {
                tracing::error!(%error, "the ledger could not be written");
                for write in group {
                    let _ = write
                        .done
                        .send(Err(StoreError::Refused(format!("ledger: {error}"))));
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
                    let current = items
                        .get(key.as_str())?
                        .map(|item| split(item.value()).map_or(0, |(version, _)| version));
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

#[async_trait]
impl Ledger for EmbeddedLedger {
    async fn tag(
        &self,
        repository: &Repository,
        tag: &Tag,
    ) -> Result<Option<Versioned<TagRecord>>, StoreError> {
        self.read_json(&tag_key(repository, tag))
    }

    async fn swap_tag(
        &self,
        repository: &Repository,
        tag: &Tag,
        expected: Option<u64>,
        record: &TagRecord,
    ) -> Result<bool, StoreError> {
        self.swap(tag_key(repository, tag), expected, record).await
    }

    async fn manifest(
        &self,
        repository: &Repository,
        digest: &Digest,
    ) -> Result<Option<Manifest>, StoreError> {
        self.read(&manifest_key(repository, digest), |_, value| {
            // The media type, a line feed, the bytes.
            let end = value
                .iter()
                .position(|&byte| byte == b'\n')
                .ok_or_else(|| corrupt("a manifest without type"))?;
            let media_type = std::str::from_utf8(&value[..end])
                .map_err(corrupt)?
                .parse()
                .map_err(corrupt)?;
            Ok(Manifest {
                digest: digest.clone(),
                media_type,
                bytes: Bytes::copy_from_slice(&value[end + 1..]),
            })
        })
    }

    async fn put_manifest(
        &self,
        repository: &Repository,
        manifest: &Manifest,
        members: &[Descriptor],
    ) -> Result<(), StoreError> {
        let value = [
            manifest.media_type.as_str().as_bytes(),
            b"\n",
            &manifest.bytes,
        ]
        .concat();
        let member = |blob: &Descriptor| {
            Change::Put(
                member_key(repository, &blob.digest),
                join(0, blob.size.to_string().as_bytes()),
            )
        };
        let mut changes: Vec<Change> = members.iter().map(member).collect();
        changes.push(Change::Put(
            manifest_key(repository, &manifest.digest),
            join(0, &value),
        ));
        self.write(None, changes).await.map(|_| ())
    }

    async fn blob(&self, repository: &Repository, digest: &Digest) -> Result<BlobView, StoreError> {
        let member = self
            .read_json(&member_key(repository, digest))?
            .map(|size| size.value);
        Ok(BlobView {
            member,
            record: self.read_json(&blob_key(digest))?,
        })
    }

    async fn put_membership(
        &self,
        repository: &Repository,
        digest: &Digest,
        size: u64,
    ) -> Result<(), StoreError> {
        let item = join(0, size.to_string().as_bytes());
        self.write(
            None,
            vec![Change::Put(member_key(repository, digest), item)],
        )
        .await
        .map(|_| ())
    }

    async fn swap_blob(
        &self,
        digest: &Digest,
        expected: Option<u64>,
        record: &BlobRecord,
    ) -> Result<bool, StoreError> {
        self.swap(blob_key(digest), expected, record).await
    }
}
