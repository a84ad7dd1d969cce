//! The way in for robots. Comparing a secret takes long, on purpose, and must not be what a stranger has us do: it is done
//! only for secrets whose [quick check](super::robot::SecretHash::may_be_of) fits, few at once.

use std::net::IpAddr;
use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;

use quick_cache::sync::Cache as MemoryCache;
use sha2::{Digest as _, Sha256};
use tokio::sync::Mutex;

use super::attempts::FailedLogins;
use super::lane::Lane;
use crate::errors::{AccessError, Failure, StoreError};
use crate::identity::RobotName;
use crate::ports::Ledger;
use crate::records::robot::{Robots, SecretHash, SecretId};
use crate::values::time::{Clock, Timestamp};

/// How long the ledger is not asked again which robots there are, by those who have a token: what a removed one still has.
const REMEMBERED: Duration = Duration::from_secs(30);
/// How long that is gone by while the ledger is in trouble.
const USABLE: Duration = Duration::from_mins(10);
/// How many secrets are compared at once: each takes 19 MiB and a processor.
const COMPARED_AT_ONCE: usize = 2;
/// How many wait for that: a second's worth.
const MOST_WAITING: usize = 64;
/// The most bytes of a robot's secret; ours have 52.
const LONGEST_SECRET: usize = 256;

/// The robots of one cache, at its gate.
pub(super) struct RobotLogins {
    clock: Clock,
    ledger: Arc<dyn Ledger>,
    remembered: RwLock<Option<Remembered>>,
    /// Whoever comes while the ledger is asked waits for that answer.
    asking: Mutex<()>,
    /// Secrets that were right, by what they were compared with.
    verified: MemoryCache<Verified, ()>,
    comparing: Lane,
    attempts: FailedLogins,
}

#[derive(Clone)]
struct Remembered {
    robots: Arc<Robots>,
    /// When the ledger was asked.
    at: Timestamp,
}

type Verified = (SecretHash, [u8; 32]);

impl RobotLogins {
    pub(super) fn new(clock: Clock, ledger: Arc<dyn Ledger>) -> Self {
        Self {
            ledger,
            remembered: RwLock::default(),
            asking: Mutex::default(),
            verified: MemoryCache::new(1000),
            comparing: Lane::new(MOST_WAITING, COMPARED_AT_ONCE),
            attempts: FailedLogins::new(clock.clone()),
            clock,
        }
    }

    /// Which robot has this name and secret, and which of its secrets that is.
    pub(super) async fn log_in(
        &self,
        user: &str,
        secret: &str,
        address: Option<IpAddr>,
    ) -> Result<(RobotName, SecretId), AccessError> {
        let name = user.parse::<RobotName>().ok().filter(|_| secret.len() <= LONGEST_SECRET);
        let Some(name) = name else {
            return Err(self.attempts.refuse(user, address, "it is no robot's name and secret"));
        };
        // Whoever is to wait does not have the ledger asked, but for a secret that may be right.
        if self.attempts.are_paused(user, address) {
            let robots = self.recent().await?.robots;
            if robots.candidates(&name, secret, self.clock.now()).is_empty() {
                return Err(self.attempts.refuse(user, address, robots.refusal(&name, self.clock.now())));
            }
        }
        let robots = self.ask().await?.robots;
        for hash in robots.candidates(&name, secret, self.clock.now()) {
            let id = hash.id();
            if self.is_of(hash, secret).await? {
                self.attempts.forgive(user, address);
                return Ok((name, id));
            }
        }
        Err(self.attempts.refuse(user, address, robots.refusal(&name, self.clock.now())))
    }

    /// Whether a robot is still let in with the secret that it was issued a token for then.
    pub(super) async fn is_let_in(
        &self,
        name: &RobotName,
        secret: SecretId,
        issued_at: Timestamp,
    ) -> Result<bool, StoreError> {
        let now = self.clock.now();
        let remembered = self.recent().await?;
        // Another process may know robots that are newer than what is remembered.
        let newer = issued_at.plus(REMEMBERED) >= remembered.at;
        match remembered.robots.is_let_in(name, secret, now) {
            false if newer => Ok(self.ask().await?.robots.is_let_in(name, secret, now)),
            known => Ok(known),
        }
    }

