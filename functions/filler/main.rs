//! The filler function: each message of its queues is one blob to copy into storage, or one image whose blobs to
//! request. Operators and the schedules of the template invoke it too.

use std::sync::Arc;
use std::time::{Duration, UNIX_EPOCH};

use anyhow::{Context as _, bail, ensure};
use aws::metrics::{count, count_upstreams};
use aws::{Extension, PlaceRequest, Request, Site, SqsFills, Turn};
use aws_lambda_events::sqs::{SqsBatchResponse, SqsMessage};
use futures_util::FutureExt as _;
use lambda_runtime::{Context, Error, LambdaEvent, service_fn};
use serde::Deserialize;
use serde_json::{Value, json};
use stopover::cache::Cache;
use stopover::fill::Filled;
use stopover::journal::Metric;
use stopover::operate::{Course, RobotCommand};
use stopover::ports::{Job, Progress, Work};
use stopover::values::time::{Clock, Timestamp};
use tokio::sync::watch;

/// The event that invokes the function: an object with one member, which says what for.
#[derive(Deserialize)]
#[serde(rename_all = "snake_case")]
enum Event {
    /// Messages of a queue.
    #[serde(rename = "Records")]
    Messages(Vec<SqsMessage>),
    /// The commands of `stopover fills`, for this deployment.
    Fills(FillsCommand),
    /// The commands of `stopover robot`, for this deployment.
    Robots(RobotCommand),
    /// Looks for schedules that are due.
    Prefetch(PrefetchCommand),
    /// `{"sweep": {}}` from the schedule, `{"sweep": {"dry_run": true}}` from an operator.
    Sweep {
        #[serde(default)]
        dry_run: bool,
    },
}

#[derive(Deserialize)]
#[serde(rename_all = "snake_case")]
enum FillsCommand {
    List,
    Retry,
}

#[derive(Deserialize)]
#[serde(rename_all = "snake_case")]
enum PrefetchCommand {
    Scheduled,
}

/// The body of a message.
enum Body {
    /// `{"sweep": …}`.
    Sweep(Course),
    Request(Request),
}

impl Body {
    /// An untagged enum of serde would do, but reads no map whose keys are numbers, as those of a course are.
    fn parse(text: &str) -> serde_json::Result<Self> {
        let body: Value = serde_json::from_str(text)?;
        match body.get("sweep") {
            Some(course) => Course::deserialize(course).map(Self::Sweep),
            None => Request::deserialize(body).map(Self::Request),
        }
    }
}

/// About how many items one part of a sweep holds: some tens of bytes for each.
const ITEMS_OF_PART: usize = 1_000_000;

/// How often a fill is continued. The template tells Lambda to let it (`RecursiveLoop`), so its own bound is here: 16 hours.
const MOST_CONTINUATIONS: u32 = 64;

/// The longest pause between two attempts: what the queue itself would make of it.
const LONGEST_PAUSE: Duration = Duration::from_mins(16);

#[tokio::main]
async fn main() -> Result<(), Error> {
    aws::log::start();
    let (site, extension) = tokio::join!(aws::connect(|cache| cache), Extension::register());
    // What a process without a cache is asked for fails, and its queue or its operator asks again.
    let answer = async |event| {
        let site = site.as_ref().map_err(ToString::to_string)?;
        let cache = site.current().await.map_err(|wrong| wrong.to_string())?;
        answer(&cache, site, event).await
    };
    tokio::select! {
        ran = lambda_runtime::run(service_fn(answer)) => ran,
        () = aws::ended(extension, &site) => Ok(()),
    }
}

async fn answer(cache: &Arc<Cache>, site: &Site<Arc<Cache>>, event: LambdaEvent<Event>) -> Result<Value, Error> {
    let answered = perform(cache, site, event).await;
    count_upstreams(&cache.core.upstreams, true);
    cache.operate.write_counts_if_due().await;
    answered
}

