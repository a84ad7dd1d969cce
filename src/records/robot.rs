//! Robots: names with generated secrets, for machines that can keep a secret.

use std::collections::BTreeMap;
use std::fmt;
use std::time::Duration;

use argon2::Argon2;
use argon2::password_hash::phc::PasswordHash;
use argon2::password_hash::{PasswordHasher as _, PasswordVerifier as _};
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};

use crate::errors::StoreError;
use crate::identity::RobotName;
use crate::values::secret::{Secret, random};
use crate::values::time::Timestamp;

/// What every secret begins with, so that people and secret scanners recognise one.
const PREFIX: &str = "stopover_";

/// All robots.
#[derive(Clone, PartialEq, Eq, Default, Debug, Serialize, Deserialize)]
pub struct Robots {
    robots: BTreeMap<RobotName, Robot>,
}

/// One robot. Only hashes of its secrets are stored.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Robot {
    /// When it was made.
    pub created_at: Timestamp,
    /// When it is no longer let in; `None`: never.
    pub expires_at: Option<Timestamp>,
    /// The hash of its secret.
    hash: SecretHash,
    /// The hash of the secret that was replaced, and until when that secret is still accepted.
    pub(crate) replaced: Option<(SecretHash, Timestamp)>,
}

/// The stored form of a secret. `Debug` hides it, so it stays out of logs.
#[derive(Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub(crate) struct SecretHash {
    /// An argon2id hash, as the PHC string format writes it.
    phc: String,
    /// A cheap check before the expensive comparison. Its 32 bits of 256 random ones do not help an attacker that reads
    /// them, and an attacker that cannot read the salt of the hash cannot make a secret that passes.
    check: u32,
}

/// Identifies a secret of a robot: the beginning of the SHA-256 of its hash, whose salt is unique.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct SecretId(u64);

/// A secret that was just made, and its hash. The secret is shown once.
pub(crate) struct NewSecret {
    /// The secret as the operator gets it.
    pub(crate) text: Secret,
    hash: SecretHash,
}

/// Why a change of the robots is refused.
#[derive(Debug, Clone, thiserror::Error)]
pub enum RobotError {
    /// There is a robot of this name already.
    #[error("there is a robot {0} already; `stopover robot rotate {0}` gives it a new secret")]
    Exists(RobotName),
    /// The robot has expired: it is not let in with any secret.
    #[error("the robot {0} has expired; `stopover robot rotate {0} --expires 90d` renews it, with a new secret")]
    HasExpired(RobotName),
    /// There is no robot of this name.
    #[error("there is no robot {0}")]
    Unknown(RobotName),
    /// `[access]` lets no robots in.
    #[error(
        "no robot would be let in: write `robots = true` under [access] in the stopover.toml of this cache, and start it \
         again"
    )]
    NotLetIn,
    /// There is no room for another robot: all of them are one item of the ledger.
    #[error("there are {MOST_ROBOTS} robots, and that is the most; remove one first")]
    TooMany,
    /// The expiry would be now or in the past.
    #[error("a robot cannot expire at once")]
    Expired,
    /// The expiry or the overlap is longer than the limit.
    #[error(
        "a robot expires within ten years or never, and a secret that was replaced is taken for 90 days at the most"
    )]
    TooLong,
    /// Other changes of the robots overtook every attempt.
    #[error("the robots are being changed by others; try again")]
    Busy,
    /// The system gave no randomness.
    #[error("no secret could be made")]
    NoSecret,
    /// The ledger failed.
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// The most robots: their item stays far below the 400 KB that `DynamoDB` allows.
const MOST_ROBOTS: usize = 500;

impl Robot {
    pub(crate) fn has_not_expired(&self, now: Timestamp) -> bool {
        self.expires_at.is_none_or(|end| now < end)
    }

    /// The hashes of the secrets that are accepted now.
    fn hashes(&self, now: Timestamp) -> impl Iterator<Item = &SecretHash> {
        let replaced = self.replaced.as_ref().filter(move |(_, until)| now < *until).map(|(hash, _)| hash);
        std::iter::once(&self.hash).chain(replaced).filter(move |_| self.has_not_expired(now))
    }
}

impl NewSecret {
    /// Makes a secret. Takes tens of milliseconds and 19 MiB, on purpose.
    pub(crate) fn make() -> Result<Self, RobotError> {
        let text = format!("{PREFIX}{}", URL_SAFE_NO_PAD.encode(random().ok_or(RobotError::NoSecret)?));
        let hash = Argon2::default().hash_password(text.as_bytes()).map_err(|_| RobotError::NoSecret)?;
        let phc = hash.to_string();
        Ok(Self { hash: SecretHash { check: check(&phc, &text), phc }, text: Secret::new(text) })
    }
}

