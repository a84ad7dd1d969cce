//! Manifests that are not stored yet: fetched, stored, and the fills of their blobs requested.

use std::cmp::Reverse;
use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use quick_cache::sync::Cache as MemoryCache;
use tokio::time::Instant;

use super::warm::{ManifestKey, WarmManifest};
use super::{Pull, PulledManifest, Result, Want};
use crate::config::{Cold, MaxBlob};
use crate::errors::{PullError, UpstreamError, beside, chain};
use crate::identity::Payer;
use crate::oci::{Descriptor, Digest, Manifest, Observed, Platforms, Reference, Repository};
use crate::ports::{ImageJob, Job, Priority};
use crate::records::{BlobRecord, BlobState, Versioned};
use crate::values::served::Served;

/// How long it is remembered that the blobs of a manifest are stored: a client asks for them next, and marks them as used.
const COMPLETE: Duration = Duration::from_hours(1);

/// The most blobs that a manifest waits for. Images have 127 layers at most (overlay file systems stack no more).
const MOST_AWAITED: usize = 200;

/// How long before the ledger is asked again whether blobs are stored, at first and at most.
const SOON: Duration = Duration::from_millis(50);
const LATER: Duration = Duration::from_secs(1);

/// Manifests that were fetched and refused, and why, so that upstream is not asked again. Each process has its own.
pub(crate) struct Refused(MemoryCache<(Repository, Digest), PullError>);

impl Refused {
    pub(crate) fn new() -> Self {
        Self(MemoryCache::new(10_000))
    }
}

impl Pull {
    /// Fetches and verifies a manifest, and stores it with the membership of its blobs. Requests, without waiting, the
    /// fills of its blobs, or for an index what the policy for platforms says. All at the expense of the caller.
    pub(super) async fn fetch(
        &self,
        repository: &Repository,
        reference: &Reference,
        want: &Want,
    ) -> Result<Arc<WarmManifest>> {
        if let Reference::Digest(digest) = reference
            && let Some(refused) = self.memory.refused.0.get(&ManifestKey(repository, digest))
        {
            return Err(refused);
        }
        let question = self.core.upstreams.get_manifest(repository, reference, want.priority != Priority::Interactive);
        let fetched = self.core.budgets.pay_pull(&want.bill, question).await?;
        // A stored digest keeps its type, whatever type upstream sends the same bytes with later.
        let manifest = match reference {
            Reference::Tag(_) => self.stored(repository, &fetched.digest).await?,
            Reference::Digest(_) => None,
        };
        let manifest = manifest.unwrap_or_else(|| Arc::new(WarmManifest::new(fetched)));
        let kept = self.keep(repository, &manifest, want).await;
        if let Err(error @ PullError::TooLarge { .. }) = &kept {
            self.memory.refused.0.insert((repository.clone(), manifest.digest.clone()), error.clone());
        }
        let blobs = kept?;
        tracing::info!(%repository, %reference, manifest.digest = %manifest.digest, blobs, "manifest fetched");
        Ok(self.memory.warm.add(repository, manifest))
    }

