//! What only the AWS adapters promise: how they fail, what they cost, and that they know their own writes.

use std::collections::BTreeSet;
use std::sync::atomic::{AtomicBool, Ordering};

use anyhow::{Context as _, Result, ensure};
use aws::{DynamoLedger, S3Blobs, SqsFills};
use aws_sdk_dynamodb::config::http::HttpResponse;
use aws_sdk_dynamodb::config::interceptors::BeforeDeserializationInterceptorContextMut;
use aws_sdk_dynamodb::config::{ConfigBag, Intercept, RuntimeComponents};
use aws_sdk_dynamodb::error::BoxError;
use aws_sdk_dynamodb::types::AttributeValue;
use aws_sdk_s3::primitives::ByteStream;
use stopover::fill::FillError;
use stopover::oci::{Algorithm, Digest};
use stopover::ports::{
    BlobRecord, BlobState, Blobs as _, Fills as _, Job, Ledger as _, Location, StoreError,
};
use support::aws::{EVERY_OPERATION, Endpoints, Service};

use crate::storage::{Storage, blob, body, digest, manifest, repository};

const LARGE: usize = 20 * 1024 * 1024;
/// How often the SDK tries before it gives up.
const ATTEMPTS: usize = 3;

fn record(attempts: u32) -> BlobRecord {
    BlobRecord {
        state: BlobState::Absent,
        attempts,
        failure: None,
    }
}

fn jobs(count: usize) -> Result<Vec<Job>> {
    let repository = repository("library/nginx")?;
    let job = |number| Job {
        repository: repository.clone(),
        digest: digest(&format!("{number}")),
        size: number as u64,
    };
    Ok((0..count).map(job).collect())
}

async fn fills(endpoints: &Endpoints) -> SqsFills {
    SqsFills::new(
        aws::sqs_client(&endpoints.sdk_config().await),
        endpoints.queue_url(),
    )
}

#[tokio::test]
async fn a_storage_outage_is_not_absence() -> Result<()> {
    let storage = Storage::aws().await?;
    let (repository, digest) = (repository("a")?, digest("blob"));
    storage
        .endpoints()
        .fail_next(Service::S3, EVERY_OPERATION, ATTEMPTS);
    assert!(matches!(
        storage.blobs.size(&digest).await,
        Err(StoreError::Unavailable(_))
    ));
    for failure in 0..2 {
        let outage = || match failure {
            0 => storage
                .endpoints()
                .fail_next(Service::DynamoDb, EVERY_OPERATION, ATTEMPTS),
            _ => storage
                .endpoints()
                .throttle_next(Service::DynamoDb, EVERY_OPERATION, ATTEMPTS),
        };
        outage();
        assert!(matches!(
            storage.ledger.tag(&repository, &"t".parse()?).await,
            Err(StoreError::Unavailable(_))
        ));
        outage();
        assert!(matches!(
            storage.ledger.manifest(&repository, &digest).await,
            Err(StoreError::Unavailable(_))
        ));
        outage();
        assert!(matches!(
            storage.ledger.blob(&repository, &digest).await,
            Err(StoreError::Unavailable(_))
        ));
        outage();
        assert!(matches!(
            storage.ledger.swap_blob(&digest, None, &record(1)).await,
            Err(StoreError::Unavailable(_))
        ));
        outage();
        assert!(matches!(
            storage.ledger.put_membership(&repository, &digest, 1).await,
            Err(StoreError::Unavailable(_))
        ));
    }
    let view = storage.ledger.blob(&repository, &digest).await?;
    assert_eq!(
        (view.member, view.record),
        (None, None),
        "nothing was written"
    );
    Ok(())
}

