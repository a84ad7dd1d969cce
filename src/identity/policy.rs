//! Who may pull what: decided from the principal, its address and the repository alone. No I/O, no clock.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::fmt;
use std::net::IpAddr;

use ipnet::IpNet;

use super::Principal;
use crate::oci::{Repository, UpstreamId};
use crate::values::address::is_in;
use crate::values::pattern::Pattern;

/// Rules in order: the first one that matches a pull decides it. Where none matches, a private repository is denied,
/// and a public one is allowed to every caller that is let in.
#[derive(Clone, PartialEq, Eq, Default, Debug)]
pub struct Policy(pub Vec<Rule>);

/// One rule. It matches a pull if all of its keys do; a key that it leaves out matches everything.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Rule {
    /// What messages call it: its place in the file.
    pub name: String,
    /// Patterns of principals (`robot:*`).
    pub who: Vec<Pattern>,
    /// Patterns of claims, all of which the principal must have.
    pub claims: BTreeMap<String, Pattern>,
    /// Networks that the caller's address may be in, canonical.
    pub networks: Vec<IpNet>,
    /// Patterns of canonical repositories (`ghcr.io/acme/*`).
    pub what: Vec<Pattern>,
    /// Whether it allows or denies.
    pub allow: bool,
}

/// What has decided whether a principal may pull from a repository.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Decision<'a> {
    /// The first rule that matches.
    Rule(&'a Rule),
    /// No rule matches, and the repository is public: it is allowed.
    Public,
    /// No rule matches, and the repository is private: it is denied.
    Private,
}

/// How much of an upstream a principal may pull, as far as the patterns of the rules show that.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Extent {
    /// Nothing of it.
    Nothing,
    /// Perhaps something, and perhaps not all.
    Part,
    /// Everything.
    All,
}

impl Extent {
    /// From what rules allow and deny a part of, and whether the rest is allowed.
    const fn of(allows: bool, denies: bool, rest: bool) -> Self {
        match (allows, denies, rest) {
            (_, false, true) => Self::All,
            (false, _, false) => Self::Nothing,
            _ => Self::Part,
        }
    }
}

impl Policy {
    /// Decides a pull. `private`: the repository is denied where no rule matches.
    pub fn decide(
        &self,
        principal: &Principal,
        address: Option<IpAddr>,
        repository: &Repository,
        private: bool,
    ) -> Decision<'_> {
        match self.0.iter().find(|rule| rule.other_than(principal, address, repository).is_none()) {
            Some(rule) => Decision::Rule(rule),
            None if private => Decision::Private,
            None => Decision::Public,
        }
    }

    /// How much of an upstream it lets a principal pull. `private`: what no rule matches is denied.
    pub fn extent(
        &self,
        principal: &Principal,
        address: Option<IpAddr>,
        upstream: &UpstreamId,
        private: bool,
    ) -> Extent {
        let below = format!("{upstream}/");
        let about = self.0.iter().filter(|rule| rule.other_caller(principal, address).is_none());
        // What the rules so far allow and deny a part of: those behind them are about the rest.
        let (mut allows, mut denies) = (false, false);
        for Rule { what, allow, .. } in about {
            if what.is_empty() || what.iter().any(|pattern| pattern.matches_all_below(&below)) {
                return Extent::of(allows, denies, *allow);
            }
            if what.iter().any(|pattern| pattern.may_match_below(&below)) {
                *(if *allow { &mut allows } else { &mut denies }) = true;
            }
        }
        Extent::of(allows, denies, !private)
    }

    /// Whether a rule may deny a repository to a caller that is let in: some rule denies it, even if an earlier one
    /// allows it to the same callers.
    pub fn may_deny(&self, repository: &Repository) -> bool {
        self.0.iter().any(|rule| !rule.allow && fits(&rule.what, &repository.to_string()))
    }

    /// Whether a rule that names `there` may deny it to a caller that may pull from `here`, which has the same content.
    /// A rule that matches both denies `here` too, unless an earlier one allows that; and a rule for all repositories
    /// says nothing of `there` in particular.
    pub fn may_deny_beside(&self, there: &Repository, here: &Repository) -> bool {
        let (there, here) = (there.to_string(), here.to_string());
        let mut allowed_here = false;
        self.0.iter().any(|rule| {
            let about_here = fits(&rule.what, &here);
            allowed_here |= rule.allow && about_here;
            let denies_there = !rule.allow && rule.names_places() && fits(&rule.what, &there);
            denies_there && (allowed_here || !about_here)
        })
    }
}

