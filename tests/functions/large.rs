//! A blob that takes longer than one invocation.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use support::aws::Endpoints;
use support::lambda::EventSource;
use support::vast::{Manner, Vast};

use crate::deployment::{FILLER, Plan};

const MIB: u64 = 1024 * 1024;
/// What a stop may cost: one part.
const PART: u64 = 8 * MIB;

/// Size of the blob and time of an invocation: those of `STOPOVER_FILL_GIB`, with 20 s, else something a test has time for.
fn scale() -> Result<(u64, Duration)> {
    match std::env::var("STOPOVER_FILL_GIB") {
        Ok(text) => {
            let gibibytes: u64 = text.parse().context("STOPOVER_FILL_GIB is not a number")?;
            Ok((gibibytes * 1024 * MIB, Duration::from_secs(20)))
        }
        Err(_) => Ok((256 * MIB, Duration::from_secs(10))),
    }
}

/// A filler that copies the blob of an upstream once it is asked to, and the services that it uses.
struct Copying {
    endpoints: Endpoints,
    source: EventSource,
    /// Bytes that were resident before the first request.
    idle: u64,
}

impl Copying {
    async fn start(vast: &Vast, timeout: Duration) -> Result<Self> {
        let endpoints = Endpoints::start().await?;
        let (configuration, environment) = Plan::of("http://127.0.0.1:1").environment(&endpoints)?;
        let text = std::fs::read_to_string(configuration.path())?;
        std::fs::write(configuration.path(), format!("{text}\n{}", vast.table()))?;
        let filler = environment.start_with_timeout(FILLER, timeout).await?;
        let idle = filler.peak_resident_bytes()?;
        let source = EventSource::start(&endpoints, vec![filler])?;
        Ok(Self { endpoints, source, idle })
    }

    async fn request(&self, vast: &Vast) -> Result<()> {
        let (queue, job) = (self.endpoints.sqs(), serde_json::to_string(&vast.job())?);
        queue.send_message().queue_url(self.endpoints.queue_url()).message_body(job).send().await?;
        Ok(())
    }

    fn log(&self) -> String {
        self.source.functions()[0].log()
    }

    /// Nothing but the blob is in the bucket, and no request was given up.
    fn ensure_stored(&self, vast: &Vast) -> Result<()> {
        let hex = vast.digest().hex();
        let key = format!("blobs/sha256/{}/{hex}", &hex[..2]);
        ensure!(self.endpoints.objects() == [key], "{:?}\n{}", self.endpoints.objects(), self.log());
        let left = (self.endpoints.dead_messages(), self.endpoints.multipart_uploads());
        ensure!(left == (0, 0), "dead messages and unfinished uploads: {left:?}");
        Ok(())
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_bucket_that_answers_no_more_costs_what_is_on_its_way_and_no_timeout() -> Result<()> {
    let timeout = Duration::from_secs(5);
    let vast = Vast::start(64 * MIB, Manner::default())?;
    let copying = Copying::start(&vast, timeout).await?;
    copying.endpoints.answer_parts(2);
    copying.request(&vast).await?;
    let is_parked = async {
        while !copying.log().contains("fill parked") {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    tokio::time::timeout(timeout * 4, is_parked).await.with_context(|| copying.log())?;
    copying.endpoints.heal();
    copying.source.wait_until_idle(timeout * 20).await?;
    let log = copying.log();
    ensure!(log.contains(&format!("\"offset_bytes\":{}", 2 * PART)), "what had arrived was kept:\n{log}");
    copying.ensure_stored(&vast)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_blob_that_takes_longer_than_an_invocation_is_copied_by_several_and_once() -> Result<()> {
    let (size, timeout) = scale()?;
    // Four connections of these do not bring a blob of this size in one invocation.
    let rate = if size > 1024 * MIB { 12 * MIB } else { 3 * MIB };
    let vast = Vast::start(size, Manner { bytes_per_second: Some(rate), ..Manner::default() })?;
    let copying = Copying::start(&vast, timeout).await?;
    copying.request(&vast).await?;
    copying.source.wait_until_idle(timeout * 100).await?;

    let log = copying.log();
    let stops = log.matches("fill parked").count() as u64;
    ensure!(stops >= 2, "it was stopped {stops} times:\n{log}");
    copying.ensure_stored(&vast)?;
    ensure!(vast.sent() <= size + stops * PART, "{} bytes were sent of {size}, in {stops} stops", vast.sent());
    let peak = copying.source.functions()[0].peak_resident_bytes()?;
    eprintln!(
        "{} MiB in {} invocations: {} MiB were sent, peak resident memory {} MiB ({} MiB before the first)",
        size / MIB,
        stops + 1,
        vast.sent() / MIB,
        peak / MIB,
        copying.idle / MIB
    );
    ensure!(peak <= 96 * MIB, "{} MiB were resident", peak / MIB);
    Ok(())
}
