//! What the status, headers and body of an upstream's answer mean.

use std::error::Error as _;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use futures_util::StreamExt as _;
use http::StatusCode;
use http::header::{CONTENT_TYPE, HeaderMap, LOCATION, RETRY_AFTER, WWW_AUTHENTICATE};
use reqwest::Response;
use url::Url;

use super::{Result, guard};
use crate::errors::{Limit, UpstreamError};
use crate::oci::MediaType;
use crate::values::time::Timestamp;

/// How much of the body of a refusal is read to find its cause.
const MAX_REFUSAL_BYTES: usize = 16 * 1024;

/// The longest pause that an answer can ask for.
const LONGEST_PAUSE: Duration = Duration::from_hours(24);

/// An answer, and how it was obtained.
pub(super) struct UpstreamResponse {
    pub(super) response: Response,
    pub(super) url: Url,
    /// When it arrived.
    pub(super) at: Timestamp,
    pub(super) authorized: bool,
    /// Whether it came, after a redirect, from another origin than the upstream's own.
    pub(super) elsewhere: bool,
    /// Whether the request asked for a range.
    pub(super) ranged: bool,
}

impl UpstreamResponse {
    /// The answer if its status is 200 (or 206 to a range); otherwise the error that its status means.
    pub(super) async fn succeeded(self, credentials: bool) -> Result<Self> {
        let origin = if self.elsewhere { guard::origin(&self.url) } else { "it".to_owned() };
        Err(match self.response.status() {
            StatusCode::OK => return Ok(self),
            StatusCode::PARTIAL_CONTENT if self.ranged => return Ok(self),
            // Our credentials were not sent there, and an object store knows no repositories: the signed URL has
            // expired.
            status @ (StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN)
                if self.elsewhere && !self.url.path().starts_with("/v2/") =>
            {
                UpstreamError::Elsewhere { silent: false, reason: format!("{origin} answered {status}") }
            }
            status @ (StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN) if credentials && !self.elsewhere => {
                UpstreamError::Denied(format!("it answered {status} to our credentials"))
            }
            status @ (StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN | StatusCode::NOT_FOUND) => {
                let headers = self.response.headers();
                let (page, login) = (is_page(headers), headers.contains_key(WWW_AUTHENTICATE));
                let body = read_limited(self.response, MAX_REFUSAL_BYTES).await;
                let page = body.as_ref().map_or(page, |body| if body.is_empty() { page } else { is_page_body(body) });
                let named = body.is_ok_and(|body| body.windows(12).any(|window| window == b"NAME_UNKNOWN"));
                match status {
                    // The registry itself would say so in JSON (distribution-spec, "Error Codes"), or ask for a login.
                    _ if page && !login => UpstreamError::failed(format!(
                        "{origin} answered {status} with a page that is not the registry's"
                    )),
                    StatusCode::NOT_FOUND if !named => UpstreamError::Missing,
                    // Docker Hub answers 401 for repositories that do not exist.
                    _ => UpstreamError::NoRepository,
                }
            }
            status if self.elsewhere && (status.is_server_error() || status == StatusCode::TOO_MANY_REQUESTS) => {
                UpstreamError::Elsewhere { silent: false, reason: format!("{origin} answered {status}") }
            }
            StatusCode::TOO_MANY_REQUESTS => limited(self.response, None, self.at).await,
            status if status.is_server_error() || status == StatusCode::REQUEST_TIMEOUT => {
                UpstreamError::failed(format!("{origin} answered {status}"))
            }
            status => UpstreamError::Invalid(format!("{origin} answered {status}")),
        })
    }

    /// The target of a redirect. `Location` may be relative (pkg.dev).
    pub(super) fn redirect_target(&self) -> Result<Option<Url>> {
        if !matches!(self.response.status().as_u16(), 301 | 302 | 303 | 307 | 308) {
            return Ok(None);
        }
        // Some write a path as it is, in UTF-8.
        let location = self.response.headers().get(LOCATION).and_then(|text| str::from_utf8(text.as_bytes()).ok());
        match location.map(|location| self.url.join(location)) {
            Some(Ok(target)) if matches!(target.scheme(), "http" | "https") => Ok(Some(target)),
            _ => Err(UpstreamError::Invalid("it redirected without a usable Location".into())),
        }
    }
}

