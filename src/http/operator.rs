//! What operators ask: `/_stopover/…`, JSON in and out. The commands of the program are its clients.

use std::sync::Arc;

use axum::extract::{FromRequestParts, Path, State};
use axum::response::{IntoResponse as _, Response};
use axum::routing::{get, post};
use axum::{Json, Router};
use http::StatusCode;
use http::header::CACHE_CONTROL;
use http::request::Parts;
use serde::Serialize;
use serde_json::json;

use super::access::Guest;
use super::audit::Record;
use super::{NO_STORE, prefetch, refuse, retention, robots};
use crate::Cache;
use crate::access::{AccessError, OPERATOR_HEADER};
use crate::error::{PullError, excerpt};
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

/// How much is left of each upstream's quota, and whether it is being asked at all. Whoever is let in is shown what is
/// public; accounts, addresses and private upstreams are shown to operators.
async fn quota(State(cache): State<Arc<Cache>>, parts: Parts) -> Response {
    let mut record = Record::of_operation(&parts);
    record.by_operator = is_operator(&cache, &parts);
    if !record.by_operator
        && let Err(error) = Guest::of(&cache, &parts, &mut record).await
    {
        record.operated(Some(&error));
        return refuse(&cache, &error, &parts);
    }
    record.operated(None);
    let now = cache.clock.now();
    let gauges = cache.upstreams.gauges().await;
    let reports = gauges.iter().filter_map(|(upstream, gauge)| match record.by_operator {
        true => Some(QuotaReport::new(upstream, gauge, now)),
        false if upstream.config().is_private() => None,
        false => Some(QuotaReport::new(upstream, gauge, now).for_guests()),
    });
    let reports: Vec<QuotaReport> = reports.collect();
    answer(&json!({ "upstreams": reports }))
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

/// Whoever runs the cache, who has shown its secret: the only one who may see or change what others pull. An argument of
/// this type makes a route refuse everybody else, and behind API Gateway, where there is no such secret, everybody. What a
/// proxy passes on, or a page in a browser sends, does not have it.
pub(super) struct Operator;

impl FromRequestParts<Arc<Cache>> for Operator {
    type Rejection = Response;

    async fn from_request_parts(parts: &mut Parts, cache: &Arc<Cache>) -> Result<Self, Response> {
        let mut record = Record::of_operation(parts);
        record.by_operator = is_operator(cache, parts);
        let refused = (!record.by_operator).then_some(PullError::from(AccessError::NotOperator));
        record.operated(refused.as_ref());
        match refused {
            None => Ok(Self),
            Some(error) => Err(refusal(error.answer().status, &error.to_string())),
        }
    }
}

fn is_operator(cache: &Cache, parts: &Parts) -> bool {
    let shown = parts.headers.get(OPERATOR_HEADER);
    shown.is_some_and(|secret| cache.is_operator(secret.as_bytes()))
}

/// Why an operator gets no answer: `{"error": "…"}`.
pub(super) fn refusal(status: StatusCode, message: &str) -> Response {
    (status, [(CACHE_CONTROL, NO_STORE)], Json(json!({ "error": message }))).into_response()
}
