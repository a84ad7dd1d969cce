//! skopeo, podman and buildah: three programs over one library, which chooses a mirror once, at the first manifest.

use std::collections::BTreeSet;
use std::path::Path;

use anyhow::{Context, ensure};
use async_trait::async_trait;
use serde_json::Value;
use tempfile::TempDir;
use tokio::process::Command;

use super::{Ability, By, Client, NOTHING_TO_UNPACK, Shape, WrongContent, check_digests, check_file, run};
use crate::images::{Blob, Image, Manifest};
use crate::program::{UPSTREAM, files_below};

const NO_BASE: &str = "the path of a mirror goes behind `/v2/`, never before it";
const NO_NAMESPACE: &str = "it sends no `ns`";
const NO_RESUME: &str = "it asks for a blob once, and gives up when that ends early";

/// `skopeo copy --all` into a directory.
pub struct Skopeo;

/// `skopeo copy --all` into an OCI layout; only for OCI images, as it would convert others.
pub struct SkopeoToLayout;

/// `podman pull` into an empty storage.
pub struct Podman;

/// `buildah pull` into an empty storage.
pub struct Buildah;

#[async_trait]
impl Client for Skopeo {
    fn cannot(&self, ability: Ability) -> Option<&'static str> {
        match ability {
            Ability::Use(Shape::Base) => Some(NO_BASE),
            Ability::Use(Shape::Namespace) => Some(NO_NAMESPACE),
            Ability::Resume => Some(NO_RESUME),
            Ability::Referrers => Some("it writes an index anew, without its `artifactType`"),
            Ability::Use(Shape::Name | Shape::Mirror) | Ability::Artifacts => None,
        }
    }

    async fn pull(&self, cache: &str, shape: Shape, image: &Image, by: By) -> anyhow::Result<()> {
        let home = Home::new(cache)?;
        home.copy(&reference(cache, shape, image, by)?, &home.at("dir:HOME/image"), image).await
    }
}

#[async_trait]
impl Client for SkopeoToLayout {
    fn cannot(&self, ability: Ability) -> Option<&'static str> {
        Skopeo.cannot(ability)
    }

    async fn pull(&self, cache: &str, shape: Shape, image: &Image, by: By) -> anyhow::Result<()> {
        let home = Home::new(cache)?;
        home.copy(&reference(cache, shape, image, by)?, &home.at("oci:HOME/image:v1"), image).await
    }
}

/// What those that unpack what they pull can do.
fn unpacking_cannot(ability: Ability) -> Option<&'static str> {
    match ability {
        Ability::Use(Shape::Base) => Some(NO_BASE),
        Ability::Use(Shape::Namespace) => Some(NO_NAMESPACE),
        Ability::Resume => Some(NO_RESUME),
        Ability::Artifacts | Ability::Referrers => Some(NOTHING_TO_UNPACK),
        Ability::Use(Shape::Name | Shape::Mirror) => None,
    }
}

#[async_trait]
impl Client for Podman {
    fn cannot(&self, ability: Ability) -> Option<&'static str> {
        unpacking_cannot(ability)
    }

    async fn pull(&self, cache: &str, shape: Shape, image: &Image, by: By) -> anyhow::Result<()> {
        let home = Home::new(cache)?;
        let reference = reference(cache, shape, image, by)?;
        for manifest in &image.manifests {
            let architecture = manifest.architecture.as_str();
            home.run("podman", &["pull", "--quiet", "--arch", architecture, &reference]).await?;
            let described = home.run("podman", &["image", "inspect", &reference]).await?;
            check_description(&serde_json::from_slice(&described)?, manifest)?;
            let target = home.at(&format!("HOME/{architecture}"));
            let save = ["save", "--quiet", "--format", "docker-dir", "--output", &target, &reference];
            home.run("podman", &save).await?;
            check_unpacked(Path::new(&target), manifest)?;
        }
        Ok(())
    }
}

#[async_trait]
impl Client for Buildah {
    fn cannot(&self, ability: Ability) -> Option<&'static str> {
        unpacking_cannot(ability)
    }

    async fn pull(&self, cache: &str, shape: Shape, image: &Image, by: By) -> anyhow::Result<()> {
        let home = Home::new(cache)?;
        let reference = reference(cache, shape, image, by)?;
        for manifest in &image.manifests {
            let architecture = manifest.architecture.as_str();
            let pull = ["pull", "--quiet", "--policy", "always", "--arch", architecture, &reference];
            let id = String::from_utf8(home.run("buildah", &pull).await?)?;
            let target = home.at(&format!("HOME/{architecture}"));
            let push = ["push", "--quiet", "--disable-compression", id.trim(), &format!("dir:{target}")];
            home.run("buildah", &push).await?;
            check_unpacked(Path::new(&target), manifest)?;
        }
        Ok(())
    }
}

