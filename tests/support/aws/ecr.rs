//! ECR: its logins, over the AWS JSON 1.1 protocol. Requests must be signed, for a region; the signature is not verified.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use axum::{Router, body::Body, extract::State};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use http::{HeaderMap, Response};

use super::{
    journal::{Journal, Service},
    json,
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
    let public =
        headers.get("x-amz-target").is_some_and(|target| target.as_bytes().starts_with(b"SpencerFrontendService."));
    let service = if public {
        (Service::Ecr, "ecr-public", "SpencerFrontendService.")
    } else {
        (Service::Ecr, "ecr", "AmazonEC2ContainerRegistry_V20150921.")
    };
    let (operation, region) = match json::accept(&headers, service, &journal) {
        Ok(accepted) => accepted,
        Err((status, code, message)) => return json::refusal(status, code, message),
    };
    if operation != "GetAuthorizationToken" {
        return json::refusal(400, "UnknownOperationException", "this endpoint only issues logins");
    }
    let mut issuing = logins.issuing();
    issuing.regions.push(region);
    if issuing.password.is_empty() {
        let message = "User is not authorized to perform: ecr:GetAuthorizationToken on resource: *";
        return json::refusal(400, "AccessDeniedException", message);
    }
    let token = STANDARD.encode(format!("AWS:{}", issuing.password));
    let data = serde_json::json!({ "authorizationToken": token, "expiresAt": issuing.expires_at, "proxyEndpoint": "https://unused" });
    let data = if public { data } else { serde_json::json!([data]) };
    json::respond(200, &serde_json::json!({ "authorizationData": data }))
}
