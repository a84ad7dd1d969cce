//! A part of a sweep, which holds only its own share of what is stored.

use serde::{Deserialize, Serialize};

use crate::oci::{Algorithm, Digest, Repository};
use crate::records::Entry;

/// The most shares: a message that asks for more was not written by a sweep.
const MOST: u32 = 4096;

/// A share of the repositories, or of the blobs. The parts of the repositories come first, and remove what is not live:
/// an index and its children are in one repository. In a part of the blobs then every manifest that is still stored keeps
/// what it names, whatever part its repository is in. So parts are right in any order, and twice.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "Numbers")]
pub struct Part {
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
    /// The first of as many parts as `items` need if each is to hold about `most`. None: they are held at once.
    pub fn first(items: usize, most: usize) -> Option<Self> {
        let of = u32::try_from(items.div_ceil(most.max(1))).unwrap_or(MOST).min(MOST);
        (of > 1).then_some(Self { number: 0, of })
    }

    /// The part after this one, unless it is the last.
    pub fn next(self) -> Option<Self> {
        Numbers { number: self.number + 1, of: self.of }.try_into().ok()
    }

    /// Whether it is a share of the blobs.
    pub fn is_of_blobs(self) -> bool {
        self.number >= self.of
    }

    /// Whether the blob of that digest is in it.
    pub fn has_digest(self, digest: &Digest) -> bool {
        self.is_of_blobs() && self.number - self.of == self.share(digest)
    }

    /// Whether the repository is in it.
    pub fn has_repository(self, repository: &Repository) -> bool {
        !self.is_of_blobs()
            && self.number == self.share(&Digest::of(Algorithm::Sha256, repository.to_string().as_bytes()))
    }

    /// Whether it decides about an entry.
    pub fn has(self, entry: &Entry) -> bool {
        match entry {
            Entry::Manifest(manifest) => self.has_repository(&manifest.repository),
            Entry::Reference { repository, .. } | Entry::Membership { repository, .. } => {
                self.has_repository(repository)
            }
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
