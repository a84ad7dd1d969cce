//! Why a pull fails, and the one table from that to the status and the code that a client gets.

use std::time::Duration;

use http::StatusCode;

use crate::errors::{AccessError, FillError, Limit, OverBudget, StoreError, UpstreamError};
use crate::oci::{ErrorCode, InvalidRequest, Observed, Place, Repository};
use crate::values::served::Served;
use crate::values::text::{excerpt, without_addresses};

/// Why a pull was not answered with content.
#[derive(Debug, Clone, thiserror::Error)]
pub enum PullError {
    /// The request itself was not understood.
    #[error(transparent)]
    Request(#[from] InvalidRequest),
    /// Path and `ns` name different places.
    #[error("the path names {} but ns names {namespace}", excerpt(path))]
    Ambiguous {
        /// What the path names.
        path: Repository,
        /// What `ns` names.
        namespace: Place,
    },
    /// The request names an upstream that is not configured.
    #[error("the upstream {} is not configured here", excerpt(.0))]
    UnknownUpstream(String),
    /// The configuration refuses the name.
    #[error("{} is not answered here: {key} in the configuration refuses it", excerpt(repository))]
    NotAllowed {
        /// The repository that the request names.
        repository: Repository,
        /// The key, as the file spells it.
        key: String,
    },
    /// The caller is not let in.
    #[error(transparent)]
    Access(AccessError),
    /// The policy denies the caller this pull.
    #[error("{principal} may not pull {repository}: {reason}")]
    Forbidden {
        /// The caller's principal.
        principal: String,
        /// The repository that the request names.
        repository: Repository,
        /// What denies it, and what would allow it.
        reason: &'static str,
    },
    /// There is no such manifest in this repository: upstream has just said so, or did lately.
    #[error("the upstream registry has no such manifest")]
    ManifestUnknown(Served),
    /// No child of the index is for the platforms that were named. Lists the platforms that it has.
    #[error("the image is for none of the platforms that were named; it is for {0}")]
    NoPlatform(String),
    /// There is no such blob in this repository.
    #[error("the upstream registry has no such blob in this repository")]
    BlobUnknown,
    /// No byte of the blob lies within the range.
    #[error("the blob has {size} bytes, none of them in the range")]
    Range {
        /// Length of the blob in bytes.
        size: u64,
    },
    /// The blob is being copied and the client waited long enough.
    #[error("the blob is being copied from upstream; ask again shortly")]
    NotYet,
    /// The configuration refuses content of this size.
    #[error("a blob of {size} bytes is refused here: {key} in the configuration allows {most}")]
    TooLarge {
        /// Its length in bytes.
        size: u64,
        /// The most bytes that are allowed.
        most: u64,
        /// The key, as the file spells it.
        key: String,
        /// The manifest that references the blob, if the client asked for that: it is not stored either.
        manifest: Option<Observed>,
    },
    /// The caller has used up a budget.
    #[error(transparent)]
    OverBudget(#[from] OverBudget),
    /// Upstream failed or refused.
    #[error(transparent)]
    Upstream(#[from] UpstreamError),
    /// Storage failed.
    #[error(transparent)]
    Store(#[from] StoreError),
}

impl From<FillError> for PullError {
    fn from(error: FillError) -> Self {
        match error {
            FillError::Upstream(UpstreamError::Missing | UpstreamError::NoRepository) => Self::BlobUnknown,
            FillError::Upstream(error) => Self::Upstream(error),
            FillError::Store(error) => Self::Store(error),
            FillError::Mismatch(message) => Self::Upstream(UpstreamError::Invalid(message)),
            FillError::OverBudget(over) => Self::OverBudget(over),
            FillError::ClaimLost | FillError::Panicked => Self::NotYet,
        }
    }
}

/// A failure of storage while a caller logs in is answered like any other failure of storage.
impl From<AccessError> for PullError {
    fn from(error: AccessError) -> Self {
        match error {
            AccessError::Store(error) => Self::Store(error),
            error => Self::Access(error),
        }
    }
}

/// What a client is told: all that may leave the process.
#[derive(Debug)]
pub struct Answer {
    /// The status of the response.
    pub status: StatusCode,
    /// The code in its body.
    pub code: ErrorCode,
    /// The sentence in its body.
    pub message: String,
    /// The value of `Retry-After`: always there with 429 and 503.
    pub retry_after: Option<Duration>,
}

const SOON: Duration = Duration::from_secs(2);
const LATER: Duration = Duration::from_secs(10);
/// The longest wait that is answered with 429. A longer one is answered with 403, whose message clients show at once:
/// with 429 skopeo and podman would ask again four times, a minute apart each, before they fail.
const PATIENCE: Duration = Duration::from_mins(1);
/// The value of `Retry-After` where upstream limits our rate and does not say for how long.
const THROTTLED: Duration = Duration::from_mins(1);

impl PullError {
    /// Whether upstream was asked in vain.
    pub fn is_miss(&self) -> bool {
        match self {
            Self::ManifestUnknown(served) => *served == Served::Miss,
            Self::BlobUnknown => true,
            Self::Upstream(error) => error.is_miss(),
            _ => false,
        }
    }

    /// Whether the pull was refused because a quota or a budget is used up.
    pub fn is_of_quota(&self) -> bool {
        match self {
            Self::OverBudget(_) => true,
            Self::Upstream(error) => error.limit() == Some(Limit::Pulls),
            _ => false,
        }
    }

    /// Whether trying again later can help.
    pub fn may_pass(&self) -> bool {
        match self {
            Self::NotYet | Self::OverBudget(_) | Self::Store(_) => true,
            Self::Upstream(error) => error.is_trouble() || matches!(error, UpstreamError::Invalid(_)),
            _ => false,
        }
    }

    /// The table. Messages of storage and of identity providers never leave the process: they may name hosts and paths.
    /// Nor do addresses of upstreams.
    pub fn answer(&self) -> Answer {
        if let Self::Upstream(UpstreamError::LeftAlone(error)) = self {
            return Self::Upstream(UpstreamError::clone(error)).answer();
        }
        let denied = (StatusCode::FORBIDDEN, ErrorCode::Denied, None);
        let too_many = |after| (StatusCode::TOO_MANY_REQUESTS, ErrorCode::TooManyRequests, Some(after));
        let unavailable = |after| (StatusCode::SERVICE_UNAVAILABLE, ErrorCode::Unavailable, Some(after));
        let (status, code, retry_after) = match self {
            Self::Request(error) => {
                let (status, code) = of_request(error);
                (status, code, None)
            }
            Self::Access(error) => match error {
                AccessError::NobodyHere | AccessError::NotOperator(_) => denied,
                AccessError::Misdirected => (StatusCode::MISDIRECTED_REQUEST, ErrorCode::Denied, None),
                AccessError::TooManyAttempts { retry_after } | AccessError::Busy { retry_after } => {
                    too_many(*retry_after)
                }
                AccessError::Unreachable(_) | AccessError::Store(_) => unavailable(LATER),
                // Clients show the message of a 401; some do not show that of a 403 from a token endpoint
                // (containers/image).
                AccessError::NoCredentials
                | AccessError::WrongCredentials(_)
                | AccessError::NotLetIn(_)
                | AccessError::InvalidToken => (StatusCode::UNAUTHORIZED, ErrorCode::Unauthorized, None),
            },
            Self::Ambiguous { .. } => (StatusCode::BAD_REQUEST, ErrorCode::NameInvalid, None),
            Self::UnknownUpstream(_) | Self::Upstream(UpstreamError::NoRepository) => {
                (StatusCode::NOT_FOUND, ErrorCode::NameUnknown, None)
            }
            Self::ManifestUnknown(_) | Self::NoPlatform(_) | Self::Upstream(UpstreamError::Missing) => {
                (StatusCode::NOT_FOUND, ErrorCode::ManifestUnknown, None)
            }
            Self::BlobUnknown => (StatusCode::NOT_FOUND, ErrorCode::BlobUnknown, None),
            Self::Range { .. } => (StatusCode::RANGE_NOT_SATISFIABLE, ErrorCode::SizeInvalid, None),
            Self::OverBudget(OverBudget { retry_after, .. }) if *retry_after > PATIENCE => {
                (StatusCode::FORBIDDEN, ErrorCode::Denied, Some(*retry_after))
            }
            Self::OverBudget(OverBudget { retry_after, .. }) => too_many(*retry_after),
            Self::NotYet => unavailable(SOON),
            Self::Forbidden { .. }
            | Self::NotAllowed { .. }
            | Self::TooLarge { .. }
            | Self::Upstream(UpstreamError::Denied(_)) => denied,
            Self::Upstream(UpstreamError::Throttled { retry_after, .. }) => too_many(retry_after.unwrap_or(THROTTLED)),
            Self::Upstream(UpstreamError::Invalid(_)) => (StatusCode::BAD_GATEWAY, ErrorCode::ManifestInvalid, None),
            Self::Upstream(
                UpstreamError::Unavailable { .. } | UpstreamError::Elsewhere { .. } | UpstreamError::LeftAlone(_),
            )
            | Self::Store(_) => unavailable(LATER),
        };
        let message = match self {
            Self::Store(_) => "the cache's storage is unavailable; its log says more".to_owned(),
            Self::Access(AccessError::Unreachable(_)) => {
                "who you are cannot be found out now; the log of the cache says why".to_owned()
            }
            Self::Upstream(UpstreamError::Elsewhere { .. }) => {
                "where the upstream registry redirects to is unavailable; the log of the cache says more".to_owned()
            }
            Self::Upstream(error) => without_addresses(&error.to_string()),
            other => other.to_string(),
        };
        Answer { status, code, message, retry_after }
    }
}

fn of_request(error: &InvalidRequest) -> (StatusCode, ErrorCode) {
    use crate::oci::{InvalidDigest, InvalidReference};
    match error {
        InvalidRequest::Method => (StatusCode::METHOD_NOT_ALLOWED, ErrorCode::Unsupported),
        InvalidRequest::Endpoint | InvalidRequest::Unsupported(_) => (StatusCode::NOT_FOUND, ErrorCode::Unsupported),
        InvalidRequest::Page => (StatusCode::BAD_REQUEST, ErrorCode::PageInvalid),
        InvalidRequest::Name(_) | InvalidRequest::Namespace => (StatusCode::BAD_REQUEST, ErrorCode::NameInvalid),
        InvalidRequest::Reference(InvalidReference::Tag(_)) => (StatusCode::BAD_REQUEST, ErrorCode::ManifestInvalid),
        InvalidRequest::Reference(InvalidReference::Digest(digest)) | InvalidRequest::Digest(digest) => match digest {
            InvalidDigest::Malformed => (StatusCode::BAD_REQUEST, ErrorCode::DigestInvalid),
            InvalidDigest::UnsupportedAlgorithm => (StatusCode::BAD_REQUEST, ErrorCode::Unsupported),
        },
    }
}
