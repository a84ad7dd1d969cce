//! Answers without asking upstream: from fresh records, from what upstream said last, and from storage.

use std::sync::{Arc, Weak};

use quick_cache::Weighter;
use quick_cache::sync::Cache as MemoryCache;

use super::{Pull, PulledManifest, Want};
use crate::config::Deleted;
use crate::errors::PullError;
use crate::oci::{Digest, Manifest, Observed, Repository};
use crate::records::tag::{self, Step};
use crate::records::{Previous, TagRecord};
use crate::upstream::{Evidence, Upstream};
use crate::values::pull_counter::PullCounter;
use crate::values::served::Served;

/// Manifests this process has served: they never change under a digest, and each counts for its own repository only.
pub(crate) struct Warm {
    recent: MemoryCache<(Repository, Digest), Arc<Manifest>, ManifestBytes>,
    /// Those that are being sent: all clients that read one, however slowly, share it.
    sent: MemoryCache<(Repository, Digest), Weak<Manifest>>,
}

/// The most bytes of manifests kept in memory.
const WARM_BYTES: u64 = 8 * 1024 * 1024;
/// The most manifests that are shared while they are sent: as many as the program has connections.
const SENT: usize = 4096;

#[derive(Clone)]
struct ManifestBytes;

impl Weighter<(Repository, Digest), Arc<Manifest>> for ManifestBytes {
    fn weight(&self, _: &(Repository, Digest), manifest: &Arc<Manifest>) -> u64 {
        manifest.bytes.len() as u64 + 512
    }
}

impl Warm {
    pub(crate) fn new() -> Self {
        let recent = MemoryCache::with_weighter(1024, WARM_BYTES, ManifestBytes);
        Self { recent, sent: MemoryCache::new(SENT) }
    }

    fn get(&self, key: &(Repository, Digest)) -> Option<Arc<Manifest>> {
        self.recent.get(key).or_else(|| self.sent.get(key)?.upgrade())
    }

    /// Adds a manifest, and returns the one that is there if another caller has added it meanwhile.
    pub(super) fn add(&self, key: (Repository, Digest), manifest: Arc<Manifest>) -> Arc<Manifest> {
        let manifest = self.get(&key).unwrap_or(manifest);
        self.sent.insert(key.clone(), Arc::downgrade(&manifest));
        self.recent.insert(key, Arc::clone(&manifest));
        manifest
    }

    pub(super) fn remove(&self, key: &(Repository, Digest)) {
        self.recent.remove(key);
        self.sent.remove(key);
    }
}

impl Pull {
    /// The answer that a fresh record gives without upstream. `None`: upstream has to be asked.
    pub(super) async fn answer(
        &self,
        repository: &Repository,
        record: Option<&TagRecord>,
        want: &Want,
    ) -> Result<Option<Result<PulledManifest, PullError>>, PullError> {
        match tag::decide(record, "", false, self.core.clock.now()) {
            // 3. A fresh record: what it says, without upstream.
            Step::Fresh(observed) if want.head => {
                let pulled = PulledManifest { observed: observed.clone(), manifest: None, served: Served::Hit };
                Ok(Some(Ok(pulled)))
            }
            Step::Fresh(observed) => {
                let manifest = self.stored(repository, &observed.digest).await?;
                Ok(manifest.map(|manifest| Ok(PulledManifest::new(manifest, Served::Hit))))
            }
            // 4. A remembered "missing".
            Step::Missing => Ok(Some(Err(PullError::ManifestUnknown(Served::Hit)))),
            Step::Held | Step::Ask(_) => Ok(None),
        }
    }

    /// The last content of a tag that upstream has deleted, if the configuration says to go on serving it.
    pub(super) async fn deleted(
        self: &Arc<Self>,
        upstream: &Upstream,
        repository: &Repository,
        record: &TagRecord,
        spent: &PullCounter,
    ) -> Result<Option<PulledManifest>, PullError> {
        match upstream.config().deleted {
            Deleted::Missing => Ok(None),
            Deleted::Serve => {
                let Some(known) = self.last_known(upstream, repository, Some(record)).await? else { return Ok(None) };
                // A tag that upstream calls missing may only be hidden from us now.
                let evidence = Evidence::Manifest(known.observed.digest.clone());
                Ok(self.membership.check_permission(repository, evidence, None, spent).await.is_ok().then_some(known))
            }
        }
    }

    /// What upstream said last about a tag, if that is stored and not too old.
    pub(super) async fn last_known(
        &self,
        upstream: &Upstream,
        repository: &Repository,
        record: Option<&TagRecord>,
    ) -> Result<Option<PulledManifest>, PullError> {
        let Some(record) = record else { return Ok(None) };
        if !self.membership.may_be_stale(repository).await? {
            return Ok(None);
        }
        for digest in tag::last_known(record, upstream.config().stale, self.core.clock.now()) {
            if let Some(manifest) = self.stored(repository, digest).await? {
                return Ok(Some(PulledManifest::new(manifest, Served::Stale)));
            }
        }
        Ok(None)
    }

    /// A manifest stored for this repository, from memory if this process has served it before.
    pub(super) async fn stored(
        &self,
        repository: &Repository,
        digest: &Digest,
    ) -> Result<Option<Arc<Manifest>>, PullError> {
        let key = (repository.clone(), digest.clone());
        if let Some(manifest) = self.warm.get(&key) {
            return Ok(Some(manifest));
        }
        let Some((manifest, used_at)) = self.core.ledger.manifest(repository, digest).await? else { return Ok(None) };
        self.noted_manifest(repository, digest, used_at);
        Ok(Some(self.warm.add(key, Arc::new(manifest))))
    }
}

impl PulledManifest {
    pub(super) fn new(manifest: Arc<Manifest>, served: Served) -> Self {
        Self { observed: Observed::of(&manifest), manifest: Some(manifest), served }
    }
}

/// The last digest that the tag had.
pub(super) fn before(known: &TagRecord) -> Option<Previous> {
    let observed = known.observed.as_ref();
    let last = observed.map(|observed| Previous { digest: observed.digest.clone(), checked_at: known.checked_at });
    last.or_else(|| known.previous.clone())
}
