//! Clauses of `Blobs`.

use std::sync::Arc;

use anyhow::{Result, ensure};
use futures_util::future::try_join_all;
use futures_util::{StreamExt as _, TryStreamExt as _, stream};
use stopover::fill::FillError;
use stopover::oci::{Algorithm, Digest};
use stopover::ports::Body;
use tokio::sync::Notify;

use crate::storage::{Storage, blob, body, digest, pieces};

/// Small enough for one request to S3.
const SMALL: usize = 300_000;
/// Large enough for several parts, the last of them shorter.
const LARGE: usize = 32 * 1024 * 1024 + 1;

pub(crate) async fn a_blob_that_was_not_stored_is_absent(storage: &Storage) -> Result<()> {
    assert_eq!(storage.blobs.size(&digest("never")).await?, None);
    Ok(())
}

pub(crate) async fn a_stored_blob_has_its_length_and_exactly_its_bytes(storage: &Storage) -> Result<()> {
    const PART: usize = 8 * 1024 * 1024;
    for size in [0, 1, SMALL, 2 * PART, 2 * PART + 1, 3 * PART, LARGE] {
        let (digest, content) = blob(size);
        storage.store(&digest, &content).await?;
        assert_eq!(storage.blobs.size(&digest).await?, Some(size as u64));
        ensure!(storage.download(&digest).await? == content, "{size} bytes came back as others");
    }
    for size in [0, SMALL, LARGE] {
        let (_, content) = blob(size);
        let digest = Digest::of(Algorithm::Sha512, &content);
        storage.store(&digest, &content).await?;
        ensure!(storage.download(&digest).await? == content, "{size} bytes came back as others");
    }
    Ok(())
}

pub(crate) async fn a_blob_becomes_visible_whole_and_not_before_its_body_has_ended(storage: &Storage) -> Result<()> {
    for size in [SMALL, LARGE] {
        let (digest, content) = blob(size);
        let (blobs, unseen) = (Arc::clone(&storage.blobs), digest.clone());
        let watched = stream::iter(pieces(&content)).then(move |piece| {
            let (blobs, unseen) = (Arc::clone(&blobs), unseen.clone());
            async move {
                assert_eq!(blobs.size(&unseen).await?, None, "visible before its body has ended");
                Ok(piece)
            }
        });
        storage.store_body(&digest, size, Box::pin(watched)).await?;
        assert_eq!(storage.blobs.size(&digest).await?, Some(size as u64));
    }
    Ok(())
}

pub(crate) async fn a_body_that_ends_with_an_error_leaves_nothing(storage: &Storage) -> Result<()> {
    // With all of its bytes, as a wrong digest shows only then, and with the first of them.
    for (size, sent) in [(SMALL, SMALL), (SMALL, 1), (LARGE, LARGE), (LARGE, LARGE / 2)] {
        let (digest, content) = blob(size);
        let wrong = FillError::Mismatch("another digest".to_owned());
        let outcome = storage.store_body(&digest, size, body(&content.slice(..sent), Some(wrong))).await;
        ensure!(matches!(outcome, Err(FillError::Mismatch(_))), "{outcome:?}");
        assert_eq!(storage.blobs.size(&digest).await?, None);
        ensure!(storage.is_empty()?, "something is left of {sent} bytes of {size}");
    }
    Ok(())
}

pub(crate) async fn a_store_that_is_given_up_half_way_shows_nothing_and_can_be_done_again(
    storage: &Storage,
) -> Result<()> {
    for size in [SMALL, LARGE] {
        let (digest, content) = blob(size);
        let reached = Arc::new(Notify::new());
        let notify = Arc::clone(&reached);
        let first = body(&content.slice(..size / 2), None);
        let endless: Body = Box::pin(first.chain(stream::once(async move {
            notify.notify_one();
            std::future::pending().await
        })));
        tokio::select! {
            outcome = storage.store_body(&digest, size, endless) => panic!("ended before its body: {outcome:?}"),
            () = reached.notified() => {}
        }
        assert_eq!(storage.blobs.size(&digest).await?, None);
        storage.store(&digest, &content).await?;
        ensure!(storage.download(&digest).await? == content, "{size} bytes came back as others");
    }
    Ok(())
}

pub(crate) async fn storing_a_blob_twice_is_a_no_op(storage: &Storage) -> Result<()> {
    for size in [0, SMALL, LARGE] {
        let (digest, content) = blob(size);
        storage.store(&digest, &content).await?;
        let before = storage.blobs_and_uploads()?;
        storage.store(&digest, &content).await?;
        assert_eq!(storage.blobs_and_uploads()?, before);
        ensure!(storage.download(&digest).await? == content, "{size} bytes came back as others");
    }
    Ok(())
}

pub(crate) async fn fills_of_one_blob_that_race_all_succeed(storage: &Storage) -> Result<()> {
    for (size, racers) in [(SMALL, 16), (LARGE, 3)] {
        let before = storage.blobs_and_uploads()?;
        let (digest, content) = blob(size);
        try_join_all((0..racers).map(|_| storage.store(&digest, &content))).await?;
        ensure!(storage.download(&digest).await? == content, "{size} bytes came back as others");
        assert_eq!(storage.blobs_and_uploads()?, before + 1);
    }
    Ok(())
}

pub(crate) async fn every_stored_blob_is_listed_once(storage: &Storage) -> Result<()> {
    assert_eq!(storage.blobs.list().try_collect::<Vec<_>>().await?, []);
    let mut stored = Vec::new();
    // More than one page of a listing.
    for size in 0..1100 {
        let (digest, content) = blob(size);
        storage.store(&digest, &content).await?;
        stored.push((digest, size as u64));
    }
    let (_, content) = blob(10);
    let digest = Digest::of(Algorithm::Sha512, &content);
    storage.store(&digest, &content).await?;
    stored.push((digest, 10));
    let listed: Vec<_> = storage.blobs.list().try_collect().await?;
    let now = std::time::SystemTime::UNIX_EPOCH.elapsed()?.as_secs();
    assert!(listed.iter().all(|blob| (now - 600..=now + 600).contains(&blob.modified.0)), "{:?}", listed[0]);
    let mut listed: Vec<_> = listed.into_iter().map(|blob| (blob.digest, blob.size)).collect();
    listed.sort();
    stored.sort();
    assert_eq!(listed, stored);
    Ok(())
}

pub(crate) async fn a_removed_blob_is_absent_and_can_be_stored_again(storage: &Storage) -> Result<()> {
    storage.blobs.remove(&digest("never")).await?;
    for size in [SMALL, LARGE] {
        let (digest, content) = blob(size);
        storage.store(&digest, &content).await?;
        storage.blobs.remove(&digest).await?;
        storage.blobs.remove(&digest).await?;
        assert_eq!(storage.blobs.size(&digest).await?, None);
        assert!(storage.is_empty()?);
        storage.store(&digest, &content).await?;
        ensure!(storage.download(&digest).await? == content, "{size} bytes came back as others");
        storage.blobs.remove(&digest).await?;
    }
    Ok(())
}
