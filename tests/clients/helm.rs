//! Helm 4, which is a library of Python here: the program itself is in no package registry.

use std::time::{Duration, Instant};

use anyhow::{Context as _, ensure};
use serde_json::{Value, json};
use support::document::{self, Cell, Table};
use support::node::Node;
use support::program::{Installation, Stopover, UPSTREAM};
use support::registry::Registry;

const PASSWORD: &str = "pass word";

/// Robots are let in, and may pull what is private.
pub(super) const ROBOTS: &str =
    "[access]\nrobots = true\n[[policy]]\nwhat = [\"test.local/*\"]\nwho = [\"robot:*\"]\nallow = true\n";

const VERSIONS: [&str; 4] = ["1.2.3", "1.2.4+build", "1.3.0", "2.0.0-rc.1"];

/// What is asked for, how it is written behind the name of the chart, and the version that has to come.
const ASKED: [(&str, Option<&str>, &str); 5] = [
    ("a version", Some("1.2.3"), "1.2.3"),
    ("a version with a plus", Some("1.2.4+build"), "1.2.4+build"),
    ("the newest of a constraint (`~1.2`)", Some("~1.2"), "1.2.4+build"),
    ("a version before a release (`~2.0.0-0`)", Some("~2.0.0-0"), "2.0.0-rc.1"),
    ("the newest", None, "1.3.0"),
];

/// A home with Helm, and charts that were packaged there.
struct Helm {
    node: Node,
}

impl Helm {
    async fn with_charts() -> anyhow::Result<Self> {
        let this = Self { node: Node::new()? };
        this.node.write("app/Chart.yaml", "apiVersion: v2\nname: app\nversion: 0.0.0\n")?;
        this.node.write("app/templates/map.yaml", "apiVersion: v1\nkind: ConfigMap\nmetadata: {name: app}\n")?;
        for version in VERSIONS {
            let with = json!({ "destination": this.path(""), "version": version });
            this.call("package", json!([this.path("app")]), with).await?;
        }
        Ok(this)
    }

    fn path(&self, name: &str) -> String {
        self.node.path(name).display().to_string()
    }

    async fn call(&self, what: &str, of: Value, with: Value) -> anyhow::Result<Value> {
        let asked = json!({ "do": what, "of": of, "with": with, "credentials": self.path("credentials.json") });
        let printed = self.node.run(support::PYTHON, &["-c", include_str!("helm.py"), &asked.to_string()]).await?;
        Ok(serde_json::from_str(&printed)?)
    }

    async fn push(&self, upstream: &Registry) -> anyhow::Result<()> {
        let host = upstream.url().replace("http://", "");
        for version in VERSIONS {
            let of = json!([self.path(&format!("app-{version}.tgz")), format!("oci://{host}/team")]);
            self.call("push", of, json!({ "plain_http": true })).await?;
        }
        Ok(())
    }

    /// Pulls into an empty place, and compares the archive with what was pushed.
    async fn pull(&self, cache: &str, version: Option<&str>, expected: &str) -> anyhow::Result<Cell> {
        let place = self.node.path("pulled");
        _ = std::fs::remove_dir_all(&place);
        std::fs::create_dir(&place)?;
        let with = json!({ "plain_http": true, "destination": place, "version": version });
        self.call("pull", json!([format!("oci://{cache}/{UPSTREAM}/team/app")]), with).await?;
        let name = format!("app-{expected}.tgz");
        let pulled = std::fs::read(place.join(&name)).with_context(|| format!("{version:?} is not {name}"))?;
        ensure!(pulled == std::fs::read(self.node.path(&name))?, "{name} has other bytes than were pushed");
        Ok(Cell::Pass)
    }

    async fn tags(&self, cache: &str) -> anyhow::Result<Cell> {
        let tags = self.call("tags", json!([format!("{cache}/{UPSTREAM}/team/app")]), json!({})).await?;
        ensure!(tags == json!(["2.0.0-rc.1", "1.3.0", "1.2.4+build", "1.2.3"]), "{tags}");
        Ok(Cell::Pass)
    }

