use std::collections::HashSet;
use std::sync::atomic::Ordering;

use async_trait::async_trait;
use futures_util::stream::BoxStream;
use tempfile::TempDir;

use super::*;
use crate::config::{Cold, Config};
use crate::local::Files;
use crate::oci::{Algorithm, Digest};
use crate::ports::troubled::{NoFills, Troubled};
use crate::ports::{Blobs, Ledger as _, Location, Priority, Records as _, Storage, StoredBlob};
use crate::values::time::Clock;

fn record(state: BlobState) -> BlobRecord {
    BlobRecord { attempts: 2, ..BlobRecord::new(state) }
}

struct World {
    fill: Arc<Fill>,
    ledger: Arc<Troubled>,
    claim: HeldClaim,
    _data: TempDir,
}

/// A fill, and a ledger on which other writers overtake its first `overtaken` writes after it holds the claim.
async fn world(claimed: bool, overtaken: usize) -> World {
    let data = tempfile::tempdir().unwrap();
    let files = Arc::new(Files::open(data.path()).unwrap());
    world_on(files, data, claimed, overtaken).await
}

async fn world_on(blobs: Arc<dyn Blobs>, data: TempDir, claimed: bool, overtaken: usize) -> World {
    let ledger = Arc::new(Troubled::open(data.path()));
    let (clock, config) = (Clock::default(), Config::load(None, Cold::Follow, |_| Ok(String::new())).unwrap());
    let storage = Storage { blobs, ledger: Arc::clone(&ledger) as _, fills: Arc::new(NoFills) };
    let core = Arc::new(Core::new(config, clock.clone(), storage, None).unwrap());
    let fill = Arc::new(Fill::new(Arc::clone(&core), Arc::new(Membership::new(Arc::clone(&core)))));
    let job = Job {
        repository: serde_json::from_str(r#"{"upstream":"docker.io","name":"library/a"}"#).unwrap(),
        digest: Digest::of(Algorithm::Sha256, b"a"),
        size: 1,
        priority: Priority::Interactive,
        payer: None,
    };
    if claimed {
        let until = clock.now().plus(CLAIM);
        let claim = record(BlobState::Claimed { owner: "me".into(), until });
        ledger.swap(&job.digest, None, &claim).await.unwrap().unwrap();
    }
    ledger.overtaken.store(overtaken, Ordering::SeqCst);
    let claim = HeldClaim { core, job, owner: "me".into(), open: true };
    World { fill, ledger, claim, _data: data }
}

struct Panicking;

#[async_trait]
impl Blobs for Panicking {
    async fn size(&self, _: &Digest) -> Result<Option<u64>, StoreError> {
        Ok(None)
    }

    async fn locate(&self, _: &Digest) -> Result<Option<Location>, StoreError> {
        Ok(None)
    }

    async fn begin(&self, _: &Digest, _: u64, _: &watch::Sender<Progress>) -> Result<Box<dyn Upload>, StoreError> {
        panic!("as planned")
    }

    async fn resume(
        &self,
        _: &Digest,
        _: u64,
        _: u64,
        _: &str,
        _: &watch::Sender<Progress>,
    ) -> Result<Option<Box<dyn Upload>>, StoreError> {
        Ok(None)
    }

    async fn abandon(&self, _: &HashSet<String>, _: Duration) -> Result<usize, StoreError> {
        Ok(0)
    }

    fn list(&self) -> BoxStream<'_, Result<StoredBlob, StoreError>> {
        Box::pin(futures_util::stream::empty())
    }

    async fn remove(&self, _: &Digest) -> Result<(), StoreError> {
        Ok(())
    }
}

#[tokio::test]
async fn a_fill_that_panics_fails_and_gives_its_claim_back() {
    let world = world_on(Arc::new(Panicking), tempfile::tempdir().unwrap(), false, 0).await;
    let (job, progress, stop) = (&world.claim.job, watch::channel(Progress::Waiting).0, std::future::pending());
    let outcome = world.fill.run(job, &progress, stop).await;
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
