//! Events of API Gateway and of load balancers, read as requests of HTTP; and answers in the form that each expects.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};

use axum::body::{Body, to_bytes};
use axum::extract::Request;
use axum::http::header::{HeaderMap, HeaderName, HeaderValue, USER_AGENT};
use axum::http::{Method, Uri};
use axum::response::Response;
use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use percent_encoding::{AsciiSet, CONTROLS, NON_ALPHANUMERIC, utf8_percent_encode};
use serde::Deserialize;
use serde_json::{Value, json};
use stopover::http::Https;
use stopover::identity::Peer;

/// What an event comes from, and an answer goes to.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Origin {
    /// API Gateway, HTTP API: payload 2.0.
    HttpApi,
    /// API Gateway, REST API: payload 1.0. It renames headers that clients need; only VPC endpoints are a reason for it.
    RestApi,
    /// An Application Load Balancer, with multi-value headers or without.
    LoadBalancer,
}

/// The fields of all three kinds of event; `null` where a request has no such thing.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Event {
    request_context: Context,
    raw_path: Option<String>,
    raw_query_string: Option<String>,
    http_method: Option<String>,
    path: Option<String>,
    headers: Option<BTreeMap<String, String>>,
    multi_value_headers: Option<BTreeMap<String, Vec<String>>>,
    query_string_parameters: Option<BTreeMap<String, String>>,
    multi_value_query_string_parameters: Option<BTreeMap<String, Vec<String>>>,
    body: Option<String>,
    #[serde(default)]
    is_base64_encoded: bool,
}

