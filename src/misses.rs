//! A budget of misses for each caller: whoever keeps asking for what does not exist is stopped before upstream is asked,
//! so that a stranger with random tags can use up neither quota nor patience there. A list that is read anew counts as one,
//! because it may be hundreds of requests. Kept in memory: each instance of a function has its own.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use crate::address::neighbourhood;
use crate::time::{Clock, Timestamp};

/// Above this many callers, those with a full budget are forgotten.
const MANY_CALLERS: usize = 10_000;

/// The budgets of all callers.
pub(crate) struct Misses {
    per_minute: u32,
    clock: Clock,
    spent: Mutex<HashMap<IpAddr, Spent>>,
}

/// What a caller has spent and not got back yet, in sixtieths of a miss: a second gives back `per_minute` of them.
struct Spent {
    sixtieths: u64,
    at: Timestamp,
}

impl Spent {
    fn now(&self, per_minute: u32, now: Timestamp) -> u64 {
        let seconds = now.after(self.at).as_secs();
        self.sixtieths.saturating_sub(seconds.saturating_mul(per_minute.into()))
    }
}

impl Misses {
    pub(crate) fn new(per_minute: u32, clock: Clock) -> Self {
        Self { per_minute, clock, spent: Mutex::default() }
    }

    /// Whether upstream may be asked for a caller; otherwise how long that takes.
    pub(crate) fn check(&self, caller: Option<IpAddr>) -> Result<(), Duration> {
        let Some(caller) = caller.map(neighbourhood) else { return Ok(()) };
        let spent = self.spent.lock().unwrap_or_else(PoisonError::into_inner);
        let spent = spent.get(&caller).map_or(0, |spent| spent.now(self.per_minute, self.clock.now()));
        let over = (spent + 60).saturating_sub(u64::from(self.per_minute) * 60);
        if over == 0 { Ok(()) } else { Err(Duration::from_secs(over.div_ceil(u64::from(self.per_minute.max(1))))) }
    }

    /// Takes note of a miss.
    pub(crate) fn charge(&self, caller: Option<IpAddr>) {
        let Some(caller) = caller.map(neighbourhood) else { return };
        let now = self.clock.now();
        let mut spent = self.spent.lock().unwrap_or_else(PoisonError::into_inner);
        if spent.len() >= MANY_CALLERS {
            spent.retain(|_, spent| spent.now(self.per_minute, now) > 0);
        }
        let known = spent.entry(caller).or_insert(Spent { sixtieths: 0, at: now });
        *known = Spent { sixtieths: known.now(self.per_minute, now) + 60, at: now };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_caller_may_miss_so_often_in_a_minute_and_gets_that_back_evenly() {
        let clock = Clock::manual(Timestamp(1000));
        let misses = Misses::new(6, clock.clone());
        let caller = Some("192.0.2.1".parse().unwrap());
        for _ in 0..6 {
            assert_eq!(misses.check(caller), Ok(()));
            misses.charge(caller);
        }
        assert_eq!(misses.check(caller), Err(Duration::from_secs(10)));
        assert_eq!(misses.check(Some("192.0.2.2".parse().unwrap())), Ok(()), "everybody has a budget");
        assert_eq!(misses.check(None), Ok(()), "nobody is no caller");
        clock.advance(Duration::from_secs(9));
        assert_eq!(misses.check(caller), Err(Duration::from_secs(1)));
        clock.advance(Duration::from_secs(1));
        assert_eq!(misses.check(caller), Ok(()));
        misses.charge(caller);
        assert_eq!(misses.check(caller), Err(Duration::from_secs(10)));
    }

    #[test]
    fn the_addresses_of_one_ipv6_network_share_a_budget() {
        let misses = Misses::new(1, Clock::manual(Timestamp(1000)));
        misses.charge(Some("2001:db8::1".parse().unwrap()));
        assert!(misses.check(Some("2001:db8::ffff:2".parse().unwrap())).is_err());
        assert!(misses.check(Some("2001:db8:0:1::1".parse().unwrap())).is_ok());
        misses.charge(Some("::ffff:192.0.2.1".parse().unwrap()));
        assert!(misses.check(Some("192.0.2.1".parse().unwrap())).is_err());
    }
}