    /// Stores a manifest with the membership of its blobs, and requests the fills of those that the caller's budget has
    /// room for. Returns how many.
    pub(super) async fn keep(&self, repository: &Repository, manifest: &WarmManifest, want: &Want) -> Result<usize> {
        let blobs = blobs_of(manifest)?;
        for Descriptor { size, .. } in &blobs {
            self.check_size(repository, *size, Some(manifest))?;
        }
        let keep_proofs = !self.core.upstreams.is_open(repository);
        let (ledger, now) = (&self.core.storage.ledger, self.core.clock.now());
        // Each repository has its own copy. What a caller has no room for is passed on from memory.
        if self.core.budgets.pay_bytes(want.bill.payer, manifest.bytes.len() as u64).is_ok()
            && let put = ledger.put_manifest(repository, manifest, &blobs, keep_proofs, now).await
            && let Some(new_bytes) = beside(put, "a manifest")
        {
            self.noted_manifest(repository, &manifest.digest, now);
            self.note_held(repository, |holding| holding.with_bytes(new_bytes, now)).await;
        }
        self.follow_policy(repository, manifest, want).await;
        let (priority, payer) = (want.priority, want.bill.payer);
        // A manifest that is refused as a whole is not filled in part.
        let refused = match self.check_room(repository, manifest, want).await {
            Ok(()) => false,
            Err(PullError::OverBudget(_)) => true,
            Err(error) => return Err(error),
        };
        let jobs: Vec<Job> = blobs
            .into_iter()
            .filter(|_| !refused)
            .map(|blob| (blob.digest, blob.size, repository.clone()))
            .map(|(digest, size, repository)| Job { repository, digest, size, priority, payer })
            .filter(|job| self.core.budgets.admit(job).is_ok())
            .collect();
        if !jobs.is_empty()
            && let Err(error) = self.core.storage.fills.request(&jobs).await
        {
            // A later pull of a blob requests its fill again.
            tracing::warn!(%repository, error = %chain(&error), "fills could not be requested");
        }
        Ok(jobs.len())
    }

    /// Requests the other platforms that the policy wants, for an index that a pull has stored.
    async fn follow_policy(&self, repository: &Repository, manifest: &Manifest, want: &Want) {
        let Ok(upstream) = self.core.upstreams.get(repository) else { return };
        let platforms = &upstream.config().platforms;
        if *platforms == Platforms::Requested || !manifest.media_type.is_index() {
            return;
        }
        let (repository, reference) = (repository.clone(), Reference::Digest(manifest.digest.clone()));
        let (platforms, priority, payer) = (platforms.clone(), Priority::Prefetch, want.bill.payer);
        let image = ImageJob { repository, reference, platforms, priority, payer };
        if let Err(error) = self.core.storage.fills.request_images(std::slice::from_ref(&image)).await {
            tracing::warn!(repository = %image.repository, error = %chain(&error), "the platforms of an index could not be requested");
        }
    }

    /// Refuses a manifest to a caller whose budget has no room for its blobs, if clients would get nothing of cold
    /// blobs. Clients report an error at the manifest or use another registry; at a blob not all of them do.
    pub(super) async fn check_room(&self, repository: &Repository, manifest: &WarmManifest, want: &Want) -> Result<()> {
        let payer = want.bill.payer;
        if self.core.upstreams.get(repository)?.cold() == Cold::Redirect {
            return Ok(());
        }
        let whole = manifest.weight(|manifest| Ok::<_, PullError>(bytes_of(&blobs_of(manifest)?)))?;
        if self.core.budgets.check_bytes(payer, whole).is_ok() {
            return Ok(());
        }
        let mut blobs = blobs_of(manifest)?;
        blobs.retain(|blob| !self.core.budgets.is_paid(&blob.digest, blob.size));
        if self.core.budgets.check_bytes(payer, bytes_of(&blobs)).is_ok() {
            return Ok(());
        }
        // Stored blobs take no room, but each costs a lookup, which a refused caller must not get for free.
        let mut lookups = self.core.budgets.reserve_miss(payer).await?;
        lookups.mark_sent();
        let room = self.look_for_room(repository, blobs, payer).await;
        lookups.settle(matches!(room, Err(PullError::OverBudget(_))));
        room
    }

    /// Whether there is room for those of the blobs that are not stored.
    async fn look_for_room(
        &self,
        repository: &Repository,
        mut blobs: Vec<Descriptor>,
        payer: Option<Payer>,
    ) -> Result<()> {
        // The most and the least room that they need.
        let (mut most, mut least) = (bytes_of(&blobs), 0_u64);
        blobs.sort_unstable_by_key(|blob| Reverse(blob.size));
        for blob in blobs {
            if self.core.storage.ledger.blob(repository, &blob.digest).await?.is_stored() {
                most = most.saturating_sub(blob.size);
            } else {
                least = least.saturating_add(blob.size);
            }
            if self.core.budgets.check_bytes(payer, least).is_err() {
                break;
            }
        }
        Ok(self.core.budgets.check_bytes(payer, most)?)
    }

