//! Upstream registries: which there are, which of them a request means, and how to talk to one.

mod answer;
mod client;
mod guard;
mod listing;
mod meter;
mod token;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use futures_util::FutureExt as _;
use futures_util::future::BoxFuture;
use serde::{Deserialize, Serialize};

pub use client::{BlobBody, BlobPlace, BlobSource, BytesWanted, OpenBlob, Upstream};

use crate::config::{Config, DEFAULT_UPSTREAM};
use crate::error::PullError;
use crate::gauge::Gauge;
use crate::oci::{Digest, Manifest, Name, Reference, Repository, Request, UpstreamId};
use crate::ports::{Ledger, Observed};
use crate::time::Clock;

/// What an upstream answered when it did not answer what was asked.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum UpstreamError {
    /// It says there is no such thing, or (without credentials) does not tell a stranger apart from that.
    #[error("upstream does not have it")]
    Missing,
    /// It says that there is no such repository, or does not show it to strangers.
    #[error("upstream has no such repository, or does not show it to us")]
    NoRepository,
    /// It refuses us. Nothing cached may be served on the strength of an earlier permission.
    #[error("upstream refused: {0}")]
    Denied(String),
    /// It limits us.
    #[error("{detail}")]
    Throttled {
        /// What it limits.
        limit: Limit,
        /// When it wants to be asked again.
        retry_after: Option<Duration>,
        /// Whose limit, since when, and what helps.
        detail: String,
    },
    /// It could not be reached, was too slow, or failed.
    #[error("upstream is unavailable: {reason}")]
    Unavailable {
        /// It did not answer at all, or not in time.
        silent: bool,
        /// In words.
        reason: String,
    },
    /// It answered well, and where it redirects to (its CDN) fails. Says nothing about the registry itself.
    #[error("where upstream redirects to is unavailable: {0}")]
    Elsewhere(String),
    /// It answered something that may not be passed on: not a manifest, not the promised bytes, a forbidden redirect.
    #[error("upstream answered wrongly: {0}")]
    Invalid(String),
}

/// The three limits of Docker Hub, which others have too (Docker Hub, "Usage and limits").
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Limit {
    /// Pulls in a window: counts manifests that are fetched, and nothing else.
    Pulls,
    /// Requests of any kind: protects the registry from abuse.
    Requests,
    /// Logins: the token server refuses for a while.
    Login,
}

impl std::fmt::Display for Limit {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.write_str(match self {
            Self::Pulls => "pulls",
            Self::Requests => "requests",
            Self::Login => "logins",
        })
    }
}

/// The closed world of upstreams.
pub struct Upstreams {
    by_id: BTreeMap<UpstreamId, Upstream>,
    default: UpstreamId,
}

impl UpstreamError {
    /// Whether it says nothing about what was asked for: another upstream, or this one later, may well have it.
    pub fn is_trouble(&self) -> bool {
        matches!(self, Self::Throttled { .. } | Self::Unavailable { .. } | Self::Elsewhere(_))
    }
}

impl Upstreams {
    /// One client for each configured upstream; they share connections.
    pub fn new(config: &Config, clock: &Clock, ledger: &Arc<dyn Ledger>) -> Result<Self, UpstreamError> {
        let clients = Arc::new(guard::Clients::new()?);
        let by_id = config.upstreams.iter().map(|(id, config)| {
            (id.clone(), Upstream::new(id.clone(), config.clone(), Arc::clone(&clients), clock, ledger))
        });
        let default = DEFAULT_UPSTREAM.parse().map_err(|_| UpstreamError::Invalid(DEFAULT_UPSTREAM.into()))?;
        Ok(Self { by_id: by_id.collect(), default })
    }

    /// The upstream of a repository that [`Self::repository`] made.
    pub fn get(&self, id: &UpstreamId) -> Result<&Upstream, PullError> {
        self.by_id.get(id).ok_or_else(|| PullError::UnknownUpstream(id.to_string()))
    }

