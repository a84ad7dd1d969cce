//! Quota and breakers: what was seen before pulls, and an upstream that refuses or fails is left alone.

use std::time::Duration;

use futures_util::future::join_all;
use http::{Method, StatusCode};
use stopover::config::Cold;
use stopover::oci::{Reference, Repository};
use stopover::pull::Want;
use stopover::values::served::Served;
use support::aws::Service;
use support::on_both_columns;
use support::scripted::{Fault, Login, Scripted};
use support::world::{Column, World};

on_both_columns!(
    an_empty_quota_is_invisible_for_everything_seen_before,
    an_empty_quota_is_invisible_where_upstream_answers_no_head_either,
    a_new_image_is_refused_with_whose_quota_is_empty_and_what_helps,
    a_failing_upstream_is_left_alone_and_everything_seen_before_is_served,
    a_silent_upstream_costs_one_client_seconds_and_the_others_nothing,
    one_caller_probes_after_the_pause,
    a_token_server_that_limits_logins_is_left_alone,
    breakers_are_shared_among_instances,
    the_quota_that_is_left_is_shown_with_a_forecast,
    the_last_pulls_are_kept_for_clients_who_wait,
    hostile_answers_of_a_token_server_are_refused,
    a_dead_host_that_upstream_redirects_to_does_not_close_the_upstream,
);

const FRESH: Duration = Duration::from_secs(330);

fn tag(name: &str) -> String {
    format!("/v2/test.local/{name}/manifests/1")
}

fn status(status: u16) -> Fault {
    Fault::Status(status, vec![], String::new())
}

async fn pulled(world: &World, count: usize) {
    for number in 0..count {
        world.upstream.image(&format!("r{number}"), "1", &[b"layer"]);
        assert_eq!(world.get(&tag(&format!("r{number}"))).await.status, StatusCode::OK);
    }
    world.settled().await;
    world.clock.advance(FRESH);
    world.upstream.forget_requests();
}

async fn an_empty_quota_is_invisible_for_everything_seen_before(column: Column) {
    let world = World::on(column).await;
    world.upstream.quota(100, 2);
    let images = [world.upstream.image("a", "1", &[b"one"]), world.upstream.image("b", "1", &[b"two"])];
    for image in &images {
        assert_eq!(world.get(&tag(&image.name)).await.status, StatusCode::OK);
    }
    world.settled().await;
    world.upstream.forget_requests();
    for _ in 0..3 {
        world.clock.advance(FRESH);
        for image in &images {
            assert_eq!(world.get(&tag(&image.name)).await.header("x-stopover"), "revalidated");
            let path = format!("/v2/test.local/{}/manifests/{}", image.name, image.digest);
            assert_eq!(world.get(&path).await.bytes(), &image.manifest);
        }
    }
    assert_eq!((world.upstream.count("GET"), world.upstream.count("HEAD")), (0, 6));
    // A tag that has moved: upstream tells by HEAD, but its manifest cannot be had.
    world.upstream.image("a", "1", &[b"moved"]);
    world.clock.advance(FRESH);
    let answer = world.get(&tag("a")).await;
    assert_eq!((answer.header("x-stopover"), answer.bytes()), ("stale", &images[0].manifest));
}

async fn an_empty_quota_is_invisible_where_upstream_answers_no_head_either(column: Column) {
    let world = World::on(column).await;
    world.upstream.fault("HEAD", status(405));
    let image = world.upstream.image("a", "1", &[b"layer"]);
    world.upstream.image("new", "1", &[b"layer"]);
    world.upstream.quota(100, 1);
    assert_eq!(world.get(&tag("a")).await.status, StatusCode::OK);
    world.settled().await;
    for _ in 0..3 {
        world.clock.advance(FRESH);
        for answer in [world.get(&tag("a")).await, world.head(&tag("a")).await] {
            let etag = format!("\"{}\"", image.digest);
            assert_eq!((answer.header("x-stopover"), answer.header("etag")), ("stale", etag.as_str()), "{answer:?}");
        }
        assert_eq!(world.get(&tag("new")).await.status, StatusCode::TOO_MANY_REQUESTS, "which is no absence");
    }
}

async fn a_new_image_is_refused_with_whose_quota_is_empty_and_what_helps(column: Column) {
    let world = World::on(column).await;
    world.upstream.quota(100, 0);
    world.upstream.image("new", "1", &[b"layer"]);
    for _ in 0..3 {
        let answer = world.get(&tag("new")).await;
        assert_eq!((answer.status, answer.error().0.as_str()), (StatusCode::TOO_MANY_REQUESTS, "TOOMANYREQUESTS"));
        assert_eq!(answer.header("retry-after"), "900");
        let message = answer.error().1;
        for part in ["anonymous", "test.local", "seen empty", "credentials"] {
            assert!(message.contains(part), "{part} is not in {message}");
        }
        assert!(!message.contains("192.0.2.1"), "where we come from is nobody's business: {message}");
    }
    assert_eq!(world.upstream.count("GET /v2/new"), 1, "the limit is believed");
    assert_eq!(world.head(&tag("new")).await.status, StatusCode::OK, "HEAD is free");
    world.upstream.quota(100, 100);
    world.clock.advance(Duration::from_mins(15));
    assert_eq!(world.get(&tag("new")).await.status, StatusCode::OK);
}

