//! Who a request is from, how callers that may not pull are refused, and `/token` (distribution, "Token
//! Authentication").

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::{Duration, UNIX_EPOCH};

use axum::extract::{DefaultBodyLimit, State};
use axum::response::Response;
use axum::routing::get;
use axum::{Json, Router, response::IntoResponse as _};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use http::StatusCode;
use http::header::{AUTHORIZATION, CACHE_CONTROL, HOST, HeaderValue};
use http::request::Parts;
use serde_json::json;

use super::audit::Record;
use super::operator::answer;
use super::{NO_STORE, refuse, source};
use crate::access::Asking;
use crate::cache::Cache;
use crate::errors::{AccessError, PullError};
use crate::identity::policy::{Decision, Extent};
use crate::identity::{Payer, Peer, Principal};
use crate::oci::{Operation, Repository, Request, UpstreamId};

/// The most bytes of a form with a password.
const MAX_FORM: usize = 32 * 1024;

/// Why a caller may not pull what no rule covers, and what the operator writes to allow it.
const NO_RULE: &str = "it is private (asked for with credentials, or `public = false`), and no rule of the policy allows it; in the \
                       stopover.toml of this cache, `[access]` and `[[policy]]` say who may, `public = true` says everybody";

/// Marks a request that reached the router over HTTPS: an extension of the request, set by the program that runs the
/// router.
#[derive(Clone, Copy, Debug)]
pub struct Https;

/// Marks a request of an operator of this machine: an extension of the request, set by the program that runs the router
/// for what comes over the socket in its data directory. Nothing that a client sends becomes an extension.
#[derive(Clone, Copy, Debug)]
pub struct LocalOperator;

/// The principal that was let in, and its peer address.
pub(super) struct Caller {
    pub(super) principal: Principal,
    pub(super) address: Option<IpAddr>,
    pub(super) is_operator: bool,
}

impl Caller {
    /// Who is charged for what the caller asks for.
    pub(super) fn payer(&self) -> Option<Payer> {
        Payer::of(&self.principal, self.address)
    }

    /// Identifies the caller of a request to the router.
    pub(super) async fn of(cache: &Cache, parts: &Parts, record: &mut Record) -> Result<Self, PullError> {
        Self::from(cache, parts, source(parts), record).await
    }

    /// Identifies the caller of a request that this peer has sent. An operator of this machine is let in as the anonymous
    /// principal.
    pub(super) async fn from(cache: &Cache, parts: &Parts, peer: Peer, record: &mut Record) -> Result<Self, PullError> {
        let address = peer.address;
        record.address = address;
        if parts.extensions.get::<LocalOperator>().is_some() {
            record.by_operator = true;
            return Ok(Self { principal: Principal::Anonymous, address, is_operator: true });
        }
        let (asking, config) = (asking(parts, peer)?, &cache.access.config);
        let identified = cache.access.identify(asking).await;
        let principal = identified.inspect_err(|_| record.login = asking.login())?.principal;
        if !hosts(parts).all(|host| config.is_called(host)) {
            return Err(AccessError::Misdirected.into());
        }
        record.principal = Some(principal.clone());
        record.by_operator = config.is_operator(&principal);
        Ok(Self { principal, address, is_operator: record.by_operator })
    }

    /// Refuses a caller that is no operator. An anonymous caller is asked to log in first, if logins are configured.
    pub(super) fn check_operator(&self, cache: &Cache) -> Result<(), PullError> {
        match &self.principal {
            _ if self.is_operator => Ok(()),
            Principal::Anonymous if cache.access.has_logins() => Err(AccessError::NoCredentials.into()),
            principal => Err(AccessError::NotOperator(principal.to_string()).into()),
        }
    }

    /// Whether the policy lets the caller pull this.
    pub(super) fn may_pull(&self, cache: &Cache, repository: &Repository) -> bool {
        let Ok(upstream) = cache.core.upstreams.get(repository) else { return false };
        let (policy, private) = (&cache.access.config.policy, upstream.config().is_private());
        policy.decide(&self.principal, self.address, repository, private).allowed()
    }

    /// Whether the caller may see an upstream, or a part of it that is private: because it may pull something of it.
    pub(super) fn sees(&self, cache: &Cache, upstream: &UpstreamId, private: bool) -> bool {
        self.is_operator || self.extent(cache, upstream, private) != Extent::Nothing
    }

