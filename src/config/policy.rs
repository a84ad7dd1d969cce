//! `[[policy]]`: what callers that are let in may pull.

use std::collections::BTreeMap;
use std::sync::Arc;

use ipnet::IpNet;
use serde::Deserialize;

use super::names::is_pattern_of_names;
use super::{AccessConfig, ConfigError, IamConfig, UpstreamConfig, value};
use crate::identity::partition::{Partition, is_account};
use crate::identity::policy::Rule;
use crate::identity::{InvalidPrincipal, KINDS, Principal, RobotName};
use crate::oci::UpstreamId;
use crate::values::address::canonical;
use crate::values::pattern::Pattern;

/// `[[policy]]`
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct PolicyRuleTable {
    who: Option<Vec<String>>,
    claims: Option<BTreeMap<String, ClaimTable>>,
    networks: Option<Vec<IpNet>>,
    what: Option<Vec<String>>,
    allow: bool,
}

/// What a claim must be: a pattern, or a number or a boolean, which is its text.
#[derive(Deserialize)]
#[serde(untagged, expecting = "expected a pattern like \"acme*\", a whole number, true or false")]
pub(super) enum ClaimTable {
    Pattern(Pattern),
    Number(i64),
    Truth(bool),
}

/// What `access.operators` may name: anonymous callers are no operators.
const NO_OPERATOR: &str = "an operator is robot:<name>, iam:<arn> or oidc:<issuer>:<subject>";

/// The patterns that claims must match.
pub(super) fn claims(tables: BTreeMap<String, ClaimTable>) -> BTreeMap<String, Pattern> {
    let pattern = |table| match table {
        ClaimTable::Pattern(pattern) => pattern,
        ClaimTable::Number(number) => number.to_string().as_str().into(),
        ClaimTable::Truth(truth) => truth.to_string().as_str().into(),
    };
    tables.into_iter().map(|(name, table)| (name, pattern(table))).collect()
}

impl PolicyRuleTable {
    /// Refuses patterns that match no caller or repository, because a rule with them would deny nothing, and empty
    /// lists, which look like "none" and would mean "all".
    pub(super) fn read(
        self,
        number: usize,
        upstreams: &BTreeMap<UpstreamId, Arc<UpstreamConfig>>,
        access: &AccessConfig,
    ) -> Result<Rule, ConfigError> {
        let key = |key: &str| format!("policy[{number}].{key}");
        let Self { who, claims, networks, what, allow } = self;
        let empty = [
            ("who", who.as_ref().is_some_and(Vec::is_empty)),
            ("claims", claims.as_ref().is_some_and(BTreeMap::is_empty)),
            ("networks", networks.as_ref().is_some_and(Vec::is_empty)),
            ("what", what.as_ref().is_some_and(Vec::is_empty)),
        ];
        if let Some((name, _)) = empty.iter().find(|(_, empty)| *empty) {
            return Err(value(key(name), "is empty; leave it out if the rule is about everything"));
        }
        let (who, what) = (who.unwrap_or_default(), what.unwrap_or_default());
        for (element, pattern) in (1..).zip(&who) {
            may_be_let_in(pattern, access).map_err(|reason| {
                value(key(&format!("who[{element}]")), format!("{pattern:?} is no caller: {reason}"))
            })?;
        }
        let has_claims = |pattern: &String| matches!(is_of_kind("oidc:", pattern, access), Some(Ok(())));
        let has_claimants = if who.is_empty() { !access.oidc.is_empty() } else { who.iter().any(has_claims) };
        if claims.is_some() && !has_claimants {
            let message = "only identities of [access.oidc] have claims, and the rule is about none of them";
            return Err(value(key("claims"), message));
        }
        for (element, pattern) in (1..).zip(&what) {
            let key = |_| key(&format!("what[{element}]"));
            let names_none = |pattern| {
                let message = "is about no repository: a rule holds for all tags and digests of \"ghcr.io/acme/*\"";
                Err(value(key("what"), format!("{pattern:?} {message}")))
            };
            let (upstream, name) = pattern.split_once('/').unwrap_or((pattern, "*"));
            if upstream.contains('*') {
                // The star may match the slash and a part of the name.
                if !is_pattern_of_names(pattern) {
                    return names_none(pattern);
                }
                continue;
            }
            let known = upstream.parse::<UpstreamId>().ok().and_then(|id| upstreams.get(&id));
            let known = known.ok_or_else(|| {
                let near =
                    super::advice::nearest(upstream, upstreams.keys().map(UpstreamId::as_str)).unwrap_or("docker.io");
                let message = format!("{pattern:?} begins with no configured upstream, as in \"{near}/{name}\"");
                value(key("what"), message)
            })?;
            if !pattern.contains(['/', '*']) {
                return Err(value(key("what"), format!("for all of the upstream write \"{pattern}/*\"")));
            }
            if !is_pattern_of_names(name) {
                return names_none(pattern);
            }
            if known.library && !name.contains(['/', '*']) {
                return Err(value(
                    key("what"),
                    format!("every name there has a slash: write \"{upstream}/library/{name}\""),
                ));
            }
        }
        let patterns = |texts: Vec<String>| texts.iter().map(|text| text.as_str().into()).collect();
        Ok(Rule {
            name: format!("rule {number} of the policy"),
            who: patterns(who),
            claims: self::claims(claims.unwrap_or_default()),
            networks: networks.unwrap_or_default().into_iter().map(canonical).collect(),
            what: patterns(what),
            allow,
        })
    }
}

