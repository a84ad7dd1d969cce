//! Each client in each way it can be told of the cache: cold, warm, by digest, over cut connections, without the upstream;
//! and each kind of image.

use anyhow::{Context, ensure};
use support::clients::{Ability, Buildah, By, Client, Containerd, Docker, OciClient, Podman, Shape, Skopeo};
use support::document::{self, Cell, Table};
use support::images::{Companions, Destination, Image, Recipe};
use support::program::{Installation, Stopover, UPSTREAM};
use support::registry::Registry;
use support::scripted::{Login, Scripted};
use support::wire::Wire;
use tempfile::NamedTempFile;

const MIB: u64 = 1024 * 1024;

/// The layer of the image whose connections are cut, and after how many bytes.
const CUT: (u64, u64) = (8 * MIB, 3 * MIB);

const PASSWORD: &str = "pass word";

/// The program between two wires, and a real upstream that has images.
struct Setting {
    upstream: Registry,
    stopover: Stopover,
    /// Between the client and the program.
    outer: Wire,
    /// Between the program and the upstream.
    inner: Wire,
    _installation: Installation,
}

impl Setting {
    async fn start() -> anyhow::Result<Self> {
        let upstream = Registry::start().await?;
        let inner = Wire::to(upstream.url().trim_start_matches("http://"))?;
        let url = format!("url = \"http://{}\"\n", inner.address());
        let installation = Installation::with_configuration(&format!(
            "fresh = \"1h\"\n[upstreams.\"{UPSTREAM}\"]\n{url}[upstreams.\"docker.io\"]\n{url}alternates = []\n"
        ))?;
        let stopover = installation.start().await?;
        let outer = Wire::to(stopover.address())?;
        Ok(Self { upstream, stopover, outer, inner, _installation: installation })
    }
}

/// A pull that has to pass.
async fn pulls(client: &dyn Client, cache: &str, shape: Shape, image: &Image, by: By) -> anyhow::Result<Cell> {
    let pulled = client.pull(cache, shape, image, by).await;
    pulled.with_context(|| format!("{shape:?}, {by:?}, {}", image.reference()))?;
    Ok(Cell::Pass)
}

/// The images that are pulled in one shape; no two have a blob in common.
struct Images {
    tagged: Image,
    by_digest: Image,
    cut: Image,
}

impl Images {
    async fn push(upstream: &Registry, shape: u64) -> anyhow::Result<Self> {
        let name = |what: &str| format!("team/shape-{shape}/{what}");
        Ok(Self {
            tagged: Recipe::index(&name("tagged")).seed(10 + shape).push(upstream).await?,
            by_digest: Recipe::docker(&name("by-digest")).seed(20 + shape).push(upstream).await?,
            cut: Recipe::oci(&name("cut"), vec![CUT.0]).seed(30 + shape).push(upstream).await?,
        })
    }
}

/// The scenarios of one shape while the upstream is there.
async fn shape_cells(
    client: &dyn Client,
    setting: &Setting,
    shape: Shape,
    images: &Images,
) -> anyhow::Result<Vec<Cell>> {
    if let Some(reason) = client.cannot(Ability::Use(shape)) {
        return Ok(vec![Cell::Cannot(reason); 5]);
    }
    let cache = setting.outer.address();
    let mut cells = Vec::new();
    cells.push(pulls(client, &cache, shape, &images.tagged, By::Tag).await.context("cold")?);
    setting.stopover.until_stored(std::slice::from_ref(&images.tagged)).await?;
    cells.push(pulls(client, &cache, shape, &images.tagged, By::Tag).await.context("warm")?);
    cells.push(pulls(client, &cache, shape, &images.by_digest, By::Digest).await.context("cold, by digest")?);
    let cuts = setting.inner.cuts();
    setting.inner.cut_after(CUT.1);
    cells.push(pulls(client, &cache, shape, &images.cut, By::Tag).await.context("upstream's connection is cut")?);
    ensure!(setting.inner.cuts() == cuts + 1, "nothing was cut");
    setting.stopover.until_stored(std::slice::from_ref(&images.cut)).await?;
    let cuts = setting.outer.cuts();
    setting.outer.cut_after(CUT.1);
    let pulled = pulls(client, &cache, shape, &images.cut, By::Tag).await;
    ensure!(setting.outer.cuts() == cuts + 1, "nothing was cut");
    cells.push(expect(pulled, client.cannot(Ability::Resume)).context("its own connection is cut")?);
    Ok(cells)
}