    /// The canonical repository of a request: the upstream by path prefix or `ns`, which must agree, else the default;
    /// `library/` added where the upstream has it. An upstream that is not configured is unknown: never an open proxy.
    pub fn repository(&self, request: &Request, name: &Name) -> Result<Repository, PullError> {
        let by_namespace = match &request.namespace {
            None => None,
            Some(namespace) => {
                Some(self.named(namespace).ok_or_else(|| PullError::UnknownUpstream(namespace.clone()))?)
            }
        };
        let in_name = || name.split_first().and_then(|(first, rest)| Some((self.named(first)?, rest)));
        let (by_path, name) = match (&request.prefix, in_name()) {
            (Some(prefix), _) => {
                let upstream = self.named(prefix.as_str());
                (Some(upstream.ok_or_else(|| PullError::UnknownUpstream(prefix.to_string()))?), name.clone())
            }
            (None, Some((upstream, rest))) => (Some(upstream), rest),
            (None, None) => (None, name.clone()),
        };
        let upstream = match (by_path, by_namespace) {
            (Some(path), Some(namespace)) if path.id() != namespace.id() => {
                return Err(PullError::Ambiguous { path: path.id().clone(), namespace: namespace.id().clone() });
            }
            (Some(upstream), _) | (None, Some(upstream)) => upstream,
            // Docker Hub's names have no dot before the first slash, so this is a host that nobody configured.
            (None, None) => match name.split_first() {
                Some((first, _)) if first.contains('.') => {
                    return Err(PullError::UnknownUpstream(first.to_owned()));
                }
                _ => self.get(&self.default)?,
            },
        };
        let name = if upstream.has_library() { name.in_library() } else { name };
        Ok(Repository { upstream: upstream.id().clone(), name })
    }

    /// Asks what a reference is, which costs no quota. `None`: upstream does not tell without sending the manifest.
    pub async fn head_manifest(
        &self,
        repository: &Repository,
        reference: &Reference,
    ) -> Result<Option<Observed>, UpstreamError> {
        let by_tag = matches!(reference, Reference::Tag(_));
        self.ask(repository, by_tag, |upstream, name| {
            let reference = reference.clone();
            async move { upstream.head_manifest(&name, &reference).await }.boxed()
        })
        .await
    }

    /// Fetches a manifest, verified. `background`: nobody waits for it.
    pub async fn get_manifest(
        &self,
        repository: &Repository,
        reference: &Reference,
        background: bool,
    ) -> Result<Manifest, UpstreamError> {
        let by_tag = matches!(reference, Reference::Tag(_));
        self.ask(repository, by_tag, |upstream, name| {
            let reference = reference.clone();
            async move { upstream.get_manifest(&name, &reference, background).await }.boxed()
        })
        .await
    }

    /// Asks where a client could fetch a blob itself.
    pub async fn blob_source(&self, repository: &Repository, digest: &Digest) -> Result<BlobSource, UpstreamError> {
        self.ask(repository, false, |upstream, name| {
            let digest = digest.clone();
            async move { upstream.blob_source(&name, &digest).await }.boxed()
        })
        .await
    }

    /// Opens a blob, or the part of it that is wanted where upstream can send parts: its bytes, not yet verified.
    pub async fn open_blob(
        &self,
        repository: &Repository,
        digest: &Digest,
        wanted: Option<BytesWanted>,
    ) -> Result<OpenBlob, UpstreamError> {
        self.ask(repository, false, |upstream, name| {
            let digest = digest.clone();
            async move { upstream.open_blob(&name, &digest, wanted).await }.boxed()
        })
        .await
    }

    /// Opens another part of a blob where an earlier one came from.
    pub async fn open_again(&self, place: &BlobPlace, wanted: BytesWanted) -> Result<OpenBlob, UpstreamError> {
        let unknown = || UpstreamError::Invalid(format!("{} is not configured", place.upstream));
        self.by_id.get(&place.upstream).ok_or_else(unknown)?.open_again(place, wanted).await
    }

