//! `DynamoDB`: dynoxide in memory, behind a proxy that keeps the journal.
//!
//! dynoxide checks that a request is signed, not the signature. For each page of a scan it would read all that is left of
//! the table; so that a page costs the page, [`index`] gives it the order of segments, and the proxy the most items to read.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use anyhow::anyhow;
use axum::{
    Router,
    body::Bytes,
    extract::{DefaultBodyLimit, State},
    http::{HeaderMap, HeaderValue, StatusCode, header},
    response::{IntoResponse, Response},
};
use serde_json::{Value, json};

use super::capacity::{Capacity, accesses, size};
use super::journal::{Failure, Journal, Service};
use crate::loopback::Loopback;

/// The service's own limit on a request, in bytes.
const MAX_REQUEST: usize = 16 * 1024 * 1024;

/// The most items of a page of a scan, and of 1 MB: pages of eight segments are answered one after the other here, and all
/// of them in the seconds that a function waits.
const PAGE_ITEMS: usize = 2000;

/// How many databases this process has had: each has a name of its own.
static DATABASES: AtomicU64 = AtomicU64::new(0);

#[derive(Clone)]
struct Proxy {
    client: reqwest::Client,
    database: String,
    journal: Arc<Journal>,
    capacity: Arc<Capacity>,
}

impl Proxy {
    /// Counts what a request costs. `false`: a partition is overloaded.
    async fn take(&self, operation: &str, headers: &HeaderMap, body: &Bytes) -> bool {
        let Ok(request) = serde_json::from_slice::<Value>(body) else { return true };
        for access in accesses(operation, &request) {
            let body = json!({ "TableName": super::TABLE, "Key": access.key, "ConsistentRead": true });
            let mut headers = headers.clone();
            headers.insert("x-amz-target", HeaderValue::from_static("DynamoDB_20120810.GetItem"));
            headers.remove(header::CONTENT_LENGTH);
            let answer = self.client.post(&self.database).headers(headers).body(body.to_string()).send();
            let item: Value = match answer.await.map(reqwest::Response::json) {
                Ok(item) => item.await.unwrap_or_default(),
                Err(_) => Value::Null,
            };
            if !self.capacity.take(&access, size(&item["Item"])) {
                return false;
            }
        }
        true
    }
}

/// Starts the service and returns its endpoint URL, and the name of its database in this process.
pub(super) fn start(
    loopback: &Loopback,
    journal: Arc<Journal>,
    capacity: Arc<Capacity>,
) -> anyhow::Result<(String, String)> {
    let (listener, address) = loopback.bind()?;
    let name = format!("file:dynamodb-{}?mode=memory&cache=shared", DATABASES.fetch_add(1, Ordering::Relaxed));
    let database = dynoxide::Database::new(&name).map_err(|error| anyhow!("{error:?}"))?;
    loopback.spawn(dynoxide::server::serve_on(listener, database));

    let proxy = Proxy {
        client: stopover::values::crypto::http_client().no_proxy().build()?,
        database: format!("http://{address}/"),
        journal,
        capacity,
    };
    let (listener, address) = loopback.bind()?;
    let router = Router::new().fallback(forward).layer(DefaultBodyLimit::max(MAX_REQUEST + 1024)).with_state(proxy);
    loopback.serve(listener, router);
    Ok((format!("http://{address}"), name))
}

/// Has the items of a table be found in the order in which segments are scanned.
pub(super) fn index(database: &str) -> anyhow::Result<()> {
    let order = format!("CREATE INDEX segments ON \"{}\" (hash_prefix, pk, sk)", super::TABLE);
    Ok(rusqlite::Connection::open(database)?.execute_batch(&order)?)
}

async fn forward(State(proxy): State<Proxy>, mut headers: HeaderMap, mut body: Bytes) -> Response {
    let target = headers.get("x-amz-target").and_then(|target| target.to_str().ok()).unwrap_or_default();
    let operation = target.split_once('.').map_or("", |(_, operation)| operation).to_owned();
    match proxy.journal.record(Service::DynamoDb, &operation) {
        Some(Failure::Internal) => {
            return refuse(StatusCode::INTERNAL_SERVER_ERROR, "InternalServerError");
        }
        Some(Failure::Throttled) => {
            return refuse(StatusCode::BAD_REQUEST, "ProvisionedThroughputExceededException");
        }
        None => {}
    }
    headers.remove(header::HOST);
    if operation == "Scan" {
        body = with_limit(body);
        headers.remove(header::CONTENT_LENGTH);
    }
    if proxy.capacity.is_counting() && !proxy.take(&operation, &headers, &body).await {
        return refuse(StatusCode::BAD_REQUEST, "ProvisionedThroughputExceededException");
    }
    let answer = async {
        let answer = proxy.client.post(&proxy.database).headers(headers).body(body).send().await?;
        let (status, mut headers) = (answer.status(), answer.headers().clone());
        headers.remove(header::TRANSFER_ENCODING);
        Ok::<_, reqwest::Error>((status, headers, answer.bytes().await?).into_response())
    };
    answer.await.unwrap_or_else(|error| (StatusCode::BAD_GATEWAY, error.to_string()).into_response())
}

/// A scan that says how many items it wants at most, as it was, else one of a page.
fn with_limit(body: Bytes) -> Bytes {
    let Ok(Value::Object(mut request)) = serde_json::from_slice(&body) else { return body };
    request.entry("Limit").or_insert(PAGE_ITEMS.into());
    Value::Object(request).to_string().into()
}

fn refuse(status: StatusCode, code: &str) -> Response {
    let body =
        json!({ "__type": format!("com.amazonaws.dynamodb.v20120810#{code}"), "message": "injected by the test" });
    (status, [(header::CONTENT_TYPE, "application/x-amz-json-1.0")], body.to_string()).into_response()
}
