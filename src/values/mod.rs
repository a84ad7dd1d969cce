//! Small values that every room may use.

pub mod address;
pub mod secret;
pub mod time;
