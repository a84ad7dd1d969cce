//! Lists of tags and of referrers.

use serde::{Deserialize, Serialize};

use crate::oci::{Descriptors, Digest, Tags};
use crate::values::time::Timestamp;

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
    /// Of tags.
    Tags(Tags),
    /// Of the descriptors of referrers.
    Referrers(Descriptors),
}

impl List {
    /// How many bytes it takes as JSON; in memory it takes no more.
    pub fn json_bytes(&self) -> usize {
        match self {
            Self::Tags(tags) => tags.json().len() + 2,
            Self::Referrers(descriptors) => descriptors.json().len(),
        }
    }
}

/// Upstream's answer to a request for a list.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub struct Listing {
    /// The list; `None`: upstream has no such list.
    pub list: Option<List>,
    /// Until when upstream is not asked again.
    pub fresh_until: Timestamp,
    /// Until when it may be served while upstream is in trouble. After that the record may be removed.
    pub stale_until: Timestamp,
}
