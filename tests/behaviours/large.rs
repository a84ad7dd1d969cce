//! Large blobs: in parts, over broken connections, and from checkpoints.

use std::future::pending;
use std::sync::Arc;
use std::time::Duration;

use futures_util::FutureExt as _;
use stopover::cache::Cache;
use stopover::errors::FillError;
use stopover::fill::Filled;
use stopover::ports::Progress;
use stopover::records::{BlobRecord, BlobState, Checkpoint, Versioned};
use support::on_both_columns;
use support::vast::{Manner, Vast};
use support::world::{Column, World, until};
use tokio::sync::watch;

on_both_columns!(
    a_large_blob_comes_over_several_connections_and_each_byte_once,
    an_upstream_that_sends_no_parts_is_read_in_one_stream,
    a_connection_that_breaks_is_gone_on_with_where_it_broke,
    an_upstream_that_keeps_breaking_off_is_gone_on_with_later,
    a_place_that_expires_is_asked_for_again,
    a_fill_that_is_stopped_is_gone_on_with_by_another,
    a_checkpoint_that_does_not_fit_is_discarded,
    a_fill_that_lost_its_claim_publishes_nothing,
    a_request_that_is_delivered_twice_copies_once,
    an_upstream_that_lies_about_ranges_or_length_is_refused,
);

const MIB: u64 = 1024 * 1024;
/// Ten segments, of which the last is short.
const SIZE: u64 = 36 * MIB + 12_345;
/// What S3 takes at once: what a stop can cost.
const PART: u64 = 8 * MIB;

async fn world(column: Column, vast: &Vast) -> World {
    World::plan(column).upstream(&vast.table()).start().await
}

async fn run(cache: &Arc<Cache>, vast: &Vast) -> Result<Filled, FillError> {
    cache.fill.run(&vast.job(), &watch::channel(Progress::Waiting).0, pending()).await
}

/// Runs a fill until upstream has sent so many bytes, and stops it then.
async fn run_until(cache: &Arc<Cache>, vast: &Vast, sent: u64) -> Result<Filled, FillError> {
    let stop = until(|| vast.sent() >= sent).map(|()| Duration::from_secs(5));
    cache.fill.run(&vast.job(), &watch::channel(Progress::Waiting).0, stop).await
}

async fn record(cache: &Cache, vast: &Vast) -> Versioned<BlobRecord> {
    let view = cache.core.storage.ledger.blob(&vast.job().repository, vast.digest()).await.unwrap();
    view.record.expect("there is a record")
}

async fn checkpoint(cache: &Cache, vast: &Vast) -> Option<Checkpoint> {
    record(cache, vast).await.value.checkpoint
}

async fn stored(world: &World, vast: &Vast) {
    assert_eq!(world.stored_blobs().await, [vast.digest().to_string()], "whole, and the right bytes");
    assert_eq!(checkpoint(&world.cache, vast).await, None);
    if let Some(endpoints) = world.endpoints() {
        assert_eq!(endpoints.multipart_uploads(), 0);
    }
}

async fn a_large_blob_comes_over_several_connections_and_each_byte_once(column: Column) {
    let vast = Vast::start(SIZE, Manner { bytes_per_second: Some(32 * MIB), ..Manner::default() }).unwrap();
    let world = world(column, &vast).await;
    assert_eq!(run(&world.cache, &vast).await.unwrap(), Filled::Stored);
    stored(&world, &vast).await;
    assert_eq!(vast.sent(), SIZE, "each byte once");
    assert_eq!(vast.requests(), 10);
    assert!(vast.most_open() >= 2, "{} at once", vast.most_open());
    assert_eq!(run(&world.cache, &vast).await.unwrap(), Filled::Already);
    assert_eq!(vast.sent(), SIZE);
}

async fn an_upstream_that_sends_no_parts_is_read_in_one_stream(column: Column) {
    let vast = Vast::start(SIZE, Manner { no_parts: true, ..Manner::default() }).unwrap();
    let world = world(column, &vast).await;
    assert_eq!(run(&world.cache, &vast).await.unwrap(), Filled::Stored);
    stored(&world, &vast).await;
    assert_eq!((vast.requests(), vast.sent()), (1, SIZE));
}