/// Whether an answer seems to be a page for people: only its body tells for sure, which an answer to HEAD has not.
pub(super) fn is_page(headers: &HeaderMap) -> bool {
    let media_type = headers.get(CONTENT_TYPE).and_then(|value| value.to_str().ok()).unwrap_or_default();
    media_type.starts_with("text/html") || media_type.starts_with("text/plain")
}

/// Whether a body is such a page: registries answer in JSON, object stores in XML.
fn is_page_body(body: &[u8]) -> bool {
    let body = body.trim_ascii_start();
    !body.is_empty() && ![&b"{"[..], b"[", b"<?xml", b"<Error"].iter().any(|start| body.starts_with(start))
}

/// Length of the whole content in bytes, in the `Content-Range` of a partial answer: `bytes <first>-<last>/<size>`
/// (RFC 9110, section 14.4). `None`: malformed, or another range than the requested one.
pub fn whole_size(content_range: &str, wanted: (u64, u64)) -> Option<u64> {
    let (range, size) = content_range.strip_prefix("bytes ")?.split_once('/')?;
    let (first, last) = range.split_once('-')?;
    let (first, last, size): (u64, u64, u64) = (first.parse().ok()?, last.parse().ok()?, size.parse().ok()?);
    let (from, to) = wanted;
    (first == from && last == to.min(size.checked_sub(1)?)).then_some(size)
}

/// Which limit a 429 means. Docker Hub has three: the pull limit names itself in the body (and the quota headers say
/// 0), the request limit answers in plain text, and the login limit comes from the token server.
pub(super) async fn limited(response: Response, limit: Option<Limit>, at: Timestamp) -> UpstreamError {
    let mut retry_after = retry_after(response.headers(), at);
    let remaining = response.headers().get("ratelimit-remaining").and_then(|value| value.to_str().ok());
    // Docker Hub does not say when its window ends; a limit that does (draft-ietf-httpapi-ratelimit-headers) is not its.
    let reset = response.headers().get("ratelimit-reset").and_then(|value| value.to_str().ok()?.trim().parse().ok());
    retry_after = retry_after.or_else(|| reset.map(|seconds| until_reset(seconds, at)));
    let empty = reset.is_none() && remaining.is_some_and(|text| text.split(';').next() == Some("0"));
    let limit = match limit {
        Some(limit) => limit,
        None if empty => Limit::Pulls,
        None => {
            let body = read_limited(response, MAX_REFUSAL_BYTES).await.unwrap_or_default();
            let text = String::from_utf8_lossy(&body).to_ascii_lowercase();
            retry_after = retry_after.or_else(|| retry_after_in(&text));
            if text.contains("pull rate limit") { Limit::Pulls } else { Limit::Requests }
        }
    };
    UpstreamError::Throttled { limit, retry_after, detail: format!("upstream limits our {limit}") }
}

/// How long until a limit is reset: in seconds, or as a Unix time (gitlab.com).
fn until_reset(seconds: u64, now: Timestamp) -> Duration {
    let after = if seconds < 1_000_000_000 { Duration::from_secs(seconds) } else { Timestamp(seconds).after(now) };
    after.min(LONGEST_PAUSE)
}

/// The `mediaType` inside a manifest, where `Content-Type` is only a general one.
pub fn own_media_type(content_type: &str, bytes: &[u8]) -> Option<MediaType> {
    #[derive(serde::Deserialize)]
    #[serde(rename_all = "camelCase")]
    struct Own {
        media_type: MediaType,
    }
    let general = ["", "application/json", "application/octet-stream", "text/plain"];
    let essence = content_type.split(';').next().unwrap_or_default().trim();
    general.contains(&essence).then(|| serde_json::from_slice::<Own>(bytes).ok())?.map(|own| own.media_type)
}

/// `Retry-After` in seconds or as a date (RFC 9110, section 10.2.3), clamped to a day. `now`: when the answer arrived.
fn retry_after(headers: &HeaderMap, now: Timestamp) -> Option<Duration> {
    let text = headers.get(RETRY_AFTER)?.to_str().ok()?.trim();
    let after = match text.parse::<u64>() {
        Ok(seconds) => Duration::from_secs(seconds),
        Err(_) => Timestamp::from(httpdate::parse_http_date(text).ok()?).after(now),
    };
    Some(after.min(LONGEST_PAUSE))
}

