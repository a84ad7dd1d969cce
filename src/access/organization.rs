//! Who belongs to an organisation of AWS. STS does not say: whoever the cache is to AWS lists the accounts.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use tokio::sync::Mutex;

use super::web::Unreachable;
use crate::time::{Clock, Timestamp};

/// How long a list is good for.
const FRESH: Duration = Duration::from_mins(10);
/// How long a list is good for that lacks the account in question: it may be new.
const FRESH_FOR_STRANGERS: Duration = Duration::from_mins(1);
/// How long a list is used while there is no newer one to be had.
const USABLE: Duration = Duration::from_hours(24);
/// How long AWS is not asked again after it has failed.
const PAUSE: Duration = Duration::from_secs(5);

/// Whoever may list the accounts of the organisation that this process belongs to.
#[async_trait]
pub trait Organization: Send + Sync {
    /// The accounts of the organisation with this id, by their numbers (AWS Organizations API, `ListAccounts`). None where
    /// this process belongs to another organisation.
    async fn accounts(&self, id: &str) -> Result<BTreeSet<String>, Unreachable>;
}

/// The accounts of one organisation, as they were a while ago.
pub(super) struct Members {
    id: String,
    organization: Arc<dyn Organization>,
    clock: Clock,
    /// Whoever comes while AWS is asked waits for that answer.
    remembered: Mutex<Remembered>,
}

#[derive(Default)]
struct Remembered {
    list: Option<(BTreeSet<String>, Timestamp)>,
    failed: Option<(Unreachable, Timestamp)>,
}

impl Members {
    pub(super) fn new(id: String, organization: Arc<dyn Organization>, clock: Clock) -> Self {
        Self { id, organization, clock, remembered: Mutex::default() }
    }

    /// The id of the organisation, if an account belongs to it.
    pub(super) async fn organization_of(&self, account: &str) -> Result<Option<String>, Unreachable> {
        Ok(self.have(account).await?.then(|| self.id.clone()))
    }

    async fn have(&self, account: &str) -> Result<bool, Unreachable> {
        let mut remembered = self.remembered.lock().await;
        let now = self.clock.now();
        let within = |time: Duration| {
            let list = remembered.list.as_ref().filter(|(_, at)| now < at.plus(time));
            list.map(|(accounts, _)| accounts.contains(account))
        };
        match within(FRESH) {
            Some(true) => return Ok(true),
            Some(false) if within(FRESH_FOR_STRANGERS).is_some() => return Ok(false),
            Some(false) | None => {}
        }
        let usable = within(USABLE);
        let failed = remembered.failed.clone().filter(|(_, at)| now < at.plus(PAUSE));
        let error = match failed {
            Some((error, _)) => error,
            None => match self.organization.accounts(&self.id).await {
                Ok(accounts) => {
                    let known = accounts.contains(account);
                    *remembered = Remembered { list: Some((accounts, now)), failed: None };
                    return Ok(known);
                }
                Err(error) => {
                    tracing::warn!(organization = self.id, %error, "the accounts of the organisation cannot be listed");
                    remembered.failed = Some((error.clone(), now));
                    error
                }
            },
        };
        // Who is not in the list may have joined since.
        if usable == Some(true) { Ok(true) } else { Err(error) }
    }
}
