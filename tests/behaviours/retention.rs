//! What is kept, what goes, and that no pull is broken by it.

use std::time::Duration;

use aws_sdk_dynamodb::types::AttributeValue;
use futures_util::{FutureExt as _, TryStreamExt as _};
use http::{Method, StatusCode};
use serde_json::json;
use stopover::config::Cold;
use stopover::fill::Filled;
use stopover::oci::{Digest, MediaType, Repository};
use stopover::operate::report::SweepReport;
use stopover::ports::Progress;
use stopover::records::{BlobRecord, BlobState, Entry, Versioned};
use stopover::values::time::Timestamp;
use support::aws::Service;
use support::on_both_columns;
use support::scripted::{Fault, ScriptedImage};
use support::vast::{Manner, Vast};
use support::world::{Column, World, until};
use tokio::sync::watch;

on_both_columns!(
    what_was_not_used_within_keep_is_freed_in_one_sweep,
    an_image_pulled_by_digest_only_is_kept_as_long_as_it_is_used,
    an_image_whose_tag_is_only_looked_at_is_kept,
    a_shared_layer_lives_as_long_as_any_image_that_has_it,
    an_index_lives_with_its_used_children,
    pinned_images_never_expire,
    an_image_stays_pinned_when_upstream_deletes_its_tag,
    what_an_earlier_version_stored_counts_as_used_from_now_on,
    what_is_left_of_fills_that_nobody_goes_on_with_goes,
    access_times_are_written_once_a_day,
    a_blob_that_is_pulled_while_it_is_swept_is_refilled,
    an_image_that_is_pulled_while_it_is_swept_pulls_whole,
    a_dry_run_changes_nothing_and_says_what_a_run_frees,
    purging_an_image_leaves_what_others_need,
    bytes_that_no_record_knows_and_records_of_bytes_that_are_gone_are_repaired,
    only_operators_may_remove_anything,
    an_absence_that_is_over_is_swept,
    a_sweep_in_parts_goes_on_with_the_next_and_keeps_what_other_parts_name,
    parts_keep_no_more_than_max_size,
);

const HOUR: Duration = Duration::from_hours(1);
const DAY: Duration = Duration::from_hours(24);

async fn world(column: Column, settings: &str) -> World {
    World::plan(column).cold(Cold::Wait).settings(settings).start().await
}

fn repository(name: &str) -> Repository {
    Repository { upstream: "test.local".parse().unwrap(), name: name.parse().unwrap() }
}

/// Pulls a manifest and waits until its blobs are stored.
async fn pull(world: &World, name: &str, reference: &str) {
    let answer = world.get(&format!("/v2/test.local/{name}/manifests/{reference}")).await;
    assert_eq!(answer.status, StatusCode::OK, "{answer:?}");
    world.settled().await;
}

async fn pull_blob(world: &World, name: &str, digest: &Digest, bytes: &[u8]) {
    let answer = world.pull(&format!("/v2/test.local/{name}/blobs/{digest}")).await;
    assert_eq!(answer.body.as_deref(), Ok(bytes), "{:?}", answer.headers);
}

async fn sweep(world: &World) -> SweepReport {
    world.cache.operate.sweep(false).await.unwrap()
}

async fn entries(world: &World) -> Vec<Entry> {
    let mut entries: Vec<Entry> = world.cache.core.storage.ledger.entries().try_collect().await.unwrap();
    entries.sort_by_key(|entry| format!("{entry:?}"));
    entries
}

/// The digests of the blobs of images, each once.
fn blobs<'a>(images: impl IntoIterator<Item = &'a ScriptedImage>) -> Vec<String> {
    let blobs = images.into_iter().flat_map(|image| &image.blobs);
    let mut digests: Vec<String> = blobs.map(|(digest, _)| digest.to_string()).collect();
    digests.sort();
    digests.dedup();
    digests
}

async fn assert_stored<'a>(world: &World, images: impl IntoIterator<Item = &'a ScriptedImage>) {
    let mut stored = world.stored_blobs().await;
    stored.sort();
    assert_eq!(stored, blobs(images));
}

