//! `POST /_stopover/gc` and `POST /_stopover/purge`, answered with a [`SweepReport`].

use std::sync::Arc;

use axum::extract::State;
use axum::response::{IntoResponse as _, Response};
use axum::routing::post;
use axum::{Json, Router};
use http::StatusCode;
use http::header::CACHE_CONTROL;
use serde::Deserialize;

use super::NO_STORE;
use super::operator::{Operator, not_here, refusal};
use crate::cache::Cache;
use crate::errors::PullError;
use crate::oci::{Operation, Request};
use crate::operate::report::SweepReport;
use crate::values::served::Served;

pub(super) fn routes() -> Router<Arc<Cache>> {
    Router::new().route("/_stopover/gc", post(collect_garbage)).route("/_stopover/purge", post(purge))
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Sweep {
    dry_run: bool,
}

async fn collect_garbage(State(cache): State<Arc<Cache>>, Operator(body): Operator) -> Response {
    let Ok(Sweep { dry_run }) = serde_json::from_slice(&body) else {
        return refusal(StatusCode::BAD_REQUEST, r#"the body must be {"dry_run": true} or {"dry_run": false}"#);
    };
    // Continues when the client disconnects: the next sweep would have to read everything again.
    let sweeping = Arc::clone(&cache);
    let swept = tokio::spawn(async move { sweeping.operate.sweep(dry_run).await });
    report(&cache, swept.await.map_or(Err(PullError::NotYet), |swept| swept.map_err(Into::into)))
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Purge {
    image: String,
}

async fn purge(State(cache): State<Arc<Cache>>, Operator(body): Operator) -> Response {
    let Ok(Purge { image }) = serde_json::from_slice(&body) else {
        return refusal(StatusCode::BAD_REQUEST, r#"the body must be like {"image": "docker.io/library/nginx:1.27"}"#);
    };
    let purged = async {
        let request = Request::image(&image)?;
        let Operation::Manifest(name, reference) = &request.operation else {
            return Err(PullError::ManifestUnknown(Served::Miss));
        };
        // Finds also what may no longer be pulled.
        let repository = cache.core.upstreams.locate(&request, name)?;
        Ok(cache.operate.purge(&repository, reference).await?)
    };
    report(&cache, purged.await)
}

fn report(cache: &Cache, outcome: Result<SweepReport, PullError>) -> Response {
    match outcome {
        Ok(report) => ([(CACHE_CONTROL, NO_STORE)], Json(report)).into_response(),
        Err(PullError::Store(error)) => not_here(cache, &error),
        Err(error) => refusal(error.answer().status, &error.to_string()),
    }
}
