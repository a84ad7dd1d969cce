//! Rules: what else a place at an upstream is called, and what holds there.

use std::time::Duration;

use http::{Method, StatusCode};
use stopover::config::Cold;
use support::aws::{EVERY_OPERATION, Service};
use support::guests::basic;
use support::on_both_columns;
use support::scripted::{Fault, Login, Scripted};
use support::world::{Column, PASSWORD, World};

on_both_columns!(
    what_a_rule_calls_a_place_shares_its_content_with_the_canonical_name,
    the_longest_prefix_chooses_the_place,
    credentials_of_a_rule_are_used_below_it_and_nowhere_else,
    rules_with_one_user_name_and_two_passwords_share_no_token,
    what_is_not_allowed_is_refused_before_ledger_or_upstream_is_asked,
    an_alternate_is_not_asked_for_a_name_that_is_denied_there,
    freshness_and_platforms_of_a_rule_hold_below_it_only,
    the_policy_for_cold_blobs_of_a_rule_holds_below_it_only,
);

async fn with_rules(column: Column, rules: &str) -> World {
    World::plan(column).upstream(rules).start().await
}

async fn what_a_rule_calls_a_place_shares_its_content_with_the_canonical_name(column: Column) {
    let rules = "[rules.\"team/hub\"]\nupstream = \"test.local\"\npath = \"library\"";
    let world = World::plan(column).cold(Cold::Wait).upstream(rules).start().await;
    let image = world.upstream.image("library/nginx", "1", &[b"layer"]);
    for path in [
        "/v2/team/hub/nginx",
        "/v2/test.local/library/nginx",
        "/team/hub/v2/nginx",
        "/v2/library/nginx?ns=test.local",
        "/team/hub/v2/nginx?ns=test.local",
    ] {
        let (path, query) =
            path.split_once('?').map_or((path, String::new()), |(path, query)| (path, format!("?{query}")));
        let answer = world.get(&format!("{path}/manifests/1{query}")).await;
        assert_eq!((answer.status, answer.header("oci-namespace")), (StatusCode::OK, "test.local"), "{path}");
        assert_eq!(answer.bytes(), &image.manifest);
        for (digest, bytes) in &image.blobs {
            assert_eq!(world.pull(&format!("{path}/blobs/{digest}{query}")).await.bytes(), bytes, "{path}");
        }
        world.settled().await;
    }
    assert_eq!(world.upstream.count("GET /v2/library/nginx/manifests/"), 1);
    assert_eq!((world.upstream.count("GET /v2/library/nginx/blobs/"), world.upstream.requests().len()), (2, 3));
}

async fn the_longest_prefix_chooses_the_place(column: Column) {
    let rules = "[rules.\"team\"]\nupstream = \"test.local\"\npath = \"short\"\n\
                 [rules.\"team/hub\"]\nupstream = \"test.local\"\npath = \"long\"";
    let world = with_rules(column, rules).await;
    for (path, name) in [("team/app", "short/app"), ("team/hub/app", "long/app"), ("team/hubs/app", "short/hubs/app")] {
        let image = world.upstream.image(name, "1", &[b"layer"]);
        assert_eq!(world.get(&format!("/v2/{path}/manifests/1")).await.bytes(), &image.manifest, "{path}");
    }
}

