//! What all processes of a cache have counted: written down now and then, and shown as one.

use std::time::Duration;

use axum::body::Body;
use http::{Method, Request, StatusCode};
use serde_json::{Value, json};
use stopover::http::router;
use stopover::journal::Metric;
use support::aws::Service;
use support::guests::{HERE, basic, robot};
use support::on_both_columns;
use support::world::{CREDENTIALS, Column, World};
use tower::ServiceExt as _;

on_both_columns!(
    what_several_processes_count_is_shown_as_one_sum,
    counts_stay_when_the_process_does_not_and_go_after_a_month,
    counts_that_cannot_be_written_are_written_later,
    counts_of_an_upstream_are_for_callers_that_may_pull_all_of_it,
    bytes_that_were_stored_before_are_saved_by_the_range_that_was_asked_for,
    an_answer_waits_for_counts_once_a_minute_at_most,
);

const TAG: &str = "/v2/test.local/a/manifests/1";

/// What the status says, to an operator.
async fn status(world: &World) -> Value {
    let answer = world.operate(Method::GET, "/_stopover/status", "").await;
    assert_eq!(answer.status, StatusCode::OK, "{answer:?}");
    serde_json::from_slice(answer.bytes()).expect("JSON")
}

/// These sums of a day and of a month.
fn sums(status: &Value, names: [&str; 2]) -> [Value; 2] {
    ["day", "month"].map(|period| json!(names.map(|name| status[period]["counts"][name].clone())))
}

async fn what_several_processes_count_is_shown_as_one_sum(column: Column) {
    let world = World::on(column).await;
    world.upstream.image("a", "1", &[b"layer"]);
    for _ in 0..3 {
        world.get(TAG).await;
    }
    let other = world.another_instance();
    let answered = router(other.clone()).oneshot(Request::get(TAG).body(Body::empty()).unwrap()).await.unwrap();
    assert_eq!(answered.status(), StatusCode::OK);
    other.operate.write_counts().await;
    // What this process has not written down is there, too, and once.
    for _ in 0..2 {
        let status = status(&world).await;
        assert_eq!(sums(&status, ["hits", "misses"]), [json!([3, 1]), json!([3, 1])], "{status}");
        assert_eq!((&status["day"]["hit_percent"], &status["month"]["hit_percent"]), (&json!(75), &json!(75)));
        let steps = status["day"]["steps"].as_array().expect("steps");
        assert_eq!((steps.len(), steps.last()), (24, Some(&json!({ "at": 1_800_000_000, "stored": 3, "missed": 1 }))));
        assert_eq!(status["month"]["steps"].as_array().map(Vec::len), Some(30));
        world.cache.operate.write_counts().await;
    }
}

async fn counts_stay_when_the_process_does_not_and_go_after_a_month(column: Column) {
    let world = World::on(column).await;
    world.upstream.image("a", "1", &[b"layer"]);
    world.get(TAG).await;
    world.cache.operate.write_counts().await;
    let counted = [json!([1, 1]), json!([1, 1])];
    assert_eq!(sums(&status(&world).await, ["misses", "pulls_spent"]), counted);
    // Of the embedded column, see `what_is_counted_is_written_down_every_five_minutes_and_at_the_end`.
    let next = world.another_instance().operate.status(true, |_, _| true, |_| true).await;
    let next = serde_json::to_value(next).expect("JSON");
    assert_eq!(sums(&next, ["misses", "pulls_spent"]), counted);
    world.clock.advance(Duration::from_hours(24));
    assert_eq!(sums(&status(&world).await, ["misses", "pulls_spent"]), [json!([0, 0]), json!([1, 1])]);
    world.clock.advance(Duration::from_hours(24 * 30));
    assert_eq!(sums(&status(&world).await, ["misses", "pulls_spent"]), [json!([0, 0]), json!([0, 0])]);
}

async fn counts_that_cannot_be_written_are_written_later(column: Column) {
    let world = World::on(column).await;
    world.upstream.image("a", "1", &[b"layer"]);
    world.get(TAG).await;
    // Of the embedded ledger, see `what_could_not_be_written_is_written_once`.
    let Some(endpoints) = world.endpoints() else { return };
    endpoints.fail_next(Service::DynamoDb, "UpdateItem", 1000);
    world.cache.operate.write_counts().await;
    assert_eq!(world.get(TAG).await.status, StatusCode::OK);
    assert_eq!(sums(&status(&world).await, ["hits", "misses"])[0], json!([1, 1]), "the process still has them");
    endpoints.heal();
    world.cache.operate.write_counts().await;
    world.cache.operate.write_counts().await;
    let other =
        serde_json::to_value(world.another_instance().operate.status(true, |_, _| true, |_| true).await).expect("JSON");
    assert_eq!(sums(&other, ["hits", "misses"]), [json!([1, 1]), json!([1, 1])]);
    // While they cannot be read, a status says that there are none to show, and not that they are 0.
    world.clock.advance(Duration::from_mins(1));
    endpoints.fail_next(Service::DynamoDb, "BatchGetItem", 1000);
    let blind = status(&world).await;
    assert_eq!((&blind["day"], &blind["month"], &blind["counts"]["hits"]), (&Value::Null, &Value::Null, &json!(1)));
    assert_eq!(blind["upstreams"][0]["day"], Value::Null);
    let page = world.operate_with("/", &[("accept", "text/html")]).await;
    let page = String::from_utf8_lossy(page.bytes()).into_owned();
    assert!(page.contains("cannot be read now: numbers are of this one"), "{page}");
    endpoints.heal();
    world.clock.advance(Duration::from_mins(1));
    assert_eq!(sums(&status(&world).await, ["hits", "misses"])[0], json!([1, 1]));
}

