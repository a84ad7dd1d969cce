//! What is absent, what is refused, and what is neither.

use std::time::Duration;

use http::StatusCode;
use stopover::pull::Want;
use support::on_both_columns;
use support::scripted::{Fault, Login, ScriptedImage};
use support::world::{Answer, Column, World};

use crate::budgets::{FRESH, repository, tag, tag_of};

on_both_columns!(
    what_one_tag_is_told_says_nothing_of_the_others,
    a_repository_of_which_nothing_was_shown_lately_is_absent,
    a_page_of_a_gateway_is_trouble_and_not_absence,
    a_list_that_is_refused_is_refused_and_not_missing,
    the_head_of_a_blob_says_whether_upstream_has_it,
    a_limit_that_says_when_it_ends_is_believed,
);

fn said(code: &str) -> String {
    format!("{{\"errors\":[{{\"code\":\"{code}\",\"message\":\"no\"}}]}}")
}

fn json(status: u16, code: &str) -> Fault {
    Fault::Status(status, vec![("content-type", "application/json".into())], said(code))
}

async fn pulls(world: &World, image: &ScriptedImage, name: &str) -> Answer {
    let answer = world.get(&tag("a", name)).await;
    assert_eq!(answer.status, StatusCode::OK, "{answer:?}");
    assert_eq!(answer.bytes(), &image.manifest);
    answer
}

/// Reported of zot (#4352), Artifactory and Docker Hub: one tag of many is answered as if there were no repository.
async fn what_one_tag_is_told_says_nothing_of_the_others(column: Column) {
    for fault in [json(404, "NAME_UNKNOWN"), json(403, "DENIED"), json(401, "UNAUTHORIZED")] {
        let world = World::on(column).await;
        world.upstream.require(Login::Bearer);
        let images = ["1", "2", "3"].map(|name| world.upstream.image("a", name, &[name.as_bytes()]));
        pulls(&world, &images[0], "1").await;
        world.settled().await;
        let other = world.another_instance();
        world.upstream.fault("/manifests/none", fault.clone());
        world.upstream.fault("/manifests/sha256:", fault.clone());
        let missing = format!("sha256:{}", "0".repeat(64));
        for path in [tag("a", "none"), tag("a", &missing), format!("/v2/test.local/a/blobs/{missing}")] {
            let answer = world.get(&path).await;
            assert!(answer.status.is_client_error(), "{fault:?}: {answer:?}");
        }
        // Another instance, which has shown nothing, believes the first one.
        assert!(other.pull.manifest(&repository("a"), &tag_of("none"), Want::GET).await.is_err());
        pulls(&world, &images[1], "2").await;
        assert!(other.pull.manifest(&repository("a"), &tag_of("3"), Want::GET).await.is_ok(), "{fault:?}");
        assert_eq!(world.get(&tag("a", "none")).await.status, StatusCode::NOT_FOUND);
        // A 401 is certain after a new token, a request without one, and a second of patience.
        assert!(world.upstream.count("/manifests/none") <= 4, "that tag is remembered");
    }
}

async fn a_repository_of_which_nothing_was_shown_lately_is_absent(column: Column) {
    let world = World::on(column).await;
    let image = world.upstream.image("a", "1", &[b"layer"]);
    pulls(&world, &image, "1").await;
    world.settled().await;
    // What was shown is noted once in half of the time that tags are fresh.
    world.clock.advance(Duration::from_mins(8));
    world.upstream.fault("/v2/a/", json(404, "NAME_UNKNOWN"));
    world.upstream.forget_requests();
    for name in ["2", "3", "4"] {
        assert_eq!(world.get(&tag("a", name)).await.error().0, "NAME_UNKNOWN");
    }
    assert_eq!(world.upstream.count("/v2/a/"), 1);
}

