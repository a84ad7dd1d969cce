//! Carries out what [`retention`] has decided. An item is removed only if it is still as the scan saw it: what a pull
//! uses meanwhile stays, or is filled again.

use std::collections::HashSet;
use std::time::Duration;

use futures_util::{StreamExt as _, TryStreamExt as _, stream};

use super::Operate;
use crate::errors::{StoreError, chain};
use crate::oci::{Digest, Reference, Repository};
use crate::operate::report::SweepReport;
use crate::operate::retention::{self, Inventory, Plan, REMOVING};
use crate::records::{BlobRecord, BlobState, Entry, StoredManifest, Versioned, blob};

/// How long an upload without a checkpoint lies idle before it is removed: a running fill has a checkpoint long before.
const IDLE: Duration = Duration::from_hours(24);
/// How many items are removed at once.
const AT_ONCE: usize = 16;

impl Operate {
    /// Removes what was not used within `keep`, and repairs what dead processes have left. A dry run only reports what
    /// that would be.
    pub async fn sweep(&self, dry_run: bool) -> Result<SweepReport, StoreError> {
        let inventory = self.inventory().await?;
        let plan = retention::mark(&inventory, &self.core.config.retention, self.core.clock.now());
        if dry_run {
            return Ok(plan.report());
        }
        let report = self.carry_out(plan).await?;
        self.backfill_last_used(&inventory).await?;
        let uploads = self.core.blobs.abandon(&uploads(&inventory), IDLE).await?;
        tracing::info!(
            tags = report.tags,
            manifests = report.manifests.len(),
            blobs = report.blobs,
            freed_bytes = report.freed_bytes,
            kept_bytes = report.kept_bytes,
            repaired = report.repaired,
            uploads,
            "swept"
        );
        Ok(report)
    }

    /// Removes an image and what nothing else needs, even if it is used or pinned.
    pub async fn purge(&self, repository: &Repository, reference: &Reference) -> Result<SweepReport, StoreError> {
        let inventory = self.inventory().await?;
        let plan = retention::purge(&inventory, repository, reference, self.core.clock.now());
        let report = self.carry_out(plan).await?;
        tracing::info!(%repository, %reference, freed_bytes = report.freed_bytes, "purged");
        Ok(report)
    }

    async fn backfill_last_used(&self, inventory: &Inventory) -> Result<(), StoreError> {
        let now = self.core.clock.now();
        for entry in inventory.without_last_use() {
            match entry {
                Entry::Manifest(StoredManifest { repository, digest, .. }) => {
                    self.core.ledger.touch_manifest(repository, digest, now, now).await?;
                }
                Entry::Blob { digest, record } => {
                    if let Some(noted) = blob::noted(&record.value, now) {
                        self.core.ledger.swap_blob(digest, Some(record.version), &noted).await?;
                    }
                }
                Entry::Membership { .. } | Entry::Reference { .. } | Entry::Listing { .. } | Entry::Standing { .. } => {
                }
            }
        }
        Ok(())
    }

    /// The ledger first: bytes that are listed after a record said "stored" are there, or the record is wrong.
    async fn inventory(&self) -> Result<Inventory, StoreError> {
        let entries = self.core.ledger.entries().try_collect().await?;
        let blobs = self.core.blobs.list().map_ok(|blob| (blob.digest.clone(), blob)).try_collect().await?;
        Ok(Inventory { entries, blobs })
    }

