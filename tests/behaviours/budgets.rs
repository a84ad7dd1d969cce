//! What one caller can make the cache ask of upstream, and store. Each test is somebody who wants more than that.

use std::collections::BTreeSet;
use std::time::Duration;

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use futures_util::{StreamExt as _, future, stream};
use http::{Method, StatusCode};
use serde_json::{Value, json};
use stopover::access::{RobotAnswer, RobotCommand};
use stopover::budget::Payer;
use stopover::config::Cold;
use stopover::error::PullError;
use stopover::oci::{Algorithm, Digest, Page, Platforms, Reference, Repository};
use stopover::ports::{ImageJob, Priority};
use stopover::pull::Want;
use stopover::upstream::UpstreamError;
use support::on_both_columns;
use support::scripted::{Fault, ScriptedImage};
use support::world::{Answer, Column, World};

on_both_columns!(
    ten_thousand_random_tags_by_one_principal_spend_its_budget_and_nothing_else,
    a_stranger_who_asks_for_random_tags_is_stopped_until_time_has_passed,
    whoever_has_no_misses_left_gets_what_a_tag_has_moved_to,
    whoever_calls_from_all_of_an_ipv6_network_has_one_budget,
    whoever_asks_for_everything_at_once_gets_no_further,
    whoever_leaves_before_the_answer_has_paid,
    new_manifests_are_paid_for_by_whoever_has_them_fetched,
    a_caller_without_pulls_gets_what_a_tag_was_and_what_is_stored_under_other_names,
    a_cold_node_with_sixty_images_is_not_stopped,
    what_is_over_the_budget_of_new_bytes_is_not_stored,
    a_blob_over_the_budget_is_redirected_and_not_stored,
    many_clients_that_want_one_cold_blob_cost_one_question_where_it_is,
    whoever_keeps_asking_where_cold_blobs_are_pays_for_it,
    the_platforms_of_an_index_are_paid_for_by_whoever_pulled_it,
    what_is_prefetched_is_paid_for_by_whoever_asks,
    a_blob_that_is_too_large_is_refused_with_the_key_and_nothing_of_it_is_stored,
    what_is_refused_as_too_large_is_fetched_once,
    referrers_are_no_way_around_a_budget,
    a_check_is_paid_for_whatever_it_finds,
    what_another_instance_knows_to_be_absent_costs_no_miss,
);

const STRANGER: &str = "192.0.2.1";
const OTHER: &str = "192.0.2.2";
const FRESH: Duration = Duration::from_mins(6);

fn tag(name: &str, tag: &str) -> String {
    format!("/v2/test.local/{name}/manifests/{tag}")
}

fn repository(name: &str) -> Repository {
    Repository { upstream: "test.local".parse().unwrap(), name: name.parse().unwrap() }
}

fn tag_of(tag: &str) -> Reference {
    tag.parse().unwrap()
}

fn blobs(image: &ScriptedImage) -> Vec<String> {
    image.blobs.iter().map(|(digest, _)| format!("/v2/test.local/{}/blobs/{digest}", "a")).collect()
}

fn stored_of(image: &ScriptedImage) -> Vec<String> {
    let digests: BTreeSet<String> = image.blobs.iter().map(|(digest, _)| digest.to_string()).collect();
    digests.into_iter().collect()
}

fn assert_over(answer: &Answer, words: &str, seconds: &str) {
    let (code, message) = answer.error();
    // Clients wait with 429, and say why with 403.
    let soon = seconds.parse::<u64>().unwrap() <= 60;
    let expected =
        if soon { (StatusCode::TOO_MANY_REQUESTS, "TOOMANYREQUESTS") } else { (StatusCode::FORBIDDEN, "DENIED") };
    assert_eq!((answer.status, code.as_str()), expected, "{message}");
    assert!(message.contains(words), "{message}");
    assert_eq!(answer.header("retry-after"), seconds, "{message}");
}

