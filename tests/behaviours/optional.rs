//! What registries may offer, and do badly: it is asked for again without it.

use std::time::Duration;

use http::StatusCode;
use stopover::config::Cold;
use support::on_both_columns;
use support::scripted::Fault;
use support::world::{Column, World};

on_both_columns!(
    a_range_that_is_refused_is_asked_for_as_a_whole,
    a_page_length_that_is_refused_is_left_to_the_registry,
    a_list_that_leads_back_to_itself_has_been_read,
    a_head_that_is_refused_as_such_is_asked_by_get,
    a_head_that_is_refused_where_get_works_is_not_believed,
    a_head_that_says_what_get_says_is_believed_from_then_on,
    a_manifest_that_upstream_has_by_its_tag_only_is_pulled_by_it,
);

const TAG: &str = "/v2/test.local/a/manifests/1";

fn answers(status: u16, headers: Vec<(&'static str, String)>) -> Fault {
    Fault::Status(status, headers, "{}".into())
}

/// Reported of containerd (#11953, #11998, #12291) and microk8s (#5404).
async fn a_range_that_is_refused_is_asked_for_as_a_whole(column: Column) {
    let world = World::plan(column).cold(Cold::Wait).start().await;
    let mut faults: Vec<Fault> =
        [400, 403, 404, 405, 416, 500, 501, 206].into_iter().map(|status| answers(status, Vec::new())).collect();
    for range in ["bytes 0-4194303/*", "bytes 1-2/5242880", "0-4194303"] {
        faults.push(answers(206, vec![("content-range", range.into())]));
    }
    for (number, fault) in faults.into_iter().enumerate() {
        let first = u8::try_from(number * 2).unwrap();
        let ranged = async |fill: u8, faulty: bool| {
            let layer = vec![fill; 5 * 1024 * 1024];
            let image = world.upstream.image("a", "1", &[&layer]);
            let digest = &image.blobs[1].0;
            if faulty {
                world.upstream.fault_times(&format!("GET /v2/a/blobs/{digest}"), 1, fault.clone());
            }
            world.get(&format!("/v2/test.local/a/manifests/{}", image.digest)).await;
            world.settled().await;
            let answer = world.pull(&format!("/v2/test.local/a/blobs/{digest}")).await;
            assert!(answer.bytes().as_ref() == layer.as_slice(), "{fault:?}");
            let asked = world.upstream.requests().into_iter().filter(|seen| seen.line.ends_with(digest.as_str()));
            asked.map(|seen| seen.headers.contains_key("range")).collect::<Vec<_>>()
        };
        assert_eq!(ranged(first, true).await, [true, false], "{fault:?}");
        let passes = matches!(fault, Fault::Status(500.., ..));
        assert_eq!(ranged(first + 1, false).await.first(), Some(&passes), "{fault:?}: it is remembered");
        world.clock.advance(Duration::from_mins(11));
    }
}

async fn a_page_length_that_is_refused_is_left_to_the_registry(column: Column) {
    let world = World::on(column).await;
    world.upstream.tags("a", &["1", "2"]);
    world.upstream.fault_times("/tags/list", 1, answers(400, Vec::new()));
    let answer = world.get("/v2/test.local/a/tags/list").await;
    assert_eq!(answer.status, StatusCode::OK, "{answer:?}");
    world.upstream.tags("b", &["1"]);
    assert_eq!(world.get("/v2/test.local/b/tags/list").await.status, StatusCode::OK);
    let lists = world.upstream.requests().into_iter().filter(|seen| seen.line.ends_with("/tags/list"));
    assert_eq!(lists.map(|seen| seen.query).collect::<Vec<_>>(), ["n=1000", "", ""]);
}

async fn a_list_that_leads_back_to_itself_has_been_read(column: Column) {
    let world = World::on(column).await;
    let body = |tag: &str| format!("{{\"name\":\"a\",\"tags\":[\"{tag}\"]}}");
    let next = |last: &str| format!("<http://internal:5000/v2/a/tags/list?n=1000&last={last}>; rel='next'");
    let path = "/v2/a/tags/list?n=1000";
    world.upstream.page(path, "application/json", &body("1"), Some(&next("1")));
    world.upstream.page(&format!("{path}&last=1"), "application/json", &body("2"), Some(&next("2")));
    world.upstream.page(&format!("{path}&last=2"), "application/json", &body("3"), Some(&next("1")));
    let answer = world.get("/v2/test.local/a/tags/list").await;
    assert_eq!(answer.status, StatusCode::OK, "{answer:?}");
    let list: serde_json::Value = serde_json::from_slice(answer.bytes()).unwrap();
    assert_eq!(list["tags"], serde_json::json!(["1", "2", "3"]));
    assert_eq!(world.upstream.count("/tags/list"), 3);
}

async fn a_head_that_is_refused_as_such_is_asked_by_get(column: Column) {
    for status in [400, 405, 406, 501] {
        let world = World::on(column).await;
        world.upstream.fault("HEAD /v2/a/manifests/1", answers(status, Vec::new()));
        world.upstream.image("a", "1", &[b"layer"]);
        assert_eq!(world.get(TAG).await.status, StatusCode::OK);
        world.settled().await;
        let moved = world.upstream.image("a", "1", &[b"another"]);
        world.clock.advance(Duration::from_hours(1));
        assert_eq!(world.get(TAG).await.bytes(), &moved.manifest, "{status}");
        assert_eq!(world.head("/v2/test.local/a/manifests/1").await.status, StatusCode::OK);
    }
}

async fn a_head_that_is_refused_where_get_works_is_not_believed(column: Column) {
    let page = || vec![("content-type", "text/html".to_owned())];
    for (status, headers) in [(403, vec![]), (404, vec![]), (404, page()), (403, page()), (200, page())] {
        let world = World::on(column).await;
        world.upstream.image("a", "1", &[b"layer"]);
        world.upstream.fault("HEAD /v2/a/manifests/", Fault::Status(status, headers.clone(), String::new()));
        // A client that begins with HEAD, as containerd does.
        world.upstream.image("a", "2", &[b"another"]);
        assert_eq!(world.head("/v2/test.local/a/manifests/2").await.status, StatusCode::OK, "{status} {headers:?}");
        assert_eq!(world.get(TAG).await.status, StatusCode::OK);
        world.settled().await;
        for number in 0..3 {
            let moved = world.upstream.image("a", "1", &[format!("moved {number}").as_bytes()]);
            world.clock.advance(Duration::from_mins(6));
            assert_eq!(world.get(TAG).await.bytes(), &moved.manifest, "{status} {headers:?}");
            world.settled().await;
        }
        if status != 200 && headers.is_empty() {
            assert!(world.upstream.count("HEAD ") <= 2, "it is remembered: {}", world.upstream.count("HEAD "));
        }
        // Another repository of the same registry is none of its business.
        let good = world.upstream.image("b", "1", &[b"good"]);
        assert_eq!(
            world.head("/v2/test.local/b/manifests/1").await.header("docker-content-digest"),
            good.digest.as_str()
        );
        assert_eq!(world.upstream.count("GET /v2/b/manifests/1"), 0);
    }
}

async fn a_head_that_says_what_get_says_is_believed_from_then_on(column: Column) {
    let world = World::on(column).await;
    for tag in ["1", "2", "3"] {
        world.upstream.image("a", tag, &[b"layer"]);
        assert_eq!(world.get(&format!("/v2/test.local/a/manifests/{tag}")).await.status, StatusCode::OK);
    }
    world.settled().await;
    world.clock.advance(Duration::from_mins(6));
    world.upstream.forget_requests();
    for tag in ["1", "2", "3"] {
        world.upstream.delete_tag("a", tag);
        let answer = world.get(&format!("/v2/test.local/a/manifests/{tag}")).await;
        assert_eq!(answer.status, StatusCode::NOT_FOUND, "{answer:?}");
    }
    assert_eq!((world.upstream.count("HEAD "), world.upstream.count("GET ")), (3, 1));
    for number in 0..3 {
        world.head(&format!("/v2/test.local/other/manifests/{number}")).await;
    }
    assert_eq!(world.upstream.count("GET /v2/other/"), 0, "of what was never there HEAD is believed");
}

/// Reported of spegel (#1378) and Docker (moby#41687).
async fn a_manifest_that_upstream_has_by_its_tag_only_is_pulled_by_it(column: Column) {
    let world = World::on(column).await;
    world.upstream.fault("/v2/a/manifests/sha256:", answers(404, vec![("content-type", "application/json".into())]));
    let image = world.upstream.image("a", "1", &[b"layer"]);
    assert_eq!(world.head(TAG).await.header("docker-content-digest"), image.digest.as_str());
    assert_eq!(world.get(TAG).await.bytes(), &image.manifest, "HEAD has named it");
    world.settled().await;
    let moved = world.upstream.image("a", "1", &[b"another"]);
    world.clock.advance(Duration::from_mins(6));
    assert_eq!(world.get(TAG).await.bytes(), &moved.manifest, "it has moved");
    let asked = world.upstream.count("GET /v2/a/manifests/");
    assert_eq!(world.get(TAG).await.header("x-stopover"), "hit");
    assert_eq!(world.upstream.count("GET /v2/a/manifests/"), asked);
}
