//! Whoever has a repository at an upstream, or an upstream, and means harm to the cache or to what others pull.

use std::time::Duration;

use http::StatusCode;
use stopover::config::Cold;
use stopover::errors::FillError;
use stopover::oci::{Algorithm, Digest, Repository};
use stopover::ports::{Job, Priority, Progress};
use support::on_both_columns;
use support::scripted::{Fault, ScriptedImage};
use support::vast::{Manner, Vast};
use support::world::{Column, World, until};
use tokio::sync::watch;

on_both_columns!(
    a_manifest_that_names_thousands_of_blobs_costs_one_request,
    the_failure_of_another_repositorys_fill_is_not_this_ones,
    bytes_that_another_upstream_has_left_are_not_gone_on_with,
);

const LAYER: &[u8] = b"a layer that one repository has, and others only name";

const MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
const INDEX: &str = "application/vnd.oci.image.index.v1+json";

fn described(number: usize) -> String {
    let digest = Digest::of(Algorithm::Sha256, &number.to_be_bytes());
    format!(r#"{{"mediaType":"application/octet-stream","digest":"{digest}","size":1}}"#)
}

async fn a_manifest_that_names_thousands_of_blobs_costs_one_request(column: Column) {
    let world = World::on(column).await;
    let named: Vec<String> = (0..25_000).map(described).collect();
    let image = format!(r#"{{"schemaVersion":2,"config":{},"layers":[{}]}}"#, named[0], named[1..].join(","));
    let index = format!(r#"{{"schemaVersion":2,"manifests":[{}]}}"#, named[..1001].join(","));
    for (name, media_type, body) in [("image", MANIFEST, image), ("index", INDEX, index)] {
        world.upstream.manifest(name, "1", media_type, body.as_bytes());
        let answer = world.get(&format!("/v2/test.local/{name}/manifests/1")).await;
        assert_eq!(answer.status, StatusCode::BAD_GATEWAY, "{answer:?}");
        let (code, message) = answer.error();
        assert_eq!(code, "MANIFEST_INVALID");
        assert!(message.contains("more than 1000 are not stored"), "{message}");
        world.settled().await;
        assert_eq!(world.upstream.count(&format!("/v2/{name}/")), 1, "the manifest, and nothing it names");
        assert_eq!(world.cache.operate.fill_reports().await.unwrap().fills, []);
    }
}

/// The owner's image, and repositories of others whose manifests name the same blobs, which upstream does not have there.
fn named_by(world: &World, others: &[&str]) -> ScriptedImage {
    let image = world.upstream.image("owner", "1", &[LAYER]);
    for name in others {
        world.upstream.manifest(name, "1", MANIFEST, &image.manifest);
    }
    image
}

async fn pull_manifest(world: &World, name: &str) {
    assert_eq!(world.get(&format!("/v2/test.local/{name}/manifests/1")).await.status, StatusCode::OK);
}

async fn the_failure_of_another_repositorys_fill_is_not_this_ones(column: Column) {
    let world = World::plan(column).cold(Cold::Wait).settings("wait = \"20s\"").start().await;
    let image = named_by(&world, &["stranger"]);
    let layer = &image.blobs[1].0;
    let strangers = format!("/v2/stranger/blobs/{layer}");
    world.upstream.fault(&strangers, Fault::Late(Duration::from_secs(1)));
    pull_manifest(&world, "stranger").await;
    until(|| world.upstream.count(&strangers) == 1).await;
    let answer = world.pull(&format!("/v2/test.local/owner/blobs/{layer}")).await;
    assert_eq!((answer.status, answer.bytes().as_ref()), (StatusCode::OK, LAYER));
}

async fn bytes_that_another_upstream_has_left_are_not_gone_on_with(column: Column) {
    const MIB: u64 = 1024 * 1024;
    let rubbish = Manner { wrong_at: Some(5), breaks_after: Some(20 * MIB), no_parts: true, ..Manner::default() };
    let [hostile, honest] = [rubbish, Manner::default()].map(|manner| Vast::start(36 * MIB, manner).unwrap());
    let upstreams = format!("{}[upstreams.\"honest.local\"]\nurl = \"{}\"\n", hostile.table(), honest.url());
    let world = World::plan(column).cold(Cold::Wait).settings("wait = \"25s\"").upstream(&upstreams).start().await;
    let job = hostile.job();
    let filled = world.cache.fill.run(&job, &watch::channel(Progress::Waiting).0, std::future::pending()).await;
    assert!(matches!(filled, Err(FillError::Upstream(_))), "{filled:?}");
    let record =
        world.cache.core.storage.ledger.blob(&job.repository, &job.digest).await.unwrap().record.unwrap().value;
    assert!(
        record.checkpoint.is_some_and(|left| left.offset >= 8 * MIB),
        "rubbish is left, and taken for its beginning"
    );
    let manifest = world.get("/v2/honest.local/vast/manifests/1").await;
    assert_eq!(manifest.status, StatusCode::OK, "{manifest:?}");
    let answer = world.pull(&format!("/v2/honest.local/vast/blobs/{}", job.digest)).await;
    assert_eq!(Digest::of(job.digest.algorithm(), answer.bytes()), job.digest);
    assert_eq!(honest.sent(), 36 * MIB, "by the first attempt");
}

/// The queue of one process.
mod alone {
    use stopover::values::time::{Clock, Timestamp};
    use support::scripted::Scripted;
    use support::world::open_at;

    use super::*;

    fn repository(name: &str) -> Repository {
        Repository { upstream: "test.local".parse().unwrap(), name: name.parse().unwrap() }
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn what_a_repository_has_asked_for_is_not_lost_to_whoever_asks_next() {
        let world = World::on(Column::Embedded).await;
        let image = named_by(&world, &["first", "last"]);
        let layer = &image.blobs[1].0;
        let first = format!("/v2/first/blobs/{layer}");
        world.upstream.fault(&first, Fault::Late(Duration::from_secs(1)));
        pull_manifest(&world, "first").await;
        until(|| world.upstream.count(&first) == 1).await;
        // While it runs for the first.
        for name in ["owner", "last"] {
            pull_manifest(&world, name).await;
        }
        world.settled().await;
        assert!(world.stored_blobs().await.contains(&layer.to_string()));
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn what_a_repository_waits_for_is_not_lost_to_whoever_asks_next() {
        let world = World::plan(Column::Embedded).upstream("fills = 1").start().await;
        let image = named_by(&world, &["last"]);
        let other = world.upstream.image("other", "1", &[b"something else"]);
        let job = |name: &str, (digest, bytes): &(Digest, bytes::Bytes)| Job {
            repository: repository(name),
            digest: digest.clone(),
            size: bytes.len() as u64,
            priority: Priority::Interactive,
            payer: None,
        };
        world.upstream.fault("/v2/other/", Fault::Stalled);
        world.cache.core.storage.fills.request(&[job("other", &other.blobs[1])]).await.unwrap();
        until(|| world.upstream.count("/v2/other/blobs/") == 1).await;
        for name in ["owner", "last"] {
            world.cache.core.storage.fills.request(&[job(name, &image.blobs[1])]).await.unwrap();
        }
        world.upstream.heal();
        world.settled().await;
        assert!(world.stored_blobs().await.contains(&image.blobs[1].0.to_string()));
        assert_eq!(world.cache.operate.fill_reports().await.unwrap().fills, []);
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn clients_begin_only_so_many_fills_at_once_and_the_others_wait_for_a_place() {
        let settings = "wait = \"3s\"";
        let world =
            World::plan(Column::Embedded).cold(Cold::Wait).settings(settings).upstream("fills = 2").start().await;
        let layers: Vec<Vec<u8>> = (0..100).map(|number| format!("layer {number}").into_bytes()).collect();
        let image = world.upstream.image("a", "1", &layers.iter().map(Vec::as_slice).collect::<Vec<_>>());
        world.upstream.fault("/blobs/", Fault::Stalled);
        world.get("/v2/test.local/a/manifests/1").await;
        let paths: Vec<String> =
            image.blobs.iter().map(|(digest, _)| format!("/v2/test.local/a/blobs/{digest}")).collect();
        let answers = futures_util::future::join_all(paths.iter().map(|path| world.get(path))).await;
        assert!(answers.iter().all(|answer| answer.status == StatusCode::SERVICE_UNAVAILABLE), "{answers:?}");
        // Half of 64 at one upstream, and its two places.
        assert_eq!(world.upstream.count("/blobs/"), 32 + 2);
        world.upstream.heal();
        world.settled().await;
        assert_eq!(world.stored_blobs().await.len(), image.blobs.len());
        for (path, (_, bytes)) in paths.iter().zip(&image.blobs) {
            assert_eq!(world.get(path).await.bytes(), bytes);
        }
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn what_was_given_up_is_forgotten_after_a_week() {
        let upstream = Scripted::start().unwrap();
        let data = tempfile::tempdir().unwrap();
        let settings = format!("[upstreams.\"test.local\"]\nurl = \"{}\"", upstream.url());
        let clock = Clock::manual(Timestamp(1_800_000_000));
        let start = async || open_at(clock.clone(), data.path(), &settings).await;
        let local = start().await;
        let digest = Digest::of(Algorithm::Sha256, LAYER);
        let job = Job { repository: repository("a"), digest, size: 1, priority: Priority::Interactive, payer: None };
        local.cache.core.storage.fills.request(&[job]).await.unwrap();
        local.settled().await;
        local.stop(Duration::ZERO).await;
        for (later, remembered) in [(Duration::from_hours(6 * 24), 1), (Duration::from_hours(24), 0)] {
            clock.advance(later);
            let local = start().await;
            assert_eq!(
                local.cache.operate.fill_reports().await.unwrap().fills.len(),
                remembered,
                "after another {later:?}"
            );
            local.stop(Duration::ZERO).await;
        }
    }
}
