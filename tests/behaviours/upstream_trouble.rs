//! Upstream throttles, refuses, lies, or is gone.

use std::time::Duration;

use http::StatusCode;
use support::on_both_columns;
use support::scripted::{Fault, Login, Scripted};
use support::world::{Column, PASSWORD, World};

on_both_columns!(
    an_upstream_in_trouble_serves_the_stale_tag,
    a_dead_upstream_serves_whatever_was_pulled_before,
    throttled_upstream_without_a_copy_answers_429_with_retry_after,
    hostile_headers_of_upstream_are_clamped_or_ignored,
    an_unavailable_upstream_without_a_copy_answers_503_with_retry_after,
    what_is_no_manifest_is_refused_and_never_stored,
    an_opaque_token_is_used_until_it_expires_and_renewed_when_refused,
    a_token_is_used_to_its_end_while_there_is_no_other,
    a_refused_login_is_denied_and_not_served_stale,
    one_odd_challenge_does_not_poison_the_process,
    a_refusal_of_where_upstream_redirects_to_says_nothing_of_the_repository,
);

const TAG: &str = "/v2/test.local/a/manifests/1";

fn status(status: u16) -> Fault {
    Fault::Status(status, vec![], "<html>trouble</html>".into())
}

async fn an_upstream_in_trouble_serves_the_stale_tag(column: Column) {
    for fault in [
        status(429),
        status(500),
        status(502),
        status(503),
        Fault::Body(b"<html>".to_vec(), vec![("content-type", "text/html".into())]),
    ] {
        let world = World::on(column).await;
        let image = world.upstream.image("a", "1", &[b"layer"]);
        world.get(TAG).await;
        world.clock.advance(Duration::from_hours(1));
        world.upstream.fault("/manifests/", fault.clone());
        for answer in [world.get(TAG).await, world.head(TAG).await] {
            assert_eq!((answer.status, answer.header("x-stopover")), (StatusCode::OK, "stale"), "{fault:?}");
            assert!(answer.header("warning").starts_with("299 "));
            assert_eq!(answer.header("docker-content-digest"), image.digest.as_str());
        }
    }
}

async fn a_dead_upstream_serves_whatever_was_pulled_before(column: Column) {
    let world = World::on(column).await;
    let image = world.upstream.image("a", "1", &[b"layer"]);
    world.get(TAG).await;
    world.settled().await;
    world.clock.advance(Duration::from_hours(24));
    world.upstream.kill();
    assert_eq!(world.get(TAG).await.bytes(), &image.manifest);
    for (digest, bytes) in &image.blobs {
        assert_eq!(world.pull(&format!("/v2/test.local/a/blobs/{digest}")).await.bytes(), bytes);
    }
}

async fn throttled_upstream_without_a_copy_answers_429_with_retry_after(column: Column) {
    for (header, expected) in [(Some("17"), "17"), (Some("-3"), "60"), (Some("99999999999"), "86400"), (None, "60")] {
        let world = World::on(column).await;
        let image = world.upstream.image("a", "1", &[b"layer"]);
        let headers = header.map(|value| ("retry-after", value.to_owned())).into_iter().collect();
        world.upstream.fault("/v2/a/", Fault::Status(429, headers, "Too Many Requests (HAP429).\n".into()));
        for path in [TAG.to_owned(), format!("/v2/test.local/a/blobs/{}", image.blobs[1].0)] {
            let answer = world.get(&path).await;
            assert_eq!(answer.status, StatusCode::TOO_MANY_REQUESTS, "a 429 never becomes a 404");
            assert_eq!((answer.header("retry-after"), answer.error().0.as_str()), (expected, "TOOMANYREQUESTS"));
        }
        assert_eq!(world.upstream.count("/v2/a/"), 1, "it is not asked again before that");
    }
}

