//! What is stored of each repository, as a sweep counts it while it decides what stays.

use std::collections::{HashMap, HashSet};

use super::{Key, Keys};
use crate::oci::{Reference, Repository};
use crate::records::{Entry, Holding, StoredManifest, Versioned};

/// The repositories that a task is about, and the bytes of their blobs.
#[derive(Default)]
pub(super) struct Held {
    repositories: HashMap<Repository, Counted>,
    /// Each membership: the number of the repository, the digest, and how many bytes that has.
    members: Vec<(u32, Key, u64)>,
    holders: HashMap<Key, Holders>,
    /// What several repositories keep.
    shared: HashSet<Key>,
}

/// The repositories that have a digest.
struct Holders {
    /// One of them, and whether there are others, before anything is removed.
    one: Key,
    others: bool,
    /// The number of the first that keeps it.
    first: Option<u32>,
}

/// What has been counted of one repository.
struct Counted {
    number: u32,
    holding: Holding,
    /// Whether anything of it stays.
    stays: bool,
    /// What is written of it.
    written: Option<Versioned<Holding>>,
}

/// What has to be written of a repository. `None`: nothing of it is stored.
pub struct Recount {
    /// The repository.
    pub repository: Repository,
    /// What is written of it.
    pub written: Option<Versioned<Holding>>,
    /// What is to be.
    pub holding: Option<Holding>,
}

impl Held {
    /// Counts a membership before anything is decided.
    pub(super) fn expect(&mut self, digest: Key, repository: Key) {
        let holders = self.holders.entry(digest).or_insert(Holders { one: repository, others: false, first: None });
        holders.others |= holders.one != repository;
    }

    /// Whether several repositories have a digest, before anything is removed.
    pub(super) fn is_shared(&self, digest: Key) -> bool {
        self.holders.get(&digest).is_some_and(|holders| holders.others)
    }

    /// Counts a membership of a repository that the task is not about.
    pub(super) fn add_elsewhere(&mut self, digest: Key) {
        if self.holders.contains_key(&digest) {
            self.shared.insert(digest);
        }
    }

    /// Counts what stays.
    pub(super) fn add(&mut self, entry: &Entry, keys: &Keys) {
        match entry {
            Entry::Reference { repository, reference: Reference::Tag(tag), record } => {
                if record.value.observed.is_some() {
                    let counted = self.of(repository);
                    let (holding, used_at) = (counted.holding.clone(), counted.holding.used_at);
                    counted.holding = holding.with_tag(tag, used_at);
                    counted.stays = true;
                }
            }
            Entry::Manifest(StoredManifest { repository, used_at, .. }) => {
                let counted = self.of(repository);
                counted.holding.used_at = counted.holding.used_at.max(*used_at);
                counted.stays = true;
            }
            Entry::Membership { repository, digest, size, .. } => {
                let (counted, digest) = (self.of(repository), keys.digest(digest));
                counted.holding.bytes += size;
                counted.stays = true;
                let number = counted.number;
                self.members.push((number, digest, *size));
                // One that was written since it was counted is in the next count.
                if let Some(holders) = self.holders.get_mut(&digest)
                    && *holders.first.get_or_insert(number) != number
                {
                    self.shared.insert(digest);
                }
            }
            Entry::Holding { repository, record } => self.of(repository).written = Some(record.clone()),
            Entry::Reference { .. } | Entry::Listing { .. } | Entry::Standing { .. } | Entry::Blob { .. } => {}
        }
    }

    fn of(&mut self, repository: &Repository) -> &mut Counted {
        let number = u32::try_from(self.repositories.len()).unwrap_or(u32::MAX);
        let new = || Counted { number, holding: Holding::nothing(), stays: false, written: None };
        self.repositories.entry(repository.clone()).or_insert_with(new)
    }

    /// What is not written as it was counted.
    pub(super) fn recounts(self) -> Vec<Recount> {
        let mut shared: HashMap<u32, u64> = HashMap::new();
        for (number, digest, size) in &self.members {
            if self.shared.contains(digest) {
                *shared.entry(*number).or_default() += size;
            }
        }
        let recount = |(repository, Counted { number, holding, stays, written }): (_, Counted)| {
            let shared_bytes = Some(shared.get(&number).copied().unwrap_or_default());
            let holding = stays.then_some(Holding { shared_bytes, counted: true, ..holding });
            let is_said = match (&written, &holding) {
                (Some(written), Some(holding)) => written.value.says(holding),
                (written, holding) => written.is_none() && holding.is_none(),
            };
            (!is_said).then_some(Recount { repository, written, holding })
        };
        self.repositories.into_iter().filter_map(recount).collect()
    }
}
