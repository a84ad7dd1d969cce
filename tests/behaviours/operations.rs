//! What operators and probes see of a running cache: health, metrics, events, status.

use std::time::Duration;

use http::{Method, StatusCode};
use serde_json::{Value, json};
use support::aws::{EVERY_OPERATION, Service};
use support::on_both_columns;
use support::world::{Answer, Column, World};

on_both_columns!(
    probes_need_no_login_ask_no_upstream_and_have_the_ledger_read_once_a_second,
    a_cache_whose_ledger_cannot_be_read_is_alive_and_not_ready,
);

const STRANGER: &str = "192.0.2.1";

/// A cache that lets in robots alone.
async fn closed(column: Column) -> World {
    let access = "[access]\nsigning_keys = { env = \"TEST_KEYS\" }\nrobots = true\n";
    World::plan(column).settings(access).start().await
}

fn json(answer: &Answer) -> Value {
    serde_json::from_slice(answer.bytes()).expect("JSON")
}

async fn probes_need_no_login_ask_no_upstream_and_have_the_ledger_read_once_a_second(column: Column) {
    let world = closed(column).await;
    world.upstream.kill();
    let alive = world.get_from(STRANGER, "/_stopover/health").await;
    assert_eq!((alive.status, json(&alive)), (StatusCode::OK, json!({ "alive": true })));
    let before = world.endpoints().map(|endpoints| endpoints.calls(Service::DynamoDb, EVERY_OPERATION));
    for _ in 0..5 {
        let ready = world.get_from(STRANGER, "/_stopover/health/ready").await;
        assert_eq!((ready.status, json(&ready)), (StatusCode::OK, json!({ "ready": true, "reasons": [] })));
        assert_eq!(ready.header("cache-control"), "no-store");
        let head = world.send_from(STRANGER, Method::HEAD, "/_stopover/health/ready").await;
        assert_eq!((head.status, head.bytes().len()), (StatusCode::OK, 0));
    }
    let after = world.endpoints().map(|endpoints| endpoints.calls(Service::DynamoDb, EVERY_OPERATION));
    assert_eq!(after, before.map(|calls| calls + 1), "one read for all of them");
    assert_eq!(world.upstream.requests().len(), 0);
}

async fn a_cache_whose_ledger_cannot_be_read_is_alive_and_not_ready(column: Column) {
    let world = closed(column).await;
    // The embedded ledger is a file that this process has open: what reads of it return is tested where they are made.
    let Some(endpoints) = world.endpoints() else { return };
    endpoints.fail_next(Service::DynamoDb, EVERY_OPERATION, 1000);
    let ready = world.get_from(STRANGER, "/_stopover/health/ready").await;
    let reasons = json!({ "ready": false, "reasons": ["the ledger cannot be read"] });
    assert_eq!((ready.status, json(&ready)), (StatusCode::SERVICE_UNAVAILABLE, reasons));
    assert!(!ready.header("retry-after").is_empty(), "{ready:?}");
    assert_eq!(world.get_from(STRANGER, "/_stopover/health").await.status, StatusCode::OK);
    endpoints.heal();
    world.clock.advance(Duration::from_secs(1));
    assert_eq!(world.get_from(STRANGER, "/_stopover/health/ready").await.status, StatusCode::OK);
}
