//! Upstream registries: which exist, which one a request means, and how to ask it.

mod account;
mod answer;
mod blob;
mod client;
mod guard;
mod listing;
mod login;
mod meter;
mod send;
mod standing;
mod token;
mod trouble;

use std::collections::{BTreeMap, HashSet};
use std::sync::Arc;

pub use answer::{own_media_type, retry_after_in, whole_size};
pub(crate) use blob::LEAST_BYTES;
pub use blob::{BlobBody, BlobPlace, BlobSource, BytesWanted, OpenBlob};
pub use client::{Patience, Upstream};
pub use listing::{next_page, referrers_in, tags_in};
pub(crate) use standing::Evidence;
pub use token::{Challenge, IssuedToken};

pub use account::UpstreamNews;

use account::Account;
use login::UpstreamLogin;
use meter::Meter;
use standing::{Said, Standings, says, says_if_any};

use crate::config::{Config, DEFAULT_UPSTREAM, Places};
use crate::errors::{PullError, UpstreamError};
use crate::identity::policy::Policy;
use crate::journal::Journal;
use crate::oci::{
    Digest, InvalidRequest, Manifest, Name, Observed, Operation, Place, Reference, Repository, Request, UpstreamId,
};
use crate::ports::{Cloud, Ledger};
use crate::records::gauge::Gauge;
use crate::values::ConfiguredMap;
use crate::values::served::Served;
use crate::values::time::Clock;

/// What comes of a question to an upstream.
pub(crate) type Result<T, E = UpstreamError> = std::result::Result<T, E>;

/// The configured upstreams; no others are ever asked.
pub struct Upstreams {
    /// Each upstream behind the parts of it that a rule has settings for, the longest path first.
    parts: ConfiguredMap<UpstreamId, Vec<(Place, Upstream)>>,
    accounts: Vec<Arc<Account>>,
    places: Places,
    default: Place,
    policy: Policy,
    pub(crate) standings: Standings,
}

impl Upstreams {
    /// One client for each configured upstream and for each rule with settings. They share connections, and those with
    /// the same credentials share an account.
    ///
    /// `cloud` issues credentials where none are configured and the registry is its own, and keeps passwords.
    pub fn new(
        config: &Config,
        (clock, journal): (&Clock, &Arc<Journal>),
        ledger: &Arc<dyn Ledger>,
        cloud: Option<&Arc<dyn Cloud>>,
    ) -> Result<Self> {
        let clients = Arc::new(guard::Clients::new());
        let wholes = config.upstreams.iter().map(|(id, upstream)| (Place::whole(id.clone()), upstream));
        let rules = config.rules.values().filter_map(|rule| Some((rule.place.clone(), rule.settings.as_ref()?)));
        let mut accounts: Vec<Arc<Account>> = Vec::new();
        let parts = wholes.chain(rules).map(|(place, config)| {
            let known = accounts.iter().find(|account| account.is_of(&place.upstream, config));
            let account = known.cloned().unwrap_or_else(|| {
                let login = UpstreamLogin::new(config, cloud, clock);
                let account = Arc::new(Account::new(&place.upstream, login, (clock, journal), ledger));
                accounts.push(Arc::clone(&account));
                account
            });
            let (config, clients, clock) = (Arc::clone(config), Arc::clone(&clients), clock.clone());
            (place, Upstream { config, account, clients, clock })
        });
        // A rule for a whole upstream comes later, and replaces the settings of its table.
        let by_path: BTreeMap<String, (Place, Upstream)> = parts.map(|part| (part.0.to_string(), part)).collect();
        let mut parts: ConfiguredMap<UpstreamId, Vec<(Place, Upstream)>> = ConfiguredMap::default();
        // Of two that contain a repository, the longer one comes later.
        for part in by_path.into_values().rev() {
            parts.entry(part.0.upstream.clone()).or_default().push(part);
        }
        let default = DEFAULT_UPSTREAM.parse().map_err(|_| UpstreamError::Invalid(DEFAULT_UPSTREAM.into()))?;
        let places = Places::new(&config.upstreams, &config.rules);
        let policy = config.access().policy;
        let standings = Standings::new(clock.clone(), Arc::clone(ledger));
        Ok(Self { parts, accounts, places, default: Place::whole(default), policy, standings })
    }

    /// The upstream of a repository with the settings that apply there: those of the rule with the longest matching
    /// path.
    pub fn get(&self, repository: &Repository) -> Result<&Upstream, PullError> {
        self.part(repository).map_err(|_| PullError::UnknownUpstream(repository.upstream.to_string()))
    }

    fn part(&self, repository: &Repository) -> Result<&Upstream> {
        let mut parts = self.parts.get(&repository.upstream).into_iter().flatten();
        let part = parts.find(|(place, _)| place.contains(repository)).map(|(_, upstream)| upstream);
        part.ok_or_else(|| UpstreamError::Invalid(format!("{} is not configured", repository.upstream)))
    }

