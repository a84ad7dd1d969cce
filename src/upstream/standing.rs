//! What each upstream last said about a repository as a whole: that it does not exist, or that it shows it to us.

use std::sync::Arc;
use std::time::Duration;

use quick_cache::sync::Cache as MemoryCache;

use super::{Patience, Result, Upstreams};
use crate::config::UpstreamConfig;
use crate::errors::{PullError, StoreError, UpstreamError, chain};
use crate::oci::{Digest, Reference, Repository};
use crate::ports::Ledger;
use crate::records::Standing;
use crate::values::time::{Clock, Timestamp};

/// How long an absent repository is remembered. Longer than a missing tag: repositories appear far less often.
const ABSENT: Duration = Duration::from_mins(5);

/// The ledger has all standings; memory has those that this process has used.
pub(crate) struct Standings {
    clock: Clock,
    ledger: Arc<dyn Ledger>,
    met: MemoryCache<Repository, Standing>,
}

/// The content that upstream is asked for, to check that it still shows the repository to us.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub(crate) enum Evidence {
    Manifest(Digest),
    Blob(Digest),
}

/// What an answer says about a repository as a whole.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Said {
    /// We may read it.
    Shown,
    /// We may not read it.
    Refused,
    /// It does not exist, or is hidden from us.
    Absent,
}

/// What an answer says about the repository. `None`: nothing.
pub(super) fn says<T>(asked: &Result<T>) -> Option<Said> {
    match asked {
        Ok(_) => Some(Said::Shown),
        Err(UpstreamError::Denied(_)) => Some(Said::Refused),
        Err(UpstreamError::NoRepository) => Some(Said::Absent),
        Err(_) => None,
    }
}

/// Like [`says`], for a request whose answer may be inconclusive.
pub(super) fn says_if_any<T>(asked: &Result<Option<T>>) -> Option<Said> {
    if matches!(asked, Ok(None)) { None } else { says(asked) }
}

impl Standings {
    pub(super) fn new(clock: Clock, ledger: Arc<dyn Ledger>) -> Self {
        Self { clock, ledger, met: MemoryCache::new(10_000) }
    }

    /// Refuses a repository that upstream has recently called absent, as far as this process knows.
    pub(crate) fn check_known_absent(&self, repository: &Repository) -> Result<()> {
        match self.met.get(repository) {
            Some(Standing::Absent { until }) if until.is_ahead(ABSENT, self.clock.now()) => {
                Err(UpstreamError::NoRepository)
            }
            _ => Ok(()),
        }
    }

    /// Like [`Self::check_known_absent`], with what other processes know.
    pub(crate) async fn check_absent(&self, repository: &Repository) -> Result<(), PullError> {
        self.check_known_absent(repository)?;
        self.read(repository).await?;
        Ok(self.check_known_absent(repository)?)
    }

    /// Notes that upstream does not have the repository: requests for it cost nothing for a while. If it has shown us
    /// something of it lately, that was said of one thing only; whether we may see the rest of a private repository is
    /// asked again.
    async fn note_absent(&self, repository: &Repository, config: &UpstreamConfig) -> Result<(), StoreError> {
        let (known, now) = (self.read(repository).await?, self.clock.now());
        // Of a private repository, not longer than we may serve it without asking.
        let permitted = if config.is_private() { config.permission * 2 / 3 } else { Duration::MAX };
        let lately = config.tags.fresh.min(permitted);
        match known.is_some_and(|known| known.is_shown(lately, now)) {
            true if config.is_private() => self.forget(repository).await,
            true => Ok(()),
            false => self.put(repository, Standing::Absent { until: now.plus(ABSENT) }).await,
        }
    }

    /// Notes that upstream has the repository after all, so that its content is asked for again. Other processes that
    /// remember it as absent do so until that expires.
    pub(crate) async fn note_present(&self, repository: &Repository) -> Result<(), StoreError> {
        match self.read(repository).await? {
            Some(Standing::Absent { .. }) => self.forget(repository).await,
            Some(Standing::Shown { .. }) | None => Ok(()),
        }
    }

    /// When upstream last showed us something of a private repository. Reads the ledger only where memory is older than
    /// `permission`.
    pub(crate) async fn shown_at(
        &self,
        repository: &Repository,
        permission: Duration,
    ) -> Result<Option<Timestamp>, StoreError> {
        if let Some(Standing::Shown { at, .. }) = self.met.get(repository)
            && at.plus(permission).is_ahead(permission, self.clock.now())
        {
            return Ok(Some(at));
        }
        Ok(match self.read(repository).await? {
            Some(Standing::Shown { at, .. }) => Some(at),
            Some(Standing::Absent { .. }) | None => None,
        })
    }