/// `Authorization` with a token of a new robot.
async fn robot(world: &World, name: &str) -> String {
    let command = RobotCommand::Add { name: name.parse().unwrap(), expires: None };
    let RobotAnswer::Secret { secret, .. } = world.cache.robots(command).await.unwrap() else { panic!("no secret") };
    let basic = format!("Basic {}", BASE64_STANDARD.encode(format!("{name}:{}", secret.as_str())));
    let headers = [("host", "cache.test"), ("authorization", basic.as_str())];
    let answer = world.get_with(STRANGER, "/token?service=stopover", &headers).await;
    let body: Value = serde_json::from_slice(answer.bytes()).unwrap();
    format!("Bearer {}", body["token"].as_str().unwrap())
}

async fn entries(world: &World) -> usize {
    world.cache.ledger.entries().count().await
}

async fn ten_thousand_random_tags_by_one_principal_spend_its_budget_and_nothing_else(column: Column) {
    const BUDGET: usize = 50;
    let settings = format!(
        "misses = {BUDGET}\n[access]\nrobots = true\nsigning_keys = {{ env = \"TEST_KEYS\" }}\nanonymous = true"
    );
    let world = World::plan(column).settings(&settings).start().await;
    let image = world.upstream.image("a", "1", &[b"layer"]);
    let (attacker, neighbour) = (robot(&world, "attacker").await, robot(&world, "neighbour").await);
    let get = async |authorization: &str, address: &str, path: &str| {
        world.get_with(address, path, &[("authorization", authorization)]).await
    };
    assert_eq!(get(&attacker, STRANGER, &tag("a", "1")).await.status, StatusCode::OK);
    world.settled().await;
    world.upstream.forget_requests();
    let (before, stored) = (entries(&world).await, world.stored_blobs().await);
    let (get, attacker) = (&get, attacker.as_str());
    let random = stream::iter(0..10_000).map(|number| async move {
        // From another address each time, and in another repository.
        let address = format!("198.18.{}.{}", number / 256, number % 256);
        let path = match number % 3 {
            0 => tag("a", &format!("random-{number}")),
            1 => tag(&format!("random-{number}"), "1"),
            _ => format!("/v2/test.local/a/blobs/sha256:{number:064x}"),
        };
        get(attacker, &address, &path).await.status
    });
    let mut refused = 0;
    let mut random = random.buffer_unordered(32);
    while let Some(status) = random.next().await {
        assert!(matches!(status, StatusCode::NOT_FOUND | StatusCode::TOO_MANY_REQUESTS), "{status}");
        refused += usize::from(status == StatusCode::TOO_MANY_REQUESTS);
    }
    drop(random);
    assert_eq!(refused, 10_000 - BUDGET);
    assert!(world.upstream.requests().len() <= BUDGET, "{}", world.upstream.requests().len());
    assert!(entries(&world).await <= before + BUDGET, "only what was asked is remembered");
    assert_eq!(world.stored_blobs().await, stored);
    assert_eq!(get(attacker, STRANGER, &tag("a", "1")).await.bytes(), &image.manifest, "what is stored");
    for (authorization, name) in [(neighbour.as_str(), "b"), ("", "c")] {
        let image = world.upstream.image(name, "1", &[name.as_bytes()]);
        let headers = [("authorization", authorization)];
        let headers = if authorization.is_empty() { &[][..] } else { &headers };
        let answer = world.get_with(STRANGER, &tag(name, "1"), headers).await;
        assert_eq!(answer.bytes(), &image.manifest, "everybody else has a budget of their own");
    }
}

async fn a_stranger_who_asks_for_random_tags_is_stopped_until_time_has_passed(column: Column) {
    let world = World::plan(column).settings("misses = 10").start().await;
    let ask = async |name: &str| world.get_from(STRANGER, &tag("a", name)).await;
    for number in 0..10 {
        assert_eq!(ask(&format!("random-{number}")).await.status, StatusCode::NOT_FOUND);
    }
    assert_over(&ask("random-10").await, "too often", "6");
    world.clock.advance(Duration::from_secs(6));
    assert_eq!(ask("late").await.status, StatusCode::NOT_FOUND, "one more");
    assert_over(&ask("later").await, "too often", "6");
}

