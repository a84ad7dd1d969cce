//! The second pass of a sweep or a purge: what becomes of each item.

use std::collections::HashSet;

use super::{Census, Fate, Key, Named, ORPHAN, Recount, Task, UNKNOWN, Used};
use crate::config::Retention;
use crate::oci::{Digest, Reference};
use crate::operate::report::SweepReport;
use crate::ports::StoredBlob;
use crate::records::{BlobRecord, BlobState, Entry, StoredManifest, TagRecord, Versioned};
use crate::values::time::Timestamp;

impl<'a> Census<'a> {
    /// Decides what becomes of everything that was counted.
    pub fn decide(mut self) -> Fates<'a> {
        let (live, pinned) = match self.task {
            Task::Sweep(..) => {
                let pinned = self.pinned();
                let roots =
                    self.manifests.iter().filter(|(_, manifest)| self.task.keeps(Some(manifest.used_at), self.now));
                let roots = roots.map(|(key, manifest)| (*key, manifest.used_at));
                let mut live = self.below(roots.chain(pinned.iter().map(|(key, at)| (*key, *at))));
                self.add_parents(&mut live);
                (live, pinned)
            }
            Task::Purge(repository, reference) => {
                let gone = self.purged(repository, reference);
                let live = self.manifests.iter().filter(|(key, _)| !gone.contains(key));
                (live.map(|(key, manifest)| (*key, manifest.used_at)).collect(), Used::new())
            }
        };
        let mut named = self.named(|key| live.get(key).copied());
        // The parts of the repositories have removed what was not live.
        named.anywhere.extend(std::mem::take(&mut self.named));
        let unnamed = self.named(|key| (!live.contains_key(key)).then_some(UNKNOWN));
        let (is_sweep, old) = (matches!(self.task, Task::Sweep(..)), self.now.minus(ORPHAN));
        for (key, blob) in &mut self.blobs {
            let is_orphan = || !is_sweep || blob.bytes.is_some_and(|(_, modified)| modified < old);
            if blob.version.is_none() && is_orphan() {
                blob.fate = Fate::GoesUnlessNamed;
            }
            if blob.fate == Fate::GoesUnlessNamed {
                let is_named = named.anywhere.contains_key(key) || !(is_sweep || unnamed.anywhere.contains_key(key));
                blob.fate = if is_named { Fate::Stays } else { Fate::Goes };
            }
            let found = blob.bytes.map(|(bytes, _)| bytes);
            let is_wrong = blob.is_wrong || (blob.stored.is_some() && blob.stored != found);
            if is_sweep && blob.fate == Fate::Stays && is_wrong {
                blob.fate = Fate::Repaired;
            }
        }
        let mut fates = Fates { evicted: HashSet::new(), live, named, unnamed, census: self };
        // A part knows neither all bytes nor the order of their last uses.
        if let Task::Sweep(Retention { max_size: Some(most), .. }, None) = fates.census.task {
            fates.evict(&pinned, *most);
        }
        fates.census.manifests.values_mut().for_each(|manifest| manifest.names = Box::default());
        fates
    }
}

/// What becomes of everything that was counted.
pub struct Fates<'a> {
    census: Census<'a>,
    live: Used,
    named: Named,
    /// What the other manifests name.
    unnamed: Named,
    /// Manifests that exceed the size.
    evicted: HashSet<Key>,
}

/// Bytes that are kept, in the order in which they go.
#[derive(PartialEq, Eq, PartialOrd, Ord)]
struct Kept {
    last_use: Option<Timestamp>,
    is_manifest: bool,
    key: Key,
    bytes: u64,
}

/// What is to be removed or corrected next. Each step is taken only if the item is still as it was read.
#[derive(Default)]
pub struct Batch {
    /// References, manifests, memberships, lists and standings to remove.
    pub entries: Vec<Entry>,
    /// Blobs to remove.
    pub blobs: Vec<Doomed>,
    /// Records that contradict the store (a fill that died, bytes that are gone or damaged): they become absent.
    pub absent: Vec<(Digest, Versioned<BlobRecord>)>,
    /// What stays and has no last use.
    pub unnoted: Vec<Entry>,
    /// Stored blobs whose records do not say whether several repositories have them.
    pub sharing: Vec<(Digest, Versioned<BlobRecord>)>,
}

