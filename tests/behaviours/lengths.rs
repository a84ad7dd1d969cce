//! The length of a blob: what manifests claim, what is stored, and what clients are told.

use std::fs::File;
use std::time::Duration;

use bytes::Bytes;
use http::{Method, StatusCode};
use serde_json::{Value, json};
use stopover::config::Cold;
use stopover::oci::Digest;
use support::on_both_columns;
use support::scripted::{Fault, ScriptedImage};
use support::world::{Column, World, until};

on_both_columns!(
    a_stored_blob_has_its_own_length_whatever_a_manifest_claims,
    a_stored_blob_larger_than_max_blob_is_refused_whatever_a_manifest_claims,
);

const LAYER: &[u8] = b"the bytes of a layer";
const IMAGE: &str = "application/vnd.oci.image.manifest.v1+json";

fn blob(name: &str, digest: &Digest) -> String {
    format!("/v2/test.local/{name}/blobs/{digest}")
}

async fn pull_manifest(world: &World, name: &str, tag: &str) {
    let answer = world.get(&format!("/v2/test.local/{name}/manifests/{tag}")).await;
    assert_eq!(answer.status, StatusCode::OK, "{answer:?}");
}

/// Puts the blobs of an image into a repository, below a manifest that claims `size` bytes of its layer.
fn claim(world: &World, name: &str, tag: &str, image: &ScriptedImage, size: usize) {
    let describe = |(digest, _): &(Digest, Bytes), size: usize| json!({ "mediaType": "application/octet-stream", "digest": digest, "size": size });
    let [config, layer] = &image.blobs[..] else { panic!("an image of one layer") };
    let manifest = json!({
        "schemaVersion": 2, "mediaType": IMAGE,
        "config": describe(config, config.1.len()), "layers": [describe(layer, size)],
    });
    for (digest, bytes) in &image.blobs {
        world.upstream.blob(name, digest, bytes);
    }
    world.upstream.manifest(name, tag, IMAGE, manifest.to_string().as_bytes());
}

async fn a_stored_blob_has_its_own_length_whatever_a_manifest_claims(column: Column) {
    let world = World::on(column).await;
    let image = world.upstream.image("true", "1", &[LAYER]);
    pull_manifest(&world, "true", "1").await;
    world.settled().await;
    let length = LAYER.len().to_string();
    for (name, size) in [("smaller", 3), ("larger", 1000), ("empty", 0)] {
        claim(&world, name, "1", &image, size);
        pull_manifest(&world, name, "1").await;
        world.settled().await;
        let path = blob(name, &image.blobs[1].0);
        for answer in [world.head(&path).await, world.pull(&path).await] {
            assert_eq!((answer.status, answer.header("content-length")), (StatusCode::OK, &*length), "{name}");
        }
        assert_eq!(world.pull(&path).await.bytes(), LAYER, "{name}");
    }
    // Bytes that a redirect leads to are counted by the same length.
    let status = world.operate(Method::GET, "/_stopover/status", "").await;
    let status: Value = serde_json::from_slice(status.bytes()).unwrap();
    assert_eq!(status["day"]["counts"]["saved_bytes"], json!(6 * LAYER.len()));
}

async fn a_stored_blob_larger_than_max_blob_is_refused_whatever_a_manifest_claims(column: Column) {
    let rule = "[rules.\"test.local/small\"]\nmax_blob = \"1kB\"";
    let world = World::plan(column).settings(rule).start().await;
    let image = world.upstream.image("true", "1", &[&[7; 2000]]);
    pull_manifest(&world, "true", "1").await;
    world.settled().await;
    claim(&world, "small/app", "1", &image, 3);
    pull_manifest(&world, "small/app", "1").await;
    let path = blob("small/app", &image.blobs[1].0);
    assert_eq!(world.head(&path).await.status, StatusCode::FORBIDDEN);
    let refused = world.get(&path).await;
    assert_eq!(refused.status, StatusCode::FORBIDDEN);
    let (_, message) = refused.error();
    assert!(message.contains("2000 bytes") && message.contains("max_blob"), "{message}");
}

/// Where clients follow fills, and blobs are files.
mod alone {
    use super::*;

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn a_client_that_joins_a_fill_gets_the_length_of_the_blob_whatever_its_manifest_claims() {
        let world = World::on(Column::Embedded).await;
        let layer: Vec<u8> = (0..2_000_000_u32).map(|number| number.to_le_bytes()[1]).collect();
        let image = world.upstream.image("true", "1", &[&layer]);
        let digest = &image.blobs[1].0;
        let filled = format!("/v2/true/blobs/{digest}");
        world.upstream.fault(&filled, Fault::Stalled);
        pull_manifest(&world, "true", "1").await;
        until(|| world.upstream.count(&filled) == 1).await;
        let claims = [("true", "2", 1000), ("smaller", "1", 1000), ("larger", "1", 3_000_000), ("empty", "1", 0)];
        for (name, tag, size) in claims {
            claim(&world, name, tag, &image, size);
            pull_manifest(&world, name, tag).await;
        }
        let paths = claims.map(|(name, ..)| blob(name, digest));
        let answers = futures_util::future::join_all(paths.iter().map(|path| world.get(path)));
        let heal = async {
            // The reason for this pause: that a client waits shows nowhere.
            tokio::time::sleep(Duration::from_millis(300)).await;
            world.upstream.heal();
        };
        let (answers, ()) = futures_util::join!(answers, heal);
        for (answer, (name, tag, _)) in answers.iter().zip(claims) {
            let told = (answer.status, answer.header("content-length"));
            assert_eq!(told, (StatusCode::OK, "2000000"), "{name}:{tag}");
            assert!(answer.bytes().as_ref() == layer, "{name}:{tag}");
        }
        world.settled().await;
        assert_eq!(world.upstream.count(&format!("blobs/{digest}")), 1);
    }

