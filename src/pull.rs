//! THE READ PATH: manifest by tag, manifest by digest, blob. The numbers are those of README's data path.

use std::fs::File;
use std::sync::Arc;
use std::time::Duration;

use quick_cache::Weighter;
use quick_cache::sync::Cache as MemoryCache;
use tokio::sync::watch;
use tokio::time::Instant;

use crate::Cache;
use crate::config::Cold;
use crate::error::PullError;
use crate::oci::{Digest, Manifest, Reference, Repository, Tag};
use crate::ports::{BlobState, BlobView, Job, Location, Observed, Progress, TagRecord, Versioned};
use crate::upstream::{BlobSource, Upstream, UpstreamError};

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
    Redirect(String),
    /// In a stored file.
    File(Arc<File>),
    /// In a file that a fill is writing.
    Growing(Arc<File>, watch::Receiver<Progress>),
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

impl Cache {
    /// Answers a pull of a manifest. A client's HEAD never makes us GET a manifest by digest upstream.
    pub async fn manifest(
        &self,
        repository: &Repository,
        reference: &Reference,
        head: bool,
    ) -> Result<PulledManifest, PullError> {
        match reference {
            Reference::Tag(tag) => self.by_tag(repository, tag, head).await,
            Reference::Digest(digest) => self.by_digest(repository, digest, head).await,
        }
    }

    async fn by_tag(
        &self,
        repository: &Repository,
        tag: &Tag,
        head: bool,
    ) -> Result<PulledManifest, PullError> {
        let upstream = self.upstreams.get(&repository.upstream)?;
        let record = self.ledger.tag(repository, tag).await?;
        if let Some(record) = record
            .as_ref()
            .filter(|record| self.clock.now() < record.value.fresh_until)
        {
            return match &record.value.observed {
                // 1. A fresh record: its manifest, no upstream.
                Some(observed) => {
                    self.observed(repository, observed, &record.value, head, Served::Hit)
                        .await
                }
                // 2. A remembered "missing".
                None => Err(PullError::ManifestUnknown),
            };
        }
        let stale = record.as_ref().map(|record| &record.value);
        match self
            .ask(upstream, repository, tag, record.as_ref(), head)
            .await
        {
            Ok(pulled) => Ok(pulled),
            Err(PullError::Upstream(UpstreamError::Missing)) => {
                self.remember(upstream, repository, tag, record.as_ref(), None)
                    .await?;
                Err(PullError::ManifestUnknown)
            }
            // 4. Upstream in trouble: what it said last. Not where it refuses us: permission may have been taken away.
            Err(PullError::Upstream(error)) if !matches!(error, UpstreamError::Denied(_)) => {
                let last = stale
                    .and_then(|record| record.observed.as_ref().map(|observed| &observed.digest));
                let candidates = last
                    .into_iter()
                    .chain(stale.and_then(|record| record.previous.as_ref()));
                for digest in candidates {
                    if let Some(manifest) = self.stored(repository, digest).await? {
                        tracing::warn!(%repository, %tag, %error, "upstream is in trouble: serving what it said last");
                        return Ok(PulledManifest::new(manifest, Served::Stale));
                    }
                }
                Err(error.into())
            }
            Err(error) => Err(error),
        }
    }

    /// Asks upstream what a tag is, and has the manifest stored before the record says so.
    async fn ask(
        &self,
        upstream: &Upstream,
        repository: &Repository,
        tag: &Tag,
        record: Option<&Versioned<TagRecord>>,
        head: bool,
    ) -> Result<PulledManifest, PullError> {
        let reference = Reference::Tag(tag.clone());
        // 5. Nothing is known and the client wants the bytes: one GET says it all.
        let known = record.is_some_and(|record| record.value.observed.is_some());
        let observed = if known || head {
            upstream.head_manifest(&repository.name, &reference).await?
        } else {
            None
        };
        let pulled = match observed {
            None => {
                let manifest = self.fetch(upstream, repository, &reference).await?;
                PulledManifest::new(manifest, Served::Miss)
            }
            Some(observed) => match self.stored(repository, &observed.digest).await? {
                Some(manifest) => PulledManifest::new(manifest, Served::Revalidated),
                None if head => PulledManifest {
                    observed,
                    manifest: None,
                    served: Served::Miss,
                },
                None => {
                    let moved = Reference::Digest(observed.digest);
                    PulledManifest::new(
                        self.fetch(upstream, repository, &moved).await?,
                        Served::Miss,
                    )
                }
            },
        };
        self.remember(upstream, repository, tag, record, Some(&pulled.observed))
            .await?;
        Ok(pulled)
    }

