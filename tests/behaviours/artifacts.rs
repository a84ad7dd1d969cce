//! Content of every kind: signatures, artifacts, charts, other digests and compressions, indexes of any depth. Nothing here
//! depends on what layers are, and no byte is written anew.

use bytes::Bytes;
use http::{Method, StatusCode};
use serde_json::{Value, json};
use stopover::config::Cold;
use stopover::oci::{Algorithm, Digest};
use support::on_both_columns;
use support::scripted::Scripted;
use support::world::{Column, World};

on_both_columns!(
    every_kind_of_artifact_is_pulled_byte_for_byte_and_without_upstream_too,
    what_is_addressed_by_sha512_is_pulled_and_verified,
    an_index_of_indexes_is_pulled_level_by_level,
    a_sparse_index_is_pulled_but_for_what_upstream_does_not_have,
    a_foreign_layer_is_never_fetched_from_its_urls,
);

const MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
const INDEX: &str = "application/vnd.oci.image.index.v1+json";

/// A blob with the media type that a manifest gives it.
struct Described(&'static str, Bytes, Digest);

impl Described {
    fn new(media_type: &'static str, content: &str, algorithm: Algorithm) -> Self {
        Self(media_type, content.to_owned().into(), Digest::of(algorithm, content.as_bytes()))
    }

    fn descriptor(&self) -> Value {
        json!({ "mediaType": self.0, "digest": self.2, "size": self.1.len() })
    }
}

/// The bytes of a manifest, written as no serialiser would write them, with these fields besides the usual ones.
fn manifest(media_type: &str, fields: Value, config: &Described, layers: &[Described]) -> Vec<u8> {
    let mut manifest = json!({
        "schemaVersion": 2, "mediaType": media_type, "config": config.descriptor(),
        "layers": layers.iter().map(Described::descriptor).collect::<Vec<_>>(),
    });
    let Value::Object(fields) = fields else { panic!("{fields} is no object") };
    manifest.as_object_mut().expect("it is one").extend(fields);
    format!("\n\t{}  \n", serde_json::to_string_pretty(&manifest).expect("it is JSON")).into_bytes()
}

async fn check(world: &World, path: &str, media_type: &str, digest: &Digest, bytes: &[u8]) {
    for method in [Method::HEAD, Method::GET] {
        let answer = world.send(method.clone(), path, &[]).await;
        assert_eq!(answer.status, StatusCode::OK, "{path} {answer:?}");
        assert_eq!(answer.header("content-type"), media_type);
        assert_eq!(answer.header("docker-content-digest"), digest.as_str());
        assert_eq!(answer.header("content-length"), bytes.len().to_string());
        assert!(method == Method::HEAD || answer.bytes().as_ref() == bytes, "{path}");
    }
}

async fn every_kind_of_artifact_is_pulled_byte_for_byte_and_without_upstream_too(column: Column) {
    let world = World::plan(column).cold(Cold::Wait).start().await;
    let sha256 = |media_type, content| Described::new(media_type, content, Algorithm::Sha256);
    let empty = || sha256("application/vnd.oci.empty.v1+json", "{}");
    let subject = Digest::of(Algorithm::Sha256, b"subject");
    let named = |suffix: &str| format!("sha256-{}.{suffix}", subject.hex());
    let image = || sha256("application/vnd.oci.image.config.v1+json", "{\"os\":\"linux\"}");
    let about = json!({ "mediaType": MANIFEST, "digest": subject, "size": 7 });
    let mut kinds: Vec<(String, &str, Value, Described, Vec<Described>)> = Vec::new();
    for (suffix, layer) in [
        ("sig", "application/vnd.dev.cosign.simplesigning.v1+json"),
        ("att", "application/vnd.dsse.envelope.v1+json"),
        ("sbom", "text/spdx+json"),
    ] {
        kinds.push((named(suffix), MANIFEST, json!({}), image(), vec![sha256(layer, suffix)]));
    }
    let artifact = json!({ "artifactType": "application/x-anything", "subject": about, "annotations": { "a": "é" } });
    kinds.push(("artifact".into(), MANIFEST, artifact, empty(), vec![empty()]));
    let (chart, values) = ("application/vnd.cncf.helm.chart.content.v1.tar+gzip", "name: chart");
    let helm = sha256("application/vnd.cncf.helm.config.v1+json", "{\"name\":\"chart\"}");
    kinds.push(("1.0.0_chart".into(), MANIFEST, json!({}), helm, vec![sha256(chart, values)]));
    let zstd = "application/vnd.oci.image.layer.v1.tar+zstd";
    kinds.push(("zstd".into(), MANIFEST, json!({}), image(), vec![sha256(zstd, "\u{28}µ/ý")]));
    let docker = "application/vnd.docker.distribution.manifest.v2+json";
    let layer = "application/vnd.docker.image.rootfs.diff.tar.gzip";
    kinds.push(("docker".into(), docker, json!({}), image(), vec![sha256(layer, "layer")]));

    let mut pushed = Vec::new();
    for (tag, media_type, fields, config, layers) in kinds {
        let bytes = manifest(media_type, fields, &config, &layers);
        let blobs: Vec<Described> = std::iter::once(config).chain(layers).collect();
        for Described(_, content, digest) in &blobs {
            world.upstream.blob("a", digest, content);
        }
        let digest = world.upstream.manifest("a", &tag, media_type, &bytes);
        pushed.push((tag, media_type, digest, bytes, blobs));
    }
    for upstream in ["there", "gone"] {
        for (tag, media_type, digest, bytes, blobs) in &pushed {
            for reference in [tag.as_str(), digest.as_str()] {
                check(&world, &format!("/v2/test.local/a/manifests/{reference}"), media_type, digest, bytes).await;
            }
            for Described(_, content, digest) in blobs {
                let pulled = world.pull(&format!("/v2/test.local/a/blobs/{digest}")).await;
                assert_eq!(pulled.bytes(), content, "{tag}, upstream {upstream}");
            }
        }
        world.settled().await;
        world.upstream.kill();
    }
}

async fn what_is_addressed_by_sha512_is_pulled_and_verified(column: Column) {
    let world = World::plan(column).cold(Cold::Wait).start().await;
    let config = Described::new("application/vnd.oci.image.config.v1+json", "{}", Algorithm::Sha512);
    let layer = [Described::new("application/vnd.oci.image.layer.v1.tar", "layer", Algorithm::Sha512)];
    for Described(_, content, digest) in layer.iter().chain([&config]) {
        world.upstream.blob("a", digest, content);
    }
    let bytes = manifest(MANIFEST, json!({}), &config, &layer);
    let digest = world.upstream.manifest_by(Algorithm::Sha512, "a", "1", MANIFEST, &bytes);
    assert!(digest.as_str().starts_with("sha512:"));
    for reference in [digest.as_str(), "1"] {
        check(&world, &format!("/v2/test.local/a/manifests/{reference}"), MANIFEST, &digest, &bytes).await;
    }
    let pulled = world.pull(&format!("/v2/test.local/a/blobs/{}", layer[0].2)).await;
    assert_eq!(pulled.bytes(), &layer[0].1);
    // Bytes of another digest under this one.
    let other = Digest::of(Algorithm::Sha512, b"other");
    world.upstream.manifest_by(Algorithm::Sha512, "a", "2", MANIFEST, &bytes);
    let lie = support::scripted::Fault::Body(bytes.clone(), vec![("docker-content-digest", other.to_string())]);
    world.upstream.fault("manifests/2", lie);
    assert_eq!(world.get("/v2/test.local/a/manifests/2").await.status, StatusCode::BAD_GATEWAY);
    world.settled().await;
    let mut expected = vec![config.2.to_string(), layer[0].2.to_string()];
    expected.sort();
    assert_eq!(world.stored_blobs().await, expected);
}

fn index(children: &[(&str, &Digest, usize)]) -> Vec<u8> {
    let children: Vec<Value> = children
        .iter()
        .map(|(media_type, digest, size)| json!({ "mediaType": media_type, "digest": digest, "size": size }))
        .collect();
    json!({ "schemaVersion": 2, "mediaType": INDEX, "manifests": children }).to_string().into_bytes()
}

async fn an_index_of_indexes_is_pulled_level_by_level(column: Column) {
    let world = World::on(column).await;
    let image = world.upstream.image("a", "image", &[b"layer"]);
    let mut levels = vec![(MANIFEST, image.digest.clone(), image.manifest.to_vec())];
    for level in 0..3 {
        let (media_type, digest, bytes) = levels.last().expect("there is one");
        let bytes = index(&[(media_type, digest, bytes.len())]);
        levels.push((INDEX, world.upstream.manifest("a", &format!("level-{level}"), INDEX, &bytes), bytes));
    }
    check(&world, "/v2/test.local/a/manifests/level-2", INDEX, &levels[3].1, &levels[3].2).await;
    for (media_type, digest, bytes) in levels.iter().rev() {
        check(&world, &format!("/v2/test.local/a/manifests/{digest}"), media_type, digest, bytes).await;
    }
    assert_eq!(world.upstream.count("GET /v2/a/manifests/"), 4, "each once");
}

async fn a_sparse_index_is_pulled_but_for_what_upstream_does_not_have(column: Column) {
    let world = World::plan(column).cold(Cold::Wait).start().await;
    let image = world.upstream.image("a", "image", &[b"layer"]);
    let missing = Digest::of(Algorithm::Sha256, b"nobody has pushed it");
    let bytes = index(&[(MANIFEST, &missing, 7), (MANIFEST, &image.digest, image.manifest.len())]);
    let digest = world.upstream.manifest("a", "sparse", INDEX, &bytes);
    check(&world, "/v2/test.local/a/manifests/sparse", INDEX, &digest, &bytes).await;
    for _ in 0..2 {
        let answer = world.get(&format!("/v2/test.local/a/manifests/{missing}")).await;
        assert_eq!((answer.status, answer.error().0.as_str()), (StatusCode::NOT_FOUND, "MANIFEST_UNKNOWN"));
    }
    assert_eq!(world.upstream.count(missing.as_str()), 1, "that it is missing is remembered");
    let path = format!("/v2/test.local/a/manifests/{}", image.digest);
    check(&world, &path, MANIFEST, &image.digest, &image.manifest).await;
    for (digest, content) in &image.blobs {
        assert_eq!(world.pull(&format!("/v2/test.local/a/blobs/{digest}")).await.bytes(), content);
    }
}

async fn a_foreign_layer_is_never_fetched_from_its_urls(column: Column) {
    for cold in [Cold::Redirect, Cold::Wait] {
        let world = World::plan(column).cold(cold).start().await;
        let elsewhere = Scripted::start().unwrap();
        let layer = |content: &str| {
            let layer = Described::new(
                "application/vnd.oci.image.layer.nondistributable.v1.tar+gzip",
                content,
                Algorithm::Sha256,
            );
            elsewhere.blob("layers", &layer.2, &layer.1);
            let mut descriptor = layer.descriptor();
            descriptor["urls"] = json!([format!("{}/v2/layers/blobs/{}", elsewhere.url(), layer.2)]);
            (layer, descriptor)
        };
        let ((there, first), (nowhere, second)) = (layer("there"), layer("nowhere"));
        let config = Described::new("application/vnd.oci.image.config.v1+json", "{}", Algorithm::Sha256);
        let body = json!({ "schemaVersion": 2, "config": config.descriptor(), "layers": [first, second] });
        world.upstream.blob("a", &config.2, &config.1);
        // Some registries have what they need not have.
        world.upstream.blob("a", &there.2, &there.1);
        let body = body.to_string();
        world.upstream.manifest("a", "1", MANIFEST, body.as_bytes());
        assert_eq!(world.get("/v2/test.local/a/manifests/1").await.bytes(), body.as_bytes());
        world.settled().await;
        assert_eq!(world.stored_blobs().await, [config.2.to_string()], "nobody has asked for the layers");
        let path = |layer: &Described| format!("/v2/test.local/a/blobs/{}", layer.2);
        assert_eq!(world.pull(&path(&there)).await.bytes(), &there.1);
        for method in [Method::HEAD, Method::GET, Method::HEAD] {
            let answer = world.send(method.clone(), &path(&nowhere), &[]).await;
            assert_eq!(answer.status, StatusCode::NOT_FOUND, "{cold:?} {method}");
            assert!(method == Method::HEAD || answer.error().0 == "BLOB_UNKNOWN");
        }
        world.settled().await;
        assert!(elsewhere.requests().is_empty(), "{:?}", elsewhere.requests());
    }
}
