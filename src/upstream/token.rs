//! Challenges and tokens (distribution-spec 1.1 leaves them to RFC 9110 and Docker's token specification).

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use http::header::{AUTHORIZATION, HeaderValue, WWW_AUTHENTICATE};
use http::{HeaderMap, Method, StatusCode};
use serde::Deserialize;
use serde::de::IgnoredAny;
use tokio::sync::Mutex;
use url::Url;

use super::answer::{is_page, limited, read_limited, timed};
use super::login::{CachedLogin, UpstreamLogin};
use super::{Result, Upstream, guard};
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
const MAX_LIFE: Duration = Duration::from_hours(12);
/// The shortest: what some write as `0.5` is used for the request that it was fetched for.
const MIN_LIFE: Duration = Duration::from_secs(1);
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
        let all = schemes(headers);
        let bearer = all.iter().filter(|scheme| scheme.is("bearer")).find_map(|scheme| {
            let realm = Url::parse(scheme.parameter("realm")?).ok()?;
            let parameter = |name| scheme.parameter(name).map(str::to_owned);
            Some(Self::Bearer { realm, service: parameter("service"), scope: parameter("scope") })
        });
        bearer.or_else(|| all.iter().any(|scheme| scheme.is("basic")).then_some(Self::Basic))
    }

    /// The `error` of the challenge to a token that was refused (RFC 6750, section 3.1).
    pub(super) fn error(headers: &HeaderMap) -> Option<String> {
        schemes(headers).iter().find_map(|scheme| scheme.parameter("error").map(str::to_owned))
    }

    /// Without the scope of one repository.
    pub(super) fn of_any_repository(mut self) -> Self {
        if let Self::Bearer { scope, .. } = &mut self {
            scope.take_if(|scope| scope.is_empty() || scope.contains(':'));
        }
        self
    }

    /// Whether it asks for a token from a realm that may issue tokens for this upstream.
    pub(super) fn is_allowed(&self, upstream: &UpstreamConfig) -> bool {
        matches!(self, Self::Bearer { realm, .. } if guard::is_named(realm, upstream))
    }
}

/// An authentication scheme with its parameters.
struct Scheme {
    name: String,
    parameters: Vec<(String, String)>,
}

impl Scheme {
    fn is(&self, name: &str) -> bool {
        self.name.eq_ignore_ascii_case(name)
    }

    fn parameter(&self, name: &str) -> Option<&str> {
        let (_, value) = self.parameters.iter().find(|(key, _)| key.eq_ignore_ascii_case(name))?;
        Some(value)
    }
}

/// The schemes of all `WWW-Authenticate` headers (RFC 9110, section 11.6.1). Like Go's clients, it keeps what it can
/// read of a header that breaks the grammar.
fn schemes(headers: &HeaderMap) -> Vec<Scheme> {
    let is_word = |letter: char| !letter.is_whitespace() && !"\",;=".contains(letter);
    let mut all: Vec<Scheme> = Vec::new();
    for header in headers.get_all(WWW_AUTHENTICATE) {
        let text = String::from_utf8_lossy(header.as_bytes());
        let mut rest = text.trim_start_matches(|letter| !is_word(letter));
        while !rest.is_empty() {
            let after = rest.trim_start_matches(is_word);
            let word = rest.strip_suffix(after).unwrap_or_default().to_owned();
            rest = after.trim_start();
            if let Some(value) = rest.strip_prefix('=') {
                let Some((value, after)) = value_of(value.trim_start()) else { break };
                all.last_mut().into_iter().for_each(|scheme| scheme.parameters.push((word.clone(), value.clone())));
                rest = after;
            } else {
                all.push(Scheme { name: word, parameters: Vec::new() });
            }
            rest = rest.trim_start_matches(|letter| !is_word(letter));
        }
    }
    all
}

