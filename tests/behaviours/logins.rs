//! Logins that need no secret of ours: identities of AWS, and of `OpenID` Connect issuers. Each test of a refusal is the
//! attack.

use std::io::Write as _;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use aws_lc_rs::hmac;
use base64::Engine as _;
use base64::engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD};
use futures_util::future::join_all;
use http::{Method, StatusCode};
use serde_json::{Value, json};
use stopover::time::Timestamp;
use support::aws::sts::{Signer, Sts};
use support::issuer::{Issuer, content};
use support::on_both_columns;
use support::world::{Answer, Column, DEADLINE, World};
use tempfile::NamedTempFile;

on_both_columns!(
    a_signed_login_gets_a_token_and_pulls,
    an_identity_of_another_account_is_not_let_in,
    a_session_of_a_role_is_let_in_as_the_role,
    altered_fields_of_a_signature_are_refused,
    a_signature_for_another_cache_is_refused,
    a_signature_for_another_action_is_refused,
    what_is_signed_cannot_name_a_parameter_twice,
    an_old_or_future_signature_is_refused_without_asking_sts,
    sts_is_asked_once_about_a_signature,
    a_flood_of_forgeries_neither_exhausts_sts_nor_keeps_out_whom_it_knows,
    when_sts_is_down_known_identities_go_on_and_new_ones_are_told_to_come_back,
    an_id_token_gets_a_token_and_pulls,
    forged_id_tokens_are_refused,
    an_id_token_for_somebody_else_is_refused,
    an_id_token_is_good_only_within_its_time,
    an_id_token_without_the_claims_is_not_let_in,
    rules_decide_by_the_claims_of_an_id_token,
    a_rotated_key_is_found_and_an_unknown_one_does_not_have_the_issuer_asked_all_the_time,
    when_an_issuer_is_down_known_keys_go_on_and_new_ones_are_told_to_come_back,
    keys_that_an_issuer_keeps_elsewhere_are_not_fetched,
    keys_are_fetched_from_where_the_configuration_says,
);

const REGION: &str = "eu-west-1";
const ACCOUNT: &str = "123456789012";
const SERVICE: &str = "cr.test";
pub(crate) const TAG: &str = "/v2/test.local/team/app/manifests/1";

/// A world with these ways in, an image, and no way in for anybody else.
pub(crate) async fn world(column: Column, ways: &str, policy: &str) -> World {
    let mut keys = NamedTempFile::new().unwrap();
    writeln!(keys, "1:{}", STANDARD.encode([7; 32])).unwrap();
    let settings = format!(
        "[access]\nservice = \"{SERVICE}\"\nsigning_keys = {{ file = {:?} }}\n{ways}\n{policy}\n",
        keys.path().display().to_string()
    );
    let world = World::plan(column).settings(&settings).start().await;
    world.upstream.image("team/app", "1", &[b"layer"]);
    world
}

async fn world_with_sts(column: Column) -> (World, Sts) {
    let sts = Sts::start().unwrap();
    let iam = "accounts = [\"123456789012\"]\nroles = [\"arn:aws:iam::210987654321:role/node-*\"]";
    let world = world(column, &format!("[access.iam]\n{iam}\nendpoint = \"{}\"", sts.url()), "").await;
    sts.follow(&world.clock);
    (world, sts)
}

async fn world_with_issuer(column: Column, policy: &str) -> (World, Issuer) {
    let issuer = Issuer::start().unwrap();
    let ways = format!(
        "[access.oidc.ci]\nissuer = \"{}\"\naudience = \"{SERVICE}\"\nclaims = {{ owner_id = \"42\" }}",
        issuer.url()
    );
    (world(column, &ways, policy).await, issuer)
}

async fn log_in(world: &World, user: &str, password: &str) -> Answer {
    let basic = format!("Basic {}", STANDARD.encode(format!("{user}:{password}")));
    world.send(Method::GET, "/token?service=cr.test", &[("authorization", &basic)]).await
}

/// The status of a login.
async fn status(world: &World, user: &str, password: &str) -> StatusCode {
    log_in(world, user, password).await.status
}

async fn pull_with(world: &World, answer: &Answer) -> Answer {
    let body: Value = serde_json::from_slice(answer.bytes()).unwrap();
    let bearer = format!("Bearer {}", body["token"].as_str().unwrap());
    world.send(Method::GET, TAG, &[("authorization", &bearer)]).await
}

