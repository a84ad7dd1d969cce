//! `[upstreams."…"]`: the settings of one upstream, from its table, its profile, and the top of the file.

use std::collections::BTreeMap;
use std::num::NonZeroUsize;
use std::time::Duration;

use serde::Deserialize;
use url::Url;

use super::file::{AlternateTable, Fresh, Origin, PolicyTable, UpstreamTable};
use super::names::{NamePatterns, NameRules};
use super::profile::{KNOWN, Profile, ecr_region};
use super::{ConfigError, Credentials, SecretReference, value};
use crate::config::TagRules;
use crate::oci::{Name, Platforms, UpstreamId};
use crate::values::time::Span;

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
    /// How many fills run at once there that no client waits for. Only where fills run in the same process.
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
    /// The region of a private ECR registry: without `credentials` we log in there with the AWS identity of this
    /// process.
    pub ecr_region: Option<String>,
}

/// Another upstream that carries the same content.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Alternate {
    /// The id of the other upstream.
    pub upstream: UpstreamId,
    /// Names it carries, and their names there: the first part of `names` is replaced by `prefix`.
    pub names: (String, String),
    /// Whether it may resolve tags. Content by digest is verified anyway.
    pub tags: bool,
    /// Whether a caller that may pull private content here may also see what is private there.
    pub shared: bool,
}

