//! What a configuration means, in words.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;

use stopover::config::{AccessConfig, Config, DEFAULT_UPSTREAM, UpstreamConfig};
use stopover::oci::UpstreamId;
use stopover::values::pattern::Pattern;
use stopover::values::time::written;

/// The message at the start: where the program listens, which upstreams it serves, and what to try first.
pub(crate) fn welcome(config: &Config, address: SocketAddr) -> String {
    let shown =
        |(id, upstream): (&UpstreamId, &Arc<UpstreamConfig>)| upstream.family.map_or(id.to_string(), str::to_owned);
    let mut upstreams: Vec<String> = config.upstreams.iter().map(shown).collect();
    upstreams.sort_unstable_by_key(|id| (id != DEFAULT_UPSTREAM, id.clone()));
    upstreams.dedup();
    let source = config.source.as_ref().map_or("defaults".into(), |path| path.display().to_string());
    let (here, access) = (reached_at(address), config.access());
    let next = if access.anonymous.admits(Some(here.ip()).into()) {
        format!(
            "try:\n  \
               curl -s http://{here}/v2/\n  \
               skopeo copy --src-tls-verify=false docker://{here}/docker.io/library/alpine:latest dir:alpine\n  \
               podman pull --tls-verify=false {here}/docker.io/library/alpine:latest\n  \
               docker pull {here}/docker.io/library/alpine:latest\n"
        )
    } else if access.has_logins() {
        format!(
            "callers on this machine have to log in:\n  \
               podman login --tls-verify=false {here}\n  \
               stopover doctor says whether a login is good, and what else is in the way\n"
        )
    } else {
        "callers on this machine are not answered: [access] in the settings says who is\n".into()
    };
    format!(
        "stopover {version}: a pull-through cache for container registries\n\
         listening on http://{address}\n\
         data in {data}, settings from {source}\n\
         serving {upstreams}\n\
         {next}",
        version = env!("CARGO_PKG_VERSION"),
        data = config.data_dir.display(),
        upstreams = upstreams.join(", "),
    )
}

/// The text of `stopover config check`.
pub(crate) fn describe(config: &Config) -> String {
    let source = config.source.as_ref().map_or("no file: defaults".into(), |path| path.display().to_string());
    let mut text = format!(
        "The configuration can be used ({source}).\nlisten    {}\ndata_dir  {}\nwait      {}\nkeep      {}\n",
        config.listen,
        config.data_dir.display(),
        written(config.wait),
        config.retention.keep.map_or("forever".into(), written),
    );
    for warning in &config.warnings {
        let _ = writeln!(text, "warning   {warning}");
    }
    let limits = &config.budgets;
    let _ = writeln!(
        text,
        "budgets   of each caller: {} misses a minute, {} pulls an hour, {} new bytes a day",
        limits.misses, limits.pulls, limits.new_bytes
    );
    text.push_str(&describe_access(&config.access()));
    let settings = |settings: &UpstreamConfig| {
        let login = settings.credentials.as_ref().map_or("anonymous".into(), |login| format!("as {}", login.username));
        let mut shown =
            vec![login, format!("fresh {}", written(settings.tags.fresh)), format!("cold {}", settings.cold)];
        shown.extend(settings.is_private().then(|| format!("private, permission {}", written(settings.permission))));
        shown.extend(settings.names.patterns().map(|(key, patterns)| format!("{key} {patterns:?}")));
        shown.join(", ")
    };
    for (id, upstream) in config.upstreams.iter().filter(|(_, upstream)| upstream.family.is_none()) {
        let url = upstream.url.as_str().trim_end_matches('/');
        let _ = writeln!(text, "upstream  {id}: {url}, {}", settings(upstream));
    }
    let families: BTreeMap<&str, &UpstreamConfig> =
        config.upstreams.values().filter_map(|upstream| Some((upstream.family?, &**upstream))).collect();
    for (family, upstream) in families {
        let _ = writeln!(text, "upstreams {family}: {}", settings(upstream));
    }
    for (prefix, rule) in &config.rules {
        let inherited = || match config.rule_at(&rule.place) {
            Some(other) => format!("settings of rule {other}"),
            None => format!("settings of upstream {}", rule.place.upstream),
        };
        let held = rule.settings.as_deref().map_or_else(inherited, settings);
        // A prefix with a dot is a host, and no namespace of Docker Hub is called like one.
        let hidden = if prefix.first().contains('.') { "" } else { ", goes before Docker Hub's own names below it" };
        let _ = writeln!(text, "rule      {prefix}: {}, {held}{hidden}", rule.place);
    }
    for schedule in &config.schedules {
        let every = written(schedule.every);
        let _ = writeln!(text, "schedule  images: {}, every {every}", schedule.images.len());
    }
    text
}

/// Which callers are let in and what they may pull.
fn describe_access(access: &AccessConfig) -> String {
    let list = |patterns: &[Pattern]| patterns.iter().map(Pattern::as_str).collect::<Vec<_>>().join(", ");
    let claims = |claims: &BTreeMap<String, Pattern>| {
        claims.iter().map(|(name, pattern)| format!(", {name} = {}", pattern.as_str())).collect::<Vec<_>>().concat()
    };
    let mut text = format!("access    {access}\n");
    if access.has_logins() {
        let _ = writeln!(text, "service   {}, tokens are good for {}", access.service, written(access.token_life));
    }
    if let Some(iam) = &access.iam {
        let who = [
            ("partition", iam.partition.map_or(String::new(), |partition| partition.as_str().to_owned())),
            ("accounts", iam.accounts.join(", ")),
            ("organization", iam.organization.clone().unwrap_or_default()),
            ("roles", list(&iam.roles)),
        ];
        let who = who.iter().filter(|(_, names)| !names.is_empty()).map(|(key, names)| format!("{key}: {names}"));
        let _ = writeln!(text, "iam       {}", who.collect::<Vec<_>>().join("; "));
    }
    for (name, oidc) in &access.oidc {
        let payer = oidc.budget_claim.as_ref().map_or(String::new(), |claim| format!("; budgets by {claim}"));
        let (issuer, audience, claims) = (&oidc.issuer, &oidc.audience, claims(&oidc.claims));
        let _ = writeln!(text, "oidc      {name}: {issuer}, aud = {audience}{claims}{payer}");
    }
    for rule in &access.policy.0 {
        let who = if rule.who.is_empty() { "everybody".into() } else { list(&rule.who) };
        let networks = rule.networks.iter().map(|network| format!(", from {network}")).collect::<Vec<_>>().concat();
        let what = if rule.what.is_empty() { "everything".into() } else { list(&rule.what) };
        let verb = if rule.allow { "allow" } else { "deny" };
        let _ = writeln!(text, "policy    {}: {verb} {who}{}{networks}: {what}", rule.name, claims(&rule.claims));
    }
    text
}

/// Where clients on this machine reach a listener: they cannot use the unspecified address.
pub(crate) fn reached_at(mut listen: SocketAddr) -> SocketAddr {
    if listen.ip().is_unspecified() {
        listen.set_ip(Ipv4Addr::LOCALHOST.into());
    }
    listen
}
