//! Events as AWS documents them, and what becomes of the answers.

use aws_sdk_s3::config::{BehaviorVersion, Credentials, Region};
use axum::http::header;
use serde_json::json;
use stopover::http::Https;
use stopover::identity::Peer;

use super::*;

/// The events of an HTTP API, a private REST API behind a domain name of its own, and a load balancer.
struct Sent<'a> {
    method: &'a str,
    path: &'a str,
    source: &'a str,
    headers: Value,
}

const GET: Sent = Sent { method: "GET", path: "/v2/", source: "192.0.2.1", headers: Value::Null };

impl Sent<'_> {
    fn headers(&self) -> Value {
        let mut headers = json!({ "host": "mirror.test" });
        for (name, value) in self.headers.as_object().into_iter().flatten() {
            headers[name] = value.clone();
        }
        headers
    }

    fn to_http_api(&self) -> Value {
        let Sent { method, path, source, .. } = self;
        json!({
            "version": "2.0", "routeKey": "$default", "rawPath": path, "rawQueryString": "ns=docker.io",
            "headers": self.headers(), "isBase64Encoded": false, "requestContext": {
                "stage": "$default", "http": { "method": method, "path": path, "protocol": "HTTP/1.1", "sourceIp": source },
            },
        })
    }

    fn to_rest_api(&self, endpoint: Option<&str>) -> Value {
        let Sent { method, path, source, .. } = self;
        json!({
            "resource": "/{proxy+}", "path": path, "httpMethod": method, "headers": self.headers(), "multiValueHeaders": {},
            "queryStringParameters": { "ns": "docker.io" }, "multiValueQueryStringParameters": null, "body": null,
            "pathParameters": { "proxy": "v2/" }, "stageVariables": null, "isBase64Encoded": false, "requestContext": {
                "stage": "prod", "path": format!("/prod{path}"), "httpMethod": method, "protocol": "HTTP/1.1",
                "identity": { "sourceIp": source, "vpceId": endpoint, "vpcId": "vpc-0123456789abcdef0", "userAgent": null },
            },
        })
    }

    /// With multi-value headers.
    fn to_load_balancer(&self) -> Value {
        let mut headers = json!({ "x-forwarded-for": [self.source], "x-forwarded-proto": ["https"] });
        for (name, value) in self.headers().as_object().into_iter().flatten() {
            headers[name] = json!([value]);
        }
        json!({
            "requestContext": { "elb": { "targetGroupArn": "arn:aws:elasticloadbalancing:eu-west-1:1:targetgroup/a/1" } },
            "httpMethod": self.method, "path": self.path, "multiValueQueryStringParameters": { "ns": ["docker.io"] },
            "multiValueHeaders": headers, "body": "", "isBase64Encoded": false,
        })
    }
}

/// What the front makes of an event, with two seconds left until its deadline.
async fn ask(event: Value, router: Router) -> Value {
    let deadline = Clock::default().system_time() + SPARE + Duration::from_secs(2);
    ask_until(deadline.duration_since(UNIX_EPOCH).unwrap(), event, router).await
}

/// The same with this deadline, as Lambda writes it.
async fn ask_until(deadline: Duration, event: Value, router: Router) -> Value {
    let config = aws_sdk_s3::Config::builder()
        .behavior_version(BehaviorVersion::latest())
        .region(Region::new("us-east-1"))
        .credentials_provider(Credentials::new("id", "secret", None, None, "tests"))
        .build();
    let front = Front::new(Some(S3Blobs::new(aws_sdk_s3::Client::from_conf(config), "bucket")));
    let mut context = Context::default();
    context.deadline = deadline.as_millis().try_into().unwrap();
    front.answer(std::future::ready(Ok(router)), LambdaEvent::new(event, context)).await.unwrap()
}

/// The same, where the router answers so.
async fn answer(event: Value, router: impl Fn(Request) -> Response + Clone + Send + Sync + 'static) -> Value {
    ask(event, Router::new().fallback(async move |request: Request| router(request))).await
}

/// What the router sees of a request.
async fn seen(event: Value, see: fn(&Request) -> String) -> String {
    let answer = answer(event, move |request| see(&request).into_response()).await;
    answer["body"].as_str().unwrap_or_default().to_owned()
}

async fn source(event: Value) -> String {
    seen(event, |request| {
        let extensions = request.extensions();
        let source = extensions.get::<Peer>().unwrap();
        let address = source.address.map(|address| address.to_string());
        let endpoint = source.vpc_endpoint.map(|endpoint| endpoint.to_string());
        let https = extensions.get::<Https>().is_some();
        format!("{} {} {https}", address.unwrap_or("-".into()), endpoint.unwrap_or("-".into()))
    })
    .await
}

