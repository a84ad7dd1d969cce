//! SQS: the AWS JSON 1.0 protocol over [`queue`]. Requests must be signed; the signature is not verified.
//!
//! What is not modelled (FIFO queues, message attributes) is refused, never ignored.

mod queue;

use std::{sync::Arc, time::Duration};

use axum::{
    Router,
    body::Bytes,
    extract::State,
    http::{HeaderMap, StatusCode, header},
    response::{IntoResponse, Response},
};
use serde_json::{Map, Value, json};
use tokio::time::Instant;

pub use self::queue::QueueSettings;
pub(crate) use self::queue::{BACKGROUND_QUEUE, DEAD_LETTER_QUEUE, QUEUE, Queues};
use self::queue::{MAX_DELAY, MAX_VISIBILITY, Message, Refusal};
use super::{
    ACCESS_KEY_ID, ACCOUNT, REGION,
    journal::{Failure, Journal, Service},
};
use crate::loopback::Loopback;

/// The limit on one message and on all messages of one batch, in bytes.
const MAX_PAYLOAD: usize = 256 * 1024;
const MAX_BATCH: usize = 10;
const QUEUES: [&str; 3] = [QUEUE, BACKGROUND_QUEUE, DEAD_LETTER_QUEUE];
/// The longest long poll, in seconds.
const MAX_WAIT: u64 = 20;

#[derive(Clone)]
struct Api {
    queues: Arc<Queues>,
    journal: Arc<Journal>,
}

/// Starts the service and returns its endpoint URL and its queues.
pub(super) fn start(
    loopback: &Loopback,
    journal: Arc<Journal>,
    settings: QueueSettings,
) -> anyhow::Result<(String, Arc<Queues>)> {
    let (listener, address) = loopback.bind()?;
    let endpoint = format!("http://{address}");
    let queues = Arc::new(Queues::new(&endpoint, settings));
    let api = Api { queues: Arc::clone(&queues), journal };
    loopback.serve(listener, Router::new().fallback(answer).with_state(api));
    Ok((endpoint, queues))
}

/// The ARN of the queue of that name.
pub(crate) fn arn(name: &str) -> String {
    format!("arn:aws:sqs:{REGION}:{ACCOUNT}:{name}")
}

