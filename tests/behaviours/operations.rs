//! What operators and probes see of a running cache: health, metrics, events, status.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use http::{Method, StatusCode};
use serde_json::{Value, json};
use stopover::oci::{Reference, Repository};
use stopover::pull::Want;
use support::aws::{EVERY_OPERATION, Service};
use support::guests::{HERE, basic, bearer, robot};
use support::on_both_columns;
use support::scripted::{Fault, Login};
use support::world::{Answer, CREDENTIALS, Column, DEADLINE, PASSWORD, World};

on_both_columns!(
    probes_need_no_login_ask_no_upstream_and_have_the_ledger_read_once_a_second,
    a_cache_whose_ledger_cannot_be_read_is_alive_and_not_ready,
    metrics_count_what_has_happened_in_the_text_format_of_prometheus,
    metrics_are_for_operators_and_without_a_login_for_callers_but_for_what_is_private,
    what_has_failed_is_an_event_in_plain_words_and_once_however_often,
    a_caller_sees_the_events_of_what_it_may_pull_and_not_what_is_for_operators,
    a_status_says_what_was_asked_spent_saved_and_filled_and_to_callers_only_what_is_public,
    a_caller_sees_the_upstreams_that_the_policy_lets_it_pull_from,
);

const STRANGER: &str = "192.0.2.1";

/// A cache that lets in robots alone.
async fn closed(column: Column) -> World {
    let access = "[access]\nsigning_keys = { env = \"TEST_KEYS\" }\nrobots = true\n";
    World::plan(column).settings(access).start().await
}

fn json(answer: &Answer) -> Value {
    serde_json::from_slice(answer.bytes()).expect("JSON")
}

async fn probes_need_no_login_ask_no_upstream_and_have_the_ledger_read_once_a_second(column: Column) {
    let world = closed(column).await;
    world.upstream.kill();
    let alive = world.get_from(STRANGER, "/_stopover/health").await;
    assert_eq!((alive.status, json(&alive)), (StatusCode::OK, json!({ "alive": true })));
    let before = world.endpoints().map(|endpoints| endpoints.calls(Service::DynamoDb, EVERY_OPERATION));
    for _ in 0..5 {
        let ready = world.get_from(STRANGER, "/_stopover/health/ready").await;
        assert_eq!((ready.status, json(&ready)), (StatusCode::OK, json!({ "ready": true, "reasons": [] })));
        assert_eq!(ready.header("cache-control"), "no-store");
        let head = world.send_from(STRANGER, Method::HEAD, "/_stopover/health/ready").await;
        assert_eq!((head.status, head.bytes().len()), (StatusCode::OK, 0));
    }
    let after = world.endpoints().map(|endpoints| endpoints.calls(Service::DynamoDb, EVERY_OPERATION));
    assert_eq!(after, before.map(|calls| calls + 1), "one read for all of them");
    assert_eq!(world.upstream.requests().len(), 0);
}

async fn a_cache_whose_ledger_cannot_be_read_is_alive_and_not_ready(column: Column) {
    let world = closed(column).await;
    // Of the embedded ledger, see `probes_do_not_wait_for_a_ledger_that_does_not_answer`.
    let Some(endpoints) = world.endpoints() else { return };
    endpoints.fail_next(Service::DynamoDb, EVERY_OPERATION, 1000);
    let ready = world.get_from(STRANGER, "/_stopover/health/ready").await;
    let reasons = json!({ "ready": false, "reasons": ["the ledger cannot be read"] });
    assert_eq!((ready.status, json(&ready)), (StatusCode::SERVICE_UNAVAILABLE, reasons));
    assert!(!ready.header("retry-after").is_empty(), "{ready:?}");
    assert_eq!(world.get_from(STRANGER, "/_stopover/health").await.status, StatusCode::OK);
    endpoints.heal();
    world.clock.advance(Duration::from_secs(1));
    assert_eq!(world.get_from(STRANGER, "/_stopover/health/ready").await.status, StatusCode::OK);
}

