//! What stands between the events of Lambda and the router: one deadline, and answers that gateways pass on right.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use aws::metrics::Answers;
use aws::{S3Blobs, Wrong};
use axum::Router;
use axum::body::Body;
use axum::extract::Request;
use axum::http::header::{
    ALLOW, CACHE_CONTROL, CONTENT_LENGTH, CONTENT_TYPE, HeaderMap, HeaderName, HeaderValue, LOCATION, RETRY_AFTER,
    USER_AGENT,
};
use axum::http::{Method, StatusCode};
use axum::response::{IntoResponse as _, Response};
use lambda_runtime::tower::ServiceExt as _;
use lambda_runtime::{Context, Error, LambdaEvent};
use serde_json::Value;
use stopover::errors::{Answer, PullError, StoreError};
use stopover::oci::{Digest, ErrorCode, Operation, Request as RegistryRequest};
use stopover::values::deadline;
use stopover::values::time::Clock;
use tokio::time::Instant;

use crate::event::{self, Origin};

/// How long before Lambda would stop the process the client has an answer.
const SPARE: Duration = Duration::from_millis(1500);

/// Longer than any invocation takes, and far less than the time since 1970.
const DAY: Duration = Duration::from_hours(24);

const DOCKER_CONTENT_DIGEST: HeaderName = HeaderName::from_static("docker-content-digest");
const SERVED: HeaderName = HeaderName::from_static("x-stopover");

/// Answers events.
pub(crate) struct Front {
    /// `None` where nothing can be served.
    blobs: Option<S3Blobs>,
    answers: Answers,
}

/// What of a request decides how its answer is passed on.
struct Asked {
    origin: Origin,
    method: Method,
    operation: Option<Operation>,
    /// The client is a Docker Engine.
    docker: bool,
}

impl Origin {
    /// The most bytes of an answer, as JSON: 6 MB of Lambda, 1 MB of a load balancer.
    const fn most_bytes(self) -> usize {
        match self {
            Self::HttpApi | Self::RestApi => 6 * 1024 * 1024,
            Self::LoadBalancer => 1_000_000,
        }
    }

    /// The longest body that an answer surely has room for, where nothing in it has to be escaped.
    const fn longest_body(self) -> u64 {
        (self.most_bytes() - 64 * 1024) as u64
    }
}

impl Front {
    pub(crate) fn new(blobs: Option<S3Blobs>) -> Self {
        Self { blobs, answers: Answers::default() }
    }

    /// The router's answer to an event, in time. There is no router where no configuration is good.
    pub(crate) async fn answer(
        &self,
        router: impl Future<Output = Result<Router, Wrong>>,
        event: LambdaEvent<Value>,
    ) -> Result<Value, Error> {
        let (origin, request) = match event::read(event.payload) {
            Ok(read) => read,
            Err(reason) => {
                tracing::warn!(reason, "an event was not understood");
                let refusal = refusal(StatusCode::BAD_REQUEST, ErrorCode::Unsupported, "this is no request of HTTP");
                return Ok(event::write(Origin::HttpApi, refusal).await?);
            }
        };
        if event::is_health_check(origin, &request) {
            return Ok(event::write(origin, StatusCode::OK.into_response()).await?);
        }
        let asked = Asked::of(origin, &request);
        let path = request.uri().path().to_owned();
        let answered = deadline::within(
            ends_at(&event.context),
            Box::pin(async {
                let response = match router.await {
                    Ok(router) => router.oneshot(request).await?,
                    Err(wrong) => unconfigured(&wrong),
                };
                self.answers.count(&response, asked.is_pull());
                self.pass_on(&asked, response).await
            }),
        );
        if let Some(answer) = answered.await {
            return answer;
        }
        tracing::warn!(http.method = %asked.method, http.path = path, "not ready before the deadline of the invocation");
        let Answer { status, code, message, retry_after } = PullError::NotYet.answer();
        let mut late = refusal(status, code, &message);
        late.headers_mut().extend(retry_after.map(|after| (RETRY_AFTER, after.as_secs().max(1).into())));
        self.answers.count(&late, asked.is_pull());
        Ok(event::write(origin, late).await?)
    }

    /// The answer that says the same whatever stands between here and the client does to it.
    async fn pass_on(&self, asked: &Asked, mut response: Response) -> Result<Value, Error> {
        if asked.method == Method::HEAD {
            response = self.with_length(asked, response).await;
        }
        let (status, headers) = (response.status(), response.headers().clone());
        let answer = event::write(asked.origin, response).await?;
        if asked.method == Method::HEAD || answer.to_string().len() <= asked.origin.most_bytes() {
            return Ok(answer);
        }
        let smaller = match &asked.operation {
            Some(Operation::Manifest(..)) if status == StatusCode::OK => self.manifest_elsewhere(headers).await,
            _ => None,
        };
        let advice = "the answer is larger than this front lets through; ask for lists in pages (`n`)";
        let smaller = smaller.unwrap_or_else(|| refusal(StatusCode::PAYLOAD_TOO_LARGE, ErrorCode::SizeInvalid, advice));
        Ok(event::write(asked.origin, smaller).await?)
    }

