//! `stopover.toml`: what may be set, its defaults, and errors that name the key. Anything wrong stops the process.

mod file;
mod schedule;

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::num::NonZeroUsize;
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::Deserialize;
use url::Url;

use crate::freshness::TagRules;
use crate::oci::{Name, Platforms, UpstreamId};
use crate::retention::Retention;

use file::{AlternateTable, CredentialsTable, File, Fresh, UpstreamTable, explain};
pub use schedule::{Schedule, TICK};

/// What a client gets for a blob that is not stored yet.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Cold {
    /// A redirect to where upstream itself redirects to: no wait, no bytes through us.
    Redirect,
    /// An answer once the blob is stored, or 503 with `Retry-After` after [`Config::wait`].
    Wait,
    /// The bytes while the fill writes them. Only where the fill runs in the same process.
    Follow,
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

/// How the referrers of a manifest are found (distribution-spec 1.1, "Listing Referrers").
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Referrers {
    /// By the API, and by tag where upstream turns out not to have it.
    #[default]
    Ask,
    /// By tag only: upstream does not have the API.
    TagOnly,
}

/// The settings of one process, complete and checked.
#[derive(Clone, Debug)]
pub struct Config {
    /// The address to listen on.
    pub listen: SocketAddr,
    /// Where the embedded adapters keep their files.
    pub data_dir: PathBuf,
    /// How long a client may wait for a cold blob before it is told to come back.
    pub wait: Duration,
    /// How many bytes running fills may hold: half of them ahead of what is stored, the rest for what is on its way there
    /// (on S3 24 MiB, whatever this says).
    pub fill_memory: u64,
    /// How many misses at upstream a caller (an address) may cause in a minute.
    pub misses: u32,
    /// What is prefetched again and again.
    pub schedules: Vec<Schedule>,
    /// What is kept.
    pub retention: Retention,
    /// Every upstream that may be pulled through, by id.
    pub upstreams: BTreeMap<UpstreamId, UpstreamConfig>,
    /// The file the settings came from.
    pub source: Option<PathBuf>,
}

/// The settings of one upstream.
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
    /// How long tags are served without asking upstream.
    pub tags: TagRules,
    /// How long after that it is still served while upstream is in trouble.
    pub stale: Duration,
    /// How long a missing tag is remembered.
    pub missing: Duration,
    /// What becomes of a tag that upstream has deleted.
    pub deleted: Deleted,
    /// How referrers are found.
    pub referrers: Referrers,
    /// What a client gets for a blob that is not stored yet.
    pub cold: Cold,
    /// Which children of an index are copied when a pull has stored it.
    pub platforms: Platforms,
    /// Pulls that are left to clients who wait, when so few are left.
    pub reserve: u64,
    /// How many fills that nobody waits for run at once there. Only where fills run in the same process.
    pub fills: NonZeroUsize,
    /// Who else carries its content, asked in this order when it limits us or fails.
    pub alternates: Vec<Alternate>,
    /// Who we are there.
    pub credentials: Option<Credentials>,
}

/// Another upstream that carries the same content.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Alternate {
    /// Which.
    pub upstream: UpstreamId,
    /// Names it carries, and their names there: the first part of `names` is replaced by `prefix`.
    pub names: (String, String),
    /// Whether it may say what a tag is. Content by digest is verified anyway.
    pub tags: bool,
}

impl Alternate {
    /// The name of a repository there, if it carries it.
    pub fn name(&self, name: &Name) -> Option<Name> {
        let (here, there) = &self.names;
        format!("{there}{}", name.as_str().strip_prefix(here.as_str())?).parse().ok()
    }
}

/// A user name and a secret that never appears in a log.
#[derive(Clone, PartialEq, Eq)]
pub struct Credentials {
    /// The user name.
    pub username: String,
    /// The password or access token.
    pub password: String,
}

impl std::fmt::Debug for Credentials {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(formatter, "Credentials({}, secret)", self.username)
    }
}

/// What is wrong with the configuration, in words for the operator.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// The named file could not be read.
    #[error("cannot read the configuration {}: {source}", path.display())]
    Read {
        /// Which file.
        path: PathBuf,
        /// Why not.
        source: std::io::Error,
    },
    /// The file is no TOML, or has an unknown key or a value of the wrong kind. Names line, column and nearest key.
    #[error("{}: {message}", path.display())]
    Parse {
        /// Which file.
        path: PathBuf,
        /// Where and what.
        message: String,
    },
    /// A value that cannot be used.
    #[error("{key}: {message}")]
    Value {
        /// The key as it stands in the file.
        key: String,
        /// What is wrong with it.
        message: String,
    },
}

