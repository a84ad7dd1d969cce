//! Requests to one upstream: tags, manifests, and other paths that need its tokens. Redirects are followed here, so
//! that each target is checked.

use std::sync::Arc;
use std::time::Duration;

use http::header::{ACCEPT, ACCEPT_ENCODING, AUTHORIZATION, CONTENT_LENGTH, CONTENT_TYPE, RANGE};
use http::{HeaderValue, Method, StatusCode};
use reqwest::Response;
use url::Url;

use super::account::Account;
use super::answer::{self, UpstreamResponse, own_media_type, read_limited, timed, unavailable};
use super::blob::BytesWanted;
use super::guard::{self, Clients};
use super::login::UpstreamLogin;
use super::token::Challenge;
use crate::config::{Cold, UpstreamConfig};
use crate::errors::UpstreamError;
use crate::oci::{
    Algorithm, Digest, MAX_MANIFEST_BYTES, Manifest, MediaType, Name, Observed, Reference, Request, UpstreamId,
};
use crate::records::GaugeKey;
use crate::records::gauge::{Gauge, Kind, Quota};
use crate::values::time::Clock;

const HEAD_TIMEOUT: Duration = Duration::from_secs(5);
/// The same where nothing is known: chained caches are slow, but they answer. Both are below the 30 s that clients wait
/// for headers.
const PATIENT_HEAD_TIMEOUT: Duration = Duration::from_secs(15);
const MANIFEST_TIMEOUT: Duration = Duration::from_secs(18);
pub(super) const MAX_REDIRECTS: usize = 5;

/// How long an answer is waited for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Patience {
    /// Briefly: a client can be served what is known.
    Known,
    /// As long as a client waits: nothing is known.
    Client,
    /// As long as the configuration says: no client waits, or it is told to come back.
    Fill,
}

/// One upstream registry, or the part of it that a rule configures.
pub struct Upstream {
    config: UpstreamConfig,
    pub(super) account: Arc<Account>,
    pub(super) clients: Arc<Clients>,
    pub(super) clock: Clock,
}

impl Upstream {
    pub(super) fn new(config: UpstreamConfig, account: Arc<Account>, clients: Arc<Clients>, clock: &Clock) -> Self {
        Self { config, account, clients, clock: clock.clone() }
    }

    /// Its id.
    pub fn id(&self) -> &UpstreamId {
        &self.account.key.upstream
    }

    /// Its settings.
    pub fn config(&self) -> &UpstreamConfig {
        &self.config
    }

    /// The key of its quota gauge: the upstream and our credential.
    pub fn gauge_key(&self) -> &GaugeKey {
        &self.account.key
    }

    /// What it last said about our quota and its own health.
    pub async fn gauge(&self) -> Gauge {
        self.account.meter.gauge().await
    }

    /// What a client gets for a blob of this upstream that is not stored yet.
    pub fn cold(&self) -> Cold {
        self.config.cold
    }

    /// Resolves a tag with HEAD, which costs no quota. `None`: this upstream tells the digest only with the manifest.
    pub async fn head_manifest(
        &self,
        name: &Name,
        reference: &Reference,
        patience: Patience,
    ) -> Result<Option<Observed>, UpstreamError> {
        let limit = if patience == Patience::Known { HEAD_TIMEOUT } else { PATIENT_HEAD_TIMEOUT };
        self.metered(Kind::Head, name, reference, timed(limit, self.do_head_manifest(name, reference))).await
    }

    async fn do_head_manifest(&self, name: &Name, reference: &Reference) -> Result<Option<Observed>, UpstreamError> {
        let answer = self.send(Method::HEAD, self.endpoint(name, "manifests", reference), name).await?;
        // Or a page, and what it says only GET tells.
        if answer.response.status() == StatusCode::METHOD_NOT_ALLOWED
            || (answer.response.status().is_client_error() && answer::is_page(answer.response.headers()))
        {
            return Ok(None);
        }
        let answer = answer.succeeded(self.has_credentials()).await?;
        let headers = answer.response.headers();
        let text = |name: &str| headers.get(name).and_then(|value| value.to_str().ok());
        let digest = text("docker-content-digest").and_then(|digest| digest.parse().ok());
        let media_type = text(CONTENT_TYPE.as_str()).and_then(|media_type| media_type.parse().ok());
        let size = text(CONTENT_LENGTH.as_str()).and_then(|size| size.parse().ok()).filter(|&size: &u64| size > 0);
        Ok(match (digest, media_type, size) {
            (Some(digest), Some(media_type), Some(size)) => Some(Observed { digest, media_type, size }),
            _ => None,
        })
    }

