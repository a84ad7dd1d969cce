//! Logins of robots. Comparing a secret is slow on purpose, and an unknown caller must not be able to trigger it at
//! will: only secrets that pass the [quick check](crate::records::robot::SecretHash::may_be_of) are compared, and only
//! few at once.

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
use crate::records::RobotsKey;
use crate::records::robot::{Robots, SecretHash, SecretId};
use crate::values::time::{Clock, Timestamp};

/// How long holders of tokens are checked against the same list of robots: a removed robot keeps access for so long.
const REMEMBERED: Duration = Duration::from_secs(30);
/// How long that list is used while the ledger fails.
const USABLE: Duration = Duration::from_mins(10);
/// How many secrets are compared at once: each comparison takes 19 MiB and a core.
const COMPARED_AT_ONCE: usize = 2;
/// How many callers may wait for a comparison: about a second's worth.
const MOST_WAITING: usize = 64;
/// The longest secret of a robot, in bytes; those we issue have 52.
const LONGEST_SECRET: usize = 256;

/// The logins of one cache's robots.
pub(super) struct RobotLogins {
    clock: Clock,
    ledger: Arc<dyn Ledger>,
    remembered: RwLock<Option<Remembered>>,
    /// Held while the ledger is read: further callers wait for that answer.
    asking: Mutex<()>,
    /// Secrets that were right, with the hash that they were compared with.
    verified: MemoryCache<Verified, ()>,
    comparing: Lane,
    attempts: FailedLogins,
}

#[derive(Clone)]
struct Remembered {
    robots: Arc<Robots>,
    /// When the ledger was read.
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

    /// The robot with this name and secret, and the id of that secret.
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
        // A paused caller does not cause a read of the ledger, unless its secret may be right.
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

    /// Whether a robot still has the secret that its token was issued for at `issued_at`.
    pub(super) async fn is_let_in(
        &self,
        name: &RobotName,
        secret: SecretId,
        issued_at: Timestamp,
    ) -> Result<bool, StoreError> {
        let now = self.clock.now();
        let remembered = self.recent().await?;
        // The token may be newer than the list: another process may have seen the robot added.
        let newer = issued_at.plus(REMEMBERED) >= remembered.at;
        match remembered.robots.is_let_in(name, secret, now) {
            false if newer => Ok(self.ask().await?.robots.is_let_in(name, secret, now)),
            known => Ok(known),
        }
    }

    /// The robots as of at most [`REMEMBERED`] ago.
    async fn recent(&self) -> Result<Remembered, StoreError> {
        if let Some(remembered) = self.within(REMEMBERED) {
            return Ok(remembered);
        }
        let _asking = self.asking.lock().await;
        if let Some(remembered) = self.within(REMEMBERED) {
            return Ok(remembered);
        }
        self.ask().await.or_else(|error| self.within(USABLE).ok_or(error))
    }

    fn within(&self, life: Duration) -> Option<Remembered> {
        let remembered = self.remembered.read().unwrap_or_else(PoisonError::into_inner);
        remembered.clone().filter(|remembered| self.clock.now() < remembered.at.plus(life))
    }

    /// The robots as the ledger has them now.
    async fn ask(&self) -> Result<Remembered, StoreError> {
        let at = self.clock.now();
        let robots = self.ledger.get(&RobotsKey).await?.map(|robots| robots.value).unwrap_or_default();
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
        // All nodes of a cluster share one secret and log in at once.
        if self.verified.get(&verified).is_some() {
            return Ok(true);
        }
        let (hash, secret) = (verified.0.clone(), secret.to_owned());
        // A comparison blocks a core, and goes on when the client leaves.
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
    use crate::ports::Records as _;
    use crate::records::robot::NewSecret;

    async fn logins(secret: &NewSecret) -> (tempfile::TempDir, RobotLogins) {
        let directory = tempfile::TempDir::new().unwrap();
        let ledger = EmbeddedLedger::open(&directory.path().join("ledger.redb")).unwrap();
        let clock = Clock::manual(Timestamp(1_800_000_000));
        let mut robots = Robots::default();
        robots.add("ci".parse().unwrap(), secret, None, clock.now()).unwrap();
        ledger.swap(&RobotsKey, None, &robots).await.unwrap();
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
