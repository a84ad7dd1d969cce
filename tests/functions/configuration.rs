//! A configuration that an operator replaces while the functions run: as a parameter of SSM, or as an object of S3.

use std::collections::HashMap;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use aws::Site;
use axum::Router;
use axum::body::{Body, to_bytes};
use http::{Request, StatusCode};
use reqwest::Method;
use serde_json::json;
use stopover::identity::Peer;
use stopover::values::time::{Clock, Timestamp};
use support::aws::{EVERY_OPERATION, Endpoints, Service};
use support::lambda::HttpFront;
use support::program::UPSTREAM;
use support::scripted::Scripted;
use tower::ServiceExt as _;

use crate::deployment::{FILLER, Plan, REGISTRY, error_code, put_configuration as put, request};

const MINUTE: Duration = Duration::from_mins(1);
const PLACES: [&str; 2] = ["ssm:/team/stopover", "s3://stopover-blobs/configuration/stopover.toml"];

/// What an operator writes.
fn written(upstream: &Scripted, more: &str) -> String {
    let url = upstream.url();
    format!("{more}\n[upstreams.\"{UPSTREAM}\"]\nurl = \"{url}\"\n[access]\nanonymous = [\"127.0.0.0/8\"]\n")
}

/// A registry in this process, whose time stands still.
async fn site(endpoints: &Endpoints, place: &str) -> Result<(Site<Router>, Clock)> {
    let (_file, environment) = Plan::of("http://127.0.0.1:1").environment(endpoints)?;
    let variables: HashMap<String, String> = environment.with("STOPOVER_CONFIG_URI", place).0.into_iter().collect();
    let clock = Clock::manual(Timestamp(1_800_000_000));
    let variable = move |name: &str| variables.get(name).cloned();
    let site = Site::connect(variable, endpoints.sdk_config(), clock.clone(), stopover::http::router).await?;
    Ok((site, clock))
}

async fn pull(site: &Site<Router>, tag: &str) -> Result<StatusCode> {
    let request = Request::get(format!("/v2/{UPSTREAM}/team/image/manifests/{tag}"));
    let request = request.extension(Peer::from(Some("127.0.0.1".parse()?))).body(Body::empty())?;
    let response = site.current().await?.oneshot(request).await?;
    let status = response.status();
    to_bytes(response.into_body(), usize::MAX).await?;
    Ok(status)
}

fn reads(endpoints: &Endpoints) -> usize {
    // Of the bucket nothing else is read here.
    endpoints.calls(Service::Parameters, "GetParameter") + endpoints.calls(Service::S3, "GetObject")
}

/// Whether the cache tells probes that its configuration has a mistake. It is ready all the same.
async fn is_misconfigured(site: &Site<Router>) -> Result<bool> {
    let request = Request::get("/_stopover/health/ready").body(Body::empty())?;
    let response = site.current().await?.oneshot(request).await?;
    ensure!(response.status() == StatusCode::OK, "{response:?}");
    let health: serde_json::Value = serde_json::from_slice(&to_bytes(response.into_body(), usize::MAX).await?)?;
    Ok(health["reasons"].to_string().contains("the configuration has a mistake"))
}

#[tokio::test]
async fn a_good_edit_takes_effect_within_a_minute_and_a_bad_one_changes_nothing() -> Result<()> {
    let upstream = Scripted::start()?;
    for tag in ["1", "2", "3", "4"] {
        upstream.image("team/image", tag, &[b"layer"]);
    }
    for place in PLACES {
        let endpoints = Endpoints::start().await?;
        put(&endpoints, place, &written(&upstream, "")).await?;
        let (site, clock) = site(&endpoints, place).await?;
        ensure!(pull(&site, "1").await? == 200);
        ensure!(reads(&endpoints) == 1, "{place}");
        let table = format!("[rules.\"{UPSTREAM}/team\"]\ndeny = [\"team/*\"]\n");
        put(&endpoints, place, &(written(&upstream, "") + &table)).await?;
        ensure!(pull(&site, "2").await? == 200, "not asked with each request");
        clock.advance(MINUTE);
        ensure!(pull(&site, "2").await? == 403, "{place}");
        put(&endpoints, place, &written(&upstream, "colour = \"red\"")).await?;
        clock.advance(MINUTE);
        ensure!(pull(&site, "3").await? == 403 && is_misconfigured(&site).await?, "{place}");
        endpoints.fail_next(Service::Parameters, EVERY_OPERATION, usize::MAX);
        endpoints.fail_next(Service::S3, EVERY_OPERATION, 100);
        clock.advance(MINUTE);
        ensure!(pull(&site, "3").await? == 403 && is_misconfigured(&site).await?, "{place}");
        endpoints.heal();
        put(&endpoints, place, &written(&upstream, "fresh = \"1h\"")).await?;
        clock.advance(MINUTE);
        ensure!(pull(&site, "4").await? == 200 && !is_misconfigured(&site).await?, "{place}");
        let before = reads(&endpoints);
        clock.advance(MINUTE);
        ensure!(pull(&site, "4").await? == 200 && reads(&endpoints) == before + 1, "it is as it was");
    }
    Ok(())
}

