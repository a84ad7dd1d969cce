//! containerd, told what to pull by `ctr`.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};

use anyhow::Context;
use async_trait::async_trait;
use tempfile::TempDir;
use tokio::process::Command;

use super::{Ability, By, Client, Shape, check_digests, check_file, run};
use crate::daemon::Daemon;
use crate::images::Image;
use crate::program::UPSTREAM;

/// The size in bytes from which on a layer is not unpacked.
const UNPACKED: u64 = 1 << 30;

/// A containerd with a root of its own; each pull has a namespace of its own, whose content no other one sees.
pub struct Containerd {
    daemon: Daemon,
    home: TempDir,
    namespaces: AtomicUsize,
}

impl Containerd {
    /// Starts it.
    pub async fn start() -> anyhow::Result<Self> {
        let home = TempDir::new()?;
        let configuration = "version = 2\nroot = \"HOME/root\"\nstate = \"HOME/state\"\n\
            disabled_plugins = [\"io.containerd.grpc.v1.cri\", \"io.containerd.internal.v1.opt\"]\n\
            [grpc]\naddress = \"HOME/socket\"\n\
            [plugins.\"io.containerd.metadata.v1.bolt\"]\ncontent_sharing_policy = \"isolated\"\n";
        let configuration = configuration.replace("HOME", &home.path().display().to_string());
        std::fs::write(home.path().join("config.toml"), configuration)?;
        let daemon =
            Daemon::start(home.path(), &["containerd", "--config", "config.toml"], &home.path().join("socket")).await?;
        Ok(Self { daemon, home, namespaces: AtomicUsize::new(0) })
    }

    /// Where it listens.
    pub(super) fn socket(&self) -> PathBuf {
        self.home.path().join("socket")
    }

    async fn ctr(&self, namespace: &str, arguments: &[&str]) -> anyhow::Result<String> {
        let mut command = Command::new("ctr");
        command.arg("--address").arg(self.socket()).args(["--namespace", namespace]).args(arguments);
        let printed = run(&mut command).await.with_context(|| self.daemon.log())?;
        Ok(String::from_utf8(printed)?)
    }

    /// No more and no fewer digests than were pushed, and behind each of them the bytes that hash to it.
    async fn check(&self, namespace: &str, image: &Image) -> anyhow::Result<()> {
        let listed = self.ctr(namespace, &["content", "list", "--quiet"]).await?;
        let pulled: BTreeSet<String> = listed.lines().map(str::to_owned).collect();
        check_digests(&pulled, image)?;
        let content = self.home.path().join("root/io.containerd.content.v1.content/blobs/sha256");
        for digest in &pulled {
            check_file(&content.join(digest.trim_start_matches("sha256:")), digest)?;
        }
        Ok(())
    }
}

#[async_trait]
impl Client for Containerd {
    fn cannot(&self, _: Ability) -> Option<&'static str> {
        None
    }

    async fn pull(&self, cache: &str, shape: Shape, image: &Image, by: By) -> anyhow::Result<()> {
        let hosts = TempDir::new()?;
        write_hosts(hosts.path(), cache, shape)?;
        let host = if shape == Shape::Name { format!("{cache}/{UPSTREAM}") } else { UPSTREAM.to_owned() };
        let reference = by.reference(&format!("{host}/{}", image.name), image);
        let namespace = format!("pull-{}", self.namespaces.fetch_add(1, Ordering::Relaxed));
        let hosts = hosts.path().to_str().context("a path that is not UTF-8")?;
        // What has nothing to unpack is fetched only, and so is what would take long. The snapshotter is the one that needs
        // nothing of the file system.
        let unpacks = image.manifests.iter().all(|manifest| !manifest.diff_ids.is_empty())
            && image.blobs().all(|blob| blob.size < UNPACKED);
        let pull: &[&str] =
            if unpacks { &["images", "pull", "--snapshotter", "native"] } else { &["content", "fetch"] };
        let pull = [pull, &["--all-platforms", "--hosts-dir", hosts, &reference]].concat();
        self.ctr(&namespace, &pull).await?;
        self.check(&namespace, image).await?;
        self.ctr(&namespace, &["images", "remove", "--sync", &reference]).await?;
        Ok(())
    }
}

/// `hosts.toml`; the registry's own server refuses connections, where it is not the cache.
fn write_hosts(directory: &Path, cache: &str, shape: Shape) -> anyhow::Result<()> {
    let mirror = |url: String, more: &str| {
        format!(
            "server = \"http://127.0.0.1:1\"\n\
             [host.\"{url}\"]\ncapabilities = [\"pull\", \"resolve\"]\n{more}"
        )
    };
    let (registry, text) = match shape {
        Shape::Name => (cache, format!("server = \"http://{cache}\"\n")),
        Shape::Mirror => (UPSTREAM, mirror(format!("http://{cache}/v2/{UPSTREAM}"), "override_path = true\n")),
        Shape::Base => (UPSTREAM, mirror(format!("http://{cache}/{UPSTREAM}"), "")),
        Shape::Namespace => ("_default", mirror(format!("http://{cache}"), "")),
    };
    let directory = directory.join(registry);
    std::fs::create_dir(&directory)?;
    std::fs::write(directory.join("hosts.toml"), text).context("cannot write hosts.toml")
}
