//! The page where there is much to show: what is shown is bounded, and small.

use std::io::Write as _;
use std::process::{Command, Stdio};
use std::time::Duration;

use bytes::Bytes;
use http::StatusCode;
use serde_json::json;
use stopover::oci::{Algorithm, Digest, Manifest, MediaType, Observed, Reference, Repository};
use stopover::operate::fills::{FillState, FillStatus};
use stopover::records::{Holding, HoldingKey, ReferenceKey, TagRecord};
use support::aws::{EVERY_OPERATION, Service};
use support::on_both_columns;
use support::scripted::{Fault, ScriptedImage};
use support::world::{Column, DEADLINE, World};

on_both_columns!(however_much_there_is_a_view_is_small);

/// What a view may have, compressed as browsers ask for it.
const MOST_BYTES: usize = 60_000;
/// The most fills that are shown.
const MOST_FILLS: usize = 200;

fn digest(text: &str) -> Digest {
    Digest::of(Algorithm::Sha256, text.as_bytes())
}

/// Letters and digits that cannot be told from chance, and are not compressed like words.
fn letters(of: &str, many: usize) -> String {
    digest(of).hex().chars().take(many).collect()
}

fn repository(name: &str) -> Repository {
    Repository { upstream: "test.local".parse().expect("an id"), name: name.parse().expect("a name") }
}

/// How many bytes a text has, compressed with gzip as servers do.
fn compressed(text: &[u8]) -> usize {
    let program = "import gzip, sys; print(len(gzip.compress(sys.stdin.buffer.read(), 6)))";
    let mut python = Command::new(support::PYTHON);
    let python = python.args(["-c", program]).stdin(Stdio::piped()).stdout(Stdio::piped());
    let mut child = python.spawn().expect("`make setup` installs it");
    child.stdin.take().expect("an input").write_all(text).expect("it reads");
    let output = child.wait_with_output().expect("it ends");
    String::from_utf8_lossy(&output.stdout).trim().parse().expect("a number")
}

/// What an operator sees.
async fn shown(world: &World, path: &str) -> String {
    let answer = world.operate_with(path, &[("accept", "text/html"), ("host", "127.0.0.1:5000")]).await;
    assert_eq!(answer.status, StatusCode::OK, "{path}");
    String::from_utf8(answer.bytes().to_vec()).expect("UTF-8")
}

/// Repositories with as many tags as a list names, all of them used last at the same time.
async fn put_repositories(world: &World, many: usize) {
    for number in 0..many {
        let name =
            format!("team-{}/service-{}", letters(&format!("team {number}"), 12), letters(&number.to_string(), 24));
        let names =
            (0..8).map(|tag| format!("1.{tag}.0-{}", letters(&format!("{number} {tag}"), 12)).parse().expect("a tag"));
        let holding = Holding {
            tags: 40,
            names: names.collect(),
            bytes: 1_234_567_890 + number as u64,
            shared_bytes: Some(number as u64 * 7_654_321),
            used_at: world.clock.now(),
            counted: true,
        };
        let written = world.cache.core.storage.ledger.swap(&HoldingKey(&repository(&name)), None, &holding).await;
        written.expect("a ledger").expect("it is new");
    }
}

async fn put_manifest(world: &World, of: &Repository, media_type: MediaType, body: serde_json::Value) -> Manifest {
    let bytes = Bytes::from(body.to_string());
    let manifest = Manifest { digest: Digest::of(Algorithm::Sha256, &bytes), media_type, bytes };
    let now = world.clock.now();
    world.cache.core.storage.ledger.put_manifest(of, &manifest, &[], true, now).await.expect("a ledger");
    manifest
}

/// Tags of indexes, each of so many platforms and layers.
async fn put_images(world: &World, tags: usize, platforms: usize, layers: usize) {
    let of = repository("much");
    for tag in 0..tags {
        let mut manifests = Vec::new();
        for platform in 0..platforms {
            let layer = |number| {
                let digest = digest(&format!("{tag} {platform} {number}"));
                json!({ "mediaType": "application/vnd.oci.image.layer.v1.tar+gzip", "digest": digest, "size": 1000 + number })
            };
            let layers: Vec<_> = (0..layers).map(layer).collect();
            let body = json!({ "schemaVersion": 2, "config": layer(layers.len()), "layers": layers });
            let manifest = put_manifest(world, &of, MediaType::OciManifest, body).await;
            let platform = json!({ "os": "linux", "architecture": format!("cpu{platform}") });
            let size = manifest.bytes.len();
            manifests.push(json!({ "mediaType": MediaType::OciManifest.as_str(), "digest": manifest.digest, "size": size, "platform": platform }));
        }
        let index = json!({ "schemaVersion": 2, "manifests": manifests });
        let index = put_manifest(world, &of, MediaType::OciIndex, index).await;
        let now = world.clock.now();
        let record = TagRecord {
            observed: Some(Observed::of(&index)),
            previous: None,
            checked_at: now,
            fresh_until: now,
            lease: None,
        };
        let reference = Reference::Tag(format!("v{tag}").parse().expect("a tag"));
        let written = world.cache.core.storage.ledger.swap(&ReferenceKey(&of, &reference), None, &record).await;
        written.expect("a ledger").expect("it is new");
    }
}