impl Rule {
    /// Whether it names some repositories, and not all.
    fn names_places(&self) -> bool {
        !self.what.is_empty() && !self.what.iter().any(|pattern| pattern.as_str() == "*")
    }

    /// The first key of the rule that does not match this pull. `None`: the rule matches it.
    pub fn other_than(
        &self,
        principal: &Principal,
        address: Option<IpAddr>,
        repository: &Repository,
    ) -> Option<&'static str> {
        let other = || (!fits(&self.what, &repository.to_string())).then_some("what");
        self.other_caller(principal, address).or_else(other)
    }

    /// The first key of the rule that does not match this caller.
    fn other_caller(&self, principal: &Principal, address: Option<IpAddr>) -> Option<&'static str> {
        let claims = match principal {
            Principal::Oidc(identity) => Some(&identity.claims),
            _ => None,
        };
        let has = |claim: &String, pattern: &Pattern| {
            claims.and_then(|claims| claims.get(claim)).is_some_and(|value| pattern.matches(value))
        };
        let is_there = self.networks.is_empty() || address.is_some_and(|address| is_in(&self.networks, address));
        [
            ("who", fits(&self.who, &principal.to_string())),
            ("claims", self.claims.iter().all(|(claim, pattern)| has(claim, pattern))),
            ("networks", is_there),
        ]
        .into_iter()
        .find_map(|(key, fits)| (!fits).then_some(key))
    }
}

impl Decision<'_> {
    /// Whether the pull is allowed.
    pub fn allowed(&self) -> bool {
        match self {
            Self::Rule(rule) => rule.allow,
            Self::Public => true,
            Self::Private => false,
        }
    }

    /// What has decided: the name of the rule, `public` or `private`.
    pub fn name(&self) -> Cow<'static, str> {
        match self {
            Self::Rule(rule) => rule.name.clone().into(),
            Self::Public => "public".into(),
            Self::Private => "private".into(),
        }
    }
}

fn fits(patterns: &[Pattern], text: &str) -> bool {
    patterns.is_empty() || patterns.iter().any(|pattern| pattern.matches(text))
}