/// What a client cannot do, it does not do: the reason is not out of date.
fn expect(pulled: anyhow::Result<Cell>, cannot: Option<&'static str>) -> anyhow::Result<Cell> {
    match (pulled, cannot) {
        (pulled, None) => pulled,
        (Err(_), Some(reason)) => Ok(Cell::Cannot(reason)),
        (Ok(_), Some(reason)) => anyhow::bail!("it passes, although it is said that {reason}"),
    }
}

/// A kind of image, and what a client has to be able to do for it.
struct Kind {
    name: String,
    image: Image,
    needs: Option<Ability>,
}

async fn push_kinds(upstream: &impl Destination, large: u64) -> anyhow::Result<Vec<Kind>> {
    let docker = Recipe::docker("docker").push(upstream).await?;
    let index = Recipe::index("group/index").seed(2).push(upstream).await?;
    let companions = Companions::push(upstream, &index).await?;
    let sixty = Recipe::oci("a/deeply/nested/name/of/sixty", vec![1024; 60]).seed(3).push(upstream).await?;
    let large_image = Recipe::oci("large", vec![large]).seed(4).push(upstream).await?;
    let kinds = [
        ("Docker image (v2, schema 2)", docker, None),
        ("OCI index of two platforms", index, None),
        ("60 layers", sixty, None),
        (&format!("a layer of {} MiB", large / MIB), large_image, None),
        ("artifact with a subject", companions.artifact, Some(Ability::Artifacts)),
        ("referrers at their fallback tag", companions.referrers, Some(Ability::Referrers)),
        ("signature (`sha256-….sig`)", companions.signature, Some(Ability::Artifacts)),
    ];
    let kinds = kinds.into_iter().map(|(name, image, needs)| Kind { name: name.to_owned(), image, needs });
    Ok(kinds.collect())
}

async fn kind_cell(client: &dyn Client, cache: &str, kind: &Kind) -> anyhow::Result<Cell> {
    let cannot = kind.needs.and_then(|ability| client.cannot(ability));
    let pulled = pulls(client, cache, Shape::Name, &kind.image, By::Tag).await;
    expect(pulled, cannot).with_context(|| kind.name.clone())
}

/// Cold and warm from upstreams that want to know who asks. The upstream's login is the program's business alone.
async fn login_rows(client: &dyn Client, table: &mut Table) -> anyhow::Result<()> {
    let locked = Registry::start_with_password("alice", PASSWORD).await?;
    let file = NamedTempFile::new()?;
    std::fs::write(&file, PASSWORD)?;
    let credentials = format!(
        "public = true\ncredentials = {{ username = \"alice\", password_file = \"{}\" }}\n",
        file.path().display()
    );
    let image = Recipe::docker("private/docker").push(&locked).await?;
    let cells = login_cells(client, &locked.url(), &credentials, &image).await.context("with a password")?;
    table.row("from an upstream with a password", &cells);
    let scripted = Scripted::start()?;
    scripted.require(Login::Bearer);
    let image = Recipe::index("public/index").push(&scripted).await?;
    let cells = login_cells(client, &scripted.url(), "", &image).await.context("with a token")?;
    table.row("from an upstream with a token server", &cells);
    Ok(())
}

async fn login_cells(client: &dyn Client, url: &str, more: &str, image: &Image) -> anyhow::Result<Vec<Cell>> {
    let text = format!("[upstreams.\"{UPSTREAM}\"]\nurl = \"{url}\"\n{more}");
    let installation = Installation::with_configuration(&text)?;
    let stopover = installation.start().await?;
    let mut cells = Vec::new();
    for _ in 0..2 {
        let pulled = pulls(client, stopover.address(), Shape::Name, image, By::Tag).await;
        cells.push(pulled.with_context(|| stopover.log())?);
    }
    ensure!(!stopover.log().contains(PASSWORD), "the log tells the password");
    Ok(cells)
}

