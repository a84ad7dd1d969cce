//! Addresses of callers, the networks that they are matched against, and the address to listen on.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::str::FromStr;

use ipnet::{IpNet, Ipv4Net};
use serde::Deserialize;

/// The address to listen on: `127.0.0.1:5000`, `[::1]:5000`, `localhost:5000` (127.0.0.1), or `:5000`, every IPv4 address of
/// this machine.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Deserialize)]
#[serde(try_from = "String")]
pub struct ListenAddress(pub SocketAddr);

impl FromStr for ListenAddress {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let named = text.rsplit_once(':').and_then(|(host, port)| {
            let address = match host {
                "" => Ipv4Addr::UNSPECIFIED,
                "localhost" => Ipv4Addr::LOCALHOST,
                _ => return None,
            };
            // Not `+5000`, which is a number as well.
            let port = Some(port).filter(|port| port.bytes().all(|byte| byte.is_ascii_digit()))?.parse().ok()?;
            Some(SocketAddr::from((address, port)))
        });
        let address = named.map_or_else(|| text.parse(), Ok);
        address.map(Self).map_err(|_| "is no address with a port, like 127.0.0.1:5000, localhost:5000 or :5000".into())
    }
}

impl TryFrom<String> for ListenAddress {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        text.parse()
    }
}

/// The address that a caller is counted by: an IPv6 caller has a whole /64 to call from.
pub fn neighbourhood(address: IpAddr) -> IpAddr {
    match address.to_canonical() {
        IpAddr::V6(address) => IpAddr::V6(Ipv6Addr::from(u128::from(address) >> 64 << 64)),
        address @ IpAddr::V4(_) => address,
    }
}

/// A network by its first address; one that is mapped into IPv6 (`::ffff:10.0.0.0/104`) becomes IPv4, as callers'
/// addresses do.
pub(crate) fn canonical(network: IpNet) -> IpNet {
    let IpNet::V6(v6) = network else { return network.trunc() };
    let v4 = v6.addr().to_ipv4_mapped().zip(v6.prefix_len().checked_sub(96));
    v4.and_then(|(address, prefix)| Ipv4Net::new(address, prefix).ok()).map_or(network, IpNet::V4).trunc()
}

/// Whether an address lies in one of these networks, which are [`canonical`]. An address that is mapped into IPv6
/// counts as IPv4.
pub(crate) fn is_in(networks: &[IpNet], address: IpAddr) -> bool {
    networks.iter().any(|network| network.contains(&address.to_canonical()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_to_listen_on_may_be_localhost_or_every_one() {
        for (text, meant) in [
            (":5001", "0.0.0.0:5001"),
            ("localhost:5001", "127.0.0.1:5001"),
            ("10.0.0.5:80", "10.0.0.5:80"),
            ("[::1]:5000", "[::1]:5000"),
            (":0", "0.0.0.0:0"),
        ] {
            assert_eq!(text.parse(), Ok(ListenAddress(meant.parse().unwrap())), "{text}");
        }
        for text in ["", ":", "5001", ":+1", ":65536", "cache.example.com:5000", "localhost", "127.0.0.1", "::1:5000x"]
        {
            assert!(text.parse::<ListenAddress>().is_err(), "{text}");
        }
    }

    #[test]
    fn an_ipv4_network_is_the_same_however_it_is_written() {
        let within =
            |network: &str, address: &str| is_in(&[canonical(network.parse().unwrap())], address.parse().unwrap());
        for network in ["10.0.0.0/8", "10.1.2.3/8", "::ffff:10.0.0.0/104"] {
            assert!(within(network, "10.1.2.3") && within(network, "::ffff:10.1.2.3"), "{network}");
            assert!(!within(network, "11.1.2.3") && !within(network, "::10.1.2.3"), "{network}");
        }
        assert_eq!(canonical("10.1.2.3/8".parse().unwrap()).to_string(), "10.0.0.0/8");
        assert!(within("2001:db8::/32", "2001:db8::1") && !within("::/0", "10.1.2.3"));
    }

    #[test]
    fn the_addresses_of_one_ipv6_network_are_one_neighbourhood() {
        let same = |a: &str, b: &str| neighbourhood(a.parse().unwrap()) == neighbourhood(b.parse().unwrap());
        assert!(same("2001:db8::1", "2001:db8::ffff:2") && !same("2001:db8::1", "2001:db8:0:1::1"));
        assert!(same("::ffff:192.0.2.1", "192.0.2.1") && !same("192.0.2.1", "192.0.2.2"));
    }
}
