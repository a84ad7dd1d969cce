//! Whose trouble is it? What one caller can have an upstream fail at costs that caller misses, and the others nothing.

use std::time::Duration;

use http::{Method, StatusCode};
use serde_json::json;
use stopover::config::Cold;
use stopover::oci::{Algorithm, Digest, MediaType};
use support::on_both_columns;
use support::scripted::{Fault, Login, Scripted};
use support::world::{Column, World};

use crate::budgets::{FRESH, OTHER, STRANGER, tag};

on_both_columns!(
    what_always_fails_is_asked_for_a_few_times_and_the_rest_of_the_upstream_pulls,
    a_silent_repository_is_left_alone_by_itself,
    a_hanging_host_that_upstream_redirects_to_closes_nothing_but_that_blob,
    a_limit_on_one_repository_is_not_the_upstreams_unless_its_v2_says_so,
    whatever_upstream_is_asked_in_vain_is_a_miss,
    blobs_that_a_manifest_names_and_upstream_does_not_have_are_misses,
    what_alternates_are_asked_in_vain_is_a_miss_too,
    an_outage_costs_callers_of_what_is_known_nothing,
);

fn status(status: u16) -> Fault {
    Fault::Status(status, vec![], String::new())
}

fn blob_of(name: &str, content: &str) -> String {
    format!("/v2/test.local/{name}/blobs/{}", Digest::of(Algorithm::Sha256, content.as_bytes()))
}

/// A list, referrers, a blob, the manifests of a repository, the token for a name: reported of real registries
/// (distribution#4846, spegel#634).
async fn what_always_fails_is_asked_for_a_few_times_and_the_rest_of_the_upstream_pulls(column: Column) {
    let subject = Digest::of(Algorithm::Sha256, b"a subject");
    let failing: [(&str, &str, String); 5] = [
        ("", "/tags/list", "/v2/test.local/bad/tags/list".into()),
        ("", "/referrers/", format!("/v2/test.local/good/referrers/{subject}")),
        ("", "/v2/good/blobs/", blob_of("good", "a blob that nothing names")),
        ("", "/v2/bad/manifests/", tag("bad", "1")),
        ("token", "/token", tag("bad", "1")),
    ];
    for (login, fault, path) in failing {
        let world = World::on(column).await;
        if login == "token" {
            world.upstream.require(Login::Bearer);
        }
        let images: Vec<_> = (0..3).map(|number| world.upstream.image("good", &number.to_string(), &[])).collect();
        assert_eq!(world.get_from(OTHER, &tag("good", "0")).await.status, StatusCode::OK);
        world.settled().await;
        // Even an upstream that has to be asked for a new token by then.
        world.upstream.fault(fault, status(500));
        world.upstream.forget_requests();
        for _ in 0..6 {
            let answer = world.get_from(STRANGER, &path).await;
            assert!(answer.status.is_server_error(), "{fault}: {answer:?}");
        }
        // A request for a blob is sent once more where a connection breaks before its first byte.
        assert!((1..=6).contains(&world.upstream.count(fault)), "{fault}: {}", world.upstream.count(fault));
        let asked = world.upstream.count(fault);
        world.get_from(STRANGER, &path).await;
        assert_eq!(world.upstream.count(fault), asked, "{fault}: it is left alone");
        if login.is_empty() {
            assert_eq!(world.get_from(OTHER, &tag("good", "1")).await.bytes(), &images[1].manifest, "{fault}");
        }
        world.upstream.heal();
        assert_eq!(world.get_from(OTHER, &tag("good", "2")).await.bytes(), &images[2].manifest, "{fault}");
    }
}

