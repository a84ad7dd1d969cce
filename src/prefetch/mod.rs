//! PREFETCH: stores a whole image before a client pulls it: its manifest, those children of an index that are for the
//! wanted platforms, and the blobs of all of them.

use std::collections::{HashSet, VecDeque};
use std::sync::Arc;

use futures_util::{StreamExt as _, TryStreamExt as _, stream};
use serde::{Deserialize, Serialize};
use tokio::task::yield_now;

use crate::budget::Bill;
use crate::config::Schedule;
use crate::core::Core;
use crate::errors::{PullError, StoreError, UpstreamError, chain};
use crate::oci::{Descriptor, Digest, InvalidManifest, Manifest, Platforms, Reference, Repository};
use crate::ports::{ImageJob, Job, Priority};
use crate::pull::{Pull, Want, WarmManifest};
use crate::values::pull_counter::PullCounter;
use crate::values::served::Served;
use crate::values::text::beginning;

/// The most manifests of one image: an index of all known platforms lists about fifty.
const MAX_MANIFESTS: usize = 500;

/// The most blobs of one image: Docker accepts at most 127 layers, and few platforms share layers.
pub(crate) const MAX_BLOBS: usize = 20_000;

/// The most characters of the list of platforms in an error, because that list comes from upstream.
const MAX_LISTED: usize = 1000;

/// How many blobs are looked up in the ledger at once.
const LOOKUPS: usize = 8;

/// An image whose manifests are stored, and whose blobs are stored or requested.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Prefetched {
    /// The digest that its reference has now.
    pub digest: Digest,
    /// All blobs. The fills of those that are not stored have been requested.
    pub blobs: Vec<PrefetchedBlob>,
}

/// The report on one image that `POST /_stopover/prefetch` answers.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub struct PrefetchReport {
    /// The image as the client named it.
    pub image: String,
    /// The digest that its reference has now; absent if it is not prefetched.
    pub digest: Option<Digest>,
    /// All blobs of the image.
    pub blobs: Vec<PrefetchedBlob>,
    /// Why it is not prefetched, or not completely.
    pub error: Option<String>,
    /// It took too long for one answer: the client should ask again, and prefetching will have gone on.
    pub again: bool,
    /// In how many seconds a budget that refuses it now will admit it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub retry_after: Option<u64>,
}

/// One blob of a prefetched image.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct PrefetchedBlob {
    /// The digest of its bytes.
    pub digest: Digest,
    /// Its length in bytes.
    pub size: u64,
    /// Whether it is stored. If not, its fill is requested.
    pub stored: bool,
}

/// Stores whole images.
pub struct Prefetch {
    core: Arc<Core>,
    pull: Arc<Pull>,
}

impl Prefetch {
    pub(crate) fn new(core: Arc<Core>, pull: Arc<Pull>) -> Self {
        Self { core, pull }
    }

    /// Stores an image that a policy or a schedule wants. Upstream need not have all the platforms that they name.
    pub async fn run(&self, image: &ImageJob) -> Result<(), PullError> {
        match self.image(image, &PullCounter::UNCOUNTED).await {
            Ok(prefetched) => {
                let missing = prefetched.blobs.iter().filter(|blob| !blob.stored).count();
                tracing::info!(
                    repository = %image.repository, reference = %image.reference, manifest.digest = %prefetched.digest,
                    blobs = prefetched.blobs.len(), missing, "image prefetched"
                );
                Ok(())
            }
            // A retry would not help: no platform matches, a blob is too large, or the payer's budget is spent. What
            // the payer pulls itself is checked then.
            Err(error @ (PullError::NoPlatform(_) | PullError::TooLarge { .. } | PullError::OverBudget(_))) => {
                tracing::info!(repository = %image.repository, reference = %image.reference,
                    error = %chain(&error), "nothing to prefetch");
                Ok(())
            }
            Err(error) => Err(error),
        }
    }

