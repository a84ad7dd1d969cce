//! The queue of the images that policies and schedules want, in one process. Requests are written down first, so a
//! restart continues with them.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::panic::AssertUnwindSafe;
use std::sync::{Arc, Mutex, OnceLock, PoisonError, Weak};
use std::time::Duration;

use futures_util::FutureExt as _;
use tokio::sync::{Semaphore, watch};

use super::board::Open;
use super::ledger::EmbeddedLedger;
use crate::cache::Cache;
use crate::errors::chain;
use crate::ports::{ImageJob, Result};

/// How many images are processed at once.
const AT_ONCE: usize = 2;
/// How long an image rests after a failure that may pass; after the last of them it is given up until it is requested
/// again.
const RESTS: [Duration; 4] =
    [Duration::from_secs(5), Duration::from_mins(1), Duration::from_mins(10), Duration::from_hours(1)];
/// The first run of a schedule falls within this time of the start.
const FIRST: Duration = Duration::from_mins(1);

/// The embedded queue of images.
pub(super) struct Images {
    ledger: Arc<EmbeddedLedger>,
    cache: OnceLock<Weak<Cache>>,
    /// By the key in the ledger: whether an image in the queue was requested again meanwhile.
    requested: Mutex<HashMap<String, bool>>,
    /// How many images are in the queue.
    open: watch::Sender<usize>,
    places: Semaphore,
    stop: watch::Sender<bool>,
}

impl Images {
    pub(super) fn new(ledger: Arc<EmbeddedLedger>) -> Self {
        let (requested, open, places) = (Mutex::default(), watch::Sender::new(0), Semaphore::new(AT_ONCE));
        Self { ledger, cache: OnceLock::new(), requested, open, places, stop: watch::Sender::new(false) }
    }

    /// Continues with what an earlier process left.
    pub(super) fn start(self: &Arc<Self>, cache: &Arc<Cache>) -> Result<()> {
        let _ = self.cache.set(Arc::downgrade(cache));
        for image in self.ledger.requested_images()? {
            self.begin(image);
        }
        Ok(())
    }

    /// Requests the images of every schedule: soon after the start, and again whenever the schedule is due.
    pub(super) fn keep_schedules(&self, cache: &Arc<Cache>) {
        for schedule in &cache.core.config.schedules {
            let (cache, schedule, mut stop) = (Arc::downgrade(cache), schedule.clone(), self.stop.subscribe());
            tokio::spawn(async move {
                // Spreads schedules over time, and machines too.
                let mut pause = schedule.every.min(FIRST).mul_f64(fastrand::f64());
                loop {
                    tokio::select! {
                        () = tokio::time::sleep(pause) => {}
                        _ = stop.wait_for(|&stop| stop) => return,
                    }
                    let Some(cache) = cache.upgrade() else { return };
                    // A run that panics is logged where it does, and the next one comes all the same.
                    if let Ok(Err(error)) =
                        AssertUnwindSafe(cache.prefetch.request_schedule(&schedule)).catch_unwind().await
                    {
                        tracing::error!(error = %chain(&error), "the images of a schedule could not be requested");
                    }
                    pause = schedule.every;
                }
            });
        }
    }

    pub(super) async fn request(self: &Arc<Self>, images: &[ImageJob]) -> Result<()> {
        self.ledger.put_images(images).await?;
        for image in images {
            self.begin(image.clone());
        }
        Ok(())
    }

    /// Waits until no image is requested, running or resting.
    pub(super) async fn settled(&self) {
        let _ = self.open.subscribe().wait_for(|&open| open == 0).await;
    }

    /// Stops the running images. They stay written down.
    pub(super) async fn stop(&self) {
        self.stop.send_replace(true);
        self.settled().await;
    }

    fn begin(self: &Arc<Self>, image: ImageJob) {
        let key = super::ledger::image_key(&image);
        match self.requested.lock().unwrap_or_else(PoisonError::into_inner).entry(key.clone()) {
            Entry::Occupied(mut running) => {
                running.insert(true);
                return;
            }
            Entry::Vacant(free) => _ = free.insert(false),
        }
        let (images, open, mut stop) = (Arc::clone(self), Open::new(&self.open), self.stop.subscribe());
        tokio::spawn(async move {
            let ended = tokio::select! {
                // An image that panics is given up like one that fails for good.
                _ = AssertUnwindSafe(images.run(&image)).catch_unwind() => true,
                _ = stop.wait_for(|&stop| stop) => false,
            };
            // An image that is requested before it leaves the queue is run once more.
            if ended && let Err(error) = images.ledger.remove_image(&image).await {
                tracing::warn!(repository = %image.repository, error = %chain(&error), "an image is still written down as requested");
            }
            let again = images.requested.lock().unwrap_or_else(PoisonError::into_inner).remove(&key) == Some(true);
            if again && ended {
                // The second request was written down, and then removed with the first.
                let written = images.ledger.put_images(std::slice::from_ref(&image)).await;
                written.unwrap_or_else(
                    |error| tracing::warn!(error = %chain(&error), "a requested image is not written down"),
                );
                images.begin(image);
            }
            // In this order: once nothing is open, another process may take over the data directory.
            drop(images);
            drop(open);
        });
    }

    /// Attempts the image until it succeeds or fails for good.
    async fn run(&self, image: &ImageJob) {
        for rest in RESTS.iter().map(Some).chain([None]) {
            let outcome = {
                let _place = self.places.acquire().await;
                let Some(cache) = self.cache.get().and_then(Weak::upgrade) else { return };
                cache.prefetch.run(image).await
            };
            let Err(error) = outcome else { return };
            let rest = rest.filter(|_| error.may_pass());
            let (repository, reference) = (&image.repository, &image.reference);
            tracing::warn!(%repository, %reference, error = %chain(&error), again_in_s = rest.map(Duration::as_secs), "image not prefetched");
            let Some(rest) = rest else { return };
            tokio::time::sleep(*rest).await;
        }
    }
}
