//! What only the blobs on S3 promise.

use std::sync::Arc;

use anyhow::{Result, ensure};
use bytes::Bytes;
use futures_util::StreamExt as _;
use stopover::errors::{FillError, StoreError};
use stopover::oci::{Algorithm, Digest};
use stopover::ports::Location;
use support::aws::{EVERY_OPERATION, Service};

use super::storage::{Storage, blob, body};

const PART: usize = 8 * 1024 * 1024;
const LARGE: usize = 20 * 1024 * 1024;

#[tokio::test]
async fn objects_are_found_where_the_design_says() -> Result<()> {
    let storage = Storage::aws().await?;
    let (_, content) = blob(10);
    for algorithm in [Algorithm::Sha256, Algorithm::Sha512] {
        let digest = Digest::of(algorithm, &content);
        storage.store(&digest, &content).await?;
        let key = format!("blobs/{}/{}/{}", algorithm.name(), &digest.hex()[..2], digest.hex());
        assert!(storage.endpoints().objects().contains(&key), "{key}");
    }
    Ok(())
}

#[tokio::test]
async fn a_location_is_signed_without_network_for_fifteen_minutes_and_for_get_alone() -> Result<()> {
    let storage = Storage::aws().await?;
    let (digest, content) = blob(1000);
    storage.store(&digest, &content).await?;
    let before = storage.endpoints().calls(Service::S3, EVERY_OPERATION);
    let Some(Location::Url(url)) = storage.blobs.locate(&digest, 1000).await? else { panic!("not a URL") };
    assert_eq!(storage.endpoints().calls(Service::S3, EVERY_OPERATION), before);
    let url = url.expose().as_str();
    assert!(url.contains("X-Amz-Expires=900&"), "{url}");
    let hex = digest.hex();
    assert!(url.contains(&format!("/blobs/sha256/{}/{hex}?", &hex[..2])), "{url}");
    let client = support::http();
    assert_eq!(client.get(url).header("range", "bytes=10-19").send().await?.bytes().await?, content.slice(10..20));
    assert_eq!(client.head(url).send().await?.status(), 403);
    Ok(())
}

#[tokio::test]
async fn the_bucket_itself_refuses_bytes_of_another_digest() -> Result<()> {
    let storage = Storage::aws().await?;
    let (digest, content) = blob(1000);
    let mut other = content.to_vec();
    other[500] ^= 1;
    assert!(storage.store(&digest, &other.into()).await.is_err());
    assert!(storage.is_empty()?);
    Ok(())
}

#[tokio::test]
async fn an_upload_that_fails_is_aborted() -> Result<()> {
    let storage = Storage::aws().await?;
    let (digest, content) = blob(LARGE);
    for operation in ["UploadPart", "CompleteMultipartUpload"] {
        // As many as fail one part for good, however many are on their way.
        storage.endpoints().fail_next(Service::S3, operation, 9);
        let outcome = storage.store(&digest, &content).await;
        ensure!(matches!(outcome, Err(FillError::Store(StoreError::Unavailable(_)))), "{operation}: {outcome:?}");
        storage.endpoints().heal();
        assert!(storage.is_empty()?, "{operation}");
    }
    storage.store(&digest, &content).await?;
    ensure!(storage.download(&digest).await? == content, "other bytes came back");
    Ok(())
}

#[tokio::test]
async fn at_most_three_parts_of_a_blob_are_in_memory() -> Result<()> {
    let storage = Arc::new(Storage::aws().await?);
    let (digest, content) = blob(9 * PART);
    let (watched, mut taken) = (Arc::clone(&storage), 0);
    let body = body(&content, None).inspect(move |piece| {
        // What is taken after three unsent parts is the first of a fourth.
        let sent = watched.endpoints().calls(Service::S3, "UploadPart");
        assert!(taken < (sent + 3) * PART, "{taken} bytes taken, {sent} parts sent");
        taken += piece.as_ref().map_or(0, Bytes::len);
    });
    storage.store_body(&digest, content.len(), Box::pin(body)).await?;
    assert_eq!(storage.endpoints().calls(Service::S3, "UploadPart"), 9);
    Ok(())
}
