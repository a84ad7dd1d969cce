//! Lambda: the Runtime API, API Gateway in front of it, and a queue's event source, with a function in Python.

use std::{path::PathBuf, time::Duration};

use serde_json::{Value, json};
use support::{
    aws::{Endpoints, QueueSettings, Service},
    lambda::{EventSource, Function, HeadLength, HttpFront, Kind, Manner, Paths},
};

const LONG: Duration = Duration::from_secs(30);

/// A deployed function: the directory lives as long as the bootstrap is needed.
fn bootstrap() -> (tempfile::TempDir, PathBuf) {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("bootstrap");
    support::program::write_executable(&path, include_bytes!("bootstrap.py")).unwrap();
    (directory, path)
}

async fn function(timeout: Duration) -> (tempfile::TempDir, Function) {
    let (directory, path) = bootstrap();
    let function = Function::start_with_timeout(&path, &[], timeout).await.unwrap();
    (directory, function)
}

async fn front() -> (tempfile::TempDir, HttpFront) {
    let (directory, function) = function(LONG).await;
    (directory, HttpFront::start(vec![function]).unwrap())
}

fn client() -> reqwest::Client {
    stopover::values::crypto::http_client().no_proxy().build().unwrap()
}

fn is_alive(process: &Value) -> bool {
    std::path::Path::new("/proc").join(process.to_string()).exists()
}

#[tokio::test]
async fn a_function_gets_the_environment_and_headers_of_lambda_and_nothing_else() {
    let (_directory, path) = bootstrap();
    let function = Function::start(&path, &[("STOPOVER_TABLE".to_owned(), "t".to_owned())]).await.unwrap();
    let described = function.invoke(json!({ "do": "describe" })).await.unwrap();
    let environment = &described["environment"];
    assert_eq!(environment["STOPOVER_TABLE"], "t");
    assert_eq!(environment["AWS_LAMBDA_LOG_FORMAT"], "JSON");
    assert_eq!(environment["_HANDLER"], "bootstrap");
    assert_eq!(environment["LAMBDA_TASK_ROOT"], described["directory"]);
    assert_eq!(environment.get("HOME"), None);
    assert!(
        described["headers"]["lambda-runtime-invoked-function-arn"].as_str().unwrap().starts_with("arn:aws:lambda:")
    );
    let deadline: u128 = described["headers"]["lambda-runtime-deadline-ms"].as_str().unwrap().parse().unwrap();
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap().as_millis();
    assert!(deadline > now && deadline <= now + 30_000);
}

#[tokio::test]
async fn dropping_a_function_kills_its_process() {
    let (_directory, function) = function(LONG).await;
    let process = function.invoke(json!({ "do": "describe" })).await.unwrap()["process"].clone();
    assert!(is_alive(&process));
    drop(function);
    assert!(!is_alive(&process));
}

#[tokio::test]
async fn a_reported_error_reaches_the_caller_and_the_function_goes_on() {
    let (_directory, function) = function(LONG).await;
    let error = function.invoke(json!({ "do": "fail" })).await.unwrap_err();
    assert_eq!((error.kind.as_str(), error.message.as_str()), ("RuntimeError", "as asked"));
    function.invoke(json!({ "do": "nothing" })).await.unwrap();
}

#[tokio::test]
async fn a_dead_process_fails_the_invocation_and_is_replaced_for_the_next() {
    let (_directory, function) = function(LONG).await;
    let error = function.invoke(json!({ "do": "exit" })).await.unwrap_err();
    assert_eq!(error.kind, "Runtime.ExitError");
    assert!(error.message.contains("exit status: 3"), "{error}");
    assert!(function.log().contains("about to exit"));
    function.invoke(json!({ "do": "nothing" })).await.unwrap();
}

#[tokio::test]
async fn a_function_that_takes_too_long_is_killed() {
    let (_directory, function) = function(Duration::from_secs(1)).await;
    let process = function.invoke(json!({ "do": "describe" })).await.unwrap()["process"].clone();
    let error = function.invoke(json!({ "do": "hang" })).await.unwrap_err();
    assert_eq!(error.kind, "Sandbox.Timedout");
    assert!(!is_alive(&process));
    function.invoke(json!({ "do": "nothing" })).await.unwrap();
}

#[tokio::test]
async fn a_response_above_six_megabytes_is_refused() {
    let (_directory, function) = function(LONG).await;
    let error = function.invoke(json!({ "do": "large" })).await.unwrap_err();
    assert_eq!(error.kind, "Function.ResponseSizeTooLarge");
    function.invoke(json!({ "do": "nothing" })).await.unwrap();
}

#[tokio::test]
async fn a_function_that_cannot_start_says_why() {
    let (_directory, path) = bootstrap();
    let error = Function::start(&path, &[("FAIL_INIT".to_owned(), "1".to_owned())]).await.err().unwrap();
    assert!(error.to_string().contains("Init.Refused: no configuration"), "{error:#}");
}

