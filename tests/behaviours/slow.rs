//! Upstreams that are slow, such as caches before caches: what comes in the end is waited for, and clients are told in
//! time.

use std::time::{Duration, Instant};

use http::StatusCode;
use stopover::config::Cold;
use support::on_both_columns;
use support::scripted::Fault;
use support::world::{Column, World};

use crate::budgets::{FRESH, STRANGER, tag};

on_both_columns!(
    a_slow_answer_is_waited_for_where_nothing_is_known,
    a_slow_answer_is_not_waited_for_where_something_is_known,
    a_fill_waits_for_the_first_byte_while_clients_are_told_to_come_back,
    with_wait_a_manifest_comes_once_its_blobs_are_stored,
    a_manifest_that_names_more_blobs_than_images_have_is_not_waited_for,
    a_fill_waits_as_long_as_the_configuration_says,
);

async fn a_slow_answer_is_waited_for_where_nothing_is_known(column: Column) {
    let world = World::on(column).await;
    let image = world.upstream.image("slow", "1", &[b"layer"]);
    world.upstream.fault("HEAD /v2/slow/", Fault::Late(Duration::from_secs(6)));
    world.upstream.fault("GET /v2/slow/manifests/", Fault::Late(Duration::from_secs(12)));
    let (head, tags) = (tag("slow", "1"), tag("slow", "1"));
    let (head, get) = tokio::join!(world.head(&head), world.get(&tags));
    assert_eq!((head.status, head.header("docker-content-digest")), (StatusCode::OK, image.digest.as_str()));
    assert_eq!(get.bytes(), &image.manifest);
    let good = world.upstream.image("good", "1", &[b"layer"]);
    assert_eq!(world.get(&tag("good", "1")).await.bytes(), &good.manifest);
}

/// As long as clients wait for headers, or nearly: 28 s.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn clients_have_an_answer_within_thirty_seconds_however_many_waits_follow_each_other() {
    let world = World::plan(Column::Embedded).cold(Cold::Wait).settings("wait = \"20s\"").start().await;
    let image = world.upstream.image("slow", "1", &[b"layer"]);
    world.upstream.fault("GET /v2/slow/manifests/", Fault::Late(Duration::from_secs(12)));
    world.upstream.fault(image.blobs[1].0.as_str(), Fault::Late(Duration::from_mins(1)));
    let begun = Instant::now();
    let answer = world.get(&tag("slow", "1")).await;
    assert_eq!(answer.status, StatusCode::SERVICE_UNAVAILABLE);
    assert!(begun.elapsed() < Duration::from_secs(29), "{:?}", begun.elapsed());
}

async fn a_slow_answer_is_not_waited_for_where_something_is_known(column: Column) {
    let world = World::on(column).await;
    let image = world.upstream.image("slow", "1", &[b"layer"]);
    world.get(&tag("slow", "1")).await;
    world.settled().await;
    world.clock.advance(FRESH);
    world.upstream.fault("/v2/slow/", Fault::Silent);
    let begun = Instant::now();
    let answer = world.get(&tag("slow", "1")).await;
    assert_eq!((answer.header("x-stopover"), answer.bytes()), ("stale", &image.manifest));
    assert!(begun.elapsed() < Duration::from_secs(10));
}

/// Reported of Nora (#1001) and Harbor (#22609): the first byte comes once the registry before us has all of it.
async fn a_fill_waits_for_the_first_byte_while_clients_are_told_to_come_back(column: Column) {
    let world = World::plan(column).cold(Cold::Wait).settings("wait = \"1s\"").start().await;
    let image = world.upstream.image("slow", "1", &[b"layer"]);
    let good = world.upstream.image("good", "1", &[b"other"]);
    let (digest, bytes) = &image.blobs[1];
    world.upstream.fault(digest.as_str(), Fault::Late(Duration::from_secs(22)));
    let path = format!("/v2/test.local/slow/blobs/{digest}");
    // Of an image whose blobs take longer than a client waits, it gets no manifest either: it comes back to that.
    for path in [&tag("slow", "1"), &path] {
        let begun = Instant::now();
        let answer = world.get_from(STRANGER, path).await;
        assert_eq!(answer.status, StatusCode::SERVICE_UNAVAILABLE, "{path}");
        assert!(!answer.header("retry-after").is_empty() && begun.elapsed() < Duration::from_secs(10));
    }
    for (name, image) in [("slow", &image), ("good", &good)] {
        let head = world.head(&tag(name, "1")).await;
        assert_eq!((head.status, head.header("docker-content-digest")), (StatusCode::OK, image.digest.as_str()));
    }
    world.settled().await;
    assert_eq!(world.get_from(STRANGER, &tag("slow", "1")).await.bytes(), &image.manifest);
    assert_eq!(world.pull(&path).await.bytes(), bytes);
    assert_eq!(world.upstream.count(&format!("/blobs/{digest}")), 1, "it was asked once");
}

async fn with_wait_a_manifest_comes_once_its_blobs_are_stored(column: Column) {
    let world = World::plan(column).cold(Cold::Wait).start().await;
    let image = world.upstream.image("app", "1", &[b"one", b"two"]);
    assert_eq!(world.get(&tag("app", "1")).await.bytes(), &image.manifest);
    world.upstream.fault("/v2/", Fault::Silent);
    for (digest, _) in &image.blobs {
        let answer = world.get(&format!("/v2/test.local/app/blobs/{digest}")).await;
        assert_eq!(answer.header("x-stopover"), "hit", "{answer:?}");
    }
}

/// Each wait reads what is known of every blob, and no caller pays for that.
async fn a_manifest_that_names_more_blobs_than_images_have_is_not_waited_for(column: Column) {
    let world = World::plan(column).cold(Cold::Wait).settings("wait = \"20s\"").start().await;
    let layers: Vec<String> = (0..200).map(|number| format!("layer {number}")).collect();
    let layers: Vec<&[u8]> = layers.iter().map(String::as_bytes).collect();
    let image = world.upstream.image("many", "1", &layers);
    world.upstream.fault("/v2/many/blobs/", Fault::Silent);
    let begun = Instant::now();
    assert_eq!(world.get(&tag("many", "1")).await.bytes(), &image.manifest);
    assert!(begun.elapsed() < Duration::from_secs(15), "{:?}", begun.elapsed());
}

async fn a_fill_waits_as_long_as_the_configuration_says(column: Column) {
    let world = World::plan(column).cold(Cold::Wait).upstream("first_byte = \"1s\"").start().await;
    let image = world.upstream.image("slow", "1", &[b"layer"]);
    world.upstream.fault("/v2/slow/blobs/", Fault::Silent);
    world.get(&tag("slow", "1")).await;
    let begun = Instant::now();
    let answer = world.get(&format!("/v2/test.local/slow/blobs/{}", image.blobs[1].0)).await;
    assert_eq!(answer.status, StatusCode::SERVICE_UNAVAILABLE);
    assert!(begun.elapsed() < Duration::from_secs(15), "{:?}", begun.elapsed());
}