    /// Whether the caller may see what was counted at an upstream as a whole: because it may pull all of it.
    pub(super) fn sees_counts(&self, cache: &Cache, upstream: &UpstreamId) -> bool {
        let private = !cache.core.config.is_wholly_public(upstream);
        self.is_operator || self.extent(cache, upstream, private) == Extent::All
    }

    fn extent(&self, cache: &Cache, upstream: &UpstreamId, private: bool) -> Extent {
        cache.access.config.policy.extent(&self.principal, self.address, upstream, private)
    }

    /// Whether the caller may see an upstream.
    pub(super) fn sees_upstream(&self, cache: &Cache, upstream: &UpstreamId) -> bool {
        self.sees(cache, upstream, !cache.core.config.is_public(upstream))
    }

    /// Refuses what the caller may not pull. An anonymous caller is asked to log in first, if logins are configured.
    pub(super) fn check(&self, cache: &Cache, repository: &Repository, record: &mut Record) -> Result<(), PullError> {
        let private = cache.core.upstreams.get(repository)?.config().is_private();
        let decision = cache.access.config.policy.decide(&self.principal, self.address, repository, private);
        record.decided(repository, private, &decision);
        if decision.allowed() {
            return Ok(());
        }
        if self.principal == Principal::Anonymous && cache.access.has_logins() {
            return Err(AccessError::NoCredentials.into());
        }
        let reason = match decision {
            Decision::Private => NO_RULE,
            Decision::Rule(_) | Decision::Public => "the policy of this cache says so",
        };
        Err(PullError::Forbidden { principal: self.principal.to_string(), repository: repository.clone(), reason })
    }

    /// Whether the caller may ask `/v2/`. If logins are configured, a request without credentials is asked to log in:
    /// clients learn only here that they can. An anonymous token is enough.
    pub(super) fn check_ping(&self, cache: &Cache, parts: &Parts) -> Result<(), PullError> {
        let nameless = self.principal == Principal::Anonymous && !parts.headers.contains_key(AUTHORIZATION);
        if nameless && cache.access.has_logins() { Err(AccessError::NoCredentials.into()) } else { Ok(()) }
    }
}

/// The hosts by which the client addresses the cache.
fn hosts(parts: &Parts) -> impl Iterator<Item = &[u8]> {
    let sent = parts.headers.get_all(HOST).into_iter().map(HeaderValue::as_bytes);
    sent.chain(parts.uri.authority().map(|authority| authority.as_str().as_bytes()))
}

fn asking(parts: &Parts, source: Peer) -> Result<Asking<'_>, AccessError> {
    // Two of them could name two principals.
    let mut sent = parts.headers.get_all(AUTHORIZATION).iter();
    let authorization = match (sent.next().map(HeaderValue::to_str), sent.next()) {
        (None, _) => None,
        (Some(Ok(text)), None) => Some(text),
        _ => return Err(AccessError::WrongCredentials("Authorization is there twice, or no text")),
    };
    Ok(Asking { authorization, source })
}

/// The one challenge of this registry: clients disagree about what to do with several. Its realm is on the origin by
/// which the client addresses the cache, unless one is configured.
pub(super) fn challenge(cache: &Cache, error: &AccessError, parts: &Parts) -> Option<HeaderValue> {
    if !cache.access.has_logins() {
        return None;
    }
    let asked = Request::parse(&parts.method, parts.uri.path(), parts.uri.query()).map(|request| request.operation);
    let name = asked.ok().as_ref().and_then(Operation::name).cloned();
    let scope = name.map_or_else(String::new, |name| format!(",scope=\"repository:{name}:pull\""));
    let invalid = if matches!(error, AccessError::InvalidToken) { ",error=\"invalid_token\"" } else { "" };
    let (origin, service) = (origin(cache, parts)?, &cache.access.config.service);
    let text = format!("Bearer realm=\"{origin}/token\",service=\"{service}\"{scope}{invalid}");
    HeaderValue::from_str(&text).ok()
}

