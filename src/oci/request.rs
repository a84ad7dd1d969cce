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
}

impl Operation {
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
mod tests {
    use super::*;

    const DIGEST: &str = "sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";

    fn get(path: &str) -> Result<Request, InvalidRequest> {
        let (path, query) = path.split_once('?').map_or((path, None), |(path, query)| (path, Some(query)));
        Request::parse(&Method::GET, path, query)
    }

    #[test]
    fn every_shape_of_a_pull_is_understood() {
        assert_eq!(get("/v2/").unwrap().operation, Operation::Ping);
        assert_eq!(get("/v2").unwrap().operation, Operation::Ping);
        let manifest = get("/v2/ghcr.io/a/b/manifests/v1?ns=ghcr.io").unwrap();
        assert_eq!(manifest.operation, Operation::Manifest("ghcr.io/a/b".parse().unwrap(), "v1".parse().unwrap()));
        assert_eq!(manifest.namespace.as_deref(), Some("ghcr.io"));
        let prefixed = get("/docker.io/v2/library/nginx/manifests/1").unwrap();
        assert_eq!(prefixed.prefix.unwrap().as_str(), "docker.io");
        let nested = get("/team/hub/v2/v2/manifests/1").unwrap();
        assert_eq!(nested.prefix.unwrap().as_str(), "team/hub");
        assert_eq!(nested.operation.name().unwrap().as_str(), "v2");
        let odd = get(&format!("/v2/manifests/blobs/v2/blobs/{DIGEST}")).unwrap();
        assert_eq!(odd.operation, Operation::Blob("manifests/blobs/v2".parse().unwrap(), DIGEST.parse().unwrap()));
    }

    #[test]
    fn slashes_that_a_mirror_adds_mean_nothing() {
        for (path, plain) in [
            ("//v2/", "/v2/"),
            ("//v2/a/manifests/b", "/v2/a/manifests/b"),
            ("///v2/a/manifests/b", "/v2/a/manifests/b"),
            ("/docker.io//v2/a/manifests/b", "/docker.io/v2/a/manifests/b"),
            ("//docker.io/v2/a/manifests/b", "/docker.io/v2/a/manifests/b"),
        ] {
            assert_eq!(get(path), get(plain), "{path}");
            assert!(get(path).is_ok());
        }
        for (path, twice) in [
            ("/v2/docker.io/v2/library/a/manifests/b", true),
            ("//v2/docker.io/v2/", true),
            ("/docker.io/v2/library/a/manifests/b", false),
            ("/v2/library/a/manifests/v2", false),
        ] {
            assert_eq!(Request::has_path_twice(path), twice, "{path}");
        }
    }

    #[test]
    fn an_image_is_understood_as_people_write_its_name() {
        for (text, namespace, name, reference) in [
            ("nginx", None, "nginx", "latest"),
            ("nginx:1.27", None, "nginx", "1.27"),
            ("ghcr.io/a/b:tag", None, "ghcr.io/a/b", "tag"),
            ("ghcr.io/a/b", None, "ghcr.io/a/b", "latest"),
            (&format!("docker.io/library/x@{DIGEST}"), None, "docker.io/library/x", DIGEST),
            (&format!("a/b:1.0@{DIGEST}"), None, "a/b", DIGEST),
            ("registry.example.com:5000/a/b", Some("registry.example.com:5000"), "a/b", "latest"),
            ("localhost:5000/a:1", Some("localhost:5000"), "a", "1"),
        ] {
            let request = Request::image(text).unwrap();
            let expected = Operation::Manifest(name.parse().unwrap(), reference.parse().unwrap());
            assert_eq!((request.namespace.as_deref(), request.operation), (namespace, expected), "{text}");
        }
        for text in ["", ":1", "Nginx", "nginx:", "nginx:a b", "nginx@sha256:12", "https://ghcr.io/a", "a//b", "$IMAGE"]
        {
            assert!(Request::image(text).is_err(), "{text}");
        }
    }

