//! ID tokens, from a file or from their issuer.

use std::env;
use std::path::Path;

use anyhow::{Context as _, bail, ensure};
use serde::Deserialize;
use url::Url;

const REQUEST_URL: &str = "ACTIONS_ID_TOKEN_REQUEST_URL";
const REQUEST_TOKEN: &str = "ACTIONS_ID_TOKEN_REQUEST_TOKEN";

/// Whether this is a job that GitHub issues ID tokens for: one with `permissions: id-token: write`.
pub(super) fn is_in_github_actions() -> bool {
    env::var_os(REQUEST_URL).is_some()
}

/// The token in the file, if one is named, or else one that GitHub Actions issues for this audience.
pub(super) async fn token(file: Option<&Path>, audience: &str) -> anyhow::Result<String> {
    if let Some(file) = file {
        let token = std::fs::read_to_string(file).with_context(|| format!("cannot read {}", file.display()))?;
        ensure!(!token.trim().is_empty(), "{} is empty", file.display());
        return Ok(token.trim().to_owned());
    }
    let (Ok(url), Ok(secret)) = (env::var(REQUEST_URL), env::var(REQUEST_TOKEN)) else {
        bail!(
            "there is no ID token: name a file with --token-file or STOPOVER_OIDC_TOKEN_FILE; a job of GitHub Actions \
             needs `permissions: id-token: write`"
        );
    };
    issued(&url, &secret, audience).await.context("GitHub Actions issues no ID token")
}

async fn issued(url: &str, secret: &str, audience: &str) -> anyhow::Result<String> {
    #[derive(Deserialize)]
    struct TokenResponse {
        value: String,
    }
    let mut url = Url::parse(url).with_context(|| format!("{REQUEST_URL} is no URL"))?;
    url.query_pairs_mut().append_pair("audience", audience);
    let answer = super::issuer_client()?.get(url).bearer_auth(secret).send().await;
    let answer = answer.map_err(reqwest::Error::without_url)?;
    ensure!(answer.status().is_success(), "{}", answer.status());
    let answer: TokenResponse = serde_json::from_slice(&answer.bytes().await?).context("the answer has no token")?;
    Ok(answer.value)
}
