//! The write path: what becomes visible, and how often upstream is asked for it.

use http::{Method, StatusCode};
use stopover::config::Cold;
use stopover::oci::Repository;
use stopover::ports::{Job, Priority, Progress};
use stopover::pull::Want;
use support::on_both_columns;
use support::scripted::Fault;
use support::world::{Column, World, open, until};
use tokio::sync::watch;

on_both_columns!(
    bytes_with_the_wrong_digest_are_never_visible,
    a_blob_that_breaks_off_is_never_visible_and_is_fetched_again,
    a_blob_of_the_wrong_length_is_never_visible,
    a_connection_that_breaks_before_its_first_byte_does_not_fail_a_fill,
    filling_twice_stores_once,
    fifty_cold_pulls_of_a_blob_cost_one_download,
    a_stored_blob_whose_bytes_are_gone_is_filled_again,
);

const LAYER: &[u8] = b"the bytes of a layer";

fn blob(digest: &stopover::oci::Digest) -> String {
    format!("/v2/test.local/a/blobs/{digest}")
}

async fn never_visible(column: Column, fault: Fault) {
    let world = World::plan(column).cold(Cold::Wait).settings("wait = \"2s\"").start().await;
    let image = world.upstream.image("a", "1", &[LAYER]);
    let layer = &image.blobs[1].0;
    world.upstream.fault(&format!("blobs/{layer}"), fault.clone());
    world.get("/v2/test.local/a/manifests/1").await;
    let answer = world.get(&blob(layer)).await;
    assert!(answer.status.is_server_error(), "{fault:?}: {answer:?}");
    if answer.status == StatusCode::SERVICE_UNAVAILABLE {
        assert_ne!(answer.header("retry-after"), "");
    }
    assert!(!world.stored_blobs().await.contains(&layer.to_string()), "{fault:?}");
    if let Some(endpoints) = world.endpoints() {
        assert_eq!(endpoints.multipart_uploads(), 0);
    }
    world.upstream.heal();
    let answer = world.pull(&blob(layer)).await;
    assert_eq!(answer.bytes(), LAYER, "{fault:?}: it can be filled once upstream is well");
}

async fn bytes_with_the_wrong_digest_are_never_visible(column: Column) {
    never_visible(column, Fault::Corrupt).await;
}

async fn a_blob_that_breaks_off_is_never_visible_and_is_fetched_again(column: Column) {
    never_visible(column, Fault::Truncated).await;
}

async fn a_blob_of_the_wrong_length_is_never_visible(column: Column) {
    let longer = [LAYER, b" and more"].concat();
    never_visible(column, Fault::Body(longer.clone(), vec![])).await;
    never_visible(column, Fault::Body(LAYER[1..].to_vec(), vec![])).await;
    // No Content-Length at all: only counting tells.
    never_visible(column, Fault::Body(longer, vec![("content-length", String::new())])).await;
    never_visible(
        column,
        Fault::Body(b"<html>please log in</html>".to_vec(), vec![("content-type", "text/html".into())]),
    )
    .await;
}

async fn filling_twice_stores_once(column: Column) {
    let world = World::plan(column).cold(Cold::Wait).start().await;
    let image = world.upstream.image("a", "1", &[LAYER]);
    for tag in ["1", "2"] {
        // Two tags of one manifest: its fills are requested twice.
        world.upstream.manifest("a", tag, "application/vnd.oci.image.manifest.v1+json", &image.manifest);
        world.get(&format!("/v2/test.local/a/manifests/{tag}")).await;
        world.settled().await;
    }
    assert_eq!(world.upstream.count("/blobs/"), image.blobs.len());
    assert_eq!(world.stored_blobs().await.len(), image.blobs.len());
}

async fn fifty_cold_pulls_of_a_blob_cost_one_download(column: Column) {
    let world = World::plan(column).cold(Cold::Wait).start().await;
    let image = world.upstream.image("a", "1", &[LAYER]);
    let layer = &image.blobs[1].0;
    world.get("/v2/test.local/a/manifests/1").await;
    let path = blob(layer);
    let answers = futures_util::future::join_all((0..50).map(|_| world.pull(&path))).await;
    for answer in answers {
        assert_eq!(answer.bytes(), LAYER);
    }
    world.settled().await;
    assert_eq!(world.upstream.count(&format!("blobs/{layer}")), 1);
}

