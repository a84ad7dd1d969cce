//! What a failed call to AWS means to the core. No error type of the SDK gets past this file.

use aws_sdk_s3::config::http::HttpResponse;
use aws_sdk_s3::error::{ProvideErrorMetadata, SdkError};
use stopover::errors::StoreError;

/// Error codes that only the operator can do something about: permissions, and names of things that do not exist.
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

/// Translates the failure of `operation`. Whatever is not known to be final may pass: throttling, time-outs, 5xx, and a
/// connection that could not be made.
pub(crate) fn store_error<E>(operation: &str, error: &SdkError<E, HttpResponse>) -> StoreError
where
    E: ProvideErrorMetadata,
{
    let SdkError::ServiceError(service) = error else {
        let text = format!("{operation}: {}", outline(error));
        return match error {
            SdkError::ConstructionFailure(_) => StoreError::Refused(text),
            _ => StoreError::Unavailable(text),
        };
    };
    let status = service.raw().status().as_u16();
    // The answer to HEAD has no body, so its status is all there is.
    let code = service.err().code().unwrap_or_default();
    let message = service.err().message().unwrap_or("no message");
    let text = format!("{operation}: {status} {code}: {message}");
    if REFUSALS.contains(&code) || (status == 403 && code.is_empty()) {
        StoreError::Refused(text)
    } else {
        StoreError::Unavailable(text)
    }
}

/// Whether the service answered with this status.
pub(crate) fn has_status<E>(error: &SdkError<E, HttpResponse>, status: u16) -> bool {
    matches!(error, SdkError::ServiceError(service) if service.raw().status().as_u16() == status)
}

/// The kind of a failure and its innermost cause, where the service itself did not answer.
fn outline<E>(error: &SdkError<E, HttpResponse>) -> String {
    let source: Option<&dyn std::error::Error> = match error {
        SdkError::DispatchFailure(failure) => failure.as_connector_error().map(|error| error as _),
        _ => None,
    };
    let mut cause = source;
    while let Some(inner) = cause.and_then(std::error::Error::source) {
        cause = Some(inner);
    }
    let kind = match error {
        SdkError::ConstructionFailure(_) => "the request could not be made",
        SdkError::TimeoutError(_) => "timed out",
        SdkError::DispatchFailure(_) => "could not be sent",
        SdkError::ResponseError(_) => "the answer could not be read",
        _ => "failed",
    };
    cause.map_or_else(|| kind.to_owned(), |cause| format!("{kind}: {cause}"))
}
