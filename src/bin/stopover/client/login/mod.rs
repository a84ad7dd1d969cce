//! Logins without a secret of the cache: AWS or an `OpenID` issuer says who this machine is.

mod aws;
mod helpers;
mod oidc;

use std::ffi::OsStr;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use anyhow::{Context as _, bail, ensure};
use reqwest::redirect::Policy;
use stopover::identity::{IAM_USER, OIDC_USER};
use stopover::values::crypto::http_client;
use tokio::io::AsyncWriteExt as _;
use tokio::process::Command;

pub(crate) use helpers::{DockerAction, Helper};

use super::Endpoint;

/// The identity of this machine, and the cache that it is for.
#[derive(clap::Args, Default)]
pub(crate) struct Identity {
    /// Who says who this machine is [default: oidc if a token is at hand, else aws]
    #[arg(long = "as", global = true, env = "STOPOVER_LOGIN", value_enum)]
    way: Option<Way>,
    /// What the cache is called: `service` in its [access]
    #[arg(long, global = true, env = "STOPOVER_SERVICE", value_name = "NAME")]
    service: Option<String>,
    /// The audience of an ID token that GitHub Actions issues [default: what the cache is called]
    #[arg(long, global = true, env = "STOPOVER_OIDC_AUDIENCE", value_name = "AUDIENCE")]
    audience: Option<String>,
    /// A file that holds an ID token; read with each login, because others replace it
    #[arg(long, global = true, env = "STOPOVER_OIDC_TOKEN_FILE", value_name = "FILE")]
    token_file: Option<PathBuf>,
}

#[derive(Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
enum Way {
    /// AWS: a signed question to STS, with credentials in the environment, of the container or of the instance
    Aws,
    /// An issuer of ID tokens: a token from --token-file, or of GitHub Actions
    Oidc,
}

/// `stopover login`
#[derive(clap::Args)]
pub(crate) struct ClientLogin {
    /// The client to log in: docker, podman, skopeo, buildah, nerdctl, or another that has their `login`
    #[arg(default_value = "docker")]
    tool: String,
    #[command(flatten)]
    identity: Identity,
    /// More arguments for the client's `login`
    #[arg(last = true)]
    arguments: Vec<String>,
}

/// `stopover logout`
#[derive(clap::Args)]
pub(crate) struct ClientLogout {
    /// The client to log out: docker, podman, skopeo, buildah, nerdctl, or another that has their `logout`
    #[arg(default_value = "docker")]
    tool: String,
    /// More arguments for the client's `logout`
    #[arg(last = true)]
    arguments: Vec<String>,
}

/// A user name and a password that are valid for minutes. Shown to clients only.
pub(super) struct Credential {
    pub(super) user: String,
    pub(super) password: String,
}

impl Identity {
    /// Whether any of it is given. A variable that is empty counts as unset.
    pub(super) fn is_given(&self) -> bool {
        let Self { way, audience, token_file, .. } = self;
        way.is_some() || self.service().is_some() || audience.is_some() || token_file.is_some()
    }

    fn service(&self) -> Option<&String> {
        self.service.as_ref().filter(|service| !service.is_empty())
    }

    pub(super) async fn credential(&self) -> anyhow::Result<Credential> {
        // With a default, several caches would have the same name, and a login for one of them would be valid at all.
        let Some(service) = self.service() else {
            bail!(
                "what the cache is called is not known: name it with --service or STOPOVER_SERVICE, as its [access] does"
            )
        };
        let at_hand = self.token_file.is_some() || oidc::is_in_github_actions();
        match self.way.unwrap_or(if at_hand { Way::Oidc } else { Way::Aws }) {
            Way::Aws => Ok(Credential { user: IAM_USER.to_owned(), password: aws::password(service).await? }),
            Way::Oidc => {
                let audience = self.audience.as_ref().unwrap_or(service);
                let password = oidc::token(self.token_file.as_deref(), audience).await?;
                Ok(Credential { user: OIDC_USER.to_owned(), password })
            }
        }
    }
}

impl ClientLogin {
    /// Logs a client in at a cache. The password goes through a pipe, so that no list of processes shows it.
    pub(crate) async fn run(self, server: &Endpoint) -> anyhow::Result<()> {
        let Self { tool, identity, arguments } = self;
        let Credential { user, password } = identity.credential().await?;
        let mut command = Command::new(&tool);
        // Docker knows from its daemon.json which registries speak plain HTTP.
        let own =
            ["podman", "skopeo", "buildah"].iter().any(|name| Path::new(&tool).file_name() == Some(OsStr::new(name)));
        let plain = (own && server.is_plain()).then_some("--tls-verify=false");
        command.args(["login", "--username", &user, "--password-stdin"]).args(plain).args(arguments).arg(server.host());
        let mut child = command.stdin(Stdio::piped()).spawn().with_context(|| format!("cannot run {tool}"))?;
        let mut input = child.stdin.take().context("the client has no standard input")?;
        // A client that ends before it has read everything says why itself.
        let _ = input.write_all(password.as_bytes()).await;
        drop(input);
        let status = child.wait().await?;
        ensure!(status.success(), "{tool} could not log in at {} as {user}", server.host());
        Ok(())
    }
}

impl ClientLogout {
    /// Has a client forget its login at a cache.
    pub(crate) async fn run(self, server: &Endpoint) -> anyhow::Result<()> {
        let Self { tool, arguments } = self;
        let mut command = Command::new(&tool);
        command.arg("logout").args(arguments).arg(server.host()).stdin(Stdio::null());
        let status = command.status().await.with_context(|| format!("cannot run {tool}"))?;
        ensure!(status.success(), "{tool} could not log out at {}", server.host());
        Ok(())
    }
}

/// An HTTP client for services that issue tokens and credentials. It follows no redirect, which could pass on what they are sent.
fn issuer_client() -> anyhow::Result<reqwest::Client> {
    Ok(http_client().redirect(Policy::none()).timeout(Duration::from_secs(10)).build()?)
}

/// An HTTP client for services on this machine or beside it, which no proxy is for.
fn metadata_client() -> anyhow::Result<reqwest::Client> {
    let builder = http_client().no_proxy().redirect(Policy::none());
    Ok(builder.timeout(Duration::from_secs(5)).connect_timeout(Duration::from_secs(1)).build()?)
}