/// Puts an index of images of one repository under a tag.
fn index(world: &World, name: &str, tag: &str, images: &[&ScriptedImage]) -> Digest {
    let listed: Vec<_> =
        images.iter().map(|image| json!({ "digest": image.digest, "size": image.manifest.len() })).collect();
    let body = json!({ "schemaVersion": 2, "manifests": listed }).to_string();
    world.upstream.manifest(name, tag, MediaType::OciIndex.as_str(), body.as_bytes())
}

async fn what_was_not_used_within_keep_is_freed_in_one_sweep(column: Column) {
    let world = world(column, "keep = \"30d\"").await;
    let (old, used) = (world.upstream.image("a", "1", &[b"old"]), world.upstream.image("b", "1", &[b"used"]));
    // Larger than what DynamoDB takes: an object of its own.
    let large = format!("{{\"manifests\":[]}}{}", " ".repeat(400_000));
    world.upstream.manifest("a", "large", MediaType::OciIndex.as_str(), large.as_bytes());
    for (name, tag) in [("a", "1"), ("a", "large"), ("b", "1")] {
        pull(&world, name, tag).await;
    }
    world.clock.advance(29 * DAY);
    pull(&world, "b", "1").await;
    assert_eq!(sweep(&world).await.manifests, [""; 0]);
    // Used within keep, or not longer than the day ago to which uses are known.
    world.clock.advance(2 * DAY);
    let report = sweep(&world).await;
    assert_eq!((report.tags, report.manifests.len(), report.memberships, report.blobs >= 2), (2, 2, 2, true));
    assert_stored(&world, [&used]).await;
    assert!(entries(&world).await.iter().all(|entry| !matches!(entry,
        Entry::Reference { repository: whose, .. } | Entry::Membership { repository: whose, .. } if *whose == repository("a"))));
    let bytes: usize = old.blobs.iter().map(|(_, bytes)| bytes.len()).sum();
    let objects = if column == Column::Aws { large.len() } else { 0 };
    // The ledger of a machine has large manifests, too.
    let manifests = old.manifest.len() + if column == Column::Aws { 0 } else { large.len() };
    assert_eq!(report.freed_bytes, (bytes + objects + manifests) as u64);
    assert_eq!(sweep(&world).await, SweepReport { kept_bytes: report.kept_bytes, ..SweepReport::default() });
    // What has gone is pulled as if it had never been there.
    pull(&world, "a", "1").await;
    assert_stored(&world, [&old, &used]).await;
}

/// Nothing but the part is carried from one invocation to the next; a part that is done twice does no harm.
async fn a_sweep_in_parts_goes_on_with_the_next_and_keeps_what_other_parts_name(column: Column) {
    let world = world(column, "keep = \"30d\"").await;
    let old: Vec<_> = (0..8)
        .map(|number| {
            world.upstream.image(&format!("old{number}"), "1", &[b"shared", format!("old{number}").as_bytes()])
        })
        .collect();
    let used = world.upstream.image("used", "1", &[b"shared", b"used"]);
    for number in 0..old.len() {
        pull(&world, &format!("old{number}"), "1").await;
    }
    world.clock.advance(29 * DAY);
    pull(&world, "used", "1").await;
    world.clock.advance(3 * DAY);
    let operate = &world.cache.operate;
    assert_eq!(operate.sweep_in_parts(1_000_000).await.unwrap(), None, "few items are swept at once");
    let reports = sweep_in_parts(&world).await;
    assert_eq!(reports.iter().map(|report| report.manifests.len()).sum::<usize>(), old.len());
    assert!(reports.iter().filter(|report| !report.manifests.is_empty()).count() > 1, "{reports:?}");
    assert_stored(&world, [&used]).await;
    let report = sweep(&world).await;
    assert_eq!(
        report,
        SweepReport { kept_bytes: report.kept_bytes, ..SweepReport::default() },
        "nothing is left to do"
    );
}

