//! API Gateway's payload format 2.0: requests to events, results to responses. And how gateways may behave.

use std::{
    collections::BTreeMap,
    time::{SystemTime, UNIX_EPOCH},
};

use axum::{
    body::Body,
    http::{HeaderMap, HeaderName, HeaderValue, Method, Response, StatusCode, header, request::Parts},
};
use base64::{Engine, prelude::BASE64_STANDARD};
use percent_encoding::percent_decode_str;
use serde_json::{Map, Value, json};

use super::ACCOUNT;

/// What a gateway does to the length of an answer to HEAD. AWS documents none of these of HTTP APIs.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum HeadLength {
    /// It passes the function's header on.
    Passed,
    /// It counts the bytes of the function's body, which it does not send.
    Computed,
    /// There is none.
    Dropped,
}

/// How a path gets to the function.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Paths {
    /// Decoded once, and cut at a decoded question mark: an HTTP API.
    Decoded,
    /// As the client sent it: emulators, and other fronts.
    AsSent,
}

/// What stands in front of the function.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Kind {
    /// API Gateway, HTTP API.
    HttpApi,
    /// An Application Load Balancer with multi-value headers.
    LoadBalancer,
}

/// A way to behave.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Manner {
    /// What it is.
    pub kind: Kind,
    /// What becomes of the length of an answer to HEAD.
    pub head_length: HeadLength,
    /// How paths get to the function.
    pub paths: Paths,
}

impl Manner {
    /// The fronts that there may be.
    pub const ALL: [Self; 4] = [
        Self { kind: Kind::HttpApi, head_length: HeadLength::Passed, paths: Paths::Decoded },
        Self { kind: Kind::HttpApi, head_length: HeadLength::Computed, paths: Paths::Decoded },
        Self { kind: Kind::HttpApi, head_length: HeadLength::Dropped, paths: Paths::AsSent },
        Self { kind: Kind::LoadBalancer, head_length: HeadLength::Computed, paths: Paths::AsSent },
    ];
}

/// The event for a request, as an HTTP API with the route `$default` and the stage `$default` makes it.
pub(super) fn event(request: &Parts, body: &[u8], request_id: &str, paths: Paths) -> Value {
    let path = match paths {
        Paths::Decoded => percent_decode_str(request.uri.path()).decode_utf8_lossy(),
        Paths::AsSent => request.uri.path().into(),
    };
    let path = path.split('?').next().unwrap_or_default();
    let query = request.uri.query().unwrap_or_default();
    let mut headers = joined(&request.headers);
    let cookies: Vec<String> = headers
        .remove("cookie")
        .map(|cookies| cookies.split(';').map(|cookie| cookie.trim().to_owned()).collect())
        .unwrap_or_default();
    let domain = headers.get("host").cloned().unwrap_or_default();
    let user_agent = headers.get("user-agent").cloned().unwrap_or_default();
    headers.entry("content-length".to_owned()).or_insert_with(|| body.len().to_string());
    headers.insert("x-forwarded-for".to_owned(), "127.0.0.1".to_owned());
    headers.insert("x-forwarded-port".to_owned(), "443".to_owned());
    headers.insert("x-forwarded-proto".to_owned(), "https".to_owned());
    let text = headers.get("content-type").is_some_and(|media_type| is_text(media_type));

    let mut event = json!({
        "version": "2.0",
        "routeKey": "$default",
        "rawPath": path,
        "rawQueryString": query,
        "headers": headers,
        "requestContext": {
            "accountId": ACCOUNT,
            "apiId": "tests",
            "domainName": domain,
            "domainPrefix": domain.split('.').next().unwrap_or_default(),
            "http": {
                "method": request.method.as_str(),
                "path": path,
                "protocol": "HTTP/1.1",
                "sourceIp": "127.0.0.1",
                "userAgent": user_agent,
            },
            "requestId": request_id,
            "routeKey": "$default",
            "stage": "$default",
            "time": common_log_time(SystemTime::now()),
            "timeEpoch": SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_millis(),
        },
        "isBase64Encoded": !body.is_empty() && !text,
    });
    if !cookies.is_empty() {
        event["cookies"] = json!(cookies);
    }
    if !query.is_empty() {
        event["queryStringParameters"] = json!(parameters(query));
    }
    if !body.is_empty() {
        event["body"] = if text { String::from_utf8_lossy(body).into() } else { BASE64_STANDARD.encode(body).into() };
    }
    event
}

