//! Logins with an ID token of an `OpenID` Connect issuer.

use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use http::{Method, StatusCode};
use ring::hmac;
use serde_json::{Value, json};
use stopover::values::time::Timestamp;
use support::guests::token_in;
use support::issuer::{Issuer, content};
use support::on_both_columns;
use support::world::{Column, World};

use super::{SERVICE, log_in, pull_with, status, world, world_with};

on_both_columns!(
    an_id_token_gets_a_token_and_pulls,
    forged_id_tokens_are_refused,
    an_id_token_for_somebody_else_is_refused,
    an_id_token_is_good_only_within_its_time,
    an_id_token_without_the_claims_is_not_let_in,
    rules_decide_by_the_claims_of_an_id_token,
    whoever_has_many_subjects_has_one_budget,
    a_rotated_key_is_found_and_an_unknown_one_does_not_have_the_issuer_asked_all_the_time,
    when_an_issuer_is_down_known_keys_go_on_and_new_ones_are_told_to_come_back,
    keys_that_an_issuer_keeps_elsewhere_are_not_fetched,
    keys_are_fetched_from_where_the_configuration_says,
);

async fn world_with_issuer(column: Column, policy: &str) -> (World, Issuer) {
    let issuer = Issuer::start().unwrap();
    let ways = format!(
        "[access.oidc.ci]\nissuer = \"{}\"\naudience = \"{SERVICE}\"\nclaims = {{ owner_id = \"42\" }}",
        issuer.url()
    );
    (world(column, &ways, policy).await, issuer)
}

/// What the issuer says of a job, an hour long.
fn claims(issuer: &Issuer, now: Timestamp) -> Value {
    json!({
        "iss": issuer.url(), "aud": SERVICE, "sub": "repo:acme/app", "owner_id": 42, "protected": true,
        "iat": now.0, "nbf": now.0, "exp": now.0 + 3600, "runs": { "on": "linux" },
    })
}

/// The claims of a job with one of them changed.
fn with(issuer: &Issuer, now: Timestamp, name: &str, value: Value) -> Value {
    let mut claims = claims(issuer, now);
    claims[name] = value;
    claims
}

async fn an_id_token_gets_a_token_and_pulls(column: Column) {
    let (world, issuer) = world_with_issuer(column, "").await;
    let now = world.clock.now();
    for algorithm in ["RS256", "ES256"] {
        let answer = log_in(&world, "oidc", &issuer.token(algorithm, &claims(&issuer, now))).await;
        assert_eq!(answer.status, StatusCode::OK, "{algorithm} {answer:?}");
        assert_eq!(pull_with(&world, &answer).await.status, StatusCode::OK);
    }
    let several = with(&issuer, now, "aud", json!(["other.test", SERVICE]));
    assert_eq!(status(&world, "oidc", &issuer.token("RS256", &several)).await, StatusCode::OK);
    assert_eq!(issuer.asked(), 1, "keys are kept");
}

async fn forged_id_tokens_are_refused(column: Column) {
    let (world, issuer) = world_with_issuer(column, "").await;
    let claims = claims(&issuer, world.clock.now());
    let (rsa, ec) = (issuer.key_id("RS256"), issuer.key_id("ES256"));
    let good = issuer.token("RS256", &claims);
    let parts: Vec<&str> = good.split('.').collect();
    let other = content(&json!({}), &json!({ "iss": issuer.url(), "aud": SERVICE, "sub": "root", "owner_id": 42 }));
    let unsigned = content(&json!({ "alg": "none", "typ": "JWT", "kid": rsa }), &claims);
    // Whoever takes the header's word verifies HMAC with what everybody knows.
    let public = issuer.public_rsa_key();
    let symmetric = content(&json!({ "alg": "HS256", "typ": "JWT", "kid": rsa }), &claims);
    let key = hmac::Key::new(hmac::HMAC_SHA256, &public);
    let mac = URL_SAFE_NO_PAD.encode(hmac::sign(&key, symmetric.as_bytes()));
    let stranger = Issuer::stranger().unwrap();
    let its_key =
        json!({ "alg": "RS256", "kid": rsa, "jwk": { "kty": "RSA", "n": "AQAB", "e": "AQAB" }, "jku": stranger.url() });
    for (what, forged) in [
        ("no algorithm", format!("{unsigned}.")),
        ("no algorithm, but a signature", format!("{unsigned}.{}", parts[2])),
        ("the public key as a secret", format!("{symmetric}.{mac}")),
        ("other claims", format!("{}.{}.{}", parts[0], other.split('.').nth(1).unwrap(), parts[2])),
        ("no signature", format!("{}.{}.", parts[0], parts[1])),
        ("a key of the other kind", issuer.sign("RS256", &json!({ "alg": "RS256", "kid": ec }), &claims)),
        ("an algorithm of the other kind", issuer.sign("ES256", &json!({ "alg": "ES256", "kid": rsa }), &claims)),
        ("another algorithm", issuer.sign("RS256", &json!({ "alg": "RS384", "kid": rsa }), &claims)),
        ("a key for something else", issuer.sign("RS256", &json!({ "alg": "RS256", "kid": "encryption" }), &claims)),
        ("no key", issuer.sign("RS256", &json!({ "alg": "RS256" }), &claims)),
        ("a key of somebody else", stranger.sign("RS256", &its_key, &claims)),
        ("an extension", issuer.sign("RS256", &json!({ "alg": "RS256", "kid": rsa, "crit": ["b64"] }), &claims)),
        ("too much", issuer.token("RS256", &json!({ "iss": issuer.url(), "filling": "x".repeat(20_000) }))),
        ("nothing", String::new()),
        ("dots", "..".to_owned()),
    ] {
        let answered = status(&world, "oidc", &forged).await;
        assert_eq!(answered, StatusCode::UNAUTHORIZED, "{what}");
    }
    assert_eq!(status(&world, "oidc", &good).await, StatusCode::OK, "nothing else was wrong");
    assert_eq!(stranger.asked(), 0);
}

