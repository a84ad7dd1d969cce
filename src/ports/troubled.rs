//! A ledger in trouble, and no queue, for tests: it does not answer, or others overtake every conditional write.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use async_trait::async_trait;
use futures_util::stream::BoxStream;

use super::{Fills, ImageJob, Inventory, Job, Ledger, Listed, Records, Result, Section, Storage, Tallies, Watched};
use crate::cache::Cache;
use crate::config::{Cold, Config};
use crate::errors::StoreError;
use crate::journal::{Slot, Tally};
use crate::local::{EmbeddedLedger, Files};
use crate::oci::{Descriptor, Digest, Manifest, Repository, Tag};
use crate::records::{BlobView, Entry, Holding, Key, ListKey, Listing, Member, Standing, TagRecord, Versioned};
use crate::values::time::{Clock, Timestamp};

/// An embedded ledger whose trouble can be switched on and off.
pub(crate) struct Troubled {
    inner: EmbeddedLedger,
    /// Reads and writes of records with a version, and reads of sums, do not return.
    pub(crate) silent: AtomicBool,
    /// How many of the next conditional writes are overtaken.
    pub(crate) overtaken: AtomicUsize,
    /// How many conditional writes were tried.
    pub(crate) tried: AtomicUsize,
}

impl Troubled {
    pub(crate) fn open(directory: &Path) -> Self {
        let inner = EmbeddedLedger::open(&directory.join("ledger")).unwrap();
        Self { inner, silent: false.into(), overtaken: 0.into(), tried: 0.into() }
    }

    /// A cache in this directory, on a ledger in trouble and without a queue.
    pub(crate) fn cache(directory: &Path, clock: &Clock) -> (Cache, Arc<Self>) {
        let config = Config::load(None, Cold::Follow, |_| Ok(String::new())).unwrap();
        let (blobs, ledger) = (Arc::new(Files::open(directory).unwrap()), Arc::new(Self::open(directory)));
        let storage = Storage { blobs, ledger: Arc::clone(&ledger) as _, fills: Arc::new(NoFills) };
        (Cache::new(config, clock.clone(), storage, None).unwrap(), ledger)
    }

    async fn answer_or_not(&self) {
        while self.silent.load(Ordering::SeqCst) {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }

    /// Whether others overtake this write.
    fn is_overtaken(&self) -> bool {
        self.tried.fetch_add(1, Ordering::SeqCst);
        self.overtaken.fetch_update(Ordering::SeqCst, Ordering::SeqCst, |left| left.checked_sub(1)).is_ok()
    }
}

#[async_trait]
impl<K: Key> Records<K> for Troubled
where
    EmbeddedLedger: Records<K>,
{
    async fn get(&self, key: &K) -> Result<Option<Versioned<K::Record>>> {
        self.answer_or_not().await;
        self.inner.get(key).await
    }

    async fn get_all(&self, keys: &[K]) -> Result<Vec<(K, Versioned<K::Record>)>> {
        self.answer_or_not().await;
        self.inner.get_all(keys).await
    }

    async fn swap(&self, key: &K, expected: Option<u64>, record: &K::Record) -> Result<Option<u64>> {
        self.answer_or_not().await;
        if self.is_overtaken() { Ok(None) } else { self.inner.swap(key, expected, record).await }
    }
}

/// Passes methods on to the ledger that is not in trouble.
macro_rules! passed_on {
    ($trait:ident { $($method:ident($($argument:ident: $type:ty),*) -> $answer:ty;)* } $($other:tt)*) => {
        #[async_trait]
        impl $trait for Troubled {
            $(async fn $method(&self, $($argument: $type),*) -> Result<$answer> {
                self.inner.$method($($argument),*).await
            })*
            $($other)*
        }
    };
}

passed_on! {
    Ledger {
        standing(repository: &Repository) -> Option<Standing>;
        put_standing(repository: &Repository, standing: Standing) -> ();
        listing(repository: &Repository, key: &ListKey) -> Option<Listing>;
        put_listing(repository: &Repository, key: &ListKey, listing: &Listing) -> ();
        manifest(repository: &Repository, digest: &Digest) -> Option<(Manifest, Timestamp)>;
        put_manifest(
            repository: &Repository, manifest: &Manifest, members: &[Descriptor], keep_proofs: bool, now: Timestamp
        ) -> u64;
        touch_manifest(repository: &Repository, digest: &Digest, since: Timestamp, now: Timestamp) -> Option<Timestamp>;
        blob(repository: &Repository, digest: &Digest) -> BlobView;
        put_membership(repository: &Repository, digest: &Digest, member: Member) -> ();
        remove(entry: &Entry) -> bool;
    }
    fn entries(&self) -> BoxStream<'_, Result<Entry>> {
        self.inner.entries()
    }
}

passed_on! {
    Inventory {
        holdings(section: &Section) -> Vec<(Repository, Holding)>;
        tags(repository: &Repository, after: Option<&Tag>, most: usize) -> Vec<(Tag, TagRecord)>;
        digests(repository: &Repository, after: Option<&Digest>, most: usize) -> Vec<Digest>;
        manifests(repository: &Repository, digests: &[Digest]) -> Vec<(Manifest, Timestamp)>;
    }
}

#[async_trait]
impl Tallies for Troubled {
    async fn add_tally(&self, slot: Slot, tally: &Tally) -> Result<()> {
        if self.is_overtaken() {
            return Err(StoreError::Unavailable("it is in trouble".into()));
        }
        self.inner.add_tally(slot, tally).await
    }

    async fn tallies(&self, slots: &[Slot]) -> Result<Vec<(Slot, Tally)>> {
        self.answer_or_not().await;
        self.inner.tallies(slots).await
    }
}

/// A queue that loses what is requested.
pub(crate) struct NoFills;

#[async_trait]
impl Fills for NoFills {
    async fn request(&self, _: &[Job]) -> Result<()> {
        Ok(())
    }

    async fn request_images(&self, _: &[ImageJob]) -> Result<()> {
        Ok(())
    }

    async fn request_now(&self, _: &Job) -> Result<Option<Watched>> {
        Ok(None)
    }

    async fn list(&self) -> Result<Listed> {
        Ok(Listed::default())
    }

    async fn retry(&self) -> Result<usize> {
        Ok(0)
    }
}
