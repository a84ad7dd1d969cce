//! Secrets that are replaced while the processes of the functions run.

use anyhow::{Context, Result, ensure};
use reqwest::Method;
use serde_json::{Value, json};
use support::aws::Service;
use support::scripted::{Login, Scripted};

use crate::deployment::{Deployment, Plan, put_keys, request};

/// Where the password of the upstream is.
pub(crate) const HUB: &str = "arn:aws:secretsmanager:us-east-1:123456789012:secret:hub-AbCdEf";

pub(crate) fn put_password(deployment: &Deployment, upstream: &Scripted, password: &str) {
    support::secrets::know_login("a password in Secrets Manager", "alice", password);
    deployment.endpoints.kept().put_secret(HUB, &json!({ "password": password }).to_string());
    upstream.require(Login::BearerFor("alice".into(), password.into()));
    upstream.forget_tokens();
}

#[tokio::test]
async fn a_password_that_is_replaced_works_at_once_in_every_process_and_no_environment_has_it() -> Result<()> {
    let upstream = Scripted::start()?;
    let credentials =
        format!("public = true\ncredentials = {{ username = \"alice\", password_secret = \"{HUB}#password\" }}\n");
    let deployment = Plan::of(&upstream.url()).setting(&credentials).log_level("DEBUG").start().await?;
    let environment = format!("{:?}", deployment.endpoints.environment());
    for (number, password) in ["the-first-password", "the-second-password"].into_iter().enumerate() {
        put_password(&deployment, &upstream, password);
        for tag in 0..8 {
            let tag = format!("{number}-{tag}");
            upstream.image("team/image", &tag, &[b"layer"]);
            let answer = deployment.request(Method::GET, &format!("team/image/manifests/{tag}"))?.send().await?;
            ensure!(answer.status() == 200, "{tag}: {}\n{}", answer.status(), deployment.log());
        }
        deployment.until_filled().await?;
        ensure!(deployment.endpoints.dead_messages() == 0, "{}", deployment.log());
        ensure!(!environment.contains(password) && !deployment.log().contains(password), "{password}");
    }
    Ok(())
}

#[tokio::test]
async fn a_token_of_a_key_that_is_new_is_believed_by_processes_that_knew_another() -> Result<()> {
    let upstream = Scripted::start()?;
    upstream.image("team/image", "v1", &[b"layer"]);
    let deployment = Plan::of(&upstream.url()).setting("[access]\nrobots = true\n").start().await?;
    let added = deployment.invoke_filler(json!({ "robots": { "add": { "name": "ci" } } })).await?;
    let secret = added["secret"]["secret"].as_str().context("no secret")?.to_owned();
    let url = format!("http://{}/token?service=stopover", deployment.address());
    // As many logins as there are processes, and more: each of them has read the keys.
    let log_in = async || {
        let mut tokens = Vec::new();
        for _ in 0..8 {
            let issued = request(Method::GET, &url)?.basic_auth("ci", Some(&secret)).send().await?;
            ensure!(issued.status() == 200, "{}\n{}", issued.status(), deployment.log());
            let issued: Value = serde_json::from_slice(&issued.bytes().await?)?;
            tokens.push(issued["token"].as_str().context("no token")?.to_owned());
        }
        Ok(tokens)
    };
    let before = log_in().await?;
    put_keys(&deployment.endpoints, &"n".repeat(64));
    // One that starts now signs with the new key; so does each other once it has seen a token of that.
    let keys = stopover::access::token::TokenKeys::parse(&"n".repeat(64), stopover::values::time::Clock::default())?;
    let old = stopover::access::token::TokenKeys::parse(
        crate::deployment::SIGNING_KEY,
        stopover::values::time::Clock::default(),
    )?;
    let (holder, _) = old.verify("stopover", &before[0]).context("not valid")?;
    let new = keys.issue("stopover", &holder, std::time::Duration::from_mins(10)).context("not signed")?;
    for _ in 0..2 {
        for token in before.iter().chain([&new; 8]) {
            let answer = deployment.request(Method::GET, "team/image/manifests/v1")?.bearer_auth(token).send().await?;
            ensure!(answer.status() == 200, "{}\n{}", answer.status(), deployment.log());
        }
    }
    let reads = deployment.endpoints.calls(Service::Secrets, "GetSecretValue");
    ensure!(reads <= 2 * 2 * crate::deployment::REGISTRIES, "{reads} calls");
    Ok(())
}

#[tokio::test]
async fn keys_that_nobody_may_read_refuse_logins_only_and_name_the_setting() -> Result<()> {
    let upstream = Scripted::start()?;
    upstream.image("team/image", "v1", &[b"layer"]);
    let access = "[access]\nanonymous = [\"127.0.0.0/8\"]\nrobots = true\n\
                  signing_keys = { secret = \"arn:aws:secretsmanager:us-east-1:123456789012:secret:other-AbCdEf\" }\n";
    let deployment = Plan::of(&upstream.url()).setting(access).start().await?;
    let pulled = deployment.request(Method::GET, "team/image/manifests/v1")?.send().await?;
    ensure!(pulled.status() == 200, "{}\n{}", pulled.status(), deployment.log());
    let url = format!("http://{}/token?service=stopover", deployment.address());
    ensure!(request(Method::GET, &url)?.send().await?.status() == 503);
    let log = deployment.log();
    ensure!(log.contains("access.signing_keys cannot be read") && log.contains("AccessDeniedException"), "{log}");
    Ok(())
}