/// A blob to remove.
pub struct Doomed {
    /// Its digest.
    pub digest: Digest,
    /// Its record, if it has one.
    pub record: Option<Versioned<BlobRecord>>,
    /// Its length in bytes.
    pub bytes: u64,
}

impl Fates<'_> {
    /// Has the least recently used blobs and manifests go until no more than `most` bytes are kept: of one day, the
    /// blobs first, because a manifest costs quota.
    fn evict(&mut self, pinned: &Used, most: u64) {
        let exempt = self.census.named(|key| pinned.get(key).copied());
        let mut kept = self.kept().map(|item| item.bytes).sum::<u64>();
        let mut candidates: Vec<_> = self
            .kept()
            .filter(|Kept { key, bytes, is_manifest, last_use: _ }| {
                if *is_manifest {
                    return *bytes > 0 && !pinned.contains_key(key);
                }
                let is_stored = self.census.blobs.get(key).is_some_and(|blob| blob.stored.is_some());
                is_stored && !exempt.anywhere.contains_key(key)
            })
            .collect();
        candidates.sort_unstable();
        for Kept { is_manifest, key, bytes, last_use: _ } in candidates {
            if kept <= most {
                break;
            }
            kept -= bytes;
            if is_manifest {
                self.evicted.insert(key);
            } else if let Some(blob) = self.census.blobs.get_mut(&key) {
                blob.fate = Fate::Goes;
            }
        }
    }

    /// The bytes of all that is kept.
    fn kept(&self) -> impl Iterator<Item = Kept> {
        let blobs = self.census.blobs.iter().filter(|(_, blob)| blob.fate != Fate::Goes).filter_map(|(key, blob)| {
            let last_use = blob.used_at.max(self.named.anywhere.get(key).copied());
            blob.bytes.map(|(bytes, _)| Kept { last_use, is_manifest: false, key: *key, bytes })
        });
        let manifests = self.live.iter().map(|(key, last_use)| {
            let bytes = self.census.manifests.get(key).map_or(0, |manifest| manifest.bytes);
            Kept { last_use: Some(*last_use), is_manifest: true, key: *key, bytes }
        });
        blobs.chain(manifests)
    }

    /// The bytes of all that is kept, with their last use.
    pub fn kept_bytes(&self) -> Vec<(Timestamp, u64)> {
        self.kept().map(|item| (item.last_use.unwrap_or(UNKNOWN), item.bytes)).collect()
    }

    /// Adds an entry to what is to be done. One that was written since it was counted stays.
    pub fn add(&mut self, entry: Entry, batch: &mut Batch) {
        if !self.census.has(&entry) {
            if let Entry::Membership { digest, .. } = &entry {
                self.census.held.add_elsewhere(self.census.keys.digest(digest));
            }
            return;
        }
        let (task, now, keys) = (self.census.task, self.census.now, &self.census.keys);
        let is_sweep = matches!(task, Task::Sweep(..));
        let stays = match &entry {
            Entry::Reference { repository, reference, record } if is_sweep => {
                let TagRecord { observed, previous, checked_at, fresh_until, lease } = &record.value;
                let digests = observed.iter().map(|observed| &observed.digest);
                let mut digests = digests.chain(previous.iter().map(|previous| &previous.digest));
                let leased = lease.as_ref().is_some_and(|lease| now < lease.until);
                let said = digests.any(|digest| self.live.contains_key(&keys.of(repository, digest)));
                // A remembered 404 is of use only until it expires.
                let known = observed.is_some() || previous.is_some();
                let believed = if known { task.keeps(Some(*checked_at), now) } else { now < *fresh_until };
                leased || said || believed || task.is_about(repository, reference)
            }
            Entry::Reference { repository, reference, record } => !task.purges(repository, reference, &record.value),
            Entry::Manifest(StoredManifest { repository, digest, used_at, names, .. }) => {
                let key = keys.of(repository, digest);
                let counted = self.census.manifests.get(&key).map(|manifest| manifest.used_at);
                let used = counted != Some(*used_at);
                if used {
                    let repository = keys.repository(repository);
                    let names = names.iter().chain([digest]).map(|name| keys.digest(name));
                    self.named.in_repository.extend(names.map(|name| keys.within(repository, name)));
                }
                used || (self.live.contains_key(&key) && !self.evicted.contains(&key))
            }
            Entry::Membership { repository, digest, used_at, .. } => {
                let key = keys.of(repository, digest);
                let spared =
                    if is_sweep { task.keeps(Some(*used_at), now) } else { !self.unnamed.in_repository.contains(&key) };
                spared || self.named.in_repository.contains(&key)
            }
            // Written anew, or removed, once all is counted.
            Entry::Holding { .. } => true,
            Entry::Listing { stale_until: over, .. } | Entry::Standing { until: over, .. } => !is_sweep || now < *over,
            Entry::Blob { digest, record } => match self.census.blobs.get(&keys.digest(digest)) {
                Some(blob) if blob.version == Some(record.version) && blob.fate != Fate::Stays => {
                    let (digest, record) = (digest.clone(), record.clone());
                    if blob.fate == Fate::Repaired {
                        batch.absent.push((digest, record));
                    } else {
                        let bytes = blob.bytes.map_or(0, |(size, _)| size);
                        batch.blobs.push(Doomed { digest, record: Some(record), bytes });
                    }
                    return;
                }
                _ => true,
            },
        };
        if stays {
            self.census.held.add(&entry, keys);
        }
        match &entry {
            _ if !stays => batch.entries.push(entry),
            Entry::Manifest(manifest) if manifest.used_at == UNKNOWN => batch.unnoted.push(entry),
            Entry::Blob { record: Versioned { value, .. }, .. }
                if value.used_at.is_none() && matches!(value.state, BlobState::Stored { .. }) =>
            {
                batch.unnoted.push(entry);
            }
            Entry::Blob { digest, record: record @ Versioned { value, .. } }
                if is_sweep
                    && matches!(value.state, BlobState::Stored { .. })
                    && value.shared != self.census.held.is_shared(keys.digest(digest)) =>
            {
                batch.sharing.push((digest.clone(), record.clone()));
            }
            _ => {}
        }
    }

    /// What is not written of repositories as it was counted.
    pub fn recounts(&mut self) -> Vec<Recount> {
        std::mem::take(&mut self.census.held).recounts()
    }

    /// Adds stored bytes that have no record to what is to be done.
    pub fn add_bytes(&self, stored: StoredBlob, batch: &mut Batch) {
        let Some(blob) = self.census.blobs.get(&self.census.keys.digest(&stored.digest)) else { return };
        let unchanged = blob.version.is_none() && blob.bytes == Some((stored.size, stored.modified));
        if unchanged && blob.fate == Fate::Goes {
            batch.blobs.push(Doomed { digest: stored.digest, record: None, bytes: stored.size });
        }
    }
}

impl Batch {
    /// How many items it has.
    pub fn size(&self) -> usize {
        self.entries.len() + self.blobs.len() + self.absent.len() + self.unnoted.len() + self.sharing.len()
    }

    /// Counts what it removes and corrects.
    pub fn add_to(&self, report: &mut SweepReport) {
        for entry in &self.entries {
            match entry {
                Entry::Reference { reference, .. } => {
                    report.tags += usize::from(matches!(reference, Reference::Tag(_)));
                }
                Entry::Manifest(StoredManifest { repository, digest, bytes, .. }) => {
                    report.add_manifest(repository, digest);
                    report.freed_bytes += bytes;
                }
                Entry::Membership { .. } => report.memberships += 1,
                Entry::Holding { .. } | Entry::Listing { .. } | Entry::Standing { .. } | Entry::Blob { .. } => {}
            }
        }
        report.blobs += self.blobs.len();
        report.freed_bytes += self.blobs.iter().map(|doomed| doomed.bytes).sum::<u64>();
        report.repaired += self.absent.len();
    }
}
