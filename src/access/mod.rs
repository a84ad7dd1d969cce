//! Authentication: which caller a request comes from, and whether it is let in.

mod attempts;
mod gate;
pub mod iam;
pub mod jwks;
mod keys;
mod lane;
mod oidc;
mod organization;
mod robots;
mod sts;
pub mod token;
mod web;

pub(crate) use gate::{Access, Asking, ClaimedIdentity};
pub(crate) use keys::Keys;
