//! The endpoint of the cache, in the forms that clients need.

use std::fmt;
use std::str::FromStr;

use anyhow::{Context as _, bail, ensure};
use stopover::config::Config;
use stopover::setup::Mirror;
use url::{Host, Position, Url};

use crate::describe::reached_at;

/// What a flag or a variable names. `None`: the variable is empty, which counts as unset.
pub(crate) type NamedEndpoint = Option<Endpoint>;

/// The endpoint of a cache. It serves at the root of its host: a path in front of a name is the id of an upstream.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct Endpoint(Url);

impl Endpoint {
    /// Reads what a flag or a variable says.
    pub(crate) fn named(text: &str) -> anyhow::Result<NamedEndpoint> {
        if text.is_empty() { Ok(None) } else { text.parse().map(Some) }
    }

    /// The endpoint of the cache that this configuration starts.
    pub(crate) fn configured(config: &Config) -> anyhow::Result<Self> {
        format!("http://{}", reached_at(config.listen)).parse()
    }

    /// The URL: scheme, host and port.
    pub(crate) fn url(&self) -> &Url {
        &self.0
    }

    /// Host and port, as in the URL, and before `/<upstream>/<name>` in the name of an image.
    pub(crate) fn host(&self) -> &str {
        &self.0[Position::BeforeHost..Position::AfterPort]
    }

    /// Whether the endpoint speaks plain HTTP, which most clients have to be told.
    pub(crate) fn is_plain(&self) -> bool {
        self.0.scheme() == "http"
    }

    /// What clients are told of it.
    pub(crate) fn mirror(&self) -> Mirror {
        Mirror { is_plain: self.is_plain(), host: self.host().to_owned() }
    }

    /// Whether the endpoint is on this machine, which no proxy is for.
    pub(crate) fn is_here(&self) -> bool {
        match self.0.host() {
            Some(Host::Domain(domain)) => domain == "localhost",
            Some(Host::Ipv4(address)) => address.is_loopback(),
            Some(Host::Ipv6(address)) => address.is_loopback(),
            None => false,
        }
    }

    /// Whether `authority` is the endpoint's host and port.
    pub(crate) fn is_host(&self, authority: &str) -> bool {
        let port = if self.is_plain() { ":80" } else { ":443" };
        let plain = |authority: &str| authority.strip_suffix(port).unwrap_or(authority).to_ascii_lowercase();
        plain(authority) == plain(self.host())
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
        ensure!(url.has_host(), "{text:?} has no host: {example}");
        // The host part of an image's name (github.com/distribution/reference), which needs no quotes in any file.
        if let Some(Host::Domain(domain)) = url.host() {
            let known = domain.bytes().all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'-'));
            ensure!(known, "the host of {text:?} has more than letters, digits, dots and hyphens: {example}");
        }
        let endpoint = Self(url);
        ensure!(
            endpoint.0.path() == "/",
            "{text:?} has a path, but a cache answers at the root of its host, and clients say which upstream they \
             mean: give {endpoint}"
        );
        Ok(endpoint)
    }
}

impl fmt::Display for Endpoint {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{}://{}", self.0.scheme(), self.host())
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
    fn a_host_is_that_of_the_endpoint_with_the_port_of_its_scheme_or_without() {
        let endpoint: Endpoint = "https://cache.example.com".parse().unwrap();
        for host in ["cache.example.com", "Cache.Example.com:443"] {
            assert!(endpoint.is_host(host), "{host}");
        }
        for host in ["cache.example.com:80", "cache.example.com:8443", "cache.example.com.evil.org", ""] {
            assert!(!endpoint.is_host(host), "{host}");
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
