//! Lists of tags: sorted, in pages that are right whatever upstream does, kept for a while, never cut short.

use std::time::Duration;

use futures_util::StreamExt as _;
use futures_util::future::join_all;
use http::{Method, StatusCode};
use serde_json::{Value, json};
use stopover::records::{Entry, ListKey};
use support::on_both_columns;
use support::scripted::{Fault, Login, Scripted};
use support::world::{Answer, Column, PASSWORD, World};

on_both_columns!(
    a_list_of_tags_is_sorted_and_cut_into_pages_whatever_upstream_does,
    a_list_keeps_the_clients_way_to_name_the_repository,
    the_next_page_is_found_by_every_reading_of_a_query,
    a_list_of_several_pages_is_read_whole_and_its_cursors_stay_here,
    a_fresh_list_is_not_asked_for_again_and_a_check_asks,
    however_many_want_a_list_upstream_is_asked_once,
    an_upstream_in_trouble_serves_the_list_it_sent_last,
    a_list_that_nobody_has_is_unavailable_and_not_empty,
    a_refused_login_is_not_covered_by_a_list_that_is_kept,
    a_repository_without_tags_is_unknown_and_that_is_remembered,
    what_is_no_list_of_tags_is_refused,
    a_list_that_is_too_long_is_refused_and_never_cut_short,
    a_list_too_large_for_the_ledger_is_kept_in_memory_while_it_is_fresh,
    a_list_that_is_read_anew_each_time_is_a_miss,
    a_list_costs_no_quota,
    a_list_that_is_over_is_swept,
    a_late_list_leaves_everything_else_reachable,
    only_the_first_page_may_say_that_there_is_no_list,
    a_list_that_a_check_finds_ends_the_absence_of_its_repository,
);

const LIST: &str = "/v2/test.local/a/tags/list";
/// Longer than the default freshness, jitter included.
const FRESH: Duration = Duration::from_secs(331);

fn body(answer: &Answer) -> Value {
    assert_eq!(answer.status, StatusCode::OK, "{answer:?}");
    assert_eq!(answer.header("content-type"), "application/json");
    assert_eq!(answer.header("content-length"), answer.bytes().len().to_string());
    serde_json::from_slice(answer.bytes()).expect("a list is JSON")
}

fn tags(answer: &Answer) -> Vec<String> {
    serde_json::from_value(body(answer)["tags"].take()).expect("tags are strings")
}

/// The page that a `Link` header leads to.
fn next(answer: &Answer) -> Option<&str> {
    let (target, relation) = answer.header("link").strip_prefix('<')?.split_once('>')?;
    assert_eq!(relation, "; rel=\"next\"");
    Some(target)
}

async fn a_list_of_tags_is_sorted_and_cut_into_pages_whatever_upstream_does(column: Column) {
    let world = World::on(column).await;
    world.upstream.tags("a", &["v2", "b", "V1", "b", "10", "not a tag", "9", "-x", ""]);
    let sorted = ["10", "9", "V1", "b", "v2"];
    let whole = world.get(LIST).await;
    assert_eq!(body(&whole), json!({ "name": "test.local/a", "tags": sorted }));
    assert_eq!((whole.header("link"), whole.header("x-stopover")), ("", "miss"));
    assert_eq!(whole.header("oci-namespace"), "test.local");
    assert_eq!(whole.header("docker-distribution-api-version"), "registry/2.0");
    let head = world.head(LIST).await;
    assert_eq!((head.status, head.header("content-length")), (StatusCode::OK, whole.header("content-length")));
    assert!(head.bytes().is_empty());
    for n in [1, 2, 3, 5, 1000] {
        let (mut walked, mut path) = (Vec::new(), Some(format!("{LIST}?n={n}")));
        while let Some(page) = path {
            let answer = world.get(&page).await;
            assert!(tags(&answer).len() <= n && !tags(&answer).is_empty(), "{n}");
            walked.extend(tags(&answer));
            path = next(&answer).map(str::to_owned);
        }
        assert_eq!(walked, sorted, "{n}");
    }
    let none = world.get(&format!("{LIST}?n=0")).await;
    assert_eq!((tags(&none).len(), next(&none)), (0, None));
    assert_eq!(tags(&world.get(&format!("{LIST}?last=a")).await), ["b", "v2"], "the last one need not be a tag");
    assert_eq!(world.upstream.count("/tags/list"), 1);
    assert_eq!(world.upstream.requests()[0].query, "n=1000");
}

