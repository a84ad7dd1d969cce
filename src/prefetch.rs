//! PREFETCH: an image is stored whole before anybody pulls it: its manifest, those children of an index that are for the
//! right platforms, and the blobs of all of them.

use std::collections::HashSet;
use std::net::IpAddr;
use std::sync::Arc;

use futures_util::{StreamExt as _, TryStreamExt as _, stream};

use serde::{Deserialize, Serialize};

use crate::Cache;
use crate::config::Schedule;
use crate::error::PullError;
use crate::oci::{Child, Descriptor, Digest, InvalidManifest, Manifest, Operation, Platforms, Reference};
use crate::oci::{Repository, Request};
use crate::ports::{ImageJob, Job, Priority, StoreError};
use crate::pull::Want;
use crate::upstream::UpstreamError;

/// The most manifests of one image that are fetched: an index of everything there is lists about fifty.
const MAX_MANIFESTS: usize = 500;

/// How many blobs are looked up at once.
const LOOKUPS: usize = 8;

/// An image whose manifests are stored, and whose blobs are or will be.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Prefetched {
    /// What its reference is now.
    pub digest: Digest,
    /// Every blob, and whether it is stored. The fills of the others are requested.
    pub blobs: Vec<(Descriptor, bool)>,
}

/// What `POST /_stopover/prefetch` says of one image.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct PrefetchReport {
    /// The image as it was asked for.
    pub image: String,
    /// What its reference is now; absent where it is not prefetched.
    pub digest: Option<Digest>,
    /// Every blob.
    pub blobs: Vec<PrefetchedBlob>,
    /// Why it is not prefetched, or not whole.
    pub error: Option<String>,
    /// That it took too long for one answer: asked again, it will have gone on.
    pub again: bool,
}

/// One blob of it.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct PrefetchedBlob {
    /// Its address.
    pub digest: Digest,
    /// Its length in bytes.
    pub size: u64,
    /// Whether it is stored; otherwise its fill is requested.
    pub stored: bool,
}

/// Stores an image that a policy or a schedule wants. Upstream need not have it for all the platforms that they name.
pub async fn run(cache: &Arc<Cache>, image: &ImageJob) -> Result<(), PullError> {
    match cache.prefetch(image, None).await {
        Ok(prefetched) => {
            let missing = prefetched.blobs.iter().filter(|(_, stored)| !stored).count();
            tracing::info!(
                repository = %image.repository, reference = %image.reference, manifest.digest = %prefetched.digest,
                blobs = prefetched.blobs.len(), missing, "image prefetched"
            );
            Ok(())
        }
        Err(error @ PullError::NoPlatform(_)) => {
            tracing::info!(repository = %image.repository, reference = %image.reference, %error, "nothing to prefetch");
            Ok(())
        }
        Err(error) => Err(error),
    }
}

impl Cache {
    /// The repository and the reference of an image, named as in [`Request::image`].
    pub fn image(&self, request: &Request) -> Result<(Repository, Reference), PullError> {
        match &request.operation {
            Operation::Manifest(name, reference) => Ok((self.upstreams.repository(request, name)?, reference.clone())),
            Operation::Ping | Operation::Blob(..) => Err(PullError::ManifestUnknown),
        }
    }

    /// Stores the manifests of an image, for `caller`, and requests the fills of its blobs.
    pub async fn prefetch(self: &Arc<Self>, image: &ImageJob, caller: Option<IpAddr>) -> Result<Prefetched, PullError> {
        let repository = &image.repository;
        let check = image.priority == Priority::Refresh;
        let want = Want { head: false, check, priority: image.priority, caller };
        let root = self.whole(repository, &image.reference, want).await?;
        let digest = root.digest.clone();
        let (manifests, failure) = self.descendants(root, image, Want { check: false, ..want }).await?;
        let mut wanted = Vec::new();
        for manifest in &manifests {
            wanted.extend(manifest.blobs().map_err(|error| invalid(&error))?);
        }
        let mut seen = HashSet::new();
        wanted.retain(|blob| !blob.foreign && seen.insert(blob.digest.clone()));
        let lookups = wanted.into_iter().map(async |blob: Descriptor| {
            let stored = self.has_blob(repository, &blob.digest).await?;
            Ok::<_, StoreError>((blob, stored))
        });
        let blobs: Vec<(Descriptor, bool)> = stream::iter(lookups).buffered(LOOKUPS).try_collect().await?;
        let jobs: Vec<Job> = blobs
            .iter()
            .filter(|(_, stored)| !stored)
            .map(|(blob, _)| Job {
                repository: repository.clone(),
                digest: blob.digest.clone(),
                size: blob.size,
                priority: image.priority,
            })
            .collect();
        self.fills.request(&jobs).await?;
        // What could be had is on its way, all the same.
        failure.map_or(Ok(Prefetched { digest, blobs }), Err)
    }

