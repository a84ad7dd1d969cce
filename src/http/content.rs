//! Answers with content: manifests and blobs.

use std::sync::Arc;

use axum::body::Body;
use axum::response::Response;
use bytes::Bytes;
use http::header::{
    ACCEPT_RANGES, CACHE_CONTROL, CONTENT_LENGTH, CONTENT_RANGE, CONTENT_TYPE, ETAG, HeaderName, HeaderValue,
    IF_NONE_MATCH, IF_RANGE, LOCATION, RANGE, WARNING,
};
use http::{HeaderMap, StatusCode};

use super::{DISTRIBUTION_API_VERSION, FilePart, NO_STORE, SERVED};
use crate::errors::{PullError, UpstreamError};
use crate::oci::{Digest, Repository, RequestedRange};
use crate::pull::{Content, PulledBlob, PulledManifest, WarmManifest};
use crate::values::served::Served;

const DOCKER_CONTENT_DIGEST: HeaderName = HeaderName::from_static("docker-content-digest");
const NAMESPACE: HeaderName = HeaderName::from_static("oci-namespace");

/// The headers of every answer: which upstream it is from, and how it came about.
pub(super) fn describe(headers: &mut HeaderMap, repository: &Repository, served: Served) {
    // A map without room grows twice on the way to the ten headers of an answer.
    headers.reserve(10);
    // `extend` would take twice as long as `insert`, here and below.
    if let Ok(value) = HeaderValue::from_str(repository.upstream.as_str()) {
        headers.insert(NAMESPACE, value);
    }
    note_served(headers, served);
}

fn note_served(headers: &mut HeaderMap, served: Served) {
    headers.insert(SERVED, HeaderValue::from_static(served.as_str()));
    if served == Served::Stale {
        // 299 is the only code the specification lets registries use (distribution-spec, "Warnings").
        headers.insert(WARNING, HeaderValue::from_static("299 - \"stale: the upstream registry could not be asked\""));
    }
}

/// The headers that name the content by its digest.
fn identify(headers: &mut HeaderMap, digest: &Digest) {
    let tag = Bytes::from(["\"", digest.as_str(), "\""].concat());
    let plain = tag.slice(1..=digest.as_str().len());
    for (name, text) in [(DOCKER_CONTENT_DIGEST, plain), (ETAG, tag)] {
        if let Ok(value) = HeaderValue::from_maybe_shared(text) {
            headers.insert(name, value);
        }
    }
}

/// Whether the client has this content already (RFC 9110, section 13.1.2). Some clients send the digest without quotes.
fn not_modified(headers: &HeaderMap, digest: &Digest) -> bool {
    let values = headers.get_all(IF_NONE_MATCH).into_iter().filter_map(|value| value.to_str().ok());
    values.flat_map(|value| value.split(',')).any(|tag| {
        let tag = tag.trim();
        let tag = tag.strip_prefix("W/").unwrap_or(tag).trim_matches('"');
        tag == digest.as_str() || tag == "*"
    })
}

/// A manifest that is being sent: as long as it is, others are sent the same.
struct Sent(Arc<WarmManifest>);

impl AsRef<[u8]> for Sent {
    fn as_ref(&self) -> &[u8] {
        &self.0.bytes
    }
}

pub(super) fn manifest(repository: &Repository, pulled: PulledManifest, head: bool, request: &HeaderMap) -> Response {
    let PulledManifest { observed, manifest, served } = pulled;
    let describe = || {
        let mut headers = HeaderMap::new();
        describe(&mut headers, repository, Served::Hit);
        identify(&mut headers, &observed.digest);
        headers.insert(DISTRIBUTION_API_VERSION, HeaderValue::from_static("registry/2.0"));
        headers.insert(CONTENT_TYPE, HeaderValue::from_static(observed.media_type.as_str()));
        headers.insert(CONTENT_LENGTH, observed.size.into());
        headers
    };
    let mut headers = manifest.as_ref().map_or_else(describe, |manifest| manifest.headers(describe));
    if served != Served::Hit {
        note_served(&mut headers, served);
    }
    let unchanged = not_modified(request, &observed.digest);
    if unchanged {
        headers.remove(CONTENT_TYPE);
        headers.remove(CONTENT_LENGTH);
    }
    let mut response = Response::new(match manifest {
        Some(manifest) if !head && !unchanged => Body::from(Bytes::from_owner(Sent(manifest))),
        _ => Body::empty(),
    });
    *response.headers_mut() = headers;
    *response.status_mut() = if unchanged { StatusCode::NOT_MODIFIED } else { StatusCode::OK };
    response
}

pub(super) fn blob(
    repository: &Repository,
    digest: &Digest,
    pulled: PulledBlob,
    request: &HeaderMap,
) -> Result<Response, PullError> {
    let mut response = Response::new(Body::empty());
    describe(response.headers_mut(), repository, pulled.served);
    identify(response.headers_mut(), digest);
    if let Content::Redirect(url) = &pulled.content {
        let location = HeaderValue::from_str(url.expose().as_str())
            .map_err(|_| UpstreamError::Invalid("it redirected to a URL that fits no header".into()))?;
        *response.status_mut() = StatusCode::TEMPORARY_REDIRECT;
        response.headers_mut().insert(LOCATION, location);
        // The URL is a secret for as long as it is valid.
        response.headers_mut().insert(CACHE_CONTROL, NO_STORE);
        response.headers_mut().insert(CONTENT_LENGTH, 0.into());
        return Ok(response);
    }
    if not_modified(request, digest) {
        *response.status_mut() = StatusCode::NOT_MODIFIED;
        return Ok(response);
    }
    let requested = match &pulled.content {
        // RFC 9110, section 14.2: a range is defined for GET only.
        Content::None => RequestedRange::Whole,
        // RFC 9110, section 13.1.5: by the strong tag only; a date proves nothing about what has none.
        _ if request.get(IF_RANGE).is_some_and(|tag| tag.as_bytes() != format!("\"{digest}\"").as_bytes()) => {
            RequestedRange::Whole
        }
        _ => RequestedRange::parse(request.get(RANGE).and_then(|value| value.to_str().ok())),
    };
    let range = requested.of(pulled.size).ok_or(PullError::Range { size: pulled.size })?;
    let headers = response.headers_mut();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/octet-stream"));
    headers.insert(ACCEPT_RANGES, HeaderValue::from_static("bytes"));
    headers.insert(CONTENT_LENGTH, range.length.into());
    if range.partial {
        let text = format!("bytes {}-{}/{}", range.first, range.first + range.length - 1, pulled.size);
        headers.extend(HeaderValue::from_str(&text).ok().map(|value| (CONTENT_RANGE, value)));
        *response.status_mut() = StatusCode::PARTIAL_CONTENT;
    }
    let bytes = range.first..range.first + range.length;
    *response.body_mut() = match pulled.content {
        Content::None | Content::Redirect(_) => Body::empty(),
        Content::Memory(content) => {
            let [first, end] = [bytes.start, bytes.end].map(|at| usize::try_from(at).unwrap_or(usize::MAX));
            content.slice(first..end).into()
        }
        Content::File(file) => FilePart::stored(file, bytes).into_body(response.extensions_mut()),
        Content::Growing(file, progress) => {
            FilePart::growing(file, bytes, progress, pulled.size).into_body(response.extensions_mut())
        }
    };
    Ok(response)
}
