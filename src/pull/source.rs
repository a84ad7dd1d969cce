//! Where clients could fetch a cold blob themselves. Callers that want to know at about the same time share one
//! request.

use std::sync::Arc;
use std::time::Duration;

use super::{Pull, Result};
use crate::errors::{OverBudget, PullError, UpstreamError};
use crate::oci::{Digest, Repository};
use crate::ports::Job;
use crate::upstream::BlobSource;
use crate::values::expiring::Expiring;
use crate::values::flight::Flights;
use crate::values::time::Clock;

/// How long an answer is reused. Signed URLs are valid for minutes and for any range of the blob, and clients use them
/// at once.
const LASTS: Duration = Duration::from_secs(10);

type Key = (Repository, Digest);

/// Requests under way, and recent answers. Each process has its own.
pub(crate) struct Sources {
    asked: Flights<Key, Result<BlobSource>>,
    known: Expiring<Key, BlobSource>,
}

impl Sources {
    pub(crate) fn new(clock: Clock) -> Self {
        Self { asked: Flights::new(), known: Expiring::new(clock, 1000) }
    }
}

impl Pull {
    /// Where a client could fetch a blob itself. The caller that starts the request is charged a miss if upstream is
    /// asked in vain, and if the blob is not `admitted`, because it stays cold and would be asked about again and again.
    pub(super) async fn blob_source(
        self: &Arc<Self>,
        job: &Job,
        admitted: &Result<(), OverBudget>,
    ) -> Result<BlobSource> {
        let key = (job.repository.clone(), job.digest.clone());
        if let Some(source) = self.sources.known.get(&key) {
            return Ok(source);
        }
        let mut reservation = self.core.budgets.reserve_miss(job.payer).await?;
        let (pull, place, admitted) = (Arc::clone(self), key.clone(), admitted.is_ok());
        let work = || async move {
            if let Some(source) = pull.sources.known.get(&place) {
                return Ok(source);
            }
            reservation.mark_sent();
            let asked = pull.core.upstreams.blob_source(&place.0, &place.1).await;
            reservation.settle(!admitted || asked.as_ref().is_err_and(UpstreamError::is_miss));
            let source = asked.map_err(|error| match error {
                UpstreamError::Missing | UpstreamError::NoRepository => PullError::BlobUnknown,
                error => error.into(),
            })?;
            pull.sources.known.keep(place, source.clone(), LASTS);
            Ok(source)
        };
        self.sources.asked.join(key, work).await.unwrap_or(Err(PullError::NotYet))
    }
}
