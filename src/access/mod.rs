//! Who asks, and whether they may.

mod gate;
pub mod iam;
pub mod policy;
mod principal;
pub mod robot;
pub mod token;

pub use gate::{Access, AccessError, Asking};
pub use principal::{IamIdentity, InvalidRobotName, OidcIdentity, Principal, RobotName};
