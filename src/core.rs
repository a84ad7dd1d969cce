//! What every path of the cache works with.

use std::sync::Arc;

use crate::budget::Budgets;
use crate::config::Config;
use crate::errors::UpstreamError;
use crate::journal::Journal;
use crate::ports::{Blobs, Cloud, Fills, Ledger};
use crate::upstream::Upstreams;
use crate::values::time::Clock;

/// Settings, upstreams, storage, and the budgets of callers.
pub struct Core {
    /// The settings of `stopover.toml`.
    pub config: Config,
    pub(crate) clock: Clock,
    /// What this process has counted, and what has failed in it.
    pub journal: Arc<Journal>,
    /// The configured upstreams.
    pub upstreams: Upstreams,
    pub(crate) blobs: Arc<dyn Blobs>,
    /// The adapter for records.
    pub ledger: Arc<dyn Ledger>,
    /// The adapter that runs fills.
    pub fills: Arc<dyn Fills>,
    pub(crate) budgets: Arc<Budgets>,
}

impl Core {
    pub(crate) fn new(
        config: Config,
        clock: Clock,
        (blobs, ledger, fills): (Arc<dyn Blobs>, Arc<dyn Ledger>, Arc<dyn Fills>),
        cloud: Option<&Arc<dyn Cloud>>,
    ) -> Result<Self, UpstreamError> {
        let journal = Arc::new(Journal::new(config.upstreams.keys().cloned(), clock.clone()));
        let upstreams = Upstreams::new(&config, (&clock, &journal), &ledger, cloud)?;
        let budgets = Budgets::new(config.budgets, clock.clone());
        Ok(Self { config, clock, journal, upstreams, blobs, ledger, fills, budgets })
    }

    /// Whether other processes fill, sweep, and manage robots, as the filler function on AWS does: this one may not, and
    /// cannot count what they copy.
    pub(crate) fn is_front(&self) -> bool {
        self.fills.load().is_none()
    }
}