/// What [`a_good_edit_takes_effect_within_a_minute_and_a_bad_one_changes_nothing`] says, of processes and their own clocks.
#[tokio::test]
async fn a_process_that_runs_follows_a_good_edit_and_logs_one_line_of_a_bad_one() -> Result<()> {
    let upstream = Scripted::start()?;
    upstream.image("team/image", "v1", &[b"layer"]);
    let endpoints = Endpoints::start().await?;
    let (_file, environment) = Plan::of("http://127.0.0.1:1").environment(&endpoints)?;
    let denied = written(&upstream, "") + &format!("[rules.\"{UPSTREAM}/team\"]\ndeny = [\"team/*\"]\n");
    let [good, bad] = PLACES;
    let mut fronts = Vec::new();
    for place in PLACES {
        put(&endpoints, place, &written(&upstream, "")).await?;
        let environment = environment.with("STOPOVER_CONFIG_URI", place);
        fronts.push(HttpFront::start(vec![environment.start(REGISTRY).await?])?);
    }
    let [of_good, of_bad] = &fronts[..] else { anyhow::bail!("two places") };
    let status = async |front: &HttpFront| {
        let url = format!("{}/v2/{UPSTREAM}/team/image/manifests/v1", front.url());
        anyhow::Ok(request(Method::GET, &url)?.send().await?.status().as_u16())
    };
    let errors = || -> Vec<String> {
        let log: String = of_bad.functions().iter().map(support::lambda::Function::log).collect();
        log.lines().filter(|line| line.contains("\"ERROR\"")).map(str::to_owned).collect()
    };
    put(&endpoints, good, &denied).await?;
    put(&endpoints, bad, &(denied + "colour = \"red\"\n")).await?;
    let followed = async {
        while status(of_good).await? != 403 || errors().is_empty() {
            ensure!(status(of_bad).await? == 200, "{:?}", errors());
            // The reason for this pause: the processes look once a minute of their own clocks, and tell nobody.
            tokio::time::sleep(Duration::from_millis(500)).await;
        }
        anyhow::Ok(())
    };
    tokio::time::timeout(2 * MINUTE, followed).await.context("nothing follows")??;
    ensure!(status(of_bad).await? == 200);
    let errors = errors();
    ensure!(errors.len() == 1 && errors[0].contains(&format!("{bad}: line 8, column 1: ")), "{errors:?}");
    ensure!(errors[0].contains("colour"), "{errors:?}");
    Ok(())
}

