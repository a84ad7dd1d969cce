//! HTTP: request → pull → response. The only place that builds responses.

mod access;
mod audit;
mod content;
mod count;
mod health;
mod images;
mod listing;
mod operator;
mod page;
mod prefetch;
mod retention;
mod robots;
mod stream;
mod watch;

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use axum::Router;
use axum::body::Body;
use axum::extract::{ConnectInfo, State};
use axum::middleware::map_request;
use axum::response::Response;
use futures_util::StreamExt as _;
use http::header::{
    ALLOW, CACHE_CONTROL, CONTENT_LENGTH, CONTENT_RANGE, CONTENT_TYPE, HeaderName, HeaderValue, LOCATION, ORIGIN,
    RANGE, RETRY_AFTER, USER_AGENT, WWW_AUTHENTICATE,
};
use http::{HeaderMap, StatusCode};
use tokio::time::{Instant, timeout_at};

use access::Caller;
pub use access::{Https, LocalOperator};
use audit::Record;
use content::{blob, manifest};
use count::{Counted, count};
pub use stream::FilePart;

use crate::budget::Bill;
use crate::cache::Cache;
use crate::errors::{PullError, StoreError, chain};
use crate::identity::Peer;
use crate::oci::{ErrorCode, InvalidRequest, Operation, Request, RequestedRange};
use crate::ports::Priority;
use crate::pull::{Content, Want};
use crate::values::served::Served;

const DISTRIBUTION_API_VERSION: HeaderName = HeaderName::from_static("docker-distribution-api-version");
const SERVED: HeaderName = HeaderName::from_static("x-stopover");
const PRIORITY: HeaderName = HeaderName::from_static("priority");
const FETCH_SITE: HeaderName = HeaderName::from_static("sec-fetch-site");
const REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");
/// For answers that no HTTP cache may keep: tokens, presigned URLs, reports.
const NO_STORE: HeaderValue = HeaderValue::from_static("no-store");

/// The registry API over a cache. It runs on a socket and, unchanged, as a Lambda function.
pub fn router(cache: Arc<Cache>) -> Router {
    let with_bodies = operator::routes().merge(access::routes()).route_layer(map_request(with_a_body));
    with_bodies.merge(page::routes()).fallback(answer).with_state(cache)
}

/// Whether a page in a browser asks: it may reach what its visitor reaches, and needs no answer to do harm. A client of
/// registries sends neither header; an address that a person types in is `none` (Fetch Metadata, section 2.3).
fn is_of_page(request: &http::request::Parts) -> bool {
    let is_typed = |site: &HeaderValue| site == "none" && request.method.is_safe();
    request.headers.contains_key(ORIGIN) || request.headers.get(FETCH_SITE).is_some_and(|site| !is_typed(site))
}

fn refuse_page(request: &http::request::Parts) -> Response {
    tracing::debug!(http.method = %request.method, http.path = request.uri.path(), "a page in a browser was refused");
    let body = ErrorCode::Denied.body("no page in a browser may ask this cache");
    let mut response = Response::new(Body::from(body));
    *response.status_mut() = StatusCode::FORBIDDEN;
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
    response
}

/// How long a client may take to send the body of a request.
const BODY: Duration = Duration::from_secs(30);

/// Refuses pages, and ends a body that does not arrive in time, so that no handler waits for the rest of it for ever.
async fn with_a_body(request: http::Request<Body>) -> Result<http::Request<Body>, Response> {
    let (parts, body) = request.into_parts();
    if is_of_page(&parts) {
        return Err(refuse_page(&parts));
    }
    let deadline = Instant::now() + BODY;
    Ok(http::Request::from_parts(parts, body).map(|body| {
        Body::from_stream(futures_util::stream::unfold(body.into_data_stream(), move |mut chunks| async move {
            let late = |_| Some(Err(axum::Error::new(io::Error::from(io::ErrorKind::TimedOut))));
            let chunk = timeout_at(deadline, chunks.next()).await.unwrap_or_else(late);
            chunk.map(|chunk| (chunk, chunks))
        }))
    }))
}

async fn answer(State(cache): State<Arc<Cache>>, request: http::Request<Body>) -> Response {
    let (request, _) = request.into_parts();
    answer_pull(&cache, source(&request), request).await
}

