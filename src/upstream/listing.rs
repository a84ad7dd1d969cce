//! Lists from an upstream: tags and referrers (distribution-spec 1.1, "Content Discovery").

use std::collections::HashSet;
use std::time::Duration;

use bytes::Bytes;
use http::header::{CONTENT_TYPE, LINK};
use http::{HeaderMap, Method, StatusCode};
use serde::Deserialize;
use tokio::sync::Semaphore;
use url::Url;

use super::account::Optional;
use super::answer::{UpstreamResponse, is_page, own_media_type, read_limited};
use super::send::hop_ends;
use super::standing::Said;
use super::{Result, Upstream, Upstreams, guard};
use crate::errors::UpstreamError;
use crate::oci::{Descriptors, Digest, MAX_MANIFEST_BYTES, MediaType, Name, Repository, UnsortedTags};
use crate::records::gauge::Kind;
use crate::records::{List, ListKey};
use crate::values::text::excerpt;

/// The time limit for one page: a registry may have to sort all of its tags for it.
const PAGE_TIMEOUT: Duration = Duration::from_secs(15);
/// How many tags one page asks for: the most that ECR accepts.
const PAGE_TAGS: usize = 1000;
const MAX_PAGES: usize = 500;
const MAX_PAGE_BYTES: usize = 4 * 1024 * 1024;
/// The most bytes of all pages of tags: some hundred thousand tags.
const MAX_TAGS_BYTES: usize = 8 * 1024 * 1024;

/// Lists of tags of more than a megabyte that are read at once, and those that are sorted at once: what such lists take
/// in memory, whatever many callers ask for at once. No list that ends sooner waits for these.
const LARGE_TAGS_BYTES: usize = 1024 * 1024;
static READING: Semaphore = Semaphore::const_new(4);
static SORTING: Semaphore = Semaphore::const_new(1);

/// A page, and the URL of the next one.
struct Page {
    body: Bytes,
    next: Option<Url>,
}

/// What the referrers API answered.
enum Referrers {
    Page(Page),
    /// The registry has no referrers API.
    NoApi,
    /// A successful answer that is not an index.
    NoIndex,
}

impl Upstreams {
    /// Reads all pages of a list. `None`: upstream has no such list. `known`: upstream has sent this list before.
    pub async fn list(&self, repository: &Repository, key: &ListKey, known: bool) -> Result<Option<List>> {
        // Lists, like tags, are read only from upstreams that are trusted to resolve tags.
        let says = |asked: &Result<Option<List>>| match asked {
            Ok(Some(_)) => Some(Said::Shown),
            Err(UpstreamError::Denied(_)) => Some(Said::Refused),
            // A missing referrers API may look like a missing repository, because its path is taken for a name.
            Ok(None) | Err(_) => None,
        };
        self.ask(repository, true, says, |upstream, name| async move {
            match key {
                ListKey::Tags => upstream.tags(&name).await,
                ListKey::Referrers(subject) => upstream.referrers(&name, subject, known).await,
            }
        })
        .await
    }
}

impl Upstream {
    /// Reads one page. A late page does not count against the breaker: it says nothing about other requests to the
    /// registry.
    async fn page<T>(&self, name: &Name, what: &str, asked: impl Future<Output = Result<T>>) -> Result<T> {
        let late = |_| Err(UpstreamError::failed(format!("no page of a list within {} s", PAGE_TIMEOUT.as_secs())));
        tokio::time::timeout(PAGE_TIMEOUT, self.metered(Kind::List, name, what, asked)).await.unwrap_or_else(late)
    }

