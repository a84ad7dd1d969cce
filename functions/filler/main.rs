//! The filler function: each message of its queues is one blob to copy into storage, or one image whose blobs to
//! request. Operators and the schedules of the template invoke it too.

use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, bail};
use aws_lambda_events::sqs::{SqsBatchResponse, SqsMessage};
use futures_util::FutureExt as _;
use lambda_runtime::{Context, Error, LambdaEvent, service_fn, tracing};
use serde::Deserialize;
use serde_json::{Value, json};
use stopover::cache::Cache;
use stopover::fill::Filled;
use stopover::operate::RobotCommand;
use stopover::ports::{Job, Progress, Work};
use stopover::values::time::Clock;
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

#[tokio::main]
async fn main() -> Result<(), Error> {
    tracing::init_default_subscriber();
    let site = aws::connect(|cache| cache).await?;
    lambda_runtime::run(service_fn(async |event| answer(&site.current().await?, event).await)).await
}

async fn answer(cache: &Arc<Cache>, event: LambdaEvent<Event>) -> Result<Value, Error> {
    Ok(match event.payload {
        Event::Messages(messages) => serde_json::to_value(run_batch(cache, messages, &event.context).await)?,
        Event::Fills(FillsCommand::List) => json!({ "fills": cache.operate.fill_reports().await? }),
        Event::Fills(FillsCommand::Retry) => json!({ "retried": cache.core.fills.retry().await? }),
        Event::Robots(command) => serde_json::to_value(cache.operate.robots(command).await?)?,
        Event::Prefetch(PrefetchCommand::Scheduled) => {
            json!({ "images": cache.prefetch.request_due_schedules().await? })
        }
        Event::Sweep { dry_run } => serde_json::to_value(cache.operate.sweep(dry_run).await?)?,
    })
}

/// Returns the messages that are to come back. Those that keep failing end in the dead-letter queue, where the operator
/// sees them; what upstream does not have, or does not give us, is not tried again.
async fn run_batch(cache: &Arc<Cache>, messages: Vec<SqsMessage>, context: &Context) -> SqsBatchResponse {
    let mut response = SqsBatchResponse::default();
    for message in messages {
        if let Err(error) = run(cache, &message, context).await {
            tracing::error!(message_id = message.message_id, error = format!("{error:#}"), "left to the queue");
            response.add_failure(message.message_id.unwrap_or_default());
        }
    }
    response
}

async fn run(cache: &Arc<Cache>, message: &SqsMessage, context: &Context) -> anyhow::Result<()> {
    let body = message.body.as_deref().unwrap_or_default();
    match serde_json::from_str(body).context("the message is no request for a fill or an image")? {
        Work::Blob(job) => run_fill(cache, job, context).await,
        Work::Image(image) => Ok(cache.prefetch.run(&image).await?),
    }
}

/// Fills one blob, as far as the time of this invocation allows: another one continues.
async fn run_fill(cache: &Arc<Cache>, job: Job, context: &Context) -> anyhow::Result<()> {
    // Time to store the last parts and to write the checkpoint.
    let left = context.deadline().duration_since(Clock::default().system_time()).unwrap_or_default();
    let margin = (left / 8).clamp(Duration::from_millis(1500), Duration::from_mins(1)).min(left);
    let stop = tokio::time::sleep(left.saturating_sub(margin)).map(|()| margin / 2);
    let filled = match cache.fill.run(&job, &watch::channel(Progress::Waiting).0, stop).await {
        // It would fail each time until the message is dead. The fill has logged it, and the next pull requests it
        // again.
        Err(error) if !error.may_pass() => return Ok(()),
        filled => filled?,
    };
    match filled {
        Filled::Parked { progress: true } => {
            Ok(cache.core.fills.request(&[job]).await.context("the rest of a fill could not be requested")?)
        }
        // Another invocation would get no further.
        Filled::Parked { progress: false } => bail!("upstream sent too little in one invocation to go on from"),
        Filled::Stored | Filled::Already | Filled::Claimed => Ok(()),
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
}
