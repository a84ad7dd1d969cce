//! Secrets Manager and the Parameter Store of Systems Manager, over the AWS JSON 1.1 protocol: what an operator keeps there,
//! and replaces while functions run.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use axum::body::{Body, Bytes};
use axum::{Router, extract::State};
use http::{HeaderMap, Response};
use serde_json::{Value, json};

use super::journal::{Journal, Service};
use super::json;
use crate::loopback::Loopback;

/// What is kept; nothing until a test puts it there.
#[derive(Clone, Default)]
pub struct Kept(Arc<Mutex<Values>>);

/// All versions of each value, by ARN or by name; the last one is current.
#[derive(Default)]
struct Values {
    secrets: HashMap<String, Vec<String>>,
    parameters: HashMap<String, Vec<String>>,
}

type Refused = (&'static str, &'static str);

impl Kept {
    fn values(&self) -> MutexGuard<'_, Values> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A new version of a secret (`PutSecretValue`): what was current is the previous one then.
    pub fn put_secret(&self, arn: &str, text: &str) {
        self.values().secrets.entry(arn.to_owned()).or_default().push(text.to_owned());
    }

    /// A new version of a parameter (`PutParameter`).
    pub fn put_parameter(&self, name: &str, text: &str) {
        self.values().parameters.entry(name.to_owned()).or_default().push(text.to_owned());
    }

    /// Deletes a parameter with its versions (`DeleteParameter`).
    pub fn remove_parameter(&self, name: &str) {
        self.values().parameters.remove(name);
    }

    fn secret(&self, request: &Value) -> Result<Value, Refused> {
        let text = |name: &str| request[name].as_str().unwrap_or_default();
        let missing = "Secrets Manager can't find the specified secret value for staging label";
        let values = self.values();
        let versions = values.secrets.get(text("SecretId")).ok_or(("AccessDeniedException", "not authorized"))?;
        let back = match text("VersionStage") {
            "" | "AWSCURRENT" => 1,
            "AWSPREVIOUS" => 2,
            _ => return Err(("InvalidParameterException", "no such label")),
        };
        let at = versions.len().checked_sub(back).ok_or(("ResourceNotFoundException", missing))?;
        let stages = [text("VersionStage")];
        Ok(json!({
            "ARN": text("SecretId"), "Name": "a name", "VersionId": format!("version-{at}"), "SecretString": versions[at],
            "VersionStages": stages, "CreatedDate": 1_700_000_000.125,
        }))
    }

    /// `/name`, or `/name:3` for its third version.
    fn parameter(&self, request: &Value) -> Result<Value, Refused> {
        let named = request["Name"].as_str().unwrap_or_default();
        let (name, version) = named.split_once(':').map_or((named, None), |(name, version)| (name, Some(version)));
        let values = self.values();
        let versions = values.parameters.get(name).ok_or(("ParameterNotFound", "there is none"))?;
        let version = version.map_or(Some(versions.len()), |version| version.parse().ok());
        let version = version.filter(|version| (1..=versions.len()).contains(version));
        let version = version.ok_or(("ParameterVersionNotFound", "there is none"))?;
        let value = &versions[version - 1];
        Ok(json!({ "Parameter": {
            "Name": name, "Type": "String", "Value": value, "Version": version, "LastModifiedDate": 1_700_000_000.125,
            "ARN": format!("arn:aws:ssm:us-east-1:000000000000:parameter{name}"), "DataType": "text",
        }}))
    }
}

/// Starts the services and returns their endpoint URL and what they keep.
pub(super) fn start(loopback: &Loopback, journal: Arc<Journal>) -> anyhow::Result<(String, Kept)> {
    let (listener, address) = loopback.bind()?;
    let kept = Kept::default();
    loopback.serve(listener, Router::new().fallback(answer).with_state((kept.clone(), journal)));
    Ok((format!("http://{address}"), kept))
}

async fn answer(
    State((kept, journal)): State<(Kept, Arc<Journal>)>,
    headers: HeaderMap,
    body: Bytes,
) -> Response<Body> {
    let of_parameters = headers.get("x-amz-target").is_some_and(|target| target.as_bytes().starts_with(b"AmazonSSM."));
    let service = if of_parameters {
        (Service::Parameters, "ssm", "AmazonSSM.")
    } else {
        (Service::Secrets, "secretsmanager", "secretsmanager.")
    };
    let operation = match json::accept(&headers, service, &journal) {
        Ok((operation, _)) => operation,
        Err((status, code, message)) => return json::refusal(status, code, message),
    };
    let request: Value = serde_json::from_slice(&body).unwrap_or_default();
    let found = match operation.as_str() {
        "GetSecretValue" => kept.secret(&request),
        "GetParameter" => kept.parameter(&request),
        _ => Err(("UnknownOperationException", "this endpoint only reads")),
    };
    match found {
        Ok(found) => json::respond(200, &found),
        Err((code, message)) => json::refusal(400, code, message),
    }
}
