//! Who is let in, and what they may pull. Each test is the attack, or what a client does that belongs here.

use std::os::unix::fs::PermissionsExt as _;
use std::sync::Arc;
use std::time::Duration;

use axum::body::{Body, to_bytes};
use base64::Engine as _;
use base64::prelude::{BASE64_STANDARD, BASE64_URL_SAFE_NO_PAD};
use http::{Method, Request, StatusCode};
use serde_json::{Value, json};
use stopover::access::token::TokenKeys;
use stopover::access::{IamIdentity, OidcIdentity, Principal, RobotAnswer, RobotCommand, Source};
use stopover::config::{Cold, Config};
use stopover::local::Local;
use stopover::time::{Clock, Span};
use support::aws::{EVERY_OPERATION, Service};
use support::on_both_columns;
use support::scripted::{Fault, Login, Scripted};
use support::world::{Answer, Column, PASSWORD, World, open};
use tower::ServiceExt as _;

on_both_columns!(
    callers_may_be_nobody_everywhere_by_network_or_not_at_all,
    a_robot_is_let_in_with_its_secret_until_it_expires_or_is_removed,
    a_rotated_secret_is_taken_until_its_overlap_ends,
    an_expired_robot_is_renewed_by_a_rotation_that_says_until_when,
    robots_are_made_only_where_they_are_let_in,
    wrong_secrets_have_to_wait_longer_and_longer,
    a_right_secret_is_let_in_whatever_others_at_its_address_sent,
    one_address_that_tries_many_names_has_to_wait_too,
    a_challenge_leads_to_a_token_that_pulls,
    a_token_is_not_exchanged_for_a_newer_one,
    a_token_that_is_not_ours_is_refused_as_invalid,
    a_token_of_a_robot_ends_with_the_robot,
    a_token_of_a_robot_opens_none_that_is_made_anew_under_its_name,
    a_token_of_a_robot_ends_with_the_secret_it_was_issued_for,
    a_token_is_refused_whose_holder_could_not_log_in_any_more,
    what_a_token_may_pull_is_decided_by_the_policy_and_not_by_its_scope,
    private_content_is_for_whom_the_policy_names_and_nobody_else,
    a_rule_of_the_policy_holds_whatever_the_image_is_called,
    a_stranger_is_refused_a_stored_private_blob_before_anything_is_looked_up,
    the_version_check_asks_for_a_login_where_there_is_one,
    credentials_that_make_no_sense_are_refused,
    passwords_for_other_registries_are_refused_and_go_nowhere,
    where_nobody_can_log_in_credentials_are_not_looked_at,
    prefetch_obeys_the_policy,
    a_page_in_a_browser_prefetches_nothing,
    a_private_alternate_shows_nothing_under_a_public_name,
    robots_are_managed_by_operators_only,
    guests_are_shown_the_quota_without_accounts_and_private_upstreams,
    the_realm_is_where_clients_reach_the_cache,
);

const TAG: &str = "/v2/test.local/a/manifests/1";
const CREDENTIALS: &str = "credentials = { username = \"me\", password_env = \"TEST_SECRET\" }";
const HERE: &str = "10.1.2.3";
const ELSEWHERE: &str = "192.0.2.1";

/// A cache with these lines in `[access]` and behind it.
async fn world(column: Column, access: &str) -> World {
    with_upstream(column, access, "").await
}

async fn with_upstream(column: Column, access: &str, upstream: &str) -> World {
    let settings = format!("[access]\nsigning_keys = {{ env = \"TEST_KEYS\" }}\n{access}");
    let world = World::plan(column).cold(Cold::Wait).settings(&settings).upstream(upstream).start().await;
    if upstream.contains("credentials") {
        world.upstream.require(Login::Basic("me".into(), PASSWORD.into()));
    }
    world.upstream.image("a", "1", &[b"layer"]);
    world
}

fn basic(user: &str, secret: &str) -> String {
    format!("Basic {}", BASE64_STANDARD.encode(format!("{user}:{secret}")))
}

/// A robot of this name; its secret.
async fn robot(world: &World, name: &str) -> String {
    secret(world, RobotCommand::Add { name: name.parse().unwrap(), expires: None }).await
}

async fn secret(world: &World, command: RobotCommand) -> String {
    match world.cache.robots(command).await.unwrap() {
        RobotAnswer::Secret { secret, .. } => secret.as_str().to_owned(),
        answer => panic!("{answer:?}"),
    }
}

async fn get(world: &World, caller: &str, path: &str, authorization: &str) -> Answer {
    let headers = [("host", "cache.test"), ("authorization", authorization)];
    let headers = if authorization.is_empty() { &headers[..1] } else { &headers };
    world.send_with(caller, Method::GET, path, headers).await
}

/// `Authorization` with the token that is issued for this one.
async fn bearer(world: &World, authorization: &str) -> String {
    let answer = get(world, HERE, "/token?service=stopover", authorization).await;
    assert_eq!(answer.status, StatusCode::OK, "{answer:?}");
    let body: Value = serde_json::from_slice(answer.bytes()).unwrap();
    format!("Bearer {}", body["token"].as_str().unwrap())
}

