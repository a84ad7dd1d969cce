//! API Gateway's HTTP API, or a load balancer, in front of functions.

use std::{
    net::SocketAddr,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use axum::{
    Router,
    body::Body,
    extract::{Request, State},
    http::{HeaderMap, HeaderValue, Response, StatusCode, header},
    response::IntoResponse,
};
use serde_json::{Value, json};
use tokio::sync::Semaphore;

use super::{Function, FunctionError, Kind, Manner, function::Sandbox, load_balancer, payload};
use crate::loopback::Loopback;
use crate::secrets;

/// HTTP API's limit on an integration; it cannot be raised.
const LIMIT: Duration = Duration::from_secs(30);
/// HTTP API's limit on a payload, in bytes.
const MAX_BODY: usize = 10 * 1024 * 1024;
/// HTTP API's limit on request line and headers together, in bytes.
const MAX_HEAD: usize = 10_240;

/// An HTTP server on loopback that answers by invoking functions, one request per sandbox at a time.
pub struct HttpFront {
    address: SocketAddr,
    pool: Arc<Pool>,
    _loopback: Loopback,
    functions: Vec<Function>,
}

impl HttpFront {
    /// Starts the server. More functions answer more requests at a time; further requests wait.
    pub fn start(functions: Vec<Function>) -> anyhow::Result<Self> {
        Self::start_with_limit(functions, LIMIT)
    }

    /// As [`Self::start`], but giving up on a function after `limit`: the real 30 seconds are long for a test.
    pub fn start_with_limit(functions: Vec<Function>, limit: Duration) -> anyhow::Result<Self> {
        anyhow::ensure!(!functions.is_empty(), "a front needs a function");
        let loopback = Loopback::new("http-front")?;
        let [manner, ..] = Manner::ALL;
        let pool = Arc::new(Pool {
            free: Semaphore::new(functions.len()),
            idle: Mutex::new(functions.iter().map(Function::sandbox).collect()),
            requests: AtomicU64::default(),
            limit,
            manner: Mutex::new(manner),
        });
        let (listener, address) = loopback.bind()?;
        loopback.serve(listener, Router::new().fallback(answer).with_state(Arc::clone(&pool)));
        Ok(Self { address, pool, _loopback: loopback, functions })
    }

    /// Behaves so from now on.
    pub fn behave(&self, manner: Manner) {
        *self.pool.manner.lock().unwrap_or_else(PoisonError::into_inner) = manner;
    }

    /// Where the server listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// `http://` and the address, without a slash at the end.
    pub fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    /// The functions behind it.
    pub fn functions(&self) -> &[Function] {
        &self.functions
    }
}

struct Pool {
    free: Semaphore,
    idle: Mutex<Vec<Arc<Sandbox>>>,
    requests: AtomicU64,
    limit: Duration,
    manner: Mutex<Manner>,
}

impl Pool {
    async fn invoke(&self, event: Value) -> Result<Value, FunctionError> {
        let closed = || FunctionError::new("Sandbox.Gone", "the front is closed");
        let _permit = self.free.acquire().await.map_err(|_| closed())?;
        let sandbox = self.idle.lock().unwrap_or_else(PoisonError::into_inner).pop().ok_or_else(closed)?;
        let result = sandbox.invoke(event).await;
        self.idle.lock().unwrap_or_else(PoisonError::into_inner).push(sandbox);
        result
    }
}

async fn answer(State(pool): State<Arc<Pool>>, request: Request) -> Response<Body> {
    let request_id = format!("request-{:06}", pool.requests.fetch_add(1, Ordering::Relaxed));
    let (parts, body) = request.into_parts();
    secrets::know_authorization("a client's login", &parts.headers);
    let line = parts.method.as_str().len() + parts.uri.to_string().len() + " HTTP/1.1\r\n".len() + 1;
    if bytes_of(&parts.headers) + line > MAX_HEAD {
        return refuse(StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE, "Request Header Fields Too Large");
    }
    let Ok(body) = axum::body::to_bytes(body, MAX_BODY).await else {
        return refuse(StatusCode::PAYLOAD_TOO_LARGE, "Request Entity Too Large");
    };
    let Manner { kind, head_length, paths } = *pool.manner.lock().unwrap_or_else(PoisonError::into_inner);
    let event = match kind {
        Kind::HttpApi => payload::event(&parts, &body, &request_id, paths),
        Kind::LoadBalancer => load_balancer::event(&parts, &body),
    };
    if kind == Kind::LoadBalancer && event.to_string().len() > load_balancer::MAX_JSON {
        return refuse(StatusCode::PAYLOAD_TOO_LARGE, "Request Entity Too Large");
    }
    let limit = pool.limit;
    // A client that leaves, or this front giving up, does not stop the function.
    let invocation = tokio::spawn(async move { pool.invoke(event).await });
    let mut response = match tokio::time::timeout(limit, invocation).await {
        Err(_) => refuse(StatusCode::SERVICE_UNAVAILABLE, "Service Unavailable"),
        Ok(Ok(Ok(result))) => {
            let result = if kind == Kind::LoadBalancer { load_balancer::result(result) } else { Ok(result) };
            let answer = result.and_then(|result| payload::response(&result, &parts.method, head_length));
            answer.unwrap_or_else(|fault| {
                eprintln!("malformed function result: {fault}");
                refuse(StatusCode::BAD_GATEWAY, "Internal Server Error")
            })
        }
        Ok(Ok(Err(error))) if error.invoked => refuse(StatusCode::BAD_GATEWAY, "Internal Server Error"),
        Ok(Ok(Err(_)) | Err(_)) => refuse(StatusCode::INTERNAL_SERVER_ERROR, "Internal Server Error"),
    };
    if bytes_of(response.headers()) > MAX_HEAD {
        response = refuse(StatusCode::INTERNAL_SERVER_ERROR, "Internal Server Error");
    }
    let location = response.headers().get(header::LOCATION).and_then(|value| value.to_str().ok());
    secrets::know_query("where an answer redirects to", location.unwrap_or_default());
    if let Ok(id) = HeaderValue::from_str(&request_id) {
        response.headers_mut().insert("apigw-requestid", id);
    }
    response
}

fn bytes_of(headers: &HeaderMap) -> usize {
    headers.iter().map(|(name, value)| name.as_str().len() + value.len() + 4).sum()
}

fn refuse(status: StatusCode, message: &str) -> Response<Body> {
    (status, [(header::CONTENT_TYPE, "application/json")], json!({ "message": message }).to_string()).into_response()
}
