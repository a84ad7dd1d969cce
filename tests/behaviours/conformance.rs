//! What the OCI distribution-spec 1.1 demands of pulling and of content discovery, section by section, as the sections of
//! its conformance tests do: a read-only run. "Registry Proxying" is of the version after 1.1.

use http::{Method, StatusCode};
use serde_json::{Value, json};
use stopover::config::Cold;
use stopover::oci::{Algorithm, Digest};
use support::on_both_columns;
use support::scripted::{Fault, ScriptedImage};
use support::world::{Answer, Column, World};

on_both_columns!(
    the_version_check_is_answered,
    a_blob_is_pulled_by_digest,
    a_blob_is_checked_for_by_head,
    a_blob_is_pulled_in_part,
    a_blob_that_does_not_exist_is_unknown,
    a_manifest_is_pulled_by_digest_and_by_tag,
    a_manifest_is_checked_for_by_head,
    a_manifest_that_does_not_exist_is_unknown,
    a_manifest_is_the_type_that_it_says_whatever_is_accepted,
    what_breaks_the_grammar_is_refused,
    every_error_has_the_shape_and_a_code_of_the_specification,
    every_endpoint_answers_as_the_table_says,
    tags_are_listed,
    tags_are_listed_in_pages,
    referrers_are_listed,
    referrers_are_filtered,
    the_referrers_of_what_does_not_exist_are_an_empty_index,
    the_namespace_of_a_proxied_registry_is_honoured,
    a_warning_has_the_code_and_the_agent_of_the_specification,
);

const INDEX: &str = "application/vnd.oci.image.index.v1+json";

/// A repository with an image `1`, stored.
async fn stored(column: Column) -> (World, ScriptedImage) {
    let world = World::plan(column).cold(Cold::Wait).start().await;
    let image = world.upstream.image("conformance/a", "1", &[b"a layer of the conformance tests"]);
    assert_eq!(world.get(&path("manifests", "1")).await.status, StatusCode::OK);
    world.settled().await;
    (world, image)
}

fn path(kind: &str, reference: impl std::fmt::Display) -> String {
    format!("/v2/test.local/conformance/a/{kind}/{reference}")
}

fn nowhere() -> Digest {
    Digest::of(Algorithm::Sha256, b"nowhere")
}

fn json_of(answer: &Answer) -> Value {
    serde_json::from_slice(answer.bytes()).expect("the body is JSON")
}

/// "Determining Support", end-1.
async fn the_version_check_is_answered(column: Column) {
    let world = World::on(column).await;
    for path in ["/v2/", "/v2"] {
        let answer = world.get(path).await;
        assert_eq!(answer.status, StatusCode::OK);
        assert_eq!(answer.header("docker-distribution-api-version"), "registry/2.0", "for older clients");
        assert_eq!(answer.header("x-stopover"), "hit", "tells it from other registries");
    }
}

/// "Pulling blobs", end-2: 200 with the bytes, perhaps after a redirect, and `Docker-Content-Digest` that agrees.
async fn a_blob_is_pulled_by_digest(column: Column) {
    let (world, image) = stored(column).await;
    for (digest, bytes) in &image.blobs {
        let answer = world.get(&path("blobs", digest)).await;
        assert_eq!(answer.header("docker-content-digest"), digest.as_str());
        let pulled = world.pull(&path("blobs", digest)).await;
        assert_eq!((pulled.status, pulled.bytes()), (StatusCode::OK, bytes));
        assert_eq!(Digest::of(Algorithm::Sha256, pulled.bytes()), *digest);
    }
}

/// "Checking if content exists in the registry", end-2: 200, with `Docker-Content-Digest` and `Content-Length`, no body.
async fn a_blob_is_checked_for_by_head(column: Column) {
    let (world, image) = stored(column).await;
    for (digest, bytes) in &image.blobs {
        let answer = world.head(&path("blobs", digest)).await;
        assert_eq!(answer.status, StatusCode::OK);
        assert_eq!(answer.header("docker-content-digest"), digest.as_str());
        assert_eq!(answer.header("content-length"), bytes.len().to_string());
        assert!(answer.bytes().is_empty());
    }
}