async fn hostile_headers_of_upstream_are_clamped_or_ignored(column: Column) {
    let huge = "9".repeat(4000);
    for value in ["-1;w=21600", "", "18446744073709551616", "1e9", "NaN", ";;;", "\u{fc}\u{ff}", &huge] {
        let world = World::on(column).await;
        let image = world.upstream.image("a", "1", &[b"layer"]);
        let names = ["ratelimit-limit", "ratelimit-remaining", "docker-ratelimit-source", "retry-after", "etag"];
        world.upstream.fault("/v2/a/", Fault::Headers(names.map(|name| (name, value.to_owned())).to_vec()));
        assert_eq!(world.get(TAG).await.bytes(), &image.manifest, "{value}");
        // A fill that is refused late would speak of a time that has not come yet.
        world.settled().await;
        let quota = world.get("/_stopover/quota").await;
        assert!(String::from_utf8_lossy(quota.bytes()).contains("no limit was named"), "{value}: {quota:?}");
        world.upstream.heal();
        world.clock.advance(Duration::from_hours(1));
        world.upstream.fault("/v2/a/", Fault::Status(429, vec![("retry-after", value.to_owned())], String::new()));
        assert_eq!(world.get(TAG).await.header("x-stopover"), "stale", "{value}");
        world.upstream.heal();
        world.clock.advance(Duration::from_hours(25));
        assert_eq!(world.get(TAG).await.header("x-stopover"), "revalidated", "{value}: no pause is longer than a day");
    }
    // What names the content is never believed: it is computed, or the answer is refused.
    for (name, value) in [
        ("docker-content-digest", "sha256:\u{fc}".to_owned()),
        ("docker-content-digest", format!("sha256:{}", "0".repeat(64))),
        ("content-type", "\u{ff}".to_owned()),
        ("content-length", "5".to_owned()),
    ] {
        let world = World::on(column).await;
        let image = world.upstream.image("a", "1", &[b"layer"]);
        world.upstream.fault("/v2/a/manifests", Fault::Headers(vec![(name, value.clone())]));
        let answer = world.get(TAG).await;
        assert!(!answer.status.is_success() || answer.bytes() == &image.manifest, "{name}: {value}: {answer:?}");
        world.upstream.heal();
        world.clock.advance(Duration::from_mins(5));
        assert_eq!(world.get(TAG).await.bytes(), &image.manifest, "{name}: {value}: nothing of it was kept");
    }
}

async fn an_unavailable_upstream_without_a_copy_answers_503_with_retry_after(column: Column) {
    let world = World::on(column).await;
    world.upstream.kill();
    let digest = format!("sha256:{}", "0".repeat(64));
    for path in [TAG.to_owned(), format!("/v2/test.local/a/blobs/{digest}")] {
        let answer = world.get(&path).await;
        assert_eq!((answer.status, answer.error().0.as_str()), (StatusCode::SERVICE_UNAVAILABLE, "UNAVAILABLE"));
        assert_ne!(answer.header("retry-after"), "");
        assert_ne!(answer.header("x-request-id"), "");
    }
}

async fn what_is_no_manifest_is_refused_and_never_stored(column: Column) {
    let world = World::on(column).await;
    let image = world.upstream.image("a", "1", &[b"layer"]);
    let good = image.manifest.to_vec();
    let html = vec![("content-type", "text/html".to_owned())];
    let faults = [
        Fault::Body(b"<html>please log in</html>".to_vec(), html),
        Fault::Body(b"{}".to_vec(), vec![]),
        Fault::Body([b"\xef\xbb\xbf", good.as_slice()].concat(), vec![("docker-content-digest", String::new())]),
        Fault::Body(
            good.iter().map(|&byte| if byte == b'6' { 0xff } else { byte }).collect(),
            vec![("docker-content-digest", String::new())],
        ),
        Fault::Body(vec![b' '; 5 * 1024 * 1024], vec![]),
        Fault::Corrupt,
        Fault::Truncated,
        Fault::Headers(vec![("content-type", "application/vnd.docker.distribution.manifest.v1+prettyjws".into())]),
    ];
    for fault in faults {
        world.upstream.fault("/manifests/", fault.clone());
        for reference in ["1".to_owned(), image.digest.to_string()] {
            let answer = world.get(&format!("/v2/test.local/a/manifests/{reference}")).await;
            assert!(answer.status.is_server_error(), "{fault:?}: {answer:?}");
            assert!(!answer.error().1.is_empty());
        }
        world.upstream.heal();
    }
    world.settled().await;
    assert!(world.stored_blobs().await.is_empty());
    assert_eq!(world.get(TAG).await.bytes(), &image.manifest, "nothing wrong was remembered");
}

async fn an_opaque_token_is_used_until_it_expires_and_renewed_when_refused(column: Column) {
    let world = World::on(column).await;
    world.upstream.require(Login::Bearer);
    for tag in ["1", "2", "3", "4"] {
        world.upstream.image("a", tag, &[b"layer", tag.as_bytes()]);
    }
    let tokens = async |tag: &str| {
        let answer = world.get(&format!("/v2/test.local/a/manifests/{tag}")).await;
        assert_eq!(answer.status, StatusCode::OK);
        world.settled().await;
        world.upstream.count("/token")
    };
    assert_eq!(tokens("1").await, 1);
    world.clock.advance(Duration::from_secs(269));
    assert_eq!(tokens("2").await, 1, "0.9 of 300 seconds have not passed");
    world.clock.advance(Duration::from_secs(2));
    assert_eq!(tokens("3").await, 2);
    world.upstream.forget_tokens();
    assert_eq!(tokens("4").await, 3);
}

