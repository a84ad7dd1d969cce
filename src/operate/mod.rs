//! The operators' part: retention and sweep, reports, and the management of robots.

pub mod report;
pub mod retention;
mod robots;
mod sweep;

pub use retention::Course;
pub use robots::{RobotAnswer, RobotCommand, RobotStatus};

use std::sync::Arc;

use crate::access::Access;
use crate::core::Core;
use crate::pull::Pull;

/// Carries out what operators ask for.
pub struct Operate {
    core: Arc<Core>,
    pull: Arc<Pull>,
    access: Arc<Access>,
}

impl Operate {
    pub(crate) fn new(core: Arc<Core>, pull: Arc<Pull>, access: Arc<Access>) -> Self {
        Self { core, pull, access }
    }
}
