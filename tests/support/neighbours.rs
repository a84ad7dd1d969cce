//! What programs find beside them where they run: metadata of an instance, credentials of a container, tokens of a job.

use std::collections::HashMap;

use axum::extract::{Path, Query};
use axum::routing::{get, put};
use axum::{Json, Router};
use http::{HeaderMap, StatusCode};
use serde_json::{Value, json};

use crate::aws::sts::Signer;
use crate::loopback::Loopback;

const METADATA_TOKEN: &str = "token of the metadata";

/// An instance of EC2 (`IMDSv2` only), and a container on it.
pub struct Instance {
    url: String,
    _loopback: Loopback,
}

impl Instance {
    /// What the container has to send.
    pub const CONTAINER_TOKEN: &str = "token of the container";

    /// Starts it; both have this signer's credentials.
    pub fn start(signer: &Signer) -> anyhow::Result<Self> {
        let loopback = Loopback::new("instance")?;
        let (listener, address) = loopback.bind()?;
        let credentials = json!({
            "AccessKeyId": signer.key_id, "SecretAccessKey": signer.secret, "Token": signer.token,
            "Expiration": "2099-01-01T00:00:00Z",
        });
        let of_instance = credentials.clone();
        let metadata = async move |headers: HeaderMap, Path(path): Path<String>| {
            if headers.get("x-aws-ec2-metadata-token").is_none_or(|token| token != METADATA_TOKEN) {
                return Err(StatusCode::UNAUTHORIZED);
            }
            match path.as_str() {
                "iam/security-credentials/" => Ok("node".to_owned()),
                "iam/security-credentials/node" => Ok(of_instance.to_string()),
                "placement/region" => Ok("eu-west-1".to_owned()),
                _ => Err(StatusCode::NOT_FOUND),
            }
        };
        let routes = Router::new()
            .route("/latest/api/token", put(metadata_token))
            .route("/latest/meta-data/{*path}", get(metadata))
            .route("/container", get(async move |headers: HeaderMap| container(&headers, credentials)));
        loopback.serve(listener, routes);
        Ok(Self { url: format!("http://{address}"), _loopback: loopback })
    }

    /// Where its metadata is.
    pub fn url(&self) -> &str {
        &self.url
    }

    /// Where credentials of the container are.
    pub fn container_url(&self) -> String {
        format!("{}/container", self.url)
    }
}

async fn metadata_token(headers: HeaderMap) -> Result<&'static str, StatusCode> {
    let life = headers.get("x-aws-ec2-metadata-token-ttl-seconds").and_then(|life| life.to_str().ok()?.parse().ok());
    if life.is_some_and(|life: u32| (1..=21_600).contains(&life)) {
        Ok(METADATA_TOKEN)
    } else {
        Err(StatusCode::BAD_REQUEST)
    }
}

fn container(headers: &HeaderMap, credentials: Value) -> Result<Json<Value>, StatusCode> {
    let known = headers.get("authorization").is_some_and(|token| token == Instance::CONTAINER_TOKEN);
    if known { Ok(Json(credentials)) } else { Err(StatusCode::FORBIDDEN) }
}

/// GitHub Actions, as far as it issues ID tokens to a job.
pub struct Actions {
    url: String,
    _loopback: Loopback,
}

impl Actions {
    /// Starts it: the token is that for this audience.
    pub fn start(audience: &str, token: &str) -> anyhow::Result<Self> {
        let loopback = Loopback::new("actions")?;
        let (listener, address) = loopback.bind()?;
        let (audience, token) = (audience.to_owned(), token.to_owned());
        let issue = async move |headers: HeaderMap, Query(query): Query<HashMap<String, String>>| {
            let known = headers.get("authorization").is_some_and(|value| value == "Bearer token of the job");
            match (known, query.get("audience"), query.get("api-version")) {
                (true, Some(asked), Some(_)) if *asked == audience => Ok(Json(json!({ "value": token }))),
                (true, ..) => Err(StatusCode::BAD_REQUEST),
                (false, ..) => Err(StatusCode::UNAUTHORIZED),
            }
        };
        loopback.serve(listener, Router::new().route("/token", get(issue)));
        Ok(Self { url: format!("http://{address}/token?api-version=2.0"), _loopback: loopback })
    }

    /// What a job finds in its environment.
    pub fn environment(&self) -> Vec<(&'static str, String)> {
        vec![
            ("ACTIONS_ID_TOKEN_REQUEST_URL", self.url.clone()),
            ("ACTIONS_ID_TOKEN_REQUEST_TOKEN", "token of the job".to_owned()),
        ]
    }
}
