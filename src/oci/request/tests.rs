use super::*;

const DIGEST: &str = "sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";

fn get(path: &str) -> Result<Request, InvalidRequest> {
    let (path, query) = path.split_once('?').map_or((path, None), |(path, query)| (path, Some(query)));
    Request::parse(&Method::GET, path, query)
}

#[test]
fn every_shape_of_a_pull_is_understood() {
    assert_eq!(get("/v2/").unwrap().operation, Operation::Ping);
    assert_eq!(get("/v2").unwrap().operation, Operation::Ping);
    let manifest = get("/v2/ghcr.io/a/b/manifests/v1?ns=ghcr.io").unwrap();
    assert_eq!(manifest.operation, Operation::Manifest("ghcr.io/a/b".parse().unwrap(), "v1".parse().unwrap()));
    assert_eq!(manifest.namespace.as_deref(), Some("ghcr.io"));
    let prefixed = get("/docker.io/v2/library/nginx/manifests/1").unwrap();
    assert_eq!(prefixed.prefix.unwrap().as_str(), "docker.io");
    let nested = get("/team/hub/v2/v2/manifests/1").unwrap();
    assert_eq!(nested.prefix.unwrap().as_str(), "team/hub");
    assert_eq!(nested.operation.name().unwrap().as_str(), "v2");
    let odd = get(&format!("/v2/manifests/blobs/v2/blobs/{DIGEST}")).unwrap();
    assert_eq!(odd.operation, Operation::Blob("manifests/blobs/v2".parse().unwrap(), DIGEST.parse().unwrap()));
}

#[test]
fn slashes_that_a_mirror_adds_mean_nothing() {
    for (path, plain) in [
        ("//v2/", "/v2/"),
        ("//v2/a/manifests/b", "/v2/a/manifests/b"),
        ("///v2/a/manifests/b", "/v2/a/manifests/b"),
        ("/docker.io//v2/a/manifests/b", "/docker.io/v2/a/manifests/b"),
        ("//docker.io/v2/a/manifests/b", "/docker.io/v2/a/manifests/b"),
    ] {
        assert_eq!(get(path), get(plain), "{path}");
        assert!(get(path).is_ok());
    }
    for (path, twice) in [
        ("/v2/docker.io/v2/library/a/manifests/b", true),
        ("//v2/docker.io/v2/", true),
        ("/docker.io/v2/library/a/manifests/b", false),
        ("/v2/library/a/manifests/v2", false),
    ] {
        assert_eq!(Request::has_path_twice(path), twice, "{path}");
    }
}

#[test]
fn an_image_is_understood_as_people_write_its_name() {
    for (text, namespace, name, reference) in [
        ("nginx", None, "nginx", "latest"),
        ("nginx:1.27", None, "nginx", "1.27"),
        ("ghcr.io/a/b:tag", None, "ghcr.io/a/b", "tag"),
        ("ghcr.io/a/b", None, "ghcr.io/a/b", "latest"),
        (&format!("docker.io/library/x@{DIGEST}"), None, "docker.io/library/x", DIGEST),
        (&format!("a/b:1.0@{DIGEST}"), None, "a/b", DIGEST),
        ("registry.example.com:5000/a/b", Some("registry.example.com:5000"), "a/b", "latest"),
        ("localhost:5000/a:1", Some("localhost:5000"), "a", "1"),
    ] {
        let request = Request::image(text).unwrap();
        let expected = Operation::Manifest(name.parse().unwrap(), reference.parse().unwrap());
        assert_eq!((request.namespace.as_deref(), request.operation), (namespace, expected), "{text}");
    }
    for text in ["", ":1", "Nginx", "nginx:", "nginx:a b", "nginx@sha256:12", "https://ghcr.io/a", "a//b", "$IMAGE"] {
        assert!(Request::image(text).is_err(), "{text}");
    }
}

