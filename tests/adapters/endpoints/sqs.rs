//! SQS: invisible while in flight, delivered again, moved aside, limited.

use std::time::{Duration, Instant};

use aws_sdk_sqs::{
    Client,
    types::{Message, MessageSystemAttributeName, QueueAttributeName, SendMessageBatchRequestEntry},
};
use support::aws::{Endpoints, QueueSettings, Service};

use super::s3::{refusal, refused};

async fn receive(client: &Client, queue: &str, wait: i32) -> Option<Message> {
    let receive = client.receive_message().queue_url(queue).wait_time_seconds(wait);
    let received = receive.message_system_attribute_names(MessageSystemAttributeName::All).send().await.unwrap();
    received.messages.unwrap_or_default().pop()
}

fn attribute(message: &Message, name: &MessageSystemAttributeName) -> String {
    message.attributes().unwrap()[name].clone()
}

async fn release(client: &Client, queue: &str, message: &Message) {
    let change = client.change_message_visibility().queue_url(queue).visibility_timeout(0);
    change.receipt_handle(message.receipt_handle().unwrap()).send().await.unwrap();
}

#[tokio::test]
async fn a_received_message_is_invisible_until_released_and_counts_its_receives() {
    let endpoints = Endpoints::start().await.unwrap();
    let (client, queue) = (endpoints.sqs(), endpoints.queue_url());
    let sent = client.send_message().queue_url(&queue).message_body("work").send().await.unwrap();
    assert_eq!(sent.md5_of_message_body(), Some("67e92c8765a9bc7fb2d335c459de9eb5"));
    let first = receive(&client, &queue, 0).await.unwrap();
    assert_eq!((first.body(), first.message_id()), (Some("work"), sent.message_id()));
    assert_eq!(first.md5_of_body(), sent.md5_of_message_body());
    assert_eq!(attribute(&first, &MessageSystemAttributeName::ApproximateReceiveCount), "1");
    assert_eq!(receive(&client, &queue, 0).await, None);
    release(&client, &queue, &first).await;
    let second = receive(&client, &queue, 0).await.unwrap();
    assert_eq!(attribute(&second, &MessageSystemAttributeName::ApproximateReceiveCount), "2");

    let delete =
        |message: &Message| client.delete_message().queue_url(&queue).receipt_handle(message.receipt_handle().unwrap());
    delete(&first).send().await.unwrap();
    assert_eq!(endpoints.queued_messages(), 1, "an outdated receipt handle deletes nothing");
    delete(&second).send().await.unwrap();
    assert_eq!(endpoints.queued_messages(), 0);
}

#[tokio::test]
async fn a_message_comes_back_after_its_visibility_timeout() {
    let settings = QueueSettings { visibility_timeout: Duration::from_millis(300), ..QueueSettings::default() };
    let endpoints = Endpoints::start_with(settings).await.unwrap();
    let (client, queue) = (endpoints.sqs(), endpoints.queue_url());
    client.send_message().queue_url(&queue).message_body("work").send().await.unwrap();
    let first = receive(&client, &queue, 0).await.unwrap();
    let began = Instant::now();
    let second = receive(&client, &queue, 20).await.unwrap();
    assert_eq!(first.message_id(), second.message_id());
    assert!(began.elapsed() < Duration::from_secs(10), "the long poll overslept the timeout");
}

