//! dockerd, told what to pull by `docker`.

use std::path::Path;

use anyhow::{Context, ensure};
use async_trait::async_trait;
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::process::Command;

use super::{Ability, By, Client, Containerd, NOTHING_TO_UNPACK, Shape, WrongContent, check_file, run};
use crate::daemon::Daemon;
use crate::images::{Blob, Image, Manifest};
use crate::program::UPSTREAM;

/// A dockerd with a root and a containerd of its own. Docker Hub itself cannot be reached by it.
pub struct Docker {
    daemon: Daemon,
    home: TempDir,
    _containerd: Containerd,
}

impl Docker {
    /// Starts it with the cache at this address as its mirror of Docker Hub.
    pub async fn start(cache: &str) -> anyhow::Result<Self> {
        let containerd = Containerd::start().await?;
        let home = TempDir::new()?;
        let at_home = |name: &str| home.path().join(name);
        let configuration = json!({
            "data-root": at_home("data"),
            "exec-root": at_home("exec"),
            "pidfile": at_home("pid"),
            "hosts": [format!("unix://{}", at_home("socket").display())],
            "containerd": containerd.socket(),
            "registry-mirrors": [format!("http://{cache}")],
            // The driver without mounts works on every file system; no network is needed to pull.
            "storage-driver": "vfs",
            // A download that rests before its next attempt keeps its place.
            "max-concurrent-downloads": 50,
            "bridge": "none",
            "iptables": false,
            "ip6tables": false,
        });
        std::fs::write(at_home("daemon.json"), configuration.to_string())?;
        let daemon =
            Daemon::start(home.path(), &["dockerd", "--config-file", "daemon.json"], &at_home("socket")).await?;
        Ok(Self { daemon, home, _containerd: containerd })
    }

    async fn docker(&self, arguments: &[&str]) -> anyhow::Result<Vec<u8>> {
        let mut command = Command::new("docker");
        command.arg("--host").arg(format!("unix://{}", self.home.path().join("socket").display())).args(arguments);
        command.env("HOME", self.home.path()).env("DOCKER_CONFIG", self.home.path());
        run(&mut command).await.with_context(|| self.daemon.log())
    }

    /// The image's id is the digest of its configuration; its layers were unpacked, and are compared packed again.
    async fn check(&self, reference: &str, image: &Image, manifest: &Manifest) -> anyhow::Result<()> {
        let described: Value = serde_json::from_slice(&self.docker(&["image", "inspect", reference]).await?)?;
        let id = described.pointer("/0/Id").and_then(Value::as_str).unwrap_or_default();
        ensure!(id == manifest.config.digest, WrongContent(format!("{id} instead of {}", manifest.config.digest)));
        let from = described.pointer("/0/RepoDigests/0").and_then(Value::as_str).unwrap_or_default();
        let named = from.ends_with(&format!("@{}", image.digest));
        ensure!(named, WrongContent(format!("{from} instead of {}", image.digest)));
        let saved = TempDir::new_in(self.home.path())?;
        let archive = saved.path().join("image.tar").display().to_string();
        self.docker(&["save", "--output", &archive, id]).await?;
        run(Command::new("tar").args(["-xf", &archive]).arg("-C").arg(saved.path())).await?;
        check_saved(saved.path(), manifest)
    }
}

fn check_saved(directory: &Path, manifest: &Manifest) -> anyhow::Result<()> {
    let list: Value = serde_json::from_slice(&std::fs::read(directory.join("manifest.json"))?)?;
    let file = |value: &Value| value.as_str().map(|name| directory.join(name)).context("no name of a file");
    check_file(&file(&list[0]["Config"])?, &manifest.config.digest)?;
    let layers = list[0]["Layers"].as_array().context("no layers")?;
    let layers = layers.iter().map(|layer| Ok(Blob::of_file(&file(layer)?)?.digest));
    let layers = layers.collect::<anyhow::Result<Vec<String>>>()?;
    let expected = &manifest.diff_ids;
    ensure!(layers == *expected, WrongContent(format!("{layers:#?} instead of {expected:#?}")));
    Ok(())
}

#[async_trait]
impl Client for Docker {
    fn cannot(&self, ability: Ability) -> Option<&'static str> {
        match ability {
            Ability::Use(Shape::Base) => Some("mirrors with a path are for dockerd 24 and later"),
            Ability::Use(Shape::Namespace) => Some("it sends no `ns` (dockerd with containerd's image store does)"),
            Ability::Artifacts | Ability::Referrers => Some(NOTHING_TO_UNPACK),
            Ability::Use(Shape::Name | Shape::Mirror) | Ability::Resume => None,
        }
    }

    fn upstream(&self, shape: Shape) -> &'static str {
        // It has mirrors of Docker Hub only.
        if shape == Shape::Mirror { "docker.io" } else { UPSTREAM }
    }

    async fn pull(&self, cache: &str, shape: Shape, image: &Image, by: By) -> anyhow::Result<()> {
        let repository = match shape {
            Shape::Name => format!("{cache}/{UPSTREAM}/{}", image.name),
            Shape::Mirror => image.name.clone(),
            Shape::Base | Shape::Namespace => anyhow::bail!("it cannot be told of the cache like this"),
        };
        let reference = by.reference(&repository, image);
        for manifest in &image.manifests {
            let platform = format!("linux/{}", manifest.architecture);
            self.docker(&["pull", "--quiet", "--platform", &platform, &reference]).await?;
            self.check(&reference, image, manifest).await?;
            self.docker(&["image", "remove", "--force", &manifest.config.digest]).await?;
        }
        Ok(())
    }
}