async fn a_signed_login_gets_a_token_and_pulls(column: Column) {
    let (world, sts) = world_with_sts(column).await;
    let signer = Signer::user(ACCOUNT, "me");
    sts.know(&signer);
    assert_eq!(world.get(TAG).await.status, StatusCode::UNAUTHORIZED);
    let answer = log_in(&world, "aws", &signer.password(REGION, SERVICE, world.clock.now())).await;
    assert_eq!(answer.status, StatusCode::OK, "{answer:?}");
    assert_eq!(pull_with(&world, &answer).await.status, StatusCode::OK);
}

async fn an_identity_of_another_account_is_not_let_in(column: Column) {
    let (world, sts) = world_with_sts(column).await;
    let signer = Signer::user("999999999999", "me");
    sts.know(&signer);
    let answer = log_in(&world, "aws", &signer.password(REGION, SERVICE, world.clock.now())).await;
    assert_eq!(answer.status, StatusCode::UNAUTHORIZED);
    assert!(answer.error().1.contains("iam:arn:aws:iam::999999999999:user/me is not let in"), "{answer:?}");
}

async fn a_session_of_a_role_is_let_in_as_the_role(column: Column) {
    let (world, sts) = world_with_sts(column).await;
    let (node, other) = (Signer::role("210987654321", "node-1", "i-1"), Signer::role("210987654321", "ci", "node-1"));
    sts.know(&node);
    sts.know(&other);
    let now = world.clock.now();
    assert_eq!(status(&world, "aws", &node.password(REGION, SERVICE, now)).await, StatusCode::OK);
    assert_eq!(status(&world, "aws", &other.password(REGION, SERVICE, now)).await, StatusCode::UNAUTHORIZED);
}

/// The fields of a password, changed.
fn altered(password: &str, change: impl FnOnce(&mut Value)) -> String {
    let mut fields: Value = serde_json::from_slice(&URL_SAFE_NO_PAD.decode(password).unwrap()).unwrap();
    change(&mut fields);
    URL_SAFE_NO_PAD.encode(fields.to_string())
}

async fn altered_fields_of_a_signature_are_refused(column: Column) {
    let (world, sts) = world_with_sts(column).await;
    let (signer, other) = (Signer::role(ACCOUNT, "me", "s"), Signer::role(ACCOUNT, "admin", "s"));
    sts.know(&signer);
    sts.know(&other);
    let password = signer.password(REGION, SERVICE, world.clock.now());
    let swap = |text: &Value, from: &str, to: &str| json!(text.as_str().unwrap().replace(from, to));
    let forged = [
        altered(&password, |fields| fields["credential"] = swap(&fields["credential"], &signer.key_id, &other.key_id)),
        altered(&password, |fields| fields["date"] = swap(&fields["date"], "00Z", "01Z")),
        altered(&password, |fields| fields["token"] = json!(other.token)),
        altered(&password, |fields| drop(fields.as_object_mut().unwrap().remove("token"))),
        altered(&password, |fields| fields["signature"] = json!("0".repeat(64))),
        altered(&password, |fields| {
            fields["region"] = json!("us-east-1");
            fields["credential"] = swap(&fields["credential"], REGION, "us-east-1");
        }),
    ];
    for (index, forged) in forged.iter().enumerate() {
        assert_eq!(status(&world, "aws", forged).await, StatusCode::UNAUTHORIZED, "{index}");
    }
    assert_eq!(sts.asked(), forged.len(), "each had the form of a password");
    assert_eq!(status(&world, "aws", &altered(&password, |_| ())).await, StatusCode::OK, "nothing else was wrong");
}

async fn a_signature_for_another_cache_is_refused(column: Column) {
    let (world, sts) = world_with_sts(column).await;
    let signer = Signer::user(ACCOUNT, "me");
    sts.know(&signer);
    let now = world.clock.now();
    assert_eq!(status(&world, "aws", &signer.password(REGION, "other.test", now)).await, StatusCode::UNAUTHORIZED);
    // As for everybody: for no cache at all.
    let unbound = signer.password_for("GetCallerIdentity", REGION, &[], now);
    assert_eq!(status(&world, "aws", &unbound).await, StatusCode::UNAUTHORIZED);
    assert_eq!(sts.asked(), 2);
}

