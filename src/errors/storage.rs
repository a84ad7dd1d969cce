//! Failures of storage, with what caused them.

use std::error::Error;
use std::fmt;
use std::sync::Arc;

/// A request to storage failed. Nothing may be concluded about what it holds.
///
/// `Display` leaves out the cause, which is the [source](Error::source): [`chain`] writes both.
#[derive(Debug, Clone)]
pub enum StoreError {
    /// It could not be reached, was throttled, or failed: asking again later may help.
    Unavailable(Failure),
    /// It refused: permissions, a read-only or full disk. Only the operator can help.
    Refused(Failure),
    /// It holds a record that this version cannot read.
    Corrupt(Failure),
}

/// What could not be done, and the error that caused it, if there is one. Shared, because all callers that wait for one
/// answer get the same error.
#[derive(Debug, Clone)]
pub struct Failure {
    what: String,
    source: Option<Arc<dyn Error + Send + Sync>>,
}

impl Failure {
    /// What could not be done, and the error that says why.
    pub fn because(what: impl Into<String>, source: impl Into<Box<dyn Error + Send + Sync>>) -> Self {
        Self { what: what.into(), source: Some(source.into().into()) }
    }
}

impl From<String> for Failure {
    fn from(what: String) -> Self {
        Self { what, source: None }
    }
}

impl From<&str> for Failure {
    fn from(what: &str) -> Self {
        what.to_owned().into()
    }
}

impl fmt::Display for StoreError {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (kind, Failure { what, .. }) = match self {
            Self::Unavailable(failure) => ("storage is unavailable", failure),
            Self::Refused(failure) => ("storage refused", failure),
            Self::Corrupt(failure) => ("storage holds a record that cannot be read", failure),
        };
        write!(formatter, "{kind}: {what}")
    }
}

impl Error for StoreError {
    fn source(&self) -> Option<&(dyn Error + 'static)> {
        let (Self::Unavailable(failure) | Self::Refused(failure) | Self::Corrupt(failure)) = self;
        failure.source.as_deref().map(|source| source as _)
    }
}

/// The outcome of a write beside an answer that is known. `None`: it failed, which is logged and fails no answer.
pub fn beside<T>(written: Result<T, StoreError>, what: &str) -> Option<T> {
    written
        .inspect_err(|error| tracing::warn!(error = %chain(error), "{what} could not be written: the answer stands"))
        .ok()
}

/// The message of an error and of all its causes: for logs and for operators, never for clients.
pub fn chain(error: &dyn Error) -> String {
    let causes = std::iter::successors(error.source(), |&error| error.source());
    causes.fold(error.to_string(), |text, cause| format!("{text}: {cause}"))
}

#[cfg(test)]
mod tests {
    use std::io;

    use super::*;
    use crate::errors::{AccessError, FillError, PullError};

    fn full() -> StoreError {
        StoreError::Refused(Failure::because("a blob could not be written", io::Error::other("no space left")))
    }

    #[test]
    fn a_failure_keeps_what_caused_it_however_often_it_is_wrapped() {
        let source = full().source().map(ToString::to_string);
        assert_eq!(source.as_deref(), Some("no space left"));
        let text = "storage refused: a blob could not be written: no space left";
        for error in [&full() as &dyn Error, &full().clone(), &FillError::from(full())] {
            assert_eq!(chain(error), text);
        }
        assert_eq!(chain(&PullError::from(FillError::from(full()))), text);
        let plain = StoreError::Unavailable("it is closed".into());
        assert_eq!(chain(&plain), "storage is unavailable: it is closed");
    }

    #[test]
    fn a_client_is_told_nothing_of_it_at_the_gate_either() {
        for error in [PullError::from(full()), PullError::from(AccessError::Store(full()))] {
            assert!(matches!(error, PullError::Store(StoreError::Refused(_))), "{error:?}");
            let answer = error.answer();
            assert_eq!(answer.status, http::StatusCode::SERVICE_UNAVAILABLE);
            assert!(!answer.message.contains("written") && !answer.message.contains("space"), "{}", answer.message);
        }
    }
}