/// The samples of an answer in the text format 0.0.4, by name and labels as they are written. Each has to have a head with
/// its type, and stand below no other's.
fn samples(answer: &Answer) -> BTreeMap<String, u64> {
    assert_eq!(answer.status, StatusCode::OK, "{answer:?}");
    assert_eq!(answer.header("content-type"), "text/plain; version=0.0.4; charset=utf-8");
    let text = std::str::from_utf8(answer.bytes()).expect("UTF-8");
    assert!(text.ends_with('\n') && !text.contains("\n\n"), "{text}");
    let (mut samples, mut head, mut heads) = (BTreeMap::new(), ("", ""), Vec::new());
    let mut lines = text.lines();
    while let Some(line) = lines.next() {
        if let Some(help) = line.strip_prefix("# HELP ") {
            let (name, help) = help.split_once(' ').expect("a help");
            let kind = lines.next().and_then(|line| line.strip_prefix("# TYPE ")?.strip_prefix(name)).expect("a type");
            assert!(help.ends_with('.') && !heads.contains(&name), "{line}");
            assert!(matches!(kind, " counter" | " gauge"), "{kind}");
            assert_eq!(kind == " counter", name.ends_with("_total"), "{name}");
            heads.push(name);
            head = (name, kind);
            continue;
        }
        let (series, value) = line.rsplit_once(' ').expect("a sample");
        let (name, labels) = series.split_once('{').unwrap_or((series, "}"));
        assert_eq!(name, head.0, "{line}");
        assert!(name.starts_with("stopover_") && name.bytes().all(|byte| byte.is_ascii_lowercase() || byte == b'_'));
        for label in
            labels.strip_suffix('}').expect("the end of the labels").split(',').filter(|label| !label.is_empty())
        {
            let (name, value) = label.split_once("=\"").expect("a label");
            let value = value.strip_suffix('"').expect("the end of a value");
            assert!(matches!(name, "upstream" | "state" | "version") && !value.contains(['"', '\\']), "{line}");
        }
        assert!(samples.insert(series.to_owned(), value.parse().expect("a number")).is_none(), "twice: {line}");
    }
    samples
}

async fn metrics_count_what_has_happened_in_the_text_format_of_prometheus(column: Column) {
    let world = World::on(column).await;
    world.upstream.quota(100, 50);
    let image = world.upstream.image("a", "1", &[b"layer", b"another"]);
    let tag = "/v2/test.local/a/manifests/1";
    for _ in 0..3 {
        assert_eq!(world.get(tag).await.status, StatusCode::OK);
    }
    world.settled().await;
    world.head(tag).await;
    world.clock.advance(Duration::from_secs(330));
    assert_eq!(world.get(tag).await.header("x-stopover"), "revalidated");
    world.get("/v2/").await;
    for unknown in
        ["/v2/test.local/a/manifests/2", "/v2/unknown.test/a/manifests/1", "/v2/test.local/A%22%0a/manifests/1"]
    {
        world.get(unknown).await;
    }
    let samples = samples(&world.operate(Method::GET, "/_stopover/metrics", "").await);
    let get = |name: &str| samples.get(&format!("stopover_{name}")).copied();
    let of = |name: &str| get(&format!("{name}{{upstream=\"test.local\"}}"));
    let bytes: usize = image.blobs.iter().map(|(_, bytes)| bytes.len()).sum();
    // Where other processes fill, this one cannot count it.
    for (name, expected) in
        [("fills_total", image.blobs.len() as u64), ("filled_bytes_total", bytes as u64), ("failed_fills_total", 0)]
    {
        let expected = (column == Column::Embedded).then_some(expected);
        assert_eq!(of(name), expected, "{name}: {samples:?}");
    }
    for (name, expected) in [
        ("hits_total", 3),
        ("misses_total", 2),
        ("revalidated_total", 1),
        ("stale_total", 0),
        ("refused_total", 0),
        ("failed_total", 0),
        ("pulls_spent_total", 1),
        ("pulls_saved_total", 3),
        ("quota_left", 49),
        ("quota_left_percent", 49),
        ("breaker_open", 0),
    ] {
        assert_eq!(of(name), Some(expected), "{name}: {samples:?}");
    }
    let running = matches!(column, Column::Embedded).then_some(0);
    assert_eq!((get("fills_open{state=\"running\"}"), get("oldest_fill_age_seconds")), (running, running));
    assert_eq!((get("configuration_error"), get("start_time_seconds")), (Some(0), Some(1_800_000_000)));
    assert!(samples.keys().all(|series| !series.contains("unknown") && !series.contains("%22")), "{samples:?}");
    // An upstream that fails, and a sweep.
    world.upstream.fault("/v2/", status(503));
    world.clock.advance(Duration::from_secs(330));
    for number in 0..4 {
        world.get(&format!("/v2/test.local/r{number}/manifests/1")).await;
    }
    assert_eq!(world.get(tag).await.header("x-stopover"), "stale");
    let swept = world.cache.operate.sweep(false).await.unwrap();
    let after = self::samples(&world.operate(Method::GET, "/_stopover/metrics", "").await);
    let get = |name: &str| after.get(&format!("stopover_{name}")).copied();
    assert_eq!(get("breaker_open{upstream=\"test.local\"}"), Some(1));
    assert_eq!(get("stale_total{upstream=\"test.local\"}"), Some(1));
    assert!(get("failed_total{upstream=\"test.local\"}") >= Some(3), "{after:?}");
    assert_eq!((get("sweeps_total"), get("last_sweep_timestamp_seconds")), (Some(1), Some(1_800_000_660)));
    assert_eq!(get("kept_bytes"), Some(swept.kept_bytes));
}