async fn a_list_keeps_the_clients_way_to_name_the_repository(column: Column) {
    let world = World::on(column).await;
    world.upstream.tags("a/b", &["1", "2"]);
    for (path, name) in [
        ("/v2/test.local/a/b/tags/list?n=1", "test.local/a/b"),
        ("/test.local/v2/a/b/tags/list?n=1", "a/b"),
        ("/v2/a/b/tags/list?ns=test.local&n=1", "a/b"),
        ("/test.local/v2/a/b/tags/list?n=1&ns=test.local", "a/b"),
    ] {
        let answer = world.get(path).await;
        assert_eq!(body(&answer), json!({ "name": name, "tags": ["1"] }), "{path}");
        let (next, expected) = (next(&answer).expect("there is more"), path.split('?').next().unwrap());
        assert!(next.starts_with(&format!("{expected}?n=1&last=1")), "{next}");
        assert_eq!(next.contains("ns=test.local"), path.contains("ns="), "{next}");
        assert_eq!(body(&world.get(next).await), json!({ "name": name, "tags": ["2"] }), "{path}");
    }
}

async fn the_next_page_is_found_by_every_reading_of_a_query(column: Column) {
    let world = World::plan(column).upstream("aliases = [\"a+b c&d\"]").start().await;
    world.upstream.tags("a/b", &["1", "2"]);
    let answer = world.get("/v2/a/b/tags/list?n=1&ns=a+b%20c%26d").await;
    let next = next(&answer).expect("there is more");
    assert_eq!(next, "/v2/a/b/tags/list?n=1&last=1&ns=a%2Bb%20c%26d", "neither a bare plus nor a plus for a space");
    assert_eq!(tags(&world.get(next).await), ["2"]);
}

async fn a_list_of_several_pages_is_read_whole_and_its_cursors_stay_here(column: Column) {
    let world = World::on(column).await;
    let page = |tags: &[&str]| json!({ "name": "a", "tags": tags }).to_string();
    let path = "/v2/a/tags/list";
    let absolute = format!("<{}{path}?cursor=2>; rel=\"next\"", world.upstream.url());
    world.upstream.page(path, "application/json", &page(&["c", "a"]), Some("<list?cursor=1>; rel=\"next\""));
    world.upstream.page(&format!("{path}?cursor=1"), "application/json", &page(&["d"]), Some(&absolute));
    world.upstream.page(&format!("{path}?cursor=2"), "application/json", &page(&["b", "a"]), None);
    let answer = world.get(&format!("{LIST}?n=3")).await;
    assert_eq!(tags(&answer), ["a", "b", "c"]);
    assert_eq!(next(&answer), Some("/v2/test.local/a/tags/list?n=3&last=c"));
    assert_eq!(world.upstream.count(path), 3);
    // Another origin is not the registry that was asked.
    let elsewhere = Scripted::start().unwrap();
    elsewhere.tags("a", &["evil"]);
    let link = format!("<{}{path}>; rel=\"next\"", elsewhere.url());
    world.upstream.page("/v2/b/tags/list", "application/json", &page(&["1"]), Some(&link));
    assert_eq!(world.get("/v2/test.local/b/tags/list").await.status, StatusCode::BAD_GATEWAY);
    assert!(elsewhere.requests().is_empty());
}

async fn a_fresh_list_is_not_asked_for_again_and_a_check_asks(column: Column) {
    let world = World::on(column).await;
    let asked = || world.upstream.count("/tags/list");
    world.upstream.tags("a", &["1"]);
    world.get(LIST).await;
    world.upstream.tags("a", &["1", "2"]);
    let answer = world.get(LIST).await;
    assert_eq!((answer.header("x-stopover"), tags(&answer).len(), asked()), ("hit", 1, 1));
    let answer = world.send(Method::GET, LIST, &[("cache-control", "no-cache")]).await;
    assert_eq!((answer.header("x-stopover"), tags(&answer).len(), asked()), ("miss", 2, 2));
    world.upstream.tags("a", &["3"]);
    world.clock.advance(FRESH);
    assert_eq!((tags(&world.get(LIST).await), asked()), (vec!["3".to_owned()], 3));
    let other = world.another_instance();
    let repository = stopover::oci::Repository { upstream: "test.local".parse().unwrap(), name: "a".parse().unwrap() };
    let pulled =
        other.pull.tags(&repository, &stopover::oci::Page::default(), stopover::pull::Want::GET).await.unwrap();
    assert_eq!((pulled.tags.iter().count(), asked()), (1, 3), "another instance knows");
}

