//! What the core asks of storage. The doc comments are the contract; `tests/ports.rs` checks each clause on every adapter.
//!
//! Absent, refused and unavailable are three different answers: `Ok(None)` (or `Ok(false)`) says that something is not
//! there; `Err` says that it could not be found out, and is never taken for absence.

use std::collections::HashSet;
use std::fs::File;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use futures_util::future::BoxFuture;
use futures_util::stream::BoxStream;
use serde::{Deserialize, Serialize};
use tokio::sync::watch;

use crate::fill::FillError;
use crate::gauge::Gauge;
use crate::oci::{Descriptor, Digest, Manifest, MediaType, Platforms, Reference, Repository, UpstreamId};
use crate::time::Timestamp;

/// Storage did not do what it was asked. Nothing may be concluded about what it holds.
#[derive(Debug, Clone, thiserror::Error)]
pub enum StoreError {
    /// It could not be reached, was throttled, or failed: asking again later may help.
    #[error("storage is unavailable: {0}")]
    Unavailable(String),
    /// It said no: permissions, a read-only or full disk. Only the operator can help.
    #[error("storage refused: {0}")]
    Refused(String),
    /// It answered with something that this version did not write.
    #[error("storage holds a record that cannot be read: {0}")]
    Corrupt(String),
}

/// Immutable content, addressed by its digest and stored once whatever the repository.
///
/// Storage never interprets the bytes. That they match their digest is decided by the core, which publishes no others.
#[async_trait]
pub trait Blobs: Send + Sync {
    /// The length in bytes of a stored blob, from the storage itself. `None`: not stored.
    async fn size(&self, digest: &Digest) -> Result<Option<u64>, StoreError>;

    /// Where a client gets the bytes of a blob that the ledger says is stored. Needs no network. `None`: the adapter can
    /// tell without asking that it is not there.
    async fn locate(&self, digest: &Digest) -> Result<Option<Location>, StoreError>;

    /// Begins to store a blob of `size` bytes. `progress` receives [`Progress::Growing`] where the adapter lets readers
    /// follow.
    async fn begin(
        &self,
        digest: &Digest,
        size: u64,
        progress: &watch::Sender<Progress>,
    ) -> Result<Box<dyn Upload>, StoreError>;

    /// Goes on with an upload of which a checkpoint was taken at `offset`, with these words. Whatever was written after
    /// that is forgotten. `None`: they do not fit together, or the upload is gone.
    async fn resume(
        &self,
        digest: &Digest,
        size: u64,
        offset: u64,
        upload: &str,
        progress: &watch::Sender<Progress>,
    ) -> Result<Option<Box<dyn Upload>>, StoreError>;

    /// Throws away the uploads that none of these checkpoints speaks of and nobody has written to for `idle`. Returns how
    /// many they were.
    async fn abandon(&self, known: &HashSet<String>, idle: Duration) -> Result<usize, StoreError>;

    /// Every stored blob once, in no order. One that is stored or removed meanwhile may be among them or not.
    fn list(&self) -> BoxStream<'_, Result<StoredBlob, StoreError>>;

    /// Deletes the bytes of a blob. Whoever reads them already may read on; removing what is not there is a no-op.
    async fn remove(&self, digest: &Digest) -> Result<(), StoreError>;
}

/// A blob on its way into storage. It becomes visible whole, by [`Self::publish`], or not at all; storing a blob twice
/// is a no-op. Memory stays bounded whatever the size.
///
/// Dropping it leaves what was written, as a crash does: a checkpoint can be gone on from, the rest is abandoned later.
#[async_trait]
pub trait Upload: Send {
    /// Where a checkpoint may lie: at multiples of so many bytes.
    fn unit(&self) -> u64;

    /// Takes the next bytes, which do not cross a multiple of the unit.
    async fn write(&mut self, bytes: Bytes) -> Result<(), StoreError>;

    /// Once this is ready, the bytes up to the last multiple of the unit survive a crash. Returns what
    /// [`Blobs::resume`] needs to go on there. Writing may go on meanwhile.
    fn checkpoint(&mut self) -> BoxFuture<'static, Result<String, StoreError>>;

    /// Makes the blob visible. All of its bytes have been written, and they are the right ones.
    async fn publish(&mut self) -> Result<(), StoreError>;

