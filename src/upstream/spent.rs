//! How many pulls of quotas a request has spent. Whoever begins to ask upstream pays; those who wait for the same answer, and
//! what goes on in the background, do not.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

tokio::task_local! {
    static SPENT: Arc<AtomicU64>;
}

/// Does `work`, and says how many manifests were fetched for it.
pub(crate) async fn counted<T>(work: impl Future<Output = T>) -> (T, u64) {
    let spent = Arc::new(AtomicU64::new(0));
    let outcome = SPENT.scope(Arc::clone(&spent), work).await;
    (outcome, spent.load(Ordering::Relaxed))
}

/// What counts for one request.
pub(crate) struct Counter(Arc<AtomicU64>);

/// That of the request that is being answered, if there is one.
pub(crate) fn current() -> Option<Counter> {
    SPENT.try_with(|spent| Counter(Arc::clone(spent))).ok()
}

/// Work that goes on in a task of its own, counted for whoever begins it.
pub(crate) async fn counted_by<T>(counter: Option<Counter>, work: impl Future<Output = T>) -> T {
    match counter {
        Some(Counter(spent)) => SPENT.scope(spent, work).await,
        None => work.await,
    }
}

/// Upstream has sent a manifest.
pub(crate) fn note_manifest() {
    // Outside of any request nobody counts.
    let _ = SPENT.try_with(|spent| spent.fetch_add(1, Ordering::Relaxed));
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn whoever_begins_to_ask_pays_and_nobody_else() {
        let work = async {
            note_manifest();
            tokio::spawn(counted_by(current(), async { note_manifest() })).await.unwrap();
            tokio::spawn(async { note_manifest() }).await.unwrap();
        };
        assert_eq!(counted(work).await.1, 2);
        counted_by(None, async { note_manifest() }).await;
        assert_eq!(counted(async {}).await.1, 0);
    }
}