async fn perform(cache: &Arc<Cache>, site: &Site<Arc<Cache>>, event: LambdaEvent<Event>) -> Result<Value, Error> {
    Ok(match event.payload {
        Event::Messages(messages) => serde_json::to_value(run_batch(cache, site, messages, &event.context).await)?,
        Event::Fills(FillsCommand::List) => serde_json::to_value(cache.operate.fill_reports().await?)?,
        Event::Fills(FillsCommand::Retry) => json!({ "retried": cache.core.storage.fills.retry().await? }),
        Event::Robots(command) => serde_json::to_value(cache.operate.robots(command).await?)?,
        Event::Prefetch(PrefetchCommand::Scheduled) => {
            json!({ "images": cache.prefetch.request_due_schedules().await? })
        }
        Event::Sweep { dry_run } => {
            let course = if dry_run { None } else { cache.operate.sweep_in_parts(ITEMS_OF_PART).await? };
            if let Some(course) = course {
                site.fills.request_part(&course).await?;
                return Ok(json!({ "requested": course }));
            }
            let report = cache.operate.sweep(dry_run).await?;
            count(if dry_run { &[] } else { &[(Metric::Sweeps, 1)] });
            serde_json::to_value(report)?
        }
    })
}

/// Returns the messages that are to come back. Those that keep failing end in the dead-letter queue, where the operator
/// sees them; what upstream does not have, or does not give us, is not tried again.
async fn run_batch(
    cache: &Arc<Cache>,
    site: &Site<Arc<Cache>>,
    messages: Vec<SqsMessage>,
    context: &Context,
) -> SqsBatchResponse {
    let mut response = SqsBatchResponse::default();
    for message in messages {
        let result = match Body::parse(message.body.as_deref().unwrap_or_default()) {
            Ok(Body::Sweep(course)) => run_part(cache, &site.fills, course).await,
            Ok(Body::Request(request)) => run(cache, site, request, context).await,
            Err(error) => Err(error).context("the message is no request for a fill or an image"),
        };
        if let Err(error) = result {
            put_off(&site.fills, &message).await;
            tracing::error!(message_id = message.message_id, error = format!("{error:#}"), "left to the queue");
            count(&[(Metric::FailedFills, 1)]);
            response.add_failure(message.message_id.unwrap_or_default());
        }
    }
    response
}

/// Has a message come back as soon as what failed may have passed. Its queue hides it for longer than an invocation may
/// take, which is right only for an invocation that was killed.
async fn put_off(fills: &SqsFills, message: &SqsMessage) {
    let (Some(queue), Some(receipt)) = (&message.event_source_arn, &message.receipt_handle) else { return };
    let attempts = message.attributes.get("ApproximateReceiveCount").and_then(|count| count.parse().ok());
    let pause = pause_after(attempts.unwrap_or(1));
    if let Err(error) = fills.hide(queue, receipt, pause).await {
        tracing::warn!(message_id = message.message_id, %error, "a message comes back only after its visibility timeout");
    }
}

/// Half a minute, and four times as long after each further attempt.
fn pause_after(attempts: u32) -> Duration {
    let factor = 4_u32.saturating_pow(attempts.saturating_sub(1));
    Duration::from_secs(30).saturating_mul(factor).min(LONGEST_PAUSE)
}

/// Does one part of a sweep, and requests the next one. The sweep counts once its last part is done; a part that fails
/// comes back from the queue.
async fn run_part(cache: &Arc<Cache>, fills: &SqsFills, course: Course) -> anyhow::Result<()> {
    match cache.operate.sweep_part(course).await?.1 {
        Some(next) => fills.request_part(&next).await.context("the next part of a sweep could not be requested")?,
        None => count(&[(Metric::Sweeps, 1)]),
    }
    Ok(())
}

async fn run(
    cache: &Arc<Cache>,
    site: &Site<Arc<Cache>>,
    mut request: Request,
    context: &Context,
) -> anyhow::Result<()> {
    let (fills, ledger) = (&site.fills, &site.ledger);
    let job = match &request.work {
        Work::Blob(job) => job.clone(),
        Work::Image(image) => return Ok(cache.prefetch.run(image).await?),
    };
    let continuation = request.continuation.unwrap_or_default();
    let upstream = job.repository.upstream.clone();
    // A fill of an upstream that is not configured any more fails at once.
    let config = cache.core.config.upstreams.get(&upstream).filter(|_| !request.hurried);
    let Some(config) = config else { return run_fill(cache, fills, job, continuation, context).await };
    let now = Clock::default().now();
    let ends_at = context.deadline().duration_since(UNIX_EPOCH).unwrap_or_default();
    let asking = PlaceRequest {
        job: &job,
        since: *request.waits_since.get_or_insert(now),
        invocation: &context.request_id,
        ends_at: Timestamp(ends_at.as_secs() + 1),
        limit: config.fills.get(),
    };
    if let Turn::After(pause) = ledger.take_place(&asking, now).await? {
        count(&[(Metric::PostponedFills, 1)]);
        return fills.request_again(&request, pause).await.context("a fill that waits could not be requested again");
    }
    let filled = run_fill(cache, fills, job, continuation, context).await;
    if let Err(error) = ledger.give_place_back(&upstream, &context.request_id).await {
        tracing::warn!(upstream.id = %upstream, %error, "a place at an upstream is free only when this invocation would have to end");
    }
    filled
}

