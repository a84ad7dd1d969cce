//! What operators do: what is kept and what goes, reports, and robots.

pub mod report;
pub mod retention;
mod robots;
mod sweep;

pub use robots::{RobotAnswer, RobotCommand, RobotStatus};