async fn however_many_want_a_list_upstream_is_asked_once(column: Column) {
    let world = World::on(column).await;
    world.upstream.tags("a", &["1", "2"]);
    for answer in join_all((0..100).map(|_| world.get(LIST))).await {
        assert_eq!(tags(&answer), ["1", "2"]);
    }
    assert_eq!(world.upstream.count("/tags/list"), 1);
}

fn faults() -> [Fault; 4] {
    [
        Fault::Status(429, vec![], "slow down".into()),
        Fault::Status(503, vec![], String::new()),
        Fault::Status(200, vec![("content-type", "text/html".into())], "<html>".into()),
        Fault::Silent,
    ]
}

async fn an_upstream_in_trouble_serves_the_list_it_sent_last(column: Column) {
    for fault in faults() {
        let world = World::plan(column).settings("stale = \"1d\"\nwait = \"1s\"").start().await;
        world.upstream.tags("a", &["1"]);
        world.get(LIST).await;
        world.upstream.fault("/tags/list", fault.clone());
        world.clock.advance(FRESH);
        for _ in 0..2 {
            let answer = world.get(LIST).await;
            assert_eq!((answer.header("x-stopover"), tags(&answer)), ("stale", vec!["1".to_owned()]), "{fault:?}");
            assert!(answer.header("warning").starts_with("299 - \"stale"), "{answer:?}");
        }
        world.clock.advance(Duration::from_hours(25));
        let answer = world.get(LIST).await;
        assert!(answer.status.is_server_error() || answer.status == StatusCode::TOO_MANY_REQUESTS, "{answer:?}");
        world.upstream.heal();
        world.clock.advance(Duration::from_mins(2));
        assert_eq!(tags(&world.get(LIST).await), ["1"]);
    }
}

async fn a_list_that_nobody_has_is_unavailable_and_not_empty(column: Column) {
    for (fault, status) in faults().into_iter().zip([429, 503, 502, 503]) {
        let world = World::plan(column).settings("wait = \"1s\"").start().await;
        world.upstream.fault("/tags/list", fault.clone());
        let answer = world.get(LIST).await;
        assert_eq!(answer.status, status, "{fault:?}");
        assert_eq!(answer.header("retry-after").is_empty(), status == 502, "{answer:?}");
        world.upstream.heal();
        world.upstream.tags("a", &["1"]);
        world.clock.advance(Duration::from_mins(2));
        assert_eq!(tags(&world.get(LIST).await), ["1"], "no failure is remembered");
    }
}

async fn a_refused_login_is_not_covered_by_a_list_that_is_kept(column: Column) {
    let login = "public = true\ncredentials = { username = \"me\", password_env = \"TEST_SECRET\" }";
    let world = World::plan(column).upstream(login).start().await;
    world.upstream.require(Login::Basic("me".into(), PASSWORD.into()));
    world.upstream.tags("a", &["1"]);
    assert_eq!(tags(&world.get(LIST).await), ["1"]);
    world.upstream.require(Login::Basic("me".into(), "another".into()));
    world.clock.advance(FRESH);
    let answer = world.get(LIST).await;
    assert_eq!((answer.status, answer.error().0.as_str()), (StatusCode::FORBIDDEN, "DENIED"));
}

async fn a_repository_without_tags_is_unknown_and_that_is_remembered(column: Column) {
    let unknown = "{\"errors\":[{\"code\":\"NAME_UNKNOWN\"}]}".to_owned();
    for fault in [Fault::Status(404, vec![], unknown), Fault::Status(404, vec![], "404 page not found".into())] {
        let world = World::plan(column).settings("misses = 2").start().await;
        world.upstream.fault("/tags/list", fault);
        let list = |name: &str| format!("/v2/test.local/{name}/tags/list");
        for _ in 0..5 {
            let answer = world.get_from("192.0.2.1", &list("a")).await;
            assert_eq!((answer.status, answer.error().0.as_str()), (StatusCode::NOT_FOUND, "NAME_UNKNOWN"));
        }
        assert_eq!(world.upstream.count("/tags/list"), 1, "it is remembered, and charged once");
        assert_eq!(world.get_from("192.0.2.1", &list("b")).await.status, StatusCode::NOT_FOUND);
        let refused = world.get_from("192.0.2.1", &list("c")).await;
        assert_eq!(refused.status, StatusCode::TOO_MANY_REQUESTS, "who asks for what does not exist is stopped");
        // A repository without tags may have manifests.
        let image = world.upstream.image("a", "1", &[b"layer"]);
        assert_eq!(world.get("/v2/test.local/a/manifests/1").await.bytes(), &image.manifest);
        world.upstream.heal();
        world.upstream.tags("a", &["1"]);
        world.clock.advance(Duration::from_secs(34));
        assert_eq!(tags(&world.get(&list("a")).await), ["1"]);
    }
}

