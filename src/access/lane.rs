//! Where those wait who log in, in front of what only a few may do at once.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use crate::errors::AccessError;

/// What whoever finds no place to wait is told.
pub(super) const BUSY: AccessError = AccessError::Busy { retry_after: Duration::from_secs(2) };

/// A queue that has an end.
pub(super) struct Lane {
    waiting: Semaphore,
    inside: Arc<Semaphore>,
}

impl Lane {
    /// So many wait, and so many are let in at once.
    pub(super) fn new(waiting: usize, at_once: usize) -> Self {
        Self { waiting: Semaphore::new(waiting), inside: Arc::new(Semaphore::new(at_once)) }
    }

    /// Waits, and is inside as long as the permit is there.
    pub(super) async fn enter(&self) -> Result<OwnedSemaphorePermit, AccessError> {
        let _waiting = self.waiting.try_acquire().map_err(|_| BUSY)?;
        Arc::clone(&self.inside).acquire_owned().await.map_err(|_| BUSY)
    }

    /// Has nobody let in any more, for as long as this is there, and with `full` nobody wait either.
    #[cfg(test)]
    pub(super) async fn close(&self, full: bool) -> impl Sized + use<'_> {
        let all = |semaphore: &Semaphore| semaphore.available_permits().try_into().unwrap();
        let inside = self.inside.acquire_many(all(&self.inside)).await.unwrap();
        let waiting = if full { Some(self.waiting.acquire_many(all(&self.waiting)).await.unwrap()) } else { None };
        (inside, waiting)
    }
}