    /// Writes what upstream said of a tag. A write that another process overtook is not repeated: that one has just asked
    /// upstream too.
    async fn remember(
        &self,
        upstream: &Upstream,
        repository: &Repository,
        tag: &Tag,
        record: Option<&Versioned<TagRecord>>,
        observed: Option<&Observed>,
    ) -> Result<(), PullError> {
        let now = self.clock.now();
        let config = upstream.config();
        let fresh = if observed.is_some() {
            config.fresh
        } else {
            config.missing
        };
        let before =
            record.and_then(|record| record.value.observed.as_ref().map(|before| &before.digest));
        let moved = before.is_some() && before != observed.map(|observed| &observed.digest);
        let previous = match before {
            Some(before) if moved && self.stored(repository, before).await?.is_some() => {
                Some(before.clone())
            }
            _ => record.and_then(|record| record.value.previous.clone()),
        };
        let new = TagRecord {
            observed: observed.cloned(),
            previous,
            checked_at: now,
            fresh_until: now.plus(fresh),
        };
        self.ledger
            .swap_tag(repository, tag, record.map(|record| record.version), &new)
            .await?;
        Ok(())
    }

    /// The manifest a fresh record means. It may not be stored yet, where only HEAD has been asked for so far.
    async fn observed(
        &self,
        repository: &Repository,
        observed: &Observed,
        record: &TagRecord,
        head: bool,
        served: Served,
    ) -> Result<PulledManifest, PullError> {
        if head {
            return Ok(PulledManifest {
                observed: observed.clone(),
                manifest: None,
                served,
            });
        }
        match self.by_digest(repository, &observed.digest, head).await {
            Err(PullError::Upstream(error)) if !matches!(error, UpstreamError::Denied(_)) => {
                if let Some(previous) = &record.previous
                    && let Some(manifest) = self.stored(repository, previous).await?
                {
                    return Ok(PulledManifest::new(manifest, Served::Stale));
                }
                Err(error.into())
            }
            other => other,
        }
    }

    async fn by_digest(
        &self,
        repository: &Repository,
        digest: &Digest,
        head: bool,
    ) -> Result<PulledManifest, PullError> {
        if let Some(manifest) = self.stored(repository, digest).await? {
            return Ok(PulledManifest::new(manifest, Served::Hit));
        }
        let upstream = self.upstreams.get(&repository.upstream)?;
        let reference = Reference::Digest(digest.clone());
        if head && let Some(observed) = upstream.head_manifest(&repository.name, &reference).await?
        {
            let observed = Observed {
                digest: digest.clone(),
                ..observed
            };
            return Ok(PulledManifest {
                observed,
                manifest: None,
                served: Served::Miss,
            });
        }
        let manifest = self.fetch(upstream, repository, &reference).await?;
        Ok(PulledManifest::new(manifest, Served::Miss))
    }

    /// A manifest stored for this repository, from memory where this process has served it before.
    async fn stored(
        &self,
        repository: &Repository,
        digest: &Digest,
    ) -> Result<Option<Arc<Manifest>>, PullError> {
        let key = (repository.clone(), digest.clone());
        if let Some(manifest) = self.warm.0.get(&key) {
            return Ok(Some(manifest));
        }
        let manifest = self
            .ledger
            .manifest(repository, digest)
            .await?
            .map(Arc::new);
        if let Some(manifest) = &manifest {
            self.warm.0.insert(key, Arc::clone(manifest));
        }
        Ok(manifest)
    }

