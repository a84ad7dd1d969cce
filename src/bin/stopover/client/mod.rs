//! The commands that ask a running cache.

mod doctor;
mod endpoint;
mod fills;
mod images;
mod login;
mod platform;
mod prefetch;
mod progress;
mod retention;
mod robots;
mod session;
mod setup;
mod status;
mod stored;
mod table;

use std::path::PathBuf;
use std::sync::Mutex;
use std::time::Duration;

use anyhow::{Context as _, bail, ensure};
use http::header::CACHE_CONTROL;
use reqwest::redirect::Policy;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use stopover::oci::{Name, Operation, Reference, Request};
use stopover::operate::report::QuotaReport;
use stopover::values::crypto::http_client;
use table::harmless;

use crate::output::{Output, lines};

pub(crate) use doctor::Examination;
pub(crate) use endpoint::{Endpoint, NamedEndpoint};
pub(crate) use login::{ClientLogin, ClientLogout, DockerAction, Helper};
pub(crate) use prefetch::PrefetchArguments;
pub(crate) use retention::NothingStored;
pub(crate) use session::{Asker, LoginArguments};
pub(crate) use setup::{list, set_up};

/// A client of a running cache.
pub(crate) struct Client {
    http: reqwest::Client,
    server: Endpoint,
    login: LoginArguments,
    /// Whether it asks over the socket of this machine's operators.
    is_local_operator: bool,
    /// The bearer token of this command, once it has logged in.
    token: Mutex<Option<String>>,
    output: Output,
}

/// The body of `GET /_stopover/quota`.
#[derive(Serialize, Deserialize)]
struct Quotas {
    upstreams: Vec<QuotaReport>,
}

/// What upstream was found to say of a tag.
#[derive(Serialize)]
struct Refreshed<'a> {
    image: &'a str,
    /// What the tag is now.
    digest: Option<String>,
    /// Why that is not known.
    error: Option<String>,
}

/// Waits longer than the cache itself does for an upstream. Follows no redirects: only blobs may be elsewhere.
fn patient() -> reqwest::ClientBuilder {
    http_client().timeout(Duration::from_secs(30)).redirect(Policy::none())
}

impl Client {
    /// `socket`: where to connect to, instead of the host of `server`.
    pub(crate) fn new(
        server: Endpoint,
        login: LoginArguments,
        socket: Option<PathBuf>,
        output: Output,
    ) -> anyhow::Result<Self> {
        let is_local_operator = socket.is_some();
        let http = if server.is_here() { patient().no_proxy() } else { patient() };
        let http = if let Some(socket) = socket { http.unix_socket(socket) } else { http };
        Ok(Self { http: http.build()?, server, login, is_local_operator, token: Mutex::default(), output })
    }

    /// One line per upstream: what is left of its quota. Operators see more of it than other callers.
    pub(crate) async fn quota(&self) -> anyhow::Result<()> {
        let quotas: Quotas = self.ask(self.http.get(self.url("quota"))).await?;
        self.output.show(&quotas, |Quotas { upstreams }| lines(upstreams))
    }

    /// One line per image: the digest that upstream gives it now. Fails if upstream could not be asked for one of them.
    pub(crate) async fn refresh(&self, images: &[String]) -> anyhow::Result<()> {
        let (mut list, mut failed) = (self.output.list("images"), 0);
        for image in images {
            let (refreshed, line) = match self.check(image).await {
                Ok((digest, served)) => {
                    let line = format!("{image}: {digest} ({served})\n");
                    (Refreshed { image, digest: Some(digest), error: None }, line)
                }
                Err(error) => {
                    failed += 1;
                    eprintln!("{image}: {error:#}");
                    (Refreshed { image, digest: None, error: Some(format!("{error:#}")) }, String::new())
                }
            };
            list.add(&[refreshed], |_| line)?;
        }
        list.end(json!({}), String::new)?;
        ensure!(failed == 0, "{failed} of {} images could not be refreshed", images.len());
        Ok(())
    }

    /// The digest of a tag, and how it was served.
    async fn check(&self, image: &str) -> anyhow::Result<(String, String)> {
        let request = Request::image(image)?;
        let Operation::Manifest(name, Reference::Tag(tag)) = &request.operation else {
            bail!("a digest never changes: name a tag");
        };
        let url = self.registry_url(&request, name, "manifests", tag.as_str());
        let answer = self.send(self.http.get(url).header(CACHE_CONTROL, "no-cache").header("priority", "u=7")).await?;
        let header = |name: &str| answer.headers().get(name).and_then(|value| value.to_str().ok()).unwrap_or_default();
        if answer.status().is_success() {
            let (digest, served) = (header("docker-content-digest").to_owned(), header("x-stopover").to_owned());
            if served == "stale" {
                bail!("upstream could not be asked; the cache still serves {digest}");
            }
            return Ok((digest, served));
        }
        let status = answer.status();
        let body = said(&answer.bytes().await?).unwrap_or_default();
        bail!("{status}: {}", message_in(&body).unwrap_or("no reason was given"))
    }

    /// The URL of a part of an image.
    fn registry_url(&self, request: &Request, name: &Name, kind: &str, what: &str) -> String {
        let namespace = request.namespace.as_ref().map_or_else(String::new, |namespace| {
            format!("?ns={}", url::form_urlencoded::byte_serialize(namespace.as_bytes()).collect::<String>())
        });
        format!("{}/v2/{name}/{kind}/{what}{namespace}", self.server)
    }

    /// The URL of `what` in the operators' API.
    fn url(&self, what: &str) -> String {
        format!("{}/_stopover/{what}", self.server)
    }

    /// Sends a request, and reads the answer.
    async fn ask<T: DeserializeOwned>(&self, question: reqwest::RequestBuilder) -> anyhow::Result<T> {
        Self::read(self.send(question).await?).await
    }

    /// Reads an answer.
    async fn read<T: DeserializeOwned>(answer: reqwest::Response) -> anyhow::Result<T> {
        let (status, body) = (answer.status(), answer.bytes().await?);
        if !status.is_success() {
            let body = said(&body).unwrap_or_default();
            let reason = body.get("error").and_then(|error| error.as_str()).or_else(|| message_in(&body));
            bail!("{status}: {}", reason.unwrap_or("that is no cache of this version"));
        }
        said(&body).and_then(serde_json::from_value).context("that is no cache of this version")
    }
}

/// What a server says. Its texts may stand on a terminal: this is where they enter.
fn said(body: &[u8]) -> serde_json::Result<Value> {
    serde_json::from_slice(body).map(tamed)
}

fn tamed(value: Value) -> Value {
    match value {
        Value::String(text) => Value::String(harmless(&text)),
        Value::Array(values) => values.into_iter().map(tamed).collect(),
        Value::Object(fields) => fields.into_iter().map(|(name, value)| (harmless(&name), tamed(value))).collect(),
        value => value,
    }
}

/// The message of a registry's error, for people (distribution-spec 1.1, "Error Codes").
fn message_in(body: &Value) -> Option<&str> {
    body.pointer("/errors/0/message")?.as_str()
}
