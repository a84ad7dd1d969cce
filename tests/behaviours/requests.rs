//! Malformed and unwelcome requests: each is refused with the code of the specification, and nothing else happens.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use http::{Method, StatusCode};
use support::aws::{EVERY_OPERATION, Endpoints, Service};
use support::on_both_columns;
use support::world::{Column, World};

on_both_columns!(
    malformed_requests_are_refused_with_the_code_of_the_specification,
    query_parameters_that_nobody_knows_are_ignored,
    pushes_are_refused_with_a_sentence_that_says_why,
    an_unknown_upstream_is_not_proxied,
    errors_agree_between_head_and_get,
);

/// Everything that is stored: on the embedded column, where nothing counts calls, what a write would change.
fn stored_bytes(directory: &Path, files: &mut BTreeMap<PathBuf, Vec<u8>>) {
    for entry in fs::read_dir(directory).expect("the directory is ours") {
        let path = entry.expect("the directory is ours").path();
        if path.is_dir() {
            stored_bytes(&path, files);
        } else {
            let bytes = fs::read(&path).expect("the file is ours");
            files.insert(path, bytes);
        }
    }
}

/// How often storage was asked (AWS), and what it holds (embedded).
fn touched(world: &World) -> (usize, BTreeMap<PathBuf, Vec<u8>>) {
    let mut files = BTreeMap::new();
    world.data().into_iter().for_each(|data| stored_bytes(data, &mut files));
    let services = [Service::DynamoDb, Service::S3];
    let calls = |endpoints: &Endpoints| services.iter().map(|service| endpoints.calls(*service, EVERY_OPERATION)).sum();
    (world.endpoints().map_or(0, calls), files)
}

/// Names, tags, digests and values of `n` that break their grammar, as they stand in a URL.
const NAMES: &str = "UPPER a/B a//b /a a/ .a a. -a a- a..b a___b a._b .. ../a a/.. a/../b a/./b a%2Fb a%2fb a%2F..%2Fb \
     %2e%2e %2e%2e/a a%252fb %00 a%00 a%00b a%20b a+b %C3%A9 a/%E2%98%83 %EF%BD%81 %C0%AF %C0%AE%C0%AE %E0%80%AF \
     %ED%A0%80 %ff %F4%90%80%80 % a% %zz a%2 %% %0d%0a a:b host:5000/a a@b a\\b a;b a,b ~a a$b";
const TAGS: &str = "-tag .tag .. %2e%2e a%20b %00 v1%00 v1%0a v1%0d%0aset-cookie %C3%A9 %zz a+b a@b a* %";
const DIGESTS: &str = "sha256: sha256:xyz sha256:.. sha256:%EF%BC%90 :";
const NUMBERS: &str = "-1 many 1e3 0x10 1.5 %00 1%20 99999999999999999999 + +1 %2B1 1,2 %zz";

fn malformed() -> Vec<(String, u16, &'static str)> {
    let words = |text: &str| text.split_whitespace().map(str::to_owned).collect::<Vec<_>>();
    let zeros = |count: usize| "0".repeat(count);
    let huge = "a".repeat(65_000);
    let names = [words(NAMES), vec!["a".repeat(256), huge.clone(), "a/".repeat(32_000)]].concat();
    let tags = [words(TAGS), vec![String::new(), "t".repeat(129), huge]].concat();
    let mut digests = words(DIGESTS);
    digests.extend([63, 65, 128, 60_000].map(|count| format!("sha256:{}", zeros(count))));
    digests.extend(["%00", "g", "A", "%0a"].map(|last| format!("sha256:{}{last}", zeros(63))));
    digests.extend(["sha512:", "SHA256:", ":", "sha256%3A0"].map(|algorithm| format!("{algorithm}{}", zeros(64))));
    let mut all = Vec::new();
    for name in names {
        let valid = format!("sha256:{}", zeros(64));
        for rest in ["manifests/1", &format!("blobs/{valid}"), "tags/list", &format!("referrers/{valid}")] {
            all.push((format!("/v2/test.local/{name}/{rest}"), 400, "NAME_INVALID"));
        }
    }
    all.extend(tags.iter().map(|tag| (format!("/v2/test.local/a/manifests/{tag}"), 400, "MANIFEST_INVALID")));
    for kind in ["manifests", "blobs", "referrers"] {
        all.extend(digests.iter().map(|text| (format!("/v2/test.local/a/{kind}/{text}"), 400, "DIGEST_INVALID")));
        let unknown = "md5:d41d8cd98f00b204e9800998ecf8427e";
        all.push((format!("/v2/test.local/a/{kind}/{unknown}"), 400, "UNSUPPORTED"));
    }
    for kind in ["blobs", "referrers"] {
        all.push((format!("/v2/test.local/a/{kind}/latest"), 400, "DIGEST_INVALID"));
    }
    let numbers = words(NUMBERS).into_iter();
    all.extend(numbers.map(|n| (format!("/v2/test.local/a/tags/list?n={n}"), 400, "PAGINATION_NUMBER_INVALID")));
    all
}