async fn a_stored_blob_whose_bytes_are_gone_is_filled_again(column: Column) {
    let world = World::on(column).await;
    let image = world.upstream.image("a", "1", &[LAYER]);
    world.get("/v2/test.local/a/manifests/1").await;
    world.settled().await;
    world.delete_stored_blobs().await;
    assert!(world.stored_blobs().await.is_empty());
    let digest = image.blobs[1].0.clone();
    if column == Column::Embedded {
        assert_eq!(world.get(&blob(&digest)).await.bytes(), LAYER, "a pull finds out itself");
    }
    let repository = Repository { upstream: "test.local".parse().unwrap(), name: "a".parse().unwrap() };
    let job = Job {
        repository,
        digest: digest.clone(),
        size: LAYER.len() as u64,
        priority: Priority::Interactive,
        payer: None,
    };
    world.cache.fill.run(&job, &watch::channel(Progress::Waiting).0, std::future::pending()).await.unwrap();
    // The pull's own fill may have it, and be about to publish.
    world.settled().await;
    assert_eq!(world.stored_blobs().await, [digest.to_string()]);
}

/// Following is a policy of the embedded column only: elsewhere the fill runs in another process.
mod following {
    use super::*;

    async fn stalled() -> (World, stopover::oci::Digest, Vec<u8>) {
        let world = World::on(Column::Embedded).await;
        let layer: Vec<u8> = (0..2_000_000_u32).map(|number| number.to_le_bytes()[1]).collect();
        let image = world.upstream.image("a", "1", &[&layer]);
        let digest = image.blobs[1].0.clone();
        world.upstream.fault(&format!("blobs/{digest}"), Fault::Stalled);
        world.get("/v2/test.local/a/manifests/1").await;
        (world, digest, layer)
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn clients_follow_a_running_fill_from_any_offset_and_upstream_sends_it_once() {
        let (world, digest, layer) = stalled().await;
        let path = blob(&digest);
        let whole = world.get(&path);
        let tail = world.send(Method::GET, &path, &[("range", "bytes=1500000-")]);
        let early = world.send(Method::GET, &path, &[("range", "bytes=10-19")]);
        let heal = async {
            // The first half is there although the fill stands still.
            assert_eq!(early.await.bytes().as_ref(), &layer[10..20]);
            assert!(world.stored_blobs().await.iter().all(|stored| *stored != digest.to_string()));
            world.upstream.heal();
        };
        let (whole, tail, ()) = futures_util::join!(whole, tail, heal);
        assert_eq!((whole.status, whole.header("x-stopover")), (StatusCode::OK, "miss"));
        assert_eq!(whole.bytes().as_ref(), layer);
        assert_eq!(tail.status, StatusCode::PARTIAL_CONTENT);
        assert_eq!(tail.bytes().as_ref(), &layer[1_500_000..]);
        assert_eq!(world.upstream.count(&format!("blobs/{digest}")), 1);
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn a_follower_of_a_fill_that_fails_gets_no_complete_body() {
        let world = World::on(Column::Embedded).await;
        let image = world.upstream.image("a", "1", &[&vec![7; 1_000_000]]);
        let digest = &image.blobs[1].0;
        // Only the last byte is wrong: all others have been passed on when that shows.
        world.upstream.fault(&format!("blobs/{digest}"), Fault::Corrupt);
        let answer = world.get(&blob(digest)).await;
        assert!(answer.status.is_server_error() || answer.body.is_err(), "{answer:?}");
        assert!(world.stored_blobs().await.is_empty());
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn a_client_that_goes_away_does_not_end_the_fill() {
        let (world, digest, layer) = stalled().await;
        let path = blob(&digest);
        let first = tokio::time::timeout(std::time::Duration::from_millis(200), world.get(&path));
        assert!(first.await.is_err(), "the fill stands still");
        world.upstream.heal();
        world.settled().await;
        assert_eq!(world.get(&path).await.bytes().as_ref(), layer);
        assert_eq!(world.upstream.count(&format!("blobs/{digest}")), 1);
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn what_one_repository_cannot_have_is_filled_through_another_that_asks() {
        let world = World::on(Column::Embedded).await;
        let image = world.upstream.image("a", "1", &[LAYER]);
        world.upstream.image("b", "1", &[LAYER]);
        let layer = &image.blobs[1].0;
        // While the first one rests after a failure.
        world.upstream.fault(&format!("/v2/a/blobs/{layer}"), Fault::Status(429, vec![], String::new()));
        world.get("/v2/test.local/a/manifests/1").await;
        // Whoever is told of the limit, is told when it has been noted.
        let limited = world.get(&format!("/v2/test.local/a/blobs/{layer}")).await;
        assert_eq!(limited.status, StatusCode::TOO_MANY_REQUESTS);
        world.upstream.heal();
        world.clock.advance(std::time::Duration::from_hours(1));
        world.get("/v2/test.local/b/manifests/1").await;
        let answer = world.get(&format!("/v2/test.local/b/blobs/{layer}")).await;
        assert_eq!(answer.bytes(), LAYER);
        assert!(world.upstream.count(&format!("/v2/b/blobs/{layer}")) > 0, "with the permission of the one that asks");
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn what_is_asked_for_while_it_runs_for_another_repository_is_not_lost() {
        let world = World::on(Column::Embedded).await;
        let big = vec![7; 2_000_000];
        let image = world.upstream.image("a", "1", &[&big]);
        world.upstream.image("b", "1", &[&big]);
        let layer = &image.blobs[1].0;
        // It breaks off again and again, which takes a while to be given up.
        world.upstream.fault(&format!("/v2/a/blobs/{layer}"), Fault::Truncated);
        world.get("/v2/test.local/a/manifests/1").await;
        until(|| world.upstream.count(&format!("/v2/a/blobs/{layer}")) > 0).await;
        world.get("/v2/test.local/b/manifests/1").await;
        world.settled().await;
        assert!(world.stored_blobs().await.contains(&layer.to_string()));
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn unfinished_fills_are_found_again_after_a_restart() {
        let upstream = support::scripted::Scripted::start().unwrap();
        let image = upstream.image("a", "1", &[LAYER]);
        upstream.fault("/blobs/", Fault::Stalled);
        let data = tempfile::tempdir().unwrap();
        let settings = format!("[upstreams.\"test.local\"]\nurl = \"{}\"", upstream.url());
        let start = async || open(data.path(), &settings).await;
        let local = start().await;
        let repository = Repository { upstream: "test.local".parse().unwrap(), name: "a".parse().unwrap() };
        local.cache.pull.manifest(&repository, &"1".parse().unwrap(), Want::GET).await.unwrap();
        until(|| upstream.count("/blobs/") == image.blobs.len()).await;
        local.stop(std::time::Duration::ZERO).await;
        upstream.heal();
        let local = start().await;
        local.settled().await;
        upstream.kill();
        for (digest, bytes) in &image.blobs {
            let pulled = local.cache.pull.blob(&repository, digest, Want::GET).await.unwrap();
            assert_eq!(pulled.size, bytes.len() as u64);
            assert_eq!(pulled.served, stopover::values::served::Served::Hit);
        }
    }
}

async fn a_connection_that_breaks_before_its_first_byte_does_not_fail_a_fill(column: Column) {
    let world = World::on(column).await;
    let image = world.upstream.image("a", "1", &[LAYER]);
    let (digest, bytes) = image.blobs[1].clone();
    let repository = Repository { upstream: "test.local".parse().unwrap(), name: "a".parse().unwrap() };
    let job = Job { repository, digest, size: bytes.len() as u64, priority: Priority::Interactive, payer: None };
    world.upstream.fault_times("/blobs/", 1, Fault::Truncated);
    let filled = world.cache.fill.run(&job, &watch::channel(Progress::Waiting).0, std::future::pending()).await;
    assert!(filled.is_ok(), "{filled:?}");
    assert_eq!(world.upstream.count("/blobs/"), 2);
    assert_eq!(world.stored_blobs().await, [job.digest.to_string()]);
}