async fn counts_of_an_upstream_are_for_callers_that_may_pull_all_of_it(column: Column) {
    let access = "[access]\nsigning_keys = { env = \"TEST_KEYS\" }\nanonymous = true\nrobots = true\n\
                  [[policy]]\nwho = [\"robot:part\"]\nwhat = [\"private.test/team/*\"]\nallow = true\n\
                  [[policy]]\nwho = [\"robot:whole\"]\nwhat = [\"private.test/*\"]\nallow = true\n";
    let private = format!("[upstreams.\"private.test\"]\nurl = \"https://private.test\"\n{CREDENTIALS}");
    let world = World::plan(column).settings(access).upstream(&private).start().await;
    for (upstream, count) in [("test.local", 1), ("private.test", 10)] {
        world.cache.core.journal.of(Some(&upstream.parse().unwrap())).add(Metric::Hits, count);
    }
    let [part, whole] = ["part", "whole"].map(|name| robot(&world, name));
    let (part, whole) = (basic("part", &part.await), basic("whole", &whole.await));
    // Before they are written down, and after.
    for _ in 0..2 {
        let all = status(&world).await;
        assert_eq!(sums(&all, ["hits", "misses"]), [json!([11, 0]), json!([11, 0])]);
        assert!(all.to_string().contains("private.test"), "{all}");
        for (login, hits, counts, of_day) in [(&part, 1, Value::Null, Value::Null), (&whole, 11, json!(10), json!(10))]
        {
            let seen = world.get_with(HERE, "/_stopover/status", &[("authorization", login.as_str())]).await;
            let seen: Value = serde_json::from_slice(seen.bytes()).expect("JSON");
            assert_eq!(sums(&seen, ["hits", "misses"]), [json!([hits, 0]), json!([hits, 0])], "{seen}");
            assert_eq!(seen["counts"]["hits"], hits);
            let upstreams = seen["upstreams"].as_array().unwrap();
            let private = upstreams.iter().find(|one| one["upstream"] == "private.test").expect("its state is shown");
            assert_eq!((&private["counts"]["hits"], &private["day"]["hits"]), (&counts, &of_day), "{private}");
        }
        let seen = world.get("/_stopover/status").await;
        let seen: Value = serde_json::from_slice(seen.bytes()).expect("JSON");
        assert_eq!(sums(&seen, ["hits", "misses"]), [json!([1, 0]), json!([1, 0])]);
        let step = |status: &Value, period: &str| status[period]["steps"].as_array().unwrap().last().cloned().unwrap();
        assert_eq!([step(&seen, "day")["stored"].clone(), step(&seen, "month")["stored"].clone()], [1, 1]);
        assert!(!seen.to_string().contains("private.test"), "{seen}");
        world.cache.operate.write_counts().await;
    }
}

async fn bytes_that_were_stored_before_are_saved_by_the_range_that_was_asked_for(column: Column) {
    let world = World::on(column).await;
    let image = world.upstream.image("a", "1", &[&[7; 1000]]);
    let blob = format!("/v2/test.local/a/blobs/{}", image.blobs[1].0);
    world.get(TAG).await;
    let saved = async |world: &World| status(world).await["day"]["counts"]["saved_bytes"].clone();
    assert_eq!(saved(&world).await, json!(0));
    // A client that waits for a copy saves nothing.
    world.settled().await;
    let before = saved(&world).await;
    assert_eq!(before, json!(0));
    world.head(&blob).await;
    world.send(Method::GET, &blob, &[("range", "bytes=5000-")]).await;
    assert_eq!(saved(&world).await, json!(0), "no bytes are sent");
    world.pull(&blob).await;
    assert_eq!(saved(&world).await, json!(1000));
    for (range, expected) in [("bytes=0-9", 1010), ("bytes=900-", 1110), ("bytes=-5", 1115), ("lines=1-2", 2115)] {
        world.send(Method::GET, &blob, &[("range", range)]).await;
        assert_eq!(saved(&world).await, json!(expected), "{range}");
    }
    world.get(TAG).await;
    assert_eq!(saved(&world).await, json!(2115), "a manifest is no blob");
}

async fn an_answer_waits_for_counts_once_a_minute_at_most(column: Column) {
    let world = World::on(column).await;
    world.upstream.image("a", "1", &[b"layer"]);
    let Some(endpoints) = world.endpoints() else { return };
    let writes = || endpoints.calls(Service::DynamoDb, "UpdateItem");
    world.get(TAG).await;
    // Fills are counted in this process, too.
    world.settled().await;
    world.cache.operate.write_counts_if_due().await;
    assert_eq!(writes(), 0, "it has run for less than a minute");
    world.clock.advance(Duration::from_mins(1));
    for _ in 0..3 {
        world.get(TAG).await;
        world.cache.operate.write_counts_if_due().await;
        assert_eq!(writes(), 2, "the hour and the day");
    }
    world.clock.advance(Duration::from_mins(1));
    world.cache.operate.write_counts_if_due().await;
    assert_eq!(writes(), 4);
    world.clock.advance(Duration::from_mins(1));
    world.cache.operate.write_counts_if_due().await;
    assert_eq!(writes(), 4, "nothing was counted");
}
