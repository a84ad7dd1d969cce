//! Malformed and unwelcome requests: each is refused with the code of the specification, and nothing else happens.

use http::{Method, StatusCode};
use support::on_both_columns;
use support::world::{Column, World};

on_both_columns!(
    malformed_requests_are_refused_with_the_code_of_the_specification,
    pushes_are_refused_with_a_sentence_that_says_why,
    an_unknown_upstream_is_not_proxied,
    errors_agree_between_head_and_get,
);

async fn malformed_requests_are_refused_with_the_code_of_the_specification(column: Column) {
    let world = World::on(column).await;
    let long = "a".repeat(256);
    for (path, status, code) in [
        ("/v2/test.local/UPPER/manifests/1".to_owned(), 400, "NAME_INVALID"),
        (format!("/v2/{long}/manifests/1"), 400, "NAME_INVALID"),
        ("/v2/test.local/a%2F..%2Fb/manifests/1".to_owned(), 400, "NAME_INVALID"),
        ("/v2/test.local/../a/manifests/1".to_owned(), 400, "NAME_INVALID"),
        ("/v2/test.local/a/manifests/-tag".to_owned(), 400, "MANIFEST_INVALID"),
        (format!("/v2/test.local/a/manifests/{}", "t".repeat(129)), 400, "MANIFEST_INVALID"),
        ("/v2/test.local/a/manifests/sha256:xyz".to_owned(), 400, "DIGEST_INVALID"),
        ("/v2/test.local/a/blobs/latest".to_owned(), 400, "DIGEST_INVALID"),
        ("/v2/test.local/a/blobs/md5:d41d8cd98f00b204e9800998ecf8427e".to_owned(), 400, "UNSUPPORTED"),
        ("/v2/a/manifests/1?ns=docker.io&ns=ghcr.io".to_owned(), 400, "NAME_INVALID"),
        ("/v2/ghcr.io/a/manifests/1?ns=quay.io".to_owned(), 400, "NAME_INVALID"),
        ("/v2/test.local/a/tags/list?n=many".to_owned(), 400, "PAGINATION_NUMBER_INVALID"),
        ("/v2/_catalog".to_owned(), 404, "UNSUPPORTED"),
        ("/favicon.ico".to_owned(), 404, "UNSUPPORTED"),
        ("/".to_owned(), 404, "UNSUPPORTED"),
    ] {
        let answer = world.get(&path).await;
        assert_eq!((answer.status.as_u16(), answer.error().0.as_str()), (status, code), "{path}");
        assert_eq!(answer.header("content-type"), "application/json");
        assert!(!answer.error().1.is_empty());
    }
    assert!(world.upstream.requests().is_empty());
}

async fn pushes_are_refused_with_a_sentence_that_says_why(column: Column) {
    let world = World::on(column).await;
    for (method, path) in [
        (Method::PUT, "/v2/test.local/a/manifests/1"),
        (Method::POST, "/v2/test.local/a/blobs/uploads/"),
        (Method::PATCH, "/v2/test.local/a/blobs/uploads/1"),
        (Method::DELETE, "/v2/test.local/a/manifests/1"),
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