    /// Fetches a manifest and verifies its digest: the requested one, or the one that the answer names.
    ///
    /// `background`: no client waits for it, so the reserve of the quota is left alone.
    pub async fn get_manifest(
        &self,
        name: &Name,
        reference: &Reference,
        background: bool,
    ) -> Result<Manifest, UpstreamError> {
        if background {
            self.account.meter.spare(self.config.reserve).await?;
        }
        self.metered(Kind::Manifest, name, reference, timed(MANIFEST_TIMEOUT, self.do_get_manifest(name, reference)))
            .await
    }

    async fn do_get_manifest(&self, name: &Name, reference: &Reference) -> Result<Manifest, UpstreamError> {
        let answer = self.send(Method::GET, self.endpoint(name, "manifests", reference), name).await?;
        let answer = answer.succeeded(self.has_credentials()).await?;
        let headers = answer.response.headers();
        let header = |name: &str| headers.get(name).and_then(|value| value.to_str().ok()).unwrap_or_default();
        let content_type = header(CONTENT_TYPE.as_str()).to_owned();
        let named = header("docker-content-digest").parse::<Digest>().ok();
        let bytes = read_limited(answer.response, MAX_MANIFEST_BYTES).await?;
        let expected = match reference {
            Reference::Digest(digest) => Some(digest.clone()),
            Reference::Tag(_) => named,
        };
        let algorithm = expected.as_ref().map_or(Algorithm::Sha256, Digest::algorithm);
        let digest = Digest::of(algorithm, &bytes);
        if let Some(expected) = expected
            && expected != digest
        {
            return Err(UpstreamError::Invalid(format!("the manifest {expected} has the digest {digest}")));
        }
        let invalid = |error: crate::oci::InvalidManifest| UpstreamError::Invalid(error.to_string());
        let media_type = match content_type.parse() {
            Ok(media_type) => media_type,
            // Some registries send a general type for everything; then the body names its own.
            Err(error) => own_media_type(&content_type, &bytes).ok_or_else(|| invalid(error))?,
        };
        Manifest::new(digest, media_type, bytes).map_err(invalid)
    }

    pub(super) fn has_credentials(&self) -> bool {
        !self.account.login.is_anonymous()
    }

    pub(super) fn endpoint(&self, name: &Name, kind: &str, reference: impl std::fmt::Display) -> Url {
        let mut url = self.config.url.clone();
        // Names, tags and digests contain no character that a path would have to escape.
        url.set_path(&format!("/v2/{name}/{kind}/{reference}"));
        url
    }

    /// Sends a request and follows at most five redirects, each to a host that [`Clients::client_for`] allows.
    async fn send(&self, method: Method, url: Url, name: &Name) -> Result<UpstreamResponse, UpstreamError> {
        self.send_for(method, url, name, MediaType::ACCEPT, None).await
    }

    pub(super) async fn send_for(
        &self,
        method: Method,
        url: Url,
        name: &Name,
        accept: &'static str,
        wanted: Option<BytesWanted>,
    ) -> Result<UpstreamResponse, UpstreamError> {
        let mut answer = self.request(method.clone(), url, name, accept, wanted).await?;
        for _ in 0..MAX_REDIRECTS {
            match answer.redirect_target()? {
                None => return Ok(answer),
                Some(target) => answer = self.request(method.clone(), target, name, accept, wanted).await?,
            }
        }
        Err(redirected_too_often())
    }

