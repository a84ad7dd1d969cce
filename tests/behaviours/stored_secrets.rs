//! Secrets that AWS Secrets Manager keeps, and that are replaced there while a cache runs.

use std::time::Duration;

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use http::StatusCode;
use serde_json::json;
use stopover::access::token::TokenKeys;
use stopover::config::{Cold, Config};
use stopover::identity::Principal;
use support::aws::{EVERY_OPERATION, Service};
use support::guests::{HERE, basic, bearer, get, robot};
use support::scripted::Login;
use support::world::{Column, World};

const HUB: &str = "arn:aws:secretsmanager:us-east-1:123456789012:secret:hub-AbCdEf";
const KEYS: &str = "arn:aws:secretsmanager:us-east-1:123456789012:secret:keys-AbCdEf";
const FRESH: Duration = Duration::from_mins(5);
const MINUTE: Duration = Duration::from_mins(1);

/// Two attempts of one call.
const FAILURE: usize = 2;

fn put_password(world: &World, password: &str) {
    support::secrets::know_login("a password in Secrets Manager", "me", password);
    world.endpoints().unwrap().kept().put_secret(HUB, &json!({ "password": password, "user": "me" }).to_string());
}

fn reads(world: &World) -> usize {
    world.endpoints().unwrap().calls(Service::Secrets, "GetSecretValue")
}

/// A cache whose upstream wants a password that Secrets Manager keeps.
async fn world_with_password() -> World {
    let line = format!("public = true\ncredentials = {{ username = \"me\", password_secret = \"{HUB}#password\" }}");
    let world = World::plan(Column::Aws).cold(Cold::Wait).upstream(&line).start().await;
    put_password(&world, "the-first-password");
    world
}

