//! The challenge, and the tokens that it leads to.

use std::time::Duration;

use base64::Engine as _;
use base64::prelude::{BASE64_STANDARD, BASE64_URL_SAFE_NO_PAD};
use http::{Method, StatusCode};
use serde_json::{Value, json};
use stopover::access::token::TokenKeys;
use stopover::identity::{IamIdentity, OidcIdentity, Principal};
use stopover::operate::RobotCommand;
use stopover::values::time::Span;
use support::guests::{HERE, basic, bearer, get, robot, secret, token_in};
use support::on_both_columns;
use support::world::{Answer, Column};
use url::form_urlencoded;

use super::{ELSEWHERE, TAG, calls, world};

on_both_columns!(
    a_challenge_leads_to_a_token_that_pulls,
    the_realm_is_where_clients_reach_the_cache,
    the_version_check_asks_for_a_login_where_there_is_one,
    a_refresh_token_logs_a_robot_in_again_until_its_secret_ends,
    a_token_is_not_exchanged_for_a_newer_one,
    a_token_that_is_not_ours_is_refused_as_invalid,
    a_token_of_a_robot_ends_with_the_robot,
    a_token_of_a_robot_opens_none_that_is_made_anew_under_its_name,
    a_token_of_a_robot_ends_with_the_secret_it_was_issued_for,
    a_token_is_refused_whose_holder_could_not_log_in_any_more,
);

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
        ("grant_type=authorization_code&code=x", "unsupported_grant_type"),
        ("", "unsupported_grant_type"),
        ("grant_type=refresh_token", "invalid_request"),
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

async fn a_refresh_token_logs_a_robot_in_again_until_its_secret_ends(column: Column) {
    let world = world(column, "robots = true\nanonymous = true").await;
    let old = robot(&world, "ci").await;
    let body = |answer: &Answer| serde_json::from_slice::<Value>(answer.bytes()).unwrap();
    let login = format!("grant_type=password&service=stopover&client_id=test&username=ci&password={old}");
    let kept = body(&world.post_from(HERE, "/token", format!("{login}&access_type=offline")).await);
    let by_header = get(&world, HERE, "/token?service=stopover&offline_token=true", &basic("ci", &old)).await;
    assert_eq!(body(&by_header)["refresh_token"], kept["refresh_token"]);
    for asks_for_none in
        [world.post_from(HERE, "/token", login).await, get(&world, HERE, "/token", &basic("ci", &old)).await]
    {
        assert_eq!(body(&asks_for_none)["refresh_token"], Value::Null);
    }
    let nobody = get(&world, HERE, "/token?offline_token=true", "").await;
    assert_eq!((nobody.status, &body(&nobody)["refresh_token"]), (StatusCode::OK, &Value::Null));
    let refresh = async |token: &str| {
        let form = form_urlencoded::Serializer::new(String::new())
            .extend_pairs([("grant_type", "refresh_token"), ("service", "stopover"), ("refresh_token", token)])
            .finish();
        world.post_from(HERE, "/token", form).await
    };
    let kept = kept["refresh_token"].as_str().unwrap();
    let answer = refresh(kept).await;
    assert_eq!(get(&world, HERE, TAG, &token_in(&answer)).await.status, StatusCode::OK, "{answer:?}");
    let token = token_in(&answer);
    for none in ["", "x", token.trim_start_matches("Bearer "), &BASE64_STANDARD.encode("ci:wrong")] {
        assert_eq!(refresh(none).await.status, StatusCode::UNAUTHORIZED, "{none}");
    }
    let overlap = Some(Span(Duration::from_hours(1)));
    secret(&world, RobotCommand::Rotate { name: "ci".parse().unwrap(), overlap, expires: None }).await;
    assert_eq!(refresh(kept).await.status, StatusCode::OK, "while the secret is taken");
    world.clock.advance(Duration::from_hours(1));
    assert_eq!(refresh(kept).await.status, StatusCode::UNAUTHORIZED);
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
    world.cache.operate.robots(RobotCommand::Remove { name: "ci".parse().unwrap() }).await.unwrap();
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
    world.cache.operate.robots(RobotCommand::Remove { name: "ci".parse().unwrap() }).await.unwrap();
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