    /// Throws away what was written.
    async fn discard(self: Box<Self>);
}

/// Bytes that are stored, as the storage itself tells.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct StoredBlob {
    /// Their address.
    pub digest: Digest,
    /// How many.
    pub size: u64,
    /// Since when, by the storage's own clock.
    pub modified: Timestamp,
}

/// Where the bytes of a stored blob are.
#[derive(Debug)]
pub enum Location {
    /// At a URL that needs no credentials, for some minutes (S3).
    Url(String),
    /// In a file of this machine, of this many bytes.
    File(Arc<File>, u64),
}

/// A value of the ledger with the version that a conditional write has to name.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Versioned<T> {
    /// The value.
    pub value: T,
    /// Changes with every write of the item.
    pub version: u64,
}

/// "Upstream said at time t that tag T is digest D": freshness, never content. For a digest it says only who is fetching
/// it, or that upstream does not have it.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct TagRecord {
    /// What upstream said; `None`: that there is no such tag.
    pub observed: Option<Observed>,
    /// The digest served before, kept until the manifest of `observed` is stored.
    pub previous: Option<Previous>,
    /// When upstream said it.
    pub checked_at: Timestamp,
    /// Until when upstream is not asked again.
    pub fresh_until: Timestamp,
    /// Who is asking it.
    pub lease: Option<Lease>,
}

/// What a tag was before it moved.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Previous {
    /// The digest.
    pub digest: Digest,
    /// When upstream last said so.
    pub checked_at: Timestamp,
}

/// The right to ask upstream about a reference while all others wait for the answer. It saves requests; that a holder
/// which lost it changes nothing is the work of the version.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Lease {
    /// Who asks: unique to one question.
    pub owner: String,
    /// When another may take over.
    pub until: Timestamp,
}

/// What a registry says of a manifest without sending it (the answer to HEAD).
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Observed {
    /// Its address.
    pub digest: Digest,
    /// Its media type.
    pub media_type: MediaType,
    /// Its length in bytes.
    pub size: u64,
}

/// What is known of a blob, whatever the repository.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct BlobRecord {
    /// Whether its bytes are here.
    pub state: BlobState,
    /// How many fills have begun.
    pub attempts: u32,
    /// Why the last fill failed, for people.
    pub failure: Option<String>,
    /// How far an unfinished fill has come: the next one goes on from there.
    pub checkpoint: Option<Checkpoint>,
    /// When its bytes were last used, to the day: by a pull, or by a manifest that came to name it.
    pub used_at: Option<Timestamp>,
}

impl BlobRecord {
    /// A record of which nothing but the state is known.
    pub fn new(state: BlobState) -> Self {
        Self { state, attempts: 0, failure: None, checkpoint: None, used_at: None }
    }
}

/// How far an unfinished fill has come. Written whole in one conditional write; one that does not fit the upload it
/// speaks of is discarded.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Checkpoint {
    /// How many bytes are stored, from the first one on.
    pub offset: u64,
    /// The state of the hash over them (see [`Hasher::save`](crate::oci::Hasher::save)).
    pub hash: String,
    /// What the adapter needs to go on, in its own words.
    pub upload: String,
}

/// The life of a blob in storage.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(tag = "state", rename_all = "snake_case")]
pub enum BlobState {
    /// Nobody is copying it: a fill failed, or its claim was given back.
    Absent,
    /// A fill is copying it. Others leave it alone until the claim runs out; correctness never depends on it.
    Claimed {
        /// Which fill: unique to one run.
        owner: String,
        /// When another may take over.
        until: Timestamp,
    },
    /// Its bytes are being deleted. As short as that takes; a process that died meanwhile is replaced then.
    Removing {
        /// When another may take over.
        until: Timestamp,
    },
    /// Stored, verified, and this many bytes long.
    Stored {
        /// Length in bytes.
        size: u64,
    },
}

/// A blob as one repository sees it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct BlobView {
    /// That the blob belongs to the repository: the permission to read it there.
    pub member: Option<Member>,
    /// What is known of it anywhere.
    pub record: Option<Versioned<BlobRecord>>,
}

/// That a blob belongs to a repository.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Member {
    /// The blob's length in bytes.
    pub size: u64,
    /// When it was put last: by a manifest that names the blob, or by a pull.
    pub used_at: Timestamp,
}

