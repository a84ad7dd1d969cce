//! Fills that are continued by one invocation after the other.

use std::time::Duration;

use anyhow::{Result, ensure};
use serde_json::Value;
use support::aws::{Endpoints, QueueSettings};
use support::lambda::{EventSource, RecursiveLoop, trace_of};
use support::vast::{Manner, Vast};

use crate::deployment::{FILLER, Plan};

const MIB: u64 = 1024 * 1024;
const TIMEOUT: Duration = Duration::from_secs(8);
/// Six connections bring some 50 MiB in an invocation.
const RATE: u64 = 2 * MIB;

/// What became of a blob that one invocation cannot copy, if its request came with such a trace header and said how often
/// it was continued: the endpoints, and the log of the filler.
async fn filled(
    size: u64,
    chain: u32,
    continuation: Option<u32>,
    recursive_loop: RecursiveLoop,
) -> Result<(Endpoints, String)> {
    let vast = Vast::start(size, Manner { bytes_per_second: Some(RATE), ..Manner::default() })?;
    let settings = QueueSettings { visibility_timeout: TIMEOUT * 2, max_receive_count: 2, speed: 30 };
    let endpoints = Endpoints::start_with(settings).await?;
    let (configuration, environment) = Plan::of("http://127.0.0.1:1").environment(&endpoints)?;
    let text = std::fs::read_to_string(configuration.path())?;
    std::fs::write(configuration.path(), format!("{text}\n{}", vast.table()))?;
    let filler = environment.start_with_timeout(FILLER, TIMEOUT).await?;
    let mut job = serde_json::to_value(vast.job())?;
    if let Some(continuation) = continuation {
        job["continuation"] = continuation.into();
    }
    let client = endpoints.sqs();
    let send = client.send_message().queue_url(endpoints.queue_url()).message_body(job.to_string());
    let trace = trace_of(chain);
    let traced = send.customize().mutate_request(move |request| {
        request.headers_mut().insert("x-amzn-trace-id", trace.clone());
    });
    traced.send().await?;
    let source = EventSource::start_with(&endpoints, vec![filler], recursive_loop)?;
    source.wait_until_idle(TIMEOUT * 40).await?;
    let log = source.functions()[0].log();
    Ok((endpoints, log))
}

#[tokio::test(flavor = "multi_thread")]
async fn lambda_stops_a_chain_of_continuations_unless_the_template_lets_it_go_on() -> Result<()> {
    // The first invocation is the sixteenth of its chain, so that the rest is for the seventeenth.
    let (endpoints, log) = filled(80 * MIB, 15, None, RecursiveLoop::Terminate).await?;
    ensure!(log.contains("fill parked") && endpoints.objects().is_empty(), "{log}");
    ensure!(endpoints.dead_messages() == 1, "the rest was not given up:\n{log}");

    let (endpoints, log) = filled(80 * MIB, 15, None, RecursiveLoop::of_template()?).await?;
    ensure!(log.contains("fill parked") && endpoints.objects().len() == 1, "{log}");
    ensure!(endpoints.dead_messages() == 0, "{log}");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_fill_that_was_continued_64_times_is_dead_without_another_byte_and_the_log_says_why() -> Result<()> {
    let (endpoints, log) = filled(192 * MIB, 1, Some(63), RecursiveLoop::Allow).await?;
    ensure!(log.contains("was continued 64 times"), "{log}");
    ensure!(log.matches("fill parked").count() == 1, "{log}");
    ensure!(endpoints.objects().is_empty() && endpoints.dead_messages() == 1, "{log}");
    let receive = endpoints.sqs().receive_message().queue_url(endpoints.dlq_url()).send().await?;
    let dead: Value = serde_json::from_str(receive.messages()[0].body().unwrap_or_default())?;
    ensure!(dead["continuation"] == 64, "{dead}");
    Ok(())
}