async fn a_silent_repository_is_left_alone_by_itself(column: Column) {
    let world = World::on(column).await;
    let (bad, good) = (world.upstream.image("bad", "1", &[b"bad"]), world.upstream.image("good", "1", &[b"good"]));
    assert_eq!(world.get(&tag("bad", "1")).await.bytes(), &bad.manifest);
    world.settled().await;
    world.clock.advance(FRESH);
    world.upstream.forget_requests();
    world.upstream.fault("/v2/bad/", Fault::Silent);
    for _ in 0..3 {
        let answer = world.get(&tag("bad", "1")).await;
        assert_eq!((answer.header("x-stopover"), answer.bytes()), ("stale", &bad.manifest));
    }
    assert_eq!(world.upstream.count("/v2/bad/"), 1, "one time-out, and not three");
    assert_eq!(world.get(&tag("good", "1")).await.bytes(), &good.manifest);
}

async fn a_hanging_host_that_upstream_redirects_to_closes_nothing_but_that_blob(column: Column) {
    let world = World::on(column).await;
    let good = world.upstream.image("good", "1", &[b"good"]);
    let elsewhere = Scripted::start().unwrap();
    elsewhere.fault("/", Fault::Silent);
    let away = vec![("location", format!("{}/cdn", elsewhere.url()))];
    world.upstream.fault("/v2/bad/blobs/", Fault::Status(307, away, String::new()));
    for _ in 0..2 {
        let answer = world.get_from(STRANGER, &blob_of("bad", "hangs")).await;
        assert_eq!(answer.status, StatusCode::SERVICE_UNAVAILABLE);
    }
    assert_eq!(world.upstream.count("/v2/bad/blobs/"), 1);
    assert_eq!(world.get_from(OTHER, &tag("good", "1")).await.bytes(), &good.manifest);
}

async fn a_limit_on_one_repository_is_not_the_upstreams_unless_its_v2_says_so(column: Column) {
    for (fault, others) in [("/v2/bad/", StatusCode::OK), ("/v2/", StatusCode::TOO_MANY_REQUESTS)] {
        let world = World::on(column).await;
        world.upstream.image("good", "1", &[b"good"]);
        let limit = Fault::Status(429, vec![("retry-after", "3600".into())], "slow down".into());
        world.upstream.fault(fault, limit);
        for path in [tag("bad", "1"), tag("bad", "2"), blob_of("bad", "a blob")] {
            let answer = world.get_from(STRANGER, &path).await;
            assert_eq!((answer.status, answer.header("retry-after")), (StatusCode::TOO_MANY_REQUESTS, "3600"));
        }
        assert_eq!(world.upstream.count("/v2/bad/"), 1, "the limit is believed");
        assert_eq!(world.get_from(OTHER, &tag("good", "1")).await.status, others, "{fault}");
    }
}

async fn whatever_upstream_is_asked_in_vain_is_a_miss(column: Column) {
    const MISSES: usize = 10;
    for code in [302, 400, 403, 404, 405, 410, 451, 503] {
        for (method, manifests) in [(Method::HEAD, true), (Method::GET, true), (Method::GET, false)] {
            let world = World::plan(column).settings(&format!("misses = {MISSES}")).start().await;
            let good = world.upstream.image("good", "1", &[b"good"]);
            world.upstream.fault("/v2/evil-", status(code));
            let mut refused = 0;
            for number in 0..30 {
                // In one repository after the other: that one does not exist is remembered.
                let name = format!("evil-{number}");
                let path = if manifests { tag(&name, "1") } else { blob_of(&name, "a blob") };
                let answer = world.send_from(STRANGER, method.clone(), &path).await;
                assert!(!answer.status.is_success(), "{code}: {answer:?}");
                refused += usize::from(answer.status == StatusCode::TOO_MANY_REQUESTS);
            }
            assert_eq!(refused, 30 - MISSES, "{code} {method} {manifests}");
            // Some are asked with HEAD and then with GET, some once more.
            assert!(world.upstream.count("/v2/evil-") <= 2 * MISSES, "{code} {method} {manifests}");
            assert_eq!(world.get_from(OTHER, &tag("good", "1")).await.bytes(), &good.manifest, "{code}");
        }
    }
}

