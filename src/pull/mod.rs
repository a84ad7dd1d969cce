//! THE READ PATH: [manifests](manifest) by tag and by digest, [blobs](blob), and [lists](listing).

mod blob;
mod flight;
mod listing;
mod manifest;
mod store;
mod used;

use std::fs::File;
use std::sync::Arc;
use std::time::Duration;

use quick_cache::Weighter;
use quick_cache::sync::Cache as MemoryCache;
use tokio::sync::watch;

pub(crate) use listing::LargeLists;
pub use listing::{PulledReferrers, PulledTags};
pub use manifest::Want;
pub(crate) use used::Uses;

use crate::Cache;
use crate::error::PullError;
use crate::oci::{Digest, Manifest, Repository};
use crate::ports::{Observed, Progress, SignedUrl, StoreError};
use crate::time::Timestamp;
use crate::upstream::UpstreamError;

/// The questions that are being asked of upstream.
pub(crate) type Flights = flight::Flights<manifest::Question, Result<PulledManifest, PullError>>;

/// The lists that upstream is being asked for.
pub(crate) type ListFlights = flight::Flights<listing::Question, Result<listing::PulledList, PullError>>;

/// How an answer came about; clients see it as `X-Stopover`.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Served {
    /// From storage, without upstream.
    Hit,
    /// From storage, after upstream confirmed it.
    Revalidated,
    /// From storage, because upstream could not be asked.
    Stale,
    /// From upstream.
    Miss,
}

/// A manifest to answer with.
#[derive(Clone, Debug)]
pub struct PulledManifest {
    /// What is said about it in headers.
    pub observed: Observed,
    /// The manifest; `None` only where a client asked with HEAD and nobody has fetched it yet.
    pub manifest: Option<Arc<Manifest>>,
    /// How it came about.
    pub served: Served,
}

/// A blob to answer with.
#[derive(Debug)]
pub struct PulledBlob {
    /// Its length in bytes.
    pub size: u64,
    /// Where its bytes are.
    pub content: Content,
    /// How it came about.
    pub served: Served,
}

/// Where the bytes of an answer are.
#[derive(Debug)]
pub enum Content {
    /// Not wanted: HEAD.
    None,
    /// At a URL that the client fetches itself.
    Redirect(SignedUrl),
    /// In a stored file.
    File(Arc<File>),
    /// In a file that a fill is writing.
    Growing(Arc<File>, watch::Receiver<Progress>),
}

/// Repositories that upstream says do not exist, and until when that is believed: whatever is asked of them costs nothing.
/// The ledger has them all; here are those that this process has met.
pub(crate) struct Absent(MemoryCache<Repository, Timestamp>);

/// How long an absent repository is remembered. Longer than a tag: one appears far less often.
const ABSENT: Duration = Duration::from_mins(5);

impl Absent {
    pub(crate) fn new() -> Self {
        Self(MemoryCache::new(10_000))
    }
}

impl Cache {
    /// Refuses what is asked of a repository of which this process knows that upstream lately said it does not have it.
    fn check_known_absent(&self, repository: &Repository) -> Result<(), PullError> {
        match self.absent.0.get(repository) {
            Some(until) if self.clock.now() < until => Err(UpstreamError::NoRepository.into()),
            _ => Ok(()),
        }
    }

    /// The same, with what other processes know.
    async fn check_absent(&self, repository: &Repository) -> Result<(), PullError> {
        self.check_known_absent(repository)?;
        if let Some(until) = self.ledger.absent_until(repository).await? {
            self.absent.0.insert(repository.clone(), until);
        }
        self.check_known_absent(repository)
    }

    /// Upstream has it after all: whatever belongs to it may be asked for again. Other processes that have met its absence
    /// find out when that ends.
    async fn note_present(&self, repository: &Repository) -> Result<(), StoreError> {
        if self.ledger.absent_until(repository).await?.is_some() {
            self.ledger.put_absent(repository, self.clock.now()).await?;
        }
        self.absent.0.remove(repository);
        Ok(())
    }

    async fn note_absent(&self, repository: &Repository) -> Result<(), StoreError> {
        let until = self.clock.now().plus(ABSENT);
        self.absent.0.insert(repository.clone(), until);
        self.ledger.put_absent(repository, until).await
    }
}

/// Manifests this process has served: by digest they never change, and each stands for its own repository only.
pub(crate) struct Warm(MemoryCache<(Repository, Digest), Arc<Manifest>, ManifestBytes>);

/// The most bytes of manifests kept in memory.
const WARM_BYTES: u64 = 8 * 1024 * 1024;

#[derive(Clone)]
struct ManifestBytes;

impl Weighter<(Repository, Digest), Arc<Manifest>> for ManifestBytes {
    fn weight(&self, _: &(Repository, Digest), manifest: &Arc<Manifest>) -> u64 {
        manifest.bytes.len() as u64 + 512
    }
}

impl Warm {
    pub(crate) fn new() -> Self {
        Self(MemoryCache::with_weighter(1024, WARM_BYTES, ManifestBytes))
    }
}
