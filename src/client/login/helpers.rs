//! Logins as clients ask for them themselves: Docker's credential helpers, and the kubelet's credential providers.

use std::collections::BTreeMap;
use std::io::{Read as _, Write as _};

use anyhow::{Context as _, bail, ensure};
use serde::{Deserialize, Serialize};
use serde_json::json;
use stopover::access::OIDC_USER;

use super::{Credential, Identity};

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

/// Answers Docker, podman and whoever else runs `docker-credential-stopover`. They read errors from standard output.
pub(crate) async fn docker_credential(action: DockerAction, identity: &Identity) -> anyhow::Result<()> {
    let answer = answer_docker(action, identity).await;
    let text = answer.as_ref().map_or_else(|error| format!("{error:#}"), Clone::clone);
    writeln!(std::io::stdout(), "{text}")?;
    answer.map(drop)
}

async fn answer_docker(action: DockerAction, identity: &Identity) -> anyhow::Result<String> {
    match action {
        DockerAction::Get => {
            let server = input()?;
            let server = server.trim();
            ensure!(!server.is_empty(), "standard input names no registry");
            let Credential { user, password } = identity.credential().await?;
            Ok(json!({ "ServerURL": server, "Username": user, "Secret": password }).to_string())
        }
        DockerAction::List => Ok("{}".into()),
        DockerAction::Store | DockerAction::Erase => {
            bail!("docker-credential-stopover keeps nothing: a login is made when it is needed")
        }
    }
}

const API_VERSION: &str = "credentialprovider.kubelet.k8s.io/v1";

/// What is read of a request (kubelet, `CredentialProviderRequest`).
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Request {
    api_version: String,
    kind: String,
    image: String,
    #[serde(default)]
    service_account_token: String,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Response {
    api_version: &'static str,
    kind: &'static str,
    cache_key_type: &'static str,
    cache_duration: &'static str,
    auth: BTreeMap<String, Auth>,
}

#[derive(Serialize)]
struct Auth {
    username: String,
    password: String,
}

/// Answers the kubelet: as the pod's service account where it sends that one's token, else as the node.
pub(crate) async fn kubelet_credentials(identity: &Identity) -> anyhow::Result<()> {
    let request: Request = serde_json::from_str(&input()?).context("standard input is no CredentialProviderRequest")?;
    let known = request.api_version == API_VERSION && request.kind == "CredentialProviderRequest";
    ensure!(known, "{} {} is not {API_VERSION} CredentialProviderRequest", request.api_version, request.kind);
    let (registry, _) = request.image.split_once('/').context("the image names no registry")?;
    let Credential { user, password } = if request.service_account_token.is_empty() {
        identity.credential().await?
    } else {
        Credential { user: OIDC_USER.to_owned(), password: request.service_account_token }
    };
    let response = Response {
        api_version: API_VERSION,
        kind: "CredentialProviderResponse",
        cache_key_type: "Registry",
        // What comes out of the kubelet's cache has to be good for a whole pull: signatures are for 15 minutes, tokens
        // of service accounts for 10 or more.
        cache_duration: "5m0s",
        auth: BTreeMap::from([(registry.to_owned(), Auth { username: user, password })]),
    };
    writeln!(std::io::stdout(), "{}", serde_json::to_string(&response)?)?;
    Ok(())
}

fn input() -> anyhow::Result<String> {
    let mut text = String::new();
    std::io::stdin().take(LONGEST_REQUEST).read_to_string(&mut text).context("standard input cannot be read")?;
    Ok(text)
}