#[tokio::test]
async fn a_request_comes_from_where_api_gateway_says_and_not_where_its_headers_say() {
    let headers =
        json!({ "x-forwarded-for": "10.0.0.1", "forwarded": "for=10.0.0.1", "x-amzn-vpce-id": "vpce-01234567" });
    let sent = |source, headers: &Value| Sent { source, headers: headers.clone(), ..GET };
    let endpoint = Some("vpce-0123456789abcdef0");
    for (event, expected) in [
        (sent("192.0.2.1", &headers).to_http_api(), "192.0.2.1 - true"),
        (sent("2001:db8::1", &Value::Null).to_http_api(), "2001:db8::1 - true"),
        (sent("unknown", &headers).to_http_api(), "- - true"),
        (sent("10.1.2.3", &headers).to_rest_api(endpoint), "10.1.2.3 vpce-0123456789abcdef0 true"),
        (sent("10.1.2.3", &headers).to_rest_api(None), "10.1.2.3 - true"),
        (sent("unknown", &headers).to_rest_api(Some("vpce-evil")), "- - true"),
        // A load balancer appends the address to what the client has sent.
        (sent("10.0.0.1, 10.1.2.3", &Value::Null).to_load_balancer(), "10.1.2.3 - true"),
        (sent("10.0.0.1,2001:db8::1", &Value::Null).to_load_balancer(), "2001:db8::1 - true"),
        (sent("10.1.2.3:4711", &Value::Null).to_load_balancer(), "10.1.2.3 - true"),
        (sent("10.1.2.3, evil", &Value::Null).to_load_balancer(), "- - true"),
    ] {
        assert_eq!(source(event.clone()).await, expected, "{event}");
    }
    let mut lines = GET.to_load_balancer();
    lines["multiValueHeaders"]["x-forwarded-for"] = json!(["10.0.0.1", "10.0.0.2, 10.1.2.3"]);
    lines["multiValueHeaders"]["x-forwarded-proto"] = json!(["http"]);
    assert_eq!(source(lines).await, "10.1.2.3 - false");
    // Without multi-value headers.
    let mut single = GET.to_load_balancer();
    single["multiValueHeaders"] = Value::Null;
    single["headers"] = json!({ "host": "mirror.test", "x-forwarded-for": "10.1.2.3", "x-forwarded-proto": "https" });
    assert_eq!(source(single).await, "10.1.2.3 - true");
}

#[tokio::test]
async fn the_router_sees_the_path_that_was_asked_for() {
    for (path, expected) in [
        ("/v2/a/manifests/sha256:00", "/v2/a/manifests/sha256:00"),
        ("/v2/a/../b/manifests/c", "/v2/a/../b/manifests/c"),
        // HTTP APIs decode a path once, other fronts pass it on as it was sent: it means the same.
        ("/v2/a/manifests/sha256%3A00", "/v2/a/manifests/sha256%3A00"),
        ("/v2/a%2fb/manifests/c", "/v2/a%2fb/manifests/c"),
        ("/v2/a%/%zz/manifests/c%2", "/v2/a%25/%25zz/manifests/c%252"),
        ("/v2/a b/manifests/c\\d?", "/v2/a%20b/manifests/c%5Cd%3F"),
        ("/v2/\u{e9}", "/v2/%C3%A9"),
    ] {
        let sent = Sent { path, ..GET };
        for event in [sent.to_http_api(), sent.to_rest_api(None), sent.to_load_balancer()] {
            let uri = seen(event.clone(), |request| request.uri().to_string()).await;
            assert_eq!(uri, format!("{expected}?ns=docker.io"), "{event}");
        }
    }
}

#[tokio::test]
async fn the_router_sees_the_query_that_was_asked_for() {
    let query = |event| seen(event, |request| request.uri().query().unwrap_or("-").to_owned());
    let mut event = GET.to_http_api();
    for (sent, expected) in
        [("", "-"), ("n=1&last=a%2Fb&scope=x&scope=y", "n=1&last=a%2Fb&scope=x&scope=y"), ("a=<é", "a=%3C%C3%A9")]
    {
        event["rawQueryString"] = sent.into();
        assert_eq!(query(event.clone()).await, expected);
    }
    let scopes = json!({ "scope": ["repository:a/b:pull", "x y"] });
    let mut event = GET.to_rest_api(None);
    event["multiValueQueryStringParameters"] = scopes;
    assert_eq!(query(event).await, "scope=repository%3Aa%2Fb%3Apull&scope=x%20y");
    let mut event = GET.to_load_balancer();
    event["multiValueQueryStringParameters"] = json!({ "scope": ["repository%3Aa%2Fb:pull", "x+y"] });
    assert_eq!(query(event.clone()).await, "scope=repository%3Aa%2Fb:pull&scope=x+y");
    event["multiValueQueryStringParameters"] = Value::Null;
    assert_eq!(query(event).await, "-");
}

