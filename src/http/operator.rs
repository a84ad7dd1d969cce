//! The operators' API: `/_stopover/…`, JSON in and out. The commands of the program are its clients.

use std::sync::Arc;

use axum::extract::{FromRequest, Path, Request, State};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use axum::{Json, Router};
use bytes::Bytes;
use http::StatusCode;
use http::header::CACHE_CONTROL;
use http::request::Parts;
use serde::Serialize;
use serde_json::json;

use super::access::Caller;
use super::audit::Record;
use super::{NO_STORE, health, images, prefetch, refuse, retention, robots, watch};
use crate::cache::Cache;
use crate::errors::{PullError, StoreError, chain};
use crate::oci::{Digest, Repository, UpstreamId};
use crate::operate::fills::{ELSEWHERE, FillReport, FillStatus};
use crate::values::text::excerpt;

pub(super) fn routes() -> Router<Arc<Cache>> {
    Router::new()
        .route("/_stopover/quota", get(quota))
        .route("/_stopover/fills", get(fills))
        .route("/_stopover/fills/retry", post(retry_fills))
        .route("/_stopover/fills/{digest}", get(fill))
        .route("/_stopover/gc", post(retention::collect_garbage))
        .route("/_stopover/health", get(health::alive))
        .route("/_stopover/health/ready", get(health::ready))
        .route("/_stopover/image", get(images::image))
        .route("/_stopover/images", get(images::images))
        .route("/_stopover/metrics", get(watch::metrics))
        .route("/_stopover/events", get(watch::events))
        .route("/_stopover/status", get(watch::status))
        .route("/_stopover/prefetch", post(prefetch::prefetch))
        .route("/_stopover/purge", post(retention::purge))
        .route("/_stopover/robots", post(robots::robots))
}

/// The caller of an operation that is for all that are let in; else the refusal. Either is recorded.
pub(super) async fn let_in(cache: &Cache, parts: &Parts) -> Result<Caller, Response> {
    let_in_if(cache, parts, |caller, _| Ok(caller)).await
}

/// The same of an operation that is only for callers that pass this check: what that finds.
pub(super) async fn let_in_if<T>(
    cache: &Cache,
    parts: &Parts,
    check: impl FnOnce(Caller, &mut Record) -> Result<T, PullError>,
) -> Result<T, Response> {
    let mut record = Record::of_operation(parts);
    let checked = Caller::of(cache, parts, &mut record).await.and_then(|caller| check(caller, &mut record));
    record.operated(checked.as_ref().err());
    checked.map_err(|error| match error {
        PullError::Access(_) | PullError::Forbidden { .. } | PullError::NotAllowed { .. } => {
            refuse(cache, &error, parts)
        }
        error => refusal(error.answer().status, &error.to_string()),
    })
}

/// How much is left of each upstream's quota, and which breakers are open, of upstreams that the caller may pull from.
/// Accounts and addresses are shown to operators.
async fn quota(State(cache): State<Arc<Cache>>, parts: Parts) -> Result<Response, Response> {
    let caller = let_in(&cache, &parts).await?;
    let sees = |upstream: &UpstreamId, private| caller.sees(&cache, upstream, private);
    let reports = cache.operate.quotas(caller.is_operator, sees).await;
    let reports: Vec<_> = reports.into_iter().map(|(_, report)| report).collect();
    Ok(answer(&json!({ "upstreams": reports })))
}

/// The fills that were requested and have not succeeded, and the images that were given up: those of repositories that the
/// caller may pull from, for operators all.
async fn fills(State(cache): State<Arc<Cache>>, parts: Parts) -> Result<Response, Response> {
    let caller = let_in(&cache, &parts).await?;
    let most = if caller.is_operator { usize::MAX } else { MOST_FILLS };
    let report = fills_seen_by(&cache, &caller, most).await;
    report.map(|report| answer(&report)).map_err(|error| not_here(&cache, &error))
}

/// The most fills that a caller sees, and the most images: each fill costs a read.
pub(super) const MOST_FILLS: usize = 200;

/// What was requested and has not succeeded, as far as a caller may see it.
pub(super) async fn fills_seen_by(cache: &Cache, caller: &Caller, most: usize) -> Result<FillReport, StoreError> {
    let sees = |repository: &Repository| caller.is_operator || caller.may_pull(cache, repository);
    let report = cache.operate.fills_seen(sees, most).await?;
    if caller.is_operator {
        return Ok(report);
    }
    let fills = report.fills.into_iter().map(FillStatus::for_callers).collect();
    Ok(FillReport { fills, ..report })
}

/// The fill of one blob.
async fn fill(State(cache): State<Arc<Cache>>, Path(digest): Path<String>, _: Operator) -> Result<Response, Response> {
    let digest = digest
        .parse::<Digest>()
        .map_err(|error| refusal(StatusCode::BAD_REQUEST, &format!("{} is no digest: {error}", excerpt(&digest))))?;
    let status = cache.operate.fill_report(&digest).await.map_err(|error| not_here(&cache, &error))?;
    let unknown = || format!("{digest} is not stored, and no fill of it is known");
    Ok(answer(&status.ok_or_else(|| refusal(StatusCode::NOT_FOUND, &unknown()))?))
}

/// Requests again what was given up.
async fn retry_fills(State(cache): State<Arc<Cache>>, _: Operator) -> Result<Response, Response> {
    let retried = cache.core.storage.fills.retry().await.map_err(|error| not_here(&cache, &error))?;
    Ok(answer(&json!({ "retried": retried })))
}

pub(super) fn answer(body: &impl Serialize) -> Response {
    ([(CACHE_CONTROL, NO_STORE)], Json(body)).into_response()
}

/// Storage did not answer, so neither can we.
pub(super) fn unavailable(error: &StoreError) -> Response {
    refusal(StatusCode::SERVICE_UNAVAILABLE, &chain(error))
}

/// The same, of what another process does where there are others.
pub(super) fn not_here(cache: &Cache, error: &StoreError) -> Response {
    if !cache.core.is_front() {
        return unavailable(error);
    }
    refusal(StatusCode::SERVICE_UNAVAILABLE, &format!("{}; {ELSEWHERE}", chain(error)))
}

/// The body of an operator's request: only operators may see or change what others pull. An argument of this type makes
/// a route refuse all other callers.
pub(super) struct Operator(pub(super) Bytes);

impl FromRequest<Arc<Cache>> for Operator {
    type Rejection = Response;

    async fn from_request(request: Request, cache: &Arc<Cache>) -> Result<Self, Response> {
        let (parts, body) = request.into_parts();
        let_in_if(cache, &parts, |caller, _| caller.check_operator(cache)).await?;
        // The body is read only once the caller is known, so that strangers make us hold no memory.
        let body = Bytes::from_request(Request::from_parts(parts, body), cache).await;
        body.map(Self).map_err(IntoResponse::into_response)
    }
}

/// An error of the operators' API: `{"error": "…"}`.
pub(super) fn refusal(status: StatusCode, message: &str) -> Response {
    (status, [(CACHE_CONTROL, NO_STORE)], Json(json!({ "error": message }))).into_response()
}