/// The registries that work with no configuration at all. Columns: id, API host, other `ns` values, token realms besides
/// the API's own origin (protocol facts of each registry's documentation).
const WELL_KNOWN: [(&str, &str, &[&str], &[&str]); 11] = [
    ("docker.io", "registry-1.docker.io", &["index.docker.io"], &["https://auth.docker.io"]),
    ("ghcr.io", "ghcr.io", &[], &[]),
    ("quay.io", "quay.io", &[], &[]),
    ("public.ecr.aws", "public.ecr.aws", &[], &[]),
    ("registry.k8s.io", "registry.k8s.io", &[], &[]),
    ("gcr.io", "gcr.io", &[], &[]),
    ("mirror.gcr.io", "mirror.gcr.io", &[], &[]),
    ("mcr.microsoft.com", "mcr.microsoft.com", &[], &[]),
    ("registry.gitlab.com", "registry.gitlab.com", &[], &["https://gitlab.com"]),
    ("nvcr.io", "nvcr.io", &[], &[]),
    ("lscr.io", "lscr.io", &[], &["https://ghcr.io"]),
];

/// Registries known not to have the referrers API; ghcr.io redirects it to a page for people.
const WITHOUT_REFERRERS: [&str; 3] = ["docker.io", "ghcr.io", "lscr.io"];

/// Who carries Docker Hub's official images too: upstream, and what `library/` is called there.
const OFFICIAL_ELSEWHERE: [(&str, &str); 2] = [("public.ecr.aws", "docker/library/"), ("mirror.gcr.io", "library/")];

/// The upstream that is meant where neither path nor `ns` names one.
pub const DEFAULT_UPSTREAM: &str = "docker.io";

const DEFAULT_FRESH: Duration = Duration::from_mins(5);
const DEFAULT_STALE: Duration = Duration::from_hours(30 * 24);
const DEFAULT_MISSING: Duration = Duration::from_secs(30);
const DEFAULT_FILL_MEMORY: u64 = 64_000_000;
const DEFAULT_KEEP: Duration = Duration::from_hours(30 * 24);
const DEFAULT_RESERVE: u64 = 10;
/// About as many as one container runtime fetches at once.
const DEFAULT_FILLS: NonZeroUsize = NonZeroUsize::new(4).unwrap();
/// Far above what a cluster with a few mistyped images causes, far below what a registry takes for abuse.
const DEFAULT_MISSES: u32 = 120;
/// Below the 29 seconds of API Gateway and the 30 seconds that containerd waits for headers.
const DEFAULT_WAIT: Duration = Duration::from_secs(20);

impl Config {
    /// Reads `path`, or uses the defaults where there is none. `cold` is the policy where the file names none; `secret`
    /// looks up environment variables.
    pub fn load(path: Option<&Path>, cold: Cold, secret: impl Fn(&str) -> Option<String>) -> Result<Self, ConfigError> {
        let file = match path {
            None => File::default(),
            Some(path) => {
                let text = std::fs::read_to_string(path)
                    .map_err(|source| ConfigError::Read { path: path.to_owned(), source })?;
                toml::from_str(&text)
                    .map_err(|error| ConfigError::Parse { path: path.to_owned(), message: explain(&error, &text) })?
            }
        };
        let cold = file.cold.unwrap_or(cold);
        let mut upstreams = BTreeMap::new();
        let mut tables = file.upstreams.clone();
        for (id, ..) in WELL_KNOWN {
            let id: UpstreamId = id.parse().map_err(|error| value("upstreams", format!("{id}: {error}")))?;
            tables.entry(id).or_default();
        }
        for (id, table) in tables {
            let upstream = upstream(&id, table, &file, cold, &secret)?;
            upstreams.insert(id, upstream);
        }
        for (id, upstream) in &upstreams {
            for alternate in &upstream.alternates {
                if !upstreams.contains_key(&alternate.upstream) {
                    let message = format!("{} is no configured upstream", alternate.upstream);
                    return Err(value(format!("upstreams.\"{id}\".alternates"), message));
                }
            }
        }
        Ok(Self {
            listen: file.listen.unwrap_or(SocketAddr::from(([127, 0, 0, 1], 5000))),
            data_dir: file.data_dir.unwrap_or_else(|| "stopover-data".into()),
            wait: file.wait.map_or(DEFAULT_WAIT, |span| span.0),
            fill_memory: file.fill_memory.map_or(DEFAULT_FILL_MEMORY, |size| size.0),
            misses: file.misses.unwrap_or(DEFAULT_MISSES),
            schedules: schedule::read(file.schedule)?,
            retention: Retention {
                keep: file.keep.map_or(Some(DEFAULT_KEEP), |keep| keep.0),
                pin: file.pin,
                max_size: file.max_size.map(|size| size.0),
            },
            upstreams,
            source: path.map(Path::to_owned),
        })
    }
}

fn value(key: impl Into<String>, message: impl Into<String>) -> ConfigError {
    ConfigError::Value { key: key.into(), message: message.into() }
}

