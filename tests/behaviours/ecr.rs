//! Private ECR: nobody configures a password, AWS issues one that lives for twelve hours.

use std::time::Duration;

use http::StatusCode;
use support::aws::{EVERY_OPERATION, Service};
use support::on_both_columns;
use support::scripted::{Login, Scripted, ScriptedImage};
use support::world::{Column, PASSWORD, World};

const REGISTRY: &str = "123456789012.dkr.ecr.eu-west-1.amazonaws.com";
/// The world's clock stands at 1,800,000,000.
const TWELVE_HOURS_ON: u64 = 1_800_000_000 + 12 * 3600;

on_both_columns!(a_configured_password_is_used_for_private_ecr_too);

/// A world with a private ECR registry that takes the password `first`, and an image of it.
async fn world_with_ecr(column: Column, settings: &str) -> (World, Scripted, ScriptedImage) {
    let registry = Scripted::start().unwrap();
    registry.require(Login::Basic("AWS".into(), "first".into()));
    let image = registry.image("team/app", "1", &[b"layer"]);
    let table = format!("[upstreams.\"{REGISTRY}\"]\nurl = \"{}\"\npublic = true\n{settings}", registry.url());
    let world = World::plan(column).upstream(&table).start().await;
    if let Some(endpoints) = world.endpoints() {
        endpoints.logins().issue("first", TWELVE_HOURS_ON);
    }
    (world, registry, image)
}

fn tag(tag: &str) -> String {
    format!("/v2/{REGISTRY}/team/app/manifests/{tag}")
}

