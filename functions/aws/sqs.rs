//! Fills requested over an SQS queue and run by the filler function.

use async_trait::async_trait;
use aws_sdk_sqs::Client;
use aws_sdk_sqs::types::SendMessageBatchRequestEntry;
use futures_util::{StreamExt, TryStreamExt, stream};
use serde::Serialize;
use stopover::ports::{Fills, ImageJob, Job, Progress, Requested, StoreError};
use tokio::sync::watch;

use crate::failure::store_error;

/// How many messages `SendMessageBatch` takes.
const BATCH_MESSAGES: usize = 10;

/// How many batches of one request are sent at the same time.
const BATCHES_AT_ONCE: usize = 4;

/// [`Fills`] on one queue. The body of a message is a [`Work`](stopover::ports::Work) as JSON: a [`Job`] or an [`ImageJob`].
#[derive(Debug, Clone)]
pub struct SqsFills {
    client: Client,
    queue_url: String,
}

impl SqsFills {
    /// Fills requested at the queue with this URL.
    pub fn new(client: Client, queue_url: impl Into<String>) -> Self {
        Self { client, queue_url: queue_url.into() }
    }

    async fn send(&self, jobs: &[impl Serialize + Sync]) -> Result<(), StoreError> {
        let batches = jobs.chunks(BATCH_MESSAGES).map(|batch| self.send_batch(batch)).collect::<Vec<_>>();
        stream::iter(batches).buffer_unordered(BATCHES_AT_ONCE).try_collect::<()>().await
    }

    /// Sends at most [`BATCH_MESSAGES`] jobs; those the queue did not take are sent once more.
    async fn send_batch(&self, jobs: &[impl Serialize + Sync]) -> Result<(), StoreError> {
        let mut unsent = Vec::with_capacity(jobs.len());
        for (number, job) in jobs.iter().enumerate() {
            let entry = SendMessageBatchRequestEntry::builder().id(number.to_string()).message_body(message(job)?);
            unsent.push(entry.build().map_err(|error| StoreError::Corrupt(error.to_string()))?);
        }
        let mut reason = String::new();
        for _ in 0..2 {
            let request = self.client.send_message_batch().queue_url(&self.queue_url).set_entries(Some(unsent.clone()));
            let answer = request.send().await.map_err(|error| store_error("SendMessageBatch", &error))?;
            let Some(failed) = answer.failed.first() else {
                return Ok(());
            };
            reason = format!("{}: {}", failed.code(), failed.message().unwrap_or("no message"));
            unsent.retain(|entry| answer.failed.iter().any(|failed| failed.id() == entry.id()));
        }
        Err(StoreError::Unavailable(format!("SendMessageBatch: {} jobs were not taken: {reason}", unsent.len())))
    }
}

fn message(job: &impl Serialize) -> Result<String, StoreError> {
    serde_json::to_string(job).map_err(|error| StoreError::Corrupt(error.to_string()))
}

#[async_trait]
impl Fills for SqsFills {
    async fn request(&self, jobs: &[Job]) -> Result<(), StoreError> {
        self.send(jobs).await
    }

    async fn request_images(&self, images: &[ImageJob]) -> Result<(), StoreError> {
        self.send(images).await
    }

    async fn request_now(&self, job: &Job) -> Result<Option<watch::Receiver<Progress>>, StoreError> {
        let request = self.client.send_message().queue_url(&self.queue_url).message_body(message(job)?);
        request.send().await.map_err(|error| store_error("SendMessage", &error))?;
        Ok(None)
    }

    async fn list(&self) -> Result<Vec<Requested>, StoreError> {
        Err(StoreError::Refused("what was given up is in the dead-letter queue".into()))
    }

    async fn retry(&self) -> Result<usize, StoreError> {
        Err(StoreError::Refused("what was given up is in the dead-letter queue: redrive that".into()))
    }
}