    /// A manifest and, below it, those that are for the right platforms; with the first failure, which keeps none of the
    /// others away.
    async fn descendants(
        self: &Arc<Self>,
        root: Arc<Manifest>,
        image: &ImageJob,
        want: Want,
    ) -> Result<(Vec<Arc<Manifest>>, Option<PullError>), PullError> {
        let mut seen = HashSet::from([root.digest.clone()]);
        let (mut manifests, mut failure) = (vec![root], None);
        let mut next = 0;
        while let Some(index) = manifests.get(next).map(Arc::clone) {
            next += 1;
            let children = index.children().map_err(|error| invalid(&error))?;
            let chosen = chosen(&index, &children, &image.platforms)?;
            for child in chosen {
                if seen.len() >= MAX_MANIFESTS || !seen.insert(child.digest.clone()) {
                    continue;
                }
                match self.whole(&image.repository, &Reference::Digest(child.digest.clone()), want).await {
                    Ok(manifest) => manifests.push(manifest),
                    Err(error) => _ = failure.get_or_insert(error),
                }
            }
        }
        Ok((manifests, failure))
    }

    async fn whole(
        self: &Arc<Self>,
        repository: &Repository,
        reference: &Reference,
        want: Want,
    ) -> Result<Arc<Manifest>, PullError> {
        self.manifest(repository, reference, want).await?.manifest.ok_or(PullError::ManifestUnknown)
    }

    /// Requests what the policy for platforms wants besides an index that a pull has stored.
    pub(crate) async fn follow_policy(&self, repository: &Repository, manifest: &Manifest) {
        let Ok(upstream) = self.upstreams.get(&repository.upstream) else { return };
        let platforms = &upstream.config().platforms;
        if *platforms == Platforms::Requested || !manifest.media_type.is_index() {
            return;
        }
        let (repository, reference) = (repository.clone(), Reference::Digest(manifest.digest.clone()));
        let image = ImageJob { repository, reference, platforms: platforms.clone(), priority: Priority::Prefetch };
        if let Err(error) = self.fills.request_images(std::slice::from_ref(&image)).await {
            tracing::warn!(repository = %image.repository, %error, "the platforms of an index could not be requested");
        }
    }

    /// Requests the images of those schedules that are due ([`Schedule::is_due`]), and says how many there are.
    pub async fn request_due_schedules(&self) -> Result<usize, StoreError> {
        let mut images = 0;
        for schedule in self.config.schedules.iter().filter(|schedule| schedule.is_due(self.clock.now())) {
            images += self.request_schedule(schedule).await?;
        }
        Ok(images)
    }

    /// Requests the images of a schedule: whoever runs them has upstream asked what their tags are now.
    pub async fn request_schedule(&self, schedule: &Schedule) -> Result<usize, StoreError> {
        let mut images = Vec::new();
        for request in &schedule.images {
            match self.image(request) {
                Ok((repository, reference)) => {
                    let platforms = schedule.platforms.clone();
                    images.push(ImageJob { repository, reference, platforms, priority: Priority::Refresh });
                }
                Err(error) => tracing::error!(%error, "an image of a schedule is none that can be pulled here"),
            }
        }
        self.fills.request_images(&images).await?;
        Ok(images.len())
    }
}

/// The children of an index that are for the right platforms. None at all is a mistake that people want to know of.
fn chosen<'a>(index: &Manifest, children: &'a [Child], platforms: &Platforms) -> Result<Vec<&'a Child>, PullError> {
    let chosen: Vec<&Child> = children.iter().filter(|child| platforms.mean(child.platform.as_ref())).collect();
    if chosen.is_empty() && index.media_type.is_index() {
        let mut there: Vec<String> =
            children.iter().filter_map(|child| child.platform.as_ref()).map(ToString::to_string).collect();
        there.retain(|platform| !platform.contains("unknown"));
        there.dedup();
        return Err(PullError::NoPlatform(there.join(", ")));
    }
    Ok(chosen)
}

fn invalid(error: &InvalidManifest) -> PullError {
    UpstreamError::Invalid(error.to_string()).into()
}