fn calls(world: &World) -> Option<usize> {
    world.endpoints().map(|endpoints| endpoints.calls(Service::DynamoDb, EVERY_OPERATION))
}

async fn callers_may_be_nobody_everywhere_by_network_or_not_at_all(column: Column) {
    for (anonymous, here, elsewhere) in [
        ("true", StatusCode::OK, StatusCode::OK),
        ("[\"10.0.0.0/8\"]", StatusCode::OK, StatusCode::FORBIDDEN),
        ("[\"198.51.100.7\"]", StatusCode::FORBIDDEN, StatusCode::FORBIDDEN),
    ] {
        let world = world(column, &format!("anonymous = {anonymous}")).await;
        for (caller, expected) in [(HERE, here), ("::ffff:10.1.2.3", here), (ELSEWHERE, elsewhere)] {
            for path in ["/v2/", TAG] {
                let answer = get(&world, caller, path, "").await;
                assert_eq!(answer.status, expected, "{anonymous}, {caller}, {path}");
                assert_eq!(answer.header("www-authenticate"), "", "there is nothing to log in with");
            }
        }
        // Whose address is not known is in no network.
        assert_eq!(world.get(TAG).await.status, elsewhere, "{anonymous}");
    }
}

async fn a_robot_is_let_in_with_its_secret_until_it_expires_or_is_removed(column: Column) {
    let world = world(column, "robots = true").await;
    let name = "ci".parse().unwrap();
    let expires = Some(Span(Duration::from_hours(1)));
    let limited = secret(&world, RobotCommand::Add { name, expires }).await;
    let unlimited = robot(&world, "node").await;
    for (user, secret) in [("ci", &limited), ("node", &unlimited)] {
        assert_eq!(get(&world, HERE, TAG, &basic(user, secret)).await.status, StatusCode::OK, "{user}");
    }
    for (user, secret) in
        [("ci", "wrong"), ("ci", unlimited.as_str()), ("nobody", "wrong"), ("CI", &limited), ("ci", "")]
    {
        let answer = get(&world, ELSEWHERE, TAG, &basic(user, secret)).await;
        assert_eq!((answer.status, answer.error().0.as_str()), (StatusCode::UNAUTHORIZED, "UNAUTHORIZED"), "{user}");
        assert!(!answer.header("www-authenticate").contains("invalid_token"), "it is no token");
    }
    world.clock.advance(Duration::from_hours(1));
    assert_eq!(get(&world, HERE, TAG, &basic("ci", &limited)).await.status, StatusCode::UNAUTHORIZED);
    assert_eq!(get(&world, HERE, TAG, &basic("node", &unlimited)).await.status, StatusCode::OK);
    let token = bearer(&world, &basic("node", &unlimited)).await;
    world.cache.robots(RobotCommand::Remove { name: "node".parse().unwrap() }).await.unwrap();
    assert_eq!(get(&world, HERE, TAG, &basic("node", &unlimited)).await.status, StatusCode::UNAUTHORIZED);
    assert_eq!(get(&world, HERE, TAG, &token).await.status, StatusCode::UNAUTHORIZED, "nor with what it was issued");
}

async fn a_rotated_secret_is_taken_until_its_overlap_ends(column: Column) {
    let world = world(column, "robots = true").await;
    let old = robot(&world, "ci").await;
    assert_eq!(get(&world, HERE, TAG, &basic("ci", &old)).await.status, StatusCode::OK);
    let overlap = Some(Span(Duration::from_hours(1)));
    let new = secret(&world, RobotCommand::Rotate { name: "ci".parse().unwrap(), overlap, expires: None }).await;
    for secret in [&old, &new] {
        assert_eq!(get(&world, HERE, TAG, &basic("ci", secret)).await.status, StatusCode::OK);
    }
    world.clock.advance(Duration::from_hours(1));
    assert_eq!(get(&world, HERE, TAG, &basic("ci", &old)).await.status, StatusCode::UNAUTHORIZED);
    assert_eq!(get(&world, HERE, TAG, &basic("ci", &new)).await.status, StatusCode::OK);
}

async fn an_expired_robot_is_renewed_by_a_rotation_that_says_until_when(column: Column) {
    let world = world(column, "robots = true").await;
    let hour = Some(Span(Duration::from_hours(1)));
    let name = || "ci".parse().unwrap();
    let old = secret(&world, RobotCommand::Add { name: name(), expires: hour }).await;
    world.clock.advance(Duration::from_hours(1));
    let RobotAnswer::Robots(robots) = world.cache.robots(RobotCommand::List).await.unwrap() else { panic!("no list") };
    assert!(robots[0].expired);
    for command in [
        RobotCommand::Rotate { name: name(), overlap: None, expires: None },
        RobotCommand::Add { name: name(), expires: hour },
    ] {
        let refused = world.cache.robots(command).await.unwrap_err().to_string();
        assert!(refused.contains("has expired") && refused.contains("--expires"), "{refused}");
    }
    let none = Some(Span(Duration::ZERO));
    let new = secret(&world, RobotCommand::Rotate { name: name(), overlap: none, expires: hour }).await;
    assert_eq!(get(&world, HERE, TAG, &basic("ci", &new)).await.status, StatusCode::OK);
    assert_eq!(get(&world, HERE, TAG, &basic("ci", &old)).await.status, StatusCode::UNAUTHORIZED);
    world.clock.advance(Duration::from_hours(1));
    assert_eq!(get(&world, HERE, TAG, &basic("ci", &new)).await.status, StatusCode::UNAUTHORIZED);
}

