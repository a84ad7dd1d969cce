//! `stopover.toml`: what may be set, its defaults, and errors that name the key. Anything wrong stops the process.

mod access;
mod advice;
mod file;
mod login;
mod mistakes;
mod names;
mod policy;
mod profile;
mod retention;
mod rule;
mod schedule;
mod secret;
mod tags;
mod upstream;
mod warnings;

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use crate::errors::Budget;
use crate::oci::{Name, Place, UpstreamId};

pub use access::AccessConfig;
use advice::is_example;
use file::{File, Fresh, PolicyTable};
pub(crate) use login::ISSUER;
pub use login::{IamConfig, OidcConfig};
pub use mistakes::Mistake;

pub use names::NameRules;
pub use retention::Retention;
pub use rule::{Places, Rule};
pub use schedule::{Schedule, TICK};
use secret::ReadSecret;
pub use secret::{Credentials, SecretReference, SecretSource, StoredSecret};
pub use tags::TagRules;
pub use upstream::{Alternate, Cold, Deleted, Ecr, MaxBlob, Referrers, UpstreamConfig};

/// The settings of one process, complete and checked.
#[derive(Clone, Debug)]
pub struct Config {
    /// The address to listen on.
    pub listen: SocketAddr,
    /// Where the embedded adapters keep their files.
    pub data_dir: PathBuf,
    /// How long a client may wait for a cold blob before it is told to retry.
    pub wait: Duration,
    /// How many bytes running fills may hold in memory: half of them ahead of what is stored, the rest for what is on
    /// its way there (on S3 24 MiB, whatever this says).
    pub fill_memory: u64,
    /// The budgets of each caller.
    pub budgets: Limits,
    /// The images that are prefetched periodically.
    pub schedules: Vec<Schedule>,
    /// What the sweep keeps.
    pub retention: Retention,
    /// Every upstream that may be pulled through, by id.
    pub upstreams: BTreeMap<UpstreamId, Arc<UpstreamConfig>>,
    /// The settings of places at upstreams, by prefix.
    pub rules: BTreeMap<Name, Rule>,
    /// Who is let in, and what they may pull; `None`: the file has no `[access]`.
    pub access: Option<AccessConfig>,
    /// What is written in the file and hardly means what was meant.
    pub warnings: Vec<Mistake>,
    /// The file the settings came from.
    pub source: Option<PathBuf>,
}

/// The size of each budget.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Limits {
    /// Misses per minute.
    pub misses: u32,
    /// Manifests from upstream per hour.
    pub pulls: u32,
    /// Bytes of newly stored blobs per day.
    pub new_bytes: u64,
}

impl Limits {
    /// The size of a budget.
    pub(crate) fn most(&self, budget: Budget) -> u64 {
        match budget {
            Budget::Misses => self.misses.into(),
            Budget::Pulls => self.pulls.into(),
            Budget::NewBytes => self.new_bytes,
        }
    }
}

/// What is wrong with the configuration, in words for the operator.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// The named file could not be read.
    #[error("cannot read the configuration {}", path.display())]
    Read {
        /// The path of the file.
        path: PathBuf,
        /// The error of the file system.
        source: std::io::Error,
    },
    /// The file is not TOML, has an unknown key, or a value that cannot be used.
    #[error("{}", told(path, mistakes))]
    Mistakes {
        /// The path of the file.
        path: PathBuf,
        /// All of them, in the order of the file.
        mistakes: Vec<Mistake>,
    },
    /// A value that cannot be used.
    #[error("{key}: {message}")]
    Value {
        /// The key as the file spells it, elements of lists counted from one: `policy[1].who`.
        key: String,
        /// What is wrong with it.
        message: String,
    },
}

/// The upstream that is meant where neither path nor `ns` names one.
pub const DEFAULT_UPSTREAM: &str = "docker.io";

const DEFAULT_FILL_MEMORY: u64 = 64_000_000;
const DEFAULT_KEEP: Duration = Duration::from_hours(30 * 24);
/// Far above what a cluster with a few mistyped images causes, far below what a registry takes for abuse.
const DEFAULT_MISSES: u32 = 120;
/// A cold cluster behind one address pulls hundreds of images, each an index, a manifest, and perhaps an attestation.
const DEFAULT_PULLS: u32 = 1200;
/// More than a cluster pulls that is new in a day, and what a fast line brings in a few hours.
const DEFAULT_NEW_BYTES: u64 = 1 << 40;
/// Below the 29 seconds of API Gateway and the 30 seconds that containerd waits for headers.
const DEFAULT_WAIT: Duration = Duration::from_secs(20);

impl Config {
    /// Reads `path`, or uses the defaults where there is none. `cold` is the policy where the file names none. `secret`
    /// reads the secret that a reference names, or says in words why it cannot; a command that asks no upstream needs
    /// no secrets.
    pub fn load(
        path: Option<&Path>,
        cold: Cold,
        secret: impl Fn(SecretReference) -> Result<String, String>,
    ) -> Result<Self, ConfigError> {
        let Some(path) = path else { return Self::complete(File::default(), None, cold, &secret) };
        let text =
            std::fs::read_to_string(path).map_err(|source| ConfigError::Read { path: path.to_owned(), source })?;
        Self::parse(&text, path, cold, secret)
    }

