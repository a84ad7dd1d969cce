//! Bytes that one repository has stored are shown in another only where upstream shows them. Each test is the attack, or what
//! must not get worse for it.

use std::time::Duration;

use futures_util::future::join_all;
use http::{Method, StatusCode};
use serde_json::Value;
use stopover::config::Cold;
use support::on_both_columns;
use support::scripted::{Fault, ScriptedImage};
use support::world::{Answer, Column, World, until};

use crate::permissions::{HERE, LAYER, PRIVATE, blob, pull_here, shows, world};

on_both_columns!(
    a_manifest_that_names_private_bytes_does_not_show_them,
    a_fill_for_a_private_repository_is_not_followed_from_another,
    bytes_left_by_a_private_fill_are_not_shown_to_whoever_goes_on_with_it,
    what_another_repository_has_stored_is_proven_before_a_client_asks,
    what_everybody_may_have_needs_no_proof,
    many_pulls_of_bytes_that_another_repository_has_stored_cost_one_question,
);

const MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";

fn colds(column: Column) -> [Cold; 2] {
    [if column == Column::Embedded { Cold::Follow } else { Cold::Redirect }, Cold::Wait]
}

/// The stranger's own repository, open to everybody, with a manifest that names what is in another one.
async fn name_in(world: &World, name: &str, image: &ScriptedImage) {
    world.upstream.manifest(name, "1", MANIFEST, &image.manifest);
    let answer = world.get(&format!("/v2/test.local/{name}/manifests/1")).await;
    assert_eq!(answer.status, StatusCode::OK, "{answer:?}");
}

async fn a_manifest_that_names_private_bytes_does_not_show_them(column: Column) {
    for (upstream, cold) in ["", PRIVATE].into_iter().flat_map(|upstream| colds(column).map(|cold| (upstream, cold))) {
        let world = world(column, cold, "wait = \"2s\"", upstream).await;
        let image = world.upstream.image("private/app", "1", &[LAYER]);
        pull_here(&world, "private/app").await;
        world.settled().await;
        name_in(&world, "stranger/app", &image).await;
        for round in 0..2 {
            for method in [Method::GET, Method::HEAD] {
                let answer = world.send(method.clone(), &blob("stranger/app", &image), &[]).await;
                assert_eq!(answer.status, StatusCode::NOT_FOUND, "{round} {method} {upstream:?} {cold:?}: {answer:?}");
            }
            world.settled().await;
        }
        let prefetch = r#"{"images": ["test.local/stranger/app:1"]}"#;
        let body: Value = serde_json::from_slice(world.post("/_stopover/prefetch", prefetch).await.bytes()).unwrap();
        world.settled().await;
        let blobs = body["images"][0]["blobs"].as_array().unwrap_or_else(|| panic!("{body}"));
        assert!(blobs.len() == 2 && blobs.iter().all(|blob| blob["stored"] == false), "{body}");
        // What cannot be asked is not answered.
        world.upstream.fault("/v2/stranger/app/blobs/", Fault::Status(503, vec![], String::new()));
        for method in [Method::GET, Method::HEAD] {
            let answer = world.send(method, &blob("stranger/app", &image), &[]).await;
            assert_eq!(answer.status, StatusCode::SERVICE_UNAVAILABLE, "{upstream:?} {cold:?}: {answer:?}");
        }
        let owner = world.get_from(HERE, &blob("private/app", &image)).await;
        assert!(shows(&owner) && owner.header("x-stopover") == "hit", "{owner:?}");
    }
}

async fn a_fill_for_a_private_repository_is_not_followed_from_another(column: Column) {
    for cold in colds(column) {
        let world = world(column, cold, "wait = \"2s\"", PRIVATE).await;
        let image = world.upstream.image("private/app", "1", &[LAYER]);
        world.upstream.fault(&format!("/v2/private/app/blobs/{}", image.blobs[1].0), Fault::Stalled);
        world.upstream.manifest("stranger/app", "1", MANIFEST, &image.manifest);
        // With `wait` the manifest comes once its blobs are stored.
        world.get_from(HERE, "/v2/test.local/private/app/manifests/1").await;
        until(|| world.upstream.count(&format!("GET /v2/private/app/blobs/{}", image.blobs[1].0)) > 0).await;
        world.get("/v2/test.local/stranger/app/manifests/1").await;
        let while_it_runs = world.get(&blob("stranger/app", &image)).await;
        assert!(!shows(&while_it_runs), "{cold:?}: {while_it_runs:?}");
        world.upstream.heal();
        world.settled().await;
        let afterwards = world.get(&blob("stranger/app", &image)).await;
        assert_eq!(afterwards.status, StatusCode::NOT_FOUND, "{cold:?}: {afterwards:?}");
        assert!(shows(&world.get_from(HERE, &blob("private/app", &image)).await));
    }
}

