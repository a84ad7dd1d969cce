//! Fills that are requested over SQS queues and run by the filler function.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use async_trait::async_trait;
use aws_sdk_sqs::Client;
use aws_sdk_sqs::types::SendMessageBatchRequestEntry;
use futures_util::{StreamExt, TryStreamExt, stream};
use serde::{Deserialize, Serialize};
use stopover::errors::{Failure, StoreError};
use stopover::identity::Payer;
use stopover::operate::Course;
use stopover::ports::{Fills, GivenUp, ImageJob, Job, Listed, Priority, Requested, Result, Watched, Work};
use stopover::values::time::Timestamp;

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

/// How many fills of one caller an instance has queued lately: what the embedded queue takes too. What is not filled then
/// is when a client asks for it.
const QUEUED_FOR_CALLER: u32 = 4096;

/// How long it takes until as many are taken to be filled: SQS does not say which are.
const DRAINED: Duration = Duration::from_mins(10);

/// The most callers that are told apart; further ones are not bounded until the fills of others are taken to be filled.
const CALLERS: usize = 10_000;

/// How many fills of each caller are taken to be queued, and since when.
#[derive(Debug, Default)]
struct Queued(Mutex<HashMap<Payer, (f64, Instant)>>);

impl Queued {
    /// The jobs that there is room for, in order.
    fn admitted<'a>(&self, jobs: &'a [Job], now: Instant) -> Vec<&'a Job> {
        let drained = |since: Instant| {
            f64::from(QUEUED_FOR_CALLER) * now.saturating_duration_since(since).div_duration_f64(DRAINED)
        };
        let mut queued = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if queued.len() >= CALLERS {
            queued.retain(|_, (count, since)| *count > drained(*since));
        }
        let mut admit = |job: &&Job| {
            let Some(payer) = job.payer else { return true };
            let (before, since) = queued.get(&payer).copied().unwrap_or((0.0, now));
            let after = (before - drained(since)).max(0.0) + 1.0;
            let admitted = after <= f64::from(QUEUED_FOR_CALLER);
            if admitted && (queued.len() < CALLERS || queued.contains_key(&payer)) {
                queued.insert(payer, (after, now));
            }
            admitted
        };
        jobs.iter().filter(|job| admit(job)).collect()
    }
}

/// The body of a message, as JSON: what is to be done, and how many invocations have continued it so far.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Request {
    /// A [`Job`] or an [`ImageJob`].
    #[serde(flatten)]
    pub work: Work,
    /// None if nobody has begun it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub continuation: Option<u32>,
    /// Since when it waits for a place at its upstream. None if it has not asked for one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub waits_since: Option<Timestamp>,
    /// A client waits for it: it needs no place.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub hurried: bool,
}

impl From<Work> for Request {
    fn from(work: Work) -> Self {
        Self { work, continuation: None, waits_since: None, hurried: false }
    }
}

/// [`Fills`] on these queues. The body of a message is a [`Request`].
#[derive(Debug, Clone)]
pub struct SqsFills {
    client: Client,
    queues: Queues,
    queued: Arc<Queued>,
}

/// A message of the dead-letter queue that is hidden from other readers for [`LOOK_SECONDS`].
struct Dead {
    work: Work,
    receipt: String,
}

impl SqsFills {
    /// Requests fills at these queues.
    pub fn new(client: Client, queues: Queues) -> Self {
        Self { client, queues, queued: Arc::default() }
    }

    /// Requests again what an earlier invocation has begun, or had to leave. It is received after a pause, and counts
    /// as a message that was never received: what only waits for its turn must not end in the dead-letter queue.
    ///
    /// # Errors
    /// The queue does not take the message.
    pub async fn request_again(&self, request: &Request, pause: Duration) -> Result<()> {
        let queue = match &request.work {
            Work::Blob(job) if job.priority == Priority::Interactive => &self.queues.interactive,
            _ => &self.queues.background,
        };
        let send = self.client.send_message().queue_url(queue).message_body(message(request)?);
        let send = send.delay_seconds(i32::try_from(pause.as_secs()).unwrap_or(i32::MAX));
        send.send().await.map(drop).map_err(|error| store_error("SendMessage", error))
    }

    /// Requests the next part of a sweep: a message with the one member `sweep`.
    ///
    /// # Errors
    /// The queue does not take the message.
    pub async fn request_part(&self, course: &Course) -> Result<()> {
        self.send(&[(&self.queues.background, vec![message(&serde_json::json!({ "sweep": course }))?])]).await
    }

    /// Hides a message for as long, instead of for the visibility timeout of its queue. `queue`: its ARN; `receipt`: what
    /// this receive of it is called.
    ///
    /// # Errors
    /// The queue is none of these, or refuses.
    pub async fn hide(&self, queue: &str, receipt: &str, pause: Duration) -> Result<()> {
        let name = queue.rsplit(':').next().unwrap_or_default();
        let of_name = |url: &&String| url.rsplit('/').next() == Some(name);
        let url = [&self.queues.interactive, &self.queues.background].into_iter().find(of_name);
        let url = url.ok_or_else(|| StoreError::Unavailable(format!("{queue} is no queue of fills").into()))?;
        self.change_visibility(url, receipt, pause).await
    }

    async fn change_visibility(&self, url: &str, receipt: &str, hidden: Duration) -> Result<()> {
        let seconds = i32::try_from(hidden.as_secs()).unwrap_or(i32::MAX);
        let change = self.client.change_message_visibility().queue_url(url);
        let change = change.receipt_handle(receipt).visibility_timeout(seconds);
        change.send().await.map(|_| ()).map_err(|error| store_error("ChangeMessageVisibility", error))
    }