/// Which member there is tells the origin.
#[derive(Deserialize)]
struct Context {
    http: Option<HttpContext>,
    elb: Option<serde::de::IgnoredAny>,
    identity: Option<Identity>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct HttpContext {
    method: String,
    source_ip: Option<String>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Identity {
    source_ip: Option<String>,
    /// The VPC endpoint of a private REST API.
    vpce_id: Option<String>,
}

/// All that is not unreserved (RFC 3986, section 2.3).
const RESERVED: AsciiSet = NON_ALPHANUMERIC.remove(b'-').remove(b'.').remove(b'_').remove(b'~');

/// The characters to escape in a path; `%` is judged by what follows it.
const PATH: AsciiSet = RESERVED.remove(b'/').remove(b':').remove(b'@').remove(b'+');

/// The characters that no query of a URI has (RFC 3986, section 3.4).
const QUERY: AsciiSet = CONTROLS
    .add(b' ')
    .add(b'"')
    .add(b'#')
    .add(b'<')
    .add(b'>')
    .add(b'\\')
    .add(b'^')
    .add(b'`')
    .add(b'{')
    .add(b'|')
    .add(b'}');

/// Reads an event. The error says what is wrong with it, and repeats nothing of it.
pub(crate) fn read(event: Value) -> Result<(Origin, Request), String> {
    let event: Event = serde_json::from_value(event).map_err(|_| "it has not the fields of one".to_owned())?;
    let lines = pairs(event.headers, event.multi_value_headers);
    let parameters = pairs(event.query_string_parameters, event.multi_value_query_string_parameters);
    let lines = lines.filter_map(|(name, value)| Some((name.parse().ok()?, value.parse().ok()?)));
    let headers = lines.fold(HeaderMap::new(), |mut headers, (name, value): (HeaderName, HeaderValue)| {
        headers.append(name, value);
        headers
    });
    let ((origin, method, peer), path, query) = match event.request_context {
        Context { http: Some(HttpContext { method, source_ip }), .. } => {
            let peer = peer(source_ip.as_deref(), None);
            let query = utf8_percent_encode(&event.raw_query_string.unwrap_or_default(), &QUERY).to_string();
            ((Origin::HttpApi, Some(method), peer), event.raw_path, query)
        }
        Context { elb: Some(_), .. } => {
            let peer = peer(last_forwarded(&headers), None);
            // Names and values come as they were sent.
            let query = query(parameters, |text| utf8_percent_encode(text, &QUERY).to_string());
            ((Origin::LoadBalancer, event.http_method, peer), event.path, query)
        }
        Context { identity: Some(Identity { source_ip, vpce_id }), .. } => {
            let peer = peer(source_ip.as_deref(), vpce_id.as_deref());
            // Names and values come decoded.
            let query = query(parameters, |text| utf8_percent_encode(text, &RESERVED).to_string());
            ((Origin::RestApi, event.http_method, peer), event.path, query)
        }
        _ => return Err("its requestContext is that of no HTTP request".to_owned()),
    };
    let method: Method = method.as_deref().unwrap_or_default().parse().map_err(|_| "it names no HTTP method")?;
    let separator = if query.is_empty() { "" } else { "?" };
    let target = format!("{}{separator}{query}", escaped(&path.unwrap_or_default()));
    let uri: Uri = target.parse().map_err(|error| format!("its path or query is none of HTTP: {error}"))?;
    let body = match event.body {
        Some(body) if event.is_base64_encoded => {
            BASE64_STANDARD.decode(body).map_err(|error| format!("its body is not base64: {error}"))?
        }
        body => body.unwrap_or_default().into_bytes(),
    };
    // A load balancer writes this header itself; API Gateway knows nothing else.
    let https =
        origin != Origin::LoadBalancer || headers.get("x-forwarded-proto").is_some_and(|proto| proto == "https");
    let mut request = Request::new(Body::from(body));
    (*request.method_mut(), *request.uri_mut(), *request.headers_mut()) = (method, uri, headers);
    request.extensions_mut().insert(peer);
    if https {
        request.extensions_mut().insert(Https);
    }
    Ok((origin, request))
}

/// Whether a load balancer asks for itself: to what a client asks it appends the address, whatever it says it is.
pub(crate) fn is_health_check(origin: Origin, request: &Request) -> bool {
    let (headers, checker) = (request.headers(), b"ELB-HealthChecker/");
    let by_itself = headers.get(USER_AGENT).is_some_and(|agent| agent.as_bytes().starts_with(checker));
    origin == Origin::LoadBalancer && by_itself && !headers.contains_key("x-forwarded-for")
}

/// Names and values of a map of an event: of the one with all values, where there is one.
fn pairs(
    single: Option<BTreeMap<String, String>>,
    multi: Option<BTreeMap<String, Vec<String>>>,
) -> impl Iterator<Item = (String, String)> {
    let multi = multi.filter(|multi| !multi.is_empty());
    let single = single.filter(|_| multi.is_none()).unwrap_or_default();
    let every = |(name, values): (String, Vec<String>)| values.into_iter().map(move |value| (name.clone(), value));
    single.into_iter().chain(multi.unwrap_or_default().into_iter().flat_map(every))
}

/// The parameters as one query. `written`: how a name or a value is written there.
fn query(pairs: impl Iterator<Item = (String, String)>, written: impl Fn(&str) -> String) -> String {
    pairs.map(|(name, value)| format!("{}={}", written(&name), written(&value))).collect::<Vec<_>>().join("&")
}

/// The path as a URI has it. HTTP APIs decode it once, all others pass it on as it was sent. So an escape that is left
/// counts as one: no name, tag or digest has a `%` of its own.
fn escaped(path: &str) -> String {
    let mut escaped = String::with_capacity(path.len());
    if !path.starts_with('/') {
        escaped.push('/');
    }
    for (number, part) in path.split('%').enumerate() {
        if number > 0 {
            let digits = part.as_bytes().first_chunk::<2>();
            let escape = digits.is_some_and(|digits| digits.iter().all(u8::is_ascii_hexdigit));
            escaped.push_str(if escape { "%" } else { "%25" });
        }
        escaped.extend(utf8_percent_encode(part, &PATH));
    }
    escaped
}

/// What a load balancer has appended to `X-Forwarded-For`: everything before it is a caller's own words.
fn last_forwarded(headers: &HeaderMap) -> Option<&str> {
    let last = headers.get_all("x-forwarded-for").into_iter().next_back()?.to_str().ok()?;
    last.rsplit(',').next().map(str::trim)
}

/// An address, with a port or without. What cannot be parsed counts as none.
fn peer(address: Option<&str>, endpoint: Option<&str>) -> Peer {
    let parse = |text: &str| {
        let with_port = || text.parse().ok().map(|address: SocketAddr| address.ip());
        text.parse::<IpAddr>().ok().or_else(with_port)
    };
    Peer { address: address.and_then(parse), vpc_endpoint: endpoint.and_then(|id| id.parse().ok()) }
}

/// The answer in the form that the origin expects. Its bytes are text where they are, unless base64 is shorter.
pub(crate) async fn write(origin: Origin, response: Response) -> Result<Value, axum::Error> {
    let (parts, body) = response.into_parts();
    let bytes = to_bytes(body, usize::MAX).await?;
    let mut lines = BTreeMap::<&str, Vec<String>>::new();
    for (name, value) in &parts.headers {
        lines.entry(name.as_str()).or_default().push(String::from_utf8_lossy(value.as_bytes()).into_owned());
    }
    let joined = || lines.iter().map(|(name, values)| (*name, values.join(", "))).collect::<BTreeMap<_, _>>();
    let (body, encoded) = match str::from_utf8(&bytes) {
        Ok(text) if bytes.is_ascii() && json_bytes(&bytes) <= bytes.len() * 4 / 3 => (text.to_owned(), false),
        _ => (BASE64_STANDARD.encode(&bytes), true),
    };
    let status = parts.status;
    let mut answer = json!({ "statusCode": status.as_u16(), "body": body, "isBase64Encoded": encoded });
    if let Some(answer) = answer.as_object_mut() {
        // A load balancer reads the one map or the other, as its target group says; a REST API would send both.
        if origin != Origin::RestApi {
            answer.insert("headers".to_owned(), json!(joined()));
        }
        if origin != Origin::HttpApi {
            answer.insert("multiValueHeaders".to_owned(), json!(lines));
        }
        if origin == Origin::HttpApi {
            // Optional; but `cargo lambda watch` reads no answer without it.
            answer.insert("cookies".to_owned(), json!([]));
        }
        if origin == Origin::LoadBalancer {
            answer.insert("statusDescription".to_owned(), status.to_string().into());
        }
    }
    Ok(answer)
}

/// The length of ASCII text as a string of JSON (RFC 8259, section 7).
fn json_bytes(text: &[u8]) -> usize {
    let escaped = |byte: &u8| match byte {
        b'"' | b'\\' | b'\n' | b'\r' | b'\t' => 2,
        0..=0x1f => 6,
        _ => 1,
    };
    text.iter().map(escaped).sum()
}
