//! Fills that are requested over SQS queues and run by the filler function.

use std::collections::HashMap;

use async_trait::async_trait;
use aws_sdk_sqs::Client;
use aws_sdk_sqs::types::SendMessageBatchRequestEntry;
use futures_util::{StreamExt, TryStreamExt, stream};
use serde::Serialize;
use stopover::errors::{Failure, StoreError};
use stopover::ports::{Fills, GivenUp, ImageJob, Job, Priority, Requested, Watched, Work};

use crate::failure::store_error;

/// How many messages `SendMessageBatch` takes.
const BATCH_MESSAGES: usize = 10;

/// How many batches of one request are sent at the same time.
const BATCHES_AT_ONCE: usize = 4;

/// How long dead messages are hidden while they are read: longer than it takes to read [`MOST_DEAD`] of them.
const LOOK_SECONDS: i32 = 120;

/// How many dead messages are read.
const MOST_DEAD: usize = 1000;

/// How many calls about single messages are made at the same time.
const CALLS_AT_ONCE: usize = 8;

/// The URLs of the queues. SQS has no priorities: fills for which no client waits have a queue of their own, whose
/// event source runs fewer fills at once, so that it never keeps clients waiting.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Queues {
    /// `STOPOVER_QUEUE_URL`: fills of what clients have pulled.
    pub interactive: String,
    /// `STOPOVER_BACKGROUND_QUEUE_URL`: all other fills.
    pub background: String,
    /// `STOPOVER_DEAD_QUEUE_URL`: the dead-letter queue of both.
    pub dead: String,
}

/// [`Fills`] on these queues. The body of a message is a [`Work`] as JSON: a [`Job`] or an [`ImageJob`].
#[derive(Debug, Clone)]
pub struct SqsFills {
    client: Client,
    queues: Queues,
}

/// A message of the dead-letter queue that is hidden from other readers for [`LOOK_SECONDS`].
struct Dead {
    work: Work,
    receipt: String,
}

impl SqsFills {
    /// Requests fills at these queues.
    pub fn new(client: Client, queues: Queues) -> Self {
        Self { client, queues }
    }

    /// Up to ten dead messages that no other reader has hidden. A message that is no [`Work`] stays in the queue, and
    /// is logged.
    async fn receive_dead(&self) -> Result<(usize, Vec<Dead>), StoreError> {
        // Long polling asks all servers of SQS; without it, only some are asked, and a nearly empty queue seems empty.
        let receive = self.client.receive_message().queue_url(&self.queues.dead).wait_time_seconds(1);
        let receive = receive.max_number_of_messages(10).visibility_timeout(LOOK_SECONDS);
        let received = receive.send().await.map_err(|error| store_error("ReceiveMessage", error))?;
        let messages = received.messages.unwrap_or_default();
        let (count, mut dead) = (messages.len(), Vec::new());
        for message in messages {
            match serde_json::from_str(message.body().unwrap_or_default()) {
                Ok(work) => dead.push(Dead { work, receipt: message.receipt_handle.unwrap_or_default() }),
                Err(error) => {
                    tracing::error!(message_id = message.message_id, %error, "a dead message is no request for a fill or an image");
                }
            }
        }
        Ok((count, dead))
    }

    /// Makes a dead message visible to other readers again.
    async fn put_back(&self, receipt: &str) -> Result<(), StoreError> {
        let show = self.client.change_message_visibility().queue_url(&self.queues.dead);
        let show = show.receipt_handle(receipt).visibility_timeout(0);
        show.send().await.map(|_| ()).map_err(|error| store_error("ChangeMessageVisibility", error))
    }

    async fn delete_dead(&self, receipt: &str) -> Result<(), StoreError> {
        let delete = self.client.delete_message().queue_url(&self.queues.dead).receipt_handle(receipt);
        delete.send().await.map(|_| ()).map_err(|error| store_error("DeleteMessage", error))
    }

    /// Sends messages, each to its queue.
    async fn send(&self, queues: &[(&String, Vec<String>)]) -> Result<(), StoreError> {
        let batches =
            queues.iter().flat_map(|(url, bodies)| bodies.chunks(BATCH_MESSAGES).map(move |batch| (url, batch)));
        let batches = batches.map(|(url, batch)| self.send_batch(url, batch)).collect::<Vec<_>>();
        stream::iter(batches).buffer_unordered(BATCHES_AT_ONCE).try_collect::<()>().await
    }