    /// Fetches a manifest, verified, and stores it with the membership of its blobs; their fills are requested and not
    /// waited for.
    async fn fetch(
        &self,
        upstream: &Upstream,
        repository: &Repository,
        reference: &Reference,
    ) -> Result<Arc<Manifest>, PullError> {
        let manifest = upstream.get_manifest(&repository.name, reference).await?;
        let blobs = manifest
            .blobs()
            .map_err(|error| UpstreamError::Invalid(error.to_string()))?;
        self.ledger
            .put_manifest(repository, &manifest, &blobs)
            .await?;
        let wanted = blobs.into_iter().filter(|blob| !blob.foreign);
        let jobs: Vec<Job> = wanted
            .map(|blob| Job {
                repository: repository.clone(),
                digest: blob.digest,
                size: blob.size,
            })
            .collect();
        if !jobs.is_empty()
            && let Err(error) = self.fills.request(&jobs).await
        {
            // Whoever asks for a blob requests its fill again.
            tracing::warn!(%repository, %error, "fills could not be requested");
        }
        tracing::info!(%repository, %reference, manifest.digest = %manifest.digest, blobs = jobs.len(), "manifest stored");
        let manifest = Arc::new(manifest);
        self.warm.0.insert(
            (repository.clone(), manifest.digest.clone()),
            Arc::clone(&manifest),
        );
        Ok(manifest)
    }

    /// Answers a pull of a blob.
    pub async fn blob(
        &self,
        repository: &Repository,
        digest: &Digest,
        head: bool,
    ) -> Result<PulledBlob, PullError> {
        let upstream = self.upstreams.get(&repository.upstream)?;
        let view = self.ledger.blob(repository, digest).await?;
        // 1. Permission first: that storage has the bytes says nothing about this repository.
        let size = match view.member {
            Some(size) => size,
            None => self.ask_membership(upstream, repository, digest).await?,
        };
        if head {
            let served = if is_stored(&view) {
                Served::Hit
            } else {
                Served::Miss
            };
            return Ok(PulledBlob {
                size,
                content: Content::None,
                served,
            });
        }
        // 2. Stored: wherever the bytes are.
        if is_stored(&view)
            && let Some(location) = self.blobs.locate(digest).await?
        {
            return Ok(PulledBlob::at(location, size, Served::Hit));
        }
        // 3. Not stored: request the fill, then by policy.
        let job = Job {
            repository: repository.clone(),
            digest: digest.clone(),
            size,
        };
        match upstream.cold() {
            Cold::Redirect => self.redirect(upstream, &view, &job).await,
            Cold::Wait | Cold::Follow => self.wait(&job, upstream.cold() == Cold::Follow).await,
        }
    }

    /// Asks upstream whether a blob belongs to a repository, and notes it. Not by HEAD, which some registries refuse.
    async fn ask_membership(
        &self,
        upstream: &Upstream,
        repository: &Repository,
        digest: &Digest,
    ) -> Result<u64, PullError> {
        let size = match upstream.open_blob(&repository.name, digest).await {
            Ok((Some(size), _)) => size,
            Ok((None, _)) => {
                return Err(
                    UpstreamError::Invalid("it does not say how long the blob is".into()).into(),
                );
            }
            Err(UpstreamError::Missing) => return Err(PullError::BlobUnknown),
            Err(error) => return Err(error.into()),
        };
        self.ledger.put_membership(repository, digest, size).await?;
        Ok(size)
    }

