//! One deadline for all that a request waits for: the client has an answer before Lambda ends the process.

use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use reqwest::Method;
use support::aws::Endpoints;
use support::lambda::HttpFront;
use support::program::UPSTREAM;
use support::scripted::{Fault, Scripted};

use crate::deployment::{Plan, REGISTRY, error_code, request};

/// The timeout of the function, for which the template's would be long: of it 1.5 s are left for the answer.
const TIMEOUT: Duration = Duration::from_secs(4);

/// Asks, and checks that the answer comes in time and says when to come back.
async fn refused_in_time(front: &HttpFront, method: Method, path: &str) -> Result<()> {
    let begun = Instant::now();
    let answer = request(method.clone(), &format!("{}/v2/{UPSTREAM}/{path}", front.url()))?.send().await?;
    let took = begun.elapsed();
    ensure!(answer.status() == 503, "{path}: {}", answer.status());
    ensure!(took + Duration::from_secs(1) < TIMEOUT, "{path}: after {took:?}");
    ensure!(answer.headers().contains_key("retry-after"), "{path}: {:?}", answer.headers());
    ensure!(method == Method::HEAD || error_code(answer).await? == "UNAVAILABLE", "{path}");
    Ok(())
}

async fn status(front: &HttpFront, path: &str) -> Result<u16> {
    let answer = request(Method::GET, &format!("{}/v2/{UPSTREAM}/{path}", front.url()))?.send().await?;
    Ok(answer.status().as_u16())
}

#[tokio::test]
async fn what_upstream_does_not_say_in_time_is_refused_and_the_process_lives_on() -> Result<()> {
    let upstream = Scripted::start()?;
    let image = upstream.image("team/image", "v1", &[b"layer"]);
    let (pinned, blob) = (&image.digest, &image.blobs[1].0);
    let endpoints = Endpoints::start().await?;
    let (_configuration, environment) = Plan::of(&upstream.url()).environment(&endpoints)?;
    let registry = environment.start_with_timeout(REGISTRY, TIMEOUT).await?;
    let process = registry.process()?;
    let front = HttpFront::start(vec![registry])?;
    upstream.fault("/v2/team/", Fault::Silent);
    for (method, path) in [
        (Method::GET, "team/image/manifests/v1".to_owned()),
        (Method::HEAD, "team/image/manifests/v1".to_owned()),
        (Method::GET, format!("team/image/manifests/{pinned}")),
        (Method::GET, format!("team/image/blobs/{blob}")),
        (Method::GET, "team/image/tags/list".to_owned()),
    ] {
        refused_in_time(&front, method, &path).await?;
    }
    upstream.heal();
    // Nothing is left of these: no lease, no question that later callers would join, no closed breaker.
    for path in ["team/image/manifests/v1".to_owned(), format!("team/image/manifests/{pinned}")] {
        ensure!(status(&front, &path).await? == 200, "{path}\n{}", front.functions()[0].log());
    }
    ensure!(status(&front, &format!("team/image/blobs/{blob}")).await? == 307);
    // What is known is answered with, in time.
    upstream.fault("/v2/team/", Fault::Silent);
    let begun = Instant::now();
    let check = request(Method::GET, &format!("{}/v2/{UPSTREAM}/team/image/manifests/v1", front.url()))?;
    let answer = check.header("cache-control", "no-cache").send().await?;
    ensure!(answer.status() == 200 && answer.headers()["x-stopover"] == "stale", "{answer:?}");
    ensure!(begun.elapsed() + Duration::from_secs(1) < TIMEOUT, "after {:?}", begun.elapsed());
    ensure!(front.functions()[0].process()? == process, "another process answers");
    Ok(())
}

#[tokio::test]
async fn a_blob_that_no_fill_brings_in_time_is_refused_and_the_process_lives_on() -> Result<()> {
    let upstream = Scripted::start()?;
    let image = upstream.image("team/image", "v1", &[b"layer"]);
    let endpoints = Endpoints::start().await?;
    let (_configuration, environment) =
        Plan::of(&upstream.url()).setting("cold = \"wait\"\n").environment(&endpoints)?;
    let registry = environment.start_with_timeout(REGISTRY, TIMEOUT).await?;
    let process = registry.process()?;
    let front = HttpFront::start(vec![registry])?;
    // A client comes back to the manifest; one that has it already, to the blob.
    refused_in_time(&front, Method::GET, "team/image/manifests/v1").await?;
    refused_in_time(&front, Method::GET, &format!("team/image/blobs/{}", image.blobs[1].0)).await?;
    ensure!(front.functions()[0].process()? == process, "another process answers");
    Ok(())
}

#[tokio::test]
async fn what_another_process_asks_for_ever_is_refused_in_time() -> Result<()> {
    let upstream = Scripted::start()?;
    upstream.image("team/image", "v1", &[b"layer"]);
    let endpoints = Endpoints::start().await?;
    let (_configuration, environment) = Plan::of(&upstream.url()).environment(&endpoints)?;
    let mut fronts = Vec::new();
    for _ in 0..2 {
        fronts.push(HttpFront::start(vec![environment.start_with_timeout(REGISTRY, TIMEOUT).await?])?);
    }
    upstream.fault_times("manifests/v1", 1, Fault::Silent);
    let asked = request(Method::GET, &format!("{}/v2/{UPSTREAM}/team/image/manifests/v1", fronts[0].url()))?.send();
    let stopped = async {
        while upstream.count("manifests/v1") == 0 {
            tokio::task::yield_now().await;
        }
        // It has the lease, and keeps it.
        fronts[0].functions()[0].freeze()?;
        refused_in_time(&fronts[1], Method::GET, "team/image/manifests/v1").await?;
        fronts[0].functions()[0].thaw()
    };
    let (_, stopped) = tokio::join!(asked, stopped);
    stopped
}
