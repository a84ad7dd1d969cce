//! Decides what is kept and what is removed, from an inventory and the time alone: no I/O, no clock.
//!
//! A manifest is live while it was used, is pinned, or is stored below an index that was used or is pinned; an index is
//! live with its children too. A blob is live while a live manifest names it, or while it was used itself. Uses are
//! recorded once a day ([`NOTED`]), so an unused item may stay up to a day longer than `keep`, and a used one is never
//! removed.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::time::Duration;

use crate::config::Retention;
use crate::oci::{Digest, Reference, Repository};
use crate::operate::report::SweepReport;
use crate::ports::StoredBlob;
use crate::records::blob::NOTED;
use crate::records::{BlobRecord, BlobState, Entry, StoredManifest, TagRecord, Versioned};
use crate::values::time::Timestamp;

/// How long bytes without a record are kept: the process that stores them writes the record sooner.
const ORPHAN: Duration = Duration::from_hours(24);

/// How long the record of a blob blocks fills and other sweeps while its bytes are deleted.
pub const REMOVING: Duration = Duration::from_mins(1);

/// Everything that is stored, as a scan saw it: the ledger first, then the bytes.
#[derive(Default, Debug)]
pub struct Inventory {
    /// The entries of the ledger.
    pub entries: Vec<Entry>,
    /// The stored bytes, by digest.
    pub blobs: HashMap<Digest, StoredBlob>,
}

/// The last use of an item that an earlier version wrote, which recorded none: the item counts as used, and the sweep
/// that meets it records a use.
const UNKNOWN: Timestamp = Timestamp(0);

impl Inventory {
    /// The entries whose last use is not recorded.
    pub fn without_last_use(&self) -> impl Iterator<Item = &Entry> {
        self.entries.iter().filter(|entry| match entry {
            Entry::Manifest(manifest) => manifest.used_at == UNKNOWN,
            Entry::Blob { record, .. } => {
                record.value.used_at.is_none() && matches!(record.value.state, BlobState::Stored { .. })
            }
            Entry::Membership { .. } | Entry::Reference { .. } | Entry::Listing { .. } | Entry::Standing { .. } => {
                false
            }
        })
    }
}

/// What a sweep has to do. Each step is taken only if the item is still as the scan saw it.
#[derive(Default, Debug)]
pub struct Plan<'a> {
    /// References, manifests, memberships, lists and standings to remove.
    pub entries: Vec<&'a Entry>,
    /// Blobs to remove, with their records.
    pub blobs: BTreeMap<&'a Digest, Doomed<'a>>,
    /// Records that contradict the store (a fill that died, bytes that are gone): they become absent.
    pub absent: Vec<(&'a Digest, &'a Versioned<BlobRecord>)>,
    /// How many bytes are kept.
    pub kept_bytes: u64,
}

/// A blob to remove.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Doomed<'a> {
    /// Its record, if it has one.
    pub record: Option<&'a Versioned<BlobRecord>>,
    /// Its length in bytes.
    pub bytes: u64,
}

