//! Tags: fresh, stale, moved, missing.

use std::time::Duration;

use futures_util::future::join_all;
use http::{Method, StatusCode};
use stopover::oci::Repository;
use stopover::pull::Want;
use support::on_both_columns;
use support::scripted::{Fault, Login};
use support::world::{Column, World};

on_both_columns!(
    a_fresh_tag_is_not_revalidated,
    a_stale_tag_is_revalidated_with_head_only,
    a_moved_tag_serves_the_new_digest,
    a_moved_tag_whose_manifest_cannot_be_fetched_serves_the_old_one,
    a_tag_that_moved_to_what_upstream_does_not_have_serves_the_old_one,
    a_cold_get_by_tag_is_one_get_upstream,
    a_head_never_fetches_a_manifest,
    a_tag_seen_by_head_only_is_pulled_by_digest_and_survives_an_outage,
    a_missing_tag_is_remembered,
    a_remembered_missing_tag_says_hit,
    a_deleted_tag_is_missing_and_its_digest_still_pulls,
    a_deleted_tag_is_served_on_where_the_rule_says_so,
    an_upstream_that_cannot_answer_head_is_asked_with_get,
    a_tag_is_served_stale_no_longer_than_allowed,
    a_client_that_wants_a_check_gets_one_and_many_share_it,
    tags_are_fresh_by_pattern_and_immutable_ones_for_ever,
    a_missing_repository_is_remembered_whatever_is_asked_of_it,
    a_check_that_finds_a_repository_after_all_finds_all_of_it,
);

const TAG: &str = "/v2/test.local/a/manifests/1";
/// Five minutes, ten per cent more: after that a tag is stale for certain.
const FRESH: Duration = Duration::from_secs(330);
/// Ten per cent less: until then it is fresh for certain.
const SURELY_FRESH: Duration = Duration::from_secs(269);
const MISSING: Duration = Duration::from_secs(33);

async fn a_fresh_tag_is_not_revalidated(column: Column) {
    let world = World::on(column).await;
    world.upstream.image("a", "1", &[b"layer"]);
    world.get(TAG).await;
    world.upstream.forget_requests();
    world.clock.advance(SURELY_FRESH);
    for answer in [world.get(TAG).await, world.head(TAG).await] {
        assert_eq!((answer.status, answer.header("x-stopover")), (StatusCode::OK, "hit"));
    }
    assert_eq!(world.upstream.count("/manifests/"), 0);
}

async fn a_stale_tag_is_revalidated_with_head_only(column: Column) {
    let world = World::on(column).await;
    world.upstream.image("a", "1", &[b"layer"]);
    world.get(TAG).await;
    for _ in 0..3 {
        world.upstream.forget_requests();
        world.clock.advance(FRESH);
        assert_eq!(world.get(TAG).await.header("x-stopover"), "revalidated");
        assert_eq!(world.get(TAG).await.header("x-stopover"), "hit");
        assert_eq!((world.upstream.count("HEAD"), world.upstream.count("GET /v2/a/manifests")), (1, 0));
    }
}

async fn a_moved_tag_serves_the_new_digest(column: Column) {
    let world = World::on(column).await;
    let old = world.upstream.image("a", "1", &[b"old"]);
    world.get(TAG).await;
    let new = world.upstream.image("a", "1", &[b"new"]);
    assert_eq!(world.get(TAG).await.bytes(), &old.manifest, "fresh");
    world.clock.advance(FRESH);
    world.upstream.forget_requests();
    assert_eq!(world.get(TAG).await.bytes(), &new.manifest);
    let by_digest = format!("GET /v2/a/manifests/{}", new.digest);
    assert_eq!((world.upstream.count("HEAD"), world.upstream.count(&by_digest)), (1, 1));
    assert_eq!(world.upstream.count("GET /v2/a/manifests/1"), 0);
    assert_eq!(world.get(TAG).await.header("x-stopover"), "hit");
}

async fn a_moved_tag_whose_manifest_cannot_be_fetched_serves_the_old_one(column: Column) {
    let world = World::on(column).await;
    let old = world.upstream.image("a", "1", &[b"old"]);
    world.get(TAG).await;
    let new = world.upstream.image("a", "1", &[b"new"]);
    world.clock.advance(FRESH);
    world.upstream.fault(&format!("GET /v2/a/manifests/{}", new.digest), Fault::Status(429, vec![], String::new()));
    // A HEAD learns of the new digest and must not lose the old one for those who GET.
    let head = world.head(TAG).await;
    assert_eq!((head.status, head.header("docker-content-digest")), (StatusCode::OK, new.digest.as_str()));
    for _ in 0..2 {
        let answer = world.get(TAG).await;
        assert_eq!((answer.status, answer.header("x-stopover")), (StatusCode::OK, "stale"));
        assert_eq!(answer.bytes(), &old.manifest);
    }
    world.upstream.heal();
    world.clock.advance(Duration::from_mins(1));
    assert_eq!(world.get(TAG).await.bytes(), &new.manifest);
}

