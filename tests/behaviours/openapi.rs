//! docs/reference/openapi.yaml says what answers below `/_stopover/`: each status of each path, asked of a cache.

use std::collections::BTreeSet;
use std::time::Duration;

use http::Method;
use serde_json::{Map, Value, json};
use stopover::oci::{Reference, Repository};
use stopover::pull::Want;
use support::aws::{EVERY_OPERATION, Service};
use support::guests::{HERE, basic, robot};
use support::on_both_columns;
use support::openapi;
use support::scripted::Fault;
use support::world::{Answer, Column, World};

on_both_columns!(every_answer_is_as_the_openapi_document_says);

/// The document, and what was answered so far.
struct Documented {
    document: Value,
    answers: Vec<Value>,
    /// Method, path and status, as the document has them.
    seen: BTreeSet<(String, String, String)>,
}

impl Documented {
    fn read() -> Self {
        Self { document: openapi::document(), answers: Vec::new(), seen: BTreeSet::new() }
    }

    /// What is below a `$ref`, or the value itself.
    fn resolved<'a>(&'a self, value: &'a Value) -> &'a Value {
        let Some(reference) = value["$ref"].as_str() else { return value };
        let pointer = reference.strip_prefix('#').expect("a reference within the document");
        self.document.pointer(pointer).unwrap_or_else(|| panic!("{reference} leads nowhere"))
    }

    /// Every response, as method, path and status.
    fn responses(&self) -> BTreeSet<(String, String, String)> {
        let object = |value: &Value| value.as_object().expect("an object").clone();
        let mut found = BTreeSet::new();
        for (path, methods) in object(&self.document["paths"]) {
            for (method, operation) in object(&methods) {
                found.extend(
                    object(&operation["responses"]).keys().map(|status| (method.clone(), path.clone(), status.clone())),
                );
            }
        }
        found
    }

    /// Has an operator ask, and keeps the answer.
    async fn ask(&mut self, world: &World, (method, path, rest, body, status): Asked<'_>) -> Answer {
        let path_asked = path.trim_end_matches("{digest}").to_owned() + rest;
        let answer = world.operate(method.clone(), &path_asked, body.to_owned()).await;
        assert_eq!(answer.status, status, "{method} {path_asked} {body}: {answer:?}");
        self.note(&method.as_str().to_lowercase(), path, body, &answer);
        answer
    }

    /// Keeps an answer for the comparison, and what was asked, if that was understood.
    fn note(&mut self, method: &str, path: &str, asked: &str, answer: &Answer) {
        let status = answer.status.as_u16().to_string();
        let what = format!("{method} {path}: {status}");
        let operation = self.document["paths"][path][method].clone();
        let response = &operation["responses"][&status];
        assert!(!response.is_null(), "{what} is not documented: {answer:?}");
        let response = self.resolved(response);
        let media_type = answer.header("content-type").split(';').next().unwrap_or_default();
        let schema = response["content"][media_type]["schema"].clone();
        assert!(schema.is_object(), "{what} as {media_type:?} is not documented");
        for name in ["link", "retry-after"] {
            let documented = response["headers"].as_object().into_iter().flat_map(Map::keys);
            let documented = documented.into_iter().any(|header| header.eq_ignore_ascii_case(name));
            assert!(documented || answer.header(name).is_empty(), "{what}: {name} is not documented");
        }
        let text = String::from_utf8(answer.bytes().to_vec()).unwrap();
        let body = if media_type == "application/json" { serde_json::from_str(&text).unwrap() } else { json!(text) };
        self.answers.push(json!({ "what": what, "schema": schema, "body": body }));
        let schema = &operation["requestBody"]["content"]["application/json"]["schema"];
        if answer.status.is_success() && !asked.is_empty() {
            let body: Value = serde_json::from_str(asked).unwrap();
            self.answers.push(json!({ "what": format!("{what}, what was asked"), "schema": schema, "body": body }));
        }
        self.seen.insert((method.to_owned(), path.to_owned(), status));
    }

    /// Compares what was answered with the schemas: a line for each difference.
    fn differences(&self) -> String {
        openapi::differences(&self.document, &self.answers)
    }
}

/// What is asked of a cache that has images: method, path of the document, what is behind it in the request, body, status.
type Asked<'a> = (Method, &'a str, &'a str, &'a str, u16);

const GET: Method = Method::GET;
const POST: Method = Method::POST;

