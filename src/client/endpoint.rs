//! Where clients find the cache, in the forms that they want it in.

use std::fmt;
use std::str::FromStr;

use anyhow::{Context as _, bail, ensure};
use stopover::oci::Name;
use url::{Host, Url};

/// The endpoint of a cache. A path becomes the beginning of every image's name.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct Endpoint {
    url: Url,
    /// Host and port, as they stand in the URL.
    host: String,
    /// `/<path>`, or nothing.
    path: String,
}

impl Endpoint {
    /// Scheme, host, port and path.
    pub(crate) fn url(&self) -> &Url {
        &self.url
    }

    /// Scheme, host and port: where everything is that is no image.
    pub(super) fn origin(&self) -> String {
        format!("{}://{}", self.url.scheme(), self.host)
    }

    /// Host and port, as they stand in the URL.
    pub(crate) fn host(&self) -> &str {
        &self.host
    }

    /// Whether it speaks plain HTTP, which most clients have to be told.
    pub(crate) fn is_plain(&self) -> bool {
        self.url.scheme() == "http"
    }

    /// What stands before `<upstream>/<name>` in the name of an image.
    pub(crate) fn base(&self) -> String {
        format!("{}{}", self.host, self.path)
    }

    /// What stands before `/<upstream>/<name>` in the URL of a request.
    pub(super) fn v2(&self) -> String {
        format!("{}/v2{}", self.origin(), self.path)
    }

    /// For clients that ask their mirror for images of Docker Hub only. Docker before 24.0.9 takes no path.
    pub(super) fn docker_hub(&self) -> String {
        if self.path.is_empty() { self.to_string() } else { format!("{self}/docker.io") }
    }

    /// For clients that say with `?ns=` which upstream they mean, and leave a path as it is if there is one.
    pub(super) fn endpoint(&self, upstream: &str) -> String {
        if self.path.is_empty() { self.to_string() } else { format!("{}/{upstream}", self.v2()) }
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
            bail!("{text:?} has more than scheme, host, port and path: {example}");
        }
        let host = url.host_str().with_context(|| format!("{text:?} has no host: {example}"))?;
        // What a host is in the name of an image (github.com/distribution/reference), and what no file has to quote.
        if let Some(Host::Domain(domain)) = url.host() {
            let known = domain.bytes().all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'-'));
            ensure!(known, "the host of {text:?} has more than letters, digits, dots and hyphens: {example}");
        }
        let host = url.port().map_or_else(|| host.to_owned(), |port| format!("{host}:{port}"));
        let path = match url.path().trim_matches('/') {
            "" => String::new(),
            path => format!("/{}", path.parse::<Name>().context("the path cannot be part of an image's name")?),
        };
        Ok(Self { url, host, path })
    }
}

impl fmt::Display for Endpoint {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{}{}", self.origin(), self.path)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_endpoint_has_the_form_that_each_client_wants() {
        let root: Endpoint = "HTTP://Cache.Example.com:5000/".parse().unwrap();
        assert_eq!(root.to_string(), "http://cache.example.com:5000");
        assert_eq!(root.base(), "cache.example.com:5000");
        assert_eq!(root.docker_hub(), "http://cache.example.com:5000");
        assert_eq!(root.endpoint("ghcr.io"), "http://cache.example.com:5000");
        let path: Endpoint = "https://cache.example.com/team".parse().unwrap();
        assert_eq!(path.base(), "cache.example.com/team");
        assert_eq!(path.docker_hub(), "https://cache.example.com/team/docker.io");
        assert_eq!(path.endpoint("ghcr.io"), "https://cache.example.com/v2/team/ghcr.io");
        assert_eq!(path.origin(), "https://cache.example.com");
        assert_eq!("http://[::1]:5000".parse::<Endpoint>().unwrap().base(), "[::1]:5000");
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
        assert!("https://a/B".parse::<Endpoint>().is_err(), "no image can be named so");
    }
}
