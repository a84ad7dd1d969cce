//! What one caller can have stored, and what becomes of the rest. Each test is somebody who wants more than that.

use std::collections::BTreeSet;
use std::time::Duration;

use futures_util::{TryStreamExt as _, future};
use http::{Method, StatusCode};
use serde_json::{Value, json};
use stopover::config::Cold;
use stopover::oci::{Algorithm, Digest, Platforms};
use stopover::ports::{ImageJob, Priority};
use stopover::records::Entry;
use support::on_both_columns;
use support::scripted::{Fault, ScriptedImage};
use support::world::{Answer, Column, World};

use crate::budgets::{FRESH, OTHER, STRANGER, assert_over, entries, repository, tag, tag_of};

on_both_columns!(
    what_is_over_the_budget_of_new_bytes_is_not_stored,
    what_is_stored_pulls_as_often_as_wanted_and_looking_for_what_is_not_is_a_miss,
    a_blob_over_the_budget_is_redirected_and_not_stored,
    many_clients_that_want_one_cold_blob_cost_one_question_where_it_is,
    whoever_keeps_asking_where_cold_blobs_are_pays_for_it,
    the_platforms_of_an_index_are_paid_for_by_whoever_pulled_it,
    what_is_prefetched_is_paid_for_by_whoever_asks,
    a_blob_that_is_too_large_is_refused_with_the_key_and_nothing_of_it_is_stored,
    what_is_refused_as_too_large_is_fetched_once,
    referrers_are_no_way_around_a_budget,
    manifests_are_paid_for_like_blobs,
);

fn blobs(image: &ScriptedImage) -> Vec<String> {
    image.blobs.iter().map(|(digest, _)| format!("/v2/test.local/{}/blobs/{digest}", "a")).collect()
}

fn stored_of(image: &ScriptedImage) -> Vec<String> {
    let digests: BTreeSet<String> = image.blobs.iter().map(|(digest, _)| digest.to_string()).collect();
    digests.into_iter().collect()
}

/// Room for one image with a layer of 8 kB, and for the configuration of another.
const ONE_IMAGE: &str = "new_bytes = \"10kB\"";

async fn what_is_over_the_budget_of_new_bytes_is_not_stored(column: Column) {
    let world = World::plan(column).cold(Cold::Wait).settings(ONE_IMAGE).start().await;
    let first = world.upstream.image("a", "1", &[&[1; 8000]]);
    let second = world.upstream.image("a", "2", &[&[2; 8000]]);
    assert_eq!(world.get_from(STRANGER, &tag("a", "1")).await.status, StatusCode::OK);
    world.settled().await;
    let stored = world.stored_blobs().await;
    let refused = world.get_from(STRANGER, &tag("a", "2")).await;
    assert_over(&refused, "new bytes", refused.header("retry-after"));
    assert_eq!(world.send_from(STRANGER, Method::HEAD, &tag("a", "2")).await.status, StatusCode::OK, "it is there");
    world.settled().await;
    assert_eq!(world.stored_blobs().await, stored, "nothing of it, although its configuration would fit");
    let layer = &second.blobs.iter().max_by_key(|(_, bytes)| bytes.len()).unwrap().0;
    let path = format!("/v2/test.local/a/blobs/{layer}");
    let refused = world.get_from(STRANGER, &path).await;
    assert_over(&refused, "new bytes", refused.header("retry-after"));
    world.settled().await;
    assert_eq!(world.stored_blobs().await, stored, "nor on demand");
    let head = world.send_from(STRANGER, Method::HEAD, &path).await;
    assert_eq!((head.status, head.header("content-length")), (StatusCode::OK, "8000"));
    assert_eq!(world.upstream.count("GET /v2/a/manifests/"), 2, "it was fetched once");
    // Whatever was stored, and for whom: it pulls.
    for path in [tag("a", "2")].into_iter().chain(blobs(&second)) {
        let answer = world.get_from(OTHER, &path).await;
        assert!(matches!(answer.status, StatusCode::OK | StatusCode::TEMPORARY_REDIRECT), "{answer:?}");
    }
    for (number, image) in [("1", &first), ("2", &second)] {
        assert_eq!(world.get_from(STRANGER, &tag("a", number)).await.status, StatusCode::OK, "{number}");
        for path in blobs(image) {
            let answer = world.get_from(STRANGER, &path).await;
            assert!(matches!(answer.status, StatusCode::OK | StatusCode::TEMPORARY_REDIRECT), "{answer:?}");
        }
    }
    let third = world.upstream.image("a", "3", &[&[3; 8000]]);
    let refused = world.get_from(STRANGER, &tag("a", "3")).await;
    assert_over(&refused, "new bytes", refused.header("retry-after"));
    world.clock.advance(Duration::from_secs(refused.header("retry-after").parse().unwrap()));
    for path in [tag("a", "3")].into_iter().chain(blobs(&third)) {
        let answer = world.get_from(STRANGER, &path).await;
        assert!(matches!(answer.status, StatusCode::OK | StatusCode::TEMPORARY_REDIRECT), "{answer:?}");
    }
    assert!(world.stored_blobs().await.contains(&third.blobs[1].0.to_string()));
}

