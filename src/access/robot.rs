//! Robots: names with secrets that we make, for machines that can keep one.

use std::collections::BTreeMap;
use std::time::Duration;

use argon2::Argon2;
use argon2::password_hash::phc::PasswordHash;
use argon2::password_hash::{PasswordHasher as _, PasswordVerifier as _};
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use serde::{Deserialize, Serialize};

use super::RobotName;
use crate::ports::StoreError;
use crate::time::Timestamp;

/// What every secret begins with, so that people and scanners know one when they see it.
const PREFIX: &str = "stopover_";

/// All robots.
#[derive(Clone, PartialEq, Eq, Default, Debug, Serialize, Deserialize)]
pub struct Robots {
    robots: BTreeMap<RobotName, Robot>,
}

/// One robot. Its secret is nowhere: what is kept are hashes.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Robot {
    /// When it was made.
    pub created_at: Timestamp,
    /// When it is no longer let in; `None`: never.
    pub expires_at: Option<Timestamp>,
    /// Its secret.
    hash: SecretHash,
    /// The secret that was replaced, and until when it is still taken.
    pub(super) replaced: Option<(SecretHash, Timestamp)>,
}

/// An argon2id hash, as the PHC string format writes it.
#[derive(Clone, PartialEq, Eq, Hash, Debug, Serialize, Deserialize)]
pub struct SecretHash(String);

/// A secret that was just made, and its hash. The secret is shown once.
pub struct NewSecret {
    /// The secret.
    pub(super) text: String,
    hash: SecretHash,
}

/// Why robots cannot be changed like this.
#[derive(Debug, Clone, thiserror::Error)]
pub enum RobotError {
    /// There is one already.
    #[error("there is a robot {0} already; `stopover robot rotate {0}` gives it a new secret")]
    Exists(RobotName),
    /// There is none.
    #[error("there is no robot {0}")]
    Unknown(RobotName),
    /// There is no room for another one: all of them are one item of the ledger.
    #[error("there are {MOST_ROBOTS} robots, and that is the most; remove one first")]
    TooMany,
    /// The time that was named is over before it begins.
    #[error("a robot cannot expire at once")]
    Expired,
    /// Others change the robots all the time.
    #[error("the robots are being changed by others; try again")]
    Busy,
    /// The system gave no randomness.
    #[error("no secret could be made")]
    NoSecret,
    /// What the ledger said instead.
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// The most robots: their item stays far below the 400 KB that `DynamoDB` allows.
const MOST_ROBOTS: usize = 500;

impl NewSecret {
    /// Makes one. Takes tens of milliseconds and 19 MiB, on purpose.
    pub fn make() -> Result<Self, RobotError> {
        let mut bytes = [0; 32];
        getrandom::fill(&mut bytes).map_err(|_| RobotError::NoSecret)?;
        let text = format!("{PREFIX}{}", URL_SAFE_NO_PAD.encode(bytes));
        let hash = Argon2::default().hash_password(text.as_bytes()).map_err(|_| RobotError::NoSecret)?;
        Ok(Self { text, hash: SecretHash(hash.to_string()) })
    }
}

impl SecretHash {
    /// Whether this is the hash of `secret`. Takes tens of milliseconds and 19 MiB, on purpose.
    pub fn is_of(&self, secret: &str) -> bool {
        let hash = PasswordHash::new(&self.0);
        hash.is_ok_and(|hash| Argon2::default().verify_password(secret.as_bytes(), &hash).is_ok())
    }

    /// The hash of nothing that anybody has: for names that do not exist, so that they take as long as those that do.
    pub fn of_nobody() -> Self {
        Self("$argon2id$v=19$m=19456,t=2,p=1$c3RvcG92ZXJzdG9wb3Zlcg$AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA".into())
    }
}

impl Robots {
    /// Every robot by name.
    pub fn iter(&self) -> impl Iterator<Item = (&RobotName, &Robot)> {
        self.robots.iter()
    }

