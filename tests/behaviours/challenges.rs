//! How upstreams ask for a login, and what becomes of a token that does not do.

use std::time::Duration;

use http::StatusCode;
use support::on_both_columns;
use support::scripted::{Fault, Login};
use support::world::{Column, World};

on_both_columns!(
    a_token_server_that_moved_is_found_again,
    each_repository_may_have_its_own_token_server,
    a_token_that_is_refused_at_first_is_used_a_second_later,
    a_token_that_stays_invalid_is_trouble_and_not_absence,
);

const TAG: &str = "/v2/test.local/a/manifests/1";
const TOKEN: &str = "{\"token\":\"\",\"access_token\":\"token-0\",\"expires_in\":\"300\"}";

fn issues() -> Fault {
    Fault::Status(200, Vec::new(), TOKEN.into())
}

fn page(status: u16) -> Fault {
    Fault::Status(status, vec![("content-type", "text/html".into())], "<html>moved</html>".into())
}

/// Reported of podman (#16065): what was learned of the token server once is not true for ever.
async fn a_token_server_that_moved_is_found_again(column: Column) {
    for fault in [page(404), page(403), page(400), page(410), page(500), page(302)] {
        let world = World::on(column).await;
        world.upstream.require(Login::Bearer);
        let image = world.upstream.image("a", "1", &[b"layer"]);
        world.upstream.image("a", "2", &[b"other"]);
        assert_eq!(world.get(TAG).await.bytes(), &image.manifest);
        world.settled().await;
        world.upstream.require(Login::BearerFrom(format!("{}/moved", world.upstream.url())));
        world.upstream.fault("/token", fault.clone());
        world.upstream.fault("/moved", issues());
        world.clock.advance(Duration::from_hours(1));
        assert_eq!(world.get(TAG).await.header("x-stopover"), "revalidated", "{fault:?}");
        assert_eq!(world.get("/v2/test.local/a/manifests/2").await.status, StatusCode::OK, "{fault:?}");
        assert_eq!(world.upstream.count("/moved"), 1);
    }
}

async fn each_repository_may_have_its_own_token_server(column: Column) {
    let world = World::on(column).await;
    world.upstream.require(Login::BearerSaying(|url, path, _| {
        let realm = if path.starts_with("/v2/b/") { "moved" } else { "token" };
        Some(format!("Bearer realm=\"{url}/{realm}\",service=\"scripted\",scope=\"{path}:pull\""))
    }));
    world.upstream.fault("/moved", issues());
    for tag in ["1", "2"] {
        world.upstream.image("a", tag, &[b"layer"]);
        world.upstream.image("b", tag, &[b"layer"]);
    }
    assert_eq!(world.get(TAG).await.status, StatusCode::OK);
    world.settled().await;
    let refusal = Fault::Status(403, vec![("content-type", "application/json".into())], "{\"errors\":[]}".into());
    world.upstream.fault_times("/token", 1, refusal);
    assert_eq!(world.get("/v2/test.local/b/manifests/1").await.status, StatusCode::OK);
    world.settled().await;
    world.clock.advance(Duration::from_hours(1));
    let before = (world.upstream.count("/token"), world.upstream.count("/moved"));
    for name in ["a", "b"] {
        let answer = world.get(&format!("/v2/test.local/{name}/manifests/2")).await;
        assert_eq!(answer.status, StatusCode::OK, "{name}");
        world.settled().await;
    }
    let after = (world.upstream.count("/token"), world.upstream.count("/moved"));
    assert_eq!(after, (before.0 + 1, before.1 + 1), "each of its own, which is remembered");
}

/// Reported of Docker Hub (#647), Keppel (#409) and `docker_auth` (#41): two clocks differ by a second.
async fn a_token_that_is_refused_at_first_is_used_a_second_later(column: Column) {
    let world = World::on(column).await;
    world.upstream.require(Login::Bearer);
    let image = world.upstream.image("a", "1", &[b"layer"]);
    world.upstream.fault_times("/manifests/1", 3, invalid(&world));
    assert_eq!(world.get(TAG).await.bytes(), &image.manifest);
}

async fn a_token_that_stays_invalid_is_trouble_and_not_absence(column: Column) {
    let world = World::on(column).await;
    world.upstream.require(Login::Bearer);
    let image = world.upstream.image("a", "1", &[b"layer"]);
    world.upstream.fault("/manifests/1", invalid(&world));
    assert_eq!(world.get(TAG).await.status, StatusCode::SERVICE_UNAVAILABLE);
    world.upstream.heal();
    world.clock.advance(Duration::from_mins(2));
    assert_eq!(world.get(TAG).await.bytes(), &image.manifest);
}

fn invalid(world: &World) -> Fault {
    let challenge =
        format!("Bearer realm=\"{}/token\",service=\"scripted\",error=\"invalid_token\"", world.upstream.url());
    Fault::Status(401, vec![("www-authenticate", challenge)], String::new())
}
