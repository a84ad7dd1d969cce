//! Which accounts belong to an organisation of AWS. STS does not say: whoever the cache is to AWS asks about each.

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use quick_cache::sync::Cache as MemoryCache;

use crate::errors::Unreachable;
use crate::values::time::{Clock, Timestamp};

/// How long AWS is not asked again about an account that belongs to the organisation.
const FRESH: Duration = Duration::from_mins(10);
/// The same for one that does not, which may join, and while AWS does not answer.
const BRIEF: Duration = Duration::from_mins(1);
/// How long an account that belongs to it is taken to do so while AWS does not answer.
const USABLE: Duration = Duration::from_hours(24);

/// Whoever may ask about the accounts of the organisation that this process belongs to.
#[async_trait]
pub trait Organization: Send + Sync {
    /// Whether an account belongs to the organisation with this id (AWS Organizations API, `DescribeAccount`).
    async fn has(&self, id: &str, account: &str) -> Result<bool, Unreachable>;
}

/// The accounts of one organisation.
pub(super) struct Members {
    id: String,
    organization: Arc<dyn Organization>,
    clock: Clock,
    known: MemoryCache<String, Membership>,
}

#[derive(Clone, Copy)]
struct Membership {
    belongs: bool,
    /// When AWS said so.
    said_at: Timestamp,
    /// Until when it is not asked again.
    fresh_until: Timestamp,
}

impl Members {
    pub(super) fn new(id: String, organization: Arc<dyn Organization>, clock: Clock) -> Self {
        Self { id, organization, clock, known: MemoryCache::new(10_000) }
    }

    /// The id of the organisation, if an account belongs to it.
    pub(super) async fn organization_of(&self, account: &str) -> Result<Option<String>, Unreachable> {
        Ok(self.have(account).await?.then(|| self.id.clone()))
    }

    async fn have(&self, account: &str) -> Result<bool, Unreachable> {
        let before = self.known.get(account);
        if let Some(known) = before.filter(|known| self.clock.now() < known.fresh_until) {
            return Ok(known.belongs);
        }
        let answer = self.organization.has(&self.id, account).await;
        let now = self.clock.now();
        let known = match (answer, before) {
            (Ok(belongs), _) => {
                let fresh_until = now.plus(if belongs { FRESH } else { BRIEF });
                Membership { belongs, said_at: now, fresh_until }
            }
            // Who did not belong to it may have joined since.
            (Err(_), Some(before)) if before.belongs && now < before.said_at.plus(USABLE) => {
                Membership { fresh_until: now.plus(BRIEF), ..before }
            }
            (Err(error), _) => return Err(error),
        };
        self.known.insert(account.to_owned(), known);
        Ok(known.belongs)
    }
}
