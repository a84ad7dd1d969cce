//! `GET /_stopover/metrics`, `GET /_stopover/events` and `GET /_stopover/status`.

use std::sync::Arc;

use axum::extract::State;
use axum::response::{IntoResponse as _, Response};
use http::header::{CACHE_CONTROL, CONTENT_TYPE};
use http::request::Parts;

use super::NO_STORE;
use super::access::Caller;
use super::audit::Record;
use super::operator::{answer, let_in, let_in_if};
use crate::cache::Cache;
use crate::journal::Event;
use crate::oci::UpstreamId;
use crate::operate::status::{EventReport, EventsReport, StatusReport};

/// The metrics, for operators. Where there is no login, no scraper could be one: then callers that are let in see what is
/// about upstreams that they may pull from.
pub(super) async fn metrics(State(cache): State<Arc<Cache>>, parts: Parts) -> Result<Response, Response> {
    let check = |caller: Caller, _: &mut Record| {
        if cache.access.has_logins() {
            caller.check_operator(&cache)?;
        }
        Ok(caller)
    };
    let caller = let_in_if(&cache, &parts, check).await?;
    let sees = |upstream: &UpstreamId| caller.sees_upstream(&cache, upstream);
    let metrics = cache.operate.metrics(sees, |upstream| caller.sees_counts(&cache, upstream));
    let headers = [(CONTENT_TYPE, "text/plain; version=0.0.4; charset=utf-8")];
    Ok(([(CACHE_CONTROL, NO_STORE)], headers, metrics).into_response())
}

/// What has failed lately: all of it for operators, for other callers what they may pull.
pub(super) async fn events(State(cache): State<Arc<Cache>>, parts: Parts) -> Result<Response, Response> {
    let caller = let_in(&cache, &parts).await?;
    Ok(answer(&events_seen_by(&cache, &caller)))
}

/// What has failed lately, as far as a caller may see it.
pub(super) fn events_seen_by(cache: &Cache, caller: &Caller) -> EventsReport {
    let is_shown = |event: &Event| match (&event.repository, &event.upstream) {
        _ if caller.is_operator => true,
        (Some(repository), _) => caller.may_pull(cache, repository),
        (None, Some(upstream)) => caller.sees_upstream(cache, upstream),
        // The cache itself.
        (None, None) => false,
    };
    let events = cache.core.journal.latest().into_iter().filter(is_shown).map(EventReport::from);
    let events = events.map(|event| if caller.is_operator { event } else { event.for_callers() }).collect();
    EventsReport { events }
}

/// What this process does: what operators see of it, or any other caller that is let in.
pub(super) async fn status(State(cache): State<Arc<Cache>>, parts: Parts) -> Result<Response, Response> {
    let caller = let_in(&cache, &parts).await?;
    Ok(answer(&status_seen_by(&cache, &caller).await))
}

/// What this process does, as far as a caller may see it.
pub(super) async fn status_seen_by(cache: &Cache, caller: &Caller) -> StatusReport {
    let sees = |upstream: &UpstreamId, private| caller.sees(cache, upstream, private);
    cache.operate.status(caller.is_operator, sees, |upstream| caller.sees_counts(cache, upstream)).await
}