const ASKED: [Asked<'static>; 25] = [
    (GET, "/_stopover/health", "", "", 200),
    (GET, "/_stopover/health/ready", "", "", 200),
    (GET, "/_stopover/status", "", "", 200),
    (GET, "/_stopover/events", "", "", 200),
    (GET, "/_stopover/metrics", "", "", 200),
    (GET, "/_stopover/quota", "", "", 200),
    (GET, "/_stopover/images", "?upstream=test.local", "", 200),
    (GET, "/_stopover/images", "?n=none", "", 400),
    (GET, "/_stopover/image", "?name=test.local/index:1", "", 200),
    (GET, "/_stopover/image", "?name=test.local/app@sha256:00", "", 400),
    (GET, "/_stopover/image", "?name=test.local/none", "", 404),
    (POST, "/_stopover/prefetch", "", r#"{"images": ["test.local/app:1", "test.local/none:1", "/"]}"#, 202),
    (POST, "/_stopover/prefetch", "", "{}", 400),
    (GET, "/_stopover/fills", "", "", 200),
    (POST, "/_stopover/fills/retry", "", "", 200),
    (POST, "/_stopover/gc", "", r#"{"dry_run": true}"#, 200),
    (POST, "/_stopover/gc", "", "{}", 400),
    (POST, "/_stopover/purge", "", r#"{"image": "test.local/purged:1"}"#, 200),
    (POST, "/_stopover/purge", "", "{}", 400),
    (POST, "/_stopover/purge", "", r#"{"image": "unknown.test/app"}"#, 404),
    (POST, "/_stopover/robots", "", r#"{"add": {"name": "new", "expires": "90d"}}"#, 200),
    (POST, "/_stopover/robots", "", r#"{"add": {"name": "new"}}"#, 409),
    (POST, "/_stopover/robots", "", "\"list\"", 200),
    (POST, "/_stopover/robots", "", r#"{"remove": {"name": "none"}}"#, 404),
    (POST, "/_stopover/robots", "", "{}", 400),
];

async fn every_answer_is_as_the_openapi_document_says(column: Column) {
    let mut documented = Documented::read();
    let access = "[access]\nsigning_keys = { env = \"TEST_KEYS\" }\nrobots = true\n";
    let world = World::plan(column).settings(access).start().await;
    let (stored, stuck) = some_images(&world).await;
    for asked in ASKED {
        documented.ask(&world, asked).await;
    }
    let path = "/_stopover/fills/{digest}";
    // The functions forget a fill that upstream has nothing for.
    let given_up = if column == Column::Embedded { 200 } else { 404 };
    let unknown = format!("sha256:{:064}", 0);
    for (digest, status) in [(stored.as_str(), 200), (&stuck, given_up), (&unknown, 404), ("none", 400)] {
        documented.ask(&world, (GET, path, digest, "", status)).await;
    }
    for command in [json!({ "rotate": { "name": "new", "overlap": "1h" } }), json!({ "remove": { "name": "new" } })] {
        documented.ask(&world, (POST, "/_stopover/robots", "", &command.to_string(), 200)).await;
    }
    let many = json!({ "images": vec!["a"; 1001] }).to_string();
    documented.ask(&world, (POST, "/_stopover/prefetch", "", &many, 413)).await;
    for (path, query) in [("/_stopover/images", "?n=1"), ("/_stopover/image", "?name=test.local/app&n=1")] {
        let page = documented.ask(&world, (GET, path, query, "", 200)).await;
        assert!(page.header("link").ends_with("rel=\"next\""), "{path} has more than one page: {page:?}");
    }
    // Callers who have not logged in, and a robot, which is no operator.
    let robot = basic("ci", &robot(&world, "ci").await);
    for (method, path, status) in documented.responses() {
        let login = [("authorization", robot.as_str())];
        let headers = match status.as_str() {
            "401" => &[][..],
            "403" => &login,
            _ => continue,
        };
        let asked = path.replace("{digest}", &stored);
        let answer = match method.as_str() {
            "get" => world.get_with(HERE, &asked, headers).await,
            _ => world.post_with(HERE, &asked, headers, "{}").await,
        };
        assert_eq!(answer.status.as_str(), status, "{method} {path}: {answer:?}");
        documented.note(&method, &path, "", &answer);
    }
    if let Some(endpoints) = world.endpoints() {
        endpoints.fail_next(Service::DynamoDb, EVERY_OPERATION, 1000);
        world.clock.advance(Duration::from_secs(1));
        documented.ask(&world, (GET, "/_stopover/health/ready", "", "", 503)).await;
    }
    let unseen = documented.responses().into_iter().filter(|response| !documented.seen.contains(response));
    // Storage that does not answer is the same everywhere.
    let unseen: Vec<_> = unseen.filter(|(_, _, status)| status != "503").collect();
    assert!(unseen.is_empty(), "no such answer has come: {unseen:?}");
    assert_eq!(documented.differences(), "");
}

#[test]
fn an_answer_that_is_not_as_documented_is_found() {
    let mut documented = Documented::read();
    let schema = json!({ "$ref": "#/components/schemas/Health" });
    for body in [
        json!({ "ready": true }),
        json!({ "ready": 1, "reasons": [] }),
        json!({ "ready": true, "reasons": [], "a": 1 }),
    ] {
        documented.answers = vec![json!({ "what": "this", "schema": schema, "body": body })];
        assert!(documented.differences().starts_with("this: $"), "{body} passes");
    }
    documented.answers = vec![json!({ "what": "this", "schema": schema, "body": { "ready": true, "reasons": [] } })];
    assert_eq!(documented.differences(), "");
}

/// Has the cache store images, and fail to store one: a blob that is stored, and one that is not.
async fn some_images(world: &World) -> (String, String) {
    world.upstream.quota(100, 50);
    let app = world.upstream.image("app", "1", &[b"base", b"app"]);
    world.upstream.image("app", "2", &[b"base"]);
    world.upstream.image("purged", "1", &[b"purged"]);
    let (_, children) = world.upstream.index("index", "1", &["linux/amd64", "linux/arm64"]);
    let stuck = world.upstream.image("stuck", "1", &[b"stuck"]).blobs[1].0.to_string();
    world.upstream.fault(&stuck, Fault::Status(404, vec![], String::new()));
    let child = children[0].digest.to_string();
    for (name, reference) in
        [("app", "1"), ("app", "2"), ("purged", "1"), ("index", "1"), ("index", &child), ("stuck", "1")]
    {
        let repository = Repository { upstream: "test.local".parse().unwrap(), name: name.parse().unwrap() };
        let reference = match reference.parse() {
            Ok(digest) => Reference::Digest(digest),
            Err(_) => Reference::Tag(reference.parse().unwrap()),
        };
        world.cache.pull.manifest(&repository, &reference, Want::GET).await.unwrap();
    }
    world.settled().await;
    (app.blobs[1].0.to_string(), stuck)
}