async fn robots_are_made_only_where_they_are_let_in(column: Column) {
    let world = world(column, "anonymous = true").await;
    let refused = world.operate(Method::POST, "/_stopover/robots", r#"{"add": {"name": "ci"}}"#.to_owned()).await;
    assert_eq!(refused.status, StatusCode::CONFLICT);
    let body = String::from_utf8_lossy(refused.bytes()).into_owned();
    assert!(body.contains("robots = true"), "{body}");
}

async fn wrong_secrets_have_to_wait_longer_and_longer(column: Column) {
    let world = world(column, "robots = true").await;
    let right = basic("ci", &robot(&world, "ci").await);
    let wrong = basic("ci", "wrong");
    for _ in 0..3 {
        assert_eq!(get(&world, HERE, "/v2/", &wrong).await.status, StatusCode::UNAUTHORIZED);
        assert_eq!(get(&world, HERE, "/token", &basic("other", "wrong")).await.status, StatusCode::UNAUTHORIZED);
    }
    for pause in [2, 4, 8, 16, 32, 64, 128, 256, 300, 300] {
        assert_eq!(get(&world, HERE, "/v2/", &wrong).await.status, StatusCode::UNAUTHORIZED);
        let answer = get(&world, HERE, "/token", &wrong).await;
        assert_eq!((answer.status, answer.error().0.as_str()), (StatusCode::TOO_MANY_REQUESTS, "TOOMANYREQUESTS"));
        assert_eq!(answer.header("retry-after"), pause.to_string());
        assert_eq!(
            get(&world, ELSEWHERE, "/v2/", &wrong).await.status,
            StatusCode::UNAUTHORIZED,
            "others need not wait"
        );
        assert_eq!(get(&world, ELSEWHERE, "/v2/", &right).await.status, StatusCode::OK);
        world.clock.advance(Duration::from_secs(pause));
    }
    assert_eq!(get(&world, HERE, "/v2/", &right).await.status, StatusCode::OK);
    for _ in 0..3 {
        assert_eq!(get(&world, HERE, "/v2/", &wrong).await.status, StatusCode::UNAUTHORIZED, "it begins anew");
    }
}

async fn a_right_secret_is_let_in_whatever_others_at_its_address_sent(column: Column) {
    let world = world(column, "robots = true").await;
    let [ci, node] = [robot(&world, "ci").await, robot(&world, "node").await];
    // A stranger behind the same NAT, or the same proxy.
    for name in ["ci", "node", "nobody"] {
        for _ in 0..4 {
            get(&world, HERE, "/v2/", &basic(name, "wrong")).await;
        }
        assert_eq!(get(&world, HERE, "/v2/", &basic(name, "wrong")).await.status, StatusCode::TOO_MANY_REQUESTS);
    }
    for number in 0..40 {
        get(&world, HERE, "/v2/", &basic(&format!("stranger-{number}"), "wrong")).await;
    }
    let looked_up = calls(&world);
    assert_eq!(get(&world, HERE, "/v2/", &basic("another", "wrong")).await.status, StatusCode::TOO_MANY_REQUESTS);
    assert_eq!(calls(&world), looked_up, "storage is not asked for whoever has to wait");
    for (name, secret) in [("ci", &ci), ("node", &node)] {
        assert_eq!(get(&world, HERE, "/v2/", &basic(name, secret)).await.status, StatusCode::OK, "{name}");
        assert_eq!(get(&world, HERE, TAG, &bearer(&world, &basic(name, secret)).await).await.status, StatusCode::OK);
    }
    assert_eq!(get(&world, HERE, "/v2/", &basic("ci", &node)).await.status, StatusCode::TOO_MANY_REQUESTS);
}

async fn one_address_that_tries_many_names_has_to_wait_too(column: Column) {
    let world = world(column, "robots = true").await;
    let right = basic("ci", &robot(&world, "ci").await);
    for number in 0..31 {
        let guess = basic(&format!("robot-{number}"), "wrong");
        assert_eq!(get(&world, HERE, "/v2/", &guess).await.status, StatusCode::UNAUTHORIZED, "{number}");
    }
    assert_eq!(get(&world, HERE, "/v2/", &basic("another", "wrong")).await.status, StatusCode::TOO_MANY_REQUESTS);
    assert_eq!(get(&world, ELSEWHERE, "/v2/", &right).await.status, StatusCode::OK);
    world.clock.advance(Duration::from_secs(2));
    assert_eq!(get(&world, HERE, "/v2/", &right).await.status, StatusCode::OK);
}

async fn a_challenge_leads_to_a_token_that_pulls(column: Column) {
    let world = world(column, "robots = true\nservice = \"cr.test\"\ntoken_life = \"5m\"").await;
    let login = basic("ci", &robot(&world, "ci").await);
    let challenge = "Bearer realm=\"http://cache.test/token\",service=\"cr.test\"";
    let digest = format!("sha256:{}", "0".repeat(64));
    for (path, scope) in [
        ("/v2/".to_owned(), ""),
        (TAG.to_owned(), ",scope=\"repository:test.local/a:pull\""),
        (format!("/v2/a/blobs/{digest}?ns=test.local"), ",scope=\"repository:a:pull\""),
    ] {
        let answer = get(&world, HERE, &path, "").await;
        assert_eq!((answer.status, answer.error().0.as_str()), (StatusCode::UNAUTHORIZED, "UNAUTHORIZED"));
        assert_eq!(answer.header("www-authenticate"), format!("{challenge}{scope}"));
        assert_eq!(answer.headers.get_all("www-authenticate").iter().count(), 1);
    }
    assert!(world.upstream.requests().is_empty());
    let secret = String::from_utf8(BASE64_STANDARD.decode(login.trim_start_matches("Basic ")).unwrap()).unwrap();
    let secret = secret.trim_start_matches("ci:");
    let form = format!("grant_type=password&service=cr.test&client_id=test&username=ci&password={secret}&scope=x");
    let by_form = world.post_from(HERE, "/token", form).await;
    let by_header = get(&world, HERE, "/token?service=cr.test&scope=repository:a:pull&account=ci", &login).await;
    for answer in [by_form, by_header] {
        assert_eq!((answer.status, answer.header("cache-control")), (StatusCode::OK, "no-store"), "{answer:?}");
        let body: Value = serde_json::from_slice(answer.bytes()).unwrap();
        assert_eq!((&body["expires_in"], &body["issued_at"]), (&json!(300), &json!("2027-01-15T08:00:00Z")));
        assert_eq!(body["token"], body["access_token"]);
        let token = format!("Bearer {}", body["token"].as_str().unwrap());
        for path in ["/v2/", TAG] {
            assert_eq!(get(&world, HERE, path, &token).await.status, StatusCode::OK);
        }
    }
    for (form, error) in [
        ("grant_type=refresh_token&refresh_token=x", "unsupported_grant_type"),
        ("", "unsupported_grant_type"),
        ("grant_type=password&username=ci", "invalid_request"),
    ] {
        let answer = world.post_from(HERE, "/token", form).await;
        let body: Value = serde_json::from_slice(answer.bytes()).unwrap();
        assert_eq!((answer.status, &body["error"]), (StatusCode::BAD_REQUEST, &json!(error)));
    }
    let wrong = world.post_from(HERE, "/token", "grant_type=password&username=ci&password=wrong").await;
    assert_eq!(wrong.status, StatusCode::UNAUTHORIZED);
    assert_eq!(get(&world, HERE, "/token", "").await.status, StatusCode::UNAUTHORIZED, "nobody needs a token here");
}

async fn a_token_is_not_exchanged_for_a_newer_one(column: Column) {
    let world = world(column, "robots = true\nanonymous = true").await;
    let token = bearer(&world, &basic("ci", &robot(&world, "ci").await)).await;
    let answer = get(&world, HERE, "/token", &token).await;
    assert_eq!(answer.status, StatusCode::UNAUTHORIZED, "or one that leaked would be good for ever");
}

async fn a_token_that_is_not_ours_is_refused_as_invalid(column: Column) {
    let world = world(column, "robots = true").await;
    let good = bearer(&world, &basic("ci", &robot(&world, "ci").await)).await;
    let keys = |fill| TokenKeys::parse(&BASE64_STANDARD.encode([fill; 32]), world.clock.clone()).unwrap();
    let (ci, life) = (Principal::Robot("ci".parse().unwrap()).into(), Duration::from_mins(5));
    let parts: Vec<&str> = good.trim_start_matches("Bearer ").split('.').collect();
    let claims = BASE64_URL_SAFE_NO_PAD.decode(parts[1]).unwrap();
    let mut claims: Value = serde_json::from_slice(&claims).unwrap();
    claims["principal"] = json!({ "robot": "root" });
    let encode = |value: &Value| BASE64_URL_SAFE_NO_PAD.encode(value.to_string());
    let none = encode(&json!({ "alg": "none", "typ": "JWT", "kid": "" }));
    let forged = [
        format!("{none}.{}.", parts[1]),
        format!("{none}.{}.{}", parts[1], parts[2]),
        format!("{}.{}.{}", parts[0], encode(&claims), parts[2]),
        keys(8).issue("stopover", &ci, life).unwrap(),
        keys(7).issue("another.cache", &ci, life).unwrap(),
        "opaque".to_owned(),
        String::new(),
        "a".repeat(10_000),
    ];
    assert_eq!(get(&world, HERE, TAG, &good).await.status, StatusCode::OK);
    let asked = world.upstream.requests().len();
    let refused = async |authorization: &str| {
        for path in ["/v2/", TAG] {
            let answer = get(&world, HERE, path, authorization).await;
            assert_eq!(answer.status, StatusCode::UNAUTHORIZED, "{authorization}");
            assert!(answer.header("www-authenticate").ends_with(",error=\"invalid_token\""), "{answer:?}");
        }
    };
    for token in forged {
        refused(&format!("Bearer {token}")).await;
    }
    world.clock.advance(Duration::from_secs(10 * 60 + 29));
    assert_eq!(get(&world, HERE, "/v2/", &good).await.status, StatusCode::OK, "clocks differ");
    world.clock.advance(Duration::from_secs(1));
    refused(&good).await;
    world.settled().await;
    assert!(world.upstream.requests().len() <= asked + 2, "only the fills of the pull that was let in");
}

async fn a_token_of_a_robot_ends_with_the_robot(column: Column) {
    let world = world(column, "robots = true").await;
    let (name, expires) = ("limited".parse().unwrap(), Some(Span(Duration::from_mins(2))));
    let limited = secret(&world, RobotCommand::Add { name, expires }).await;
    let limited = bearer(&world, &basic("limited", &limited)).await;
    let removed = bearer(&world, &basic("ci", &robot(&world, "ci").await)).await;
    let status = async |token: &str| get(&world, HERE, "/v2/", token).await.status;
    let looked_up = calls(&world);
    for _ in 0..5 {
        assert_eq!((status(&limited).await, status(&removed).await), (StatusCode::OK, StatusCode::OK));
    }
    assert_eq!(calls(&world), looked_up, "storage is asked twice a minute, not with each request");
    world.cache.robots(RobotCommand::Remove { name: "ci".parse().unwrap() }).await.unwrap();
    world.clock.advance(Duration::from_secs(90));
    assert_eq!((status(&limited).await, status(&removed).await), (StatusCode::OK, StatusCode::UNAUTHORIZED));
    let answer = get(&world, HERE, TAG, &removed).await;
    assert!(answer.header("www-authenticate").ends_with(",error=\"invalid_token\""), "{answer:?}");
    // Another one of its name is not the one that had the token.
    let anew = bearer(&world, &basic("ci", &robot(&world, "ci").await)).await;
    assert_eq!((status(&anew).await, status(&removed).await), (StatusCode::OK, StatusCode::UNAUTHORIZED));
    world.clock.advance(Duration::from_secs(30));
    assert_eq!((status(&anew).await, status(&limited).await), (StatusCode::OK, StatusCode::UNAUTHORIZED));
}

async fn a_token_of_a_robot_opens_none_that_is_made_anew_under_its_name(column: Column) {
    let world = world(column, "robots = true").await;
    let before = bearer(&world, &basic("ci", &robot(&world, "ci").await)).await;
    world.cache.robots(RobotCommand::Remove { name: "ci".parse().unwrap() }).await.unwrap();
    // Within the second.
    let anew = bearer(&world, &basic("ci", &robot(&world, "ci").await)).await;
    let status = async |token: &str| get(&world, HERE, "/v2/", token).await.status;
    assert_eq!((status(&anew).await, status(&before).await), (StatusCode::OK, StatusCode::UNAUTHORIZED));
}

async fn a_token_of_a_robot_ends_with_the_secret_it_was_issued_for(column: Column) {
    let world = world(column, "robots = true").await;
    let before = bearer(&world, &basic("ci", &robot(&world, "ci").await)).await;
    let overlap = Some(Span(Duration::from_mins(2)));
    let rotated = secret(&world, RobotCommand::Rotate { name: "ci".parse().unwrap(), overlap, expires: None }).await;
    let status = async |token: &str| get(&world, HERE, "/v2/", token).await.status;
    world.clock.advance(Duration::from_secs(119));
    let after = bearer(&world, &basic("ci", &rotated)).await;
    assert_eq!((status(&after).await, status(&before).await), (StatusCode::OK, StatusCode::OK));
    world.clock.advance(Duration::from_secs(1));
    assert_eq!((status(&after).await, status(&before).await), (StatusCode::OK, StatusCode::UNAUTHORIZED));
}

async fn a_token_is_refused_whose_holder_could_not_log_in_any_more(column: Column) {
    let iam = "service = \"stopover\"\n[access.iam]\naccounts = [\"123456789012\"]\n\
               roles = [\"arn:aws:iam::210987654321:role/node-*\"]\n";
    let oidc = "[access.oidc.ci]\nissuer = \"https://ci.test\"\naudience = \"stopover\"\nclaims = { owner = \"1\" }\n";
    let robots = world(column, "robots = true").await;
    let others = world(column, &format!("{iam}{oidc}")).await;
    let keys = TokenKeys::parse(&BASE64_STANDARD.encode([7; 32]), robots.clock.clone()).unwrap();
    let iam = |arn: &str| {
        let account = arn.split(':').nth(4).unwrap().to_owned();
        Principal::Iam(IamIdentity { account, arn: arn.to_owned(), organization: None })
    };
    let oidc = |name: &str, issuer: &str, owner: &str| {
        let claims = [("iss", issuer), ("owner", owner)].map(|(name, value)| (name.to_owned(), value.to_owned()));
        let (issuer, subject, payer) = (name.to_owned(), "repo:a/b".to_owned(), String::new());
        Principal::Oidc(OidcIdentity { issuer, subject, payer, claims: claims.into() })
    };
    // Each token is ours, of an hour when the configuration was another one.
    for (world, principal, expected) in [
        (&robots, iam("arn:aws:iam::123456789012:user/me"), StatusCode::UNAUTHORIZED),
        (&robots, oidc("ci", "https://ci.test", "1"), StatusCode::UNAUTHORIZED),
        (&robots, Principal::Robot("unknown".parse().unwrap()), StatusCode::UNAUTHORIZED),
        (&robots, Principal::Anonymous, StatusCode::UNAUTHORIZED),
        (&others, Principal::Robot("ci".parse().unwrap()), StatusCode::UNAUTHORIZED),
        (&others, iam("arn:aws:iam::123456789012:user/me"), StatusCode::OK),
        (&others, iam("arn:aws:iam::210987654321:role/node-1"), StatusCode::OK),
        (&others, iam("arn:aws:iam::210987654321:role/ci"), StatusCode::UNAUTHORIZED),
        (&others, iam("arn:aws:iam::999999999999:role/node-1"), StatusCode::UNAUTHORIZED),
        (&others, oidc("ci", "https://ci.test", "1"), StatusCode::OK),
        (&others, oidc("ci", "https://ci.test", "2"), StatusCode::UNAUTHORIZED),
        (&others, oidc("ci", "https://before.test", "1"), StatusCode::UNAUTHORIZED),
        (&others, oidc("github", "https://ci.test", "1"), StatusCode::UNAUTHORIZED),
    ] {
        let token = keys.issue("stopover", &principal.clone().into(), Duration::from_hours(1)).unwrap();
        let answer = get(world, HERE, "/v2/", &format!("Bearer {token}")).await;
        assert_eq!(answer.status, expected, "{principal}");
        let invalid = answer.header("www-authenticate").ends_with(",error=\"invalid_token\"");
        assert_eq!(invalid, expected != StatusCode::OK, "{principal}");
    }
}

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
    let body: Value = serde_json::from_slice(answer.bytes()).unwrap();
    let token = format!("Bearer {}", body["token"].as_str().unwrap());
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

async fn the_version_check_asks_for_a_login_where_there_is_one(column: Column) {
    let open = world(column, "anonymous = true").await;
    assert_eq!(get(&open, HERE, "/v2/", "").await.status, StatusCode::OK);
    let both = world(column, "anonymous = [\"10.0.0.0/8\"]\nrobots = true").await;
    // Clients learn only here that there is one; a token of nobody, or empty credentials, will do.
    assert_eq!(get(&both, HERE, "/v2/", "").await.status, StatusCode::UNAUTHORIZED);
    assert_eq!(get(&both, HERE, TAG, "").await.status, StatusCode::OK);
    let nobody = bearer(&both, "").await;
    for authorization in ["Basic Og==", nobody.as_str()] {
        assert_eq!(get(&both, HERE, "/v2/", authorization).await.status, StatusCode::OK, "{authorization}");
        assert_eq!(get(&both, HERE, TAG, authorization).await.status, StatusCode::OK);
        let answer = get(&both, ELSEWHERE, "/v2/", authorization).await;
        assert_eq!(answer.status, StatusCode::UNAUTHORIZED, "{authorization} is nobody, and nobody is let in there");
    }
}

async fn credentials_that_make_no_sense_are_refused(column: Column) {
    let world = world(column, "anonymous = true\nrobots = true").await;
    let right = basic("ci", &robot(&world, "ci").await);
    let long = basic("ci", &"a".repeat(20_000));
    for authorization in
        ["Basic", "Basic ", "Basic ====", "Basic Y2k=", "Negotiate abc", "Digest a=b", "Basic /w==", &long]
    {
        let answer = get(&world, HERE, TAG, authorization).await;
        assert_eq!(answer.status, StatusCode::UNAUTHORIZED, "{authorization} is not taken for nobody");
    }
    let two = [("authorization", right.as_str()), ("authorization", right.as_str())];
    assert_eq!(world.send_with(HERE, Method::GET, TAG, &two).await.status, StatusCode::UNAUTHORIZED);
    assert_eq!(get(&world, HERE, TAG, &right).await.status, StatusCode::OK);
    assert_eq!(get(&world, HERE, TAG, &right.replace("Basic", "bAsIc")).await.status, StatusCode::OK);
}

async fn passwords_for_other_registries_are_refused_and_go_nowhere(column: Column) {
    let world = world(column, "anonymous = true\nrobots = true").await;
    let hub = basic("someone", "dckr_pat_of_someone");
    for path in ["/v2/", TAG, "/token?service=stopover"] {
        assert_eq!(get(&world, HERE, path, &hub).await.status, StatusCode::UNAUTHORIZED, "{path}");
    }
    let pulled = get(&world, HERE, TAG, "").await;
    assert_eq!(pulled.status, StatusCode::OK);
    world.settled().await;
    for seen in world.upstream.requests() {
        assert!(!format!("{seen:?}").contains("dckr_pat") && !seen.headers.contains_key("authorization"), "{seen:?}");
    }
    if let Some(data) = world.data() {
        for file in ["ledger.redb", "stopover.toml"] {
            let bytes = std::fs::read(data.join(file)).unwrap();
            let kept = |secret: &str| bytes.windows(secret.len()).any(|window| window == secret.as_bytes());
            assert!(!kept("dckr_pat") && !kept(hub.trim_start_matches("Basic ")), "{file}");
        }
    }
}

async fn where_nobody_can_log_in_credentials_are_not_looked_at(column: Column) {
    let world = world(column, "anonymous = [\"10.0.0.0/8\"]").await;
    for authorization in ["Bearer anything", "Basic Y2k6cGFzcw==", "nonsense"] {
        assert_eq!(get(&world, HERE, TAG, authorization).await.status, StatusCode::OK, "{authorization}");
        assert_eq!(get(&world, ELSEWHERE, TAG, authorization).await.status, StatusCode::FORBIDDEN, "{authorization}");
    }
    assert_eq!(get(&world, HERE, "/token", "").await.status, StatusCode::NOT_FOUND);
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

async fn a_page_in_a_browser_prefetches_nothing(column: Column) {
    let world = World::on(column).await;
    world.upstream.image("a", "1", &[b"layer"]);
    let body = json!({ "images": ["test.local/a:1"] }).to_string();
    for page in [("origin", "https://evil.test"), ("sec-fetch-site", "cross-site")] {
        let headers = [page, ("content-type", "text/plain")];
        let answer = world.post_with(HERE, "/_stopover/prefetch", &headers, body.clone()).await;
        assert_eq!(answer.status, StatusCode::FORBIDDEN);
    }
    assert!(world.upstream.requests().is_empty());
    assert_eq!(world.post_from(HERE, "/_stopover/prefetch", body).await.status, StatusCode::ACCEPTED);
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

async fn robots_are_managed_by_operators_only(column: Column) {
    let world = world(column, "anonymous = true\nrobots = true").await;
    let ask = async |body: &str| {
        let answer = world.operate(Method::POST, "/_stopover/robots", body.to_owned()).await;
        let text: Value = serde_json::from_slice(answer.bytes()).unwrap();
        (answer.status, text)
    };
    let add = r#"{"add": {"name": "ci", "expires": "90d"}}"#;
    for (caller, body) in [(HERE, add), (HERE, "\"list\""), ("127.0.0.1", add), ("127.0.0.1", "\"list\"")] {
        let answer = world.post_from(caller, "/_stopover/robots", body).await;
        assert_eq!(answer.status, StatusCode::FORBIDDEN, "{caller}: what a proxy there passes on has no secret");
    }
    let (status, added) = ask(add).await;
    assert_eq!(status, StatusCode::OK, "{added}");
    let secret = added["secret"]["secret"].as_str().unwrap();
    assert_eq!(get(&world, HERE, TAG, &basic("ci", secret)).await.status, StatusCode::OK);
    let (_, listed) = ask("\"list\"").await;
    let robot = json!({
        "name": "ci", "created_at": 1_800_000_000, "expires_at": 1_800_000_000 + 90 * 86400, "expired": false,
        "replaced_until": null
    });
    assert_eq!(listed, json!({ "robots": [robot] }), "and no hash of its secret");
    assert_eq!(ask(add).await.0, StatusCode::CONFLICT);
    assert_eq!(ask(r#"{"rotate": {"name": "other"}}"#).await.0, StatusCode::NOT_FOUND);
    for nonsense in ["", "{}", r#"{"add": {"name": "C I"}}"#, r#"{"add": {"name": "a", "expires": "soon"}}"#] {
        assert_eq!(ask(nonsense).await.0, StatusCode::BAD_REQUEST, "{nonsense}");
    }
    for impossible in [
        r#"{"add": {"name": "a", "expires": "0s"}}"#,
        r#"{"add": {"name": "a", "expires": "9000y"}}"#,
        r#"{"rotate": {"name": "ci", "overlap": "1y"}}"#,
    ] {
        assert_eq!(ask(impossible).await.0, StatusCode::BAD_REQUEST, "{impossible}");
    }
    assert_eq!(ask(r#"{"remove": {"name": "ci"}}"#).await, (StatusCode::OK, json!({ "removed": "ci" })));
    assert_eq!(ask(r#"{"remove": {"name": "ci"}}"#).await.0, StatusCode::NOT_FOUND);
    assert_eq!(get(&world, HERE, TAG, &basic("ci", secret)).await.status, StatusCode::UNAUTHORIZED);
    if let Some(data) = world.data() {
        let ledger = std::fs::read(data.join("ledger.redb")).unwrap();
        assert!(!ledger.windows(secret.len()).any(|window| window == secret.as_bytes()), "the secret is kept");
    }
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

async fn the_realm_is_where_clients_reach_the_cache(column: Column) {
    let plain = world(column, "robots = true").await;
    for (host, realm) in
        [("cache.test:5000", "http://cache.test:5000/token"), ("[::1]:5000", "http://[::1]:5000/token")]
    {
        let answer = plain.send_with(HERE, Method::GET, "/v2/", &[("host", host)]).await;
        assert!(answer.header("www-authenticate").contains(&format!("realm=\"{realm}\"")), "{answer:?}");
    }
    for host in ["evil\",realm=\"http://evil.example", "a b", "user@host"] {
        let answer = plain.send_with(HERE, Method::GET, "/v2/", &[("host", host)]).await;
        assert_eq!((answer.status, answer.header("www-authenticate")), (StatusCode::UNAUTHORIZED, ""), "{host}");
    }
    let named = world(column, "robots = true\nurl = \"https://cr.example.com\"").await;
    let answer = named.send_with(HERE, Method::GET, "/v2/", &[("host", "10.0.0.1:5000")]).await;
    assert!(answer.header("www-authenticate").contains("realm=\"https://cr.example.com/token\""), "{answer:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn secrets_of_the_program_are_made_once_and_only_their_owner_may_read_them() {
    let data = tempfile::TempDir::new().unwrap();
    let settings = "[access]\nrobots = true\n[upstreams.\"test.local\"]\nurl = \"http://127.0.0.1:1\"\n";
    let paths = [data.path().join("signing_keys"), stopover::local::operator_secret(data.path())];
    let mut seen = Vec::new();
    for _ in 0..2 {
        let local = open(data.path(), settings).await;
        for path in &paths {
            assert_eq!(std::fs::metadata(path).unwrap().permissions().mode() & 0o777, 0o600);
        }
        seen.push(paths.clone().map(|path| std::fs::read_to_string(path).unwrap()));
        local.stop(Duration::ZERO).await;
    }
    assert_eq!(seen[0], seen[1], "tokens are good after a restart");
    // A directory that is made is for its owner; what somebody has given to others stays so.
    let (made, given) = (data.path().join("new/data"), data.path().join("given"));
    std::fs::create_dir(&given).unwrap();
    std::fs::set_permissions(&given, std::fs::Permissions::from_mode(0o755)).unwrap();
    for (directory, mode) in [(&made, 0o700), (&given, 0o755)] {
        let config = Config::load(None, Cold::Follow, |secret| secret.read(|_| None)).unwrap();
        let config = Config { data_dir: directory.clone(), ..config };
        Local::open(config, Clock::default()).await.unwrap().stop(Duration::ZERO).await;
        assert_eq!(std::fs::metadata(directory).unwrap().permissions().mode() & 0o777, mode);
    }
    assert_eq!(BASE64_STANDARD.decode(seen[0][0].trim()).unwrap().len(), 32);
    assert!(seen[0][1].trim().len() >= 43 && seen[0][0] != seen[0][1]);
    // Where nobody can log in there are none.
    let other = tempfile::TempDir::new().unwrap();
    open(other.path(), "[access]\nanonymous = true\n").await.stop(Duration::ZERO).await;
    assert!(!other.path().join("signing_keys").exists());
}

/// A page whose name means 127.0.0.1 the next time it is asked for (DNS rebinding): to its browser this is the page's own
/// server, whose answers it may read.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn without_a_word_about_access_a_page_whose_name_leads_here_reads_nothing() {
    let (data, upstream) = (tempfile::TempDir::new().unwrap(), Scripted::start().unwrap());
    upstream.image("a", "1", &[b"layer"]);
    let local = open(data.path(), &format!("[upstreams.\"test.local\"]\nurl = \"{}\"\n", upstream.url())).await;
    let router = stopover::http::router(Arc::clone(&local.cache));
    let ask = async |method: &Method, path: &str, hosts: &[&str]| {
        let request = Request::builder().method(method).uri(path).extension(Source::from("127.0.0.1".parse().ok()));
        let request = hosts.iter().fold(request, |request, host| request.header("host", *host));
        let response = router.clone().oneshot(request.body(Body::from("{\"images\": []}")).unwrap()).await.unwrap();
        let (status, body) = (response.status(), to_bytes(response.into_body(), 10_000).await.unwrap());
        (status, String::from_utf8(body.to_vec()).unwrap())
    };
    let asked = [(Method::GET, "/v2/"), (Method::GET, TAG), (Method::GET, "/_stopover/quota")];
    let asked = [&asked[..], &[(Method::POST, "/_stopover/prefetch")]].concat();
    for host in
        ["evil.test", "evil.test:5000", "localhost.evil.test", "127.0.0.1.evil.test", "10.0.0.1:5000", "[::2]", "a b"]
    {
        for (method, path) in &asked {
            for hosts in [&[host][..], &["127.0.0.1", host]] {
                let (status, body) = ask(method, path, hosts).await;
                assert_eq!(status, StatusCode::MISDIRECTED_REQUEST, "{hosts:?} {path}: {body}");
                assert!(body.contains("\"DENIED\"") && body.contains("[access]"), "{body}");
            }
        }
    }
    assert!(upstream.requests().is_empty());
    for host in [
        "127.0.0.1:5000",
        "127.0.0.2",
        "LocalHost:5000",
        "cache.localhost",
        "localhost.",
        "[::1]:5000",
        "[::ffff:127.0.0.1]",
    ] {
        for (method, path) in &asked {
            let (status, body) = ask(method, path, &[host]).await;
            assert!(status.is_success(), "{host} {path}: {status} {body}");
        }
    }
    // Whoever says in [access] who is let in decides what the cache is called.
    local.stop(Duration::ZERO).await;
    let data = tempfile::TempDir::new().unwrap();
    let local = open(data.path(), "[access]\nanonymous = [\"127.0.0.0/8\"]\n").await;
    let request = Request::get("/v2/").header("host", "cache.test").extension(Source::from("127.0.0.1".parse().ok()));
    let response = stopover::http::router(Arc::clone(&local.cache)).oneshot(request.body(Body::empty()).unwrap()).await;
    assert_eq!(response.unwrap().status(), StatusCode::OK);
    local.stop(Duration::ZERO).await;
}