/// Pulls a tag that was never pulled.
async fn pull(world: &World, tag: &str) -> StatusCode {
    world.upstream.image("a", tag, &[b"layer"]);
    world.get(&format!("/v2/test.local/a/manifests/{tag}")).await.status
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_password_that_was_replaced_is_read_again_when_upstream_refuses_the_old_one() {
    type Wants = fn(String, String) -> Login;
    for wants in [Login::Basic as Wants, Login::BearerFor as Wants] {
        let world = world_with_password().await;
        let require = |password: &str| world.upstream.require(wants("me".into(), password.into()));
        require("the-first-password");
        assert_eq!([pull(&world, "1").await, pull(&world, "2").await], [StatusCode::OK; 2]);
        assert_eq!(reads(&world), 1, "it is kept");
        put_password(&world, "the-second-password");
        require("the-second-password");
        world.upstream.forget_tokens();
        assert_eq!(pull(&world, "3").await, StatusCode::OK, "at once");
        assert_eq!(reads(&world), 2);
        // One that is wrong in Secrets Manager too is not read with each pull.
        require("another-password");
        world.upstream.forget_tokens();
        assert_eq!([pull(&world, "4").await, pull(&world, "5").await], [StatusCode::FORBIDDEN; 2]);
        assert_eq!(reads(&world), 2);
        world.clock.advance(MINUTE);
        assert_eq!(pull(&world, "6").await, StatusCode::FORBIDDEN);
        assert_eq!(reads(&world), 3);
        put_password(&world, "another-password");
        world.clock.advance(MINUTE);
        assert_eq!(pull(&world, "7").await, StatusCode::OK);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_password_is_read_again_after_five_minutes_and_used_on_while_that_fails() {
    let world = world_with_password().await;
    world.upstream.require(Login::Basic("me".into(), "the-first-password".into()));
    assert_eq!(pull(&world, "1").await, StatusCode::OK);
    world.clock.advance(FRESH);
    world.endpoints().unwrap().fail_next(Service::Secrets, EVERY_OPERATION, usize::MAX);
    assert_eq!([pull(&world, "2").await, pull(&world, "3").await], [StatusCode::OK; 2]);
    assert_eq!(reads(&world), 1 + FAILURE, "once a minute");
    world.endpoints().unwrap().heal();
    put_password(&world, "the-second-password");
    world.upstream.require(Login::Basic("me".into(), "the-second-password".into()));
    world.clock.advance(FRESH);
    assert_eq!(pull(&world, "4").await, StatusCode::OK);
    assert_eq!(reads(&world), 2 + FAILURE);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_password_that_cannot_be_read_is_our_trouble_and_says_which_setting() {
    let world = world_with_password().await;
    world.upstream.require(Login::Basic("me".into(), "the-first-password".into()));
    let endpoints = world.endpoints().unwrap();
    for (text, asked) in [
        (None, "throttled"),
        (Some("no JSON: HUNTER2-HUNTER2"), "of another form"),
        (Some("{\"password\": 12345678901234}"), "no text"),
        (Some("{\"token\": \"HUNTER2-HUNTER2\"}"), "another key"),
        (Some("{\"password\": \"\"}"), "empty"),
    ] {
        match text {
            None => endpoints.throttle_next(Service::Secrets, EVERY_OPERATION, FAILURE),
            Some(text) => endpoints.kept().put_secret(HUB, text),
        }
        world.upstream.image("a", "1", &[b"layer"]);
        let answer = world.get(&format!("/v2/test.local/a/manifests/{}", asked.replace(' ', "-"))).await;
        let message = "upstream is unavailable: its password cannot be read (credentials.password_secret); the log of the \
                       cache says why";
        assert_eq!((answer.status, answer.error().1.as_str()), (StatusCode::SERVICE_UNAVAILABLE, message), "{asked}");
    }
    put_password(&world, "the-first-password");
    assert_eq!(pull(&world, "2").await, StatusCode::OK, "and then it can");
}

fn put_keys(world: &World, fill: u8) -> TokenKeys {
    let text = BASE64_STANDARD.encode([fill; 32]);
    support::secrets::know("a key that tokens are signed with", &text);
    world.endpoints().unwrap().kept().put_secret(KEYS, &json!({ "keys": text }).to_string());
    TokenKeys::parse(&text, world.clock.clone()).unwrap()
}

async fn world_with_keys() -> World {
    let access =
        format!("[access]\nrobots = true\nsigning_keys = {{ secret = \"{KEYS}#keys\" }}\ntoken_life = \"1h\"\n");
    World::plan(Column::Aws).settings(&access).start().await
}

async fn status(world: &World, authorization: &str) -> StatusCode {
    get(world, HERE, "/v2/", authorization).await.status
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_signing_key_that_was_replaced_is_believed_at_once_and_the_one_before_it_until_the_next() {
    let world = world_with_keys().await;
    put_keys(&world, 1);
    let login = basic("ci", &robot(&world, "ci").await);
    let first = bearer(&world, &login).await;
    assert_eq!([status(&world, &first).await, status(&world, &first).await], [StatusCode::OK; 2]);
    assert_eq!(reads(&world), 2, "the current and the previous version, once");
    // Another instance, which has read the new key, has signed this one.
    let second = put_keys(&world, 2);
    let holder = first_holder(&world, &login).await;
    let signed = format!("Bearer {}", second.issue("stopover", &holder, Duration::from_mins(10)).unwrap());
    assert_eq!(status(&world, &signed).await, StatusCode::OK, "at once");
    assert_eq!([status(&world, &first).await, status(&world, &signed).await], [StatusCode::OK; 2]);
    assert_eq!(reads(&world), 4);
    // Whoever sends what no key has signed has it read once a minute at most.
    for _ in 0..3 {
        assert_eq!(status(&world, &format!("{signed}x")).await, StatusCode::UNAUTHORIZED);
    }
    assert_eq!(reads(&world), 4);
    put_keys(&world, 3);
    world.clock.advance(FRESH);
    let third = bearer(&world, &login).await;
    assert_eq!([status(&world, &third).await, status(&world, &signed).await], [StatusCode::OK; 2]);
    assert_eq!(status(&world, &first).await, StatusCode::UNAUTHORIZED, "two keys ago");
}

/// Who the robot is, with the secret that it logged in with.
async fn first_holder(world: &World, login: &str) -> stopover::access::token::Holder {
    let token = bearer(world, login).await;
    let keys = TokenKeys::parse(&BASE64_STANDARD.encode([1; 32]), world.clock.clone()).unwrap();
    keys.verify("stopover", token.trim_start_matches("Bearer ")).unwrap().0
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_token_that_has_expired_has_no_key_read_again() {
    let world = world_with_keys().await;
    let keys = put_keys(&world, 1);
    let robot = Principal::Robot("nobody".parse().unwrap()).into();
    let token = format!("Bearer {}", keys.issue("stopover", &robot, Duration::from_secs(1)).unwrap());
    world.clock.advance(MINUTE);
    for _ in 0..3 {
        assert_eq!(status(&world, &token).await, StatusCode::UNAUTHORIZED);
    }
    assert_eq!(reads(&world), 2);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn keys_that_cannot_be_read_refuse_no_login_for_good() {
    let world = world_with_keys().await;
    let login = basic("ci", &robot(&world, "ci").await);
    // There is no such secret, or none that this role may read; then one that holds no keys.
    for _ in 0..2 {
        let answer = get(&world, HERE, "/token?service=stopover", &login).await;
        assert_eq!(answer.status, StatusCode::SERVICE_UNAVAILABLE);
        assert!(!answer.error().1.contains("arn:"), "{:?}", answer.error());
        world.endpoints().unwrap().kept().put_secret(KEYS, "{\"keys\": \"these are no keys\"}");
    }
    put_keys(&world, 1);
    let token = bearer(&world, &login).await;
    assert_eq!(status(&world, &token).await, StatusCode::OK);
    // A later version without keys does not replace those that are known.
    world.endpoints().unwrap().kept().put_secret(KEYS, "{\"keys\": \"these are no keys\"}");
    world.clock.advance(FRESH);
    assert_eq!(status(&world, &token).await, StatusCode::OK);
    assert_eq!(status(&world, &bearer(&world, &login).await).await, StatusCode::OK);
}

#[test]
fn a_cache_that_does_not_run_on_aws_says_what_to_use_instead_of_secrets_manager() {
    let hub =
        format!("[upstreams.\"docker.io\"]\ncredentials = {{ username = \"me\", password_secret = \"{HUB}\" }}\n");
    let keys = format!("[access]\nrobots = true\nsigning_keys = {{ secret = \"{KEYS}\" }}\n");
    for (text, place) in [(hub, "upstreams.\"docker.io\".credentials: "), (keys, "access.signing_keys: ")] {
        let read = |secret: stopover::config::SecretReference| secret.read(|_| None);
        let error = Config::parse(&text, "stopover.toml".as_ref(), Cold::Follow, read).unwrap_err().to_string();
        let sentence = "only the functions on AWS read Secrets Manager; here the secret is in a variable";
        assert!(error.contains(place) && error.contains(sentence) && error.contains("line "), "{error}");
    }
}