    /// Parses `text`, the content of the file `path`.
    pub fn parse(
        text: &str,
        path: &Path,
        cold: Cold,
        secret: impl Fn(SecretReference) -> Result<String, String>,
    ) -> Result<Self, ConfigError> {
        let mut config = mistakes::read(text, path, |file, mended| {
            Self::complete(file, Some(path), cold, &|reference| match reference {
                SecretReference::Variable(name) if mended && is_example(name) => Ok(String::new()),
                SecretReference::Stored(stored) if mended && is_example(&stored.to_string()) => Ok(String::new()),
                reference => secret(reference),
            })
        })?;
        config.warnings = config.doubts().into_iter().map(|doubt| mistakes::warning(text, doubt)).collect();
        Ok(config)
    }

    fn complete(file: File, path: Option<&Path>, cold: Cold, secret: ReadSecret) -> Result<Self, ConfigError> {
        let top = PolicyTable {
            fresh: file.fresh.map(Fresh::All),
            stale: file.stale,
            permission: file.permission,
            missing: file.missing,
            deleted: file.deleted,
            cold: Some(file.cold.unwrap_or(cold)),
            platforms: file.platforms,
            ..PolicyTable::default()
        };
        let upstreams = upstream::read(file.upstreams, &top, secret)?;
        let rules = rule::read(file.rules, &upstreams, secret)?;
        Ok(Self {
            listen: file.listen.map_or(SocketAddr::from(([127, 0, 0, 1], 5000)), |listen| listen.0),
            data_dir: file.data_dir.unwrap_or_else(|| "stopover-data".into()),
            wait: file.wait.map_or(DEFAULT_WAIT, |span| span.0),
            fill_memory: file.fill_memory.map_or(DEFAULT_FILL_MEMORY, |size| size.0),
            budgets: Limits {
                misses: file.misses.unwrap_or(DEFAULT_MISSES),
                pulls: file.pulls.unwrap_or(DEFAULT_PULLS),
                new_bytes: file.new_bytes.map_or(DEFAULT_NEW_BYTES, |size| size.0),
            },
            schedules: schedule::read(file.schedule)?,
            retention: Retention {
                keep: file.keep.map_or(Some(DEFAULT_KEEP), |keep| keep.0),
                pin: file.pin,
                max_size: file.max_size.map(|size| size.0),
            },
            access: access::read(file.access, file.policy, &upstreams, secret)?,
            upstreams,
            rules,
            warnings: Vec::new(),
            source: path.map(Path::to_owned),
        })
    }

    /// Who is let in: without `[access]` in the file, callers on this machine.
    pub fn access(&self) -> AccessConfig {
        self.access.clone().unwrap_or_else(|| AccessConfig::only_here(self.listen.ip()))
    }

    /// Whether callers that are let in may know of an upstream, unless a rule says otherwise.
    pub fn is_public(&self, upstream: &UpstreamId) -> bool {
        self.upstreams.get(upstream).is_some_and(|upstream| !upstream.is_private())
    }

    /// Whether that is so of all parts of an upstream, those included that have a rule of their own.
    pub fn is_wholly_public(&self, upstream: &UpstreamId) -> bool {
        let mut parts = self.rules.values().filter(|rule| rule.place.upstream == *upstream);
        let is_private = |rule: &Rule| rule.settings.as_ref().is_some_and(|settings| settings.is_private());
        self.is_public(upstream) && !parts.any(is_private)
    }

    /// The settings of every upstream and of every rule that has settings, each with its name for messages.
    pub fn settings(&self) -> impl Iterator<Item = (String, &UpstreamConfig)> {
        let upstreams = self.upstreams.iter().map(|(id, upstream)| (format!("upstream {id}"), &**upstream));
        let rules = self.rules.iter();
        let rules = rules.filter_map(|(prefix, rule)| Some((format!("rule {prefix}"), rule.settings.as_deref()?)));
        upstreams.chain(rules)
    }

    /// The rule whose settings apply to a place: of the rules with settings that enclose it, the one with the longest
    /// path. `None`: the settings of the upstream apply.
    pub fn rule_at(&self, place: &Place) -> Option<&Name> {
        let around = self.rules.iter().filter(|(_, rule)| rule.settings.is_some() && rule.place.encloses(place));
        around.max_by_key(|(_, rule)| rule.place.depth()).map(|(prefix, _)| prefix)
    }
}

/// One mistake a line, below their number where there are several.
fn told(path: &Path, mistakes: &[Mistake]) -> String {
    let lines = mistakes.iter().map(|mistake| format!("{}: {mistake}", path.display())).collect::<Vec<_>>().join("\n");
    if mistakes.len() == 1 { lines } else { format!("{} mistakes\n{lines}", mistakes.len()) }
}

fn value(key: impl Into<String>, message: impl Into<String>) -> ConfigError {
    ConfigError::Value { key: key.into(), message: message.into() }
}

#[cfg(test)]
mod tests;
