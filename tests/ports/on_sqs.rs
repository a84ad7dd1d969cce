//! What the fills on SQS promise: `Fills`, where the embedded queue needs a whole cache to run them.

use std::collections::BTreeSet;

use anyhow::{Context as _, Result, ensure};
use aws::SqsFills;
use stopover::oci::Platforms;
use stopover::ports::{Fills as _, ImageJob, Job, Priority, StoreError, Work};
use support::aws::{EVERY_OPERATION, Endpoints, Service};

use crate::outages::ATTEMPTS;
use crate::storage::{digest, repository};

pub(crate) fn jobs(count: usize) -> Result<Vec<Job>> {
    let repository = repository("library/nginx")?;
    let job = |number| Job {
        repository: repository.clone(),
        digest: digest(&format!("{number}")),
        size: number as u64,
        priority: Priority::Interactive,
    };
    Ok((0..count).map(job).collect())
}

pub(crate) async fn fills(endpoints: &Endpoints) -> SqsFills {
    SqsFills::new(aws::sqs_client(&endpoints.sdk_config().await), endpoints.queue_url())
}

#[tokio::test]
async fn every_requested_fill_is_a_message_of_its_own() -> Result<()> {
    let endpoints = Endpoints::start().await?;
    let (fills, jobs) = (fills(&endpoints).await, jobs(25)?);
    fills.request(&[]).await?;
    assert_eq!(endpoints.queued_messages(), 0);
    fills.request(&jobs[..24]).await?;
    assert_eq!(endpoints.calls(Service::Sqs, "SendMessageBatch"), 3);
    ensure!(fills.request_now(&jobs[24]).await?.is_none(), "the filler is another process");
    assert_eq!(endpoints.queued_messages(), 25);

    let mut received = BTreeSet::new();
    let sqs = endpoints.sqs().await;
    while received.len() < jobs.len() {
        let receive = sqs.receive_message().queue_url(endpoints.queue_url()).max_number_of_messages(10);
        let messages = receive.send().await?.messages.context("a message is missing")?;
        for message in messages {
            let job: Job = serde_json::from_str(message.body().context("no body")?)?;
            received.insert((job.size, job.digest, job.repository));
        }
    }
    assert_eq!(received, jobs.into_iter().map(|job| (job.size, job.digest, job.repository)).collect());
    Ok(())
}

/// Messages that an earlier version has sent are read by the next one.
#[tokio::test]
async fn a_message_is_a_blob_or_an_image() -> Result<()> {
    let endpoints = Endpoints::start().await?;
    let (fills, job) = (fills(&endpoints).await, jobs(1)?.remove(0));
    let image = ImageJob {
        repository: job.repository.clone(),
        reference: "1.27".parse()?,
        platforms: Platforms::Only(vec!["linux/arm/v7".parse()?]),
        priority: Priority::Refresh,
    };
    fills.request_images(std::slice::from_ref(&image)).await?;
    fills.request(std::slice::from_ref(&job)).await?;
    let mut received = Vec::new();
    let sqs = endpoints.sqs().await;
    while received.len() < 2 {
        let receive = sqs.receive_message().queue_url(endpoints.queue_url()).max_number_of_messages(10);
        for message in receive.send().await?.messages.context("a message is missing")? {
            received.push(serde_json::from_str::<Work>(message.body().context("no body")?)?);
        }
    }
    ensure!(received.contains(&Work::Image(image)) && received.contains(&Work::Blob(job.clone())), "{received:?}");
    let old = format!(r#"{{"repository":{{"upstream":"a.b","name":"c"}},"digest":"{}","size":1}}"#, job.digest);
    assert!(matches!(serde_json::from_str(&old)?, Work::Blob(Job { size: 1, .. })));
    Ok(())
}

#[tokio::test]
async fn a_queue_that_takes_nothing_is_unavailable() -> Result<()> {
    let endpoints = Endpoints::start().await?;
    let fills = fills(&endpoints).await;
    endpoints.fail_next(Service::Sqs, EVERY_OPERATION, ATTEMPTS);
    assert!(matches!(fills.request(&jobs(3)?).await, Err(StoreError::Unavailable(_))));
    endpoints.fail_next(Service::Sqs, EVERY_OPERATION, ATTEMPTS);
    assert!(matches!(fills.request_now(&jobs(1)?[0]).await, Err(StoreError::Unavailable(_))));
    assert_eq!(endpoints.queued_messages(), 0);
    Ok(())
}