    /// Stores the manifests of an image, and requests the fills of its blobs. `spent` counts what upstream sends.
    pub async fn image(&self, image: &ImageJob, spent: &PullCounter) -> Result<Prefetched, PullError> {
        let repository = &image.repository;
        let check = image.priority == Priority::Refresh;
        let bill = Bill { payer: image.payer, spent: spent.clone() };
        let want = Want { check, priority: image.priority, bill, ..Want::GET };
        let root = self.whole(repository, &image.reference, want.clone()).await?;
        let digest = root.digest.clone();
        let (wanted, mut failure) = self.contents(root, image, Want { check: false, ..want }).await?;
        let lookups = wanted.into_iter().map(async |blob: Descriptor| {
            yield_now().await;
            let stored = self.pull.has_blob(repository, &blob.digest).await?;
            Ok::<_, StoreError>(PrefetchedBlob { digest: blob.digest, size: blob.size, stored })
        });
        let blobs: Vec<_> = stream::iter(lookups).buffered(LOOKUPS).try_collect().await?;
        let jobs: Vec<Job> = blobs
            .iter()
            .filter(|blob| !blob.stored)
            .map(|blob| Job {
                repository: repository.clone(),
                digest: blob.digest.clone(),
                size: blob.size,
                priority: image.priority,
                payer: image.payer,
            })
            .filter(|job| match self.core.budgets.admit(job) {
                Ok(()) => true,
                Err(over) => {
                    failure.get_or_insert(over.into());
                    false
                }
            })
            .collect();
        self.core.storage.fills.request(&jobs).await?;
        // The fills of what could be fetched are requested even so.
        failure.map_or(Ok(Prefetched { digest, blobs }), Err)
    }

    /// The blobs of a manifest, and of the children that are for the wanted platforms. Also returns the first failure,
    /// which does not stop the other children.
    async fn contents(
        &self,
        root: Arc<WarmManifest>,
        image: &ImageJob,
        want: Want,
    ) -> Result<(Vec<Descriptor>, Option<PullError>), PullError> {
        let mut contents = Contents::default();
        contents.add(&root, &image.platforms)?;
        // No match at all is a mistake that the caller should know of.
        if root.media_type.is_index() && contents.next.is_empty() {
            return Err(no_platform(&root));
        }
        drop(root);
        let mut failure = None;
        while let Some(digest) = contents.next.pop_front() {
            match self.whole(&image.repository, &Reference::Digest(digest), want.clone()).await {
                Ok(manifest) => contents.add(&manifest, &image.platforms)?,
                Err(error) => _ = failure.get_or_insert(error),
            }
        }
        Ok((contents.blobs, failure))
    }

    /// A manifest with its bytes. Lets others go first: where all of an image is stored, nothing else here waits, and
    /// neither other requests nor the deadline of this one would get a turn.
    async fn whole(
        &self,
        repository: &Repository,
        reference: &Reference,
        want: Want,
    ) -> Result<Arc<WarmManifest>, PullError> {
        yield_now().await;
        self.pull.manifest(repository, reference, want).await?.manifest.ok_or(PullError::ManifestUnknown(Served::Miss))
    }

    /// Requests the images of all schedules that are due ([`Schedule::is_due`]), and returns how many there are.
    pub async fn request_due_schedules(&self) -> Result<usize, StoreError> {
        let mut images = 0;
        for schedule in self.core.config.schedules.iter().filter(|schedule| schedule.is_due(self.core.clock.now())) {
            images += self.request_schedule(schedule).await?;
        }
        Ok(images)
    }

    /// Requests the images of a schedule and returns how many. The worker that runs them asks upstream what their tags
    /// are then.
    pub async fn request_schedule(&self, schedule: &Schedule) -> Result<usize, StoreError> {
        let mut images = Vec::new();
        for request in &schedule.images {
            match self.core.upstreams.image(request) {
                Ok((repository, reference)) => {
                    let (platforms, priority) = (schedule.platforms.clone(), Priority::Refresh);
                    images.push(ImageJob { repository, reference, platforms, priority, payer: None });
                }
                Err(error) => tracing::error!(%error, "an image of a schedule is none that can be pulled here"),
            }
        }
        self.core.storage.fills.request_images(&images).await?;
        Ok(images.len())
    }
}

