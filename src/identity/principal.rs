//! Principals, and how rules name them.

use std::collections::BTreeMap;
use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::values::text::as_text;

/// The user name that identities of AWS log in with.
pub const IAM_USER: &str = "aws";

/// The user name that identities of `OpenID` Connect issuers log in with.
pub const OIDC_USER: &str = "oidc";

/// The identity of a caller: what authentication has established of it, and nothing that the caller merely claims.
#[derive(Clone, PartialEq, Eq, Hash, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Principal {
    /// A caller without credentials.
    Anonymous,
    /// A caller that has the secret of this robot.
    Robot(RobotName),
    /// An identity that AWS confirms (STS `GetCallerIdentity`).
    Iam(IamIdentity),
    /// An identity that an `OpenID` Connect issuer confirms.
    Oidc(OidcIdentity),
}

/// An identity of AWS.
#[derive(Clone, PartialEq, Eq, Hash, Debug, Serialize, Deserialize)]
pub struct IamIdentity {
    /// The account: twelve digits.
    pub account: String,
    /// The user or role without its session: `arn:aws:iam::123456789012:role/name`. STS leaves the path of a role out.
    pub arn: String,
    /// The organisation that the account belongs to, where that is why it is let in.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub organization: Option<String>,
}

/// An identity of an `OpenID` Connect issuer.
#[derive(Clone, PartialEq, Eq, Hash, Debug, Serialize, Deserialize)]
pub struct OidcIdentity {
    /// What the configuration calls the issuer.
    pub issuer: String,
    /// The claim `sub`.
    pub subject: String,
    /// The claim that the identity is charged by, as `<claim>=<value>`: a subject may be a branch, and the owner of a
    /// repository makes as many branches as they like.
    pub payer: String,
    /// The claims that rules and the configuration of the issuer ask about, as text.
    pub claims: BTreeMap<String, String>,
}

/// The name of a robot: lower-case letters, digits, `.`, `_` and `-`, the first one a letter, at most 64 of them, but
/// neither [`IAM_USER`] nor [`OIDC_USER`].
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Debug)]
pub struct RobotName(Box<str>);

/// A string that is no name of a robot.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "the name of a robot has lower-case letters, digits, . _ and -, begins with a letter, and at most 64 characters; \
     aws and oidc are none"
)]
pub struct InvalidRobotName;

impl RobotName {
    /// The name as a user name spells it.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for RobotName {
    type Err = InvalidRobotName;

    fn from_str(text: &str) -> Result<Self, InvalidRobotName> {
        let known = |byte: u8| matches!(byte, b'a'..=b'z' | b'0'..=b'9' | b'.' | b'_' | b'-');
        let valid = text.len() <= 64 && text.starts_with(|first: char| first.is_ascii_lowercase());
        let taken = text == IAM_USER || text == OIDC_USER;
        if valid && !taken && text.bytes().all(known) { Ok(Self(text.into())) } else { Err(InvalidRobotName) }
    }
}

as_text!(RobotName);

/// As rules name it: `anonymous`, `robot:<name>`, `iam:<arn>`, `oidc:<issuer>:<subject>`.
impl fmt::Display for Principal {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Anonymous => formatter.write_str("anonymous"),
            Self::Robot(name) => write!(formatter, "robot:{name}"),
            Self::Iam(identity) => write!(formatter, "iam:{}", identity.arn),
            Self::Oidc(identity) => write!(formatter, "oidc:{}:{}", identity.issuer, identity.subject),
        }
    }
}

/// A string that names no principal.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("a principal is anonymous, robot:<name>, iam:<arn> or oidc:<issuer>:<subject>")]
pub struct InvalidPrincipal;

/// The beginnings of principals' names, one of each kind.
pub(crate) const KINDS: [&str; 4] = ["anonymous", "robot:", "iam:", "oidc:"];

impl FromStr for Principal {
    type Err = InvalidPrincipal;

    /// Reads a name as rules write it. Claims are not part of a name.
    fn from_str(text: &str) -> Result<Self, InvalidPrincipal> {
        match text.split_once(':') {
            None if text == "anonymous" => Ok(Self::Anonymous),
            Some(("robot", name)) => name.parse().map(Self::Robot).map_err(|_| InvalidPrincipal),
            Some(("iam", arn)) => {
                let account = arn.split(':').nth(4).filter(|_| arn.starts_with("arn:")).ok_or(InvalidPrincipal)?;
                Ok(Self::Iam(IamIdentity { account: account.to_owned(), arn: arn.to_owned(), organization: None }))
            }
            Some(("oidc", identity)) => {
                let (issuer, subject) = identity.split_once(':').ok_or(InvalidPrincipal)?;
                let (issuer, subject, payer) = (issuer.to_owned(), subject.to_owned(), format!("sub={subject}"));
                Ok(Self::Oidc(OidcIdentity { issuer, subject, payer, claims: BTreeMap::new() }))
            }
            _ => Err(InvalidPrincipal),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_principal_is_read_as_rules_name_it() {
        for text in ["anonymous", "robot:ci", "iam:arn:aws:iam::123456789012:role/node", "oidc:github:repo:a/b:ref"] {
            assert_eq!(text.parse::<Principal>().unwrap().to_string(), text);
        }
        for text in ["", "anonymous:", "robot:", "robot:CI", "iam:role/node", "oidc:github", "admin", "admin:x"] {
            assert_eq!(text.parse::<Principal>(), Err(InvalidPrincipal), "{text}");
        }
    }
}