/// Reported of Harbor (#22153) and others: a gateway answers in the place of the registry.
async fn a_page_of_a_gateway_is_trouble_and_not_absence(column: Column) {
    let pages = [
        (404, "text/html", "<html><body>not found</body></html>"),
        (404, "text/plain; charset=utf-8", "404 page not found\n"),
        (404, "", "no healthy upstream"),
        (403, "text/html; charset=utf-8", "<!doctype html><title>denied</title>"),
        (401, "text/html", "<html>please log in</html>"),
    ];
    for (status, media_type, body) in pages {
        let world = World::on(column).await;
        let image = world.upstream.image("a", "1", &[b"layer"]);
        pulls(&world, &image, "1").await;
        world.settled().await;
        world.clock.advance(FRESH);
        let headers = vec![("content-type", media_type.to_owned())];
        let headers = headers.into_iter().filter(|(_, value)| !value.is_empty()).collect();
        world.upstream.fault("/v2/a/", Fault::Status(status, headers, body.into()));
        // An answer to HEAD has no body that would tell, so it is believed where its type is not that of a page.
        if !media_type.is_empty() {
            assert_eq!(pulls(&world, &image, "1").await.header("x-stopover"), "stale", "{status} {media_type}");
        }
        let digest = format!("sha256:{}", "0".repeat(64));
        for path in [tag("a", "2"), tag("a", &digest), format!("/v2/test.local/a/blobs/{digest}")] {
            let answer = world.get(&path).await;
            assert_eq!(answer.status, StatusCode::SERVICE_UNAVAILABLE, "{status} {media_type}: {answer:?}");
        }
        world.upstream.heal();
        world.clock.advance(Duration::from_mins(1));
        let second = world.upstream.image("a", "2", &[b"second"]);
        pulls(&world, &second, "2").await;
    }
}

/// skopeo inspect goes on where the list of tags is refused, and fails where it is missing.
async fn a_list_that_is_refused_is_refused_and_not_missing(column: Column) {
    let world = World::on(column).await;
    let image = world.upstream.image("a", "1", &[b"layer"]);
    world.upstream.fault("/tags/list", json(403, "DENIED"));
    for _ in 0..2 {
        let answer = world.get("/v2/test.local/a/tags/list").await;
        assert_eq!((answer.status, answer.error().0.as_str()), (StatusCode::FORBIDDEN, "DENIED"));
        pulls(&world, &image, "1").await;
    }
    world.upstream.heal();
    world.upstream.tags("a", &["1"]);
    assert_eq!(world.get("/v2/test.local/a/tags/list").await.status, StatusCode::OK, "nothing was remembered");
}

async fn the_head_of_a_blob_says_whether_upstream_has_it(column: Column) {
    let world = World::on(column).await;
    let image = world.upstream.image("a", "1", &[b"layer"]);
    let (digest, bytes) = &image.blobs[1];
    let path = format!("/v2/test.local/a/blobs/{digest}");
    world.upstream.fault("/blobs/", Fault::Status(404, vec![], said("BLOB_UNKNOWN")));
    pulls(&world, &image, "1").await;
    world.settled().await;
    assert_eq!(world.head(&path).await.status, StatusCode::NOT_FOUND);
    // While it cannot say, what the manifest says.
    world.upstream.heal();
    world.upstream.fault("/blobs/", Fault::Status(503, vec![], String::new()));
    assert_eq!(world.head(&path).await.status, StatusCode::OK);
    world.upstream.heal();
    let answer = world.head(&path).await;
    assert_eq!((answer.status, answer.header("content-length")), (StatusCode::OK, bytes.len().to_string().as_str()));
}

async fn a_limit_that_says_when_it_ends_is_believed(column: Column) {
    for (reset, expected) in [("5", "5"), ("1800000007", "7"), ("soon", "900"), ("99999999", "86400")] {
        let world = World::on(column).await;
        let image = world.upstream.image("a", "1", &[b"layer"]);
        let headers = vec![
            ("ratelimit-limit", "100".to_owned()),
            ("ratelimit-remaining", "0".to_owned()),
            ("ratelimit-reset", reset.to_owned()),
        ];
        world.upstream.fault_times("/manifests/", 1, Fault::Status(429, headers, String::new()));
        for _ in 0..2 {
            let answer = world.get(&tag("a", "1")).await;
            assert_eq!((answer.status, answer.header("retry-after")), (StatusCode::TOO_MANY_REQUESTS, expected));
        }
        world.clock.advance(Duration::from_secs(expected.parse().unwrap()));
        pulls(&world, &image, "1").await;
    }
}
