//! What the ledger holds, each record with its pure rules.

pub mod blob;
pub mod gauge;
mod holding;
mod key;
mod listing;
pub mod robot;
mod standing;
pub mod tag;

pub use blob::{BlobRecord, BlobState, BlobView, Checkpoint, Member};
pub use holding::Holding;
pub use key::{GaugeKey, HoldingKey, Key, ReferenceKey, RobotsKey};
pub use listing::{List, ListKey, Listing};
pub use standing::Standing;
pub use tag::{Lease, Previous, TagRecord};

use crate::oci::{Digest, Reference, Repository};
use crate::values::time::Timestamp;

/// A value of the ledger with the version that a conditional write must name.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Versioned<T> {
    /// The value.
    pub value: T,
    /// Changes with every write of the item.
    pub version: u64,
}

/// One item of the ledger, as a scan has seen it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Entry {
    /// The record of a tag, or of a digest.
    Reference {
        /// The repository of the tag or digest.
        repository: Repository,
        /// The tag or the digest.
        reference: Reference,
        /// Its record.
        record: Versioned<TagRecord>,
    },
    /// A manifest.
    Manifest(StoredManifest),
    /// The membership of a blob in a repository.
    Membership {
        /// The repository that the blob belongs to.
        repository: Repository,
        /// Which blob.
        digest: Digest,
        /// The blob's length in bytes.
        size: u64,
        /// When it was last written.
        used_at: Timestamp,
    },
    /// Upstream's answer to a request for a list.
    Listing {
        /// The repository of the list.
        repository: Repository,
        /// Which list.
        key: ListKey,
        /// [`Listing::stale_until`].
        stale_until: Timestamp,
    },
    /// Whether upstream shows us a repository, as it last said.
    Standing {
        /// The repository.
        repository: Repository,
        /// [`Standing::until`].
        until: Timestamp,
    },
    /// What is stored of a repository.
    Holding {
        /// The repository.
        repository: Repository,
        /// Its record.
        record: Versioned<Holding>,
    },
    /// The record of a blob.
    Blob {
        /// Which blob.
        digest: Digest,
        /// Its record.
        record: Versioned<BlobRecord>,
    },
}

/// A manifest without its bytes.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct StoredManifest {
    /// The repository that it is stored for.
    pub repository: Repository,
    /// The digest of its bytes.
    pub digest: Digest,
    /// When it was last used: stored, or pulled.
    pub used_at: Timestamp,
    /// How many bytes it takes in the ledger: none if they are stored like a blob.
    pub bytes: u64,
    /// The blobs or manifests that it references.
    pub names: Vec<Digest>,
}
