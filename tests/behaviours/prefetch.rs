//! What is stored before anybody pulls it: by request, by the policy for platforms, on a schedule.

use std::collections::BTreeSet;
use std::time::Duration;

use futures_util::TryStreamExt as _;
use http::StatusCode;
use serde_json::{Value, json};
use stopover::local::EmbeddedLedger;
use stopover::oci::{Algorithm, Digest, MediaType, Repository};
use stopover::pull::Want;
use stopover::records::Entry;
use stopover::values::served::Served;
use support::on_both_columns;
use support::scripted::{Fault, Scripted, ScriptedImage};
use support::world::{Column, World, open, until};

on_both_columns!(
    a_prefetched_image_is_stored_whole_and_pulled_without_upstream,
    only_the_platforms_that_were_named_are_prefetched,
    an_image_that_cannot_be_prefetched_keeps_none_of_the_others_away,
    a_request_for_prefetch_that_makes_no_sense_is_refused_in_a_sentence,
    prefetching_again_costs_one_head_for_a_tag_and_nothing_for_a_digest,
    the_policy_for_platforms_says_what_an_index_brings_along,
    a_pull_does_not_wait_for_the_other_platforms,
    the_last_pulls_are_not_spent_on_prefetch,
    a_stranger_who_prefetches_what_does_not_exist_is_stopped,
    a_due_schedule_keeps_its_images_up_to_date,
    an_index_below_another_need_not_have_the_platform,
    an_image_of_too_many_manifests_is_refused_before_they_are_fetched,
    an_image_that_is_prefetched_again_counts_as_used,
    an_image_that_is_named_twice_is_stored_and_reported_once,
);

const AMD64: &str = "linux/amd64";
const FRESH: Duration = Duration::from_mins(10);
const DAY: Duration = Duration::from_hours(24);

async fn prefetch(world: &World, body: &Value) -> Vec<Value> {
    let answer = world.post("/_stopover/prefetch", body.to_string()).await;
    assert_eq!(answer.status, StatusCode::ACCEPTED, "{answer:?}");
    let body: Value = serde_json::from_slice(answer.bytes()).unwrap();
    body["images"].as_array().unwrap().clone()
}

fn digests<'a>(images: impl IntoIterator<Item = &'a ScriptedImage>) -> BTreeSet<String> {
    images.into_iter().flat_map(|image| &image.blobs).map(|(digest, _)| digest.to_string()).collect()
}

async fn stored(world: &World) -> BTreeSet<String> {
    world.settled().await;
    world.stored_blobs().await.into_iter().collect()
}

async fn a_prefetched_image_is_stored_whole_and_pulled_without_upstream(column: Column) {
    let world = World::on(column).await;
    let image = world.upstream.image("a/b", "1", &[b"one", b"two"]);
    let reports = prefetch(&world, &json!({ "images": ["test.local/a/b:1"] })).await;
    assert_eq!(reports[0]["digest"], image.digest.as_str());
    assert_eq!((&reports[0]["image"], &reports[0]["error"]), (&json!("test.local/a/b:1"), &Value::Null));
    let blobs = reports[0]["blobs"].as_array().unwrap();
    assert_eq!((blobs.len(), &blobs[1]["size"], &blobs[1]["stored"]), (3, &json!(3), &json!(false)));
    assert_eq!(stored(&world).await, digests([&image]));
    assert_eq!((world.upstream.count("/manifests/"), world.upstream.count("/blobs/")), (1, 3));
    world.upstream.kill();
    assert_eq!(world.get("/v2/test.local/a/b/manifests/1").await.bytes(), &image.manifest);
    for (digest, bytes) in &image.blobs {
        assert_eq!(world.pull(&format!("/v2/test.local/a/b/blobs/{digest}")).await.bytes(), bytes);
    }
    let reports = prefetch(&world, &json!({ "images": ["test.local/a/b:1"] })).await;
    assert!(reports[0]["blobs"].as_array().unwrap().iter().all(|blob| blob["stored"] == true), "{reports:?}");
}