async fn a_token_is_used_to_its_end_while_there_is_no_other(column: Column) {
    let pull = async |world: &World, tag: &str| {
        world.upstream.image("a", tag, &[b"layer"]);
        let status = world.get(&format!("/v2/test.local/a/manifests/{tag}")).await.status;
        world.settled().await;
        status
    };
    // A token server that fails may have moved: what upstream asks for is learned anew, by a request without a token.
    for (fault, learned) in [(status(503), 1), (status(429), 0)] {
        let world = World::on(column).await;
        world.upstream.require(Login::Bearer);
        assert_eq!(pull(&world, "1").await, StatusCode::OK);
        world.upstream.fault("/token", fault.clone());
        world.clock.advance(Duration::from_secs(271));
        assert_eq!([pull(&world, "2").await, pull(&world, "3").await], [StatusCode::OK; 2], "{fault:?}");
        assert_eq!(world.upstream.count("/token"), 2, "not every request waits for the token server");
        // What is refused is not used on, and what is over is not used at all.
        for refused in [true, false] {
            let world = World::on(column).await;
            world.upstream.require(Login::Bearer);
            assert_eq!(pull(&world, "1").await, StatusCode::OK);
            world.upstream.fault("/token", fault.clone());
            if refused {
                world.upstream.forget_tokens();
            }
            world.clock.advance(Duration::from_secs(if refused { 271 } else { 300 }));
            assert!(!pull(&world, "2").await.is_success(), "{fault:?}");
            assert_eq!(world.upstream.count("/manifests/2"), usize::from(refused) + learned, "{fault:?}");
        }
    }
}

async fn a_refused_login_is_denied_and_not_served_stale(column: Column) {
    let login = "public = true\ncredentials = { username = \"me\", password_env = \"TEST_SECRET\" }";
    let world = World::plan(column).upstream(login).start().await;
    world.upstream.require(Login::Basic("me".into(), PASSWORD.into()));
    world.upstream.image("a", "1", &[b"layer"]);
    assert_eq!(world.get(TAG).await.status, StatusCode::OK);
    world.clock.advance(Duration::from_hours(1));
    world.upstream.require(Login::Basic("me".into(), "changed".into()));
    for _ in 0..2 {
        let answer = world.get(TAG).await;
        assert_eq!((answer.status, answer.error().0.as_str()), (StatusCode::FORBIDDEN, "DENIED"));
    }
    world.upstream.require(Login::Basic("me".into(), PASSWORD.into()));
    assert_eq!(world.get(TAG).await.status, StatusCode::OK);
}

async fn one_odd_challenge_does_not_poison_the_process(column: Column) {
    let world = World::on(column).await;
    let image = world.upstream.image("a", "1", &[b"layer"]);
    let challenge = vec![("www-authenticate", "Basic realm=\"odd\"".to_owned())];
    world.upstream.fault("/manifests/", Fault::Status(401, challenge, String::new()));
    assert_eq!(world.get(TAG).await.status, StatusCode::FORBIDDEN);
    world.upstream.heal();
    assert_eq!(world.get(TAG).await.bytes(), &image.manifest);
}

/// An expired signature is a 403 of the CDN; so is, at S3, an object that is not there.
async fn a_refusal_of_where_upstream_redirects_to_says_nothing_of_the_repository(column: Column) {
    let world = World::on(column).await;
    let image = world.upstream.image("a", "1", &[b"layer"]);
    world.get(TAG).await;
    world.clock.advance(Duration::from_hours(1));
    let elsewhere = Scripted::start().unwrap();
    elsewhere.fault("/", status(403));
    let away = |path: &str| Fault::Status(307, vec![("location", format!("{}{path}", elsewhere.url()))], String::new());
    world.upstream.fault("/manifests/", away("/cdn/manifest"));
    let answer = world.get(TAG).await;
    assert_eq!((answer.status, answer.header("x-stopover")), (StatusCode::OK, "stale"));
    assert_eq!(answer.bytes(), &image.manifest);
    assert_eq!(world.get("/v2/test.local/a/manifests/2").await.status, StatusCode::SERVICE_UNAVAILABLE);
    world.upstream.heal();
    let other = world.upstream.image("a", "2", &[b"other"]);
    assert_eq!(world.get("/v2/test.local/a/manifests/2").await.bytes(), &other.manifest, "nothing was remembered");
}
