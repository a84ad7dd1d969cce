//! Carries out what [`retention`](super::retention) decides. An item is removed only if it is still as it was read: what
//! a pull uses meanwhile stays, or is filled again.

use std::collections::HashSet;
use std::sync::PoisonError;
use std::time::Duration;

use futures_util::stream::BoxStream;
use futures_util::{StreamExt as _, TryStreamExt as _, stream};

use super::Operate;
use crate::errors::{StoreError, chain};
use crate::journal::Metric;
use crate::oci::{Digest, Reference, Repository};
use crate::operate::report::{LastSweep, SweepReport};
use crate::operate::retention::{Batch, Census, Course, Doomed, Recount, Task};
use crate::records::blob::{REMOVING, noted as used};
use crate::records::{BlobRecord, BlobState, Entry, HoldingKey, StoredManifest, Versioned};
use crate::values::time::Timestamp;

/// How long an upload without a checkpoint lies idle before it is removed: a running fill has a checkpoint long before.
const IDLE: Duration = Duration::from_hours(24);
/// How many items are removed or written at once.
const AT_ONCE: usize = 16;
/// About how many items are held between a decision and what comes of it.
const BATCH: usize = 10_000;

/// What came of a task.
struct Outcome {
    report: SweepReport,
    /// The uploads that fills continue.
    uploads: HashSet<String>,
    /// The last uses of the bytes that a part keeps.
    kept: Vec<(Timestamp, u64)>,
}

impl Operate {
    /// Removes what was not used within `keep`, and repairs what dead processes have left. A dry run only reports what
    /// that would be.
    pub async fn sweep(&self, dry_run: bool) -> Result<SweepReport, StoreError> {
        Ok(self.sweep_once(None, dry_run).await?.0)
    }

    /// Whether a sweep has to go part by part, if each is to hold about `most` items.
    pub async fn sweep_in_parts(&self, most: usize) -> Result<Option<Course>, StoreError> {
        let (mut items, mut entries) = (0, self.core.storage.ledger.entries());
        while readable(&mut entries).await?.is_some() {
            items += 1;
        }
        Ok(Course::first(items, most, self.core.clock.now()))
    }

    /// Sweeps one part. Returns what comes next, too: nothing after the last one.
    pub async fn sweep_part(&self, course: Course) -> Result<(SweepReport, Option<Course>), StoreError> {
        let (report, kept) = self.sweep_once(Some(&course), false).await?;
        let next = course.next(kept.into_iter(), self.core.config.retention.max_size, self.core.clock.now());
        Ok((report, next))
    }

    /// Sweeps everything or a part; returns the last uses of the bytes that a part keeps.
    async fn sweep_once(
        &self,
        course: Option<&Course>,
        dry_run: bool,
    ) -> Result<(SweepReport, Vec<(Timestamp, u64)>), StoreError> {
        let task = Task::Sweep(&self.core.config.retention, course);
        let Outcome { report, uploads, kept } = self.carry_out(task, dry_run).await?;
        if dry_run {
            return Ok((report, kept));
        }
        let uploads = self.core.storage.blobs.abandon(&uploads, IDLE).await?;
        if course.is_none() {
            let (freed_bytes, kept_bytes) = (report.freed_bytes, report.kept_bytes);
            let swept = LastSweep { at: self.core.clock.now(), freed_bytes, kept_bytes };
            *self.swept.lock().unwrap_or_else(PoisonError::into_inner) = Some(swept);
            self.core.journal.of(None).add(Metric::Sweeps, 1);
        }
        tracing::info!(
            tags = report.tags,
            manifests = report.manifest_count(),
            blobs = report.blobs,
            freed_bytes = report.freed_bytes,
            kept_bytes = report.kept_bytes,
            repaired = report.repaired,
            unreadable = report.unreadable,
            uploads,
            "swept"
        );
        Ok((report, kept))
    }

    /// Removes an image and what nothing else needs, even if it is used or pinned.
    pub async fn purge(&self, repository: &Repository, reference: &Reference) -> Result<SweepReport, StoreError> {
        let Outcome { report, .. } = self.carry_out(Task::Purge(repository, reference), false).await?;
        tracing::info!(%repository, %reference, freed_bytes = report.freed_bytes, "purged");
        Ok(report)
    }