async fn credentials_of_a_rule_are_used_below_it_and_nowhere_else(column: Column) {
    let rules = "[rules.\"test.local/acme\"]\npublic = true\n\
                 credentials = { username = \"bot\", password_env = \"TEST_SECRET\" }";
    let world = World::plan(column).cold(Cold::Wait).upstream(rules).start().await;
    world.upstream.require(Login::Basic("bot".into(), PASSWORD.into()));
    for name in ["acme/app", "acme", "acme2/app", "app"] {
        let image = world.upstream.image(name, "1", &[b"layer"]);
        let answer = world.get(&format!("/v2/test.local/{name}/manifests/1")).await;
        let below = name == "acme" || name.starts_with("acme/");
        assert_eq!(answer.status, if below { StatusCode::OK } else { StatusCode::FORBIDDEN }, "{name}");
        if below {
            let layer = &image.blobs[1].0;
            assert_eq!(world.pull(&format!("/v2/test.local/{name}/blobs/{layer}")).await.bytes().as_ref(), b"layer");
        }
        world.settled().await;
        let carried = world
            .upstream
            .requests()
            .iter()
            .any(|seen| seen.line.contains(&format!("/v2/{name}/")) && seen.headers.contains_key("authorization"));
        assert_eq!(carried, below, "{name}");
    }
    let quota = world.operate(Method::GET, "/_stopover/quota", "").await;
    let quota: serde_json::Value = serde_json::from_slice(quota.bytes()).unwrap();
    let reports = quota["upstreams"].as_array().unwrap().iter().filter(|report| report["upstream"] == "test.local");
    let mut credentials: Vec<&str> = reports.map(|report| report["credential"].as_str().unwrap()).collect();
    credentials.sort_unstable();
    assert_eq!(credentials, ["anonymous", "bot"]);
}

async fn rules_with_one_user_name_and_two_passwords_share_no_token(column: Column) {
    let other = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(other.path(), "other\n").unwrap();
    let rules = format!(
        "[rules.\"test.local/a\"]\npublic = true\ncredentials = {{ username = \"bot\", password_env = \"TEST_SECRET\" }}\n\
         [rules.\"test.local/a/inner\"]\nfresh = \"1h\"\npublic = true\n\
         credentials = {{ username = \"bot\", password_env = \"TEST_SECRET\" }}\n\
         [rules.\"test.local/b\"]\npublic = true\ncredentials = {{ username = \"bot\", password_file = \"{}\" }}",
        other.path().display()
    );
    let world = with_rules(column, &rules).await;
    // A scope that all repositories have in common.
    world
        .upstream
        .require(Login::BearerSaying(|url, _, _| Some(format!("Bearer realm=\"{url}/token\",scope=\"aws\""))));
    for name in ["a/one", "a/inner/two", "b/three", "a/four"] {
        world.upstream.image(name, "1", &[b"layer"]);
        assert_eq!(world.get(&format!("/v2/test.local/{name}/manifests/1")).await.status, StatusCode::OK);
        world.settled().await;
    }
    let asked = world.upstream.requests().into_iter().filter(|seen| seen.line == "GET /token");
    let asked: Vec<String> = asked.map(|seen| seen.headers["authorization"].to_str().unwrap().to_owned()).collect();
    assert_eq!(
        asked,
        [basic("bot", PASSWORD), basic("bot", "other")],
        "one token for each password, whatever the rule"
    );
}

async fn what_is_not_allowed_is_refused_before_ledger_or_upstream_is_asked(column: Column) {
    let rules = "deny = [\"*-internal\"]\n\
                 [rules.\"test.local/acme\"]\nallow = [\"acme/web*\", \"acme/api\"]\n\
                 [rules.\"team\"]\nupstream = \"test.local\"\npath = \"acme\"";
    let world = with_rules(column, rules).await;
    let calls = || world.endpoints().map(|endpoints| endpoints.calls(Service::DynamoDb, EVERY_OPERATION));
    let before = calls();
    let digest = format!("sha256:{}", "0".repeat(64));
    for (name, key) in [
        ("test.local/acme/db", "rules.\"test.local/acme\".allow"),
        ("test.local/acme", "rules.\"test.local/acme\".allow"),
        ("team/db", "rules.\"test.local/acme\".allow"),
        ("team/web-internal", "upstreams.\"test.local\".deny"),
        ("test.local/other-internal", "upstreams.\"test.local\".deny"),
    ] {
        for path in [format!("/v2/{name}/manifests/1"), format!("/v2/{name}/blobs/{digest}")] {
            let answer = world.get(&path).await;
            let (code, message) = answer.error();
            assert_eq!((answer.status, code.as_str()), (StatusCode::FORBIDDEN, "DENIED"), "{path}");
            assert!(message.contains(key), "{path}: {message}");
            assert_eq!(world.head(&path).await.status, StatusCode::FORBIDDEN);
        }
        let prefetched = world.post("/_stopover/prefetch", format!("{{\"images\":[\"{name}:1\"]}}")).await;
        assert!(String::from_utf8_lossy(prefetched.bytes()).contains("refuses it"), "{name}: {prefetched:?}");
    }
    assert!(world.upstream.requests().is_empty());
    assert_eq!(calls(), before);
    for name in ["acme/web-1", "acme/api", "other"] {
        world.upstream.image(name, "1", &[b"layer"]);
        assert_eq!(world.get(&format!("/v2/test.local/{name}/manifests/1")).await.status, StatusCode::OK, "{name}");
    }
    // What was stored before somebody forbade it can still be thrown away.
    let purged = world.operate(Method::POST, "/_stopover/purge", "{\"image\":\"test.local/acme/db:1\"}").await;
    assert_eq!(purged.status, StatusCode::OK);
}