#[tokio::test]
async fn services_that_are_gone_are_unavailable_and_a_wrong_key_is_refused() -> Result<()> {
    let endpoints = Endpoints::start().await?;
    let stranger = S3Blobs::new(
        aws::s3_client(&endpoints.sdk_config_signed_with("wrong").await),
        endpoints.bucket(),
    );
    assert!(matches!(
        stranger.size(&digest("blob")).await,
        Err(StoreError::Refused(_))
    ));
    let config = endpoints.sdk_config().await;
    let elsewhere = S3Blobs::new(aws::s3_client(&config), endpoints.bucket());
    let no_table = DynamoLedger::new(
        aws::dynamo_client(&config),
        "no-such-table",
        elsewhere.clone(),
    );
    assert!(matches!(
        no_table.tag(&repository("a")?, &"t".parse()?).await,
        Err(StoreError::Refused(_))
    ));
    let ledger = DynamoLedger::new(
        aws::dynamo_client(&config),
        endpoints.table(),
        elsewhere.clone(),
    );
    let fills = fills(&endpoints).await;
    drop(endpoints);
    assert!(matches!(
        elsewhere.size(&digest("blob")).await,
        Err(StoreError::Unavailable(_))
    ));
    assert!(matches!(
        ledger.tag(&repository("a")?, &"t".parse()?).await,
        Err(StoreError::Unavailable(_))
    ));
    assert!(matches!(
        fills.request(&jobs(1)?).await,
        Err(StoreError::Unavailable(_))
    ));
    Ok(())
}

#[tokio::test]
async fn a_throttled_call_is_tried_again() -> Result<()> {
    let storage = Storage::aws().await?;
    storage
        .endpoints()
        .throttle_next(Service::DynamoDb, EVERY_OPERATION, 1);
    assert_eq!(
        storage.ledger.tag(&repository("a")?, &"t".parse()?).await?,
        None
    );
    storage
        .endpoints()
        .throttle_next(Service::S3, EVERY_OPERATION, 1);
    assert_eq!(storage.blobs.size(&digest("blob")).await?, None);
    Ok(())
}

#[tokio::test]
async fn a_location_is_signed_without_network_for_fifteen_minutes_and_for_get_alone() -> Result<()>
{
    let storage = Storage::aws().await?;
    let (digest, content) = blob(1000);
    storage.store(&digest, &content).await?;
    let before = storage.endpoints().calls(Service::S3, EVERY_OPERATION);
    let Some(Location::Url(url)) = storage.blobs.locate(&digest).await? else {
        panic!("not a URL")
    };
    assert_eq!(
        storage.endpoints().calls(Service::S3, EVERY_OPERATION),
        before
    );
    assert!(url.contains("X-Amz-Expires=900&"), "{url}");
    let hex = digest.hex();
    assert!(
        url.contains(&format!("/blobs/sha256/{}/{hex}?", &hex[..2])),
        "{url}"
    );
    let client = reqwest::Client::new();
    assert_eq!(
        client
            .get(&url)
            .header("range", "bytes=10-19")
            .send()
            .await?
            .bytes()
            .await?,
        content.slice(10..20)
    );
    assert_eq!(client.head(&url).send().await?.status(), 403);
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
async fn a_body_of_another_length_is_not_stored() -> Result<()> {
    let storage = Storage::aws().await?;
    for size in [1000, LARGE] {
        for sent in [size - 1, size + 1] {
            let (digest, content) = blob(sent);
            assert!(
                storage
                    .store_body(&digest, size, body(&content, None))
                    .await
                    .is_err()
            );
            assert!(storage.is_empty()?, "{sent} bytes of {size}");
        }
    }
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
        ensure!(
            matches!(outcome, Err(FillError::Store(StoreError::Unavailable(_)))),
            "{operation}: {outcome:?}"
        );
        storage.endpoints().heal();
        assert!(storage.is_empty()?, "{operation}");
    }
    storage.store(&digest, &content).await?;
    ensure!(
        storage.download(&digest).await? == content,
        "other bytes came back"
    );
    Ok(())
}

