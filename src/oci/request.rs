use std::borrow::Cow;

use http::Method;
use percent_encoding::percent_decode_str;

use super::reference::InvalidReference;
use super::{Digest, InvalidDigest, InvalidName, Name, Reference, Tag};

/// A registry request, parsed once from method, path and query.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Request {
    /// `HEAD`: the same answer without its body.
    pub head: bool,
    /// The path before `/v2/`, where there is one: `/<upstream>/v2/…`. It means the same as behind `/v2/`, except that
    /// it must name an upstream or a rule.
    pub prefix: Option<Name>,
    /// The `ns` query parameter: the registry the client believes it talks to (distribution-spec, "Registry Proxying").
    pub namespace: Option<String>,
    /// The endpoint, with what its path and query name.
    pub operation: Operation,
}

/// What a request asks for. Names are as the path spells them, not yet normalised.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Operation {
    /// `/v2/`
    Ping,
    /// `/v2/<name>/manifests/<reference>`
    Manifest(Name, Reference),
    /// `/v2/<name>/blobs/<digest>`
    Blob(Name, Digest),
    /// `/v2/<name>/tags/list`
    Tags(Name, Page),
    /// `/v2/<name>/referrers/<digest>`, only those of one `artifactType` where that is given.
    Referrers(Name, Digest, Option<String>),
}

/// The page of a list of tags that the client asks for (distribution-spec 1.1, "Listing Tags").
#[derive(Clone, PartialEq, Eq, Default, Debug)]
pub struct Page {
    /// The most tags to send; `None`: [`Page::MOST`].
    pub n: Option<usize>,
    /// Only those that come after this one in lexical order.
    pub last: Option<String>,
}

impl Page {
    /// The most tags in one answer: even with the longest names less than a Lambda function may answer with (6 MB).
    pub const MOST: usize = 10_000;

    /// The most tags of this page.
    pub fn size(&self) -> usize {
        self.n.unwrap_or(Self::MOST).min(Self::MOST)
    }
}