async fn an_id_token_for_somebody_else_is_refused(column: Column) {
    let (world, issuer) = world_with_issuer(column, "").await;
    let stranger = Issuer::start().unwrap();
    let now = world.clock.now();
    for (what, token) in [
        ("another audience", issuer.token("RS256", &with(&issuer, now, "aud", json!("other.test")))),
        ("a longer audience", issuer.token("RS256", &with(&issuer, now, "aud", json!("cr.test.evil")))),
        ("no audience", issuer.token("RS256", &with(&issuer, now, "aud", json!([])))),
        ("nobody", issuer.token("RS256", &with(&issuer, now, "sub", Value::Null))),
        ("another issuer", stranger.token("RS256", &claims(&stranger, now))),
        ("almost the issuer", issuer.token("RS256", &with(&issuer, now, "iss", json!(format!("{}/", issuer.url()))))),
        ("two issuers", issuer.token("RS256", &with(&issuer, now, "iss", json!([stranger.url(), issuer.url()])))),
        ("a long subject", issuer.token("RS256", &with(&issuer, now, "sub", json!("x".repeat(3000))))),
    ] {
        assert_eq!(status(&world, "oidc", &token).await, StatusCode::UNAUTHORIZED, "{what}");
    }
    assert_eq!(stranger.asked(), 0, "only configured issuers are asked");
}

async fn an_id_token_is_good_only_within_its_time(column: Column) {
    let (world, issuer) = world_with_issuer(column, "").await;
    let now = world.clock.now();
    let at = |name: &str, value: Value| issuer.token("ES256", &with(&issuer, now, name, value));
    for token in [
        at("exp", json!(now.0 - 60)),
        at("exp", json!("soon")),
        at("exp", Value::Null),
        at("nbf", json!(now.0 + 61)),
        at("iat", json!(now.0 + 61)),
        at("iat", json!(-1)),
    ] {
        assert_eq!(status(&world, "oidc", &token).await, StatusCode::UNAUTHORIZED, "{token}");
    }
    for token in [at("exp", json!(now.0 - 59)), at("nbf", json!(now.0 + 60)), at("iat", json!(now.0 + 60))] {
        assert_eq!(status(&world, "oidc", &token).await, StatusCode::OK, "clocks differ: {token}");
    }
}

async fn an_id_token_without_the_claims_is_not_let_in(column: Column) {
    let (world, issuer) = world_with_issuer(column, "").await;
    let now = world.clock.now();
    for owner in [json!(43), json!("420"), json!(["42"]), json!({ "42": "42" }), Value::Null] {
        let answer = log_in(&world, "oidc", &issuer.token("RS256", &with(&issuer, now, "owner_id", owner))).await;
        assert_eq!(answer.status, StatusCode::UNAUTHORIZED, "{answer:?}");
        assert!(answer.error().1.contains("oidc:ci:repo:acme/app is not let in"), "{answer:?}");
    }
}

async fn rules_decide_by_the_claims_of_an_id_token(column: Column) {
    let policy = "[[policy]]\nwho = [\"oidc:ci:*\"]\nclaims = { protected = \"true\" }\nallow = true\n\
                  [[policy]]\nallow = false\n";
    let (world, issuer) = world_with_issuer(column, policy).await;
    let now = world.clock.now();
    for (protected, expected) in [(json!(true), StatusCode::OK), (json!(false), StatusCode::FORBIDDEN)] {
        let token = issuer.token("RS256", &with(&issuer, now, "protected", protected));
        let answer = log_in(&world, "oidc", &token).await;
        assert_eq!(answer.status, StatusCode::OK, "{answer:?}");
        assert_eq!(pull_with(&world, &answer).await.status, expected);
    }
}

