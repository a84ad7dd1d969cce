//! Attempts of conditional writes that other writers overtake.

use std::time::Duration;

use super::Result;
use crate::errors::StoreError;

/// How often a write is tried at the most.
const MOST: u32 = 10;
/// The longest pause after the first attempt; it doubles with each further one.
const FIRST_PAUSE: Duration = Duration::from_millis(5);
const LONGEST_PAUSE: Duration = Duration::from_millis(500);

/// Bounds a loop that reads a record, changes it, and writes it over the version that was read.
#[derive(Clone, Debug, Default)]
pub struct Attempts(u32);

impl Attempts {
    /// Before the first one.
    #[must_use]
    pub fn new() -> Self {
        Self(0)
    }

    /// After an attempt that was overtaken: a random pause, so that writers of one record do not collide again. Fails
    /// after the last attempt.
    ///
    /// # Errors
    /// There were as many as are made.
    pub async fn again(&mut self) -> Result<()> {
        self.0 += 1;
        if self.0 >= MOST {
            return Err(StoreError::Unavailable(format!("other writes of a record overtook {MOST} attempts").into()));
        }
        let longest = FIRST_PAUSE.saturating_mul(1 << (self.0 - 1)).min(LONGEST_PAUSE);
        tokio::time::sleep(longest.mul_f64(fastrand::f64())).await;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use tokio::time::Instant;

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn attempts_end_and_the_pauses_between_them_grow_but_stay_short() {
        let (mut attempts, begun, mut made) = (Attempts::new(), Instant::now(), 1);
        while attempts.again().await.is_ok() {
            made += 1;
        }
        assert_eq!(made, MOST);
        assert!(begun.elapsed() < Duration::from_secs(3), "{:?}", begun.elapsed());
        assert!(begun.elapsed() > Duration::from_millis(50), "{:?}", begun.elapsed());
    }
}
