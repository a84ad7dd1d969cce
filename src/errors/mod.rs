//! Errors that more than one room speaks of.

mod pull;

pub use pull::{Answer, PullError, excerpt};
