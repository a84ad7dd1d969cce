//! Requests to one upstream: manifests and blobs, with its tokens, following its redirects by hand.

use std::pin::Pin;
use std::sync::{Arc, RwLock};
use std::time::{Duration, SystemTime};

use bytes::{Bytes, BytesMut};
use futures_util::{Stream, StreamExt as _, TryStreamExt as _};
use http::header::{
    ACCEPT, ACCEPT_ENCODING, AUTHORIZATION, CONTENT_LENGTH, CONTENT_TYPE, HeaderMap, LOCATION, RETRY_AFTER,
};
use http::{Method, StatusCode};
use reqwest::Response;
use url::Url;

use super::UpstreamError;
use super::guard::{self, Clients};
use super::token::{Challenge, Tokens};
use crate::config::{Cold, UpstreamConfig};
use crate::oci::{Algorithm, Digest, MAX_MANIFEST_BYTES, Manifest, MediaType, Name, Reference, UpstreamId};
use crate::ports::Observed;
use crate::time::Clock;

const HEAD_TIMEOUT: Duration = Duration::from_secs(5);
const MANIFEST_TIMEOUT: Duration = Duration::from_secs(10);
const BLOB_HEADER_TIMEOUT: Duration = Duration::from_secs(20);
const MAX_REDIRECTS: usize = 5;

/// The bytes of a blob as upstream sends them, not yet verified.
pub type BlobBody = Pin<Box<dyn Stream<Item = Result<Bytes, UpstreamError>> + Send>>;

/// Where a client could fetch a blob itself.
#[derive(Debug)]
pub enum BlobSource {
    /// At this URL, without credentials of ours.
    Public(Url),
    /// Only with credentials of ours.
    Private,
}

/// One upstream registry.
pub struct Upstream {
    id: UpstreamId,
    config: UpstreamConfig,
    clients: Arc<Clients>,
    tokens: Tokens,
    /// Learned from the first 401 and kept: the challenge of a refused token may lead elsewhere (nvcr.io does that).
    challenge: RwLock<Option<Challenge>>,
}

/// What a request is answered with, and whether it carried our credentials or a token.
struct Answer {
    response: Response,
    url: Url,
    authorized: bool,
}

impl Upstream {
    pub(super) fn new(id: UpstreamId, config: UpstreamConfig, clients: Arc<Clients>, clock: Clock) -> Self {
        Self { id, config, clients, tokens: Tokens::new(clock), challenge: RwLock::default() }
    }

    /// Its id.
    pub fn id(&self) -> &UpstreamId {
        &self.id
    }

    /// Its settings.
    pub fn config(&self) -> &UpstreamConfig {
        &self.config
    }

    /// What a client gets for a blob of it that is not stored yet.
    pub fn cold(&self) -> Cold {
        self.config.cold
    }

    pub(super) fn has_library(&self) -> bool {
        self.config.library
    }

    /// Whether `text` is another name of it: an alias, or the host of its API.
    pub(super) fn is_called(&self, text: &str) -> bool {
        self.config.aliases.iter().any(|alias| alias == text) || guard::is_host(&self.config.url, text)
    }

    /// Asks what a tag is, which costs no quota. `None`: this upstream does not tell without sending the manifest.
    pub async fn head_manifest(&self, name: &Name, reference: &Reference) -> Result<Option<Observed>, UpstreamError> {
        let url = self.endpoint(name, "manifests", reference);
        let answer = timed(HEAD_TIMEOUT, self.send(Method::HEAD, url, name)).await?;
        if answer.response.status() == StatusCode::METHOD_NOT_ALLOWED {
            return Ok(None);
        }
        let headers = succeeded(&answer, self.config.credentials.is_some())?.headers();
        let text = |name: &str| headers.get(name).and_then(|value| value.to_str().ok());
        let digest = text("docker-content-digest").and_then(|digest| digest.parse().ok());
        let media_type = text(CONTENT_TYPE.as_str()).and_then(|media_type| media_type.parse().ok());
        let size = text(CONTENT_LENGTH.as_str()).and_then(|size| size.parse().ok()).filter(|&size: &u64| size > 0);
        Ok(match (digest, media_type, size) {
            (Some(digest), Some(media_type), Some(size)) => Some(Observed { digest, media_type, size }),
            _ => None,
        })
    }

