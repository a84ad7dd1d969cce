//! What was not stored: fetched, stored, and its blobs requested.

use std::sync::Arc;

use crate::Cache;
use crate::error::PullError;
use crate::oci::{Manifest, Reference, Repository};
use crate::ports::{Job, Priority};
use crate::upstream::UpstreamError;

impl Cache {
    /// Fetches a manifest, verified, and stores it with the membership of its blobs; their fills, or what the policy for
    /// platforms says of an index, are requested and not waited for.
    pub(super) async fn fetch(
        &self,
        repository: &Repository,
        reference: &Reference,
        priority: Priority,
    ) -> Result<Arc<Manifest>, PullError> {
        let background = priority != Priority::Interactive;
        let manifest = self.upstreams.get_manifest(repository, reference, background).await?;
        let blobs = self.keep(repository, &manifest, priority).await?;
        tracing::info!(%repository, %reference, manifest.digest = %manifest.digest, blobs, "manifest stored");
        let manifest = Arc::new(manifest);
        self.warm.0.insert((repository.clone(), manifest.digest.clone()), Arc::clone(&manifest));
        Ok(manifest)
    }

    /// Stores a manifest with the membership of its blobs and requests their fills; says how many.
    pub(super) async fn keep(
        &self,
        repository: &Repository,
        manifest: &Manifest,
        priority: Priority,
    ) -> Result<usize, PullError> {
        let mut blobs = manifest.blobs().map_err(|error| UpstreamError::Invalid(error.to_string()))?;
        // Whether upstream has a foreign layer at all is asked when a client wants it.
        blobs.retain(|blob| !blob.foreign);
        self.ledger.put_manifest(repository, manifest, &blobs, self.clock.now()).await?;
        self.noted_manifest(repository, &manifest.digest);
        self.follow_policy(repository, manifest).await;
        let jobs: Vec<Job> = blobs
            .into_iter()
            .map(|blob| Job { repository: repository.clone(), digest: blob.digest, size: blob.size, priority })
            .collect();
        if !jobs.is_empty()
            && let Err(error) = self.fills.request(&jobs).await
        {
            // Whoever asks for a blob requests its fill again.
            tracing::warn!(%repository, %error, "fills could not be requested");
        }
        Ok(jobs.len())
    }
}