async fn a_tag_that_moved_to_what_upstream_does_not_have_serves_the_old_one(column: Column) {
    let no_repository = r#"{"errors": [{"code": "NAME_UNKNOWN", "message": "no"}]}"#;
    for refusal in [None, Some(no_repository)] {
        let world = World::on(column).await;
        let old = world.upstream.image("a", "1", &[b"old"]);
        world.get(TAG).await;
        world.clock.advance(FRESH);
        let nothing = format!("sha256:{}", "0".repeat(64));
        if let Some(body) = refusal {
            world.upstream.fault(&nothing, Fault::Status(404, vec![], body.into()));
        }
        world.upstream.fault("/v2/a/manifests/1", Fault::Headers(vec![("docker-content-digest", nothing)]));
        // The second one finds what a HEAD has learned.
        for head in [false, true] {
            if head {
                world.head(TAG).await;
            }
            let answer = world.get(TAG).await;
            let found = (answer.status, answer.header("x-stopover"), answer.bytes());
            assert_eq!(found, (StatusCode::OK, "stale", &old.manifest), "{refusal:?}, after HEAD: {head}");
        }
    }
}

async fn a_cold_get_by_tag_is_one_get_upstream(column: Column) {
    let world = World::on(column).await;
    world.upstream.image("a", "1", &[b"layer"]);
    world.get(TAG).await;
    assert_eq!((world.upstream.count("/manifests/"), world.upstream.count("HEAD")), (1, 0));
    let seen = world.upstream.requests().remove(0);
    assert_eq!(seen.headers["accept-encoding"], "identity");
    for kind in ["oci.image.index.v1", "oci.image.manifest.v1", "manifest.v2", "manifest.list.v2"] {
        assert!(seen.headers["accept"].to_str().unwrap().contains(kind), "{kind}");
    }
}

async fn a_head_never_fetches_a_manifest(column: Column) {
    let world = World::on(column).await;
    let image = world.upstream.image("a", "1", &[b"layer"]);
    for path in [TAG.to_owned(), format!("/v2/test.local/a/manifests/{}", image.digest)] {
        let answer = world.head(&path).await;
        assert_eq!(answer.status, StatusCode::OK);
        assert_eq!(answer.header("docker-content-digest"), image.digest.as_str());
        assert_eq!(answer.header("content-length"), image.manifest.len().to_string());
        assert_eq!(answer.header("content-type"), "application/vnd.oci.image.manifest.v1+json");
    }
    assert_eq!(world.upstream.count("GET"), 0);
}

async fn a_tag_seen_by_head_only_is_pulled_by_digest_and_survives_an_outage(column: Column) {
    let world = World::on(column).await;
    let image = world.upstream.image("a", "1", &[b"layer"]);
    // As containerd and dockerd pull: HEAD of the tag, then GET of the digest.
    world.head(TAG).await;
    world.get(&format!("/v2/test.local/a/manifests/{}", image.digest)).await;
    world.settled().await;
    world.clock.advance(FRESH);
    world.upstream.kill();
    let head = world.head(TAG).await;
    assert_eq!((head.status, head.header("x-stopover")), (StatusCode::OK, "stale"));
    assert_eq!(head.header("docker-content-digest"), image.digest.as_str());
    assert_eq!(world.get(TAG).await.bytes(), &image.manifest);
}

async fn a_remembered_missing_tag_says_hit(column: Column) {
    let world = World::on(column).await;
    world.upstream.image("a", "1", &[b"layer"]);
    for (tag, served) in [("none", "miss"), ("none", "hit"), ("neither", "miss"), ("none", "hit")] {
        let answer = world.head(&format!("/v2/test.local/a/manifests/{tag}")).await;
        assert_eq!((answer.status, answer.header("x-stopover")), (StatusCode::NOT_FOUND, served), "{tag}");
    }
    world.clock.advance(MISSING);
    assert_eq!(world.get("/v2/test.local/a/manifests/none").await.header("x-stopover"), "miss");
}

async fn a_missing_tag_is_remembered(column: Column) {
    let world = World::on(column).await;
    for _ in 0..3 {
        assert_eq!(world.get(TAG).await.error().0, "MANIFEST_UNKNOWN");
        assert_eq!(world.head(TAG).await.status, StatusCode::NOT_FOUND);
    }
    assert_eq!(world.upstream.count("/manifests/"), 1);
    let image = world.upstream.image("a", "1", &[b"layer"]);
    world.clock.advance(MISSING);
    assert_eq!(world.get(TAG).await.bytes(), &image.manifest);
}

