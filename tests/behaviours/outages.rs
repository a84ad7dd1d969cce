//! Storage in trouble: an outage is an outage, never an absence. And a clock that was wrong.

use std::time::Duration;

use http::StatusCode;
use stopover::config::Cold;
use stopover::errors::PullError;
use stopover::oci::Repository;
use stopover::pull::Want;
use support::aws::{EVERY_OPERATION, Service};
use support::on_both_columns;
use support::scripted::Fault;
use support::world::{Column, World, until};

on_both_columns!(a_clock_that_was_set_back_keeps_nothing_fresh);

const TAG: &str = "/v2/test.local/a/manifests/1";

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn storage_outage_is_not_a_miss() {
    let world = World::on(Column::Aws).await;
    let endpoints = world.endpoints().expect("the AWS column has endpoints");
    let image = world.upstream.image("a", "1", &[b"layer"]);
    world.get(TAG).await;
    world.settled().await;
    world.upstream.forget_requests();
    endpoints.fail_next(Service::DynamoDb, EVERY_OPERATION, 1000);
    for path in [TAG.to_owned(), format!("/v2/test.local/a/blobs/{}", image.blobs[1].0)] {
        let answer = world.get(&path).await;
        assert_eq!((answer.status, answer.error().0.as_str()), (StatusCode::SERVICE_UNAVAILABLE, "UNAVAILABLE"));
        assert!(!answer.error().1.to_lowercase().contains("dynamo"), "nothing internal leaves the process");
    }
    endpoints.heal();
    assert_eq!(world.get(TAG).await.bytes(), &image.manifest);
    assert!(world.upstream.requests().is_empty(), "upstream was not asked in its place");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_deleted_tag_that_is_served_on_outlasts_a_ledger_that_is_not_read() {
    let world = World::plan(Column::Aws).upstream("deleted = \"serve\"").start().await;
    let endpoints = world.endpoints().expect("the AWS column has endpoints");
    let image = world.upstream.image("a", "1", &[b"layer"]);
    world.get(TAG).await;
    world.settled().await;
    world.upstream.delete_tag("a", "1");
    world.upstream.fault("HEAD", Fault::Late(Duration::from_secs(1)));
    world.clock.advance(Duration::from_mins(6));
    let repository = Repository { upstream: "test.local".parse().unwrap(), name: "a".parse().unwrap() };
    let reference = "1".parse().unwrap();
    // It has no manifest in memory.
    let instance = world.another_instance();
    let failing = async {
        until(|| world.upstream.count("HEAD") == 1).await;
        for operation in ["GetItem", "BatchGetItem", "Query"] {
            endpoints.fail_next(Service::DynamoDb, operation, 1000);
        }
    };
    let (pulled, ()) = tokio::join!(instance.pull.manifest(&repository, &reference, Want::GET), failing);
    assert!(matches!(pulled, Err(PullError::Store(_))), "{pulled:?}");
    endpoints.heal();
    world.clock.advance(Duration::from_mins(1));
    let answer = world.get(TAG).await;
    assert_eq!((answer.header("x-stopover"), answer.bytes()), ("stale", &image.manifest));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn ledger_outage_still_serves_manifests_by_digest_from_a_warm_instance() {
    let world = World::on(Column::Aws).await;
    let endpoints = world.endpoints().expect("the AWS column has endpoints");
    let image = world.upstream.image("a", "1", &[b"layer"]);
    world.get(TAG).await;
    endpoints.fail_next(Service::DynamoDb, EVERY_OPERATION, 1000);
    let answer = world.get(&format!("/v2/test.local/a/manifests/{}", image.digest)).await;
    assert_eq!(answer.bytes(), &image.manifest);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_queue_outage_does_not_fail_a_pull_and_the_fill_is_requested_again() {
    let world = World::on(Column::Aws).await;
    let endpoints = world.endpoints().expect("the AWS column has endpoints");
    let image = world.upstream.image("a", "1", &[b"layer"]);
    endpoints.fail_next(Service::Sqs, "SendMessageBatch", 1000);
    assert_eq!(world.get(TAG).await.status, StatusCode::OK);
    endpoints.heal();
    let path = format!("/v2/test.local/a/blobs/{}", image.blobs[1].0);
    assert_eq!(world.pull(&path).await.bytes().as_ref(), b"layer");
    world.settled().await;
    assert_eq!(world.get(&path).await.header("x-stopover"), "hit");
}

/// Every write of the ledger fails, and no read.
fn fail_writes(world: &World) {
    let endpoints = world.endpoints().expect("the AWS column has endpoints");
    for operation in ["PutItem", "UpdateItem", "BatchWriteItem"] {
        endpoints.fail_next(Service::DynamoDb, operation, 10_000);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_ledger_that_cannot_be_written_passes_on_what_upstream_says() {
    let world = World::plan(Column::Aws).cold(Cold::Redirect).upstream("fresh = \"1m\"").start().await;
    let image = world.upstream.image("a", "1", &[b"layer"]);
    assert_eq!(world.get(TAG).await.bytes(), &image.manifest);
    world.settled().await;
    world.upstream.tags("a", &["1", "2"]);
    fail_writes(&world);
    world.clock.advance(Duration::from_mins(2));
    let stale = world.get(TAG).await;
    assert_eq!((stale.bytes(), stale.header("x-stopover")), (&image.manifest, "revalidated"));
    let new = world.upstream.image("a", "2", &[b"another"]);
    let moved = world.upstream.image("a", "1", &[b"moved"]);
    for (tag, image) in [("1", &moved), ("2", &new)] {
        world.clock.advance(Duration::from_mins(2));
        let path = format!("/v2/test.local/a/manifests/{tag}");
        assert_eq!(world.get(&path).await.bytes(), &image.manifest, "{tag}");
        let (digest, bytes) = &image.blobs[1];
        let blob = world.pull(&format!("/v2/test.local/a/blobs/{digest}")).await;
        assert_eq!(blob.body.as_ref(), Ok(bytes), "{:?}", blob.status);
    }
    let tags = world.get("/v2/test.local/a/tags/list").await;
    assert_eq!(tags.status, StatusCode::OK, "{tags:?}");
    let missing = world.get("/v2/test.local/a/manifests/missing").await;
    assert_eq!(missing.status, StatusCode::NOT_FOUND, "{missing:?}");
}

async fn a_clock_that_was_set_back_keeps_nothing_fresh(column: Column) {
    let world = World::on(column).await;
    let year = Duration::from_hours(365 * 24);
    world.clock.advance(year);
    world.upstream.tags("a", &["1"]);
    let old = world.upstream.image("a", "1", &[b"old"]);
    assert_eq!(world.get(TAG).await.bytes(), &old.manifest);
    assert_eq!(world.get("/v2/test.local/a/manifests/2").await.status, StatusCode::NOT_FOUND);
    assert_eq!(world.get("/v2/test.local/a/tags/list").await.status, StatusCode::OK);
    world.settled().await;
    world.clock.set_back(year);
    world.upstream.tags("a", &["1", "2"]);
    let new = world.upstream.image("a", "1", &[b"new"]);
    let added = world.upstream.image("a", "2", &[b"added"]);
    assert_eq!(world.get(TAG).await.bytes(), &new.manifest);
    assert_eq!(world.get("/v2/test.local/a/manifests/2").await.bytes(), &added.manifest);
    let tags = world.get("/v2/test.local/a/tags/list").await;
    assert!(tags.bytes().windows(3).any(|part| part == b"\"2\""), "{tags:?}");
    // Clocks of instances differ by seconds.
    world.settled().await;
    world.upstream.forget_requests();
    world.clock.set_back(Duration::from_secs(3));
    assert_eq!(world.get(TAG).await.header("x-stopover"), "hit");
    assert!(world.upstream.requests().is_empty());
}
