//! Sending a request to an upstream: its login and tokens, and redirects, which are followed here so that each target is
//! checked.

use std::time::Duration;

use http::header::{ACCEPT, ACCEPT_ENCODING, AUTHORIZATION, RANGE};
use http::{HeaderValue, Method, StatusCode};
use reqwest::Response;
use tokio::time::Instant;
use url::Url;

use super::answer::{self, UpstreamResponse, timed};
use super::blob::BytesWanted;
use super::guard;
use super::login::UpstreamLogin;
use super::token::Challenge;
use super::{Result, Upstream};
use crate::errors::UpstreamError;
use crate::oci::{Name, Request};
use crate::records::gauge::Quota;

pub(super) const MAX_REDIRECTS: usize = 5;
/// How long `/v2/` may take to say how to log in.
const CHALLENGE_TIMEOUT: Duration = Duration::from_secs(5);

/// How long a new token may be refused because two clocks differ.
const SKEW: Duration = Duration::from_millis(1200);

/// Why what the registry asks for is learned anew.
enum Doubt {
    NoToken(UpstreamError),
    /// `certain`: it says that no other token will do, or there is none.
    Refused {
        certain: bool,
    },
}

impl Upstream {
    /// Sends a request and follows at most five redirects, each to a host that [`guard::Clients::reach_of`] allows.
    pub(super) async fn send(
        &self,
        method: Method,
        url: Url,
        name: &Name,
        accept: &'static str,
        wanted: Option<BytesWanted>,
        ends_at: Instant,
    ) -> Result<UpstreamResponse> {
        let mut at = url;
        for _ in 0..=MAX_REDIRECTS {
            let answer = Box::pin(self.request(method.clone(), at, name, accept, wanted, ends_at)).await?;
            match answer.redirect_target()? {
                None => return Ok(answer),
                Some(target) => at = target,
            }
        }
        Err(redirected_too_often())
    }

    /// Sends one request. Credentials, and tokens obtained with them, go to the upstream's own origin only. After a 401
    /// a token is fetched. A refusal counts once it is certain: a new token was refused too, and what the registry asks
    /// for was learned anew. `ends_at`: when another host than the registry is given up.
    pub(super) async fn request(
        &self,
        method: Method,
        url: Url,
        name: &Name,
        accept: &'static str,
        wanted: Option<BytesWanted>,
        ends_at: Instant,
    ) -> Result<UpstreamResponse> {
        let own = url.origin() == self.config.url.origin();
        let mut challenge = if own { self.account.challenge(name) } else { None };
        let (mut refused, mut anonymous, mut learned, mut rested) = (None, None, false, false);
        // The challenge that did not lead to an answer, while it is learned anew.
        let mut doubted = None;
        loop {
            let authorization = match &challenge {
                None => anonymous.take(),
                Some(known) => {
                    let (account, refused) = (&self.account, refused.as_ref());
                    match account.tokens.authorization(known, name, refused, &account.login, self).await {
                        Ok(authorization) => Some(authorization),
                        // The token server may have moved.
                        Err(error) if !learned && error.limit().is_none() => {
                            doubted = challenge.take().map(|known| (known, Doubt::NoToken(error)));
                            continue;
                        }
                        Err(error) => return Err(error),
                    }
                }
            };
            let mut request = reqwest::Request::new(method.clone(), url.clone());
            let headers = request.headers_mut();
            headers.insert(ACCEPT, HeaderValue::from_static(accept));
            headers.insert(ACCEPT_ENCODING, HeaderValue::from_static("identity"));
            let range = wanted.and_then(|(first, last)| HeaderValue::from_str(&format!("bytes={first}-{last}")).ok());
            headers.extend(range.map(|range| (RANGE, range)));
            headers.extend(authorization.clone().map(|authorization| (AUTHORIZATION, authorization)));
            let response = self.send_once(request, name, ends_at).await?;
            let at = self.clock.now();
            if own && let Some(quota) = Quota::read(response.headers(), at) {
                self.account.note_quota(quota);
            }
            let unauthorized = response.status() == StatusCode::UNAUTHORIZED;
            if unauthorized && !own && refused.is_none() {
                anonymous = Box::pin(self.anonymous_token(&response, &url, authorization.as_ref())).await?;
                if anonymous.is_some() {
                    refused = authorization;
                    continue;
                }
            }
            let authorized = authorization.is_some();
            let error = if unauthorized { Challenge::error(response.headers()) } else { None };
            let answer = UpstreamResponse {
                response,
                url: url.clone(),
                at,
                authorized,
                elsewhere: !own,
                ranged: wanted.is_some(),
            };
            if !unauthorized || !own {
                return Ok(answer);
            }
            let certain = match challenge.take() {
                None => {
                    let asked = self.learn(&answer.response, name).await?;
                    self.account.set_challenge(name, &asked);
                    learned = true;
                    let same = |(known, _): &(Challenge, Doubt)| *known == asked;
                    match doubted.take_if(|doubted| same(doubted)) {
                        Some((_, Doubt::NoToken(error))) => return Err(error),
                        Some((_, Doubt::Refused { certain })) => {
                            challenge = Some(asked);
                            certain
                        }
                        None => {
                            (challenge, refused) = (Some(asked), None);
                            continue;
                        }
                    }
                }
                Some(known) => {
                    let renews = matches!(known, Challenge::Bearer { .. }) || self.account.login.renews();
                    if renews && refused.is_none() {
                        (challenge, refused) = (Some(known), authorization);
                        continue;
                    }
                    let certain =
                        !matches!(known, Challenge::Bearer { .. }) || error.as_deref() == Some("insufficient_scope");
                    if !learned {
                        doubted = Some((known, Doubt::Refused { certain }));
                        continue;
                    }
                    challenge = Some(known);
                    certain
                }
            };
            // The clock of the registry may be behind that of its token server.
            if !certain && !rested {
                tokio::time::sleep(SKEW).await;
                rested = true;
            } else if rested && error.as_deref() == Some("invalid_token") {
                return Err(UpstreamError::failed("it refuses the token that its token server has just issued"));
            } else {
                return Ok(UpstreamResponse { authorized: true, ranged: false, ..answer });
            }
        }
    }

