//! Logins that clients request themselves: Docker's credential helpers, and the kubelet's credential providers.

use std::io::Read as _;

use anyhow::{Context as _, bail, ensure};
use serde::Deserialize;
use serde_json::json;
use stopover::identity::OIDC_USER;

use super::{Credential, Identity};
use crate::client::Endpoint;
use crate::output::print;

/// The most bytes of a request.
const LONGEST_REQUEST: u64 = 64 * 1024;

/// What Docker asks of a credential helper.
#[derive(Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum DockerAction {
    /// Print user name and password for the registry that standard input names
    Get,
    /// Nothing is listed: every login is made when it is needed
    List,
    /// Refused: there is nothing to store
    Store,
    /// Refused: there is nothing to erase
    Erase,
}

/// The answer that clients take for "continue without credentials" (docker-credential-helpers, `credentials/error.go`).
const NOT_FOUND: &str = "credentials not found in native keychain";

/// Who this machine is, and at which cache. No other registry gets a login: it could misuse a signature or an ID token.
#[derive(clap::Args)]
pub(crate) struct Helper {
    #[command(flatten)]
    identity: Identity,
    /// Where clients reach the cache, over http or https; for other registries there is no login
    #[arg(long, env = "STOPOVER_SERVER", value_name = "URL")]
    server: Option<String>,
}

impl Helper {
    /// Whether a registry, as clients name it, is the cache.
    fn is_for(&self, registry: &str) -> anyhow::Result<bool> {
        let Some(server) = self.server.as_ref().filter(|server| !server.is_empty()) else {
            bail!(
                "which cache logins are for is not known: name it with --server or STOPOVER_SERVER, as in \
                   https://cache.example.com"
            )
        };
        let server: Endpoint = server.parse().context("--server or STOPOVER_SERVER")?;
        let (_, registry) = registry.split_once("://").unwrap_or(("", registry));
        Ok(server.is_host(registry.split('/').next().unwrap_or_default()))
    }

    /// Answers Docker, podman and other clients that run `docker-credential-stopover`. They read errors from standard
    /// output.
    pub(crate) async fn answer_docker(&self, action: DockerAction) -> anyhow::Result<()> {
        let answer = self.docker_credential(action).await;
        let text = answer.as_ref().map_or_else(|error| format!("{error:#}"), Clone::clone);
        print(&(text + "\n"))?;
        answer.map(drop)
    }

    async fn docker_credential(&self, action: DockerAction) -> anyhow::Result<String> {
        match action {
            DockerAction::Get => {
                let server = input()?;
                let server = server.trim();
                ensure!(!server.is_empty(), "standard input names no registry");
                ensure!(self.is_for(server)?, NOT_FOUND);
                let Credential { user, password } = self.identity.credential().await?;
                Ok(json!({ "ServerURL": server, "Username": user, "Secret": password }).to_string())
            }
            DockerAction::List => Ok("{}".into()),
            DockerAction::Store | DockerAction::Erase => {
                bail!("docker-credential-stopover keeps nothing: a login is made when it is needed")
            }
        }
    }

    /// Answers the kubelet: with the identity of the pod's service account if it sends a token of that, else with the
    /// node's.
    pub(crate) async fn answer_kubelet(&self) -> anyhow::Result<()> {
        let request: Request =
            serde_json::from_str(&input()?).context("standard input is no CredentialProviderRequest")?;
        let known = request.api_version == API_VERSION && request.kind == "CredentialProviderRequest";
        ensure!(known, "{} {} is not {API_VERSION} CredentialProviderRequest", request.api_version, request.kind);
        let (registry, _) = request.image.split_once('/').context("the image names no registry")?;
        let mut auth = json!({});
        if self.is_for(registry)? {
            let Credential { user, password } = if request.service_account_token.is_empty() {
                self.identity.credential().await?
            } else {
                Credential { user: OIDC_USER.to_owned(), password: request.service_account_token }
            };
            auth = json!({ registry: { "username": user, "password": password } });
        }
        let response = json!({
            "apiVersion": API_VERSION,
            "kind": "CredentialProviderResponse",
            "cacheKeyType": "Registry",
            // A cached login has to be valid for a whole pull: signatures are valid for 15 minutes, tokens of service
            // accounts for 10 or more.
            "cacheDuration": "5m0s",
            "auth": auth,
        });
        print(&format!("{response}\n"))
    }
}

const API_VERSION: &str = "credentialprovider.kubelet.k8s.io/v1";

/// The fields of a request that are read (kubelet, `CredentialProviderRequest`).
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Request {
    api_version: String,
    kind: String,
    image: String,
    #[serde(default)]
    service_account_token: String,
}

fn input() -> anyhow::Result<String> {
    std::io::read_to_string(std::io::stdin().take(LONGEST_REQUEST)).context("standard input cannot be read")
}
