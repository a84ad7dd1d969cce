//! `[upstreams."…"]`: the settings of one upstream, from its table, its profile, and the top of the file.

use std::collections::BTreeMap;
use std::num::NonZeroUsize;
use std::sync::{Arc, LazyLock};
use std::time::Duration;

use serde::Deserialize;
use url::Url;

use super::file::{Fresh, Origin, PolicyTable, TableId, UpstreamTable};
use super::names::{NamePatterns, NameRules};
use super::profile::{self, Profile, ecr};
use super::{ConfigError, Credentials, ReadSecret, value};
use crate::config::TagRules;
use crate::oci::{Name, Platforms, UpstreamId};

/// What a client gets for a blob that is not stored yet.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Cold {
    /// A redirect to where upstream itself redirects to: no wait, no bytes through us.
    Redirect,
    /// An answer once the blob is stored, or 503 with `Retry-After` after [`Config::wait`](super::Config::wait).
    Wait,
    /// The bytes while the fill writes them. Only where the fill runs in the same process.
    Follow,
}

impl std::fmt::Display for Cold {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.write_str(match self {
            Self::Redirect => "redirect",
            Self::Wait => "wait",
            Self::Follow => "follow",
        })
    }
}

/// What a client gets for a tag that was pulled before and that upstream has deleted since.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Deleted {
    /// What upstream says: that there is no such tag. Its manifest still pulls by digest.
    #[default]
    Missing,
    /// What the tag was, as long as after any other failure of upstream ([`UpstreamConfig::stale`]).
    Serve,
}

/// How an upstream lists referrers: manifests that name another one as their subject.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Referrers {
    /// It may have the referrers API (distribution-spec 1.1, "Listing Referrers"); it is asked.
    Ask,
    /// It has no such API, only the tag in its place ("Referrers Tag Schema").
    TagOnly,
}

/// The settings of one upstream, or of the part of it that a rule is about.
#[derive(Clone, Debug)]
pub struct UpstreamConfig {
    /// Scheme, host and port of its API.
    pub url: Url,
    /// Other values of `?ns=` that mean this upstream.
    pub aliases: Vec<String>,
    /// Origins that may issue tokens for it, besides its own.
    pub token_realms: Vec<Url>,
    /// Hosts it may redirect to although they are private addresses or speak plain HTTP.
    pub trusted_hosts: Vec<String>,
    /// Whether a name without a slash means `library/<name>`.
    pub library: bool,
    /// How it lists referrers.
    pub referrers: Referrers,
    /// The common name of its family, if it is one of many that are built in.
    pub family: Option<&'static str>,
    /// Which names are answered at all.
    pub names: NameRules,
    /// How large their blobs may be.
    pub max_blob: Option<MaxBlob>,
    /// How long tags are served without asking upstream.
    pub tags: TagRules,
    /// How long after that they are still served while upstream is in trouble.
    pub stale: Duration,
    /// How long what is stored of a private repository is served before upstream is asked whether it still shows it to
    /// us.
    pub permission: Duration,
    /// How long a missing tag is remembered.
    pub missing: Duration,
    /// What becomes of a tag that upstream has deleted.
    pub deleted: Deleted,
    /// What a client gets for a blob that is not stored yet.
    pub cold: Cold,
    /// Which children of an index are copied when a pull has stored it.
    pub platforms: Platforms,
    /// How many pulls of the quota are kept for clients that wait.
    pub reserve: u64,
    /// How many fills run at once there that no client waits for.
    pub fills: NonZeroUsize,
    /// How long a fill waits for the first byte of a blob: a registry in between may fetch all of it before.
    pub first_byte: Duration,
    /// Other upstreams that carry its content, asked in this order when it limits us or fails.
    pub alternates: Vec<Alternate>,
    /// Whether every caller that is let in may see what upstream shows us. `None`: only if upstream shows it without a
    /// login.
    pub public: Option<bool>,
    /// Our login there.
    pub credentials: Option<Credentials>,
    /// Which registry of Amazon it is: without `credentials` we log in there with the AWS identity of this process.
    pub ecr: Option<Ecr>,
}

/// A registry that AWS issues logins for.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Ecr {
    /// Private ones of a region.
    Private {
        /// The region, which is part of their host names.
        region: String,
    },
    /// public.ecr.aws, which shows everything without a login too, but less often.
    Public,
}

/// Another upstream that carries the same content:
/// `{ upstream = "public.ecr.aws", names = "library/", prefix = "docker/library/" }`
#[derive(Clone, PartialEq, Eq, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Alternate {
    /// The id of the other upstream.
    pub upstream: UpstreamId,
    /// How the names begin that it carries.
    #[serde(default)]
    pub names: String,
    /// How they begin there instead; `None`: the same.
    pub prefix: Option<String>,
    /// Whether it may resolve tags. Content by digest is verified anyway.
    #[serde(default)]
    pub tags: bool,
    /// Whether a caller that may pull private content here may also see what is private there.
    #[serde(default)]
    pub shared: bool,
}

