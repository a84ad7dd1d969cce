//! What one caller can make the cache ask of upstream; what it can have stored is in `new_bytes`. Each test is somebody who
//! wants more than that.

use std::time::Duration;

use futures_util::{StreamExt as _, future, stream};
use http::{Method, StatusCode};
use stopover::budget::Bill;
use stopover::errors::{PullError, UpstreamError};
use stopover::identity::Payer;
use stopover::oci::{Page, Reference, Repository};
use stopover::pull::Want;
use stopover::records::tag::LEASE;
use stopover::records::{Lease, ReferenceKey, TagRecord};
use support::guests::{self, basic, bearer};
use support::on_both_columns;
use support::scripted::Fault;
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
    a_check_is_paid_for_whatever_it_finds,
    what_another_instance_knows_to_be_absent_costs_no_miss,
    a_head_is_answered_whatever_another_caller_has_spent,
);

pub(super) const STRANGER: &str = "192.0.2.1";
pub(super) const OTHER: &str = "192.0.2.2";
pub(super) const FRESH: Duration = Duration::from_mins(6);

pub(super) fn tag(name: &str, tag: &str) -> String {
    format!("/v2/test.local/{name}/manifests/{tag}")
}

pub(super) fn repository(name: &str) -> Repository {
    Repository { upstream: "test.local".parse().unwrap(), name: name.parse().unwrap() }
}

pub(super) fn tag_of(tag: &str) -> Reference {
    tag.parse().unwrap()
}

pub(super) fn assert_over(answer: &Answer, words: &str, seconds: &str) {
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
    bearer(world, &basic(name, &guests::robot(world, name).await)).await
}

pub(super) async fn entries(world: &World) -> usize {
    world.cache.core.storage.ledger.entries().count().await
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
    let bill = Bill { payer: Some(Payer::Network(STRANGER.parse().unwrap())), ..Bill::FREE };
    let want = Want { bill, ..Want::GET };
    let instance = world.another_instance();
    let (manifests, lists) = names.split_at(5);
    for name in manifests {
        let pulled = instance.pull.manifest(&repository(name), &tag_of("2"), want.clone()).await;
        assert!(matches!(pulled, Err(PullError::Upstream(UpstreamError::NoRepository))), "{pulled:?}");
    }
    for name in lists {
        let listed = instance.pull.tags(&repository(name), &Page { n: None, last: None }, want.clone()).await;
        assert!(matches!(listed, Err(PullError::Upstream(UpstreamError::NoRepository))), "{listed:?}");
    }
    assert!(world.upstream.requests().is_empty());
    let mut over = Vec::new();
    for number in 0..3 {
        let pulled = instance.pull.manifest(&repository("a"), &tag_of(&format!("random-{number}")), want.clone()).await;
        over.push(matches!(pulled, Err(PullError::OverBudget(_))));
    }
    assert_eq!(over, [false, false, true], "what is remembered costs nothing");
}

async fn a_head_is_answered_whatever_another_caller_has_spent(column: Column) {
    let world = World::plan(column).settings("pulls = 1").start().await;
    world.upstream.fault("HEAD", Fault::Status(405, vec![], String::new()));
    for name in ["a", "b"] {
        world.upstream.image(name, "1", &[b"layer"]);
    }
    assert_eq!(world.get_from(OTHER, &tag("b", "1")).await.status, StatusCode::OK);
    // While another process asks, both callers wait for one answer.
    let now = world.clock.now();
    let lease = Some(Lease { owner: "another".into(), until: now.plus(LEASE) });
    let record = TagRecord { observed: None, previous: None, checked_at: now, fresh_until: now, lease };
    let key = (repository("a"), tag_of("1"));
    world.cache.core.storage.ledger.swap(&ReferenceKey(&key.0, &key.1), None, &record).await.unwrap();
    // The reason for these pauses: that a caller waits shows nowhere.
    let (path, pause) = (tag("a", "1"), Duration::from_millis(200));
    let head = async {
        tokio::time::sleep(pause).await;
        world.send_from(STRANGER, Method::HEAD, &path).await
    };
    let asked = async {
        tokio::time::sleep(pause * 2).await;
        world.clock.advance(LEASE);
    };
    let (over, head, ()) = tokio::join!(world.get_from(OTHER, &path), head, asked);
    assert_over(&over, "you have pulled as much", over.header("retry-after"));
    assert_eq!(head.status, StatusCode::OK, "{head:?}");
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
