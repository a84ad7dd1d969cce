//! The filler function: each message of the queue is one blob to copy into storage, or one image whose blobs to request.

use std::sync::Arc;

use anyhow::Context as _;
use aws_lambda_events::sqs::{SqsBatchResponse, SqsEvent, SqsMessage};
use lambda_runtime::{Error, LambdaEvent, service_fn, tracing};
use serde::Deserialize;
use stopover::ports::{Progress, Work};
use stopover::{Cache, fill, prefetch};
use tokio::sync::watch;

#[tokio::main]
async fn main() -> Result<(), Error> {
    tracing::init_default_subscriber();
    let cache = aws::connect().await?;
    lambda_runtime::run(service_fn(|event| handle(&cache, event))).await
}

/// What the function is invoked with.
#[derive(Deserialize)]
#[serde(untagged)]
enum Event {
    /// By the clock: `{"prefetch": "scheduled"}`.
    Prefetch { prefetch: Scheduled },
    /// By the queue.
    Batch(SqsEvent),
}

#[derive(Deserialize)]
#[serde(rename_all = "snake_case")]
enum Scheduled {
    Scheduled,
}

async fn handle(cache: &Arc<Cache>, event: LambdaEvent<Event>) -> Result<SqsBatchResponse, Error> {
    match event.payload {
        Event::Batch(batch) => run_batch(cache, batch).await,
        Event::Prefetch { prefetch: Scheduled::Scheduled } => {
            cache.request_due_schedules().await?;
            Ok(SqsBatchResponse::default())
        }
    }
}

/// Answers with the messages that are to come back. Those that keep failing, whatever the reason, end in the dead-letter
/// queue, where the operator sees them.
async fn run_batch(cache: &Arc<Cache>, event: SqsEvent) -> Result<SqsBatchResponse, Error> {
    let mut response = SqsBatchResponse::default();
    for message in event.records {
        if let Err(error) = run(cache, &message).await {
            tracing::error!(message_id = message.message_id, error = format!("{error:#}"), "left to the queue");
            response.add_failure(message.message_id.unwrap_or_default());
        }
    }
    Ok(response)
}

async fn run(cache: &Arc<Cache>, message: &SqsMessage) -> anyhow::Result<()> {
    let body = message.body.as_deref().unwrap_or_default();
    match serde_json::from_str(body).context("the message is no request for a fill or an image")? {
        Work::Blob(job) => _ = fill::run(cache, &job, &watch::channel(Progress::Waiting).0).await?,
        Work::Image(image) => prefetch::run(cache, &image).await?,
    }
    Ok(())
}
