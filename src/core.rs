//! What every path of the cache works with.

use std::sync::Arc;

use crate::budget::Budgets;
use crate::config::Config;
use crate::errors::UpstreamError;
use crate::ports::{Blobs, Fills, Ledger};
use crate::upstream::{Issuer, Upstreams};
use crate::values::time::Clock;

/// Settings, upstreams on one side, storage on the other, and what callers may spend between them.
pub struct Core {
    /// The settings.
    pub config: Config,
    pub(crate) clock: Clock,
    pub(crate) upstreams: Upstreams,
    pub(crate) blobs: Arc<dyn Blobs>,
    /// What is remembered.
    pub ledger: Arc<dyn Ledger>,
    /// What has blobs copied.
    pub fills: Arc<dyn Fills>,
    pub(crate) budgets: Arc<Budgets>,
}

impl Core {
    pub(crate) fn new(
        config: Config,
        clock: Clock,
        (blobs, ledger, fills): (Arc<dyn Blobs>, Arc<dyn Ledger>, Arc<dyn Fills>),
        issuer: Option<&Arc<dyn Issuer>>,
    ) -> Result<Self, UpstreamError> {
        let upstreams = Upstreams::new(&config, &clock, &ledger, issuer)?;
        let budgets = Budgets::new(config.budgets, clock.clone());
        Ok(Self { config, clock, upstreams, blobs, ledger, fills, budgets })
    }
}
