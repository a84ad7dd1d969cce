//! What operators do: what is kept and what goes, reports, and robots.

pub mod report;
pub mod retention;
mod robots;
mod sweep;

pub use robots::{RobotAnswer, RobotCommand, RobotStatus};

use std::sync::Arc;

use crate::access::Access;
use crate::core::Core;
use crate::pull::Pull;

/// Does what operators want done.
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