/// "Pulling blobs": a registry should support `Range` (RFC 9110), 206 and 416.
async fn a_blob_is_pulled_in_part(column: Column) {
    let (world, image) = stored(column).await;
    let (digest, bytes) = &image.blobs[1];
    let location = world.get(&path("blobs", digest)).await.header("location").to_owned();
    for (range, status, expected) in [
        ("bytes=2-4", 206, &bytes[2..5]),
        ("bytes=5-", 206, &bytes[5..]),
        ("bytes=-3", 206, &bytes[bytes.len() - 3..]),
        ("bytes=1000-", 416, b"" as &[u8]),
    ] {
        let (answered, body) = if location.is_empty() {
            let answer = world.send(Method::GET, &path("blobs", digest), &[("range", range)]).await;
            (answer.status, answer.bytes().clone())
        } else {
            let answer = support::http().get(&location).header("range", range).send().await.unwrap();
            (answer.status(), answer.bytes().await.unwrap())
        };
        assert_eq!(answered.as_u16(), status, "{range}");
        assert!(status == 416 || body.as_ref() == expected, "{range}");
    }
}

/// "Pulling blobs", end-2: 404 with `BLOB_UNKNOWN`.
async fn a_blob_that_does_not_exist_is_unknown(column: Column) {
    let (world, _) = stored(column).await;
    let answer = world.get(&path("blobs", nowhere())).await;
    assert_eq!((answer.status, answer.error().0.as_str()), (StatusCode::NOT_FOUND, "BLOB_UNKNOWN"));
    assert_eq!(world.head(&path("blobs", nowhere())).await.status, StatusCode::NOT_FOUND);
}

/// "Pulling manifests", end-3: 200 with the bytes; `Content-Type` is the type of the manifest, `Docker-Content-Digest` its
/// digest.
async fn a_manifest_is_pulled_by_digest_and_by_tag(column: Column) {
    let (world, image) = stored(column).await;
    for reference in [image.digest.as_str(), "1"] {
        let answer = world.get(&path("manifests", reference)).await;
        assert_eq!((answer.status, answer.bytes()), (StatusCode::OK, &image.manifest), "{reference}");
        assert_eq!(Some(answer.header("content-type")), json_of(&answer)["mediaType"].as_str());
        assert_eq!(answer.header("docker-content-digest"), Digest::of(Algorithm::Sha256, answer.bytes()).as_str());
        assert_eq!(answer.header("content-length"), answer.bytes().len().to_string());
    }
}

/// "Checking if content exists in the registry", end-3.
async fn a_manifest_is_checked_for_by_head(column: Column) {
    let (world, image) = stored(column).await;
    for reference in [image.digest.as_str(), "1"] {
        let answer = world.head(&path("manifests", reference)).await;
        assert_eq!(answer.status, StatusCode::OK);
        assert_eq!(answer.header("docker-content-digest"), image.digest.as_str());
        assert_eq!(answer.header("content-length"), image.manifest.len().to_string());
        assert_eq!(answer.header("content-type"), "application/vnd.oci.image.manifest.v1+json");
        assert!(answer.bytes().is_empty());
    }
}

/// "Pulling manifests", end-3: 404 with `MANIFEST_UNKNOWN`.
async fn a_manifest_that_does_not_exist_is_unknown(column: Column) {
    let (world, _) = stored(column).await;
    for reference in ["none".to_owned(), nowhere().to_string()] {
        let answer = world.get(&path("manifests", &reference)).await;
        assert_eq!((answer.status, answer.error().0.as_str()), (StatusCode::NOT_FOUND, "MANIFEST_UNKNOWN"));
        assert_eq!(world.head(&path("manifests", &reference)).await.status, StatusCode::NOT_FOUND);
    }
}

