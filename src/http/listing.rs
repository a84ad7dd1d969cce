//! Answers with lists (distribution-spec 1.1, "Content Discovery").

use std::convert::Infallible;

use axum::body::Body;
use axum::response::Response;
use bytes::Bytes;
use futures_util::stream;
use http::header::{CONTENT_LENGTH, CONTENT_TYPE, HeaderName, HeaderValue, LINK};
use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, utf8_percent_encode};

use super::DISTRIBUTION_API_VERSION;
use super::content::describe;
use crate::oci::{MediaType, Name, Page, Repository, Request};
use crate::pull::{PulledReferrers, PulledTags};
use crate::values::served::Served;

const FILTERS_APPLIED: HeaderName = HeaderName::from_static("oci-filters-applied");
/// Everything but the unreserved characters (RFC 3986, section 2.3). `%20` and `%2B` are a space and a plus to every
/// parser, also to one that reads a query as a form.
pub(super) const RESERVED: &AsciiSet = &NON_ALPHANUMERIC.remove(b'-').remove(b'.').remove(b'_').remove(b'~');

pub(super) fn tags(
    request: &Request,
    name: &Name,
    page: &Page,
    repository: &Repository,
    pulled: &PulledTags,
) -> Response {
    // No character of a name is escaped.
    let head = format!("{{\"name\":\"{name}\",\"tags\":[");
    let tags = std::iter::once(pulled.tags.json().clone());
    let mut response = list(repository, "application/json", head, tags, request.head, pulled.served);
    if let Some(last) = pulled.tags.iter().next_back().filter(|_| pulled.more) {
        // With the prefix and the `ns` that the client has used.
        let prefix = request.prefix.as_ref().map_or_else(String::new, |prefix| format!("/{prefix}"));
        let n = page.size().to_string();
        let query = [("n", Some(n.as_str())), ("last", Some(last)), ("ns", request.namespace.as_deref())];
        response.headers_mut().extend(next(&format!("{prefix}/v2/{name}/tags/list"), &query));
    }
    response
}

/// The link to the page behind one: its path, and what is given of the parameters of its query.
pub(super) fn next(path: &str, query: &[(&str, Option<&str>)]) -> Option<(HeaderName, HeaderValue)> {
    let given = query.iter().filter_map(|(name, value)| Some((name, utf8_percent_encode((*value)?, RESERVED))));
    let query: Vec<String> = given.map(|(name, value)| format!("{name}={value}")).collect();
    let link = HeaderValue::from_str(&format!("<{path}?{}>; rel=\"next\"", query.join("&"))).ok()?;
    Some((LINK, link))
}

/// `filtered`: the client wanted those of one `artifactType`, and only those are in the list.
pub(super) fn referrers(repository: &Repository, pulled: PulledReferrers, filtered: bool, head: bool) -> Response {
    let media_type = MediaType::OciIndex.as_str();
    let start = format!("{{\"schemaVersion\":2,\"mediaType\":\"{media_type}\",\"manifests\":[");
    let mut response = list(repository, media_type, start, pulled.manifests.json(), head, pulled.served);
    if filtered {
        response.headers_mut().insert(FILTERS_APPLIED, HeaderValue::from_static("artifactType"));
    }
    response
}

/// An answer that ends with an array, which is given part by part: what is long in it is shared and not copied.
fn list(
    repository: &Repository,
    media_type: &'static str,
    start: String,
    array: impl Iterator<Item = Bytes> + Clone + Send + 'static,
    head: bool,
    served: Served,
) -> Response {
    let parts = std::iter::once(start.into()).chain(array).chain(std::iter::once(Bytes::from_static(b"]}")));
    let length: usize = parts.clone().map(|part| part.len()).sum();
    let whole = || Body::from_stream(stream::iter(parts.filter(|part| !part.is_empty()).map(Ok::<_, Infallible>)));
    let mut response = Response::new(if head { Body::empty() } else { whole() });
    let headers = response.headers_mut();
    describe(headers, repository, served);
    headers.insert(DISTRIBUTION_API_VERSION, HeaderValue::from_static("registry/2.0"));
    headers.insert(CONTENT_TYPE, HeaderValue::from_static(media_type));
    headers.insert(CONTENT_LENGTH, length.into());
    response
}
