//! The management of robots by operators: over `/_stopover/robots`, or by invoking the filler function.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::Operate;
use crate::identity::RobotName;
use crate::ports::Attempts;
use crate::records::RobotsKey;
use crate::records::robot::{NewSecret, Robot, RobotError, Robots};
use crate::values::secret::Secret;
use crate::values::time::{Span, Timestamp};

/// How long the old secret is accepted after a rotation, unless the operator says otherwise.
const OVERLAP: Duration = Duration::from_hours(24);

/// The longest life of a robot that expires, and the longest overlap: more than that is a mistake, or means "never".
const LONGEST: (Duration, Duration) = (Duration::from_hours(10 * 366 * 24), Duration::from_hours(90 * 24));

/// A command of an operator: the body of `POST /_stopover/robots`, the event of the filler function, and what follows
/// `stopover robot`, whose help has these words.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[cfg_attr(feature = "local", derive(clap::Subcommand))]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
#[expect(missing_docs, reason = "the help says nothing of a name")]
pub enum RobotCommand {
    /// Make a robot, and show its secret, this once
    Add {
        name: RobotName,
        /// How long it is let in: 90d, 12h … [default: until it is removed]
        #[cfg_attr(feature = "local", arg(long, value_name = "DURATION"))]
        expires: Option<Span>,
    },
    /// Name all robots
    List,
    /// Give a robot a new secret, and show it, this once
    Rotate {
        name: RobotName,
        /// How long the secret before is still taken [default: 1day]
        #[cfg_attr(feature = "local", arg(long, value_name = "DURATION"))]
        overlap: Option<Span>,
        /// How long it is let in from now on: 90d, 12h … [default: as long as before]
        #[cfg_attr(feature = "local", arg(long, value_name = "DURATION"))]
        expires: Option<Span>,
    },
    /// Remove a robot
    Remove { name: RobotName },
}

/// The answer to a [`RobotCommand`].
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum RobotAnswer {
    /// All robots.
    Robots(Vec<RobotStatus>),
    /// A new secret. It is shown this once and stored nowhere.
    Secret {
        /// The name of the robot.
        name: RobotName,
        /// Its new secret.
        secret: Secret,
        /// Until when the old secret is accepted, in seconds since the Unix epoch; absent if there is none.
        replaced_until: Option<Timestamp>,
    },
    /// The robot was removed. Tokens that were issued to it stay valid for half a minute more.
    Removed(RobotName),
}

/// A robot as operators see it. Times are in seconds since the Unix epoch.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct RobotStatus {
    /// The name of the robot.
    pub name: RobotName,
    /// When it was created.
    pub created_at: Timestamp,
    /// Until when it may log in; absent: for ever.
    pub expires_at: Option<Timestamp>,
    /// Whether `expires_at` has passed.
    pub expired: bool,
    /// Until when the secret before its last rotation is accepted; absent if there is none.
    pub replaced_until: Option<Timestamp>,
}

impl Operate {
    /// Carries out a command of an operator.
    pub async fn robots(&self, command: RobotCommand) -> Result<RobotAnswer, RobotError> {
        let now = self.core.clock.now();
        match command {
            RobotCommand::List => {
                let robots =
                    self.core.storage.ledger.get(&RobotsKey).await?.map(|robots| robots.value).unwrap_or_default();
                Ok(RobotAnswer::Robots(robots.iter().map(|(name, robot)| robot.status(name, now)).collect()))
            }
            RobotCommand::Add { .. } if !self.access.lets_robots_in() => Err(RobotError::NotLetIn),
            RobotCommand::Add { name, expires } => {
                let expires_at = end(expires, now)?;
                let secret = new_secret().await?;
                self.change_robots(|robots| robots.add(name.clone(), &secret, expires_at, now)).await?;
                tracing::info!(principal = format!("robot:{name}"), "robot added");
                Ok(RobotAnswer::Secret { name, secret: secret.text, replaced_until: None })
            }
            RobotCommand::Rotate { name, overlap, expires } => {
                let overlap = overlap.map_or(OVERLAP, |span| span.0);
                if overlap > LONGEST.1 {
                    return Err(RobotError::TooLong);
                }
                let expires_at = end(expires, now)?;
                let secret = new_secret().await?;
                self.change_robots(|robots| robots.rotate(&name, &secret, overlap, expires_at, now)).await?;
                tracing::info!(principal = format!("robot:{name}"), "robot has a new secret");
                let replaced_until = Some(now.plus(overlap)).filter(|until| now < *until);
                Ok(RobotAnswer::Secret { name, secret: secret.text, replaced_until })
            }
            RobotCommand::Remove { name } => {
                self.change_robots(|robots| robots.remove(&name)).await?;
                tracing::info!(principal = format!("robot:{name}"), "robot removed");
                Ok(RobotAnswer::Removed(name))
            }
        }
    }

    async fn change_robots(
        &self,
        change: impl Fn(&mut Robots) -> Result<(), RobotError> + Send + Sync,
    ) -> Result<(), RobotError> {
        let mut attempts = Attempts::new();
        loop {
            let known = self.core.storage.ledger.get(&RobotsKey).await?;
            let (mut robots, version) = known.map_or_else(Default::default, |known| (known.value, Some(known.version)));
            change(&mut robots)?;
            if self.core.storage.ledger.swap(&RobotsKey, version, &robots).await?.is_some() {
                return Ok(());
            }
            attempts.again().await.map_err(|_| RobotError::Busy)?;
        }
    }
}

/// When a robot that may log in for `life` expires.
fn end(life: Option<Span>, now: Timestamp) -> Result<Option<Timestamp>, RobotError> {
    match life.map(|Span(life)| (life, now.plus(life))) {
        Some((_, end)) if end == now => Err(RobotError::Expired),
        Some((life, _)) if life > LONGEST.0 => Err(RobotError::TooLong),
        life => Ok(life.map(|(_, end)| end)),
    }
}

/// Runs off the async threads: making a secret keeps a core busy for long.
async fn new_secret() -> Result<NewSecret, RobotError> {
    tokio::task::spawn_blocking(NewSecret::make).await.unwrap_or(Err(RobotError::NoSecret))
}

impl Robot {
    fn status(&self, name: &RobotName, now: Timestamp) -> RobotStatus {
        let replaced_until = self.replaced.as_ref().map(|(_, until)| *until).filter(|until| now < *until);
        let &Self { created_at, expires_at, .. } = self;
        RobotStatus { name: name.clone(), created_at, expires_at, expired: !self.has_not_expired(now), replaced_until }
    }
}