/// "Pulling manifests": clients should say what they accept, and registries may answer with what they have.
async fn a_manifest_is_the_type_that_it_says_whatever_is_accepted(column: Column) {
    let (world, image) = stored(column).await;
    for accept in [INDEX, "*/*", "application/vnd.oci.image.manifest.v1+json", "text/html"] {
        let answer = world.send(Method::GET, &path("manifests", "1"), &[("accept", accept)]).await;
        assert_eq!((answer.status, answer.bytes()), (StatusCode::OK, &image.manifest), "{accept}");
        assert_eq!(answer.header("content-type"), "application/vnd.oci.image.manifest.v1+json");
    }
}

/// "Pulling manifests": the grammar of `<name>` and of a tag; image-spec, "Digests".
async fn what_breaks_the_grammar_is_refused(column: Column) {
    let (world, _) = stored(column).await;
    world.upstream.forget_requests();
    for (path, code) in [
        ("/v2/test.local/Upper/manifests/1".to_owned(), "NAME_INVALID"),
        (path("manifests", ".tag"), "MANIFEST_INVALID"),
        (path("manifests", "sha256:totallywrong"), "DIGEST_INVALID"),
        (path("blobs", "sha256:totallywrong"), "DIGEST_INVALID"),
        (path("referrers", "sha256:totallywrong"), "DIGEST_INVALID"),
    ] {
        let answer = world.get(&path).await;
        assert_eq!((answer.status, answer.error().0.as_str()), (StatusCode::BAD_REQUEST, code), "{path}");
    }
    assert!(world.upstream.requests().is_empty());
}

/// "Error Codes": `errors` is an array of objects with a `code` of the table, in upper case and underscores.
async fn every_error_has_the_shape_and_a_code_of_the_specification(column: Column) {
    let (world, _) = stored(column).await;
    world.upstream.fault("/limited/", Fault::Status(429, vec![], String::new()));
    for path in [
        path("blobs", nowhere()),
        path("blobs", "x"),
        path("manifests", "none"),
        path("manifests", "-"),
        "/v2/A/manifests/1".to_owned(),
        "/v2/evil.example/a/manifests/1".to_owned(),
        "/v2/test.local/limited/manifests/1".to_owned(),
        "/v2/nothing/at/all".to_owned(),
    ] {
        let answer = world.get(&path).await;
        assert!(answer.status.is_client_error(), "{path} {answer:?}");
        assert_eq!(answer.header("content-type"), "application/json");
        let body = json_of(&answer);
        let errors = body["errors"].as_array().expect("an array");
        assert!(!errors.is_empty());
        for error in errors {
            let code = error["code"].as_str().expect("a code");
            let known = "BLOB_UNKNOWN BLOB_UPLOAD_INVALID BLOB_UPLOAD_UNKNOWN DIGEST_INVALID MANIFEST_BLOB_UNKNOWN \
                         MANIFEST_INVALID MANIFEST_UNKNOWN NAME_INVALID NAME_UNKNOWN SIZE_INVALID UNAUTHORIZED DENIED \
                         UNSUPPORTED TOOMANYREQUESTS";
            assert!(known.split_whitespace().any(|known| known == code), "{code}");
            assert!(error["message"].is_string());
        }
    }
}

