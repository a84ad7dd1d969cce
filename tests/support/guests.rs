//! How tests log in at a cache of theirs.

#![expect(clippy::missing_panics_doc, reason = "a panic is how a test fails")]

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use http::{Method, StatusCode};
use stopover::operate::{RobotAnswer, RobotCommand};

use crate::world::{Answer, World};

/// Where guests are, unless a test is about that.
pub const HERE: &str = "10.1.2.3";

/// `Authorization` with a user name and a secret.
pub fn basic(user: &str, secret: &str) -> String {
    format!("Basic {}", BASE64_STANDARD.encode(format!("{user}:{secret}")))
}

/// Makes a robot of this name; its secret.
pub async fn robot(world: &World, name: &str) -> String {
    secret(world, RobotCommand::Add { name: name.parse().expect("a name"), expires: None }).await
}

/// The secret that a command makes.
pub async fn secret(world: &World, command: RobotCommand) -> String {
    match world.cache.operate.robots(command).await.expect("it is done") {
        RobotAnswer::Secret { secret, .. } => secret.as_str().to_owned(),
        answer => panic!("{answer:?}"),
    }
}

/// GET of a path by a caller with this address, and with this `Authorization` unless it is empty.
pub async fn get(world: &World, caller: &str, path: &str, authorization: &str) -> Answer {
    let headers = [("host", "cache.test"), ("authorization", authorization)];
    let headers = if authorization.is_empty() { &headers[..1] } else { &headers };
    world.send_with(caller, Method::GET, path, headers).await
}

/// `Authorization` with the token that is issued for this one.
pub async fn bearer(world: &World, authorization: &str) -> String {
    let answer = get(world, HERE, "/token?service=stopover", authorization).await;
    assert_eq!(answer.status, StatusCode::OK, "{answer:?}");
    token_in(&answer)
}

/// `Authorization` with the token that an answer has.
pub fn token_in(answer: &Answer) -> String {
    let body: serde_json::Value = serde_json::from_slice(answer.bytes()).expect("JSON");
    format!("Bearer {}", body["token"].as_str().expect("a token"))
}
