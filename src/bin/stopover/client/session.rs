//! How a command proves who it is: an operator by the secret in the data directory, another caller by a login at the
//! cache.

use std::env;
use std::net::Ipv4Addr;
use std::path::Path;
use std::sync::PoisonError;

use anyhow::{Context as _, bail, ensure};
use http::StatusCode;
use http::header::HeaderValue;
use reqwest::{Body, RequestBuilder, Response};
use stopover::access::{OPERATOR_HEADER, OperatorSecret};
use stopover::local::operator_secret;
use stopover::upstream::Challenge;
use stopover::values::time::Clock;
use url::Position;

use super::login::{Credential, Identity};
use super::{Client, Endpoint, message_in};

/// The variable that holds a password: an argument would be seen in the list of processes.
const PASSWORD: &str = "STOPOVER_PASSWORD";

/// How to log in, for a caller that has not.
const HOW_TO_LOG_IN: &str = "as a robot with STOPOVER_USER and STOPOVER_PASSWORD, or as this machine (AWS, OpenID Connect) \
                             with --service, or STOPOVER_SERVICE, and the name of the cache";

/// The login of the caller, for a cache that asks for one.
#[derive(clap::Args, Default)]
pub(crate) struct LoginArguments {
    /// The robot to log in as, with its secret in the variable `STOPOVER_PASSWORD`
    #[arg(long, env = "STOPOVER_USER", value_name = "NAME")]
    user: Option<String>,
    #[command(flatten)]
    identity: Option<Identity>,
}

impl LoginArguments {
    fn is_given(&self) -> bool {
        self.user().is_some() || self.identity.is_some()
    }

    /// The user name. A variable that is empty counts as unset.
    fn user(&self) -> Option<&String> {
        self.user.as_ref().filter(|user| !user.is_empty())
    }

    /// The login that was given. `None`: there is none.
    async fn credential(&self) -> anyhow::Result<Option<Credential>> {
        if let Some(user) = self.user() {
            let password =
                env::var(PASSWORD).with_context(|| format!("the secret of {user} is wanted in {PASSWORD}"))?;
            return Ok(Some(Credential { user: user.clone(), password }));
        }
        match &self.identity {
            Some(identity) => identity.credential().await.map(Some),
            None => Ok(None),
        }
    }
}

/// The operators' secret, or why there is none.
pub(crate) struct OperatorProof(Result<OperatorSecret, String>);

impl OperatorProof {
    /// Reads the secret of this data directory, for the cache that uses it: no other server gets a proof. `own` is the
    /// address that the configuration listens at.
    pub(crate) fn read(data: &Path, server: &Endpoint, own: &Endpoint) -> Self {
        // With a name, or ::1, the listener may be another program than the cache, and pass the proof on to it.
        let here = server.url().host_str().and_then(|host| host.parse().ok());
        if !here.is_some_and(|address: Ipv4Addr| address.is_loopback()) && server != own {
            return Self(Err(format!(
                "only the machine of {server} itself may ask this: run it there, and leave --server out or name an address \
                 like http://127.0.0.1:5000"
            )));
        }
        let path = operator_secret(data);
        let unreadable = |error: &dyn std::fmt::Display| {
            format!(
                "cannot read the operators' secret in {}: {error}; run this as the user of the cache, on its machine, \
                 with its configuration (--config or --data-dir)",
                path.display()
            )
        };
        let secret = std::fs::read_to_string(&path).map_err(|error| unreadable(&error));
        Self(secret.and_then(|secret| OperatorSecret::parse(&secret).map_err(|error| unreadable(&error))))
    }

    /// Whether the secret is known.
    pub(super) fn is_known(&self) -> bool {
        self.0.is_ok()
    }

    /// A request with an operator's proof of this moment. Fails without the secret.
    pub(super) fn prove(&self, request: RequestBuilder) -> anyhow::Result<RequestBuilder> {
        let secret = self.0.as_ref().map_err(|reason| anyhow::anyhow!(reason.clone()))?;
        let (http, request) = request.build_split();
        let mut request = request?;
        let body = request.body().and_then(Body::as_bytes).unwrap_or_default();
        let target = &request.url()[Position::BeforePath..Position::AfterQuery];
        let proof = secret.prove(request.method(), target, body, Clock::default().now());
        let mut proof = HeaderValue::try_from(proof.context("the proof of an operator cannot be signed")?)?;
        proof.set_sensitive(true);
        request.headers_mut().insert(OPERATOR_HEADER, proof);
        Ok(RequestBuilder::from_parts(http, request))
    }
}

impl Client {
    /// Sends a request, as an operator unless a login is given. If the cache asks for a login, sends it once more with
    /// a token.
    pub(super) async fn send(&self, request: RequestBuilder) -> anyhow::Result<Response> {
        let by_operator = self.operator.is_known() && !self.login.is_given();
        let request = if by_operator { self.operator.prove(request)? } else { request };
        let away = || format!("no cache answers at {}: name one with --server", self.server);
        let again = request.try_clone();
        let answer = self.authorized(request).send().await.with_context(away)?;
        match again {
            Some(again) if asks_for_login(&answer) => {
                self.log_in(&answer).await?;
                self.authorized(again).send().await.with_context(away)
            }
            _ => Ok(answer),
        }
    }

    /// Adds the token, if there is one.
    pub(super) fn authorized(&self, request: RequestBuilder) -> RequestBuilder {
        match &*self.token.lock().unwrap_or_else(PoisonError::into_inner) {
            Some(token) => request.bearer_auth(token),
            None => request,
        }
    }

    /// Gets the token that a challenge asks for: an anonymous one, unless a login is given. The login goes to the cache
    /// itself, or over TLS, and nowhere else.
    pub(super) async fn log_in(&self, challenged: &Response) -> anyhow::Result<()> {
        let Some(Challenge::Bearer { realm, service, .. }) = Challenge::parse(challenged.headers()) else {
            bail!("{} asks for a login that is none of a cache", self.server);
        };
        let origin = realm.origin();
        ensure!(
            realm.scheme() == "https" || origin == self.server.url().origin(),
            "{} sends logins to {}, in plain text: that is not done",
            self.server,
            origin.ascii_serialization()
        );
        let credential = self.login.credential().await?;
        let mut question = realm;
        question.query_pairs_mut().extend_pairs(service.map(|service| ("service", service)));
        let mut request = self.http.get(question);
        if let Some(Credential { user, password }) = &credential {
            request = request.basic_auth(user, Some(password));
        }
        let answer = request.send().await.map_err(reqwest::Error::without_url);
        let answer = answer.with_context(|| format!("{} issues no token", origin.ascii_serialization()))?;
        let (status, body) = (answer.status(), answer.bytes().await?);
        let body: serde_json::Value = serde_json::from_slice(&body).unwrap_or_default();
        let token = body.get("token").and_then(|token| token.as_str()).filter(|_| status == StatusCode::OK);
        if let Some(token) = token {
            *self.token.lock().unwrap_or_else(PoisonError::into_inner) = Some(token.to_owned());
            return Ok(());
        }
        let reason = message_in(&body).unwrap_or("no reason was given");
        match credential {
            None => bail!("{} asks for a login: log in {HOW_TO_LOG_IN}", self.server),
            Some(Credential { user, .. }) => bail!("{} refuses the login as {user}: {status}: {reason}", self.server),
        }
    }
}

/// Whether an answer is a challenge for a token.
pub(super) fn asks_for_login(answer: &Response) -> bool {
    answer.status() == StatusCode::UNAUTHORIZED
        && matches!(Challenge::parse(answer.headers()), Some(Challenge::Bearer { .. }))
}