/// One item of the ledger, as a scan has seen it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Entry {
    /// The record of a tag, or of a digest.
    Reference {
        /// Whose.
        repository: Repository,
        /// The tag or the digest.
        reference: Reference,
        /// What is known of it.
        record: Versioned<TagRecord>,
    },
    /// A manifest.
    Manifest(StoredManifest),
    /// That a blob belongs to a repository.
    Membership {
        /// Whose permission it is.
        repository: Repository,
        /// Which blob.
        digest: Digest,
        /// When it was put last.
        used_at: Timestamp,
    },
    /// What is known of a blob.
    Blob {
        /// Which blob.
        digest: Digest,
        /// What is known of it.
        record: Versioned<BlobRecord>,
    },
}

/// A manifest without its bytes.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct StoredManifest {
    /// Where it may be read.
    pub repository: Repository,
    /// Its address.
    pub digest: Digest,
    /// When it was last used: put, or pulled.
    pub used_at: Timestamp,
    /// The blobs or manifests that it names.
    pub names: Vec<Digest>,
}

/// Where tag records, manifests, memberships and claims live. Whatever a write acknowledged survives a crash.
///
/// Rules (who may claim, what is fresh) are functions of the core; the ledger only promises that a conditional write
/// happens atomically or not at all. A read sees every write that was acknowledged before it, except
/// [`Self::manifest`] and the membership of [`Self::blob`], which may lag by a second on `DynamoDB`.
#[async_trait]
pub trait Ledger: Send + Sync {
    /// The record of a tag, or of a digest.
    async fn reference(
        &self,
        repository: &Repository,
        reference: &Reference,
    ) -> Result<Option<Versioned<TagRecord>>, StoreError>;

    /// Writes the record of a reference if the item still has the version `expected` (`None`: does not exist), and
    /// returns its new version. `None`: it has not, and nothing was written.
    async fn swap_reference(
        &self,
        repository: &Repository,
        reference: &Reference,
        expected: Option<u64>,
        record: &TagRecord,
    ) -> Result<Option<u64>, StoreError>;

    /// Until when upstream is believed not to have this repository, as it was put last.
    async fn absent_until(&self, repository: &Repository) -> Result<Option<Timestamp>, StoreError>;

    /// Stores until when upstream is believed not to have this repository.
    async fn put_absent(&self, repository: &Repository, until: Timestamp) -> Result<(), StoreError>;

    /// A manifest stored for this repository, byte for byte as it was put.
    async fn manifest(&self, repository: &Repository, digest: &Digest) -> Result<Option<Manifest>, StoreError>;

    /// Stores a manifest for this repository and the membership of the blobs it refers to, all of them used `now`. Once
    /// the manifest can be read, every membership can be. Doing it twice changes only when they were used.
    async fn put_manifest(
        &self,
        repository: &Repository,
        manifest: &Manifest,
        members: &[Descriptor],
        now: Timestamp,
    ) -> Result<(), StoreError>;

    /// Writes that a manifest was used `now`, unless it was already used at `since` or later, and returns when it was last
    /// used by then. `None`: there is no such manifest, and nothing was written.
    async fn touch_manifest(
        &self,
        repository: &Repository,
        digest: &Digest,
        since: Timestamp,
        now: Timestamp,
    ) -> Result<Option<Timestamp>, StoreError>;

    /// A blob as this repository sees it, in one round trip. The record is read consistently.
    async fn blob(&self, repository: &Repository, digest: &Digest) -> Result<BlobView, StoreError>;

    /// Stores that a blob belongs to this repository.
    async fn put_membership(&self, repository: &Repository, digest: &Digest, member: Member) -> Result<(), StoreError>;

    /// Writes the record of a blob if the item still has the version `expected` (`None`: does not exist), and returns its
    /// new version. `None`: it has not, and nothing was written.
    async fn swap_blob(
        &self,
        digest: &Digest,
        expected: Option<u64>,
        record: &BlobRecord,
    ) -> Result<Option<u64>, StoreError>;

    /// Every item that an [`Entry`] can be, once, in no order. One that is written meanwhile may be as it was or as it is.
    fn entries(&self) -> BoxStream<'_, Result<Entry, StoreError>>;