    /// Each thing that Helm may ask for, once.
    async fn column(&self, cache: &str) -> anyhow::Result<Vec<Cell>> {
        let mut cells = Vec::new();
        for (name, version, expected) in ASKED {
            cells.push(self.pull(cache, version, expected).await.with_context(|| name.to_owned())?);
        }
        cells.push(self.tags(cache).await?);
        Ok(cells)
    }
}

pub(super) async fn cache_of(upstream: &Registry, more: &str) -> anyhow::Result<(Installation, Stopover)> {
    let text = format!("fresh = \"1h\"\n[upstreams.\"{UPSTREAM}\"]\nurl = \"{}\"\n{more}", upstream.url());
    let installation = Installation::with_configuration(&text)?;
    let stopover = installation.start().await?;
    Ok((installation, stopover))
}

/// Waits until so many blobs are stored: a client has the last byte before.
pub(super) async fn until_stored(stopover: &Stopover, blobs: usize) -> anyhow::Result<()> {
    let deadline = Instant::now() + Duration::from_mins(1);
    while stopover.stored_blobs()?.len() < blobs {
        ensure!(Instant::now() < deadline, "not everything is stored:\n{}", stopover.log());
        // Nothing reports the end of a fill to the outside: the files are looked for.
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn helm_does_what_its_table_says() -> anyhow::Result<()> {
    let helm = Helm::with_charts().await?;
    let mut upstream = Registry::start().await?;
    helm.push(&upstream).await?;
    let (_installation, stopover) = cache_of(&upstream, "").await?;
    let cold = helm.column(stopover.address()).await.with_context(|| stopover.log()).context("cold")?;
    let warm = helm.column(stopover.address()).await.with_context(|| stopover.log()).context("warm")?;
    // Configuration and archive of every chart.
    until_stored(&stopover, 2 * VERSIONS.len()).await?;
    upstream.stop().await?;
    let dead = helm.column(stopover.address()).await.with_context(|| stopover.log()).context("upstream is dead")?;
    let mut table = Table::new(&["what it asks for", "cold", "warm", "upstream is dead"]);
    let names = ASKED.map(|(name, ..)| name).into_iter().chain(["the list of versions"]);
    for (name, ((cold, warm), dead)) in names.zip(cold.into_iter().zip(warm).zip(dead)) {
        table.row(name, &[cold, warm, dead]);
    }
    document::check(document::CLIENTS, "Helm 4", &table.render())
}

#[tokio::test(flavor = "multi_thread")]
async fn helm_pulls_charts_from_an_upstream_with_a_password_after_a_login_at_the_cache() -> anyhow::Result<()> {
    let helm = Helm::with_charts().await?;
    let upstream = Registry::start_with_password("alice", PASSWORD).await?;
    let host = upstream.url().replace("http://", "");
    helm.call("login", json!([host, "alice", PASSWORD]), json!({ "plain_http": true })).await?;
    helm.push(&upstream).await?;
    let file = helm.node.path("password");
    std::fs::write(&file, PASSWORD)?;
    let account = format!("credentials = {{ username = \"alice\", password_file = \"{}\" }}\n", file.display());
    let (_installation, stopover) = cache_of(&upstream, &format!("{account}{ROBOTS}")).await?;
    let refused = helm.pull(stopover.address(), Some("1.2.3"), "1.2.3").await;
    ensure!(refused.is_err(), "a cache that asks for a login lets in what has none");
    let (_, printed) = stopover.run(&["robot", "add", "helm"]).await?;
    let secret = printed.lines().find_map(|line| line.strip_prefix("secret  ")).with_context(|| printed.clone())?;
    helm.call("login", json!([stopover.address(), "helm", secret]), json!({ "plain_http": true })).await?;
    helm.column(stopover.address()).await.with_context(|| stopover.log())?;
    Ok(())
}
