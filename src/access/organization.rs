//! Which accounts belong to an AWS organisation. STS does not say, so AWS Organizations is asked about each account.

use std::sync::Arc;
use std::time::Duration;

use quick_cache::sync::Cache as MemoryCache;

use crate::errors::{Unreachable, chain};
use crate::ports::Cloud;
use crate::values::time::{Clock, Timestamp};

/// How long AWS is not asked again about an account that belongs to the organisation.
const FRESH: Duration = Duration::from_mins(10);
/// How long AWS is not asked again about an account that does not belong, which may join, or after AWS failed to
/// answer.
const BRIEF: Duration = Duration::from_mins(1);
/// How long an account counts as a member while AWS fails to answer.
const USABLE: Duration = Duration::from_hours(24);

/// The accounts of one organisation.
pub(super) struct Members {
    id: String,
    cloud: Arc<dyn Cloud>,
    clock: Clock,
    known: MemoryCache<String, Membership>,
}

#[derive(Clone, Copy)]
struct Membership {
    belongs: bool,
    /// When AWS gave this answer.
    said_at: Timestamp,
    /// AWS is not asked again before.
    fresh_until: Timestamp,
}

impl Members {
    pub(super) fn new(id: String, cloud: Arc<dyn Cloud>, clock: Clock) -> Self {
        Self { id, cloud, clock, known: MemoryCache::new(10_000) }
    }

    /// The id of the organisation, if the account belongs to it.
    pub(super) async fn organization_of(&self, account: &str) -> Result<Option<String>, Unreachable> {
        Ok(self.contains(account).await?.then(|| self.id.clone()))
    }

    async fn contains(&self, account: &str) -> Result<bool, Unreachable> {
        let before = self.known.get(account);
        if let Some(known) = before.filter(|known| self.clock.now() < known.fresh_until) {
            return Ok(known.belongs);
        }
        let answer = self.cloud.is_member(account, &self.id).await;
        let now = self.clock.now();
        let known = match (answer, before) {
            (Ok(belongs), _) => {
                let fresh_until = now.plus(if belongs { FRESH } else { BRIEF });
                Membership { belongs, said_at: now, fresh_until }
            }
            // Only membership is trusted: an account that did not belong may have joined since.
            (Err(_), Some(before)) if before.belongs && now < before.said_at.plus(USABLE) => {
                Membership { fresh_until: now.plus(BRIEF), ..before }
            }
            (Err(error), _) => {
                tracing::warn!(account, error = %chain(&error), "AWS does not say which organisation an account belongs to");
                let reason = "AWS does not say now whether your account belongs to the organisation of this cache";
                return Err(Unreachable::because(reason));
            }
        };
        self.known.insert(account.to_owned(), known);
        Ok(known.belongs)
    }
}
