//! What is stored has a format. Data of every format is read for ever; data of a newer one is refused with a sentence, and
//! stays as it is.
//!
//! `tests/fixtures/1` is a data directory, and the items of a table, as the first release with formats has stored them.
//! They are read by every later one, and never written again. A new format gets a directory of its own, made with
//! `STOPOVER_WRITE_FIXTURES=1 cargo test -p behaviours --test behaviours what_the_first_format_has_stored`.

mod first;
mod fixture;

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use bytes::Bytes;
use futures_util::{StreamExt as _, TryStreamExt as _};
use http::StatusCode;
use serde_json::{Value, json};
use stopover::config::{Cold, Config};
use stopover::errors::{StoreError, chain};
use stopover::local::{EmbeddedLedger, Local};
use stopover::oci::Descriptor;
use stopover::operate::fills::FillState;
use stopover::ports::{Ledger as _, Records as _};
use stopover::records::{BlobState, Entry, Listing, Member, ReferenceKey, RobotsKey, Standing};
use stopover::values::time::Clock;
use support::aws::Endpoints;
use support::guests::{HERE, basic, get};
use support::on_both_columns;
use support::scripted::Scripted;
use support::world::{Column, World, open_at};

use self::first::{CONFIG, LAYER, NOW, ROBOT_SECRET, digest, image, large, repository};
use self::fixture::{
    GIVEN_UP, INVOCATION, REQUESTED, data, dynamo, gets_place, is_written_now, items, put_items, put_objects, settings,
    stored_items, write_data, write_items,
};

on_both_columns!(
    what_the_first_format_has_stored_is_read_and_served,
    what_the_first_format_has_stored_is_listed_after_a_sweep,
);

const MANIFEST: &str = "/v2/test.local/a/manifests/1";
const DAY: Duration = Duration::from_hours(24);
const MEMBER: Member = Member { size: 1, used_at: NOW, proven: true };

async fn what_the_first_format_has_stored_is_read_and_served(column: Column) {
    let settings = "[access]\nsigning_keys = { env = \"TEST_KEYS\" }\nanonymous = true\nrobots = true";
    let plan = World::plan(column).cold(Cold::Wait).settings(settings);
    let world = match column {
        Column::Embedded => {
            if is_written_now() {
                write_data().await;
            }
            let data = data();
            first::check(&EmbeddedLedger::open(&data.path().join("ledger.redb")).unwrap(), false).await;
            plan.data(data).start().await
        }
        Column::Aws => {
            if is_written_now() {
                write_items().await;
            }
            let world = plan.start().await;
            let endpoints = world.endpoints().unwrap();
            put_items(endpoints, &stored_items()).await;
            put_objects(endpoints).await;
            first::check(&*world.cache.core.storage.ledger, true).await;
            assert!(!gets_place(&dynamo(endpoints), "another").await, "the place is taken");
            world
        }
    };
    let by_digest = format!("/v2/test.local/a/manifests/{}", image().digest);
    let [config, layer] = [CONFIG, LAYER].map(|bytes| format!("/v2/test.local/a/blobs/{}", digest(bytes)));
    let image = image().bytes;
    for (path, expected) in [(MANIFEST, &image[..]), (&by_digest, &image), (&config, CONFIG), (&layer, LAYER)] {
        let pulled = world.pull(path).await;
        assert_eq!((pulled.status, &pulled.bytes()[..]), (StatusCode::OK, expected), "{path}");
    }
    assert_eq!(world.get("/v2/test.local/a/manifests/missing").await.status, StatusCode::NOT_FOUND);
    assert_eq!(
        world.get("/v2/test.local/a/tags/list").await.bytes().as_ref(),
        br#"{"name":"test.local/a","tags":["1","asked"]}"#
    );
    for (secret, status) in [(ROBOT_SECRET, StatusCode::OK), ("wrong", StatusCode::UNAUTHORIZED)] {
        assert_eq!(get(&world, HERE, MANIFEST, &basic("ci", secret)).await.status, status);
    }
    for asked in ["/a/manifests/1", "missing", "tags", digest(LAYER).as_str()] {
        assert_eq!(world.upstream.count(asked), 0, "{asked}: {:?}", world.upstream.requests());
    }
}

