//! `DynamoDB`: dynoxide in memory, behind a proxy that keeps the journal.
//!
//! dynoxide checks that a request is signed, not the signature.

use std::sync::Arc;

use axum::{
    Router,
    body::Bytes,
    extract::{DefaultBodyLimit, State},
    http::{HeaderMap, StatusCode, header},
    response::{IntoResponse, Response},
};
use serde_json::json;

use super::journal::{Failure, Journal, Service};
use crate::loopback::Loopback;

/// The service's own limit on a request, in bytes.
const MAX_REQUEST: usize = 16 * 1024 * 1024;

#[derive(Clone)]
struct Proxy {
    client: reqwest::Client,
    database: String,
    journal: Arc<Journal>,
}

/// Starts the service and returns its endpoint URL.
pub(super) fn start(loopback: &Loopback, journal: Arc<Journal>) -> anyhow::Result<String> {
    let database = dynoxide::Database::memory().map_err(|error| anyhow::anyhow!("{error:?}"))?;
    let (listener, address) = loopback.bind()?;
    loopback.spawn(dynoxide::server::serve_on(listener, database));

    let proxy = Proxy {
        client: reqwest::Client::builder().no_proxy().build()?,
        database: format!("http://{address}/"),
        journal,
    };
    let (listener, address) = loopback.bind()?;
    let router = Router::new().fallback(forward).layer(DefaultBodyLimit::max(MAX_REQUEST + 1024)).with_state(proxy);
    loopback.serve(listener, router);
    Ok(format!("http://{address}"))
}

async fn forward(State(proxy): State<Proxy>, mut headers: HeaderMap, body: Bytes) -> Response {
    let target = headers.get("x-amz-target").and_then(|target| target.to_str().ok()).unwrap_or_default();
    let operation = target.split_once('.').map_or("", |(_, operation)| operation);
    match proxy.journal.record(Service::DynamoDb, operation) {
        Some(Failure::Internal) => {
            return refuse(StatusCode::INTERNAL_SERVER_ERROR, "InternalServerError");
        }
        Some(Failure::Throttled) => {
            return refuse(StatusCode::BAD_REQUEST, "ProvisionedThroughputExceededException");
        }
        None => {}
    }
    headers.remove(header::HOST);
    let answer = async {
        let answer = proxy.client.post(&proxy.database).headers(headers).body(body).send().await?;
        let (status, mut headers) = (answer.status(), answer.headers().clone());
        headers.remove(header::TRANSFER_ENCODING);
        Ok::<_, reqwest::Error>((status, headers, answer.bytes().await?).into_response())
    };
    answer.await.unwrap_or_else(|error| (StatusCode::BAD_GATEWAY, error.to_string()).into_response())
}

fn refuse(status: StatusCode, code: &str) -> Response {
    let body =
        json!({ "__type": format!("com.amazonaws.dynamodb.v20120810#{code}"), "message": "injected by the test" });
    (status, [(header::CONTENT_TYPE, "application/x-amz-json-1.0")], body.to_string()).into_response()
}
