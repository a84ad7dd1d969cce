//! Services that fail, throttle, refuse or are gone: never taken for absence.

use std::error::Error;

use anyhow::{Context as _, Result, ensure};
use aws::{DynamoLedger, S3Blobs};
use stopover::errors::{StoreError, chain};
use stopover::local::Files;
use stopover::ports::{Blobs as _, Fills as _, Ledger as _, Progress, Records as _};
use stopover::records::{Member, ReferenceKey};
use support::aws::{EVERY_OPERATION, Endpoints, Service};
use tempfile::TempDir;
use tokio::sync::watch;

use super::ledger::blob_record;
use super::on_sqs::{fills, jobs};
use super::storage::{NOW, Storage, digest, repository};

/// How often the SDK tries before it gives up.
pub(crate) const ATTEMPTS: usize = 3;

#[tokio::test]
async fn a_storage_outage_is_not_absence() -> Result<()> {
    let storage = Storage::aws().await?;
    let (repository, digest) = (repository("a")?, digest("blob"));
    storage.endpoints().fail_next(Service::S3, EVERY_OPERATION, ATTEMPTS);
    assert!(matches!(storage.blobs.size(&digest).await, Err(StoreError::Unavailable(_))));
    for failure in 0..2 {
        let outage = || match failure {
            0 => storage.endpoints().fail_next(Service::DynamoDb, EVERY_OPERATION, ATTEMPTS),
            _ => storage.endpoints().throttle_next(Service::DynamoDb, EVERY_OPERATION, ATTEMPTS),
        };
        outage();
        assert!(matches!(
            storage.ledger.get(&ReferenceKey(&repository, &"t".parse()?)).await,
            Err(StoreError::Unavailable(_))
        ));
        outage();
        assert!(matches!(storage.ledger.manifest(&repository, &digest).await, Err(StoreError::Unavailable(_))));
        outage();
        assert!(matches!(storage.ledger.blob(&repository, &digest).await, Err(StoreError::Unavailable(_))));
        outage();
        assert!(matches!(storage.ledger.swap(&digest, None, &blob_record(1)).await, Err(StoreError::Unavailable(_))));
        outage();
        assert!(matches!(
            storage.ledger.put_membership(&repository, &digest, Member { size: 1, used_at: NOW, proven: false }).await,
            Err(StoreError::Unavailable(_))
        ));
    }
    let view = storage.ledger.blob(&repository, &digest).await?;
    assert_eq!((view.member, view.record), (None, None), "nothing was written");
    Ok(())
}

#[tokio::test]
async fn services_that_are_gone_are_unavailable_and_a_wrong_key_is_refused() -> Result<()> {
    let endpoints = Endpoints::start().await?;
    let stranger = S3Blobs::new(aws::s3_client(&endpoints.sdk_config_signed_with("wrong")), endpoints.bucket());
    assert!(matches!(stranger.size(&digest("blob")).await, Err(StoreError::Refused(_))));
    let config = endpoints.sdk_config();
    let elsewhere = S3Blobs::new(aws::s3_client(&config), endpoints.bucket());
    let no_table = DynamoLedger::new(aws::dynamo_client(&config), "no-such-table", elsewhere.clone());
    assert!(matches!(no_table.get(&ReferenceKey(&repository("a")?, &"t".parse()?)).await, Err(StoreError::Refused(_))));
    let ledger = DynamoLedger::new(aws::dynamo_client(&config), endpoints.table(), elsewhere.clone());
    let fills = fills(&endpoints).await;
    drop(endpoints);
    assert!(matches!(elsewhere.size(&digest("blob")).await, Err(StoreError::Unavailable(_))));
    assert!(matches!(
        ledger.get(&ReferenceKey(&repository("a")?, &"t".parse()?)).await,
        Err(StoreError::Unavailable(_))
    ));
    assert!(matches!(fills.request(&jobs(1)?).await, Err(StoreError::Unavailable(_))));
    Ok(())
}

#[tokio::test]
async fn a_throttled_call_is_tried_again() -> Result<()> {
    let storage = Storage::aws().await?;
    storage.endpoints().throttle_next(Service::DynamoDb, EVERY_OPERATION, 1);
    assert_eq!(storage.ledger.get(&ReferenceKey(&repository("a")?, &"t".parse()?)).await?, None);
    storage.endpoints().throttle_next(Service::S3, EVERY_OPERATION, 1);
    assert_eq!(storage.blobs.size(&digest("blob")).await?, None);
    Ok(())
}

#[tokio::test]
async fn a_failure_keeps_what_caused_it() -> Result<()> {
    let endpoints = Endpoints::start().await?;
    let config = endpoints.sdk_config();
    let blobs = S3Blobs::new(aws::s3_client(&config), endpoints.bucket());
    let ledger = DynamoLedger::new(aws::dynamo_client(&config), endpoints.table(), blobs.clone());
    drop(endpoints);
    let data = TempDir::new()?;
    let files = Files::open(data.path())?;
    std::fs::remove_dir_all(data.path())?;
    let failures = [
        (blobs.size(&digest("blob")).await.err(), "storage is unavailable: HeadObject: could not be sent: "),
        (
            ledger.blob(&repository("a")?, &digest("blob")).await.err(),
            "storage is unavailable: BatchGetItem: could not be sent: ",
        ),
        (
            files.begin(&digest("blob"), 1, &watch::Sender::new(Progress::Waiting)).await.err(),
            "storage refused: a file: ",
        ),
    ];
    for (failure, beginning) in failures {
        let failure = failure.context("storage that is gone does nothing")?;
        ensure!(failure.source().is_some(), "{failure:?}");
        let (words, all) = (failure.to_string(), chain(&failure));
        ensure!(all.starts_with(beginning) && all.len() > words.len(), "{all}");
    }
    Ok(())
}
