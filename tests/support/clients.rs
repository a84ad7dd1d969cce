//! Real clients with a private home each, so that tests in parallel do not meet. Every pull is compared with what was pushed.

use std::collections::BTreeSet;
use std::path::Path;
use std::process::Stdio;
use std::time::Duration;

use anyhow::{Context, ensure};
use reqwest::header::{ACCEPT, CONTENT_LENGTH};
use serde_json::Value;
use sha2::{Digest as _, Sha256};
use tempfile::TempDir;
use tokio::process::Command;

use crate::images::{self, Blob, Image, Manifest, digest_from, digest_of};
use crate::program::{UPSTREAM, files_below};

/// The longest pull of a test takes a few seconds.
const PULL: Duration = Duration::from_mins(3);

/// How the client is told of the cache.
#[derive(Clone, Copy, Debug)]
pub enum Through {
    /// In the image's name: `<cache>/test.local/<name>:<tag>`.
    Name,
    /// As the mirror of `test.local`, whose own address refuses connections: nothing but the mirror can answer.
    Mirror,
}

/// A client as Debian packages it.
#[derive(Clone, Copy, Debug)]
pub enum Client {
    /// `skopeo copy --all` into a directory, every platform.
    Skopeo,
    /// `skopeo copy --all` into an OCI layout; only for OCI images, as it would convert others.
    SkopeoToLayout,
    /// `podman pull` of every platform into an empty storage.
    Podman,
}

impl Client {
    /// Pulls the image into an empty place through the cache at `address`, and compares each byte by its digest.
    pub async fn pull(self, address: &str, through: Through, image: &Image) -> anyhow::Result<()> {
        let home = TempDir::new()?;
        write_registries(home.path(), address)?;
        let reference = match through {
            Through::Name => format!("{address}/{UPSTREAM}/{}", image.reference()),
            Through::Mirror => format!("{UPSTREAM}/{}", image.reference()),
        };
        match self {
            Self::Skopeo => {
                skopeo(home.path(), &reference, &format!("dir:{}/image", home.path().display()), image).await
            }
            Self::SkopeoToLayout => {
                skopeo(home.path(), &reference, &format!("oci:{}/image:v1", home.path().display()), image).await
            }
            Self::Podman => podman(home.path(), &reference, image).await,
        }
        .with_context(|| format!("{self:?} of {reference}"))
    }
}

/// A complete answer whose bytes are not those that were pushed. A pull may end early, but never like this.
#[derive(Debug)]
pub struct WrongContent(String);

impl std::error::Error for WrongContent {}

impl std::fmt::Display for WrongContent {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(formatter, "{} is answered with other bytes", self.0)
    }
}

/// Pulls the image over plain HTTP, all blobs at once, reading and hashing every byte. Other bytes than those that were
/// pushed are a [`WrongContent`].
pub async fn pull_over_http(address: &str, image: &Image) -> anyhow::Result<()> {
    let client = reqwest::Client::builder().no_proxy().build()?;
    let base = format!("http://{address}/v2/{UPSTREAM}/{}", image.name);
    let get = |path: String| client.get(format!("{base}/{path}")).header(ACCEPT, images::MEDIA_TYPES.join(", ")).send();
    let tagged = get(format!("manifests/{}", image.tag)).await?.error_for_status()?.bytes().await?;
    ensure!(digest_of(&tagged) == image.digest, WrongContent(image.reference()));
    for (digest, bytes) in image.manifest_bytes() {
        let answered = get(format!("manifests/{digest}")).await?.error_for_status()?.bytes().await?;
        ensure!(answered == bytes, WrongContent(digest.to_owned()));
    }
    let blobs =
        image.blobs().map(|blob| async { check_blob(get(format!("blobs/{}", blob.digest)).await?, blob).await });
    futures_util::future::try_join_all(blobs).await?;
    Ok(())
}

async fn check_blob(answer: reqwest::Response, blob: &Blob) -> anyhow::Result<()> {
    let mut answer = answer.error_for_status()?;
    let announced = answer.headers().get(CONTENT_LENGTH).context("a blob without Content-Length")?.to_str()?;
    ensure!(announced == blob.size.to_string(), "{} has {} bytes, not {announced}", blob.digest, blob.size);
    let mut hasher = Sha256::new();
    while let Some(bytes) = answer.chunk().await? {
        hasher.update(&bytes);
    }
    ensure!(digest_from(hasher) == blob.digest, WrongContent(blob.digest.clone()));
    Ok(())
}