/// Each part is done twice, and hands on no more than its message.
async fn sweep_in_parts(world: &World) -> Vec<SweepReport> {
    let operate = &world.cache.operate;
    let (mut next, mut reports) = (operate.sweep_in_parts(10).await.unwrap(), Vec::new());
    assert!(next.is_some());
    while let Some(course) = next {
        let message = serde_json::to_string(&course).unwrap();
        let (report, _) = operate.sweep_part(course).await.unwrap();
        let (again, then) = operate.sweep_part(serde_json::from_str(&message).unwrap()).await.unwrap();
        assert_eq!((again.manifests.len(), again.blobs), (0, 0), "{message}");
        reports.push(report);
        next = then;
    }
    reports
}

/// As a whole sweep does: the least recently used go, pinned ones stay.
async fn parts_keep_no_more_than_max_size(column: Column) {
    let world = world(column, "keep = \"90d\"\nmax_size = \"70kB\"\npin = [\"test.local/pinned:*\"]").await;
    let content = |name: &str| name.repeat(20_000 / name.len()).into_bytes();
    let names = ["pinned", "oldest", "older", "old", "new"];
    let images = names.map(|name| world.upstream.image(name, "1", &[&content(name)]));
    for name in names {
        pull(&world, name, "1").await;
        world.clock.advance(5 * DAY);
    }
    let reports = sweep_in_parts(&world).await;
    assert_eq!(reports.iter().map(|report| report.manifests.len()).sum::<usize>(), 2, "{reports:?}");
    let [pinned, _, _, old, new] = &images;
    assert_stored(&world, [pinned, old, new]).await;
    assert_eq!(sweep_in_parts(&world).await.iter().map(|report| report.manifests.len()).sum::<usize>(), 0);
}

async fn an_image_pulled_by_digest_only_is_kept_as_long_as_it_is_used(column: Column) {
    let world = world(column, "keep = \"2d\"").await;
    let image = world.upstream.image("a", "1", &[b"layer"]);
    for _ in 0..10 {
        // As a node does that has the layers: only the manifest is pulled, from this process's memory.
        pull(&world, "a", image.digest.as_str()).await;
        world.clock.advance(47 * HOUR);
        assert_eq!(sweep(&world).await.blobs, 0);
    }
    assert_stored(&world, [&image]).await;
    assert_eq!(world.upstream.count("/"), 1 + image.blobs.len(), "upstream was asked for everything once");
    world.clock.advance(2 * DAY);
    sweep(&world).await;
    assert_eq!((world.stored_blobs().await, entries(&world).await), (vec![], vec![]));
}

async fn an_image_whose_tag_is_only_looked_at_is_kept(column: Column) {
    let world = world(column, "keep = \"2d\"").await;
    let image = world.upstream.image("a", "1", &[b"layer"]);
    pull(&world, "a", "1").await;
    for _ in 0..5 {
        world.clock.advance(40 * HOUR);
        assert_eq!(world.head("/v2/test.local/a/manifests/1").await.status, StatusCode::OK);
        sweep(&world).await;
    }
    assert_stored(&world, [&image]).await;
}

async fn a_shared_layer_lives_as_long_as_any_image_that_has_it(column: Column) {
    let world = world(column, "keep = \"2d\"").await;
    let one = world.upstream.image("a", "1", &[b"shared", b"of one"]);
    let two = world.upstream.image("b", "1", &[b"shared", b"of two"]);
    pull(&world, "a", "1").await;
    pull(&world, "b", "1").await;
    assert_stored(&world, [&one, &two]).await;
    world.clock.advance(2 * DAY);
    pull(&world, "b", "1").await;
    world.clock.advance(DAY);
    sweep(&world).await;
    assert_stored(&world, [&two]).await;
    world.upstream.kill();
    pull_blob(&world, "b", &two.blobs[1].0, b"shared").await;
    world.clock.advance(4 * DAY);
    sweep(&world).await;
    assert_stored(&world, []).await;
}