#[tokio::test]
async fn a_request_becomes_an_event_as_the_gateway_makes_it() {
    let (_directory, front) = front().await;
    let request = client().post(format!("{}/v2/a%2Fb/sha256%3Aff?ns=docker.io&x=1&x=2", front.url()));
    let request = request.header("Accept", "one").header("Accept", "two").header("cookie", "a=1; b=2");
    let answer = request.header("User-Agent", "skopeo").body(vec![0xff]).send().await.unwrap();
    assert!(answer.headers().contains_key("apigw-requestid"));
    let event: Value = serde_json::from_slice(&answer.bytes().await.unwrap()).unwrap();
    assert_eq!(event["rawPath"], "/v2/a/b/sha256:ff");
    assert_eq!(event["rawQueryString"], "ns=docker.io&x=1&x=2");
    assert_eq!(event["queryStringParameters"], json!({ "ns": "docker.io", "x": "1,2" }));
    assert_eq!(event["headers"]["accept"], "one,two");
    assert_eq!(event["headers"].get("cookie"), None);
    assert_eq!(event["cookies"], json!(["a=1", "b=2"]));
    assert_eq!((&event["isBase64Encoded"], &event["body"]), (&json!(true), &json!("/w==")));
    let context = &event["requestContext"];
    assert_eq!(context["http"]["method"], "POST");
    assert_eq!(context["http"]["sourceIp"], "127.0.0.1");
    assert_eq!(context["http"]["userAgent"], "skopeo");
    assert_eq!((&context["stage"], &event["routeKey"]), (&json!("$default"), &json!("$default")));
    assert_eq!(context["time"].as_str().unwrap().len(), "12/Mar/2020:19:03:58 +0000".len());
}

#[tokio::test]
async fn a_result_becomes_a_response_byte_for_byte() {
    let (_directory, front) = front().await;
    let answer = client().get(format!("{}/bytes", front.url())).send().await.unwrap();
    assert_eq!(answer.headers()["content-length"], "4", "the gateway frames the body itself");
    assert_eq!(answer.headers()["www-authenticate"], "Bearer x");
    assert_eq!(answer.headers().get_all("set-cookie").iter().collect::<Vec<_>>(), ["a=1", "b=2"]);
    assert_eq!(answer.bytes().await.unwrap().as_ref(), [0xef, 0xbb, 0xbf, 0xff]);
    let head = client().head(format!("{}/length", front.url())).send().await.unwrap();
    assert_eq!(head.headers()["content-length"], "12345");
    assert_eq!(head.bytes().await.unwrap().len(), 0);
}

#[tokio::test]
async fn the_length_of_an_answer_to_head_is_passed_on_computed_or_dropped_as_the_gateway_is_told() {
    let (_directory, front) = front().await;
    for (head_length, path, expected) in [
        (HeadLength::Passed, "length", Some("12345")),
        (HeadLength::Passed, "bytes", Some("999")),
        (HeadLength::Computed, "length", Some("0")),
        (HeadLength::Computed, "bytes", Some("4")),
        (HeadLength::Dropped, "length", None),
        (HeadLength::Dropped, "bytes", None),
    ] {
        front.behave(Manner { kind: Kind::HttpApi, head_length, paths: Paths::Decoded });
        let answer = client().head(format!("{}/{path}", front.url())).send().await.unwrap();
        let length = answer.headers().get("content-length").map(|length| length.to_str().unwrap());
        assert_eq!(length, expected, "{head_length:?} {path}");
        assert!(answer.bytes().await.unwrap().is_empty());
        // The connection is of use still: no byte of the body has been sent.
        let answer = client().get(format!("{}/bytes", front.url())).send().await.unwrap();
        assert_eq!(answer.headers()["content-length"], "4");
    }
}

#[tokio::test]
async fn a_path_comes_decoded_or_as_it_was_sent() {
    let (_directory, front) = front().await;
    for (paths, expected) in [(Paths::Decoded, "/v2/a/b/sha256:ff"), (Paths::AsSent, "/v2/a%2Fb/sha256%3Aff")] {
        front.behave(Manner { kind: Kind::HttpApi, head_length: HeadLength::Passed, paths });
        let answer = client().get(format!("{}/v2/a%2Fb/sha256%3Aff", front.url())).send().await.unwrap();
        let event: Value = serde_json::from_slice(&answer.bytes().await.unwrap()).unwrap();
        assert_eq!(event["rawPath"], expected);
        assert_eq!(event["requestContext"]["http"]["path"], expected);
    }
}