async fn whoever_has_no_misses_left_gets_what_a_tag_has_moved_to(column: Column) {
    let world = World::plan(column).settings("misses = 1").start().await;
    let old = world.upstream.image("a", "1", &[b"old"]);
    let get = async |name: &str| world.get_from(STRANGER, &tag("a", name)).await;
    assert_eq!(get("1").await.bytes(), &old.manifest);
    world.settled().await;
    world.clock.advance(FRESH);
    // A tag that is known is no miss, stale or not.
    assert_eq!(get("none").await.status, StatusCode::NOT_FOUND);
    assert_eq!(get("more").await.status, StatusCode::TOO_MANY_REQUESTS);
    assert_eq!(get("1").await.header("x-stopover"), "revalidated");
    let new = world.upstream.image("a", "1", &[b"new"]);
    world.clock.advance(FRESH);
    assert_eq!(get("other").await.status, StatusCode::NOT_FOUND);
    assert_eq!(get("more").await.status, StatusCode::TOO_MANY_REQUESTS);
    assert_eq!(get("1").await.bytes(), &new.manifest);
}

async fn whoever_calls_from_all_of_an_ipv6_network_has_one_budget(column: Column) {
    let world = World::plan(column).settings("misses = 10").start().await;
    let mut found = Vec::new();
    for number in 0..100 {
        let address = format!("2001:db8::{number:x}:1");
        found.push(world.get_from(&address, &tag("a", &format!("random-{number}"))).await.status);
    }
    assert_eq!(found.iter().filter(|status| **status == StatusCode::NOT_FOUND).count(), 10);
    assert_eq!(world.upstream.requests().len(), 10);
    assert_eq!(world.get_from("2001:db8:0:1::1", &tag("a", "other")).await.status, StatusCode::NOT_FOUND);
}

async fn whoever_asks_for_everything_at_once_gets_no_further(column: Column) {
    let world = World::plan(column).settings("misses = 10").start().await;
    let paths: Vec<String> = (0..500).map(|number| tag("a", &format!("random-{number}"))).collect();
    let answers = future::join_all(paths.iter().map(|path| world.get_from(STRANGER, path))).await;
    assert_eq!(answers.iter().filter(|answer| answer.status == StatusCode::NOT_FOUND).count(), 10);
    assert_eq!(world.upstream.requests().len(), 10);
}

async fn whoever_leaves_before_the_answer_has_paid(column: Column) {
    let world = World::plan(column).settings("misses = 4").start().await;
    world.upstream.fault("random", Fault::Late(Duration::from_secs(2)));
    world.upstream.fault("/blobs/", Fault::Late(Duration::from_secs(2)));
    for path in (0..4).map(|number| match number % 2 {
        0 => tag("a", &format!("random-{number}")),
        _ => format!("/v2/test.local/a/blobs/sha256:{number:064x}"),
    }) {
        let before = world.upstream.requests().len();
        tokio::select! {
            answer = world.get_from(STRANGER, &path) => panic!("{answer:?}"),
            () = support::world::until(|| world.upstream.requests().len() > before) => {}
        }
    }
    // The answers come, and nobody is there to hear them.
    let over = async || world.get_from(STRANGER, &tag("a", "random-more")).await.status;
    assert_eq!(over().await, StatusCode::TOO_MANY_REQUESTS);
    assert_eq!(world.upstream.count("random-more"), 0);
}

async fn new_manifests_are_paid_for_by_whoever_has_them_fetched(column: Column) {
    let world = World::plan(column).settings("pulls = 2").start().await;
    for name in ["a", "b", "c", "d"] {
        world.upstream.image(name, "1", &[name.as_bytes()]);
    }
    let get = async |address: &str, name: &str| world.get_from(address, &tag(name, "1")).await;
    for name in ["a", "b", "a"] {
        assert_eq!(get(STRANGER, name).await.status, StatusCode::OK, "{name}");
    }
    world.upstream.forget_requests();
    assert_over(&get(STRANGER, "c").await, "in an hour", "1800");
    assert_eq!(world.upstream.count("GET /v2/c/manifests/"), 0);
    assert_eq!(get(OTHER, "c").await.status, StatusCode::OK, "everybody has a budget");
    assert_eq!(get(STRANGER, "c").await.status, StatusCode::OK, "it is stored now");
    world.clock.advance(Duration::from_mins(30));
    assert_eq!(get(STRANGER, "d").await.status, StatusCode::OK, "one more");
}

