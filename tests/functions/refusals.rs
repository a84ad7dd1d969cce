//! Who is refused, and what stops a function before it starts.

use anyhow::{Result, ensure};
use http::header::CONTENT_TYPE;
use reqwest::Method;
use support::aws::Endpoints;
use support::lambda::HttpFront;
use support::scripted::Scripted;

use crate::deployment::{Environment, FILLER, Plan, REGISTRY, error_code, request};

/// Every answer of a registry function with this environment to a caller whose address is 127.0.0.1.
async fn everybody_is_refused(environment: &Environment) -> Result<()> {
    let front = HttpFront::start(vec![environment.start(REGISTRY).await?])?;
    for path in ["/", "/v2/", "/v2/test.local/team/image/manifests/v1"] {
        // Headers are a caller's own words: they must not matter.
        let asked = request(Method::GET, &format!("{}{path}", front.url()))?
            .header("x-forwarded-for", "10.0.0.1")
            .header("forwarded", "for=10.0.0.1");
        let answer = asked.send().await?;
        ensure!(answer.status() == 403, "{path}: {}", answer.status());
        ensure!(answer.headers()[CONTENT_TYPE] == "application/json");
        ensure!(error_code(answer).await? == "DENIED");
    }
    Ok(())
}

#[tokio::test]
async fn a_caller_outside_of_the_allowed_networks_is_refused() -> Result<()> {
    let upstream = Scripted::start()?;
    upstream.image("team/image", "v1", &[b"layer"]);
    let endpoints = Endpoints::start().await?;
    let (_configuration, environment) = Plan::of(&upstream.url()).environment(&endpoints)?;
    for networks in ["10.0.0.0/8, ::1/128", ""] {
        everybody_is_refused(&environment.with("STOPOVER_ALLOWED_CIDRS", networks)).await?;
    }
    everybody_is_refused(&environment.without("STOPOVER_ALLOWED_CIDRS")).await?;
    ensure!(upstream.requests().is_empty(), "upstream was asked: {:?}", upstream.requests());
    Ok(())
}

#[tokio::test]
async fn a_network_that_cannot_be_read_stops_the_registry() -> Result<()> {
    let endpoints = Endpoints::start().await?;
    let (_configuration, environment) = Plan::of("http://127.0.0.1:1").environment(&endpoints)?;
    let text = environment.with("STOPOVER_ALLOWED_CIDRS", "10.0.0.0/8,everyone").refusal(REGISTRY).await?;
    let sentence = "STOPOVER_ALLOWED_CIDRS: \"everyone\" is no network like 10.0.0.0/8";
    ensure!(text.contains(sentence), "{text}");
    Ok(())
}

#[tokio::test]
async fn a_missing_variable_stops_either_function_and_is_named() -> Result<()> {
    let endpoints = Endpoints::start().await?;
    let (_configuration, environment) = Plan::of("http://127.0.0.1:1").environment(&endpoints)?;
    for function in [REGISTRY, FILLER] {
        for name in [
            "STOPOVER_TABLE",
            "STOPOVER_BUCKET",
            "STOPOVER_QUEUE_URL",
            "STOPOVER_BACKGROUND_QUEUE_URL",
            "STOPOVER_DEAD_QUEUE_URL",
        ] {
            let text = environment.without(name).refusal(function).await?;
            let sentence = format!("the environment variable {name} is not set");
            ensure!(text.contains(&sentence), "{function}: {text}");
        }
    }
    Ok(())
}

#[tokio::test]
async fn an_unknown_key_in_the_configuration_stops_either_function_and_is_named() -> Result<()> {
    let endpoints = Endpoints::start().await?;
    let plan = Plan::of("http://127.0.0.1:1").setting("colour = \"red\"\n");
    let (configuration, environment) = plan.environment(&endpoints)?;
    for function in [REGISTRY, FILLER] {
        let text = environment.refusal(function).await?;
        let file = configuration.path().display().to_string();
        ensure!(text.contains(&file) && text.contains("colour"), "{text}");
    }
    Ok(())
}
