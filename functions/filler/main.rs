//! The filler function: each message of the queue is one blob to copy into storage.

use anyhow::Context as _;
use aws_lambda_events::sqs::{SqsBatchResponse, SqsEvent, SqsMessage};
use lambda_runtime::{Error, LambdaEvent, service_fn, tracing};
use stopover::ports::{Job, Progress};
use stopover::{Cache, fill};
use tokio::sync::watch;

#[tokio::main]
async fn main() -> Result<(), Error> {
    tracing::init_default_subscriber();
    let cache = aws::connect().await?;
    lambda_runtime::run(service_fn(|event| run_batch(&cache, event))).await
}

/// Answers with the messages that are to come back. Those that keep failing, whatever the reason, end in the dead-letter
/// queue, where the operator sees them.
async fn run_batch(cache: &Cache, event: LambdaEvent<SqsEvent>) -> Result<SqsBatchResponse, Error> {
    let mut response = SqsBatchResponse::default();
    for message in event.payload.records {
        if let Err(error) = run(cache, &message).await {
            tracing::error!(message_id = message.message_id, error = format!("{error:#}"), "left to the queue");
            response.add_failure(message.message_id.unwrap_or_default());
        }
    }
    Ok(response)
}

async fn run(cache: &Cache, message: &SqsMessage) -> anyhow::Result<()> {
    let job: Job = serde_json::from_str(message.body.as_deref().unwrap_or_default())
        .context("the message is no request for a fill")?;
    fill::run(cache, &job, &watch::channel(Progress::Waiting).0).await?;
    Ok(())
}