/// A quoted or a bare value, and what follows. `None`: its quote is not closed.
fn value_of(text: &str) -> Option<(String, &str)> {
    let Some(quoted) = text.strip_prefix('"') else {
        let after = text.trim_start_matches(|letter: char| !letter.is_whitespace() && !",;".contains(letter));
        return Some((text.strip_suffix(after)?.to_owned(), after));
    };
    let (mut value, mut letters) = (String::new(), quoted.chars());
    loop {
        match letters.next()? {
            '"' => return Some((value, letters.as_str())),
            '\\' => value.push(letters.next()?),
            letter => value.push(letter),
        }
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
    pub fn parse(body: &[u8]) -> Result<Self> {
        /// Token servers write numbers as text, and text as `null`; only the token has to be as specified.
        #[derive(Deserialize)]
        #[serde(untagged)]
        enum Field {
            Text(String),
            Number(f64),
            Other(IgnoredAny),
        }
        let answer: HashMap<String, Field> = serde_json::from_slice(body)
            .map_err(|error| UpstreamError::Invalid(format!("its token server sent no token: {}", excerpt(&error))))?;
        let seconds = match answer.get("expires_in") {
            Some(Field::Number(seconds)) => Some(*seconds),
            Some(Field::Text(text)) => text.trim().parse().ok(),
            Some(Field::Other(_)) | None => None,
        };
        let life =
            seconds.filter(|seconds| *seconds > 0.0).map_or(Duration::from_secs(DEFAULT_LIFE_SECONDS), |seconds| {
                Duration::try_from_secs_f64(seconds).unwrap_or(MAX_LIFE).clamp(MIN_LIFE, MAX_LIFE)
            });
        let token = ["token", "access_token"].into_iter().find_map(|name| match answer.get(name) {
            Some(Field::Text(token)) if !token.trim().is_empty() => Some(token.trim()),
            _ => None,
        });
        let authorization = token.and_then(|token| HeaderValue::from_str(&format!("Bearer {token}")).ok());
        let unusable = || UpstreamError::Invalid("its token server sent no usable token".into());
        let mut authorization = authorization.ok_or_else(unusable)?;
        authorization.set_sensitive(true);
        Ok(Self { authorization, life })
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
        upstream: &Upstream,
    ) -> Result<HeaderValue> {
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
        let fetch = Box::pin(self.fetch(realm, service, &scope, login, upstream));
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
        upstream: &Upstream,
    ) -> Result<CachedLogin> {
        if !guard::is_named(realm, &upstream.config) {
            return Err(UpstreamError::Invalid(format!(
                "it sends us to {} for a token; add that to token_realms if it is meant",
                guard::origin(realm)
            )));
        }
        let mut url = realm.clone();
        url.query_pairs_mut()
            .extend_pairs(service.filter(|service| !service.is_empty()).map(|service| ("service", service)))
            .append_pair("scope", scope);
        let ask = async |authorization: Option<HeaderValue>| {
            let mut request = reqwest::Request::new(Method::GET, url.clone());
            request.headers_mut().extend(authorization.map(|authorization| (AUTHORIZATION, authorization)));
            timed(TOKEN_TIMEOUT, upstream.clients.send(request, &upstream.config)).await
        };
        let authorization = login.basic(None).await?;
        let mut response = ask(authorization.clone()).await?;
        if login.renews() && matches!(response.status(), StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN) {
            // The password may have been replaced.
            let renewed = login.basic(authorization.as_ref()).await?;
            if renewed != authorization {
                response = ask(renewed).await?;
            }
        }
        match response.status() {
            StatusCode::OK => {}
            StatusCode::TOO_MANY_REQUESTS => {
                return Err(limited(response, Some(Limit::Login), self.clock.now()).await);
            }
            StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN if !is_page(response.headers()) => {
                // To anonymous callers a registry does not tell a private repository from a missing one.
                let denied = format!("its token server answered {} to our credentials", response.status());
                return Err(if login.is_anonymous() {
                    UpstreamError::NoRepository
                } else {
                    UpstreamError::Denied(denied)
                });
            }
            // All else says that the token server is not where it was, or not well.
            status => return Err(UpstreamError::failed(format!("its token server answered {status}"))),
        }
        let body = timed(TOKEN_TIMEOUT, read_limited(response, MAX_TOKEN_BYTES)).await?;
        let IssuedToken { authorization, life } = IssuedToken::parse(&body)?;
        Ok(CachedLogin::new(authorization, self.clock.now(), life))
    }
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
    fn a_challenge_is_read_as_far_as_other_clients_read_it() {
        for value in [
            "BEARER REALM=\"https://a.test/token\"",
            "Bearer realm=https://a.test/token,service=",
            "Bearer realm=\"https://a.test/token\" service=\"\"; scope = \"aws\"",
            "Bearer realm=\"https://a.test/token\", ,",
            "Bearer realm=\"https://a.test/token\",service=\"never closed",
            "Bearer realm=\"https://a.test/token\",error",
            "Basic realm=\"Bearer realm=https://b.test\", Bearer realm=\"https://a.test/token\"",
            "Negotiate abc==, Digest realm=d, nonce=\"\u{e9}\\\"\", Bearer realm=\"https://a.test/token\"",
            "Bearer\trealm=\"https:\\/\\/a.test\\/token\"",
        ] {
            let found = parse(&[value]);
            let is_read =
                matches!(&found, Some(Challenge::Bearer { realm, .. }) if realm.as_str() == "https://a.test/token");
            assert!(is_read, "{value}: {found:?}");
        }
        let headers = HeaderMap::from_iter([(
            WWW_AUTHENTICATE,
            HeaderValue::from_static("Bearer realm=\"https://a.test/\",error=\"insufficient_scope\""),
        )]);
        assert_eq!(Challenge::error(&headers).as_deref(), Some("insufficient_scope"));
    }

    #[test]
    fn odd_fields_of_a_token_answer_do_not_hide_the_token() {
        let life = |text: &str| {
            let token = IssuedToken::parse(text.as_bytes()).unwrap_or_else(|error| panic!("{text}: {error}"));
            assert_eq!(token.authorization, "Bearer abc", "{text}");
            token.life.as_secs()
        };
        assert_eq!(life(r#"{"token":"","access_token":"abc","expires_in":300}"#), 300);
        assert_eq!(life(r#"{"token":null,"access_token":"abc","token_type":5}"#), 60);
        assert_eq!(life(r#"{"token":"abc","access_token":[{}],"expires_in":"3600"}"#), 3600);
        for (seconds, expected) in [
            ("300.9", 300),
            ("\"1e2\"", 100),
            ("0.5", 1),
            ("-1", 60),
            ("0", 60),
            ("null", 60),
            ("\"soon\"", 60),
            ("\"NaN\"", 60),
            ("[]", 60),
            ("36893488147419103232", 12 * 3600),
            ("\"inf\"", 12 * 3600),
        ] {
            assert_eq!(life(&format!("{{\"token\":\"abc\",\"expires_in\":{seconds}}}")), expected, "{seconds}");
        }
        assert_eq!(life(r#"{"token":"x","token":"abc"}"#), 60);
        for text in ["", "[]", "{}", r#"{"token":""}"#, r#"{"token":5}"#, r#"{"token":"a\u0000b"}"#, "<html>"] {
            assert!(IssuedToken::parse(text.as_bytes()).is_err(), "{text}");
        }
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