#[tokio::test]
async fn the_bytes_of_a_manifest_survive() {
    let text = "{ \"a\" : \"\u{e9}\\u00e9\u{2028}\u{1f642}\\/\",\t\"b\":\u{7f}1.0e3 }\r\n\n";
    for bytes in [text.as_bytes(), b"{ \"a\": 1 }\n", b"\xef\xbb\xbf{}", b"{\"a\":\"\xff\"}", &[0; 1000]] {
        let sent = bytes.to_vec();
        let answer = answer(GET.to_http_api(), move |_| {
            ([(header::CONTENT_TYPE, "application/vnd.oci.image.index.v1+json")], sent.clone()).into_response()
        });
        let answer = answer.await;
        let body = answer["body"].as_str().unwrap();
        let decode = |body: &str| base64::Engine::decode(&base64::prelude::BASE64_STANDARD, body).unwrap();
        let body = if answer["isBase64Encoded"] == true { decode(body) } else { body.as_bytes().to_vec() };
        assert_eq!(body, bytes);
        assert!(answer.to_string().len() < bytes.len() * 4 / 3 + 200);
        assert_eq!(answer["headers"]["content-type"], "application/vnd.oci.image.index.v1+json");
    }
}

#[tokio::test]
async fn what_is_no_event_is_refused_and_harms_nothing() {
    let mut bad_path = GET.to_http_api();
    bad_path["requestContext"]["http"]["method"] = "G T".into();
    let mut bad_body = GET.to_http_api();
    (bad_body["body"], bad_body["isBase64Encoded"]) = ("%".into(), true.into());
    for event in [json!({}), json!(null), json!({ "Records": [] }), json!({ "requestContext": {} }), bad_path, bad_body]
    {
        let answer = answer(event.clone(), |_| StatusCode::OK.into_response()).await;
        assert_eq!(answer["statusCode"], 400, "{event}");
        assert!(answer["body"].as_str().unwrap().contains("UNSUPPORTED"), "{answer}");
    }
}

const DIGEST: &str = "sha256:00000000000000000000000000000000000000000000000000000000000000aa";

/// An answer to HEAD as the core gives it.
fn head(length: u64, served: &'static str) -> Response {
    let headers = [("content-length", length.to_string()), ("x-stopover", served.to_owned())];
    (headers, [("docker-content-digest", DIGEST)]).into_response()
}

#[tokio::test]
async fn an_answer_to_head_has_a_body_as_long_as_it_says() {
    let (manifest, blob) = ("/v2/a/manifests/1", format!("/v2/a/blobs/{DIGEST}"));
    for (path, length) in [(manifest, 1234), (manifest, 4 * 1024 * 1024), (blob.as_str(), 2), ("/v2/", 2)] {
        for served in ["hit", "miss"] {
            let sent = Sent { method: "HEAD", path, ..GET };
            let answer = answer(sent.to_http_api(), move |_| head(length, served)).await;
            assert_eq!(answer["headers"]["content-length"], length.to_string());
            assert_eq!(answer["headers"]["docker-content-digest"], DIGEST);
            assert_eq!(answer["body"].as_str().unwrap().len() as u64, length, "{path}");
            assert!(answer.to_string().len() <= Origin::HttpApi.most_bytes());
        }
    }
}

#[tokio::test]
async fn head_of_a_large_blob_is_answered_by_the_bucket_once_it_is_stored() {
    let path = format!("/v2/a/blobs/{DIGEST}");
    let sent = Sent { method: "HEAD", path: &path, ..GET };
    let stored = answer(sent.to_http_api(), |_| head(1 << 30, "hit")).await;
    assert_eq!(stored["statusCode"], 307);
    let location = stored["headers"]["location"].as_str().unwrap();
    assert!(location.contains("/blobs/sha256/00/00") && location.contains("X-Amz-Signature="), "{location}");
    assert_eq!(stored["headers"]["cache-control"], "no-store");
    let cold = answer(sent.to_http_api(), |_| head(1 << 30, "miss")).await;
    assert_eq!((&cold["statusCode"], &cold["headers"]["content-length"]), (&json!(200), &json!((1 << 30).to_string())));
}

