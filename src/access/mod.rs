//! Who asks, and whether they may.

pub mod iam;
pub mod policy;
mod principal;
pub mod token;

pub use principal::{IamIdentity, InvalidRobotName, OidcIdentity, Principal, RobotName};
