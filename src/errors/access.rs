//! Why a caller is not let in.

use std::time::Duration;

use url::Url;

use super::StoreError;

/// Why a caller is not let in.
#[derive(Debug, Clone, thiserror::Error)]
pub enum AccessError {
    /// No credentials were sent, and the request needs a login.
    #[error("say who you are: log in to this cache")]
    NoCredentials,
    /// Anonymous access is off for the caller's address, and no kind of login is configured.
    #[error(
        "this cache answers no callers from your address; [access] in its stopover.toml says whom it answers: \
         `anonymous = [\"<network>\"]`, or logins"
    )]
    NobodyHere,
    /// The caller is on this machine, but its `Host` is a name that another site may own (DNS rebinding).
    #[error(
        "without [access] in its stopover.toml this cache is 127.0.0.1 and localhost, and answers to no other name; \
         `anonymous = [\"127.0.0.0/8\", \"::1\"]` there has it answer callers on this machine whatever they call it"
    )]
    Misdirected,
    /// The user name or the secret is wrong. Which check failed is for the log only.
    #[error("the user name or the secret is wrong, or has expired")]
    WrongCredentials(&'static str),
    /// The token is not valid, or has expired.
    #[error("the token is not valid, or not any more")]
    InvalidToken,
    /// Too many wrong secrets were tried lately.
    #[error("too many wrong secrets; try again later")]
    TooManyAttempts {
        /// How long to wait before another attempt.
        retry_after: Duration,
    },
    /// So many logins are being verified that no more are taken on.
    #[error("too many are logging in now; try again later")]
    Busy {
        /// How long to wait before another attempt.
        retry_after: Duration,
    },
    /// The credentials are right, but `[access]` does not let this principal in.
    #[error("{0} is not let in; [access] in the stopover.toml of this cache says who is")]
    NotLetIn(String),
    /// An endpoint for operators was called by this principal, which is none.
    #[error(
        "{0} is no operator: `operators` in [access] of the stopover.toml of this cache names those that ask from \
         elsewhere, and on its machine commands without --server ask over operator.sock in its data directory"
    )]
    NotOperator(String),
    /// The credentials cannot be verified now: the identity provider (STS, an OIDC issuer) is in trouble.
    #[error("who you are cannot be found out now: {0}")]
    Unreachable(#[from] Unreachable),
    /// The credentials cannot be verified now: storage failed.
    #[error(transparent)]
    Store(#[from] StoreError),
}

impl AccessError {
    /// Which check failed, for the log: the client is not told.
    pub fn because(&self) -> Option<&'static str> {
        match self {
            Self::WrongCredentials(because) => Some(because),
            Self::NotLetIn(_) => Some("[access] does not name its account, role or claims"),
            _ => None,
        }
    }
}

/// The identity provider cannot be asked now. Says why, and at most the provider's origin: queries carry signatures.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct Unreachable(String);

impl Unreachable {
    pub(crate) fn new(origin: &Url, reason: impl std::fmt::Display) -> Self {
        Self(format!("{}: {reason}", origin.origin().ascii_serialization()))
    }

    /// For adapters that ask by other means than a URL. `reason` is fit for callers to read.
    pub(crate) fn because(reason: &str) -> Self {
        Self(reason.to_owned())
    }
}