async fn only_the_platforms_that_were_named_are_prefetched(column: Column) {
    let world = World::on(column).await;
    let (_, images) =
        world.upstream.index("a", "1", &[AMD64, "linux/arm64/v8", "linux/arm/v6", "linux/arm/v7", "unknown/unknown"]);
    let ask = json!({ "images": ["test.local/a:1"], "platforms": ["linux/arm64", "linux/arm"], "machine": AMD64 });
    prefetch(&world, &ask).await;
    assert_eq!(stored(&world).await, digests(&images[1..4]));
    assert_eq!(world.upstream.count("/manifests/"), 4, "the index and three of its children");
    // The machine that asks counts where neither request nor policy says anything.
    prefetch(&world, &json!({ "images": ["test.local/a:1"], "machine": AMD64 })).await;
    assert_eq!(stored(&world).await, digests(&images[..4]));
    let reports = prefetch(&world, &json!({ "images": ["test.local/a:1"], "platforms": ["linux/s390x"] })).await;
    let error = reports[0]["error"].as_str().unwrap();
    assert!(error.ends_with("it is for linux/amd64, linux/arm64, linux/arm/v6, linux/arm/v7"), "{error}");
}

async fn an_image_that_cannot_be_prefetched_keeps_none_of_the_others_away(column: Column) {
    let world = World::on(column).await;
    let image = world.upstream.image("a", "1", &[b"layer"]);
    let (_, images) = world.upstream.index("b", "1", &[AMD64, "linux/arm64"]);
    world.upstream.fault(images[0].digest.as_str(), Fault::Status(404, Vec::new(), String::new()));
    let names = ["test.local/none:1", "elsewhere.test/a:1", "test.local/A", "test.local/b:1", "test.local/a:1"];
    let reports = prefetch(&world, &json!({ "images": names, "platforms": [AMD64, "linux/arm64"] })).await;
    let errors: Vec<&str> = reports.iter().map(|report| report["error"].as_str().unwrap_or_default()).collect();
    assert!(errors[0].contains("no such manifest"), "{errors:?}");
    assert!(errors[1].contains("elsewhere.test is not configured"), "{errors:?}");
    assert!(errors[2].contains("lower-case"), "{errors:?}");
    assert!(errors[3].contains("no such manifest"), "one of its platforms: {errors:?}");
    assert_eq!((errors[4], &reports[4]["digest"]), ("", &json!(image.digest)));
    assert_eq!(stored(&world).await, digests([&image, &images[1]]));
}

async fn a_request_for_prefetch_that_makes_no_sense_is_refused_in_a_sentence(column: Column) {
    let world = World::on(column).await;
    for (body, status, text) in [
        ("nginx".to_owned(), 400, "the body must be like"),
        ("{}".to_owned(), 400, "missing field `images`"),
        (json!({ "images": [], "platforms": ["amd64"] }).to_string(), 400, "no platform like linux/amd64"),
        (json!({ "images": [], "platform": [AMD64] }).to_string(), 400, "unknown field `platform`"),
        (json!({ "x".repeat(100_000): [] }).to_string(), 400, "xxx…; the body must be like"),
        (json!({ "images": vec!["a"; 1001] }).to_string(), 413, "1000 at the most"),
        (json!({ "images": [], "platforms": vec![AMD64; 33] }).to_string(), 413, "32 at the most"),
        (" ".repeat(1024 * 1024 + 1), 413, ""),
    ] {
        let answer = world.post("/_stopover/prefetch", body).await;
        let text_of = String::from_utf8_lossy(answer.bytes());
        assert!(answer.status.as_u16() == status && text_of.contains(text), "{} {text_of}", answer.status);
    }
    assert!(world.upstream.requests().is_empty());
}

async fn prefetching_again_costs_one_head_for_a_tag_and_nothing_for_a_digest(column: Column) {
    let world = World::plan(column).settings("fresh = \"5m\"").start().await;
    let (digest, images) = world.upstream.index("a", "1", &[AMD64, "linux/arm64"]);
    let ask = json!({ "images": ["test.local/a:1"], "platforms": [AMD64] });
    prefetch(&world, &ask).await;
    world.settled().await;
    world.upstream.forget_requests();
    prefetch(&world, &ask).await;
    assert!(world.upstream.requests().is_empty(), "fresh");
    world.clock.advance(FRESH);
    prefetch(&world, &ask).await;
    assert_eq!((world.upstream.count("HEAD"), world.upstream.count("GET")), (1, 0));
    let by_digest = json!({ "images": [format!("test.local/a:1@{digest}")], "platforms": [AMD64] });
    prefetch(&world, &by_digest).await;
    assert_eq!(world.upstream.requests().len(), 1);
    let (_, moved) = world.upstream.index("a", "1", &["linux/riscv64", AMD64]);
    world.clock.advance(FRESH);
    world.upstream.forget_requests();
    prefetch(&world, &ask).await;
    assert_eq!(stored(&world).await, digests([&images[0], &moved[1]]));
    assert_eq!(world.upstream.count("HEAD"), 1);
    assert_eq!(moved[1].digest, images[0].digest, "the same image for amd64");
    assert_eq!(world.upstream.count("GET /v2/a/manifests/"), 1, "the new index");
}

