//! What the fills on SQS promise: `Fills`, where the embedded queue needs a whole cache to run them.

use std::collections::BTreeSet;

use anyhow::{Context as _, Result, ensure};
use aws::SqsFills;
use stopover::errors::StoreError;
use stopover::identity::Payer;
use stopover::oci::Platforms;
use stopover::ports::{Fills as _, ImageJob, Job, Listed, Priority, Work};
use support::aws::{EVERY_OPERATION, Endpoints, Service};
use support::world::queues;

use super::outages::ATTEMPTS;
use super::storage::{digest, repository};

pub(crate) fn jobs(count: usize) -> Result<Vec<Job>> {
    let repository = repository("library/nginx")?;
    let job = |number| Job {
        repository: repository.clone(),
        digest: digest(&format!("{number}")),
        size: number as u64,
        priority: Priority::Interactive,
        payer: None,
    };
    Ok((0..count).map(job).collect())
}

pub(crate) async fn fills(endpoints: &Endpoints) -> SqsFills {
    SqsFills::new(aws::sqs_client(&endpoints.sdk_config()), queues(endpoints))
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
    let sqs = endpoints.sqs();
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
        payer: Some(Payer::Network("192.0.2.1".parse()?)),
    };
    fills.request_images(std::slice::from_ref(&image)).await?;
    fills.request(std::slice::from_ref(&job)).await?;
    let mut received = Vec::new();
    let sqs = endpoints.sqs();
    // Nobody waits for a whole image, whatever its priority.
    for queue in [endpoints.background_queue_url(), endpoints.queue_url()] {
        let answer = sqs.receive_message().queue_url(queue).max_number_of_messages(10).send().await?;
        for message in answer.messages.context("a message is missing")? {
            received.push(serde_json::from_str::<Work>(message.body().context("no body")?)?);
        }
    }
    ensure!(received == [Work::Image(image), Work::Blob(job.clone())], "{received:?}");
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

#[tokio::test]
async fn what_nobody_waits_for_has_a_queue_of_its_own() -> Result<()> {
    let endpoints = Endpoints::start().await?;
    let (fills, mut jobs) = (fills(&endpoints).await, jobs(3)?);
    (jobs[1].priority, jobs[2].priority) = (Priority::Prefetch, Priority::Refresh);
    fills.request(&jobs).await?;
    for (queue, expected) in [(endpoints.queue_url(), &jobs[..1]), (endpoints.background_queue_url(), &jobs[1..])] {
        let received = endpoints.sqs().receive_message().queue_url(queue).max_number_of_messages(10);
        let mut received: Vec<Job> = received
            .send()
            .await?
            .messages()
            .iter()
            .map(|message| serde_json::from_str(message.body().unwrap_or_default()))
            .collect::<Result<_, _>>()?;
        received.sort_by_key(|job| job.size);
        assert_eq!(received, expected);
    }
    Ok(())
}

#[tokio::test]
async fn dead_messages_are_listed_without_moving_them_and_requested_again_once() -> Result<()> {
    let endpoints = Endpoints::start().await?;
    let (fills, jobs, sqs) = (fills(&endpoints).await, jobs(23)?, endpoints.sqs());
    let image = ImageJob {
        repository: jobs[0].repository.clone(),
        reference: "1.27".parse()?,
        platforms: Platforms::All,
        priority: Priority::Prefetch,
        payer: Some(Payer::Network("192.0.2.1".parse()?)),
    };
    let images = [serde_json::to_string(&image), serde_json::to_string(&image), Ok("no job".to_owned())];
    for body in jobs.iter().map(serde_json::to_string).chain(images) {
        sqs.send_message().queue_url(endpoints.dlq_url()).message_body(body?).send().await?;
    }
    for _ in 0..2 {
        let Listed { fills: mut listed, images } = fills.list().await?;
        assert_eq!(images, std::slice::from_ref(&image), "once, however often it was requested");
        listed.sort_by_key(|requested| requested.job.size);
        ensure!(listed.iter().all(|requested| requested.given_up.is_some()));
        assert_eq!(listed.into_iter().map(|requested| requested.job).collect::<Vec<_>>(), jobs);
    }
    assert_eq!(fills.retry().await?, 25);
    assert_eq!(endpoints.dead_messages(), 1, "what is no job stays");
    let receive = sqs.receive_message().queue_url(endpoints.background_queue_url()).send().await?;
    let requested: Work = serde_json::from_str(receive.messages()[0].body().context("no body")?)?;
    ensure!(requested == Work::Image(ImageJob { payer: None, ..image }), "an operator's request is no caller's");
    assert_eq!(fills.retry().await?, 0);
    assert_eq!(fills.list().await?, Listed::default());
    Ok(())
}