impl fmt::Display for Decision<'_> {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let verdict = if self.allowed() { "allowed" } else { "denied" };
        match self {
            Self::Rule(rule) => write!(formatter, "{verdict} by {}", rule.name),
            Self::Public => write!(formatter, "{verdict}: no rule is about it, and its upstream is public"),
            Self::Private => write!(formatter, "{verdict}: no rule is about it, and it is private"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::identity::OidcIdentity;

    fn rule(allow: bool, who: &[&str], what: &[&str]) -> Rule {
        Rule {
            name: format!("{who:?}"),
            who: who.iter().map(|pattern| Pattern::from(*pattern)).collect(),
            claims: BTreeMap::new(),
            networks: Vec::new(),
            what: what.iter().map(|pattern| Pattern::from(*pattern)).collect(),
            allow,
        }
    }

    fn repository(text: &str) -> Repository {
        let (upstream, name) = text.split_once('/').unwrap();
        Repository { upstream: upstream.parse().unwrap(), name: name.parse().unwrap() }
    }

    fn robot(name: &str) -> Principal {
        Principal::Robot(name.parse().unwrap())
    }

    #[test]
    fn the_first_rule_that_is_about_a_pull_decides_it() {
        let policy = Policy(vec![
            rule(false, &["robot:ci"], &["ghcr.io/acme/secret*"]),
            rule(true, &["robot:*"], &["ghcr.io/acme/*"]),
            rule(false, &[], &["ghcr.io/acme/*"]),
            // A rule about one kind of principal is never about another.
            rule(true, &["iam:arn:aws:iam::123456789012:role/*"], &["quay.io/*"]),
        ]);
        for (who, what, private, allowed) in [
            ("robot:ci", "ghcr.io/acme/app", true, true),
            ("robot:ci", "ghcr.io/acme/secret-app", true, false),
            ("robot:deploy", "ghcr.io/acme/secret-app", true, true),
            ("anonymous", "ghcr.io/acme/app", true, false),
            ("anonymous", "docker.io/library/nginx", false, true),
            ("robot:ci", "docker.io/library/nginx", true, false),
            ("iam:arn:aws:iam::123456789012:role/node", "quay.io/a/b", true, true),
            ("iam:arn:aws:iam::123456789012:user/node", "quay.io/a/b", true, false),
            ("oidc:iam:arn:aws:iam::123456789012:role/node", "quay.io/a/b", true, false),
        ] {
            let decision = policy.decide(&who.parse().unwrap(), None, &repository(what), private);
            assert_eq!(decision.allowed(), allowed, "{who} {what}: {decision}");
        }
    }

    #[test]
    fn a_caller_may_pull_nothing_a_part_or_all_of_an_upstream() {
        let policy = Policy(vec![
            rule(false, &[], &["quay.io/secret/*"]),
            rule(true, &["robot:ci"], &["ghcr.io/acme/*", "*/public/app"]),
            rule(true, &["robot:all"], &["ghcr.io/*", "quay.io/*"]),
            rule(false, &[], &["ghcr.io*", "quay.io/a"]),
        ]);
        for (name, upstream, private, expected) in [
            ("ci", "ghcr.io", true, Extent::Part),
            ("ci", "ghcr.io", false, Extent::Part),
            ("all", "ghcr.io", true, Extent::All),
            ("deploy", "ghcr.io", false, Extent::Nothing),
            ("deploy", "quay.io", false, Extent::Part),
            ("deploy", "quay.io", true, Extent::Nothing),
            ("all", "quay.io", true, Extent::Part),
            ("ci", "quay.io", true, Extent::Part),
            ("ci", "docker.io", true, Extent::Part),
            ("ci", "docker.io", false, Extent::All),
            ("deploy", "docker.io", false, Extent::All),
            ("deploy", "docker.io", true, Extent::Nothing),
            ("deploy", "ghcr.iox", false, Extent::Nothing),
        ] {
            let extent = policy.extent(&robot(name), None, &upstream.parse().unwrap(), private);
            assert_eq!(extent, expected, "{name} {upstream} {private}");
        }
        let closed = Policy(vec![rule(false, &[], &[]), rule(true, &[], &[])]);
        assert_eq!(closed.extent(&robot("ci"), None, &"a.io".parse().unwrap(), false), Extent::Nothing);
    }

    #[test]
    fn a_rule_about_an_alternate_counts_where_it_denies_more_than_those_about_the_original() {
        let allows = || rule(true, &["robot:*"], &["here.test/*"]);
        let denies = |what: &[&str]| rule(false, &["robot:ci"], what);
        for (rules, expected) in [
            (vec![], false),
            (vec![denies(&["there.test/*"])], true),
            (vec![denies(&["here.test/*"])], false),
            (vec![denies(&["here.test/*"]), denies(&["there.test/*"])], true),
            (vec![denies(&["here.test/*", "there.test/*"])], false),
            (vec![allows(), denies(&["here.test/*", "there.test/*"])], true),
            (vec![denies(&["*/a"])], false),
            (vec![allows(), denies(&["*/a"])], true),
            (vec![allows(), denies(&[])], false),
            (vec![allows(), denies(&["*"])], false),
            (vec![allows(), denies(&["there.test/b"])], false),
        ] {
            let policy = Policy(rules);
            let beside = policy.may_deny_beside(&repository("there.test/a"), &repository("here.test/a"));
            assert_eq!(beside, expected, "{policy:?}");
        }
    }

    #[test]
    fn claims_and_networks_all_have_to_fit() {
        let mut of_github = rule(true, &["oidc:github:*"], &[]);
        of_github.claims.insert("repository_owner_id".into(), "12*".into());
        of_github.networks.push("10.0.0.0/8".parse().unwrap());
        let policy = Policy(vec![of_github]);
        let caller = |owner: Option<&str>| {
            let claims = owner.map(|owner| ("repository_owner_id".to_owned(), owner.to_owned())).into_iter().collect();
            let (issuer, subject, payer) = ("github".into(), "repo:a/b".into(), String::new());
            Principal::Oidc(OidcIdentity { issuer, subject, payer, claims })
        };
        let decide = |principal: &Principal, address: Option<&str>| {
            let address = address.map(|address| address.parse().unwrap());
            policy.decide(principal, address, &repository("ghcr.io/a/b"), true).allowed()
        };
        assert!(decide(&caller(Some("123")), Some("10.1.2.3")));
        assert!(decide(&caller(Some("123")), Some("::ffff:10.1.2.3")));
        for (principal, address) in [
            (caller(Some("13")), Some("10.1.2.3")),
            (caller(None), Some("10.1.2.3")),
            (caller(Some("123")), Some("11.1.2.3")),
            (caller(Some("123")), None),
            (robot("oidc-ci"), Some("10.1.2.3")),
        ] {
            assert!(!decide(&principal, address), "{principal} {address:?}");
        }
    }
}
