//! The filler function: each message of its queues is one blob to copy into storage. Operators invoke it too.

use anyhow::Context as _;
use aws_lambda_events::sqs::{SqsBatchResponse, SqsMessage};
use lambda_runtime::{Error, LambdaEvent, service_fn, tracing};
use serde::Deserialize;
use serde_json::{Value, json};
use stopover::ports::{Job, Progress};
use stopover::{Cache, fill};
use tokio::sync::watch;

/// Why the function is invoked: an object with one member, which says what for.
#[derive(Deserialize)]
#[serde(rename_all = "snake_case")]
enum Event {
    /// Messages of a queue.
    #[serde(rename = "Records")]
    Messages(Vec<SqsMessage>),
    /// What `stopover fills` asks of one process.
    Fills(FillsCommand),
}

#[derive(Deserialize)]
#[serde(rename_all = "snake_case")]
enum FillsCommand {
    List,
    Retry,
}

#[tokio::main]
async fn main() -> Result<(), Error> {
    tracing::init_default_subscriber();
    let cache = aws::connect().await?;
    lambda_runtime::run(service_fn(|event| answer(&cache, event))).await
}

async fn answer(cache: &Cache, event: LambdaEvent<Event>) -> Result<Value, Error> {
    Ok(match event.payload {
        Event::Messages(messages) => serde_json::to_value(run_batch(cache, messages).await)?,
        Event::Fills(FillsCommand::List) => json!({ "fills": cache.fill_reports().await? }),
        Event::Fills(FillsCommand::Retry) => json!({ "retried": cache.fills.retry().await? }),
    })
}

/// Answers with the messages that are to come back. Those that keep failing, whatever the reason, end in the dead-letter
/// queue, where the operator sees them.
async fn run_batch(cache: &Cache, messages: Vec<SqsMessage>) -> SqsBatchResponse {
    let mut response = SqsBatchResponse::default();
    for message in messages {
        if let Err(error) = run(cache, &message).await {
            tracing::error!(message_id = message.message_id, error = format!("{error:#}"), "left to the queue");
            response.add_failure(message.message_id.unwrap_or_default());
        }
    }
    response
}

async fn run(cache: &Cache, message: &SqsMessage) -> anyhow::Result<()> {
    let job: Job = serde_json::from_str(message.body.as_deref().unwrap_or_default())
        .context("the message is no request for a fill")?;
    fill::run(cache, &job, &watch::channel(Progress::Waiting).0).await?;
    Ok(())
}
