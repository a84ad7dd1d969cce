//! Stopover: a pull-through cache for container registries.
//!
//! In reading order, as a pull passes through:
//!
//! 1. [`http`]: a request arrives, and the answer is built.
//! 2. [`oci`]: the request becomes an [`oci::Request`]; names, tags and digests become types.
//! 3. [`upstream`]: which repository is meant ([`upstream::Upstreams::repository`]), and how its registry is asked.
//! 4. [`access`]: who asks, and whether they may; at whose expense it is, [`budget`] says.
//! 5. [`pull`]: the read path: manifest by tag, manifest by digest, blob, list. What may be done about a tag is decided
//!    in [`freshness`].
//! 6. [`fill`]: the write path: one blob from upstream into storage.
//! 7. [`prefetch`]: whole images, before anybody pulls them.
//! 8. [`retention`]: what is kept and what goes.
//! 9. [`ports`]: what all of them ask of storage. [`local`] answers it with files and an embedded ledger; the package
//!    `functions` answers it with S3, `DynamoDB` and SQS.

pub mod access;
pub mod budget;
pub mod config;
pub mod errors;
pub mod fill;
pub mod http;
pub mod identity;
#[cfg(feature = "local")]
pub mod local;
pub mod oci;
pub mod operate;
pub mod ports;
pub mod prefetch;
pub mod pull;
pub mod records;
pub mod upstream;
pub mod values;

use std::sync::Arc;

use access::token::{InvalidKeys, TokenKeys};
use access::{Access, OperatorSecret, Organization};
use config::Config;
use errors::UpstreamError;
use ports::{Blobs, Fills, Ledger};
use tokio::sync::Semaphore;
use upstream::{Issuer, Upstreams};
use values::time::Clock;

/// The cache: upstreams on one side, storage on the other.
pub struct Cache {
    pub(crate) config: Config,
    pub(crate) clock: Clock,
    pub(crate) upstreams: Upstreams,
    pub(crate) blobs: Arc<dyn Blobs>,
    /// What is remembered.
    pub ledger: Arc<dyn Ledger>,
    /// What copies blobs.
    pub fills: Arc<dyn Fills>,
    /// One permit for each segment that fills may fetch ahead of what they store.
    pub(crate) fill_memory: Arc<Semaphore>,
    pub(crate) warm: pull::Warm,
    pub(crate) uses: pull::Uses,
    pub(crate) flights: pull::Flights,
    pub(crate) lists: pull::ListFlights,
    pub(crate) large_lists: pull::LargeLists,
    pub(crate) questions: pull::Questions,
    pub(crate) proofs: pull::Proofs,
    pub(crate) sources: pull::Sources,
    pub(crate) refused: pull::Refused,
    pub(crate) weights: pull::Weights,
    pub(crate) budgets: Arc<budget::Budgets>,
    pub(crate) access: Access,
    pub(crate) operator: Option<OperatorSecret>,
}

impl Cache {
    /// Joins a configuration and the adapters. Contacts nobody.
    pub fn new(
        config: Config,
        clock: Clock,
        blobs: Arc<dyn Blobs>,
        ledger: Arc<dyn Ledger>,
        fills: Arc<dyn Fills>,
        issuer: Option<&Arc<dyn Issuer>>,
        organization: Option<Arc<dyn Organization>>,
    ) -> Result<Self, CacheError> {
        let upstreams = Upstreams::new(&config, &clock, &ledger, issuer)?;
        let access = config.access();
        let keys = match (access.has_logins(), &access.signing_keys) {
            (true, Some(keys)) => Some(TokenKeys::parse(keys.as_str(), clock.clone())?),
            (true, None) => return Err(CacheError::NoKeys),
            (false, _) => None,
        };
        if access.iam.as_ref().is_some_and(|iam| iam.organization.is_some()) && organization.is_none() {
            return Err(CacheError::NoOrganization);
        }
        let access =
            Access::new(access, keys, clock.clone(), Arc::clone(&ledger), organization).map_err(CacheError::Client)?;
        let budgets = budget::Budgets::new(config.budgets, clock.clone());
        let fill_memory = Arc::new(Semaphore::new(fill::segments_in(config.fill_memory)));
        let (warm, flights, questions) = (pull::Warm::new(), pull::Flights::new(), pull::Questions::new());
        let (uses, lists, large_lists) = (pull::Uses::new(), pull::ListFlights::new(), pull::LargeLists::new());
        Ok(Self {
            config,
            clock,
            upstreams,
            blobs,
            ledger,
            fills,
            fill_memory,
            warm,
            uses,
            flights,
            lists,
            large_lists,
            questions,
            proofs: pull::Proofs::new(),
            sources: pull::Sources::new(),
            refused: pull::Refused::new(),
            weights: pull::Weights::new(),
            budgets,
            access,
            operator: None,
        })
    }

    /// Answers operators who prove that they have this secret. Without it, nobody is one.
    #[must_use]
    pub fn with_operator(self, secret: OperatorSecret) -> Self {
        Self { operator: Some(secret), ..self }
    }
}

/// Why a cache cannot be put together.
#[derive(Debug, thiserror::Error)]
pub enum CacheError {
    /// The upstreams cannot be asked.
    #[error(transparent)]
    Upstream(#[from] UpstreamError),
    /// There is no HTTP client to ask with who somebody is.
    #[error("no HTTP client: {0:?}")]
    Client(reqwest::Error),
    /// The keys of tokens cannot be used.
    #[error("access.signing_keys")]
    Keys(#[from] InvalidKeys),
    /// There are none.
    #[error(
        "access.signing_keys: is required where somebody can log in: name a file, or a variable of the environment"
    )]
    NoKeys,
    /// Nobody can say who belongs to the organisation.
    #[error("access.iam.organization: only a deployment on AWS can ask who belongs to it; name the accounts here")]
    NoOrganization,
}