async fn what_is_stored_pulls_as_often_as_wanted_and_looking_for_what_is_not_is_a_miss(column: Column) {
    let settings = "new_bytes = \"0B\"\nmisses = 5\n\
                    [[schedule]]\nevery = \"1h\"\nplatforms = \"all\"\nimages = [\"test.local/a:1\"]\n";
    let world = World::plan(column).cold(Cold::Wait).settings(settings).start().await;
    let image = world.upstream.image("a", "1", &[b"layer"]);
    world.upstream.image("a", "2", &[b"another"]);
    world.cache.prefetch.request_due_schedules().await.unwrap();
    world.settled().await;
    for _ in 0..10 {
        assert_eq!(world.get_from(STRANGER, &tag("a", "1")).await.bytes(), &image.manifest);
    }
    let mut refused = Vec::new();
    for _ in 0..10 {
        refused.push(world.get_from(STRANGER, &tag("a", "2")).await.status);
    }
    assert!(refused.starts_with(&[StatusCode::FORBIDDEN]), "{refused:?}");
    assert!(refused.ends_with(&[StatusCode::TOO_MANY_REQUESTS; 5]), "{refused:?}");
}

async fn a_blob_over_the_budget_is_redirected_and_not_stored(column: Column) {
    let settings =
        "new_bytes = \"0B\"\n[[schedule]]\nevery = \"1h\"\nplatforms = \"all\"\nimages = [\"test.local/a:1\"]\n";
    let world = World::plan(column).cold(Cold::Redirect).settings(settings).start().await;
    let image = world.upstream.image("a", "1", &[b"layer"]);
    assert_eq!(world.get_from(STRANGER, &tag("a", "1")).await.bytes(), &image.manifest);
    for path in blobs(&image) {
        let answer = world.get_from(STRANGER, &path).await;
        assert_eq!(answer.status, StatusCode::TEMPORARY_REDIRECT);
        assert!(answer.header("location").starts_with(&world.upstream.url()), "{answer:?}");
    }
    world.settled().await;
    assert!(world.stored_blobs().await.is_empty());
    // A schedule is the operator's, and nobody's expense.
    assert_eq!(world.cache.prefetch.request_due_schedules().await.unwrap(), 1);
    world.settled().await;
    assert_eq!(world.stored_blobs().await, stored_of(&image));
}

/// An image whose manifest is stored, and whose larger layers are redirected: there is room for the manifest alone.
async fn redirecting(column: Column, misses: usize, layers: &[&[u8]]) -> (World, ScriptedImage) {
    let manifest = World::on(column).await.upstream.image("a", "1", layers).manifest.len();
    let settings = format!("new_bytes = \"{manifest}B\"\nmisses = {misses}");
    let world = World::plan(column).cold(Cold::Redirect).settings(&settings).start().await;
    let image = world.upstream.image("a", "1", layers);
    (world, image)
}

async fn many_clients_that_want_one_cold_blob_cost_one_question_where_it_is(column: Column) {
    let (world, image) = redirecting(column, 2, &[&[1; 8000]]).await;
    assert_eq!(world.get_from(OTHER, &tag("a", "1")).await.status, StatusCode::OK);
    let path = &blobs(&image)[1];
    world.upstream.fault("/blobs/", Fault::Late(Duration::from_millis(200)));
    let callers = (0..200).map(|number| format!("198.18.0.{number}"));
    let asked = callers.map(async |caller| world.get_from(&caller, path).await);
    for answer in future::join_all(asked).await {
        assert_eq!(answer.status, StatusCode::TEMPORARY_REDIRECT, "{answer:?}");
    }
    assert_eq!(world.upstream.count("/blobs/"), 1);
    // One caller, again and again: what is known costs nothing.
    for _ in 0..10 {
        assert_eq!(world.get_from(STRANGER, path).await.status, StatusCode::TEMPORARY_REDIRECT);
    }
    assert_eq!(world.upstream.count("/blobs/"), 1);
    // Its URL does not work for ever.
    world.clock.advance(Duration::from_secs(10));
    assert_eq!(world.get_from(STRANGER, path).await.status, StatusCode::TEMPORARY_REDIRECT);
    assert_eq!(world.upstream.count("/blobs/"), 2);
}

