//! How those are asked who know who somebody is: STS and `OpenID` issuers, and nobody that a caller names.

use std::error::Error;
use std::time::Duration;

use crate::errors::Unreachable;
use bytes::{Bytes, BytesMut};
use http::StatusCode;
use reqwest::RequestBuilder;
use url::Url;

/// How long an answer may take, body included: a client waits for it.
const TIMEOUT: Duration = Duration::from_secs(5);
/// The most bytes of an answer: a key set has a few kilobytes, an identity of AWS less than one.
const LONGEST_ANSWER: usize = 256 * 1024;

/// An HTTP client that goes only where it is sent: no redirects, and no proxy that the environment happens to name.
#[derive(Clone)]
pub(super) struct Web(reqwest::Client);

/// An error and its causes, each once: some say what their cause says too.
fn causes(error: &(dyn Error + 'static)) -> String {
    let mut said = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        let text = error.to_string();
        if !said.contains(&text) {
            said = format!("{said}: {text}");
        }
        cause = error.source();
    }
    said
}

impl Web {
    pub(super) fn new() -> Result<Self, reqwest::Error> {
        let builder = reqwest::Client::builder()
            .redirect(reqwest::redirect::Policy::none())
            .no_proxy()
            .timeout(TIMEOUT)
            .http1_only()
            .user_agent(concat!("stopover/", env!("CARGO_PKG_VERSION")));
        builder.build().map(Self)
    }

    /// GET of a URL, with what `complete` adds: the status and the whole body.
    pub(super) async fn get(
        &self,
        url: &Url,
        complete: impl FnOnce(RequestBuilder) -> RequestBuilder,
    ) -> Result<(StatusCode, Bytes), Unreachable> {
        let failed = |error: reqwest::Error| Unreachable::new(url, causes(&error.without_url()));
        let mut response = complete(self.0.get(url.clone())).send().await.map_err(failed)?;
        let mut body = BytesMut::new();
        while let Some(part) = response.chunk().await.map_err(failed)? {
            if body.len() + part.len() > LONGEST_ANSWER {
                return Err(Unreachable::new(url, format!("answers with more than {LONGEST_ANSWER} bytes")));
            }
            body.extend_from_slice(&part);
        }
        Ok((response.status(), body.freeze()))
    }
}
