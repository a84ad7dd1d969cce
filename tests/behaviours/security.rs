//! Where requests may go, and what they may carry there.

use http::StatusCode;
use stopover::config::Cold;
use support::on_both_columns;
use support::scripted::{Fault, Login, Scripted};
use support::world::{Column, World};

on_both_columns!(
    redirects_are_followed_without_our_credentials,
    a_redirect_into_the_private_network_is_refused,
    a_redirect_loop_is_refused,
    a_token_realm_that_is_not_allowed_gets_no_request,
    a_private_blob_is_never_redirected_to_upstream,
);

const TAG: &str = "/v2/test.local/a/manifests/1";
const LOGIN: &str = "public = true\ncredentials = { username = \"me\", password_env = \"TEST_SECRET\" }";

fn redirect(url: String) -> Fault {
    Fault::Status(307, vec![("location", url)], String::new())
}

async fn redirects_are_followed_without_our_credentials(column: Column) {
    let world = World::plan(column).cold(Cold::Wait).upstream(LOGIN).start().await;
    world.upstream.require(Login::Basic("me".into(), "secret".into()));
    let image = world.upstream.image("a", "1", &[b"layer"]);
    // The same host on another port is another origin.
    let elsewhere = Scripted::start().unwrap();
    let digest = &image.blobs[1].0;
    elsewhere.blob("cdn", digest, &image.blobs[1].1);
    let path = format!("/v2/cdn/blobs/{digest}");
    world.upstream.fault(&format!("blobs/{digest}"), redirect(format!("{}{path}?signature=secret", elsewhere.url())));
    world.get(TAG).await;
    assert_eq!(world.pull(&format!("/v2/test.local/a/blobs/{digest}")).await.bytes().as_ref(), b"layer");
    let seen = elsewhere.requests();
    assert_eq!(seen.len(), 1);
    assert!(!seen[0].headers.contains_key("authorization"));
}

async fn a_redirect_into_the_private_network_is_refused(column: Column) {
    let world = World::plan(column).cold(Cold::Wait).settings("wait = \"2s\"").start().await;
    let image = world.upstream.image("a", "1", &[b"layer"]);
    for target in [
        "http://169.254.169.254/latest/meta-data/",
        "http://[::1]:9/",
        "http://127.0.0.2:9/",
        "http://10.0.0.1/",
        "file:///etc/passwd",
        "http://localhost:9/",
    ] {
        world.upstream.fault("/v2/a/", redirect(target.to_owned()));
        for path in [TAG.to_owned(), format!("/v2/test.local/a/blobs/{}", image.blobs[1].0)] {
            let answer = world.get(&path).await;
            assert!(answer.status.is_server_error(), "{target} {path}: {answer:?}");
        }
        world.upstream.heal();
    }
    assert!(world.stored_blobs().await.is_empty());
}

async fn a_redirect_loop_is_refused(column: Column) {
    let world = World::on(column).await;
    world.upstream.fault("/manifests/", redirect("/v2/a/manifests/again".to_owned()));
    assert_eq!(world.get(TAG).await.status, StatusCode::BAD_GATEWAY);
    assert_eq!(world.upstream.requests().len(), 6, "the request and five redirects");
}

async fn a_token_realm_that_is_not_allowed_gets_no_request(column: Column) {
    let world = World::plan(column).upstream(LOGIN).start().await;
    let elsewhere = Scripted::start().unwrap();
    world.upstream.require(Login::BearerFrom(format!("{}/token", elsewhere.url())));
    world.upstream.image("a", "1", &[b"layer"]);
    let answer = world.get(TAG).await;
    assert_eq!(answer.status, StatusCode::BAD_GATEWAY);
    assert!(answer.error().1.contains("token_realms"), "{:?}", answer.error());
    assert!(elsewhere.requests().is_empty());
}

async fn a_private_blob_is_never_redirected_to_upstream(column: Column) {
    let world = World::plan(column).cold(Cold::Redirect).upstream(LOGIN).start().await;
    world.upstream.require(Login::Basic("me".into(), "secret".into()));
    let image = world.upstream.image("a", "1", &[b"layer"]);
    world.get(TAG).await;
    let answer = world.get(&format!("/v2/test.local/a/blobs/{}", image.blobs[1].0)).await;
    assert!(!answer.header("location").starts_with(&world.upstream.url()), "{answer:?}");
    assert_eq!(world.pull(&format!("/v2/test.local/a/blobs/{}", image.blobs[1].0)).await.bytes().as_ref(), b"layer");
}