    async fn tags(&self, name: &Name) -> Result<Option<List>> {
        let first = self.endpoint(name, "tags", "list");
        let (mut next, mut tags, mut read) = (Some(first), UnsortedTags::default(), Read::up_to(MAX_TAGS_BYTES));
        let mut large = None;
        while let Some(url) = next {
            if large.is_none() && read.bytes > LARGE_TAGS_BYTES {
                large = READING.acquire().await.ok();
            }
            let first = read.pages == 0;
            let asked = async {
                if first { self.first_page_of_tags(name, url).await } else { self.tags_page(name, url).await }
            };
            let page = match self.page(name, "tags", asked).await {
                Err(UpstreamError::Missing | UpstreamError::NoRepository) if read.pages == 0 => return Ok(None),
                Err(UpstreamError::Missing | UpstreamError::NoRepository) => return Err(broken_off()),
                asked => read.page(asked?)?,
            };
            tags.extend(&tags_in(&page.body)?);
            next = page.next.filter(|next| read.is_new(next));
        }
        let _sorting = SORTING.acquire().await.ok();
        let sorted = tokio::task::spawn_blocking(move || List::Tags(tags.into())).await;
        sorted.map(Some).map_err(|error| UpstreamError::Invalid(format!("its list cannot be sorted: {error}")))
    }

    /// Some registries take no page of the length that we ask for, or none of any.
    async fn first_page_of_tags(&self, name: &Name, url: Url) -> Result<Page> {
        let mut long = url.clone();
        long.set_query(Some(&format!("n={PAGE_TAGS}")));
        if !self.account.may_ask(Optional::PageLength, &url) {
            return self.tags_page(name, url).await;
        }
        match self.tags_page(name, long).await {
            Err(UpstreamError::Invalid(_) | UpstreamError::Unavailable { silent: false, .. }) => {}
            asked => return asked,
        }
        let page = self.tags_page(name, url.clone()).await?;
        self.account.note_lack(Optional::PageLength, &url);
        Ok(page)
    }

    async fn tags_page(&self, name: &Name, url: Url) -> Result<Page> {
        let answer = self.send(Method::GET, url, name, "application/json", None, hop_ends(PAGE_TIMEOUT)).await?;
        // Of tags that may be pulled, many registries give no list: that is not the absence of a repository.
        if answer.response.status() == StatusCode::FORBIDDEN && !is_page(answer.response.headers()) {
            return Err(UpstreamError::Denied("it answered 403 to a request for its list".into()));
        }
        let answer = self.listed(answer).await?;
        let next = next_page(answer.response.headers(), &answer.url)?;
        Ok(Page { body: read_limited(answer.response, MAX_PAGE_BYTES).await?, next })
    }

    /// Like [`UpstreamResponse::succeeded`]. A 404 in plain text is that of a registry which does not know such a path.
    async fn listed(&self, answer: UpstreamResponse) -> Result<UpstreamResponse> {
        let media_type = answer.response.headers().get(CONTENT_TYPE).and_then(|value| value.to_str().ok());
        let html = media_type.is_some_and(|media_type| media_type.starts_with("text/html"));
        let unknown_path = answer.response.status() == StatusCode::NOT_FOUND && !html;
        match answer.succeeded(self.has_credentials()).await {
            Err(UpstreamError::Unavailable { .. }) if unknown_path => Err(UpstreamError::Missing),
            answered => answered,
        }
    }

    /// Reads all referrers. If the list is `known` or a page of it has been read, the API exists, and an answer that
    /// denies it is an error.
    async fn referrers(&self, name: &Name, subject: &Digest, known: bool) -> Result<Option<List>> {
        let mut next = Some(self.endpoint(name, "referrers", subject));
        // They are served in one index, so they share its size limit.
        let (mut pages, mut read) = (Vec::new(), Read::up_to(MAX_MANIFEST_BYTES));
        while let Some(url) = next {
            let page = match self.page(name, subject.as_str(), self.referrers_page(name, url)).await? {
                Referrers::Page(page) => read.page(page)?,
                Referrers::NoApi if read.pages == 0 => return Ok(None),
                Referrers::NoIndex if read.pages == 0 && !known => return Ok(None),
                Referrers::NoApi | Referrers::NoIndex => return Err(broken_off()),
            };
            pages.push(referrers_in(&page.body)?);
            next = page.next.filter(|next| read.is_new(next));
        }
        Ok(Some(List::Referrers(Descriptors::joined(&pages, read.bytes))))
    }