async fn an_index_lives_with_its_used_children(column: Column) {
    let world = world(column, "keep = \"2d\"").await;
    let [amd64, arm64, unused] =
        ["amd64", "arm64", "unused"].map(|tag| world.upstream.image("a", tag, &[tag.as_bytes()]));
    let digest = index(&world, "a", "1", &[&amd64, &arm64, &unused]);
    for reference in ["1", amd64.digest.as_str(), arm64.digest.as_str()] {
        pull(&world, "a", reference).await;
    }
    // The index is used, and with it the children that were ever used.
    world.clock.advance(2 * DAY);
    pull(&world, "a", "1").await;
    world.clock.advance(2 * DAY);
    sweep(&world).await;
    assert_stored(&world, [&amd64, &arm64]).await;
    // One child is used, and with it its index, but not the other child.
    for _ in 0..2 {
        pull(&world, "a", amd64.digest.as_str()).await;
        world.clock.advance(2 * DAY);
    }
    sweep(&world).await;
    assert_stored(&world, [&amd64]).await;
    let stored = world.cache.core.storage.ledger.manifest(&repository("a"), &digest).await.unwrap();
    assert!(stored.is_some(), "the index lives with its child");
}

async fn pinned_images_never_expire(column: Column) {
    let settings = "keep = \"2d\"\npin = [\"test.local/a:16*\", \"test.local/b/*\"]";
    let world = world(column, settings).await;
    let child = world.upstream.image("a", "child", &[b"layer of the child"]);
    index(&world, "a", "16.1", &[&child]);
    let other = world.upstream.image("b/c", "latest", &[b"other"]);
    world.upstream.image("a", "15.1", &[b"not pinned"]);
    for (name, reference) in [("a", "16.1"), ("a", child.digest.as_str()), ("a", "15.1"), ("b/c", "latest")] {
        pull(&world, name, reference).await;
    }
    world.clock.advance(1000 * DAY);
    assert_eq!(sweep(&world).await.manifests.len(), 1);
    assert_stored(&world, [&child, &other]).await;
    world.upstream.kill();
    pull(&world, "a", child.digest.as_str()).await;
    pull_blob(&world, "a", &child.blobs[1].0, b"layer of the child").await;
}

async fn an_image_stays_pinned_when_upstream_deletes_its_tag(column: Column) {
    let world = world(column, "keep = \"2d\"\npin = [\"test.local/a:16*\"]").await;
    let image = world.upstream.image("a", "16.1", &[b"layer"]);
    pull(&world, "a", "16.1").await;
    world.upstream.delete_tag("a", "16.1");
    for _ in 0..3 {
        world.clock.advance(10 * DAY);
        assert_eq!(world.get("/v2/test.local/a/manifests/16.1").await.status, StatusCode::NOT_FOUND);
        sweep(&world).await;
    }
    assert_stored(&world, [&image]).await;
    world.upstream.fault("/v2/", Fault::Status(503, vec![], String::new()));
    world.clock.advance(DAY);
    let answer = world.get("/v2/test.local/a/manifests/16.1").await;
    assert_eq!(answer.status, StatusCode::SERVICE_UNAVAILABLE, "what it was is not what it is");
    pull(&world, "a", image.digest.as_str()).await;
}

async fn what_an_earlier_version_stored_counts_as_used_from_now_on(column: Column) {
    let world = world(column, "keep = \"30d\"").await;
    let image = world.upstream.image("a", "1", &[b"layer"]);
    pull(&world, "a", "1").await;
    // As it was written before uses were noted.
    for (digest, _) in &image.blobs {
        let Versioned { value, version } =
            world.cache.core.storage.ledger.blob(&repository("a"), digest).await.unwrap().record.unwrap();
        let unnoted = BlobRecord { used_at: None, ..value };
        world.cache.core.storage.ledger.swap(digest, Some(version), &unnoted).await.unwrap().unwrap();
    }
    let (manifest, _) =
        world.cache.core.storage.ledger.manifest(&repository("a"), &image.digest).await.unwrap().unwrap();
    let blobs = manifest.blobs().unwrap();
    world
        .cache
        .core
        .storage
        .ledger
        .put_manifest(&repository("a"), &manifest, &blobs, true, Timestamp(0))
        .await
        .unwrap();
    sweep(&world).await;
    assert_stored(&world, [&image]).await;
    world.clock.advance(29 * DAY);
    sweep(&world).await;
    assert_stored(&world, [&image]).await;
    world.clock.advance(3 * DAY);
    sweep(&world).await;
    assert_stored(&world, []).await;
}

