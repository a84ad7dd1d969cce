//! At whose expense something is.

use std::net::IpAddr;

use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};

use super::Principal;
use crate::values::address::neighbourhood;

/// Whose expense something is. Of a fixed size, however long the name of a principal is.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Payer {
    /// Whoever asks from this address without saying who they are; of IPv6 all of a /64.
    Network(IpAddr),
    /// Somebody who logged in, wherever they are: the beginning of the SHA-256 of their name, or of what they cannot have
    /// many of who have many names.
    Principal([u8; 16]),
}

impl Payer {
    /// Whose expense a request is. `None`: nobody's, because nobody knows where it comes from.
    pub fn of(principal: &Principal, address: Option<IpAddr>) -> Option<Self> {
        let name = match principal {
            Principal::Anonymous => return address.map(|address| Self::Network(neighbourhood(address))),
            Principal::Oidc(identity) => format!("oidc:{}:{}", identity.issuer, identity.payer),
            Principal::Robot(_) | Principal::Iam(_) => principal.to_string(),
        };
        let mut beginning = [0; 16];
        for (byte, of_hash) in beginning.iter_mut().zip(Sha256::digest(name)) {
            *byte = of_hash;
        }
        Some(Self::Principal(beginning))
    }
}
