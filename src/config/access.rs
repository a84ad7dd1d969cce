//! `[access]` and `[[policy]]`: who is let in, and what they may pull.

use std::collections::BTreeMap;
use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::time::Duration;

use http::uri::Authority;
use ipnet::{IpNet, Ipv4Net};
use url::Url;

use super::file::{AccessTable, AnonymousKey, IamTable, OidcTable};
use super::policy::{PolicyRuleTable, is_arn};
use super::{ConfigError, SecretReference, UpstreamConfig, value};
use crate::access::iam::{Partition, is_account};
use crate::access::policy::Policy;
use crate::access::{Anonymous, IamIdentity, InvalidNetwork, Network, OidcIdentity, Principal, Secret, Source};
use crate::address::is_in;
use crate::freshness::Pattern;
use crate::oci::UpstreamId;

/// Who is let in, and what they may pull.
#[derive(Clone, Debug)]
pub struct AccessConfig {
    /// What tokens and signatures are for: those that name another service are worthless here.
    pub service: String,
    /// Where it listens, if it is for callers on this machine only: what they call it has to mean this machine.
    pub here: Option<IpAddr>,
    /// Who need not say who they are.
    pub anonymous: Anonymous,
    /// Whether robots are let in.
    pub robots: bool,
    /// Which identities of AWS are let in.
    pub iam: Option<IamConfig>,
    /// Which identities of `OpenID` Connect issuers are let in, by what the issuers are called.
    pub oidc: BTreeMap<String, OidcConfig>,
    /// How long a token is good for.
    pub token_life: Duration,
    /// What clients call this cache, where it cannot see that itself: behind a proxy that ends TLS.
    pub url: Option<Url>,
    /// The keys that tokens are signed with, as [`TokenKeys`](crate::access::token::TokenKeys) reads them.
    pub signing_keys: Option<Secret>,
    /// What those who are let in may pull.
    pub policy: Policy,
}

/// Identities of AWS.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct IamConfig {
    /// The partition that the accounts are of: one with the same number in another is somebody else's. `None`: `aws`, and
    /// in a function that of its region.
    pub partition: Option<Partition>,
    /// Accounts all of whose users and roles are let in.
    pub accounts: Vec<String>,
    /// The organisation all of whose accounts are.
    pub organization: Option<String>,
    /// Patterns of ARNs without session: `arn:aws:iam::123456789012:role/eks-*`.
    pub roles: Vec<Pattern>,
    /// Where STS is asked instead of at its public endpoint in the region: a VPC endpoint.
    pub endpoint: Option<Url>,
}

/// Identities of one `OpenID` Connect issuer.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct OidcConfig {
    /// The claim `iss`, to the letter.
    pub issuer: String,
    /// Where its configuration is found (`OpenID` Connect Discovery 1.0, section 4).
    pub discovery: Url,
    /// Where its keys are, if its configuration is not to be asked.
    pub jwks_uri: Option<Url>,
    /// The claim `aud` that a token must have.
    pub audience: String,
    /// Patterns of claims, all of which a token must have.
    pub claims: BTreeMap<String, Pattern>,
    /// The claim whose values have a budget each; `None`: the first of [`BUDGET_CLAIMS`] that a token has.
    pub budget_claim: Option<String>,
}

/// What somebody is who has many subjects: a repository of GitHub, or of whatever issues tokens like it (Forgejo, Gitea),
/// and a project of GitLab. Service accounts of Kubernetes have one subject each.
const BUDGET_CLAIMS: [&str; 3] = ["repository_id", "project_id", "sub"];

/// The claim that names the issuer (RFC 7519, section 4.1.1).
pub(crate) const ISSUER: &str = "iss";

impl IamConfig {
    /// Whether an identity is let in.
    pub fn admits(&self, identity: &IamIdentity) -> bool {
        let of_partition = || Partition::of_arn(&identity.arn) == Some(self.partition());
        let member = self.organization.is_some() && self.organization == identity.organization;
        (self.accounts.contains(&identity.account) || member) && of_partition()
            || self.roles.iter().any(|pattern| pattern.matches(&identity.arn))
    }

    /// Whether anybody of a partition is: its STS is not asked about others.
    pub(crate) fn admits_some_of(&self, partition: Partition) -> bool {
        (!self.accounts.is_empty() || self.organization.is_some()) && partition == self.partition()
            || self.roles.iter().any(|role| Partition::of_arn(role.as_str()) == Some(partition))
    }

    fn partition(&self) -> Partition {
        self.partition.unwrap_or_default()
    }
}

