//! A caller's principal, its address, and the rules of what it may pull: values, without any I/O.

mod network;
pub mod partition;
mod payer;
pub mod policy;
mod principal;

pub use network::{Anonymous, InvalidNetwork, Network, Peer, VpcEndpoint};
pub use payer::Payer;
pub(crate) use principal::KINDS;
pub use principal::{
    IAM_USER, IamIdentity, InvalidPrincipal, InvalidRobotName, OIDC_USER, OidcIdentity, Principal, RobotName,
};
