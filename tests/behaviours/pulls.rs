//! Manifests by digest, and blobs.

use http::{Method, StatusCode};
use stopover::config::Cold;
use support::on_both_columns;
use support::scripted::{Fault, ScriptedImage};
use support::world::{Column, World};

on_both_columns!(
    v2_probe_answers_200_without_upstream,
    a_cached_manifest_is_returned_byte_for_byte,
    head_and_get_agree_on_digest_size_and_type,
    a_client_that_has_the_content_gets_304,
    a_cold_pull_ends_with_every_blob_stored_and_a_warm_one_asks_upstream_for_nothing,
    a_cold_blob_is_answered_before_it_is_stored_whatever_the_policy,
    a_blob_is_read_only_through_a_repository_it_belongs_to,
    a_blob_stored_for_one_repository_is_not_fetched_again_for_another,
    a_blob_nobody_has_asked_for_by_manifest_is_found_at_upstream,
    an_unknown_blob_and_an_unknown_manifest_are_told_apart,
    a_stored_blob_is_read_in_ranges,
    ollama_is_told_where_the_parts_of_a_blob_are,
    a_sha512_blob_is_verified_with_its_own_algorithm,
    an_empty_blob_is_pulled,
);

const LAYER: &[u8] = b"the bytes of a layer, long enough to be cut into ranges";

fn manifest(image: &ScriptedImage) -> String {
    format!("/v2/test.local/{}/manifests/{}", image.name, image.digest)
}

fn blob(image: &ScriptedImage, index: usize) -> String {
    format!("/v2/test.local/{}/blobs/{}", image.name, image.blobs[index].0)
}

async fn v2_probe_answers_200_without_upstream(column: Column) {
    let world = World::on(column).await;
    world.upstream.kill();
    assert_eq!(world.get("/v2/").await.status, StatusCode::OK);
    assert_eq!(world.head("/v2/").await.status, StatusCode::OK);
    assert_eq!(world.get("/test.local/v2/").await.status, StatusCode::OK);
    assert!(world.upstream.requests().is_empty());
}

async fn a_cached_manifest_is_returned_byte_for_byte(column: Column) {
    let world = World::on(column).await;
    // Unusual white space and key order would not survive being parsed and written again.
    let bytes = b"{ \"manifests\" : [ ],\n\t\"schemaVersion\":2 , \"x\": \"\\u00e9\" }\n";
    let digest = world.upstream.manifest("a/b", "odd", "application/vnd.oci.image.index.v1+json; charset=utf-8", bytes);
    for reference in ["odd".to_owned(), digest.to_string(), digest.to_string()] {
        let answer = world.get(&format!("/v2/test.local/a/b/manifests/{reference}")).await;
        assert_eq!(answer.status, StatusCode::OK);
        assert_eq!(answer.bytes().as_ref(), bytes);
        assert_eq!(answer.header("content-type"), "application/vnd.oci.image.index.v1+json");
        assert_eq!(answer.header("docker-content-digest"), digest.as_str());
        assert_eq!(answer.header("content-encoding"), "");
        assert_eq!(answer.header("oci-namespace"), "test.local");
    }
    assert_eq!(world.upstream.count("GET"), 1);
}

async fn head_and_get_agree_on_digest_size_and_type(column: Column) {
    let world = World::on(column).await;
    let image = world.upstream.image("a", "1", &[LAYER]);
    for path in ["/v2/test.local/a/manifests/1".to_owned(), manifest(&image), blob(&image, 1)] {
        // Cold and warm.
        for _ in 0..2 {
            let head = world.head(&path).await;
            let get = world.pull(&path).await;
            world.settled().await;
            assert_eq!((head.status, get.status), (StatusCode::OK, StatusCode::OK), "{path}");
            assert!(head.bytes().is_empty());
            assert_eq!(head.header("content-length"), get.bytes().len().to_string(), "{path}");
            if !path.contains("/blobs/") {
                assert_eq!(head.header("content-type"), get.header("content-type"));
                assert_eq!(head.header("docker-content-digest"), get.header("docker-content-digest"));
                assert_eq!(head.header("etag"), get.header("etag"));
            }
        }
    }
}

async fn a_client_that_has_the_content_gets_304(column: Column) {
    let world = World::on(column).await;
    let image = world.upstream.image("a", "1", &[LAYER]);
    for tag in [format!("\"{}\"", image.digest), image.digest.to_string(), format!("\"x\", W/\"{}\"", image.digest)] {
        let answer = world.send(Method::GET, &manifest(&image), &[("if-none-match", &tag)]).await;
        assert_eq!(answer.status, StatusCode::NOT_MODIFIED, "{tag}");
        assert!(answer.bytes().is_empty());
    }
    let answer = world.send(Method::GET, &manifest(&image), &[("if-none-match", "\"other\"")]).await;
    assert_eq!(answer.status, StatusCode::OK);
}

