//! What keeps a function from having a cache, and what does not stop one that runs.

use anyhow::{Result, ensure};
use serde_json::{Value, json};
use support::aws::Endpoints;

use crate::deployment::{FILLER, Plan, REGISTRY};

#[tokio::test]
async fn a_network_that_cannot_be_read_is_named_and_nothing_is_served() -> Result<()> {
    let endpoints = Endpoints::start().await?;
    let (_configuration, environment) = Plan::of("http://127.0.0.1:1").environment(&endpoints)?;
    for function in [REGISTRY, FILLER] {
        let environment = environment.with("STOPOVER_ANONYMOUS_CIDRS", "10.0.0.0/8,everyone");
        let error = environment.refusal(function, "STOPOVER_ANONYMOUS_CIDRS").await?;
        let sentence = "STOPOVER_ANONYMOUS_CIDRS: \\\"everyone\\\" is no network like 10.0.0.0/8";
        ensure!(error.contains(sentence), "{error}");
    }
    Ok(())
}

#[tokio::test]
async fn a_missing_variable_is_named_and_nothing_is_served() -> Result<()> {
    let endpoints = Endpoints::start().await?;
    let (_configuration, environment) = Plan::of("http://127.0.0.1:1").environment(&endpoints)?;
    for function in [REGISTRY, FILLER] {
        for name in [
            "STOPOVER_TABLE",
            "STOPOVER_BUCKET",
            "STOPOVER_QUEUE_URL",
            "STOPOVER_BACKGROUND_QUEUE_URL",
            "STOPOVER_DEAD_QUEUE_URL",
            "STOPOVER_ACCOUNT",
            "STOPOVER_SERVICE",
        ] {
            let error = environment.without(name).refusal(function, name).await?;
            ensure!(error.contains(&format!("{name}: the environment does not set it")), "{function}: {error}");
        }
    }
    Ok(())
}

#[tokio::test]
async fn an_unknown_key_in_the_configuration_is_named_and_nothing_is_served() -> Result<()> {
    let endpoints = Endpoints::start().await?;
    let plan = Plan::of("http://127.0.0.1:1").setting("colour = \"red\"\n");
    let (configuration, environment) = plan.environment(&endpoints)?;
    for function in [REGISTRY, FILLER] {
        let error = environment.refusal(function, "stopover.toml").await?;
        let file = configuration.path().display().to_string();
        ensure!(error.contains(&file) && error.contains("colour"), "{error}");
    }
    Ok(())
}

#[tokio::test]
async fn an_event_that_is_no_request_is_refused_and_does_not_stop_the_function() -> Result<()> {
    let endpoints = Endpoints::start().await?;
    let (_configuration, environment) = Plan::of("http://127.0.0.1:1").environment(&endpoints)?;
    let registry = environment.start(REGISTRY).await?;
    let process = registry.process()?;
    let http = |method: &str, query: &str| {
        json!({
            "version": "3.0", "rawPath": "/v2/", "rawQueryString": query, "headers": { "host": "bad host\n" },
            "body": "\u{0}", "isBase64Encoded": false, "requestContext": { "http": { "method": method } },
        })
    };
    for (event, status) in [
        (Value::Null, 400),
        (json!([]), 400),
        (json!({ "sweep": {} }), 400),
        (json!({ "requestContext": { "http": 1 } }), 400),
        (http("", ""), 400),
        (http("GET", "\u{7f}<\">\u{2028}%%%"), 403),
        (http("BREW", ""), 405),
    ] {
        let answer = registry.invoke(event.clone()).await?;
        ensure!(answer["statusCode"] == status, "{event}: {answer}");
        ensure!(answer["body"].as_str().is_some_and(|body| body.contains("\"errors\"")), "{event}: {answer}");
    }
    ensure!(registry.process()? == process, "another process answers");
    Ok(())
}
