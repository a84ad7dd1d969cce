//! Logins that need no secret of ours. Each test of a refusal is the attack.

mod iam;
mod oidc;
mod organization;

use std::io::Write as _;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use http::{Method, StatusCode};
use support::guests::{basic, token_in};
use support::world::{Answer, Column, World};
use tempfile::NamedTempFile;

const SERVICE: &str = "cr.test";
pub(crate) const TAG: &str = "/v2/test.local/team/app/manifests/1";

/// A world with these ways in, an image, and no way in for anybody else.
pub(crate) async fn world(column: Column, ways: &str, policy: &str) -> World {
    world_with("", column, ways, policy).await
}

/// The same with other settings, too.
pub(crate) async fn world_with(settings: &str, column: Column, ways: &str, policy: &str) -> World {
    let mut keys = NamedTempFile::new().unwrap();
    writeln!(keys, "1:{}", STANDARD.encode([7; 32])).unwrap();
    let settings = format!(
        "{settings}\n[access]\nservice = \"{SERVICE}\"\nsigning_keys = {{ file = {:?} }}\n{ways}\n{policy}\n",
        keys.path().display().to_string()
    );
    let world = World::plan(column).settings(&settings).start().await;
    world.upstream.image("team/app", "1", &[b"layer"]);
    world
}

async fn log_in(world: &World, user: &str, password: &str) -> Answer {
    world.send(Method::GET, "/token?service=cr.test", &[("authorization", &basic(user, password))]).await
}

/// The status of a login.
async fn status(world: &World, user: &str, password: &str) -> StatusCode {
    log_in(world, user, password).await.status
}

async fn pull_with(world: &World, answer: &Answer) -> Answer {
    world.send(Method::GET, TAG, &[("authorization", &token_in(answer))]).await
}