async fn a_deleted_tag_is_missing_and_its_digest_still_pulls(column: Column) {
    let world = World::on(column).await;
    let image = world.upstream.image("a", "1", &[b"layer"]);
    world.get(TAG).await;
    world.upstream.delete_tag("a", "1");
    world.clock.advance(FRESH);
    assert_eq!(world.get(TAG).await.status, StatusCode::NOT_FOUND);
    let answer = world.get(&format!("/v2/test.local/a/manifests/{}", image.digest)).await;
    assert_eq!(answer.bytes(), &image.manifest);
}

async fn a_deleted_tag_is_served_on_where_the_rule_says_so(column: Column) {
    let unknown = "{\"errors\":[{\"code\":\"NAME_UNKNOWN\"}]}".to_owned();
    for whole_repository in [false, true] {
        let world = World::plan(column).upstream("deleted = \"serve\"\nstale = \"1h\"").start().await;
        let image = world.upstream.image("a", "1", &[b"layer"]);
        world.get(TAG).await;
        world.upstream.delete_tag("a", "1");
        if whole_repository {
            world.upstream.fault("/v2/a/", Fault::Status(404, vec![], unknown.clone()));
        }
        world.clock.advance(FRESH);
        world.upstream.forget_requests();
        for _ in 0..3 {
            for answer in [world.get(TAG).await, world.head(TAG).await] {
                assert_eq!((answer.status, answer.header("etag")), (StatusCode::OK, &*format!("\"{}\"", image.digest)));
            }
        }
        let asked = (world.upstream.count("HEAD"), world.upstream.count("GET /v2/a/manifests"));
        assert_eq!(asked, (1, 0), "that it is gone is remembered");
        world.clock.advance(MISSING);
        let answer = world.get(TAG).await;
        assert_eq!((answer.header("x-stopover"), answer.bytes()), ("stale", &image.manifest));
        assert_eq!(world.upstream.count("HEAD"), 2);
        // The last word of upstream is five and a half minutes and half a minute old: its hour is over in 54.
        world.clock.advance(Duration::from_mins(55));
        assert_eq!(world.get(TAG).await.status, StatusCode::NOT_FOUND, "longer than stale content is served");
        assert_eq!(world.get("/v2/test.local/a/manifests/2").await.status, StatusCode::NOT_FOUND);
        world.upstream.heal();
        let image = world.upstream.image("a", "1", &[b"another"]);
        world.clock.advance(Duration::from_mins(5));
        assert_eq!(world.get(TAG).await.bytes(), &image.manifest, "it may come back");
    }
}

async fn an_upstream_that_cannot_answer_head_is_asked_with_get(column: Column) {
    for fault in
        [Fault::Status(405, vec![], String::new()), Fault::Headers(vec![("docker-content-digest", String::new())])]
    {
        let world = World::on(column).await;
        world.upstream.fault("HEAD", fault);
        let image = world.upstream.image("a", "1", &[b"layer"]);
        let head = world.head(TAG).await;
        assert_eq!((head.status, head.header("docker-content-digest")), (StatusCode::OK, image.digest.as_str()));
        world.clock.advance(FRESH);
        assert_eq!(world.get(TAG).await.bytes(), &image.manifest);
    }
}

async fn a_tag_is_served_stale_no_longer_than_allowed(column: Column) {
    let world = World::plan(column).settings("stale = \"1d\"").start().await;
    let image = world.upstream.image("a", "1", &[b"layer"]);
    world.get(TAG).await;
    world.upstream.kill();
    world.clock.advance(Duration::from_hours(23));
    assert_eq!(world.get(TAG).await.header("x-stopover"), "stale");
    world.clock.advance(Duration::from_hours(1));
    assert_eq!(world.get(TAG).await.status, StatusCode::SERVICE_UNAVAILABLE);
    let answer = world.get(&format!("/v2/test.local/a/manifests/{}", image.digest)).await;
    assert_eq!(answer.bytes(), &image.manifest, "by digest it is never stale");
}