    /// Gives the file of a stored blob another length.
    fn damage(world: &World, digest: &Digest, length: usize) {
        let path = world.data().unwrap().join("blobs/sha256").join(&digest.hex()[..2]).join(digest.hex());
        File::options().write(true).open(path).unwrap().set_len(length as u64).unwrap();
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn a_stored_blob_whose_file_has_another_length_is_filled_again() {
        let lengths: [fn(usize) -> usize; 3] = [|_| 0, |length| length / 2, |length| length + 1];
        for (cold, changed) in
            [Cold::Follow, Cold::Wait].into_iter().flat_map(|cold| lengths.map(|length| (cold, length)))
        {
            let world = World::plan(Column::Embedded).cold(cold).start().await;
            // One that is kept in memory once it is sent, and one that is not.
            let image = world.upstream.image("a", "1", &[LAYER, &vec![7; 200_000]]);
            pull_manifest(&world, "a", "1").await;
            world.settled().await;
            for (digest, bytes) in &image.blobs[1..] {
                damage(&world, digest, changed(bytes.len()));
                for served in ["miss", "hit"] {
                    let answer = world.get(&blob("a", digest)).await;
                    assert_eq!((answer.status, answer.header("x-stopover")), (StatusCode::OK, served), "{cold:?}");
                    assert!(answer.bytes() == bytes, "{cold:?}");
                    world.settled().await;
                }
            }
            assert_eq!(world.stored_blobs().await.len(), 3, "each with the bytes of its digest");
        }
    }

    async fn prefetch(world: &World) -> Value {
        let answer = world.post("/_stopover/prefetch", json!({ "images": ["test.local/a:1"] }).to_string()).await;
        let answer: Value = serde_json::from_slice(answer.bytes()).unwrap();
        let blobs = answer["images"][0]["blobs"].as_array().unwrap().iter();
        blobs.map(|blob| blob["stored"].clone()).collect()
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn a_prefetch_and_a_sweep_find_a_file_of_another_length() {
        let world = World::on(Column::Embedded).await;
        let image = world.upstream.image("a", "1", &[LAYER]);
        let digest = &image.blobs[1].0;
        prefetch(&world).await;
        world.settled().await;
        damage(&world, digest, 3);
        assert_eq!(prefetch(&world).await, json!([true, false]));
        world.settled().await;
        assert_eq!(prefetch(&world).await, json!([true, true]));
        damage(&world, digest, 3);
        assert_eq!(world.cache.operate.sweep(false).await.unwrap().repaired, 1);
        assert_eq!(world.get(&blob("a", digest)).await.bytes(), LAYER);
        world.settled().await;
        assert_eq!(world.cache.operate.sweep(false).await.unwrap().repaired, 0);
        assert_eq!(world.stored_blobs().await.len(), 2, "each with the bytes of its digest");
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn a_damaged_file_is_not_whole_because_a_manifest_claims_its_length() {
        let world = World::on(Column::Embedded).await;
        let image = world.upstream.image("a", "1", &[LAYER]);
        let large = world.upstream.image("b", "1", &[&vec![7; 200_000]]);
        for (name, image, left) in [("a", &image, 3), ("b", &large, 100_000)] {
            pull_manifest(&world, name, "1").await;
            world.settled().await;
            let (digest, bytes) = &image.blobs[1];
            damage(&world, digest, left);
            let liar = format!("liar-{name}");
            claim(&world, &liar, "1", image, left);
            pull_manifest(&world, &liar, "1").await;
            // Its fill does not end, as long as the manifest claims what upstream does not send.
            until(|| world.upstream.count(&format!("/v2/{liar}/blobs/{digest}")) > 0).await;
            let answer = world.get(&blob(name, digest)).await;
            assert!(answer.status == StatusCode::OK && answer.bytes() == bytes, "{name}: {:?}", answer.status);
        }
    }

    /// How many files of stored blobs this process has open.
    fn open_files(world: &World) -> usize {
        let blobs = world.data().unwrap().join("blobs").canonicalize().unwrap();
        let open = std::fs::read_dir("/proc/self/fd").unwrap().filter_map(|file| file.ok()?.path().read_link().ok());
        open.filter(|path| path.starts_with(&blobs)).count()
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn a_prefetch_opens_nothing_that_is_stored() {
        let world = World::on(Column::Embedded).await;
        let image = world.upstream.image("a", "1", &[LAYER]);
        prefetch(&world).await;
        world.settled().await;
        assert_eq!(prefetch(&world).await, json!([true, true]));
        assert_eq!(open_files(&world), 0, "what is kept in memory is what clients pull");
        world.get(&blob("a", &image.blobs[1].0)).await;
        assert_eq!(open_files(&world), 1);
    }
}
