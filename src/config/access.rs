//! `[access]` and `[[policy]]`: who is let in, and what they may pull.

use std::collections::BTreeMap;
use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddrV4};
use std::sync::Arc;
use std::time::Duration;

use http::uri::Authority;
use ipnet::{IpNet, Ipv4Net};
use url::Url;

use super::file::{AccessTable, AnonymousKey, OidcTable};
use super::login::{IamConfig, OidcConfig};
use super::policy::{PolicyRuleTable, operators};
use super::{ConfigError, ReadSecret, SecretSource, UpstreamConfig, value};
use crate::identity::policy::Policy;
use crate::identity::{Anonymous, InvalidNetwork, Network, Peer, Principal};
use crate::oci::UpstreamId;
use crate::values::address::is_in;
use crate::values::pattern::Pattern;

/// Who is let in, and what they may pull.
#[derive(Clone, Debug)]
pub struct AccessConfig {
    /// The service that tokens and signatures must name: those for another service are refused.
    pub service: String,
    /// The address it listens on, if it serves callers on this machine only: the `Host` of a request must then mean
    /// this machine.
    pub here: Option<IpAddr>,
    /// Which callers need no login.
    pub anonymous: Anonymous,
    /// Whether robots are let in.
    pub robots: bool,
    /// Patterns of principals that are operators, from wherever they ask.
    pub operators: Vec<Pattern>,
    /// Which identities of AWS are let in.
    pub iam: Option<IamConfig>,
    /// Which identities of `OpenID` Connect issuers are let in, by what the issuers are called.
    pub oidc: BTreeMap<String, OidcConfig>,
    /// How long a token is good for.
    pub token_life: Duration,
    /// The origin that clients reach this cache at, where it cannot see that itself: behind a proxy that terminates
    /// TLS.
    pub url: Option<Url>,
    /// The keys that tokens are signed with, as [`TokenKeys`](crate::access::token::TokenKeys) reads them.
    pub signing_keys: Option<SecretSource>,
    /// What callers that are let in may pull.
    pub policy: Policy,
}

impl AccessConfig {
    /// Lets in anonymous callers on this machine, and no others. `listen` is the address it listens on: a caller on
    /// this machine that connects to it has this address too.
    pub fn only_here(listen: IpAddr) -> Self {
        const LOOPBACK: Ipv4Net = Ipv4Net::new_assert(Ipv4Addr::new(127, 0, 0, 0), 8);
        let mut here = vec![IpNet::from(IpAddr::V6(Ipv6Addr::LOCALHOST)), IpNet::V4(LOOPBACK)];
        if !listen.is_unspecified() && !is_in(&here, listen) {
            here.push(listen.to_canonical().into());
        }
        let anonymous = Anonymous::From(here.into_iter().map(Network::Addresses).collect());
        Self { here: Some(listen), anonymous, ..Self::closed("stopover".into()) }
    }

    /// No caller is let in.
    fn closed(service: String) -> Self {
        Self {
            service,
            here: None,
            anonymous: Anonymous::Nobody,
            robots: false,
            operators: Vec::new(),
            iam: None,
            oidc: BTreeMap::new(),
            token_life: DEFAULT_TOKEN,
            url: None,
            signing_keys: None,
            policy: Policy::default(),
        }
    }

    /// Lets in all users and roles of one account of AWS, those of all accounts of an organisation, and anonymous
    /// callers from `networks`: for a deployment without `[access]`. `sts`: the endpoint of STS, if not the public one.
    pub fn of_account(
        account: String,
        organization: Option<String>,
        service: String,
        networks: Vec<Network>,
        sts: Option<Url>,
    ) -> Result<Self, ConfigError> {
        let iam =
            IamConfig { partition: None, accounts: vec![account], organization, roles: Vec::new(), endpoint: sts };
        let iam = Some(iam.checked()?);
        Ok(Self { anonymous: networks.into(), iam, ..Self::closed(checked_service(service)?) })
    }

