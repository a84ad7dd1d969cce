//! What becomes of fills that fail.

use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use reqwest::Method;
use serde_json::{Value, json};
use stopover::oci::{Digest, Repository};
use stopover::ports::{Job, Priority};
use support::aws::{Endpoints, QueueSettings, Service};
use support::program::UPSTREAM;
use support::scripted::{Fault, Scripted};

use crate::deployment::{FILLER, Plan, stored};

/// Longer than what S3 takes in one request.
const IN_PARTS: usize = 20 * 1024 * 1024;

pub(crate) fn record(id: &str, body: &str) -> Value {
    json!({ "messageId": id, "body": body, "attributes": {}, "messageAttributes": {}, "eventSource": "aws:sqs" })
}

pub(crate) fn job(name: &str, digest: &Digest, size: usize) -> Result<String> {
    let repository = Repository { upstream: UPSTREAM.parse()?, name: name.parse()? };
    let job =
        Job { repository, digest: digest.clone(), size: size as u64, priority: Priority::Interactive, payer: None };
    Ok(serde_json::to_string(&job)?)
}

fn failures(result: &Value) -> Vec<&str> {
    let failures = result["batchItemFailures"].as_array();
    let identifiers = failures.into_iter().flatten();
    identifiers.filter_map(|failure| failure["itemIdentifier"].as_str()).collect()
}

#[tokio::test]
async fn of_a_batch_exactly_the_failed_fills_are_reported() -> Result<()> {
    let upstream = Scripted::start()?;
    let image = upstream.image("team/image", "v1", &[b"broken", b"whole"]);
    let [_, (broken, _), (whole, _)] = &image.blobs[..] else { anyhow::bail!("not two layers") };
    upstream.fault(broken.as_str(), Fault::Status(500, vec![], String::new()));
    let endpoints = Endpoints::start().await?;
    let (_configuration, environment) = Plan::of(&upstream.url()).environment(&endpoints)?;
    let filler = environment.start(FILLER).await?;
    let records = [
        record("broken", &job("team/image", broken, 6)?),
        record("malformed", "{\"digest\": 1}"),
        record("whole", &job("team/image", whole, 5)?),
    ];
    let result = filler.invoke(json!({ "Records": records })).await?;
    ensure!(failures(&result) == ["broken", "malformed"], "{result}\n{}", filler.log());
    let names: Vec<String> = stored(&endpoints).await?.into_keys().collect();
    ensure!(names == [whole.as_str()], "stored: {names:?}");

    // The messages come back, and by now upstream is well.
    upstream.heal();
    let result = filler.invoke(json!({ "Records": [records[0], records[2]] })).await?;
    ensure!(failures(&result).is_empty(), "{result}\n{}", filler.log());
    ensure!(stored(&endpoints).await?.contains_key(broken.as_str()));
    Ok(())
}

#[tokio::test]
async fn what_upstream_does_not_have_or_give_us_is_not_left_to_the_queue() -> Result<()> {
    let upstream = Scripted::start()?;
    let image = upstream.image("team/image", "v1", &[b"missing", b"denied", b"broken"]);
    let endpoints = Endpoints::start().await?;
    let (_configuration, environment) = Plan::of(&upstream.url()).environment(&endpoints)?;
    let filler = environment.start(FILLER).await?;
    let mut records = Vec::new();
    for ((digest, bytes), status) in image.blobs[1..].iter().zip([404, 403, 500]) {
        upstream.fault(digest.as_str(), Fault::Status(status, vec![], String::new()));
        records.push(record(&status.to_string(), &job("team/image", digest, bytes.len())?));
    }
    let result = filler.invoke(json!({ "Records": records })).await?;
    ensure!(failures(&result) == ["500"], "{result}\n{}", filler.log());
    ensure!(upstream.count(image.blobs[1].0.as_str()) == 1);
    Ok(())
}

