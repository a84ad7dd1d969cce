//! What the core asks of storage. The doc comments are the contract; `tests/adapters/ports` checks each clause on every
//! adapter.
//!
//! Absent, refused and unavailable are three different answers: `Ok(None)` (or `Ok(false)`) says that something is not
//! there; `Err` says that it could not be found out, and is never taken for absence.

mod attempts;
mod blobs;
mod cloud;
mod fills;
mod inventory;
mod tallies;
#[cfg(test)]
pub(crate) mod troubled;

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use futures_util::stream::BoxStream;

pub use attempts::Attempts;
pub use blobs::{Blobs, Location, SignedUrl, StoredBlob, Upload};
pub use cloud::{Cloud, IssuedLogin, SecretVersion};
pub use fills::{Fills, GivenUp, ImageJob, Job, Listed, Load, Priority, Progress, Requested, Watched, Work};
pub use inventory::{Inventory, Section};
pub use tallies::{MOST_SUMS, Tallies};

use crate::errors::StoreError;
use crate::oci::{Descriptor, Digest, Manifest, Repository};
use crate::records::{
    BlobView, Entry, GaugeKey, HoldingKey, Key, ListKey, Listing, Member, ReferenceKey, RobotsKey, Standing, Versioned,
};
use crate::values::time::Timestamp;

/// What an adapter answers.
pub type Result<T, E = StoreError> = std::result::Result<T, E>;

/// What work that storage has part in comes to within `limit`.
pub(crate) async fn in_time<T, E: From<StoreError>>(
    limit: Duration,
    work: impl Future<Output = Result<T, E>>,
) -> Result<T, E> {
    let late = |_| Err(StoreError::Unavailable(format!("no answer within {limit:?}").into()).into());
    tokio::time::timeout(limit, work).await.unwrap_or_else(late)
}

/// The adapters of an installation.
#[derive(Clone)]
pub struct Storage {
    /// Content.
    pub blobs: Arc<dyn Blobs>,
    /// Records.
    pub ledger: Arc<dyn Ledger>,
    /// What runs fills.
    pub fills: Arc<dyn Fills>,
}

/// The longest list that is kept, in bytes of JSON: an item of `DynamoDB` may have 400 KB.
pub const MAX_LISTING_BYTES: usize = 350_000;

/// Records with versions: a process writes one only as the next after the version that it has read.
#[async_trait]
pub trait Records<K: Key>: Send + Sync {
    /// The record under a key.
    async fn get(&self, key: &K) -> Result<Option<Versioned<K::Record>>>;

    /// Those of some records that are there, in no order and, where storage can, with one request. Records of blobs may
    /// lag by a second on `DynamoDB`.
    async fn get_all(&self, keys: &[K]) -> Result<Vec<(K, Versioned<K::Record>)>>;

    /// Writes a record if it still has the version `expected` (`None`: does not exist), and returns its new version.
    /// `None`: it has another version, and nothing was written.
    async fn swap(&self, key: &K, expected: Option<u64>, record: &K::Record) -> Result<Option<u64>>;
}

/// Where tag records, manifests, memberships and claims live. Whatever a write acknowledged survives a crash.
///
/// Rules (who may claim, what is fresh) are functions of the core; the ledger only promises that a conditional write
/// happens atomically or not at all. A read sees every write that was acknowledged before it, except
/// [`Self::manifest`] and the membership of [`Self::blob`], which may lag by a second on `DynamoDB`.
#[async_trait]
pub trait Ledger:
    Inventory
    + Tallies
    + for<'a> Records<ReferenceKey<'a>>
    + for<'a> Records<HoldingKey<'a>>
    + Records<Digest>
    + Records<GaugeKey>
    + Records<RobotsKey>
{
    /// Whether upstream shows us this repository, as it was put last. A record that has expired ([`Standing::until`])
    /// may be forgotten.
    async fn standing(&self, repository: &Repository) -> Result<Option<Standing>>;

    /// Stores whether upstream shows us this repository.
    async fn put_standing(&self, repository: &Repository, standing: Standing) -> Result<()>;

    /// Upstream's answer to a request for a list, as it was put last.
    async fn listing(&self, repository: &Repository, key: &ListKey) -> Result<Option<Listing>>;

    /// Stores upstream's answer to a request for a list. A list of more than [`MAX_LISTING_BYTES`] may be refused; one
    /// that has expired (`stale_until`) may be forgotten.
    async fn put_listing(&self, repository: &Repository, key: &ListKey, listing: &Listing) -> Result<()>;

    /// A manifest stored for this repository, byte for byte as it was put, and when it was last used.
    async fn manifest(&self, repository: &Repository, digest: &Digest) -> Result<Option<(Manifest, Timestamp)>>;

    /// Stores a manifest for this repository and the membership of the blobs it refers to, all of them used `now`. Once
    /// the manifest can be read, every membership can be. Doing it twice changes only when they were used.
    ///
    /// `keep_proofs`: a membership that was proven before stays so, unless it was proven just while this was written;
    /// otherwise the proof may be forgotten. A pull that needs it asks upstream again.
    ///
    /// Returns how many bytes the members have that the repository had not; more, where it does not know.
    async fn put_manifest(
        &self,
        repository: &Repository,
        manifest: &Manifest,
        members: &[Descriptor],
        keep_proofs: bool,
        now: Timestamp,
    ) -> Result<u64>;

    /// Writes that a manifest was used `now`, unless it was already used at `since` or later, and returns when it was
    /// last used by then. `None`: there is no such manifest, and nothing was written.
    async fn touch_manifest(
        &self,
        repository: &Repository,
        digest: &Digest,
        since: Timestamp,
        now: Timestamp,
    ) -> Result<Option<Timestamp>>;

    /// A blob as this repository sees it, in one round trip. The record is read consistently.
    async fn blob(&self, repository: &Repository, digest: &Digest) -> Result<BlobView>;

    /// Stores that a blob belongs to this repository.
    async fn put_membership(&self, repository: &Repository, digest: &Digest, member: Member) -> Result<()>;

    /// Every item that an [`Entry`] can be, once, in no order. One that is written meanwhile may be as it was or as it
    /// is.
    fn entries(&self) -> BoxStream<'_, Result<Entry>>;

    /// Removes the item of an entry if it is still what the entry says it was: a record of this version, a manifest or
    /// membership used then, or a list that expires then. `false`: it is not, and nothing was removed.
    async fn remove(&self, entry: &Entry) -> Result<bool>;
}