/// Plans a sweep: what was not used within `keep` goes, and what exceeds `max_size`.
pub fn mark<'a>(inventory: &'a Inventory, rules: &Retention, now: Timestamp) -> Plan<'a> {
    let contents = Contents::of(inventory);
    let used = |at: Option<Timestamp>| {
        rules.keep.is_none_or(|keep| at.is_some_and(|at| at == UNKNOWN || now < at.plus(keep).plus(NOTED)))
    };
    let pin = |repository: &Repository, reference: &Reference| {
        let image = format!("{repository}:{reference}");
        matches!(reference, Reference::Tag(_)) && rules.pin.iter().any(|pattern| pattern.matches(&image))
    };
    let pinned = contents.pinned(pin);
    let pinned = contents.below(pinned.iter().map(|manifest| (*manifest, manifest.used_at)));
    let roots = contents.manifests.values().copied().filter(|manifest| used(Some(manifest.used_at)));
    let roots = roots.map(|manifest| (manifest, manifest.used_at));
    let mut live = contents.below(roots.chain(pinned.values().copied()));
    contents.add_parents(&mut live);
    let named = Named::by(&live);

    let mut plan = Plan::default();
    for entry in &inventory.entries {
        let stays = match entry {
            Entry::Reference { repository, reference, record } => {
                let TagRecord { observed, previous, checked_at, fresh_until, lease } = &record.value;
                let digests = observed.iter().map(|observed| &observed.digest);
                let mut digests = digests.chain(previous.iter().map(|previous| &previous.digest));
                let leased = lease.as_ref().is_some_and(|lease| now < lease.until);
                let said = digests.any(|digest| live.contains_key(&(repository, digest)));
                // A remembered 404 is of use only until it expires.
                let known = observed.is_some() || previous.is_some();
                let believed = if known { used(Some(*checked_at)) } else { now < *fresh_until };
                leased || said || believed || pin(repository, reference)
            }
            Entry::Manifest(manifest) => live.contains_key(&(&manifest.repository, &manifest.digest)),
            Entry::Membership { repository, digest, used_at } => {
                used(Some(*used_at)) || named.in_repository.contains(&(repository, digest))
            }
            Entry::Listing { stale_until: over, .. } | Entry::Standing { until: over, .. } => now < *over,
            Entry::Blob { .. } => true,
        };
        if !stays {
            plan.entries.push(entry);
        }
    }
    for (digest, Blob { record, bytes }) in &contents.blobs {
        let size = bytes.map_or(0, |bytes| bytes.size);
        let goes = match record {
            None => {
                !named.anywhere.contains_key(*digest) && bytes.is_some_and(|bytes| bytes.modified < now.minus(ORPHAN))
            }
            Some(Versioned { value, .. }) => match value.state {
                BlobState::Claimed { until, .. } | BlobState::Removing { until } if now < until => false,
                BlobState::Removing { .. } => true,
                BlobState::Stored { .. } if value.used_at.is_none() => false,
                _ => !used(value.used_at) && !named.anywhere.contains_key(*digest),
            },
        };
        if goes {
            plan.blobs.insert(digest, Doomed { record: *record, bytes: size });
            continue;
        }
        plan.kept_bytes += size;
        if let Some(record) = record {
            let died = matches!(record.value.state, BlobState::Claimed { until, .. } if until <= now);
            let gone = matches!(record.value.state, BlobState::Stored { .. }) && bytes.is_none();
            // No fill has continued this upload for so long that its bytes are better used for something else.
            let left = matches!(record.value.state, BlobState::Absent)
                && record.value.checkpoint.is_some()
                && record.value.used_at.is_none_or(|used_at| used_at < now.minus(ORPHAN));
            if died || gone || left {
                plan.absent.push((digest, record));
            }
        }
    }
    if let Some(most) = rules.max_size {
        let exempt = Named::by(&pinned);
        evict(&mut plan, &contents, &named, &exempt, most);
    }
    plan
}

/// Adds the least recently used blobs to the plan until no more than `most` bytes are kept.
fn evict<'a>(plan: &mut Plan<'a>, contents: &Contents<'a>, named: &Named<'a>, exempt: &Named<'a>, most: u64) {
    let mut candidates = Vec::new();
    for (digest, Blob { record, bytes }) in &contents.blobs {
        let (Some(record), Some(bytes)) = (record, bytes) else { continue };
        let stored = matches!(record.value.state, BlobState::Stored { .. });
        if stored && !plan.blobs.contains_key(*digest) && !exempt.anywhere.contains_key(*digest) {
            let last_use = record.value.used_at.max(named.anywhere.get(*digest).copied());
            candidates.push((last_use, *digest, Doomed { record: Some(*record), bytes: bytes.size }));
        }
    }
    candidates.sort_unstable_by_key(|(last_use, digest, _)| (*last_use, *digest));
    for (_, digest, doomed) in candidates {
        if plan.kept_bytes <= most {
            break;
        }
        plan.kept_bytes -= doomed.bytes;
        plan.blobs.insert(digest, doomed);
    }
}

