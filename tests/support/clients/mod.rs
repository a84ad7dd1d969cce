//! Real clients as Debian packages them, with a private home each, so that tests in parallel do not meet. Every pull starts
//! with an empty place, and all that it brought is compared with what was pushed.

mod containerd;
mod containers;
mod docker;
mod http;
mod library;

use std::collections::BTreeSet;
use std::path::Path;
use std::process::Stdio;
use std::time::Duration;

use anyhow::{Context, ensure};
use async_trait::async_trait;
use tokio::process::Command;

use crate::images::{Blob, Image};
use crate::program::UPSTREAM;

pub use containerd::Containerd;
pub use containers::{Buildah, Podman, Skopeo, SkopeoToLayout};
pub use docker::Docker;
pub use http::pull_over_http;
pub use library::OciClient;

/// The longest pull of a test takes half a minute.
const PULL: Duration = Duration::from_mins(3);

const NOTHING_TO_UNPACK: &str = "it unpacks what it pulls, and that has nothing to unpack";

/// How the client is told of the cache, and so what its requests look like.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Shape {
    /// In the image's name, `<cache>/<upstream>/<name>`: `/v2/<upstream>/<name>/…`.
    Name,
    /// As the client's mirror of the upstream, with the upstream in the path behind `/v2/` where the client can do that.
    Mirror,
    /// As a mirror whose base path is the upstream: `/<upstream>/v2/<name>/…`.
    Base,
    /// As a mirror of everything, at its root: `/v2/<name>/…?ns=<upstream>`.
    Namespace,
}

impl Shape {
    /// All of them.
    pub const ALL: [Self; 4] = [Self::Name, Self::Mirror, Self::Base, Self::Namespace];
}

/// What an image is asked for by.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum By {
    /// `<name>:<tag>`
    Tag,
    /// `<name>@<digest>`
    Digest,
}

impl By {
    /// The image in a repository that the client calls `repository`.
    fn reference(self, repository: &str, image: &Image) -> String {
        match self {
            Self::Tag => format!("{repository}:{}", image.tag),
            Self::Digest => format!("{repository}@{}", image.digest),
        }
    }
}

/// What not every client can do.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Ability {
    /// To be told of the cache like this.
    Use(Shape),
    /// To go on when its own connection to the cache is cut in the middle of a layer.
    Resume,
    /// To pull what is no image: an artifact, a signature.
    Artifacts,
    /// To pull an index of such things.
    Referrers,
}

/// A client.
#[async_trait]
pub trait Client: Send + Sync {
    /// Why it does not have this ability, if it does not.
    fn cannot(&self, ability: Ability) -> Option<&'static str>;

    /// The upstream that images come from in this shape, by its id.
    fn upstream(&self, _: Shape) -> &'static str {
        UPSTREAM
    }

    /// Pulls every platform of the image into an empty place through the cache at `cache` (an address), and compares each
    /// byte by its digest. Wherever the client has a place of its own to fall back to, that refuses connections.
    async fn pull(&self, cache: &str, shape: Shape, image: &Image, by: By) -> anyhow::Result<()>;
}

/// Runs a client to its end; the error of a failed one is what it printed.
async fn run(command: &mut Command) -> anyhow::Result<Vec<u8>> {
    let program = command.as_std().get_program().display().to_string();
    let output = command.stdin(Stdio::null()).kill_on_drop(true).output();
    let output = tokio::time::timeout(PULL, output)
        .await
        .with_context(|| format!("{program} takes more than {PULL:?}"))?
        .with_context(|| format!("cannot start {program}; `make setup` installs it"))?;
    let printed = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "{:?}: {}\n{printed}", command.as_std(), output.status);
    Ok(output.stdout)
}

/// A complete answer, or a pull that succeeded, whose bytes are not those that were pushed. A pull may fail, but never like
/// this.
#[derive(Debug)]
pub struct WrongContent(String);

impl std::error::Error for WrongContent {}

impl std::fmt::Display for WrongContent {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(formatter, "other bytes than were pushed: {}", self.0)
    }
}

/// Whether a file holds the content of this digest.
fn check_file(file: &Path, digest: &str) -> anyhow::Result<()> {
    let blob = Blob::of_file(file).with_context(|| WrongContent(format!("{digest} is not there")))?;
    ensure!(blob.digest == digest, WrongContent(format!("{} instead of {digest}", blob.digest)));
    Ok(())
}

/// Whether these are the digests of the image: no more, no fewer.
fn check_digests(pulled: &BTreeSet<String>, image: &Image) -> anyhow::Result<()> {
    ensure!(*pulled == image.digests(), WrongContent(format!("{pulled:#?} instead of {:#?}", image.digests())));
    Ok(())
}