async fn what_is_left_of_fills_that_nobody_goes_on_with_goes(column: Column) {
    let manner = Manner { stalls_at: Some(20 << 20), ..Manner::default() };
    let vast = Vast::start(32 << 20, manner).unwrap();
    let world = World::plan(column).upstream(&vast.table()).start().await;
    let stop = until(|| vast.sent() >= 20 << 20).map(|()| Duration::from_secs(3));
    let parked = world.cache.fill.run(&vast.job(), &watch::channel(Progress::Waiting).0, stop).await.unwrap();
    assert_eq!(parked, Filled::Parked { progress: true });
    let kept = async || {
        let record = world.cache.core.storage.ledger.blob(&vast.job().repository, vast.digest()).await.unwrap().record;
        record.is_some_and(|record| record.value.checkpoint.is_some())
    };
    sweep(&world).await;
    assert!(kept().await, "somebody may go on with it");
    world.clock.advance(2 * DAY);
    sweep(&world).await;
    assert!(!kept().await);
}

/// When things were last used, as the ledger says.
async fn uses(world: &World) -> Vec<Timestamp> {
    let uses = entries(world).await.into_iter().filter_map(|entry| match entry {
        Entry::Manifest(manifest) => Some(manifest.used_at),
        Entry::Membership { used_at, .. } => Some(used_at),
        Entry::Blob { record, .. } => record.value.used_at,
        Entry::Reference { .. } | Entry::Holding { .. } | Entry::Listing { .. } | Entry::Standing { .. } => None,
    });
    let mut uses: Vec<_> = uses.collect();
    uses.sort();
    uses
}

async fn access_times_are_written_once_a_day(column: Column) {
    let world = world(column, "fresh = \"30d\"").await;
    let image = world.upstream.image("a", "1", &[b"layer"]);
    let layer = &image.blobs[1].0;
    let all = async || {
        for _ in 0..10 {
            pull(&world, "a", "1").await;
            pull(&world, "a", image.digest.as_str()).await;
            world.head("/v2/test.local/a/manifests/1").await;
            pull_blob(&world, "a", layer, b"layer").await;
        }
    };
    let writes = || {
        let operations = ["PutItem", "UpdateItem", "BatchWriteItem"];
        world.endpoints().map(|endpoints| operations.map(|operation| endpoints.calls(Service::DynamoDb, operation)))
    };
    all().await;
    let first = uses(&world).await;
    let written = writes();
    world.clock.advance(23 * HOUR);
    all().await;
    assert_eq!((uses(&world).await, writes()), (first.clone(), written));
    world.clock.advance(2 * HOUR);
    all().await;
    // The manifest, the layer, and its membership; the configuration was not pulled.
    let now = world.clock.now();
    assert_eq!(uses(&world).await.iter().filter(|&&used| used == now).count(), 3);
    // The first time, the use of the manifest is an item that is not there yet: that is read, and costs no write.
    let more = written.map(|[put, update, batch]| [put + 2, update + 1, batch]);
    assert_eq!(writes(), more);
    world.clock.advance(25 * HOUR);
    all().await;
    assert_eq!(writes(), more.map(|[put, update, batch]| [put + 2, update + 1, batch]));
}

async fn a_blob_that_is_pulled_while_it_is_swept_is_refilled(column: Column) {
    let world = world(column, "").await;
    let image = world.upstream.image("a", "1", &[b"layer"]);
    let layer = &image.blobs[1].0;
    pull(&world, "a", "1").await;
    // A sweep has got as far as this.
    let stored = world.cache.core.storage.ledger.blob(&repository("a"), layer).await.unwrap().record.unwrap();
    let state = BlobState::Removing { until: world.clock.now().plus(Duration::from_mins(1)) };
    let value = BlobRecord { state, ..stored.value };
    let version = world.cache.core.storage.ledger.swap(layer, Some(stored.version), &value).await.unwrap().unwrap();
    world.delete_stored_blobs().await;
    let path = format!("/v2/test.local/a/blobs/{layer}");
    let pull = world.pull(&path);
    let end = async {
        // Long enough that the pull finds the removal under way, whichever is first: both end well.
        tokio::time::sleep(Duration::from_millis(300)).await;
        let record = Versioned { value, version };
        assert!(world.cache.core.storage.ledger.remove(&Entry::Blob { digest: layer.clone(), record }).await.unwrap());
    };
    let (answer, ()) = tokio::join!(pull, end);
    assert_eq!(answer.body.as_deref(), Ok(b"layer".as_slice()), "{:?}", answer.status);
    world.settled().await;
    assert!(world.stored_blobs().await.contains(&layer.to_string()));
}