/// Both transports keep manifests and blobs as files: their digests must be those that were pushed, no more, no fewer.
async fn skopeo(home: &Path, reference: &str, destination: &str, image: &Image) -> anyhow::Result<()> {
    let registries = home.join("registries.conf");
    let registries = registries.to_str().context("a path that is not UTF-8")?;
    let source = format!("docker://{reference}");
    let arguments =
        ["--registries-conf", registries, "copy", "--all", "--preserve-digests", "--quiet", &source, destination];
    run(home, "skopeo", &arguments).await?;
    let mut pulled = BTreeSet::new();
    for file in files_below(&home.join("image"))? {
        // These describe the directory itself, and are not content of the image.
        if !["version", "oci-layout", "index.json"].contains(&file_name(&file)) {
            pulled.insert(Blob::of_file(&file)?.digest);
        }
    }
    ensure!(pulled == image.digests(), "pulled {pulled:#?} instead of {:#?}", image.digests());
    Ok(())
}

/// podman unpacks the layers: they are packed again, and compared as the tars that the config names.
async fn podman(home: &Path, reference: &str, image: &Image) -> anyhow::Result<()> {
    let at_home = |text: &str| text.replace("HOME", &home.display().to_string());
    // The driver without mounts works on every file system and leaves nothing to unmount.
    std::fs::write(
        home.join("storage.conf"),
        at_home("[storage]\ndriver = \"vfs\"\ngraphroot = \"HOME/storage\"\nrunroot = \"HOME/run\"\n"),
    )?;
    std::fs::write(
        home.join("containers.conf"),
        at_home(
            "[engine]\ntmp_dir = \"HOME/engine\"\nlock_type = \"file\"\nevents_logger = \"none\"\ncgroup_manager = \"cgroupfs\"\n",
        ),
    )?;
    for manifest in &image.manifests {
        let architecture = manifest.architecture.as_str();
        run(home, "podman", &["pull", "--quiet", "--arch", architecture, reference]).await?;
        let inspected = run(home, "podman", &["image", "inspect", reference]).await?;
        check_description(&serde_json::from_slice(&inspected)?, manifest)?;
        let target = at_home(&format!("HOME/{architecture}"));
        run(home, "podman", &["save", "--quiet", "--format", "docker-dir", "--output", &target, reference]).await?;
        for digest in manifest.diff_ids.iter().chain([&manifest.config.digest]) {
            let file = Path::new(&target).join(digest.trim_start_matches("sha256:"));
            ensure!(&Blob::of_file(&file)?.digest == digest, "{digest} was pulled with other bytes");
        }
    }
    Ok(())
}

fn check_description(described: &Value, manifest: &Manifest) -> anyhow::Result<()> {
    let digests = described.pointer("/0/RepoDigests").and_then(Value::as_array).context("no RepoDigests")?;
    let expected = format!("@{}", manifest.digest);
    let named = digests.iter().any(|digest| digest.as_str().is_some_and(|digest| digest.ends_with(&expected)));
    ensure!(named, "the image came with {digests:?}, without {}", manifest.digest);
    let layers = described.pointer("/0/RootFS/Layers").context("no layers")?;
    ensure!(layers == &Value::from(manifest.diff_ids.clone()), "other layers: {layers}");
    Ok(())
}

fn write_registries(home: &Path, address: &str) -> anyhow::Result<()> {
    let text = format!(
        "[[registry]]\nlocation = \"{address}\"\ninsecure = true\n\n\
         [[registry]]\nprefix = \"{UPSTREAM}\"\nlocation = \"127.0.0.1:1\"\ninsecure = true\n\n\
         [[registry.mirror]]\nlocation = \"{address}/{UPSTREAM}\"\ninsecure = true\n"
    );
    std::fs::write(home.join("registries.conf"), text).context("cannot write registries.conf")
}

/// Runs a client in its home; the error of a failed one is what it printed.
async fn run(home: &Path, program: &str, arguments: &[&str]) -> anyhow::Result<Vec<u8>> {
    let output = Command::new(program)
        .args(arguments)
        .env("HOME", home)
        .env("TMPDIR", home)
        .env("CONTAINERS_REGISTRIES_CONF", home.join("registries.conf"))
        .env("CONTAINERS_STORAGE_CONF", home.join("storage.conf"))
        .env("CONTAINERS_CONF", home.join("containers.conf"))
        .stdin(Stdio::null())
        .kill_on_drop(true)
        .output();
    let output = tokio::time::timeout(PULL, output)
        .await
        .with_context(|| format!("{program} takes more than {PULL:?}"))?
        .with_context(|| format!("cannot start {program}; `make setup` installs it"))?;
    let printed = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "{program} {arguments:?}: {}\n{printed}", output.status);
    Ok(output.stdout)
}

fn file_name(file: &Path) -> &str {
    file.file_name().and_then(|name| name.to_str()).unwrap_or_default()
}