impl OidcConfig {
    /// Whether an identity has the claims, and is not that of an issuer that was called the same before.
    pub fn admits(&self, identity: &OidcIdentity) -> bool {
        let has = |(name, pattern): (&String, &Pattern)| {
            identity.claims.get(name).is_some_and(|value| pattern.matches(value))
        };
        identity.claims.get(ISSUER).is_none_or(|issuer| *issuer == self.issuer) && self.claims.iter().all(has)
    }

    /// Whose expense it is what somebody asks for with these claims. Those without the claim that is configured are one.
    pub(crate) fn payer(&self, claim: impl Fn(&str) -> Option<String>) -> String {
        let of = |name: &str| Some(format!("{name}={}", claim(name)?));
        let payer = match &self.budget_claim {
            Some(name) => of(name),
            None => BUDGET_CLAIMS.into_iter().find_map(of),
        };
        payer.unwrap_or_default()
    }
}

impl AccessConfig {
    /// Callers on this machine may be nobody; there are no others. `listen` is where it listens: who calls that address from
    /// here has it too.
    pub fn only_here(listen: IpAddr) -> Self {
        let mut here = vec![
            IpNet::from(IpAddr::V6(Ipv6Addr::LOCALHOST)),
            IpNet::V4(Ipv4Net::new_assert(Ipv4Addr::new(127, 0, 0, 0), 8)),
        ];
        if !listen.is_unspecified() && !is_in(&here, listen) {
            here.push(listen.to_canonical().into());
        }
        let anonymous = Anonymous::From(here.into_iter().map(Network::Addresses).collect());
        Self { here: Some(listen), anonymous, ..Self::nobody("stopover".into()) }
    }

    /// Nobody is let in.
    fn nobody(service: String) -> Self {
        Self {
            service,
            here: None,
            anonymous: Anonymous::Nobody,
            robots: false,
            iam: None,
            oidc: BTreeMap::new(),
            token_life: DEFAULT_TOKEN,
            url: None,
            signing_keys: None,
            policy: Policy::default(),
        }
    }

    /// All users and roles of one account of AWS, those of all accounts of an organisation, and whoever comes from one of these `networks`: for a deployment of whose
    /// `[access]` nothing is said. `sts`: where STS is reached, if not at its own name.
    pub fn of_account(
        account: String,
        organization: Option<String>,
        service: String,
        networks: Vec<Network>,
        sts: Option<Url>,
    ) -> Result<Self, ConfigError> {
        let iam = IamTable { partition: None, accounts: vec![account], organization, roles: Vec::new(), endpoint: sts }
            .read()?;
        Ok(Self { anonymous: networks.into(), iam: Some(iam), ..Self::nobody(checked_service(service)?) })
    }

    /// Why a principal is not let in from there, whatever it proves; `None`: it is, if it is that.
    pub fn not_let_in(&self, principal: &Principal, source: Source) -> Option<&'static str> {
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

    /// Whether it may be called this, a `Host` (RFC 9110, section 7.2). Where it is for this machine only, a name that
    /// somebody else may bind to 127.0.0.1 would have their pages read what callers here may.
    pub(crate) fn is_called(&self, host: &[u8]) -> bool {
        let Some(listen) = self.here else { return true };
        let Ok(authority) = Authority::try_from(host) else { return false };
        let host = authority.host().trim_start_matches('[').trim_end_matches(']');
        if let Ok(address) = host.parse::<IpAddr>().map(|address| address.to_canonical()) {
            return address.is_loopback() || address == listen.to_canonical();
        }
        // RFC 6761, section 6.3: nobody else can say what these names mean.
        let name = host.strip_suffix('.').unwrap_or(host).to_ascii_lowercase();
        name == "localhost" || name.ends_with(".localhost")
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
        logins.iter().filter(|(_, there)| *there).try_for_each(|(name, _)| write!(formatter, "; {name}"))
    }
}

/// Below the shortest that clients believe (token specification, "`expires_in`").
const SHORTEST_TOKEN: Duration = Duration::from_mins(1);
const LONGEST_TOKEN: Duration = Duration::from_hours(1);
const DEFAULT_TOKEN: Duration = Duration::from_mins(10);

impl AnonymousKey {
    fn read(self) -> Result<Anonymous, ConfigError> {
        let networks = match self {
            Self::Everywhere(true) => return Ok(Anonymous::Everybody),
            Self::Everywhere(false) => return Ok(Anonymous::Nobody),
            Self::From(networks) => networks.iter().map(|text| text.parse()).collect::<Result<_, _>>(),
        };
        let networks: Vec<Network> =
            networks.map_err(|error: InvalidNetwork| value("access.anonymous", error.to_string()))?;
        Ok(networks.into())
    }
}

