//! `POST /_stopover/prefetch`. It stores only what a pull would, so it is open to every caller that may pull.

use std::collections::HashSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use axum::extract::State;
use axum::response::{IntoResponse as _, Response};
use futures_util::{StreamExt as _, stream};
use http::StatusCode;
use serde::{Deserialize, Serialize};
use tokio::time::{Instant, timeout_at};

use super::access::Caller;
use super::audit::Record;
use super::operator::{answer, refusal};
use super::refuse;
use crate::cache::Cache;
use crate::errors::{PullError, chain};
use crate::oci::{Platform, Platforms, Request};
use crate::ports::{ImageJob, Priority};
use crate::prefetch::{MAX_BLOBS, PrefetchReport, Prefetched};
use crate::values::deadline::bounded;
use crate::values::text::excerpt;

/// The most bytes of a request, and the most images and platforms in it.
const MAX_BYTES: usize = 1024 * 1024;
const MAX_IMAGES: usize = 1000;
const MAX_PLATFORMS: usize = 32;

/// How many images of one request are processed at once.
const AT_ONCE: usize = 4;

/// The body of a request.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Wanted {
    images: Vec<String>,
    /// The platforms to store; if there are none, those of each upstream's policy.
    #[serde(default)]
    platforms: Vec<Platform>,
    /// The client's own platform, for upstreams whose policy names none.
    machine: Option<Platform>,
}

/// The body of an answer.
#[derive(Serialize)]
struct Reports {
    images: Vec<PrefetchReport>,
}

/// Stores the manifests of images and requests the fills of their blobs. The client asks again for images that take too
/// long for one answer.
pub(super) async fn prefetch(
    State(cache): State<Arc<Cache>>,
    request: axum::extract::Request,
) -> Result<Response, Response> {
    let (parts, body) = request.into_parts();
    let mut record = Record::default();
    let caller = Caller::of(&cache, &parts, &mut record).await.map_err(|error| {
        record.prefetched(Some(&error));
        refuse(&cache, &error, &parts)
    })?;
    // The body is read only once the caller is known, so that strangers make us hold no memory.
    let body = axum::body::to_bytes(body, MAX_BYTES).await.map_err(|_| {
        refusal(StatusCode::PAYLOAD_TOO_LARGE, "the body is too long for one request, or did not come in time")
    })?;
    let wanted: Wanted = serde_json::from_slice(&body).map_err(|error| {
        let example = r#"{"images": ["docker.io/library/nginx:1.27"], "platforms": ["linux/amd64"]}"#;
        refusal(StatusCode::BAD_REQUEST, &format!("{}; the body must be like {example}", excerpt(&error)))
    })?;
    let limits = [(wanted.images.len(), "images", MAX_IMAGES), (wanted.platforms.len(), "platforms", MAX_PLATFORMS)];
    if let Some((count, what, most)) = limits.into_iter().find(|(count, _, most)| count > most) {
        let message = format!("{count} {what} are too many for one request: {most} at the most");
        return Err(refusal(StatusCode::PAYLOAD_TOO_LARGE, &message));
    }
    let (address, deadline) = (caller.address, Instant::now() + bounded(cache.core.config.wait));
    // How many more blobs the answer has room for: those of the largest image, so that one of them always fits.
    let (mut seen, room) = (HashSet::new(), AtomicUsize::new(MAX_BLOBS));
    let images = stream::iter(wanted.images.clone()).map(|text| {
        let mut record = Record::of(Some(caller.principal.clone()), address);
        // Each job has a list of platforms of its own, so it is made only when its turn comes.
        let (cache, job) = (Arc::clone(&cache), wanted.job(&cache, &caller, &text, &mut record));
        let known = job.as_ref().is_ok_and(|job| !seen.insert((job.repository.clone(), job.reference.clone())));
        let room = &room;
        async move {
            if known {
                return None;
            }
            let prefetched = async { cache.prefetch.image(&job?, &record.spent).await };
            // The clock first: a future that is ready at once never sees that its time is up.
            let outcome = if Instant::now() >= deadline || room.load(Ordering::Relaxed) == 0 {
                Err(PullError::NotYet)
            } else {
                timeout_at(deadline, prefetched).await.unwrap_or(Err(PullError::NotYet))
            };
            let outcome = outcome.and_then(|Prefetched { digest, blobs }| {
                let less = |left: usize| left.checked_sub(blobs.len());
                let fits = room.fetch_update(Ordering::Relaxed, Ordering::Relaxed, less).is_ok();
                if fits { Ok(Prefetched { digest, blobs }) } else { Err(PullError::NotYet) }
            });
            record.prefetched(outcome.as_ref().err());
            Some(report(text, outcome))
        }
    });
    let images = images.buffered(AT_ONCE).filter_map(std::future::ready).collect().await;
    Ok((StatusCode::ACCEPTED, answer(&Reports { images })).into_response())
}

impl Wanted {
    fn job(&self, cache: &Cache, caller: &Caller, text: &str, record: &mut Record) -> Result<ImageJob, PullError> {
        let (repository, reference) = cache.core.upstreams.image(&Request::image(text)?)?;
        caller.check(cache, &repository, record)?;
        let platforms = self.platforms(&cache.core.upstreams.get(&repository)?.config().platforms);
        Ok(ImageJob { repository, reference, platforms, priority: Priority::Prefetch, payer: caller.payer() })
    }

    fn platforms(&self, policy: &Platforms) -> Platforms {
        if !self.platforms.is_empty() {
            return Platforms::Only(self.platforms.clone());
        }
        match policy {
            Platforms::Requested => Platforms::Only(self.machine.iter().cloned().collect()),
            policy => policy.clone(),
        }
    }
}

fn report(image: String, outcome: Result<Prefetched, PullError>) -> PrefetchReport {
    let report = PrefetchReport { image, ..PrefetchReport::default() };
    match outcome {
        Ok(Prefetched { digest, blobs }) => PrefetchReport { digest: Some(digest), blobs, ..report },
        Err(error) => {
            tracing::debug!(image = report.image, error = %chain(&error), "image not prefetched");
            let again = matches!(error, PullError::NotYet);
            let answer = error.answer();
            let passes = matches!(error, PullError::OverBudget(_)) && answer.status == StatusCode::TOO_MANY_REQUESTS;
            let retry_after = answer.retry_after.filter(|_| passes).map(|after| after.as_secs());
            let error = if again { "this takes longer than one answer; ask again".into() } else { answer.message };
            PrefetchReport { error: Some(error), again, retry_after, ..report }
        }
    }
}
