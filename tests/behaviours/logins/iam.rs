//! Logins as an identity of AWS.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use futures_util::future::join_all;
use http::StatusCode;
use serde_json::{Value, json};
use support::aws::sts::{Signer, Sts};
use support::guests::{HERE, basic, get};
use support::on_both_columns;
use support::world::{Column, DEADLINE, World};

use super::{SERVICE, TAG, log_in, pull_with, status, world};

on_both_columns!(
    a_signed_login_gets_a_token_and_pulls,
    nobody_but_a_robot_is_given_a_refresh_token,
    an_identity_of_another_account_is_not_let_in,
    an_account_of_another_partition_is_somebody_else,
    a_session_of_a_role_is_let_in_as_the_role,
    altered_fields_of_a_signature_are_refused,
    a_signature_for_another_cache_is_refused,
    a_signature_for_another_action_is_refused,
    what_is_signed_cannot_name_a_parameter_twice,
    an_old_or_future_signature_is_refused_without_asking_sts,
    sts_is_asked_once_about_a_signature,
    a_flood_of_forgeries_neither_exhausts_sts_nor_keeps_out_whom_it_knows,
    a_stranger_who_names_the_key_of_somebody_known_waits_with_strangers,
    when_sts_is_down_known_identities_go_on_and_new_ones_are_told_to_come_back,
);

const REGION: &str = "eu-west-1";
const ACCOUNT: &str = "123456789012";

/// A world that lets in one account and the nodes of another; its STS, and a user of the account whom that knows.
async fn world_with_sts(column: Column) -> (World, Sts, Signer) {
    let sts = Sts::start().unwrap();
    let iam = "accounts = [\"123456789012\"]\nroles = [\"arn:aws:iam::210987654321:role/node-*\"]";
    let world = world(column, &format!("[access.iam]\n{iam}\nendpoint = \"{}\"", sts.url()), "").await;
    sts.follow(&world.clock);
    let signer = Signer::user(ACCOUNT, "me");
    sts.know(&signer);
    (world, sts, signer)
}

async fn a_signed_login_gets_a_token_and_pulls(column: Column) {
    let (world, _sts, signer) = world_with_sts(column).await;
    assert_eq!(world.get(TAG).await.status, StatusCode::UNAUTHORIZED);
    let answer = log_in(&world, "aws", &signer.password(REGION, SERVICE, world.clock.now())).await;
    assert_eq!(answer.status, StatusCode::OK, "{answer:?}");
    assert_eq!(pull_with(&world, &answer).await.status, StatusCode::OK);
}

async fn nobody_but_a_robot_is_given_a_refresh_token(column: Column) {
    let (world, _sts, signer) = world_with_sts(column).await;
    let login = basic("aws", &signer.password(REGION, SERVICE, world.clock.now()));
    let answer = get(&world, HERE, "/token?service=cr.test&offline_token=true", &login).await;
    let body: Value = serde_json::from_slice(answer.bytes()).unwrap();
    assert_eq!(
        (answer.status, &body["refresh_token"]),
        (StatusCode::OK, &Value::Null),
        "or the proof would not expire"
    );
}

async fn an_identity_of_another_account_is_not_let_in(column: Column) {
    let (world, sts, _) = world_with_sts(column).await;
    let signer = Signer::user("999999999999", "me");
    sts.know(&signer);
    let answer = log_in(&world, "aws", &signer.password(REGION, SERVICE, world.clock.now())).await;
    assert_eq!(answer.status, StatusCode::UNAUTHORIZED);
    assert!(answer.error().1.contains("iam:arn:aws:iam::999999999999:user/me is not let in"), "{answer:?}");
}

async fn an_account_of_another_partition_is_somebody_else(column: Column) {
    for (setting, region, other) in [
        ("", REGION, [("aws-cn", "cn-north-1"), ("aws-us-gov", "us-gov-west-1")]),
        ("partition = \"aws-cn\"", "cn-north-1", [("aws", REGION), ("aws-us-gov", "us-gov-west-1")]),
    ] {
        let sts = Sts::start().unwrap();
        let iam = format!("[access.iam]\naccounts = [\"{ACCOUNT}\"]\n{setting}\nendpoint = \"{}\"", sts.url());
        let world = world(column, &iam, "").await;
        sts.follow(&world.clock);
        for (partition, region) in other {
            let stranger = Signer::user_in(partition, ACCOUNT, "me");
            sts.know(&stranger);
            let password = stranger.password(region, SERVICE, world.clock.now());
            assert_eq!(status(&world, "aws", &password).await, StatusCode::UNAUTHORIZED, "{setting} {partition}");
        }
        assert_eq!(sts.asked(), 0, "nobody there can be let in");
        let ours = Signer::user_in(if setting.is_empty() { "aws" } else { "aws-cn" }, ACCOUNT, "me");
        sts.know(&ours);
        let password = ours.password(region, SERVICE, world.clock.now());
        assert_eq!(status(&world, "aws", &password).await, StatusCode::OK, "{setting}");
    }
}

async fn a_session_of_a_role_is_let_in_as_the_role(column: Column) {
    let (world, sts, _) = world_with_sts(column).await;
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
    let (world, sts, _) = world_with_sts(column).await;
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
    let (world, sts, signer) = world_with_sts(column).await;
    let now = world.clock.now();
    assert_eq!(status(&world, "aws", &signer.password(REGION, "other.test", now)).await, StatusCode::UNAUTHORIZED);
    // As for everybody: for no cache at all.
    let unbound = signer.password_for("GetCallerIdentity", REGION, &[], now);
    assert_eq!(status(&world, "aws", &unbound).await, StatusCode::UNAUTHORIZED);
    assert_eq!(sts.asked(), 2);
}

