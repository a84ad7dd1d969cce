//! What only the ledger on DynamoDB promises.

use std::sync::atomic::{AtomicBool, Ordering};

use anyhow::{Context as _, Result};
use aws::{DynamoLedger, S3Blobs};
use aws_sdk_dynamodb::config::http::HttpResponse;
use aws_sdk_dynamodb::config::interceptors::BeforeDeserializationInterceptorContextMut;
use aws_sdk_dynamodb::config::{ConfigBag, Intercept, RuntimeComponents};
use aws_sdk_dynamodb::error::BoxError;
use aws_sdk_dynamodb::types::AttributeValue;
use aws_sdk_s3::primitives::ByteStream;
use futures_util::TryStreamExt as _;
use stopover::errors::StoreError;
use stopover::ports::{Ledger as _, Records as _};
use stopover::records::{BlobRecord, BlobState, ReferenceKey};
use support::aws::{EVERY_OPERATION, Service};

use super::ledger::{blob_record, members};
use super::outages::ATTEMPTS;
use super::storage::{NOW, Storage, digest, manifest, repository};

#[tokio::test]
async fn a_manifest_is_not_there_before_its_memberships() -> Result<()> {
    let storage = Storage::aws().await?;
    let (repository, manifest) = (repository("a")?, manifest(5_000));
    let members = members(60);
    storage.endpoints().fail_next(Service::DynamoDb, "BatchWriteItem", 4 * ATTEMPTS);
    assert!(storage.ledger.put_manifest(&repository, &manifest, &members, true, NOW).await.is_err());
    storage.endpoints().heal();
    assert_eq!(storage.ledger.manifest(&repository, &manifest.digest).await?, None);

    let before = storage.endpoints().calls(Service::DynamoDb, "BatchWriteItem");
    storage.ledger.put_manifest(&repository, &manifest, &members, true, NOW).await?;
    assert_eq!(storage.endpoints().calls(Service::DynamoDb, "BatchWriteItem") - before, 3, "25 items at a time");
    Ok(())
}

#[tokio::test]
async fn what_is_proven_is_read_only_where_that_matters() -> Result<()> {
    let storage = Storage::aws().await?;
    let (repository, manifest) = (repository("a")?, manifest(5_000));
    for (keep_proofs, reads) in [(true, 1), (false, 0)] {
        let before = storage.endpoints().calls(Service::DynamoDb, "BatchGetItem");
        storage.ledger.put_manifest(&repository, &manifest, &members(60), keep_proofs, NOW).await?;
        assert_eq!(storage.endpoints().calls(Service::DynamoDb, "BatchGetItem") - before, reads, "{keep_proofs}");
    }
    Ok(())
}

#[tokio::test]
async fn warm_reads_are_one_round_trip() -> Result<()> {
    let storage = Storage::aws().await?;
    let (repository, manifest) = (repository("a")?, manifest(5_000));
    storage.ledger.put_manifest(&repository, &manifest, &[], true, NOW).await?;
    let before = storage.endpoints().calls(Service::DynamoDb, EVERY_OPERATION);
    storage.ledger.manifest(&repository, &manifest.digest).await?.context("absent")?;
    storage.ledger.get(&ReferenceKey(&repository, &"t".parse()?)).await?;
    storage.ledger.blob(&repository, &digest("blob")).await?;
    assert_eq!(storage.endpoints().calls(Service::DynamoDb, EVERY_OPERATION) - before, 3);
    Ok(())
}

#[tokio::test]
async fn a_process_that_remembers_asks_once_for_what_is_stored_and_again_after_its_own_write() -> Result<()> {
    let storage = Storage::aws().await?;
    let (endpoints, repository, digest) = (storage.endpoints(), repository("a")?, digest("blob"));
    let config = endpoints.sdk_config();
    let blobs = S3Blobs::new(aws::s3_client(&config), endpoints.bucket());
    let ledger = DynamoLedger::new(aws::dynamo_client(&config), endpoints.table(), blobs);
    ledger.remember();
    let reads = async || {
        let before = endpoints.calls(Service::DynamoDb, "BatchGetItem");
        let view = ledger.blob(&repository, &digest).await?;
        anyhow::Ok((endpoints.calls(Service::DynamoDb, "BatchGetItem") - before, view))
    };
    // What is not stored may be at any moment.
    assert_eq!([reads().await?.0, reads().await?.0], [1, 1]);
    let stored = BlobRecord { open: true, ..BlobRecord::new(BlobState::Stored { size: 7 }) };
    let version = ledger.swap(&digest, None, &stored).await?;
    assert_eq!([reads().await?.0, reads().await?.0], [1, 0]);
    let absent = BlobRecord::new(BlobState::Absent);
    assert!(ledger.swap(&digest, version, &absent).await?.is_some());
    let (asked, view) = reads().await?;
    assert!(asked == 1 && !view.is_stored(), "{view:?}");
    Ok(())
}