async fn a_cold_pull_ends_with_every_blob_stored_and_a_warm_one_asks_upstream_for_nothing(column: Column) {
    let world = World::on(column).await;
    let image = world.upstream.image("a", "1", &[LAYER, b"another"]);
    assert_eq!(world.get("/v2/test.local/a/manifests/1").await.header("x-stopover"), "miss");
    world.settled().await;
    let mut expected: Vec<String> = image.blobs.iter().map(|(digest, _)| digest.to_string()).collect();
    expected.sort();
    assert_eq!(world.stored_blobs().await, expected);
    assert_eq!(world.upstream.count("/blobs/"), image.blobs.len(), "each blob is fetched once");
    world.upstream.forget_requests();
    assert_eq!(world.get("/v2/test.local/a/manifests/1").await.bytes(), &image.manifest);
    for (index, (_, bytes)) in image.blobs.iter().enumerate() {
        let answer = world.get(&blob(&image, index)).await;
        assert_eq!(answer.header("x-stopover"), "hit");
        assert_eq!(world.pull(&blob(&image, index)).await.bytes(), bytes);
    }
    assert!(world.upstream.requests().is_empty());
}

async fn a_cold_blob_is_answered_before_it_is_stored_whatever_the_policy(column: Column) {
    let in_process = if column == Column::Embedded { Some(Cold::Follow) } else { None };
    for cold in [Cold::Redirect, Cold::Wait].into_iter().chain(in_process) {
        let world = World::plan(column).cold(cold).start().await;
        let image = world.upstream.image("a", "1", &[LAYER]);
        if cold == Cold::Redirect {
            // Or the fill that the manifest requested may be done before the blob is asked for.
            world.upstream.fault("/blobs/", Fault::Stalled);
        }
        world.get(&manifest(&image)).await;
        let first = world.get(&blob(&image, 1)).await;
        world.upstream.heal();
        let expected = match (cold, column) {
            (Cold::Redirect, _) | (_, Column::Aws) => StatusCode::TEMPORARY_REDIRECT,
            _ => StatusCode::OK,
        };
        assert_eq!(first.status, expected, "{cold:?}");
        if first.status == StatusCode::TEMPORARY_REDIRECT {
            assert!(first.header("location").starts_with("http"), "absolute");
            assert_eq!(first.header("cache-control"), "no-store");
        }
        assert_eq!(world.pull(&blob(&image, 1)).await.bytes(), LAYER, "{cold:?}");
        world.settled().await;
        assert_eq!(world.stored_blobs().await.len(), 2, "{cold:?}");
    }
}

async fn a_blob_is_read_only_through_a_repository_it_belongs_to(column: Column) {
    let world = World::on(column).await;
    let image = world.upstream.image("private", "1", &[LAYER]);
    world.get(&manifest(&image)).await;
    world.settled().await;
    for method in [Method::GET, Method::HEAD] {
        let path = format!("/v2/test.local/other/blobs/{}", image.blobs[1].0);
        let answer = world.send(method, &path, &[]).await;
        assert_eq!(answer.status, StatusCode::NOT_FOUND);
    }
    let path = format!("/v2/test.local/other/manifests/{}", image.digest);
    assert_eq!(world.get(&path).await.status, StatusCode::NOT_FOUND);
}

async fn a_blob_stored_for_one_repository_is_not_fetched_again_for_another(column: Column) {
    let world = World::on(column).await;
    let first = world.upstream.image("first", "1", &[LAYER]);
    let second = world.upstream.image("second", "1", &[LAYER]);
    for image in [&first, &second] {
        world.get(&manifest(image)).await;
        world.settled().await;
    }
    assert_eq!(world.pull(&blob(&second, 1)).await.bytes(), LAYER);
    assert_eq!(world.upstream.count(first.blobs[1].0.as_str()), 1);
    assert_eq!(world.stored_blobs().await.len(), 3, "two configurations and one layer");
}

async fn a_blob_nobody_has_asked_for_by_manifest_is_found_at_upstream(column: Column) {
    let world = World::on(column).await;
    let image = world.upstream.image("a", "1", &[LAYER]);
    let head = world.head(&blob(&image, 1)).await;
    assert_eq!((head.status, head.header("content-length")), (StatusCode::OK, LAYER.len().to_string().as_str()));
    assert_eq!(world.pull(&blob(&image, 1)).await.bytes(), LAYER);
    assert_eq!(world.upstream.count("HEAD"), 0, "some registries refuse HEAD of a blob");
}

async fn an_unknown_blob_and_an_unknown_manifest_are_told_apart(column: Column) {
    let world = World::on(column).await;
    let digest = format!("sha256:{}", "0".repeat(64));
    let answer = world.get(&format!("/v2/test.local/a/blobs/{digest}")).await;
    assert_eq!((answer.status, answer.error().0.as_str()), (StatusCode::NOT_FOUND, "BLOB_UNKNOWN"));
    for reference in [&digest, "latest"] {
        let answer = world.get(&format!("/v2/test.local/a/manifests/{reference}")).await;
        assert_eq!((answer.status, answer.error().0.as_str()), (StatusCode::NOT_FOUND, "MANIFEST_UNKNOWN"));
    }
    assert!(world.stored_blobs().await.is_empty());
}

