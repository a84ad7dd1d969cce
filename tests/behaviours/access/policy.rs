//! What those may pull who are let in.

use http::{Method, StatusCode};
use serde_json::{Value, json};
use stopover::config::Cold;
use support::guests::{HERE, basic, bearer, get, robot, token_in};
use support::on_both_columns;
use support::scripted::{Fault, Login, Scripted};
use support::world::{Answer, Column, PASSWORD, World};

use super::{ELSEWHERE, TAG, calls, with_upstream, world};

const CREDENTIALS: &str = "credentials = { username = \"me\", password_env = \"TEST_SECRET\" }";

on_both_columns!(
    what_a_token_may_pull_is_decided_by_the_policy_and_not_by_its_scope,
    private_content_is_for_whom_the_policy_names_and_nobody_else,
    a_rule_of_the_policy_holds_whatever_the_image_is_called,
    a_stranger_is_refused_a_stored_private_blob_before_anything_is_looked_up,
    prefetch_obeys_the_policy,
    a_private_alternate_shows_nothing_under_a_public_name,
    guests_are_shown_the_quota_without_accounts_and_private_upstreams,
);

/// Two robots, each for its own private repository.
async fn two_teams(column: Column) -> World {
    let policy = "robots = true\nanonymous = true\n\
                  [[policy]]\nwho = [\"robot:one\"]\nwhat = [\"test.local/one/*\", \"test.local/a\"]\nallow = true\n\
                  [[policy]]\nwho = [\"robot:two\"]\nwhat = [\"test.local/two/*\"]\nnetworks = [\"10.0.0.0/8\"]\nallow = true";
    let world = with_upstream(column, policy, CREDENTIALS).await;
    world.upstream.image("one/app", "1", &[b"of one"]);
    world.upstream.image("two/app", "1", &[b"of two"]);
    world
}

async fn what_a_token_may_pull_is_decided_by_the_policy_and_not_by_its_scope(column: Column) {
    let world = two_teams(column).await;
    let one = robot(&world, "one").await;
    let path =
        "/token?service=stopover&scope=repository:test.local/two/app:pull&scope=repository:test.local/one/app:pull";
    let answer = get(&world, HERE, path, &basic("one", &one)).await;
    let token = token_in(&answer);
    assert_eq!(get(&world, HERE, "/v2/test.local/one/app/manifests/1", &token).await.status, StatusCode::OK);
    for kind in ["manifests/1", "tags/list", &format!("referrers/sha256:{}", "0".repeat(64))] {
        let answer = get(&world, HERE, &format!("/v2/test.local/two/app/{kind}"), &token).await;
        assert_eq!((answer.status, answer.error().0.as_str()), (StatusCode::FORBIDDEN, "DENIED"), "{kind}");
        let (_, said) = answer.error();
        assert!(said.starts_with("robot:one may not pull test.local/two/app: it is private"), "{said}");
        assert!(
            said.contains("[[policy]]") && said.contains("public = true"),
            "what whoever runs it has to write: {said}"
        );
    }
    let two = basic("two", &robot(&world, "two").await);
    let path = "/v2/test.local/two/app/manifests/1";
    assert_eq!(get(&world, HERE, path, &two).await.status, StatusCode::OK);
    assert_eq!(get(&world, ELSEWHERE, path, &two).await.status, StatusCode::FORBIDDEN, "the rule names networks");
}