    /// Fetches a manifest and verifies its digest: the one asked for, or the one the answer names.
    pub async fn get_manifest(&self, name: &Name, reference: &Reference) -> Result<Manifest, UpstreamError> {
        let url = self.endpoint(name, "manifests", reference);
        timed(MANIFEST_TIMEOUT, async {
            let answer = self.send(Method::GET, url, name).await?;
            let headers = succeeded(&answer, self.config.credentials.is_some())?.headers();
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
                // Some registries send everything as JSON or octets; the body then says what it is.
                Err(error) => own_media_type(&content_type, &bytes).ok_or_else(|| invalid(error))?,
            };
            Manifest::new(digest, media_type, bytes).map_err(invalid)
        })
        .await
    }

    /// Asks where a client could fetch a blob itself, without fetching it.
    pub async fn blob_source(&self, name: &Name, digest: &Digest) -> Result<BlobSource, UpstreamError> {
        let url = self.endpoint(name, "blobs", digest);
        let answer = timed(BLOB_HEADER_TIMEOUT, self.request(Method::GET, url, name)).await?;
        if let Some(target) = redirect_target(&answer)? {
            // Only the API of the upstream itself asks for its token again; pkg.dev serves bytes beside it.
            let api = target.origin() == self.config.url.origin() && target.path().starts_with("/v2/");
            return Ok(if api && answer.authorized { BlobSource::Private } else { BlobSource::Public(target) });
        }
        succeeded(&answer, self.config.credentials.is_some())?;
        Ok(if answer.authorized { BlobSource::Private } else { BlobSource::Public(answer.url) })
    }

    /// Opens a blob: its length in bytes, where upstream tells it, and its bytes.
    pub async fn open_blob(&self, name: &Name, digest: &Digest) -> Result<(Option<u64>, BlobBody), UpstreamError> {
        let url = self.endpoint(name, "blobs", digest);
        let answer = timed(BLOB_HEADER_TIMEOUT, self.send(Method::GET, url, name)).await?;
        let response = succeeded(&answer, self.config.credentials.is_some())?;
        let size = response.content_length();
        let body = answer.response.bytes_stream().map_err(|error| unavailable(&error));
        Ok((size, Box::pin(body)))
    }

    fn endpoint(&self, name: &Name, kind: &str, reference: impl std::fmt::Display) -> Url {
        let mut url = self.config.url.clone();
        // Names, tags and digests have no character that a path would need to escape.
        url.set_path(&format!("/v2/{name}/{kind}/{reference}"));
        url
    }

    /// Sends a request and follows redirects, at most five, each to a host that [`Clients::client_for`] allows.
    async fn send(&self, method: Method, url: Url, name: &Name) -> Result<Answer, UpstreamError> {
        let mut answer = self.request(method.clone(), url, name).await?;
        for _ in 0..MAX_REDIRECTS {
            match redirect_target(&answer)? {
                None => return Ok(answer),
                Some(target) => answer = self.request(method.clone(), target, name).await?,
            }
        }
        Err(UpstreamError::Invalid(format!("it redirected more than {MAX_REDIRECTS} times")))
    }

    /// Sends one request. Credentials and tokens go to the upstream's own origin only. After a 401 a token is fetched,
    /// once.
    async fn request(&self, method: Method, url: Url, name: &Name) -> Result<Answer, UpstreamError> {
        let own = url.origin() == self.config.url.origin();
        let mut refused = None;
        loop {
            let challenge = if own { self.known_challenge() } else { None };
            let authorization = match &challenge {
                None => None,
                Some(challenge) => {
                    let refused = refused.as_ref();
                    let authorization =
                        self.tokens.authorization(challenge, name, refused, &self.config, &self.clients).await;
                    if matches!(authorization, Err(UpstreamError::Denied(_) | UpstreamError::Invalid(_))) {
                        // One odd challenge must not decide over every later request.
                        self.set_challenge(None);
                    }
                    Some(authorization?)
                }
            };
            let mut request = self
                .clients
                .client_for(&url, &self.config)?
                .request(method.clone(), url.clone())
                .header(ACCEPT, MediaType::ACCEPT)
                .header(ACCEPT_ENCODING, "identity");
            if let Some(authorization) = &authorization {
                request = request.header(AUTHORIZATION, authorization.clone());
            }
            let started = std::time::Instant::now();
            let response = request.send().await.map_err(|error| unavailable(&error))?;
            tracing::debug!(
                upstream.id = %self.id, upstream.host = %guard::origin(&url), http.method = %method, repository.name = %name,
                http.status = response.status().as_u16(), duration_ms = started.elapsed().as_millis(), "asked upstream"
            );
            let unauthorized = own && response.status() == StatusCode::UNAUTHORIZED;
            if !unauthorized {
                return Ok(Answer { response, url, authorized: authorization.is_some() });
            }
            match (challenge, &refused) {
                (None, _) => self.learn(&response, name).await?,
                (Some(Challenge::Bearer { .. }), None) => refused = authorization,
                // Refused twice: what was learned may have been wrong, so the next request learns it anew.
                (Some(_), _) => {
                    self.set_challenge(None);
                    return Ok(Answer { response, url, authorized: true });
                }
            }
        }
    }

    fn known_challenge(&self) -> Option<Challenge> {
        self.challenge.read().unwrap_or_else(std::sync::PoisonError::into_inner).clone()
    }

    fn set_challenge(&self, challenge: Option<Challenge>) {
        *self.challenge.write().unwrap_or_else(std::sync::PoisonError::into_inner) = challenge;
    }

    /// Learns the challenge from a 401, or from `/v2/` where the 401 has none (pkg.dev).
    async fn learn(&self, unauthorized: &Response, name: &Name) -> Result<(), UpstreamError> {
        let mut challenge = Challenge::parse(unauthorized.headers());
        if challenge.is_none() {
            let mut url = self.config.url.clone();
            url.set_path("/v2/");
            let ping = self.clients.client_for(&url, &self.config)?.get(url).send();
            challenge = Challenge::parse(timed(HEAD_TIMEOUT, ping).await?.headers());
        }
        tracing::debug!(upstream.id = %self.id, repository.name = %name, "learned how upstream wants to be asked");
        let missing = || UpstreamError::Denied("it answered 401 and did not say how to log in".into());
        self.set_challenge(Some(challenge.ok_or_else(missing)?));
        Ok(())
    }
}

