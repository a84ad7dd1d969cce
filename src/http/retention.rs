//! `POST /_stopover/gc` and `POST /_stopover/purge`, answered with a [`SweepReport`].

use std::sync::Arc;

use axum::extract::State;
use axum::response::Response;
use http::StatusCode;
use serde::Deserialize;

use super::images::located;
use super::operator::{Operator, answer, not_here, refusal};
use crate::cache::Cache;
use crate::errors::PullError;
use crate::operate::report::SweepReport;

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Sweep {
    dry_run: bool,
}

pub(super) async fn collect_garbage(State(cache): State<Arc<Cache>>, Operator(body): Operator) -> Response {
    let Ok(Sweep { dry_run }) = serde_json::from_slice(&body) else {
        return refusal(StatusCode::BAD_REQUEST, r#"the body must be {"dry_run": true} or {"dry_run": false}"#);
    };
    let sweeping = Arc::clone(&cache);
    report(&cache, async move { Ok(sweeping.operate.sweep(dry_run).await?) }).await
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Purge {
    image: String,
}

pub(super) async fn purge(State(cache): State<Arc<Cache>>, Operator(body): Operator) -> Response {
    let Ok(Purge { image }) = serde_json::from_slice(&body) else {
        return refusal(StatusCode::BAD_REQUEST, r#"the body must be like {"image": "docker.io/library/nginx:1.27"}"#);
    };
    let purging = Arc::clone(&cache);
    let purged = async move {
        let (repository, reference) = located(&purging, &image)?;
        Ok(purging.operate.purge(&repository, &reference).await?)
    };
    report(&cache, purged).await
}

/// Continues when the client disconnects: the next one would have to read everything again. And reads it elsewhere than on
/// the thread of the connection, which others have too.
async fn report(
    cache: &Cache,
    work: impl Future<Output = Result<SweepReport, PullError>> + Send + 'static,
) -> Response {
    match tokio::spawn(work).await.unwrap_or(Err(PullError::NotYet)) {
        Ok(report) => answer(&report),
        Err(PullError::Store(error)) => not_here(cache, &error),
        Err(error) => refusal(error.answer().status, &error.to_string()),
    }
}
