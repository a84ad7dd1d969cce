//! What must never be in a log.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use http::header::{AUTHORIZATION, LOCATION};
use reqwest::Method;
use serde_json::{Value, json};
use support::aws::{EVERY_OPERATION, Endpoints, QueueSettings, Service};
use support::program::UPSTREAM;
use support::scripted::{Fault, Login, Scripted, ScriptedImage};
use tempfile::NamedTempFile;

use crate::deployment::{Deployment, FILLER, Plan};

const SIGNATURE: &str = "X-Amz-Signature=of-the-upstream";

/// Pulls all blobs; the answer to each is a redirect, or an error.
async fn pull(deployment: &Deployment, image: &ScriptedImage) -> Result<String> {
    let mut locations = String::new();
    let digests = image.blobs.iter().map(|(digest, _)| digest.as_str());
    let blobs = digests.map(|digest| format!("team/image/blobs/{digest}"));
    for path in std::iter::once("team/image/manifests/v1".to_owned()).chain(blobs) {
        let request = deployment.request(Method::GET, &format!("{path}?token=of-the-client"))?;
        let answer = request.header(AUTHORIZATION, "Bearer of-the-client").send().await?;
        if let Some(location) = answer.headers().get(LOCATION) {
            locations.push_str(location.to_str()?);
        }
    }
    Ok(locations)
}

/// Everything that tells secrets: a client's token, an upstream's password, redirects of the upstream and to the bucket,
/// and failures on the way to each.
async fn log_of_a_troubled_life(log_level: &'static str) -> Result<String> {
    let upstream = Scripted::start()?;
    let image = upstream.image("team/image", "v1", &[b"one", b"two", b"three"]);
    upstream.require(Login::Basic("alice".to_owned(), "of the upstream".to_owned()));
    let password = NamedTempFile::new()?;
    std::fs::write(&password, "of the upstream")?;
    let plan = Plan::of(&upstream.url()).setting(&format!(
        "public = true\ncredentials = {{ username = \"alice\", password_file = \"{}\" }}\n",
        password.path().display()
    ));
    let settings = QueueSettings { visibility_timeout: Duration::from_secs(1), max_receive_count: 1, speed: 30 };
    let deployment = plan.log_level(log_level).queue(settings).start().await?;
    // One blob lies where nobody listens, one where it is refused.
    for (number, target) in [(1, "http://127.0.0.1:1"), (2, &upstream.url())] {
        let location = format!("{target}/elsewhere?{SIGNATURE}");
        let moved = Fault::Status(307, vec![("location", location)], String::new());
        upstream.fault(image.blobs[number].0.as_str(), moved);
    }
    let redirects = pull(&deployment, &image).await?;
    ensure!(redirects.contains(SIGNATURE), "no redirect: {redirects}");
    deployment.until_filled().await?;
    ensure!(deployment.endpoints.dead_messages() > 0, "every fill succeeded");
    upstream.heal();
    pull(&deployment, &image).await?;
    deployment.until_filled().await?;
    let redirects = pull(&deployment, &image).await?;
    ensure!(redirects.contains("X-Amz-Credential"), "not from the bucket: {redirects}");
    deployment.endpoints.fail_next(Service::DynamoDb, EVERY_OPERATION, 30);
    pull(&deployment, &image).await?;
    Ok(deployment.log())
}

async fn nothing_secret_is_logged(log_level: &'static str) -> Result<()> {
    let log = log_of_a_troubled_life(log_level).await?;
    for expected in ["blob stored", "fill failed", "pull failed"] {
        ensure!(log.contains(expected), "no {expected:?} in the log:\n{log}");
    }
    let basic = BASE64_STANDARD.encode("alice:of the upstream");
    let secrets = [
        "X-Amz-",
        "AWS4-HMAC-SHA256",
        "of-the-upstream",
        "of the upstream",
        "of-the-client",
        "test-secret-key",
        &basic,
    ];
    for line in log.lines() {
        for secret in secrets {
            ensure!(!line.contains(secret), "{secret:?} is logged: {line}");
        }
        let lower = line.to_lowercase();
        ensure!(!(lower.contains("location") && line.contains('?')), "a redirect is logged: {line}");
    }
    Ok(())
}