    /// Whether all callers that are let in may pull from a repository: its upstream is public, and no rule of the
    /// policy denies it to any caller.
    pub fn is_open(&self, repository: &Repository) -> bool {
        self.part(repository).is_ok_and(|part| !part.config().is_private()) && !self.policy.may_deny(repository)
    }

    /// The canonical repository of a request ([`Self::locate`]), if the configuration allows its name.
    pub fn repository(&self, request: &Request, name: &Name) -> Result<Repository, PullError> {
        let repository = self.locate(request, name)?;
        let refused_by = self.get(&repository)?.config().names.refused_by(&repository.name).map(str::to_owned);
        match refused_by {
            Some(key) => Err(PullError::NotAllowed { repository, key }),
            None => Ok(repository),
        }
    }

    /// The repository and the reference of an image, named as in [`Request::image`].
    pub fn image(&self, request: &Request) -> Result<(Repository, Reference), PullError> {
        match &request.operation {
            Operation::Manifest(name, reference) => Ok((self.repository(request, name)?, reference.clone())),
            _ => Err(PullError::ManifestUnknown(Served::Miss)),
        }
    }

    /// The canonical repository of a request: the place with the longest prefix of the path, or the one that `ns`
    /// names, which must agree; otherwise the default upstream. `library/` is added where the upstream has it. If the
    /// name does not begin with a host and `ns` disagrees, `ns` wins: the match with a rule is chance. An upstream that
    /// is not configured is unknown: the cache is never an open proxy.
    pub fn locate(&self, request: &Request, name: &Name) -> Result<Repository, PullError> {
        let unknown = |text: &str| PullError::UnknownUpstream(text.to_owned());
        let name = request.prefix.as_ref().map_or_else(|| name.clone(), |prefix| prefix.join(name));
        // A client that sends `ns` took the name from that registry: a rule with the same prefix matches only by
        // chance.
        let chance = request.namespace.is_some() && request.prefix.is_none() && !name.first().contains('.');
        let by_path = if chance { self.places.find_upstream(&name) } else { self.places.find(&name) };
        let by_path = by_path.map(|repository| self.canonical(repository)).transpose()?;
        let named = |text: &String| self.places.named(text).ok_or_else(|| unknown(text));
        match (by_path, request.namespace.as_ref().map(named).transpose()?) {
            (Some(path), Some(namespace)) if !namespace.contains(&path) => {
                if chance {
                    return self.canonical(namespace.join(&name));
                }
                Err(PullError::Ambiguous { path, namespace: namespace.clone() })
            }
            (Some(repository), _) => Ok(repository),
            (None, _) if let Some(prefix) = &request.prefix => Err(unknown(prefix.as_str())),
            (None, Some(place)) => self.canonical(place.join(&name)),
            // Docker Hub's names have no dot before the first slash, so this is a host that is not configured.
            (None, None) if name.first() != name.as_str() && name.first().contains('.') => Err(unknown(name.first())),
            (None, None) => self.canonical(self.default.join(&name)),
        }
    }

    /// Whether a ping is for a configured place. An unknown registry must not look like an empty one.
    pub fn pinged(&self, request: &Request) -> Result<(), PullError> {
        match &request.prefix {
            Some(prefix) if !self.places.reach(prefix) => Err(PullError::UnknownUpstream(prefix.to_string())),
            _ => Ok(()),
        }
    }

    fn canonical(&self, repository: Repository) -> Result<Repository, PullError> {
        let library = self.get(&repository)?.config().library;
        let name = if library { repository.name.in_library() } else { repository.name };
        let name = name.checked().map_err(InvalidRequest::Name)?;
        Ok(Repository { name, ..repository })
    }

    /// Resolves a reference with HEAD, which costs no quota. `None`: upstream tells the digest only with the manifest.
    pub async fn head_manifest(
        &self,
        repository: &Repository,
        reference: &Reference,
        patience: Patience,
    ) -> Result<Option<Observed>> {
        let by_tag = matches!(reference, Reference::Tag(_));
        self.ask(repository, by_tag, says_if_any, |upstream, name| async move {
            upstream.head_manifest(&name, reference, patience).await
        })
        .await
    }

    /// Fetches and verifies a manifest. `background`: no client waits for it.
    pub async fn get_manifest(
        &self,
        repository: &Repository,
        reference: &Reference,
        background: bool,
    ) -> Result<Manifest> {
        let by_tag = matches!(reference, Reference::Tag(_));
        self.ask(repository, by_tag, says, |upstream, name| async move {
            upstream.get_manifest(&name, reference, background).await
        })
        .await
    }

    /// Finds out where a client could fetch a blob itself.
    pub async fn blob_source(&self, repository: &Repository, digest: &Digest) -> Result<BlobSource> {
        self.ask(repository, false, says, |upstream, name| async move { upstream.blob_source(&name, digest).await })
            .await
    }