/// The response of an answer with a status of success, or what its status means.
fn succeeded(answer: &Answer, credentials: bool) -> Result<&Response, UpstreamError> {
    let response = &answer.response;
    Err(match response.status() {
        StatusCode::OK => return Ok(response),
        status @ (StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN) if credentials => {
            UpstreamError::Denied(format!("it answered {status} to our credentials"))
        }
        // Docker Hub answers 401 for repositories that do not exist.
        StatusCode::NOT_FOUND | StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN => UpstreamError::Missing,
        StatusCode::TOO_MANY_REQUESTS => UpstreamError::Throttled { retry_after: retry_after(response.headers()) },
        status if status.is_server_error() || status == StatusCode::REQUEST_TIMEOUT => {
            UpstreamError::Unavailable(format!("{} answered {status}", guard::origin(&answer.url)))
        }
        status => UpstreamError::Invalid(format!("{} answered {status}", guard::origin(&answer.url))),
    })
}

/// Where an answer redirects to. `Location` may be relative (pkg.dev).
fn redirect_target(answer: &Answer) -> Result<Option<Url>, UpstreamError> {
    if !matches!(answer.response.status().as_u16(), 301 | 302 | 303 | 307 | 308) {
        return Ok(None);
    }
    let location = answer.response.headers().get(LOCATION).and_then(|location| location.to_str().ok());
    match location.map(|location| answer.url.join(location)) {
        Some(Ok(target)) if matches!(target.scheme(), "http" | "https") => Ok(Some(target)),
        _ => Err(UpstreamError::Invalid("it redirected without a usable Location".into())),
    }
}

/// The type a manifest gives itself, where the header has only a general one.
fn own_media_type(content_type: &str, bytes: &[u8]) -> Option<MediaType> {
    #[derive(serde::Deserialize)]
    #[serde(rename_all = "camelCase")]
    struct Own {
        media_type: MediaType,
    }
    let general = ["", "application/json", "application/octet-stream", "text/plain"];
    let essence = content_type.split(';').next().unwrap_or_default().trim();
    general.contains(&essence).then(|| serde_json::from_slice::<Own>(bytes).ok())?.map(|own| own.media_type)
}

/// `Retry-After` in seconds or as a date (RFC 9110, section 10.2.3), clamped to a day.
pub(super) fn retry_after(headers: &HeaderMap) -> Option<Duration> {
    let text = headers.get(RETRY_AFTER)?.to_str().ok()?.trim();
    let after = match text.parse::<u64>() {
        Ok(seconds) => Duration::from_secs(seconds),
        Err(_) => httpdate::parse_http_date(text).ok()?.duration_since(SystemTime::now()).unwrap_or_default(),
    };
    Some(after.min(Duration::from_hours(24)))
}

/// Reads a body of at most `limit` bytes.
pub(super) async fn read_limited(response: Response, limit: usize) -> Result<Bytes, UpstreamError> {
    let too_large = || UpstreamError::Invalid(format!("its answer is larger than {limit} bytes"));
    if response.content_length().is_some_and(|length| length > limit as u64) {
        return Err(too_large());
    }
    let mut bytes = BytesMut::new();
    let mut body = response.bytes_stream();
    while let Some(chunk) = body.next().await {
        bytes.extend_from_slice(&chunk.map_err(|error| unavailable(&error))?);
        if bytes.len() > limit {
            return Err(too_large());
        }
    }
    Ok(bytes.freeze())
}

pub(super) async fn timed<T, E: Into<UpstreamError>>(
    limit: Duration,
    future: impl Future<Output = Result<T, E>>,
) -> Result<T, UpstreamError> {
    match tokio::time::timeout(limit, future).await {
        Ok(outcome) => outcome.map_err(Into::into),
        Err(_) => Err(UpstreamError::Unavailable(format!("no answer within {} s", limit.as_secs()))),
    }
}

impl From<reqwest::Error> for UpstreamError {
    fn from(error: reqwest::Error) -> Self {
        unavailable(&error)
    }
}

/// A failed exchange in words, without the URL: its query may hold a signature.
fn unavailable(error: &reqwest::Error) -> UpstreamError {
    let mut reasons = Vec::new();
    let mut source = std::error::Error::source(error);
    while let Some(reason) = source {
        reasons.push(reason.to_string());
        source = reason.source();
    }
    let kind = if error.is_timeout() {
        "timed out"
    } else if error.is_connect() {
        "cannot connect"
    } else {
        "the exchange broke off"
    };
    match reasons.last() {
        Some(reason) => UpstreamError::Unavailable(format!("{kind}: {reason}")),
        None => UpstreamError::Unavailable(kind.into()),
    }
}
