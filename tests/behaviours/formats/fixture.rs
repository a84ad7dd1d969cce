//! The fixture: a data directory and the items of a table, how they were made, and how they are put in place.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use aws::{DynamoLedger, PlaceRequest, S3Blobs, Turn};
use aws_sdk_s3::primitives::ByteStream;
use bytes::Bytes;
use serde_json::{Value, json};
use stopover::local::EmbeddedLedger;
use stopover::oci::{Digest, Platforms};
use stopover::ports::{ImageJob, Job, Priority};
use stopover::values::time::Clock;
use support::aws::Endpoints;
use support::scripted::{Fault, Scripted};
use support::world::{open_at, until};
use tempfile::TempDir;

use super::first::{self, CONFIG, LAYER, NOW, digest, large, repository};

/// Blobs whose fills were requested, and given up.
pub(super) const REQUESTED: &[u8] = b"requested";
pub(super) const GIVEN_UP: &[u8] = b"given up";
/// The invocation that had the only place of its upstream.
pub(super) const INVOCATION: &str = "an invocation";

fn fixture(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures/1").join(name)
}

pub(super) fn is_written_now() -> bool {
    std::env::var_os("STOPOVER_WRITE_FIXTURES").is_some()
}

/// Copies files and directories.
fn copy(from: &Path, to: &Path) {
    fs::create_dir_all(to).unwrap();
    for entry in fs::read_dir(from).unwrap() {
        let (path, to) = (entry.as_ref().unwrap().path(), to.join(entry.unwrap().file_name()));
        if path.is_dir() { copy(&path, &to) } else { _ = fs::copy(&path, &to).unwrap() }
    }
}

/// The data directory of the fixture, in one that may be changed.
pub(super) fn data() -> TempDir {
    let data = tempfile::tempdir().unwrap();
    copy(&fixture("data"), data.path());
    data
}

fn job(content: &[u8]) -> Job {
    let (digest, size) = (digest(content), content.len() as u64);
    Job { repository: repository("a"), digest, size, priority: Priority::Prefetch, payer: None }
}

/// The data directory that a release of the first format leaves when it ends.
pub(super) async fn write_data() {
    let (upstream, data) = (Scripted::start().unwrap(), tempfile::tempdir().unwrap());
    upstream.fault(digest(REQUESTED).as_str(), Fault::Silent);
    upstream.fault("/manifests/2", Fault::Silent);
    let local = open_at(Clock::manual(NOW), data.path(), &settings(&upstream)).await;
    let fills = Arc::clone(&local.cache.core.storage.fills);
    fills.request(&[job(GIVEN_UP)]).await.unwrap();
    local.settled().await;
    fills.request(&[job(REQUESTED)]).await.unwrap();
    let (repository, reference, platforms) = (repository("a"), "2".parse().unwrap(), Platforms::All);
    let image = ImageJob { repository, reference, platforms, priority: Priority::Prefetch, payer: None };
    fills.request_images(&[image]).await.unwrap();
    until(|| upstream.count(digest(REQUESTED).as_str()) > 0 && upstream.count("/manifests/2") > 0).await;
    local.stop(Duration::ZERO).await;
    drop(fills);
    let ledger = data.path().join("ledger.redb");
    until(|| EmbeddedLedger::open(&ledger).is_ok()).await;
    first::put(&EmbeddedLedger::open(&ledger).unwrap(), false).await;
    for bytes in [CONFIG, LAYER] {
        let path = data.path().join(key(&digest(bytes)));
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, bytes).unwrap();
    }
    for unneeded in ["lock", "operator_secret", "stopover.toml"] {
        fs::remove_file(data.path().join(unneeded)).unwrap();
    }
    copy(data.path(), &fixture("data"));
}

pub(super) fn settings(upstream: &Scripted) -> String {
    format!("[upstreams.\"test.local\"]\nurl = \"{}\"\n", upstream.url())
}

/// Where a blob is below a data directory, and in a bucket.
fn key(digest: &Digest) -> String {
    format!("blobs/sha256/{}/{}", &digest.hex()[..2], digest.hex())
}

/// The items of a table that releases of the first format write.
pub(super) async fn write_items() {
    let endpoints = Endpoints::start().await.unwrap();
    let ledger = dynamo(&endpoints);
    first::put(&ledger, true).await;
    assert!(gets_place(&ledger, INVOCATION).await);
    let text = serde_json::to_string_pretty(&items(&endpoints).await).unwrap();
    fs::create_dir_all(fixture("")).unwrap();
    fs::write(fixture("items.json"), text + "\n").unwrap();
}

/// Whether an invocation gets the only place for fills of its upstream.
pub(super) async fn gets_place(ledger: &DynamoLedger, invocation: &str) -> bool {
    let (job, ends_at) = (job(REQUESTED), NOW.plus(Duration::from_mins(10)));
    let request = PlaceRequest { job: &job, since: NOW, invocation, ends_at, limit: 1 };
    ledger.take_place(&request, NOW).await.unwrap() == Turn::Now
}

pub(super) fn dynamo(endpoints: &Endpoints) -> DynamoLedger {
    let config = endpoints.sdk_config();
    let blobs = S3Blobs::new(aws::s3_client(&config), endpoints.bucket());
    DynamoLedger::new(aws::dynamo_client(&config), endpoints.table(), blobs)
}

pub(super) fn stored_items() -> Vec<Value> {
    serde_json::from_slice(&fs::read(fixture("items.json")).unwrap()).unwrap()
}

/// The objects of the bucket beside that table.
pub(super) async fn put_objects(endpoints: &Endpoints) {
    for bytes in [Bytes::from_static(CONFIG), Bytes::from_static(LAYER), large().bytes] {
        let put = endpoints.s3().put_object().bucket(endpoints.bucket()).key(key(&digest(&bytes)));
        put.body(ByteStream::from(bytes)).send().await.unwrap();
    }
}

/// A call in the service's own JSON, which is what the fixture has.
async fn call(endpoints: &Endpoints, operation: &str, mut request: Value) -> Value {
    let url = endpoints.environment().into_iter().find(|(name, _)| name == "AWS_ENDPOINT_URL_DYNAMODB").unwrap().1;
    let scope = "Credential=test-access-key/20270115/us-east-1/dynamodb/aws4_request";
    request["TableName"] = json!(endpoints.table());
    let request = support::http()
        .post(url)
        .header("content-type", "application/x-amz-json-1.0")
        .header("x-amz-target", format!("DynamoDB_20120810.{operation}"))
        .header("x-amz-date", "20270115T080000Z")
        .header("authorization", format!("AWS4-HMAC-SHA256 {scope}, SignedHeaders=host;x-amz-date, Signature=0"))
        .body(request.to_string());
    let answer = request.send().await.unwrap();
    let (status, text) = (answer.status(), answer.text().await.unwrap());
    assert!(status.is_success(), "{operation}: {text}");
    serde_json::from_str(&text).unwrap()
}

pub(super) async fn put_items(endpoints: &Endpoints, items: &[Value]) {
    for item in items {
        call(endpoints, "PutItem", json!({ "Item": item })).await;
    }
}

/// All items of the table, in the order of their keys.
pub(super) async fn items(endpoints: &Endpoints) -> Vec<Value> {
    let mut page = call(endpoints, "Scan", json!({ "ConsistentRead": true })).await;
    assert!(page.get("LastEvaluatedKey").is_none(), "it is one page");
    let Value::Array(mut items) = page["Items"].take() else { panic!("{page}") };
    items.sort_by_key(|item| format!("{} {}", item["pk"], item["sk"]));
    items
}