/// Why a request was not understood.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum InvalidRequest {
    /// A method other than GET and HEAD, or an endpoint that only a push uses.
    #[error("this registry is a read-only cache: push to the upstream registry itself, then pull through here")]
    Method,
    /// Not a path of the pull part of the specification.
    #[error(
        "there is no such endpoint; behind /v2/<name>/ there are manifests/<reference>, blobs/<digest>, tags/list and \
         referrers/<digest>"
    )]
    Endpoint,
    /// A path of the specification that this registry does not answer.
    #[error("this registry does not answer {0}")]
    Unsupported(&'static str),
    /// The repository name breaks the grammar.
    #[error(transparent)]
    Name(#[from] InvalidName),
    /// The tag or digest breaks the grammar.
    #[error(transparent)]
    Reference(#[from] InvalidReference),
    /// The digest breaks the grammar or has an unknown algorithm.
    #[error(transparent)]
    Digest(#[from] InvalidDigest),
    /// `ns` was given more than once.
    #[error("the query parameter ns may be given only once")]
    Namespace,
    /// `n` is no number of tags, or was given more than once.
    #[error("the query parameter n is how many tags are wanted: one number from 0 on")]
    Page,
}

impl Request {
    /// Parses a request. `path` may be percent-encoded (as HTTP servers pass it on) or decoded (as API Gateway does).
    pub fn parse(method: &Method, path: &str, query: Option<&str>) -> Result<Self, InvalidRequest> {
        let path = decode(path)?;
        // A mirror that is configured with a slash at its end makes two of them.
        let path = path.strip_prefix('/').ok_or(InvalidRequest::Endpoint)?.trim_start_matches('/');
        let (prefix, path) = match path.strip_prefix("v2") {
            Some(rest) if rest.is_empty() || rest.starts_with('/') => (None, rest),
            _ => {
                let divided = match path.find("/v2/") {
                    Some(at) => path.split_at_checked(at),
                    None => path.strip_suffix("/v2").map(|prefix| (prefix, "/v2")),
                };
                let (prefix, rest) = divided.ok_or(InvalidRequest::Endpoint)?;
                (Some(prefix.trim_end_matches('/').parse()?), rest.strip_prefix("/v2").unwrap_or_default())
            }
        };
        let head = match *method {
            Method::GET => false,
            Method::HEAD => true,
            _ => return Err(InvalidRequest::Method),
        };
        let query = Query(query.unwrap_or_default());
        Ok(Self {
            head,
            prefix,
            namespace: query.only("ns", InvalidRequest::Namespace)?,
            operation: Operation::parse(path, query)?,
        })
    }

    /// Whether a path has `/v2/` both before and behind the upstream, as containerd sends it to a mirror at
    /// `/v2/<upstream>` unless that says `override_path`. There may be such a name, though.
    pub fn has_path_twice(path: &str) -> bool {
        path.trim_start_matches('/').strip_prefix("v2/").is_some_and(|rest| rest.contains("/v2/"))
    }

    /// Parses an image's name as users write it: `nginx`, `ghcr.io/a/b:1.0`, `registry.example.com:5000/a@sha256:…`. A
    /// digest takes precedence over a tag; without either it is `latest`.
    pub fn image(text: &str) -> Result<Self, InvalidRequest> {
        let (text, digest) = match text.split_once('@') {
            Some((text, digest)) => (text, Some(digest.parse::<Digest>()?)),
            None => (text, None),
        };
        // A colon before the last slash belongs to the port of a host; no name can contain one.
        let (name, tag) = match text.rsplit_once(':') {
            Some((name, tag)) if !tag.contains('/') => (name, tag),
            _ => (text, "latest"),
        };
        let tag: Tag = tag.parse().map_err(InvalidReference::Tag)?;
        let (namespace, name) = match name.split_once('/') {
            Some((host, name)) if host.contains(':') => (Some(host.to_owned()), name),
            _ => (None, name),
        };
        let reference = digest.map_or(Reference::Tag(tag), Reference::Digest);
        Ok(Self { head: false, prefix: None, namespace, operation: Operation::Manifest(name.parse()?, reference) })
    }

    /// Whether it is what quotas count: GET of a manifest.
    pub fn is_pull(&self) -> bool {
        !self.head && matches!(self.operation, Operation::Manifest(..))
    }
}

impl Operation {
    /// The repository, as the path names it; a ping has none.
    pub fn name(&self) -> Option<&Name> {
        match self {
            Self::Ping => None,
            Self::Manifest(name, _) | Self::Blob(name, _) | Self::Tags(name, _) | Self::Referrers(name, ..) => {
                Some(name)
            }
        }
    }

    /// Parses what follows `/v2`. A name may itself have components called `manifests` or `blobs`, so the last one
    /// counts.
    fn parse(path: &str, query: Query) -> Result<Self, InvalidRequest> {
        let path = path.strip_prefix('/').unwrap_or(path);
        if path.is_empty() {
            return Ok(Self::Ping);
        }
        if path == "_catalog" {
            return Err(InvalidRequest::Unsupported("_catalog: upstream registries do not list their repositories"));
        }
        let (rest, last) = path.rsplit_once('/').ok_or(InvalidRequest::Endpoint)?;
        let (name, kind) = rest.rsplit_once('/').ok_or(InvalidRequest::Endpoint)?;
        match (kind, last) {
            ("manifests", reference) => Ok(Self::Manifest(name.parse()?, reference.parse()?)),
            // The endpoints of an upload, which only a push uses.
            ("blobs", "uploads" | "") | ("uploads", _) => Err(InvalidRequest::Method),
            ("blobs", digest) => Ok(Self::Blob(name.parse()?, digest.parse()?)),
            ("tags", "list") => Ok(Self::Tags(name.parse()?, query.page()?)),
            ("referrers", digest) => {
                Ok(Self::Referrers(name.parse()?, digest.parse()?, query.values("artifactType").next()))
            }
            _ => Err(InvalidRequest::Endpoint),
        }
    }
}

/// Decodes `%XX` once. An encoded slash could move the border between name and reference, so it is refused.
fn decode(path: &str) -> Result<Cow<'_, str>, InvalidRequest> {
    if !path.contains('%') {
        return Ok(Cow::Borrowed(path));
    }
    if path.to_ascii_lowercase().contains("%2f") {
        return Err(InvalidName.into());
    }
    percent_decode_str(path).decode_utf8().map_err(|_| InvalidName.into())
}

/// The query of a request. A plus stands for itself (RFC 3986, section 3.4), not for a space as in forms: media types
/// have one. Unknown parameters are ignored, because clients add their own. An empty value counts as absent.
#[derive(Clone, Copy)]
struct Query<'a>(&'a str);

impl Query<'_> {
    fn values(self, wanted: &str) -> impl Iterator<Item = String> {
        let decode = |text| percent_decode_str(text).decode_utf8_lossy();
        let pairs = self.0.split('&').filter_map(|pair| pair.split_once('='));
        let values =
            pairs.filter(move |(key, _)| decode(key) == wanted).map(move |(_, value)| decode(value).into_owned());
        values.filter(|value| !value.is_empty())
    }

    /// The value of a parameter that may be given only once.
    fn only(self, wanted: &str, twice: InvalidRequest) -> Result<Option<String>, InvalidRequest> {
        // As almost all requests have it.
        if self.0.is_empty() {
            return Ok(None);
        }
        let mut values = self.values(wanted);
        match (values.next(), values.next()) {
            (_, Some(_)) => Err(twice),
            (value, None) => Ok(value),
        }
    }

    fn page(self) -> Result<Page, InvalidRequest> {
        let number = |text: String| {
            // `usize::from_str` accepts a leading plus.
            let digits = text.bytes().all(|byte| byte.is_ascii_digit()).then_some(text);
            digits.and_then(|text| text.parse::<usize>().ok()).ok_or(InvalidRequest::Page)
        };
        let n = self.only("n", InvalidRequest::Page)?.map(number).transpose()?;
        Ok(Page { n, last: self.values("last").next() })
    }
}

#[cfg(test)]
mod tests;