/// "Endpoints": end-1 to end-3, end-8a, end-8b, end-12a and end-12b are there; whatever pushes or deletes is refused, which
/// the specification allows a registry that takes no pushes.
async fn every_endpoint_answers_as_the_table_says(column: Column) {
    let (world, image) = stored(column).await;
    world.upstream.tags("conformance/a", &["1"]);
    let read = [
        "/v2/".to_owned(),
        path("blobs", &image.blobs[0].0),
        path("manifests", "1"),
        path("manifests", &image.digest),
        path("tags", "list"),
        path("tags", "list?n=1&last=0"),
        path("referrers", &image.digest),
        path("referrers", format!("{}?artifactType=a/b", image.digest)),
    ];
    for path in &read {
        for method in [Method::GET, Method::HEAD] {
            let status = world.send(method.clone(), path, &[]).await.status;
            assert!(matches!(status.as_u16(), 200 | 307), "{method} {path}: {status}");
        }
    }
    let digest = nowhere();
    for (method, path) in [
        (Method::POST, path("blobs", "uploads/")),
        (Method::POST, path("blobs", format!("uploads/?digest={digest}"))),
        (Method::POST, path("blobs", format!("uploads/?mount={digest}&from=b"))),
        (Method::PATCH, path("blobs", "uploads/1")),
        (Method::PUT, path("blobs", format!("uploads/1?digest={digest}"))),
        (Method::GET, path("blobs", "uploads/")),
        (Method::GET, path("blobs", "uploads/1")),
        (Method::PUT, path("manifests", "1")),
        (Method::DELETE, path("manifests", "1")),
        (Method::DELETE, path("blobs", &digest)),
    ] {
        let answer = world.send(method.clone(), &path, &[]).await;
        let refused = (StatusCode::METHOD_NOT_ALLOWED, "UNSUPPORTED", "GET, HEAD");
        assert_eq!((answer.status, answer.error().0.as_str(), answer.header("allow")), refused, "{method} {path}");
    }
}

/// "Listing Tags", end-8a: `name` and `tags`, in lexical order; 404 for a repository that is not known.
async fn tags_are_listed(column: Column) {
    let (world, _) = stored(column).await;
    world.upstream.tags("conformance/a", &["b", "1", "a", "B"]);
    let answer = world.get(&path("tags", "list")).await;
    assert_eq!(answer.status, StatusCode::OK);
    assert_eq!(answer.header("content-type"), "application/json");
    assert_eq!(json_of(&answer), json!({ "name": "test.local/conformance/a", "tags": ["1", "B", "a", "b"] }));
    let answer = world.get("/v2/test.local/none/tags/list").await;
    assert_eq!((answer.status, answer.error().0.as_str()), (StatusCode::NOT_FOUND, "NAME_UNKNOWN"));
}

/// "Listing Tags", end-8b: `n` limits, `last` excludes itself and all before it, `Link` (RFC 5988) leads to the next page,
/// and `n=0` is answered with an empty list.
async fn tags_are_listed_in_pages(column: Column) {
    let (world, _) = stored(column).await;
    let mut names: Vec<String> = (0..25).map(|number| format!("tag{number}")).collect();
    world.upstream.tags("conformance/a", &names.iter().map(String::as_str).collect::<Vec<_>>());
    names.sort();
    let tags = |answer: &Answer| -> Vec<String> { serde_json::from_value(json_of(answer)["tags"].take()).unwrap() };
    let none = world.get(&path("tags", "list?n=0")).await;
    assert_eq!((tags(&none).len(), none.header("link")), (0, ""));
    let mut seen = Vec::new();
    let mut next = path("tags", "list?n=10");
    loop {
        let answer = world.get(&next).await;
        seen.extend(tags(&answer));
        let Some((target, _)) = answer.header("link").split_once(">; rel=\"next\"") else { break };
        assert_eq!(tags(&answer).len(), 10);
        target.trim_start_matches('<').clone_into(&mut next);
    }
    assert_eq!(seen, names);
    let answer = world.get(&path("tags", format!("list?last={}", names[20]))).await;
    assert_eq!(tags(&answer), names[21..]);
    assert_eq!(world.get(&path("tags", "list?n=-1")).await.status, StatusCode::BAD_REQUEST);
}

/// Three descriptors of two artifact types, as upstream has them.
fn refer(world: &World, subject: &Digest) -> Vec<Value> {
    let descriptors: Vec<Value> = ["a", "b", "a"]
        .iter()
        .enumerate()
        .map(|(number, kind)| {
            let digest = Digest::of(Algorithm::Sha256, format!("referrer {number}").as_bytes());
            let (media_type, kind) = ("application/vnd.oci.image.manifest.v1+json", format!("application/{kind}"));
            json!({ "mediaType": media_type, "digest": digest, "size": 1, "artifactType": kind, "annotations": {} })
        })
        .collect();
    let body = json!({ "schemaVersion": 2, "mediaType": INDEX, "manifests": descriptors }).to_string();
    world.upstream.page(&format!("/v2/conformance/a/referrers/{subject}"), INDEX, &body, None);
    descriptors
}

