//! What the functions count, when their processes end.

use anyhow::{Context as _, Result, ensure};
use reqwest::Method;
use serde_json::{Value, json};
use support::aws::{Endpoints, Service};
use support::lambda::HttpFront;
use support::program::UPSTREAM;
use support::scripted::Scripted;

use crate::deployment::{FILLER, Plan, REGISTRY, request};
use crate::fills::{job, record};

/// Lambda ends a process that is used no more, and tells it before: so what a process counts that lives for less than a
/// minute is not lost.
#[tokio::test]
async fn what_a_process_has_counted_is_written_down_when_it_ends_and_shown_by_another() -> Result<()> {
    let upstream = Scripted::start()?;
    let image = upstream.image("team/app", "v1", &[b"layer"]);
    let endpoints = Endpoints::start().await?;
    let (_configuration, environment) = Plan::of(&upstream.url()).environment(&endpoints)?;
    let filler = environment.start(FILLER).await?;
    let (digest, bytes) = &image.blobs[1];
    let message = record("fill", &job("team/app", digest, bytes.len())?);
    let result = filler.invoke(json!({ "Records": [message] })).await?;
    ensure!(result == json!({ "batchItemFailures": [] }), "{result}\n{}", filler.log());
    for _ in 0..2 {
        let front = HttpFront::start(vec![environment.start(REGISTRY).await?])?;
        for path in [format!("manifests/{}", image.digest), format!("blobs/{digest}")] {
            let url = format!("{}/v2/{UPSTREAM}/team/app/{path}", front.url());
            let answer = request(Method::GET, &url)?.send().await?;
            ensure!(answer.status().as_u16() < 400, "{answer:?}\n{}", front.functions()[0].log());
        }
        front.functions()[0].shut_down().await?;
    }
    filler.shut_down().await?;
    let front = HttpFront::start(vec![environment.start(REGISTRY).await?])?;
    let before = endpoints.operations().len();
    let answer = request(Method::GET, &format!("{}/_stopover/status", front.url()))?.send().await?;
    let status: Value = serde_json::from_slice(&answer.error_for_status()?.bytes().await?)?;
    for period in ["day", "month"] {
        let count = |name: &str| status[period]["counts"][name].as_u64().context("no count");
        let found = [count("misses")?, count("fills")?, count("filled_bytes")?, count("saved_bytes")?];
        ensure!(found[..2] == [1, 1] && found[2] == bytes.len() as u64, "{found:?}: {status}");
        ensure!(found[3] == 2 * bytes.len() as u64, "{found:?}: {status}");
    }
    let read = endpoints.operations().split_off(before);
    ensure!(read.iter().filter(|operation| *operation == "BatchGetItem").count() <= 2, "{read:?}");
    ensure!(endpoints.calls(Service::DynamoDb, "UpdateItem") >= 6, "an hour and a day, of three processes");
    Ok(())
}
