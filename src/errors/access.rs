//! Why a caller is not let in.

use std::time::Duration;

use url::Url;

use super::StoreError;

/// Why somebody is not let in.
#[derive(Debug, Clone, thiserror::Error)]
pub enum AccessError {
    /// They did not say who they are, and may not be nobody.
    #[error("say who you are: log in to this cache")]
    NoCredentials,
    /// They may not be nobody here, and there is no way to say who they are.
    #[error(
        "this cache answers no callers from your address; [access] in its stopover.toml says whom it answers: \
         `anonymous = [\"<network>\"]`, or logins"
    )]
    NobodyHere,
    /// They are on this machine, but call the cache by a name that may be somebody else's.
    #[error(
        "without [access] in its stopover.toml this cache is 127.0.0.1 and localhost, and answers to no other name; \
         `anonymous = [\"127.0.0.0/8\", \"::1\"]` there has it answer callers on this machine whatever they call it"
    )]
    Misdirected,
    /// The user name or the secret is wrong. Which check failed is for the log only.
    #[error("the user name or the secret is wrong, or has expired")]
    WrongCredentials(&'static str),
    /// The token is not valid.
    #[error("the token is not valid, or not any more")]
    InvalidToken,
    /// Too many wrong secrets.
    #[error("too many wrong secrets; try again later")]
    TooManyAttempts {
        /// When.
        retry_after: Duration,
    },
    /// So many log in that no more of them can be looked at.
    #[error("too many are logging in now; try again later")]
    Busy {
        /// When.
        retry_after: Duration,
    },
    /// Whoever they are, they are not among those who are let in.
    #[error("{0} is not let in; [access] in the stopover.toml of this cache says who is")]
    NotLetIn(String),
    /// They ask what operators do, and have not proven that they have the secret of operators.
    #[error(
        "this is for whoever runs the cache: the commands of the program prove that they can read the secret in its data \
         directory (operator_secret)"
    )]
    NotOperator,
    /// Who they are cannot be found out now: whoever knows is in trouble.
    #[error("who you are cannot be found out now: {0}")]
    Unreachable(#[from] Unreachable),
    /// Who they are cannot be found out now.
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

/// Whoever knows cannot be asked now. Says why, and at most the origin of whom: queries carry signatures.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct Unreachable(String);

impl Unreachable {
    pub(crate) fn new(origin: &Url, reason: impl std::fmt::Display) -> Self {
        Self(format!("{}: {reason}", origin.origin().ascii_serialization()))
    }

    /// Whoever asks by other means says this of it, in words that are for callers.
    pub fn because(reason: &str) -> Self {
        Self(reason.to_owned())
    }
}