/// Answers what begins with `/v2/`, as [`router`] does. The program calls it itself: the router, which boxes each request
/// and each answer, added 5 thousand instructions to a hit.
pub async fn answer_pull(cache: &Arc<Cache>, peer: Peer, request: http::request::Parts) -> Response {
    if is_of_page(&request) {
        return refuse_page(&request);
    }
    let parsed = Request::parse(&request.method, request.uri.path(), request.uri.query());
    let is_pull = parsed.as_ref().is_ok_and(Request::is_pull);
    let is_blob = parsed.as_ref().is_ok_and(|parsed| matches!(parsed.operation, Operation::Blob(..)));
    let mut record = Record::default();
    let outcome = match parsed {
        Ok(parsed) => pull(cache, &parsed, &request, peer, &mut record).await,
        Err(error) => Err(error.into()),
    };
    let (response, error) = match outcome {
        Ok(response) => (response, None),
        Err(error) => {
            record.served = if let PullError::ManifestUnknown(served) = &error { Some(*served) } else { None };
            (refuse(cache, &error, &request), Some(error))
        }
    };
    record.pulled(&request.method, &response, error.as_ref());
    let blob_bytes = if is_blob { record.bytes(&request.method, &response) } else { 0 };
    let counted = Counted { served: record.served, is_pull, blob_bytes };
    count(cache, record.repository(), counted, &response, error.as_ref());
    tracing::debug!(
        http.method = %request.method, http.path = request.uri.path(), http.status = response.status().as_u16(),
        served = record.served.map(Served::as_str), "answered"
    );
    response
}

async fn pull(
    cache: &Arc<Cache>,
    request: &Request,
    parts: &http::request::Parts,
    peer: Peer,
    record: &mut Record,
) -> Result<Response, PullError> {
    let headers = &parts.headers;
    let caller = Caller::from(cache, parts, peer, record).await?;
    let Some(name) = request.operation.name() else {
        // `/v2/` needs no upstream: it is answered when every upstream is down.
        caller.check_ping(cache, parts)?;
        return cache.core.upstreams.pinged(request).map(|()| ping(request.head));
    };
    let repository = &cache.core.upstreams.repository(request, name)?;
    caller.check(cache, repository, record)?;
    let want = Want {
        head: request.head,
        check: has(headers, &CACHE_CONTROL, "no-cache"),
        priority: if has(headers, &PRIORITY, "u=7") { Priority::Refresh } else { Priority::Interactive },
        bill: Bill { payer: caller.payer(), spent: record.spent.clone() },
        expected: false,
    };
    match &request.operation {
        Operation::Ping => Ok(ping(request.head)),
        Operation::Manifest(_, reference) => {
            let pulled = cache.pull.manifest(repository, reference, want).await?;
            record.served = Some(pulled.served);
            Ok(manifest(repository, pulled, request.head, headers))
        }
        Operation::Blob(_, digest) => {
            let pulled = cache.pull.blob(repository, digest, want).await?;
            record.served = Some(pulled.served);
            if matches!(pulled.content, Content::Redirect(_)) {
                // The client asks for its range there, too. One that fits no blob is refused there.
                let range = headers.get(RANGE).and_then(|range| range.to_str().ok());
                record.redirected = Some(RequestedRange::parse(range).of(pulled.size).map_or(0, |range| range.length));
            }
            let mut response = blob(repository, digest, pulled, headers)?;
            // ollama asks for parts where the answer to its first GET says, and fails on one that says nothing, even if
            // that is no redirect (ollama#9737).
            let is_ollama = headers.get(USER_AGENT).is_some_and(|agent| agent.as_bytes().starts_with(b"ollama/"));
            if is_ollama && !request.head && response.status() == StatusCode::OK {
                let place = parts.uri.path_and_query().and_then(|place| HeaderValue::from_str(place.as_str()).ok());
                response.headers_mut().extend(place.map(|place| (LOCATION, place)));
            }
            Ok(response)
        }
        Operation::Tags(name, page) => {
            let pulled = cache.pull.tags(repository, page, want).await?;
            record.served = Some(pulled.served);
            Ok(listing::tags(request, name, page, repository, &pulled))
        }
        Operation::Referrers(_, subject, artifact_type) => {
            let pulled = cache.pull.referrers(repository, subject, artifact_type.as_deref(), want).await?;
            record.served = Some(pulled.served);
            Ok(listing::referrers(repository, pulled, artifact_type.is_some(), request.head))
        }
    }
}