/// Whoever may push branches to a repository of GitHub is as many subjects as they like.
async fn whoever_has_many_subjects_has_one_budget(column: Column) {
    for (setting, ours, theirs) in [
        ("", json!({ "repository_id": "7" }), json!({ "repository_id": "8" })),
        ("", json!({ "project_id": "7" }), json!({ "project_id": "8" })),
        ("budget_claim = \"team\"", json!({ "team": "a", "repository_id": "1" }), json!({ "team": "b" })),
        // Whoever has no such claim has a budget with all who have none.
        ("budget_claim = \"team\"", json!({ "repository_id": "7" }), json!({ "team": "b" })),
    ] {
        let issuer = Issuer::start().unwrap();
        let ways = format!(
            "[access.oidc.ci]\nissuer = \"{}\"\naudience = \"{SERVICE}\"\nclaims = {{ owner_id = \"42\" }}\n{setting}",
            issuer.url()
        );
        let world = world_with("misses = 4", column, &ways, "").await;
        let miss = async |subject: &str, more: &Value| {
            let mut claims = with(&issuer, world.clock.now(), "sub", json!(subject));
            claims.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
            let answer = log_in(&world, "oidc", &issuer.token("ES256", &claims)).await;
            let path = format!("/v2/test.local/{subject}/manifests/1");
            world.send(Method::GET, &path, &[("authorization", &token_in(&answer))]).await.status
        };
        for branch in 0..4 {
            assert_eq!(miss(&format!("branch-{branch}"), &ours).await, StatusCode::NOT_FOUND, "{ours} {branch}");
        }
        assert_eq!(miss("branch-4", &ours).await, StatusCode::TOO_MANY_REQUESTS, "{ours}");
        assert_eq!(miss("branch-5", &theirs).await, StatusCode::NOT_FOUND, "{theirs}");
    }
}

async fn a_rotated_key_is_found_and_an_unknown_one_does_not_have_the_issuer_asked_all_the_time(column: Column) {
    let (world, issuer) = world_with_issuer(column, "").await;
    let claims = claims(&issuer, world.clock.now());
    let old = issuer.token("RS256", &claims);
    assert_eq!(status(&world, "oidc", &old).await, StatusCode::OK);
    issuer.rotate().unwrap();
    let new = issuer.token("RS256", &claims);
    for _ in 0..5 {
        assert_eq!(status(&world, "oidc", &new).await, StatusCode::UNAUTHORIZED);
    }
    assert_eq!(issuer.asked(), 1, "not twice in a minute");
    world.clock.advance(Duration::from_mins(1));
    assert_eq!(status(&world, "oidc", &new).await, StatusCode::OK);
    assert_eq!(status(&world, "oidc", &old).await, StatusCode::UNAUTHORIZED, "the issuer has it no longer");
    assert_eq!(issuer.asked(), 2);
}

async fn when_an_issuer_is_down_known_keys_go_on_and_new_ones_are_told_to_come_back(column: Column) {
    let (world, issuer) = world_with_issuer(column, "").await;
    let day_long = |issuer: &Issuer, now: Timestamp| with(issuer, now, "exp", json!(now.0 + 48 * 3600));
    let token = issuer.token("RS256", &day_long(&issuer, world.clock.now()));
    issuer.down(true);
    let answer = log_in(&world, "oidc", &token).await;
    assert_eq!(answer.status, StatusCode::SERVICE_UNAVAILABLE, "{answer:?}");
    assert!(!answer.header("retry-after").is_empty() && !answer.error().1.contains("127.0.0.1"), "{answer:?}");
    issuer.down(false);
    world.clock.advance(Duration::from_mins(1));
    assert_eq!(status(&world, "oidc", &token).await, StatusCode::OK);
    issuer.down(true);
    world.clock.advance(Duration::from_hours(2));
    assert_eq!(status(&world, "oidc", &token).await, StatusCode::OK, "a key that is known");
    issuer.rotate().unwrap();
    let new = issuer.token("RS256", &day_long(&issuer, world.clock.now()));
    assert_eq!(status(&world, "oidc", &new).await, StatusCode::SERVICE_UNAVAILABLE, "one that is not");
    world.clock.advance(Duration::from_hours(22));
    assert_eq!(
        status(&world, "oidc", &token).await,
        StatusCode::SERVICE_UNAVAILABLE,
        "nobody has confirmed it for a day"
    );
}

async fn keys_that_an_issuer_keeps_elsewhere_are_not_fetched(column: Column) {
    let (world, issuer) = world_with_issuer(column, "").await;
    let elsewhere = Issuer::start().unwrap();
    issuer.keep_keys_at(&format!("{}/keys", elsewhere.url()));
    let token = elsewhere.token("RS256", &claims(&issuer, world.clock.now()));
    assert_eq!(status(&world, "oidc", &token).await, StatusCode::SERVICE_UNAVAILABLE);
    assert_eq!(elsewhere.asked(), 0);
}

async fn keys_are_fetched_from_where_the_configuration_says(column: Column) {
    let keeper = Issuer::start().unwrap();
    let ways = format!(
        "[access.oidc.ci]\nissuer = \"https://unreachable.invalid\"\njwks_uri = \"{}/keys\"\naudience = \"{SERVICE}\"\n\
         claims = {{ owner_id = \"42\" }}",
        keeper.url()
    );
    let world = world(column, &ways, "").await;
    let claims = with(&keeper, world.clock.now(), "iss", json!("https://unreachable.invalid"));
    assert_eq!(status(&world, "oidc", &keeper.token("RS256", &claims)).await, StatusCode::OK);
    assert_eq!(keeper.asked(), 1);
}
