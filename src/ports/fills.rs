use std::fs::File;
use std::sync::Arc;

use async_trait::async_trait;
use serde::{Deserialize, Serialize};
use tokio::sync::watch;

use super::Result;
use crate::errors::FillError;
use crate::identity::Payer;
use crate::oci::{Digest, Platforms, Reference, Repository};
use crate::values::time::Timestamp;

/// One blob to copy from upstream into storage.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Job {
    /// The repository whose permission and credentials fetch it.
    pub repository: Repository,
    /// The blob.
    pub digest: Digest,
    /// Its length in bytes, as the manifest says.
    pub size: u64,
    /// How urgent it is.
    #[serde(default)]
    pub priority: Priority,
    /// The caller that is charged if upstream is asked in vain. `None`: no caller is.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub payer: Option<Payer>,
}

/// One image to store whole, without a client that waits for it.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct ImageJob {
    /// The repository that it is in.
    pub repository: Repository,
    /// Its tag or digest.
    pub reference: Reference,
    /// Which of its children are stored too, if it is an index.
    pub platforms: Platforms,
    /// The priority of its manifests and blobs. With [`Priority::Refresh`] upstream is asked for the digest of a tag
    /// however fresh its record is.
    pub priority: Priority,
    /// The caller that is charged. `None`: no caller is, because the operator requested it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub payer: Option<Payer>,
}

/// What a queue carries from one process to another.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(untagged)]
pub enum Work {
    /// Run by [`fill::run`](crate::fill::run).
    Blob(Job),
    /// Run by [`prefetch::run`](crate::prefetch::run).
    Image(ImageJob),
}

/// The order of fills, the most urgent first.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Priority {
    /// A client has pulled a manifest that references it.
    #[default]
    Interactive,
    /// A client is expected to pull it soon.
    Prefetch,
    /// It keeps up to date what was stored before, under a tag that may have moved.
    Refresh,
}

/// A fill that was requested and has not succeeded, as the adapter knows it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Requested {
    /// What was requested.
    pub job: Job,
    /// Whether it runs in this process.
    pub runs_here: bool,
    /// How many bytes have arrived, where it does; 0 elsewhere.
    pub written: u64,
    /// Set if it is not tried again until it is requested again.
    pub given_up: Option<GivenUp>,
}

/// What was requested, as far as an adapter can tell.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Listed {
    /// Fills that have not succeeded.
    pub fills: Vec<Requested>,
    /// Images that were given up.
    pub images: Vec<ImageJob>,
}

/// How many fills of this process have not ended.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Load {
    /// Fills that copy.
    pub running: usize,
    /// Fills that wait for a place.
    pub waiting: usize,
    /// Fills whose last attempt has failed, until the next one.
    pub resting: usize,
    /// When the oldest of them was requested; of those that an earlier process has left, when this one started.
    pub oldest: Option<Timestamp>,
}

/// A fill that is not tried again until it is requested again.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct GivenUp {
    /// Why, in words. `None`: the record of the blob says so.
    pub reason: Option<String>,
}

/// The queue of fills: what is requested here is filled later, by another task or process.
#[async_trait]
pub trait Fills: Send + Sync {
    /// Requests fills. Durable once it returns: a job is run at least once, and again after a failure that may pass.
    /// Requesting a blob twice costs little and does no harm.
    async fn request(&self, jobs: &[Job]) -> Result<()>;

    /// Requests images, as durably. They lead to requests for fills.
    async fn request_images(&self, images: &[ImageJob]) -> Result<()>;

    /// Requests a fill that a client waits for, and watches it, or the fill of the same blob that runs already. `None`:
    /// fills run in another process, and the ledger is where their outcome shows.
    async fn request_now(&self, job: &Job) -> Result<Option<Watched>>;

    /// What was given up, and what is still to be filled as far as the adapter can tell (SQS cannot).
    async fn list(&self) -> Result<Listed>;

    /// How many fills have not ended, without asking for it. `None`: they run in other processes.
    fn load(&self) -> Option<Load> {
        None
    }

    /// Requests again what was given up, and returns how many fills and images those were.
    async fn retry(&self) -> Result<usize>;
}

/// A fill that runs in this process.
#[derive(Clone, Debug)]
pub struct Watched {
    /// The repository whose permission and credentials fetch the blob.
    pub repository: Repository,
    /// How far it has come.
    pub progress: watch::Receiver<Progress>,
}

/// How far a fill has come.
#[derive(Clone, Debug)]
pub enum Progress {
    /// Not begun, or no byte has arrived yet.
    Waiting,
    /// `written` bytes of `file` can be read, in order.
    Growing {
        /// The unpublished file.
        file: Arc<File>,
        /// How many bytes of it are written.
        written: u64,
        /// How many bytes the blob has.
        size: u64,
        /// All of them are written, and are the right ones. They may still be lost in a crash.
        verified: bool,
    },
    /// Published: it survives a crash.
    Stored,
    /// Given up, or to be tried again later.
    Failed(FillError),
}