async fn metrics_are_for_operators_and_without_a_login_for_callers_but_for_what_is_private(column: Column) {
    let access = "[access]\nsigning_keys = { env = \"TEST_KEYS\" }\nanonymous = true\nrobots = true\noperators = [\"robot:root\"]\n";
    let world = World::plan(column).settings(access).upstream(CREDENTIALS).start().await;
    world.upstream.require(Login::Basic("me".into(), PASSWORD.into()));
    let path = "/_stopover/metrics";
    assert_eq!(world.get_from(HERE, path).await.status, StatusCode::UNAUTHORIZED);
    for (name, status) in [("root", StatusCode::OK), ("ci", StatusCode::FORBIDDEN)] {
        let login = basic(name, &robot(&world, name).await);
        let token = bearer(&world, &login).await;
        for login in [login, token] {
            let answer = world.get_with(HERE, path, &[("authorization", &login)]).await;
            assert_eq!(answer.status, status, "{name}");
            if status == StatusCode::OK {
                assert!(samples(&answer).contains_key("stopover_hits_total{upstream=\"test.local\"}"), "{answer:?}");
            }
        }
    }
    let world =
        World::plan(column).settings("[access]\nanonymous = [\"10.0.0.0/8\"]\n").upstream(CREDENTIALS).start().await;
    assert_eq!(world.get_from(STRANGER, path).await.status, StatusCode::FORBIDDEN);
    let seen = samples(&world.get_from(HERE, path).await);
    assert!(seen.contains_key("stopover_hits_total{upstream=\"docker.io\"}"), "{seen:?}");
    assert!(seen.keys().all(|series| !series.contains("test.local")), "{seen:?}");
}

fn status(status: u16) -> Fault {
    Fault::Status(status, vec![], String::new())
}

fn events(answer: &Answer) -> Vec<Value> {
    assert_eq!(answer.status, StatusCode::OK, "{answer:?}");
    json(answer)["events"].as_array().expect("a list").clone()
}