    /// Awaits a request and notes what its answer says about the repository; about a public one, not that we may not
    /// read it. If that cannot be noted, the pull goes on.
    pub(super) async fn noted<T>(
        &self,
        repository: &Repository,
        config: &UpstreamConfig,
        says: impl Fn(&Result<T>) -> Option<Said>,
        asking: impl Future<Output = Result<T>>,
    ) -> Result<T> {
        // The time before the request: access that was revoked meanwhile still existed then.
        let at = self.clock.now();
        let asked = asking.await;
        let noted = match says(&asked) {
            Some(Said::Absent) => self.note_absent(repository, config).await,
            Some(Said::Shown) => self.note_shown(repository, config, at).await,
            Some(Said::Refused) if config.is_private() => self.note_refused(repository).await,
            _ => Ok(()),
        };
        if let Err(error) = noted {
            tracing::warn!(%repository, error = %chain(&error), "what upstream said of a repository could not be noted");
        }
        asked
    }

    /// Each process writes it at most twice in the time that it counts.
    async fn note_shown(
        &self,
        repository: &Repository,
        config: &UpstreamConfig,
        at: Timestamp,
    ) -> Result<(), StoreError> {
        let (counts, kept) = if config.is_private() {
            (config.permission, config.permission.max(config.stale))
        } else {
            (config.tags.fresh, config.tags.fresh * 2)
        };
        match self.met.get(repository) {
            Some(Standing::Shown { at: known, .. }) if at < known.plus(counts / 2) => Ok(()),
            _ => self.put(repository, Standing::Shown { at, until: at.plus(kept) }).await,
        }
    }

    /// Notes that upstream does not show it to us. Written once, and again if another process has noted it as shown
    /// since.
    async fn note_refused(&self, repository: &Repository) -> Result<(), StoreError> {
        let known = matches!(self.met.get(repository), Some(Standing::Absent { .. }));
        if known && !matches!(self.read(repository).await?, Some(Standing::Shown { .. })) {
            return Ok(());
        }
        self.forget(repository).await
    }

    /// Forgets the standing, so that upstream is asked at the next request.
    async fn forget(&self, repository: &Repository) -> Result<(), StoreError> {
        self.put(repository, Standing::Absent { until: self.clock.now() }).await
    }

    async fn put(&self, repository: &Repository, standing: Standing) -> Result<(), StoreError> {
        self.met.insert(repository.clone(), standing);
        self.ledger.put_standing(repository, standing).await
    }

    async fn read(&self, repository: &Repository) -> Result<Option<Standing>, StoreError> {
        let standing = self.ledger.standing(repository).await?;
        match (standing, self.met.get(repository)) {
            // It was noted as shown while the ledger was being read.
            (Some(Standing::Shown { at, .. }), Some(later @ Standing::Shown { at: met, .. })) if at < met => {
                return Ok(Some(later));
            }
            (Some(standing), _) => self.met.insert(repository.clone(), standing),
            (None, _) => {}
        }
        Ok(standing)
    }
}

impl Upstreams {
    /// Asks the upstream of a repository, never an alternate, whether it shows us this content. `None`: it tells only
    /// by sending the manifest ([`Self::sends`]).
    pub(crate) async fn shows(&self, repository: &Repository, evidence: &Evidence) -> Result<Option<()>> {
        let (part, name) = (self.part(repository)?, &repository.name);
        let asking = async {
            match evidence {
                Evidence::Manifest(digest) => {
                    let known = part.head_manifest(name, &Reference::Digest(digest.clone()), Patience::Known).await?;
                    Ok(known.map(drop))
                }
                // Not by HEAD, which some registries refuse.
                Evidence::Blob(digest) => part.open_blob(name, digest, None, Patience::Client).await.map(|_| Some(())),
            }
        };
        self.standings.noted(repository, part.config(), says_if_any, Box::pin(asking)).await
    }

    /// Asks the same upstream to send the manifest.
    pub(crate) async fn sends(&self, repository: &Repository, digest: &Digest) -> Result<()> {
        let part = self.part(repository)?;
        let reference = Reference::Digest(digest.clone());
        let asking = part.get_manifest(&repository.name, &reference, false);
        self.standings.noted(repository, part.config(), says, Box::pin(asking)).await.map(drop)
    }
}
