//! Challenges and tokens (distribution-spec 1.1 leaves them to RFC 9110 and Docker's token specification).

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use http::header::{HeaderValue, WWW_AUTHENTICATE};
use http::{HeaderMap, StatusCode};
use serde::Deserialize;
use tokio::sync::Mutex;
use url::Url;

use super::answer::{limited, read_limited, timed};
use super::guard::{self, Clients};
use super::login::{CachedLogin, UpstreamLogin};
use crate::config::UpstreamConfig;
use crate::errors::{Limit, UpstreamError};
use crate::oci::Name;
use crate::values::text::excerpt;
use crate::values::time::Clock;

/// The longest answer of a token server, in bytes; usual ones have a few kilobytes.
const MAX_TOKEN_BYTES: usize = 64 * 1024;
/// The life of a token whose answer does not say (token specification, "`expires_in`").
const DEFAULT_LIFE_SECONDS: u64 = 60;
/// The longest that a token is kept, whatever its answer says.
const MAX_LIFE_SECONDS: u64 = 12 * 3600;
const TOKEN_TIMEOUT: Duration = Duration::from_secs(10);
/// Above this many tokens, expired ones are dropped, and if that is not enough all that are not being fetched.
const MANY_TOKENS: usize = 1024;

/// How a registry wants its clients to authenticate.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Challenge {
    /// User name and password with each request.
    Basic,
    /// A token from `realm`.
    Bearer {
        /// The URL of the token server.
        realm: Url,
        /// The service that the token is for.
        service: Option<String>,
        /// The scope in the challenge. Some registries send a placeholder, some a constant of their own.
        scope: Option<String>,
    },
}

impl Challenge {
    /// The challenge of a 401 answer. Bearer is preferred if there are several.
    pub fn parse(headers: &HeaderMap) -> Option<Self> {
        let mut found = None;
        for header in headers.get_all(WWW_AUTHENTICATE) {
            let Ok(text) = header.to_str() else { continue };
            for challenge in http_auth::parser::ChallengeParser::new(text).flatten() {
                if challenge.scheme.eq_ignore_ascii_case("basic") {
                    found.get_or_insert(Self::Basic);
                }
                let parameter = |name: &str| {
                    let (_, value) = challenge.params.iter().find(|(key, _)| key.eq_ignore_ascii_case(name))?;
                    Some(value.to_unescaped())
                };
                if challenge.scheme.eq_ignore_ascii_case("bearer")
                    && let Some(realm) = parameter("realm").and_then(|realm| Url::parse(&realm).ok())
                {
                    return Some(Self::Bearer { realm, service: parameter("service"), scope: parameter("scope") });
                }
            }
        }
        found
    }

    /// Whether it asks for a token from a realm that may issue tokens for this upstream.
    pub(super) fn is_allowed(&self, upstream: &UpstreamConfig) -> bool {
        matches!(self, Self::Bearer { realm, .. } if may_issue(realm, upstream))
    }
}

/// The tokens of one upstream, by realm and scope.
pub(super) struct Tokens {
    clock: Clock,
    /// Each has its own lock: further callers wait while a token is fetched.
    slots: std::sync::Mutex<HashMap<String, Slot>>,
}

type Slot = Arc<Mutex<Option<CachedLogin>>>;

/// A token, as token servers send it (token specification, "Token Response Fields").
pub struct IssuedToken {
    /// The `Authorization` header with the token; marked sensitive.
    pub authorization: HeaderValue,
    /// How long the token is valid: at most twelve hours.
    pub life: Duration,
}

impl IssuedToken {
    /// Parses the body of an answer. An error is [`UpstreamError::Invalid`].
    pub fn parse(body: &[u8]) -> Result<Self, UpstreamError> {
        #[derive(Deserialize)]
        struct UpstreamResponse {
            token: Option<String>,
            access_token: Option<String>,
            expires_in: Option<u64>,
        }
        let answer: UpstreamResponse = serde_json::from_slice(body)
            .map_err(|error| UpstreamError::Invalid(format!("its token server sent no token: {}", excerpt(&error))))?;
        let life = answer.expires_in.filter(|&life| life > 0).unwrap_or(DEFAULT_LIFE_SECONDS).min(MAX_LIFE_SECONDS);
        let token = answer.token.or(answer.access_token).unwrap_or_default();
        let mut authorization = HeaderValue::from_str(&format!("Bearer {token}"))
            .ok()
            .filter(|_| !token.is_empty())
            .ok_or_else(|| UpstreamError::Invalid("its token server sent no usable token".into()))?;
        authorization.set_sensitive(true);
        Ok(Self { authorization, life: Duration::from_secs(life) })
    }
}

impl Tokens {
    pub(super) fn new(clock: Clock) -> Self {
        Self { clock, slots: std::sync::Mutex::default() }
    }

