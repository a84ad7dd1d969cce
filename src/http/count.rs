//! What answers count as: for metrics, events and the status.

use axum::response::Response;

use crate::cache::Cache;
use crate::errors::PullError;
use crate::journal::{Event, EventKind, Metric};
use crate::oci::Repository;
use crate::values::served::Served;

/// What of an answer is counted.
pub(super) struct Counted {
    /// How it came about; a ping is no hit.
    pub(super) served: Option<Served>,
    /// It answers GET of a manifest.
    pub(super) is_pull: bool,
    /// The bytes of a blob that the client gets.
    pub(super) blob_bytes: u64,
}

/// Counts how a request was answered. What was refused because a quota or a budget is used up is an event, too.
pub(super) fn count(
    cache: &Cache,
    repository: Option<&Repository>,
    Counted { served, is_pull, blob_bytes }: Counted,
    response: &Response,
    error: Option<&PullError>,
) {
    let journal = &cache.core.journal;
    let counters = journal.of(repository.map(|repository| &repository.upstream));
    for metric in Metric::of_answer(response.status().as_u16(), served, is_pull) {
        counters.add(metric, 1);
        if blob_bytes > 0 && Metric::STORED.contains(&metric) {
            counters.add(Metric::SavedBytes, blob_bytes);
        }
    }
    if let (Some(repository), Some(error)) = (repository, error)
        && error.is_of_quota()
    {
        journal.note(Event::new(EventKind::RefusedPull, error).in_repository(repository));
    }
}