async fn a_connection_that_breaks_is_gone_on_with_where_it_broke(column: Column) {
    let vast = Vast::start(SIZE, Manner { breaks_after: Some(3 * MIB), ..Manner::default() }).unwrap();
    let world = world(column, &vast).await;
    assert_eq!(run(&world.cache, &vast).await.unwrap(), Filled::Stored);
    stored(&world, &vast).await;
    // What was on its way when a connection broke is sent again, and nothing else.
    assert!(vast.sent() < SIZE + SIZE / 4, "{} bytes were sent of {SIZE}", vast.sent());
}

async fn an_upstream_that_keeps_breaking_off_is_gone_on_with_later(column: Column) {
    // It sends no parts: what is known of the blob is sent again, and thrown away.
    let manner = Manner { breaks_after: Some(30 * MIB), no_parts: true, ..Manner::default() };
    let vast = Vast::start(SIZE, manner).unwrap();
    let world = world(column, &vast).await;
    assert!(matches!(run(&world.cache, &vast).await, Err(FillError::Upstream(_))));
    let reached = checkpoint(&world.cache, &vast).await.expect("nothing is lost").offset;
    assert!(reached >= 3 * PART, "{reached}");
    *vast.manner() = Manner::default();
    let sent = vast.sent();
    assert_eq!(run(&world.cache, &vast).await.unwrap(), Filled::Stored);
    stored(&world, &vast).await;
    assert_eq!(vast.sent() - sent, SIZE - reached);
}

async fn a_place_that_expires_is_asked_for_again(column: Column) {
    let vast = Vast::start(SIZE, Manner { place_works_for: Some(2), ..Manner::default() }).unwrap();
    let world = world(column, &vast).await;
    assert_eq!(run(&world.cache, &vast).await.unwrap(), Filled::Stored);
    stored(&world, &vast).await;
    assert_eq!((vast.requests(), vast.sent()), (10, SIZE));
    assert!((5..=10).contains(&vast.asked()), "the registry was asked {} times for ten segments", vast.asked());
}

async fn a_fill_that_is_stopped_is_gone_on_with_by_another(column: Column) {
    let vast = Vast::start(SIZE, Manner { bytes_per_second: Some(16 * MIB), ..Manner::default() }).unwrap();
    let world = world(column, &vast).await;
    let instances = [Arc::clone(&world.cache), world.another_instance()];
    let (mut stops, mut offset) = (0, 0);
    loop {
        let sent = vast.sent() + 2 * MIB;
        match run_until(&instances[stops % 2], &vast, sent).await.unwrap() {
            Filled::Stored => break,
            // On a busy machine it may be stopped before a first part is stored.
            Filled::Parked { .. } if stops < 50 => stops += 1,
            other => panic!("{other:?}, {stops} times"),
        }
        let reached = checkpoint(&world.cache, &vast).await.map_or(0, |checkpoint| checkpoint.offset);
        assert!(reached >= offset, "no step back");
        offset = reached;
        assert!(world.stored_blobs().await.is_empty(), "nothing of it is visible");
    }
    stored(&world, &vast).await;
    assert!(stops >= 2, "it was stopped {stops} times");
    let most = SIZE + PART * stops as u64;
    assert!(vast.sent() <= most, "{} bytes were sent of {SIZE}, in {stops} continuations", vast.sent());
    assert_eq!(record(&world.cache, &vast).await.value.attempts, u32::try_from(stops).unwrap() + 1);
}

async fn a_checkpoint_that_does_not_fit_is_discarded(column: Column) {
    let vast = Vast::start(SIZE, Manner::default()).unwrap();
    let other = Checkpoint { offset: PART, hash: "00".repeat(104), upload: "{}".into(), upstream: None };
    let changes: [fn(&mut Checkpoint, &Checkpoint); 6] = [
        |known, other| known.hash.clone_from(&other.hash),
        |known, _| known.hash.push('x'),
        |known, other| known.upload.clone_from(&other.upload),
        |known, other| known.upstream.clone_from(&other.upstream),
        |known, _| known.offset += PART,
        |known, _| known.offset = u64::MAX,
    ];
    for (number, change) in changes.into_iter().enumerate() {
        let world = world(column, &vast).await;
        assert_eq!(
            run_until(&world.cache, &vast, vast.sent() + 3 * PART).await.unwrap(),
            Filled::Parked { progress: true }
        );
        let Versioned { mut value, version } = record(&world.cache, &vast).await;
        change(value.checkpoint.as_mut().expect("there is one"), &other);
        world.cache.core.storage.ledger.swap(vast.digest(), Some(version), &value).await.unwrap().unwrap();
        // A hash that reads like one shows in the end only; nothing of it is kept then.
        let filled = match run(&world.cache, &vast).await {
            Err(FillError::Mismatch(_)) => run(&world.cache, &vast).await,
            filled => filled,
        };
        assert_eq!(filled.unwrap(), Filled::Stored, "change {number}");
        assert!(world.stored_blobs().await.contains(&vast.digest().to_string()));
        assert_eq!(checkpoint(&world.cache, &vast).await, None);
    }
}