async fn what_is_no_list_of_tags_is_refused(column: Column) {
    let world = World::on(column).await;
    for body in
        ["", "[]", "{}", "{\"errors\":[]}", "{\"tags\":{}}", "{\"tags\":[1]}", "<html></html>", "{\"tags\":[\"1\""]
    {
        world.upstream.page("/v2/a/tags/list", "application/json", body, None);
        let answer = world.get(LIST).await;
        assert_eq!((answer.status, answer.error().0.as_str()), (StatusCode::BAD_GATEWAY, "MANIFEST_INVALID"), "{body}");
    }
    world.upstream.page("/v2/a/tags/list", "text/plain", "{\"tags\":null}", None);
    assert_eq!(tags(&world.get(LIST).await).len(), 0, "some registries write an empty list so");
}

async fn a_list_that_is_too_long_is_refused_and_never_cut_short(column: Column) {
    let world = World::on(column).await;
    let huge: Vec<String> = (0..40_000).map(|number| format!("{number:0128}")).collect();
    let huge = json!({ "tags": huge }).to_string();
    world.upstream.page("/v2/a/tags/list", "application/json", &huge, None);
    let answer = world.get("/v2/test.local/a/tags/list").await;
    assert_eq!(answer.status, StatusCode::BAD_GATEWAY);
    assert!(answer.error().1.contains("larger than") || answer.error().1.contains("too long"), "{answer:?}");
}

fn large() -> Vec<String> {
    (0..12_000).map(|number| format!("{number:030}")).collect()
}

fn has_large(world: &World, name: &str, tags: &[String]) {
    world.upstream.tags(name, &tags.iter().map(String::as_str).collect::<Vec<_>>());
}

async fn a_list_too_large_for_the_ledger_is_kept_in_memory_while_it_is_fresh(column: Column) {
    let world = World::on(column).await;
    let large = large();
    has_large(&world, "a", &large);
    for [first, second] in [["miss", "hit"], ["stale", "stale"]] {
        let answer = world.get(LIST).await;
        assert_eq!((answer.header("x-stopover"), tags(&answer).as_slice()), (first, &large[..10_000]));
        let rest = world.get(next(&answer).expect("as many as fit into one answer")).await;
        assert_eq!((rest.header("x-stopover"), tags(&rest).as_slice()), (second, &large[10_000..]));
        world.clock.advance(FRESH);
        world.upstream.fault("/tags/list", Fault::Status(503, vec![], String::new()));
    }
    // What it has become since goes before what it was, however large that was.
    world.upstream.heal();
    world.upstream.tags("a", &["1"]);
    world.clock.advance(Duration::from_mins(2));
    assert_eq!(tags(&world.get(LIST).await), ["1"]);
    assert_eq!((tags(&world.get(LIST).await), world.get(LIST).await.header("x-stopover")), (vec!["1".into()], "hit"));
}

async fn a_list_that_is_read_anew_each_time_is_a_miss(column: Column) {
    let world = World::plan(column).settings("misses = 2").start().await;
    world.upstream.tags("a", &["1"]);
    let check = async |caller: &str| world.get_with(caller, LIST, &[("cache-control", "no-cache")]).await.status;
    assert_eq!([check("192.0.2.1").await, check("192.0.2.1").await], [StatusCode::OK; 2]);
    assert_eq!(check("192.0.2.1").await, StatusCode::TOO_MANY_REQUESTS);
    assert_eq!(world.upstream.count("/tags/list"), 2);
    assert_eq!(tags(&world.get_from("192.0.2.1", LIST).await), ["1"], "what is kept is served");
    assert_eq!(check("192.0.2.2").await, StatusCode::OK, "everybody has a budget");
    // So is one that no other instance will know.
    for (name, status) in [("b", StatusCode::OK), ("c", StatusCode::OK), ("d", StatusCode::TOO_MANY_REQUESTS)] {
        has_large(&world, name, &large());
        let path = format!("/v2/test.local/{name}/tags/list");
        assert_eq!(world.get_from("192.0.2.3", &path).await.status, status, "{name}");
    }
}