    /// Why a principal is not let in from this peer, however it logs in. `None`: it is, once it has logged in.
    pub fn not_let_in(&self, principal: &Principal, source: Peer) -> Option<&'static str> {
        let (admits, reason) = match principal {
            Principal::Anonymous => (self.anonymous.admits(source), "access.anonymous does not name that address"),
            Principal::Robot(_) => (self.robots, "access.robots is not true"),
            Principal::Iam(identity) => match &self.iam {
                Some(iam) => (
                    iam.admits(identity),
                    "access.iam names neither its account nor its role, nor an organisation that it belongs to",
                ),
                None => (false, "there is no [access.iam]"),
            },
            Principal::Oidc(identity) => match self.oidc.get(&identity.issuer) {
                Some(issuer) => (issuer.admits(identity), "it has not all of the claims that [access.oidc] asks for"),
                None => (false, "there is no [access.oidc] of that issuer"),
            },
        };
        (!admits).then_some(reason)
    }

    /// Whether a principal that is let in is an operator. Anonymous callers are none.
    pub(crate) fn is_operator(&self, principal: &Principal) -> bool {
        *principal != Principal::Anonymous && self.operators.iter().any(|who| who.matches(&principal.to_string()))
    }

    /// Whether a `Host` (RFC 9110, section 7.2) may mean this cache. Where it serves this machine only, a site that
    /// binds a name of its own to 127.0.0.1 would have its pages read what callers here may (DNS rebinding).
    pub(crate) fn is_called(&self, host: &[u8]) -> bool {
        let Some(listen) = self.here else { return true };
        let is_here = |address: IpAddr| {
            let address = address.to_canonical();
            address.is_loopback() || address == listen.to_canonical()
        };
        // Most clients write an address and a port. To read these directly saves 900 instructions.
        let text = std::str::from_utf8(host).unwrap_or_default();
        if let Ok(address) = text.parse::<SocketAddrV4>() {
            return is_here((*address.ip()).into());
        }
        let Ok(authority) = Authority::try_from(host) else { return false };
        let host = authority.host().trim_start_matches('[').trim_end_matches(']');
        if let Ok(address) = host.parse::<IpAddr>() {
            return is_here(address);
        }
        // RFC 6761, section 6.3: no site can own this name; not all resolvers ensure that for the names below it.
        host.strip_suffix('.').unwrap_or(host).eq_ignore_ascii_case("localhost")
    }

    /// Whether there is any way to log in.
    pub fn has_logins(&self) -> bool {
        self.robots || self.iam.is_some() || !self.oidc.is_empty()
    }
}

/// Who is let in, in a line.
impl fmt::Display for AccessConfig {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.anonymous {
            Anonymous::Nobody => formatter.write_str("nobody without a login")?,
            Anonymous::Everybody => formatter.write_str("everybody, from everywhere")?,
            Anonymous::From(networks) => {
                let networks: Vec<String> = networks.iter().map(ToString::to_string).collect();
                write!(formatter, "everybody from {}", networks.join(", "))?;
            }
        }
        let logins = [("robots", self.robots), ("iam", self.iam.is_some()), ("oidc", !self.oidc.is_empty())];
        logins.iter().filter(|(_, there)| *there).try_for_each(|(name, _)| write!(formatter, "; {name}"))?;
        self.operators.iter().try_for_each(|who| write!(formatter, "; operator {}", who.as_str()))
    }
}

/// A token should live no shorter (token specification, "`expires_in`").
const SHORTEST_TOKEN: Duration = Duration::from_mins(1);
const LONGEST_TOKEN: Duration = Duration::from_hours(1);
const DEFAULT_TOKEN: Duration = Duration::from_mins(10);

impl AnonymousKey {
    fn read(self) -> Result<Anonymous, ConfigError> {
        let networks = match self {
            Self::Everywhere(true) => return Ok(Anonymous::Everybody),
            Self::Everywhere(false) => return Ok(Anonymous::Nobody),
            Self::From(networks) => networks,
        };
        let network = |(element, text): (usize, &String)| {
            let key = || format!("access.anonymous[{element}]");
            text.parse().map_err(|error: InvalidNetwork| value(key(), error.to_string()))
        };
        Ok((1..).zip(&networks).map(network).collect::<Result<Vec<Network>, _>>()?.into())
    }
}

