//! A sweep in parts: each holds only its own share of what is stored, and hands the sweep on to the next.

use std::collections::BTreeMap;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::oci::{Algorithm, Digest, Repository};
use crate::records::Entry;
use crate::values::time::Timestamp;

/// The most shares: a message that asks for more was not written by a sweep.
const MOST: u32 = 4096;
/// How often the parts are gone through while more than `max_size` is kept.
const ROUNDS: u8 = 4;
/// Into how many classes an age is sorted until it doubles: 2 to the power of this.
const FINENESS: u32 = 3;

/// A share of the repositories, or of the blobs. The parts of the repositories come first, and remove what is not live:
/// an index and its children are in one repository. In a part of the blobs then every manifest that is still stored keeps
/// what it names, whatever part its repository is in. So parts are right in any order, and twice.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "Numbers")]
pub(super) struct Part {
    /// Below `of` a share of the repositories, and from there on one of the blobs.
    number: u32,
    of: u32,
}

#[derive(Deserialize)]
struct Numbers {
    number: u32,
    of: u32,
}

impl TryFrom<Numbers> for Part {
    type Error = String;

    fn try_from(Numbers { number, of }: Numbers) -> Result<Self, String> {
        let is_part = of <= MOST && number < of.saturating_mul(2);
        is_part.then_some(Self { number, of }).ok_or_else(|| format!("a sweep has no part {number} of {of}"))
    }
}

impl Part {
    /// The part after this one, unless it is the last.
    fn next(self) -> Option<Self> {
        Numbers { number: self.number + 1, of: self.of }.try_into().ok()
    }

    /// Whether it is a share of the blobs.
    pub(super) fn is_of_blobs(self) -> bool {
        self.number >= self.of
    }

    /// Whether the blob of that digest is in it.
    pub(super) fn has_digest(self, digest: &Digest) -> bool {
        self.is_of_blobs() && self.number - self.of == self.share(digest)
    }

    /// Whether the repository is in it.
    fn has_repository(self, repository: &Repository) -> bool {
        !self.is_of_blobs()
            && self.number == self.share(&Digest::of(Algorithm::Sha256, repository.to_string().as_bytes()))
    }

    /// Whether it decides about an entry.
    pub(super) fn has(self, entry: &Entry) -> bool {
        match entry {
            Entry::Manifest(manifest) => self.has_repository(&manifest.repository),
            Entry::Reference { repository, .. }
            | Entry::Membership { repository, .. }
            | Entry::Holding { repository, .. } => self.has_repository(repository),
            Entry::Blob { digest, .. } => self.has_digest(digest),
            Entry::Listing { .. } | Entry::Standing { .. } => self.number == 0,
        }
    }

    /// The share of a digest, the same in each process.
    fn share(self, digest: &Digest) -> u32 {
        let number = digest.to_bytes().iter().take(4).fold(0_u32, |number, byte| (number << 8) | u32::from(*byte));
        number.checked_rem(self.of).unwrap_or_default()
    }
}

/// How far a sweep in parts is, as a message says it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Course {
    /// What is next.
    pub(super) part: Part,
    /// What was last used then or before goes too, because more than `max_size` was kept.
    pub(super) too_old: Option<Timestamp>,
    begun_at: Timestamp,
    round: u8,
    /// What the parts before have kept in this round.
    kept: Ages,
}

impl Course {
    /// That of as many parts as `items` need if each is to hold about `most`. None: they are held at once.
    pub fn first(items: usize, most: usize, now: Timestamp) -> Option<Self> {
        let of = u32::try_from(items.div_ceil(most.max(1))).unwrap_or(MOST).min(MOST);
        let part = Part { number: 0, of };
        (of > 1).then_some(Self { part, too_old: None, begun_at: now, round: 1, kept: Ages::default() })
    }