    /// Removes the item of an entry if it is still what the entry says it was: a record of this version, or a manifest
    /// or membership used then. `false`: it is not, and nothing was removed.
    async fn remove(&self, entry: &Entry) -> Result<bool, StoreError>;

    /// What an upstream last said of our quota and of itself.
    async fn gauge(&self, key: &GaugeKey) -> Result<Option<Versioned<Gauge>>, StoreError>;

    /// Writes a gauge if the item still has the version `expected` (`None`: does not exist), and returns its new version.
    /// `None`: it has not, and nothing was written.
    async fn swap_gauge(&self, key: &GaugeKey, expected: Option<u64>, gauge: &Gauge)
    -> Result<Option<u64>, StoreError>;
}

/// Whose gauge: an upstream as one credential sees it.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub struct GaugeKey {
    /// The upstream.
    pub upstream: UpstreamId,
    /// The user name, or `anonymous`.
    pub credential: String,
}

/// One blob to copy from upstream into storage.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Job {
    /// The repository whose permission and credentials fetch it.
    pub repository: Repository,
    /// The blob.
    pub digest: Digest,
    /// Its length in bytes, as the manifest says.
    pub size: u64,
    /// Who waits for it.
    #[serde(default)]
    pub priority: Priority,
}

/// One image to store whole, nobody waiting for it.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct ImageJob {
    /// Where it is.
    pub repository: Repository,
    /// Which it is there.
    pub reference: Reference,
    /// Which of its children, where it is an index.
    pub platforms: Platforms,
    /// Of its manifests and blobs. [`Priority::Refresh`] has upstream asked what a tag is, however fresh its record.
    pub priority: Priority,
}

/// What a queue carries from one process to another.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(untagged)]
pub enum Work {
    /// Run by [`fill::run`](crate::fill::run).
    Blob(Job),
    /// Run by [`prefetch::run`](crate::prefetch::run).
    Image(ImageJob),
}

/// What is filled first.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Priority {
    /// A client has pulled what names it.
    #[default]
    Interactive,
    /// Somebody will pull it soon.
    Prefetch,
    /// It keeps up to date what was stored before, under a tag that may have moved.
    Refresh,
}

/// A fill that was requested and has not ended well, as whoever runs fills knows it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Requested {
    /// What was requested.
    pub job: Job,
    /// How many bytes have arrived, where the fill runs in this process; 0 elsewhere.
    pub written: u64,
    /// That it is not tried again unless somebody asks, and why if the adapter knows.
    pub given_up: Option<GivenUp>,
}

/// A fill that is not tried again unless somebody asks.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct GivenUp {
    /// Why, for people. `None`: the record of the blob says so.
    pub reason: Option<String>,
}

/// The asynchronous side: whatever is requested here is filled later, elsewhere.
#[async_trait]
pub trait Fills: Send + Sync {
    /// Requests fills. Durable once it returns: a job is run at least once, and again after a failure that may pass.
    /// Requesting a blob twice costs little and does no harm.
    async fn request(&self, jobs: &[Job]) -> Result<(), StoreError>;

    /// Requests images, as durably. They lead to requests for fills.
    async fn request_images(&self, images: &[ImageJob]) -> Result<(), StoreError>;

    /// Requests a fill that a client waits for, and watches it. `None`: fills run in another process, and the ledger
    /// is where their outcome shows.
    async fn request_now(&self, job: &Job) -> Result<Option<watch::Receiver<Progress>>, StoreError>;

    /// What was given up, and what is still to be filled as far as the adapter can tell (SQS cannot).
    async fn list(&self) -> Result<Vec<Requested>, StoreError>;

    /// Requests again what was given up, and says how many fills those were.
    async fn retry(&self) -> Result<usize, StoreError>;
}

/// How far a fill has come.
#[derive(Clone, Debug)]
pub enum Progress {
    /// Not begun, or no byte has arrived yet.
    Waiting,
    /// `written` bytes of `file` can be read, in order, unverified as long as the fill is not finished.
    Growing {
        /// The unpublished file.
        file: Arc<File>,
        /// How many bytes of it are there.
        written: u64,
        /// How many there will be.
        size: u64,
    },
    /// Published.
    Stored,
    /// Given up, or to be tried again later.
    Failed(FillError),
}