async fn the_policy_for_platforms_says_what_an_index_brings_along(column: Column) {
    let platforms = [AMD64, "linux/arm64/v8", "linux/arm/v7", "unknown/unknown"];
    for (policy, brought) in [("\"requested\"", 0), ("[\"linux/amd64\", \"linux/arm64\"]", 2), ("\"all\"", 4)] {
        let world = World::plan(column).upstream(&format!("platforms = {policy}")).start().await;
        let (_, images) = world.upstream.index("a", "1", &platforms);
        assert_eq!(world.get("/v2/test.local/a/manifests/1").await.status, StatusCode::OK);
        assert_eq!(stored(&world).await, digests(&images[..brought]), "{policy}");
        assert_eq!(world.upstream.count("GET /v2/a/manifests/"), 1 + brought, "{policy}");
        world.upstream.forget_requests();
        assert_eq!(world.get("/v2/test.local/a/manifests/1").await.status, StatusCode::OK);
        assert!(world.upstream.requests().is_empty(), "what is stored is not asked for again");
    }
}

async fn a_pull_does_not_wait_for_the_other_platforms(column: Column) {
    let world = World::plan(column).upstream("platforms = \"all\"").start().await;
    let (index, images) = world.upstream.index("a", "1", &[AMD64, "linux/arm64"]);
    world.upstream.fault(images[1].digest.as_str(), Fault::Stalled);
    let answer = world.get("/v2/test.local/a/manifests/1").await;
    assert_eq!(answer.header("docker-content-digest"), index.as_str());
    until(|| world.upstream.count(images[1].digest.as_str()) > 0).await;
    world.upstream.heal();
    assert_eq!(stored(&world).await, digests(&images));
}

async fn the_last_pulls_are_not_spent_on_prefetch(column: Column) {
    let world = World::on(column).await;
    world.upstream.quota(100, 11);
    let known = world.upstream.image("a", "1", &[b"known"]);
    world.upstream.image("b", "1", &[b"new"]);
    assert_eq!(world.get("/v2/test.local/a/manifests/1").await.status, StatusCode::OK);
    world.settled().await;
    let reports = prefetch(&world, &json!({ "images": ["test.local/b:1", "test.local/a:1"] })).await;
    assert!(reports[0]["error"].as_str().unwrap().contains("pull"), "{reports:?}");
    assert_eq!(reports[1]["digest"], known.digest.as_str());
    assert_eq!(world.upstream.count("GET /v2/b/"), 0);
}

async fn a_stranger_who_prefetches_what_does_not_exist_is_stopped(column: Column) {
    let world = World::plan(column).settings("misses = 10").start().await;
    let names: Vec<String> = (0..100).map(|number| format!("test.local/a:random-{number}")).collect();
    let body = json!({ "images": names }).to_string();
    let answer = world.post_from("192.0.2.1", "/_stopover/prefetch", body).await;
    let text = String::from_utf8_lossy(answer.bytes());
    assert!(text.contains("too often"), "{text}");
    assert_eq!(world.upstream.requests().len(), 10);
}

async fn a_due_schedule_keeps_its_images_up_to_date(column: Column) {
    let schedule = "fresh = \"30d\"\n[[schedule]]\nevery = \"6h\"\nplatforms = [\"linux/amd64\"]\n\
                    images = [\"test.local/a:1\", \"test.local/b:1\", \"elsewhere.test/c\"]\n";
    let world = World::plan(column).settings(schedule).start().await;
    let (_, images) = world.upstream.index("a", "1", &[AMD64, "linux/arm64"]);
    let single = world.upstream.image("b", "1", &[b"single"]);
    // 1,800,000,000 is a multiple of six hours less two.
    let look = async || {
        world.cache.prefetch.request_due_schedules().await.unwrap();
        world.settled().await;
    };
    let mut requests = Vec::new();
    for _ in 0..13 {
        world.upstream.forget_requests();
        look().await;
        requests.push((world.upstream.count("HEAD"), world.upstream.count("GET")));
        world.clock.advance(Duration::from_hours(1));
    }
    assert_eq!(stored(&world).await, digests([&images[0], &single]));
    let due: Vec<_> = requests.iter().filter(|counts| **counts != (0, 0)).collect();
    assert_eq!(due, [&(0, 7), &(2, 0)], "then one HEAD a tag: {requests:?}");
    let moved = world.upstream.image("b", "1", &[b"moved"]);
    for _ in 0..6 {
        look().await;
        world.clock.advance(Duration::from_hours(1));
    }
    assert_eq!(stored(&world).await, digests([&images[0], &single, &moved]));
}

