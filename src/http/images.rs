//! `GET /_stopover/images` and `GET /_stopover/image`: what is in the cache, page by page as lists of tags are.

use std::sync::Arc;

use axum::extract::State;
use axum::response::Response;
use http::StatusCode;
use http::request::Parts;

use super::access::Caller;
use super::audit::Record;
use super::listing::next;
use super::operator::{answer, let_in, let_in_if, refusal, unavailable};
use crate::cache::Cache;
use crate::errors::PullError;
use crate::oci::{Operation, Reference, Repository, Request, UpstreamId};
use crate::operate::images::{MOST_IMAGES, MOST_REPOSITORIES, Wanted};
use crate::ports::Section;
use crate::values::served::Served;
use crate::values::text::excerpt;

/// How many repositories a page has, unless the caller says.
const REPOSITORIES: usize = 100;
/// The longest beginning of a name.
const MAX_PREFIX: usize = 511;

/// The parameters of a request. A plus stands for itself, as in the registry's own lists. The error says in words what is
/// not understood.
pub(super) struct Parameters(Vec<(String, String)>);

impl Parameters {
    pub(super) fn of(parts: &Parts) -> Self {
        let pairs = parts.uri.query().unwrap_or_default().split('&').filter_map(|pair| pair.split_once('='));
        let decoded = |text: &str| percent_encoding::percent_decode_str(text).decode_utf8_lossy().into_owned();
        Self(pairs.map(|(name, value)| (decoded(name), decoded(value))).collect())
    }

    /// An empty one counts as absent.
    pub(super) fn get(&self, wanted: &str) -> Option<&str> {
        let found = self.0.iter().find(|(name, value)| name == wanted && !value.is_empty());
        found.map(|(_, value)| value.as_str())
    }

    fn n(&self, default: usize, most: usize) -> Result<usize, String> {
        let number = |text: &str| match text.parse::<usize>() {
            Ok(number @ 1..) => Ok(number),
            _ => Err(format!("n is how many are wanted, from 1 on, and not {}", excerpt(&text))),
        };
        Ok(self.get("n").map_or(Ok(default), number)?.min(most))
    }

    /// What names begin with, or are.
    fn name(&self, parameter: &str) -> Result<Option<&str>, String> {
        let is_letter = |byte: u8| matches!(byte, b'a'..=b'z' | b'0'..=b'9' | b'.' | b'_' | b'-' | b'/');
        match self.get(parameter) {
            Some(text) if text.len() > MAX_PREFIX || !text.bytes().all(is_letter) => {
                Err(format!("{parameter} is the beginning of upstream/name, and not {}", excerpt(&text)))
            }
            name => Ok(name),
        }
    }

    pub(super) fn section(&self) -> Result<Section, String> {
        let prefix = self.name("prefix")?.unwrap_or_default();
        let prefix = match self.get("upstream").map(str::parse::<UpstreamId>) {
            Some(Ok(upstream)) => format!("{upstream}/{prefix}"),
            Some(Err(_)) => return Err("upstream is the id of one".into()),
            None => prefix.to_owned(),
        };
        let after = self.name("last")?.map(str::to_owned);
        Ok(Section { prefix, after, most: self.n(REPOSITORIES, MOST_REPOSITORIES)? })
    }

    /// The repository that a name means, which the caller may pull, and which of its images.
    pub(super) fn wanted(
        &self,
        cache: &Cache,
        caller: &Caller,
        record: &mut Record,
    ) -> Result<(Repository, Wanted), PullError> {
        let text = self.get("name").unwrap_or_default();
        let (repository, reference) = located(cache, text)?;
        if !caller.is_operator {
            caller.check(cache, &repository, record)?;
        }
        // Without a tag all of them are meant, and no tag can begin with a slash.
        let is_whole = matches!(reference, Reference::Tag(_)) && !text.rsplit('/').next().unwrap_or(text).contains(':');
        Ok((repository, if is_whole { Wanted::All(None, MOST_IMAGES) } else { Wanted::One(reference) }))
    }

    /// The page of images that is wanted, and how many it has.
    pub(super) fn behind(&self, wanted: Wanted) -> Result<(Wanted, usize), String> {
        let n = self.n(MOST_IMAGES, MOST_IMAGES)?;
        let last = self.get("last").map(str::parse::<Reference>).transpose();
        let last = last.map_err(|error| format!("last is a tag, or a digest: {error}"))?;
        Ok((if let Wanted::All(..) = wanted { Wanted::All(last, n) } else { wanted }, n))
    }
}

/// What an image is called here. Finds also what may no longer be pulled.
pub(super) fn located(cache: &Cache, image: &str) -> Result<(Repository, Reference), PullError> {
    let request = Request::image(image)?;
    let Operation::Manifest(name, reference) = &request.operation else {
        return Err(PullError::ManifestUnknown(Served::Miss));
    };
    Ok((cache.core.upstreams.locate(&request, name)?, reference.clone()))
}

/// The repositories of which something is stored: those that the caller may pull from, for operators all.
pub(super) async fn images(State(cache): State<Arc<Cache>>, parts: Parts) -> Result<Response, Response> {
    let caller = let_in(&cache, &parts).await?;
    let parameters = Parameters::of(&parts);
    let section = parameters.section().map_err(|sentence| refusal(StatusCode::BAD_REQUEST, &sentence))?;
    let sees = |repository: &Repository| caller.is_operator || caller.may_pull(&cache, repository);
    let paged = cache.operate.images(&section, sees).await.map_err(|error| unavailable(&error))?;
    let mut response = answer(&paged.page);
    if let Some(last) = paged.next {
        let [upstream, prefix] = ["upstream", "prefix"].map(|name| (name, parameters.get(name)));
        let n = section.most.to_string();
        let query = [upstream, prefix, ("n", Some(n.as_str())), ("last", Some(last.as_str()))];
        response.headers_mut().extend(next("/_stopover/images", &query));
    }
    Ok(response)
}

/// The images of a repository, or one of them, for a caller that may pull it.
pub(super) async fn image(State(cache): State<Arc<Cache>>, parts: Parts) -> Result<Response, Response> {
    let parameters = Parameters::of(&parts);
    let wanted = |caller: Caller, record: &mut Record| parameters.wanted(&cache, &caller, record);
    let (repository, wanted) = let_in_if(&cache, &parts, wanted).await?;
    let (wanted, n) = parameters.behind(wanted).map_err(|sentence| refusal(StatusCode::BAD_REQUEST, &sentence))?;
    let paged = cache.operate.image(&repository, wanted).await.map_err(|error| unavailable(&error))?;
    let nothing = || format!("nothing of {repository} is stored that is called so");
    let paged = paged.ok_or_else(|| refusal(StatusCode::NOT_FOUND, &nothing()))?;
    let mut response = answer(&paged.page);
    if let Some(last) = paged.next {
        let n = n.to_string();
        let query = [("name", parameters.get("name")), ("n", Some(n.as_str())), ("last", Some(last.as_str()))];
        response.headers_mut().extend(next("/_stopover/image", &query));
    }
    Ok(response)
}