    /// Counts what is stored, and then reads it again and does what is decided of it, a batch at a time. Reports what
    /// was really removed. A failure at one item does not stop the others; the first one is returned at the end.
    async fn carry_out(&self, task: Task<'_>, dry_run: bool) -> Result<Outcome, StoreError> {
        let lists_bytes = task.lists_bytes();
        let mut census = Census::new(task, self.core.clock.now());
        let mut unreadable = 0;
        let mut entries = self.core.storage.ledger.entries();
        while let Some(entry) = readable(&mut entries).await? {
            match entry {
                Ok(entry) => census.count(&entry),
                Err(error) => {
                    tracing::error!(error = %chain(&error), "an item of the ledger cannot be read: it stays as it is");
                    unreadable += 1;
                }
            }
        }
        let mut stored = self.core.storage.blobs.list();
        while lists_bytes && let Some(blob) = stored.try_next().await? {
            census.count_bytes(&blob);
        }
        let (uploads, bytes) = (std::mem::take(&mut census.uploads), census.bytes);
        let (mut fates, mut batch) = (census.decide(), Batch::default());
        let kept = if matches!(task, Task::Sweep(_, Some(_))) { fates.kept_bytes() } else { Vec::new() };
        let (mut report, mut failure) = (SweepReport { unreadable, ..SweepReport::default() }, None);
        let mut entries = self.core.storage.ledger.entries();
        while let Some(entry) = readable(&mut entries).await? {
            let Ok(entry) = entry else { continue };
            fates.add(entry, &mut batch);
            if batch.size() >= BATCH {
                self.finish(&mut batch, dry_run, &mut report, &mut failure).await;
            }
        }
        let mut stored = self.core.storage.blobs.list();
        while lists_bytes && let Some(blob) = stored.try_next().await? {
            fates.add_bytes(blob, &mut batch);
        }
        self.finish(&mut batch, dry_run, &mut report, &mut failure).await;
        if !dry_run {
            self.write_recounts(fates.recounts(), &mut failure).await;
        }
        report.manifests.sort_unstable();
        report.kept_bytes = bytes.saturating_sub(report.freed_bytes);
        failure.map_or(Ok(Outcome { report, uploads, kept }), Err)
    }

    /// Does what a batch says, adds to the report what really came of it, and leaves the batch empty.
    async fn finish(
        &self,
        batch: &mut Batch,
        dry_run: bool,
        report: &mut SweepReport,
        failure: &mut Option<StoreError>,
    ) {
        if dry_run {
            return std::mem::take(batch).add_to(report);
        }
        let Batch { entries, blobs, absent, unnoted, sharing } = std::mem::take(batch);
        let mut done = Batch::default();
        let is_membership = |entry: &Entry| matches!(entry, Entry::Membership { .. });
        let (mut memberships, entries): (Vec<_>, Vec<_>) = entries.into_iter().partition(is_membership);
        let spared = self.remove_all(entries, &mut done.entries, failure).await;
        // A manifest that is used again keeps what it names, and its own bytes, which may be stored like a blob.
        let spared: HashSet<&Digest> = spared.iter().flat_map(names).collect();
        memberships.retain(|entry| !matches!(entry, Entry::Membership { digest, .. } if spared.contains(digest)));
        self.remove_all(memberships, &mut done.entries, failure).await;

        let blobs = blobs.into_iter().filter(|doomed| !spared.contains(&doomed.digest));
        let removals = blobs.map(|doomed| async move { (self.remove_blob(&doomed).await, doomed) });
        for (removed, doomed) in at_once(removals).await {
            done.blobs.extend(noted(removed, failure).unwrap_or(false).then_some(doomed));
        }

        for (digest, record) in absent {
            let mut absent = BlobRecord { state: BlobState::Absent, ..record.value.clone() };
            // The next fill continues from the checkpoint of one that died; that of an absent blob was abandoned.
            absent.checkpoint.take_if(|_| record.value.state == BlobState::Absent);
            let swapped = self.core.storage.ledger.swap(&digest, Some(record.version), &absent).await;
            done.absent.extend(noted(swapped, failure).flatten().map(|_| (digest, record)));
        }
        for entry in unnoted {
            noted(self.note_use(&entry).await, failure);
        }
        let sharing = sharing.into_iter().map(|(digest, record)| async move {
            let value = BlobRecord { shared: !record.value.shared, ..record.value };
            self.core.storage.ledger.swap(&digest, Some(record.version), &value).await
        });
        for written in at_once(sharing).await {
            noted(written, failure);
        }
        done.add_to(report);
    }