    /// The `Authorization` for a request about `name`. `refused`: the value that upstream has just answered with 401.
    pub(super) async fn authorization(
        &self,
        challenge: &Challenge,
        name: &Name,
        refused: Option<&HeaderValue>,
        login: &UpstreamLogin,
        upstream: &UpstreamConfig,
        clients: &Clients,
    ) -> Result<HeaderValue, UpstreamError> {
        let (realm, service, scope) = match challenge {
            Challenge::Basic => {
                return login.basic(refused).await?.ok_or_else(|| {
                    let reason = "it asks for a user name and password, and none is configured (key: credentials)";
                    UpstreamError::Denied(reason.into())
                });
            }
            Challenge::Bearer { realm, service, scope } => (realm, service.as_deref(), scope.as_deref()),
        };
        let scope = match scope {
            // A constant of the registry's own, as public.ecr.aws has it.
            Some(constant) if !constant.is_empty() && !constant.contains(':') => constant.to_owned(),
            _ => format!("repository:{name}:pull"),
        };
        let slot = self.slot(format!("{realm} {scope}"));
        // Boxed because it is large and seldom needed.
        let fetch = Box::pin(self.fetch(realm, service, &scope, login, upstream, clients));
        CachedLogin::or_renewed(&mut *slot.lock().await, refused, &self.clock, fetch).await
    }

    fn slot(&self, key: String) -> Slot {
        let mut slots = self.slots.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        if slots.len() > MANY_TOKENS {
            let now = self.clock.now();
            slots.retain(|_, slot| {
                slot.try_lock().map_or(true, |token| token.as_ref().is_some_and(|token| !token.has_ended(now)))
            });
            if slots.len() > MANY_TOKENS {
                slots.retain(|_, slot| slot.try_lock().is_err());
            }
        }
        Arc::clone(slots.entry(key).or_default())
    }

    async fn fetch(
        &self,
        realm: &Url,
        service: Option<&str>,
        scope: &str,
        login: &UpstreamLogin,
        upstream: &UpstreamConfig,
        clients: &Clients,
    ) -> Result<CachedLogin, UpstreamError> {
        if !may_issue(realm, upstream) {
            return Err(UpstreamError::Invalid(format!(
                "it sends us to {} for a token; add that to token_realms if it is meant",
                guard::origin(realm)
            )));
        }
        let mut url = realm.clone();
        url.query_pairs_mut().extend_pairs(service.map(|service| ("service", service))).append_pair("scope", scope);
        let mut request = clients.client_for(&url, upstream)?.get(url);
        if let Some(authorization) = login.basic(None).await? {
            request = request.header(http::header::AUTHORIZATION, authorization);
        }
        let response = timed(TOKEN_TIMEOUT, request.send()).await?;
        match response.status() {
            StatusCode::OK => {}
            StatusCode::TOO_MANY_REQUESTS => {
                return Err(limited(response, Some(Limit::Login), self.clock.now()).await);
            }
            status if status.is_client_error() && !login.is_anonymous() => {
                return Err(UpstreamError::Denied(format!("its token server answered {status} to our credentials")));
            }
            // To anonymous callers a registry does not tell a private repository from a missing one.
            StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN | StatusCode::NOT_FOUND => {
                return Err(UpstreamError::NoRepository);
            }
            status => {
                let reason = format!("its token server answered {status}");
                return Err(UpstreamError::Unavailable { silent: false, reason });
            }
        }
        let body = timed(TOKEN_TIMEOUT, read_limited(response, MAX_TOKEN_BYTES)).await?;
        let IssuedToken { authorization, life } = IssuedToken::parse(&body)?;
        Ok(CachedLogin::new(authorization, self.clock.now(), life))
    }
}

/// Whether a realm may issue tokens for an upstream.
fn may_issue(realm: &Url, upstream: &UpstreamConfig) -> bool {
    let realms = std::iter::once(&upstream.url).chain(&upstream.token_realms);
    realms.into_iter().any(|known| known.origin() == realm.origin())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(values: &[&str]) -> Option<Challenge> {
        let mut headers = HeaderMap::new();
        for value in values {
            headers.append(WWW_AUTHENTICATE, HeaderValue::from_str(value).unwrap());
        }
        Challenge::parse(&headers)
    }

    #[test]
    fn bearer_is_preferred_and_its_parameters_may_be_quoted_or_not() {
        let bearer = parse(&[
            "Basic realm=\"x\"",
            "Bearer realm=\"https://auth.test/token\",service=reg.test,scope=\"repository:a:pull,push\"",
        ]);
        let Some(Challenge::Bearer { realm, service, scope }) = bearer else { panic!("{bearer:?}") };
        assert_eq!(realm.as_str(), "https://auth.test/token");
        assert_eq!((service.as_deref(), scope.as_deref()), (Some("reg.test"), Some("repository:a:pull,push")));
        assert_eq!(parse(&["Basic realm=\"x\""]), Some(Challenge::Basic));
    }

    #[test]
    fn nonsense_is_no_challenge() {
        for value in
            ["", "Bearer", "Bearer realm=\"not a url\"", "Negotiate abc", "\"\"\"", "Bearer realm=\"https://a.test"]
        {
            assert_eq!(parse(&[value]), None, "{value}");
        }
    }
}