#[tokio::test]
async fn a_manifest_is_not_there_before_its_memberships() -> Result<()> {
    let storage = Storage::aws().await?;
    let (repository, manifest) = (repository("a")?, manifest(5_000));
    let members: Vec<_> = jobs(60)?
        .into_iter()
        .map(|job| stopover::oci::Descriptor {
            digest: job.digest,
            size: job.size,
            foreign: false,
        })
        .collect();
    storage
        .endpoints()
        .fail_next(Service::DynamoDb, "BatchWriteItem", 4 * ATTEMPTS);
    assert!(
        storage
            .ledger
            .put_manifest(&repository, &manifest, &members)
            .await
            .is_err()
    );
    storage.endpoints().heal();
    assert_eq!(
        storage
            .ledger
            .manifest(&repository, &manifest.digest)
            .await?,
        None
    );

    let before = storage
        .endpoints()
        .calls(Service::DynamoDb, "BatchWriteItem");
    storage
        .ledger
        .put_manifest(&repository, &manifest, &members)
        .await?;
    assert_eq!(
        storage
            .endpoints()
            .calls(Service::DynamoDb, "BatchWriteItem")
            - before,
        3,
        "25 items at a time"
    );
    Ok(())
}

#[tokio::test]
async fn warm_reads_are_one_round_trip() -> Result<()> {
    let storage = Storage::aws().await?;
    let (repository, manifest) = (repository("a")?, manifest(5_000));
    storage
        .ledger
        .put_manifest(&repository, &manifest, &[])
        .await?;
    let before = storage
        .endpoints()
        .calls(Service::DynamoDb, EVERY_OPERATION);
    storage
        .ledger
        .manifest(&repository, &manifest.digest)
        .await?
        .context("absent")?;
    storage.ledger.tag(&repository, &"t".parse()?).await?;
    storage.ledger.blob(&repository, &digest("blob")).await?;
    assert_eq!(
        storage
            .endpoints()
            .calls(Service::DynamoDb, EVERY_OPERATION)
            - before,
        3
    );
    Ok(())
}

#[tokio::test]
async fn a_manifest_whose_object_was_deleted_is_absent_and_one_whose_object_was_changed_is_corrupt()
-> Result<()> {
    let storage = Storage::aws().await?;
    let (repository, manifest) = (repository("a")?, manifest(400_000));
    storage
        .ledger
        .put_manifest(&repository, &manifest, &[])
        .await?;
    let key = storage.endpoints().objects().pop().context("no object")?;
    let (s3, bucket) = (storage.endpoints().s3().await, storage.endpoints().bucket());

    s3.delete_object().bucket(bucket).key(&key).send().await?;
    assert_eq!(
        storage
            .ledger
            .manifest(&repository, &manifest.digest)
            .await?,
        None
    );

    let mut changed = manifest.bytes.to_vec();
    changed[100] ^= 1;
    for wrong in [changed.clone(), changed[1..].to_vec()] {
        s3.put_object()
            .bucket(bucket)
            .key(&key)
            .body(ByteStream::from(wrong))
            .send()
            .await?;
        let read = storage.ledger.manifest(&repository, &manifest.digest).await;
        assert!(matches!(read, Err(StoreError::Corrupt(_))), "{read:?}");
    }
    s3.delete_object().bucket(bucket).key(&key).send().await?;
    storage
        .ledger
        .put_manifest(&repository, &manifest, &[])
        .await?;
    assert_eq!(
        storage
            .ledger
            .manifest(&repository, &manifest.digest)
            .await?,
        Some(manifest)
    );
    Ok(())
}

#[tokio::test]
async fn an_item_that_cannot_be_read_is_corrupt_and_not_absence() -> Result<()> {
    let storage = Storage::aws().await?;
    let (dynamo, digest) = (storage.endpoints().dynamodb().await, digest("blob"));
    let text = |text: &str| AttributeValue::S(text.to_owned());
    let put = dynamo.put_item().table_name(storage.endpoints().table());
    put.item("pk", text(&format!("blob#{digest}")))
        .item("sk", text("blob"))
        .item("state", text("?"))
        .send()
        .await?;
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
            *context.response_mut() =
                HttpResponse::new(500.try_into()?, ByteStream::from_static(b"").into_inner());
        }
        Ok(())
    }
}

