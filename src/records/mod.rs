//! What the ledger holds, each record with its pure rules.

pub mod blob;
pub mod gauge;
mod listing;
pub mod robot;
mod standing;
pub mod tag;

pub use blob::{BlobRecord, BlobState, BlobView, Checkpoint, Member};
pub use gauge::GaugeKey;
pub use listing::{List, ListKey, Listing};
pub use standing::Standing;
pub use tag::{Lease, Previous, TagRecord};

use crate::oci::{Digest, Reference, Repository};
use crate::values::time::Timestamp;

/// A value of the ledger with the version that a conditional write has to name.
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
        /// Whose.
        repository: Repository,
        /// The tag or the digest.
        reference: Reference,
        /// What is known of it.
        record: Versioned<TagRecord>,
    },
    /// A manifest.
    Manifest(StoredManifest),
    /// That a blob belongs to a repository.
    Membership {
        /// Whose permission it is.
        repository: Repository,
        /// Which blob.
        digest: Digest,
        /// When it was put last.
        used_at: Timestamp,
    },
    /// What upstream said when it was asked for a list.
    Listing {
        /// Whose.
        repository: Repository,
        /// Which list.
        key: ListKey,
        /// [`Listing::stale_until`].
        stale_until: Timestamp,
    },
    /// What upstream last said of a repository as a whole.
    Standing {
        /// Which.
        repository: Repository,
        /// [`Standing::until`].
        until: Timestamp,
    },
    /// What is known of a blob.
    Blob {
        /// Which blob.
        digest: Digest,
        /// What is known of it.
        record: Versioned<BlobRecord>,
    },
}

/// A manifest without its bytes.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct StoredManifest {
    /// Where it may be read.
    pub repository: Repository,
    /// Its address.
    pub digest: Digest,
    /// When it was last used: put, or pulled.
    pub used_at: Timestamp,
    /// The blobs or manifests that it names.
    pub names: Vec<Digest>,
}
