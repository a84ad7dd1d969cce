//! Renovate, which looks for versions at the cache while files go on naming the registry. It changes nothing here.

use anyhow::{Context as _, ensure};
use bytes::Bytes;
use serde_json::{Value, json};
use stopover::oci::{Algorithm, Digest, MediaType};
use support::document::{self, Cell, Table};
use support::images::{Blob, Destination as _};
use support::node::Node;
use support::program::UPSTREAM;
use support::registry::Registry;

use super::helm::{ROBOTS, cache_of, until_stored};

const NODE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../.venv/bin/node");
const RENOVATE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../.venv/renovate/node_modules/renovate/dist/renovate.js");

/// The first one is what the file names.
const VERSIONS: [&str; 3] = ["1.0.0", "1.1.0", "2.0.0"];

/// Where the label of the images says that they are made.
const SOURCE: &str = "https://git.example.com/team/app";

/// What is looked at of what Renovate has found.
const FOUND: [&str; 3] = ["the newest versions", "the digest of each tag", "the source that a label names"];

/// Pushes an image for each version: their digests.
async fn push(upstream: &Registry) -> anyhow::Result<Vec<Digest>> {
    let mut digests = Vec::new();
    for version in VERSIONS {
        let labels = json!({ "org.opencontainers.image.source": SOURCE, "version": version });
        let config = json!({ "architecture": "amd64", "os": "linux", "config": { "Labels": labels } }).to_string();
        let (digest, size) = (Digest::of(Algorithm::Sha256, config.as_bytes()), config.len());
        let blob = Blob { digest: digest.to_string(), size: size.try_into()? };
        upstream.put_blob("team/app", &blob, Box::new(std::iter::once(Bytes::from(config)))).await?;
        let part = |kind: &str| json!({ "mediaType": kind, "digest": digest, "size": size });
        let kind = MediaType::OciManifest.as_str();
        let manifest = json!({
            "schemaVersion": 2, "mediaType": kind, "config": part("application/vnd.oci.image.config.v1+json"),
            "layers": [part("application/vnd.oci.image.layer.v1.tar")],
        });
        let manifest = manifest.to_string();
        upstream.put_manifest("team/app", version, kind, manifest.as_bytes()).await?;
        digests.push(Digest::of(Algorithm::Sha256, manifest.as_bytes()));
    }
    Ok(digests)
}

/// What Renovate finds out about the image of a Dockerfile, as it looks nothing up that it knows from before.
async fn look_up(cache: &str, login: Value) -> anyhow::Result<Value> {
    let node = Node::new()?;
    node.write("repository/Dockerfile", &format!("FROM {UPSTREAM}/team/app:{}\n", VERSIONS[0]))?;
    let aliases = json!({ UPSTREAM: format!("{cache}/{UPSTREAM}") });
    let settings = json!({ "registryAliases": aliases, "pinDigests": true });
    node.write("repository/renovate.json", &settings.to_string())?;
    let (host, _) = cache.split_once(':').context("an address without a port")?;
    let mut rule = json!({ "hostType": "docker", "matchHost": host, "insecureRegistry": true });
    rule.as_object_mut().context("a rule")?.extend(login.as_object().cloned().unwrap_or_default());
    let (place, base) = (node.path("repository"), node.path("base"));
    let variables = [
        "LOG_LEVEL=debug".to_owned(),
        "LOG_FORMAT=json".to_owned(),
        format!("RENOVATE_BASE_DIR={}", base.display()),
        format!("RENOVATE_HOST_RULES={}", json!([rule])),
    ];
    let place = place.display().to_string();
    // Within continuous integration it would write for that.
    let words = ["--unset=CI", "--chdir", &place].into_iter().chain(variables.iter().map(String::as_str));
    let words: Vec<&str> = words.chain([NODE, RENOVATE, "--platform=local", "--dry-run=lookup"]).collect();
    let log = node.run("env", &words).await?;
    let lines = log.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok());
    let mut lines = lines.filter(|line| line["msg"] == "packageFiles with updates");
    let found = lines.next().with_context(|| format!("it has found no file:\n{log}"))?;
    Ok(found["config"]["dockerfile"][0]["deps"][0].clone())
}

/// A cell for each of [`FOUND`].
fn cells(found: &Value, digests: &[Digest]) -> anyhow::Result<[Cell; 3]> {
    let updates = found["updates"].as_array().with_context(|| format!("no updates: {found}"))?;
    let of = |key: &str| updates.iter().map(|update| update[key].clone()).collect::<Vec<_>>();
    let (mut versions, mut known) = (of("newValue"), of("newDigest"));
    // The version that the file names comes last: it is to be pinned.
    versions.rotate_right(1);
    known.rotate_right(1);
    ensure!(json!(versions) == json!(VERSIONS), "{found}");
    ensure!(json!(known) == json!(digests), "{found}");
    ensure!(found["sourceUrl"] == SOURCE, "{found}");
    Ok([Cell::Pass; 3])
}

#[tokio::test(flavor = "multi_thread")]
async fn renovate_does_what_its_table_says() -> anyhow::Result<()> {
    let mut upstream = Registry::start().await?;
    let digests = push(&upstream).await?;
    let (_installation, stopover) = cache_of(&upstream, "").await?;
    let look = async |when: &str| {
        let found = look_up(stopover.address(), json!({})).await.and_then(|found| cells(&found, &digests));
        found.with_context(|| stopover.log()).context(when.to_owned())
    };
    let (cold, warm) = (look("cold").await?, look("warm").await?);
    // That of the newest version: the labels are in it.
    until_stored(&stopover, 1).await?;
    upstream.stop().await?;
    let dead = look("upstream is dead").await?;
    let mut table = Table::new(&["what it finds", "cold", "warm", "upstream is dead"]);
    for (name, ((cold, warm), dead)) in FOUND.into_iter().zip(cold.into_iter().zip(warm).zip(dead)) {
        table.row(name, &[cold, warm, dead]);
    }
    document::check(document::CLIENTS, "Renovate 44", &table.render())
}

#[tokio::test(flavor = "multi_thread")]
async fn renovate_logs_in_as_a_robot_with_a_host_rule() -> anyhow::Result<()> {
    let upstream = Registry::start().await?;
    let digests = push(&upstream).await?;
    let (_installation, stopover) = cache_of(&upstream, ROBOTS).await?;
    let refused = look_up(stopover.address(), json!({})).await?;
    ensure!(refused["updates"] == json!([]), "a cache that asks for a login lets in what has none: {refused}");
    let (_, printed) = stopover.run(&["robot", "add", "renovate", "--json"]).await?;
    let added: Value = serde_json::from_str(&printed)?;
    let login = json!({ "username": "renovate", "password": added["secret"]["secret"] });
    cells(&look_up(stopover.address(), login).await?, &digests).with_context(|| stopover.log())?;
    Ok(())
}