/// The manifests and blobs of an image found so far. Keeps no manifest bytes and is limited, because upstream may be
/// hostile.
#[derive(Default)]
struct Contents {
    manifests: HashSet<Digest>,
    /// Manifests that have not been read yet.
    next: VecDeque<Digest>,
    digests: HashSet<Digest>,
    blobs: Vec<Descriptor>,
}

impl Contents {
    /// Adds the blobs of a manifest, and queues those of its children that are for the wanted platforms.
    fn add(&mut self, manifest: &Manifest, platforms: &Platforms) -> Result<(), PullError> {
        self.manifests.insert(manifest.digest.clone());
        for child in manifest.children().map_err(|error| invalid(&error))? {
            if platforms.mean(child.platform.as_ref()) && self.manifests.insert(child.digest.clone()) {
                self.next.push_back(child.digest);
            }
            if self.manifests.len() > MAX_MANIFESTS {
                return Err(too_large(MAX_MANIFESTS, "manifests"));
            }
        }
        for blob in manifest.blobs().map_err(|error| invalid(&error))? {
            if !blob.foreign && self.digests.insert(blob.digest.clone()) {
                self.blobs.push(blob);
            }
            if self.blobs.len() > MAX_BLOBS {
                return Err(too_large(MAX_BLOBS, "blobs"));
            }
        }
        Ok(())
    }
}

fn no_platform(index: &Manifest) -> PullError {
    let children = index.children().unwrap_or_default();
    let mut there: Vec<String> =
        children.iter().filter_map(|child| child.platform.as_ref()).map(ToString::to_string).collect();
    there.retain(|platform| !platform.contains("unknown"));
    there.dedup();
    PullError::NoPlatform(beginning(&there.join(", "), MAX_LISTED))
}

fn invalid(error: &InvalidManifest) -> PullError {
    UpstreamError::Invalid(error.to_string()).into()
}

fn too_large(limit: usize, what: &str) -> PullError {
    UpstreamError::Invalid(format!("the image has more than {limit} {what}: too many to prefetch")).into()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::oci::{Algorithm, MediaType};

    fn described(numbers: std::ops::Range<usize>) -> String {
        let digest = |number: usize| Digest::of(Algorithm::Sha256, &number.to_be_bytes());
        let described = numbers.map(|number| format!(r#"{{"digest":"{}","size":1}}"#, digest(number)));
        described.collect::<Vec<_>>().join(",")
    }

    fn manifest(media_type: MediaType, body: String) -> Manifest {
        Manifest::new(Digest::of(Algorithm::Sha256, body.as_bytes()), media_type, body.into()).unwrap()
    }

    #[test]
    fn an_image_has_so_many_manifests_and_blobs_and_no_more() {
        let index = |count| manifest(MediaType::OciIndex, format!(r#"{{"manifests":[{}]}}"#, described(0..count)));
        let mut contents = Contents::default();
        // The index counts too.
        contents.add(&index(MAX_MANIFESTS - 1), &Platforms::All).unwrap();
        assert_eq!(contents.next.len(), MAX_MANIFESTS - 1);
        let error = contents.add(&index(MAX_MANIFESTS), &Platforms::All).unwrap_err();
        assert!(error.to_string().contains("more than 500 manifests"), "{error}");

        let image = |blobs: std::ops::Range<usize>| {
            let (config, layers) = (described(blobs.start..blobs.start + 1), described(blobs));
            manifest(MediaType::OciManifest, format!(r#"{{"config":{config},"layers":[{layers}]}}"#))
        };
        let mut contents = Contents::default();
        for first in (0..MAX_BLOBS).step_by(100) {
            contents.add(&image(first..first + 100), &Platforms::All).unwrap();
        }
        // A blob that is known already counts once.
        contents.add(&image(0..100), &Platforms::All).unwrap();
        assert_eq!(contents.blobs.len(), MAX_BLOBS);
        let error = contents.add(&image(MAX_BLOBS..MAX_BLOBS + 1), &Platforms::All).unwrap_err();
        assert!(error.to_string().contains("more than 20000 blobs"), "{error}");
    }
}