    /// Silence of another host than the registry is not the registry's.
    async fn send_once(&self, request: reqwest::Request, name: &Name, ends_at: Instant) -> Result<Response> {
        let (method, own) = (request.method().clone(), request.url().origin() == self.config.url.origin());
        let (host, started) = (guard::origin(request.url()), Instant::now());
        let sent = self.clients.send(request, &self.config);
        let sent = if own { Ok(sent.await) } else { tokio::time::timeout_at(ends_at, sent).await };
        let late = || UpstreamError::Unavailable { silent: true, reason: format!("{host} did not answer in time") };
        let sent = sent.unwrap_or_else(|_| Err(late()));
        let response = sent.map_err(|error| match error {
            UpstreamError::Unavailable { silent, reason } if !own => UpstreamError::Elsewhere { silent, reason },
            error => error,
        })?;
        tracing::debug!(
            upstream.id = %self.id(), upstream.host = %host, http.method = %method, repository.name = %name,
            http.status = response.status().as_u16(), duration_ms = started.elapsed().as_millis(), "asked upstream"
        );
        Ok(response)
    }

    /// An anonymous token for the API of another registry, from a realm that may issue ours (lscr.io redirects to
    /// ghcr.io). `None`: its 401 is for another path, or asks for another kind of login.
    async fn anonymous_token(
        &self,
        unauthorized: &Response,
        url: &Url,
        refused: Option<&HeaderValue>,
    ) -> Result<Option<HeaderValue>> {
        let challenge = Challenge::parse(unauthorized.headers()).filter(|wanted| wanted.is_allowed(&self.config));
        let request = Request::parse(&Method::GET, url.path(), None).ok();
        let name = request.as_ref().and_then(|request| request.operation.name());
        let (Some(challenge), Some(name)) = (challenge, name) else { return Ok(None) };
        let (tokens, login) = (&self.account.anonymous_tokens, &UpstreamLogin::Anonymous);
        tokens.authorization(&challenge, name, refused, login, self).await.map(Some)
    }

    /// Learns the challenge from a 401, or from `/v2/` where that 401 has none (pkg.dev).
    async fn learn(&self, unauthorized: &Response, name: &Name) -> Result<Challenge> {
        let mut challenge = Challenge::parse(unauthorized.headers());
        if challenge.is_none() {
            let mut url = self.config.url.clone();
            url.set_path("/v2/");
            let ping = self.clients.send(reqwest::Request::new(Method::GET, url), &self.config);
            challenge = Challenge::parse(timed(CHALLENGE_TIMEOUT, ping).await?.headers());
        }
        tracing::debug!(upstream.id = %self.id(), repository.name = %name, "learned how upstream wants to be asked");
        let missing = || {
            let reason = "it answered 401 and did not say how to log in".to_owned();
            // A registry that refuses does not answer with a page: something in between does.
            if answer::is_page(unauthorized.headers()) && !self.has_credentials() {
                return UpstreamError::failed(reason);
            }
            UpstreamError::Denied(reason)
        };
        Ok(challenge.ok_or_else(missing)?.of_any_repository())
    }
}

/// When a host that upstream redirects to is given up: before the question as a whole, so that it is known whose
/// silence it was.
pub(super) fn hop_ends(limit: Duration) -> Instant {
    Instant::now() + limit * 19 / 20
}

pub(super) fn redirected_too_often() -> UpstreamError {
    UpstreamError::Invalid(format!("it redirected more than {MAX_REDIRECTS} times"))
}