    /// Opens a blob, or the requested range of it where upstream supports ranges. The bytes are not verified yet.
    pub async fn open_blob(
        &self,
        repository: &Repository,
        digest: &Digest,
        wanted: Option<BytesWanted>,
        patience: Patience,
    ) -> Result<OpenBlob> {
        self.ask(repository, false, says, |upstream, name| async move {
            upstream.open_blob(&name, digest, wanted, patience).await
        })
        .await
    }

    /// Opens another part of a blob at the URL of an earlier part.
    pub async fn open_again(&self, place: &BlobPlace, wanted: BytesWanted) -> Result<OpenBlob> {
        self.part(&place.repository)?.open_again(place, wanted).await
    }

    /// Asks the upstream of a repository. If that one limits us or fails, asks the alternates that carry the same
    /// content. What alternates lack proves nothing, so the first upstream's error is returned then. `by_tag`: ask only
    /// alternates that are trusted to resolve tags; content by digest is verified, whichever upstream sends it. `says`:
    /// what an answer says about the repository as a whole.
    async fn ask<'a, T, A: Future<Output = Result<T>>>(
        &'a self,
        repository: &Repository,
        by_tag: bool,
        says: impl Fn(&Result<T>) -> Option<Said>,
        question: impl Fn(&'a Upstream, Name) -> A,
    ) -> Result<T> {
        let first = self.part(repository)?;
        let asked = Box::pin(question(first, repository.name.clone()));
        let mut trouble = match self.standings.noted(repository, first.config(), says, asked).await {
            Err(error) if error.is_trouble() => error,
            outcome => return outcome,
        };
        for (upstream, name) in self.alternates(first, repository, by_tag) {
            match Box::pin(question(upstream, name)).await {
                Ok(answer) => {
                    tracing::info!(%repository, alternate = %upstream.id(), %trouble, "an alternate answered");
                    return Ok(answer);
                }
                // Asked in vain, though not there where the trouble is.
                Err(error) if error.is_miss() => trouble = trouble.asked(),
                Err(_) => {}
            }
        }
        Err(trouble)
    }

    /// The alternates that carry a repository, each with its name there.
    fn alternates<'a, 'r>(
        &'a self,
        first: &'a Upstream,
        repository: &'r Repository,
        by_tag: bool,
    ) -> impl Iterator<Item = (&'a Upstream, Name)> + use<'a, 'r> {
        first.config().alternates.iter().filter(move |alternate| alternate.tags || !by_tag).filter_map(|alternate| {
            let name = alternate.name(&repository.name)?;
            let there = Repository { upstream: alternate.upstream.clone(), name };
            let upstream = self.part(&there).ok()?;
            // Content that is restricted there must not become public here, nor visible to callers that may not see it
            // there.
            let shared = alternate.shared && first.config().is_private();
            let is_shown = shared || !upstream.config().is_private();
            let is_allowed = upstream.config().names.refused_by(&there.name).is_none();
            let may_ask = is_shown && is_allowed && !self.policy.may_deny_beside(&there, repository);
            may_ask.then_some((upstream, there.name))
        })
    }

    /// Refuses what is not asked for now: the breaker of the upstream is open, and no alternate carries the repository.
    pub async fn check_breaker(&self, repository: &Repository, reference: &Reference) -> Result<()> {
        let upstream = self.part(repository)?;
        if self.alternates(upstream, repository, matches!(reference, Reference::Tag(_))).next().is_some() {
            return Ok(());
        }
        upstream.account.meter.check_breaker().await
    }

    /// What this process has learned of each upstream since this was last called, without asking storage.
    pub fn take_news(&self) -> impl Iterator<Item = UpstreamNews<'_>> {
        self.accounts.iter().map(|account| account.take_news())
    }

    /// The gauge of each account as far as this process knows, without asking storage.
    pub fn known_gauges(&self) -> impl Iterator<Item = (&UpstreamId, Gauge)> {
        self.accounts.iter().map(|account| (&account.key.upstream, account.meter.known_gauge()))
    }

    /// The gauges of all upstreams, for operators: one for each credential. Upstreams of a built-in family are listed
    /// only once they have been asked.
    pub async fn gauges(&self) -> Vec<(&Upstream, Gauge)> {
        let (mut seen, mut parts) = (HashSet::new(), self.parts.iter().collect::<Vec<_>>());
        parts.sort_unstable_by_key(|(id, _)| *id);
        let parts = parts.into_iter().flat_map(|(_, parts)| parts.iter().rev());
        let mut upstreams: Vec<&Upstream> = parts.map(|(_, upstream)| upstream).collect();
        upstreams.retain(|upstream| seen.insert(upstream.gauge_key()));
        Meter::read_all(&upstreams.iter().map(|upstream| &upstream.account.meter).collect::<Vec<_>>()).await;
        let gauges = upstreams.into_iter().map(|upstream| (upstream, upstream.account.meter.known_gauge()));
        let is_shown =
            |upstream: &Upstream, gauge: &Gauge| upstream.config().family.is_none() || *gauge != Gauge::default();
        gauges.filter(|(upstream, gauge)| is_shown(upstream, gauge)).collect()
    }
}

#[cfg(test)]
mod tests;