async fn ollama_is_told_where_the_parts_of_a_blob_are(column: Column) {
    let world = World::on(column).await;
    let image = world.upstream.image("a", "1", &[LAYER]);
    world.get(&manifest(&image)).await;
    world.settled().await;
    let path = blob(&image, 1);
    let ollama = ("user-agent", "ollama/0.34.2 (amd64 linux) Go/go1.26");
    let plain = world.get(&path).await;
    let told = world.send(Method::GET, &path, &[ollama]).await;
    assert_eq!(told.status, plain.status);
    if plain.status == StatusCode::TEMPORARY_REDIRECT {
        assert_ne!(told.header("location"), "");
    } else {
        assert_eq!((plain.header("location"), told.header("location")), ("", &*path));
        let part = world.send(Method::GET, told.header("location"), &[ollama, ("range", "bytes=3-9")]).await;
        assert_eq!((part.status, part.header("location")), (StatusCode::PARTIAL_CONTENT, ""));
        assert_eq!(part.bytes(), &LAYER[3..10]);
    }
    assert_eq!(world.send(Method::HEAD, &path, &[ollama]).await.header("location"), "");
}

async fn a_stored_blob_is_read_in_ranges(column: Column) {
    let world = World::on(column).await;
    let image = world.upstream.image("a", "1", &[LAYER]);
    world.get(&manifest(&image)).await;
    world.settled().await;
    let location = world.get(&blob(&image, 1)).await.header("location").to_owned();
    let size = LAYER.len();
    for (range, expected) in [
        ("bytes=0-", 0..size),
        ("bytes=7-", 7..size),
        ("bytes=3-9", 3..10),
        ("bytes=-5", size - 5..size),
        ("bytes=50-9999", 50..size),
    ] {
        let (status, content_range, body) = if location.is_empty() {
            let answer = world.send(Method::GET, &blob(&image, 1), &[("range", range)]).await;
            (answer.status, answer.header("content-range").to_owned(), answer.bytes().clone())
        } else {
            let response = support::http().get(&location).header("range", range).send().await.unwrap();
            let content_range = response.headers()["content-range"].to_str().unwrap().to_owned();
            (response.status(), content_range, response.bytes().await.unwrap())
        };
        assert_eq!(status, StatusCode::PARTIAL_CONTENT, "{range}");
        assert_eq!(content_range, format!("bytes {}-{}/{size}", expected.start, expected.end - 1));
        assert_eq!(body.as_ref(), &LAYER[expected]);
    }
    if location.is_empty() {
        for range in ["bytes=55-", "bytes=-0", "bytes=99999999999999999999-"] {
            let answer = world.send(Method::GET, &blob(&image, 1), &[("range", range)]).await;
            assert_eq!(answer.status, StatusCode::RANGE_NOT_SATISFIABLE, "{range}");
            assert_eq!(answer.header("content-range"), format!("bytes */{size}"));
        }
        for range in [
            "lines=0-1",
            "bytes",
            "",
            "bytes=0-1,3-4",
            "\u{e9}=0-1",
            "bytes=9-3",
            "bytes=nonsense",
            "bytes=",
            "bytes=-",
            "bytes=--1",
            "bytes=1-2-3",
            "bytes=+1-2",
            "bytes=0x1-",
        ] {
            let answer = world.send(Method::GET, &blob(&image, 1), &[("range", range)]).await;
            assert_eq!((answer.status, answer.bytes().as_ref()), (StatusCode::OK, LAYER), "{range}");
        }
        let tag = format!("\"{}\"", image.blobs[1].0);
        for (condition, expected) in [
            (tag.as_str(), StatusCode::PARTIAL_CONTENT),
            (&format!("W/{tag}"), StatusCode::OK),
            ("\"another\"", StatusCode::OK),
            ("Sun, 06 Nov 1994 08:49:37 GMT", StatusCode::OK),
        ] {
            let headers = [("range", "bytes=3-9"), ("if-range", condition)];
            assert_eq!(world.send(Method::GET, &blob(&image, 1), &headers).await.status, expected, "{condition}");
        }
    }
}

async fn a_sha512_blob_is_verified_with_its_own_algorithm(column: Column) {
    use stopover::oci::{Algorithm, Digest};
    let world = World::plan(column).cold(Cold::Wait).start().await;
    let digest = Digest::of(Algorithm::Sha512, LAYER);
    world.upstream.blob("a", &digest, &bytes::Bytes::from_static(LAYER));
    assert_eq!(world.pull(&format!("/v2/test.local/a/blobs/{digest}")).await.bytes(), LAYER);
    world.settled().await;
    assert_eq!(world.stored_blobs().await, [digest.to_string()]);
}

async fn an_empty_blob_is_pulled(column: Column) {
    let world = World::plan(column).cold(Cold::Wait).start().await;
    let image = world.upstream.image("a", "1", &[b""]);
    for _ in 0..2 {
        assert!(world.pull(&blob(&image, 1)).await.bytes().is_empty());
        world.settled().await;
    }
}