    /// Sends one request. Credentials, and tokens obtained with them, go to the upstream's own origin only. After a 401
    /// a token is fetched, once.
    pub(super) async fn request(
        &self,
        method: Method,
        url: Url,
        name: &Name,
        accept: &'static str,
        wanted: Option<BytesWanted>,
    ) -> Result<UpstreamResponse, UpstreamError> {
        let own = url.origin() == self.config.url.origin();
        let (mut refused, mut anonymous) = (None, None);
        loop {
            let challenge = if own { self.account.challenge() } else { None };
            let authorization = match &challenge {
                None => anonymous.take(),
                Some(challenge) => {
                    let refused = refused.as_ref();
                    let authorization = self
                        .account
                        .tokens
                        .authorization(challenge, name, refused, &self.account.login, &self.config, &self.clients)
                        .await;
                    if matches!(authorization, Err(UpstreamError::Denied(_) | UpstreamError::Invalid(_))) {
                        // One unusable challenge must not fail every later request.
                        self.account.set_challenge(None);
                    }
                    Some(authorization?)
                }
            };
            let mut request = self
                .clients
                .client_for(&url, &self.config)?
                .request(method.clone(), url.clone())
                .header(ACCEPT, accept)
                .header(ACCEPT_ENCODING, "identity");
            if let Some((first, last)) = wanted {
                request = request.header(RANGE, format!("bytes={first}-{last}"));
            }
            if let Some(authorization) = &authorization {
                request = request.header(AUTHORIZATION, authorization.clone());
            }
            let started = std::time::Instant::now();
            let response = request.send().await.map_err(|error| match unavailable(&error) {
                UpstreamError::Unavailable { reason, .. } if !own => UpstreamError::Elsewhere(reason),
                error => error,
            })?;
            tracing::debug!(
                upstream.id = %self.id(), upstream.host = %guard::origin(&url), http.method = %method, repository.name = %name,
                http.status = response.status().as_u16(), duration_ms = started.elapsed().as_millis(), "asked upstream"
            );
            let at = self.clock.now();
            if own && let Some(quota) = Quota::read(response.headers(), at) {
                self.account.note_quota(quota);
            }
            let unauthorized = response.status() == StatusCode::UNAUTHORIZED;
            if unauthorized && !own && refused.is_none() {
                anonymous = Box::pin(self.anonymous_token(&response, &url, authorization.as_ref())).await?;
                if anonymous.is_some() {
                    refused = authorization;
                    continue;
                }
            }
            if !unauthorized || !own {
                return Ok(UpstreamResponse {
                    response,
                    url,
                    at,
                    authorized: authorization.is_some(),
                    elsewhere: !own,
                    ranged: wanted.is_some(),
                });
            }
            match (challenge, &refused) {
                (None, _) => self.learn(&response, name).await?,
                (Some(Challenge::Bearer { .. }), None) => refused = authorization,
                (Some(Challenge::Basic), None) if self.account.login.renews() => refused = authorization,
                // Refused twice: the learned challenge may be wrong, so the next request learns it anew.
                (Some(_), _) => {
                    self.account.set_challenge(None);
                    return Ok(UpstreamResponse {
                        response,
                        url,
                        at,
                        authorized: true,
                        elsewhere: false,
                        ranged: false,
                    });
                }
            }
        }
    }

    /// An anonymous token for the API of another registry, from a realm that may issue ours (lscr.io redirects to
    /// ghcr.io). `None`: its 401 is for another path, or asks for another kind of login.
    async fn anonymous_token(
        &self,
        unauthorized: &Response,
        url: &Url,
        refused: Option<&HeaderValue>,
    ) -> Result<Option<HeaderValue>, UpstreamError> {
        let challenge = Challenge::parse(unauthorized.headers()).filter(|wanted| wanted.is_allowed(&self.config));
        let request = Request::parse(&Method::GET, url.path(), None).ok();
        let name = request.as_ref().and_then(|request| request.operation.name());
        let (Some(challenge), Some(name)) = (challenge, name) else { return Ok(None) };
        let tokens = &self.account.anonymous_tokens;
        let login = &UpstreamLogin::Anonymous;
        tokens.authorization(&challenge, name, refused, login, &self.config, &self.clients).await.map(Some)
    }

    /// Learns the challenge from a 401, or from `/v2/` where that 401 has none (pkg.dev).
    async fn learn(&self, unauthorized: &Response, name: &Name) -> Result<(), UpstreamError> {
        let mut challenge = Challenge::parse(unauthorized.headers());
        if challenge.is_none() {
            let mut url = self.config.url.clone();
            url.set_path("/v2/");
            let ping = self.clients.client_for(&url, &self.config)?.get(url).send();
            challenge = Challenge::parse(timed(HEAD_TIMEOUT, ping).await?.headers());
        }
        tracing::debug!(upstream.id = %self.id(), repository.name = %name, "learned how upstream wants to be asked");
        let missing = || {
            let reason = "it answered 401 and did not say how to log in".to_owned();
            // A registry that refuses does not answer with a page: something in between does.
            if answer::is_page(unauthorized.headers()) && !self.has_credentials() {
                return UpstreamError::Unavailable { silent: false, reason };
            }
            UpstreamError::Denied(reason)
        };
        self.account.set_challenge(Some(challenge.ok_or_else(missing)?));
        Ok(())
    }
}

pub(super) fn redirected_too_often() -> UpstreamError {
    UpstreamError::Invalid(format!("it redirected more than {MAX_REDIRECTS} times"))
}