/// All that is said of a client in docs/reference/clients.md, found out by doing it.
async fn check<C: Client>(
    name: &str,
    large: u64,
    start: impl AsyncFnOnce(String) -> anyhow::Result<C>,
) -> anyhow::Result<()> {
    let mut setting = Setting::start().await?;
    let client = start(setting.outer.address()).await?;
    let found = run(&client, &mut setting, large).await;
    let found = found.with_context(|| format!("{name}; the program's log:\n{}", setting.stopover.log()))?;
    document::check(document::CLIENTS, name, &found)
}

async fn run(client: &dyn Client, setting: &mut Setting, large: u64) -> anyhow::Result<String> {
    let mut shapes = Vec::new();
    for (number, shape) in (0..).zip(Shape::ALL) {
        let images = Images::push(&setting.upstream, number).await?;
        let cells = shape_cells(client, setting, shape, &images).await?;
        shapes.push((shape, images, cells));
    }
    let mut kinds = Vec::new();
    for kind in push_kinds(&setting.upstream, large).await? {
        let cell = kind_cell(client, &setting.outer.address(), &kind).await.context("cold")?;
        kinds.push((kind, cell));
    }
    // The upstream goes only when there is nothing left to fetch from it.
    for (kind, cell) in &kinds {
        if matches!(cell, Cell::Pass) {
            setting.stopover.until_stored(std::slice::from_ref(&kind.image)).await?;
        }
    }
    setting.upstream.stop().await?;
    let cache = setting.outer.address();
    let mut table = Table::new(&[
        "how it is told of the cache",
        "cold",
        "warm",
        "by digest",
        "upstream's connection is cut",
        "its own connection is cut",
        "upstream is dead",
    ]);
    for (shape, images, mut cells) in shapes {
        cells.push(if let Some(reason) = client.cannot(Ability::Use(shape)) {
            Cell::Cannot(reason)
        } else {
            pulls(client, &cache, shape, &images.by_digest, By::Digest).await.context("upstream is dead")?;
            pulls(client, &cache, shape, &images.tagged, By::Tag).await.context("upstream is dead")?
        });
        table.row(describe(shape), &cells);
    }
    let mut by_kind = Table::new(&["what it pulls", "cold", "warm"]);
    for (kind, cold) in kinds {
        let warm = kind_cell(client, &cache, &kind).await.context("upstream is dead")?;
        by_kind.row(&kind.name, &[cold, warm]);
    }
    login_rows(client, &mut by_kind).await?;
    Ok(format!("{}\n{}", table.render(), by_kind.render()))
}

fn describe(shape: Shape) -> &'static str {
    match shape {
        Shape::Name => "path prefix: `<cache>/<upstream>/<name>`",
        Shape::Mirror => "mirror",
        Shape::Base => "mirror with a base path: `/<upstream>/v2/<name>`",
        Shape::Namespace => "mirror of everything: `?ns=<upstream>`",
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn skopeo_does_what_its_table_says() -> anyhow::Result<()> {
    check("skopeo", 1024 * MIB, async |_| Ok(Skopeo)).await
}

#[tokio::test(flavor = "multi_thread")]
async fn podman_does_what_its_table_says() -> anyhow::Result<()> {
    check("podman", 64 * MIB, async |_| Ok(Podman)).await
}

#[tokio::test(flavor = "multi_thread")]
async fn buildah_does_what_its_table_says() -> anyhow::Result<()> {
    check("buildah", 64 * MIB, async |_| Ok(Buildah)).await
}

#[tokio::test(flavor = "multi_thread")]
async fn containerd_does_what_its_table_says() -> anyhow::Result<()> {
    check("containerd", 1024 * MIB, async |_| Containerd::start().await).await
}

#[tokio::test(flavor = "multi_thread")]
async fn dockerd_does_what_its_table_says() -> anyhow::Result<()> {
    check("dockerd", 64 * MIB, async |cache| Docker::start(&cache).await).await
}

#[tokio::test(flavor = "multi_thread")]
async fn oci_client_does_what_its_table_says() -> anyhow::Result<()> {
    check("oci-client", 64 * MIB, async |_| Ok(OciClient)).await
}