/// What was written before there was a list of what is stored.
async fn what_the_first_format_has_stored_is_listed_after_a_sweep(column: Column) {
    let plan = World::plan(column).cold(Cold::Wait);
    let world = match column {
        Column::Embedded => plan.data(data()).start().await,
        Column::Aws => {
            let world = plan.start().await;
            put_items(world.endpoints().unwrap(), &stored_items()).await;
            put_objects(world.endpoints().unwrap()).await;
            world
        }
    };
    world.cache.operate.sweep(false).await.unwrap();
    let listed = world.get("/_stopover/images").await;
    let listed: Value = serde_json::from_slice(listed.bytes()).unwrap();
    let (row, bytes) = (&listed["repositories"][0], CONFIG.len() + LAYER.len());
    assert_eq!(
        (&row["repository"], &row["tags"], &row["bytes"], &row["used_at"]),
        (&json!("test.local/a"), &json!(2), &json!(bytes), &json!(NOW))
    );
    let shown = world.get("/_stopover/image?name=test.local/a:1").await;
    let shown: Value = serde_json::from_slice(shown.bytes()).unwrap();
    assert_eq!((&shown["images"][0]["bytes"], &shown["images"][0]["stored"]), (&json!(bytes), &json!(true)));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_the_first_format_has_requested_is_done_and_what_was_given_up_stays_so() {
    let (upstream, data) = (Scripted::start().unwrap(), data());
    upstream.blob("a", &digest(REQUESTED), &Bytes::from_static(REQUESTED));
    let image = upstream.image("a", "2", &[b"a layer of another image"]);
    let local = open_at(Clock::manual(NOW), data.path(), &settings(&upstream)).await;
    local.settled().await;
    for stored in image.blobs.iter().map(|(digest, _)| digest).chain([&digest(REQUESTED)]) {
        let record = local.cache.core.storage.ledger.blob(&repository("a"), stored).await.unwrap().record.unwrap();
        assert!(matches!(record.value.state, BlobState::Stored { .. }), "{record:?}");
    }
    let fills = local.cache.operate.fill_reports().await.unwrap().fills;
    assert_eq!((fills.len(), fills[0].state), (1, FillState::Failed), "{fills:?}");
    assert_eq!(upstream.count(digest(GIVEN_UP).as_str()), 0);
}

/// The files below a directory.
fn files(root: &Path) -> BTreeMap<PathBuf, Vec<u8>> {
    let (mut files, mut directories) = (BTreeMap::new(), vec![root.to_owned()]);
    while let Some(directory) = directories.pop() {
        for entry in fs::read_dir(directory).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() { directories.push(path) } else { _ = files.insert(path.clone(), fs::read(path).unwrap()) }
        }
    }
    files
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_data_directory_of_a_newer_release_is_refused_unchanged_and_its_own_release_goes_on_with_it() {
    let data = data();
    let (format, file) = (data.path().join("format"), data.path().join("stopover.toml"));
    fs::write(&file, "").unwrap();
    let open = async || {
        let mut config = Config::load(Some(&file), Cold::Follow, |secret| secret.read(|_| None)).unwrap();
        data.path().clone_into(&mut config.data_dir);
        Local::open(config, Clock::manual(NOW)).await
    };
    let known = fs::read(&format).unwrap();
    fs::write(&format, "2 stopover 9.1.0\n").unwrap();
    fs::write(data.path().join("lock"), "").unwrap();
    let before = files(data.path());
    let refused = format!("{:#}", open().await.err().expect("it is refused"));
    for part in [data.path().to_str().unwrap(), "format 2, which stopover 9.1.0 has written", "start that release"] {
        assert!(refused.contains(part), "{refused}");
    }
    assert!(files(data.path()) == before, "nothing in it is changed");
    for known in [Some(known), None] {
        // As the copy from before the upgrade has it, or one of a release without formats.
        known.map_or_else(|| fs::remove_file(&format), |known| fs::write(&format, known)).unwrap();
        let local = open().await.unwrap();
        let manifest = local.cache.core.storage.ledger.manifest(&repository("a"), &image().digest).await.unwrap();
        assert_eq!(manifest, Some((image(), NOW)));
        drop(manifest);
        local.stop(Duration::ZERO).await;
        assert!(fs::read_to_string(&format).unwrap().starts_with("1 stopover "));
    }
}

/// These items, as a release writes them whose format is 2.
fn newer(items: &[Value]) -> Vec<Value> {
    let newer = |item: &Value| {
        let mut item = item.clone();
        item["format"] = json!({ "N": "2" });
        item
    };
    items.iter().map(newer).collect()
}

fn assert_newer<T: std::fmt::Debug>(read: Result<T, StoreError>) {
    let error = read.unwrap_err();
    assert!(matches!(error, StoreError::Corrupt(_)), "{error:?}");
    assert!(
        chain(&error).contains("newer release has written") && chain(&error).contains("deploy that release"),
        "{error}"
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn items_of_a_newer_release_are_refused_and_neither_overwritten_nor_deleted() {
    let endpoints = Endpoints::start().await.unwrap();
    let (ledger, items_of_ours) = (dynamo(&endpoints), stored_items());
    put_items(&endpoints, &items_of_ours).await;
    put_objects(&endpoints).await;
    let entries: Vec<Entry> = ledger.entries().try_collect().await.unwrap();
    put_items(&endpoints, &newer(&items_of_ours)).await;
    let before = items(&endpoints).await;

    assert!(ledger.entries().all(|entry| std::future::ready(entry.is_err())).await);
    for entry in &entries {
        assert!(!ledger.remove(entry).await.unwrap(), "{entry:?}");
        match entry {
            Entry::Reference { repository, reference, record } => {
                assert_newer(ledger.get(&ReferenceKey(repository, reference)).await);
                let key = ReferenceKey(repository, reference);
                let write = |expected| ledger.swap(&key, expected, &record.value);
                assert_eq!([write(None).await.unwrap(), write(Some(record.version)).await.unwrap()], [None, None]);
            }
            Entry::Manifest(stored) => {
                let (repository, digest) = (&stored.repository, &stored.digest);
                assert_newer(ledger.manifest(repository, digest).await);
                assert_newer(ledger.touch_manifest(repository, digest, NOW.plus(DAY), NOW.plus(DAY)).await);
                let manifest = [image(), large()].into_iter().find(|manifest| manifest.digest == *digest).unwrap();
                assert_newer(ledger.put_manifest(repository, &manifest, &[], true, NOW).await);
            }
            Entry::Membership { repository, digest, .. } => {
                assert_newer(ledger.blob(repository, digest).await);
                assert_newer(ledger.put_membership(repository, digest, MEMBER).await);
                // Where a batch would overwrite it.
                let member = Descriptor { digest: digest.clone(), size: 1, foreign: false };
                assert_newer(ledger.put_manifest(repository, &image(), &[member], true, NOW).await);
            }
            Entry::Listing { repository, key, .. } => {
                assert_newer(ledger.listing(repository, key).await);
                let listing = Listing { list: None, fresh_until: NOW, stale_until: NOW };
                assert_newer(ledger.put_listing(repository, key, &listing).await);
            }
            Entry::Holding { .. } => unreachable!("the first format has none"),
            Entry::Standing { repository, .. } => {
                assert_newer(ledger.standing(repository).await);
                assert_newer(ledger.put_standing(repository, Standing::Absent { until: NOW }).await);
            }
            Entry::Blob { digest, record } => {
                assert_newer(ledger.blob(&repository("b"), digest).await);
                let write = |expected| ledger.swap(digest, expected, &record.value);
                assert_eq!([write(None).await.unwrap(), write(Some(record.version)).await.unwrap()], [None, None]);
            }
        }
    }
    assert_newer(ledger.get(&RobotsKey).await);
    assert_newer(ledger.give_place_back(&repository("a").upstream, INVOCATION).await);
    assert_eq!(items(&endpoints).await, before);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_older_release_serves_what_it_reads_sweeps_nothing_of_a_newer_one_and_gives_way_to_it_again() {
    let world = World::plan(Column::Aws).settings("keep = \"30d\"").start().await;
    let endpoints = world.endpoints().unwrap();
    let ours = world.upstream.image("b", "1", &[b"ours"]);
    assert_eq!(world.get("/v2/test.local/b/manifests/1").await.status, StatusCode::OK);
    world.settled().await;
    put_items(endpoints, &newer(&stored_items())).await;
    put_objects(endpoints).await;
    let of_newer =
        async || items(endpoints).await.into_iter().filter(|item| item.get("format").is_some()).collect::<Vec<_>>();
    let before = of_newer().await;

    let refused = world.get(MANIFEST).await;
    assert!(refused.status.is_server_error() && !refused.error().1.contains("format"), "{refused:?}");
    let digest = ours.digest.to_string();
    assert_eq!(world.get(&format!("/v2/test.local/b/manifests/{digest}")).await.bytes(), &ours.manifest);

    world.clock.advance(60 * DAY);
    let swept = world.cache.operate.sweep(false).await.unwrap();
    assert_eq!((swept.unreadable, swept.manifests.len()), (before.len(), 1), "{swept:?}");
    assert_eq!(of_newer().await, before);
    let left = items(endpoints).await.into_iter().filter(|item| item["pk"]["S"] == "repo#test.local/b").count();
    assert_eq!(left, 0, "what the older release has stored is swept");

    // The newer release is there again: here one that reads the format.
    put_items(endpoints, &stored_items()).await;
    let by_digest = format!("/v2/test.local/a/manifests/{}", image().digest);
    assert_eq!(world.get(&by_digest).await.bytes(), &image().bytes);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_manifest_of_a_newer_release_keeps_its_last_use() {
    let world = World::plan(Column::Aws).settings("keep = \"30d\"").start().await;
    let endpoints = world.endpoints().unwrap();
    let is_manifest = |item: &Value| item["sk"]["S"].as_str().unwrap().starts_with("manifest#");
    let is_use = |item: &Value| item["sk"]["S"].as_str().unwrap().ends_with("#used");
    let (manifests, others): (Vec<_>, Vec<_>) =
        stored_items().into_iter().partition(|item| is_manifest(item) && !is_use(item));
    put_items(endpoints, &newer(&manifests)).await;
    put_items(endpoints, &others).await;
    world.clock.advance(60 * DAY);
    assert_eq!(world.cache.operate.sweep(false).await.unwrap().unreadable, manifests.len());
    let left = items(endpoints).await;
    assert_eq!(left.iter().filter(|item| is_manifest(item) && !is_use(item)).count(), manifests.len());
    assert_eq!(left.iter().filter(|item| is_use(item)).count(), 1);
}
