//! The Runtime API: four routes between the service and the process of a function; and the Extensions API, two more.

use std::{
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use axum::{
    Router,
    body::Bytes,
    extract::{DefaultBodyLimit, Path, State},
    http::{HeaderMap, HeaderName, StatusCode},
    response::{IntoResponse, Response},
    routing::{get, post},
};
use serde_json::{Value, json};
use tokio::sync::{oneshot, watch};

use super::{ACCOUNT, FunctionError, REGION};

/// The most bytes of a response: Lambda's 6 MB, with the 100 bytes that it grants on top.
const MAX_RESPONSE: usize = 6 * 1024 * 1024 + 100;

/// Two processes never have an invocation of the same id.
static INVOCATIONS: AtomicU64 = AtomicU64::new(1);

const EXTENSION: &str = "00000000-0000-4000-a000-000000000001";

pub(super) type Reply = Result<Value, FunctionError>;

struct Invocation {
    id: String,
    event: Bytes,
    trace: String,
    deadline: SystemTime,
    reply: oneshot::Sender<Reply>,
}

#[derive(Default)]
struct Exchange {
    /// Handed in, not yet fetched.
    waiting: Option<Invocation>,
    /// Fetched, not yet answered.
    running: Option<(String, oneshot::Sender<Reply>)>,
    /// Whether it has an extension: only then Lambda tells a process of its end.
    is_told: bool,
    /// Which process this is; a poll left over from an earlier one must not take an event.
    process: u64,
}

/// What the runtime has told about itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Phase {
    /// It has not asked for work yet.
    Starting,
    /// It waits for an invocation, or works on one.
    Ready,
    /// It reported that it cannot start.
    InitFailed(String),
}

struct Replaced;

/// The state of the API for one process at a time.
pub(super) struct RuntimeApi {
    name: String,
    exchange: Mutex<Exchange>,
    handed_in: watch::Sender<()>,
    pub(super) phase: watch::Sender<Phase>,
}

impl RuntimeApi {
    pub(super) fn new(name: &str) -> Self {
        Self {
            name: name.to_owned(),
            exchange: Mutex::default(),
            handed_in: watch::Sender::new(()),
            phase: watch::Sender::new(Phase::Starting),
        }
    }

    fn exchange(&self) -> MutexGuard<'_, Exchange> {
        self.exchange.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Forgets the last process and what it was working on.
    pub(super) fn reset(&self) {
        let mut exchange = self.exchange();
        exchange.waiting = None;
        exchange.running = None;
        exchange.is_told = false;
        exchange.process += 1;
        self.handed_in.send_replace(());
        self.phase.send_replace(Phase::Starting);
    }

    /// Whether the process is told of its end.
    pub(super) fn is_told(&self) -> bool {
        self.exchange().is_told
    }

    /// Hands an event in; the reply comes when the function has answered it.
    pub(super) fn hand_in(&self, event: Bytes, trace: String, timeout: Duration) -> oneshot::Receiver<Reply> {
        let (reply, answered) = oneshot::channel();
        let mut exchange = self.exchange();
        let id = format!("00000000-0000-4000-9000-{:012x}", INVOCATIONS.fetch_add(1, Ordering::Relaxed));
        exchange.waiting = Some(Invocation { id, event, trace, deadline: SystemTime::now() + timeout, reply });
        self.handed_in.send_replace(());
        answered
    }

    pub(super) fn router(self: &Arc<Self>) -> Router {
        Router::new()
            .route("/2018-06-01/runtime/invocation/next", get(next))
            .route("/2018-06-01/runtime/invocation/{id}/response", post(response))
            .route("/2018-06-01/runtime/invocation/{id}/error", post(error))
            .route("/2018-06-01/runtime/init/error", post(init_error))
            .route("/2020-01-01/extension/register", post(register))
            .route("/2020-01-01/extension/event/next", get(next_event))
            // The response route answers what is too large, in Lambda's words.
            .layer(DefaultBodyLimit::disable())
            .with_state(Arc::clone(self))
    }

    fn take(&self, process: u64) -> Result<Option<Invocation>, Replaced> {
        let mut exchange = self.exchange();
        if exchange.process == process { Ok(exchange.waiting.take()) } else { Err(Replaced) }
    }

    fn settle(&self, id: &str, reply: Reply) -> bool {
        let mut exchange = self.exchange();
        match exchange.running.take() {
            Some((running, sender)) if running == id => {
                // Nobody listens any more if the caller gave up.
                let _ = sender.send(reply);
                true
            }
            other => {
                exchange.running = other;
                false
            }
        }
    }
}

