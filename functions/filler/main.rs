//! The filler function: each message of the queue is one blob to copy into storage.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use anyhow::{Context as _, bail};
use aws_lambda_events::sqs::{SqsBatchResponse, SqsEvent, SqsMessage};
use futures_util::FutureExt as _;
use lambda_runtime::{Context, Error, LambdaEvent, service_fn, tracing};
use stopover::Cache;
use stopover::fill::{self, Filled};
use stopover::ports::{Job, Progress};
use tokio::sync::watch;

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
        if let Err(error) = run(cache, &message, &event.context).await {
            tracing::error!(message_id = message.message_id, error = format!("{error:#}"), "left to the queue");
            response.add_failure(message.message_id.unwrap_or_default());
        }
    }
    Ok(response)
}

/// Fills one blob, as far as the time of this invocation allows: the rest is another's.
async fn run(cache: &Arc<Cache>, message: &SqsMessage, context: &Context) -> anyhow::Result<()> {
    let job: Job = serde_json::from_str(message.body.as_deref().unwrap_or_default())
        .context("the message is no request for a fill")?;
    // The last parts have to be stored and the checkpoint written.
    let left = context.deadline().duration_since(SystemTime::now()).unwrap_or_default();
    let margin = (left / 8).clamp(Duration::from_millis(1500), Duration::from_mins(1)).min(left);
    let stop = tokio::time::sleep(left - margin).map(|()| margin / 2);
    match fill::run(cache, &job, &watch::channel(Progress::Waiting).0, stop).await? {
        Filled::Parked { progress: true } => {
            Ok(cache.fills.request(&[job]).await.context("the rest of a fill could not be requested")?)
        }
        // Another invocation would come no further.
        Filled::Parked { progress: false } => bail!("upstream sent too little in one invocation to go on from"),
        Filled::Stored | Filled::Already | Filled::Claimed => Ok(()),
    }
}