async fn bytes_left_by_a_private_fill_are_not_shown_to_whoever_goes_on_with_it(column: Column) {
    for cold in colds(column) {
        let world = world(column, cold, "wait = \"2s\"", PRIVATE).await;
        let image = world.upstream.image("private/app", "1", &[LAYER]);
        pull_here(&world, "private/app").await;
        world.settled().await;
        // The bytes are here and their record is not: a fill was killed between the two.
        let digest = &image.blobs[1].0;
        let repository =
            stopover::oci::Repository { upstream: "test.local".parse().unwrap(), name: "private/app".parse().unwrap() };
        let record = world.cache.core.storage.ledger.blob(&repository, digest).await.unwrap().record.unwrap();
        let entry = stopover::records::Entry::Blob { digest: digest.clone(), record };
        assert!(world.cache.core.storage.ledger.remove(&entry).await.unwrap());
        name_in(&world, "stranger/app", &image).await;
        world.settled().await;
        for _ in 0..2 {
            let answer = world.get(&blob("stranger/app", &image)).await;
            assert!(!shows(&answer), "{cold:?}: {answer:?}");
            world.settled().await;
        }
    }
}

async fn what_another_repository_has_stored_is_proven_before_a_client_asks(column: Column) {
    let world = world(column, Cold::Wait, "", PRIVATE).await;
    let one = world.upstream.image("private/one", "1", &[LAYER]);
    let two = world.upstream.image("private/two", "1", &[LAYER]);
    pull_here(&world, "private/one").await;
    world.settled().await;
    pull_here(&world, "private/two").await;
    world.settled().await;
    let layer = one.blobs[1].0.as_str();
    assert_eq!(world.upstream.count(&format!("/v2/private/one/blobs/{layer}")), 1);
    assert_eq!(world.upstream.count(&format!("/v2/private/two/blobs/{layer}")), 1, "it is asked, and not copied again");
    // The manifest once more, which names the blob and proves nothing.
    world.upstream.manifest("private/two", "2", MANIFEST, &[&two.manifest[..], b"\n"].concat());
    assert_eq!(world.get_from(HERE, "/v2/test.local/private/two/manifests/2").await.status, StatusCode::OK);
    world.settled().await;
    world.upstream.kill();
    let answer = world.get_from(HERE, &blob("private/two", &two)).await;
    assert!(shows(&answer) && answer.header("x-stopover") == "hit", "{answer:?}");
}

async fn what_everybody_may_have_needs_no_proof(column: Column) {
    let world = world(column, Cold::Wait, "", PRIVATE).await;
    let image = world.upstream.image("private/app", "1", &[LAYER]);
    pull_here(&world, "private/app").await;
    world.settled().await;
    // That upstream says it has the private bytes elsewhere, too, opens them to nobody else: it may be wrong.
    for name in ["open", "another"] {
        world.upstream.image(name, "1", &[LAYER]);
        world.get(&format!("/v2/test.local/{name}/manifests/1")).await;
        world.settled().await;
        assert_eq!(world.upstream.count(&format!("/v2/{name}/blobs/{}", image.blobs[1].0)), 1, "{name}");
    }
    // What an open repository has stored is nobody's secret.
    let image = world.upstream.image("open", "2", &[EVERYBODYS]);
    world.get("/v2/test.local/open/manifests/2").await;
    world.settled().await;
    world.upstream.image("another", "2", &[EVERYBODYS]);
    world.get("/v2/test.local/another/manifests/2").await;
    world.settled().await;
    assert_eq!(world.pull(&blob("another", &image)).await.bytes(), EVERYBODYS);
    assert_eq!(world.upstream.count(&format!("/v2/another/blobs/{}", image.blobs[1].0)), 0);
}

/// What an open repository has.
const EVERYBODYS: &[u8] = b"everybody may have this";

async fn many_pulls_of_bytes_that_another_repository_has_stored_cost_one_question(column: Column) {
    let world = world(column, Cold::Wait, "", PRIVATE).await;
    let image = world.upstream.image("private/one", "1", &[LAYER]);
    world.upstream.image("private/two", "1", &[LAYER]);
    pull_here(&world, "private/one").await;
    world.settled().await;
    let layer = image.blobs[1].0.as_str();
    world.upstream.fault("/v2/private/two/blobs/", Fault::Late(Duration::from_millis(300)));
    let path = blob("private/two", &image);
    let answers = join_all((0..200).map(|_| world.get_from(HERE, &path))).await;
    // Whoever comes after the answer needs not ask.
    let shown = |answer: &Answer| shows(answer) && ["revalidated", "hit"].contains(&answer.header("x-stopover"));
    assert!(answers.iter().all(shown), "{:?}", answers.iter().find(|answer| !shown(answer)));
    assert!(answers.iter().any(|answer| answer.header("x-stopover") == "revalidated"));
    assert_eq!(world.upstream.count(&format!("/v2/private/two/blobs/{layer}")), 1);
    assert_eq!(world.get_from(HERE, &path).await.header("x-stopover"), "hit");
}
