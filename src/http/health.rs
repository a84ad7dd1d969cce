//! `GET /_stopover/health` and `GET /_stopover/health/ready`: for probes, by which no caller learns more than that.

use std::sync::Arc;

use axum::extract::State;
use axum::response::{IntoResponse as _, Response};
use http::StatusCode;
use http::header::RETRY_AFTER;
use serde_json::json;

use super::operator::answer;
use crate::cache::Cache;

/// The process answers. Nothing else is asked: to start it anew would mend neither a disk nor a ledger.
pub(super) async fn alive() -> Response {
    answer(&json!({ "alive": true }))
}

/// Whether it answers clients: 200 or 503, and why.
pub(super) async fn ready(State(cache): State<Arc<Cache>>) -> Response {
    let health = cache.operate.health().await;
    if health.ready {
        return answer(&health);
    }
    (StatusCode::SERVICE_UNAVAILABLE, [(RETRY_AFTER, "1")], answer(&health)).into_response()
}