/// Plans the purge of an image and of what nothing else needs: its tag, or all tags of its digest; its manifest, unless
/// another tag or an index names it; an index's children alike; then their memberships and blobs.
pub fn purge<'a>(
    inventory: &'a Inventory,
    repository: &'a Repository,
    reference: &'a Reference,
    now: Timestamp,
) -> Plan<'a> {
    let contents = Contents::of(inventory);
    let mut plan = Plan::default();
    let (mut doomed, mut tagged) = (Vec::new(), HashSet::new());
    for entry in &inventory.entries {
        let Entry::Reference { repository: whose, reference: tag, record } = entry else { continue };
        if whose != repository {
            continue;
        }
        let observed = record.value.observed.as_ref().map(|observed| &observed.digest);
        let previous = record.value.previous.as_ref().map(|previous| &previous.digest);
        let goes = match reference {
            Reference::Tag(_) => tag == reference,
            Reference::Digest(digest) => tag == reference || observed == Some(digest),
        };
        if goes {
            plan.entries.push(entry);
            doomed.extend(observed.into_iter().chain(previous));
        } else {
            tagged.extend(observed);
        }
    }
    let mut gone: HashSet<Key<'a>> = HashSet::new();
    // What the image names stays where something else names it; only a digest that was asked for goes in any case.
    if let Reference::Digest(digest) = reference {
        doomed.retain(|tagged| *tagged != digest);
        gone.extend(contents.key(repository, digest));
        doomed.extend(gone.iter().filter_map(|key| contents.manifests.get(key)).flat_map(|manifest| &manifest.names));
    }
    while let Some(digest) = doomed.pop() {
        let Some(key) = contents.key(repository, digest).filter(|key| !gone.contains(key)) else { continue };
        let named = contents
            .manifests
            .iter()
            .any(|(other, manifest)| other.0 == repository && !gone.contains(other) && manifest.names.contains(digest));
        if !named && !tagged.contains(digest) {
            gone.insert(key);
            doomed.extend(contents.manifests.get(&key).into_iter().flat_map(|manifest| &manifest.names));
        }
    }
    let all = contents.manifests.iter().map(|(key, manifest)| (*key, (*manifest, manifest.used_at)));
    let (gone, live): (Used<'a>, Used<'a>) = all.partition(|(key, _)| gone.contains(key));
    let (named, unnamed) = (Named::by(&live), Named::by(&gone));
    plan.entries.extend(inventory.entries.iter().filter(|entry| match entry {
        Entry::Manifest(manifest) => gone.contains_key(&(&manifest.repository, &manifest.digest)),
        Entry::Membership { repository, digest, .. } => {
            unnamed.in_repository.contains(&(repository, digest))
                && !named.in_repository.contains(&(repository, digest))
        }
        Entry::Reference { .. } | Entry::Listing { .. } | Entry::Standing { .. } | Entry::Blob { .. } => false,
    }));
    for (digest, Blob { record, bytes }) in &contents.blobs {
        let size = bytes.map_or(0, |bytes| bytes.size);
        let busy = record.is_some_and(|record| match record.value.state {
            BlobState::Claimed { until, .. } | BlobState::Removing { until } => now < until,
            BlobState::Absent | BlobState::Stored { .. } => false,
        });
        if unnamed.anywhere.contains_key(*digest) && !named.anywhere.contains_key(*digest) && !busy {
            plan.blobs.insert(digest, Doomed { record: *record, bytes: size });
        } else {
            plan.kept_bytes += size;
        }
    }
    plan
}

impl Plan<'_> {
    /// Counts what the plan removes, keeps and corrects.
    pub fn report(&self) -> SweepReport {
        let count = |kind: fn(&Entry) -> bool| self.entries.iter().filter(|entry| kind(entry)).count();
        let images = self.entries.iter().filter_map(|entry| match entry {
            Entry::Manifest(manifest) => Some(format!("{}@{}", manifest.repository, manifest.digest)),
            _ => None,
        });
        let mut manifests: Vec<String> = images.collect();
        manifests.sort_unstable();
        SweepReport {
            tags: count(|entry| matches!(entry, Entry::Reference { .. })),
            manifests,
            memberships: count(|entry| matches!(entry, Entry::Membership { .. })),
            blobs: self.blobs.len(),
            freed_bytes: self.blobs.values().map(|doomed| doomed.bytes).sum(),
            kept_bytes: self.kept_bytes,
            repaired: self.absent.len(),
        }
    }
}

type Key<'a> = (&'a Repository, &'a Digest);

/// Manifests with their last use, by themselves or through an index.
type Used<'a> = HashMap<Key<'a>, (&'a StoredManifest, Timestamp)>;

/// A blob in the ledger and in the blob store.
#[derive(Clone, Copy, Default)]
struct Blob<'a> {
    record: Option<&'a Versioned<BlobRecord>>,
    bytes: Option<&'a StoredBlob>,
}