#[tokio::test]
async fn a_docker_engine_is_made_to_ask_for_a_manifest_with_get() {
    let headers =
        json!({ "user-agent": "docker/20.10.24+dfsg1 go/go1.19.8 UpstreamClient(Docker-Client/28.2.2 (linux))" });
    for (path, digest) in [("/v2/a/manifests/1", Value::Null), (&format!("/v2/a/blobs/{DIGEST}"), DIGEST.into())] {
        let sent = Sent { method: "HEAD", path, headers: headers.clone(), ..GET };
        let answer = answer(sent.to_http_api(), |_| head(10, "hit")).await;
        assert_eq!(answer["headers"]["docker-content-digest"], digest, "{path}");
    }
}

#[tokio::test]
async fn a_load_balancer_gets_what_fits_and_the_bucket_has_the_rest() {
    let manifest = "/v2/a/manifests/1";
    let sent = Sent { path: manifest, ..GET };
    let of_length = |length: usize| {
        move |_: Request| {
            let headers =
                [("content-type", "application/vnd.oci.image.index.v1+json"), ("docker-content-digest", DIGEST)];
            (headers, " ".repeat(length)).into_response()
        }
    };
    let small = answer(sent.to_load_balancer(), of_length(900_000)).await;
    assert_eq!((&small["statusCode"], &small["statusDescription"]), (&json!(200), &json!("200 OK")));
    assert_eq!(small["multiValueHeaders"]["docker-content-digest"], json!([DIGEST]));
    assert_eq!(small["headers"]["docker-content-digest"], DIGEST);
    let large = answer(sent.to_load_balancer(), of_length(1_000_000)).await;
    assert_eq!(large["statusCode"], 307);
    let location = large["headers"]["location"].as_str().unwrap();
    assert!(location.contains("response-content-type=application%2Fvnd.oci.image.index.v1%2Bjson"), "{location}");
    let list = Sent { path: "/v2/a/tags/list", ..GET };
    assert_eq!(answer(list.to_load_balancer(), of_length(1_000_000)).await["statusCode"], 413);
    assert_eq!(answer(sent.to_http_api(), of_length(4 * 1024 * 1024)).await["statusCode"], 200);
    let asked = Sent { method: "HEAD", ..sent };
    let refused = answer(asked.to_load_balancer(), |_| head(1_000_000, "hit")).await;
    assert_eq!((&refused["statusCode"], &refused["headers"]["allow"]), (&json!(405), &json!("GET")));
}

#[tokio::test]
async fn a_load_balancer_is_told_that_the_function_is_healthy_and_nobody_else() {
    let event = json!({
        "requestContext": { "elb": { "targetGroupArn": "arn" } }, "httpMethod": "GET", "path": "/",
        "multiValueQueryStringParameters": {}, "multiValueHeaders": { "user-agent": ["ELB-HealthChecker/2.0"] },
        "body": "", "isBase64Encoded": false,
    });
    let refuse = |_: Request| StatusCode::FORBIDDEN.into_response();
    assert_eq!(answer(event, refuse).await["statusCode"], 200);
    let headers = json!({ "user-agent": "ELB-HealthChecker/2.0" });
    let sent = Sent { path: "/", headers, ..GET };
    for event in [sent.to_load_balancer(), sent.to_http_api()] {
        assert_eq!(answer(event, refuse).await["statusCode"], 403);
    }
}

#[tokio::test(start_paused = true)]
async fn what_is_not_ready_before_the_deadline_is_refused_with_a_time_to_come_back() {
    let begun = Instant::now();
    let silent = Router::new().fallback(async || std::future::pending::<Response>().await);
    let answer = ask(GET.to_http_api(), silent).await;
    assert_eq!(answer["statusCode"], 503);
    assert!(answer["headers"]["retry-after"].as_str().unwrap().parse::<u64>().unwrap() > 0);
    assert!(answer["body"].as_str().unwrap().contains("\"UNAVAILABLE\""), "{answer}");
    assert!(begun.elapsed() <= Duration::from_millis(2001), "{:?}", begun.elapsed());
}

#[tokio::test]
async fn cargo_lambda_gets_the_time_and_the_answers_that_it_expects() {
    let slow = Router::new().fallback(async || {
        tokio::time::sleep(Duration::from_millis(5)).await;
        "pulled"
    });
    // It writes how long there is, and not until when (lambda-runtime-deadline-ms: 600000), and cannot read answers without
    // cookies.
    let answer = ask_until(Duration::from_mins(10), GET.to_http_api(), slow).await;
    assert_eq!((&answer["statusCode"], &answer["body"]), (&json!(200), &json!("pulled")), "{answer}");
    assert_eq!(answer["cookies"], json!([]));
}
