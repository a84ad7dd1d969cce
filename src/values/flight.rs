//! Single flight within a process: a caller that wants what is already being fetched waits for that fetch.

use std::collections::HashMap;
use std::hash::Hash;
use std::sync::{Arc, Mutex, PoisonError};

use futures_util::FutureExt as _;
use futures_util::future::{BoxFuture, Shared};

use super::deadline;

type Flight<V> = Shared<BoxFuture<'static, Option<V>>>;

/// Work that is under way, by its key.
pub(crate) struct Flights<K, V>(Arc<Mutex<HashMap<K, Flight<V>>>>);

/// Removes a flight from the map when its work ends, by a panic too.
struct Landing<K: Hash + Eq, V>(Arc<Mutex<HashMap<K, Flight<V>>>>, K);

impl<K: Hash + Eq, V> Drop for Landing<K, V> {
    fn drop(&mut self) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).remove(&self.1);
    }
}

impl<K, V> Flights<K, V>
where
    K: Hash + Eq + Clone + Send + 'static,
    V: Clone + Send + Sync + 'static,
{
    pub(crate) fn new() -> Self {
        Self(Arc::default())
    }

    /// Joins the work for `key`, or starts it. The work continues if the caller that started it leaves. `None`: it
    /// panicked, the process is stopping, or the deadline of the caller that started it has come.
    pub(crate) async fn join<F>(&self, key: K, work: impl FnOnce() -> F) -> Option<V>
    where
        F: Future<Output = V> + Send + 'static,
    {
        let flight = {
            let mut flights = self.0.lock().unwrap_or_else(PoisonError::into_inner);
            let begin = || {
                let landing = Landing(Arc::clone(&self.0), key.clone());
                let work = deadline::inherit(work());
                let task = tokio::spawn(async move {
                    let value = work.await;
                    drop(landing);
                    value
                });
                task.map(|ended| ended.ok().flatten()).boxed().shared()
            };
            flights.entry(key.clone()).or_insert_with(begin).clone()
        };
        flight.await
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use tokio::sync::Notify;

    use super::*;

    #[tokio::test]
    async fn everybody_who_comes_meanwhile_shares_one_flight_and_the_next_one_begins_anew() {
        let flights = Arc::new(Flights::<u8, usize>::new());
        let (begun, go) = (Arc::new(AtomicUsize::new(0)), Arc::new(Notify::new()));
        let join = || {
            let (flights, begun, go) = (Arc::clone(&flights), Arc::clone(&begun), Arc::clone(&go));
            async move {
                let work = || async move {
                    go.notified().await;
                    begun.fetch_add(1, Ordering::SeqCst)
                };
                flights.join(7, work).await
            }
        };
        let all = futures_util::future::join_all((0..100).map(|_| join()));
        let (values, ()) = tokio::join!(all, async { go.notify_one() });
        assert!(values.iter().all(|value| *value == Some(0)));
        go.notify_one();
        assert_eq!(join().await, Some(1));
    }

    #[tokio::test]
    async fn a_flight_goes_on_without_the_client_that_began_it_and_a_panic_ends_it() {
        let flights = Flights::<u8, u8>::new();
        let go = Arc::new(Notify::new());
        let waiting = Arc::clone(&go);
        let first = flights.join(1, || async move {
            waiting.notified().await;
            1
        });
        assert_eq!(first.now_or_never(), None, "it waits");
        let second = flights.join(1, || async { 2 });
        go.notify_one();
        assert_eq!(second.await, Some(1));
        assert_eq!(flights.join(2, || async { panic!("as planned") }).await, None);
        assert_eq!(flights.join(2, || async { 3 }).await, Some(3));
    }
}
