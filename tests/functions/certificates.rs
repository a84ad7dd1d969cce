//! Whose certificates a function believes when it calls AWS.

use anyhow::{Result, ensure};
use reqwest::Method;
use support::aws::Endpoints;
use support::lambda::HttpFront;
use support::program::UPSTREAM;
use support::tls::TlsServer;
use tempfile::TempDir;

use crate::deployment::{Plan, REGISTRY, error_code, request};

/// It takes as long as a call of AWS is tried: what fails is asked again for seconds, twice here.
#[tokio::test]
async fn only_authorities_of_amazon_are_believed_unless_the_environment_names_others() -> Result<()> {
    let directory = TempDir::new()?;
    TlsServer::certify(directory.path()).await?;
    let table = TlsServer::start(directory.path(), "good.pem").await?;
    let certificate = directory.path().join("good.pem").display().to_string();
    let endpoints = Endpoints::start().await?;
    let (_configuration, environment) = Plan::of("http://127.0.0.1:1").environment(&endpoints)?;
    let environment = environment.with("AWS_ENDPOINT_URL_DYNAMODB", &format!("https://127.0.0.1:{}", table.port()));
    for (environment, believed) in [(environment.with("SSL_CERT_FILE", &certificate), true), (environment, false)] {
        let front = HttpFront::start(vec![environment.start(REGISTRY).await?])?;
        let url = format!("{}/v2/{UPSTREAM}/team/image/manifests/v1", front.url());
        let answer = request(Method::GET, &url)?.send().await?;
        ensure!(answer.status() == 503 && error_code(answer).await? == "UNAVAILABLE");
        let log = front.functions()[0].log();
        // What is believed is asked, and answers with a page instead of an item.
        ensure!(log.contains("UnknownIssuer") != believed, "{log}");
    }
    Ok(())
}
