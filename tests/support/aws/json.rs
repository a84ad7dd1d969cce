//! What services of the AWS JSON 1.1 protocol have in common. Requests must be signed; the signature is not verified.

use axum::body::Body;
use http::{HeaderMap, Response, StatusCode, header};
use serde_json::{Value, json};

use super::{
    ACCESS_KEY_ID,
    journal::{Failure, Journal, Service},
};

/// A status, a code and a message.
type Refused = (u16, &'static str, &'static str);

/// The operation of a request, and the region that it is signed for, unless it is refused.
pub(super) fn accept(
    headers: &HeaderMap,
    (service, name, target): (Service, &str, &str),
    journal: &Journal,
) -> Result<(String, String), Refused> {
    let text = |name: &str| headers.get(name).and_then(|value| value.to_str().ok()).unwrap_or_default();
    let operation = text("x-amz-target").strip_prefix(target).unwrap_or_default().to_owned();
    // AWS4-HMAC-SHA256 Credential=<key>/<date>/<region>/<service>/aws4_request, …
    let scope: Vec<&str> = text("authorization").split([' ', '/', ',']).collect();
    let region = match scope.as_slice() {
        ["AWS4-HMAC-SHA256", key, _, region, of, "aws4_request", ..]
            if *key == format!("Credential={ACCESS_KEY_ID}") && *of == name =>
        {
            (*region).to_owned()
        }
        _ => {
            let message = "The security token included in the request is invalid.";
            return Err((400, "UnrecognizedClientException", message));
        }
    };
    match journal.record(service, &operation) {
        Some(Failure::Internal) => Err((500, "ServerException", "injected by the test")),
        Some(Failure::Throttled) => Err((400, "ThrottlingException", "injected by the test")),
        None => Ok((operation, region)),
    }
}

pub(super) fn refusal(status: u16, code: &str, message: &str) -> Response<Body> {
    respond(status, &json!({ "__type": code, "message": message }))
}

pub(super) fn respond(status: u16, body: &Value) -> Response<Body> {
    let mut response = Response::new(Body::from(body.to_string()));
    *response.status_mut() = StatusCode::from_u16(status).expect("a real status");
    response.headers_mut().insert(header::CONTENT_TYPE, header::HeaderValue::from_static("application/x-amz-json-1.1"));
    response
}
