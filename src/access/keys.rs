//! Where the keys of tokens come from: the configuration, or a secret that may be replaced while this process runs.

use std::sync::Arc;
use std::time::Duration;

use super::token::{Holder, InvalidKeys, TokenKeys};
use crate::config::{SecretSource, StoredSecret};
use crate::errors::{StoreError, Unreachable, chain};
use crate::ports::{Cloud, SecretVersion};
use crate::values::refreshing::Refreshing;
use crate::values::time::{Clock, Timestamp};

/// How long keys in Secrets Manager are used without reading them again, and while they cannot be read.
const FRESH: Duration = Duration::from_mins(5);
const USABLE: Duration = Duration::from_hours(24);

/// The keys of tokens.
pub(crate) enum Keys {
    Given(TokenKeys),
    Stored(StoredKeys),
}

/// Keys in Secrets Manager: its current version signs, the one before it is still believed.
pub(crate) struct StoredKeys {
    secret: StoredSecret,
    cloud: Arc<dyn Cloud>,
    clock: Clock,
    kept: Refreshing<Arc<TokenKeys>>,
}

impl Keys {
    /// The keys that the configuration names. `None`: they are stored where this process does not read.
    pub(crate) fn new(
        source: &SecretSource,
        cloud: Option<Arc<dyn Cloud>>,
        clock: Clock,
    ) -> Result<Option<Self>, InvalidKeys> {
        Ok(match (source, cloud) {
            (SecretSource::Text(text), _) => Some(Self::Given(TokenKeys::parse(text.as_str(), clock)?)),
            (SecretSource::Stored(secret), Some(cloud)) => {
                let kept = Refreshing::new(clock.clone(), FRESH, USABLE);
                Some(Self::Stored(StoredKeys { secret: secret.clone(), cloud, clock, kept }))
            }
            (SecretSource::Stored(_), None) => None,
        })
    }

    /// Issues a token. `None`: signing failed.
    pub(super) async fn issue(
        &self,
        service: &str,
        holder: &Holder,
        life: Duration,
    ) -> Result<Option<String>, Unreachable> {
        Ok(match self {
            Self::Given(keys) => keys.issue(service, holder, life),
            Self::Stored(stored) => stored.keys(None).await?.issue(service, holder, life),
        })
    }

    /// The holder of a token and when it was issued. `None`: it is not valid. A token of a key that is not known may be
    /// of one that has just become current.
    pub(super) async fn verify(&self, service: &str, token: &str) -> Result<Option<(Holder, Timestamp)>, Unreachable> {
        Ok(match self {
            Self::Given(keys) => keys.verify(service, token),
            Self::Stored(stored) => {
                let keys = stored.keys(None).await?;
                let verified = keys.verify(service, token);
                if verified.is_some() || keys.have_signed(token) {
                    return Ok(verified);
                }
                stored.keys(Some(&keys)).await?.verify(service, token)
            }
        })
    }
}

impl StoredKeys {
    async fn keys(&self, refused: Option<&Arc<TokenKeys>>) -> Result<Arc<TokenKeys>, Unreachable> {
        let read = async {
            let read = self.read().await;
            read.map(Arc::new).map_err(|error| {
                tracing::error!(secret = %self.secret, error = %chain(&error), "access.signing_keys cannot be read");
                Unreachable::because("the keys of tokens cannot be read (access.signing_keys)")
            })
        };
        self.kept.get(|last| refused.is_some_and(|refused| Arc::ptr_eq(last, refused)), read).await
    }

    async fn read(&self) -> Result<TokenKeys, StoreError> {
        let invalid = |error: InvalidKeys| StoreError::Corrupt(error.to_string().into());
        let current = self.cloud.secret(&self.secret, SecretVersion::Current).await?;
        let current = current.ok_or_else(|| StoreError::Refused("it has no current version".into()))?;
        let keys = TokenKeys::parse(current.as_str(), self.clock.clone()).map_err(invalid)?;
        // What was there before may have been anything: only keys are believed.
        let previous = self.cloud.secret(&self.secret, SecretVersion::Previous).await?;
        let previous = previous.and_then(|text| TokenKeys::parse(text.as_str(), self.clock.clone()).ok());
        Ok(keys.or_previous(previous))
    }
}
