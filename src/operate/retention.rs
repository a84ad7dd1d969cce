//! Decides what is kept and what is removed, from what is stored and the time alone: no I/O, no clock.
//!
//! A manifest is live while it was used, is pinned, or is stored below an index that was used or is pinned; an index is
//! live with its children too. A blob is live while a live manifest names it, or while it was used itself. Uses are
//! recorded once a day ([`NOTED`]), so an unused item may stay up to a day longer than `keep`, and a used one is never
//! removed.
//!
//! Everything is read twice, so that some tens of bytes are held for each item, whatever its size: a [`Census`] counts,
//! and [`Fates`] say of each item, read anew, what becomes of it.

mod fates;
mod held;
mod part;

pub use fates::{Batch, Doomed, Fates};
use held::Held;
pub use held::Recount;
pub use part::Course;
use part::Part;

use std::collections::{HashMap, HashSet};
use std::hash::{BuildHasher as _, RandomState};
use std::time::Duration;

use crate::config::Retention;
use crate::oci::{Digest, Reference, Repository};
use crate::ports::StoredBlob;
use crate::records::blob::NOTED;
use crate::records::{BlobRecord, BlobState, Entry, StoredManifest, TagRecord};
use crate::values::time::Timestamp;

/// How long bytes without a record are kept: the process that stores them writes the record sooner.
const ORPHAN: Duration = Duration::from_hours(24);

/// The last use of an item that an earlier version wrote, which recorded none: the item counts as used, and the sweep
/// that meets it records a use.
const UNKNOWN: Timestamp = Timestamp(0);

/// What is to be removed.
#[derive(Clone, Copy)]
pub enum Task<'a> {
    /// What was not used within `keep`, and what exceeds `max_size`; of everything, or of one part.
    Sweep(&'a Retention, Option<&'a Course>),
    /// An image and what nothing else needs: its tag, or all tags of its digest; its manifest, unless another tag or an
    /// index names it; an index's children alike; then their memberships and blobs.
    Purge(&'a Repository, &'a Reference),
}

impl Task<'_> {
    /// Whether an item that was last used then stays.
    fn keeps(&self, used_at: Option<Timestamp>, now: Timestamp) -> bool {
        let Self::Sweep(Retention { keep, .. }, course) = self else { return true };
        let too_old = course.and_then(|course| course.too_old);
        if keep.is_none() && too_old.is_none() {
            return true;
        }
        used_at.is_some_and(|used_at| {
            let is_young = keep.is_none_or(|keep| now < used_at.plus(keep).plus(NOTED));
            used_at == UNKNOWN || (is_young && too_old.is_none_or(|too_old| used_at > too_old))
        })
    }

    /// What of everything is decided about. None: all of it.
    fn part(&self) -> Option<Part> {
        let Self::Sweep(_, course) = self else { return None };
        course.map(|course| course.part)
    }

    /// Whether the bytes of blobs are counted: not in a part of the repositories.
    pub fn lists_bytes(&self) -> bool {
        self.part().is_none_or(Part::is_of_blobs)
    }

    /// Whether a tag is pinned, or may be purged.
    fn is_about(&self, repository: &Repository, reference: &Reference) -> bool {
        match self {
            Self::Sweep(rules, _) => {
                let image = format!("{repository}:{reference}");
                matches!(reference, Reference::Tag(_)) && rules.pin.iter().any(|pattern| pattern.matches(&image))
            }
            Self::Purge(purged, _) => repository == *purged,
        }
    }

    /// Whether a tag is purged.
    fn purges(&self, repository: &Repository, reference: &Reference, record: &TagRecord) -> bool {
        let Self::Purge(purged, wanted) = self else { return false };
        let observed = record.observed.as_ref().map(|observed| &observed.digest);
        let is_named = matches!(wanted, Reference::Digest(digest) if observed == Some(digest));
        repository == *purged && (reference == *wanted || is_named)
    }
}

/// A digest, or a digest in a repository, as a number that each sweep draws anew. Two that are the same by accident keep
/// each other for that sweep.
type Key = u64;

#[derive(Default)]
struct Keys(RandomState);

impl Keys {
    fn repository(&self, repository: &Repository) -> Key {
        self.0.hash_one(repository)
    }

    fn digest(&self, digest: &Digest) -> Key {
        self.0.hash_one(digest)
    }

    fn within(&self, repository: Key, digest: Key) -> Key {
        self.0.hash_one((repository, digest))
    }

    fn of(&self, repository: &Repository, digest: &Digest) -> Key {
        self.within(self.repository(repository), self.digest(digest))
    }
}

/// A manifest, as it was counted.
struct Manifest {
    repository: Key,
    used_at: Timestamp,
    bytes: u64,
    /// Its own digest, whose bytes may be stored like a blob, and those that it names.
    names: Box<[Key]>,
}

/// A blob, as it was counted: in the ledger, and in the blob store.
#[derive(Default)]
struct Blob {
    /// The version of its record, if it has one.
    version: Option<u64>,
    used_at: Option<Timestamp>,
    bytes: Option<(u64, Timestamp)>,
    /// How many bytes its record says are stored.
    stored: Option<u64>,
    /// Its record is of a fill that died.
    is_wrong: bool,
    fate: Fate,
}