async fn a_fill_that_lost_its_claim_publishes_nothing(column: Column) {
    let vast = Vast::start(SIZE, Manner { stalls_at: Some(20 * MIB), ..Manner::default() }).unwrap();
    let world = world(column, &vast).await;
    let first = {
        let (cache, job) = (Arc::clone(&world.cache), vast.job());
        tokio::spawn(async move { cache.fill.run(&job, &watch::channel(Progress::Waiting).0, pending()).await })
    };
    until(|| vast.sent() >= 16 * MIB).await;
    // Another takes the claim over, as it may once the first has not renewed it for long enough.
    let Versioned { value, version } = record(&world.cache, &vast).await;
    let newer = Checkpoint { offset: PART, hash: "newer".into(), upload: "newer".into(), upstream: None };
    let until = world.clock.now().plus(Duration::from_mins(1));
    let state = BlobState::Claimed { owner: "another".into(), until };
    let taken = BlobRecord { state, checkpoint: Some(newer), ..value };
    world.cache.core.storage.ledger.swap(vast.digest(), Some(version), &taken).await.unwrap().unwrap();
    vast.manner().stalls_at = None;
    assert!(matches!(first.await.unwrap(), Err(FillError::ClaimLost)));
    assert_eq!(record(&world.cache, &vast).await.value, taken, "the newer checkpoint is as it was");
    assert!(world.stored_blobs().await.is_empty());
    assert_eq!(run(&world.cache, &vast).await.unwrap(), Filled::Claimed, "the other one still has it");
}

async fn a_request_that_is_delivered_twice_copies_once(column: Column) {
    let vast = Vast::start(SIZE, Manner { stalls_at: Some(20 * MIB), ..Manner::default() }).unwrap();
    let world = world(column, &vast).await;
    let first = {
        let (cache, job) = (Arc::clone(&world.cache), vast.job());
        tokio::spawn(async move { cache.fill.run(&job, &watch::channel(Progress::Waiting).0, pending()).await })
    };
    until(|| vast.sent() > 0).await;
    let another = world.another_instance();
    assert_eq!(run(&another, &vast).await.unwrap(), Filled::Claimed);
    vast.manner().stalls_at = None;
    assert_eq!(first.await.unwrap().unwrap(), Filled::Stored);
    assert_eq!(run(&another, &vast).await.unwrap(), Filled::Already);
    assert_eq!(vast.sent(), SIZE);
    stored(&world, &vast).await;
}

async fn an_upstream_that_lies_about_ranges_or_length_is_refused(column: Column) {
    let lies = [
        Manner { wrong_at: Some(20 * MIB), ..Manner::default() },
        Manner { wrong_at: Some(SIZE - 1), no_parts: true, ..Manner::default() },
        Manner { endless: true, no_parts: true, ..Manner::default() },
    ];
    let vast = Vast::start(SIZE, Manner::default()).unwrap();
    let world = world(column, &vast).await;
    for lie in lies {
        *vast.manner() = lie.clone();
        let error = run(&world.cache, &vast).await.expect_err("a lie is found out");
        assert!(matches!(error, FillError::Mismatch(_) | FillError::Upstream(_)), "{lie:?}: {error}");
        assert!(world.stored_blobs().await.is_empty(), "{lie:?}");
        let record = record(&world.cache, &vast).await.value;
        assert_eq!((record.state, record.checkpoint), (BlobState::Absent, None), "{lie:?}");
        assert!(record.failure.is_some(), "{lie:?}");
        if let Some(endpoints) = world.endpoints() {
            assert_eq!(endpoints.multipart_uploads(), 0, "{lie:?}");
        }
    }
    // Parts that are not those that were asked for: the whole is asked for instead.
    *vast.manner() = Manner { shifted: 1, ..Manner::default() };
    assert_eq!(run(&world.cache, &vast).await.unwrap(), Filled::Stored);
    stored(&world, &vast).await;
}
