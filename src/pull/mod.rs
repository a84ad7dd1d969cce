//! THE READ PATH: [manifests](manifest) by tag and by digest, [blobs](blob), and [lists](listing); and whether what is
//! stored of them may be served at all ([`permission`]).

mod blob;
mod flight;
mod known;
mod listing;
mod manifest;
mod permission;
mod source;
mod store;
mod used;

use std::fs::File;
use std::sync::Arc;

use tokio::sync::watch;

pub(crate) use known::Warm;
pub(crate) use listing::LargeLists;
pub use listing::{PulledReferrers, PulledTags};
pub use manifest::Want;
pub(crate) use permission::{Proofs, Questions};
pub(crate) use source::Sources;
pub(crate) use store::{Refused, Weights};
pub(crate) use used::Uses;

use crate::errors::PullError;
use crate::oci::{Manifest, Observed};
use crate::ports::{Progress, SignedUrl};
use crate::values::served::Served;

/// The questions that are being asked of upstream.
pub(crate) type Flights = flight::Flights<manifest::Question, Result<PulledManifest, PullError>>;

/// The lists that upstream is being asked for.
pub(crate) type ListFlights = flight::Flights<listing::Question, Result<listing::PulledList, PullError>>;

/// A manifest to answer with.
#[derive(Clone, Debug)]
pub struct PulledManifest {
    /// What is said about it in headers.
    pub observed: Observed,
    /// The manifest; `None` only where a client asked with HEAD and nobody has fetched it yet.
    pub manifest: Option<Arc<Manifest>>,
    /// How it came about.
    pub served: Served,
}

/// A blob to answer with.
#[derive(Debug)]
pub struct PulledBlob {
    /// Its length in bytes.
    pub size: u64,
    /// Where its bytes are.
    pub content: Content,
    /// How it came about.
    pub served: Served,
}

/// Where the bytes of an answer are.
#[derive(Debug)]
pub enum Content {
    /// Not wanted: HEAD.
    None,
    /// At a URL that the client fetches itself.
    Redirect(SignedUrl),
    /// In a stored file.
    File(Arc<File>),
    /// In a file that a fill is writing.
    Growing(Arc<File>, watch::Receiver<Progress>),
}