    /// The hashes of the secrets that a robot is let in with.
    pub fn hashes(&self, name: &RobotName, now: Timestamp) -> Vec<SecretHash> {
        let robot = self.robots.get(name).filter(|robot| robot.expires_at.is_none_or(|end| now < end));
        let hashes = |robot: &Robot| {
            let replaced = robot.replaced.as_ref().filter(|(_, until)| now < *until).map(|(hash, _)| hash.clone());
            std::iter::once(robot.hash.clone()).chain(replaced).collect()
        };
        robot.map(hashes).unwrap_or_default()
    }

    /// Adds a robot with this secret.
    pub fn add(
        &mut self,
        name: RobotName,
        secret: &NewSecret,
        expires_at: Option<Timestamp>,
        now: Timestamp,
    ) -> Result<(), RobotError> {
        if self.robots.contains_key(&name) {
            return Err(RobotError::Exists(name));
        }
        if self.robots.len() >= MOST_ROBOTS {
            return Err(RobotError::TooMany);
        }
        let hash = secret.hash.clone();
        self.robots.insert(name, Robot { created_at: now, expires_at, hash, replaced: None });
        Ok(())
    }

    /// Gives a robot a new secret. The one before is taken for as long as `overlap` says.
    pub fn rotate(
        &mut self,
        name: &RobotName,
        secret: &NewSecret,
        overlap: Duration,
        now: Timestamp,
    ) -> Result<(), RobotError> {
        let robot = self.robots.get_mut(name).ok_or_else(|| RobotError::Unknown(name.clone()))?;
        let before = std::mem::replace(&mut robot.hash, secret.hash.clone());
        robot.replaced = Some((before, now.plus(overlap)));
        Ok(())
    }

    /// Removes a robot.
    pub fn remove(&mut self, name: &RobotName) -> Result<(), RobotError> {
        self.robots.remove(name).map(|_| ()).ok_or_else(|| RobotError::Unknown(name.clone()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: Timestamp = Timestamp(1_800_000_000);

    fn lets_in(robots: &Robots, secret: &str, now: Timestamp) -> bool {
        robots.hashes(&"ci".parse().unwrap(), now).iter().any(|hash| hash.is_of(secret))
    }

    fn ci() -> RobotName {
        "ci".parse().unwrap()
    }

    #[test]
    fn a_robot_is_let_in_with_its_secret_until_it_expires() {
        let (mut robots, secret) = (Robots::default(), NewSecret::make().unwrap());
        let end = NOW.plus(Duration::from_hours(1));
        robots.add(ci(), &secret, Some(end), NOW).unwrap();
        let text = &secret.text;
        assert!(text.starts_with(PREFIX) && !format!("{robots:?}").contains(text));
        assert!(lets_in(&robots, text, NOW));
        assert!(!lets_in(&robots, &format!("{text}x"), NOW));
        assert!(!lets_in(&robots, text, end));
        assert!(matches!(robots.add(ci(), &secret, None, NOW), Err(RobotError::Exists(name)) if name == ci()));
        robots.remove(&ci()).unwrap();
        assert!(!lets_in(&robots, text, NOW));
    }

    #[test]
    fn the_secret_before_a_rotation_is_taken_for_a_while() {
        let (mut robots, old, new) = (Robots::default(), NewSecret::make().unwrap(), NewSecret::make().unwrap());
        robots.add(ci(), &old, None, NOW).unwrap();
        robots.rotate(&ci(), &new, Duration::from_hours(1), NOW).unwrap();
        let later = NOW.plus(Duration::from_hours(1));
        assert!(lets_in(&robots, &old.text, NOW) && lets_in(&robots, &new.text, NOW));
        assert!(!lets_in(&robots, &old.text, later) && lets_in(&robots, &new.text, later));
    }

    #[test]
    fn nobody_is_let_in_as_nobody() {
        assert!(PasswordHash::new(&SecretHash::of_nobody().0).is_ok());
        assert!(!SecretHash::of_nobody().is_of(""));
    }
}
