//! Admission control for expensive steps of a login: a bounded queue in front of a semaphore.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use crate::errors::AccessError;

/// The answer to a caller that finds the queue full.
pub(super) const BUSY: AccessError = AccessError::Busy { retry_after: Duration::from_secs(2) };

/// A bounded queue in front of a semaphore.
pub(super) struct Lane {
    waiting: Semaphore,
    inside: Arc<Semaphore>,
}

impl Lane {
    /// At most `waiting` callers queue, and at most `at_once` are admitted at a time.
    pub(super) fn new(waiting: usize, at_once: usize) -> Self {
        Self { waiting: Semaphore::new(waiting), inside: Arc::new(Semaphore::new(at_once)) }
    }

    /// Waits for admission, which lasts as long as the permit is held.
    pub(super) async fn enter(&self) -> Result<OwnedSemaphorePermit, AccessError> {
        let _waiting = self.waiting.try_acquire().map_err(|_| BUSY)?;
        Arc::clone(&self.inside).acquire_owned().await.map_err(|_| BUSY)
    }

    /// Admits no caller while the result is held; with `full` the queue is full too.
    #[cfg(test)]
    pub(super) async fn close(&self, full: bool) -> impl Sized + use<'_> {
        let all = |semaphore: &Semaphore| semaphore.available_permits().try_into().unwrap();
        let inside = self.inside.acquire_many(all(&self.inside)).await.unwrap();
        let waiting = if full { Some(self.waiting.acquire_many(all(&self.waiting)).await.unwrap()) } else { None };
        (inside, waiting)
    }
}