async fn a_signature_for_another_action_is_refused(column: Column) {
    let (world, sts, signer) = world_with_sts(column).await;
    let headers = [("x-stopover-server-id", SERVICE)];
    let password = signer.password_for("GetSessionToken", REGION, &headers, world.clock.now());
    assert_eq!(status(&world, "aws", &password).await, StatusCode::UNAUTHORIZED);
    assert_eq!(sts.asked(), 1, "as GetCallerIdentity, which is what was asked");
}

async fn what_is_signed_cannot_name_a_parameter_twice(column: Column) {
    let (world, sts, signer) = world_with_sts(column).await;
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
    let (world, sts, signer) = world_with_sts(column).await;
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
    let (world, sts, signer) = world_with_sts(column).await;
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
    let (world, sts, _) = world_with_sts(column).await;
    let (known, new) = (Signer::user(ACCOUNT, "known"), Signer::user(ACCOUNT, "new"));
    sts.know(&known);
    sts.know(&new);
    let now = world.clock.now();
    let from = async |caller: &str, password: &str| get(&world, caller, "/token", &basic("aws", password)).await;
    assert_eq!(from("10.0.0.1", &known.password(REGION, SERVICE, now)).await.status, StatusCode::OK);
    // All of it is signed before STS keeps anybody waiting, because it is not waited for long.
    let later = known.password(REGION, SERVICE, now.minus(Duration::from_secs(5)));
    let new = new.password(REGION, SERVICE, now);
    let strangers = (0..400).map(|number| Signer::user(ACCOUNT, &format!("stranger-{number}")));
    let strange: Vec<String> = strangers.map(|signer| signer.password(REGION, SERVICE, now)).collect();
    sts.stall_strangers(true);
    // One stranger has 64 questions under way, and all together 256 that wait, beside the 8 that STS is asked.
    let turned_away = AtomicUsize::new(0);
    let ask = |caller: String, number: usize| {
        let (from, turned_away, password) = (&from, &turned_away, &strange[number]);
        async move {
            let answer = from(&caller, password).await;
            if answer.status == StatusCode::TOO_MANY_REQUESTS {
                assert!(!answer.header("retry-after").is_empty() && answer.header("www-authenticate").is_empty());
                turned_away.fetch_add(1, Ordering::SeqCst);
            } else {
                assert_eq!(answer.status, StatusCode::UNAUTHORIZED, "{answer:?}");
            }
        }
    };
    let greedy = join_all((0..100).map(|number| ask("192.0.2.1".to_owned(), number)));
    let many = async {
        // After the greedy one has all that it gets.
        while turned_away.load(Ordering::SeqCst) != 100 - 64 {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        join_all((100..400).map(|number| ask(format!("198.51.{}.{}", number / 100, number % 100), number))).await
    };
    let meanwhile = async {
        while (sts.stalled(), turned_away.load(Ordering::SeqCst)) != (8, 400 - 256 - 8) {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        let greedy = from("192.0.2.1", &later).await.status;
        assert_eq!(greedy, StatusCode::TOO_MANY_REQUESTS, "that caller has enough");
        assert_eq!(from("10.0.0.1", &later).await.status, StatusCode::OK);
        assert_eq!(from("10.0.0.2", &new).await.status, StatusCode::TOO_MANY_REQUESTS);
        sts.stall_strangers(false);
    };
    let all = async { tokio::join!(greedy, many, meanwhile) };
    tokio::time::timeout(DEADLINE, all).await.expect("nobody waits for ever");
    assert_eq!(sts.asked(), 2 + 256 + 8, "two of them about who is known");
    assert_eq!(from("10.0.0.2", &new).await.status, StatusCode::OK);
}

async fn a_stranger_who_names_the_key_of_somebody_known_waits_with_strangers(column: Column) {
    let (world, sts, known) = world_with_sts(column).await;
    let now = world.clock.now();
    let from = async |caller: &str, password: &str| get(&world, caller, "/token", &basic("aws", password)).await.status;
    let (password, later) = (known.password(REGION, SERVICE, now), now.minus(Duration::from_secs(5)));
    assert_eq!(from("10.0.0.1", &password).await, StatusCode::OK);
    let later = known.password(REGION, SERVICE, later);
    sts.stall_strangers(true);
    let turned_away = AtomicUsize::new(0);
    let forgeries = join_all((0..300).map(|number| {
        let (from, turned_away) = (&from, &turned_away);
        let forged = altered(&password, |fields| {
            fields["token"] = json!("forged");
            fields["signature"] = json!(format!("{number:064x}"));
        });
        async move {
            if from(&format!("198.51.100.{}", number / 60), &forged).await == StatusCode::TOO_MANY_REQUESTS {
                turned_away.fetch_add(1, Ordering::SeqCst);
            }
        }
    }));
    let meanwhile = async {
        // Those who are not turned away fill the queue that they wait in, and are all that STS is asked.
        while turned_away.load(Ordering::SeqCst) != 300 - 256 - 8 {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        let let_in = from("10.0.0.1", &later).await;
        sts.stall_strangers(false);
        assert_eq!(let_in, StatusCode::OK);
    };
    let all = async { tokio::join!(forgeries, meanwhile) };
    tokio::time::timeout(DEADLINE, all).await.expect("nobody waits for ever");
}

async fn when_sts_is_down_known_identities_go_on_and_new_ones_are_told_to_come_back(column: Column) {
    let (world, sts, _) = world_with_sts(column).await;
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