/// Has an image pulled whose layers upstream does not have, and waits until all of them were given up.
async fn give_up(world: &World, layers: usize) -> ScriptedImage {
    let layers: Vec<String> = (0..layers).map(|number| format!("a layer that is missing: {number}")).collect();
    let layers: Vec<&[u8]> = layers.iter().map(String::as_bytes).collect();
    let image = world.upstream.image("missing", "v1", &layers);
    world.upstream.fault("/v2/missing/blobs/", Fault::Status(404, vec![], String::new()));
    assert_eq!(world.get("/v2/test.local/missing/manifests/v1").await.status, StatusCode::OK);
    world.settled().await;
    image
}

async fn however_much_there_is_a_view_is_small(column: Column) {
    let world = World::plan(column).settings("keep = \"30d\"\n").start().await;
    put_repositories(&world, 1000).await;
    put_images(&world, 3, 40, 20).await;
    give_up(&world, 3 * MOST_FILLS / 2).await;
    // All that is shown by then is about to expire.
    world.clock.advance(Duration::from_hours(25 * 24));
    for (path, said) in [
        ("/", "from the cache"),
        ("/?view=images&n=1000", ">More</a>"),
        ("/?name=test.local/much", " more platforms are not shown: "),
        ("/?view=fills", ""),
        ("/?view=risks", "a copy failed"),
        ("/?view=setup", "containerd"),
        ("/?view=setup&client=kubernetes", "MutatingAdmissionPolicy"),
    ] {
        let text = if (path, column) == ("/?view=fills", Column::Aws) { continue } else { shown(&world, path).await };
        let bytes = compressed(text.as_bytes());
        eprintln!("{column:?}, {path}: {bytes} bytes of {}", text.len());
        assert!(text.contains(said), "{path}: {text}");
        assert!(bytes <= MOST_BYTES, "{path} has {bytes} bytes");
    }
}

// On AWS they run in another function, whose list is of what was given up.
#[tokio::test(flavor = "multi_thread")]
async fn fills_that_run_are_shown_however_many_were_given_up() {
    let world = World::on(Column::Embedded).await;
    let missing = give_up(&world, MOST_FILLS + 50).await;
    let running = world.upstream.image("running", "v1", &[&vec![7; 100_000]]);
    let layer = running.blobs[1].0.as_str();
    world.upstream.fault(layer, Fault::Stalled);
    assert_eq!(world.get("/v2/test.local/running/manifests/v1").await.status, StatusCode::OK);
    let runs = async {
        loop {
            let fills = world.cache.operate.fill_reports().await.expect("a report").fills;
            let is_running = |fill: &FillStatus| fill.digest == running.blobs[1].0 && fill.state == FillState::Running;
            // That of the configuration ends.
            let has_ended = fills.iter().all(|fill| fill.digest != running.blobs[0].0);
            if has_ended && fills.iter().any(is_running) {
                break fills.len();
            }
            // The reason for this pause: no test is told when a fill begins, so the cache is asked.
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    let all = tokio::time::timeout(DEADLINE, runs).await.expect("it runs");
    assert!(all > MOST_FILLS, "{all}");
    let more = format!("<p>{} more are not shown.</p>", all - MOST_FILLS);
    let text = shown(&world, "/?view=fills").await;
    let body = text.split_once("<tbody").expect("a table").1;
    assert_eq!(body.matches("<tr ").count(), MOST_FILLS);
    assert!(body.contains(&more), "{body}");
    assert!(body.find("running</span>") < body.find("given up</span>") && body.contains(layer), "{body}");
    // What is missing is not hidden either.
    let risks = shown(&world, "/?view=risks").await;
    assert!(missing.blobs.iter().any(|(digest, _)| risks.contains(digest.as_str())), "{risks}");
    assert!(risks.contains(" more are not shown.</p>"), "{risks}");
    world.upstream.heal();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_first_page_takes_few_reads_whatever_is_asked_for() {
    let world = World::on(Column::Aws).await;
    let endpoints = world.endpoints().expect("they are there");
    let cost = async |path: &str| {
        let before = endpoints.calls(Service::DynamoDb, EVERY_OPERATION);
        shown(&world, path).await;
        endpoints.calls(Service::DynamoDb, EVERY_OPERATION) - before
    };
    put_repositories(&world, 1100).await;
    put_images(&world, 12, 2, 2).await;
    for (path, most) in [
        ("/_stopover/images", 1),
        ("/_stopover/images?n=1000", 1),
        ("/_stopover/images?prefix=test.local/team-a", 1),
        ("/?view=images", 1),
        // Tags, indexes, what is below them, and blobs.
        ("/_stopover/image?name=test.local/much", 8),
        ("/?name=test.local/much", 8),
        // The quotas of all upstreams, whether the ledger can be read, and what was counted.
        ("/", 3),
        // The quotas, and the repositories.
        ("/?view=risks", 2),
    ] {
        let asked = cost(path).await;
        eprintln!("{path}: {asked} calls");
        assert!(asked <= most, "{path}: {asked} calls");
    }
}
