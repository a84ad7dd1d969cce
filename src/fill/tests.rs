use std::net::TcpListener;
use std::path::Path;
use std::sync::atomic::Ordering;

use tempfile::TempDir;

use super::*;
use crate::config::{Cold, Config};
use crate::local::Files;
use crate::oci::{Algorithm, Digest};
use crate::ports::troubled::{NoFills, Troubled};
use crate::ports::{Ledger as _, Priority, Records as _, Storage};
use crate::values::time::Clock;

struct World {
    fill: Arc<Fill>,
    ledger: Arc<Troubled>,
    claim: HeldClaim,
    _data: TempDir,
    /// The upstream, which never answers.
    _silent: TcpListener,
}

/// A fill, and a ledger on which other writers overtake its first `overtaken` writes after it holds the claim.
async fn world(claimed: bool, overtaken: usize) -> World {
    let data = tempfile::tempdir().unwrap();
    let (blobs, ledger) = (Arc::new(Files::open(data.path()).unwrap()), Arc::new(Troubled::open(data.path())));
    let silent = TcpListener::bind("127.0.0.1:0").unwrap();
    let text = format!("[upstreams.\"test.local\"]\nurl = \"http://{}\"", silent.local_addr().unwrap());
    let config = Config::parse(&text, Path::new("stopover.toml"), Cold::Follow, |_| unreachable!()).unwrap();
    let clock = Clock::default();
    let storage = Storage { blobs, ledger: Arc::clone(&ledger) as _, fills: Arc::new(NoFills) };
    let core = Arc::new(Core::new(config, clock.clone(), storage, None).unwrap());
    let fill = Arc::new(Fill::new(Arc::clone(&core), Arc::new(Membership::new(Arc::clone(&core)))));
    let job = Job {
        repository: serde_json::from_str(r#"{"upstream":"test.local","name":"a"}"#).unwrap(),
        digest: Digest::of(Algorithm::Sha256, b"a"),
        size: 1,
        priority: Priority::Interactive,
        payer: None,
    };
    if claimed {
        let until = clock.now().plus(CLAIM);
        let claim = BlobRecord::new(BlobState::Claimed { owner: "me".into(), until });
        ledger.swap(&job.digest, None, &claim).await.unwrap().unwrap();
    }
    ledger.overtaken.store(overtaken, Ordering::SeqCst);
    let claim = HeldClaim { core, job, owner: "me".into(), open: true };
    World { fill, ledger, claim, _data: data, _silent: silent }
}

#[tokio::test]
async fn a_fill_that_panics_fails_and_gives_its_claim_back() {
    let world = world(false, 0).await;
    let (job, progress) = (&world.claim.job, watch::channel(Progress::Waiting).0);
    let outcome = world.fill.run(job, &progress, async { panic!("as planned") }).await;
    assert!(matches!(outcome, Err(FillError::Panicked)), "{outcome:?}");
    let record = world.ledger.blob(&job.repository, &job.digest).await.unwrap().record.unwrap().value;
    assert_eq!(record.state, BlobState::Absent, "others need not wait for it");
    assert!(record.failure.is_some_and(|failure| failure.contains("mistake")));
}

const SOON: Duration = Duration::from_secs(10);

#[tokio::test]
async fn a_claim_that_others_always_overtake_is_given_up() {
    let world = world(false, usize::MAX).await;
    let (progress, stop) = (watch::channel(Progress::Waiting).0, std::future::pending());
    let run = world.fill.run(&world.claim.job, &progress, stop);
    let outcome = tokio::time::timeout(SOON, run).await.expect("it ends");
    assert!(matches!(outcome, Err(FillError::Store(StoreError::Unavailable(_)))), "{outcome:?}");
    assert!(world.ledger.tried.load(Ordering::SeqCst) < 20, "and not after a storm of writes");
}

#[tokio::test]
async fn a_renewal_that_others_always_overtake_is_given_up_and_one_they_overtake_for_a_while_is_not() {
    let world = world(true, usize::MAX).await;
    let renewed = tokio::time::timeout(SOON, world.claim.renew(None)).await.expect("it ends");
    assert!(matches!(renewed, Err(FillError::Store(StoreError::Unavailable(_)))), "{renewed:?}");
    world.ledger.overtaken.store(3, Ordering::SeqCst);
    world.claim.renew(None).await.unwrap();
}

#[tokio::test]
async fn an_end_that_others_always_overtake_is_given_up_and_one_they_overtake_for_a_while_is_written() {
    let world = world(true, usize::MAX).await;
    let settle = || world.claim.settle(BlobState::Absent, Some("upstream failed".into()), None, false);
    let settled = tokio::time::timeout(SOON, settle()).await.expect("it ends");
    assert!(matches!(settled, Err(StoreError::Unavailable(_))), "{settled:?}");
    world.ledger.overtaken.store(3, Ordering::SeqCst);
    assert!(settle().await.unwrap(), "it is still ours");
    let job = &world.claim.job;
    let record = world.ledger.blob(&job.repository, &job.digest).await.unwrap().record.unwrap().value;
    assert_eq!((record.state, record.failure.as_deref()), (BlobState::Absent, Some("upstream failed")));
}