    /// Reports what was really removed: `plan` without what was used meanwhile. A failure at one item does not stop the
    /// others; the first one is returned at the end.
    async fn carry_out(&self, mut plan: Plan<'_>) -> Result<SweepReport, StoreError> {
        let mut failure = None;
        let is_membership = |entry: &&Entry| matches!(entry, Entry::Membership { .. });
        let (memberships, mut entries): (Vec<_>, Vec<_>) =
            std::mem::take(&mut plan.entries).into_iter().partition(is_membership);
        let spared = self.remove_all(&mut entries, &mut failure).await;
        // A manifest that is used again keeps what it names, and its own bytes, which may be stored like a blob.
        let spared: HashSet<&Digest> = spared.into_iter().flat_map(names).collect();
        let is_spared = |entry: &&Entry| matches!(entry, Entry::Membership { digest, .. } if spared.contains(digest));
        let mut memberships: Vec<_> = memberships.into_iter().filter(|entry| !is_spared(entry)).collect();
        self.remove_all(&mut memberships, &mut failure).await;
        entries.append(&mut memberships);
        plan.entries = entries;

        let doomed = std::mem::take(&mut plan.blobs).into_iter();
        let removals: Vec<_> = doomed
            .map(|(digest, doomed)| {
                let spared = spared.contains(digest);
                async move {
                    let removed = if spared { Ok(false) } else { self.remove_blob(digest, doomed.record).await };
                    (removed, (digest, doomed))
                }
            })
            .collect();
        let outcomes: Vec<_> = stream::iter(removals).buffer_unordered(AT_ONCE).collect().await;
        for (removed, (digest, doomed)) in outcomes {
            if noted(removed, &mut failure).unwrap_or(false) {
                plan.blobs.insert(digest, doomed);
            } else {
                plan.kept_bytes += doomed.bytes;
            }
        }

        let mut repaired = Vec::new();
        for (digest, record) in std::mem::take(&mut plan.absent) {
            let mut absent = BlobRecord { state: BlobState::Absent, ..record.value.clone() };
            // The next fill continues from the checkpoint of one that died; that of an absent blob was abandoned.
            absent.checkpoint.take_if(|_| record.value.state == BlobState::Absent);
            let swapped = self.core.ledger.swap_blob(digest, Some(record.version), &absent).await;
            if noted(swapped, &mut failure).flatten().is_some() {
                repaired.push((digest, record));
            }
        }
        plan.absent = repaired;
        failure.map_or_else(|| Ok(plan.report()), Err)
    }

    /// Removes entries and leaves in `entries` those that are gone. Returns the others: they were used meanwhile.
    async fn remove_all<'a>(&self, entries: &mut Vec<&'a Entry>, failure: &mut Option<StoreError>) -> Vec<&'a Entry> {
        let removals: Vec<_> = std::mem::take(entries)
            .into_iter()
            .map(|entry| async move { (self.core.ledger.remove(entry).await, entry) })
            .collect();
        let outcomes: Vec<_> = stream::iter(removals).buffer_unordered(AT_ONCE).collect().await;
        let outcomes = outcomes.into_iter().map(|(gone, entry)| (noted(gone, failure).unwrap_or(false), entry));
        let (gone, spared): (Vec<_>, Vec<_>) = outcomes.partition(|(gone, _)| *gone);
        for (_, entry) in &gone {
            if let Entry::Manifest(manifest) = entry {
                self.pull.forget(&manifest.repository, &manifest.digest);
            }
        }
        entries.extend(gone.into_iter().map(|(_, entry)| entry));
        spared.into_iter().map(|(_, entry)| entry).collect()
    }

    /// Removes a blob if its record is still as the scan saw it: no pull has used it since, and none gets its bytes
    /// from here on. `false`: it was used, or is being filled.
    async fn remove_blob(&self, digest: &Digest, seen: Option<&Versioned<BlobRecord>>) -> Result<bool, StoreError> {
        let state = BlobState::Removing { until: self.core.clock.now().plus(REMOVING) };
        let value = match seen {
            Some(seen) => BlobRecord { state, ..seen.value.clone() },
            None => BlobRecord::new(state),
        };
        let expected = seen.map(|seen| seen.version);
        let Some(version) = self.core.ledger.swap_blob(digest, expected, &value).await? else {
            return Ok(false);
        };
        // Long before another process may take over, or the bytes of its fill would be deleted.
        tokio::time::timeout(REMOVING / 2, self.core.blobs.remove(digest))
            .await
            .map_err(|_| StoreError::Unavailable(format!("blob {digest} could not be removed in time").into()))??;
        let record = Versioned { value, version };
        self.core.ledger.remove(&Entry::Blob { digest: digest.clone(), record }).await?;
        Ok(true)
    }
}

/// The uploads that have a checkpoint: fills continue them.
fn uploads(inventory: &Inventory) -> HashSet<String> {
    let known = |entry: &Entry| match entry {
        Entry::Blob { record, .. } => record.value.checkpoint.as_ref().map(|checkpoint| checkpoint.upload.clone()),
        _ => None,
    };
    inventory.entries.iter().filter_map(known).collect()
}

/// The value, unless the call failed: the first failure is kept, all are logged.
fn noted<T>(outcome: Result<T, StoreError>, failure: &mut Option<StoreError>) -> Option<T> {
    outcome
        .inspect_err(|error| {
            tracing::warn!(error = %chain(error), "an item could not be removed");
            failure.get_or_insert(error.clone());
        })
        .ok()
}

/// The digests that have to stay as long as an entry does: a manifest's own, and those it names.
fn names(entry: &Entry) -> impl Iterator<Item = &Digest> {
    let manifest = if let Entry::Manifest(manifest) = entry { Some(manifest) } else { None };
    manifest.into_iter().flat_map(|manifest| manifest.names.iter().chain([&manifest.digest]))
}
