//! Events of an Application Load Balancer whose target group has multi-value headers (Elastic Load Balancing, "Lambda
//! functions as targets").

use std::collections::BTreeMap;

use axum::http::request::Parts;
use base64::{Engine, prelude::BASE64_STANDARD};
use serde_json::{Map, Value, json};

use super::payload::is_text;

/// Its limit on an event and on a result, in bytes of JSON.
pub(super) const MAX_JSON: usize = 1_000_000;

/// The event for a request. Names and values of the query stay as they were sent.
pub(super) fn event(request: &Parts, body: &[u8]) -> Value {
    let mut headers = BTreeMap::<&str, Vec<String>>::new();
    for (name, value) in &request.headers {
        headers.entry(name.as_str()).or_default().push(String::from_utf8_lossy(value.as_bytes()).into_owned());
    }
    // It appends to what the client says, and replaces the others.
    let said = headers.remove("x-forwarded-for").unwrap_or_default();
    let forwarded = said.into_iter().chain(["127.0.0.1".to_owned()]).collect::<Vec<_>>().join(", ");
    headers.insert("x-forwarded-for", vec![forwarded]);
    headers.insert("x-forwarded-port", vec!["443".to_owned()]);
    headers.insert("x-forwarded-proto", vec!["https".to_owned()]);
    let text =
        headers.get("content-type").and_then(|types| types.first()).is_some_and(|media_type| is_text(media_type));
    let mut parameters = BTreeMap::<&str, Vec<&str>>::new();
    for pair in request.uri.query().unwrap_or_default().split('&').filter(|pair| !pair.is_empty()) {
        let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
        parameters.entry(name).or_default().push(value);
    }
    let encoded = !body.is_empty() && !text;
    json!({
        "requestContext": { "elb": { "targetGroupArn": "arn:aws:elasticloadbalancing:us-east-1:000000000000:targetgroup/tests/1" } },
        "httpMethod": request.method.as_str(),
        "path": request.uri.path(),
        "multiValueQueryStringParameters": parameters,
        "multiValueHeaders": headers,
        "body": if encoded { BASE64_STANDARD.encode(body) } else { String::from_utf8_lossy(body).into_owned() },
        "isBase64Encoded": encoded,
    })
}

/// The result as one for API Gateway would be: of the two maps of headers only the one with all values counts here. An error
/// says why the load balancer would answer 502.
pub(super) fn result(mut result: Value) -> Result<Value, String> {
    if result.to_string().len() > MAX_JSON {
        return Err(format!("the result has more than {MAX_JSON} bytes"));
    }
    let described = result["statusDescription"].as_str().unwrap_or_default();
    if !described.starts_with(&format!("{} ", result["statusCode"])) {
        return Err(format!("{described:?} is no description of the status"));
    }
    let lines = result["multiValueHeaders"].as_object().ok_or("there are no multiValueHeaders")?;
    let mut headers = Map::new();
    for (name, values) in lines {
        let values = values.as_array().ok_or_else(|| format!("{name} is no list"))?;
        let values = values.iter().map(|value| value.as_str().ok_or_else(|| format!("{name} is no text")));
        headers.insert(name.clone(), values.collect::<Result<Vec<_>, _>>()?.join(", ").into());
    }
    result["headers"] = headers.into();
    Ok(result)
}
