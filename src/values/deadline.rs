//! The end of the time that a platform gives a request. Every wait on behalf of the request ends before it.

use std::time::Duration;

use tokio::time::{Instant, sleep_until, timeout_at};

tokio::task_local! {
    static ENDS_AT: Instant;
}

/// The time that is left to write down how a wait ended.
const TO_WRITE: Duration = Duration::from_millis(500);

/// The time by which shared work ends before the request does. Where the process is frozen after the answer, no work may be
/// left: its time-outs would blame an upstream, and its callers of later would get an answer of then.
const TO_END: Duration = Duration::from_millis(100);

/// Runs a request that has to end by then. `None`: it did not.
pub async fn within<T>(ends_at: Instant, request: impl Future<Output = T>) -> Option<T> {
    let shared_ends_at = ends_at.checked_sub(TO_END).unwrap_or(ends_at);
    timeout_at(ends_at, ENDS_AT.scope(shared_ends_at, request)).await.ok()
}

/// The time limit of a wait: shorter where the deadline of the request is near.
pub(crate) fn bounded(limit: Duration) -> Duration {
    let left = |ends_at: &Instant| ends_at.saturating_duration_since(Instant::now()).saturating_sub(TO_WRITE);
    ENDS_AT.try_with(|ends_at| limit.min(left(ends_at))).unwrap_or(limit)
}

/// The same work as a task of its own, which keeps the deadline of the request that starts it. `None`: it did not end in
/// time.
pub(crate) fn inherit<T>(work: impl Future<Output = T>) -> impl Future<Output = Option<T>> {
    let ends_at = ENDS_AT.try_with(|ends_at| *ends_at).ok();
    async move {
        let Some(ends_at) = ends_at else { return Some(work.await) };
        tokio::select! {
            // First, so that no time-out within the work comes due before it: the process may have been frozen.
            biased;
            () = sleep_until(ends_at) => None,
            value = ENDS_AT.scope(ends_at, work) => Some(value),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_wait_is_bounded_by_the_deadline_and_work_of_its_own_inherits_it() {
        let limit = Duration::from_secs(20);
        assert_eq!(bounded(limit), limit, "without a deadline");
        let request = async move {
            assert_eq!(bounded(Duration::from_secs(1)), Duration::from_secs(1));
            assert_eq!(bounded(limit), Duration::from_millis(9400));
            let inherited = inherit(async move { bounded(limit) });
            assert_eq!(tokio::spawn(inherited).await.unwrap(), Some(Duration::from_millis(9400)));
            tokio::spawn(inherit(std::future::pending::<()>())).await.unwrap()
        };
        let begun = Instant::now();
        assert_eq!(within(begun + Duration::from_secs(10), request).await, Some(None), "the work ends first");
        assert_eq!(begun.elapsed(), Duration::from_millis(9900));
        assert_eq!(within(Instant::now() + limit, std::future::pending::<()>()).await, None);
        assert_eq!(begun.elapsed(), Duration::from_millis(29_900));
    }
}
