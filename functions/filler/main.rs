//! The filler function: each message of the queue is one blob to copy into storage; once a day it sweeps.

use anyhow::Context as _;
use aws_lambda_events::sqs::{SqsBatchResponse, SqsMessage};
use lambda_runtime::{Error, LambdaEvent, service_fn, tracing};
use serde::{Deserialize, Serialize};
use stopover::ports::{Job, Progress};
use stopover::report::SweepReport;
use stopover::{Cache, fill};
use tokio::sync::watch;

/// What the function is invoked with. An object of one field says what is to be done.
#[derive(Deserialize)]
#[serde(rename_all = "snake_case")]
enum Event {
    /// Messages of the queue, as its event source sends them.
    #[serde(rename = "Records")]
    Fills(Vec<SqsMessage>),
    /// `{"sweep": {}}` of the schedule, `{"sweep": {"dry_run": true}}` of an operator.
    Sweep {
        #[serde(default)]
        dry_run: bool,
    },
}

/// What it answers.
#[derive(Serialize)]
#[serde(untagged)]
enum Answer {
    Fills(SqsBatchResponse),
    Sweep(SweepReport),
}

#[tokio::main]
async fn main() -> Result<(), Error> {
    tracing::init_default_subscriber();
    let cache = aws::connect().await?;
    lambda_runtime::run(service_fn(|event: LambdaEvent<Event>| answer(&cache, event.payload))).await
}

async fn answer(cache: &Cache, event: Event) -> Result<Answer, Error> {
    Ok(match event {
        Event::Fills(messages) => Answer::Fills(run_batch(cache, messages).await),
        Event::Sweep { dry_run } => Answer::Sweep(cache.sweep(dry_run).await?),
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_event_says_what_is_to_be_done() {
        let event = |text: &str| serde_json::from_str::<Event>(text);
        assert!(
            matches!(event(r#"{"Records": [{"messageId": "1", "body": "{}"}]}"#), Ok(Event::Fills(records)) if records.len() == 1)
        );
        assert!(matches!(event(r#"{"sweep": {}}"#), Ok(Event::Sweep { dry_run: false })));
        assert!(matches!(event(r#"{"sweep": {"dry_run": true}}"#), Ok(Event::Sweep { dry_run: true })));
        assert!(event(r#"{"swep": {}}"#).is_err());
    }
}