/// The pause that ghcr.io names in the body, as Go prints durations: `retry-after: 880.092µs, allowed: …`. Rounded up
/// to a whole second, and clamped like the header.
pub fn retry_after_in(text: &str) -> Option<Duration> {
    let (_, text) = text.split_once("retry-after:")?;
    let text = text.trim_start();
    let after = text.trim_start_matches(|letter: char| letter.is_ascii_digit() || letter == '.');
    let number = text.strip_suffix(after)?;
    let unit = after.split(|letter: char| !letter.is_alphabetic()).next()?;
    let seconds = match unit {
        "ns" => 1e-9,
        "us" | "µs" | "μs" => 1e-6,
        "ms" => 1e-3,
        "s" => 1.0,
        _ => return None,
    };
    let seconds = (number.parse::<f64>().ok()? * seconds).ceil().clamp(1.0, 86_400.0);
    Some(Duration::from_secs_f64(seconds))
}

/// Reads a body of at most `limit` bytes.
pub(super) async fn read_limited(response: Response, limit: usize) -> Result<Bytes> {
    let too_large = || UpstreamError::Invalid(format!("its answer is larger than {limit} bytes"));
    if response.content_length().is_some_and(|length| length > limit as u64) {
        return Err(too_large());
    }
    // Bytes that do not arrive take no memory either.
    let length = response.content_length().and_then(|length| usize::try_from(length).ok());
    let mut bytes = BytesMut::with_capacity(length.unwrap_or_default());
    let mut body = response.bytes_stream();
    while let Some(chunk) = body.next().await {
        bytes.extend_from_slice(&chunk?);
        if bytes.len() > limit {
            return Err(too_large());
        }
    }
    Ok(bytes.freeze())
}

pub(super) async fn timed<T>(limit: Duration, future: impl Future<Output = Result<T>>) -> Result<T> {
    let reason = || format!("no answer within {} s", limit.as_secs());
    let late = |_| Err(UpstreamError::Unavailable { silent: true, reason: reason() });
    tokio::time::timeout(limit, future).await.unwrap_or_else(late)
}

/// A failed exchange in words, without the URL, because its query may hold a signature.
impl From<reqwest::Error> for UpstreamError {
    fn from(error: reqwest::Error) -> Self {
        let kind = if error.is_timeout() {
            "timed out"
        } else if error.is_connect() {
            "cannot connect"
        } else {
            "the exchange broke off"
        };
        let silent = error.is_timeout() || error.is_connect();
        let causes = std::iter::successors(error.source(), |&cause| cause.source());
        let reason = causes.last().map_or_else(|| kind.to_owned(), |cause| format!("{kind}: {cause}"));
        Self::Unavailable { silent, reason }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Signatures are made of the bytes of a URL. Only what RFC 3986 does not allow is escaped, and `'` in a query.
    #[test]
    fn a_signed_url_is_followed_byte_for_byte() {
        let asked = Url::parse("https://r.test/v2/a/blobs/1").unwrap();
        for location in [
            "https://cdn.test/a%2Fb/c%2fd/~e/f;g=1,2/h@i:j//k/%E2%9C%93?X-Sig=a%2Bb+c~d%7e&e=&f&&g=%2F/%3F?;h=1&=!$()*,@:[]",
            "https://cdn.test/'a'/(b)?Expires=1&Signature=AbC%3D%3D&Key-Pair-Id=%20x&",
            "https://cdn.test:8443/a/b/?",
        ] {
            let response = http::Response::builder().status(307).header(LOCATION, location).body("").unwrap();
            let (at, url) = (Timestamp(0), asked.clone());
            let answer = UpstreamResponse {
                response: response.into(),
                url,
                at,
                authorized: false,
                elsewhere: false,
                ranged: false,
            };
            assert_eq!(answer.redirect_target().unwrap().unwrap().as_str(), location);
        }
    }

    #[test]
    fn a_pause_is_a_number_of_seconds_or_a_date_by_the_clock_of_the_cache() {
        let now = Timestamp(784_111_777);
        let after = |text: &str| {
            let headers = HeaderMap::from_iter([(RETRY_AFTER, text.parse().unwrap())]);
            retry_after(&headers, now).map(|pause| pause.as_secs())
        };
        assert_eq!(after("120"), Some(120));
        assert_eq!(after("Sun, 06 Nov 1994 08:50:37 GMT"), Some(60));
        assert_eq!(after("Sun, 06 Nov 1994 08:00:00 GMT"), Some(0));
        assert_eq!(after("Sun, 06 Nov 2095 08:00:00 GMT"), Some(24 * 3600));
        assert_eq!(after("soon"), None);
    }
}
