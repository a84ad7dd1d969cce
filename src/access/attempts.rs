//! Pauses after wrong secrets, longer and longer. They hold for what is wrong only: a secret that is right is let in
//! whatever others at the same address, behind a NAT or a proxy, have sent before. Names that do not exist are counted
//! like those that do, or the pause would tell them apart.

use std::net::IpAddr;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use quick_cache::unsync::Cache as MemoryCache;

use crate::errors::AccessError;
use crate::values::address::neighbourhood;
use crate::values::time::{Clock, Timestamp};

/// How many wrong secrets a caller may send for one name, and for all names together, before it has to wait.
const FREE: (u32, u32) = (3, 30);
const FIRST_PAUSE: Duration = Duration::from_secs(2);
const LONGEST_PAUSE: Duration = Duration::from_mins(5);
/// How long after a pause wrong secrets are forgotten.
const FORGIVEN: Duration = Duration::from_mins(15);
/// How many callers and names are kept, at the most: those that were not seen for longest make room.
const MOST: usize = 10_000;

/// Who has sent wrong secrets.
pub(super) struct FailedLogins {
    clock: Clock,
    kept: Mutex<MemoryCache<Guesser, Wrong>>,
}

/// A caller, and the name that it sends wrong secrets for; without it, all of them.
type Guesser = (Option<String>, Option<IpAddr>);

#[derive(Clone, Copy)]
struct Wrong {
    times: u32,
    /// The end of the pause after the last one.
    until: Timestamp,
}

/// Who is to wait after a wrong secret, and how many each of them may send before that.
fn guessers(user: &str, address: Option<IpAddr>) -> [(Guesser, u32); 2] {
    let address = address.map(neighbourhood);
    let user: String = user.chars().take(64).collect();
    [((Some(user), address), FREE.0), ((None, address), FREE.1)]
}

impl FailedLogins {
    pub(super) fn new(clock: Clock) -> Self {
        Self { clock, kept: Mutex::new(MemoryCache::new(MOST)) }
    }

    /// Whether whoever sends a wrong secret now is told to wait.
    pub(super) fn are_paused(&self, user: &str, address: Option<IpAddr>) -> bool {
        let kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
        pause(&kept, &guessers(user, address), self.clock.now()).is_some()
    }

    /// Takes note of a wrong secret; says what its sender is told, and the log why.
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

    /// Forgets what was wrong for this name before.
    pub(super) fn forgive(&self, user: &str, address: Option<IpAddr>) {
        let [(guesser, _), _] = guessers(user, address);
        self.kept.lock().unwrap_or_else(PoisonError::into_inner).remove(&guesser);
    }
}

/// What is left of the longest pause.
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