#[tokio::test]
async fn a_malformed_message_ends_in_the_dead_letter_queue_and_holds_up_no_other() -> Result<()> {
    let upstream = Scripted::start()?;
    let image = upstream.image("team/image", "v1", &[b"layer"]);
    let settings = QueueSettings { visibility_timeout: Duration::from_secs(1), max_receive_count: 2, speed: 30 };
    let deployment = Plan::of(&upstream.url()).queue(settings).start().await?;
    let queue = deployment.endpoints.sqs();
    let send = queue.send_message().queue_url(deployment.endpoints.queue_url());
    send.message_body("no request for a fill").send().await?;
    let manifest = deployment.request(Method::GET, "team/image/manifests/v1")?;
    manifest.send().await?.error_for_status()?;
    deployment.until_filled().await?;
    let stored = stored(&deployment.endpoints).await?;
    ensure!(stored.len() == image.blobs.len(), "{stored:?}\n{}", deployment.log());
    ensure!(deployment.endpoints.dead_messages() == 1);
    let receive = queue.receive_message().queue_url(deployment.endpoints.dlq_url());
    let dead = receive.send().await?;
    ensure!(dead.messages().first().and_then(|message| message.body()) == Some("no request for a fill"));
    Ok(())
}

#[tokio::test]
async fn a_fill_that_failed_is_back_within_a_minute_and_not_after_the_time_of_an_invocation() -> Result<()> {
    let upstream = Scripted::start()?;
    let image = upstream.image("team/image", "v1", &[b"layer"]);
    let (digest, _) = &image.blobs[1];
    // As the template has it; two seconds here are a minute of SQS.
    let settings = QueueSettings { visibility_timeout: Duration::from_mins(16), max_receive_count: 5, speed: 30 };
    upstream.fault(digest.as_str(), Fault::Status(500, vec![], String::new()));
    let deployment = Plan::of(&upstream.url()).queue(settings).start().await?;
    deployment.request(Method::GET, "team/image/manifests/v1")?.send().await?.error_for_status()?;
    while !deployment.log().contains("left to the queue") {
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    let failed = Instant::now();
    upstream.heal();
    deployment.until_filled().await?;
    ensure!(failed.elapsed() < Duration::from_secs(20), "it came back after {:?}", failed.elapsed() * 30);
    ensure!(deployment.endpoints.calls(Service::Sqs, "ChangeMessageVisibility") == 1, "{}", deployment.log());
    ensure!(stored(&deployment.endpoints).await?.len() == image.blobs.len());
    Ok(())
}

#[tokio::test]
async fn an_operator_invokes_the_filler_to_see_and_to_retry_what_was_given_up() -> Result<()> {
    let upstream = Scripted::start()?;
    let image = upstream.image("team/image", "v1", &[b"layer"]);
    let (digest, _) = &image.blobs[1];
    upstream.fault(digest.as_str(), Fault::Status(500, vec![], String::new()));
    // Longer than an attempt takes, with its own attempts at a connection.
    let settings = QueueSettings { visibility_timeout: Duration::from_secs(6), max_receive_count: 1, speed: 30 };
    let deployment = Plan::of(&upstream.url()).queue(settings).start().await?;
    deployment.request(Method::GET, "team/image/manifests/v1")?.send().await?.error_for_status()?;
    deployment.until_filled().await?;
    let listed = deployment.invoke_filler(json!({ "fills": "list" })).await?;
    let fill = &listed["fills"][0];
    ensure!(fill["digest"] == digest.as_str() && fill["state"] == "failed", "{listed}");
    ensure!(fill["failure"].as_str().is_some_and(|reason| reason.contains("500")), "{listed}");
    upstream.heal();
    let retried = deployment.invoke_filler(json!({ "fills": "retry" })).await?;
    ensure!(retried == json!({ "retried": 1 }), "{retried}");
    deployment.until_filled().await?;
    ensure!(
        deployment.invoke_filler(json!({ "fills": "list" })).await? == json!({ "fills": [], "images": [], "more": 0 })
    );
    let unknown = deployment.invoke_filler(json!({ "fills": "lits" })).await;
    ensure!(unknown.is_err_and(|error| error.to_string().contains("expected `list` or `retry`")));
    ensure!(stored(&deployment.endpoints).await?.len() == image.blobs.len());
    Ok(())
}

#[tokio::test]
async fn an_image_that_was_given_up_is_shown_and_retried_like_a_fill() -> Result<()> {
    let upstream = Scripted::start()?;
    let image = upstream.image("team/image", "v1", &[b"layer"]);
    upstream.fault("/manifests/", Fault::Status(500, vec![], String::new()));
    let settings = QueueSettings { visibility_timeout: Duration::from_secs(6), max_receive_count: 1, speed: 30 };
    let schedule = "\n[[schedule]]\nevery = \"10m\"\nplatforms = \"all\"\nimages = [\"test.local/team/image:v1\"]\n";
    let deployment = Plan::of(&upstream.url()).setting(schedule).queue(settings).start().await?;
    deployment.invoke_filler(json!({ "prefetch": "scheduled" })).await?;
    deployment.until_filled().await?;
    let listed = deployment.invoke_filler(json!({ "fills": "list" })).await?;
    ensure!(listed["images"][0]["image"] == format!("{UPSTREAM}/team/image:v1"), "{listed}\n{}", deployment.log());
    ensure!(listed["fills"] == json!([]), "{listed}");
    upstream.heal();
    let retried = deployment.invoke_filler(json!({ "fills": "retry" })).await?;
    ensure!(retried == json!({ "retried": 1 }), "{retried}");
    deployment.until_filled().await?;
    ensure!(
        deployment.invoke_filler(json!({ "fills": "list" })).await? == json!({ "fills": [], "images": [], "more": 0 })
    );
    ensure!(stored(&deployment.endpoints).await?.len() == image.blobs.len(), "{}", deployment.log());
    Ok(())
}

/// Of four invocations at once, over two queues.
#[tokio::test]
async fn no_more_fills_run_at_an_upstream_than_its_limit_in_all_invocations_together() -> Result<()> {
    let upstream = Scripted::start()?;
    let image = upstream.image("team/image", "v1", &[b"one", b"two", b"three", b"four"]);
    upstream.fault("/blobs/", Fault::Stalled);
    // What waits for a place is received more often than a failed fill is.
    let settings = QueueSettings { visibility_timeout: Duration::from_mins(16), max_receive_count: 2, speed: 30 };
    let deployment = Plan::of(&upstream.url()).setting("fills = 1\n").queue(settings).start().await?;
    deployment.request(Method::GET, "team/image/manifests/v1")?.send().await?.error_for_status()?;
    while deployment.log().matches("PostponedFills\":1").count() < 12 {
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    ensure!(upstream.count("/blobs/") == 1, "{:?}", upstream.requests());
    upstream.heal();
    deployment.until_filled().await?;
    ensure!(stored(&deployment.endpoints).await?.len() == image.blobs.len(), "{}", deployment.log());
    ensure!(deployment.endpoints.dead_messages() == 0, "what only waited was given up");
    Ok(())
}

#[tokio::test]
async fn corrupt_bytes_become_no_object_and_right_ones_do_the_next_time() -> Result<()> {
    let upstream = Scripted::start()?;
    let image = upstream.image("team/image", "v1", &[&[1; 1000], &vec![2; IN_PARTS]]);
    let endpoints = Endpoints::start().await?;
    let (_configuration, environment) = Plan::of(&upstream.url()).environment(&endpoints)?;
    let filler = environment.start(FILLER).await?;
    let mut records = Vec::new();
    for (digest, bytes) in &image.blobs {
        records.push(record(digest.as_str(), &job("team/image", digest, bytes.len())?));
    }
    let batch = json!({ "Records": records });
    for fault in [Fault::Corrupt, Fault::Truncated] {
        upstream.fault("/blobs/", fault.clone());
        let result = filler.invoke(batch.clone()).await?;
        ensure!(failures(&result).len() == image.blobs.len(), "{fault:?}: {result}");
        ensure!(endpoints.objects().is_empty(), "{fault:?}: {:?}", endpoints.objects());
        // What broke off is gone on with; of wrong bytes nothing is kept.
        let kept = usize::from(matches!(fault, Fault::Truncated));
        let left = (endpoints.multipart_uploads(), endpoints.stored_files()?);
        ensure!(left == (kept, kept), "{fault:?} leaves uploads and files: {left:?}");
        upstream.heal();
    }
    ensure!(endpoints.calls(Service::S3, "AbortMultipartUpload") == 1);
    let result = filler.invoke(batch).await?;
    ensure!(failures(&result).is_empty(), "{result}\n{}", filler.log());
    ensure!(stored(&endpoints).await?.len() == image.blobs.len());
    ensure!(endpoints.multipart_uploads() == 0);
    Ok(())
}