/// Lower-case names; the values of repeated headers joined by commas.
fn joined(headers: &HeaderMap) -> BTreeMap<String, String> {
    let mut joined = BTreeMap::<String, String>::new();
    for (name, value) in headers {
        let value = String::from_utf8_lossy(value.as_bytes());
        joined
            .entry(name.as_str().to_owned())
            .and_modify(|values| {
                values.push_str(if name == header::COOKIE { ";" } else { "," });
                values.push_str(&value);
            })
            .or_insert_with(|| value.into_owned());
    }
    joined
}

/// The decoded parameters; the values of repeated ones joined by commas.
fn parameters(query: &str) -> BTreeMap<String, String> {
    let decode = |text: &str| percent_decode_str(&text.replace('+', " ")).decode_utf8_lossy().into_owned();
    let mut parameters = BTreeMap::<String, String>::new();
    for pair in query.split('&').filter(|pair| !pair.is_empty()) {
        let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
        parameters
            .entry(decode(name))
            .and_modify(|values| {
                values.push(',');
                values.push_str(&decode(value));
            })
            .or_insert_with(|| decode(value));
    }
    parameters
}

pub(super) fn is_text(media_type: &str) -> bool {
    let essence = media_type.split(';').next().unwrap_or_default().trim().to_ascii_lowercase();
    essence.starts_with("text/")
        || matches!(essence.as_str(), "application/json" | "application/xml" | "application/javascript")
        || essence.ends_with("+json")
        || essence.ends_with("+xml")
}

/// `12/Mar/2020:19:03:58 +0000`
fn common_log_time(time: SystemTime) -> String {
    let http_date = httpdate::fmt_http_date(time);
    let fields: Vec<&str> = http_date.split(' ').collect();
    match fields.as_slice() {
        [_, day, month, year, clock, _] => format!("{day}/{month}/{year}:{clock} +0000"),
        _ => http_date,
    }
}

/// The response that a function's result stands for; an error says what is wrong with the result.
pub(super) fn response(result: &Value, method: &Method, head_length: HeadLength) -> Result<Response<Body>, String> {
    let Some(status) = result.get("statusCode") else {
        // Without a status code the whole result is the body.
        let mut response = Response::new(Body::from(result.as_str().map_or_else(|| result.to_string(), str::to_owned)));
        response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
        return Ok(response);
    };
    let status =
        status.as_u64().or_else(|| status.as_str()?.parse().ok()).and_then(|status| u16::try_from(status).ok());
    let status =
        status.and_then(|status| StatusCode::from_u16(status).ok()).ok_or("statusCode is not a status code")?;

    let body = match result.get("body") {
        None | Some(Value::Null) => Vec::new(),
        Some(Value::String(body)) if result["isBase64Encoded"] == true => {
            BASE64_STANDARD.decode(body).map_err(|error| format!("body is not base64: {error}"))?
        }
        Some(Value::String(body)) => body.clone().into_bytes(),
        Some(_) => return Err("body is not a string".to_owned()),
    };
    let head = *method == Method::HEAD;
    let computed = HeaderValue::from(body.len());
    // A stream has no length that the server would add by itself.
    let none = Body::from_stream(futures_util::stream::empty::<Result<Vec<u8>, std::convert::Infallible>>());
    let mut response = Response::new(if head { none } else { Body::from(body) });
    *response.status_mut() = status;
    let none = Map::new();
    for (name, value) in result["headers"].as_object().unwrap_or(&none) {
        let value = match value {
            Value::String(value) => value.clone(),
            Value::Number(_) | Value::Bool(_) => value.to_string(),
            _ => return Err(format!("header {name} is not a string")),
        };
        let name = HeaderName::from_bytes(name.as_bytes()).map_err(|_| format!("{name:?} is not a header name"))?;
        // The gateway frames the body it sends; only an answer to HEAD says a length of its own.
        let passed = head && head_length == HeadLength::Passed;
        if name == header::TRANSFER_ENCODING
            || name == header::CONNECTION
            || (name == header::CONTENT_LENGTH && !passed)
        {
            continue;
        }
        let value = HeaderValue::from_str(&value).map_err(|_| format!("header {name} has an impossible value"))?;
        response.headers_mut().insert(name, value);
    }
    for cookie in result["cookies"].as_array().into_iter().flatten().filter_map(Value::as_str) {
        let cookie = HeaderValue::from_str(cookie).map_err(|_| "impossible cookie")?;
        response.headers_mut().append(header::SET_COOKIE, cookie);
    }
    if head && head_length == HeadLength::Computed {
        response.headers_mut().insert(header::CONTENT_LENGTH, computed);
    }
    Ok(response)
}