/// Reads both. `None`: the file says nothing of it, so whoever runs the cache decides.
pub(super) fn read(
    table: Option<AccessTable>,
    rules: Vec<PolicyRuleTable>,
    upstreams: &BTreeMap<UpstreamId, UpstreamConfig>,
    secret: &impl Fn(SecretReference) -> Result<String, String>,
) -> Result<Option<AccessConfig>, ConfigError> {
    let Some(table) = table else {
        return match rules.first() {
            None => Ok(None),
            Some(_) => Err(value("policy", "says what those may pull who are let in; say in [access] who that is")),
        };
    };
    let token_life = table.token_life.map_or(DEFAULT_TOKEN, |span| span.0);
    if !(SHORTEST_TOKEN..=LONGEST_TOKEN).contains(&token_life) {
        return Err(value("access.token_life", "must be from \"1m\" to \"1h\""));
    }
    let signing_keys = table.signing_keys.map(|keys| keys.read(secret)).transpose();
    if table.iam.is_some() && table.service.is_none() {
        let message = "is required with [access.iam]: identities sign for this name, and what is signed for one cache must \
                       be worthless at every other";
        return Err(value("access.service", message));
    }
    let service = table.service.unwrap_or_else(|| "stopover".into());
    let mut access = AccessConfig {
        service: checked_service(service)?,
        here: None,
        anonymous: table.anonymous.map_or(Ok(Anonymous::Nobody), AnonymousKey::read)?,
        robots: table.robots,
        iam: table.iam.map(IamTable::read).transpose()?,
        oidc: table.oidc.into_iter().map(OidcTable::read).collect::<Result<_, _>>()?,
        token_life,
        url: table.url.map(|url| url.0),
        signing_keys: signing_keys.map_err(|message| value("access.signing_keys", message))?,
        policy: Policy::default(),
    };
    if access.anonymous == Anonymous::Nobody && !access.has_logins() {
        let message = "names no login and no network, so nobody would be let in: write `anonymous = [\"<network>\"]`, \
                       `robots = true`, [access.iam] or [access.oidc.<name>]";
        return Err(value("access", message));
    }
    let rules = (1..).zip(rules).map(|(number, rule)| rule.read(number, upstreams, &access));
    access.policy = Policy(rules.collect::<Result<_, _>>()?);
    Ok(Some(access))
}

/// It stands in a header between quotes, and in URLs.
fn checked_service(service: String) -> Result<String, ConfigError> {
    let plain = service.bytes().all(|byte| byte.is_ascii_alphanumeric() || b".-_:/".contains(&byte));
    if plain && !service.is_empty() {
        Ok(service)
    } else {
        Err(value("access.service", "has letters, digits and .-_:/ only"))
    }
}

/// AWS Organizations API, the pattern of an organisation's `Id`.
fn is_organization(text: &str) -> bool {
    let letters = text.strip_prefix("o-").filter(|letters| (10..=32).contains(&letters.len()));
    letters.is_some_and(|letters| letters.bytes().all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit()))
}

impl IamTable {
    fn read(self) -> Result<IamConfig, ConfigError> {
        let Self { partition, accounts, organization, roles, endpoint } = self;
        if let Some(wrong) = accounts.iter().find(|text| !is_account(text)) {
            return Err(value("access.iam.accounts", format!("{wrong:?} is no account: twelve digits")));
        }
        if let Some(wrong) = organization.as_ref().filter(|id| !is_organization(id)) {
            let message = format!("{wrong:?} is no organisation: it is called like o-a1b2c3d4e5");
            return Err(value("access.iam.organization", message));
        }
        for role in roles.iter().map(Pattern::as_str) {
            let message = |reason| value("access.iam.roles", format!("{role:?} is nobody: {reason}"));
            is_arn(role).map_err(message)?;
            // Anybody may have an account, and a role of any name in it.
            let before = role.split(':').take(5).collect::<Vec<_>>();
            if before.len() < 5 || before.iter().any(|part| part.contains('*')) {
                return Err(value("access.iam.roles", format!("{role:?} has to name one account")));
            }
        }
        if accounts.is_empty() && roles.is_empty() && organization.is_none() {
            let message = "name accounts, roles or an organization: as it stands nobody is let in";
            return Err(value("access.iam", message));
        }
        // Whoever answers there says who somebody is. The path is part of what is signed.
        if endpoint.as_ref().is_some_and(|endpoint| !is_trusted(endpoint) || endpoint.path() != "/") {
            return Err(value("access.iam.endpoint", "must be https, without a path"));
        }
        Ok(IamConfig { partition, accounts, organization, roles, endpoint })
    }
}

