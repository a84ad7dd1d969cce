//! What upstreams write, and what is made of it: nothing that a client would read otherwise, and only short quotes.

use http::{Method, StatusCode};
use serde_json::{Value, json};
use stopover::oci::{Algorithm, Digest};
use support::on_both_columns;
use support::scripted::{Fault, Scripted};
use support::world::{Column, World};

on_both_columns!(
    what_is_null_is_absent,
    an_image_and_an_index_in_one_is_refused,
    a_stored_digest_keeps_its_type,
    errors_only_quote_what_upstream_writes,
    no_client_learns_the_address_of_an_upstream,
);

const IMAGE: &str = "application/vnd.oci.image.manifest.v1+json";
const DOCKER_IMAGE: &str = "application/vnd.docker.distribution.manifest.v2+json";
const INDEX: &str = "application/vnd.oci.image.index.v1+json";

fn described(text: &str) -> Value {
    let digest = Digest::of(Algorithm::Sha256, text.as_bytes());
    json!({ "mediaType": "application/octet-stream", "digest": digest, "size": text.len() })
}

async fn what_is_null_is_absent(column: Column) {
    let world = World::on(column).await;
    let mut layer = described("layer");
    layer["urls"] = Value::Null;
    let child = json!({ "digest": described("child")["digest"], "size": 2, "platform": { "os": null, "architecture": null, "variant": null } });
    for (media_type, body) in [
        (IMAGE, json!({ "config": described("{}"), "layers": null, "annotations": null, "subject": null })),
        (IMAGE, json!({ "mediaType": null, "config": described("{}"), "layers": [layer], "manifests": null })),
        (INDEX, json!({ "mediaType": INDEX, "manifests": null })),
        (INDEX, json!({ "manifests": [child], "config": null, "layers": null })),
        (INDEX, json!({ "manifests": [{ "digest": described("child")["digest"], "platform": null }] })),
    ] {
        let body = body.to_string();
        world.upstream.manifest("a", "1", media_type, body.as_bytes());
        let answer = world.send(Method::GET, "/v2/test.local/a/manifests/1", &[("cache-control", "no-cache")]).await;
        assert_eq!((answer.status, answer.header("content-type")), (StatusCode::OK, media_type), "{body}");
        assert_eq!(answer.bytes().as_ref(), body.as_bytes());
    }
    // What an image cannot be without is not absent.
    world.upstream.manifest("b", "1", IMAGE, json!({ "config": null, "layers": [] }).to_string().as_bytes());
    assert_eq!(world.get("/v2/test.local/b/manifests/1").await.status, StatusCode::BAD_GATEWAY);
}

async fn an_image_and_an_index_in_one_is_refused(column: Column) {
    let world = World::on(column).await;
    let (config, layers, manifests) = (described("{}"), [described("layer")], [described("child")]);
    for body in [
        json!({ "config": config, "layers": layers, "manifests": manifests }),
        json!({ "config": config, "layers": [], "manifests": manifests }),
        json!({ "layers": layers, "manifests": manifests }),
    ] {
        for media_type in [IMAGE, INDEX] {
            world.upstream.manifest("a", "1", media_type, body.to_string().as_bytes());
            let answer = world.get("/v2/test.local/a/manifests/1").await;
            assert_eq!(
                (answer.status, answer.error().0.as_str()),
                (StatusCode::BAD_GATEWAY, "MANIFEST_INVALID"),
                "{body}"
            );
        }
    }
    // No document is an image by one tag and an index by another.
    for body in [
        json!({ "config": config, "layers": [], "manifests": [] }),
        json!({ "config": config, "manifests": null }),
        json!({ "manifests": manifests, "layers": null }),
        json!({ "manifests": [] }),
    ] {
        let mut accepted = 0;
        for (name, media_type) in [("image", IMAGE), ("index", INDEX)] {
            world.upstream.manifest(name, "1", media_type, body.to_string().as_bytes());
            let answer = world
                .send(Method::GET, &format!("/v2/test.local/{name}/manifests/1"), &[("cache-control", "no-cache")])
                .await;
            accepted +=
                usize::from(answer.status == StatusCode::OK && answer.bytes().as_ref() == body.to_string().as_bytes());
        }
        assert_eq!(accepted, 1, "{body}");
    }
}