#[tokio::test]
async fn a_conditional_write_whose_answer_was_lost_is_known_as_ones_own() -> Result<()> {
    for overwrites in [false, true] {
        let storage = Storage::aws().await?;
        let (endpoints, repository, digest) =
            (storage.endpoints(), repository("a")?, digest("blob"));
        if overwrites {
            assert!(storage.ledger.swap_blob(&digest, None, &record(0)).await?);
        }
        let version = storage
            .ledger
            .blob(&repository, &digest)
            .await?
            .record
            .map(|record| record.version);
        let config = endpoints.sdk_config().await;
        let client = aws::dynamo_client(&config)
            .config()
            .to_builder()
            .interceptor(FirstAnswerIsLost::default());
        let client = aws_sdk_dynamodb::Client::from_conf(client.build());
        let blobs = S3Blobs::new(aws::s3_client(&config), endpoints.bucket());
        let ledger = DynamoLedger::new(client, endpoints.table(), blobs);
        let before = endpoints.calls(Service::DynamoDb, "PutItem");
        assert!(ledger.swap_blob(&digest, version, &record(1)).await?);
        assert_eq!(
            endpoints.calls(Service::DynamoDb, "PutItem") - before,
            2,
            "the SDK asked again"
        );
        assert!(
            !storage
                .ledger
                .swap_blob(&digest, version, &record(2))
                .await?
        );
        let read = storage
            .ledger
            .blob(&repository, &digest)
            .await?
            .record
            .context("absent")?;
        assert_eq!(read.value, record(1));
    }
    Ok(())
}

#[tokio::test]
async fn every_requested_fill_is_a_message_of_its_own() -> Result<()> {
    let endpoints = Endpoints::start().await?;
    let (fills, jobs) = (fills(&endpoints).await, jobs(25)?);
    fills.request(&[]).await?;
    assert_eq!(endpoints.queued_messages(), 0);
    fills.request(&jobs[..24]).await?;
    assert_eq!(endpoints.calls(Service::Sqs, "SendMessageBatch"), 3);
    ensure!(
        fills.request_now(&jobs[24]).await?.is_none(),
        "the filler is another process"
    );
    assert_eq!(endpoints.queued_messages(), 25);

    let mut received = BTreeSet::new();
    let sqs = endpoints.sqs().await;
    while received.len() < jobs.len() {
        let receive = sqs
            .receive_message()
            .queue_url(endpoints.queue_url())
            .max_number_of_messages(10);
        let messages = receive
            .send()
            .await?
            .messages
            .context("a message is missing")?;
        for message in messages {
            let job: Job = serde_json::from_str(message.body().context("no body")?)?;
            received.insert((job.size, job.digest, job.repository));
        }
    }
    assert_eq!(
        received,
        jobs.into_iter()
            .map(|job| (job.size, job.digest, job.repository))
            .collect()
    );
    Ok(())
}

#[tokio::test]
async fn a_queue_that_takes_nothing_is_unavailable() -> Result<()> {
    let endpoints = Endpoints::start().await?;
    let fills = fills(&endpoints).await;
    endpoints.fail_next(Service::Sqs, EVERY_OPERATION, ATTEMPTS);
    assert!(matches!(
        fills.request(&jobs(3)?).await,
        Err(StoreError::Unavailable(_))
    ));
    endpoints.fail_next(Service::Sqs, EVERY_OPERATION, ATTEMPTS);
    assert!(matches!(
        fills.request_now(&jobs(1)?[0]).await,
        Err(StoreError::Unavailable(_))
    ));
    assert_eq!(endpoints.queued_messages(), 0);
    Ok(())
}

#[tokio::test]
async fn objects_are_found_where_the_design_says() -> Result<()> {
    let storage = Storage::aws().await?;
    let (_, content) = blob(10);
    for algorithm in [Algorithm::Sha256, Algorithm::Sha512] {
        let digest = Digest::of(algorithm, &content);
        storage.store(&digest, &content).await?;
        let key = format!(
            "blobs/{}/{}/{}",
            algorithm.name(),
            &digest.hex()[..2],
            digest.hex()
        );
        assert!(storage.endpoints().objects().contains(&key), "{key}");
    }
    Ok(())
}
