//! What is stored, page by page: each call reads as much as it returns, however much else there is.

use async_trait::async_trait;

use super::Result;
use crate::oci::{Digest, Manifest, Repository, Tag};
use crate::records::{Holding, TagRecord};
use crate::values::time::Timestamp;

/// A part of the list of repositories.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Section {
    /// What their names begin with, the upstream first; empty: all.
    pub prefix: String,
    /// Only those behind this one.
    pub after: Option<String>,
    /// How many at most.
    pub most: usize,
}

/// What the ledger knows of all that is stored. What is read may lag by a second on `DynamoDB`.
#[async_trait]
pub trait Inventory: Send + Sync {
    /// What is stored of the repositories of a section, in the order of the bytes of their names. Fewer than
    /// [`Section::most`] are the last ones.
    async fn holdings(&self, section: &Section) -> Result<Vec<(Repository, Holding)>>;

    /// The tags of a repository behind `after`, in the order of their bytes, with their records, those of tags that are
    /// missing upstream too. Fewer than `most` are the last ones.
    async fn tags(&self, repository: &Repository, after: Option<&Tag>, most: usize) -> Result<Vec<(Tag, TagRecord)>>;

    /// The digests of the manifests of a repository that are stored, behind `after`, in the order of their bytes. Fewer than
    /// `most` are the last ones.
    async fn digests(&self, repository: &Repository, after: Option<&Digest>, most: usize) -> Result<Vec<Digest>>;

    /// Those manifests of a repository that are stored, each with its last use, in no order.
    async fn manifests(&self, repository: &Repository, digests: &[Digest]) -> Result<Vec<(Manifest, Timestamp)>>;
}
