//! The filler function, as the AWS column has it.

use std::future::pending;
use std::sync::Arc;

use stopover::cache::Cache;
use stopover::ports::{Progress, Work};
use tokio::sync::watch;
use tokio::task::JoinHandle;

use crate::aws::Endpoints;

/// Plays the filler function and its event sources in this process, so that a manual clock reaches the fills.
pub(crate) struct Filler([JoinHandle<()>; 2]);

impl Filler {
    pub(crate) fn start(cache: &Arc<Cache>, endpoints: &Endpoints) -> Self {
        let client = endpoints.sqs();
        Self(
            [endpoints.queue_url(), endpoints.background_queue_url()].map(|queue| {
                tokio::spawn(Self::work_off(Arc::clone(cache), client.clone(), queue, endpoints.dlq_url()))
            }),
        )
    }

    async fn work_off(cache: Arc<Cache>, client: aws_sdk_sqs::Client, queue: String, dead: String) {
        loop {
            let received =
                client.receive_message().queue_url(&queue).max_number_of_messages(10).wait_time_seconds(1).send().await;
            let Ok(received) = received else { return };
            for message in received.messages() {
                let outcome = match serde_json::from_str(message.body().unwrap_or_default()).expect("a request is work")
                {
                    Work::Blob(job) => {
                        let progress = watch::channel(Progress::Waiting).0;
                        match cache.fill.run(&job, &progress, pending()).await {
                            Err(error) if error.may_pass() => Err(()),
                            _ => Ok(()),
                        }
                    }
                    Work::Image(image) => cache.prefetch.run(&image).await.map_err(drop),
                };
                // A failed fill would come back much later than a test lasts: its message is dead at once.
                if outcome.is_err() {
                    let body = message.body().unwrap_or_default();
                    let _ = client.send_message().queue_url(&dead).message_body(body).send().await;
                }
                let receipt = message.receipt_handle().unwrap_or_default();
                let _ = client.delete_message().queue_url(&queue).receipt_handle(receipt).send().await;
            }
        }
    }
}

impl Drop for Filler {
    fn drop(&mut self) {
        self.0.iter().for_each(JoinHandle::abort);
    }
}