async fn a_signature_for_another_action_is_refused(column: Column) {
    let (world, sts) = world_with_sts(column).await;
    let signer = Signer::user(ACCOUNT, "me");
    sts.know(&signer);
    let headers = [("x-stopover-server-id", SERVICE)];
    let password = signer.password_for("GetSessionToken", REGION, &headers, world.clock.now());
    assert_eq!(status(&world, "aws", &password).await, StatusCode::UNAUTHORIZED);
    assert_eq!(sts.asked(), 1, "as GetCallerIdentity, which is what was asked");
}

async fn what_is_signed_cannot_name_a_parameter_twice(column: Column) {
    let (world, sts) = world_with_sts(column).await;
    let signer = Signer::user(ACCOUNT, "me");
    sts.know(&signer);
    let password = signer.password(REGION, SERVICE, world.clock.now());
    let json = String::from_utf8(URL_SAFE_NO_PAD.decode(&password).unwrap()).unwrap();
    let twice = |field: &str| URL_SAFE_NO_PAD.encode(json.replacen('{', &format!("{{{field},"), 1));
    for forged in [
        altered(&password, |fields| fields["Action"] = json!("AssumeRole")),
        altered(&password, |fields| fields["action"] = json!("GetCallerIdentity")),
        altered(&password, |fields| fields["token"] = json!("a&Action=AssumeRole")),
        altered(&password, |fields| fields["signature"] = json!(["0".repeat(64), "1".repeat(64)])),
        altered(&password, |fields| fields["region"] = json!("eu-west-1.evil.example/?a=")),
        // Another service of AWS, at `sts.s3.amazonaws.com`.
        altered(&password, |fields| {
            fields["region"] = json!("s3");
            fields["credential"] = json!(fields["credential"].as_str().unwrap().replace(REGION, "s3"));
        }),
        twice("\"region\":\"us-east-1\""),
        twice("\"credential\":\"AKIAIOSFODNN7EXAMPLE/20270115/eu-west-1/sts/aws4_request\""),
        "https://sts.amazonaws.com/?Action=GetCallerIdentity&Action=AssumeRole".to_owned(),
        "x".repeat(9000),
        String::new(),
    ] {
        assert_eq!(status(&world, "aws", &forged).await, StatusCode::UNAUTHORIZED, "{forged}");
    }
    assert_eq!(sts.asked(), 0);
}

async fn an_old_or_future_signature_is_refused_without_asking_sts(column: Column) {
    let (world, sts) = world_with_sts(column).await;
    let signer = Signer::user(ACCOUNT, "me");
    sts.know(&signer);
    let now = world.clock.now();
    for at in [now.minus(Duration::from_mins(15)), now.plus(Duration::from_secs(61))] {
        let password = signer.password(REGION, SERVICE, at);
        assert_eq!(status(&world, "aws", &password).await, StatusCode::UNAUTHORIZED, "{at:?}");
    }
    assert_eq!(sts.asked(), 0);
    for at in [now.minus(Duration::from_secs(899)), now.plus(Duration::from_mins(1))] {
        assert_eq!(status(&world, "aws", &signer.password(REGION, SERVICE, at)).await, StatusCode::OK, "{at:?}");
    }
}

async fn sts_is_asked_once_about_a_signature(column: Column) {
    let (world, sts) = world_with_sts(column).await;
    let signer = Signer::user(ACCOUNT, "me");
    sts.know(&signer);
    let password = signer.password(REGION, SERVICE, world.clock.now());
    for _ in 0..3 {
        assert_eq!(status(&world, "aws", &password).await, StatusCode::OK);
    }
    assert_eq!(sts.asked(), 1);
    world.clock.advance(Duration::from_mins(10));
    assert_eq!(status(&world, "aws", &password).await, StatusCode::OK);
    assert_eq!(sts.asked(), 2, "ten minutes later again");
    world.clock.advance(Duration::from_mins(5));
    assert_eq!(status(&world, "aws", &password).await, StatusCode::UNAUTHORIZED, "known, but over");
    assert_eq!(sts.asked(), 2);
    // Nor often about one that it has refused, or that is of somebody who is not let in.
    let (stranger, other) = (Signer::user(ACCOUNT, "unknown"), Signer::user("999999999999", "me"));
    sts.know(&other);
    let passwords = [stranger, other].map(|signer| signer.password(REGION, SERVICE, world.clock.now()));
    for asked in [4, 4, 4] {
        for password in &passwords {
            assert_eq!(status(&world, "aws", password).await, StatusCode::UNAUTHORIZED);
        }
        assert_eq!(sts.asked(), asked);
    }
    world.clock.advance(Duration::from_mins(1));
    assert_eq!(status(&world, "aws", &passwords[0]).await, StatusCode::UNAUTHORIZED);
    assert_eq!(sts.asked(), 5, "a minute later again");
}