    /// What comes after the part, which has kept the bytes of these last uses. If all parts keep more than `max_size`,
    /// they are gone through again.
    pub fn next(
        mut self,
        kept: impl Iterator<Item = (Timestamp, u64)>,
        max_size: Option<u64>,
        now: Timestamp,
    ) -> Option<Self> {
        kept.for_each(|(used_at, bytes)| self.kept.add(self.begun_at.after(used_at).as_secs(), bytes));
        if let Some(part) = self.part.next() {
            return Some(Self { part, ..self });
        }
        let stays = self.too_old.map(|too_old| self.begun_at.after(too_old).as_secs());
        let age = self.kept.too_old(max_size?, stays).filter(|_| self.round < ROUNDS)?;
        let (part, round) = (Part { number: 0, ..self.part }, self.round + 1);
        let too_old = Some(self.begun_at.minus(Duration::from_secs(age)));
        Some(Self { part, too_old, begun_at: now, round, kept: Ages::default() })
    }
}

/// How many bytes are kept, by the class of how many seconds ago they were last used. Classes grow with the age, so that
/// a message holds all of them.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
struct Ages(BTreeMap<u32, u64>);

impl Ages {
    fn add(&mut self, age: u64, bytes: u64) {
        *self.0.entry(class(age)).or_default() += bytes;
    }

    /// The age from which on bytes have to go, if no more than `most` are to stay. Those from the age `stays` on do not
    /// go: they were asked to before, and are pinned.
    fn too_old(&self, most: u64, stays: Option<u64>) -> Option<u64> {
        let goes = |class: u32| stays.is_none_or(|stays| youngest(class) < stays);
        let pinned: u64 = self.0.iter().filter(|(class, _)| !goes(**class)).map(|(_, bytes)| bytes).sum();
        let mut room = most.saturating_sub(pinned);
        for (class, bytes) in self.0.iter().filter(|(class, _)| goes(**class)) {
            room = match room.checked_sub(*bytes) {
                Some(room) => room,
                None => return Some(youngest(*class)),
            };
        }
        None
    }
}

fn class(age: u64) -> u32 {
    let age = age.saturating_add(1 << FINENESS);
    let doubled = age.ilog2() - FINENESS;
    (doubled << FINENESS) + u32::try_from((age >> doubled) - (1 << FINENESS)).unwrap_or_default()
}

/// The least age of a class.
fn youngest(class: u32) -> u64 {
    let (doubled, rest) = (class >> FINENESS, u64::from(class % (1 << FINENESS)));
    (((1 << FINENESS) + rest) << doubled.min(56)).saturating_sub(1 << FINENESS)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ages_are_sorted_into_classes_that_grow_by_an_eighth() {
        for age in [0, 1, 7, 8, 9, 23, 24, 3600, 86_400, 31_536_000, u64::from(u32::MAX)] {
            let (from, to) = (youngest(class(age)), youngest(class(age) + 1));
            assert!(from <= age && age < to && to - from <= 1 + age / 8, "{age}: {from} to {to}");
        }
        assert!(class(u64::MAX) < 1000);
    }

    #[test]
    fn the_oldest_go_until_the_rest_fits_beside_what_is_pinned() {
        let mut ages = Ages::default();
        for (age, bytes) in [(10, 30), (1000, 50), (100_000, 40), (1_000_000, 20)] {
            ages.add(age, bytes);
        }
        assert_eq!(ages.too_old(140, None), None);
        assert_eq!(ages.too_old(139, None).map(class), Some(class(1_000_000)));
        assert_eq!(ages.too_old(80, None).map(class), Some(class(100_000)));
        assert_eq!(ages.too_old(0, None).map(class), Some(class(10)));
        let before = ages.too_old(139, None);
        assert_eq!(ages.too_old(139, before).map(class), Some(class(100_000)), "what did not go then is pinned");
        assert_eq!(ages.too_old(140, before), None);
    }

    #[test]
    fn a_message_asks_for_a_part_that_there_is() {
        let part = |text: &str| serde_json::from_str::<Part>(text);
        assert_eq!(part(r#"{"number":0,"of":2}"#).unwrap(), Course::first(3, 2, Timestamp(9)).unwrap().part);
        assert!(part(r#"{"number":3,"of":2}"#).unwrap().next().is_none());
        for text in [r#"{"number":4,"of":2}"#, r#"{"number":0,"of":0}"#, r#"{"number":0,"of":4294967295}"#, "{}"] {
            assert!(part(text).is_err(), "{text}");
        }
    }
}