async fn a_caller_without_pulls_gets_what_a_tag_was_and_what_is_stored_under_other_names(column: Column) {
    let world = World::plan(column).settings("pulls = 1").start().await;
    let old = world.upstream.image("a", "1", &[b"old"]);
    assert_eq!(world.get_from(STRANGER, &tag("a", "1")).await.bytes(), &old.manifest);
    world.upstream.manifest("a", "2", "application/vnd.oci.image.manifest.v1+json", &old.manifest);
    let answer = world.get_from(STRANGER, &tag("a", "2")).await;
    assert_eq!((answer.header("x-stopover"), answer.bytes()), ("revalidated", &old.manifest));
    world.upstream.forget_requests();
    world.clock.advance(FRESH);
    assert_eq!(world.get_from(STRANGER, &tag("a", "1")).await.header("x-stopover"), "revalidated");
    // Six minutes have given back a tenth of a pull.
    let new = world.upstream.image("a", "1", &[b"new"]);
    world.clock.advance(FRESH);
    let answer = world.get_from(STRANGER, &tag("a", "1")).await;
    assert_eq!((answer.header("x-stopover"), answer.bytes()), ("stale", &old.manifest));
    let check = [("cache-control", "no-cache")];
    let answer = world.get_with(STRANGER, &tag("a", "1"), &check).await;
    assert_eq!((answer.header("x-stopover"), answer.bytes()), ("stale", &old.manifest));
    assert_over(&world.get_from(STRANGER, &tag("a", new.digest.as_str())).await, "in an hour", "2880");
    assert_eq!(world.upstream.count("GET /v2/a/manifests/"), 0, "HEAD costs nothing");
    assert_eq!(world.get_from(OTHER, &tag("a", "1")).await.bytes(), &new.manifest);
    assert_eq!(world.get_from(STRANGER, &tag("a", "1")).await.bytes(), &new.manifest);
}

async fn a_cold_node_with_sixty_images_is_not_stopped(column: Column) {
    let world = World::on(column).await;
    let images: Vec<_> =
        (0..60).map(|number| world.upstream.index(&format!("image-{number}"), "1", &["linux/amd64"])).collect();
    let pulls = images.iter().enumerate().map(async |(number, (_, children))| {
        let name = format!("image-{number}");
        let mut answers = vec![world.get_from(STRANGER, &tag(&name, "1")).await.status];
        answers.push(world.get_from(STRANGER, &tag(&name, children[0].digest.as_str())).await.status);
        answers
    });
    let answers = future::join_all(pulls).await.concat();
    assert_eq!(answers, [StatusCode::OK; 120]);
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
    let seconds: u64 = refused.header("retry-after").parse().unwrap();
    assert_over(&refused, "new bytes", &seconds.to_string());
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
    assert!(!world.get_from(STRANGER, &tag("a", "3")).await.status.is_success());
    world.clock.advance(Duration::from_secs(seconds));
    for path in [tag("a", "3")].into_iter().chain(blobs(&third)) {
        let answer = world.get_from(STRANGER, &path).await;
        assert!(matches!(answer.status, StatusCode::OK | StatusCode::TEMPORARY_REDIRECT), "{answer:?}");
    }
    assert!(world.stored_blobs().await.contains(&third.blobs[1].0.to_string()));
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
    assert_eq!(world.cache.request_due_schedules().await.unwrap(), 1);
    world.settled().await;
    assert_eq!(world.stored_blobs().await, stored_of(&image));
}

