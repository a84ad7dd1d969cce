//! The operators' part: retention and sweep, reports, and the management of robots.

pub mod fills;
mod health;
pub mod images;
mod metrics;
pub mod report;
pub mod retention;
mod robots;
pub mod status;
mod sweep;
pub mod tallies;

pub use health::Health;
pub use retention::Course;
pub use robots::{RobotAnswer, RobotCommand, RobotStatus};

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use self::report::LastSweep;
use crate::access::Access;
use crate::core::Core;
use crate::pull::Pull;
use crate::values::refreshing::Refreshing;

/// Carries out what operators ask for.
pub struct Operate {
    core: Arc<Core>,
    pull: Arc<Pull>,
    access: Arc<Access>,
    health: Refreshing<Health>,
    swept: Mutex<Option<LastSweep>>,
    sums: tokio::sync::Mutex<tallies::Sums>,
}

impl Operate {
    pub(crate) fn new(core: Arc<Core>, pull: Arc<Pull>, access: Arc<Access>) -> Self {
        let health = Refreshing::new(core.clock.clone(), health::FRESH, Duration::ZERO);
        Self { core, pull, access, health, swept: Mutex::default(), sums: tokio::sync::Mutex::default() }
    }

    /// The last sweep of this process.
    pub fn last_sweep(&self) -> Option<LastSweep> {
        *self.swept.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