/// Puts an index of manifests that do not say what they are for under a tag.
fn index_of(world: &World, name: &str, tag: &str, digests: &[Digest]) -> Digest {
    let listed: Vec<Value> = digests.iter().map(|digest| json!({ "digest": digest, "size": 1 })).collect();
    let body = json!({ "schemaVersion": 2, "manifests": listed }).to_string();
    world.upstream.manifest(name, tag, MediaType::OciIndex.as_str(), body.as_bytes())
}

async fn an_index_below_another_need_not_have_the_platform(column: Column) {
    let world = World::on(column).await;
    let image = world.upstream.image("a", "image", &[b"layer"]);
    let (other, _) = world.upstream.index("a", "other", &["linux/s390x"]);
    let empty = index_of(&world, "a", "empty", &[]);
    index_of(&world, "a", "1", &[other, empty, image.digest.clone()]);
    let names = ["test.local/a:1", "test.local/a:other", "test.local/a:empty"];
    let reports = prefetch(&world, &json!({ "images": names, "platforms": [AMD64] })).await;
    assert_eq!(reports[0]["error"], Value::Null);
    assert_eq!(stored(&world).await, digests([&image]));
    for report in &reports[1..] {
        assert!(report["error"].as_str().unwrap().contains("none of the platforms"), "{report}");
    }
}

async fn an_image_of_too_many_manifests_is_refused_before_they_are_fetched(column: Column) {
    let world = World::on(column).await;
    let children: Vec<Digest> =
        (0..500).map(|number: u64| Digest::of(Algorithm::Sha256, &number.to_be_bytes())).collect();
    index_of(&world, "a", "1", &children);
    let reports = prefetch(&world, &json!({ "images": ["test.local/a:1"], "platforms": [AMD64] })).await;
    let error = reports[0]["error"].as_str().unwrap_or_default();
    assert!(error.contains("more than 500 manifests"), "{reports:?}");
    assert_eq!(world.upstream.count("/manifests/"), 1);
}

async fn an_image_that_is_prefetched_again_counts_as_used(column: Column) {
    let settings = "keep = \"30d\"\n[[schedule]]\nevery = \"1h\"\nplatforms = \"all\"\nimages = [\"test.local/b:1\"]\n";
    let world = World::plan(column).settings(settings).start().await;
    let images = ["a", "b"].map(|name| world.upstream.image(name, "1", &[name.as_bytes()]));
    for image in &images {
        let path = format!("/v2/test.local/{}/manifests/1", image.name);
        assert_eq!(world.get(&path).await.status, StatusCode::OK);
    }
    world.settled().await;
    world.clock.advance(29 * DAY);
    prefetch(&world, &json!({ "images": ["test.local/a:1"] })).await;
    assert_eq!(world.cache.prefetch.request_due_schedules().await.unwrap(), 1);
    world.settled().await;
    let entries: Vec<Entry> = world.cache.core.storage.ledger.entries().try_collect().await.unwrap();
    for entry in entries {
        let used_at = match entry {
            Entry::Membership { used_at, .. } => Some(used_at),
            Entry::Blob { record, .. } => record.value.used_at,
            Entry::Reference { .. }
            | Entry::Manifest(_)
            | Entry::Holding { .. }
            | Entry::Listing { .. }
            | Entry::Standing { .. } => continue,
        };
        assert_eq!(used_at, Some(world.clock.now()));
    }
    world.clock.advance(6 * DAY);
    assert_eq!(world.cache.operate.sweep(false).await.unwrap().manifests, [""; 0]);
    assert_eq!(stored(&world).await, digests(&images));
}

async fn an_image_that_is_named_twice_is_stored_and_reported_once(column: Column) {
    let world = World::on(column).await;
    let image = world.upstream.image("a", "latest", &[b"layer"]);
    let by_digest = format!("test.local/a@{}", image.digest);
    let names = ["test.local/a", "test.local/a:latest", "test.local/a", by_digest.as_str(), "test.local/b"];
    let reports = prefetch(&world, &json!({ "images": names })).await;
    let reported: Vec<&str> = reports.iter().map(|report| report["image"].as_str().unwrap()).collect();
    assert_eq!(reported, ["test.local/a", by_digest.as_str(), "test.local/b"]);
    assert_eq!(stored(&world).await, digests([&image]));
}

