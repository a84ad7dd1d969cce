//! What a failed call to AWS means to the core. No error type of the SDK gets past this file.

use std::error::Error;

use aws_sdk_s3::config::http::HttpResponse;
use aws_sdk_s3::error::{ProvideErrorMetadata, SdkError};
use stopover::errors::{Failure, StoreError};

/// Error codes that only the operator can resolve: missing permissions, and names of things that do not exist.
const REFUSALS: [&str; 13] = [
    "AccessDenied",
    "AccessDeniedException",
    "AuthorizationHeaderMalformed",
    "AWS.SimpleQueueService.NonExistentQueue",
    "InvalidAccessKeyId",
    "KMSAccessDeniedException",
    "NoSuchBucket",
    "PermanentRedirect",
    "QueueDoesNotExist",
    "ResourceNotFoundException",
    "SignatureDoesNotMatch",
    "UnrecognizedClientException",
    "ValidationException",
];

/// Translates the failure of `operation`. A failure that is not known to be final may pass: throttling, time-outs, 5xx,
/// and a connection that could not be made.
///
/// An answer of the service is told in full, without a source. If there is no answer, the SDK's error is the source.
pub(crate) fn store_error<E>(operation: &str, error: SdkError<E, HttpResponse>) -> StoreError
where
    E: ProvideErrorMetadata + Error + Send + Sync + 'static,
{
    let SdkError::ServiceError(service) = &error else {
        let what = format!("{operation}: {}", outline(&error));
        let refused = matches!(error, SdkError::ConstructionFailure(_));
        let failure = match error.into_source() {
            Ok(source) => Failure::because(what, source),
            Err(_) => what.into(),
        };
        return if refused { StoreError::Refused(failure) } else { StoreError::Unavailable(failure) };
    };
    let status = service.raw().status().as_u16();
    // An answer to HEAD has no body, only its status.
    let code = service.err().code().unwrap_or_default();
    let message = service.err().message().unwrap_or("no message");
    let text = format!("{operation}: {status} {code}: {message}");
    if REFUSALS.contains(&code) || (status == 403 && code.is_empty()) {
        StoreError::Refused(text.into())
    } else {
        StoreError::Unavailable(text.into())
    }
}

/// Whether the service answered with this status.
pub(crate) fn has_status<E>(error: &SdkError<E, HttpResponse>, status: u16) -> bool {
    matches!(error, SdkError::ServiceError(service) if service.raw().status().as_u16() == status)
}

/// The kind of a failure without an answer of the service.
fn outline<E>(error: &SdkError<E, HttpResponse>) -> &'static str {
    match error {
        SdkError::ConstructionFailure(_) => "the request could not be made",
        SdkError::TimeoutError(_) => "timed out",
        SdkError::DispatchFailure(_) => "could not be sent",
        SdkError::ResponseError(_) => "the answer could not be read",
        _ => "failed",
    }
}
