//! Whatever a stranger or an upstream sends about logins, the cache refuses it. What reads these is tried a million times
//! in tests/fuzz.

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use http::{HeaderValue, Method, StatusCode};
use proptest::prelude::*;
use proptest::test_runner::{Config, TestRunner};
use stopover::access::iam::SignedFields;
use support::aws::sts::{Signer, Sts};
use support::guests::basic;
use support::scripted::{Fault, Scripted};
use support::world::{Column, World};
use tokio::runtime::Handle;

fn runner(cases: u32) -> TestRunner {
    TestRunner::new(Config { cases, failure_persistence: None, ..Config::default() })
}

/// JSON that is almost what is expected: the keys of all kinds of logins, with any values.
fn object() -> impl Strategy<Value = String> {
    let name = prop::sample::select(vec![
        "region",
        "credential",
        "date",
        "token",
        "signature",
        "alg",
        "kid",
        "iss",
        "aud",
        "sub",
        "exp",
        "principal",
        "x",
    ]);
    let value = prop_oneof![
        Just("\"eu-west-1\"".to_owned()),
        Just("\"AKIAIOSFODNN7EXAMPLE/20270115/eu-west-1/sts/aws4_request\"".to_owned()),
        Just("\"20270115T080000Z\"".to_owned()),
        Just("\"20279999T999999Z\"".to_owned()),
        Just(format!("\"{}\"", "0".repeat(64))),
        Just("\"HS256\"".to_owned()),
        Just("\"RS256\"".to_owned()),
        Just("\"none\"".to_owned()),
        Just("\"1\"".to_owned()),
        any::<i64>().prop_map(|number| number.to_string()),
        any::<String>().prop_map(|text| serde_json::Value::String(text).to_string()),
        Just("[[[{}]]]".to_owned()),
    ];
    prop::collection::vec((name, value), 0..7).prop_map(|members| {
        let members: Vec<String> = members.iter().map(|(name, value)| format!("\"{name}\":{value}")).collect();
        format!("{{{}}}", members.join(","))
    })
}

/// A password: fields, a token, or nothing of the kind.
fn secret() -> impl Strategy<Value = String> {
    let encoded = object().prop_map(|json| URL_SAFE_NO_PAD.encode(json)).boxed();
    prop_oneof![
        encoded.clone(),
        (encoded.clone(), encoded, "[A-Za-z0-9_-]{0,40}")
            .prop_map(|(header, payload, end)| { format!("{header}.{payload}.{end}") }),
        ".{0,80}",
        "[.=A-Za-z0-9_-]{0,80}",
    ]
}

/// A password of this key, signed within the last quarter of an hour: all is right but the signature.
fn signed_with(key_id: &str) -> impl Strategy<Value = String> {
    let credential = format!("{key_id}/20270115/eu-west-1/sts/aws4_request");
    let token = prop::option::of("[A-Za-z0-9+/=]{1,40}");
    ("20270115T07(4[6-9]|5[0-9])[0-5][0-9]Z", token, "[0-9a-f]{64}").prop_map(move |(date, token, signature)| {
        let fields = SignedFields::new("eu-west-1", &credential, &date, token.as_deref(), &signature);
        fields.expect("they are of the form that is accepted").password()
    })
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_authorization_of_a_stranger_lets_in() {
    let (sts, known) = (Sts::start().unwrap(), Signer::user("123456789012", "me"));
    sts.know(&known);
    let ways = format!(
        "[access.iam]\naccounts = [\"123456789012\"]\nendpoint = \"{}\"\n\
         [access.oidc.ci]\nissuer = \"http://127.0.0.1:1\"\naudience = \"cr.test\"\nclaims = {{ x = \"y\" }}",
        sts.url()
    );
    let world = super::logins::world(Column::Embedded, &ways, "").await;
    sts.follow(&world.clock);
    let authorization = prop_oneof![
        signed_with(&known.key_id).prop_map(move |secret| basic("aws", &secret)),
        (prop::sample::select(vec!["aws", "oidc", "", "root"]), secret())
            .prop_map(move |(user, secret)| basic(user, &secret)),
        secret().prop_map(|token| format!("Bearer {token}")),
        ("[Bb]asic|Bearer|Digest|", ".{0,40}").prop_map(|(scheme, rest)| format!("{scheme} {rest}")),
    ];
    let authorization = authorization.prop_filter("fits a header", |text| HeaderValue::from_str(text).is_ok());
    let handle = Handle::current();
    let ask = |authorization: String| {
        let answer = handle.block_on(world.send(Method::GET, super::logins::TAG, &[("authorization", &authorization)]));
        prop_assert_eq!(answer.status, StatusCode::UNAUTHORIZED);
        Ok(())
    };
    tokio::task::block_in_place(|| runner(2_000).run(&authorization, ask)).unwrap();
    assert_eq!(world.upstream.count("/manifests/"), 0);
    assert!(sts.asked() > 100, "{}", sts.asked());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_challenge_of_an_upstream_is_followed_anywhere_or_panics() {
    let world = World::on(Column::Embedded).await;
    let elsewhere = Scripted::start().unwrap();
    let parts = prop::collection::vec(
        prop_oneof![
            Just("Bearer ".to_owned()),
            Just("Basic ".to_owned()),
            Just(format!("realm=\"{}/token\"", elsewhere.url())),
            Just("realm=\"https://169.254.169.254/\"".to_owned()),
            Just("realm=\"\\".to_owned()),
            Just("service=\"a,b\"".to_owned()),
            Just("scope=\"repository:a:pull\"".to_owned()),
            Just(",".to_owned()),
            "[ -~]{0,20}",
        ],
        0..8,
    );
    let challenge =
        parts.prop_map(|parts| parts.concat()).prop_filter("fits a header", |text| HeaderValue::from_str(text).is_ok());
    let handle = Handle::current();
    let tag = std::cell::Cell::new(0);
    let ask = |challenge: String| {
        tag.set(tag.get() + 1);
        let name = format!("manifests/t{}", tag.get());
        world.upstream.heal();
        world.upstream.fault(&name, Fault::Status(401, vec![("www-authenticate", challenge)], String::new()));
        let answer = handle.block_on(world.get(&format!("/v2/test.local/a/{name}")));
        prop_assert!(answer.status.is_client_error() || answer.status.is_server_error(), "{:?}", answer);
        Ok(())
    };
    tokio::task::block_in_place(|| runner(500).run(&challenge, ask)).unwrap();
    assert!(elsewhere.requests().is_empty());
    assert!(world.upstream.count("/manifests/") > 0);
}
