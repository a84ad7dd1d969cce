//! What operators ask: `/_stopover/…`, JSON in and out. The commands of the program are its clients.

use std::net::{IpAddr, Ipv4Addr};
use std::sync::Arc;

use axum::extract::{FromRequestParts, Path, State};
use axum::response::{IntoResponse as _, Response};
use axum::routing::{get, post};
use axum::{Json, Router};
use http::StatusCode;
use http::header::{CACHE_CONTROL, HOST, HeaderValue, ORIGIN};
use http::request::Parts;
use http::uri::Authority;
use serde::Serialize;
use serde_json::json;

use super::access::Guest;
use super::audit::Record;
use super::{NO_STORE, caller, prefetch, refuse, retention, robots};
use crate::Cache;
use crate::error::excerpt;
use crate::oci::Digest;
use crate::ports::StoreError;
use crate::report::QuotaReport;

pub(super) fn routes() -> Router<Arc<Cache>> {
    Router::new()
        .route("/_stopover/quota", get(quota))
        .route("/_stopover/fills", get(fills))
        .route("/_stopover/fills/retry", post(retry_fills))
        .route("/_stopover/fills/{digest}", get(fill))
        .merge(prefetch::routes())
        .merge(retention::routes())
        .merge(robots::routes())
}

/// How much is left of each upstream's quota, and whether it is being asked at all: for the operator, and for whoever is
/// let in.
async fn quota(operator: Result<Operator, Response>, State(cache): State<Arc<Cache>>, parts: Parts) -> Response {
    if operator.is_err()
        && let Err(error) = Guest::of(&cache, &parts, &mut Record::default()).await
    {
        return refuse(&cache, &error, &parts);
    }
    let now = cache.clock.now();
    let gauges = cache.upstreams.gauges().await;
    let upstreams: Vec<QuotaReport> =
        gauges.iter().map(|(upstream, gauge)| QuotaReport::new(upstream, gauge, now)).collect();
    answer(&json!({ "upstreams": upstreams }))
}

/// The fills that were requested and have not ended well.
async fn fills(_: Operator, State(cache): State<Arc<Cache>>) -> Response {
    cache.fill_reports().await.map_or_else(|error| unavailable(&error), |fills| answer(&json!({ "fills": fills })))
}

/// What has become of one blob.
async fn fill(_: Operator, State(cache): State<Arc<Cache>>, Path(digest): Path<String>) -> Response {
    let digest: Digest = match digest.parse() {
        Ok(digest) => digest,
        Err(error) => return refusal(StatusCode::BAD_REQUEST, &format!("{} is no digest: {error}", excerpt(&digest))),
    };
    match cache.fill_report(&digest).await {
        Ok(Some(status)) => answer(&status),
        Ok(None) => refusal(StatusCode::NOT_FOUND, &format!("{digest} is not stored, and no fill of it is known")),
        Err(error) => unavailable(&error),
    }
}

/// Requests again what was given up.
async fn retry_fills(_: Operator, State(cache): State<Arc<Cache>>) -> Response {
    cache.fills.retry().await.map_or_else(|error| unavailable(&error), |retried| answer(&json!({ "retried": retried })))
}

pub(super) fn answer(body: &impl Serialize) -> Response {
    ([(CACHE_CONTROL, NO_STORE)], Json(body)).into_response()
}

/// Storage did not answer: nothing can be said.
pub(super) fn unavailable(error: &StoreError) -> Response {
    refusal(StatusCode::SERVICE_UNAVAILABLE, &error.to_string())
}

/// Somebody on the machine itself: the only one who may see or change what others pull. An argument of this type makes a
/// route refuse everybody else; behind API Gateway that is everybody. Pages in a browser there are refused too.
pub(super) struct Operator;

impl FromRequestParts<Arc<Cache>> for Operator {
    type Rejection = Response;

    async fn from_request_parts(parts: &mut Parts, cache: &Arc<Cache>) -> Result<Self, Response> {
        let refused = |why| refusal(StatusCode::FORBIDDEN, why);
        if [ORIGIN.as_str(), "sec-fetch-site"].iter().any(|name| parts.headers.contains_key(*name)) {
            return Err(refused("no page in a browser may ask this"));
        }
        if ["forwarded", "x-forwarded-for", "via"].iter().any(|name| parts.headers.contains_key(*name)) {
            return Err(refused("a proxy has passed this on: ask the cache itself"));
        }
        // Where it listens on one address of the machine, that is where its own commands come from.
        let is_here = |address: IpAddr| address.is_loopback() || address == cache.config.listen.ip();
        if !caller(parts).is_some_and(|caller| is_here(caller.to_canonical())) {
            return Err(refused("only the machine that runs the cache may ask this"));
        }
        // A page whose name was made to lead here has that name as its host (DNS rebinding).
        match parts.headers.get(HOST) {
            Some(host) if !host_address(host).is_some_and(is_here) => {
                Err(refused("ask the cache by its address on this machine, not by a name"))
            }
            _ => Ok(Self),
        }
    }
}

/// The address that `Host` names (RFC 9110, section 7.2).
fn host_address(host: &HeaderValue) -> Option<IpAddr> {
    let authority: Authority = host.to_str().ok()?.parse().ok()?;
    match authority.host() {
        "localhost" => Some(Ipv4Addr::LOCALHOST.into()),
        host => host.trim_matches(['[', ']']).parse().ok(),
    }
}

/// Why an operator gets no answer: `{"error": "…"}`.
pub(super) fn refusal(status: StatusCode, message: &str) -> Response {
    (status, [(CACHE_CONTROL, NO_STORE)], Json(json!({ "error": message }))).into_response()
}