/// "Listing Referrers", end-12a: 200 with an image index of descriptors with their `artifactType` and `annotations`.
async fn referrers_are_listed(column: Column) {
    let (world, image) = stored(column).await;
    let descriptors = refer(&world, &image.digest);
    let answer = world.get(&path("referrers", &image.digest)).await;
    assert_eq!((answer.status, answer.header("content-type")), (StatusCode::OK, INDEX));
    assert_eq!(answer.header("oci-filters-applied"), "");
    assert_eq!(json_of(&answer), json!({ "schemaVersion": 2, "mediaType": INDEX, "manifests": descriptors }));
}

/// "Listing Referrers", end-12b: a filter that was applied is named in `OCI-Filters-Applied`.
async fn referrers_are_filtered(column: Column) {
    let (world, image) = stored(column).await;
    let descriptors = refer(&world, &image.digest);
    for (kind, expected) in [("a", vec![0, 2]), ("b", vec![1]), ("c", vec![])] {
        let answer = world.get(&path("referrers", format!("{}?artifactType=application%2F{kind}", image.digest))).await;
        assert_eq!((answer.status, answer.header("oci-filters-applied")), (StatusCode::OK, "artifactType"));
        let expected: Vec<&Value> = expected.into_iter().map(|number| &descriptors[number]).collect();
        assert_eq!(json_of(&answer)["manifests"], json!(expected), "{kind}");
    }
}

/// "Listing Referrers": "If the request is valid, ... MUST return a 200 OK", with an empty list where there are none.
async fn the_referrers_of_what_does_not_exist_are_an_empty_index(column: Column) {
    let (world, _) = stored(column).await;
    let answer = world.get(&path("referrers", nowhere())).await;
    assert_eq!((answer.status, answer.header("content-type")), (StatusCode::OK, INDEX));
    assert_eq!(json_of(&answer), json!({ "schemaVersion": 2, "mediaType": INDEX, "manifests": [] }));
}

/// "Registry Proxying": `ns` names the registry that is meant, and the answer says so in `OCI-Namespace`; one that is not
/// proxied is unknown.
async fn the_namespace_of_a_proxied_registry_is_honoured(column: Column) {
    let (world, image) = stored(column).await;
    world.upstream.tags("conformance/a", &["1"]);
    for rest in [
        "manifests/1".to_owned(),
        "tags/list".to_owned(),
        format!("blobs/{}", image.blobs[0].0),
        format!("referrers/{}", image.digest),
    ] {
        let answer = world.get(&format!("/v2/conformance/a/{rest}?ns=test.local")).await;
        assert!(matches!(answer.status.as_u16(), 200 | 307), "{answer:?}");
        assert_eq!(answer.header("oci-namespace"), "test.local", "{rest}");
        let answer = world.get(&format!("/v2/conformance/a/{rest}?ns=other.local")).await;
        assert_eq!((answer.status, answer.error().0.as_str()), (StatusCode::NOT_FOUND, "NAME_UNKNOWN"), "{rest}");
    }
}

/// "Warnings": `299 - "text"`, and nothing but printable text.
async fn a_warning_has_the_code_and_the_agent_of_the_specification(column: Column) {
    let (world, _) = stored(column).await;
    world.upstream.tags("conformance/a", &["1"]);
    world.get(&path("tags", "list")).await;
    world.upstream.kill();
    world.clock.advance(std::time::Duration::from_secs(331));
    for path in [path("manifests", "1"), path("tags", "list")] {
        let answer = world.get(&path).await;
        let text = answer.header("warning").strip_prefix("299 - \"").and_then(|text| text.strip_suffix('"'));
        assert!(text.is_some_and(|text| text.chars().all(|letter| letter.is_ascii() && letter != '"')), "{answer:?}");
    }
}