impl SecretHash {
    /// Whether this is the hash of `secret`. Takes tens of milliseconds and 19 MiB, on purpose.
    pub(crate) fn is_of(&self, secret: &str) -> bool {
        let hash = PasswordHash::new(&self.phc);
        hash.is_ok_and(|hash| Argon2::default().verify_password(secret.as_bytes(), &hash).is_ok())
    }

    /// Which secret it is the hash of.
    pub(crate) fn id(&self) -> SecretId {
        SecretId(Sha256::digest(&self.phc).iter().take(8).fold(0, |id, byte| id << 8 | u64::from(*byte)))
    }

    /// Whether this may be the hash of `secret`. Takes no time: of 2^32 wrong secrets one passes.
    pub(crate) fn may_be_of(&self, secret: &str) -> bool {
        self.check == check(&self.phc, secret)
    }
}

impl fmt::Debug for SecretHash {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("hash")
    }
}

fn check(phc: &str, secret: &str) -> u32 {
    let digest = Sha256::new().chain_update(phc).chain_update([0]).chain_update(secret).finalize();
    digest.iter().take(4).fold(0, |check, byte| check << 8 | u32::from(*byte))
}

impl Robots {
    /// Every robot by name.
    pub(crate) fn iter(&self) -> impl Iterator<Item = (&RobotName, &Robot)> {
        self.robots.iter()
    }

    /// The hashes of a robot's accepted secrets that `secret` may be one of.
    pub(crate) fn candidates(&self, name: &RobotName, secret: &str, now: Timestamp) -> Vec<SecretHash> {
        let hashes = self.robots.get(name).into_iter().flat_map(|robot| robot.hashes(now));
        hashes.filter(|hash| hash.may_be_of(secret)).cloned().collect()
    }