    /// The robots as they were not long ago.
    async fn recent(&self) -> Result<Remembered, StoreError> {
        if let Some(remembered) = self.within(REMEMBERED) {
            return Ok(remembered);
        }
        let _asking = self.asking.lock().await;
        match self.within(REMEMBERED) {
            Some(remembered) => Ok(remembered),
            None => match self.ask().await {
                Err(error) => self.within(USABLE).ok_or(error),
                robots => robots,
            },
        }
    }

    fn within(&self, life: Duration) -> Option<Remembered> {
        let remembered = self.remembered.read().unwrap_or_else(PoisonError::into_inner);
        remembered.clone().filter(|remembered| self.clock.now() < remembered.at.plus(life))
    }

    /// The robots as they are now.
    async fn ask(&self) -> Result<Remembered, StoreError> {
        let at = self.clock.now();
        let robots = self.ledger.robots().await?.map(|robots| robots.value).unwrap_or_default();
        let robots = Remembered { robots: Arc::new(robots), at };
        let mut remembered = self.remembered.write().unwrap_or_else(PoisonError::into_inner);
        if remembered.as_ref().is_none_or(|remembered| remembered.at <= at) {
            *remembered = Some(robots.clone());
        }
        Ok(robots)
    }

    async fn is_of(&self, hash: SecretHash, secret: &str) -> Result<bool, AccessError> {
        let verified: Verified = (hash, Sha256::digest(secret).into());
        if self.verified.get(&verified).is_some() {
            return Ok(true);
        }
        let place = self.comparing.enter().await?;
        // All nodes of a cluster have one secret, and come at once.
        if self.verified.get(&verified).is_some() {
            return Ok(true);
        }
        let (hash, secret) = (verified.0.clone(), secret.to_owned());
        // Comparing keeps a processor busy for long, and goes on when the client leaves.
        let compared = tokio::task::spawn_blocking(move || {
            let right = hash.is_of(&secret);
            drop(place);
            right
        });
        let unavailable = |error| StoreError::Unavailable(Failure::because("no secret could be compared", error));
        let right = compared.await.map_err(unavailable)?;
        if right {
            self.verified.insert(verified, ());
        }
        Ok(right)
    }
}

#[cfg(test)]
#[cfg(feature = "local")]
mod tests {
    use super::*;
    use crate::local::EmbeddedLedger;
    use crate::records::robot::NewSecret;

    async fn logins(secret: &NewSecret) -> (tempfile::TempDir, RobotLogins) {
        let directory = tempfile::TempDir::new().unwrap();
        let ledger = EmbeddedLedger::open(&directory.path().join("ledger.redb")).unwrap();
        let clock = Clock::manual(Timestamp(1_800_000_000));
        let mut robots = Robots::default();
        robots.add("ci".parse().unwrap(), secret, None, clock.now()).unwrap();
        ledger.swap_robots(None, &robots).await.unwrap();
        (directory, RobotLogins::new(clock, Arc::new(ledger)))
    }

    #[tokio::test]
    async fn a_wrong_secret_is_refused_without_comparing_it_and_a_right_one_waits_for_few() {
        let secret = NewSecret::make().unwrap();
        let (_directory, logins) = logins(&secret).await;
        let closed = logins.comparing.close(false).await;
        for (user, wrong) in [("ci", "wrong"), ("ci", ""), ("nobody", secret.text.as_str()), ("C I", "wrong")] {
            let refused = logins.log_in(user, wrong, None).await.unwrap_err();
            assert!(matches!(refused, AccessError::WrongCredentials(_)), "{refused}");
        }
        drop(closed);
        let _closed = logins.comparing.close(true).await;
        let refused = logins.log_in("ci", secret.text.as_str(), None).await.unwrap_err();
        assert!(matches!(refused, AccessError::Busy { .. }), "{refused}");
    }

    #[tokio::test]
    async fn a_secret_is_compared_once_however_many_send_it() {
        let secret = NewSecret::make().unwrap();
        let (_directory, logins) = logins(&secret).await;
        logins.log_in("ci", secret.text.as_str(), None).await.unwrap();
        let _closed = logins.comparing.close(true).await;
        let (name, _) = logins.log_in("ci", secret.text.as_str(), None).await.unwrap();
        assert_eq!(name.as_str(), "ci");
    }
}