async fn what_has_failed_is_an_event_in_plain_words_and_once_however_often(column: Column) {
    let world = World::on(column).await;
    let path = "/_stopover/events";
    assert!(events(&world.operate(Method::GET, path, "").await).is_empty());
    let image = world.upstream.image("a", "1", &[b"layer"]);
    let layer = &image.blobs[1].0;
    world.upstream.fault(layer.as_str(), status(404));
    world.get("/v2/test.local/a/manifests/1").await;
    world.settled().await;
    world.upstream.quota(100, 0);
    world.upstream.image("new", "1", &[b"another layer"]);
    for _ in 0..3 {
        world.clock.advance(Duration::from_secs(10));
        assert_eq!(world.get("/v2/test.local/new/manifests/1").await.status, StatusCode::TOO_MANY_REQUESTS);
    }
    world.upstream.quota(100, 100);
    world.clock.advance(Duration::from_mins(15));
    assert_eq!(world.get("/v2/test.local/new/manifests/1").await.status, StatusCode::OK);
    world.settled().await;
    let events = events(&world.operate(Method::GET, path, "").await);
    let kinds: Vec<&str> = events.iter().map(|event| event["kind"].as_str().unwrap()).collect();
    assert_eq!(kinds, ["breaker_closed", "refused_pull", "breaker_opened", "failed_fill"]);
    let [closed, refused, opened, failed] = &events[..] else { unreachable!() };
    assert_eq!((&refused["times"], &refused["repository"]), (&json!(3), &json!("test.local/new")));
    let since = refused["at"].as_u64().unwrap() - refused["first_at"].as_u64().unwrap();
    assert_eq!((since, refused["at"].as_u64()), (20, Some(1_800_000_030)));
    assert!(refused["reason"].as_str().unwrap().contains("pull quota at test.local was seen empty"), "{refused}");
    assert_eq!(opened["reason"], "no manifests are asked for: upstream limits our pulls");
    assert_eq!((&closed["upstream"], &closed["repository"]), (&json!("test.local"), &Value::Null));
    assert_eq!((&failed["repository"], &failed["digest"]), (&json!("test.local/a"), &json!(layer.as_str())));
    assert!(failed["reason"].as_str().unwrap().contains("upstream does not have it"), "{failed}");
    assert!(failed["advice"].as_str().unwrap().contains("stopover fills"), "{failed}");
}