fn reference(cache: &str, shape: Shape, image: &Image, by: By) -> anyhow::Result<String> {
    let repository = match shape {
        Shape::Name => format!("{cache}/{UPSTREAM}/{}", image.name),
        Shape::Mirror => format!("{UPSTREAM}/{}", image.name),
        Shape::Base | Shape::Namespace => anyhow::bail!("it cannot be told of the cache like this"),
    };
    Ok(by.reference(&repository, image))
}

/// Configuration and storage of one pull.
struct Home(TempDir);

impl Home {
    fn new(cache: &str) -> anyhow::Result<Self> {
        let this = Self(TempDir::new()?);
        let registries = format!(
            "[[registry]]\nlocation = \"{cache}\"\ninsecure = true\n\n\
             [[registry]]\nprefix = \"{UPSTREAM}\"\nlocation = \"127.0.0.1:1\"\ninsecure = true\n\n\
             [[registry.mirror]]\nlocation = \"{cache}/{UPSTREAM}\"\ninsecure = true\n"
        );
        // The driver without mounts works on every file system and leaves nothing to unmount.
        let storage = "[storage]\ndriver = \"vfs\"\ngraphroot = \"HOME/storage\"\nrunroot = \"HOME/run\"\n";
        let containers = "[engine]\ntmp_dir = \"HOME/engine\"\nlock_type = \"file\"\nevents_logger = \"none\"\n\
                          cgroup_manager = \"cgroupfs\"\n";
        for (file, text) in [("registries", registries.as_str()), ("storage", storage), ("containers", containers)] {
            std::fs::write(this.at(&format!("HOME/{file}.conf")), this.at(text))?;
        }
        Ok(this)
    }

    /// The text with this home in the place of `HOME`.
    fn at(&self, text: &str) -> String {
        text.replace("HOME", &self.0.path().display().to_string())
    }

    async fn run(&self, program: &str, arguments: &[&str]) -> anyhow::Result<Vec<u8>> {
        let home = self.0.path();
        let mut command = Command::new(program);
        command.args(arguments).env("HOME", home).env("TMPDIR", home).env("BUILDAH_ISOLATION", "chroot");
        for (variable, file) in [
            ("CONTAINERS_REGISTRIES_CONF", "registries.conf"),
            ("CONTAINERS_STORAGE_CONF", "storage.conf"),
            ("CONTAINERS_CONF", "containers.conf"),
        ] {
            command.env(variable, home.join(file));
        }
        run(&mut command).await
    }

    /// Both destinations keep manifests and blobs as files: their digests must be those that were pushed, no more, no
    /// fewer.
    async fn copy(&self, reference: &str, destination: &str, image: &Image) -> anyhow::Result<()> {
        // skopeo does not read the environment variable.
        let (registries, source) = (self.at("HOME/registries.conf"), format!("docker://{reference}"));
        let copy = ["--registries-conf", &registries, "copy", "--all", "--preserve-digests", "--quiet"];
        self.run("skopeo", &[&copy[..], &[&source, destination]].concat()).await?;
        let mut pulled = BTreeSet::new();
        for file in files_below(&self.0.path().join("image"))? {
            // These describe the directory itself, and are not content of the image.
            let name = file.file_name().and_then(|name| name.to_str()).unwrap_or_default();
            if !["version", "oci-layout", "index.json"].contains(&name) {
                pulled.insert(Blob::of_file(&file)?.digest);
            }
        }
        check_digests(&pulled, image)
    }
}

fn check_description(described: &Value, manifest: &Manifest) -> anyhow::Result<()> {
    let digests = described.pointer("/0/RepoDigests").and_then(Value::as_array).context("no RepoDigests")?;
    let expected = format!("@{}", manifest.digest);
    let named = digests.iter().any(|digest| digest.as_str().is_some_and(|digest| digest.ends_with(&expected)));
    ensure!(named, WrongContent(format!("{digests:?} without {}", manifest.digest)));
    let layers = described.pointer("/0/RootFS/Layers").context("no layers")?;
    ensure!(layers == &Value::from(manifest.diff_ids.clone()), WrongContent(format!("the layers {layers}")));
    Ok(())
}

/// Layers were unpacked and packed again: they are compared as the tars that the configuration names.
fn check_unpacked(directory: &Path, manifest: &Manifest) -> anyhow::Result<()> {
    for digest in manifest.diff_ids.iter().chain([&manifest.config.digest]) {
        check_file(&directory.join(digest.trim_start_matches("sha256:")), digest)?;
    }
    Ok(())
}