#[derive(Clone, Copy, Default, PartialEq, Eq)]
enum Fate {
    #[default]
    Stays,
    /// Nothing is at work on it, and it was not used itself.
    GoesUnlessNamed,
    Goes,
    /// Its record contradicts the store, and becomes absent.
    Repaired,
}

/// Everything that is stored, as a first pass counts it: the ledger first, then the bytes. Bytes that are listed after a
/// record said "stored" are there, all of them, or the record is wrong.
pub struct Census<'a> {
    task: Task<'a>,
    now: Timestamp,
    keys: Keys,
    manifests: HashMap<Key, Manifest>,
    blobs: HashMap<Key, Blob>,
    /// In a part of the blobs, what all manifests name of them.
    named: HashMap<Key, Timestamp>,
    /// The tags that the task is about: whether one goes, and the manifests of its current and its previous digest.
    tags: Vec<(bool, Option<Key>, Option<Key>)>,
    held: Held,
    /// The uploads that have a checkpoint: fills continue them.
    pub uploads: HashSet<String>,
    /// How many bytes are stored.
    pub bytes: u64,
}

impl<'a> Census<'a> {
    /// Nothing is counted yet.
    pub fn new(task: Task<'a>, now: Timestamp) -> Self {
        Self {
            task,
            now,
            keys: Keys::default(),
            manifests: HashMap::new(),
            blobs: HashMap::new(),
            named: HashMap::new(),
            tags: Vec::new(),
            held: Held::default(),
            uploads: HashSet::new(),
            bytes: 0,
        }
    }

    /// Counts an entry of the ledger.
    pub fn count(&mut self, entry: &Entry) {
        match entry {
            Entry::Manifest(StoredManifest { repository, digest, used_at, bytes, names }) => {
                let all = std::iter::once(digest).chain(names);
                if self.has(entry) {
                    let names = all.map(|name| self.keys.digest(name)).collect();
                    let (key, repository) = (self.keys.of(repository, digest), self.keys.repository(repository));
                    self.manifests.insert(key, Manifest { repository, used_at: *used_at, bytes: *bytes, names });
                    self.bytes += bytes;
                } else if let Some(part) = self.task.part() {
                    for name in all.filter(|name| part.has_digest(name)) {
                        let last = self.named.entry(self.keys.digest(name)).or_insert(*used_at);
                        *last = (*last).max(*used_at);
                    }
                }
            }
            Entry::Blob { digest, record } => {
                self.uploads.extend(record.value.checkpoint.as_ref().map(|checkpoint| checkpoint.upload.clone()));
                if !self.has(entry) {
                    return;
                }
                let (fate, BlobRecord { state, used_at, checkpoint, .. }) = (self.fate(&record.value), &record.value);
                let is_old = used_at.is_none_or(|used_at| used_at < self.now.minus(ORPHAN));
                let is_wrong = match state {
                    BlobState::Claimed { .. } => !state.is_busy(self.now),
                    // No fill has continued the upload for so long that its bytes are better used for something else.
                    BlobState::Absent => checkpoint.is_some() && is_old,
                    BlobState::Stored { .. } | BlobState::Removing { .. } => false,
                };
                let stored = if let BlobState::Stored { size } = state { Some(*size) } else { None };
                let version = Some(record.version);
                let blob = Blob { version, used_at: *used_at, bytes: None, stored, is_wrong, fate };
                self.blobs.insert(self.keys.digest(digest), blob);
            }
            Entry::Reference { repository, reference, record }
                if self.has(entry) && self.task.is_about(repository, reference) =>
            {
                let TagRecord { observed, previous, .. } = &record.value;
                let observed = observed.as_ref().map(|observed| self.keys.of(repository, &observed.digest));
                let previous = previous.as_ref().map(|previous| self.keys.of(repository, &previous.digest));
                self.tags.push((self.task.purges(repository, reference, &record.value), observed, previous));
            }
            Entry::Membership { repository, digest, .. } => {
                if self.has(entry) || self.task.part().is_some_and(|part| part.has_digest(digest)) {
                    self.held.expect(self.keys.digest(digest), self.keys.repository(repository));
                }
            }
            Entry::Reference { .. } | Entry::Holding { .. } | Entry::Listing { .. } | Entry::Standing { .. } => {}
        }
    }

    /// Whether it is decided about an entry.
    fn has(&self, entry: &Entry) -> bool {
        self.task.part().is_none_or(|part| part.has(entry))
    }

    /// What becomes of a blob, by its record alone.
    fn fate(&self, BlobRecord { state, used_at, .. }: &BlobRecord) -> Fate {
        match (state, self.task) {
            _ if state.is_busy(self.now) => Fate::Stays,
            (_, Task::Purge(..)) => Fate::GoesUnlessNamed,
            (BlobState::Removing { .. }, _) => Fate::Goes,
            (BlobState::Stored { .. }, _) if used_at.is_none() => Fate::Stays,
            _ if self.task.keeps(*used_at, self.now) => Fate::Stays,
            _ => Fate::GoesUnlessNamed,
        }
    }