async fn malformed_requests_are_refused_with_the_code_of_the_specification(column: Column) {
    let world = World::on(column).await;
    let before = touched(&world);
    let mut all = malformed();
    for (path, status, code) in [
        ("/v2/a/manifests/1?ns=test.local&ns=test.local", 400, "NAME_INVALID"),
        ("/v2/a/manifests/1?ns=docker.io&ns=ghcr.io", 400, "NAME_INVALID"),
        ("/v2/ghcr.io/a/manifests/1?ns=quay.io", 400, "NAME_INVALID"),
        ("/v2/a/manifests/1?ns=..", 404, "NAME_UNKNOWN"),
        ("/v2/a/manifests/1?ns=%00", 404, "NAME_UNKNOWN"),
        ("/v2/a/manifests/1?ns=%2F", 404, "NAME_UNKNOWN"),
        ("/v2/a/manifests/1?ns=%C3%A9", 404, "NAME_UNKNOWN"),
        ("/v2/a/manifests/1?ns=%ff", 404, "NAME_UNKNOWN"),
        ("/v2/a/manifests/1?ns=test.local/a", 404, "NAME_UNKNOWN"),
        ("/v2/a/manifests/1?ns=test.local:5000", 404, "NAME_UNKNOWN"),
        ("/v2/a/manifests/1?ns=http://test.local", 404, "NAME_UNKNOWN"),
        ("/v2/a/manifests/1?ns=user@test.local", 404, "NAME_UNKNOWN"),
        ("/v2/a/manifests/1?ns=169.254.169.254", 404, "NAME_UNKNOWN"),
        ("/v2/evil.example/a/manifests/1", 404, "NAME_UNKNOWN"),
        ("/nosuch.example/v2/", 404, "NAME_UNKNOWN"),
        ("/anything/v2/", 404, "NAME_UNKNOWN"),
        ("/v2/test.local/a/tags/list?n=1&n=1", 400, "PAGINATION_NUMBER_INVALID"),
        ("/../v2/a/manifests/1", 400, "NAME_INVALID"),
        ("/%2e%2e/v2/a/manifests/1", 400, "NAME_INVALID"),
        ("/a%00/v2/a/manifests/1", 400, "NAME_INVALID"),
        ("/v2/../../etc/passwd", 404, "UNSUPPORTED"),
        ("/v2/..", 404, "UNSUPPORTED"),
        ("/v2/a", 404, "UNSUPPORTED"),
        ("/v2/a/manifests", 404, "UNSUPPORTED"),
        ("/v2/a/tags/other", 404, "UNSUPPORTED"),
        ("/v2/_catalog", 404, "UNSUPPORTED"),
        ("/v1/search", 404, "UNSUPPORTED"),
        ("/favicon.ico", 404, "UNSUPPORTED"),
        ("/", 404, "UNSUPPORTED"),
    ] {
        all.push((path.to_owned(), status, code));
    }
    all.push((format!("/v2/a/manifests/1?ns={}", "a".repeat(65_000)), 404, "NAME_UNKNOWN"));
    all.push((format!("/v2/a.b/{}/manifests/1", vec!["a"; 250].join("/")), 404, "NAME_UNKNOWN"));
    all.push((format!("/{}/v2/a/manifests/1", vec!["a"; 250].join("/")), 404, "NAME_UNKNOWN"));
    for (path, status, code) in all {
        let shown = &path[..path.len().min(200)];
        let answer = world.get(&path).await;
        assert_eq!((answer.status.as_u16(), answer.error().0.as_str()), (status, code), "{shown}");
        assert_eq!(answer.header("content-type"), "application/json");
        assert!((1..300).contains(&answer.error().1.len()), "{shown}: {}", answer.error().1);
        assert_eq!(world.head(&path).await.status.as_u16(), status, "{shown}");
    }
    assert!(world.upstream.requests().is_empty());
    assert!(touched(&world) == before, "storage was asked");
    // What this would have caught.
    world.upstream.image("a", "1", &[b"layer"]);
    world.get("/v2/test.local/a/manifests/1").await;
    assert!(touched(&world) != before && !world.upstream.requests().is_empty());
}

