//! What every path of the cache works with.

use std::sync::Arc;

use crate::budget::Budgets;
use crate::config::Config;
use crate::errors::UpstreamError;
use crate::journal::Journal;
use crate::ports::{Cloud, Storage};
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
    /// The adapters of the installation.
    pub storage: Storage,
    pub(crate) budgets: Arc<Budgets>,
}

impl Core {
    pub(crate) fn new(
        config: Config,
        clock: Clock,
        storage: Storage,
        cloud: Option<&Arc<dyn Cloud>>,
    ) -> Result<Self, UpstreamError> {
        let journal = Arc::new(Journal::new(config.upstreams.keys().cloned(), clock.clone()));
        let upstreams = Upstreams::new(&config, (&clock, &journal), &storage.ledger, cloud)?;
        let budgets = Budgets::new(config.budgets, clock.clone());
        Ok(Self { config, clock, journal, upstreams, storage, budgets })
    }

    /// Whether other processes fill, sweep, and manage robots, as the filler function on AWS does: this one may not, and
    /// cannot count what they copy.
    pub(crate) fn is_front(&self) -> bool {
        self.storage.fills.load().is_none()
    }
}