async fn a_configured_password_is_used_for_private_ecr_too(column: Column) {
    let login = "credentials = { username = \"AWS\", password_env = \"TEST_SECRET\" }";
    let (world, registry, _) = world_with_ecr(column, login).await;
    registry.require(Login::Basic("AWS".into(), PASSWORD.into()));
    assert_eq!(world.get(&tag("1")).await.status, StatusCode::OK);
    assert!(world.endpoints().is_none_or(|endpoints| endpoints.calls(Service::Ecr, EVERY_OPERATION) == 0));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn aws_issues_one_login_for_all_of_a_registry_and_a_new_one_before_it_ends() {
    let (world, registry, image) = world_with_ecr(Column::Aws, "").await;
    let logins = world.endpoints().unwrap().logins();
    assert_eq!(world.get(&tag("1")).await.status, StatusCode::OK);
    for (digest, bytes) in &image.blobs {
        assert_eq!(world.pull(&format!("/v2/{REGISTRY}/team/app/blobs/{digest}")).await.bytes(), bytes);
    }
    world.settled().await;
    assert_eq!(logins.regions(), ["eu-west-1"]);
    // Not at its very end: a pull that begins then would not get through.
    world.clock.advance(Duration::from_hours(11));
    logins.issue("second", TWELVE_HOURS_ON + 11 * 3600);
    registry.require(Login::Basic("AWS".into(), "second".into()));
    registry.image("team/app", "2", &[b"layer"]);
    registry.forget_requests();
    assert_eq!(world.get(&tag("2")).await.status, StatusCode::OK);
    assert_eq!(registry.count("/manifests/2"), 1, "nothing was refused");
    assert_eq!(logins.regions().len(), 2);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_login_that_the_registry_refuses_is_issued_anew_once() {
    let (world, registry, _) = world_with_ecr(Column::Aws, "").await;
    let logins = world.endpoints().unwrap().logins();
    assert_eq!(world.get(&tag("1")).await.status, StatusCode::OK);
    world.settled().await;
    logins.issue("second", TWELVE_HOURS_ON);
    registry.require(Login::Basic("AWS".into(), "second".into()));
    registry.image("team/app", "2", &[b"layer"]);
    assert_eq!(world.get(&tag("2")).await.status, StatusCode::OK);
    world.settled().await;
    assert_eq!(logins.regions().len(), 2);
    registry.require(Login::Basic("AWS".into(), "no longer ours".into()));
    registry.image("team/app", "3", &[b"layer"]);
    assert_eq!(world.get(&tag("3")).await.status, StatusCode::FORBIDDEN);
    assert_eq!(logins.regions().len(), 3);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_login_that_aws_refuses_is_denied_and_one_it_cannot_issue_now_is_trouble() {
    let (world, _registry, _) = world_with_ecr(Column::Aws, "").await;
    let endpoints = world.endpoints().unwrap();
    assert_eq!(world.get(&tag("1")).await.status, StatusCode::OK);
    world.settled().await;
    world.clock.advance(Duration::from_hours(12));
    // Each call has two attempts.
    endpoints.throttle_next(Service::Ecr, EVERY_OPERATION, 2);
    let answer = world.get(&tag("1")).await;
    assert_eq!((answer.status, answer.header("x-stopover")), (StatusCode::OK, "stale"));
    endpoints.throttle_next(Service::Ecr, EVERY_OPERATION, 2);
    let answer = world.get(&tag("new")).await;
    let unavailable = "upstream is unavailable: AWS cannot be asked for a login now";
    assert_eq!((answer.status, answer.error().1.as_str()), (StatusCode::SERVICE_UNAVAILABLE, unavailable));
    endpoints.logins().issue("", 0);
    world.clock.advance(Duration::from_hours(1));
    let answer = world.get(&tag("1")).await;
    // What AWS says names roles and accounts.
    let denied = "upstream refused: AWS does not let this cache log in to that registry; its log says why";
    let expected = ("DENIED".to_owned(), denied.to_owned());
    assert_eq!((answer.status, answer.error()), (StatusCode::FORBIDDEN, expected));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_login_is_used_to_its_end_while_aws_cannot_issue_another() {
    let (world, registry, _) = world_with_ecr(Column::Aws, "").await;
    let endpoints = world.endpoints().unwrap();
    let pull = async |name: &str| {
        registry.image("team/app", name, &[b"layer"]);
        let status = world.get(&tag(name)).await.status;
        world.settled().await;
        status
    };
    assert_eq!(pull("1").await, StatusCode::OK);
    world.clock.advance(Duration::from_hours(11));
    endpoints.throttle_next(Service::Ecr, EVERY_OPERATION, 2);
    let calls = endpoints.calls(Service::Ecr, EVERY_OPERATION);
    assert_eq!([pull("2").await, pull("3").await], [StatusCode::OK; 2]);
    assert_eq!(endpoints.calls(Service::Ecr, EVERY_OPERATION), calls + 2, "not every request waits for AWS");
    endpoints.logins().issue("second", TWELVE_HOURS_ON + 11 * 3600);
    registry.require(Login::Basic("AWS".into(), "second".into()));
    world.clock.advance(Duration::from_mins(1));
    assert_eq!(pull("4").await, StatusCode::OK, "and then it can");
}

/// ECR Public with an image, and a world that knows it.
async fn world_with_ecr_public() -> (World, Scripted) {
    let registry = Scripted::start().unwrap();
    registry.image("team/app", "1", &[b"layer"]);
    let table = format!("[upstreams.\"public.ecr.aws\"]\nurl = \"{}\"\n", registry.url());
    (World::plan(Column::Aws).upstream(&table).start().await, registry)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_role_of_the_functions_logs_in_to_ecr_public_whose_images_stay_public() {
    let (world, registry) = world_with_ecr_public().await;
    world.endpoints().unwrap().logins().issue("of ECR Public", TWELVE_HOURS_ON);
    registry.require(Login::BearerFor("AWS".into(), "of ECR Public".into()));
    assert_eq!(world.get("/v2/public.ecr.aws/team/app/manifests/1").await.status, StatusCode::OK);
    assert_eq!(world.endpoints().unwrap().logins().regions(), ["us-east-1"], "whatever the region of the functions");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn without_a_login_to_ecr_public_it_is_asked_as_by_anybody() {
    let (world, registry) = world_with_ecr_public().await;
    registry.require(Login::Bearer);
    assert_eq!(world.get("/v2/public.ecr.aws/team/app/manifests/1").await.status, StatusCode::OK);
    let asked = || world.endpoints().unwrap().calls(Service::Ecr, EVERY_OPERATION);
    assert_eq!(asked(), 1, "refused");
    registry.forget_tokens();
    registry.image("team/app", "2", &[b"layer"]);
    assert_eq!(world.get("/v2/public.ecr.aws/team/app/manifests/2").await.status, StatusCode::OK);
    assert_eq!(asked(), 1, "not with each token");
    world.clock.advance(Duration::from_mins(10));
    registry.image("team/app", "3", &[b"layer"]);
    assert_eq!(world.get("/v2/public.ecr.aws/team/app/manifests/3").await.status, StatusCode::OK);
    assert_eq!(asked(), 2);
}