async fn an_alternate_is_not_asked_for_a_name_that_is_denied_there(column: Column) {
    let other = Scripted::start().unwrap();
    let rules = format!(
        "alternates = [{{ upstream = \"other.local\" }}]\n\
         [upstreams.\"other.local\"]\nurl = \"{}\"\n\
         [rules.\"other.local/secret\"]\ndeny = [\"*\"]",
        other.url()
    );
    let world = with_rules(column, &rules).await;
    world.upstream.fault("/v2/", Fault::Status(503, vec![], String::new()));
    for (name, status) in [("open/a", StatusCode::OK), ("secret/a", StatusCode::SERVICE_UNAVAILABLE)] {
        let image = other.image(name, "1", &[b"layer"]);
        let answer = world.get(&format!("/v2/test.local/{name}/manifests/{}", image.digest)).await;
        assert_eq!(answer.status, status, "{name}");
    }
    world.settled().await;
    assert_eq!(other.count("secret"), 0);
}

async fn freshness_and_platforms_of_a_rule_hold_below_it_only(column: Column) {
    let rules = "[rules.\"test.local/slow\"]\nfresh = \"1d\"\nplatforms = \"all\"\nmissing = \"1h\"";
    let world = with_rules(column, rules).await;
    for name in ["slow/app", "app"] {
        let (_, images) = world.upstream.index(name, "1", &["linux/amd64", "linux/arm64"]);
        world.get(&format!("/v2/test.local/{name}/manifests/1")).await;
        assert_eq!(world.get(&format!("/v2/test.local/{name}/manifests/none")).await.status, StatusCode::NOT_FOUND);
        world.settled().await;
        let children = images.iter().map(|image| world.upstream.served_by_get(&image.digest)).sum::<usize>();
        assert_eq!(children, if name == "app" { 0 } else { 2 }, "{name}");
    }
    world.clock.advance(Duration::from_mins(30));
    world.upstream.forget_requests();
    for name in ["slow/app", "app"] {
        world.get(&format!("/v2/test.local/{name}/manifests/1")).await;
        world.get(&format!("/v2/test.local/{name}/manifests/none")).await;
    }
    assert_eq!((world.upstream.count("/v2/slow/app/"), world.upstream.count("/v2/app/")), (0, 2));
}

async fn the_policy_for_cold_blobs_of_a_rule_holds_below_it_only(column: Column) {
    let rules = "[rules.\"test.local/direct\"]\ncold = \"redirect\"";
    let world = World::plan(column).cold(Cold::Wait).upstream(rules).settings("wait = \"1s\"").start().await;
    for (name, status) in [("direct/app", StatusCode::TEMPORARY_REDIRECT), ("app", StatusCode::SERVICE_UNAVAILABLE)] {
        let image = world.upstream.image(name, "1", &[name.as_bytes()]);
        world.upstream.fault("/blobs/", Fault::Stalled);
        world.get(&format!("/v2/test.local/{name}/manifests/1")).await;
        let answer = world.get(&format!("/v2/test.local/{name}/blobs/{}", image.blobs[1].0)).await;
        assert_eq!(answer.status, status, "{name}");
        world.upstream.heal();
    }
}
