//! What must never be in a log.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use http::header::{AUTHORIZATION, LOCATION};
use reqwest::Method;
use support::aws::{EVERY_OPERATION, QueueSettings, Service};
use support::scripted::{Fault, Login, Scripted, ScriptedImage};
use tempfile::NamedTempFile;

use crate::deployment::{Deployment, Plan};

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
    let settings = QueueSettings { visibility_timeout: Duration::from_secs(1), max_receive_count: 1 };
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

#[tokio::test]
async fn no_secret_is_logged() -> Result<()> {
    nothing_secret_is_logged("INFO").await
}

#[tokio::test]
async fn no_secret_is_logged_while_debugging() -> Result<()> {
    nothing_secret_is_logged("DEBUG").await.context("DEBUG")
}