impl Alternate {
    /// The name of a repository there, if it carries it.
    pub fn name(&self, name: &Name) -> Option<Name> {
        let (here, there) = &self.names;
        format!("{there}{}", name.as_str().strip_prefix(here.as_str())?).parse().ok()
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

/// The settings of upstreams that do not set their own: the top of the file.
pub(super) struct Defaults {
    pub(super) fresh: Duration,
    pub(super) stale: Duration,
    pub(super) permission: Duration,
    pub(super) missing: Duration,
    pub(super) deleted: Deleted,
    pub(super) cold: Cold,
    pub(super) platforms: Platforms,
}

/// Every upstream: those that have a table, and those that need none.
pub(super) fn read(
    mut tables: BTreeMap<UpstreamId, UpstreamTable>,
    defaults: &Defaults,
    secret: &impl Fn(SecretReference) -> Result<String, String>,
) -> Result<BTreeMap<UpstreamId, UpstreamConfig>, ConfigError> {
    let mut upstreams = BTreeMap::new();
    for (id, profile, url) in KNOWN.iter().filter(|(id, ..)| !tables.contains_key(id)) {
        let mut upstream = upstream(id, profile, url.clone(), UpstreamTable::default(), defaults, secret)?;
        upstream.family = profile.family;
        upstreams.insert(id.clone(), upstream);
    }
    while let Some((id, mut table)) = tables.pop_first() {
        let key = || format!("upstreams.\"{id}\".url");
        let profile = Profile::of(id.as_str(), table.url.as_ref().and_then(|url| url.0.host_str()));
        let Origin(url) = match table.url.take() {
            Some(url) => url,
            None if id.as_str().contains('.') => {
                profile.origin(id.as_str()).map_err(|message| value(key(), message))?
            }
            None => return Err(value(key(), "is required, for example url = \"https://registry.example.com\"")),
        };
        let upstream = upstream(&id, profile, url, table, defaults, secret)?;
        upstreams.insert(id, upstream);
    }
    let mut called: BTreeMap<&str, &UpstreamId> = upstreams.keys().map(|id| (id.as_str(), id)).collect();
    for (id, upstream) in &upstreams {
        for alias in &upstream.aliases {
            let other = *called.entry(alias).or_insert(id);
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
    profile: &Profile,
    url: Url,
    mut table: UpstreamTable,
    defaults: &Defaults,
    secret: &impl Fn(SecretReference) -> Result<String, String>,
) -> Result<UpstreamConfig, ConfigError> {
    let section = format!("upstreams.\"{id}\"");
    let key = |name: &str| format!("{section}.{name}");
    let origin = |text: String| Origin::try_from(text).map_err(|message| value(key("url"), message));
    let policy = table.policy();
    let ecr_region = ecr_region(id.as_str()).or_else(|| ecr_region(url.host_str()?)).map(str::to_owned);
    let token_realms = match table.token_realms {
        Some(realms) => realms,
        None => profile.token_realms.iter().map(|&realm| origin(realm.to_owned())).collect::<Result<_, _>>()?,
    };
    // A registry's aliases belong to the upstream with its id, not to others that lead to the same host.
    let own = profile.ids.contains(&id.as_str());
    let aliases = || profile.aliases.iter().filter(|_| own).map(|&alias| alias.to_owned()).collect();
    let alternates = match table.alternates {
        Some(tables) => tables
            .into_iter()
            .map(|AlternateTable { upstream, names, prefix, tags, shared }| {
                let there = prefix.unwrap_or_else(|| names.clone());
                Alternate { upstream, names: (names, there), tags, shared }
            })
            .collect(),
        None => profile
            .alternates
            .iter()
            .map(|&(upstream, names, there)| {
                let upstream = upstream.parse().map_err(|_| value(key("alternates"), upstream))?;
                Ok(Alternate { upstream, names: (names.into(), there.into()), tags: false, shared: false })
            })
            .collect::<Result<_, ConfigError>>()?,
    };
    let mut upstream = UpstreamConfig {
        url,
        aliases: table.aliases.unwrap_or_else(aliases),
        token_realms: token_realms.into_iter().map(|Origin(url)| url).collect(),
        trusted_hosts: table.trusted_hosts.unwrap_or_default(),
        library: profile.library,
        referrers: profile.referrers,
        family: None,
        names: NameRules::default(),
        max_blob: None,
        tags: TagRules { fresh: defaults.fresh, patterns: Vec::new(), immutable: Vec::new() },
        stale: defaults.stale,
        permission: defaults.permission,
        missing: defaults.missing,
        deleted: defaults.deleted,
        cold: defaults.cold,
        platforms: defaults.platforms.clone(),
        reserve: table.reserve.unwrap_or(DEFAULT_RESERVE),
        fills: table.fills.unwrap_or(DEFAULT_FILLS),
        first_byte: table.first_byte.map_or(DEFAULT_FIRST_BYTE, |span| span.0),
        alternates,
        credentials: None,
        public: None,
        ecr_region,
    };
    upstream.set(policy, &section, None, secret)?;
    Ok(upstream)
}

impl UpstreamConfig {
    /// Whether only callers that the policy names may see what upstream shows us: as `public` says, else if we log in
    /// there. To a private ECR registry we always do.
    pub fn is_private(&self) -> bool {
        self.public.map_or_else(|| self.credentials.is_some() || self.ecr_region.is_some(), |public| !public)
    }

    /// Replaces what a table sets. `section`: the name of the table; `path`: the path below which it applies.
    pub(super) fn set(
        &mut self,
        policy: PolicyTable,
        section: &str,
        path: Option<&Name>,
        secret: &impl Fn(SecretReference) -> Result<String, String>,
    ) -> Result<(), ConfigError> {
        let key = |name: &str| format!("{section}.{name}");
        match policy.fresh {
            Some(Fresh::All(fresh)) => (self.tags.fresh, self.tags.patterns) = (fresh.0, Vec::new()),
            Some(Fresh::By(patterns)) => {
                self.tags.patterns = patterns.into_iter().map(|(pattern, fresh)| (pattern, fresh.0)).collect();
            }
            None => {}
        }
        let replace = |setting: &mut Duration, span: Option<Span>| {
            if let Some(span) = span {
                *setting = span.0;
            }
        };
        replace(&mut self.stale, policy.stale);
        replace(&mut self.missing, policy.missing);
        if let Some(span) = policy.permission {
            self.permission = permission(span, &key("permission"))?;
        }
        self.tags.immutable = policy.immutable.unwrap_or_else(|| std::mem::take(&mut self.tags.immutable));
        self.deleted = policy.deleted.unwrap_or(self.deleted);
        self.cold = policy.cold.unwrap_or(self.cold);
        self.public = policy.public.or(self.public);
        if let Some(platforms) = policy.platforms {
            self.platforms = platforms;
        }
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

/// The shortest that may be set: each time it has passed, an upstream is asked for each private repository that is
/// pulled.
const SHORTEST_PERMISSION: Duration = Duration::from_mins(1);

/// Reads how long a permission lasts without asking upstream.
pub(super) fn permission(Span(span): Span, key: &str) -> Result<Duration, ConfigError> {
    if span < SHORTEST_PERMISSION {
        return Err(value(key, "is at least \"1m\": whenever it is over, upstream is asked"));
    }
    Ok(span)
}
