//! A sweep of a large table.

use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use anyhow::{Context as _, Result, ensure};
use aws::{DynamoLedger, S3Blobs, SqsFills};
use bytes::Bytes;
use futures_util::{StreamExt as _, TryStreamExt as _, stream};
use serde_json::json;
use stopover::oci::{Algorithm, Descriptor, Digest, Manifest, MediaType, Observed, Reference, Repository};
use stopover::operate::Course;
use stopover::ports::{Blobs, Ledger, Progress, Records as _};
use stopover::records::{BlobRecord, BlobState, ReferenceKey, TagRecord};
use stopover::values::time::Timestamp;
use support::aws::{EVERY_OPERATION, Endpoints, Service};
use support::lambda::EventSource;
use support::program::UPSTREAM;
use support::world::queues;
use tokio::sync::watch;

use crate::deployment::{FILLER, Plan};

/// Items of an image: its tag, its manifest, its layer and the memberships of that and of the configuration, which all share.
const ITEMS: usize = 5;
/// Of so many images one is old.
const OLD: usize = 10;
const DAY: u64 = 24 * 3600;
const MIB: u64 = 1024 * 1024;

/// Items of `STOPOVER_SWEEP_ITEMS`, else as many as a test has time for.
fn images() -> Result<usize> {
    match std::env::var("STOPOVER_SWEEP_ITEMS") {
        Ok(text) => Ok(text.parse::<usize>().context("STOPOVER_SWEEP_ITEMS is not a number")? / ITEMS),
        Err(_) => Ok(200),
    }
}

/// What a deployment has stored, written as the functions write it.
struct Stored {
    ledger: DynamoLedger,
    blobs: S3Blobs,
}

impl Stored {
    fn new(endpoints: &Endpoints) -> Self {
        let config = endpoints.sdk_config();
        let blobs = S3Blobs::new(aws::s3_client(&config), endpoints.bucket());
        Self { ledger: DynamoLedger::new(aws::dynamo_client(&config), endpoints.table(), blobs.clone()), blobs }
    }

    async fn blob(&self, content: Bytes, now: Timestamp) -> Result<Descriptor> {
        let (digest, size) = (Digest::of(Algorithm::Sha256, &content), content.len() as u64);
        let mut upload = self.blobs.begin(&digest, size, &watch::Sender::new(Progress::Waiting)).await?;
        upload.write(content).await?;
        upload.publish().await?;
        let record = BlobRecord { used_at: Some(now), ..BlobRecord::new(BlobState::Stored { size }) };
        self.ledger.swap(&digest, None, &record).await?.context("it was there")?;
        Ok(Descriptor { digest, size, foreign: false })
    }

    async fn images(&self, count: usize, now: Timestamp) -> Result<()> {
        let config = self.blob("{}".into(), now).await?;
        let written = (0..count).map(|number| {
            let age = if number.is_multiple_of(OLD) { 60 } else { 0 };
            self.image(number, &config, Timestamp(now.0 - age * DAY))
        });
        stream::iter(written).buffer_unordered(16).try_collect().await
    }

    async fn image(&self, number: usize, config: &Descriptor, now: Timestamp) -> Result<()> {
        let repository =
            Repository { upstream: UPSTREAM.parse()?, name: format!("team/image-{}", number / 20).parse()? };
        let layer = self.blob(format!("layer {number}").into(), now).await?;
        let descriptor = |kind: &str, of: &Descriptor| {
            let media_type = format!("application/vnd.oci.image.{kind}");
            json!({ "mediaType": media_type, "digest": of.digest.as_str(), "size": of.size })
        };
        let media_type = MediaType::OciManifest;
        let manifest = json!({
            "schemaVersion": 2,
            "mediaType": media_type.as_str(),
            "config": descriptor("config.v1+json", config),
            "layers": [descriptor("layer.v1.tar", &layer)],
        });
        let bytes = Bytes::from(manifest.to_string());
        let manifest = Manifest { digest: Digest::of(Algorithm::Sha256, &bytes), media_type, bytes };
        let members = [config.clone(), layer];
        self.ledger.put_manifest(&repository, &manifest, &members, true, now).await?;
        let tag = TagRecord {
            observed: Some(Observed::of(&manifest)),
            previous: None,
            checked_at: now,
            fresh_until: now,
            lease: None,
        };
        let reference = Reference::Tag(format!("v{number}").parse()?);
        self.ledger.swap(&ReferenceKey(&repository, &reference), None, &tag).await?.context("it was there")?;
        Ok(())
    }
}