async fn whoever_keeps_asking_where_cold_blobs_are_pays_for_it(column: Column) {
    for (there, found) in [(true, StatusCode::TEMPORARY_REDIRECT), (false, StatusCode::NOT_FOUND)] {
        let layers: Vec<[u8; 8000]> = (0..30).map(|number| [number; 8000]).collect();
        let layers: Vec<&[u8]> = layers.iter().map(|layer| &layer[..]).collect();
        let (world, image) = redirecting(column, 10, &layers).await;
        assert_eq!(world.get_from(OTHER, &tag("a", "1")).await.status, StatusCode::OK);
        if !there {
            world.upstream.fault("/blobs/", Fault::Status(404, vec![], String::new()));
        }
        let mut answers = Vec::new();
        for path in &blobs(&image)[1..] {
            answers.push(world.get_from(STRANGER, path).await.status);
        }
        assert_eq!(answers, [vec![found; 10], vec![StatusCode::TOO_MANY_REQUESTS; 20]].concat(), "{there}");
        assert_eq!(world.upstream.count("/blobs/"), 10, "{there}");
    }
}

async fn the_platforms_of_an_index_are_paid_for_by_whoever_pulled_it(column: Column) {
    let platforms = ["linux/amd64", "linux/arm64", "linux/s390x", "linux/ppc64le"];
    for (pulls, fetched) in [(3, 3), (100, 5)] {
        let settings = format!("pulls = {pulls}");
        let world = World::plan(column).settings(&settings).upstream("platforms = \"all\"").start().await;
        world.upstream.index("a", "1", &platforms);
        assert_eq!(world.get_from(STRANGER, &tag("a", "1")).await.status, StatusCode::OK);
        world.settled().await;
        let fetched_now = world.upstream.count("GET /v2/a/manifests/");
        // On AWS the filler counts for itself: in these tests it is the same process.
        assert_eq!(fetched_now, fetched, "{pulls}");
    }
    let world = World::plan(column).settings("new_bytes = \"0B\"").upstream("platforms = \"all\"").start().await;
    world.upstream.index("a", "1", &platforms);
    assert_eq!(world.get_from(STRANGER, &tag("a", "1")).await.status, StatusCode::OK);
    world.settled().await;
    assert!(world.stored_blobs().await.is_empty());
}

async fn what_is_prefetched_is_paid_for_by_whoever_asks(column: Column) {
    let world = World::plan(column).settings("new_bytes = \"0B\"\npulls = 1").start().await;
    for name in ["a", "b"] {
        world.upstream.image(name, "1", &[name.as_bytes()]);
    }
    let body = json!({ "images": ["test.local/a:1", "test.local/b:1"] }).to_string();
    let answer = world.post_from(STRANGER, "/_stopover/prefetch", body).await;
    let answer: Value = serde_json::from_slice(answer.bytes()).unwrap();
    let mut errors: Vec<_> = (0..2).map(|at| answer["images"][at]["error"].as_str().unwrap_or_default()).collect();
    errors.sort_unstable();
    assert!(errors[0].contains("new bytes") && errors[1].contains("in an hour"), "{answer}");
    world.settled().await;
    assert!(world.stored_blobs().await.is_empty());
    let fetched = ["a", "b"].map(|name| world.upstream.count(&format!("GET /v2/{name}/manifests/")));
    assert_eq!(fetched.iter().sum::<usize>(), 1);
}

async fn a_blob_that_is_too_large_is_refused_with_the_key_and_nothing_of_it_is_stored(column: Column) {
    for cold in [Cold::Redirect, Cold::Wait] {
        let world = World::plan(column).cold(cold).upstream("max_blob = \"2kB\"").start().await;
        let large = world.upstream.image("a", "large", &[b"small", &[1; 2001]]);
        let fits = world.upstream.image("a", "fits", &[&[2; 2000]]);
        let before = entries(&world).await;
        let refused = |answer: &Answer| {
            let (code, message) = answer.error();
            assert_eq!((answer.status, code.as_str()), (StatusCode::FORBIDDEN, "DENIED"), "{message}");
            assert!(
                message.contains("2001 bytes") && message.contains("upstreams.\"test.local\".max_blob"),
                "{message}"
            );
        };
        refused(&world.get(&tag("a", "large")).await);
        refused(&world.get(&tag("a", large.digest.as_str())).await);
        let body = json!({ "images": ["test.local/a:large"] }).to_string();
        let prefetched = world.post("/_stopover/prefetch", body).await;
        assert!(String::from_utf8_lossy(prefetched.bytes()).contains("max_blob"), "{prefetched:?}");
        world.settled().await;
        assert!(world.stored_blobs().await.is_empty());
        assert!(entries(&world).await <= before + 3, "nothing but that it was asked for and shown");
        // Nor one that no manifest names.
        let layer = large.blobs.iter().find(|(_, bytes)| bytes.len() == 2001).unwrap();
        refused(&world.get(&format!("/v2/test.local/a/blobs/{}", layer.0)).await);
        assert_eq!(world.get(&tag("a", "fits")).await.bytes(), &fits.manifest);
        world.settled().await;
        assert_eq!(world.stored_blobs().await, stored_of(&fits));
    }
}