async fn a_client_that_wants_a_check_gets_one_and_many_share_it(column: Column) {
    let world = World::on(column).await;
    world.upstream.image("a", "1", &[b"old"]);
    world.get(TAG).await;
    let new = world.upstream.image("a", "1", &[b"new"]);
    world.upstream.forget_requests();
    let no_cache = [("cache-control", "max-age=0, No-Cache")];
    for answer in join_all((0..50).map(|_| world.send(Method::GET, TAG, &no_cache))).await {
        assert_eq!(answer.bytes(), &new.manifest);
    }
    assert_eq!((world.upstream.count("HEAD"), world.upstream.count("GET /v2/a/manifests")), (1, 1));
    // A remembered miss is checked too.
    let path = "/v2/test.local/a/manifests/2";
    assert_eq!(world.get(path).await.status, StatusCode::NOT_FOUND);
    world.upstream.image("a", "2", &[b"late"]);
    assert_eq!(world.get(path).await.status, StatusCode::NOT_FOUND);
    assert_eq!(world.send(Method::GET, path, &no_cache).await.status, StatusCode::OK);
}

async fn tags_are_fresh_by_pattern_and_immutable_ones_for_ever(column: Column) {
    let rules = "fresh = { \"*\" = \"5m\", \"1.*\" = \"1d\" }\nimmutable = [\"*-final\"]";
    let world = World::plan(column).upstream(rules).start().await;
    let asked = async |tag: &str| {
        world.upstream.forget_requests();
        assert_eq!(world.get(&format!("/v2/test.local/a/manifests/{tag}")).await.status, StatusCode::OK);
        world.upstream.count("/manifests/")
    };
    for tag in ["latest", "1.27", "1.27-final"] {
        world.upstream.image("a", tag, &[b"layer"]);
        assert_eq!(asked(tag).await, 1);
    }
    world.clock.advance(Duration::from_hours(12));
    assert_eq!((asked("latest").await, asked("1.27").await, asked("1.27-final").await), (1, 0, 0));
    world.clock.advance(Duration::from_hours(24 * 365));
    assert_eq!((asked("latest").await, asked("1.27").await, asked("1.27-final").await), (1, 1, 0));
}

async fn a_missing_repository_is_remembered_whatever_is_asked_of_it(column: Column) {
    let unknown = "{\"errors\":[{\"code\":\"NAME_UNKNOWN\"}]}".to_owned();
    // As Docker Hub says it, and as others do.
    for fault in [Fault::Status(401, vec![], String::new()), Fault::Status(404, vec![], unknown)] {
        let world = World::on(column).await;
        world.upstream.require(Login::Bearer);
        world.upstream.image("a", "1", &[b"layer"]);
        assert_eq!(world.get(TAG).await.status, StatusCode::OK);
        world.settled().await;
        world.upstream.fault("/v2/ghost/", fault);
        world.upstream.forget_requests();
        for tag in ["1", "2", "3"] {
            let answer = world.get(&format!("/v2/test.local/ghost/manifests/{tag}")).await;
            assert_eq!((answer.status, answer.error().0.as_str()), (StatusCode::NOT_FOUND, "NAME_UNKNOWN"));
        }
        let path = format!("/v2/test.local/ghost/blobs/sha256:{}", "0".repeat(64));
        assert_eq!(world.get(&path).await.status, StatusCode::NOT_FOUND);
        let asked = world.upstream.count("/v2/ghost/manifests/");
        let other = world.another_instance();
        let ghost = Repository { upstream: "test.local".parse().unwrap(), name: "ghost".parse().unwrap() };
        assert!(other.pull.manifest(&ghost, &"5".parse().unwrap(), Want::GET).await.is_err());
        assert_eq!(world.upstream.count("/v2/ghost/manifests/"), asked, "another instance knows");
        assert_eq!(world.upstream.count("/v2/ghost/manifests/1"), asked, "only the first one was asked for");
        assert_eq!(world.get(TAG).await.status, StatusCode::OK, "other repositories are not affected");
        world.upstream.heal();
        let image = world.upstream.image("ghost", "4", &[b"layer"]);
        world.clock.advance(Duration::from_mins(5));
        assert_eq!(world.get("/v2/test.local/ghost/manifests/4").await.bytes(), &image.manifest);
    }
}

async fn a_check_that_finds_a_repository_after_all_finds_all_of_it(column: Column) {
    let world = World::on(column).await;
    let image = world.upstream.image("a", "1", &[b"layer"]);
    let other = world.upstream.image("a", "2", &[b"other"]);
    world.upstream.fault("/v2/a/", Fault::Status(403, vec![], String::new()));
    assert_eq!(world.get(TAG).await.status, StatusCode::NOT_FOUND);
    world.upstream.heal();
    assert_eq!(world.get(TAG).await.status, StatusCode::NOT_FOUND, "remembered");
    let checked = world.send(Method::GET, TAG, &[("cache-control", "no-cache")]).await;
    assert_eq!(checked.bytes(), &image.manifest);
    let path = format!("/v2/test.local/a/manifests/{}", other.digest);
    assert_eq!(world.get(&path).await.bytes(), &other.manifest);
}