#[tokio::test]
async fn a_failing_function_or_too_large_an_answer_is_a_502_and_too_long_headers_a_431() {
    let (_directory, front) = front().await;
    for path in ["fail", "malformed", "large"] {
        let answer = client().get(format!("{}/{path}", front.url())).send().await.unwrap();
        assert_eq!(answer.status(), 502);
        assert_eq!(answer.text().await.unwrap(), r#"{"message":"Internal Server Error"}"#);
    }
    let long = client().get(front.url()).header("authorization", "x".repeat(10_240)).send().await.unwrap();
    assert_eq!(long.status(), 431);
    let long = client().get(format!("{}/headers", front.url())).send().await.unwrap();
    assert_eq!(long.status(), 500);
}

#[tokio::test]
async fn a_function_slower_than_the_gateway_waits_is_a_503_and_works_on() {
    let (_directory, function) = function(LONG).await;
    let front = HttpFront::start_with_limit(vec![function], Duration::from_millis(200)).unwrap();
    let slow = client().get(format!("{}/slow", front.url())).send().await.unwrap();
    assert_eq!(slow.status(), 503);
    assert_eq!(slow.text().await.unwrap(), r#"{"message":"Service Unavailable"}"#);
    // The function's second request waits for the first one to end: its log then has the end of the first.
    front.functions()[0].invoke(json!({ "do": "nothing" })).await.unwrap();
    assert!(front.functions()[0].log().contains("slept"));
}

#[tokio::test]
async fn a_pool_answers_as_many_requests_at_a_time_as_it_has_functions() {
    let (_directory, path) = bootstrap();
    let place = tempfile::tempdir().unwrap();
    let environment = [("MEETING_PLACE".to_owned(), place.path().display().to_string())];
    let functions = [Function::start(&path, &environment).await, Function::start(&path, &environment).await];
    let front = HttpFront::start(functions.into_iter().map(Result::unwrap).collect()).unwrap();
    let client = client();
    let meet = || async { client.get(format!("{}/meet", front.url())).send().await.unwrap().status().as_u16() };
    assert_eq!(tokio::join!(meet(), meet()), (200, 200));
}

async fn source(directory: &std::path::Path, settings: QueueSettings) -> (Endpoints, EventSource) {
    let endpoints = Endpoints::start_with(settings).await.unwrap();
    let function = Function::start(&directory.join("bootstrap"), &endpoints.environment()).await.unwrap();
    let source = EventSource::start(&endpoints, vec![function]).unwrap();
    (endpoints, source)
}

#[tokio::test]
async fn a_message_that_was_worked_off_is_deleted() {
    let (directory, _path) = bootstrap();
    let (endpoints, source) = source(directory.path(), QueueSettings::default()).await;
    let message = endpoints.sqs().send_message().queue_url(endpoints.queue_url()).message_body("nothing");
    let sent = message.send().await.unwrap();
    source.wait_until_idle(Duration::from_secs(20)).await.unwrap();
    assert_eq!(endpoints.dead_messages(), 0);
    let log = source.functions()[0].log();
    let record: Value = serde_json::from_str(log.trim().strip_prefix("record ").unwrap()).unwrap();
    assert_eq!(record["messageId"], sent.message_id().unwrap());
    assert_eq!(record["md5OfBody"], sent.md5_of_message_body().unwrap());
    assert_eq!(record["eventSource"], "aws:sqs");
    assert!(record["eventSourceARN"].as_str().unwrap().starts_with("arn:aws:sqs:"));
    assert_eq!(record["attributes"]["ApproximateReceiveCount"], "1");
}

#[tokio::test]
async fn a_failed_message_comes_back_and_ends_in_the_dead_letter_queue() {
    let settings = QueueSettings {
        visibility_timeout: Duration::from_millis(200),
        max_receive_count: 2,
        ..QueueSettings::default()
    };
    let (directory, _path) = bootstrap();
    let (endpoints, source) = source(directory.path(), settings).await;
    for body in ["fail", "partial", "exit"] {
        let send = endpoints.sqs().send_message().queue_url(endpoints.queue_url()).message_body(body);
        send.send().await.unwrap();
    }
    source.wait_until_idle(Duration::from_secs(30)).await.unwrap();
    assert_eq!(endpoints.dead_messages(), 3);
    assert_eq!(source.functions()[0].log().matches("record ").count(), 6);
    assert_eq!(endpoints.calls(Service::Sqs, "DeleteMessage"), 0);
}

#[tokio::test]
async fn waiting_for_a_queue_that_is_never_empty_ends_at_the_deadline() {
    let (directory, _path) = bootstrap();
    let (endpoints, source) = source(directory.path(), QueueSettings::default()).await;
    let send = endpoints.sqs().send_message().queue_url(endpoints.queue_url()).message_body("hang");
    send.send().await.unwrap();
    let error = source.wait_until_idle(Duration::from_secs(1)).await.unwrap_err();
    assert!(error.to_string().contains("not empty"), "{error}");
}
