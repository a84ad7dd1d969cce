//! What AWS does for a process that runs there, in the name of its own role.

use async_trait::async_trait;

use super::Result;
use crate::config::{Ecr, StoredSecret};
use crate::values::secret::Secret;
use crate::values::time::Timestamp;

/// AWS, as the role of this process sees it. Its errors name roles and accounts: they are for the log, not for clients.
#[async_trait]
pub trait Cloud: Send + Sync {
    /// A login to registries of Amazon (ECR and ECR Public API, `GetAuthorizationToken`).
    async fn log_in(&self, registry: &Ecr) -> Result<IssuedLogin>;

    /// A secret (Secrets Manager API, `GetSecretValue`). `None`: it has no such version.
    async fn secret(&self, secret: &StoredSecret, version: SecretVersion) -> Result<Option<Secret>>;

    /// Whether an account belongs to the organisation with this id (AWS Organizations API, `DescribeAccount`).
    async fn is_member(&self, account: &str, organization: &str) -> Result<bool>;
}

/// A user name and a password that AWS has issued.
#[derive(Clone, Debug)]
pub struct IssuedLogin {
    /// The user name.
    pub username: String,
    /// The password.
    pub password: Secret,
    /// When they expire.
    pub expires_at: Timestamp,
}

/// The versions of a secret, by the labels that a rotation moves (Secrets Manager, "Rotation").
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum SecretVersion {
    /// `AWSCURRENT`.
    Current,
    /// `AWSPREVIOUS`: what was current before.
    Previous,
}
