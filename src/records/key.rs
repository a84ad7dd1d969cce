//! What records are stored under.

use serde::Serialize;
use serde::de::DeserializeOwned;

use super::gauge::Gauge;
use super::robot::Robots;
use super::{BlobRecord, Holding, TagRecord};
use crate::oci::{Digest, Reference, Repository, UpstreamId};

/// The key of a record that has a version.
pub trait Key: Clone + Send + Sync {
    /// What is stored under it.
    type Record: Serialize + DeserializeOwned + Clone + Send + Sync + 'static;
}

/// What upstream said a tag is, and who asks about a tag or a digest.
#[derive(Clone, Copy, Debug)]
pub struct ReferenceKey<'a>(pub &'a Repository, pub &'a Reference);

/// What is stored of a repository.
#[derive(Clone, Copy, Debug)]
pub struct HoldingKey<'a>(pub &'a Repository);

/// Every robot that may log in.
#[derive(Clone, Copy, Debug)]
pub struct RobotsKey;

/// The quota and the breakers of an upstream, as one credential sees them: quotas belong to both.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub struct GaugeKey {
    /// The upstream.
    pub upstream: UpstreamId,
    /// The user name, or `anonymous`.
    pub credential: String,
}

impl Key for ReferenceKey<'_> {
    type Record = TagRecord;
}

impl Key for HoldingKey<'_> {
    type Record = Holding;
}

impl Key for RobotsKey {
    type Record = Robots;
}

impl Key for GaugeKey {
    type Record = Gauge;
}

/// Whether a blob is stored, and who fills or removes it.
impl Key for Digest {
    type Record = BlobRecord;
}

impl GaugeKey {
    /// What stands for a credential where there is none.
    pub const ANONYMOUS: &'static str = "anonymous";

    /// Whether it is the gauge of requests without credentials.
    pub fn is_anonymous(&self) -> bool {
        self.credential == Self::ANONYMOUS
    }
}
