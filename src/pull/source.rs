//! Where clients could fetch a cold blob themselves: upstream is asked once by all who want to know at about the same time.

use std::sync::Arc;
use std::time::Duration;

use quick_cache::sync::Cache as MemoryCache;

use super::Pull;
use crate::budget::MissReservation;
use crate::errors::{OverBudget, PullError, UpstreamError};
use crate::identity::Payer;
use crate::oci::{Digest, Repository};
use crate::ports::Job;
use crate::upstream::BlobSource;
use crate::values::flight::Flights;
use crate::values::time::Timestamp;

/// How long an answer is passed on. Signed URLs are good for minutes, whatever range of the blob is fetched there, and
/// clients fetch it at once.
const LASTS: Duration = Duration::from_secs(10);

type Key = (Repository, Digest);

/// What upstream is being asked, and has answered lately. Each process has its own.
pub(crate) struct Sources {
    asked: Flights<Key, Result<BlobSource, PullError>>,
    known: MemoryCache<Key, (BlobSource, Timestamp)>,
}

impl Sources {
    pub(crate) fn new() -> Self {
        Self { asked: Flights::new(), known: MemoryCache::new(1000) }
    }

    fn known(&self, key: &Key, now: Timestamp) -> Option<BlobSource> {
        self.known.get(key).filter(|(_, until)| now < *until).map(|(source, _)| source)
    }
}

impl Pull {
    /// Where a client could fetch a blob itself. That is a miss of whoever begins to ask for a blob that is not `admitted`: it
    /// stays cold, and would be asked about again and again; and for one of no size, that upstream does not have it.
    pub(super) async fn blob_source(
        self: &Arc<Self>,
        job: &Job,
        payer: Option<Payer>,
        admitted: &Result<(), OverBudget>,
    ) -> Result<BlobSource, PullError> {
        let key = (job.repository.clone(), job.digest.clone());
        if let Some(source) = self.sources.known(&key, self.core.clock.now()) {
            return Ok(source);
        }
        // What is stored from now on is paid for by its bytes.
        let paid = admitted.is_ok() && job.size > 0;
        let mut reservation =
            if paid { MissReservation::free() } else { self.core.budgets.reserve_miss(payer).await? };
        let (pull, place, admitted) = (Arc::clone(self), key.clone(), admitted.is_ok());
        let work = || async move {
            let now = pull.core.clock.now();
            if let Some(source) = pull.sources.known(&place, now) {
                return Ok(source);
            }
            reservation.mark_sent();
            let asked = pull.core.upstreams.blob_source(&place.0, &place.1).await;
            reservation.settle(!admitted || asked.as_ref().is_err_and(UpstreamError::is_miss));
            let source = asked.map_err(|error| match error {
                UpstreamError::Missing | UpstreamError::NoRepository => PullError::BlobUnknown,
                error => error.into(),
            })?;
            pull.sources.known.insert(place, (source.clone(), now.plus(LASTS)));
            Ok(source)
        };
        self.sources.asked.join(key, work).await.unwrap_or(Err(PullError::NotYet))
    }
}