#[tokio::test]
async fn a_manifest_whose_object_was_deleted_is_absent_and_one_whose_object_was_changed_is_corrupt() -> Result<()> {
    let storage = Storage::aws().await?;
    let (repository, manifest) = (repository("a")?, manifest(400_000));
    storage.ledger.put_manifest(&repository, &manifest, &[], true, NOW).await?;
    let key = storage.endpoints().objects().pop().context("no object")?;
    let (s3, bucket) = (storage.endpoints().s3(), storage.endpoints().bucket());

    s3.delete_object().bucket(bucket).key(&key).send().await?;
    assert_eq!(storage.ledger.manifest(&repository, &manifest.digest).await?, None);

    let mut changed = manifest.bytes.to_vec();
    changed[100] ^= 1;
    for wrong in [changed.clone(), changed[1..].to_vec()] {
        s3.put_object().bucket(bucket).key(&key).body(ByteStream::from(wrong)).send().await?;
        let read = storage.ledger.manifest(&repository, &manifest.digest).await;
        assert!(matches!(read, Err(StoreError::Corrupt(_))), "{read:?}");
    }
    s3.delete_object().bucket(bucket).key(&key).send().await?;
    storage.ledger.put_manifest(&repository, &manifest, &[], true, NOW).await?;
    assert_eq!(storage.ledger.manifest(&repository, &manifest.digest).await?, Some((manifest, NOW)));
    Ok(())
}

#[tokio::test]
async fn a_large_manifest_is_no_blob_and_one_of_an_earlier_version_is_read() -> Result<()> {
    let storage = Storage::aws().await?;
    let (repository, manifest) = (repository("a")?, manifest(400_000));
    storage.ledger.put_manifest(&repository, &manifest, &[], true, NOW).await?;
    let (s3, bucket) = (storage.endpoints().s3(), storage.endpoints().bucket());
    let key = storage.endpoints().objects().pop().context("no object")?;
    let path = key.strip_prefix("manifests/").context("not below manifests/")?;
    assert_eq!(storage.blobs.size(&manifest.digest).await?, None);
    let earlier = format!("blobs/{path}");
    s3.put_object().bucket(bucket).key(&earlier).body(ByteStream::from(manifest.bytes.clone())).send().await?;
    s3.delete_object().bucket(bucket).key(&key).send().await?;
    let read = storage.ledger.manifest(&repository, &manifest.digest).await?;
    assert_eq!(read, Some((manifest.clone(), NOW)));
    storage.ledger.put_manifest(&repository, &manifest, &[], true, NOW).await?;
    let listed: Vec<_> = storage.blobs.list().try_collect().await?;
    assert_eq!(listed.iter().map(|stored| &stored.digest).collect::<Vec<_>>(), [&manifest.digest; 2]);
    storage.blobs.remove(&manifest.digest).await?;
    assert!(storage.endpoints().objects().is_empty());
    Ok(())
}

#[tokio::test]
async fn an_item_that_cannot_be_read_is_corrupt_and_not_absence() -> Result<()> {
    let storage = Storage::aws().await?;
    let (dynamo, digest) = (storage.endpoints().dynamodb(), digest("blob"));
    let text = |text: &str| AttributeValue::S(text.to_owned());
    let put = dynamo.put_item().table_name(storage.endpoints().table());
    put.item("pk", text(&format!("blob#{digest}"))).item("sk", text("blob")).item("state", text("?")).send().await?;
    let read = storage.ledger.blob(&repository("a")?, &digest).await;
    assert!(matches!(read, Err(StoreError::Corrupt(_))), "{read:?}");
    Ok(())
}

/// Loses the first answer of a client, after the service has done what it was asked.
#[derive(Debug, Default)]
struct FirstAnswerIsLost(AtomicBool);

impl Intercept for FirstAnswerIsLost {
    fn name(&self) -> &'static str {
        "FirstAnswerIsLost"
    }

    fn modify_before_deserialization(
        &self,
        context: &mut BeforeDeserializationInterceptorContextMut<'_>,
        _: &RuntimeComponents,
        _: &mut ConfigBag,
    ) -> Result<(), BoxError> {
        if !self.0.swap(true, Ordering::SeqCst) {
            *context.response_mut() = HttpResponse::new(500.try_into()?, ByteStream::from_static(b"").into_inner());
        }
        Ok(())
    }
}

#[tokio::test]
async fn a_conditional_write_whose_answer_was_lost_is_known_as_ones_own() -> Result<()> {
    for overwrites in [false, true] {
        let storage = Storage::aws().await?;
        let (endpoints, repository, digest) = (storage.endpoints(), repository("a")?, digest("blob"));
        if overwrites {
            assert!(storage.ledger.swap(&digest, None, &blob_record(0)).await?.is_some());
        }
        let version = storage.ledger.blob(&repository, &digest).await?.record.map(|record| record.version);
        let config = endpoints.sdk_config();
        let client = aws::dynamo_client(&config).config().to_builder().interceptor(FirstAnswerIsLost::default());
        let client = aws_sdk_dynamodb::Client::from_conf(client.build());
        let blobs = S3Blobs::new(aws::s3_client(&config), endpoints.bucket());
        let ledger = DynamoLedger::new(client, endpoints.table(), blobs);
        let before = endpoints.calls(Service::DynamoDb, "PutItem");
        assert!(ledger.swap(&digest, version, &blob_record(1)).await?.is_some());
        assert_eq!(endpoints.calls(Service::DynamoDb, "PutItem") - before, 2, "the SDK asked again");
        assert!(storage.ledger.swap(&digest, version, &blob_record(2)).await?.is_none());
        let read = storage.ledger.blob(&repository, &digest).await?.record.context("absent")?;
        assert_eq!(read.value, blob_record(1));
    }
    Ok(())
}
