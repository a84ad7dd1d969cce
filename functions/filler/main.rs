//! The filler function: each message of the queue is one blob to copy into storage.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use anyhow::Context as _;
use aws_lambda_events::sqs::{SqsBatchResponse, SqsEvent, SqsMessage};
use lambda_runtime::{Context, Error, LambdaEvent, service_fn, tracing};
use stopover::Cache;
use stopover::fill::{self, Filled};
use stopover::ports::{Job, Progress};
use tokio::sync::watch;
use tokio::time::Instant;

#[tokio::main]
async fn main() -> Result<(), Error> {
    tracing::init_default_subscriber();
    let cache = aws::connect().await?;
    lambda_runtime::run(service_fn(|event| run_batch(&cache, event))).await
}

/// Answers with the messages that are to come back. Those that keep failing, whatever the reason, end in the dead-letter
/// queue, where the operator sees them.
async fn run_batch(cache: &Arc<Cache>, event: LambdaEvent<SqsEvent>) -> Result<SqsBatchResponse, Error> {
    let mut response = SqsBatchResponse::default();
    for message in event.payload.records {
        if let Err(error) = run(cache, &message, deadline(&event.context)).await {
            tracing::error!(message_id = message.message_id, error = format!("{error:#}"), "left to the queue");
            response.add_failure(message.message_id.unwrap_or_default());
        }
    }
    Ok(response)
}

/// Fills one blob, as far as the time of this invocation allows: the rest is another's.
async fn run(cache: &Arc<Cache>, message: &SqsMessage, deadline: Instant) -> anyhow::Result<()> {
    let job: Job = serde_json::from_str(message.body.as_deref().unwrap_or_default())
        .context("the message is no request for a fill")?;
    let stop = tokio::time::sleep_until(deadline);
    if fill::run(cache, &job, &watch::channel(Progress::Waiting).0, stop).await? == Filled::Parked {
        cache.fills.request(&[job]).await.context("the rest of a fill could not be requested")?;
    }
    Ok(())
}

/// When a fill has to stop to have its last parts stored and its checkpoint written: an eighth of the invocation before
/// the end, at most a minute.
fn deadline(context: &Context) -> Instant {
    let left = context.deadline().duration_since(SystemTime::now()).unwrap_or_default();
    Instant::now() + left - (left / 8).min(Duration::from_mins(1))
}