impl OidcTable {
    fn read((name, table): (String, Self)) -> Result<(String, OidcConfig), ConfigError> {
        let key = |key: &str| format!("access.oidc.{name}.{key}");
        let Self { issuer, audience, jwks_uri, claims, budget_claim } = table;
        // It is part of the names of principals, between colons.
        if !name.bytes().all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_' | b'.')) {
            return Err(value("access.oidc", format!("{name:?}: name an issuer with letters, digits, . _ and -")));
        }
        // Whoever can speak for the issuer can be anybody.
        let discovery = format!("{}/.well-known/openid-configuration", issuer.trim_end_matches('/'));
        let discovery = Url::parse(&discovery).ok().filter(|url| is_trusted(url) && url.query().is_none());
        let Some(discovery) = discovery.filter(|url| url.fragment().is_none()) else {
            return Err(value(key("issuer"), "must be https, as the issuer itself writes it"));
        };
        if jwks_uri.as_ref().is_some_and(|url| !is_trusted(url)) {
            return Err(value(key("jwks_uri"), "must be https"));
        }
        if audience.is_empty() {
            return Err(value(key("audience"), "is what a token must be meant for; it must not be empty"));
        }
        let claims = super::policy::claims(claims);
        if claims.values().all(|pattern| pattern.as_str().chars().all(|letter| letter == '*')) {
            let message = "name a claim that only yours have, for example repository_owner_id: without one everybody \
                           who can get a token of this issuer is let in";
            return Err(value(key("claims"), message));
        }
        Ok((name, OidcConfig { issuer, discovery, jwks_uri, audience, claims, budget_claim }))
    }
}

/// Whether nobody between us and a server can speak for it.
fn is_trusted(url: &Url) -> bool {
    url.scheme() == "https" || (url.scheme() == "http" && url.host_str() == Some("127.0.0.1"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read_access(text: &str) -> Result<AccessConfig, String> {
        let table: AccessTable = toml::from_str(text).map_err(|error| error.to_string())?;
        let config = read(Some(table), Vec::new(), &BTreeMap::new(), &|_: SecretReference| Err(String::new()))
            .map_err(|error| error.to_string())?;
        Ok(config.unwrap())
    }

    #[test]
    fn an_issuer_is_what_its_tokens_say_to_the_letter() {
        let issuer = |issuer: &str| {
            let table = format!("[oidc.ci]\nissuer = \"{issuer}\"\naudience = \"a\"\nclaims = {{ a = \"b\" }}");
            read_access(&table).map(|config| config.oidc["ci"].clone())
        };
        for written in ["https://ci.test", "https://ci.test/", "https://CI.test/id/1"] {
            assert_eq!(issuer(written).unwrap().issuer, written);
        }
        let discovery = |written: &str| issuer(written).unwrap().discovery.to_string();
        assert_eq!(discovery("https://ci.test/id/1"), "https://ci.test/id/1/.well-known/openid-configuration");
        assert_eq!(discovery("https://ci.test/"), "https://ci.test/.well-known/openid-configuration");
        for wrong in ["http://ci.test", "ci.test", "https://ci.test?a=b", "https://ci.test#a", "file:///ci", ""] {
            assert!(issuer(wrong).unwrap_err().contains("access.oidc.ci.issuer"), "{wrong}");
        }
    }

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
            signing_keys: Some(Secret::new("s3cret")),
            ..AccessConfig::only_here(IpAddr::V4(Ipv4Addr::LOCALHOST))
        };
        assert!(!format!("{access:?}").contains("s3cret"));
    }

    #[test]
    fn whoever_vouches_for_callers_is_reached_over_tls() {
        let oidc = "audience = \"a\"\nclaims = { a = \"b\" }\nissuer = \"https://ci.test\"";
        for (text, key) in [
            (format!("[oidc.ci]\n{oidc}\njwks_uri = \"http://ci.test/keys\""), "access.oidc.ci.jwks_uri"),
            (format!("[oidc.\"a:b\"]\n{oidc}"), "access.oidc"),
            (
                "service = \"cr.test\"\n[iam]\naccounts = [\"123456789012\"]\nendpoint = \"http://sts.test\"".into(),
                "access.iam.endpoint",
            ),
            (
                "service = \"cr.test\"\n[iam]\naccounts = [\"123456789012\"]\nendpoint = \"https://a.test/b\"".into(),
                "access.iam.endpoint",
            ),
            ("service = \"cr.test\"\n[iam]\naccounts = [\"1234\"]".into(), "access.iam.accounts"),
            ("service = \"cr.test\"\n[iam]".into(), "access.iam"),
            ("[iam]\naccounts = [\"123456789012\"]".into(), "access.service"),
            ("service = \"a\\\"b\"".into(), "access.service"),
            ("service = \"\"".into(), "access.service"),
        ] {
            let message = read_access(&text).unwrap_err();
            assert!(message.contains(key), "{text}: {message}");
        }
    }
}
