//! Small values that every room may use.

pub mod address;
pub mod crypto;
pub mod deadline;
pub mod expiring;
pub mod flight;
pub mod pattern;
pub mod pull_counter;
pub mod refreshing;
pub mod secret;
pub mod served;
pub mod text;
pub mod time;