async fn a_caller_sees_the_events_of_what_it_may_pull_and_not_what_is_for_operators(column: Column) {
    let access = "[access]\nanonymous = true\n[[policy]]\nwhat = [\"test.local/secret/*\"]\nallow = false\n";
    let world = World::plan(column).settings(access).start().await;
    for name in ["open/app", "secret/app"] {
        let image = world.upstream.image(name, "1", &[name.as_bytes()]);
        let body = "secret words of the upstream";
        world.upstream.fault(image.blobs[1].0.as_str(), Fault::Status(500, vec![], body.into()));
    }
    world.get("/v2/test.local/open/app/manifests/1").await;
    // As a schedule has it stored.
    let secret = Repository { upstream: "test.local".parse().unwrap(), name: "secret/app".parse().unwrap() };
    world.cache.pull.manifest(&secret, &Reference::Tag("1".parse().unwrap()), Want::GET).await.unwrap();
    let failed = |events: &[Value]| {
        let failed = events.iter().filter(|event| event["kind"] == "failed_fill");
        failed.map(|event| event["repository"].as_str().unwrap().to_owned()).collect::<BTreeSet<_>>()
    };
    let both = async {
        loop {
            let seen = events(&world.operate(Method::GET, "/_stopover/events", "").await);
            if failed(&seen).len() == 2 {
                return seen;
            }
            // The reason for this pause: a fill that fails tells nobody here.
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    let all = tokio::time::timeout(DEADLINE, both).await.expect("both fail");
    assert!(json!(all).to_string().contains("500"), "{all:?}");
    let seen = events(&world.get("/_stopover/events").await);
    assert_eq!(failed(&seen), BTreeSet::from(["test.local/open/app".to_owned()]));
    let text = json!(seen).to_string();
    assert!(!text.contains("500") && !text.contains("secret/app"), "{text}");
    assert!(text.contains("the operator of this cache sees why"), "{text}");
}

async fn a_status_says_what_was_asked_spent_saved_and_filled_and_to_callers_only_what_is_public(column: Column) {
    let access = "[access]\nsigning_keys = { env = \"TEST_KEYS\" }\nanonymous = true\n";
    let rule = format!(
        "[rules.\"private\"]\nupstream = \"private.test\"\n[upstreams.\"private.test\"]\n\
                        url = \"https://private.test\"\n{CREDENTIALS}"
    );
    let world = World::plan(column).settings(access).upstream(&rule).start().await;
    world.upstream.quota(100, 50);
    let image = world.upstream.image("a", "1", &[b"layer"]);
    for _ in 0..4 {
        world.get("/v2/test.local/a/manifests/1").await;
    }
    world.settled().await;
    world.clock.advance(Duration::from_mins(2));
    world.cache.operate.sweep(false).await.unwrap();
    let whole = json(&world.operate(Method::GET, "/_stopover/status", "").await);
    assert_eq!((&whole["uptime_seconds"], &whole["ready"], &whole["reasons"]), (&json!(120), &json!(true), &json!([])));
    assert_eq!((&whole["hit_percent"], &whole["last_sweep"]["at"]), (&json!(75), &json!(1_800_000_120)));
    let counts = ["hits", "misses", "pulls_spent", "pulls_saved"].map(|name| whole["counts"][name].clone());
    assert_eq!(json!(counts), json!([3, 1, 1, 3]));
    let filled = if column == Column::Embedded { json!(image.blobs.len()) } else { Value::Null };
    assert_eq!(whole["counts"]["fills"], filled, "other processes fill on AWS");
    assert_eq!(whole["day"]["counts"]["fills"], json!(image.blobs.len()), "and count what they fill");
    let upstream = |status: &Value, id: &str| {
        let upstreams = status["upstreams"].as_array().unwrap();
        upstreams.iter().find(|upstream| upstream["upstream"] == id).cloned()
    };
    let ours = upstream(&whole, "test.local").unwrap();
    assert_eq!((&ours["counts"], &ours["accounts"][0]["remaining"]), (&whole["counts"], &json!(49)));
    assert_eq!(ours["accounts"][0]["credential"], "anonymous");
    let fills = json!({ "running": 0, "waiting": 0, "resting": 0, "failed": 0, "oldest_age_seconds": null });
    assert_eq!(whole["fills"], if column == Column::Embedded { fills } else { Value::Null });
    assert!(upstream(&whole, "private.test").is_some(), "{whole}");
    let seen = json(&world.get("/_stopover/status").await);
    assert_eq!((&seen["counts"], &seen["fills"], &seen["last_sweep"]), (&whole["counts"], &Value::Null, &Value::Null));
    assert_eq!(upstream(&seen, "test.local").unwrap()["accounts"][0]["credential"], Value::Null);
    assert!(upstream(&seen, "private.test").is_none(), "{seen}");
}

async fn a_caller_sees_the_upstreams_that_the_policy_lets_it_pull_from(column: Column) {
    let access = "[access]\nsigning_keys = { env = \"TEST_KEYS\" }\nanonymous = true\nrobots = true\n\
                  [[policy]]\nwho = [\"robot:ci\"]\nwhat = [\"private.test/team/*\"]\nallow = true\n\
                  [[policy]]\nwhat = [\"test.local/*\"]\nallow = false\n";
    let private = format!("[upstreams.\"private.test\"]\nurl = \"https://private.test\"\n{CREDENTIALS}");
    let world = World::plan(column).settings(access).upstream(&private).start().await;
    let [ci, other] = ["ci", "other"].map(|name| robot(&world, name));
    let (ci, other) = (basic("ci", &ci.await), basic("other", &other.await));
    for (login, expected) in [(ci, [true, false]), (other, [false, false]), (String::new(), [false, false])] {
        let login = [("authorization", login.as_str())];
        let headers = if login[0].1.is_empty() { &login[..0] } else { &login };
        for path in ["/_stopover/quota", "/_stopover/status"] {
            let seen = json(&world.get_with(HERE, path, headers).await);
            let of = |id: &str| seen["upstreams"].as_array().unwrap().iter().find(|one| one["upstream"] == id).cloned();
            assert_eq!(
                [of("private.test").is_some(), of("test.local").is_some()],
                expected,
                "{path} {login:?}: {seen}"
            );
            assert!(
                of("docker.io").is_some() && !seen.to_string().contains("\"me\""),
                "accounts are for operators: {seen}"
            );
        }
        let page = [headers, &[("accept", "text/html"), ("host", "cache.test")]].concat();
        let page = world.get_with(HERE, "/?view=setup&client=containerd", &page).await;
        let text = String::from_utf8_lossy(page.bytes());
        assert_eq!([text.contains("private.test"), text.contains("test.local")], expected, "{login:?}: {text}");
    }
}