/// Fills one blob, as far as the time of this invocation allows: another one continues.
async fn run_fill(
    cache: &Arc<Cache>,
    fills: &SqsFills,
    job: Job,
    continuation: u32,
    context: &Context,
) -> anyhow::Result<()> {
    let size = job.size;
    ensure!(
        continuation < MOST_CONTINUATIONS,
        "the fill of {} was continued {continuation} times: upstream is too slow for its size",
        job.digest
    );
    // Time for bytes that are on their way, and twice as much to store the last parts and to write the checkpoint.
    let left = context.deadline().duration_since(Clock::default().system_time()).unwrap_or_default();
    let margin = (left * 2 / 5).clamp(Duration::from_millis(1500), Duration::from_mins(1)).min(left);
    let stop = tokio::time::sleep(left.saturating_sub(margin)).map(|()| margin / 3);
    let filled = match cache.fill.run(&job, &watch::channel(Progress::Waiting).0, stop).await {
        // It would fail each time until the message is dead. The fill has logged it, and the next pull requests it
        // again.
        Err(error) if !error.may_pass() => return Ok(()),
        filled => filled?,
    };
    match filled {
        Filled::Parked { progress: true } => {
            let rest = Request { continuation: Some(continuation + 1), ..Work::Blob(job).into() };
            fills.request_again(&rest, Duration::ZERO).await.context("the rest of a fill could not be requested")
        }
        // Another invocation would get no further.
        Filled::Parked { progress: false } => bail!("upstream sent too little in one invocation to go on from"),
        Filled::Stored => {
            count(&[(Metric::Fills, 1), (Metric::FilledBytes, size)]);
            Ok(())
        }
        Filled::Already | Filled::Claimed => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_the_clock_sends_is_no_batch_of_messages() {
        let event = |text: &str| serde_json::from_str::<Event>(text);
        let scheduled = event(r#"{"prefetch": "scheduled"}"#).unwrap();
        assert!(matches!(scheduled, Event::Prefetch(PrefetchCommand::Scheduled)));
        assert!(matches!(event(r#"{"Records": []}"#).unwrap(), Event::Messages(messages) if messages.is_empty()));
        assert!(matches!(event(r#"{"sweep": {}}"#).unwrap(), Event::Sweep { dry_run: false }));
        assert!(matches!(event(r#"{"sweep": {"dry_run": true}}"#).unwrap(), Event::Sweep { dry_run: true }));
        assert!(matches!(event(r#"{"robots": "list"}"#).unwrap(), Event::Robots(RobotCommand::List)));
        let add = event(r#"{"robots": {"add": {"name": "ci", "expires": "90d"}}}"#).unwrap();
        assert!(matches!(add, Event::Robots(RobotCommand::Add { name, .. }) if name.as_str() == "ci"));
        for text in ["{}", r#"{"robots": {"add": {"name": "C I"}}}"#, r#"{"prefetch": "now"}"#, r#"{"sweep": "all"}"#] {
            assert!(event(text).is_err(), "{text}");
        }
    }

    #[test]
    fn a_failed_fill_is_back_within_a_minute_and_later_each_time() {
        let pauses = [0, 1, 2, 3, 4, 5, u32::MAX].map(|attempts| pause_after(attempts).as_secs());
        assert_eq!(pauses, [30, 30, 120, 480, 960, 960, 960]);
    }

    #[test]
    fn a_message_says_what_to_do_and_how_often_it_was_continued() {
        let digest = format!("sha256:{}", "0".repeat(64));
        let fill = format!(r#"{{"repository":{{"upstream":"a.test","name":"a"}},"digest":"{digest}","size":7}}"#);
        let first: Request = serde_json::from_str(&fill).unwrap();
        assert!(matches!(&first.work, Work::Blob(job) if job.size == 7) && first.continuation.is_none());
        let text = serde_json::to_string(&Request { continuation: Some(3), ..first }).unwrap();
        let again: Request = serde_json::from_str(&text).unwrap();
        assert!(matches!(again.work, Work::Blob(_)) && again.continuation == Some(3), "{text}");
    }
}
