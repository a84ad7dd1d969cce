//! Manifests in memory, and what pulls of them need again and again.

use std::ops::Deref;
use std::sync::{Arc, OnceLock, Weak};

use http::HeaderMap;
use quick_cache::sync::Cache as MemoryCache;
use quick_cache::{Equivalent, Weighter};

use crate::oci::{Digest, Manifest, Repository};

/// A manifest of one repository, in memory.
#[derive(Debug)]
pub struct WarmManifest {
    manifest: Manifest,
    /// The bytes of its blobs.
    weight: OnceLock<u64>,
    headers: OnceLock<HeaderMap>,
}

impl WarmManifest {
    /// The manifest as it is stored.
    pub fn new(manifest: Manifest) -> Self {
        Self { manifest, weight: OnceLock::new(), headers: OnceLock::new() }
    }

    /// The bytes of its blobs, which `read` adds up the first time: almost all pulls are of known manifests.
    pub(super) fn weight<E>(&self, read: impl FnOnce(&Manifest) -> Result<u64, E>) -> Result<u64, E> {
        if let Some(weight) = self.weight.get() {
            return Ok(*weight);
        }
        read(&self.manifest).map(|weight| *self.weight.get_or_init(|| weight))
    }

    /// The headers of an answer with it, which `make` makes the first time: a copy takes 1,200 instructions in place of 4,000.
    pub(crate) fn headers(&self, make: impl FnOnce() -> HeaderMap) -> HeaderMap {
        self.headers.get_or_init(make).clone()
    }
}

impl Deref for WarmManifest {
    type Target = Manifest;

    fn deref(&self) -> &Manifest {
        &self.manifest
    }
}

/// What a manifest is remembered by. It is looked for without clones, whose counts all threads would write to.
#[derive(Clone, Copy, Hash)]
pub(super) struct ManifestKey<'a>(pub(super) &'a Repository, pub(super) &'a Digest);

impl Equivalent<(Repository, Digest)> for ManifestKey<'_> {
    fn equivalent(&self, (repository, digest): &(Repository, Digest)) -> bool {
        self.1 == digest && self.0 == repository
    }
}

/// Manifests this process has served: they never change under a digest, and each counts for its own repository only.
pub(super) struct Warm {
    recent: MemoryCache<(Repository, Digest), Arc<WarmManifest>, ManifestBytes>,
    /// Those that are being sent: all clients that read one, however slowly, share it.
    sent: MemoryCache<(Repository, Digest), Weak<WarmManifest>>,
}

/// The most bytes of manifests kept in memory.
const WARM_BYTES: u64 = 8 * 1024 * 1024;
/// What the headers and the keys of a manifest take, about.
const BESIDE: u64 = 2048;
/// The most manifests that are shared while they are sent: as many as the program has connections.
const SENT: usize = 4096;

#[derive(Clone)]
struct ManifestBytes;

impl Weighter<(Repository, Digest), Arc<WarmManifest>> for ManifestBytes {
    fn weight(&self, _: &(Repository, Digest), manifest: &Arc<WarmManifest>) -> u64 {
        manifest.bytes.len() as u64 + BESIDE
    }
}

impl Warm {
    pub(super) fn new() -> Self {
        let recent = MemoryCache::with_weighter(1024, WARM_BYTES, ManifestBytes);
        Self { recent, sent: MemoryCache::new(SENT) }
    }

    pub(super) fn get(&self, key: ManifestKey<'_>) -> Option<Arc<WarmManifest>> {
        self.recent.get(&key).or_else(|| self.sent.get(&key)?.upgrade())
    }

    /// Adds a manifest, and returns the one that is there if another caller has added it meanwhile.
    pub(super) fn add(&self, repository: &Repository, manifest: Arc<WarmManifest>) -> Arc<WarmManifest> {
        let key = (repository.clone(), manifest.digest.clone());
        let manifest = self.get(ManifestKey(&key.0, &key.1)).unwrap_or(manifest);
        self.sent.insert(key.clone(), Arc::downgrade(&manifest));
        self.recent.insert(key, Arc::clone(&manifest));
        manifest
    }

    pub(super) fn remove(&self, key: ManifestKey<'_>) {
        self.recent.remove(&key);
        self.sent.remove(&key);
    }
}
