//! Robots: who is let in with which secret, and who has to wait.

use std::time::Duration;

use http::{Method, StatusCode};
use serde_json::{Value, json};
use stopover::operate::{RobotAnswer, RobotCommand};
use stopover::values::time::Span;
use support::guests::{HERE, basic, bearer, get, robot, secret};
use support::on_both_columns;
use support::world::Column;

use super::{ELSEWHERE, TAG, calls, world};

on_both_columns!(
    a_robot_is_let_in_with_its_secret_until_it_expires_or_is_removed,
    a_rotated_secret_is_taken_until_its_overlap_ends,
    an_expired_robot_is_renewed_by_a_rotation_that_says_until_when,
    robots_are_made_only_where_they_are_let_in,
    wrong_secrets_have_to_wait_longer_and_longer,
    a_right_secret_is_let_in_whatever_others_at_its_address_sent,
    one_address_that_tries_many_names_has_to_wait_too,
    robots_are_managed_by_operators_only,
);

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
    world.cache.operate.robots(RobotCommand::Remove { name: "node".parse().unwrap() }).await.unwrap();
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
    let RobotAnswer::Robots(robots) = world.cache.operate.robots(RobotCommand::List).await.unwrap() else {
        panic!("no list")
    };
    assert!(robots[0].expired);
    for command in [
        RobotCommand::Rotate { name: name(), overlap: None, expires: None },
        RobotCommand::Add { name: name(), expires: hour },
    ] {
        let refused = world.cache.operate.robots(command).await.unwrap_err().to_string();
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
        assert_eq!(answer.status, StatusCode::UNAUTHORIZED, "{caller}: a proxy there passes on what others send");
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