fn upstream(
    id: &UpstreamId,
    table: UpstreamTable,
    file: &File,
    cold: Cold,
    secret: impl Fn(&str) -> Option<String>,
) -> Result<UpstreamConfig, ConfigError> {
    let key = |name: &str| format!("upstreams.\"{id}\".{name}");
    let known = WELL_KNOWN.iter().find(|(known, ..)| *known == id.as_str());
    let parse = |text: &str| Url::parse(text).map_err(|error| value(key("url"), error.to_string()));
    let url = match (table.url, known) {
        (Some(url), _) => url,
        (None, Some((_, host, ..))) => parse(&format!("https://{host}"))?,
        (None, None) => {
            return Err(value(key("url"), "is required, for example url = \"https://registry.example.com\""));
        }
    };
    origin_only(&url).map_err(|message| value(key("url"), message))?;
    let token_realms = match (table.token_realms, known) {
        (Some(realms), _) => realms,
        (None, Some((.., realms))) => realms.iter().map(|realm| parse(realm)).collect::<Result<_, _>>()?,
        (None, None) => Vec::new(),
    };
    for realm in &token_realms {
        origin_only(realm).map_err(|message| value(key("token_realms"), message))?;
    }
    let aliases = table
        .aliases
        .or_else(|| known.map(|(_, _, aliases, _)| aliases.iter().map(|&alias| alias.to_owned()).collect()))
        .unwrap_or_default();
    let alternates = match table.alternates {
        Some(tables) => tables
            .into_iter()
            .map(|AlternateTable { upstream, names, prefix, tags }| {
                let there = prefix.unwrap_or_else(|| names.clone());
                Alternate { upstream, names: (names, there), tags }
            })
            .collect(),
        None if id.as_str() == DEFAULT_UPSTREAM => OFFICIAL_ELSEWHERE
            .iter()
            .map(|(elsewhere, prefix)| {
                let upstream = elsewhere.parse().map_err(|_| value(key("alternates"), *elsewhere))?;
                Ok(Alternate { upstream, names: ("library/".into(), (*prefix).into()), tags: false })
            })
            .collect::<Result<_, ConfigError>>()?,
        None => Vec::new(),
    };
    let credentials = match table.credentials {
        None => None,
        Some(table) => Some(credentials(table, secret).map_err(|message| value(key("credentials"), message))?),
    };
    Ok(UpstreamConfig {
        library: id.as_str() == DEFAULT_UPSTREAM,
        url,
        aliases,
        token_realms,
        trusted_hosts: table.trusted_hosts.unwrap_or_default(),
        tags: TagRules {
            fresh: match &table.fresh {
                Some(Fresh::All(fresh)) => fresh.0,
                _ => file.fresh.map_or(DEFAULT_FRESH, |span| span.0),
            },
            patterns: match table.fresh {
                Some(Fresh::By(patterns)) => patterns.into_iter().map(|(pattern, fresh)| (pattern, fresh.0)).collect(),
                _ => Vec::new(),
            },
            immutable: table.immutable.unwrap_or_default(),
        },
        stale: table.stale.or(file.stale).map_or(DEFAULT_STALE, |span| span.0),
        missing: table.missing.or(file.missing).map_or(DEFAULT_MISSING, |span| span.0),
        deleted: table.deleted.or(file.deleted).unwrap_or_default(),
        referrers: if WITHOUT_REFERRERS.contains(&id.as_str()) { Referrers::TagOnly } else { Referrers::Ask },
        cold: table.cold.unwrap_or(cold),
        platforms: table.platforms.or_else(|| file.platforms.clone()).unwrap_or_default(),
        reserve: table.reserve.unwrap_or(DEFAULT_RESERVE),
        fills: table.fills.unwrap_or(DEFAULT_FILLS),
        alternates,
        credentials,
    })
}

fn origin_only(url: &Url) -> Result<(), String> {
    let plain = matches!(url.scheme(), "http" | "https")
        && url.has_host()
        && url.path() == "/"
        && url.query().is_none()
        && url.fragment().is_none()
        && url.username().is_empty()
        && url.password().is_none();
    if plain {
        Ok(())
    } else {
        Err(format!("{:?} must be scheme, host and port only: https://registry.example.com", url.as_str()))
    }
}

fn credentials(table: CredentialsTable, secret: impl Fn(&str) -> Option<String>) -> Result<Credentials, String> {
    let password = match (table.password_env, table.password_file) {
        (Some(name), None) => secret(&name).ok_or_else(|| format!("the environment variable {name} is not set"))?,
        (None, Some(path)) => std::fs::read_to_string(&path)
            .map_err(|error| format!("cannot read {}: {error}", path.display()))?
            .trim_end_matches(['\r', '\n'])
            .to_owned(),
        _ => {
            return Err("give either password_env (the name of a variable) or password_file (a path)".into());
        }
    };
    if password.is_empty() {
        return Err("the password is empty".into());
    }
    Ok(Credentials { username: table.username, password })
}

#[cfg(test)]
mod tests;
