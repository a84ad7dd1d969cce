//! `stopover policy explain`: what the policy would decide, from the configuration alone.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::str::FromStr;
use std::sync::Arc;

use anyhow::Context as _;
use stopover::config::Config;
use stopover::errors::PullError;
use stopover::identity::policy::{Decision, Rule};
use stopover::identity::{Peer, Principal, VpcEndpoint};
use stopover::journal::Journal;
use stopover::local::EmbeddedLedger;
use stopover::oci::{Operation, Request};
use stopover::ports::Ledger;
use stopover::upstream::Upstreams;
use stopover::values::pattern::Pattern;
use stopover::values::time::Clock;

/// The pull to explain: caller and image.
#[derive(clap::Args)]
pub(crate) struct ExplainArguments {
    /// Who pulls, as rules name them: anonymous, robot:<name>, iam:<arn> or oidc:<issuer>:<subject>
    #[arg(long = "as", value_name = "PRINCIPAL")]
    principal: Principal,
    /// A claim that they have; only with oidc
    #[arg(long = "claim", value_name = "KEY=VALUE", value_parser = claim)]
    claims: Vec<(String, String)>,
    /// The address that they pull from, or the VPC endpoint [default: one that is in no network]
    #[arg(long, value_name = "ADDRESS", value_parser = source)]
    from: Option<Peer>,
    /// An image like docker.io/library/alpine:3.20 or ghcr.io/owner/name
    image: String,
}

fn claim(text: &str) -> Result<(String, String), String> {
    let pair = text.split_once('=').ok_or_else(|| format!("{text:?} is no claim like repository_owner=acme"))?;
    Ok((pair.0.to_owned(), pair.1.to_owned()))
}

fn source(text: &str) -> Result<Peer, String> {
    if let Ok(address) = text.parse() {
        return Ok(Peer::from(Some(address)));
    }
    let endpoint = VpcEndpoint::from_str(text);
    let endpoint =
        endpoint.map_err(|_| format!("{text:?} is no address, and no VPC endpoint like vpce-0123456789abcdef0"));
    Ok(Peer { address: None, vpc_endpoint: Some(endpoint?) })
}

impl ExplainArguments {
    /// Whether the pull would be allowed, and why: the outcome in the first line, below it the reasons, with one line per
    /// rule that does not match.
    pub(crate) fn answer(self, config: &Config) -> anyhow::Result<(bool, String)> {
        let Self { mut principal, claims, from, image } = self;
        let from = from.unwrap_or_default();
        if let Principal::Oidc(identity) = &mut principal {
            identity.claims = claims.into_iter().collect::<BTreeMap<_, _>>();
        } else {
            anyhow::ensure!(claims.is_empty(), "only a principal like oidc:<issuer>:<subject> has claims");
        }
        // No upstream is asked and nothing is stored: only the settings of the upstreams are needed.
        let scratch = tempfile::TempDir::new()?;
        let ledger: Arc<dyn Ledger> = Arc::new(EmbeddedLedger::open(&scratch.path().join("ledger.redb"))?);
        let clock = Clock::default();
        let upstreams = Upstreams::new(config, (&clock, &Arc::new(Journal::new([], clock.clone()))), &ledger, None)?;
        let request = Request::image(&image)?;
        let Operation::Manifest(name, _) = &request.operation else { anyhow::bail!("{image:?} is no image") };
        let repository = match upstreams.repository(&request, name) {
            Err(error @ PullError::NotAllowed { .. }) => {
                return Ok((false, format!("denied to everybody: {error}\n")));
            }
            repository => repository.context("nobody can pull that")?,
        };
        let settings = upstreams.get(&repository)?.config();
        let private = settings.is_private();
        let access = config.access();
        // Only AWS knows which accounts belong to the organization.
        let mut member_of = None;
        if let (Principal::Iam(identity), Some(iam)) = (&mut principal, &access.iam)
            && !iam.admits(identity)
        {
            identity.organization.clone_from(&iam.organization);
            member_of = iam.organization.as_deref();
        }
        let decision = access.policy.decide(&principal, from.address, &repository, private);
        let not_let_in = access.not_let_in(&principal, from);
        let mut text = match not_let_in {
            Some(reason) => format!(
                "{principal} pulls {repository}: denied: not let in: {reason}\nWhoever is let in is {decision}\n"
            ),
            None => format!("{principal} pulls {repository}: {decision}\n"),
        };
        if let Some(organization) = member_of.filter(|_| not_let_in.is_none()) {
            writeln!(
                text,
                "as long as its account belongs to the organisation {organization}; otherwise it is not let in"
            )?;
        }
        for rule in access.policy.0.iter().take_while(|rule| decision != Decision::Rule(rule)) {
            match rule.other_than(&principal, from.address, &repository) {
                Some("claims") => writeln!(text, "{} is not about it: {}", rule.name, other_claims(rule, &principal))?,
                key => {
                    writeln!(text, "{} is not about it: its {} is something else", rule.name, key.unwrap_or_default())?;
                }
            }
        }
        let upstream = &repository.upstream;
        let why = match (private, settings.credentials.is_some()) {
            (true, _) if settings.public == Some(false) => "private: `public = false` says so".into(),
            (true, _) => format!("private: {upstream} shows it to us because of who we are there"),
            (false, true) => "public: `public = true` shows everybody what our credentials see".into(),
            (false, false) => format!("public: {upstream} is asked for it without credentials"),
        };
        writeln!(text, "{repository} is {why}")?;
        if let (Some(_), Principal::Oidc(identity)) = (not_let_in, &principal)
            && let Some(issuer) = access.oidc.get(&identity.issuer)
        {
            let others = others(&issuer.claims, &identity.claims);
            writeln!(text, "[access.oidc.{}] lets in whoever has other claims: {others}", identity.issuer)?;
        }
        Ok((decision.allowed() && not_let_in.is_none(), text))
    }
}

/// The claims that a rule asks for and a principal does not have.
fn other_claims(rule: &Rule, principal: &Principal) -> String {
    match principal {
        Principal::Oidc(identity) => format!("it asks for other claims: {}", others(&rule.claims, &identity.claims)),
        _ => "it asks for claims, and only a principal like oidc:<issuer>:<subject> has some".into(),
    }
}

/// Each claim that does not match: the pattern and the value.
fn others(wanted: &BTreeMap<String, Pattern>, given: &BTreeMap<String, String>) -> String {
    let other = |(name, pattern): (&String, &Pattern)| match given.get(name) {
        Some(value) if pattern.matches(value) => None,
        Some(value) => Some(format!("{name} has to be {:?} and is {value:?}", pattern.as_str())),
        None => Some(format!("{name} has to be {:?} and is not given", pattern.as_str())),
    };
    wanted.iter().filter_map(other).collect::<Vec<_>>().join("; ")
}
