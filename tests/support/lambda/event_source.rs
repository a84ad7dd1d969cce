//! The event source mappings of the SQS queues: batch size 1, `ReportBatchItemFailures`.

use std::{sync::Arc, time::Duration};

use aws_sdk_sqs::{
    Client,
    types::{Message, MessageSystemAttributeName},
};
use serde_json::{Map, Value, json};
use tokio::time::timeout;

use super::{Function, REGION, RecursiveLoop, function::Sandbox};
use crate::{
    aws::{self, Endpoints, Queues},
    loopback::Loopback,
};

/// Pollers that feed functions from the queue until they are dropped.
pub struct EventSource {
    queues: Arc<Queues>,
    _loopback: Loopback,
    functions: Vec<Function>,
}

impl EventSource {
    /// Polls each queue once per function: that many messages are worked on at a time.
    pub fn start(endpoints: &Endpoints, functions: Vec<Function>) -> anyhow::Result<Self> {
        Self::start_with(endpoints, functions, RecursiveLoop::of_template()?)
    }

    /// As [`Self::start`], with what becomes of a function that invokes itself through its queue.
    pub fn start_with(
        endpoints: &Endpoints,
        functions: Vec<Function>,
        recursive_loop: RecursiveLoop,
    ) -> anyhow::Result<Self> {
        let loopback = Loopback::new("event-source")?;
        for function in &functions {
            let urls = [endpoints.queue_url(), endpoints.background_queue_url()];
            for (queue_url, queue_arn) in urls.into_iter().zip(aws::queue_arns()) {
                let (client, sandbox) = (endpoints.sqs(), function.sandbox());
                loopback.spawn(Mapping { client, queue_url, queue_arn, sandbox, recursive_loop }.run());
            }
        }
        Ok(Self { queues: endpoints.queues(), _loopback: loopback, functions })
    }

    /// Waits until the queue is empty: every message was worked off, or is in the dead-letter queue.
    pub async fn wait_until_idle(&self, deadline: Duration) -> anyhow::Result<()> {
        timeout(deadline, self.queues.empty()).await.map_err(|_| {
            let logs: Vec<String> = self.functions.iter().map(Function::log).collect();
            anyhow::anyhow!("the queue is not empty after {deadline:?}; the functions' logs:\n{}", logs.join("\n"))
        })
    }

    /// The functions it feeds.
    pub fn functions(&self) -> &[Function] {
        &self.functions
    }
}

struct Mapping {
    client: Client,
    queue_url: String,
    queue_arn: String,
    sandbox: Arc<Sandbox>,
    recursive_loop: RecursiveLoop,
}

impl Mapping {
    async fn run(self) {
        loop {
            let received = self.client.receive_message().queue_url(&self.queue_url);
            let received = received
                .max_number_of_messages(1)
                .wait_time_seconds(20)
                .message_system_attribute_names(MessageSystemAttributeName::All)
                .send();
            match received.await {
                Ok(received) => {
                    for message in received.messages.unwrap_or_default() {
                        self.work_on(&message).await;
                    }
                }
                Err(error) => eprintln!("cannot poll the queue: {error:?}"),
            }
        }
    }

    /// Deletes the message if the function worked it off; otherwise it comes back after its visibility timeout.
    async fn work_on(&self, message: &Message) {
        let id = message.message_id.as_deref().unwrap_or_default();
        let attributes = message.attributes.as_ref();
        let sent_with = attributes.and_then(|all| all.get(&MessageSystemAttributeName::AwsTraceHeader));
        let Some(trace) = self.recursive_loop.next(sent_with.map(String::as_str)) else {
            eprintln!("message {id} is part of a recursive loop: it is not delivered");
            let handle = message.receipt_handle.clone();
            let shown = self.client.change_message_visibility().queue_url(&self.queue_url).visibility_timeout(0);
            if let Err(error) = shown.set_receipt_handle(handle).send().await {
                eprintln!("cannot put message {id} back: {error:?}");
            }
            return;
        };
        match self.sandbox.invoke_traced(json!({ "Records": [self.record(message)] }), trace).await {
            Ok(result) if succeeded(&result) => {
                let handle = message.receipt_handle.clone();
                let deleted = self.client.delete_message().queue_url(&self.queue_url).set_receipt_handle(handle);
                if let Err(error) = deleted.send().await {
                    eprintln!("cannot delete message {id}: {error:?}");
                }
            }
            Ok(result) => eprintln!("the function failed message {id}: {result}"),
            Err(error) => eprintln!("the function failed message {id}: {error}"),
        }
    }

    fn record(&self, message: &Message) -> Value {
        let attributes: Map<String, Value> = message
            .attributes
            .iter()
            .flatten()
            .map(|(name, value)| (name.as_str().to_owned(), Value::from(value.as_str())))
            .collect();
        json!({
            "messageId": message.message_id,
            "receiptHandle": message.receipt_handle,
            "body": message.body,
            "attributes": attributes,
            "messageAttributes": {},
            "md5OfBody": message.md5_of_body,
            "eventSource": "aws:sqs",
            "eventSourceARN": self.queue_arn,
            "awsRegion": REGION,
        })
    }
}

/// Of a batch of one: any reported failure, or a report that makes no sense, fails it.
fn succeeded(result: &Value) -> bool {
    match result.get("batchItemFailures") {
        None | Some(Value::Null) => true,
        Some(failures) => failures.as_array().is_some_and(Vec::is_empty),
    }
}