    async fn redirect(
        &self,
        upstream: &Upstream,
        view: &BlobView,
        job: &Job,
    ) -> Result<PulledBlob, PullError> {
        let now = self.clock.now();
        let running = view.record.as_ref().is_some_and(
            |record| matches!(record.value.state, BlobState::Claimed { until, .. } if now < until),
        );
        if !running && let Err(error) = self.fills.request(std::slice::from_ref(job)).await {
            tracing::warn!(repository = %job.repository, blob.digest = %job.digest, %error, "fill could not be requested");
        }
        match upstream
            .blob_source(&job.repository.name, &job.digest)
            .await
        {
            Ok(BlobSource::Public(url)) => Ok(PulledBlob {
                size: job.size,
                content: Content::Redirect(url.into()),
                served: Served::Miss,
            }),
            // Nothing a client could use: the bytes come with our credentials only.
            Ok(BlobSource::Private) => self.wait(job, false).await,
            Err(UpstreamError::Missing) => Err(PullError::BlobUnknown),
            Err(error) => Err(error.into()),
        }
    }

    /// Waits for a fill: until the blob is stored, or (`follow`) until its first bytes are there.
    async fn wait(&self, job: &Job, follow: bool) -> Result<PulledBlob, PullError> {
        let deadline = Instant::now() + self.config.wait;
        let found = async {
            match self.fills.request_now(job).await? {
                Some(progress) => self.watch(job, progress, follow).await,
                None => self.poll(job).await,
            }
        };
        tokio::time::timeout_at(deadline, found)
            .await
            .unwrap_or(Err(PullError::NotYet))
    }

    async fn watch(
        &self,
        job: &Job,
        mut progress: watch::Receiver<Progress>,
        follow: bool,
    ) -> Result<PulledBlob, PullError> {
        loop {
            let latest = progress.borrow_and_update().clone();
            match latest {
                Progress::Stored => return self.located(job).await,
                Progress::Failed(error) => return Err(error.into()),
                Progress::Growing { file, .. } if follow => {
                    let content = Content::Growing(file, progress);
                    return Ok(PulledBlob {
                        size: job.size,
                        content,
                        served: Served::Miss,
                    });
                }
                Progress::Waiting | Progress::Growing { .. } => {}
            }
            if progress.changed().await.is_err() {
                return Err(PullError::NotYet);
            }
        }
    }

    /// Watches the ledger where the fill runs in another process, until the blob is stored or its fill has failed.
    async fn poll(&self, job: &Job) -> Result<PulledBlob, PullError> {
        let mut pause = Duration::from_millis(50);
        let mut attempts = None;
        loop {
            let record = self
                .ledger
                .blob(&job.repository, &job.digest)
                .await?
                .record
                .map(|record| record.value);
            let tried = record.as_ref().map_or(0, |record| record.attempts);
            match record.map(|record| record.state) {
                Some(BlobState::Stored { .. }) => return self.located(job).await,
                Some(BlobState::Absent) if tried > *attempts.get_or_insert(tried) => {
                    return Err(PullError::NotYet);
                }
                _ => _ = attempts.get_or_insert(tried),
            }
            tokio::time::sleep(pause).await;
            pause = (pause * 3 / 2).min(Duration::from_millis(500));
        }
    }

    async fn located(&self, job: &Job) -> Result<PulledBlob, PullError> {
        let location = self
            .blobs
            .locate(&job.digest)
            .await?
            .ok_or(PullError::NotYet)?;
        Ok(PulledBlob::at(location, job.size, Served::Miss))
    }
}

fn is_stored(view: &BlobView) -> bool {
    view.record
        .as_ref()
        .is_some_and(|record| matches!(record.value.state, BlobState::Stored { .. }))
}

impl PulledManifest {
    fn new(manifest: Arc<Manifest>, served: Served) -> Self {
        let size = manifest.bytes.len() as u64;
        let observed = Observed {
            digest: manifest.digest.clone(),
            media_type: manifest.media_type,
            size,
        };
        Self {
            observed,
            manifest: Some(manifest),
            served,
        }
    }
}

impl PulledBlob {
    fn at(location: Location, size: u64, served: Served) -> Self {
        match location {
            Location::Url(url) => Self {
                size,
                content: Content::Redirect(url),
                served,
            },
            Location::File(file, size) => Self {
                size,
                content: Content::File(file),
                served,
            },
        }
    }
}