#[test]
fn a_list_of_tags_and_referrers_are_understood_with_their_parameters() {
    let name = || "a/tags".parse().unwrap();
    let tags = |n, last: Option<&str>| Operation::Tags(name(), Page { n, last: last.map(str::to_owned) });
    assert_eq!(get("/v2/a/tags/tags/list").unwrap().operation, tags(None, None));
    assert_eq!(get("/v2/a/tags/tags/list?n=0&last=&x=%00").unwrap().operation, tags(Some(0), None));
    assert_eq!(get("/v2/a/tags/tags/list?last=v%201&n=5").unwrap().operation, tags(Some(5), Some("v 1")));
    assert_eq!(get("/v2/a/tags/tags/list?n=&%6E=5").unwrap().operation, tags(Some(5), None), "an empty one is none");
    let referrers = |kind: Option<&str>| Operation::Referrers(name(), DIGEST.parse().unwrap(), kind.map(str::to_owned));
    let path = format!("/v2/a/tags/referrers/{DIGEST}");
    assert_eq!(get(&path).unwrap().operation, referrers(None));
    for kind in ["a/b+json", "a%2Fb%2bjson"] {
        let request = get(&format!("{path}?artifactType={kind}")).unwrap();
        assert_eq!(request.operation, referrers(Some("a/b+json")), "a plus is no space (RFC 3986): {kind}");
    }
    for (query, namespace) in [("ns", None), ("ns=", None), ("ns=&ns=a", Some("a")), ("ns=a+b%20c", Some("a+b c"))] {
        assert_eq!(get(&format!("{path}?{query}")).unwrap().namespace.as_deref(), namespace, "{query}");
    }
}

#[test]
fn a_digest_may_arrive_percent_encoded() {
    let encoded = DIGEST.replace(':', "%3A");
    assert_eq!(get(&format!("/v2/a/blobs/{encoded}")), get(&format!("/v2/a/blobs/{DIGEST}")));
}

#[test]
fn malformed_paths_are_refused_for_what_is_wrong_with_them() {
    for path in
        ["", "/", "//", "v2/", "/v1/", "/v2x/a/manifests/b", "/v2/a", "/v2/a/b", "/v2x/v2y/", "/index.html", "é"]
    {
        assert_eq!(get(path), Err(InvalidRequest::Endpoint), "{path}");
    }
    for path in [
        "/v2/A/manifests/b",
        "/v2//manifests/b",
        "/a//b/v2/c/manifests/d",
        "/v2/a%2fb/manifests/c",
        "/v2/../manifests/a",
        "/v2/a%ff/manifests/b",
        "/v2/a%252fb/manifests/c",
    ] {
        assert_eq!(get(path), Err(InvalidRequest::Name(InvalidName)), "{path}");
    }
    assert!(matches!(get("/v2/a/manifests/.."), Err(InvalidRequest::Reference(_))));
    assert!(matches!(get("/v2/a/manifests/sha256:zz"), Err(InvalidRequest::Reference(_))));
    assert_eq!(get("/v2/a/blobs/latest"), Err(InvalidRequest::Digest(InvalidDigest::Malformed)));
    assert_eq!(get("/v2/?ns=a&ns=b"), Err(InvalidRequest::Namespace));
    for query in ["n=-1", "n=+1", "n=%2B1", "n=1&n=1", "n=1&n=2"] {
        assert_eq!(get(&format!("/v2/a/tags/list?{query}")), Err(InvalidRequest::Page), "{query}");
    }
    assert_eq!(get("/v2/a/referrers/latest"), Err(InvalidRequest::Digest(InvalidDigest::Malformed)));
}

#[test]
fn every_write_is_refused_by_its_method() {
    for (method, path) in [
        ("PUT", "/v2/a/manifests/b"),
        ("POST", "/v2/a/blobs/uploads/"),
        ("DELETE", "/v2/a/manifests/b"),
        ("PATCH", "/v2/"),
        ("BREW", "/v2/"),
    ] {
        let method = Method::from_bytes(method.as_bytes()).unwrap();
        assert_eq!(Request::parse(&method, path, None), Err(InvalidRequest::Method), "{method} {path}");
    }
}
