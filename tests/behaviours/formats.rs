//! What is stored has a format. Data of every format is read for ever; data of a newer one is refused with a sentence, and
//! stays as it is.
//!
//! `tests/fixtures/1` is a data directory, and the items of a table, as the first release with formats has stored them.
//! They are read by every later one, and never written again. A new format gets a directory of its own, made with
//! `STOPOVER_WRITE_FIXTURES=1 cargo test -p behaviours --test behaviours formats`.

mod first;

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use aws::{DynamoLedger, PlaceRequest, S3Blobs, Turn};
use aws_sdk_s3::primitives::ByteStream;
use bytes::Bytes;
use futures_util::TryStreamExt as _;
use http::StatusCode;
use serde_json::{Value, json};
use stopover::config::{Cold, Config};
use stopover::errors::{StoreError, chain};
use stopover::local::{EmbeddedLedger, Local};
use stopover::oci::{Digest, Platforms};
use stopover::operate::FillState;
use stopover::ports::{ImageJob, Job, Ledger, Priority};
use stopover::records::{BlobState, Entry, Member, TagRecord};
use stopover::values::time::Clock;
use support::aws::Endpoints;
use support::guests::{HERE, basic, get};
use support::on_both_columns;
use support::scripted::{Fault, Scripted};
use support::world::{Column, World, open_at, until};
use tempfile::TempDir;

use self::first::{CONFIG, LAYER, NOW, ROBOT_SECRET, digest, image, large, repository};

on_both_columns!(what_the_first_format_has_stored_is_read_and_served);

const MANIFEST: &str = "/v2/test.local/a/manifests/1";
/// Blobs whose fills were requested, and given up.
const REQUESTED: &[u8] = b"requested";
const GIVEN_UP: &[u8] = b"given up";
/// The invocation that had the only place of its upstream.
const INVOCATION: &str = "an invocation";

fn fixture(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures/1").join(name)
}

