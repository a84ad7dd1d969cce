//! What operators ask: `/_stopover/…`, JSON in and out. The commands of the program are its clients.

use std::sync::Arc;

use axum::extract::{FromRequestParts, State};
use axum::response::{IntoResponse as _, Response};
use axum::routing::get;
use axum::{Json, Router};
use http::StatusCode;
use http::header::CACHE_CONTROL;
use http::request::Parts;
use serde_json::json;

use super::{NO_STORE, caller, retention};
use crate::Cache;
use crate::report::QuotaReport;

pub(super) fn routes() -> Router<Arc<Cache>> {
    Router::new().route("/_stopover/quota", get(quota)).merge(retention::routes())
}

/// How much is left of each upstream's quota, and whether it is being asked at all.
async fn quota(State(cache): State<Arc<Cache>>) -> Response {
    let now = cache.clock.now();
    let gauges = cache.upstreams.gauges().await;
    let upstreams: Vec<QuotaReport> =
        gauges.iter().map(|(upstream, gauge)| QuotaReport::new(upstream, gauge, now)).collect();
    ([(CACHE_CONTROL, NO_STORE)], Json(json!({ "upstreams": upstreams }))).into_response()
}

/// Somebody on the machine itself: the only one who may see or change what others pull. An argument of this type makes a
/// route refuse everybody else; behind API Gateway that is everybody.
pub(super) struct Operator;

impl<S: Sync> FromRequestParts<S> for Operator {
    type Rejection = Response;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, Response> {
        match caller(parts) {
            Some(caller) if caller.to_canonical().is_loopback() => Ok(Self),
            _ => Err(refusal(StatusCode::FORBIDDEN, "only the machine that runs the cache may ask this")),
        }
    }
}

/// Why an operator gets no answer: `{"error": "…"}`.
pub(super) fn refusal(status: StatusCode, message: &str) -> Response {
    (status, [(CACHE_CONTROL, NO_STORE)], Json(json!({ "error": message }))).into_response()
}
