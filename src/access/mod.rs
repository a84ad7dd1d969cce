//! Who asks, and whether they may.

mod gate;
pub mod iam;
mod manage;
pub mod policy;
mod principal;
pub mod robot;
pub mod token;

pub use gate::{Access, AccessError, Asking};
pub use manage::{OVERLAP, RobotAnswer, RobotCommand, RobotStatus, ShownSecret};
pub use principal::{IamIdentity, InvalidPrincipal, InvalidRobotName, KINDS, OidcIdentity, Principal, RobotName};