#[tokio::test]
async fn a_long_poll_ends_when_a_message_arrives() {
    let endpoints = Endpoints::start().await.unwrap();
    let (client, queue) = (endpoints.sqs(), endpoints.queue_url());
    let began = Instant::now();
    let poll = receive(&client, &queue, 20);
    let send = async {
        // The poll must be under way first; the journal says when it is, and asking it is the only way to know.
        while endpoints.calls(Service::Sqs, "ReceiveMessage") == 0 {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        client.send_message().queue_url(&queue).message_body("work").send().await.unwrap();
    };
    let (received, ()) = tokio::join!(poll, send);
    assert_eq!(received.unwrap().body(), Some("work"));
    assert!(began.elapsed() < Duration::from_secs(10));
    assert_eq!(receive(&client, &queue, 1).await, None);
}

#[tokio::test]
async fn a_message_received_too_often_moves_to_the_dead_letter_queue() {
    let settings = QueueSettings { max_receive_count: 2, ..QueueSettings::default() };
    let endpoints = Endpoints::start_with(settings).await.unwrap();
    let (client, queue) = (endpoints.sqs(), endpoints.queue_url());
    client.send_message().queue_url(&queue).message_body("poison").send().await.unwrap();
    for _ in 0..2 {
        let message = receive(&client, &queue, 0).await.unwrap();
        release(&client, &queue, &message).await;
    }
    assert_eq!(receive(&client, &queue, 0).await, None);
    assert_eq!((endpoints.queued_messages(), endpoints.dead_messages()), (0, 1));
    assert_eq!(receive(&client, &endpoints.dlq_url(), 0).await.unwrap().body(), Some("poison"));
}

#[tokio::test]
async fn a_delayed_message_is_counted_but_not_delivered_yet() {
    let endpoints = Endpoints::start().await.unwrap();
    let (client, queue) = (endpoints.sqs(), endpoints.queue_url());
    client.send_message().queue_url(&queue).message_body("later").delay_seconds(900).send().await.unwrap();
    assert_eq!(receive(&client, &queue, 0).await, None);
    let asked = client.get_queue_attributes().queue_url(&queue).attribute_names(QueueAttributeName::All).send().await;
    let attributes = asked.unwrap().attributes.unwrap();
    assert_eq!(attributes[&QueueAttributeName::ApproximateNumberOfMessagesDelayed], "1");
    assert_eq!(attributes[&QueueAttributeName::ApproximateNumberOfMessages], "0");
    assert!(attributes[&QueueAttributeName::RedrivePolicy].contains("\"maxReceiveCount\":3"));
}

#[tokio::test]
async fn a_batch_is_limited_in_entries_and_in_bytes() {
    let endpoints = Endpoints::start().await.unwrap();
    let (client, queue) = (endpoints.sqs(), endpoints.queue_url());
    let entries = |count: usize, bytes: usize| {
        let entry =
            |id: usize| SendMessageBatchRequestEntry::builder().id(id.to_string()).message_body("x".repeat(bytes));
        Some((0..count).map(|id| entry(id).build().unwrap()).collect::<Vec<_>>())
    };
    let batch = |entries| client.send_message_batch().queue_url(&queue).set_entries(entries);
    assert_eq!(refusal(batch(entries(11, 1)).send().await), refused(400, "TooManyEntriesInBatchRequest"));
    assert_eq!(refusal(batch(entries(10, 26_215)).send().await), refused(400, "BatchRequestTooLong"));
    assert_eq!(endpoints.queued_messages(), 0);
    assert_eq!(batch(entries(10, 26_214)).send().await.unwrap().successful().len(), 10);
    assert_eq!(endpoints.queued_messages(), 10);
    let large = client.send_message().queue_url(&queue).message_body("x".repeat(262_145)).send().await;
    assert_eq!(refusal(large), refused(400, "InvalidParameterValue"));
}

#[tokio::test]
async fn a_queue_is_found_by_name_or_not_at_all() {
    let endpoints = Endpoints::start().await.unwrap();
    let client = endpoints.sqs();
    let name = endpoints.queue_url().rsplit('/').next().unwrap().to_owned();
    let found = client.get_queue_url().queue_name(name).send().await.unwrap();
    assert_eq!(found.queue_url(), Some(endpoints.queue_url().as_str()));
    let elsewhere = client.send_message().queue_url("http://127.0.0.1:1/0/none").message_body("x").send().await;
    assert_eq!(refusal(elsewhere), refused(400, "QueueDoesNotExist"));
}

#[tokio::test]
async fn an_injected_outage_is_seen_by_the_sender() {
    let endpoints = Endpoints::start().await.unwrap();
    let (client, queue) = (endpoints.sqs(), endpoints.queue_url());
    endpoints.fail_next(Service::Sqs, "SendMessage", 3);
    let send = client.send_message().queue_url(&queue).message_body("work").send().await;
    assert_eq!(refusal(send), refused(500, "InternalFailure"));
    assert_eq!(endpoints.queued_messages(), 0);
}