    /// A registry without the API says so in one of many ways: 404, 405, 501, 401 to anonymous callers, an HTML page,
    /// or a redirect to one (ghcr.io), which is therefore not followed.
    async fn referrers_page(&self, name: &Name, url: Url) -> Result<Referrers> {
        let accept = MediaType::OciIndex.as_str();
        let answer = Box::pin(self.request(Method::GET, url, name, accept, None, hop_ends(PAGE_TIMEOUT))).await?;
        match answer.response.status() {
            StatusCode::NOT_FOUND if is_page(answer.response.headers()) => return Ok(Referrers::NoApi),
            StatusCode::OK | StatusCode::NOT_FOUND | StatusCode::TOO_MANY_REQUESTS | StatusCode::REQUEST_TIMEOUT => {}
            StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN if self.has_credentials() => {}
            status if status.is_server_error() && status != StatusCode::NOT_IMPLEMENTED => {}
            _ => return Ok(Referrers::NoApi),
        }
        let answer = match self.listed(answer).await {
            Err(UpstreamError::Missing) => return Ok(Referrers::NoApi),
            answer => answer?,
        };
        let headers = answer.response.headers();
        let content_type = headers.get(CONTENT_TYPE).and_then(|value| value.to_str().ok()).unwrap_or_default();
        let (content_type, next) = (content_type.to_owned(), next_page(headers, &answer.url)?);
        let body = read_limited(answer.response, MAX_PAGE_BYTES).await?;
        let media_type = content_type.parse().ok().or_else(|| own_media_type(&content_type, &body));
        let index = media_type == Some(MediaType::OciIndex);
        Ok(if index { Referrers::Page(Page { body, next }) } else { Referrers::NoIndex })
    }
}

fn broken_off() -> UpstreamError {
    UpstreamError::Invalid("its list breaks off".into())
}

/// How much of a list has been read. A list that is too long is refused, never truncated.
struct Read {
    pages: usize,
    bytes: usize,
    most: usize,
    /// The next pages so far.
    followed: HashSet<Url>,
}

impl Read {
    fn up_to(most: usize) -> Self {
        Self { pages: 0, bytes: 0, most, followed: HashSet::new() }
    }

    /// Whether a page has not been read yet. A list that leads back to a page of its own has been read.
    fn is_new(&mut self, next: &Url) -> bool {
        self.followed.insert(next.clone())
    }

    fn page(&mut self, page: Page) -> Result<Page> {
        self.pages += 1;
        self.bytes += page.body.len();
        if self.pages > MAX_PAGES || self.bytes > self.most {
            let (pages, bytes) = (self.pages, self.bytes);
            return Err(UpstreamError::Invalid(format!("its list is too long: {pages} pages, {bytes} bytes so far")));
        }
        Ok(page)
    }
}

/// The tags in one page. An error is [`UpstreamError::Invalid`].
pub fn tags_in(body: &[u8]) -> Result<UnsortedTags> {
    #[derive(Deserialize)]
    struct Page {
        /// May be `null` for an empty list, but not missing: an error body is not an empty list.
        #[serde(deserialize_with = "Option::deserialize")]
        tags: Option<UnsortedTags>,
    }
    let page: Page = serde_json::from_slice(body).map_err(|error| no_list(&error))?;
    Ok(page.tags.unwrap_or_default())
}

/// The descriptors in one page of referrers, which lie in its bytes. An error is [`UpstreamError::Invalid`].
pub fn referrers_in(body: &Bytes) -> Result<Descriptors> {
    Descriptors::of_index(body).map_err(|error| no_list(&error))
}

fn no_list(error: &serde_json::Error) -> UpstreamError {
    UpstreamError::Invalid(format!("no list: {}", excerpt(error)))
}

