//! Carrying out what [`retention`] has decided. Everything is removed only if it is still what was seen: whatever a pull
//! uses meanwhile stays or is filled again.

use std::collections::HashSet;
use std::time::Duration;

use futures_util::{StreamExt as _, TryStreamExt as _, stream};

use crate::Cache;
use crate::oci::{Digest, Reference, Repository};
use crate::ports::{BlobRecord, BlobState, Entry, StoreError, Versioned};
use crate::report::SweepReport;
use crate::retention::{self, Inventory, Plan, REMOVING};

/// How long nobody has written to an upload that nobody will go on with: a running fill has a checkpoint long before.
const IDLE: Duration = Duration::from_hours(24);
/// How many items are removed at the same time.
const AT_ONCE: usize = 16;

impl Cache {
    /// Removes what nobody has used within `keep`, and repairs what dead processes have left. A dry run only says what
    /// that would be.
    pub async fn sweep(&self, dry_run: bool) -> Result<SweepReport, StoreError> {
        let inventory = self.inventory().await?;
        let plan = retention::mark(&inventory, &self.config.retention, self.clock.now());
        if dry_run {
            return Ok(plan.report());
        }
        let report = self.carry_out(plan).await?;
        let uploads = self.blobs.abandon(&uploads(&inventory), IDLE).await?;
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

    /// Removes an image and what nothing else needs, used or pinned or not.
    pub async fn purge(&self, repository: &Repository, reference: &Reference) -> Result<SweepReport, StoreError> {
        let inventory = self.inventory().await?;
        let plan = retention::purge(&inventory, repository, reference, self.clock.now());
        let report = self.carry_out(plan).await?;
        tracing::info!(%repository, %reference, freed_bytes = report.freed_bytes, "purged");
        Ok(report)
    }

    /// The ledger first: bytes that are listed after a record said "stored" are there, or the record is wrong.
    async fn inventory(&self) -> Result<Inventory, StoreError> {
        let entries = self.ledger.entries().try_collect().await?;
        let blobs = self.blobs.list().map_ok(|blob| (blob.digest.clone(), blob)).try_collect().await?;
        Ok(Inventory { entries, blobs })
    }

    /// Reports what has really gone: `plan` less what was used meanwhile.
    async fn carry_out(&self, mut plan: Plan<'_>) -> Result<SweepReport, StoreError> {
        let is_membership = |entry: &&Entry| matches!(entry, Entry::Membership { .. });
        let (memberships, mut entries): (Vec<_>, Vec<_>) =
            std::mem::take(&mut plan.entries).into_iter().partition(is_membership);
        let spared = self.remove_all(&mut entries).await?;
        // What a manifest names that is used again stays with it.
        let spared: HashSet<&Digest> = spared.into_iter().flat_map(names).collect();
        let is_spared = |entry: &&Entry| matches!(entry, Entry::Membership { digest, .. } if spared.contains(digest));
        let mut memberships: Vec<_> = memberships.into_iter().filter(|entry| !is_spared(entry)).collect();
        self.remove_all(&mut memberships).await?;
        entries.append(&mut memberships);
        plan.entries = entries;

        let doomed = std::mem::take(&mut plan.blobs).into_iter();
        let removals: Vec<_> = doomed
            .map(|(digest, doomed)| {
                let spared = spared.contains(digest);
                async move {
                    let removed = !spared && self.remove_blob(digest, doomed.record).await?;
                    Ok::<_, StoreError>((removed, (digest, doomed)))
                }
            })
            .collect();
        let outcomes: Vec<_> = stream::iter(removals).buffer_unordered(AT_ONCE).try_collect().await?;
        for (removed, (digest, doomed)) in outcomes {
            if removed {
                plan.blobs.insert(digest, doomed);
            } else {
                plan.kept_bytes += doomed.bytes;
            }
        }

        let mut repaired = Vec::new();
        for (digest, record) in std::mem::take(&mut plan.absent) {
            let absent = BlobRecord { state: BlobState::Absent, ..record.value.clone() };
            if self.ledger.swap_blob(digest, Some(record.version), &absent).await?.is_some() {
                repaired.push((digest, record));
            }
        }
        plan.absent = repaired;
        Ok(plan.report())
    }

    /// Removes entries, of which those are left that have gone. The others are returned: they were used meanwhile.
    async fn remove_all<'a>(&self, entries: &mut Vec<&'a Entry>) -> Result<Vec<&'a Entry>, StoreError> {
        let removals: Vec<_> = std::mem::take(entries)
            .into_iter()
            .map(|entry| async move { Ok::<_, StoreError>((self.ledger.remove(entry).await?, entry)) })
            .collect();
        let outcomes: Vec<_> = stream::iter(removals).buffer_unordered(AT_ONCE).try_collect().await?;
        let (gone, spared): (Vec<_>, Vec<_>) = outcomes.into_iter().partition(|(gone, _)| *gone);
        for (_, entry) in &gone {
            if let Entry::Manifest(manifest) = entry {
                self.forget(&manifest.repository, &manifest.digest);
            }
        }
        entries.extend(gone.into_iter().map(|(_, entry)| entry));
        Ok(spared.into_iter().map(|(_, entry)| entry).collect())
    }

    /// Removes a blob if its record is still what was seen: no pull has used it since, and none gets its bytes from here
    /// on. `false`: it was used, or is being filled.
    async fn remove_blob(&self, digest: &Digest, seen: Option<&Versioned<BlobRecord>>) -> Result<bool, StoreError> {
        let state = BlobState::Removing { until: self.clock.now().plus(REMOVING) };
        let value = match seen {
            Some(seen) => BlobRecord { state, ..seen.value.clone() },
            None => BlobRecord::new(state),
        };
        let expected = seen.map(|seen| seen.version);
        let Some(version) = self.ledger.swap_blob(digest, expected, &value).await? else {
            return Ok(false);
        };
        // Long before another may take over, lest it be its bytes that go.
        tokio::time::timeout(REMOVING / 2, self.blobs.remove(digest))
            .await
            .map_err(|_| StoreError::Unavailable(format!("blob {digest} could not be removed in time")))??;
        let record = Versioned { value, version };
        self.ledger.remove(&Entry::Blob { digest: digest.clone(), record }).await?;
        Ok(true)
    }
}

/// The uploads that fills will go on with.
fn uploads(inventory: &Inventory) -> HashSet<String> {
    let known = |entry: &Entry| match entry {
        Entry::Blob { record, .. } => record.value.checkpoint.as_ref().map(|checkpoint| checkpoint.upload.clone()),
        _ => None,
    };
    inventory.entries.iter().filter_map(known).collect()
}

fn names(entry: &Entry) -> &[Digest] {
    match entry {
        Entry::Manifest(manifest) => &manifest.names,
        _ => &[],
    }
}
