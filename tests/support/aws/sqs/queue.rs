//! Standard queues: at least once, in any order, invisible while in flight, moved aside when received too often.

use std::{
    collections::BTreeMap,
    sync::{Mutex, MutexGuard, PoisonError},
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use base64::{Engine, prelude::BASE64_STANDARD};
use md5::{Digest, Md5};
use serde_json::json;
use tokio::{
    sync::watch,
    time::{Instant, timeout_at},
};

use super::{super::hex, ACCOUNT, arn};

/// The name of the queue of fills.
pub(crate) const QUEUE: &str = "stopover-fills";
/// The queue of fills that nobody waits for.
pub(crate) const BACKGROUND_QUEUE: &str = "stopover-background-fills";
/// The name of its dead-letter queue.
pub(crate) const DEAD_LETTER_QUEUE: &str = "stopover-fills-dead";

pub(super) const MAX_VISIBILITY: Duration = Duration::from_hours(12);
pub(super) const MAX_DELAY: Duration = Duration::from_mins(15);

/// What a deployment chooses about its queue.
#[derive(Clone, Copy, Debug)]
pub struct QueueSettings {
    /// How long a received message stays invisible to others.
    pub visibility_timeout: Duration,
    /// How often a message is received before it moves to the dead-letter queue.
    pub max_receive_count: u32,
    /// How many seconds that a message is asked to be hidden or delayed for pass in one second.
    pub speed: u32,
}

impl Default for QueueSettings {
    fn default() -> Self {
        Self { visibility_timeout: Duration::from_secs(30), max_receive_count: 3, speed: 1 }
    }
}

/// An error of the service: HTTP status, code and message.
pub(super) struct Refusal {
    pub(super) status: u16,
    pub(super) code: &'static str,
    pub(super) message: String,
}

impl Refusal {
    pub(super) fn new(status: u16, code: &'static str, message: impl Into<String>) -> Self {
        Self { status, code, message: message.into() }
    }

    pub(super) fn missing(name: &str) -> Self {
        Self::new(400, "MissingParameter", format!("The request must contain the parameter {name}."))
    }

    pub(super) fn invalid(name: &str, value: impl std::fmt::Display) -> Self {
        Self::new(400, "InvalidParameterValue", format!("Value {value} for parameter {name} is invalid."))
    }

    pub(super) fn no_queue() -> Self {
        Self::new(400, "QueueDoesNotExist", "The specified queue does not exist.")
    }
}

#[derive(Clone)]
pub(super) struct Message {
    pub(super) id: String,
    pub(super) body: String,
    pub(super) md5: String,
    /// Milliseconds since the epoch.
    pub(super) sent_at: u128,
    pub(super) first_received_at: Option<u128>,
    pub(super) receive_count: u32,
    /// It came to rest in the dead-letter queue.
    pub(super) dead: bool,
    /// The `X-Amzn-Trace-Id` that it was sent with.
    pub(super) trace: Option<String>,
    visible_at: Instant,
}

impl Message {
    /// Every receive makes a new handle; only the newest one deletes.
    pub(super) fn receipt_handle(&self) -> String {
        BASE64_STANDARD.encode(format!("{}:{}", self.id, self.receive_count))
    }

    fn is_in_flight(&self, now: Instant) -> bool {
        self.receive_count > 0 && self.visible_at > now
    }
}

#[derive(Default)]
struct Contents {
    queue: Vec<Message>,
    background: Vec<Message>,
    dead: Vec<Message>,
    sent: u64,
}

impl Contents {
    fn of(&mut self, queue: &str) -> &mut Vec<Message> {
        match queue {
            DEAD_LETTER_QUEUE => &mut self.dead,
            BACKGROUND_QUEUE => &mut self.background,
            _ => &mut self.queue,
        }
    }
}

/// The queues of fills and their dead-letter queue.
pub(crate) struct Queues {
    endpoint: String,
    settings: QueueSettings,
    contents: Mutex<Contents>,
    changed: watch::Sender<()>,
}

impl Queues {
    pub(super) fn new(endpoint: &str, settings: QueueSettings) -> Self {
        let endpoint = endpoint.to_owned();
        Self { endpoint, settings, contents: Mutex::default(), changed: watch::Sender::new(()) }
    }

    fn contents(&self) -> MutexGuard<'_, Contents> {
        self.contents.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn url(&self, queue: &str) -> String {
        format!("{}/{ACCOUNT}/{queue}", self.endpoint)
    }

    pub(crate) fn len(&self, queue: &str) -> usize {
        self.contents().of(queue).len()
    }

    /// Waits until the queues of fills hold nothing, neither waiting nor in flight.
    pub(crate) async fn empty(&self) {
        let mut changed = self.changed.subscribe();
        while self.len(QUEUE) + self.len(BACKGROUND_QUEUE) > 0 {
            // The sender lives in `self`: it cannot be gone.
            let _ = changed.changed().await;
        }
    }

    /// Returns the message's id and the MD5 of its body.
    pub(super) fn send(&self, queue: &str, body: &str, delay: Duration, trace: Option<&str>) -> (String, String) {
        let mut contents = self.contents();
        contents.sent += 1;
        let message = Message {
            id: format!("00000000-0000-4000-8000-{:012x}", contents.sent),
            body: body.to_owned(),
            md5: hex(Md5::digest(body).into()),
            sent_at: milliseconds(),
            first_received_at: None,
            receive_count: 0,
            dead: false,
            trace: trace.map(str::to_owned),
            visible_at: Instant::now() + delay / self.settings.speed,
        };
        let sent = (message.id.clone(), message.md5.clone());
        contents.of(queue).push(message);
        self.changed.send_replace(());
        sent
    }

    /// Up to `most` messages, as soon as there is one; nothing when the deadline passes.
    pub(super) async fn receive(
        &self,
        queue: &str,
        most: u64,
        visibility: Option<Duration>,
        deadline: Instant,
    ) -> Vec<Message> {
        let mut changed = self.changed.subscribe();
        loop {
            changed.mark_unchanged();
            let received = self.receive_now(queue, most, visibility.unwrap_or(self.settings.visibility_timeout));
            if !received.is_empty() || Instant::now() >= deadline {
                return received;
            }
            let next = self.contents().of(queue).iter().map(|message| message.visible_at).min();
            let wake_at = next.map_or(deadline, |next| next.min(deadline));
            // Woken by a change or by time: either way it looks again.
            let _ = timeout_at(wake_at, changed.changed()).await;
        }
    }

    fn receive_now(&self, queue: &str, most: u64, visibility: Duration) -> Vec<Message> {
        let now = Instant::now();
        let mut contents = self.contents();
        if queue != DEAD_LETTER_QUEUE {
            let spent = |message: &mut Message| {
                message.visible_at <= now && message.receive_count >= self.settings.max_receive_count
            };
            let moved: Vec<_> = contents.of(queue).extract_if(.., spent).collect();
            if !moved.is_empty() {
                contents.dead.extend(moved.into_iter().map(|message| Message { dead: true, ..message }));
                self.changed.send_replace(());
            }
        }
        let visible = contents.of(queue).iter_mut().filter(|message| message.visible_at <= now);
        let most = usize::try_from(most).unwrap_or(usize::MAX);
        let received = visible.take(most).map(|message| {
            message.receive_count += 1;
            message.first_received_at.get_or_insert_with(milliseconds);
            message.visible_at = now + visibility;
            message.clone()
        });
        received.collect()
    }

    /// Deletes the message if the handle is its newest; an older one changes nothing and is no error.
    pub(super) fn delete(&self, queue: &str, handle: &str) -> Result<(), Refusal> {
        check_handle(handle)?;
        self.contents().of(queue).retain(|message| message.receipt_handle() != handle);
        self.changed.send_replace(());
        Ok(())
    }

    pub(super) fn change_visibility(&self, queue: &str, handle: &str, timeout: Duration) -> Result<(), Refusal> {
        check_handle(handle)?;
        let now = Instant::now();
        let mut contents = self.contents();
        let message = contents.of(queue).iter_mut().find(|message| message.receipt_handle() == handle);
        let message = message.filter(|message| message.is_in_flight(now));
        let message =
            message.ok_or_else(|| Refusal::new(400, "MessageNotInflight", "The specified message isn't in flight."))?;
        message.visible_at = now + timeout / self.settings.speed;
        self.changed.send_replace(());
        Ok(())
    }

    pub(super) fn attributes(&self, queue: &str) -> BTreeMap<&'static str, String> {
        let now = Instant::now();
        let mut contents = self.contents();
        let messages = contents.of(queue);
        let in_flight = messages.iter().filter(|message| message.is_in_flight(now)).count();
        let waiting = messages.iter().filter(|message| message.visible_at <= now).count();
        let mut attributes = BTreeMap::from([
            ("ApproximateNumberOfMessages", waiting.to_string()),
            ("ApproximateNumberOfMessagesNotVisible", in_flight.to_string()),
            ("ApproximateNumberOfMessagesDelayed", (messages.len() - waiting - in_flight).to_string()),
            ("VisibilityTimeout", self.settings.visibility_timeout.as_secs().to_string()),
            ("QueueArn", arn(queue)),
        ]);
        if queue != DEAD_LETTER_QUEUE {
            let policy = json!({
                "deadLetterTargetArn": arn(DEAD_LETTER_QUEUE),
                "maxReceiveCount": self.settings.max_receive_count,
            });
            attributes.insert("RedrivePolicy", policy.to_string());
        }
        attributes
    }
}

fn check_handle(handle: &str) -> Result<(), Refusal> {
    let decoded = BASE64_STANDARD.decode(handle).ok().and_then(|bytes| String::from_utf8(bytes).ok());
    match decoded.as_deref().and_then(|text| text.rsplit_once(':')) {
        Some((_, count)) if count.parse::<u32>().is_ok() => Ok(()),
        _ => Err(Refusal::new(400, "ReceiptHandleIsInvalid", "The input receipt handle is invalid.")),
    }
}

fn milliseconds() -> u128 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_millis()
}