async fn query_parameters_that_nobody_knows_are_ignored(column: Column) {
    let world = World::on(column).await;
    let image = world.upstream.image("a", "1", &[b"layer"]);
    world.upstream.tags("a", &["1"]);
    let long = format!("x={}", "y".repeat(60_000));
    for query in [
        "foo=bar",
        "&&=&",
        "ns=",
        "ns",
        "ns=&ns=test.local",
        "x=%00&y=%ff&z=%zz",
        "N=-1&NS=evil.example",
        "n=-1&last=x&artifactType=y",
        &long,
    ] {
        let answer = world.get(&format!("/v2/test.local/a/manifests/1?{query}")).await;
        assert_eq!(answer.bytes(), &image.manifest, "{}", &query[..query.len().min(50)]);
    }
    for query in ["foo=bar", "n=18446744073709551615", "n=&last=", "n=%31", "last=%00", "artifactType=x"] {
        assert_eq!(world.get(&format!("/v2/test.local/a/tags/list?{query}")).await.status, StatusCode::OK, "{query}");
    }
    assert_eq!(world.upstream.requests().len() - world.upstream.count("/blobs/"), 2);
}

async fn pushes_are_refused_with_a_sentence_that_says_why(column: Column) {
    let world = World::on(column).await;
    for (method, path) in [
        (Method::PUT, "/v2/test.local/a/manifests/1"),
        (Method::POST, "/v2/test.local/a/blobs/uploads/"),
        (Method::PATCH, "/v2/test.local/a/blobs/uploads/1"),
        (Method::DELETE, "/v2/test.local/a/manifests/1"),
        // A mount would give one repository the blob of another.
        (Method::POST, "/v2/test.local/a/blobs/uploads/?mount=sha256:0&from=test.local/private"),
        (Method::PUT, "/v2/test.local/a/blobs/uploads/1?digest=sha256:0"),
        (Method::DELETE, "/v2/test.local/a/blobs/sha256:0"),
        (Method::DELETE, "/v2/test.local/a/blobs/uploads/1"),
        (Method::GET, "/v2/test.local/a/blobs/uploads/1"),
        (Method::OPTIONS, "/v2/"),
    ] {
        let answer = world.send(method, path, &[]).await;
        let (code, message) = answer.error();
        assert_eq!((answer.status, code.as_str()), (StatusCode::METHOD_NOT_ALLOWED, "UNSUPPORTED"), "{path}");
        assert!(message.contains("read-only"));
        assert_eq!(answer.header("allow"), "GET, HEAD");
    }
}

async fn an_unknown_upstream_is_not_proxied(column: Column) {
    let world = World::on(column).await;
    for path in
        ["/v2/evil.example/a/manifests/1", "/v2/a/manifests/1?ns=evil.example", "/evil.example/v2/a/manifests/1"]
    {
        let answer = world.get(path).await;
        assert_eq!((answer.status, answer.error().0.as_str()), (StatusCode::NOT_FOUND, "NAME_UNKNOWN"), "{path}");
    }
    assert!(world.upstream.requests().is_empty());
}

async fn errors_agree_between_head_and_get(column: Column) {
    let world = World::on(column).await;
    for path in ["/v2/test.local/a/manifests/none", "/v2/test.local/A/manifests/1", "/v2/evil.example/a/manifests/1"] {
        let (get, head) = (world.get(path).await, world.head(path).await);
        assert_eq!(get.status, head.status, "{path}");
        assert!(head.bytes().is_empty());
        assert_eq!(head.header("content-length"), get.header("content-length"));
    }
}
