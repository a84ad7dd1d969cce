//! Logins at the functions, all processes of which know the same robots and believe the same tokens.

use anyhow::{Context, Result, ensure};
use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use reqwest::Method;
use serde_json::{Value, json};
use support::aws::Endpoints;
use support::scripted::{Login, Scripted};
use tempfile::NamedTempFile;

use crate::deployment::{FILLER, Plan, REGISTRIES, REGISTRY, SIGNING_KEY, request};

const ROBOTS: &str = "[access]\nrobots = true\n";
const KEYS: &str = "signing_keys = { env = \"STOPOVER_SIGNING_KEYS\" }\n";
const POLICY: &str = "[[policy]]\nwho = [\"robot:ci\"]\nallow = true\n";

#[tokio::test]
async fn robots_are_managed_by_invoking_the_filler_and_pull_through_every_process() -> Result<()> {
    let upstream = Scripted::start()?;
    upstream.require(Login::Basic("alice".to_owned(), "of the upstream".to_owned()));
    let image = upstream.image("team/image", "v1", &[b"layer"]);
    let password = NamedTempFile::new()?;
    std::fs::write(&password, "of the upstream")?;
    let credentials =
        format!("credentials = {{ username = \"alice\", password_file = \"{}\" }}\n", password.path().display());
    let plan = Plan::of(&upstream.url()).setting(&format!("{credentials}{ROBOTS}{KEYS}{POLICY}"));
    let deployment = plan.log_level("DEBUG").start().await?;
    let robots = async |command: Value| deployment.invoke_filler(json!({ "robots": command })).await;
    let added = robots(json!({ "add": { "name": "ci", "expires": "90d" } })).await?;
    let secret = added["secret"]["secret"].as_str().context("no secret")?.to_owned();
    let stranger = robots(json!({ "add": { "name": "stranger" } })).await?;
    let stranger = stranger["secret"]["secret"].as_str().context("no secret")?.to_owned();
    let again = robots(json!({ "add": { "name": "ci" } })).await;
    ensure!(again.is_err_and(|error| error.to_string().contains("there is a robot ci already")));
    let challenged = deployment.request(Method::GET, "team/image/manifests/v1")?.send().await?;
    let challenge = challenged.headers()["www-authenticate"].to_str()?;
    let realm = format!("Bearer realm=\"https://{}/token\",service=\"stopover\"", deployment.address());
    ensure!(challenged.status() == 401 && challenge.starts_with(&realm), "{challenge}");
    let url = format!("http://{}/token?service=stopover", deployment.address());
    let issued = request(Method::GET, &url)?.basic_auth("ci", Some(&secret)).send().await?;
    ensure!(issued.status() == 200, "{}", issued.status());
    let issued: Value = serde_json::from_slice(&issued.bytes().await?)?;
    let token = issued["token"].as_str().context("no token")?;
    // Whichever process answers.
    for _ in 0..2 * REGISTRIES {
        let asked = deployment.request(Method::GET, "team/image/manifests/v1")?.bearer_auth(token);
        let answer = asked.send().await?;
        ensure!(answer.status() == 200, "{}\n{}", answer.status(), deployment.log());
        ensure!(answer.bytes().await? == image.manifest);
    }
    let denied = deployment.request(Method::GET, "team/image/manifests/v1")?.basic_auth("stranger", Some(&stranger));
    ensure!(denied.send().await?.status() == 403);
    ensure!(robots(json!({ "remove": { "name": "ci" } })).await? == json!({ "removed": "ci" }));
    let removed = deployment.request(Method::GET, "team/image/manifests/v1")?.basic_auth("ci", Some(&secret));
    ensure!(removed.send().await?.status() == 401);
    let log = deployment.log();
    ensure!(log.contains("robot:stranger") && log.contains("\"rule\":\"private\""), "no record of a denial:\n{log}");
    let pair = BASE64_STANDARD.encode(format!("ci:{secret}"));
    for told in [&secret, &stranger, token, &pair, "of the upstream", "$argon2", &SIGNING_KEY.repeat(64)] {
        ensure!(!log.contains(told), "{told:?} is logged");
    }
    Ok(())
}

#[tokio::test]
async fn logins_without_keys_stop_either_function() -> Result<()> {
    let endpoints = Endpoints::start().await?;
    for (access, variable, sentence) in [
        (ROBOTS.to_owned(), None, "access.signing_keys: is required where somebody can log in"),
        (format!("{ROBOTS}{KEYS}"), Some(""), "access.signing_keys: there is no key"),
        (format!("{ROBOTS}{KEYS}"), Some("c2hvcnQ="), "access.signing_keys: key 1 is not"),
    ] {
        let (_configuration, environment) = Plan::of("http://127.0.0.1:1").setting(&access).environment(&endpoints)?;
        let environment = match variable {
            Some(value) => environment.with("STOPOVER_SIGNING_KEYS", value),
            None => environment,
        };
        for function in [REGISTRY, FILLER] {
            let text = environment.refusal(function).await?;
            ensure!(text.contains(sentence) && !text.contains("c2hvcnQ"), "{function}: {text}");
        }
    }
    Ok(())
}
