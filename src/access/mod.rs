//! Who asks, and whether they may.

mod attempts;
mod gate;
pub mod iam;
pub mod jwks;
mod lane;
mod manage;
mod oidc;
mod operator;
mod organization;
pub mod partition;
pub mod policy;
mod principal;
pub mod robot;
mod robots;
mod secret;
mod source;
mod sts;
pub mod token;
mod web;

pub use gate::AccessError;
pub(crate) use gate::{Access, Asking, Login};
pub use manage::{RobotAnswer, RobotCommand, RobotStatus};
pub(crate) use operator::ProvenBody;
pub use operator::{InvalidSecret, OPERATOR_HEADER, OperatorSecret};
pub use organization::Organization;
pub(crate) use principal::KINDS;
pub use principal::{
    IAM_USER, IamIdentity, InvalidPrincipal, InvalidRobotName, OIDC_USER, OidcIdentity, Principal, RobotName,
};
pub use secret::Secret;
pub use source::{Anonymous, InvalidNetwork, Network, Source, VpcEndpoint};
pub use web::Unreachable;