async fn an_image_that_is_pulled_while_it_is_swept_pulls_whole(column: Column) {
    let world = world(column, "keep = \"1d\"").await;
    let image = world.upstream.image("a", "1", &[b"one", b"two", b"three"]);
    for _ in 0..8 {
        pull(&world, "a", "1").await;
        world.clock.advance(3 * DAY);
        let pull = async {
            pull(&world, "a", image.digest.as_str()).await;
            for (digest, bytes) in &image.blobs {
                pull_blob(&world, "a", digest, bytes).await;
            }
        };
        tokio::join!(pull, sweep(&world));
    }
    world.settled().await;
    sweep(&world).await;
    assert_stored(&world, [&image]).await;
    let stored = world.cache.core.storage.ledger.manifest(&repository("a"), &image.digest).await.unwrap();
    assert!(stored.is_some(), "served from memory, it is stored again");
}

async fn a_dry_run_changes_nothing_and_says_what_a_run_frees(column: Column) {
    let world = world(column, "keep = \"2d\"").await;
    let image = world.upstream.image("a", "1", &[b"layer"]);
    pull(&world, "a", "1").await;
    world.clock.advance(3 * DAY);
    let (before, gc) = (entries(&world).await, "/_stopover/gc");
    let dry = world.operate(Method::POST, gc, r#"{"dry_run": true}"#).await;
    assert_eq!(dry.status, StatusCode::OK, "{dry:?}");
    assert_eq!(entries(&world).await, before);
    assert_stored(&world, [&image]).await;
    let run = world.operate(Method::POST, gc, r#"{"dry_run": false}"#).await;
    assert_eq!(run.bytes(), dry.bytes());
    let report: SweepReport = serde_json::from_slice(run.bytes()).unwrap();
    assert_eq!(report.manifests, [format!("test.local/a@{}", image.digest)]);
    assert!(report.freed_bytes > 0 && report.kept_bytes == 0);
    assert_eq!((world.stored_blobs().await, entries(&world).await), (vec![], vec![]));
}

async fn purging_an_image_leaves_what_others_need(column: Column) {
    let world = world(column, "pin = [\"*\"]").await;
    let [amd64, arm64] = ["amd64", "arm64"].map(|tag| world.upstream.image("a", tag, &[b"shared", tag.as_bytes()]));
    index(&world, "a", "1", &[&amd64, &arm64]);
    let other = world.upstream.image("b", "1", &[b"shared", b"other"]);
    for (name, reference) in
        [("a", "1"), ("a", amd64.digest.as_str()), ("a", arm64.digest.as_str()), ("a", "arm64"), ("b", "1")]
    {
        pull(&world, name, reference).await;
    }
    let purge = async |image: &str| {
        world.operate(Method::POST, "/_stopover/purge", json!({ "image": image }).to_string()).await
    };
    assert_eq!(purge("test.local/a:1").await.status, StatusCode::OK);
    assert_stored(&world, [&arm64, &other]).await;
    world.upstream.kill();
    // Pinned or in memory, it is gone; what has another tag or another repository is not.
    assert_ne!(world.get("/v2/test.local/a/manifests/1").await.status, StatusCode::OK);
    assert_ne!(world.get(&format!("/v2/test.local/a/manifests/{}", amd64.digest)).await.status, StatusCode::OK);
    pull(&world, "a", "arm64").await;
    for (digest, bytes) in &arm64.blobs {
        pull_blob(&world, "a", digest, bytes).await;
    }
    assert_eq!(purge(&format!("test.local/a@{}", arm64.digest)).await.status, StatusCode::OK);
    assert_stored(&world, [&other]).await;
    for (digest, bytes) in &other.blobs {
        pull_blob(&world, "b", digest, bytes).await;
    }
    assert_eq!(purge("test.local/A").await.status, StatusCode::BAD_REQUEST);
    assert_eq!(purge("unknown.test/a").await.status, StatusCode::NOT_FOUND);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_item_that_cannot_be_read_stays_and_keeps_no_other_from_being_swept() {
    let world = world(Column::Aws, "").await;
    let image = world.upstream.image("a", "1", &[b"layer"]);
    pull(&world, "a", "1").await;
    let endpoints = world.endpoints().expect("the AWS column has endpoints");
    let text = |text: &str| AttributeValue::S(text.to_owned());
    let put = endpoints.dynamodb().put_item().table_name(endpoints.table());
    let put = put.item("pk", text("repo#test.local/a")).item("sk", text("tag#2")).item("version", text("?"));
    put.send().await.unwrap();
    world.clock.advance(60 * 24 * HOUR);
    let report = sweep(&world).await;
    assert_eq!((report.unreadable, report.manifests.len(), report.blobs), (1, 1, image.blobs.len()));
    assert_eq!(sweep(&world).await.unreadable, 1, "it stays");
}

async fn bytes_that_no_record_knows_and_records_of_bytes_that_are_gone_are_repaired(column: Column) {
    let world = world(column, "").await;
    let image = world.upstream.image("a", "1", &[b"layer"]);
    pull(&world, "a", "1").await;
    let layer = &image.blobs[1].0;
    // The bytes of one blob are gone, the fill of another died.
    world.delete_stored_blobs().await;
    let config = &image.blobs[0].0;
    let record = world.cache.core.storage.ledger.blob(&repository("a"), config).await.unwrap().record.unwrap();
    let claimed = BlobRecord::new(BlobState::Claimed { owner: "the dead".into(), until: world.clock.now() });
    world.cache.core.storage.ledger.swap(config, Some(record.version), &claimed).await.unwrap().unwrap();
    assert_eq!(sweep(&world).await.repaired, 2);
    for digest in [layer, config] {
        let record = world.cache.core.storage.ledger.blob(&repository("a"), digest).await.unwrap().record.unwrap();
        assert_eq!(record.value.state, BlobState::Absent);
    }
    pull_blob(&world, "a", layer, b"layer").await;
    // A record is lost: what nothing names goes with its bytes.
    for entry in entries(&world).await {
        assert!(world.cache.core.storage.ledger.remove(&entry).await.unwrap());
    }
    world.clock.advance(2 * DAY);
    assert_eq!(sweep(&world).await.blobs, 1);
    assert_stored(&world, []).await;
}

async fn only_operators_may_remove_anything(column: Column) {
    let world = world(column, "").await;
    let image = world.upstream.image("a", "1", &[b"layer"]);
    pull(&world, "a", "1").await;
    world.clock.advance(60 * 24 * HOUR);
    for (path, body) in [("gc", r#"{"dry_run":false}"#), ("purge", r#"{"image":"test.local/a:1"}"#)] {
        let path = format!("/_stopover/{path}");
        // Wherever they are: a proxy, and the page in a browser, are on the machine itself, too.
        for caller in ["192.0.2.1", "127.0.0.1", "::1"] {
            assert_eq!(world.post_from(caller, &path, body).await.status, StatusCode::FORBIDDEN);
        }
        assert_stored(&world, [&image]).await;
        assert_eq!(world.operate(Method::POST, &path, "{}").await.status, StatusCode::BAD_REQUEST);
    }
    assert_eq!(world.operate(Method::POST, "/_stopover/gc", r#"{"dry_run":false}"#).await.status, StatusCode::OK);
    assert_stored(&world, []).await;
}

/// Where writes can be made to fail and reads not.
mod aws_only {
    use super::*;

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn a_use_that_cannot_be_noted_fails_no_pull() {
        let world = world(Column::Aws, "fresh = \"30d\"").await;
        let image = world.upstream.image("a", "1", &[b"layer"]);
        pull(&world, "a", "1").await;
        world.clock.advance(2 * DAY);
        let endpoints = world.endpoints().unwrap();
        for operation in ["PutItem", "UpdateItem"] {
            endpoints.fail_next(Service::DynamoDb, operation, 1000);
        }
        pull(&world, "a", "1").await;
        pull_blob(&world, "a", &image.blobs[1].0, b"layer").await;
        endpoints.heal();
        // A little later it is noted all the same.
        world.clock.advance(HOUR);
        pull(&world, "a", "1").await;
        pull_blob(&world, "a", &image.blobs[1].0, b"layer").await;
        let now = world.clock.now();
        assert_eq!(uses(&world).await.iter().filter(|&&used| used == now).count(), 3);
    }
}

/// A limit is for the machine that has a disk.
mod embedded_only {
    use super::*;

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn the_store_is_kept_below_its_size_by_dropping_what_was_used_longest_ago() {
        let world = world(Column::Embedded, "max_size = \"250kB\"\npin = [\"test.local/a:0\"]").await;
        let layers: Vec<Vec<u8>> = (0..4_u8).map(|number| vec![number; 100_000]).collect();
        let images: Vec<_> =
            (0..4).map(|number| world.upstream.image("a", &number.to_string(), &[&layers[number]])).collect();
        for number in 0..4 {
            pull(&world, "a", &number.to_string()).await;
            world.clock.advance(25 * HOUR);
        }
        pull(&world, "a", "1").await;
        let report = sweep(&world).await;
        assert!(report.kept_bytes <= 250_000 && report.kept_bytes > 200_000, "{report:?}");
        let stored = world.stored_blobs().await;
        let kept = |number: usize| stored.contains(&images[number].blobs[1].0.to_string());
        // One is pinned, one was pulled again; the others were used before that.
        assert_eq!([kept(0), kept(1), kept(2), kept(3)], [true, true, false, false]);
        pull_blob(&world, "a", &images[2].blobs[1].0, &layers[2]).await;
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn manifests_count_towards_the_size_of_the_store_and_go_when_it_is_exceeded() {
        let world = world(Column::Embedded, "max_size = \"1MB\"\npin = [\"test.local/a:0\"]").await;
        let mut paths = Vec::new();
        for number in 0..6 {
            let index =
                json!({ "manifests": [], "annotations": { "padding": format!("{number}{}", " ".repeat(300_000)) } })
                    .to_string();
            let tag = number.to_string();
            let digest = world.upstream.manifest("a", &tag, MediaType::OciIndex.as_str(), index.as_bytes());
            pull(&world, "a", &tag).await;
            paths.push(format!("/v2/test.local/a/manifests/{digest}"));
            world.clock.advance(25 * HOUR);
        }
        let report = sweep(&world).await;
        assert!(report.kept_bytes <= 1_000_000 && report.kept_bytes > 700_000, "{report:?}");
        assert_eq!(report.manifests.len(), 3, "{report:?}");
        assert_eq!(sweep(&world).await, SweepReport { kept_bytes: report.kept_bytes, ..SweepReport::default() });
        world.upstream.kill();
        // Three have gone, from memory too; one is pinned, and the others were used last.
        let mut left = Vec::new();
        for path in &paths {
            left.push(world.get(path).await.status == StatusCode::OK);
        }
        assert_eq!(left, [true, false, false, false, true, true]);
    }
}

async fn an_absence_that_is_over_is_swept(column: Column) {
    let world = world(column, "").await;
    let unknown = "{\"errors\":[{\"code\":\"NAME_UNKNOWN\"}]}".to_owned();
    world.upstream.fault("/v2/a/", Fault::Status(404, vec![], unknown));
    world.get("/v2/test.local/a/manifests/1").await;
    let absences = async || {
        sweep(&world).await;
        entries(&world).await.iter().filter(|entry| matches!(entry, Entry::Standing { .. })).count()
    };
    world.clock.advance(Duration::from_mins(4));
    assert_eq!(absences().await, 1, "it is still believed");
    world.clock.advance(Duration::from_mins(1));
    assert_eq!(absences().await, 0);
}