/// An inventory, indexed by key.
struct Contents<'a> {
    manifests: HashMap<Key<'a>, &'a StoredManifest>,
    blobs: HashMap<&'a Digest, Blob<'a>>,
    entries: &'a [Entry],
}

impl<'a> Contents<'a> {
    fn of(inventory: &'a Inventory) -> Self {
        let (mut manifests, mut blobs) = (HashMap::new(), HashMap::<_, Blob<'a>>::new());
        for entry in &inventory.entries {
            match entry {
                Entry::Manifest(manifest) => _ = manifests.insert((&manifest.repository, &manifest.digest), manifest),
                Entry::Blob { digest, record } => blobs.entry(digest).or_default().record = Some(record),
                Entry::Reference { .. } | Entry::Membership { .. } | Entry::Listing { .. } | Entry::Standing { .. } => {
                }
            }
        }
        for (digest, bytes) in &inventory.blobs {
            blobs.entry(digest).or_default().bytes = Some(bytes);
        }
        Self { manifests, blobs, entries: &inventory.entries }
    }

    fn key(&self, repository: &'a Repository, digest: &'a Digest) -> Option<Key<'a>> {
        self.manifests.get_key_value(&(repository, digest)).map(|(key, _)| *key)
    }

    /// The manifests of the pinned tags: the current one, or the previous one where that is not stored.
    fn pinned(&self, pin: impl Fn(&Repository, &Reference) -> bool) -> Vec<&'a StoredManifest> {
        let pinned = self.entries.iter().filter_map(|entry| {
            let Entry::Reference { repository, reference, record } = entry else { return None };
            let stored = |digest: &'a Digest| self.manifests.get(&(repository, digest)).copied();
            let observed = record.value.observed.as_ref().and_then(|observed| stored(&observed.digest));
            let before = || record.value.previous.as_ref().and_then(|previous| stored(&previous.digest));
            observed.or_else(before).filter(|_| pin(repository, reference))
        });
        pinned.collect()
    }

    /// The manifests and all that are stored below them, each with the latest use of itself and of those above it.
    fn below(&self, roots: impl Iterator<Item = (&'a StoredManifest, Timestamp)>) -> Used<'a> {
        let (mut used, mut open) = (Used::new(), roots.collect::<Vec<_>>());
        while let Some((manifest, at)) = open.pop() {
            let key = (&manifest.repository, &manifest.digest);
            let at = at.max(manifest.used_at);
            if used.get(&key).is_some_and(|(_, known)| *known >= at) {
                continue;
            }
            used.insert(key, (manifest, at));
            let children = manifest.names.iter().filter_map(|child| self.manifests.get(&(key.0, child)));
            open.extend(children.map(|child| (*child, at)));
        }
        used
    }

    /// Adds the indexes above live manifests. They keep nothing else alive.
    fn add_parents(&self, live: &mut Used<'a>) {
        loop {
            let parents = self.manifests.iter().filter(|(key, manifest)| {
                !live.contains_key(*key) && manifest.names.iter().any(|child| live.contains_key(&(key.0, child)))
            });
            let parents: Used<'a> = parents.map(|(key, manifest)| (*key, (*manifest, manifest.used_at))).collect();
            if parents.is_empty() {
                return;
            }
            live.extend(parents);
        }
    }
}

/// The digests that manifests name, their own included: the bytes of a large manifest may be stored like a blob.
struct Named<'a> {
    in_repository: HashSet<Key<'a>>,
    /// The latest use of any manifest that names the digest.
    anywhere: HashMap<&'a Digest, Timestamp>,
}

impl<'a> Named<'a> {
    fn by(manifests: &Used<'a>) -> Self {
        let mut named = Self { in_repository: HashSet::new(), anywhere: HashMap::new() };
        for (manifest, at) in manifests.values() {
            for digest in manifest.names.iter().chain([&manifest.digest]) {
                named.in_repository.insert((&manifest.repository, digest));
                let last = named.anywhere.entry(digest).or_insert(*at);
                *last = (*last).max(*at);
            }
        }
        named
    }
}

#[cfg(test)]
mod tests;