async fn answer(State(api): State<Api>, headers: HeaderMap, body: Bytes) -> Response {
    match dispatch(&api, &headers, &body).await {
        Ok(answer) => (json_type(), answer.to_string()).into_response(),
        Err(refusal) => {
            let status = StatusCode::from_u16(refusal.status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
            let body = json!({ "__type": format!("com.amazonaws.sqs#{}", refusal.code), "message": refusal.message });
            (status, json_type(), body.to_string()).into_response()
        }
    }
}

fn json_type() -> [(header::HeaderName, &'static str); 1] {
    [(header::CONTENT_TYPE, "application/x-amz-json-1.0")]
}

async fn dispatch(api: &Api, headers: &HeaderMap, body: &[u8]) -> Result<Value, Refusal> {
    let text = |name: &str| headers.get(name).and_then(|value| value.to_str().ok()).unwrap_or_default();
    let operation = text("x-amz-target").strip_prefix("AmazonSQS.").unwrap_or_default();
    if !text("authorization").contains(&format!("Credential={ACCESS_KEY_ID}/")) {
        return Err(Refusal::new(
            403,
            "InvalidClientTokenId",
            "The security token included in the request is invalid.",
        ));
    }
    match api.journal.record(Service::Sqs, operation) {
        Some(Failure::Internal) => {
            return Err(Refusal::new(500, "InternalFailure", "injected by the test"));
        }
        Some(Failure::Throttled) => {
            return Err(Refusal::new(400, "RequestThrottled", "injected by the test"));
        }
        None => {}
    }
    let request: Map<String, Value> =
        serde_json::from_slice(body).map_err(|error| Refusal::new(400, "SerializationException", error.to_string()))?;
    let request = Request(request);
    let queues = &api.queues;
    // SQS keeps it as the attribute AWSTraceHeader.
    let trace = Some(text("x-amzn-trace-id")).filter(|trace| !trace.is_empty());
    match operation {
        "SendMessage" => {
            let body = request.message()?;
            check_payload(body.len())?;
            let (id, md5) = queues.send(request.queue(queues)?, body, request.delay()?, trace);
            Ok(json!({ "MessageId": id, "MD5OfMessageBody": md5 }))
        }
        "SendMessageBatch" => send_batch(queues, &request, trace),
        "ReceiveMessage" => receive(queues, &request).await,
        "DeleteMessage" => {
            queues.delete(request.queue(queues)?, request.text("ReceiptHandle")?)?;
            Ok(json!({}))
        }
        "ChangeMessageVisibility" => {
            let timeout = request.seconds("VisibilityTimeout", MAX_VISIBILITY)?;
            let timeout = timeout.ok_or_else(|| Refusal::missing("VisibilityTimeout"))?;
            queues.change_visibility(request.queue(queues)?, request.text("ReceiptHandle")?, timeout)?;
            Ok(json!({}))
        }
        "GetQueueAttributes" => {
            let asked = request.names("AttributeNames");
            let mut attributes = queues.attributes(request.queue(queues)?);
            attributes.retain(|name, _| asked.iter().any(|asked| asked == "All" || asked == name));
            Ok(json!({ "Attributes": attributes }))
        }
        "GetQueueUrl" => {
            let name = request.text("QueueName")?;
            if QUEUES.contains(&name) { Ok(json!({ "QueueUrl": queues.url(name) })) } else { Err(Refusal::no_queue()) }
        }
        _ => Err(Refusal::new(400, "UnsupportedOperation", format!("{operation:?} is not modelled"))),
    }
}

fn send_batch(queues: &Queues, request: &Request, trace: Option<&str>) -> Result<Value, Refusal> {
    let queue = request.queue(queues)?;
    let entries = match request.0.get("Entries") {
        Some(Value::Array(entries)) if !entries.is_empty() => entries,
        _ => {
            return Err(Refusal::new(400, "EmptyBatchRequest", "There should be at least one entry in the request."));
        }
    };
    if entries.len() > MAX_BATCH {
        return Err(Refusal::new(400, "TooManyEntriesInBatchRequest", "Maximum number of entries per request are 10."));
    }
    let entries: Vec<Request> =
        entries.iter().map(|entry| Request(entry.as_object().cloned().unwrap_or_default())).collect();
    let mut checked: Vec<(&str, &str, Duration)> = Vec::new();
    for entry in &entries {
        let (id, body, delay) = (entry.text("Id")?, entry.message()?, entry.delay()?);
        if checked.iter().any(|(other, ..)| *other == id) {
            return Err(Refusal::new(400, "BatchEntryIdsNotDistinct", format!("Id {id} repeated.")));
        }
        checked.push((id, body, delay));
    }
    if checked.iter().map(|(_, body, _)| body.len()).sum::<usize>() > MAX_PAYLOAD {
        return Err(Refusal::new(
            400,
            "BatchRequestTooLong",
            format!("Batch requests cannot be longer than {MAX_PAYLOAD} bytes."),
        ));
    }
    let sent = checked.into_iter().map(|(entry, body, delay)| {
        let (id, md5) = queues.send(queue, body, delay, trace);
        json!({ "Id": entry, "MessageId": id, "MD5OfMessageBody": md5 })
    });
    Ok(json!({ "Successful": sent.collect::<Vec<_>>(), "Failed": [] }))
}

async fn receive(queues: &Queues, request: &Request) -> Result<Value, Refusal> {
    let queue = request.queue(queues)?;
    let most = request.number("MaxNumberOfMessages")?.unwrap_or(1);
    if !(1..=10).contains(&most) {
        return Err(Refusal::invalid("MaxNumberOfMessages", most));
    }
    let wait = request.seconds("WaitTimeSeconds", Duration::from_secs(MAX_WAIT))?.unwrap_or_default();
    let visibility = request.seconds("VisibilityTimeout", MAX_VISIBILITY)?;
    let mut asked = request.names("AttributeNames");
    asked.extend(request.names("MessageSystemAttributeNames"));
    let received = queues.receive(queue, most, visibility, Instant::now() + wait).await;
    if received.is_empty() {
        return Ok(json!({}));
    }
    let messages: Vec<Value> = received.iter().map(|message| received_message(message, &asked)).collect();
    Ok(json!({ "Messages": messages }))
}

fn received_message(message: &Message, asked: &[String]) -> Value {
    let mut attributes = Map::from_iter([
        ("SenderId".to_owned(), json!("AIDATESTS")),
        ("SentTimestamp".to_owned(), json!(message.sent_at.to_string())),
        (
            "ApproximateFirstReceiveTimestamp".to_owned(),
            json!(message.first_received_at.unwrap_or_default().to_string()),
        ),
        ("ApproximateReceiveCount".to_owned(), json!(message.receive_count.to_string())),
    ]);
    if let Some(trace) = &message.trace {
        attributes.insert("AWSTraceHeader".to_owned(), json!(trace));
    }
    if message.dead {
        attributes.insert("DeadLetterQueueSourceArn".to_owned(), json!(arn(QUEUE)));
    }
    attributes.retain(|name, _| asked.iter().any(|asked| asked == "All" || asked == name));
    let mut received = json!({
        "MessageId": message.id,
        "ReceiptHandle": message.receipt_handle(),
        "MD5OfBody": message.md5,
        "Body": message.body,
    });
    if !attributes.is_empty() {
        received["Attributes"] = Value::Object(attributes);
    }
    received
}

/// The members of a request, or of an entry of a batch.
struct Request(Map<String, Value>);

impl Request {
    fn text(&self, name: &str) -> Result<&str, Refusal> {
        self.0.get(name).and_then(Value::as_str).ok_or_else(|| Refusal::missing(name))
    }

    fn number(&self, name: &str) -> Result<Option<u64>, Refusal> {
        match self.0.get(name) {
            None | Some(Value::Null) => Ok(None),
            Some(value) => value.as_u64().map(Some).ok_or_else(|| Refusal::invalid(name, value)),
        }
    }

    fn seconds(&self, name: &str, most: Duration) -> Result<Option<Duration>, Refusal> {
        let seconds = self.number(name)?.map(Duration::from_secs);
        if seconds > Some(most) {
            return Err(Refusal::invalid(name, seconds.unwrap_or_default().as_secs()));
        }
        Ok(seconds)
    }

    fn names(&self, name: &str) -> Vec<String> {
        let names = self.0.get(name).and_then(Value::as_array);
        names.into_iter().flatten().filter_map(Value::as_str).map(str::to_owned).collect()
    }

    /// The name of the queue whose URL the request carries.
    fn queue(&self, queues: &Queues) -> Result<&'static str, Refusal> {
        let url = self.text("QueueUrl")?;
        QUEUES.into_iter().find(|name| queues.url(name) == url).ok_or_else(Refusal::no_queue)
    }

    fn delay(&self) -> Result<Duration, Refusal> {
        Ok(self.seconds("DelaySeconds", MAX_DELAY)?.unwrap_or_default())
    }

    /// A body of the characters that XML 1.0 allows, as the service demands.
    fn message(&self) -> Result<&str, Refusal> {
        for name in ["MessageAttributes", "MessageSystemAttributes", "MessageGroupId", "MessageDeduplicationId"] {
            let set = |value: &Value| !value.is_null() && value.as_object().is_none_or(|object| !object.is_empty());
            if self.0.get(name).is_some_and(set) {
                return Err(Refusal::new(400, "UnsupportedOperation", format!("{name} is not modelled")));
            }
        }
        let body = self.text("MessageBody")?;
        if body.is_empty() {
            return Err(Refusal::missing("MessageBody"));
        }
        let allowed = |character: char| matches!(character, '\t' | '\n' | '\r' | '\u{20}'..='\u{d7ff}' | '\u{e000}'..='\u{fffd}' | '\u{10000}'..);
        if body.chars().all(allowed) {
            Ok(body)
        } else {
            Err(Refusal::new(400, "InvalidMessageContents", "The message contains characters outside the allowed set."))
        }
    }
}

fn check_payload(bytes: usize) -> Result<(), Refusal> {
    if bytes > MAX_PAYLOAD {
        let reason =
            format!("One or more parameters are invalid. Reason: Message must be shorter than {MAX_PAYLOAD} bytes.");
        return Err(Refusal::new(400, "InvalidParameterValue", reason));
    }
    Ok(())
}