/// Of half a million items: `STOPOVER_SWEEP_ITEMS=500000`.
#[tokio::test(flavor = "multi_thread")]
async fn a_sweep_removes_what_is_old_of_a_large_table_in_memory_that_is_bounded_by_its_items() -> Result<()> {
    let images = images()?;
    let endpoints = Endpoints::start().await?;
    let (_configuration, environment) = Plan::of("http://127.0.0.1:1").environment(&endpoints)?;
    let now = Timestamp(SystemTime::now().duration_since(UNIX_EPOCH)?.as_secs());
    let stored = Stored::new(&endpoints);
    let began = Instant::now();
    stored.images(images, now).await?;
    let wrote = began.elapsed();

    let filler = environment.start_with_timeout(FILLER, Duration::from_mins(15)).await?;
    let (idle, calls) = (filler.peak_resident_bytes()?, |operation| endpoints.calls(Service::DynamoDb, operation));
    let (before, began) = (calls(EVERY_OPERATION), Instant::now());
    let swept = filler.invoke(json!({ "sweep": {} })).await?;
    let (took, peak) = (began.elapsed(), filler.peak_resident_bytes()?);
    let old = images / OLD;
    ensure!((&swept["tags"], &swept["blobs"]) == (&json!(old), &json!(old)), "{swept}\n{}", filler.log());
    ensure!(swept["memberships"] == json!(old) && swept["unreadable"] == json!(0), "{swept}");
    ensure!(endpoints.objects().len() == images - old + 1, "{} objects", endpoints.objects().len());
    let items = ITEMS * images + 1;
    eprintln!(
        "{items} items, {} of them old: written in {} s, swept in {} s with {} calls of DynamoDB, \
         {} of them pages of the table, {} MiB resident ({} before)",
        ITEMS * old,
        wrote.as_secs(),
        took.as_secs(),
        calls(EVERY_OPERATION) - before,
        calls("Scan"),
        peak / MIB,
        idle / MIB
    );
    ensure!(peak < idle + 64 * MIB + 250 * items as u64, "{} MiB were resident, {} before", peak / MIB, idle / MIB);
    let again = filler.invoke(json!({ "sweep": {} })).await?;
    ensure!((&again["tags"], &again["blobs"]) == (&json!(0), &json!(0)), "{again}");
    Ok(())
}

/// As a sweep of more than a million items goes.
#[tokio::test(flavor = "multi_thread")]
async fn a_sweep_in_parts_goes_from_message_to_message_and_counts_once() -> Result<()> {
    const IMAGES: usize = 60;
    let endpoints = Endpoints::start().await?;
    let (_configuration, environment) = Plan::of("http://127.0.0.1:1").environment(&endpoints)?;
    let now = Timestamp(SystemTime::now().duration_since(UNIX_EPOCH)?.as_secs());
    Stored::new(&endpoints).images(IMAGES, now).await?;
    let source = EventSource::start(&endpoints, vec![environment.start(FILLER).await?])?;
    let fills = SqsFills::new(aws::sqs_client(&endpoints.sdk_config()), queues(&endpoints));
    let course = Course::first(ITEMS * IMAGES, ITEMS * IMAGES / 5, now).context("it has no parts")?;
    fills.request_part(&course).await?;
    source.wait_until_idle(Duration::from_mins(1)).await?;
    let log = source.functions()[0].log();
    let kept = IMAGES - IMAGES / OLD + 1;
    ensure!(endpoints.objects().len() == kept, "{} objects\n{log}", endpoints.objects().len());
    // Five parts of the repositories, and then as many of the blobs.
    ensure!(log.matches("\"swept\"").count() == 10 && log.matches("\"Sweeps\":1").count() == 1, "{log}");
    ensure!(endpoints.dead_messages() == 0, "{log}");
    Ok(())
}