/// The patterns of `access.operators`. Each names one kind of principal: `*:ops` would fit subjects of an issuer, too.
pub(super) fn operators(who: &[String], access: &AccessConfig) -> Result<Vec<Pattern>, ConfigError> {
    let read = |(element, pattern): (usize, &String)| {
        let has_logged_in = KINDS.iter().any(|kind| kind.ends_with(':') && pattern.starts_with(kind));
        let named = if has_logged_in { may_be_let_in(pattern, access) } else { Err(NO_OPERATOR.into()) };
        let wrong =
            |reason| value(format!("access.operators[{element}]"), format!("{pattern:?} is no operator: {reason}"));
        named.map(|()| pattern.as_str().into()).map_err(wrong)
    };
    (1..).zip(who).map(read).collect()
}

/// Whether a pattern may match a principal that is let in; otherwise why not.
fn may_be_let_in(pattern: &str, access: &AccessConfig) -> Result<(), String> {
    let unknown = Err(InvalidPrincipal.to_string());
    let kinds = KINDS.iter().filter_map(|kind| is_of_kind(kind, pattern, access));
    kinds.reduce(Result::or).unwrap_or(unknown)
}

/// The same for principals of one kind. `None`: the pattern is about other kinds.
fn is_of_kind(kind: &str, pattern: &str, access: &AccessConfig) -> Option<Result<(), String>> {
    // A star may match the end of the kind; then it may match any name of this kind.
    let rest = pattern.strip_prefix(kind).or_else(|| {
        let (start, _) = pattern.split_once('*')?;
        kind.starts_with(start).then_some("*")
    })?;
    Some(match (kind, &access.iam) {
        ("robot:", _) if !access.robots => Err("access.robots is not true".into()),
        ("robot:", _) => is_robot(rest),
        ("iam:", None) => Err("there is no [access.iam]".into()),
        ("iam:", Some(iam)) => is_arn(rest).and_then(|()| match pattern.parse() {
            Ok(Principal::Iam(mut identity)) if !pattern.contains('*') => {
                // Where the file names no partition, a function learns it later from its region, and only AWS knows the
                // members of an organisation. Both are assumed to match.
                identity.organization.clone_from(&iam.organization);
                let partition = iam.partition.or_else(|| Partition::of_arn(&identity.arn));
                let admits = IamConfig { partition, ..iam.clone() }.admits(&identity);
                let reason = "[access.iam] names neither its account nor its role";
                if admits { Ok(()) } else { Err(reason.into()) }
            }
            _ => Ok(()),
        }),
        ("oidc:", _) => is_of_an_issuer(rest, access),
        // This file is not the only place where anonymous access is configured.
        _ if rest.chars().all(|letter| letter == '*') => Ok(()),
        _ => Err(InvalidPrincipal.to_string()),
    })
}

fn is_robot(pattern: &str) -> Result<(), String> {
    // Two texts that a star may match, at least one of which makes no reserved name.
    let names = ["", "a-"].map(|filling| pattern.replace('*', filling).parse::<RobotName>());
    names.into_iter().reduce(Result::or).map_or(Ok(()), |name| name.map(drop)).map_err(|error| error.to_string())
}

/// Whether a pattern may match an identity of AWS as [`SignedFields::identity`] names it.
///
/// [`SignedFields::identity`]: crate::access::iam::SignedFields::identity
pub(super) fn is_arn(pattern: &str) -> Result<(), String> {
    let wrong = |what: &str| Err(format!("{what}, as in arn:aws:iam::123456789012:role/name"));
    let mut parts = pattern.splitn(6, ':');
    for what in ["arn", "partition", "service", "region", "account"] {
        let Some(part) = parts.next() else { return wrong("an ARN has six parts") };
        if part.contains('*') {
            return Ok(());
        }
        let known = match what {
            "arn" => part == "arn",
            "partition" => Partition::ALL.iter().any(|partition| partition.as_str() == part),
            "service" => matches!(part, "iam" | "sts"),
            "region" => part.is_empty(),
            _ => is_account(part),
        };
        if !known {
            return wrong(&format!("{part:?} is no {what}"));
        }
    }
    let Some(resource) = parts.next() else { return wrong("an ARN has six parts") };
    if resource.starts_with("assumed-role/") {
        return wrong("a session of a role is the role");
    }
    if resource.strip_prefix("role/").is_some_and(|name| name.contains('/')) {
        return wrong("STS leaves the path of a role out");
    }
    let start = resource.split('*').next().unwrap_or_default();
    let is_of = |kind: &&str| start.starts_with(*kind) || (start.len() < resource.len() && kind.starts_with(start));
    if resource != "root" && !["role/", "user/", "federated-user/"].iter().any(is_of) {
        return wrong(&format!("{resource:?} is neither role nor user"));
    }
    Ok(())
}

fn is_of_an_issuer(pattern: &str, access: &AccessConfig) -> Result<(), String> {
    let unknown = |name: &str| Err(format!("there is no [access.oidc.{name}]"));
    let (name, rest) = pattern.split_once(':').unwrap_or((pattern, ""));
    match name.split_once('*') {
        Some((start, _)) if access.oidc.keys().any(|name| name.starts_with(start)) => Ok(()),
        Some(_) => unknown(name),
        None if !access.oidc.contains_key(name) => unknown(name),
        None if rest.is_empty() => Err(InvalidPrincipal.to_string()),
        None => Ok(()),
    }
}
