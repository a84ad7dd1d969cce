//! Whose budget a request is charged to.

use std::net::IpAddr;

use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};

use super::Principal;
use crate::values::address::neighbourhood;

/// The caller that is charged. Of a fixed size, however long the name of its principal is.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Payer {
    /// Anonymous callers from this address; of IPv6 from all of its /64.
    Network(IpAddr),
    /// A caller that has logged in, from any address: the beginning of the SHA-256 of its name or, because an OIDC
    /// identity may have many subjects, of the claim that it is charged by.
    Principal([u8; 16]),
}

impl Payer {
    /// The caller that a request is charged to. `None`: an anonymous caller whose address is not known is not charged.
    pub fn of(principal: &Principal, address: Option<IpAddr>) -> Option<Self> {
        let name = match principal {
            Principal::Anonymous => return address.map(|address| Self::Network(neighbourhood(address))),
            Principal::Oidc(identity) => format!("oidc:{}:{}", identity.issuer, identity.payer),
            Principal::Robot(_) | Principal::Iam(_) => principal.to_string(),
        };
        Sha256::digest(name).first_chunk().copied().map(Self::Principal)
    }
}