    /// Counts stored bytes.
    pub fn count_bytes(&mut self, blob: &StoredBlob) {
        if self.task.part().is_some_and(|part| !part.has_digest(&blob.digest)) {
            return;
        }
        self.blobs.entry(self.keys.digest(&blob.digest)).or_default().bytes = Some((blob.size, blob.modified));
        self.bytes += blob.size;
    }

    /// The manifests of the pinned tags and all below them: the current one, or the previous one where that is not
    /// stored.
    fn pinned(&self) -> Used {
        let stored = |key: &Key| self.manifests.get(key).map(|manifest| (*key, manifest.used_at));
        let pinned = self.tags.iter().filter_map(|(_, observed, previous)| {
            observed.as_ref().and_then(stored).or_else(|| previous.as_ref().and_then(stored))
        });
        self.below(pinned)
    }

    /// The manifests that a purge removes.
    fn purged(&self, repository: &Repository, reference: &Reference) -> HashSet<Key> {
        let (mut gone, mut doomed) = (HashSet::new(), Vec::new());
        let asked = match reference {
            Reference::Digest(digest) => Some(self.keys.of(repository, digest)),
            Reference::Tag(_) => None,
        };
        let tagged: HashSet<Key> = self.tags.iter().filter(|(goes, ..)| !goes).filter_map(|(_, now, _)| *now).collect();
        for (_, observed, previous) in self.tags.iter().filter(|(goes, ..)| *goes) {
            doomed.extend(observed.iter().chain(previous).filter(|key| Some(**key) != asked));
        }
        // What the image names stays where something else names it; only a digest that was asked for goes in any case.
        if let Some((key, manifest)) = asked.and_then(|key| self.manifests.get_key_value(&key)) {
            gone.insert(*key);
            doomed.extend(self.children(*key, manifest));
        }
        let whose = self.keys.repository(repository);
        while let Some(key) = doomed.pop() {
            let Some(manifest) = self.manifests.get(&key).filter(|_| !gone.contains(&key)) else { continue };
            let named = self.manifests.iter().any(|(other, parent)| {
                parent.repository == whose
                    && !gone.contains(other)
                    && self.children(*other, parent).any(|child| child == key)
            });
            if !named && !tagged.contains(&key) {
                gone.insert(key);
                doomed.extend(self.children(key, manifest));
            }
        }
        gone
    }

    /// What a manifest names, in its repository.
    fn children(&self, key: Key, manifest: &Manifest) -> impl Iterator<Item = Key> {
        let names = manifest.names.iter().map(|name| self.keys.within(manifest.repository, *name));
        names.filter(move |child| *child != key)
    }

    /// The manifests and all that are stored below them, each with the latest use of itself and of those above it.
    fn below(&self, roots: impl Iterator<Item = (Key, Timestamp)>) -> Used {
        let (mut used, mut open) = (Used::new(), roots.collect::<Vec<_>>());
        while let Some((key, at)) = open.pop() {
            let Some(manifest) = self.manifests.get(&key) else { continue };
            let at = at.max(manifest.used_at);
            if used.get(&key).is_some_and(|known| *known >= at) {
                continue;
            }
            used.insert(key, at);
            let stored = self.children(key, manifest).filter(|child| self.manifests.contains_key(child));
            open.extend(stored.map(|child| (child, at)));
        }
        used
    }

    /// Adds the indexes above live manifests. They keep nothing else alive.
    fn add_parents(&self, live: &mut Used) {
        loop {
            let parents = self.manifests.iter().filter(|(key, manifest)| {
                !live.contains_key(*key) && self.children(**key, manifest).any(|child| live.contains_key(&child))
            });
            let parents: Used = parents.map(|(key, manifest)| (*key, manifest.used_at)).collect();
            if parents.is_empty() {
                return;
            }
            live.extend(parents);
        }
    }

    /// What those manifests name that `chosen` gives a last use.
    fn named(&self, chosen: impl Fn(&Key) -> Option<Timestamp>) -> Named {
        let mut named = Named::default();
        for (key, manifest) in &self.manifests {
            let Some(at) = chosen(key) else { continue };
            for name in &manifest.names {
                named.in_repository.insert(self.keys.within(manifest.repository, *name));
                // Of nothing else the last use is asked.
                if self.blobs.contains_key(name) {
                    let last = named.anywhere.entry(*name).or_insert(at);
                    *last = (*last).max(at);
                }
            }
        }
        named
    }
}

/// Manifests with their last use, by themselves or through an index.
type Used = HashMap<Key, Timestamp>;

/// The digests that manifests name, their own included.
#[derive(Default)]
struct Named {
    in_repository: HashSet<Key>,
    /// The latest use of any manifest that names the digest.
    anywhere: HashMap<Key, Timestamp>,
}

#[cfg(test)]
mod tests;