async fn what_is_refused_as_too_large_is_fetched_once(column: Column) {
    let world = World::plan(column).upstream("max_blob = \"2kB\"").start().await;
    let large = world.upstream.image("a", "1", &[&[1; 2001]]);
    let by_digest = tag("a", large.digest.as_str());
    for _ in 0..2 {
        for path in [&tag("a", "1"), &by_digest] {
            assert_eq!(world.get_from(STRANGER, path).await.error().0, "DENIED", "{path}");
        }
        assert_eq!(world.upstream.count("GET /v2/a/manifests/"), 1);
        world.clock.advance(FRESH);
    }
    // Nor is it worth a second try to whoever fetches ahead of demand.
    let image = ImageJob {
        repository: repository("a"),
        reference: tag_of("1"),
        platforms: Platforms::All,
        priority: Priority::Refresh,
        payer: None,
    };
    world.cache.prefetch.run(&image).await.unwrap();
    assert_eq!(world.upstream.count("GET /v2/a/manifests/"), 1);
    assert_eq!(
        world.upstream.count("HEAD /v2/a/manifests/"),
        2,
        "what a tag is, when it is due and when it is checked"
    );
    // What it is next is looked at anew.
    let fits = world.upstream.image("a", "1", &[&[2; 2000]]);
    world.clock.advance(FRESH * 10);
    assert_eq!(world.get_from(STRANGER, &tag("a", "1")).await.bytes(), &fits.manifest);
}

async fn referrers_are_no_way_around_a_budget(column: Column) {
    let world = World::plan(column).settings("new_bytes = \"20kB\"").start().await;
    let subject = world.upstream.image("a", "1", &[b"small"]);
    let digest = Digest::of(Algorithm::Sha256, &subject.manifest);
    assert_eq!(world.get_from(STRANGER, &tag("a", "1")).await.status, StatusCode::OK);
    world.settled().await;
    // Somebody has put an image with a large layer where the list of referrers would be.
    let large = world.upstream.image("a", &digest.to_string().replace(':', "-"), &[&vec![7; 100_000]]);
    let layer = &large.blobs.iter().max_by_key(|(_, bytes)| bytes.len()).unwrap().0;
    let path = format!("/v2/test.local/a/referrers/{digest}");
    for _ in 0..3 {
        world.send_with(STRANGER, Method::GET, &path, &[("cache-control", "no-cache")]).await;
    }
    world.settled().await;
    assert!(!world.stored_blobs().await.contains(&layer.to_string()), "it is over the budget");
}

async fn manifests_are_paid_for_like_blobs(column: Column) {
    let world = World::plan(column).settings("new_bytes = \"1MB\"").start().await;
    let padded = |number: u32| {
        json!({ "schemaVersion": 2, "manifests": [], "annotations": { "padding": format!("{number}{}", " ".repeat(300_000)) } })
            .to_string()
    };
    let paths = (0..6).map(|number| {
        let (tag, index) = (format!("padded-{number}"), padded(number));
        world.upstream.manifest("a", &tag, "application/vnd.oci.image.index.v1+json", index.as_bytes());
        (format!("/v2/test.local/a/manifests/{tag}"), index)
    });
    let paths: Vec<_> = paths.collect();
    let stored = async || {
        let entries: Vec<Entry> = world.cache.core.storage.ledger.entries().try_collect().await.unwrap();
        entries.iter().filter(|entry| matches!(entry, Entry::Manifest(_))).count()
    };
    for (path, index) in &paths {
        // What is not stored is passed on, and not fetched again for each pull.
        for _ in 0..3 {
            assert_eq!(world.get_from(STRANGER, path).await.bytes(), index.as_bytes());
        }
    }
    assert_eq!(stored().await, 3);
    assert_eq!(world.upstream.count("GET /v2/a/manifests/"), 6);
    // Another caller has the same stored at its own expense.
    world.clock.advance(Duration::from_secs(2));
    for (path, _) in &paths[3..] {
        assert_eq!(world.get_from(OTHER, path).await.status, StatusCode::OK);
    }
    assert_eq!(stored().await, 6);
    assert_eq!(world.upstream.count("GET /v2/a/manifests/"), 6);
}
