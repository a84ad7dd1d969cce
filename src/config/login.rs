//! `[access.iam]` and `[access.oidc.…]`: which identities of AWS and of OIDC issuers are let in.

use std::collections::BTreeMap;

use serde::Deserialize;
use url::Url;

use super::file::OidcTable;
use super::policy::is_arn;
use super::{ConfigError, value};
use crate::identity::partition::{Partition, is_account};
use crate::identity::{IamIdentity, OidcIdentity};
use crate::values::pattern::Pattern;

/// Identities of AWS.
#[derive(Clone, PartialEq, Eq, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct IamConfig {
    /// The partition of the accounts: the same number in another partition is another customer's account. `None`:
    /// `aws`, and in a function that of its region.
    pub partition: Option<Partition>,
    /// Accounts all of whose users and roles are let in.
    #[serde(default)]
    pub accounts: Vec<String>,
    /// The organisation all of whose accounts are let in.
    pub organization: Option<String>,
    /// Patterns of ARNs without session: `arn:aws:iam::123456789012:role/eks-*`.
    #[serde(default)]
    pub roles: Vec<Pattern>,
    /// The endpoint of STS, instead of the public one in the region: a VPC endpoint.
    pub endpoint: Option<Url>,
}

/// Identities of one `OpenID` Connect issuer.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct OidcConfig {
    /// The claim `iss`, to the letter.
    pub issuer: String,
    /// Where its configuration is found (`OpenID` Connect Discovery 1.0, section 4).
    pub discovery: Url,
    /// The URL of its keys, instead of the one that its configuration names.
    pub jwks_uri: Option<Url>,
    /// The claim `aud` that a token must have.
    pub audience: String,
    /// Patterns of claims, all of which a token must have.
    pub claims: BTreeMap<String, Pattern>,
    /// The claim whose values have a budget each; `None`: the first of [`BUDGET_CLAIMS`] that a token has.
    pub budget_claim: Option<String>,
}

/// The claims that stand for a caller with many subjects: a repository of GitHub, or of an issuer of tokens like it
/// (Forgejo, Gitea), and a project of GitLab. Service accounts of Kubernetes have one subject each.
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

    /// Whether any identity of a partition is let in: the STS of another partition is not asked.
    pub(crate) fn admits_some_of(&self, partition: Partition) -> bool {
        (!self.accounts.is_empty() || self.organization.is_some()) && partition == self.partition()
            || self.roles.iter().any(|role| Partition::of_arn(role.as_str()) == Some(partition))
    }

    fn partition(&self) -> Partition {
        self.partition.unwrap_or_default()
    }

    /// Refuses what AWS calls nothing, and patterns that roles of any customer could match.
    pub(super) fn checked(self) -> Result<Self, ConfigError> {
        if let Some((element, wrong)) = (1..).zip(&self.accounts).find(|(_, text)| !is_account(text)) {
            let message = format!("{wrong:?} is no account: twelve digits");
            return Err(value(format!("access.iam.accounts[{element}]"), message));
        }
        if let Some(wrong) = self.organization.as_ref().filter(|id| !is_organization(id)) {
            let message = format!("{wrong:?} is no organisation: it is called like o-a1b2c3d4e5");
            return Err(value("access.iam.organization", message));
        }
        for (element, role) in (1..).zip(self.roles.iter().map(Pattern::as_str)) {
            let key = format!("access.iam.roles[{element}]");
            let message = |reason| value(&*key, format!("{role:?} is no caller: {reason}"));
            is_arn(role).map_err(message)?;
            // Every customer of AWS can make a role of any name in an account of its own.
            let before = role.split(':').take(5).collect::<Vec<_>>();
            if before.len() < 5 || before.iter().any(|part| part.contains('*')) {
                return Err(value(key, format!("{role:?} has to name one account")));
            }
        }
        if self.accounts.is_empty() && self.roles.is_empty() && self.organization.is_none() {
            let message = "name accounts, roles or an organization: as it stands nobody is let in";
            return Err(value("access.iam", message));
        }
        // The server there says whose signature it is. The path is part of what is signed.
        if self.endpoint.as_ref().is_some_and(|endpoint| !is_trusted(endpoint) || endpoint.path() != "/") {
            return Err(value("access.iam.endpoint", "must be https, without a path"));
        }
        Ok(self)
    }
}

impl OidcConfig {
    /// Whether an identity has the claims, and is not of an earlier issuer with the same name in the file.
    pub fn admits(&self, identity: &OidcIdentity) -> bool {
        let has = |(name, pattern): (&String, &Pattern)| {
            identity.claims.get(name).is_some_and(|value| pattern.matches(value))
        };
        identity.claims.get(ISSUER).is_none_or(|issuer| *issuer == self.issuer) && self.claims.iter().all(has)
    }

    /// The claim that a token is charged by, as `<claim>=<value>`. Tokens without the configured claim share one
    /// budget.
    pub(crate) fn payer(&self, claim: impl Fn(&str) -> Option<String>) -> String {
        let of = |name: &str| Some(format!("{name}={}", claim(name)?));
        let payer = match &self.budget_claim {
            Some(name) => of(name),
            None => BUDGET_CLAIMS.into_iter().find_map(of),
        };
        payer.unwrap_or_default()
    }
}

/// AWS Organizations API, the pattern of an organisation's `Id`.
fn is_organization(text: &str) -> bool {
    let letters = text.strip_prefix("o-").filter(|letters| (10..=32).contains(&letters.len()));
    letters.is_some_and(|letters| letters.bytes().all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit()))
}

impl OidcTable {
    pub(super) fn read((name, table): (String, Self)) -> Result<(String, OidcConfig), ConfigError> {
        let key = |key: &str| format!("access.oidc.{name}.{key}");
        let Self { issuer, audience, jwks_uri, claims, budget_claim } = table;
        // It is part of the names of principals, between colons.
        if !name.bytes().all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_' | b'.')) {
            let message = format!("{name:?}: name an issuer with letters, digits, . _ and -");
            return Err(value(format!("access.oidc.{name:?}"), message));
        }
        // An attacker that can answer for the issuer can log in as any identity.
        let discovery = format!("{}/.well-known/openid-configuration", issuer.trim_end_matches('/'));
        let discovery = Url::parse(&discovery).ok().filter(|url| is_trusted(url) && url.query().is_none());
        let Some(discovery) = discovery.filter(|url| url.fragment().is_none()) else {
            return Err(value(key("issuer"), "must be https, as the issuer itself writes it"));
        };
        if jwks_uri.as_ref().is_some_and(|url| !is_trusted(url)) {
            return Err(value(key("jwks_uri"), "must be https"));
        }
        if budget_claim.as_deref() == Some("") {
            return Err(value(key("budget_claim"), "is the name of a claim; leave it out for the usual one"));
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

/// Whether no host between us and a server can answer for it. Nor may it hold a login: it is shown and logged.
fn is_trusted(url: &Url) -> bool {
    let plain = url.username().is_empty() && url.password().is_none();
    plain && url.scheme() == "https" || plain && url.scheme() == "http" && url.host_str() == Some("127.0.0.1")
}