    /// Up to ten dead messages that no other reader has hidden. A message that is no [`Work`] stays in the queue, and
    /// is logged.
    async fn receive_dead(&self) -> Result<(usize, Vec<Dead>)> {
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

    async fn delete_dead(&self, receipt: &str) -> Result<()> {
        let delete = self.client.delete_message().queue_url(&self.queues.dead).receipt_handle(receipt);
        delete.send().await.map(|_| ()).map_err(|error| store_error("DeleteMessage", error))
    }

    /// Sends messages, each to its queue.
    async fn send(&self, queues: &[(&String, Vec<String>)]) -> Result<()> {
        let batches =
            queues.iter().flat_map(|(url, bodies)| bodies.chunks(BATCH_MESSAGES).map(move |batch| (url, batch)));
        let batches = batches.map(|(url, batch)| self.send_batch(url, batch)).collect::<Vec<_>>();
        stream::iter(batches).buffer_unordered(BATCHES_AT_ONCE).try_collect::<()>().await
    }

    /// Sends at most [`BATCH_MESSAGES`] messages; those that the queue did not take are sent once more.
    async fn send_batch(&self, queue_url: &str, bodies: &[String]) -> Result<()> {
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

fn message(job: &impl Serialize) -> Result<String> {
    serde_json::to_string(job).map_err(|error| StoreError::Corrupt(Failure::because("a message", error)))
}

#[async_trait]
impl Fills for SqsFills {
    async fn request(&self, jobs: &[Job]) -> Result<()> {
        let (interactive, background): (Vec<&Job>, Vec<&Job>) = self
            .queued
            .admitted(jobs, Instant::now())
            .into_iter()
            .partition(|job| job.priority == Priority::Interactive);
        let bodies = |jobs: Vec<&Job>| jobs.into_iter().map(message).collect::<Result<Vec<_>, _>>();
        self.send(&[(&self.queues.interactive, bodies(interactive)?), (&self.queues.background, bodies(background)?)])
            .await
    }

    async fn request_images(&self, images: &[ImageJob]) -> Result<()> {
        let bodies = images.iter().map(message).collect::<Result<_, _>>()?;
        self.send(&[(&self.queues.background, bodies)]).await
    }

    async fn request_now(&self, job: &Job) -> Result<Option<Watched>> {
        let body = message(&Request { hurried: true, ..Work::Blob(job.clone()).into() })?;
        let request = self.client.send_message().queue_url(&self.queues.interactive).message_body(body);
        request.send().await.map_err(|error| store_error("SendMessage", error))?;
        Ok(None)
    }

    async fn list(&self) -> Result<Listed> {
        let (mut receipts, mut jobs, mut images) = (Vec::new(), HashMap::new(), Vec::new());
        loop {
            let (received, dead) = self.receive_dead().await?;
            for Dead { work, receipt } in dead {
                receipts.push(receipt);
                match work {
                    // A blob that was requested twice may be in the queue twice.
                    Work::Blob(job) => _ = jobs.insert(job.digest.clone(), job),
                    Work::Image(image) if images.contains(&image) => {}
                    Work::Image(image) => images.push(image),
                }
            }
            if received == 0 || receipts.len() >= MOST_DEAD {
                break;
            }
        }
        // Other readers see them again.
        let show = |receipt| self.change_visibility(&self.queues.dead, receipt, Duration::ZERO);
        let shown = receipts.iter().map(|receipt| show(receipt)).collect::<Vec<_>>();
        stream::iter(shown).buffer_unordered(CALLS_AT_ONCE).try_collect::<()>().await?;
        let given_up = |job| Requested { job, runs_here: false, written: 0, given_up: Some(GivenUp { reason: None }) };
        Ok(Listed { fills: jobs.into_values().map(given_up).collect(), images })
    }

    async fn retry(&self) -> Result<usize> {
        let mut retried = 0;
        loop {
            let (received, dead) = self.receive_dead().await?;
            // Requested before it is deleted: to request it twice does no harm, to lose it would.
            let (mut jobs, mut images) = (Vec::new(), Vec::new());
            for Dead { work, .. } in &dead {
                match work {
                    Work::Blob(job) => jobs.push(Job { payer: None, ..job.clone() }),
                    Work::Image(image) => images.push(ImageJob { payer: None, ..image.clone() }),
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_caller_has_only_so_many_fills_in_the_queue_and_others_have_theirs() {
        let (queued, now) = (Queued::default(), Instant::now());
        let jobs = |count: u32, payer: Option<u8>| -> Vec<Job> {
            let digest = format!("sha256:{}", "0".repeat(64)).parse().unwrap();
            let repository =
                stopover::oci::Repository { upstream: "a.test".parse().unwrap(), name: "a".parse().unwrap() };
            let payer = payer.map(|payer| Payer::Principal([payer; 16]));
            let job = Job { repository, digest, size: 1, priority: Priority::Interactive, payer };
            vec![job; count as usize]
        };
        let admitted = |count, payer, after| queued.admitted(&jobs(count, payer), now + after).len();
        assert_eq!(admitted(1000, Some(1), Duration::ZERO), 1000);
        assert_eq!(admitted(40_000, Some(1), Duration::ZERO), 3096);
        assert_eq!(admitted(1, Some(1), Duration::ZERO), 0);
        assert_eq!((admitted(10, Some(2), Duration::ZERO), admitted(9000, None, Duration::ZERO)), (10, 9000));
        assert_eq!(admitted(40_000, Some(1), DRAINED / 2), 2048);
        assert_eq!(admitted(40_000, Some(1), DRAINED * 9), 4096);
    }
}