async fn private_content_is_for_whom_the_policy_names_and_nobody_else(column: Column) {
    let world = two_teams(column).await;
    let stranger = basic("stranger", &robot(&world, "stranger").await);
    assert_eq!(get(&world, HERE, TAG, "").await.status, StatusCode::UNAUTHORIZED, "logging in may help");
    assert_eq!(get(&world, HERE, TAG, &stranger).await.status, StatusCode::FORBIDDEN, "it does not");
    assert!(world.upstream.requests().is_empty());
    let one = basic("one", &robot(&world, "one").await);
    assert_eq!(get(&world, HERE, TAG, &one).await.status, StatusCode::OK);
    // Without any way to log in, and without any rule.
    let world = with_upstream(column, "anonymous = true", CREDENTIALS).await;
    let answer = get(&world, HERE, TAG, "").await;
    assert_eq!((answer.status, answer.error().0.as_str()), (StatusCode::FORBIDDEN, "DENIED"));
    assert!(world.upstream.requests().is_empty());
    // An internal registry that asks for no credentials.
    let world = with_upstream(column, "anonymous = true", "public = false").await;
    assert_eq!(get(&world, HERE, TAG, "").await.status, StatusCode::FORBIDDEN);
    assert!(world.upstream.requests().is_empty());
    let allowed = "anonymous = true\n[[policy]]\nwhat = [\"test.local/*\"]\nallow = true";
    let world = with_upstream(column, allowed, "public = false").await;
    assert_eq!(get(&world, HERE, TAG, "").await.status, StatusCode::OK);
    // What is private below a rule is, and what is beside it is not.
    let rule = format!("[rules.\"test.local/private\"]\n{CREDENTIALS}");
    let world = with_upstream(column, "anonymous = true", &rule).await;
    world.upstream.forget_requests();
    assert_eq!(get(&world, HERE, "/v2/test.local/private/app/manifests/1", "").await.status, StatusCode::FORBIDDEN);
    assert!(world.upstream.requests().is_empty());
    get(&world, HERE, TAG, "").await;
    assert!(!world.upstream.requests().is_empty());
}

async fn a_rule_of_the_policy_holds_whatever_the_image_is_called(column: Column) {
    let access = "anonymous = true\n[[policy]]\nwhat = [\"test.local/secret/*\"]\nallow = false";
    let upstream = "aliases = [\"other\"]\n[rules.\"nice\"]\nupstream = \"test.local\"\npath = \"secret\"";
    let world = with_upstream(column, access, upstream).await;
    world.upstream.image("secret/app", "1", &[b"layer"]);
    for path in [
        "/v2/test.local/secret/app/manifests/1",
        "/test.local/v2/secret/app/manifests/1",
        "/v2/secret/app/manifests/1?ns=test.local",
        "/v2/secret/app/manifests/1?ns=other",
        "/v2/other/secret/app/manifests/1",
        "/v2/nice/app/manifests/1",
        "/nice/v2/app/manifests/1",
        "/v2/app/manifests/1?ns=nice",
    ] {
        let answer = get(&world, HERE, path, "").await;
        assert_eq!((answer.status, answer.error().0.as_str()), (StatusCode::FORBIDDEN, "DENIED"), "{path}");
    }
    for path in ["/v2/test.local/x/../secret/app/manifests/1", "/v2/test.local/secret%2fapp/manifests/1"] {
        assert!(get(&world, HERE, path, "").await.status.is_client_error(), "{path}");
    }
    assert!(world.upstream.requests().is_empty());
}

async fn a_stranger_is_refused_a_stored_private_blob_before_anything_is_looked_up(column: Column) {
    let world = two_teams(column).await;
    let one = basic("one", &robot(&world, "one").await);
    let image = world.upstream.image("one/app", "2", &[b"the secret layer"]);
    let blob = format!("/v2/test.local/one/app/blobs/{}", image.blobs[1].0);
    assert_eq!(get(&world, HERE, "/v2/test.local/one/app/manifests/2", &one).await.status, StatusCode::OK);
    world.settled().await;
    assert!(get(&world, HERE, &blob, &one).await.status.as_u16() < 400);
    let stranger = bearer(&world, &basic("stranger", &robot(&world, "stranger").await)).await;
    let (looked_up, asked) = (calls(&world), world.upstream.requests().len());
    for path in
        [&blob, "/v2/test.local/one/app/manifests/2", &format!("/v2/test.local/one/app/manifests/{}", image.digest)]
    {
        for method in [Method::GET, Method::HEAD] {
            let headers = [("authorization", stranger.as_str())];
            assert_eq!(world.send_with(HERE, method.clone(), path, &headers).await.status, StatusCode::FORBIDDEN);
            assert_eq!(world.send_with(HERE, method, path, &[]).await.status, StatusCode::UNAUTHORIZED);
        }
    }
    assert_eq!((calls(&world), world.upstream.requests().len()), (looked_up, asked));
}

