//! Where clients find the cache, in the forms that they want it in.

use std::fmt;
use std::str::FromStr;

use anyhow::{Context as _, bail, ensure};
use url::{Host, Url};

/// The endpoint of a cache. It answers at the root of its host: a path in front of a name says which upstream is meant.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct Endpoint {
    url: Url,
    /// Host and port, as they stand in the URL.
    host: String,
}

impl Endpoint {
    /// Scheme, host and port.
    pub(crate) fn url(&self) -> &Url {
        &self.url
    }

    /// Host and port, as they stand in the URL, and before `/<upstream>/<name>` in the name of an image.
    pub(crate) fn host(&self) -> &str {
        &self.host
    }

    /// Whether it speaks plain HTTP, which most clients have to be told.
    pub(crate) fn is_plain(&self) -> bool {
        self.url.scheme() == "http"
    }

    /// Whether a URL, or a name as in images, leads there.
    pub(crate) fn is_at(&self, place: &str) -> bool {
        let (scheme, authority) = place.split_once("://").unwrap_or((self.url.scheme(), place));
        if !scheme.eq_ignore_ascii_case(self.url.scheme()) {
            return false;
        }
        let authority = authority.split('/').next().unwrap_or_default();
        let port = if self.is_plain() { ":80" } else { ":443" };
        let plain = |authority: &str| authority.strip_suffix(port).unwrap_or(authority).to_ascii_lowercase();
        plain(authority) == plain(&self.host)
    }
}

impl FromStr for Endpoint {
    type Err = anyhow::Error;

    fn from_str(text: &str) -> anyhow::Result<Self> {
        let example = "give a URL like https://cache.example.com";
        let url = Url::parse(text).with_context(|| format!("{text:?} is no URL: {example}"))?;
        ensure!(matches!(url.scheme(), "http" | "https"), "{text:?} is neither http nor https: {example}");
        if url.query().or(url.fragment()).is_some() || !url.username().is_empty() || url.password().is_some() {
            bail!("{text:?} has more than scheme, host and port: {example}");
        }
        let host = url.host_str().with_context(|| format!("{text:?} has no host: {example}"))?;
        // What a host is in the name of an image (github.com/distribution/reference), and what no file has to quote.
        if let Some(Host::Domain(domain)) = url.host() {
            let known = domain.bytes().all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'-'));
            ensure!(known, "the host of {text:?} has more than letters, digits, dots and hyphens: {example}");
        }
        let host = url.port().map_or_else(|| host.to_owned(), |port| format!("{host}:{port}"));
        let endpoint = Self { url, host };
        ensure!(
            endpoint.url.path() == "/",
            "{text:?} has a path, but a cache answers at the root of its host, and clients say themselves which upstream \
             they mean: give {endpoint}"
        );
        Ok(endpoint)
    }
}

impl fmt::Display for Endpoint {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{}://{}", self.url.scheme(), self.host)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_endpoint_is_scheme_host_and_port() {
        let endpoint: Endpoint = "HTTP://Cache.Example.com:5000/".parse().unwrap();
        assert_eq!(endpoint.to_string(), "http://cache.example.com:5000");
        assert_eq!(endpoint.host(), "cache.example.com:5000");
        assert_eq!("http://[::1]:5000".parse::<Endpoint>().unwrap().host(), "[::1]:5000");
    }

    #[test]
    fn a_place_is_that_of_the_endpoint_by_scheme_host_and_port() {
        let endpoint: Endpoint = "https://cache.example.com".parse().unwrap();
        for place in ["https://cache.example.com/v2/ghcr.io", "cache.example.com/ghcr.io", "Cache.Example.com:443"] {
            assert!(endpoint.is_at(place), "{place}");
        }
        assert!(endpoint.is_at("HTTPS://cache.example.com"));
        assert!(!endpoint.is_at("http://cache.example.com") && !endpoint.is_at("http://cache.example.com:443"));
        for place in ["https://cache.example.com:8443", "cache.example.com.evil.org", "", "https://example.com/cache"] {
            assert!(!endpoint.is_at(place), "{place}");
        }
    }

    #[test]
    fn what_is_no_endpoint_is_refused_with_an_example() {
        let quoting =
            ["https://a\"b", "https://a'b", "https://a$b", "https://a`b", "https://a;b", "https://a_b", "https://{a}"];
        let others = ["cache.example.com", "127.0.0.1:5000", "ftp://a", "https://a?b", "https://me:secret@a", ""];
        for text in quoting.into_iter().chain(others) {
            let message = format!("{:#}", text.parse::<Endpoint>().unwrap_err());
            assert!(message.contains("https://cache.example.com"), "{text}: {message}");
        }
        for path in ["ghcr.io", "v2/", "/"] {
            let message = format!("{:#}", format!("https://a:5000/{path}").parse::<Endpoint>().unwrap_err());
            assert!(
                message.contains("the root of its host") && message.ends_with(": give https://a:5000"),
                "{message}"
            );
        }
    }
}