/// Long-polls for the next event, for ever: the process is frozen while there is none.
async fn next(State(api): State<Arc<RuntimeApi>>) -> Response {
    let mut handed_in = api.handed_in.subscribe();
    let process = api.exchange().process;
    // Only the first call ends the start; later ones find it ended.
    api.phase.send_replace(Phase::Ready);
    let invocation = loop {
        handed_in.mark_unchanged();
        let waiting = api.take(process);
        match waiting {
            Ok(Some(invocation)) => break invocation,
            Ok(None) => {}
            Err(Replaced) => {
                return refused(StatusCode::GONE, "Sandbox.Gone", "another process took over");
            }
        }
        let _ = handed_in.changed().await;
    };
    let Invocation { id, event, trace, deadline, reply } = invocation;
    let deadline = deadline.duration_since(UNIX_EPOCH).unwrap_or_default().as_millis();
    let headers = [
        ("content-type", "application/json".to_owned()),
        ("lambda-runtime-aws-request-id", id.clone()),
        ("lambda-runtime-deadline-ms", deadline.to_string()),
        ("lambda-runtime-invoked-function-arn", format!("arn:aws:lambda:{REGION}:{ACCOUNT}:function:{}", api.name)),
        ("lambda-runtime-trace-id", trace),
    ];
    api.exchange().running = Some((id, reply));
    (headers.map(|(name, value)| (HeaderName::from_static(name), value)), event).into_response()
}

/// An internal extension, which may not ask for `SHUTDOWN`, and here asks for nothing.
async fn register(State(api): State<Arc<RuntimeApi>>, headers: HeaderMap, body: Bytes) -> Response {
    let body: Value = serde_json::from_slice(&body).unwrap_or_default();
    if !headers.contains_key("lambda-extension-name") || body != json!({ "events": [] }) {
        return refused(StatusCode::BAD_REQUEST, "Extension.InvalidRequest", "no name, or events");
    }
    let id = [("lambda-extension-identifier", EXTENSION)];
    (id, json!({ "functionName": api.name, "functionVersion": "$LATEST", "handler": "bootstrap" }).to_string())
        .into_response()
}

/// There are no events: its call ends with the process.
async fn next_event(State(api): State<Arc<RuntimeApi>>, headers: HeaderMap) -> Response {
    if headers.get("lambda-extension-identifier").is_none_or(|id| id != EXTENSION) {
        return refused(StatusCode::FORBIDDEN, "Extension.InvalidExtensionId", "no such extension");
    }
    api.exchange().is_told = true;
    std::future::pending().await
}

async fn response(State(api): State<Arc<RuntimeApi>>, Path(id): Path<String>, body: Bytes) -> Response {
    if body.len() > MAX_RESPONSE {
        let message = format!(
            "Response payload size ({} bytes) exceeded maximum allowed payload size ({MAX_RESPONSE} bytes).",
            body.len()
        );
        api.settle(&id, Err(FunctionError::new("Function.ResponseSizeTooLarge", message.clone())));
        return refused(StatusCode::PAYLOAD_TOO_LARGE, "RequestEntityTooLarge", &message);
    }
    let reply = serde_json::from_slice(&body)
        .map_err(|error| FunctionError::new("Runtime.InvalidResponse", format!("not JSON: {error}")));
    accepted(api.settle(&id, reply))
}

async fn error(State(api): State<Arc<RuntimeApi>>, Path(id): Path<String>, body: Bytes) -> Response {
    let (kind, message) = reported(&body);
    accepted(api.settle(&id, Err(FunctionError::new(&kind, message))))
}

async fn init_error(State(api): State<Arc<RuntimeApi>>, body: Bytes) -> Response {
    let (kind, message) = reported(&body);
    api.phase.send_replace(Phase::InitFailed(format!("{kind}: {message}")));
    accepted(true)
}

fn reported(body: &[u8]) -> (String, String) {
    let report: Value = serde_json::from_slice(body).unwrap_or_default();
    let text = |name: &str| report[name].as_str().map(str::to_owned);
    let message = text("errorMessage").unwrap_or_else(|| String::from_utf8_lossy(body).into_owned());
    (text("errorType").unwrap_or_else(|| "Runtime.Unknown".to_owned()), message)
}

fn accepted(known: bool) -> Response {
    if known {
        (StatusCode::ACCEPTED, json!({ "status": "OK" }).to_string()).into_response()
    } else {
        refused(StatusCode::BAD_REQUEST, "InvalidRequestID", "Invalid request ID")
    }
}

fn refused(status: StatusCode, kind: &str, message: &str) -> Response {
    (status, json!({ "errorType": kind, "errorMessage": message }).to_string()).into_response()
}