async fn a_failing_upstream_is_left_alone_and_everything_seen_before_is_served(column: Column) {
    let world = World::on(column).await;
    pulled(&world, 8).await;
    world.upstream.fault("/v2/", status(503));
    for round in 0..2 {
        for number in 0..8 {
            let answer = world.get(&tag(&format!("r{number}"))).await;
            assert_eq!((answer.status, answer.header("x-stopover")), (StatusCode::OK, "stale"), "{round} {number}");
        }
    }
    let asked = (world.upstream.count("/manifests/"), world.upstream.count("GET /v2/"));
    assert_eq!(asked, (3, 3), "after three failures, its /v2/ included, it is left alone");
    let writes = || {
        let operations = ["PutItem", "UpdateItem", "BatchWriteItem"];
        world.endpoints().map(|endpoints| operations.map(|operation| endpoints.calls(Service::DynamoDb, operation)))
    };
    let written = writes();
    for number in 0..8 {
        let path = tag(&format!("r{number}"));
        assert_eq!(world.get(&path).await.header("x-stopover"), "stale");
        let checked = world.send(Method::GET, &path, &[("cache-control", "no-cache")]).await;
        assert_eq!(checked.header("x-stopover"), "stale", "{checked:?}");
    }
    assert_eq!(writes(), written, "without a question there is no lease to take");
    let new = world.get(&tag("new")).await;
    assert_eq!((new.status, new.error().0.as_str()), (StatusCode::SERVICE_UNAVAILABLE, "UNAVAILABLE"));
    assert_ne!(new.header("retry-after"), "");
    assert_eq!(world.upstream.count("/manifests/"), 3);
}

async fn a_silent_upstream_costs_one_client_seconds_and_the_others_nothing(column: Column) {
    let world = World::on(column).await;
    pulled(&world, 3).await;
    world.upstream.fault("/v2/", Fault::Silent);
    let begun = std::time::Instant::now();
    for number in 0..3 {
        let answer = world.get(&tag(&format!("r{number}"))).await;
        assert_eq!((answer.status, answer.header("x-stopover")), (StatusCode::OK, "stale"));
    }
    assert_eq!(world.upstream.count("/manifests/"), 1);
    assert!(begun.elapsed() < Duration::from_secs(10), "one time-out of five seconds, not three");
}

async fn one_caller_probes_after_the_pause(column: Column) {
    let world = World::on(column).await;
    pulled(&world, 20).await;
    world.upstream.fault("/v2/", status(500));
    let pull_all = async || {
        let paths: Vec<String> = (0..20).map(|number| tag(&format!("r{number}"))).collect();
        join_all(paths.iter().map(|path| world.get(path))).await
    };
    pull_all().await;
    world.upstream.forget_requests();
    for pause in [5, 10, 20] {
        // Whatever the pause was, one who comes after it asks; those who come with it are served what is known.
        world.clock.advance(Duration::from_secs(60.max(pause)));
        for answer in pull_all().await {
            assert_eq!(answer.header("x-stopover"), "stale");
        }
    }
    assert_eq!(world.upstream.count("/manifests/"), 3, "one for each pause");
    world.upstream.heal();
    world.clock.advance(Duration::from_mins(1));
    assert_eq!(world.get(&tag("r0")).await.header("x-stopover"), "revalidated");
    assert_eq!(world.get(&tag("r1")).await.header("x-stopover"), "revalidated", "the probe opened the way");
}

async fn a_token_server_that_limits_logins_is_left_alone(column: Column) {
    let world = World::on(column).await;
    world.upstream.require(Login::Bearer);
    pulled(&world, 2).await;
    world.upstream.forget_tokens();
    world.clock.advance(Duration::from_hours(1));
    world.upstream.fault("/token", status(429));
    for _ in 0..2 {
        for number in 0..2 {
            let answer = world.get(&tag(&format!("r{number}"))).await;
            assert_eq!((answer.status, answer.header("x-stopover")), (StatusCode::OK, "stale"));
        }
    }
    assert_eq!(world.upstream.count("/token"), 1);
}