impl Alternate {
    /// The name of a repository there, if it carries it.
    pub fn name(&self, name: &Name) -> Option<Name> {
        let there = self.prefix.as_ref().unwrap_or(&self.names);
        format!("{there}{}", name.as_str().strip_prefix(&self.names)?).parse().ok()
    }
}

/// The most bytes of a blob, and the key that says so.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct MaxBlob {
    /// The limit, in bytes.
    pub bytes: u64,
    /// The key as the file spells it.
    pub key: String,
}

const DEFAULT_RESERVE: u64 = 10;
/// Twice what slow ones are known to take.
const DEFAULT_FIRST_BYTE: Duration = Duration::from_mins(2);
/// About as many as one container runtime fetches at once.
const DEFAULT_FILLS: NonZeroUsize = NonZeroUsize::new(4).unwrap();

/// The shortest permission that may be set: each time it has passed, an upstream is asked for each private repository that
/// is pulled.
const SHORTEST_PERMISSION: Duration = Duration::from_mins(1);

/// The upstreams that need no configuration, with the usual defaults. They are made once: they are many, and a file is
/// read several times.
static KNOWN: LazyLock<BTreeMap<UpstreamId, Arc<UpstreamConfig>>> = LazyLock::new(|| {
    let known = profile::known().map(|(id, profile, url)| {
        let settings = UpstreamConfig { family: profile.family, ..UpstreamConfig::new(&id, profile, url) };
        (id, settings.into())
    });
    known.collect()
});

/// Every upstream: those that have a table, and those that need none. `top`: what the top of the file says of all.
pub(super) fn read(
    tables: BTreeMap<TableId, UpstreamTable>,
    top: &PolicyTable,
    secret: ReadSecret,
) -> Result<BTreeMap<UpstreamId, Arc<UpstreamConfig>>, ConfigError> {
    let mut upstreams = KNOWN.clone();
    if *top != (PolicyTable { cold: Some(Cold::Follow), ..PolicyTable::default() }) {
        for upstream in upstreams.values_mut() {
            Arc::make_mut(upstream).set(top.clone(), "", None, secret)?;
        }
    }
    for (TableId(id), table) in tables {
        let upstream = upstream(&id, table, top, secret)?;
        upstreams.insert(id, upstream.into());
    }
    let mut aliases: BTreeMap<&str, &UpstreamId> = BTreeMap::new();
    for (id, upstream) in &upstreams {
        for alias in &upstream.aliases {
            let same = upstreams.get_key_value(alias.as_str()).map(|(other, _)| other);
            let other = same.unwrap_or_else(|| aliases.entry(alias).or_insert(id));
            if other != id {
                // What a profile says is no mistake of the file.
                let known = Profile::of(id.as_str(), None).aliases.contains(&alias.as_str());
                let (wrong, right) = if known { (other, id) } else { (id, other) };
                if wrong.as_str() == alias {
                    let message =
                        format!("is another name of {right}: its settings belong into [upstreams.\"{right}\"]");
                    return Err(value(format!("upstreams.\"{wrong}\""), message));
                }
                let message = format!("{alias:?} is what upstreams.\"{right}\" is called");
                return Err(value(format!("upstreams.\"{wrong}\".aliases"), message));
            }
        }
        for Alternate { upstream: other, shared, .. } in &upstream.alternates {
            let wrong = |message: String| Err(value(format!("upstreams.\"{id}\".alternates"), message));
            match upstreams.get(other) {
                None => return wrong(format!("{other} is no configured upstream")),
                Some(there) if upstream.is_private() && there.is_private() && !shared => {
                    return wrong(format!(
                        "{other} is private, and no rule of the policy is asked there for what is pulled from {id}: say \
                         shared = true if whoever may pull it here may see it there"
                    ));
                }
                Some(_) => {}
            }
        }
    }
    Ok(upstreams)
}

fn upstream(
    id: &UpstreamId,
    mut table: UpstreamTable,
    top: &PolicyTable,
    secret: ReadSecret,
) -> Result<UpstreamConfig, ConfigError> {
    let section = format!("upstreams.\"{id}\".");
    let policy = table.policy();
    let profile = Profile::of(id.as_str(), table.url.as_ref().and_then(|url| url.0.host_str()));
    let url = match table.url {
        Some(url) => Ok(url),
        None if id.as_str().contains('.') => profile.origin(id.as_str()),
        None => Err("is required, for example url = \"https://registry.example.com\"".into()),
    };
    let Origin(url) = url.map_err(|message| value(format!("{section}url"), message))?;
    let mut upstream = UpstreamConfig::new(id, profile, url);
    upstream.set(top.clone(), "", None, secret)?;
    let realms = table.token_realms.map(|realms| realms.into_iter().map(|Origin(url)| url).collect());
    replace(&mut upstream.aliases, table.aliases);
    replace(&mut upstream.token_realms, realms);
    replace(&mut upstream.trusted_hosts, table.trusted_hosts);
    replace(&mut upstream.reserve, table.reserve);
    replace(&mut upstream.fills, table.fills);
    replace(&mut upstream.first_byte, table.first_byte.map(|span| span.0));
    replace(&mut upstream.alternates, table.alternates);
    upstream.set(policy, &section, None, secret)?;
    Ok(upstream)
}

