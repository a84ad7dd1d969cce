//! Notes pulls, once a day: [`retention`](crate::operate::retention) keeps what is used.

use std::time::Duration;

use super::warm::ManifestKey;
use super::{Pull, PulledManifest, Want};
use crate::errors::{PullError, StoreError, beside, chain};
use crate::oci::{Digest, Repository};
use crate::ports::{Attempts, in_time};
use crate::records::blob::{NOTED, noted};
use crate::records::{BlobView, Holding, HoldingKey, Member, Versioned};
use crate::values::expiring::Expiring;
use crate::values::time::Timestamp;

/// The longest that a pull waits for its use to be noted.
const PATIENCE: Duration = Duration::from_secs(1);

/// The pause after a use could not be noted.
const AGAIN: Duration = Duration::from_mins(10);

/// Manifests whose use this process need not note again.
pub(crate) type Uses = Expiring<(Repository, Digest), ()>;

/// How many of them it remembers.
pub(super) const USES: usize = 10_000;

impl Pull {
    /// Notes that a manifest was pulled. If it was removed but served from memory, stores it again. A failure here does
    /// not fail the pull.
    pub(super) async fn note_manifest(&self, repository: &Repository, pulled: &PulledManifest, want: &Want) {
        let digest = &pulled.observed.digest;
        if self.memory.uses.get(&ManifestKey(repository, digest)).is_some() {
            return;
        }
        let (key, now) = ((repository.clone(), digest.clone()), self.core.clock.now());
        // Other pulls need not write meanwhile. Only briefly, because the client may leave before the use is written.
        self.memory.uses.keep(key.clone(), (), PATIENCE);
        let note = async {
            let since = now.minus(NOTED);
            match (self.core.storage.ledger.touch_manifest(repository, digest, since, now).await?, &pulled.manifest) {
                (Some(used_at), _) => self.memory.uses.keep_until(key.clone(), (), used_at.plus(NOTED)),
                (None, Some(manifest)) => {
                    self.keep(repository, manifest, &Want { bill: want.bill.clone(), ..Want::GET }).await?;
                }
                (None, None) => self.memory.uses.keep(key.clone(), (), AGAIN),
            }
            Ok::<_, PullError>(())
        };
        if let Err(error) = in_time(PATIENCE, note).await {
            tracing::warn!(%repository, manifest.digest = %digest, error = %chain(&error), "the use of a manifest could not be noted");
            self.memory.uses.keep(key, (), AGAIN);
        }
    }

    /// Remembers when the last use of a manifest was written: until it is over, another one costs no write.
    pub(super) fn noted_manifest(&self, repository: &Repository, digest: &Digest, used_at: Timestamp) {
        self.memory.uses.keep_until((repository.clone(), digest.clone()), (), used_at.plus(NOTED));
    }

    /// Notes that a blob is pulled, before its bytes are promised, so that a sweep about to remove it finds its record
    /// changed. Returns the view after that. A failure here does not fail the pull.
    pub(super) async fn note_blob(&self, repository: &Repository, digest: &Digest, view: BlobView) -> BlobView {
        if !self.is_blob_use_due(&view) {
            return view;
        }
        let noted = in_time(PATIENCE, self.write_blob_use(repository, digest, view.clone())).await;
        noted.unwrap_or_else(|error| {
            tracing::warn!(%repository, blob.digest = %digest, error = %chain(&error), "the use of a blob could not be noted");
            view
        })
    }

    /// Whether the last use was noted long ago: few pulls need a timer and a copy.
    fn is_blob_use_due(&self, view: &BlobView) -> bool {
        let now = self.core.clock.now();
        let stored = view.record.as_ref().filter(|_| view.is_stored());
        view.member.is_some_and(|member| member.used_at < now.minus(NOTED))
            || stored.is_some_and(|record| noted(&record.value, now).is_some())
    }

    async fn write_blob_use(
        &self,
        repository: &Repository,
        digest: &Digest,
        mut view: BlobView,
    ) -> Result<BlobView, StoreError> {
        let now = self.core.clock.now();
        if let Some(member) = view.member.filter(|member| member.used_at < now.minus(NOTED)) {
            let member = Member { used_at: now, ..member };
            self.core.storage.ledger.put_membership(repository, digest, member).await?;
        }
        let mut attempts = Attempts::new();
        loop {
            let stored = view.record.as_ref().filter(|_| view.is_stored());
            let Some((value, version)) = stored.and_then(|record| Some((noted(&record.value, now)?, record.version)))
            else {
                return Ok(view);
            };
            if let Some(version) = self.core.storage.ledger.swap(digest, Some(version), &value).await? {
                return Ok(BlobView { record: Some(Versioned { value, version }), ..view });
            }
            attempts.again().await?;
            view = self.core.storage.ledger.blob(repository, digest).await?;
        }
    }

    /// Notes that something of a repository is stored, or known, that was not: the list of images has it at once.
    pub(super) async fn note_held(&self, repository: &Repository, change: impl Fn(Holding) -> Holding) {
        let note = async {
            let mut attempts = Attempts::new();
            loop {
                let known = self.core.storage.ledger.get(&HoldingKey(repository)).await?;
                let version = known.as_ref().map(|known| known.version);
                let before = known.map(|known| known.value);
                let after = change(before.clone().unwrap_or_else(Holding::nothing));
                if before.as_ref() == Some(&after)
                    || self.core.storage.ledger.swap(&HoldingKey(repository), version, &after).await?.is_some()
                {
                    return Ok::<_, StoreError>(());
                }
                attempts.again().await?;
            }
        };
        // A sweep counts what is not noted.
        beside(in_time(PATIENCE, note).await, "what is stored of a repository");
    }

    /// Forgets a manifest that was removed from the ledger.
    pub(crate) fn forget(&self, repository: &Repository, digest: &Digest) {
        let key = ManifestKey(repository, digest);
        self.memory.warm.remove(key);
        self.memory.uses.forget(&key);
    }
}
