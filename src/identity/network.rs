//! Where a request comes from, and the networks that `anonymous` in `[access]` may name.

use std::fmt;
use std::net::IpAddr;
use std::str::FromStr;

use ipnet::IpNet;

use crate::values::address::{canonical, is_in};

/// Where a request comes from, as the server or the front on AWS knows it, and never as a header of the client says it.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub struct Peer {
    /// The address that it was sent from. `None`: not known, so in no network.
    pub address: Option<IpAddr>,
    /// The VPC endpoint that it came through, of a private REST API of API Gateway.
    pub vpc_endpoint: Option<VpcEndpoint>,
}

impl From<Option<IpAddr>> for Peer {
    fn from(address: Option<IpAddr>) -> Self {
        Self { address, vpc_endpoint: None }
    }
}

/// The id of a VPC endpoint: `vpce-` and 8 or 17 hexadecimal digits (Amazon EC2, "Resource IDs").
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct VpcEndpoint {
    digits: usize,
    number: u128,
}

/// A network whose callers need no login.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Network {
    /// Their address is one of these.
    Addresses(IpNet),
    /// They come through this VPC endpoint.
    VpcEndpoint(VpcEndpoint),
}

/// Neither an address, nor a network, nor a VPC endpoint.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is no network like 10.0.0.0/8, and no VPC endpoint like vpce-0123456789abcdef0")]
pub struct InvalidNetwork(String);

/// Which callers need no login.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Anonymous {
    /// None: every caller has to log in.
    Nobody,
    /// Callers from one of these networks.
    From(Vec<Network>),
    /// All callers, from every address.
    Everybody,
}

/// Callers from one of these networks; without any network, no caller.
impl From<Vec<Network>> for Anonymous {
    fn from(networks: Vec<Network>) -> Self {
        if networks.is_empty() { Self::Nobody } else { Self::From(networks) }
    }
}

impl Anonymous {
    /// Whether a request from this peer may be anonymous.
    pub fn admits(&self, source: Peer) -> bool {
        match self {
            Self::Nobody => false,
            Self::From(networks) => networks.iter().any(|network| network.has(source)),
            Self::Everybody => true,
        }
    }
}

impl Network {
    /// Whether a few networks like this cover all addresses: wider than /8, or than /16 of IPv6.
    pub fn is_wide(&self) -> bool {
        match self {
            Self::Addresses(IpNet::V4(network)) => network.prefix_len() < 8,
            Self::Addresses(IpNet::V6(network)) => network.prefix_len() < 16,
            Self::VpcEndpoint(_) => false,
        }
    }

    fn has(&self, source: Peer) -> bool {
        match self {
            Self::Addresses(network) => source.address.is_some_and(|address| is_in(&[*network], address)),
            Self::VpcEndpoint(endpoint) => source.vpc_endpoint == Some(*endpoint),
        }
    }
}

impl FromStr for VpcEndpoint {
    type Err = InvalidNetwork;

    fn from_str(text: &str) -> Result<Self, InvalidNetwork> {
        let digits = text.strip_prefix("vpce-").filter(|digits| matches!(digits.len(), 8 | 17));
        let digits = digits.filter(|digits| digits.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f')));
        let number = digits.and_then(|digits| Some((digits.len(), u128::from_str_radix(digits, 16).ok()?)));
        number.map(|(digits, number)| Self { digits, number }).ok_or_else(|| InvalidNetwork(text.to_owned()))
    }
}

impl FromStr for Network {
    type Err = InvalidNetwork;

    fn from_str(text: &str) -> Result<Self, InvalidNetwork> {
        if text.starts_with("vpce-") {
            return text.parse().map(Self::VpcEndpoint);
        }
        let network = text.parse().or_else(|_| text.parse::<IpAddr>().map(IpNet::from));
        network.map(|network| Self::Addresses(canonical(network))).map_err(|_| InvalidNetwork(text.to_owned()))
    }
}

impl fmt::Display for VpcEndpoint {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "vpce-{:0digits$x}", self.number, digits = self.digits)
    }
}

impl fmt::Display for Network {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Addresses(network) => network.fmt(formatter),
            Self::VpcEndpoint(endpoint) => endpoint.fmt(formatter),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn admits(networks: &[&str], source: Peer) -> bool {
        Anonymous::From(networks.iter().map(|network| network.parse().unwrap()).collect()).admits(source)
    }

    fn at(address: &str) -> Peer {
        Some(address.parse().unwrap()).into()
    }

    #[test]
    fn a_caller_is_admitted_inside_of_a_network_and_not_outside() {
        for (network, inside, outside) in [
            ("10.0.0.0/8", "10.255.255.255", "11.0.0.0"),
            ("192.0.2.7/32", "192.0.2.7", "192.0.2.8"),
            ("192.0.2.7", "192.0.2.7", "192.0.2.6"),
            ("0.0.0.0/0", "203.0.113.9", "2001:db8::1"),
            ("2001:db8::/32", "2001:db8:ffff::1", "2001:db9::1"),
            ("::/0", "2001:db8::1", "203.0.113.9"),
            ("10.0.0.0/8", "::ffff:10.1.2.3", "::ffff:11.1.2.3"),
            ("::ffff:10.0.0.0/104", "10.1.2.3", "11.1.2.3"),
        ] {
            assert!(admits(&[network], at(inside)), "{network} has {inside}");
            assert!(!admits(&[network], at(outside)), "{network} does not have {outside}");
            assert!(admits(&["198.51.100.0/24", network], at(inside)));
            assert!(!admits(&[network], Peer::default()), "an address that is not known is in no network");
        }
        assert!(!admits(&[], at("10.0.0.1")) && !Anonymous::Nobody.admits(at("10.0.0.1")));
        assert!(Anonymous::Everybody.admits(Peer::default()));
    }

    #[test]
    fn a_vpc_endpoint_is_its_id_to_the_letter() {
        let through = |id: &str| Peer { address: None, vpc_endpoint: id.parse().ok() };
        for id in ["vpce-0123456789abcdef0", "vpce-01234567"] {
            assert_eq!(id.parse::<Network>().unwrap().to_string(), id);
            assert!(admits(&["10.0.0.0/8", id], through(id)));
            assert!(!admits(&[id], at("10.0.0.1")) && !admits(&["10.0.0.0/8"], through(id)));
        }
        assert!(!admits(&["vpce-00000000001234567"], through("vpce-01234567")));
        assert!(!admits(&["vpce-0123456789abcdef0"], through("vpce-0123456789abcdef1")));
    }

    #[test]
    fn what_is_neither_is_named() {
        for text in [
            "10.0.0.0/33",
            "everyone",
            "10.0.0/8",
            "::/129",
            "",
            "vpce-",
            "vpce-0123456789ABCDEF0",
            "vpce-1",
            "vpc-01234567",
        ] {
            assert_eq!(text.parse::<Network>(), Err(InvalidNetwork(text.to_owned())));
        }
    }
}
