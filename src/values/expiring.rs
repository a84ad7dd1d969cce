//! What a process remembers for a while.

use std::hash::Hash;
use std::time::Duration;

use quick_cache::Equivalent;
use quick_cache::sync::Cache as MemoryCache;

use super::time::{Clock, Timestamp};

/// Values that are there until they expire. Of too many, those go that were asked for least.
pub struct Expiring<K, V> {
    clock: Clock,
    held: MemoryCache<K, (V, Timestamp)>,
}

impl<K: Eq + Hash, V: Clone> Expiring<K, V> {
    /// Remembers `most` values at once.
    pub fn new(clock: Clock, most: usize) -> Self {
        Self { clock, held: MemoryCache::new(most) }
    }

    /// The value, if it has not expired.
    pub fn get<Q: Hash + Equivalent<K> + ?Sized>(&self, key: &Q) -> Option<V> {
        let (value, until) = self.held.get(key)?;
        (self.clock.now() < until).then_some(value)
    }

    /// Remembers a value for this long.
    pub fn keep(&self, key: K, value: V, lasts: Duration) {
        self.keep_until(key, value, self.clock.now().plus(lasts));
    }

    /// Remembers a value until then.
    pub fn keep_until(&self, key: K, value: V, until: Timestamp) {
        self.held.insert(key, (value, until));
    }

    /// Forgets a value.
    pub fn forget<Q: Hash + Equivalent<K> + ?Sized>(&self, key: &Q) {
        self.held.remove(key);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_value_is_there_until_it_expires_or_is_forgotten() {
        let clock = Clock::manual(Timestamp(1));
        let expiring = Expiring::new(clock.clone(), 10);
        expiring.keep("a".to_owned(), 1, Duration::from_mins(1));
        expiring.keep("b".to_owned(), 2, Duration::from_mins(2));
        expiring.keep_until("c".to_owned(), 3, clock.now());
        assert_eq!(["a", "b", "c", "d"].map(|key| expiring.get(key)), [Some(1), Some(2), None, None]);
        clock.advance(Duration::from_mins(1));
        assert_eq!(["a", "b"].map(|key| expiring.get(key)), [None, Some(2)]);
        expiring.forget("b");
        assert_eq!(expiring.get("b"), None);
    }
}