    /// Sends at most [`BATCH_MESSAGES`] messages; those that the queue did not take are sent once more.
    async fn send_batch(&self, queue_url: &str, bodies: &[String]) -> Result<(), StoreError> {
        let mut unsent = Vec::with_capacity(bodies.len());
        for (number, body) in bodies.iter().enumerate() {
            let entry = SendMessageBatchRequestEntry::builder().id(number.to_string()).message_body(body);
            unsent.push(entry.build().map_err(|error| StoreError::Corrupt(Failure::because("a message", error)))?);
        }
        let mut reason = String::new();
        for _ in 0..2 {
            let request = self.client.send_message_batch().queue_url(queue_url).set_entries(Some(unsent.clone()));
            let answer = request.send().await.map_err(|error| store_error("SendMessageBatch", error))?;
            let Some(failed) = answer.failed.first() else {
                return Ok(());
            };
            reason = format!("{}: {}", failed.code(), failed.message().unwrap_or("no message"));
            unsent.retain(|entry| answer.failed.iter().any(|failed| failed.id() == entry.id()));
        }
        Err(StoreError::Unavailable(format!("SendMessageBatch: {} jobs were not taken: {reason}", unsent.len()).into()))
    }
}

fn message(job: &impl Serialize) -> Result<String, StoreError> {
    serde_json::to_string(job).map_err(|error| StoreError::Corrupt(Failure::because("a message", error)))
}

#[async_trait]
impl Fills for SqsFills {
    async fn request(&self, jobs: &[Job]) -> Result<(), StoreError> {
        let (interactive, background): (Vec<&Job>, Vec<&Job>) =
            jobs.iter().partition(|job| job.priority == Priority::Interactive);
        let bodies = |jobs: Vec<&Job>| jobs.into_iter().map(message).collect::<Result<Vec<_>, _>>();
        self.send(&[(&self.queues.interactive, bodies(interactive)?), (&self.queues.background, bodies(background)?)])
            .await
    }

    async fn request_images(&self, images: &[ImageJob]) -> Result<(), StoreError> {
        let bodies = images.iter().map(message).collect::<Result<_, _>>()?;
        self.send(&[(&self.queues.background, bodies)]).await
    }

    async fn request_now(&self, job: &Job) -> Result<Option<Watched>, StoreError> {
        let request = self.client.send_message().queue_url(&self.queues.interactive).message_body(message(job)?);
        request.send().await.map_err(|error| store_error("SendMessage", error))?;
        Ok(None)
    }

    async fn list(&self) -> Result<Vec<Requested>, StoreError> {
        let (mut receipts, mut jobs) = (Vec::new(), HashMap::new());
        loop {
            let (received, dead) = self.receive_dead().await?;
            for Dead { work, receipt } in dead {
                receipts.push(receipt);
                match work {
                    // A blob that was requested twice may be in the queue twice.
                    Work::Blob(job) => _ = jobs.insert(job.digest.clone(), job),
                    // An image is no fill: the log of the filler says why it failed.
                    Work::Image(_) => {}
                }
            }
            if received == 0 || receipts.len() >= MOST_DEAD {
                break;
            }
        }
        let shown = receipts.iter().map(|receipt| self.put_back(receipt)).collect::<Vec<_>>();
        stream::iter(shown).buffer_unordered(CALLS_AT_ONCE).try_collect::<()>().await?;
        let given_up = |job| Requested { job, written: 0, given_up: Some(GivenUp { reason: None }) };
        Ok(jobs.into_values().map(given_up).collect())
    }

    async fn retry(&self) -> Result<usize, StoreError> {
        let mut retried = 0;
        loop {
            let (received, dead) = self.receive_dead().await?;
            // Requested before it is deleted: to request it twice does no harm, to lose it would.
            let (mut jobs, mut images) = (Vec::new(), Vec::new());
            for Dead { work, .. } in &dead {
                match work {
                    Work::Blob(job) => jobs.push(job.clone()),
                    Work::Image(image) => images.push(image.clone()),
                }
            }
            self.request(&jobs).await?;
            self.request_images(&images).await?;
            let deleted = dead.iter().map(|dead| self.delete_dead(&dead.receipt)).collect::<Vec<_>>();
            stream::iter(deleted).buffer_unordered(CALLS_AT_ONCE).try_collect::<()>().await?;
            retried += dead.len();
            if received == 0 || retried >= MOST_DEAD {
                return Ok(retried);
            }
        }
    }
}
