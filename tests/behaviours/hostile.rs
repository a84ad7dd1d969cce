//! Whoever has a repository at an upstream, or an upstream, and means harm to the cache or to what others pull.

use http::StatusCode;
use stopover::oci::{Algorithm, Digest};
use support::on_both_columns;
use support::world::{Column, World};

on_both_columns!(a_manifest_that_names_thousands_of_blobs_costs_one_request,);

const MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
const INDEX: &str = "application/vnd.oci.image.index.v1+json";

fn described(number: usize) -> String {
    let digest = Digest::of(Algorithm::Sha256, &number.to_be_bytes());
    format!(r#"{{"mediaType":"application/octet-stream","digest":"{digest}","size":1}}"#)
}

async fn a_manifest_that_names_thousands_of_blobs_costs_one_request(column: Column) {
    let world = World::on(column).await;
    let named: Vec<String> = (0..25_000).map(described).collect();
    let image = format!(r#"{{"schemaVersion":2,"config":{},"layers":[{}]}}"#, named[0], named[1..].join(","));
    let index = format!(r#"{{"schemaVersion":2,"manifests":[{}]}}"#, named[..1001].join(","));
    for (name, media_type, body) in [("image", MANIFEST, image), ("index", INDEX, index)] {
        world.upstream.manifest(name, "1", media_type, body.as_bytes());
        let answer = world.get(&format!("/v2/test.local/{name}/manifests/1")).await;
        assert_eq!(answer.status, StatusCode::BAD_GATEWAY, "{answer:?}");
        let (code, message) = answer.error();
        assert_eq!(code, "MANIFEST_INVALID");
        assert!(message.contains("more than 1000 are not stored"), "{message}");
        world.settled().await;
        assert_eq!(world.upstream.count(&format!("/v2/{name}/")), 1, "the manifest, and nothing it names");
        assert_eq!(world.cache.fill_reports().await.unwrap(), []);
    }
}
