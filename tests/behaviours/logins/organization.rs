//! Logins as an identity of AWS whose account belongs to an organisation.

use std::time::Duration;

use http::StatusCode;
use support::aws::sts::{Signer, Sts};
use support::aws::{EVERY_OPERATION, Service};
use support::world::{Column, World};

use super::{SERVICE, log_in, pull_with, status, world};

const REGION: &str = "eu-west-1";
const ORGANIZATION: &str = "o-a1b2c3d4e5";
/// Each call has two attempts.
const ATTEMPTS: usize = 2;

/// A cache of AWS that lets one organisation in, which has two accounts.
async fn world_of_an_organization() -> (World, Sts) {
    let sts = Sts::start().unwrap();
    let iam = format!("[access.iam]\norganization = \"{ORGANIZATION}\"\nendpoint = \"{}\"", sts.url());
    let world = world(Column::Aws, &iam, "").await;
    sts.follow(&world.clock);
    world.endpoints().unwrap().organization().is(ORGANIZATION, &["111111111111", "222222222222"]);
    (world, sts)
}

/// What somebody from this account is told who logs in.
async fn from(world: &World, sts: &Sts, account: &str) -> StatusCode {
    let signer = Signer::role(account, "node", "i-1");
    sts.know(&signer);
    status(world, "aws", &signer.password(REGION, SERVICE, world.clock.now())).await
}

fn asked(world: &World) -> usize {
    world.endpoints().unwrap().calls(Service::Organizations, EVERY_OPERATION)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn all_accounts_of_an_organisation_are_let_in_and_no_other() {
    let (world, sts) = world_of_an_organization().await;
    let signer = Signer::role("222222222222", "node", "i-1");
    sts.know(&signer);
    let answer = log_in(&world, "aws", &signer.password(REGION, SERVICE, world.clock.now())).await;
    assert_eq!(pull_with(&world, &answer).await.status, StatusCode::OK, "the token is good too");
    assert_eq!(from(&world, &sts, "111111111111").await, StatusCode::OK);
    assert_eq!(asked(&world), 2, "once about each");
    assert_eq!(from(&world, &sts, "333333333333").await, StatusCode::UNAUTHORIZED);
    world.endpoints().unwrap().organization().is("o-another0001", &["444444444444"]);
    world.clock.advance(Duration::from_mins(10));
    assert_eq!(from(&world, &sts, "444444444444").await, StatusCode::UNAUTHORIZED, "of another organisation");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_new_account_is_known_after_a_minute_and_one_that_left_after_ten() {
    let (world, sts) = world_of_an_organization().await;
    assert_eq!(from(&world, &sts, "111111111111").await, StatusCode::OK);
    assert_eq!(from(&world, &sts, "333333333333").await, StatusCode::UNAUTHORIZED);
    world.endpoints().unwrap().organization().is(ORGANIZATION, &["222222222222", "333333333333"]);
    assert_eq!(from(&world, &sts, "333333333333").await, StatusCode::UNAUTHORIZED);
    world.clock.advance(Duration::from_mins(1));
    assert_eq!(from(&world, &sts, "333333333333").await, StatusCode::OK);
    world.clock.advance(Duration::from_mins(10));
    assert_eq!(from(&world, &sts, "111111111111").await, StatusCode::UNAUTHORIZED);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn while_aws_does_not_answer_known_accounts_are_let_in_and_others_told_to_come_back() {
    let (world, sts) = world_of_an_organization().await;
    assert_eq!(from(&world, &sts, "222222222222").await, StatusCode::OK);
    world.clock.advance(Duration::from_hours(23));
    let endpoints = world.endpoints().unwrap();
    endpoints.throttle_next(Service::Organizations, EVERY_OPERATION, usize::MAX);
    let before = asked(&world);
    assert_eq!(from(&world, &sts, "222222222222").await, StatusCode::OK);
    assert_eq!(from(&world, &sts, "333333333333").await, StatusCode::SERVICE_UNAVAILABLE);
    assert_eq!(from(&world, &sts, "222222222222").await, StatusCode::OK);
    assert_eq!(asked(&world), before + 2 * ATTEMPTS, "about who is known once a minute");
    world.clock.advance(Duration::from_hours(1));
    assert_eq!(from(&world, &sts, "222222222222").await, StatusCode::SERVICE_UNAVAILABLE, "for a day");
    endpoints.heal();
    world.clock.advance(Duration::from_secs(5));
    assert_eq!(from(&world, &sts, "222222222222").await, StatusCode::OK);
}
