//! A value of another system that may change there: it is read again from time to time, and at once where it was refused.

use std::time::Duration;

use tokio::sync::Mutex;
use tokio::time::timeout;

use super::time::{Clock, Timestamp};

/// The pause after a failure, and between two readings of what is refused.
const PAUSE: Duration = Duration::from_mins(1);

/// How long a new value is waited for where there is one to use: a client waits.
const PATIENCE: Duration = Duration::from_secs(2);

/// Keeps a value, and uses it on while it cannot be read again.
pub struct Refreshing<V> {
    clock: Clock,
    fresh: Duration,
    usable: Duration,
    /// Locked while the value is read: further callers wait for it.
    held: Mutex<Held<V>>,
}

struct Held<V> {
    last: Option<Last<V>>,
    /// What is refused is not read again before.
    doubt_at: Timestamp,
}

struct Last<V> {
    value: V,
    read_at: Timestamp,
    next_at: Timestamp,
}

impl<V: Clone> Refreshing<V> {
    /// A value that is read again once it is no longer `fresh`, and used for `usable` while that fails.
    pub fn new(clock: Clock, fresh: Duration, usable: Duration) -> Self {
        Self { clock, fresh, usable, held: Mutex::new(Held { last: None, doubt_at: Timestamp(0) }) }
    }

    /// The value that was read last, if it is fresh and was not refused, else what `read` brings. If that fails, the one
    /// before. What is refused is read again at once, but at most once a minute: it may have been replaced.
    pub async fn get<E>(
        &self,
        is_refused: impl FnOnce(&V) -> bool,
        read: impl Future<Output = Result<V, E>>,
    ) -> Result<V, E> {
        let mut held = self.held.lock().await;
        let now = self.clock.now();
        if let Some(last) = &held.last {
            let doubted = held.doubt_at <= now && is_refused(&last.value);
            if !doubted && now < last.next_at {
                return Ok(last.value.clone());
            }
            if doubted {
                held.doubt_at = now.plus(PAUSE);
            }
        }
        let value = match &mut held.last {
            Some(last) if now < last.read_at.plus(self.usable) => match timeout(PATIENCE, read).await {
                Ok(Ok(value)) => value,
                failed => {
                    if failed.is_err() {
                        tracing::warn!("what is kept could not be read again in {PATIENCE:?}: it is used on");
                    }
                    last.next_at = now.plus(PAUSE);
                    return Ok(last.value.clone());
                }
            },
            _ => read.await?,
        };
        held.last = Some(Last { value: value.clone(), read_at: now, next_at: now.plus(self.fresh) });
        Ok(value)
    }
}

#[cfg(test)]
mod tests {
    use std::future::{pending, ready};

    use super::*;

    const FRESH: Duration = Duration::from_mins(5);

    #[tokio::test]
    async fn a_value_is_read_again_when_it_is_old_or_refused_and_used_on_while_that_fails() {
        let clock = Clock::manual(Timestamp(1_800_000_000));
        let kept = Refreshing::new(clock.clone(), FRESH, Duration::from_hours(1));
        let get =
            async |refused: u8, read: Result<u8, &'static str>| kept.get(|value| *value == refused, ready(read)).await;
        assert_eq!(get(0, Err("none yet")).await, Err("none yet"));
        assert_eq!(get(0, Ok(1)).await, Ok(1));
        assert_eq!(get(0, Ok(2)).await, Ok(1), "it is fresh");
        assert_eq!(get(1, Ok(2)).await, Ok(2), "it was refused");
        assert_eq!(get(2, Ok(3)).await, Ok(2), "not twice in a minute");
        clock.advance(PAUSE);
        assert_eq!(get(1, Ok(3)).await, Ok(2), "another one was refused");
        assert_eq!(get(2, Ok(3)).await, Ok(3));
        clock.advance(FRESH);
        assert_eq!(get(0, Err("trouble")).await, Ok(3));
        assert_eq!(get(0, Ok(4)).await, Ok(3), "a pause after a failure");
        clock.advance(PAUSE);
        assert_eq!(get(0, Ok(4)).await, Ok(4));
        clock.advance(Duration::from_hours(1));
        assert_eq!(get(0, Err("trouble")).await, Err("trouble"), "not for ever");
    }
    #[tokio::test(start_paused = true)]
    async fn a_value_that_can_be_used_is_not_waited_for_long() {
        let clock = Clock::manual(Timestamp(1_800_000_000));
        let kept = Refreshing::new(clock.clone(), FRESH, Duration::from_hours(1));
        assert_eq!(kept.get(|_| false, ready(Ok::<_, ()>(1))).await, Ok(1));
        clock.advance(FRESH);
        let begun = tokio::time::Instant::now();
        assert_eq!(kept.get(|_| false, pending::<Result<u8, ()>>()).await, Ok(1));
        assert_eq!(kept.get(|_| false, pending::<Result<u8, ()>>()).await, Ok(1), "a pause after that");
        assert_eq!(begun.elapsed(), PATIENCE);
    }
}
