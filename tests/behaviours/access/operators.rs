//! Operators: who comes over the socket of the machine, and principals that `[access]` names.

use http::{Method, StatusCode};
use stopover::operate::RobotCommand;
use support::guests::{HERE, basic, bearer, robot};
use support::on_both_columns;
use support::world::{Answer, Column, World};

use super::world;

on_both_columns!(
    an_operator_from_elsewhere_is_a_principal_that_access_names,
    without_logins_there_are_operators_on_the_machine_only,
    nothing_that_a_client_sends_makes_it_an_operator,
);

/// What only operators may ask, with a body that is understood and changes nothing.
const ASKED: [Asked; 5] = [
    (Method::GET, "/_stopover/fills/none", ""),
    (Method::POST, "/_stopover/fills/retry", ""),
    (Method::POST, "/_stopover/gc", r#"{"dry_run": true}"#),
    (Method::POST, "/_stopover/purge", r#"{"image": "unknown.test/a"}"#),
    (Method::POST, "/_stopover/robots", "\"list\""),
];

/// Method, path and body.
type Asked = (Method, &'static str, &'static str);

async fn ask(world: &World, (method, path, body): &Asked, headers: &[(&str, &str)]) -> Answer {
    match *method {
        Method::POST => world.post_with(HERE, path, headers, *body).await,
        _ => world.get_with(HERE, path, headers).await,
    }
}

/// Whether the caller is let in: whatever the answer is then.
fn is_let_in(answer: &Answer) -> bool {
    !matches!(answer.status, StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN)
}

async fn an_operator_from_elsewhere_is_a_principal_that_access_names(column: Column) {
    let world = world(column, "anonymous = true\nrobots = true\noperators = [\"robot:ops-*\", \"robot:root\"]").await;
    for name in ["ops-1", "root", "ops", "ci"] {
        let login = basic(name, &robot(&world, name).await);
        let token = bearer(&world, &login).await;
        for asked in &ASKED {
            assert!(is_let_in(&world.operate(asked.0.clone(), asked.1, asked.2).await), "{asked:?}");
            for authorization in [&login, &token] {
                let answer = ask(&world, asked, &[("authorization", authorization)]).await;
                let is_operator = matches!(name, "ops-1" | "root");
                assert_eq!(is_let_in(&answer), is_operator, "{name} {asked:?}: {answer:?}");
                if !is_operator {
                    let (code, message) = answer.error();
                    assert_eq!((answer.status, code.as_str()), (StatusCode::FORBIDDEN, "DENIED"), "{asked:?}");
                    assert!(message.starts_with(&format!("robot:{name} is no operator")), "{message}");
                    assert!(message.contains("`operators` in [access]"), "{message}");
                }
            }
        }
        // Of quotas it sees as much as it may.
        let quota = world.get_with(HERE, "/_stopover/quota", &[("authorization", &login)]).await;
        let account = String::from_utf8_lossy(quota.bytes()).contains("\"credential\":\"");
        assert_eq!(account, matches!(name, "ops-1" | "root"), "{name}: {quota:?}");
        world.cache.operate.robots(RobotCommand::Remove { name: name.parse().unwrap() }).await.unwrap();
        for authorization in [&login, &token] {
            let answer = ask(&world, &ASKED[0], &[("authorization", authorization)]).await;
            assert_eq!(answer.status, StatusCode::UNAUTHORIZED, "{name} is removed");
        }
    }
    let anonymous = bearer(&world, "").await;
    for asked in &ASKED {
        let headers = [("host", "cache.test"), ("authorization", anonymous.as_str())];
        for headers in [&headers[..1], &headers] {
            let answer = ask(&world, asked, headers).await;
            assert_eq!(answer.status, StatusCode::UNAUTHORIZED, "{asked:?}");
            assert!(answer.header("www-authenticate").starts_with("Bearer realm="), "{answer:?}");
        }
    }
}

async fn without_logins_there_are_operators_on_the_machine_only(column: Column) {
    let world = world(column, "anonymous = true").await;
    for asked in &ASKED {
        let answer = ask(&world, asked, &[("authorization", &basic("root", "secret"))]).await;
        assert_eq!(answer.status, StatusCode::FORBIDDEN, "{asked:?}");
        assert!(answer.error().1.starts_with("anonymous is no operator: `operators` in [access]"), "{answer:?}");
        assert!(is_let_in(&world.operate(asked.0.clone(), asked.1, asked.2).await), "{asked:?}");
    }
}

async fn nothing_that_a_client_sends_makes_it_an_operator(column: Column) {
    let world = world(column, "anonymous = true\nrobots = true\noperators = [\"robot:root\"]").await;
    let names = [
        "stopover-operator",
        "x-stopover-operator",
        "operator",
        "local-operator",
        "localoperator",
        "x-operator",
        "x-stopover",
        "x-forwarded-for",
        "x-forwarded-user",
        "x-forwarded-proto",
        "x-real-ip",
        "x-remote-user",
        "remote-user",
        "forwarded",
        "via",
        "host",
        "from",
        "user-agent",
        "cookie",
        "proxy-authorization",
        "x-original-url",
        "x-http-method-override",
    ];
    let values = [
        "",
        "1",
        "true",
        "operator",
        "root",
        "robot:root",
        "local",
        "unix",
        "@",
        "127.0.0.1",
        "::1",
        "localhost",
        "operator.sock",
        "unix:/stopover-data/operator.sock",
        "for=unix;by=operator.sock",
        "for=127.0.0.1;proto=unix",
        "/_stopover/gc",
        &basic("root", ""),
        "Bearer eyJhbGciOiJub25lIn0.eyJzdWIiOiJyb2JvdDpyb290In0.",
    ];
    let mut asked = ASKED.iter().cycle();
    for name in names {
        for value in values {
            let asked = asked.next().unwrap();
            let answer = ask(&world, asked, &[(name, value)]).await;
            assert_eq!(answer.status, StatusCode::UNAUTHORIZED, "{name}: {value}: {asked:?}");
        }
    }
    // Nor does the path, as the router understands it.
    for path in [
        "/_stopover/fills/none?operator=true",
        "/_stopover/fills/none?ns=operator.sock",
        "/_stopover/fills/none#operator",
    ] {
        assert_eq!(world.get_from("127.0.0.1", path).await.status, StatusCode::UNAUTHORIZED, "{path}");
    }
    for authorization in [basic("root", ""), basic("root", "wrong"), basic("operator", ""), "Bearer root".into()] {
        let answer = ask(&world, &ASKED[3], &[("authorization", &authorization)]).await;
        assert_eq!(answer.status, StatusCode::UNAUTHORIZED, "{authorization}");
    }
}