async fn a_list_costs_no_quota(column: Column) {
    let world = World::on(column).await;
    world.upstream.quota(100, 0);
    world.upstream.image("a", "1", &[b"layer"]);
    world.upstream.tags("a", &["1"]);
    assert_eq!(world.get("/v2/test.local/a/manifests/1").await.status, StatusCode::TOO_MANY_REQUESTS);
    assert_eq!(tags(&world.get(LIST).await), ["1"]);
}

async fn a_list_that_is_over_is_swept(column: Column) {
    let world = World::plan(column).settings("stale = \"1h\"").start().await;
    let lists = || async {
        let entries = world.cache.core.storage.ledger.entries().map(|entry| entry.expect("the ledger can be read"));
        let entries: Vec<Entry> = entries.collect().await;
        entries.into_iter().filter(|entry| matches!(entry, Entry::Listing { key: ListKey::Tags, .. })).count()
    };
    world.upstream.tags("a", &["1"]);
    world.get(LIST).await;
    world.clock.advance(Duration::from_mins(55));
    world.cache.operate.sweep(false).await.unwrap();
    assert_eq!(lists().await, 1, "it may still be served");
    world.clock.advance(Duration::from_mins(11));
    world.cache.operate.sweep(true).await.unwrap();
    assert_eq!(lists().await, 1, "a dry run removes nothing");
    world.cache.operate.sweep(false).await.unwrap();
    assert_eq!(lists().await, 0);
}

async fn a_late_list_leaves_everything_else_reachable(column: Column) {
    let world = World::on(column).await;
    let image = world.upstream.image("a", "1", &[b"layer"]);
    world.upstream.fault("/tags/list", Fault::Silent);
    let late: Vec<String> = (0..4).map(|number| format!("/v2/test.local/r{number}/tags/list")).collect();
    for answer in join_all(late.iter().map(|path| world.get(path))).await {
        assert_eq!(answer.status, StatusCode::SERVICE_UNAVAILABLE);
        assert!(answer.error().1.contains("15 s"), "{answer:?}");
    }
    assert_eq!(world.get("/v2/test.local/a/manifests/1").await.bytes(), &image.manifest);
}

async fn only_the_first_page_may_say_that_there_is_no_list(column: Column) {
    let world = World::on(column).await;
    let path = "/v2/a/tags/list";
    let link = Some("<list?cursor=1>; rel=\"next\"");
    world.upstream.page(path, "application/json", "{\"tags\":[\"1\"]}", link);
    world.upstream.page(&format!("{path}?cursor=1"), "application/json", "{\"tags\":[\"2\"]}", None);
    assert_eq!(tags(&world.get(LIST).await), ["1", "2"]);
    let lost = Some("</v2/a/tags/lost>; rel=\"next\"");
    for name in ["a", "b"] {
        world.upstream.page(&format!("/v2/{name}/tags/list"), "application/json", "{\"tags\":[\"1\"]}", lost);
    }
    world.clock.advance(FRESH);
    let answer = world.get(LIST).await;
    assert_eq!((answer.header("x-stopover"), tags(&answer)), ("stale", vec!["1".to_owned(), "2".to_owned()]));
    assert_eq!(world.get("/v2/test.local/b/tags/list").await.status, StatusCode::BAD_GATEWAY);
}

async fn a_list_that_a_check_finds_ends_the_absence_of_its_repository(column: Column) {
    let world = World::on(column).await;
    let unknown = "{\"errors\":[{\"code\":\"NAME_UNKNOWN\"}]}".to_owned();
    world.upstream.fault("/v2/a/", Fault::Status(404, vec![], unknown));
    assert_eq!(world.get("/v2/test.local/a/manifests/1").await.status, StatusCode::NOT_FOUND);
    world.upstream.heal();
    world.upstream.tags("a", &["2"]);
    let image = world.upstream.image("a", "2", &[b"layer"]);
    let pull = async || world.get("/v2/test.local/a/manifests/2").await;
    assert_eq!(pull().await.status, StatusCode::NOT_FOUND, "it is remembered");
    let checked = world.send(Method::GET, LIST, &[("cache-control", "no-cache")]).await;
    assert_eq!(tags(&checked), ["2"]);
    assert_eq!(pull().await.bytes(), &image.manifest);
}