#[tokio::test]
async fn a_process_that_starts_with_a_bad_edit_uses_what_was_good_last_and_logs_one_line() -> Result<()> {
    let upstream = Scripted::start()?;
    upstream.image("team/image", "v1", &[b"layer"]);
    for place in PLACES {
        let endpoints = Endpoints::start().await?;
        put(&endpoints, place, &written(&upstream, "")).await?;
        let (_file, environment) = Plan::of("http://127.0.0.1:1").environment(&endpoints)?;
        let environment = environment.with("STOPOVER_CONFIG_URI", place);
        let filler = environment.start(FILLER).await?;
        filler.invoke(json!({ "fills": "list" })).await?;
        put(&endpoints, place, &written(&upstream, "\ncolour = \"red\"")).await?;
        let front = HttpFront::start(vec![environment.start(REGISTRY).await?])?;
        for _ in 0..2 {
            let url = format!("{}/v2/{UPSTREAM}/team/image/manifests/v1", front.url());
            let answer = request(Method::GET, &url)?.send().await?;
            ensure!(answer.status() == 200, "{place}: {}", answer.status());
        }
        let log: String = front.functions().iter().map(support::lambda::Function::log).collect();
        let errors: Vec<&str> = log.lines().filter(|line| line.contains("\"ERROR\"")).collect();
        let told = errors.iter().all(|line| line.contains(&format!("{place}: line 2, column 1: colour")));
        ensure!(errors.len() == 1 && told, "{log}");
        ensure!(log.contains("\"ConfigurationErrors\":1"), "no alarm: {log}");
        let filler = environment.start(FILLER).await?;
        ensure!(filler.invoke(json!({ "fills": "list" })).await? == json!({ "fills": [], "images": [], "more": 0 }));
    }
    Ok(())
}

#[tokio::test]
async fn a_parameter_that_is_made_anew_is_read_though_its_version_is_the_same() -> Result<()> {
    let upstream = Scripted::start()?;
    upstream.image("team/image", "v1", &[b"layer"]);
    let endpoints = Endpoints::start().await?;
    let place = PLACES[0];
    put(&endpoints, place, &written(&upstream, "")).await?;
    let (site, clock) = site(&endpoints, place).await?;
    ensure!(pull(&site, "v1").await? == 200);
    endpoints.kept().remove_parameter("/team/stopover");
    let denied = written(&upstream, "") + &format!("[rules.\"{UPSTREAM}/team\"]\ndeny = [\"team/*\"]\n");
    put(&endpoints, place, &denied).await?;
    clock.advance(MINUTE);
    ensure!(pull(&site, "v1").await? == 403);
    Ok(())
}

#[tokio::test]
async fn without_a_configuration_that_can_be_used_requests_are_told_to_come_back_and_the_setting_is_named() -> Result<()>
{
    let upstream = Scripted::start()?;
    upstream.image("team/image", "v1", &[b"layer"]);
    for place in ["ssm:/there/is/none", "s3://stopover-blobs/there/is/none"] {
        let endpoints = Endpoints::start().await?;
        let (_file, environment) = Plan::of("http://127.0.0.1:1").environment(&endpoints)?;
        let environment = environment.with("STOPOVER_CONFIG_URI", place);
        let front = HttpFront::start(vec![environment.start(REGISTRY).await?])?;
        let url = format!("{}/v2/{UPSTREAM}/team/image/manifests/v1", front.url());
        let answer = request(Method::GET, &url)?.send().await?;
        let retry = answer.headers().get("retry-after").is_some();
        ensure!(answer.status() == 503 && retry, "{}", answer.status());
        ensure!(error_code(answer).await? == "UNAVAILABLE");
        let log: String = front.functions().iter().map(support::lambda::Function::log).collect();
        ensure!(log.contains(&format!("{place} cannot be read")), "{log}");
        // It goes on as soon as there is one.
        put(&endpoints, place, &written(&upstream, "")).await?;
        let served = async {
            while request(Method::GET, &url)?.send().await?.status() != 200 {
                // The reason for this pause: the process looks again every five seconds, and tells nobody.
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
            anyhow::Ok(())
        };
        tokio::time::timeout(Duration::from_secs(30), served).await.context("it never goes on")??;
    }
    Ok(())
}

#[tokio::test]
async fn a_place_that_is_none_is_named_and_nothing_is_served() -> Result<()> {
    let endpoints = Endpoints::start().await?;
    let (_file, environment) = Plan::of("http://127.0.0.1:1").environment(&endpoints)?;
    for function in [REGISTRY, FILLER] {
        let environment = environment.with("STOPOVER_CONFIG_URI", "https://a.test/stopover.toml");
        let error = environment.refusal(function, "STOPOVER_CONFIG_URI").await?;
        ensure!(error.contains("it is neither ssm:/the/name of a parameter nor s3://"), "{error}");
    }
    Ok(())
}