/// Lambda drops lines below the level of the function. One that has no `timestamp` (RFC 3339) and `level` counts as INFO.
#[tokio::test]
async fn with_the_level_warn_errors_pass_the_filter_of_lambda() -> Result<()> {
    let endpoints = Endpoints::start().await?;
    let (_configuration, environment) = Plan::of("http://127.0.0.1:1").log_level("WARN").environment(&endpoints)?;
    let filler = environment.start(FILLER).await?;
    filler.invoke(json!({ "Records": [{ "messageId": "1", "body": "no request" }] })).await?;
    let log = filler.log();
    let lines = log.lines().map(serde_json::from_str::<Value>).collect::<Result<Vec<_>, _>>()?;
    ensure!(!lines.is_empty(), "nothing is logged");
    for line in lines {
        let time = line["timestamp"].as_str().context("no timestamp")?;
        let shape = time.replace(|letter: char| letter.is_ascii_digit(), "0");
        ensure!(shape.starts_with("0000-00-00T00:00:00.000") && shape.ends_with('Z'), "not of RFC 3339: {time}");
        // A count passes too, and is none of the log's business.
        let expected = if line["_aws"].is_object() { "FATAL" } else { "ERROR" };
        ensure!(line["level"] == expected, "{line}");
    }
    Ok(())
}

/// Who pulls an image: docs/how-to/who-pulls.md asks CloudWatch Logs Insights by the names of fields.
#[tokio::test]
async fn the_question_of_the_document_fits_the_log_of_a_function() -> Result<()> {
    let document = concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/how-to/who-pulls.md");
    let document = std::fs::read_to_string(document)?;
    let mut blocks = document.split("```").filter(|block| block.contains("filter fields."));
    let question = blocks.next().context("no question")?;
    let upstream = Scripted::start()?;
    upstream.image("team/image", "v1", &[b"one"]);
    let deployment = Plan::of(&upstream.url()).log_level("DEBUG").start().await?;
    deployment.request(Method::GET, "team/image/manifests/v1")?.send().await?.error_for_status()?;
    let log = deployment.log();
    let lines = log.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok());
    let mut records = lines.filter(|line| line["fields"]["message"] == "decided" && line["fields"]["action"] == "pull");
    let record = records.next().with_context(|| format!("no record in:\n{log}"))?;
    ensure!(record["fields"]["repository"] == format!("{UPSTREAM}/team/image"), "{record}");
    let words = question.split(|letter: char| !letter.is_ascii_lowercase() && !"._".contains(letter));
    let named: Vec<&str> = words.filter_map(|word| word.strip_prefix("fields.")).collect();
    let unknown: Vec<_> = named.iter().filter(|name| record["fields"][**name].is_null()).collect();
    ensure!(named.len() >= 7 && unknown.is_empty(), "{unknown:?} are not in {record}");
    Ok(())
}

/// The embedded metric format: lines that CloudWatch counts.
#[tokio::test]
async fn what_costs_something_is_counted() -> Result<()> {
    let upstream = Scripted::start()?;
    upstream.quota(100, 9);
    let image = upstream.image("team/image", "v1", &[b"one", b"two"]);
    let deployment = Plan::of(&upstream.url()).start().await?;
    for _ in 0..2 {
        deployment.request(Method::GET, "team/image/manifests/v1")?.send().await?.error_for_status()?;
    }
    deployment.until_filled().await?;
    deployment.invoke_filler(json!({ "sweep": { "dry_run": true } })).await?;
    deployment.invoke_filler(json!({ "sweep": {} })).await?;
    let log = deployment.log();
    let counts = log.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok());
    let counts: Vec<Value> = counts.filter(|line| line["_aws"].is_object()).collect();
    let sum = |name: &str| counts.iter().filter_map(|line| line[name].as_u64()).sum::<u64>();
    let bytes: usize = image.blobs.iter().map(|(_, bytes)| bytes.len()).sum();
    let counted = ["Misses", "Fills", "FilledBytes", "FailedFills", "Sweeps"].map(sum);
    ensure!(counted == [1, image.blobs.len() as u64, bytes as u64, 0, 1], "{counted:?}\n{log}");
    ensure!(counts.iter().all(|line| line["Stack"] == "tests"), "{counts:?}");
    let pulls = ["PullsSpent", "PullsSaved"].map(sum);
    ensure!(pulls == [1, 1], "{pulls:?}\n{log}");
    let asked = counts.iter().find(|line| line["PullsSpent"] == 1).context("no pull is counted")?;
    let left = (&asked["Upstream"], &asked["QuotaLeft"], &asked["QuotaLeftPercent"]);
    ensure!(left == (&json!(UPSTREAM), &json!(8), &json!(8)), "{asked}");
    Ok(())
}

#[tokio::test]
async fn no_secret_is_logged() -> Result<()> {
    nothing_secret_is_logged("INFO").await
}

#[tokio::test]
async fn no_secret_is_logged_while_debugging() -> Result<()> {
    nothing_secret_is_logged("DEBUG").await.context("DEBUG")
}
