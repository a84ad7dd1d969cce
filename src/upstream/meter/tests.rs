use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use futures_util::future::join_all;
use tempfile::TempDir;

use super::*;
use crate::ports::troubled::Troubled;

/// How long the ledger may delay a request in all: when the permit is asked for, and when the outcome is noted.
const SOON: Duration = Duration::from_secs(4);

struct World {
    clock: Clock,
    ledger: Arc<Troubled>,
    meter: Meter,
    _data: TempDir,
}

fn world() -> World {
    let data = tempfile::tempdir().unwrap();
    let ledger = Arc::new(Troubled::open(data.path()));
    let clock = Clock::manual(Timestamp(1_000_000));
    let meter = meter(&ledger, &clock);
    World { clock, ledger, meter, _data: data }
}

/// The gauge as another process on the same ledger has it.
fn meter(ledger: &Arc<Troubled>, clock: &Clock) -> Meter {
    let key = GaugeKey { upstream: "docker.io".parse().unwrap(), credential: "me".into() };
    Meter::new(key, Arc::clone(ledger) as Arc<dyn Ledger>, clock.clone(), Arc::new(Journal::new([], clock.clone())))
}

fn set(switch: &AtomicBool, on: bool) {
    switch.store(on, Ordering::SeqCst);
}

fn next(counter: &AtomicUsize, value: usize) {
    counter.store(value, Ordering::SeqCst);
}

fn silent() -> Outcome {
    Outcome::Failed { silent: true, reason: "no answer".into() }
}

fn pulls_limited() -> Outcome {
    Outcome::Limited(Limit::Pulls, None)
}

#[tokio::test]
async fn a_ledger_that_does_not_answer_stops_no_request_of_an_account() {
    let world = world();
    set(&world.ledger.silent, true);
    let request = || async {
        world.meter.permit(Kind::Manifest).await?;
        world.meter.note(Kind::Manifest, &Outcome::Answered, None).await;
        Ok::<_, UpstreamError>(())
    };
    let all =
        tokio::time::timeout(SOON, join_all((0..200).map(|_| request()))).await.expect("none of them waits for long");
    assert!(all.iter().all(Result::is_ok), "{all:?}");
    let rest = async {
        for _ in 0..200 {
            request().await.unwrap();
        }
    };
    tokio::time::timeout(Duration::from_millis(500), rest).await.expect("and the next ones not at all");
}

#[tokio::test]
async fn the_breaker_is_kept_in_memory_while_the_ledger_does_not_answer_and_written_afterwards() {
    let world = world();
    world.meter.permit(Kind::Manifest).await.unwrap();
    set(&world.ledger.silent, true);
    tokio::time::timeout(SOON, world.meter.note(Kind::Manifest, &pulls_limited(), None)).await.unwrap();
    for _ in 0..100 {
        assert!(matches!(world.meter.permit(Kind::Manifest).await, Err(UpstreamError::LeftAlone(_))));
        world.meter.permit(Kind::Head).await.unwrap();
    }
    // The ledger's gauge is older than the one in memory.
    set(&world.ledger.silent, false);
    world.clock.advance(READ_AGAIN);
    assert!(matches!(world.meter.permit(Kind::Manifest).await, Err(UpstreamError::LeftAlone(_))));
    world.meter.note(Kind::Head, &Outcome::Answered, None).await;
    let other = meter(&world.ledger, &world.clock);
    assert!(matches!(other.permit(Kind::Manifest).await, Err(UpstreamError::LeftAlone(_))), "others know it now");
}

#[tokio::test]
async fn one_request_probes_while_the_ledger_does_not_answer() {
    let world = world();
    world.meter.permit(Kind::Head).await.unwrap();
    set(&world.ledger.silent, true);
    world.meter.note(Kind::Head, &silent(), None).await;
    world.clock.advance(Duration::from_secs(5));
    let all = tokio::time::timeout(SOON, join_all((0..50).map(|_| world.meter.permit(Kind::Head)))).await.unwrap();
    assert_eq!(all.iter().filter(|permit| permit.is_ok()).count(), 1);
}

#[tokio::test]
async fn one_request_probes_while_the_ledger_is_slow() {
    let world = world();
    world.meter.note(Kind::Head, &silent(), None).await;
    world.clock.advance(Duration::from_secs(5));
    set(&world.ledger.silent, true);
    let slow = async {
        tokio::time::sleep(Duration::from_millis(200)).await;
        set(&world.ledger.silent, false);
    };
    let (all, ()) = tokio::join!(join_all((0..50).map(|_| world.meter.permit(Kind::Head))), slow);
    assert_eq!(all.iter().filter(|permit| permit.is_ok()).count(), 1);
    let other = meter(&world.ledger, &world.clock);
    assert!(other.permit(Kind::Head).await.is_err(), "others know of it");
}

#[tokio::test]
async fn a_ledger_that_did_not_answer_is_not_asked_for_quotas_either() {
    let world = world();
    world.meter.permit(Kind::Head).await.unwrap();
    set(&world.ledger.silent, true);
    world.clock.advance(Duration::from_mins(1));
    world.meter.permit(Kind::Head).await.unwrap();
    let asked = tokio::time::timeout(Duration::from_millis(100), Meter::read_all(&[&world.meter])).await;
    assert!(asked.is_ok(), "it is waited for");
}

#[tokio::test]
async fn a_note_that_others_overtake_is_written_again_on_top_of_theirs() {
    let world = world();
    let other = meter(&world.ledger, &world.clock);
    for meter in [&world.meter, &other] {
        meter.permit(Kind::Manifest).await.unwrap();
    }
    other.note(Kind::Head, &Outcome::Limited(Limit::Requests, None), None).await;
    next(&world.ledger.overtaken, 3);
    world.meter.note(Kind::Manifest, &pulls_limited(), None).await;
    let another = meter(&world.ledger, &world.clock);
    Meter::read_all(&[&another]).await;
    let gauge = another.known_gauge();
    assert!(gauge.requests.is_some() && gauge.manifests.is_some(), "{gauge:?}");
}

#[tokio::test]
async fn a_note_that_is_always_overtaken_is_given_up_and_kept() {
    let world = world();
    world.meter.permit(Kind::Manifest).await.unwrap();
    next(&world.ledger.overtaken, usize::MAX);
    tokio::time::timeout(SOON, world.meter.note(Kind::Manifest, &pulls_limited(), None)).await.unwrap();
    assert!((2..20).contains(&world.ledger.tried.load(Ordering::SeqCst)));
    assert!(matches!(world.meter.permit(Kind::Manifest).await, Err(UpstreamError::LeftAlone(_))));
}

#[tokio::test]
async fn one_process_probes_and_one_that_lost_to_a_note_of_something_else_may_too() {
    let world = world();
    let other = meter(&world.ledger, &world.clock);
    world.meter.note(Kind::Head, &silent(), None).await;
    world.clock.advance(Duration::from_secs(5));
    next(&world.ledger.overtaken, 1);
    world.meter.permit(Kind::Head).await.expect("nobody else probes");
    assert!(matches!(other.permit(Kind::Head).await, Err(UpstreamError::LeftAlone(_))));
}