/// Reads both. `None`: the file has no `[access]`, so the program that runs the cache decides.
pub(super) fn read(
    table: Option<AccessTable>,
    rules: Vec<PolicyRuleTable>,
    upstreams: &BTreeMap<UpstreamId, Arc<UpstreamConfig>>,
    secret: ReadSecret,
) -> Result<Option<AccessConfig>, ConfigError> {
    let Some(table) = table else {
        return match rules.first() {
            None => Ok(None),
            Some(_) => Err(value(
                "policy",
                "says what those may pull who are let in; say in [access] who that is, for example robots = true",
            )),
        };
    };
    let token_life = table.token_life.map_or(DEFAULT_TOKEN, |span| span.0);
    if !(SHORTEST_TOKEN..=LONGEST_TOKEN).contains(&token_life) {
        return Err(value("access.token_life", "must be from \"1m\" to \"1h\", for example \"5m\""));
    }
    let signing_keys = table.signing_keys.map(|keys| keys.read("", secret)).transpose();
    if table.iam.is_some() && table.service.is_none() {
        let message = "is required with [access.iam]: identities sign for this name, and what is signed for one cache must \
                       be worthless at every other";
        return Err(value("access.service", message));
    }
    let service = checked_service(table.service.unwrap_or_else(|| "stopover".into()))?;
    let mut access = AccessConfig {
        anonymous: table.anonymous.map_or(Ok(Anonymous::Nobody), AnonymousKey::read)?,
        robots: table.robots,
        iam: table.iam.map(IamConfig::checked).transpose()?,
        oidc: table.oidc.into_iter().map(OidcTable::read).collect::<Result<_, _>>()?,
        token_life,
        url: table.url.map(|url| url.0),
        signing_keys: signing_keys.map_err(|message| value("access.signing_keys", message))?,
        ..AccessConfig::closed(service)
    };
    if access.anonymous == Anonymous::Nobody && !access.has_logins() {
        let message = "names no login and no network, so nobody would be let in: write `anonymous = [\"<network>\"]`, \
                       `robots = true`, [access.iam] or [access.oidc.<name>]";
        return Err(value("access", message));
    }
    access.operators = operators(&table.operators, &access)?;
    let rules = (1..).zip(rules).map(|(number, rule)| rule.read(number, upstreams, &access));
    access.policy = Policy(rules.collect::<Result<_, _>>()?);
    Ok(Some(access))
}

/// The name of the service stands in a header between quotes, and in URLs.
fn checked_service(service: String) -> Result<String, ConfigError> {
    let plain = service.bytes().all(|byte| byte.is_ascii_alphanumeric() || b".-_:/".contains(&byte));
    if plain && !service.is_empty() {
        Ok(service)
    } else {
        Err(value("access.service", "has letters, digits and .-_:/ only"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::values::secret::Secret;

    #[test]
    fn without_a_word_this_machine_is_where_it_listens_too() {
        for (listen, caller, admitted) in [
            ("127.0.0.1", "127.0.0.2", true),
            ("127.0.0.1", "::1", true),
            ("127.0.0.1", "192.0.2.1", false),
            ("192.0.2.1", "192.0.2.1", true),
            ("192.0.2.1", "::ffff:192.0.2.1", true),
            ("192.0.2.1", "192.0.2.2", false),
            ("0.0.0.0", "192.0.2.1", false),
            ("::", "2001:db8::1", false),
        ] {
            let access = AccessConfig::only_here(listen.parse().unwrap());
            let host = if caller.contains(':') { format!("[{caller}]:5000") } else { format!("{caller}:5000") };
            assert_eq!(access.is_called(host.as_bytes()), admitted, "{host} at {listen}");
            assert_eq!(access.anonymous.admits(caller.parse().ok().into()), admitted, "{caller} at {listen}");
        }
        let access = AccessConfig {
            signing_keys: Some(SecretSource::Text(Secret::new("s3cret"))),
            ..AccessConfig::only_here(IpAddr::V4(Ipv4Addr::LOCALHOST))
        };
        assert!(!format!("{access:?}").contains("s3cret"));
    }
}
