//! Storage in trouble: an outage is an outage, never an absence.

use http::StatusCode;
use support::aws::{EVERY_OPERATION, Service};
use support::world::{Column, World};

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