    /// Why a secret that has no [candidate](Self::candidates) is refused.
    pub(crate) fn refusal(&self, name: &RobotName, now: Timestamp) -> &'static str {
        match self.robots.get(name) {
            None => "there is no such robot",
            Some(robot) if !robot.has_not_expired(now) => "the robot has expired",
            Some(_) => "its secret is another one",
        }
    }

    /// Whether a robot is let in with this secret. A later robot of the same name has another secret.
    pub(crate) fn is_let_in(&self, name: &RobotName, secret: SecretId, now: Timestamp) -> bool {
        self.robots.get(name).is_some_and(|robot| robot.hashes(now).any(|hash| hash.id() == secret))
    }

    /// Adds a robot with this secret.
    pub(crate) fn add(
        &mut self,
        name: RobotName,
        secret: &NewSecret,
        expires_at: Option<Timestamp>,
        now: Timestamp,
    ) -> Result<(), RobotError> {
        if let Some(robot) = self.robots.get(&name) {
            let expired = !robot.has_not_expired(now);
            return Err(if expired { RobotError::HasExpired(name) } else { RobotError::Exists(name) });
        }
        if self.robots.len() >= MOST_ROBOTS {
            return Err(RobotError::TooMany);
        }
        let hash = secret.hash.clone();
        self.robots.insert(name, Robot { created_at: now, expires_at, hash, replaced: None });
        Ok(())
    }

    /// Gives a robot a new secret. The one before is accepted for `overlap` longer, also if the robot had expired.
    /// `expires_at` replaces its expiry.
    pub(crate) fn rotate(
        &mut self,
        name: &RobotName,
        secret: &NewSecret,
        overlap: Duration,
        expires_at: Option<Timestamp>,
        now: Timestamp,
    ) -> Result<(), RobotError> {
        let robot = self.robots.get_mut(name).ok_or_else(|| RobotError::Unknown(name.clone()))?;
        robot.expires_at = expires_at.or(robot.expires_at);
        if !robot.has_not_expired(now) {
            return Err(RobotError::HasExpired(name.clone()));
        }
        let before = std::mem::replace(&mut robot.hash, secret.hash.clone());
        robot.replaced = Some((before, now.plus(overlap)));
        Ok(())
    }

    /// Removes a robot.
    pub(crate) fn remove(&mut self, name: &RobotName) -> Result<(), RobotError> {
        self.robots.remove(name).map(|_| ()).ok_or_else(|| RobotError::Unknown(name.clone()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: Timestamp = Timestamp(1_800_000_000);

    fn lets_in(robots: &Robots, secret: &str, now: Timestamp) -> bool {
        robots.candidates(&ci(), secret, now).iter().any(|hash| hash.is_of(secret))
    }

    fn ci() -> RobotName {
        "ci".parse().unwrap()
    }

    #[test]
    fn a_robot_is_let_in_with_its_secret_until_it_expires() {
        let (mut robots, secret) = (Robots::default(), NewSecret::make().unwrap());
        let end = NOW.plus(Duration::from_hours(1));
        robots.add(ci(), &secret, Some(end), NOW).unwrap();
        let text = secret.text.as_str();
        assert!(text.starts_with(PREFIX));
        let hash = &robots.robots[&ci()].hash;
        let shown = format!("{robots:?}{:?}", secret.text);
        assert!([text, &hash.phc, &hash.check.to_string()].iter().all(|kept| !shown.contains(kept)), "{shown}");
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
        robots.rotate(&ci(), &new, Duration::from_hours(1), None, NOW).unwrap();
        let later = NOW.plus(Duration::from_hours(1));
        assert!(lets_in(&robots, old.text.as_str(), NOW) && lets_in(&robots, new.text.as_str(), NOW));
        assert!(!lets_in(&robots, old.text.as_str(), later) && lets_in(&robots, new.text.as_str(), later));
    }

    #[test]
    fn an_expired_robot_is_renewed_with_a_new_end_or_not_at_all() {
        let (mut robots, old, new) = (Robots::default(), NewSecret::make().unwrap(), NewSecret::make().unwrap());
        let (hour, end) = (Duration::from_hours(1), NOW.plus(Duration::from_hours(1)));
        robots.add(ci(), &old, Some(end), NOW).unwrap();
        let before = robots.clone();
        let refused = robots.rotate(&ci(), &new, hour, None, end);
        assert!(matches!(refused, Err(RobotError::HasExpired(name)) if name == ci()));
        assert!(matches!(robots.add(ci(), &new, None, end), Err(RobotError::HasExpired(name)) if name == ci()));
        assert_eq!(robots, before);
        robots.rotate(&ci(), &new, hour, Some(end.plus(hour * 3)), end).unwrap();
        let lets_in = |secret: &NewSecret, hours: u32| lets_in(&robots, secret.text.as_str(), end.plus(hour * hours));
        assert_eq!([0, 1, 2, 3].map(|hours| lets_in(&new, hours)), [true, true, true, false]);
        assert_eq!([0, 1].map(|hours| lets_in(&old, hours)), [true, false]);
    }

    #[test]
    fn a_wrong_secret_is_not_worth_comparing() {
        let (mut robots, secret) = (Robots::default(), NewSecret::make().unwrap());
        robots.add(ci(), &secret, None, NOW).unwrap();
        let text = secret.text.as_str();
        assert_eq!(robots.candidates(&ci(), text, NOW).len(), 1);
        for wrong in ["", "wrong", text.get(1..).unwrap(), &format!("{text} ")] {
            assert!(robots.candidates(&ci(), wrong, NOW).is_empty(), "{wrong}");
        }
        // A secret that passes the check of one hash says nothing of another hash.
        let again = SecretHash { phc: secret.hash.phc.replace("$argon2id", "$argon2i"), ..secret.hash.clone() };
        assert!(!again.may_be_of(text));
    }

    #[test]
    fn a_robot_that_is_made_anew_is_not_the_one_before_it() {
        let (mut robots, secrets) = (Robots::default(), [(); 3].map(|()| NewSecret::make().unwrap()));
        let [before, made, rotated] = secrets.each_ref().map(|secret| secret.hash.id());
        robots.add(ci(), &secrets[0], None, NOW).unwrap();
        assert!(robots.is_let_in(&ci(), before, NOW) && !robots.is_let_in(&ci(), made, NOW));
        robots.remove(&ci()).unwrap();
        assert!(!robots.is_let_in(&ci(), before, NOW));
        let (overlap, end) = (Duration::from_secs(30), NOW.plus(Duration::from_mins(1)));
        robots.add(ci(), &secrets[1], Some(end), NOW).unwrap();
        assert!(!robots.is_let_in(&ci(), before, NOW) && robots.is_let_in(&ci(), made, NOW));
        robots.rotate(&ci(), &secrets[2], overlap, None, NOW).unwrap();
        let at = |now| [made, rotated].map(|secret| robots.is_let_in(&ci(), secret, now));
        assert_eq!((at(NOW), at(NOW.plus(overlap))), ([true, true], [false, true]));
        assert_eq!(at(end), [false, false], "it has expired");
    }
}