    /// Where clients get no cold blob before all of it is stored, they get no manifest before that, either: not all of
    /// them come back to a blob that takes longer than they wait, and what they have of an image by then is in vain.
    /// What else there is to say of a blob is said to those that ask for it.
    pub(super) async fn wait_for_blobs(
        &self,
        repository: &Repository,
        pulled: &PulledManifest,
        manifest: &Manifest,
        want: &Want,
        asked_at: Instant,
    ) -> Result<()> {
        let is_awaited = want.priority == Priority::Interactive && !manifest.media_type.is_index();
        if !is_awaited || self.core.upstreams.get(repository)?.cold() != Cold::Wait {
            return Ok(());
        }
        if self.memory.complete.get(&manifest.digest).is_some() {
            return Ok(());
        }
        let mut missing = blobs_of(manifest)?;
        // Each of them is a read each time, which no caller pays for.
        if missing.len() > MOST_AWAITED {
            return Ok(());
        }
        // With the manifest itself the fills were requested.
        let mut is_requested = pulled.served == Served::Miss;
        let (deadline, mut pause) = (self.waits_until(asked_at), SOON);
        loop {
            let digests: Vec<Digest> = missing.iter().map(|blob| blob.digest.clone()).collect();
            let known: HashMap<Digest, Versioned<BlobRecord>> =
                self.core.storage.ledger.get_all(&digests).await?.into_iter().collect();
            if known.values().any(|record| record.value.state == BlobState::Absent && record.value.failure.is_some()) {
                return Ok(());
            }
            let state = |blob: &Descriptor| known.get(&blob.digest).map(|record| &record.value.state);
            missing.retain(|blob| !matches!(state(blob), Some(BlobState::Stored { .. })));
            if missing.is_empty() {
                self.memory.complete.keep(manifest.digest.clone(), (), COMPLETE);
                return Ok(());
            }
            if !std::mem::replace(&mut is_requested, true) {
                let now = self.core.clock.now();
                let (priority, payer) = (Priority::Interactive, want.bill.payer);
                let cold = missing.iter().filter(|blob| !state(blob).is_some_and(|state| state.is_claimed(now)));
                let job = |blob: &Descriptor| {
                    let (repository, digest) = (repository.clone(), blob.digest.clone());
                    Job { repository, digest, size: blob.size, priority, payer }
                };
                let jobs: Vec<Job> = cold.map(job).collect();
                if jobs.iter().any(|job| self.admit(job).is_err()) {
                    return Ok(());
                }
                self.core.storage.fills.request(&jobs).await?;
            }
            if tokio::time::timeout_at(deadline, tokio::time::sleep(pause)).await.is_err() {
                return Err(PullError::NotYet);
            }
            pause = (pause * 3 / 2).min(LATER);
        }
    }

    /// Refuses a blob that is larger than the configuration allows, and with it the manifest that names it.
    pub(super) fn check_size(&self, repository: &Repository, size: u64, manifest: Option<&Manifest>) -> Result<()> {
        match &self.core.upstreams.get(repository)?.config().max_blob {
            Some(MaxBlob { bytes: most, key }) if size > *most => {
                let manifest = manifest.map(Observed::of);
                Err(PullError::TooLarge { size, most: *most, key: key.clone(), manifest })
            }
            _ => Ok(()),
        }
    }
}

fn bytes_of(blobs: &[Descriptor]) -> u64 {
    blobs.iter().fold(0, |bytes: u64, blob| bytes.saturating_add(blob.size))
}

/// The blobs that come with a manifest, without foreign layers: whether upstream has those is asked when a client wants
/// them.
fn blobs_of(manifest: &Manifest) -> Result<Vec<Descriptor>> {
    let mut blobs = manifest.blobs().map_err(|error| UpstreamError::Invalid(error.to_string()))?;
    blobs.retain(|blob| !blob.foreign);
    Ok(blobs)
}