/// A manifest may name a thousand blobs, and each is a question.
async fn blobs_that_a_manifest_names_and_upstream_does_not_have_are_misses(column: Column) {
    const MISSES: usize = 10;
    for fault in [None, Some(status(500))] {
        let world = World::plan(column).cold(Cold::Wait).settings(&format!("misses = {MISSES}")).start().await;
        let named = |number: usize| {
            let digest = Digest::of(Algorithm::Sha256, format!("not there {number}").as_bytes());
            json!({ "mediaType": "application/octet-stream", "digest": digest.as_str(), "size": 1 })
        };
        let manifest = json!({
            "schemaVersion": 2, "mediaType": MediaType::OciManifest.as_str(),
            "config": named(0), "layers": (1..300).map(named).collect::<Vec<_>>(),
        });
        let manifest = manifest.to_string();
        world.upstream.manifest("evil", "1", MediaType::OciManifest.as_str(), manifest.as_bytes());
        if let Some(fault) = &fault {
            world.upstream.fault("/v2/evil/blobs/", fault.clone());
        }
        assert_eq!(world.get_from(STRANGER, &tag("evil", "1")).await.status, StatusCode::OK);
        // Fills, and clients that ask for the same, until the budget is used up.
        let mut over = false;
        for number in 0..100 {
            let path = blob_of("evil", &format!("not there {number}"));
            let answer = world.get_from(STRANGER, &path).await;
            over |= matches!(answer.status, StatusCode::TOO_MANY_REQUESTS);
            assert!(!answer.status.is_success());
        }
        assert!(over, "the budget is used up");
        // What ran when it was used up has been asked for too: four fills of the queue, and what a broken connection
        // would be sent again for.
        let most = 2 * (MISSES + 16);
        assert!(world.upstream.count("/blobs/") <= most, "{}", world.upstream.count("/blobs/"));
        let good = world.upstream.image("good", "1", &[b"layer"]);
        assert_eq!(world.get_from(OTHER, &tag("good", "1")).await.bytes(), &good.manifest);
        for (digest, bytes) in &good.blobs {
            let path = format!("/v2/test.local/good/blobs/{digest}");
            let answer = world.get_from(OTHER, &path).await;
            assert!(answer.status.is_redirection() || answer.bytes() == bytes, "{answer:?}");
        }
    }
}

async fn what_alternates_are_asked_in_vain_is_a_miss_too(column: Column) {
    let other = Scripted::start().unwrap();
    let settings = format!("misses = 10\n[upstreams.\"other.local\"]\nurl = \"{}\"\n", other.url());
    let alternates = "alternates = [{ upstream = \"other.local\" }]";
    let world = World::plan(column).settings(&settings).upstream(alternates).start().await;
    world.upstream.fault("/v2/", status(503));
    for number in 0..30 {
        let answer = world.get_from(STRANGER, &blob_of("a", &number.to_string())).await;
        assert!(!answer.status.is_success());
    }
    assert!((1..=10).contains(&other.count("/blobs/")), "{}", other.count("/blobs/"));
}

async fn an_outage_costs_callers_of_what_is_known_nothing(column: Column) {
    let world = World::plan(column).settings("misses = 2").start().await;
    let images: Vec<_> = (0..5).map(|number| world.upstream.image("a", &number.to_string(), &[])).collect();
    for number in 0..5 {
        assert_eq!(world.get_from(STRANGER, &tag("a", &number.to_string())).await.status, StatusCode::OK);
    }
    world.settled().await;
    world.upstream.kill();
    for _ in 0..3 {
        world.clock.advance(FRESH);
        for (number, image) in images.iter().enumerate() {
            let answer = world.get_from(STRANGER, &tag("a", &number.to_string())).await;
            assert_eq!((answer.header("x-stopover"), answer.bytes()), ("stale", &image.manifest));
        }
        // Two that are not known cost two; while upstream is left alone, others cost nothing and are told so.
        for number in 0..10 {
            let answer = world.get_from(STRANGER, &tag("b", &number.to_string())).await;
            assert_eq!(answer.status, StatusCode::SERVICE_UNAVAILABLE, "{answer:?}");
        }
        world.clock.advance(Duration::from_mins(2));
    }
}
