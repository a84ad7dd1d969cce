//! How a command reaches the cache: an operator of this machine over the socket in the data directory, another caller
//! with a login.

use std::env;
use std::io::ErrorKind;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::sync::PoisonError;

use anyhow::{Context as _, bail, ensure};
use http::StatusCode;
use reqwest::{RequestBuilder, Response};
use stopover::local::operator_socket;
use stopover::upstream::Challenge;

use super::login::{Credential, Identity};
use super::{Client, message_in, said};

/// The variable that holds a password: an argument would be seen in the list of processes.
const PASSWORD: &str = "STOPOVER_PASSWORD";

/// How to log in, for a caller that has not.
const HOW_TO_LOG_IN: &str = "as a robot with STOPOVER_USER and STOPOVER_PASSWORD, or as this machine (AWS, OpenID Connect) \
                             with --service, or STOPOVER_SERVICE, and the name of the cache";

/// The login of the caller, for a cache that asks for one.
#[derive(clap::Args, Default)]
pub(crate) struct LoginArguments {
    /// The robot to log in as, with its secret in the variable `STOPOVER_PASSWORD`
    #[arg(long, global = true, env = "STOPOVER_USER", value_name = "NAME")]
    user: Option<String>,
    #[command(flatten)]
    identity: Identity,
}

impl LoginArguments {
    fn is_given(&self) -> bool {
        self.user().is_some() || self.identity.is_given()
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
        if self.identity.is_given() { self.identity.credential().await.map(Some) } else { Ok(None) }
    }
}

/// Who asks what a command asks, where no cache is named.
#[derive(Clone, Copy)]
pub(crate) enum Asker {
    /// An operator of this machine.
    Operator,
    /// An operator of this machine, if this user is one and no login is given; any other caller otherwise.
    Anyone,
    /// A client: it has to see what clients see.
    Client,
}

impl Asker {
    /// The operators' socket of the cache with this data directory. `None`: the asker is no operator.
    pub(crate) fn socket(self, data: &Path, login: &LoginArguments) -> anyhow::Result<Option<PathBuf>> {
        let path = operator_socket(data);
        // Also tells whether a cache listens: the socket of one that was killed stays.
        let error = match (self, UnixStream::connect(&path)) {
            (Self::Client, _) => return Ok(None),
            (Self::Anyone, opened) => return Ok(opened.is_ok_and(|_| !login.is_given()).then_some(path)),
            (Self::Operator, Ok(_)) => return Ok(Some(path)),
            (Self::Operator, Err(error)) => error,
        };
        let advice = match error.kind() {
            ErrorKind::NotFound | ErrorKind::ConnectionRefused => {
                "no cache runs with this data directory: name that of one that does (--config or --data-dir)"
            }
            ErrorKind::PermissionDenied => "run this as the user of the cache",
            _ => "a path of at most 107 bytes is needed: name a link to the data directory with --data-dir",
        };
        bail!(
            "cannot ask as an operator at {}: {error}; {advice}, or a cache with --server and log in as one of the \
             `operators` in its [access]",
            path.display()
        )
    }
}

impl Client {
    /// Sends a request. If the cache asks for a login, sends it once more with a token.
    pub(super) async fn send(&self, request: RequestBuilder) -> anyhow::Result<Response> {
        let away = || format!("no cache answers at {}: is it running? --server names another", self.server);
        let again = request.try_clone();
        let answer = self.authorized(request).send().await.with_context(away)?;
        match again {
            Some(again) if asks_for_login(&answer) => {
                self.log_in(&answer).await?;
                let answer = self.authorized(again).send().await.with_context(away)?;
                // An anonymous token was not enough.
                ensure!(!asks_for_login(&answer) || self.login.is_given(), self.login_wanted());
                Ok(answer)
            }
            _ => Ok(answer),
        }
    }

    fn login_wanted(&self) -> String {
        format!("{} asks for a login: log in {HOW_TO_LOG_IN}", self.server)
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
        // The socket leads to no server of tokens; an operator may ask for all but what is private.
        ensure!(!self.is_local_operator, self.login_wanted());
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
        let body = said(&body).unwrap_or_default();
        let token = body.get("token").and_then(|token| token.as_str()).filter(|_| status == StatusCode::OK);
        if let Some(token) = token {
            *self.token.lock().unwrap_or_else(PoisonError::into_inner) = Some(token.to_owned());
            return Ok(());
        }
        let reason = message_in(&body).unwrap_or("no reason was given");
        match credential {
            None => bail!(self.login_wanted()),
            Some(Credential { user, .. }) => bail!("{} refuses the login as {user}: {status}: {reason}", self.server),
        }
    }
}

/// Whether an answer is a challenge for a token.
pub(super) fn asks_for_login(answer: &Response) -> bool {
    answer.status() == StatusCode::UNAUTHORIZED
        && matches!(Challenge::parse(answer.headers()), Some(Challenge::Bearer { .. }))
}