fn is_written_now() -> bool {
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

/// The data directory of the fixture, or what `change` makes of it.
fn data() -> TempDir {
    let data = tempfile::tempdir().unwrap();
    copy(&fixture("data"), data.path());
    data
}

fn job(content: &[u8]) -> Job {
    let (digest, size) = (digest(content), content.len() as u64);
    Job { repository: repository("a"), digest, size, priority: Priority::Prefetch, payer: None }
}

async fn what_the_first_format_has_stored_is_read_and_served(column: Column) {
    let settings = "[access]\nsigning_keys = { env = \"TEST_KEYS\" }\nanonymous = true\nrobots = true";
    let plan = World::plan(column).cold(Cold::Wait).settings(settings);
    let world = match column {
        Column::Embedded => {
            if is_written_now() {
                write_data().await;
            }
            let data = data();
            first::check(&EmbeddedLedger::open(&data.path().join("ledger.redb")).unwrap(), false).await;
            plan.data(&fixture("data")).start().await
        }
        Column::Aws => {
            if is_written_now() {
                write_items().await;
            }
            let world = plan.start().await;
            let endpoints = world.endpoints().unwrap();
            put_items(endpoints, &stored_items()).await;
            put_objects(endpoints).await;
            first::check(&*world.cache.core.ledger, true).await;
            let (job, now) = (job(REQUESTED), NOW);
            let request =
                PlaceRequest { job: &job, since: now, invocation: "another", ends_at: now, limit: 1 };
            let turn = dynamo(endpoints).take_place(&request, now).await.unwrap();
            assert!(matches!(turn, Turn::After(_)), "another invocation has the place");
            world
        }
    };
    let by_digest = format!("/v2/test.local/a/manifests/{}", image().digest);
    let [config, layer] = [CONFIG, LAYER].map(|bytes| format!("/v2/test.local/a/blobs/{}", digest(bytes)));
    let image = image().bytes;
    for (path, expected) in [(MANIFEST, &image[..]), (&by_digest, &image), (&config, CONFIG), (&layer, LAYER)] {
        let pulled = world.pull(path).await;
        assert_eq!((pulled.status, &pulled.bytes()[..]), (StatusCode::OK, expected), "{path}");
    }
    assert_eq!(world.get("/v2/test.local/a/manifests/missing").await.status, StatusCode::NOT_FOUND);
    assert_eq!(world.get("/v2/test.local/a/tags/list").await.bytes().as_ref(), br#"{"name":"test.local/a","tags":["1","asked"]}"#);
    for (secret, status) in [(ROBOT_SECRET, StatusCode::OK), ("wrong", StatusCode::UNAUTHORIZED)] {
        assert_eq!(get(&world, HERE, MANIFEST, &basic("ci", secret)).await.status, status);
    }
    for asked in ["/a/manifests/1", "missing", "tags", digest(LAYER).as_str()] {
        assert_eq!(world.upstream.count(asked), 0, "{asked}: {:?}", world.upstream.requests());
    }
}

/// The data directory that a release of the first format leaves when it ends.
async fn write_data() {
    let (upstream, data) = (Scripted::start().unwrap(), tempfile::tempdir().unwrap());
    upstream.fault(digest(REQUESTED).as_str(), Fault::Silent);
    upstream.fault("/manifests/2", Fault::Silent);
    let local = open_at(Clock::manual(NOW), data.path(), &settings(&upstream)).await;
    let fills = Arc::clone(&local.cache.core.fills);
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

fn settings(upstream: &Scripted) -> String {
    format!("[upstreams.\"test.local\"]\nurl = \"{}\"\n", upstream.url())
}

/// Where a blob is below a data directory, and in a bucket.
fn key(digest: &Digest) -> String {
    format!("blobs/sha256/{}/{}", &digest.hex()[..2], digest.hex())
}

/// The items of a table that releases of the first format write.
async fn write_items() {
    let endpoints = Endpoints::start().await.unwrap();
    let ledger = dynamo(&endpoints);
    first::put(&ledger, true).await;
    let (job, ends_at) = (job(REQUESTED), NOW.plus(Duration::from_mins(10)));
    let request = PlaceRequest { job: &job, since: NOW, invocation: INVOCATION, ends_at, limit: 1 };
    assert_eq!(ledger.take_place(&request, NOW).await.unwrap(), Turn::Now);
    let text = serde_json::to_string_pretty(&items(&endpoints).await).unwrap();
    fs::write(fixture("items.json"), text + "\n").unwrap();
}

fn dynamo(endpoints: &Endpoints) -> DynamoLedger {
    let config = endpoints.sdk_config();
    let blobs = S3Blobs::new(aws::s3_client(&config), endpoints.bucket());
    DynamoLedger::new(aws::dynamo_client(&config), endpoints.table(), blobs)
}

fn stored_items() -> Vec<Value> {
    serde_json::from_slice(&fs::read(fixture("items.json")).unwrap()).unwrap()
}

/// The objects of the bucket beside that table.
async fn put_objects(endpoints: &Endpoints) {
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
    let request = reqwest::Client::new()
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

async fn put_items(endpoints: &Endpoints, items: &[Value]) {
    for item in items {
        call(endpoints, "PutItem", json!({ "Item": item })).await;
    }
}

/// All items of the table, in the order of their keys.
async fn items(endpoints: &Endpoints) -> Vec<Value> {
    let mut page = call(endpoints, "Scan", json!({ "ConsistentRead": true })).await;
    assert!(page.get("LastEvaluatedKey").is_none(), "it is one page");
    let Value::Array(mut items) = page["Items"].take() else { panic!("{page}") };
    items.sort_by_key(|item| format!("{} {}", item["pk"], item["sk"]));
    items
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_the_first_format_has_requested_is_done_and_what_was_given_up_stays_so() {
    let (upstream, data) = (Scripted::start().unwrap(), data());
    upstream.blob("a", &digest(REQUESTED), &Bytes::from_static(REQUESTED));
    let image = upstream.image("a", "2", &[b"a layer of another image"]);
    let local = open_at(Clock::manual(NOW), data.path(), &settings(&upstream)).await;
    local.settled().await;
    for stored in image.blobs.iter().map(|(digest, _)| digest).chain([&digest(REQUESTED)]) {
        let record = local.cache.core.ledger.blob(&repository("a"), stored).await.unwrap().record.unwrap();
        assert!(matches!(record.value.state, BlobState::Stored { .. }), "{record:?}");
    }
    let fills = local.cache.operate.fill_reports().await.unwrap().fills;
    assert_eq!((fills.len(), fills[0].state), (1, FillState::Failed), "{fills:?}");
    assert_eq!(upstream.count(digest(GIVEN_UP).as_str()), 0);
}