fn ping(head: bool) -> Response {
    let mut response = Response::new(if head { Body::empty() } else { Body::from("{}") });
    let headers = response.headers_mut();
    headers.insert(DISTRIBUTION_API_VERSION, HeaderValue::from_static("registry/2.0"));
    // Tells this cache from other registries.
    headers.insert(SERVED, HeaderValue::from_static(Served::Hit.as_str()));
    headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
    headers.insert(CONTENT_LENGTH, 2.into());
    response
}

/// The peer that a request comes from: an extension of the request, set by the program that runs the router, or the
/// other end of the connection. Never a header, which any client can write.
fn source(request: &http::request::Parts) -> Peer {
    let connected = || request.extensions.get::<ConnectInfo<SocketAddr>>().map(|connected| connected.0.ip());
    request.extensions.get::<Peer>().copied().unwrap_or_else(|| connected().into())
}

/// Whether a header has a directive: `Cache-Control: no-cache` makes the cache ask upstream (RFC 9111, section
/// 5.2.1.4), `Priority: u=7` says that no client waits (RFC 9218, section 4.1).
fn has(headers: &HeaderMap, name: &HeaderName, directive: &str) -> bool {
    let values = headers.get_all(name).into_iter().filter_map(|value| value.to_str().ok());
    values.flat_map(|value| value.split(',')).any(|part| part.trim().eq_ignore_ascii_case(directive))
}

/// What is added where containerd put `/v2/` before a path that has it already.
const FORGOTTEN_PATH: &str = "; the path has /v2/ twice: in the hosts.toml of containerd a server with /v2/ in its path needs \
                              override_path = true";

/// An error as the client sees it, logged here and nowhere else.
fn refuse(cache: &Cache, error: &PullError, request: &http::request::Parts) -> Response {
    let told = error.answer();
    let request_id = request_id();
    let (method, path) = (&request.method, request.uri.path());
    if matches!(error, PullError::Store(StoreError::Refused(_) | StoreError::Corrupt(_))) {
        tracing::error!(http.method = %method, http.path = path, request.id = request_id, error = %chain(error), "pull failed");
    } else if told.status.is_server_error() || told.status == StatusCode::TOO_MANY_REQUESTS {
        tracing::warn!(http.method = %method, http.path = path, request.id = request_id, error = %chain(error), "pull failed");
    } else {
        tracing::debug!(http.method = %method, http.path = path, request.id = request_id, error = %chain(error), "pull refused");
    }
    let forgotten = told.status.is_client_error() && Request::has_path_twice(path);
    let advice = if forgotten { FORGOTTEN_PATH } else { "" };
    let body = told.code.body(&format!("{}{advice}", told.message));
    let length = body.len() as u64;
    let mut response =
        Response::new(if request.method == http::Method::HEAD { Body::empty() } else { Body::from(body) });
    *response.status_mut() = told.status;
    let headers = response.headers_mut();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
    headers.insert(CONTENT_LENGTH, length.into());
    headers.extend(HeaderValue::from_str(&request_id).ok().map(|value| (REQUEST_ID, value)));
    if let Some(after) = told.retry_after {
        headers.insert(RETRY_AFTER, after.as_secs().max(1).into());
    }
    match error {
        PullError::Access(error) if told.status == StatusCode::UNAUTHORIZED => {
            headers.extend(access::challenge(cache, error, request).map(|value| (WWW_AUTHENTICATE, value)));
        }
        PullError::ManifestUnknown(served) => {
            headers.insert(SERVED, HeaderValue::from_static(served.as_str()));
        }
        PullError::Request(InvalidRequest::Method) => {
            headers.insert(ALLOW, HeaderValue::from_static("GET, HEAD"));
        }
        PullError::Range { size } => {
            headers.extend(HeaderValue::from_str(&format!("bytes */{size}")).ok().map(|value| (CONTENT_RANGE, value)));
        }
        _ => {}
    }
    response
}

/// An id that finds a client's error in the log: unique enough among processes, counted within one.
fn request_id() -> String {
    static NEXT: AtomicU64 = AtomicU64::new(0);
    static PROCESS: std::sync::OnceLock<u32> = std::sync::OnceLock::new();
    let process = PROCESS.get_or_init(|| fastrand::u32(..));
    format!("{process:08x}-{}", NEXT.fetch_add(1, Ordering::Relaxed))
}