/// Scheme, host and port, as clients know them.
pub(super) fn origin(cache: &Cache, parts: &Parts) -> Option<String> {
    if let Some(url) = &cache.access.config.url {
        return Some(url.origin().ascii_serialization());
    }
    let host = parts.headers.get(HOST).and_then(|host| host.to_str().ok());
    let host = host.or_else(|| parts.uri.authority().map(http::uri::Authority::as_str))?;
    let plain = |letter: char| letter.is_ascii_alphanumeric() || ".-_:[]".contains(letter);
    let scheme = if parts.extensions.get::<Https>().is_some() { "https" } else { "http" };
    host.chars().all(plain).then(|| format!("{scheme}://{host}"))
}

pub(super) fn routes() -> Router<Arc<Cache>> {
    Router::new().route("/token", get(by_header).post(by_form)).layer(DefaultBodyLimit::max(MAX_FORM))
}

type Form = HashMap<String, String>;

fn form(encoded: &[u8]) -> Form {
    url::form_urlencoded::parse(encoded).into_owned().collect()
}

/// GET with Basic, or without credentials for an anonymous token, if anonymous access is on.
async fn by_header(State(cache): State<Arc<Cache>>, parts: Parts) -> Response {
    let keeps =
        form(parts.uri.query().unwrap_or_default().as_bytes()).get("offline_token").is_some_and(|is| is == "true");
    log_in(&cache, &parts, asking(&parts, source(&parts)), keeps).await
}

/// POST with `grant_type=password`, or with a refresh token (token specification, "`OAuth2` Token Authentication").
async fn by_form(State(cache): State<Arc<Cache>>, parts: Parts, body: Bytes) -> Response {
    let form = form(&body);
    let field = |name: &str| form.get(name).map(String::as_str);
    let pair = match field("grant_type") {
        Some("password") => {
            field("username").zip(field("password")).map(|(user, secret)| STANDARD.encode(format!("{user}:{secret}")))
        }
        Some("refresh_token") => field("refresh_token").map(str::to_owned),
        // Clients then fall back to GET.
        _ => return refused(StatusCode::BAD_REQUEST, "unsupported_grant_type"),
    };
    let Some(pair) = pair else { return refused(StatusCode::BAD_REQUEST, "invalid_request") };
    let authorization = format!("Basic {pair}");
    let asking = Asking { authorization: Some(&authorization), source: source(&parts) };
    log_in(&cache, &parts, Ok(asking), field("access_type") == Some("offline")).await
}

/// Issues a token to a caller that proves its identity. `keeps`: the client asks for a refresh token, too.
async fn log_in(cache: &Cache, parts: &Parts, asking: Result<Asking<'_>, AccessError>, keeps: bool) -> Response {
    let issued = async {
        let holder = cache.access.identify_for_token(asking.clone()?).await?;
        let issued = cache.access.issue(&holder).await?;
        Ok::<_, AccessError>((holder, issued))
    };
    let (issued, asking) = (issued.await, asking.unwrap_or_default());
    let mut record = Record::of(None, source(parts).address);
    match issued {
        Ok((holder, issued)) => {
            let response = token(cache, issued, asking.refresh_token().filter(|_| keeps));
            record.principal = Some(holder.principal);
            record.logged_in(None);
            response
        }
        Err(error) => {
            let error = error.into();
            record.login = asking.login();
            record.logged_in(Some(&error));
            refuse(cache, &error, parts)
        }
    }
}

/// An error response of the token endpoint (RFC 6749, section 5.2).
fn refused(status: StatusCode, error: &str) -> Response {
    (status, [(CACHE_CONTROL, NO_STORE)], Json(json!({ "error": error }))).into_response()
}

fn token(cache: &Cache, issued: Option<String>, refresh_token: Option<&str>) -> Response {
    let Some(token) = issued else {
        return refused(StatusCode::NOT_FOUND, "unsupported_grant_type");
    };
    let issued_at = UNIX_EPOCH + Duration::from_secs(cache.core.clock.now().0);
    let mut body = json!({
        "token": token, "access_token": token, "issued_at": humantime::format_rfc3339_seconds(issued_at).to_string(),
        "expires_in": cache.access.config.token_life.as_secs(),
    });
    if let (Some(token), Some(body)) = (refresh_token, body.as_object_mut()) {
        body.insert("refresh_token".into(), token.into());
    }
    answer(&body)
}
