//! ECR: its logins, over the AWS JSON 1.1 protocol. Requests must be signed, for a region; the signature is not verified.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use axum::{Router, body::Body, extract::State};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use http::{HeaderMap, Response, StatusCode, header};
use serde_json::{Value, json};

use super::{
    ACCESS_KEY_ID,
    journal::{Failure, Journal, Service},
};
use crate::loopback::Loopback;

/// What the service issues: user `AWS`, and a password that changes when the test says so.
#[derive(Clone, Default)]
pub struct Logins(Arc<Mutex<Issuing>>);

#[derive(Default)]
struct Issuing {
    password: String,
    expires_at: u64,
    regions: Vec<String>,
}

impl Logins {
    fn issuing(&self) -> MutexGuard<'_, Issuing> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// From now on issues this password, which ends at that time (seconds since the Unix epoch).
    pub fn issue(&self, password: &str, expires_at: u64) {
        let mut issuing = self.issuing();
        password.clone_into(&mut issuing.password);
        issuing.expires_at = expires_at;
    }

    /// The regions that passwords were asked for, one for each time.
    pub fn regions(&self) -> Vec<String> {
        self.issuing().regions.clone()
    }
}

/// Starts the service and returns its endpoint URL and what it issues.
pub(super) fn start(loopback: &Loopback, journal: Arc<Journal>) -> anyhow::Result<(String, Logins)> {
    let (listener, address) = loopback.bind()?;
    let logins = Logins::default();
    loopback.serve(listener, Router::new().fallback(answer).with_state((logins.clone(), journal)));
    Ok((format!("http://{address}"), logins))
}

async fn answer(State((logins, journal)): State<(Logins, Arc<Journal>)>, headers: HeaderMap) -> Response<Body> {
    let text = |name: &str| headers.get(name).and_then(|value| value.to_str().ok()).unwrap_or_default();
    let operation =
        text("x-amz-target").strip_prefix("AmazonEC2ContainerRegistry_V20150921.").unwrap_or_default().to_owned();
    // AWS4-HMAC-SHA256 Credential=<key>/<date>/<region>/ecr/aws4_request, …
    let scope: Vec<&str> = text("authorization").split([' ', '/', ',']).collect();
    let region = match scope.as_slice() {
        ["AWS4-HMAC-SHA256", key, _, region, "ecr", "aws4_request", ..]
            if *key == format!("Credential={ACCESS_KEY_ID}") =>
        {
            *region
        }
        _ => {
            return refusal(
                400,
                "UnrecognizedClientException",
                "The security token included in the request is invalid.",
            );
        }
    };
    match journal.record(Service::Ecr, &operation) {
        Some(Failure::Internal) => return refusal(500, "ServerException", "injected by the test"),
        Some(Failure::Throttled) => return refusal(400, "ThrottlingException", "injected by the test"),
        None => {}
    }
    if operation != "GetAuthorizationToken" {
        return refusal(400, "UnknownOperationException", "this endpoint only issues logins");
    }
    let mut issuing = logins.issuing();
    issuing.regions.push(region.to_owned());
    if issuing.password.is_empty() {
        let message = "User is not authorized to perform: ecr:GetAuthorizationToken on resource: *";
        return refusal(400, "AccessDeniedException", message);
    }
    let token = STANDARD.encode(format!("AWS:{}", issuing.password));
    let data =
        json!({ "authorizationToken": token, "expiresAt": issuing.expires_at, "proxyEndpoint": "https://unused" });
    respond(200, &json!({ "authorizationData": [data] }))
}

fn refusal(status: u16, code: &str, message: &str) -> Response<Body> {
    respond(status, &json!({ "__type": code, "message": message }))
}

fn respond(status: u16, body: &Value) -> Response<Body> {
    let mut response = Response::new(Body::from(body.to_string()));
    *response.status_mut() = StatusCode::from_u16(status).expect("a real status");
    response.headers_mut().insert(header::CONTENT_TYPE, header::HeaderValue::from_static("application/x-amz-json-1.1"));
    response
}