/// Replaces a setting by what is given, if anything is.
fn replace<T>(setting: &mut T, given: Option<T>) {
    if let Some(given) = given {
        *setting = given;
    }
}

impl UpstreamConfig {
    /// What is known of an upstream, before the file says otherwise.
    fn new(id: &UpstreamId, profile: &Profile, url: Url) -> Self {
        let alternate = |&(upstream, names, there): &(&str, &str, &str)| {
            let (upstream, names, prefix) = (upstream.parse().ok()?, names.into(), Some(there.into()));
            Some(Alternate { upstream, names, prefix, tags: false, shared: false })
        };
        // A registry's aliases belong to the upstream with its id, not to others that lead to the same host.
        let aliases = if profile.ids.contains(&id.as_str()) { profile.aliases } else { &[] };
        Self {
            aliases: aliases.iter().map(|&alias| alias.to_owned()).collect(),
            token_realms: profile.token_realms.iter().filter_map(|realm| realm.parse().ok()).collect(),
            trusted_hosts: Vec::new(),
            library: profile.library,
            referrers: profile.referrers,
            family: None,
            names: NameRules::default(),
            max_blob: None,
            tags: TagRules { fresh: Duration::from_mins(5), patterns: Vec::new(), immutable: Vec::new() },
            stale: Duration::from_hours(30 * 24),
            permission: Duration::from_hours(1),
            missing: Duration::from_secs(30),
            deleted: Deleted::default(),
            cold: Cold::Follow,
            platforms: Platforms::default(),
            reserve: DEFAULT_RESERVE,
            fills: DEFAULT_FILLS,
            first_byte: DEFAULT_FIRST_BYTE,
            alternates: profile.alternates.iter().filter_map(alternate).collect(),
            credentials: None,
            public: None,
            ecr: ecr(id.as_str()).or_else(|| ecr(url.host_str()?)),
            url,
        }
    }

    /// Whether only callers that the policy names may see what upstream shows us: as `public` says, else if we log in
    /// there. To a private ECR registry we always do.
    pub fn is_private(&self) -> bool {
        let shown_to_us = || self.credentials.is_some() || matches!(self.ecr, Some(Ecr::Private { .. }));
        self.public.map_or_else(shown_to_us, |public| !public)
    }

    /// Replaces what a table sets. `section`: what the names of its keys begin with; `path`: the path below which it
    /// applies.
    pub(super) fn set(
        &mut self,
        policy: PolicyTable,
        section: &str,
        path: Option<&Name>,
        secret: ReadSecret,
    ) -> Result<(), ConfigError> {
        let key = |name: &str| format!("{section}{name}");
        match policy.fresh {
            Some(Fresh::All(fresh)) => (self.tags.fresh, self.tags.patterns) = (fresh.0, Vec::new()),
            Some(Fresh::By(patterns)) => {
                self.tags.patterns = patterns.into_iter().map(|(pattern, fresh)| (pattern, fresh.0)).collect();
            }
            None => {}
        }
        if policy.permission.is_some_and(|span| span.0 < SHORTEST_PERMISSION) {
            return Err(value(key("permission"), "is at least \"1m\": whenever it is over, upstream is asked"));
        }
        replace(&mut self.permission, policy.permission.map(|span| span.0));
        replace(&mut self.stale, policy.stale.map(|span| span.0));
        replace(&mut self.missing, policy.missing.map(|span| span.0));
        replace(&mut self.tags.immutable, policy.immutable);
        replace(&mut self.deleted, policy.deleted);
        replace(&mut self.cold, policy.cold);
        replace(&mut self.platforms, policy.platforms);
        self.public = policy.public.or(self.public);
        if let Some(patterns) = policy.allow {
            self.names.allow = Some(NamePatterns::read(&patterns, key("allow"), self.library, path)?);
        }
        if let Some(patterns) = policy.deny {
            self.names.deny = Some(NamePatterns::read(&patterns, key("deny"), self.library, path)?);
        }
        if let Some(size) = policy.max_blob {
            self.max_blob = Some(MaxBlob { bytes: size.0, key: key("max_blob") });
        }
        if let Some(table) = policy.credentials {
            self.credentials = Some(table.read(secret).map_err(|message| value(key("credentials"), message))?);
        }
        Ok(())
    }
}
