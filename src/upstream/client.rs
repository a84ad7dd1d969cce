//! Requests to one upstream: tags, manifests, and other paths that need its tokens. Redirects are followed here, so
//! that each target is checked.

use std::sync::Arc;
use std::time::Duration;

use http::header::{ACCEPT, ACCEPT_ENCODING, AUTHORIZATION, CONTENT_LENGTH, CONTENT_TYPE, RANGE};
use http::{HeaderValue, Method, StatusCode};
use reqwest::Response;
use tokio::time::Instant;
use url::Url;

use super::account::{Account, Heads};
use super::answer::{self, UpstreamResponse, own_media_type, read_limited, timed};
use super::blob::BytesWanted;
use super::guard::{self, Clients};
use super::login::UpstreamLogin;
use super::token::Challenge;
use crate::config::{Cold, Deleted, UpstreamConfig};
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

/// How long a new token may be refused because two clocks differ.
const SKEW: Duration = Duration::from_millis(1200);

/// Why what the registry asks for is learned anew.
enum Doubt {
    NoToken(UpstreamError),
    /// `certain`: it says that no other token will do, or there is none.
    Refused {
        certain: bool,
    },
}

/// How long an answer is rested for.
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
        if self.account.heads(name) == Some(Heads::Wrong) {
            return Ok(None);
        }
        let asked = self.do_head_manifest(name, reference, patience == Patience::Known, hop_ends(limit));
        let asked = self.metered(Kind::Head, name, reference, timed(limit, asked)).await;
        if matches!(asked, Ok(Some(_))) {
            self.account.note_heads(name, Heads::Right);
        }
        asked
    }

    async fn do_head_manifest(
        &self,
        name: &Name,
        reference: &Reference,
        known: bool,
        ends_at: Instant,
    ) -> Result<Option<Observed>, UpstreamError> {
        let answer = self.send(Method::HEAD, self.endpoint(name, "manifests", reference), name, ends_at).await?;
        // HEAD is refused as such, or the answer is a page: what it means only GET tells.
        if matches!(answer.response.status().as_u16(), 400 | 405 | 406 | 411 | 501)
            || (answer.response.status().is_client_error() && answer::is_page(answer.response.headers()))
        {
            return Ok(None);
        }
        let heads = self.account.heads(name);
        if Self::is_doubtful(&answer, known) && heads != Some(Heads::Right) {
            let doubted = Heads::Doubted(reference.clone());
            self.account.note_heads(name, doubted.clone());
            // Where a tag that is gone is served on, GET can wait until it is checked again.
            let waits = answer.response.status() == StatusCode::NOT_FOUND && self.config.deleted == Deleted::Serve;
            if !waits || heads == Some(doubted) {
                return Ok(None);
            }
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

    /// Whether GET may be answered where HEAD is refused. What a registry says of a tag that it has never shown is its
    /// word: a GET for each tag that does not exist would be too many.
    fn is_doubtful(answer: &UpstreamResponse, known: bool) -> bool {
        let json = answer.response.headers().get(CONTENT_TYPE).is_some_and(|text| text.as_bytes().ends_with(b"json"));
        match answer.response.status() {
            StatusCode::FORBIDDEN => true,
            StatusCode::NOT_FOUND => known || !json,
            StatusCode::UNAUTHORIZED => known,
            _ => false,
        }
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
        let asked = self.do_get_manifest(name, reference, hop_ends(MANIFEST_TIMEOUT));
        let fetched = self.metered(Kind::Manifest, name, reference, timed(MANIFEST_TIMEOUT, asked)).await;
        if self.account.heads(name) == Some(Heads::Doubted(reference.clone())) {
            match &fetched {
                Ok(_) => self.account.note_heads(name, Heads::Wrong),
                Err(UpstreamError::Missing | UpstreamError::NoRepository | UpstreamError::Denied(_)) => {
                    self.account.note_heads(name, Heads::Right);
                }
                Err(_) => {}
            }
        }
        fetched
    }

    async fn do_get_manifest(
        &self,
        name: &Name,
        reference: &Reference,
        ends_at: Instant,
    ) -> Result<Manifest, UpstreamError> {
        let answer = self.send(Method::GET, self.endpoint(name, "manifests", reference), name, ends_at).await?;
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
        if bytes.starts_with(b"\x1f\x8b") {
            let reason = "it compressed a manifest, though it was asked for it as it is (Accept-Encoding: identity)";
            return Err(UpstreamError::Invalid(reason.into()));
        }
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
    async fn send(
        &self,
        method: Method,
        url: Url,
        name: &Name,
        ends_at: Instant,
    ) -> Result<UpstreamResponse, UpstreamError> {
        self.send_for(method, url, name, MediaType::ACCEPT, None, ends_at).await
    }

    pub(super) async fn send_for(
        &self,
        method: Method,
        url: Url,
        name: &Name,
        accept: &'static str,
        wanted: Option<BytesWanted>,
        ends_at: Instant,
    ) -> Result<UpstreamResponse, UpstreamError> {
        let mut answer = Box::pin(self.request(method.clone(), url, name, accept, wanted, ends_at)).await?;
        for _ in 0..MAX_REDIRECTS {
            match answer.redirect_target()? {
                None => return Ok(answer),
                Some(target) => {
                    answer = Box::pin(self.request(method.clone(), target, name, accept, wanted, ends_at)).await?;
                }
            }
        }
        Err(redirected_too_often())
    }

    /// Sends one request. Credentials, and tokens obtained with them, go to the upstream's own origin only. After a 401
    /// a token is fetched. A refusal counts once it is certain: a new token was refused too, and what the registry asks
    /// for was learned anew. `ends_at`: when another host than the registry is given up.
    pub(super) async fn request(
        &self,
        method: Method,
        url: Url,
        name: &Name,
        accept: &'static str,
        wanted: Option<BytesWanted>,
        ends_at: Instant,
    ) -> Result<UpstreamResponse, UpstreamError> {
        let own = url.origin() == self.config.url.origin();
        let mut challenge = if own { self.account.challenge(name) } else { None };
        let (mut refused, mut anonymous, mut learned, mut rested) = (None, None, false, false);
        // The challenge that did not lead to an answer, while it is learned anew.
        let mut doubted = None;
        loop {
            let authorization = match &challenge {
                None => anonymous.take(),
                Some(known) => {
                    let (account, refused) = (&self.account, refused.as_ref());
                    let (login, config) = (&account.login, &self.config);
                    match account.tokens.authorization(known, name, refused, login, config, &self.clients).await {
                        Ok(authorization) => Some(authorization),
                        // The token server may have moved.
                        Err(error) if !learned && error.limit().is_none() => {
                            doubted = challenge.take().map(|known| (known, Doubt::NoToken(error)));
                            continue;
                        }
                        Err(error) => return Err(error),
                    }
                }
            };
            let mut request = reqwest::Request::new(method.clone(), url.clone());
            let headers = request.headers_mut();
            headers.insert(ACCEPT, HeaderValue::from_static(accept));
            headers.insert(ACCEPT_ENCODING, HeaderValue::from_static("identity"));
            let range = wanted.and_then(|(first, last)| HeaderValue::from_str(&format!("bytes={first}-{last}")).ok());
            headers.extend(range.map(|range| (RANGE, range)));
            headers.extend(authorization.clone().map(|authorization| (AUTHORIZATION, authorization)));
            let response = self.send_once(request, name, ends_at).await?;
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
            let authorized = authorization.is_some();
            let error = if unauthorized { Challenge::error(response.headers()) } else { None };
            let answer = UpstreamResponse {
                response,
                url: url.clone(),
                at,
                authorized,
                elsewhere: !own,
                ranged: wanted.is_some(),
            };
            if !unauthorized || !own {
                return Ok(answer);
            }
            let certain = match challenge.take() {
                None => {
                    let asked = self.learn(&answer.response, name).await?;
                    self.account.set_challenge(name, &asked);
                    learned = true;
                    let same = |(known, _): &(Challenge, Doubt)| *known == asked;
                    match doubted.take_if(|doubted| same(doubted)) {
                        Some((_, Doubt::NoToken(error))) => return Err(error),
                        Some((_, Doubt::Refused { certain })) => {
                            challenge = Some(asked);
                            certain
                        }
                        None => {
                            (challenge, refused) = (Some(asked), None);
                            continue;
                        }
                    }
                }
                Some(known) => {
                    let renews = matches!(known, Challenge::Bearer { .. }) || self.account.login.renews();
                    if renews && refused.is_none() {
                        (challenge, refused) = (Some(known), authorization);
                        continue;
                    }
                    let certain =
                        !matches!(known, Challenge::Bearer { .. }) || error.as_deref() == Some("insufficient_scope");
                    if !learned {
                        doubted = Some((known, Doubt::Refused { certain }));
                        continue;
                    }
                    challenge = Some(known);
                    certain
                }
            };
            // The clock of the registry may be behind that of its token server.
            if !certain && !rested {
                tokio::time::sleep(SKEW).await;
                rested = true;
            } else if rested && error.as_deref() == Some("invalid_token") {
                let reason = "it refuses the token that its token server has just issued".to_owned();
                return Err(UpstreamError::Unavailable { silent: false, reason });
            } else {
                return Ok(UpstreamResponse { authorized: true, ranged: false, ..answer });
            }
        }
    }

    /// Silence of another host than the registry is not the registry's.
    async fn send_once(
        &self,
        request: reqwest::Request,
        name: &Name,
        ends_at: Instant,
    ) -> Result<Response, UpstreamError> {
        let (method, own) = (request.method().clone(), request.url().origin() == self.config.url.origin());
        let (host, started) = (guard::origin(request.url()), Instant::now());
        let sent = self.clients.send(request, &self.config);
        let sent = if own { Ok(sent.await) } else { tokio::time::timeout_at(ends_at, sent).await };
        let late = || UpstreamError::Unavailable { silent: true, reason: format!("{host} did not answer in time") };
        let sent = sent.unwrap_or_else(|_| Err(late()));
        let response = sent.map_err(|error| match error {
            UpstreamError::Unavailable { silent, reason } if !own => UpstreamError::Elsewhere { silent, reason },
            error => error,
        })?;
        tracing::debug!(
            upstream.id = %self.id(), upstream.host = %host, http.method = %method, repository.name = %name,
            http.status = response.status().as_u16(), duration_ms = started.elapsed().as_millis(), "asked upstream"
        );
        Ok(response)
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
    async fn learn(&self, unauthorized: &Response, name: &Name) -> Result<Challenge, UpstreamError> {
        let mut challenge = Challenge::parse(unauthorized.headers());
        if challenge.is_none() {
            let mut url = self.config.url.clone();
            url.set_path("/v2/");
            let ping = self.clients.send(reqwest::Request::new(Method::GET, url), &self.config);
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
        Ok(challenge.ok_or_else(missing)?.of_any_repository())
    }
}

/// When a host that upstream redirects to is given up: before the question as a whole, so that it is known whose
/// silence it was.
pub(super) fn hop_ends(limit: Duration) -> Instant {
    Instant::now() + limit * 19 / 20
}

pub(super) fn redirected_too_often() -> UpstreamError {
    UpstreamError::Invalid(format!("it redirected more than {MAX_REDIRECTS} times"))
}
