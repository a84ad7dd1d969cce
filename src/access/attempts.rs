//! Growing pauses after wrong secrets. A pause refuses wrong secrets only: a right secret is always let in, whatever
//! other clients behind the same NAT or proxy have sent. Names that do not exist count like those that do, so that a
//! pause does not reveal which names exist.

use std::net::IpAddr;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use quick_cache::unsync::Cache as MemoryCache;

use crate::errors::AccessError;
use crate::values::address::neighbourhood;
use crate::values::time::{Clock, Timestamp};

/// How many wrong secrets a caller may send before it has to wait: for one name, and for all names together.
const FREE: (u32, u32) = (3, 30);
const FIRST_PAUSE: Duration = Duration::from_secs(2);
const LONGEST_PAUSE: Duration = Duration::from_mins(5);
/// How long after the end of a pause wrong secrets are forgotten.
const FORGIVEN: Duration = Duration::from_mins(15);
/// The most callers and names kept in memory; those not seen for longest are evicted.
const MOST: usize = 10_000;

/// The callers that have sent wrong secrets.
pub(super) struct FailedLogins {
    clock: Clock,
    kept: Mutex<MemoryCache<Guesser, Wrong>>,
}

/// A caller's network and the name that it sends wrong secrets for. `None` as the name: all names together.
type Guesser = (Option<String>, Option<IpAddr>);

#[derive(Clone, Copy)]
struct Wrong {
    times: u32,
    /// When the pause after the last wrong secret ends.
    until: Timestamp,
}

/// The two counters of a caller, by name and over all names, each with the number of wrong secrets it allows.
fn guessers(user: &str, address: Option<IpAddr>) -> [(Guesser, u32); 2] {
    let address = address.map(neighbourhood);
    let user: String = user.chars().take(64).collect();
    [((Some(user), address), FREE.0), ((None, address), FREE.1)]
}

impl FailedLogins {
    pub(super) fn new(clock: Clock) -> Self {
        Self { clock, kept: Mutex::new(MemoryCache::new(MOST)) }
    }

    /// Whether a caller that sends a wrong secret now has to wait.
    pub(super) fn are_paused(&self, user: &str, address: Option<IpAddr>) -> bool {
        let kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
        pause(&kept, &guessers(user, address), self.clock.now()).is_some()
    }

    /// Counts a wrong secret and returns the error for the caller. `because` is for the log only.
    pub(super) fn refuse(&self, user: &str, address: Option<IpAddr>, because: &'static str) -> AccessError {
        let (guessers, now) = (guessers(user, address), self.clock.now());
        let mut kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(retry_after) = pause(&kept, &guessers, now) {
            return AccessError::TooManyAttempts { retry_after };
        }
        for (guesser, free) in guessers {
            let known = kept.get(&guesser).filter(|known| now < known.until.plus(FORGIVEN));
            let times = known.map_or(0, |known| known.times).saturating_add(1);
            let pause = times.checked_sub(free + 1).map(|more| FIRST_PAUSE.saturating_mul(1 << more.min(16)));
            let until = now.plus(pause.unwrap_or_default().min(LONGEST_PAUSE));
            kept.insert(guesser, Wrong { times, until });
        }
        AccessError::WrongCredentials(because)
    }

    /// Forgets the wrong secrets that this caller has sent for this name.
    pub(super) fn forgive(&self, user: &str, address: Option<IpAddr>) {
        let [(guesser, _), _] = guessers(user, address);
        self.kept.lock().unwrap_or_else(PoisonError::into_inner).remove(&guesser);
    }
}

/// What remains of the longest pause.
fn pause(kept: &MemoryCache<Guesser, Wrong>, guessers: &[(Guesser, u32)], now: Timestamp) -> Option<Duration> {
    let until = guessers.iter().filter_map(|(guesser, _)| kept.get(guesser)).map(|wrong| wrong.until).max();
    until.filter(|until| now < *until).map(|until| until.after(now))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_addresses_of_one_ipv6_network_wait_together() {
        let attempts = FailedLogins::new(Clock::manual(Timestamp(1000)));
        for last in 1..=4 {
            let address = format!("2001:db8::{last}").parse().ok();
            assert!(
                matches!(attempts.refuse("ci", address, "wrong"), AccessError::WrongCredentials("wrong")),
                "{last}"
            );
        }
        let (same, other) = ("2001:db8::5".parse().ok(), "2001:db8:0:1::1".parse().ok());
        assert!(attempts.are_paused("ci", same) && !attempts.are_paused("ci", other));
        assert!(matches!(attempts.refuse("ci", same, "wrong"), AccessError::TooManyAttempts { .. }));
    }

    #[test]
    fn however_many_strangers_there_are_memory_is_bounded() {
        let attempts = FailedLogins::new(Clock::manual(Timestamp(1000)));
        for number in 0..30_000_u32 {
            attempts.refuse("ci", Some(IpAddr::from(number.to_be_bytes())), "wrong");
        }
        assert!(attempts.kept.lock().unwrap().len() <= MOST);
    }
}
