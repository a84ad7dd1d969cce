//! Clauses of `Blobs`.

use std::collections::HashSet;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use bytes::Bytes;
use futures_util::future::try_join_all;
use futures_util::{StreamExt as _, TryStreamExt as _, stream};
use stopover::errors::FillError;
use stopover::oci::{Algorithm, Digest};
use tokio::sync::{Notify, watch};

use stopover::ports::Progress;

use super::storage::{Body, Storage, blob, body, digest, pieces, write};

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
        assert!(storage.blobs.has(&digest, size as u64).await?);
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

/// Writes the first `count` bytes of a blob, and takes a checkpoint at the last multiple of the unit among them.
async fn begun(storage: &Storage, digest: &Digest, content: &Bytes, count: usize) -> Result<(u64, String)> {
    let mut upload = storage.blobs.begin(digest, content.len() as u64, &unwatched()).await?;
    let mut written = 0;
    write(&mut *upload, &mut written, content.slice(..count)).await?;
    let offset = written - written % upload.unit();
    Ok((offset, upload.checkpoint(offset).await?))
}

fn unwatched() -> watch::Sender<Progress> {
    watch::Sender::new(Progress::Waiting)
}

pub(crate) async fn an_upload_is_gone_on_with_from_its_checkpoint(storage: &Storage) -> Result<()> {
    let (digest, content) = blob(LARGE);
    let (mut offset, mut checkpoint) = begun(storage, &digest, &content, 20_000_000).await?;
    assert!((8_000_000..=20_000_000).contains(&offset), "{offset}");
    // Twice, and each time more is written than the next checkpoint keeps.
    for more in [9_000_000, LARGE] {
        let resumed = storage.blobs.resume(&digest, LARGE as u64, offset, &checkpoint, &unwatched()).await?;
        let mut upload = resumed.context("it does not fit")?;
        let mut written = offset;
        let end = LARGE.min(usize::try_from(offset)? + more);
        write(&mut *upload, &mut written, content.slice(usize::try_from(offset)?..end)).await?;
        assert_eq!(storage.blobs.size(&digest).await?, None, "visible before it is whole");
        if end < LARGE {
            offset = written - written % upload.unit();
            checkpoint = upload.checkpoint(offset).await?;
        } else {
            upload.publish().await?;
        }
    }
    ensure!(storage.download(&digest).await? == content, "other bytes came back");
    assert_eq!(storage.blobs_and_uploads()?, 1, "nothing is left of the upload");
    Ok(())
}

pub(crate) async fn a_checkpoint_that_fits_no_upload_is_refused(storage: &Storage) -> Result<()> {
    let ((digest, content), other) = (blob(LARGE), blob(LARGE + 1));
    let (offset, checkpoint) = begun(storage, &digest, &content, 20_000_000).await?;
    let size = LARGE as u64;
    let resume = async |digest: &Digest, size, offset, checkpoint: &str| {
        storage.blobs.resume(digest, size, offset, checkpoint, &unwatched()).await
    };
    for wrong in ["", "{}", "../ledger.redb", &checkpoint.to_uppercase(), &format!("{checkpoint}x")] {
        assert!(resume(&digest, size, offset, wrong).await?.is_none(), "{wrong}");
    }
    assert!(resume(&digest, size, offset + 1, &checkpoint).await?.is_none(), "not where one may lie");
    assert!(resume(&digest, size, 4 * offset, &checkpoint).await?.is_none(), "more than is there");
    assert!(resume(&other.0, size + 1, offset, &checkpoint).await?.is_none(), "of another blob");
    let upload = resume(&digest, size, offset, &checkpoint).await?.context("it does not fit")?;
    upload.discard().await;
    assert!(resume(&digest, size, offset, &checkpoint).await?.is_none(), "it was thrown away");
    ensure!(storage.is_empty()?, "something is left");
    Ok(())
}

pub(crate) async fn uploads_that_no_checkpoint_speaks_of_are_abandoned(storage: &Storage) -> Result<()> {
    let ((known, known_content), (forgotten, content)) = (blob(LARGE), blob(LARGE + 1));
    let (offset, checkpoint) = begun(storage, &known, &known_content, 20_000_000).await?;
    begun(storage, &forgotten, &content, 20_000_000).await?;
    let checkpoints = HashSet::from([checkpoint.clone()]);
    assert_eq!(storage.blobs.abandon(&checkpoints, Duration::from_hours(1)).await?, 0, "somebody may write to it yet");
    assert_eq!(storage.blobs.abandon(&checkpoints, Duration::ZERO).await?, 1);
    let resumed = storage.blobs.resume(&known, LARGE as u64, offset, &checkpoint, &unwatched()).await?;
    assert!(resumed.is_some(), "the other one is as it was");
    drop(resumed);
    assert_eq!(storage.blobs.abandon(&HashSet::new(), Duration::ZERO).await?, 1);
    ensure!(storage.is_empty()?, "something is left");
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
