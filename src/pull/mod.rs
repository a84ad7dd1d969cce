//! THE READ PATH: [manifests](manifest) by tag and by digest, [blobs](blob), and [lists](listing).

mod ask;
mod blob;
mod decide;
mod known;
mod listing;
mod manifest;
mod source;
mod store;
mod turn;
mod used;
mod warm;

use std::fs::File;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use tokio::sync::watch;
use tokio::time::Instant;

pub use listing::{PulledReferrers, PulledTags};
pub use manifest::Want;
pub use warm::WarmManifest;

use listing::LargeLists;
use source::Sources;
use store::Refused;
use used::{USES, Uses};
use warm::Warm;

use crate::core::Core;
use crate::errors::PullError;
use crate::membership::Membership;
use crate::oci::{Digest, Observed};
use crate::ports::{Progress, SignedUrl};
use crate::values::deadline::bounded;
use crate::values::expiring::Expiring;
use crate::values::flight::Flights;
use crate::values::served::Served;

/// What comes of a pull, or of a part of one.
type Result<T, E = PullError> = std::result::Result<T, E>;

/// How long after it has asked a client has an answer at the latest: clients wait for headers for 30 seconds.
const ANSWER: Duration = Duration::from_secs(28);

/// The read path.
pub struct Pull {
    core: Arc<Core>,
    membership: Arc<Membership>,
    /// Manifests that upstream is being asked for.
    flights: Flights<turn::FlightKey, Result<PulledManifest>>,
    lists: Lists,
    sources: Sources,
    memory: Memory,
}

/// What this process remembers of manifests, so that it need not ask the ledger or upstream again.
struct Memory {
    warm: Warm,
    uses: Uses,
    refused: Refused,
    /// Manifests whose blobs are stored.
    complete: Expiring<Digest, ()>,
}

/// Lists that upstream is being asked for, and lists that are too large for the ledger.
struct Lists {
    flights: Flights<listing::FlightKey, Result<listing::PulledList>>,
    large: LargeLists,
}

impl Pull {
    pub(crate) fn new(core: Arc<Core>, membership: Arc<Membership>) -> Self {
        let clock = core.clock.clone();
        let (sources, uses) = (Sources::new(clock.clone()), Uses::new(clock.clone(), USES));
        Self {
            core,
            membership,
            flights: Flights::new(),
            lists: Lists { flights: Flights::new(), large: LargeLists::new() },
            sources,
            memory: Memory { warm: Warm::new(), uses, refused: Refused::new(), complete: Expiring::new(clock, 10_000) },
        }
    }

    /// Until when a client that asked then waits for a fill.
    fn waits_until(&self, asked_at: Instant) -> Instant {
        let wait = self.core.config.wait;
        (Instant::now() + bounded(wait)).min(asked_at + ANSWER.max(wait))
    }
}

/// A manifest to answer with.
#[derive(Clone, Debug)]
pub struct PulledManifest {
    /// Digest, media type and size, for the headers.
    pub observed: Observed,
    /// The manifest; `None` only if a client asked with HEAD and it is not in memory.
    pub manifest: Option<Arc<WarmManifest>>,
    /// How the answer was obtained.
    pub served: Served,
}

/// A blob to answer with.
#[derive(Debug)]
pub struct PulledBlob {
    /// Its length in bytes.
    pub size: u64,
    /// Where its bytes are.
    pub content: Content,
    /// How the answer was obtained.
    pub served: Served,
}

/// Where the bytes of an answer are.
#[derive(Debug)]
pub enum Content {
    /// No bytes: the client asked with HEAD.
    None,
    /// At a URL that the client fetches itself.
    Redirect(SignedUrl),
    /// In a stored file.
    File(Arc<File>),
    /// In memory.
    Memory(Bytes),
    /// In a file that a fill is writing.
    Growing(Arc<File>, watch::Receiver<Progress>),
}
