//! `stopover policy explain`: what the policy would decide, from the configuration alone.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::net::IpAddr;
use std::sync::Arc;

use anyhow::Context as _;
use stopover::access::Principal;
use stopover::access::policy::Decision;
use stopover::config::Config;
use stopover::error::PullError;
use stopover::local::EmbeddedLedger;
use stopover::oci::{Operation, Request};
use stopover::ports::Ledger;
use stopover::time::Clock;
use stopover::upstream::Upstreams;

/// Who asks for what.
#[derive(clap::Args)]
pub(crate) struct Question {
    /// Who pulls, as rules name them: anonymous, robot:<name>, iam:<arn> or oidc:<issuer>:<subject>
    #[arg(long = "as", value_name = "PRINCIPAL")]
    principal: Principal,
    /// A claim that they have; only with oidc
    #[arg(long = "claim", value_name = "KEY=VALUE", value_parser = claim)]
    claims: Vec<(String, String)>,
    /// The address that they pull from [default: one that is in no network]
    #[arg(long, value_name = "ADDRESS")]
    from: Option<IpAddr>,
    /// An image like docker.io/library/alpine:3.20 or ghcr.io/owner/name
    image: String,
}

fn claim(text: &str) -> Result<(String, String), String> {
    let pair = text.split_once('=').ok_or_else(|| format!("{text:?} is no claim like repository_owner=acme"))?;
    Ok((pair.0.to_owned(), pair.1.to_owned()))
}

impl Question {
    /// Which rule decides and why, a line for each that is passed over.
    pub(crate) fn answer(self, config: &Config) -> anyhow::Result<String> {
        let Self { mut principal, claims, from, image } = self;
        if let Principal::Oidc(identity) = &mut principal {
            identity.claims = claims.into_iter().collect::<BTreeMap<_, _>>();
        } else {
            anyhow::ensure!(claims.is_empty(), "only a principal like oidc:<issuer>:<subject> has claims");
        }
        // Nobody is asked, and nothing is remembered: what the upstreams are is all that is wanted of them.
        let scratch = tempfile::TempDir::new()?;
        let ledger: Arc<dyn Ledger> = Arc::new(EmbeddedLedger::open(&scratch.path().join("ledger.redb"))?);
        let upstreams = Upstreams::new(config, &Clock::default(), &ledger, None)?;
        let request = Request::image(&image)?;
        let Operation::Manifest(name, _) = &request.operation else { anyhow::bail!("{image:?} is no image") };
        let repository = match upstreams.repository(&request, name) {
            Err(error @ PullError::NotAllowed { .. }) => return Ok(format!("denied to everybody: {error}\n")),
            repository => repository.context("nobody can pull that")?,
        };
        let private = upstreams.get(&repository)?.config().is_private();
        let access = config.access();
        let decision = access.policy.decide(&principal, from, &repository, private);
        let mut text = format!("{principal} pulls {repository}: {decision}\n");
        let decisive = match decision {
            Decision::Rule(rule) => Some(rule),
            Decision::Public | Decision::Private => None,
        };
        for rule in access.policy.0.iter().take_while(|rule| Some(*rule) != decisive) {
            let key = rule.other_than(&principal, from, &repository).unwrap_or_default();
            writeln!(text, "{} is not about it: its {key} is something else", rule.name)?;
        }
        let upstream = &repository.upstream;
        let settings = upstreams.get(&repository)?.config();
        let why = match (private, settings.credentials.is_some()) {
            (true, _) if settings.public == Some(false) => "private: `public = false` says so".into(),
            (true, _) => format!("private: {upstream} shows it to us because of who we are there"),
            (false, true) => "public: `public = true` shows everybody what our credentials see".into(),
            (false, false) => format!("public: {upstream} is asked for it without credentials"),
        };
        writeln!(text, "{repository} is {why}")?;
        if let Some(reason) = access.not_let_in(&principal, from.into()) {
            writeln!(text, "but {principal} is not let in at all: {reason}")?;
        }
        Ok(text)
    }
}
