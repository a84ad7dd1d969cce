//! HTTP client for identity providers: STS and `OpenID` issuers. It never contacts a host that a caller names.

use std::error::Error;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use crate::errors::Unreachable;
use crate::values::crypto::http_client;
use bytes::{Bytes, BytesMut};
use http::StatusCode;
use reqwest::RequestBuilder;
use url::Url;

/// The time limit for an answer with its body: a client is waiting for it.
const TIMEOUT: Duration = Duration::from_secs(5);
/// The longest answer, in bytes: a key set has a few kilobytes, an AWS identity less than one.
const LONGEST_ANSWER: usize = 256 * 1024;

/// An HTTP client that follows no redirects and ignores proxies set in the environment.
/// It is made with the first request, since it reads the certificates of the system.
#[derive(Clone, Default)]
pub(super) struct Web(Arc<OnceLock<reqwest::Client>>);

/// An error with its causes. A cause that the text already contains is not repeated.
fn causes(error: &(dyn Error + 'static)) -> String {
    let causes = std::iter::successors(error.source(), |&error| error.source()).map(ToString::to_string);
    causes.fold(error.to_string(), |said, cause| if said.contains(&cause) { said } else { format!("{said}: {cause}") })
}

impl Web {
    fn client(&self) -> Result<&reqwest::Client, reqwest::Error> {
        if let Some(client) = self.0.get() {
            return Ok(client);
        }
        let builder = http_client()
            .redirect(reqwest::redirect::Policy::none())
            .no_proxy()
            .timeout(TIMEOUT)
            .http1_only()
            .user_agent(concat!("stopover/", env!("CARGO_PKG_VERSION")));
        let client = builder.build()?;
        Ok(self.0.get_or_init(|| client))
    }

    /// GET of a URL, after `complete` has added to the request: the status and the whole body.
    pub(super) async fn get(
        &self,
        url: &Url,
        complete: impl FnOnce(RequestBuilder) -> RequestBuilder,
    ) -> Result<(StatusCode, Bytes), Unreachable> {
        let failed = |error: reqwest::Error| Unreachable::new(url, causes(&error.without_url()));
        let client = self.client().map_err(failed)?;
        let mut response = complete(client.get(url.clone())).send().await.map_err(failed)?;
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
