//! The operators' part: retention and sweep, reports, and the management of robots.

mod health;
pub mod report;
pub mod retention;
mod robots;
mod sweep;

pub use health::Health;
pub use retention::Course;
pub use robots::{RobotAnswer, RobotCommand, RobotStatus};

use std::sync::Arc;
use std::time::Duration;

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
}

impl Operate {
    pub(crate) fn new(core: Arc<Core>, pull: Arc<Pull>, access: Arc<Access>) -> Self {
        let health = Refreshing::new(core.clock.clone(), health::FRESH, Duration::ZERO);
        Self { core, pull, access, health }
    }
}