/// Blobs are redirected, and none is stored.
async fn redirecting(column: Column, misses: usize) -> World {
    let settings = format!("new_bytes = \"0B\"\nmisses = {misses}");
    World::plan(column).cold(Cold::Redirect).settings(&settings).start().await
}

async fn many_clients_that_want_one_cold_blob_cost_one_question_where_it_is(column: Column) {
    let world = redirecting(column, 2).await;
    let image = world.upstream.image("a", "1", &[b"layer"]);
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
        let world = redirecting(column, 10).await;
        let layers: Vec<[u8; 1]> = (0..30).map(|number| [number]).collect();
        let layers: Vec<&[u8]> = layers.iter().map(|layer| &layer[..]).collect();
        let image = world.upstream.image("a", "1", &layers);
        assert_eq!(world.get_from(OTHER, &tag("a", "1")).await.status, StatusCode::OK);
        if !there {
            world.upstream.fault("/blobs/", Fault::Status(404, vec![], String::new()));
        }
        let mut answers = Vec::new();
        for path in blobs(&image) {
            answers.push(world.get_from(STRANGER, &path).await.status);
        }
        assert_eq!(answers, [vec![found; 10], vec![StatusCode::TOO_MANY_REQUESTS; 21]].concat(), "{there}");
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
        assert!(entries(&world).await <= before + 2, "nothing but that it was asked for");
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
    stopover::prefetch::run(&world.cache, &image).await.unwrap();
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

async fn what_another_instance_knows_to_be_absent_costs_no_miss(column: Column) {
    let world = World::plan(column).settings("misses = 2").start().await;
    let no_repository = r#"{"errors": [{"code": "NAME_UNKNOWN", "message": "no"}]}"#;
    world.upstream.fault("/v2/absent-", Fault::Status(404, vec![], no_repository.into()));
    let names: Vec<String> = (0..10).map(|number| format!("absent-{number}")).collect();
    for (number, name) in names.iter().enumerate() {
        let answer = world.get_from(&format!("198.18.0.{number}"), &tag(name, "1")).await;
        assert_eq!(answer.error().0, "NAME_UNKNOWN");
    }
    world.upstream.forget_requests();
    let want = Want { payer: Some(Payer::Network(STRANGER.parse().unwrap())), ..Want::GET };
    let instance = world.another_instance().await;
    let (manifests, lists) = names.split_at(5);
    for name in manifests {
        let pulled = instance.manifest(&repository(name), &tag_of("2"), want).await;
        assert!(matches!(pulled, Err(PullError::Upstream(UpstreamError::NoRepository))), "{pulled:?}");
    }
    for name in lists {
        let listed = instance.tags(&repository(name), &Page { n: None, last: None }, want).await;
        assert!(matches!(listed, Err(PullError::Upstream(UpstreamError::NoRepository))), "{listed:?}");
    }
    assert!(world.upstream.requests().is_empty());
    let mut over = Vec::new();
    for number in 0..3 {
        let pulled = instance.manifest(&repository("a"), &tag_of(&format!("random-{number}")), want).await;
        over.push(matches!(pulled, Err(PullError::OverBudget(_))));
    }
    assert_eq!(over, [false, false, true], "what is remembered costs nothing");
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

async fn a_check_is_paid_for_whatever_it_finds(column: Column) {
    let world = World::plan(column).settings("misses = 10").start().await;
    world.upstream.image("a", "1", &[b"layer"]);
    assert_eq!(world.get_from(STRANGER, &tag("a", "1")).await.status, StatusCode::OK);
    let before = world.upstream.count("HEAD");
    let mut refused = 0;
    for _ in 0..30 {
        let answer = world.send_with(STRANGER, Method::HEAD, &tag("a", "1"), &[("cache-control", "no-cache")]).await;
        refused += usize::from(answer.status == StatusCode::TOO_MANY_REQUESTS);
    }
    assert!(world.upstream.count("HEAD") - before <= 10 && refused >= 20, "{refused}");
    assert_eq!(world.get_from(STRANGER, &tag("a", "1")).await.status, StatusCode::OK, "what is stored pulls");
}