    /// An answer to HEAD whose length arrives. What API Gateway does to `Content-Length` of one is documented nowhere: it
    /// may pass it on, count the bytes of the body, or leave it out. So there is a body as long as the header says, which
    /// never gets to the client (RFC 9110, section 9.3.2); its bytes need not be known, so nothing is fetched for it.
    async fn with_length(&self, asked: &Asked, mut response: Response) -> Response {
        let headers = response.headers_mut();
        // The Docker Engine asks with GET where HEAD names no digest, and fails where it names one and no length
        // (distribution/distribution, `descriptorFromResponse`).
        if asked.docker && matches!(asked.operation, Some(Operation::Manifest(..))) {
            headers.remove(DOCKER_CONTENT_DIGEST);
        }
        let length = headers.get(CONTENT_LENGTH).and_then(|length| length.to_str().ok()?.parse::<u64>().ok());
        let Some(length) = length.filter(|length| *length > 0) else { return response };
        if length <= asked.origin.longest_body() {
            *response.body_mut() = Body::from(" ".repeat(usize::try_from(length).unwrap_or_default()));
            return response;
        }
        let stored = response.headers().get(SERVED).is_some_and(|served| served != "miss");
        match &asked.operation {
            // S3 tells the length of what is stored. Of a cold blob of this size the client learns that it exists.
            Some(Operation::Blob(_, digest)) if response.status() == StatusCode::OK && stored => {
                let Some(blobs) = &self.blobs else { return response };
                redirect(blobs.locate_head(digest).await, response.headers().clone()).unwrap_or(response)
            }
            // Then clients ask with GET.
            Some(Operation::Manifest(..)) => {
                let advice = "HEAD of so large a manifest is not answered here: ask with GET";
                let refusal = refusal(StatusCode::METHOD_NOT_ALLOWED, ErrorCode::Unsupported, advice);
                ([(ALLOW, "GET")], refusal).into_response()
            }
            _ => response,
        }
    }

    /// A manifest that no answer has room for is an object in the bucket.
    async fn manifest_elsewhere(&self, headers: HeaderMap) -> Option<Response> {
        let text = |name: &HeaderName| headers.get(name).and_then(|value| value.to_str().ok());
        let digest: Digest = text(&DOCKER_CONTENT_DIGEST)?.parse().ok()?;
        let located = self.blobs.as_ref()?.locate_manifest(&digest, text(&CONTENT_TYPE)?).await;
        redirect(located, headers)
    }
}

impl Asked {
    fn of(origin: Origin, request: &Request) -> Self {
        let (method, uri) = (request.method().clone(), request.uri());
        let parsed = RegistryRequest::parse(&method, uri.path(), uri.query());
        let docker = request.headers().get(USER_AGENT).is_some_and(|agent| agent.as_bytes().starts_with(b"docker/"));
        Self { origin, operation: parsed.ok().map(|parsed| parsed.operation), method, docker }
    }

    /// Whether upstream would count it.
    fn is_pull(&self) -> bool {
        self.method == Method::GET && matches!(self.operation, Some(Operation::Manifest(..)))
    }
}

/// A redirect to where the bytes are. `None`, with a line in the log: they cannot be located.
fn redirect(located: Result<String, StoreError>, mut headers: HeaderMap) -> Option<Response> {
    let located = located.map_err(|error| tracing::error!(%error, "an object in the bucket cannot be located")).ok()?;
    headers.insert(LOCATION, HeaderValue::from_str(&located).ok()?);
    // The URL is a secret for as long as it is valid.
    headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
    headers.insert(CONTENT_LENGTH, 0.into());
    Some((StatusCode::TEMPORARY_REDIRECT, headers).into_response())
}

fn refusal(status: StatusCode, code: ErrorCode, message: &str) -> Response {
    (status, [(CONTENT_TYPE, "application/json")], code.body(message)).into_response()
}

/// Names the setting; the log of the function says what is wrong with it.
fn unconfigured(wrong: &Wrong) -> Response {
    let message = format!("the configuration of this cache ({}) cannot be used; its log says why", wrong.setting);
    let refusal = refusal(StatusCode::SERVICE_UNAVAILABLE, ErrorCode::Unavailable, &message);
    ([(RETRY_AFTER, "10")], refusal).into_response()
}

/// The moment by which the client gets an answer, whatever is under way.
fn ends_at(context: &Context) -> Instant {
    let since_1970 = |time: SystemTime| time.duration_since(UNIX_EPOCH).unwrap_or_default();
    let told = since_1970(context.deadline());
    // `cargo lambda watch` tells how long there is, and not until when.
    let left = if told < DAY { told } else { told.saturating_sub(since_1970(Clock::default().system_time())) };
    Instant::now() + left.saturating_sub(SPARE)
}

#[cfg(test)]
mod tests;