    /// Asks the upstream of a repository and, where that limits us or fails, those that carry the same content. What they
    /// do not have proves nothing, so the first one's trouble is the answer then. `by_tag`: only those that are trusted
    /// to say what a tag is; what is asked for by digest is verified whoever sends it.
    async fn ask<T>(
        &self,
        repository: &Repository,
        by_tag: bool,
        question: impl for<'a> Fn(&'a Upstream, Name) -> BoxFuture<'a, Result<T, UpstreamError>>,
    ) -> Result<T, UpstreamError> {
        let unknown = || UpstreamError::Invalid(format!("{} is not configured", repository.upstream));
        let first = self.by_id.get(&repository.upstream).ok_or_else(unknown)?;
        let trouble = match question(first, repository.name.clone()).await {
            Err(error) if error.is_trouble() => error,
            outcome => return outcome,
        };
        for alternate in &first.config().alternates {
            if by_tag && !alternate.tags {
                continue;
            }
            let Some(name) = alternate.name(&repository.name) else { continue };
            let Some(upstream) = self.by_id.get(&alternate.upstream) else { continue };
            if let Ok(answer) = question(upstream, name).await {
                tracing::info!(%repository, alternate = %upstream.id(), %trouble, "an alternate answered");
                return Ok(answer);
            }
        }
        Err(trouble)
    }

    /// What each upstream last said of our quota and of itself, for people who wonder how much is left.
    pub async fn gauges(&self) -> Vec<(&Upstream, Gauge)> {
        let gauges = self.by_id.values().map(async |upstream| (upstream, upstream.gauge().await));
        futures_util::future::join_all(gauges).await
    }

    fn named(&self, text: &str) -> Option<&Upstream> {
        match text.parse::<UpstreamId>().ok().and_then(|id| self.by_id.get(&id)) {
            Some(upstream) => Some(upstream),
            None => self.by_id.values().find(|upstream| upstream.is_called(text)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Cold;
    use crate::local::EmbeddedLedger;
    use crate::oci::Operation;

    fn repository(path: &str) -> Result<String, PullError> {
        let config = Config::load(None, Cold::Redirect, |_| None).unwrap();
        let data = tempfile::tempdir().unwrap();
        let ledger: Arc<dyn Ledger> = Arc::new(EmbeddedLedger::open(&data.path().join("ledger")).unwrap());
        let upstreams = Upstreams::new(&config, &Clock::default(), &ledger).unwrap();
        let (path, query) = path.split_once('?').map_or((path, None), |(path, query)| (path, Some(query)));
        let request = Request::parse(&http::Method::GET, path, query).unwrap();
        let Operation::Manifest(name, _) = &request.operation else { panic!("{request:?}") };
        upstreams.repository(&request, name).map(|repository| repository.to_string())
    }

    #[test]
    fn every_way_to_name_an_image_means_one_repository() {
        for path in [
            "/v2/nginx/manifests/1",
            "/v2/library/nginx/manifests/1",
            "/v2/docker.io/nginx/manifests/1",
            "/v2/docker.io/library/nginx/manifests/1?ns=docker.io",
            "/v2/library/nginx/manifests/1?ns=registry-1.docker.io",
            "/v2/index.docker.io/library/nginx/manifests/1",
            "/docker.io/v2/library/nginx/manifests/1?ns=index.docker.io",
        ] {
            assert_eq!(repository(path).unwrap(), "docker.io/library/nginx", "{path}");
        }
        assert_eq!(repository("/v2/ghcr.io/a/b/manifests/1").unwrap(), "ghcr.io/a/b");
        assert_eq!(repository("/v2/a/manifests/1?ns=ghcr.io").unwrap(), "ghcr.io/a");
    }

    #[test]
    fn an_unknown_upstream_is_never_proxied() {
        for path in
            ["/v2/evil.example/a/manifests/1", "/v2/a/manifests/1?ns=evil.example", "/evil.example/v2/a/manifests/1"]
        {
            assert!(matches!(repository(path), Err(PullError::UnknownUpstream(_))), "{path}");
        }
        assert!(matches!(repository("/v2/ghcr.io/a/manifests/1?ns=quay.io"), Err(PullError::Ambiguous { .. })));
    }
}