    /// Writes what was counted of repositories. What a pull has noted meanwhile stays until the next sweep.
    async fn write_recounts(&self, recounts: Vec<Recount>, failure: &mut Option<StoreError>) {
        let ledger = &self.core.storage.ledger;
        let writes = recounts.into_iter().map(|Recount { repository, written, holding }| async move {
            match (written, holding) {
                (written, Some(holding)) => {
                    let expected = written.map(|written| written.version);
                    ledger.swap(&HoldingKey(&repository), expected, &holding).await.map(drop)
                }
                (Some(record), None) => ledger.remove(&Entry::Holding { repository, record }).await.map(drop),
                (None, None) => Ok(()),
            }
        });
        for written in at_once(writes).await {
            noted(written, failure);
        }
    }

    /// Records a use of what an earlier version has stored without one.
    async fn note_use(&self, entry: &Entry) -> Result<(), StoreError> {
        let now = self.core.clock.now();
        match entry {
            Entry::Manifest(StoredManifest { repository, digest, .. }) => {
                self.core.storage.ledger.touch_manifest(repository, digest, now, now).await.map(drop)
            }
            Entry::Blob { digest, record } => match used(&record.value, now) {
                Some(noted) => self.core.storage.ledger.swap(digest, Some(record.version), &noted).await.map(drop),
                None => Ok(()),
            },
            Entry::Membership { .. }
            | Entry::Reference { .. }
            | Entry::Holding { .. }
            | Entry::Listing { .. }
            | Entry::Standing { .. } => Ok(()),
        }
    }

    /// Removes entries, and adds those that are gone to `removed`. Returns the others: they were used meanwhile.
    async fn remove_all(
        &self,
        entries: Vec<Entry>,
        removed: &mut Vec<Entry>,
        failure: &mut Option<StoreError>,
    ) -> Vec<Entry> {
        let removals = entries.into_iter().map(|entry| async move {
            let gone = self.core.storage.ledger.remove(&entry).await;
            if let (Ok(true), Entry::Manifest(manifest)) = (&gone, &entry) {
                self.pull.forget(&manifest.repository, &manifest.digest);
            }
            (gone, entry)
        });
        let mut spared = Vec::new();
        for (gone, entry) in at_once(removals).await {
            let entries = if noted(gone, failure).unwrap_or(false) { &mut *removed } else { &mut spared };
            entries.push(entry);
        }
        spared
    }

    /// Removes a blob if its record is still as it was read: no pull has used it since, and none gets its bytes from
    /// here on. `false`: it was used, or is being filled.
    async fn remove_blob(&self, Doomed { digest, record: seen, .. }: &Doomed) -> Result<bool, StoreError> {
        let state = BlobState::Removing { until: self.core.clock.now().plus(REMOVING) };
        let value = match seen {
            Some(seen) => BlobRecord { state, ..seen.value.clone() },
            None => BlobRecord::new(state),
        };
        let expected = seen.as_ref().map(|seen| seen.version);
        let Some(version) = self.core.storage.ledger.swap(digest, expected, &value).await? else {
            return Ok(false);
        };
        // Long before another process may take over, or the bytes of its fill would be deleted.
        tokio::time::timeout(REMOVING / 2, self.core.storage.blobs.remove(digest))
            .await
            .map_err(|_| StoreError::Unavailable(format!("blob {digest} could not be removed in time").into()))??;
        let record = Versioned { value, version };
        self.core.storage.ledger.remove(&Entry::Blob { digest: digest.clone(), record }).await?;
        Ok(true)
    }
}

/// What comes of things that are done at once, a few at a time.
fn at_once<T>(things: impl Iterator<Item = impl Future<Output = T>>) -> impl Future<Output = Vec<T>> {
    stream::iter(things.collect::<Vec<_>>()).buffer_unordered(AT_ONCE).collect()
}

/// The next entry, or why that one cannot be read. Any other error is one of the ledger as a whole.
async fn readable(
    entries: &mut BoxStream<'_, Result<Entry, StoreError>>,
) -> Result<Option<Result<Entry, StoreError>>, StoreError> {
    match entries.next().await {
        Some(Err(error @ StoreError::Corrupt(_))) => Ok(Some(Err(error))),
        next => Ok(next.transpose()?.map(Ok)),
    }
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