/// Only embedded storage answers without a wait in which the time could end.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_request_for_what_is_stored_keeps_its_time_too() {
    let world = World::plan(Column::Embedded)
        .settings("wait = \"1ms\"\nfresh = \"1h\"")
        .upstream("platforms = \"all\"")
        .start()
        .await;
    let image = world.upstream.image("a", "0", &[b"layer"]);
    let platforms: Vec<String> = (0..400).map(|number| format!("linux/a{number}")).collect();
    let (index, children) = world.upstream.index("b", "1", &platforms.iter().map(String::as_str).collect::<Vec<_>>());
    let mut paths = vec![format!("b/manifests/{index}")];
    paths.extend(children.iter().map(|child| format!("b/manifests/{}", child.digest)));
    for tag in 0..500 {
        world.upstream.manifest("a", &tag.to_string(), MediaType::OciManifest.as_str(), &image.manifest);
        paths.push(format!("a/manifests/{tag}"));
    }
    for path in paths {
        assert_eq!(world.get(&format!("/v2/test.local/{path}")).await.status, StatusCode::OK);
    }
    world.settled().await;
    world.upstream.forget_requests();
    let mut left: Vec<String> = (0..500).map(|tag| format!("test.local/a:{tag}")).collect();
    for round in 0.. {
        let reports = prefetch(&world, &json!({ "images": left })).await;
        assert_eq!(reports.len(), left.len(), "each has a report");
        let again = reports.iter().filter(|report| report["again"] == true);
        left = again.map(|report| report["image"].as_str().unwrap().to_owned()).collect();
        assert!(round > 0 || !left.is_empty(), "500 images in a millisecond");
        if left.is_empty() {
            break;
        }
    }
    // The time of one image ends, too.
    let reports = prefetch(&world, &json!({ "images": [format!("test.local/b@{index}")] })).await;
    assert_eq!(reports[0]["again"], true, "400 of its platforms in a millisecond: {reports:?}");
    assert!(world.upstream.requests().is_empty(), "all of it was here");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_answer_names_as_many_blobs_as_the_largest_image_has() {
    let world = World::on(Column::Embedded).await;
    let layers: Vec<Vec<u8>> = (0..998).map(|number: u32| number.to_be_bytes().to_vec()).collect();
    let layers: Vec<&[u8]> = layers.iter().map(Vec::as_slice).collect();
    let mut names: Vec<String> = Vec::new();
    for tag in 0..22 {
        world.upstream.image("a", &tag.to_string(), &layers);
        names.push(format!("test.local/a:{tag}"));
    }
    let reports = prefetch(&world, &json!({ "images": names })).await;
    let (again, done): (Vec<_>, Vec<_>) = reports.into_iter().partition(|report| report["again"] == true);
    assert_eq!((done.len(), again.len()), (20, 2), "20 of 999 blobs each");
    let left: Vec<&str> = again.iter().map(|report| report["image"].as_str().unwrap()).collect();
    let reports = prefetch(&world, &json!({ "images": left })).await;
    assert!(reports.iter().all(|report| report["blobs"].as_array().unwrap().len() == 999), "{left:?}");
}

/// Only the embedded queue has to remember them itself.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_platforms_that_a_policy_wants_are_found_again_after_a_restart() {
    let upstream = Scripted::start().unwrap();
    let (_, images) = upstream.index("a", "1", &[AMD64, "linux/arm64", "linux/s390x"]);
    upstream.fault(images[1].digest.as_str(), Fault::Stalled);
    let data = tempfile::tempdir().unwrap();
    let settings = format!("platforms = \"all\"\n[upstreams.\"test.local\"]\nurl = \"{}\"", upstream.url());
    let start = async || open(data.path(), &settings).await;
    let local = start().await;
    let repository = Repository { upstream: "test.local".parse().unwrap(), name: "a".parse().unwrap() };
    local.cache.pull.manifest(&repository, &"1".parse().unwrap(), Want::GET).await.unwrap();
    until(|| upstream.count(images[1].digest.as_str()) > 0).await;
    local.stop(Duration::ZERO).await;
    assert_eq!(upstream.count(images[2].digest.as_str()), 0);
    upstream.heal();
    // What was being fetched holds the directory a moment longer.
    until(|| EmbeddedLedger::open(&data.path().join("ledger.redb")).is_ok()).await;
    let local = start().await;
    local.settled().await;
    upstream.kill();
    for (image, (digest, _)) in images.iter().flat_map(|image| image.blobs.iter().map(move |blob| (image, blob))) {
        let pulled = local.cache.pull.blob(&repository, digest, Want::HEAD).await.unwrap();
        assert_eq!(pulled.served, Served::Hit, "{}", image.digest);
    }
}