async fn a_stored_digest_keeps_its_type(column: Column) {
    let world = World::on(column).await;
    let body = json!({ "schemaVersion": 2, "config": described("{}"), "layers": [] }).to_string();
    let digest = world.upstream.manifest("a", "1", IMAGE, body.as_bytes());
    let digest = format!("/v2/test.local/a/manifests/{digest}");
    assert_eq!(world.get("/v2/test.local/a/manifests/1").await.header("content-type"), IMAGE);
    // The same bytes, under another tag and with another type.
    world.upstream.manifest("a", "2", DOCKER_IMAGE, body.as_bytes());
    for path in ["/v2/test.local/a/manifests/2", &digest, "/v2/test.local/a/manifests/1"] {
        for method in [Method::GET, Method::HEAD, Method::GET] {
            let answer = world.send(method, path, &[]).await;
            assert_eq!((answer.status, answer.header("content-type")), (StatusCode::OK, IMAGE), "{path}");
        }
    }
    let another = world.another_instance();
    let repository = stopover::oci::Repository { upstream: "test.local".parse().unwrap(), name: "a".parse().unwrap() };
    let pulled = another.pull.manifest(&repository, &"2".parse().unwrap(), stopover::pull::Want::GET).await.unwrap();
    assert_eq!(pulled.observed.media_type.as_str(), IMAGE);
}

async fn errors_only_quote_what_upstream_writes(column: Column) {
    let world = World::on(column).await;
    let long = "\n\u{1b}[2JA".repeat(200_000);
    let config = json!({ "digest": described("a")["digest"], "size": long });
    for (media_type, body) in [
        (IMAGE, json!({ "config": config }).to_string()),
        (IMAGE, json!({ "config": long }).to_string()),
        (INDEX, json!({ "mediaType": long, "manifests": [] }).to_string()),
        (INDEX, json!({ "manifests": long }).to_string()),
        (INDEX, json!({ "manifests": [{ "platform": long }] }).to_string()),
        (&"t".repeat(10_000), "{}".to_owned()),
    ] {
        world.upstream.manifest("a", "1", media_type, body.as_bytes());
        let answer = world.get("/v2/test.local/a/manifests/1").await;
        assert_eq!(answer.status, StatusCode::BAD_GATEWAY);
        let (_, message) = answer.error();
        assert!(message.len() < 500 && !message.contains(['\n', '\u{1b}']), "{} bytes: {message}", message.len());
    }
    world.upstream.page("/v2/a/tags/list", "application/json", &json!({ "tags": long }).to_string(), None);
    let (_, message) = world.get("/v2/test.local/a/tags/list").await.error();
    assert!(message.len() < 500 && !message.contains(['\n', '\u{1b}']), "{message}");
}

async fn no_client_learns_the_address_of_an_upstream(column: Column) {
    let elsewhere = Scripted::start().unwrap();
    let world = World::on(column).await;
    // The same list goes on at the upstream that was asked, however that calls itself; another list is refused.
    for (list, status) in [("a", StatusCode::BAD_GATEWAY), ("b", StatusCode::OK)] {
        let link = format!("<{}/v2/b/tags/list?last=1>; rel=\"next\"", elsewhere.url());
        world.upstream.page(&format!("/v2/{list}/tags/list"), "application/json", "{\"tags\":[]}", Some(&link));
        let answer = world.get(&format!("/v2/test.local/{list}/tags/list")).await;
        assert_eq!(answer.status, status);
        assert!(!format!("{answer:?}").contains("127.0.0.1"), "{answer:?}");
    }
    assert!(elsewhere.requests().is_empty());
    for (path, fault) in [
        ("manifests/1", Fault::Status(500, vec![], String::new())),
        ("manifests/1", Fault::Status(418, vec![], String::new())),
        ("tags/list", Fault::Status(500, vec![], String::new())),
        ("manifests/1", Fault::Status(307, vec![("location", "ftp://10.1.2.3/".to_owned())], String::new())),
        ("manifests/1", Fault::Status(307, vec![("location", "http://10.1.2.3:5000/".to_owned())], String::new())),
    ] {
        let world = World::on(column).await;
        world.upstream.image("a", "1", &[b"layer"]);
        world.upstream.tags("a", &["1"]);
        world.upstream.fault(path, fault.clone());
        let answer = world.get(&format!("/v2/test.local/a/{path}")).await;
        assert!(answer.status.is_server_error(), "{fault:?}: {answer:?}");
        let (_, message) = answer.error();
        assert!(!message.contains("127.0.0.1") && !message.contains("10.1.2.3"), "{fault:?}: {message}");
    }
}
