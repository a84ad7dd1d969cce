//! What the ledger holds, each record with its pure rules.

pub mod gauge;
pub mod robot;
pub mod tag;

use serde::{Deserialize, Serialize};

use crate::oci::{Digest, Manifest, MediaType, Reference, Repository, Tag, UpstreamId};
use crate::values::time::Timestamp;

/// A value of the ledger with the version that a conditional write has to name.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Versioned<T> {
    /// The value.
    pub value: T,
    /// Changes with every write of the item.
    pub version: u64,
}

/// "Upstream said at time t that tag T is digest D": freshness, never content. For a digest it says only who is fetching
/// it, or that upstream does not have it.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct TagRecord {
    /// What upstream said; `None`: that there is no such tag.
    pub observed: Option<Observed>,
    /// The digest served before, kept until the manifest of `observed` is stored; what a tag was that is gone.
    pub previous: Option<Previous>,
    /// When upstream said it.
    pub checked_at: Timestamp,
    /// Until when upstream is not asked again.
    pub fresh_until: Timestamp,
    /// Who is asking it.
    pub lease: Option<Lease>,
}

/// What a tag was before it moved.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Previous {
    /// The digest.
    pub digest: Digest,
    /// When upstream last said so.
    pub checked_at: Timestamp,
}

/// The right to ask upstream about a reference while all others wait for the answer. It saves requests; that a holder
/// which lost it changes nothing is the work of the version.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Lease {
    /// Who asks: unique to one question.
    pub owner: String,
    /// When another may take over.
    pub until: Timestamp,
}

/// What a registry says of a manifest without sending it (the answer to HEAD).
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Observed {
    /// Its address.
    pub digest: Digest,
    /// Its media type.
    pub media_type: MediaType,
    /// Its length in bytes.
    pub size: u64,
}

impl Observed {
    /// What a registry would say of it.
    pub fn of(manifest: &Manifest) -> Self {
        let size = manifest.bytes.len() as u64;
        Self { digest: manifest.digest.clone(), media_type: manifest.media_type, size }
    }
}

/// What is known of a blob, whatever the repository.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct BlobRecord {
    /// Whether its bytes are here.
    pub state: BlobState,
    /// How many fills have begun.
    pub attempts: u32,
    /// Why the last fill failed, for people.
    pub failure: Option<String>,
    /// How far an unfinished fill has come: the next one goes on from there.
    pub checkpoint: Option<Checkpoint>,
    /// When its bytes were last used, to the day: by a pull, or by a manifest that came to name it.
    pub used_at: Option<Timestamp>,
    /// Upstream has sent it for a repository that everybody who is let in may pull from. Otherwise it is shown only where
    /// a membership is [proven](Member::proven).
    #[serde(default)]
    pub open: bool,
}

impl BlobRecord {
    /// A record of which nothing but the state is known.
    pub fn new(state: BlobState) -> Self {
        Self { state, attempts: 0, failure: None, checkpoint: None, used_at: None, open: false }
    }
}

/// How far an unfinished fill has come. Written whole in one conditional write; one that does not fit the upload it
/// speaks of is discarded.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Checkpoint {
    /// How many bytes are stored, from the first one on.
    pub offset: u64,
    /// The state of the hash over them (see [`Hasher::save`](crate::oci::Hasher::save)).
    pub hash: String,
    /// What the adapter needs to go on, in its own words.
    pub upload: String,
    /// Which upstream sent them: bytes that are not verified yet are gone on with by fills through no other.
    #[serde(default)]
    pub upstream: Option<UpstreamId>,
}

/// The life of a blob in storage.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(tag = "state", rename_all = "snake_case")]
pub enum BlobState {
    /// Nobody is copying it: a fill failed, or its claim was given back.
    Absent,
    /// A fill is copying it. Others leave it alone until the claim runs out; correctness never depends on it.
    Claimed {
        /// Which fill: unique to one run.
        owner: String,
        /// When another may take over.
        until: Timestamp,
    },
    /// Its bytes are being deleted. As short as that takes; a process that died meanwhile is replaced then.
    Removing {
        /// When another may take over.
        until: Timestamp,
    },
    /// Stored, verified, and this many bytes long.
    Stored {
        /// Length in bytes.
        size: u64,
    },
}

/// A blob as one repository sees it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct BlobView {
    /// That the blob belongs to the repository.
    pub member: Option<Member>,
    /// What is known of it anywhere.
    pub record: Option<Versioned<BlobRecord>>,
}

impl BlobView {
    /// Whether its bytes are stored.
    pub fn is_stored(&self) -> bool {
        self.record.as_ref().is_some_and(|record| matches!(record.value.state, BlobState::Stored { .. }))
    }

    /// Whether bytes may be read through this repository that another one's fill has stored: a manifest that names them is
    /// enough only for what everybody may have anyway, because anybody can write a manifest.
    pub fn is_shown(&self) -> bool {
        self.member.is_some_and(|member| member.proven) || self.record.as_ref().is_some_and(|record| record.value.open)
    }
}

/// That a blob belongs to a repository.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Member {
    /// The blob's length in bytes.
    pub size: u64,
    /// When it was put last: by a manifest that names the blob, or by a pull.
    pub used_at: Timestamp,
    /// Upstream has sent the blob for this repository, or said that it has it. Otherwise a manifest names it, and that is
    /// all.
    pub proven: bool,
}

/// What upstream last said of a repository as a whole.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Standing {
    /// That there is none, or none for us.
    Absent {
        /// Until when that is believed without asking again.
        until: Timestamp,
    },
    /// It has shown us something of it. Noted only where it shows that to nobody without credentials.
    Shown {
        /// When.
        at: Timestamp,
        /// From when on that is of no use any more.
        until: Timestamp,
    },
}

impl Standing {
    /// When it is over.
    pub fn until(self) -> Timestamp {
        match self {
            Self::Absent { until } | Self::Shown { until, .. } => until,
        }
    }
}

/// Which list of a repository.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub enum ListKey {
    /// Its tags.
    Tags,
    /// The manifests that name this one as their subject.
    Referrers(Digest),
}

/// A list as upstream sent it, all of its pages.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum List {
    /// Tags in lexical order, each once.
    Tags(Vec<Tag>),
    /// Descriptors with all their fields (image-spec 1.1, "Descriptor").
    Referrers(Vec<serde_json::Map<String, serde_json::Value>>),
}

/// What upstream said when it was asked for a list.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub struct Listing {
    /// The list; `None`: that it has none.
    pub list: Option<List>,
    /// Until when upstream is not asked again.
    pub fresh_until: Timestamp,
    /// Until when it may be served while upstream is in trouble. After that it is of no use.
    pub stale_until: Timestamp,
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

/// Whose gauge: an upstream as one credential sees it.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub struct GaugeKey {
    /// The upstream.
    pub upstream: UpstreamId,
    /// The user name, or `anonymous`.
    pub credential: String,
}

impl GaugeKey {
    /// What stands for a credential where there is none.
    pub const ANONYMOUS: &'static str = "anonymous";

    /// Whether it is of whoever has no credentials there.
    pub fn is_anonymous(&self) -> bool {
        self.credential == Self::ANONYMOUS
    }
}