async fn breakers_are_shared_among_instances(column: Column) {
    let world = World::on(column).await;
    pulled(&world, 4).await;
    let other = world.another_instance();
    world.upstream.fault("/v2/", status(503));
    for number in 0..3 {
        world.get(&tag(&format!("r{number}"))).await;
    }
    let asked = world.upstream.requests().len();
    let repository = Repository { upstream: "test.local".parse().unwrap(), name: "r3".parse().unwrap() };
    let reference: Reference = "1".parse().unwrap();
    let pulled = other.pull.manifest(&repository, &reference, Want::GET).await.unwrap();
    assert_eq!(pulled.served, Served::Stale);
    assert_eq!(world.upstream.requests().len(), asked, "the other instance has not asked");
}

async fn the_quota_that_is_left_is_shown_with_a_forecast(column: Column) {
    let world = World::on(column).await;
    world.upstream.quota(100, 100);
    for name in ["a", "b", "c"] {
        world.upstream.image(name, "1", &[b"layer"]);
        world.get(&tag(name)).await;
        world.clock.advance(Duration::from_mins(10));
    }
    let answer = world.operate(Method::GET, "/_stopover/quota", "").await;
    let body: serde_json::Value = serde_json::from_slice(answer.bytes()).unwrap();
    let upstreams = body["upstreams"].as_array().unwrap();
    let report = upstreams.iter().find(|report| report["upstream"] == "test.local").unwrap();
    assert_eq!((report["limit"].as_u64(), report["remaining"].as_u64()), (Some(100), Some(97)));
    assert_eq!((report["window_seconds"].as_u64(), report["source"].as_str()), (Some(21600), Some("192.0.2.1")));
    assert_eq!(report["credential"], "anonymous");
    // Two pulls in twenty minutes leave 970 minutes, ten of which have passed.
    assert_eq!(report["forecast"], "empty in about 960 min at the present rate");
    assert_eq!(report["breakers"], serde_json::json!([]));
}

async fn the_last_pulls_are_kept_for_clients_who_wait(column: Column) {
    let world = World::on(column).await;
    world.upstream.quota(100, 11);
    let old = world.upstream.image("a", "1", &[b"old"]);
    world.get(&tag("a")).await;
    let new = world.upstream.image("a", "1", &[b"new"]);
    world.settled().await;
    world.clock.advance(FRESH);
    world.upstream.forget_requests();
    let background = [("cache-control", "no-cache"), ("priority", "u=7")];
    let answer = world.send(Method::GET, &tag("a"), &background).await;
    assert_eq!((answer.header("x-stopover"), answer.bytes()), ("stale", &old.manifest));
    world.upstream.image("b", "1", &[b"never seen"]);
    let refused = world.send(Method::GET, &tag("b"), &background).await;
    assert_eq!(refused.status, StatusCode::TOO_MANY_REQUESTS);
    assert_eq!(world.upstream.count("GET"), 0, "ten are left, and ten are kept");
    assert_eq!(world.get(&tag("a")).await.bytes(), &new.manifest);
    assert_eq!(world.get(&tag("b")).await.status, StatusCode::OK, "to the last one");
}

async fn hostile_answers_of_a_token_server_are_refused(column: Column) {
    for body in [
        "x".repeat(10_000_000),
        "{\"token\":\"a\\nb\"}".into(),
        "{\"token\":\"\"}".into(),
        "{}".into(),
        "<html>".into(),
    ] {
        let world = World::on(column).await;
        world.upstream.require(Login::Bearer);
        world.upstream.image("a", "1", &[b"layer"]);
        world.upstream.fault("/token", Fault::Status(200, vec![], body));
        let answer = world.get(&tag("a")).await;
        assert!(!answer.status.is_success(), "{answer:?}");
        world.upstream.heal();
        world.clock.advance(Duration::from_mins(2));
        assert_eq!(world.get(&tag("a")).await.status, StatusCode::OK, "nothing of it was kept");
    }
}

async fn a_dead_host_that_upstream_redirects_to_does_not_close_the_upstream(column: Column) {
    let world = World::plan(column).cold(Cold::Wait).settings("wait = \"2s\"").start().await;
    let image = world.upstream.image("a", "1", &[b"layer"]);
    let elsewhere = Scripted::start().unwrap();
    elsewhere.fault("/cdn", status(503));
    for target in ["http://127.0.0.1:1/cdn".to_owned(), format!("{}/cdn", elsewhere.url())] {
        world.upstream.heal();
        world.upstream.fault("/blobs/", Fault::Status(307, vec![("location", target)], String::new()));
        for (digest, _) in &image.blobs {
            let answer = world.get(&format!("/v2/test.local/a/blobs/{digest}")).await;
            assert_eq!((answer.status, answer.error().0.as_str()), (StatusCode::SERVICE_UNAVAILABLE, "UNAVAILABLE"));
        }
    }
    assert_eq!(world.get(&tag("a")).await.status, StatusCode::OK);
}
