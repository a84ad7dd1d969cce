//! Connections to upstream that ended while Lambda had frozen the process.

use anyhow::{Result, ensure};
use reqwest::Method;
use support::aws::Endpoints;
use support::lambda::HttpFront;
use support::program::UPSTREAM;
use support::scripted::Scripted;
use support::wire::Wire;

use crate::deployment::{Plan, REGISTRY, request};

#[tokio::test]
async fn a_connection_that_ended_while_the_process_was_frozen_costs_no_pull() -> Result<()> {
    const PULLS: usize = 6;
    let upstream = Scripted::start()?;
    let wire = Wire::to(upstream.url().trim_start_matches("http://"))?;
    let endpoints = Endpoints::start().await?;
    let (_configuration, environment) = Plan::of(&format!("http://{}", wire.address())).environment(&endpoints)?;
    let front = HttpFront::start(vec![environment.start(REGISTRY).await?])?;
    let registry = &front.functions()[0];
    for number in 0..PULLS {
        let image = upstream.image(&format!("team/{number}"), "v1", &[b"layer"]);
        for path in
            [format!("manifests/{}", image.digest), "manifests/v1".to_owned(), format!("blobs/{}", image.blobs[1].0)]
        {
            registry.freeze()?;
            if number % 2 == 0 {
                // As a registry ends what lies idle: the process has not read of it yet when it asks again.
                wire.end_open();
            } else {
                // As a load balancer that has forgotten the connection.
                wire.reset(1);
            }
            registry.thaw()?;
            let url = format!("{}/v2/{UPSTREAM}/team/{number}/{path}", front.url());
            let answer = request(Method::GET, &url)?.send().await?;
            let expected = if path.starts_with("blobs") { 307 } else { 200 };
            ensure!(answer.status() == expected, "{path}: {}\n{}", answer.status(), registry.log());
        }
        let head = request(Method::HEAD, &format!("{}/v2/{UPSTREAM}/team/{number}/manifests/v1", front.url()))?;
        ensure!(head.header("cache-control", "no-cache").send().await?.status() == 200);
    }
    ensure!(wire.cuts() > 0, "no connection was reset");
    let pings = upstream.requests().iter().filter(|seen| seen.line == "GET /v2/").count();
    ensure!(pings == 0, "{pings} times it was asked whether the whole upstream is in trouble");
    Ok(())
}