async fn prefetch_obeys_the_policy(column: Column) {
    let world = two_teams(column).await;
    let body = json!({ "images": ["test.local/one/app:1", "test.local/two/app:1"] }).to_string();
    let one = basic("one", &robot(&world, "one").await);
    let answer = world.post_with(HERE, "/_stopover/prefetch", &[("authorization", &one)], body.clone()).await;
    let report: Value = serde_json::from_slice(answer.bytes()).unwrap();
    assert!(report["images"][0]["digest"].is_string(), "{report}");
    let refused = report["images"][1]["error"].as_str().unwrap();
    assert!(refused.starts_with("robot:one may not pull test.local/two/app: "), "{refused}");
    assert_eq!(world.upstream.count("/v2/two/"), 0);
    let anonymous = world.post_from(HERE, "/_stopover/prefetch", body.clone()).await;
    let report: Value = serde_json::from_slice(anonymous.bytes()).unwrap();
    assert!(report["images"].as_array().unwrap().iter().all(|image| image["digest"].is_null()), "{report}");
    let strict = self::world(column, "robots = true").await;
    assert_eq!(strict.post_from(HERE, "/_stopover/prefetch", body).await.status, StatusCode::UNAUTHORIZED);
}

async fn a_private_alternate_shows_nothing_under_a_public_name(column: Column) {
    let private = Scripted::start().unwrap();
    private.require(Login::Basic("me".into(), PASSWORD.into()));
    let image = private.image("a", "1", &[b"private"]);
    let upstream = format!(
        "alternates = [{{ upstream = \"private.local\", names = \"\", tags = true }}]\n\
         [upstreams.\"private.local\"]\nurl = \"{}\"\n{CREDENTIALS}",
        private.url()
    );
    let settings = "[access]\nanonymous = true";
    let world = World::plan(column).cold(Cold::Wait).settings(settings).upstream(&upstream).start().await;
    world.upstream.fault("/v2/", Fault::Status(429, vec![], String::new()));
    for reference in ["1", image.digest.as_str()] {
        let answer = get(&world, HERE, &format!("/v2/test.local/a/manifests/{reference}"), "").await;
        assert_eq!(answer.status, StatusCode::TOO_MANY_REQUESTS, "{reference}");
    }
    assert!(private.requests().is_empty());
}

async fn guests_are_shown_the_quota_without_accounts_and_private_upstreams(column: Column) {
    let upstream = format!(
        "[rules.\"test.local/open\"]\n{}\npublic = true\n[upstreams.\"private.local\"]\nurl = \"http://127.0.0.1:1\"\n{CREDENTIALS}",
        CREDENTIALS.replace("\"me\"", "\"account-name\"")
    );
    let settings = "[access]\nrobots = true\nsigning_keys = { env = \"TEST_KEYS\" }";
    let world = World::plan(column).settings(settings).upstream(&upstream).start().await;
    world.upstream.image("a", "1", &[b"layer"]);
    world.upstream.quota(100, 42);
    let robot = basic("ci", &robot(&world, "ci").await);
    let quota = async |answer: Answer| {
        assert_eq!(answer.status, StatusCode::OK);
        String::from_utf8(answer.bytes().to_vec()).unwrap()
    };
    assert_eq!(get(&world, HERE, TAG, &robot).await.status, StatusCode::OK);
    assert_eq!(get(&world, HERE, "/_stopover/quota", "").await.status, StatusCode::UNAUTHORIZED);
    let told = quota(get(&world, HERE, "/_stopover/quota", &robot).await).await;
    let all = quota(world.operate(Method::GET, "/_stopover/quota", "").await).await;
    for hidden in ["account-name", "192.0.2.1", "private.local"] {
        assert!(all.contains(hidden) && !told.contains(hidden), "{hidden}: {told}");
    }
    assert!(told.contains("test.local") && told.contains("\"remaining\":41"), "{told}");
}