async fn a_flood_of_forgeries_neither_exhausts_sts_nor_keeps_out_whom_it_knows(column: Column) {
    let (world, sts) = world_with_sts(column).await;
    let (known, new) = (Signer::user(ACCOUNT, "known"), Signer::user(ACCOUNT, "new"));
    sts.know(&known);
    sts.know(&new);
    let now = world.clock.now();
    let from = async |caller: &str, signer: &Signer, at: Timestamp| {
        let basic = format!("Basic {}", STANDARD.encode(format!("aws:{}", signer.password(REGION, SERVICE, at))));
        world.send_with(caller, Method::GET, "/token", &[("authorization", &basic)]).await
    };
    assert_eq!(from("10.0.0.1", &known, now).await.status, StatusCode::OK);
    sts.stall_strangers(true);
    // One stranger has 64 questions under way, and all together 256 that wait, beside the 8 that STS is asked.
    let turned_away = AtomicUsize::new(0);
    let strange = |caller: String, number: usize| {
        let (from, turned_away) = (&from, &turned_away);
        async move {
            let answer = from(&caller, &Signer::user(ACCOUNT, &format!("stranger-{number}")), now).await;
            if answer.status == StatusCode::TOO_MANY_REQUESTS {
                assert!(!answer.header("retry-after").is_empty() && answer.header("www-authenticate").is_empty());
                turned_away.fetch_add(1, Ordering::SeqCst);
            } else {
                assert_eq!(answer.status, StatusCode::UNAUTHORIZED, "{answer:?}");
            }
        }
    };
    let greedy = join_all((0..100).map(|number| strange("192.0.2.1".to_owned(), number)));
    let many = join_all((100..400).map(|number| strange(format!("198.51.{}.{}", number / 100, number % 100), number)));
    let meanwhile = async {
        while (sts.stalled(), turned_away.load(Ordering::SeqCst)) != (8, 400 - 256 - 8) {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        let later = now.minus(Duration::from_secs(5));
        assert_eq!(
            from("192.0.2.1", &known, later).await.status,
            StatusCode::TOO_MANY_REQUESTS,
            "that caller has enough"
        );
        assert_eq!(from("10.0.0.1", &known, later).await.status, StatusCode::OK);
        assert_eq!(from("10.0.0.2", &new, now).await.status, StatusCode::TOO_MANY_REQUESTS);
        sts.stall_strangers(false);
    };
    let all = async { tokio::join!(greedy, many, meanwhile) };
    tokio::time::timeout(DEADLINE, all).await.expect("nobody waits for ever");
    assert_eq!(sts.asked(), 2 + 256 + 8, "two of them about who is known");
    assert_eq!(from("10.0.0.2", &new, now).await.status, StatusCode::OK);
}

async fn when_sts_is_down_known_identities_go_on_and_new_ones_are_told_to_come_back(column: Column) {
    let (world, sts) = world_with_sts(column).await;
    let (known, new) = (Signer::user(ACCOUNT, "known"), Signer::user(ACCOUNT, "new"));
    sts.know(&known);
    sts.know(&new);
    let [known, new] = [known, new].map(|signer| signer.password(REGION, SERVICE, world.clock.now()));
    assert_eq!(status(&world, "aws", &known).await, StatusCode::OK);
    for trouble in [(500, "InternalFailure"), (503, "ServiceUnavailable"), (400, "Throttling"), (302, "Elsewhere")] {
        sts.trouble(Some(trouble));
        let answer = log_in(&world, "aws", &new).await;
        assert_eq!(answer.status, StatusCode::SERVICE_UNAVAILABLE, "{trouble:?}");
        assert!(!answer.header("retry-after").is_empty() && answer.header("www-authenticate").is_empty());
        assert!(!answer.error().1.contains("127.0.0.1"), "{answer:?}");
        assert_eq!(status(&world, "aws", &known).await, StatusCode::OK, "{trouble:?}");
    }
    sts.trouble(None);
    assert_eq!(status(&world, "aws", &new).await, StatusCode::OK);
    drop(sts);
    assert_eq!(status(&world, "aws", &known).await, StatusCode::OK);
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
    let stranger = Issuer::start().unwrap();
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
