use std::net::Ipv6Addr;

use super::*;
use crate::identity::Principal;
use crate::oci::Algorithm;
use crate::values::pull_counter::PullCounter;

const LIMITS: Limits = Limits { misses: 6, pulls: 3, new_bytes: 1000 };

fn at(address: &str) -> Option<Payer> {
    Payer::of(&Principal::Anonymous, Some(address.parse().unwrap()))
}

fn known(principal: &str, address: &str) -> Option<Payer> {
    Payer::of(&principal.parse().unwrap(), Some(address.parse().unwrap()))
}

async fn miss(budgets: &Arc<Budgets>, payer: Option<Payer>) -> Result<(), u64> {
    let mut reservation = budgets.reserve_miss(payer).await.map_err(|over| over.retry_after.as_secs())?;
    reservation.mark_sent();
    Ok(())
}

fn job(payer: Option<Payer>, content: &[u8], size: u64) -> Job {
    let repository = serde_json::from_str(r#"{"upstream":"a.b","name":"c"}"#).unwrap();
    let (digest, priority) = (Digest::of(Algorithm::Sha256, content), crate::ports::Priority::default());
    Job { repository, digest, size, priority, payer }
}

#[tokio::test]
async fn a_caller_may_miss_so_often_in_a_minute_and_gets_that_back_evenly() {
    let clock = Clock::manual(Timestamp(1000));
    let budgets = Budgets::new(LIMITS, clock.clone());
    let caller = at("192.0.2.1");
    for _ in 0..6 {
        assert_eq!(miss(&budgets, caller).await, Ok(()));
    }
    assert_eq!(miss(&budgets, caller).await, Err(10));
    assert_eq!(miss(&budgets, at("192.0.2.2")).await, Ok(()), "everybody has a budget");
    assert_eq!(miss(&budgets, None).await, Ok(()), "nobody is no caller");
    clock.advance(Duration::from_secs(9));
    assert_eq!(miss(&budgets, caller).await, Err(1));
    clock.advance(Duration::from_secs(1));
    assert_eq!(miss(&budgets, caller).await, Ok(()));
    assert_eq!(miss(&budgets, caller).await, Err(10));
}

#[tokio::test]
async fn what_exists_is_no_miss_however_much_of_it_is_asked_for_at_once() {
    let budgets = Budgets::new(LIMITS, Clock::manual(Timestamp(1000)));
    let caller = at("192.0.2.1");
    let mut reservations = Vec::new();
    for _ in 0..LIMITS.misses / 2 {
        let mut reservation = budgets.reserve_miss(caller).await.unwrap();
        reservation.mark_sent();
        reservations.push(reservation);
    }
    let waiting = tokio::spawn({
        let budgets = Arc::clone(&budgets);
        async move { budgets.reserve_miss(caller).await.map(|reservation| reservation.settle(false)) }
    });
    tokio::task::yield_now().await;
    assert!(!waiting.is_finished(), "half of the budget is asked for");
    for reservation in reservations {
        reservation.settle(false);
    }
    assert_eq!(waiting.await.unwrap(), Ok(()));
    drop(budgets.reserve_miss(caller).await.unwrap());
    for _ in 0..6 {
        assert_eq!(miss(&budgets, caller).await, Ok(()), "it all came back");
    }
}

#[tokio::test]
async fn a_principal_has_one_budget_wherever_it_is_and_a_network_of_ipv6_too() {
    let budgets = Budgets::new(Limits { misses: 1, ..LIMITS }, Clock::manual(Timestamp(1000)));
    for (spends, same, other) in [
        (at("2001:db8::1"), at("2001:db8::ffff:2"), at("2001:db8:0:1::1")),
        (at("::ffff:192.0.2.1"), at("192.0.2.1"), at("192.0.2.2")),
        (known("robot:ci", "192.0.2.3"), known("robot:ci", "192.0.2.4"), known("robot:cd", "192.0.2.3")),
        (known("oidc:a:b", "192.0.2.5"), known("oidc:a:b", "192.0.2.6"), at("192.0.2.5")),
    ] {
        assert_eq!(miss(&budgets, spends).await, Ok(()));
        assert_eq!(miss(&budgets, same).await, Err(60), "{spends:?}");
        assert_eq!(miss(&budgets, other).await, Ok(()), "{other:?}");
    }
}

#[tokio::test]
async fn a_manifest_that_upstream_did_not_send_is_not_paid_for() {
    let budgets = Budgets::new(LIMITS, Clock::manual(Timestamp(1000)));
    let caller = at("192.0.2.1");
    let invalid = Err(UpstreamError::Invalid("not what it was asked for".into()));
    for answer in [Ok(()), Err(UpstreamError::Missing), Ok(()), Err(UpstreamError::NoRepository), invalid] {
        budgets.check_pull(caller).unwrap();
        let sent = !matches!(answer, Err(UpstreamError::Missing | UpstreamError::NoRepository));
        let bill = Bill { payer: caller, spent: PullCounter::default() };
        let _ = budgets.pay_pull(&bill, std::future::ready(answer)).await;
        assert_eq!(bill.spent.manifests(), u64::from(sent), "what the record of a request says is what was paid");
    }
    let over = budgets.check_pull(caller).unwrap_err();
    assert_eq!(over, OverBudget { budget: Budget::Pulls, retry_after: Duration::from_mins(20) });
    let refused = budgets.pay_pull(&Bill { payer: caller, ..Bill::FREE }, std::future::ready(Ok(()))).await;
    assert!(matches!(refused, Err(PullError::OverBudget(error)) if error == over));
}

#[tokio::test]
async fn a_manifest_that_is_not_waited_for_is_not_paid_for() {
    let budgets = Budgets::new(LIMITS, Clock::manual(Timestamp(1000)));
    let bill = Bill { payer: at("192.0.2.1"), ..Bill::FREE };
    for _ in 0..4 {
        let asked = budgets.pay_pull::<()>(&bill, std::future::pending());
        assert!(tokio::time::timeout(Duration::ZERO, asked).await.is_err());
    }
    assert!(budgets.check_pull(bill.payer).is_ok());
}

#[test]
fn a_blob_is_paid_for_once_and_by_its_size() {
    let clock = Clock::manual(Timestamp(1000));
    let budgets = Budgets::new(LIMITS, clock.clone());
    let (first, second) = (at("192.0.2.1"), at("192.0.2.2"));
    assert_eq!(budgets.admit(&job(first, b"a", 900)), Ok(()));
    for payer in [first, second] {
        assert_eq!(budgets.admit(&job(payer, b"a", 900)), Ok(()), "it is paid for");
    }
    let over = budgets.admit(&job(first, b"b", 101)).unwrap_err();
    assert_eq!((over.budget, over.retry_after.as_secs()), (Budget::NewBytes, 87), "a thousandth of a day");
    assert!(budgets.admit(&job(first, b"a", 901)).is_err(), "who lies about a size has not paid for the true one");
    assert_eq!(budgets.admit(&job(first, b"b", 100)), Ok(()));
    assert_eq!(budgets.admit(&job(second, b"c", 1000)), Ok(()), "all of a budget");
    assert_eq!(budgets.admit(&job(None, b"d", u64::MAX)), Ok(()));
    let never = budgets.admit(&job(at("192.0.2.3"), b"e", u64::MAX)).unwrap_err();
    assert_eq!(never.retry_after, Duration::from_hours(24));
    clock.advance(PAID);
    assert_eq!(budgets.admit(&job(first, b"a", 900)), Ok(()));
    assert!(budgets.admit(&job(first, b"f", 101)).is_err(), "it was paid for again");
}

#[tokio::test]
async fn a_hundred_thousand_callers_have_ten_thousand_accounts_and_newcomers_share_one() {
    let clock = Clock::manual(Timestamp(1000));
    let budgets = Budgets::new(Limits { misses: 2, ..LIMITS }, clock.clone());
    let stranger = |number: u32| {
        let network = Ipv6Addr::from((0x2001_0db8_u128 << 96) | (u128::from(number) << 64));
        Payer::of(&Principal::Anonymous, Some(network.into()))
    };
    let mut let_through = 0;
    for number in 0..100_000 {
        let_through += usize::from(miss(&budgets, stranger(number)).await.is_ok());
        assert!(budgets.networks.lock().unwrap().len() <= ACCOUNTS);
    }
    assert_eq!(let_through, ACCOUNTS + 2, "and two for all the others");
    // Earlier callers keep what is left, and principals do not share the table of networks.
    assert_eq!(miss(&budgets, stranger(0)).await, Ok(()));
    assert_eq!(miss(&budgets, known("robot:ci", "192.0.2.1")).await, Ok(()));
    clock.advance(Duration::from_mins(1));
    assert_eq!(miss(&budgets, stranger(99_999)).await, Ok(()));
    assert_eq!(budgets.networks.lock().unwrap().len(), 1, "who has everything back is forgotten");
}

#[tokio::test]
async fn bytes_that_are_surely_left_take_no_account_and_others_are_looked_up() {
    let clock = Clock::manual(Timestamp(1000));
    let budgets = Budgets::new(LIMITS, clock.clone());
    let (one, other) = (at("192.0.2.1"), at("192.0.2.2"));
    let accounts = || budgets.networks.lock().unwrap().len();
    assert!(budgets.check_bytes(one, 1000).is_ok() && budgets.check_bytes(one, 1001).is_err());
    assert_eq!(accounts(), 1, "that of the caller that was refused");
    budgets.pay_bytes(one, 600).unwrap();
    assert!(budgets.check_bytes(other, 400).is_ok());
    assert_eq!(accounts(), 1);
    assert!(budgets.check_bytes(one, 401).is_err() && budgets.check_bytes(other, 401).is_ok());
    clock.advance(Duration::from_hours(24));
    assert!(budgets.check_bytes(one, 1000).is_ok(), "what one has spent is given back");
}