    #[test]
    fn a_list_of_tags_and_referrers_are_understood_with_their_parameters() {
        let name = || "a/tags".parse().unwrap();
        let tags = |n, last: Option<&str>| Operation::Tags(name(), Page { n, last: last.map(str::to_owned) });
        assert_eq!(get("/v2/a/tags/tags/list").unwrap().operation, tags(None, None));
        assert_eq!(get("/v2/a/tags/tags/list?n=0&last=&x=%00").unwrap().operation, tags(Some(0), None));
        assert_eq!(get("/v2/a/tags/tags/list?last=v%201&n=5").unwrap().operation, tags(Some(5), Some("v 1")));
        assert_eq!(
            get("/v2/a/tags/tags/list?n=&%6E=5").unwrap().operation,
            tags(Some(5), None),
            "an empty one is none"
        );
        let referrers =
            |kind: Option<&str>| Operation::Referrers(name(), DIGEST.parse().unwrap(), kind.map(str::to_owned));
        let path = format!("/v2/a/tags/referrers/{DIGEST}");
        assert_eq!(get(&path).unwrap().operation, referrers(None));
        for kind in ["a/b+json", "a%2Fb%2bjson"] {
            let request = get(&format!("{path}?artifactType={kind}")).unwrap();
            assert_eq!(request.operation, referrers(Some("a/b+json")), "a plus is no space (RFC 3986): {kind}");
        }
        for (query, namespace) in [("ns", None), ("ns=", None), ("ns=&ns=a", Some("a")), ("ns=a+b%20c", Some("a+b c"))]
        {
            assert_eq!(get(&format!("{path}?{query}")).unwrap().namespace.as_deref(), namespace, "{query}");
        }
    }

    #[test]
    fn a_digest_may_arrive_percent_encoded() {
        let encoded = DIGEST.replace(':', "%3A");
        assert_eq!(get(&format!("/v2/a/blobs/{encoded}")), get(&format!("/v2/a/blobs/{DIGEST}")));
    }

    #[test]
    fn malformed_paths_are_refused_for_what_is_wrong_with_them() {
        for path in
            ["", "/", "//", "v2/", "/v1/", "/v2x/a/manifests/b", "/v2/a", "/v2/a/b", "/v2x/v2y/", "/index.html", "é"]
        {
            assert_eq!(get(path), Err(InvalidRequest::Endpoint), "{path}");
        }
        for path in [
            "/v2/A/manifests/b",
            "/v2//manifests/b",
            "/a//b/v2/c/manifests/d",
            "/v2/a%2fb/manifests/c",
            "/v2/../manifests/a",
            "/v2/a%ff/manifests/b",
            "/v2/a%252fb/manifests/c",
        ] {
            assert_eq!(get(path), Err(InvalidRequest::Name(InvalidName)), "{path}");
        }
        assert!(matches!(get("/v2/a/manifests/.."), Err(InvalidRequest::Reference(_))));
        assert!(matches!(get("/v2/a/manifests/sha256:zz"), Err(InvalidRequest::Reference(_))));
        assert_eq!(get("/v2/a/blobs/latest"), Err(InvalidRequest::Digest(InvalidDigest::Malformed)));
        assert_eq!(get("/v2/?ns=a&ns=b"), Err(InvalidRequest::Namespace));
        for query in ["n=-1", "n=+1", "n=%2B1", "n=1&n=1", "n=1&n=2"] {
            assert_eq!(get(&format!("/v2/a/tags/list?{query}")), Err(InvalidRequest::Page), "{query}");
        }
        assert_eq!(get("/v2/a/referrers/latest"), Err(InvalidRequest::Digest(InvalidDigest::Malformed)));
    }

    #[test]
    fn every_write_is_refused_by_its_method() {
        for (method, path) in [
            ("PUT", "/v2/a/manifests/b"),
            ("POST", "/v2/a/blobs/uploads/"),
            ("DELETE", "/v2/a/manifests/b"),
            ("PATCH", "/v2/"),
            ("BREW", "/v2/"),
        ] {
            let method = Method::from_bytes(method.as_bytes()).unwrap();
            assert_eq!(Request::parse(&method, path, None), Err(InvalidRequest::Method), "{method} {path}");
        }
    }
}
