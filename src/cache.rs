//! The cache as a whole.

use std::sync::Arc;

use crate::access::token::InvalidKeys;
use crate::access::{Access, Keys};
use crate::config::Config;
use crate::core::Core;
use crate::errors::UpstreamError;
use crate::fill::Fill;
use crate::membership::Membership;
use crate::operate::Operate;
use crate::ports::{Cloud, Storage};
use crate::prefetch::Prefetch;
use crate::pull::Pull;
use crate::values::time::Clock;

/// The paths of the cache over one core.
pub struct Cache {
    /// What all of these work with.
    pub core: Arc<Core>,
    /// The read path.
    pub pull: Arc<Pull>,
    /// The write path.
    pub fill: Arc<Fill>,
    /// Images that are stored before a client pulls them.
    pub prefetch: Arc<Prefetch>,
    /// What operators do.
    pub operate: Arc<Operate>,
    pub(crate) access: Arc<Access>,
}

impl Cache {
    /// Joins a configuration and the adapters. Contacts no other system.
    pub fn new(
        config: Config,
        clock: Clock,
        storage: Storage,
        cloud: Option<Arc<dyn Cloud>>,
    ) -> Result<Self, CacheError> {
        for warning in &config.warnings {
            tracing::warn!("stopover.toml: {warning}");
        }
        let access = config.access();
        let ledger = Arc::clone(&storage.ledger);
        let core = Arc::new(Core::new(config, clock.clone(), storage, cloud.as_ref())?);
        let keys = match (access.has_logins(), &access.signing_keys) {
            (true, Some(keys)) => Some(Keys::new(keys, cloud.clone(), clock.clone())?.ok_or(CacheError::NoKeys)?),
            (true, None) => return Err(CacheError::NoKeys),
            (false, _) => None,
        };
        if access.iam.as_ref().is_some_and(|iam| iam.organization.is_some()) && cloud.is_none() {
            return Err(CacheError::NoOrganization);
        }
        let access = Arc::new(Access::new(access, keys, clock, ledger, cloud));
        let membership = Arc::new(Membership::new(Arc::clone(&core)));
        let fill = Arc::new(Fill::new(Arc::clone(&core), Arc::clone(&membership)));
        let pull = Arc::new(Pull::new(Arc::clone(&core), membership));
        let prefetch = Arc::new(Prefetch::new(Arc::clone(&core), Arc::clone(&pull)));
        let operate = Arc::new(Operate::new(Arc::clone(&core), Arc::clone(&pull), Arc::clone(&access)));
        Ok(Self { core, pull, fill, prefetch, operate, access })
    }
}

/// Why a cache cannot be built.
#[derive(Debug, thiserror::Error)]
pub enum CacheError {
    /// The client for upstreams cannot be built.
    #[error(transparent)]
    Upstream(#[from] UpstreamError),
    /// The signing keys are invalid.
    #[error("access.signing_keys")]
    Keys(#[from] InvalidKeys),
    /// Logins are configured without signing keys.
    #[error(
        "access.signing_keys: is required where somebody can log in: name a file, or a variable of the environment"
    )]
    NoKeys,
    /// An organisation is configured, but no adapter can look up its accounts.
    #[error("access.iam.organization: only a deployment on AWS can ask who belongs to it; name the accounts here")]
    NoOrganization,
}