/// The next page of a list that came from `url` (RFC 8288). It is always asked for at the same origin: registries that
/// do not know how they are reached write the same path with another host or scheme. Another path elsewhere is not of
/// the registry that was asked ([`UpstreamError::Invalid`]).
pub fn next_page(headers: &HeaderMap, url: &Url) -> Result<Option<Url>> {
    let values = headers.get_all(LINK).into_iter().filter_map(|value| str::from_utf8(value.as_bytes()).ok());
    let Some(target) = values.flat_map(links).find_map(|(target, next)| next.then_some(target)) else {
        return Ok(None);
    };
    // Some forget the slash before the root of the API.
    let rooted = target.starts_with("v2/").then(|| format!("/{target}"));
    match url.join(rooted.as_deref().unwrap_or(target)) {
        Ok(next) if next.origin() == url.origin() => Ok(Some(next)),
        Ok(next) if next.path() == url.path() && matches!(next.scheme(), "http" | "https") => {
            let mut here = url.clone();
            here.set_query(next.query());
            Ok(Some(here))
        }
        Ok(next) => Err(UpstreamError::Invalid(format!("its list goes on at {}", guard::origin(&next)))),
        Err(error) => Err(UpstreamError::Invalid(format!("its list goes on nowhere: {error}"))),
    }
}

/// The targets of a `Link` header, and whether each is the next page: `<…>; rel="next", <…>; rel=last`.
fn links(header: &str) -> impl Iterator<Item = (&str, bool)> {
    header.split('<').skip(1).filter_map(|link| {
        let (target, parameters) = link.split_once('>')?;
        let relation = parameters.split([';', ',']).find_map(|parameter| {
            let (name, value) = parameter.split_once('=')?;
            name.trim().eq_ignore_ascii_case("rel").then(|| value.trim().trim_matches(['"', '\'']))
        });
        // Other clients take a link without a relation.
        let next = relation.is_none_or(|relation| {
            relation.split_ascii_whitespace().any(|relation| relation.eq_ignore_ascii_case("next"))
        });
        Some((target, next))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn next_after(link: &str) -> Result<Option<String>> {
        let headers = HeaderMap::from_iter([(LINK, link.parse().unwrap())]);
        let url = Url::parse("https://r.test/v2/a/tags/list?n=2").unwrap();
        next_page(&headers, &url).map(|next| next.map(String::from))
    }

    #[test]
    fn the_next_page_is_found_however_the_link_is_written() {
        for link in [
            "</v2/a/tags/list?last=b&n=2>; rel=\"next\"",
            "<https://r.test/v2/a/tags/list?last=b&n=2>;rel=next",
            "<list?last=b&n=2>; title=\"x\"; REL=\"last Next\"",
            "<?last=b&n=2>; rel=next",
            "<v2/a/tags/list?last=b&n=2>; rel=next",
            "</first>; rel=\"first\", </v2/a/tags/list?last=b&n=2>; rel=\"next\"",
        ] {
            assert_eq!(next_after(link).unwrap().unwrap(), "https://r.test/v2/a/tags/list?last=b&n=2", "{link}");
        }
        for link in ["https://internal:8443", "http://r.test", "//mirror.test"] {
            let link = format!("<{link}/v2/a/tags/list?last=b&n=2>; rel='next'");
            assert_eq!(next_after(&link).unwrap().unwrap(), "https://r.test/v2/a/tags/list?last=b&n=2", "{link}");
        }
        assert!(next_after("</v2/a/tags/list?last=b>").unwrap().is_some());
        for link in ["", "</first>; rel=\"first\"", "/x; rel=next", "<x; rel=next", "</x>; rel=\"next-year\""] {
            assert_eq!(next_after(link), Ok(None), "{link}");
        }
    }

    #[test]
    fn a_list_does_not_go_on_elsewhere() {
        for link in ["https://evil.test/v2/", "//evil.test/", "http://r.test/v2/", "https://r.test:444/", "file:///a"] {
            let link = format!("<{link}>; rel=\"next\"");
            assert!(matches!(next_after(&link), Err(UpstreamError::Invalid(_))), "{link}");
        }
    }
}
