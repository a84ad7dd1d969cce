//! S3: s3s speaks HTTP, XML and Signature Version 4; the rules it leaves open are kept here.
//!
//! An operation or precondition that is not modelled is refused with `NotImplemented`, never ignored.

mod answers;
mod body;
mod operations;
mod store;

use std::sync::Arc;

use axum::{
    Router,
    error_handling::HandleError,
    extract::Request,
    http::{StatusCode, header},
    middleware::{self, Next},
    response::{IntoResponse, Response},
};
use s3s::{
    S3Result,
    access::{S3Access, S3AccessContext},
    auth::{S3Auth, SecretKey},
    s3_error,
    service::S3ServiceBuilder,
};

pub(super) use self::store::Store;
use super::{
    ACCESS_KEY_ID, SECRET_ACCESS_KEY,
    journal::{Failure, Journal, Service},
};
use crate::loopback::Loopback;

/// Starts the service and returns its endpoint URL.
pub(super) fn start(loopback: &Loopback, store: &Arc<Store>, journal: Arc<Journal>) -> anyhow::Result<String> {
    let mut builder = S3ServiceBuilder::new(operations::Operations(Arc::clone(store)));
    builder.set_auth(OneKey);
    builder.set_access(Gate(journal));
    let service =
        HandleError::new(
            builder.build(),
            |error| async move { (StatusCode::INTERNAL_SERVER_ERROR, format!("{error:?}")) },
        );
    let router = Router::new().fallback_service(service).layer(middleware::from_fn(one_auth_mechanism));
    let (listener, address) = loopback.bind()?;
    loopback.serve(listener, router);
    Ok(format!("http://{address}"))
}

/// A presigned URL and an `Authorization` header together are refused; s3s would look at the URL only.
async fn one_auth_mechanism(request: Request, next: Next) -> Response {
    let presigned = request.uri().query().is_some_and(|query| {
        query.split('&').any(|pair| pair.starts_with("X-Amz-Algorithm=") || pair.starts_with("X-Amz-Signature="))
    });
    if presigned && request.headers().contains_key(header::AUTHORIZATION) {
        let refusal = s3_error!(
            InvalidArgument,
            "Only one auth mechanism allowed; only the X-Amz-Algorithm query parameter, \
             Signature query string parameter or the Authorization header should be specified"
        );
        return refusal.to_http_response().map_or_else(
            |error| (StatusCode::INTERNAL_SERVER_ERROR, error.to_string()).into_response(),
            IntoResponse::into_response,
        );
    }
    next.run(request).await
}

struct OneKey;

#[async_trait::async_trait]
impl S3Auth for OneKey {
    async fn get_secret_key(&self, access_key: &str) -> S3Result<SecretKey> {
        if access_key == ACCESS_KEY_ID {
            Ok(SECRET_ACCESS_KEY.into())
        } else {
            Err(s3_error!(InvalidAccessKeyId, "The AWS Access Key Id you provided does not exist in our records."))
        }
    }
}

/// Nobody anonymous, and the journal.
struct Gate(Arc<Journal>);

#[async_trait::async_trait]
impl S3Access for Gate {
    async fn check(&self, context: &mut S3AccessContext<'_>) -> S3Result<()> {
        if context.credentials().is_none() {
            return Err(s3_error!(AccessDenied, "Access Denied"));
        }
        let operation = context.s3_op().name();
        if operation == "UploadPart" && self.0.ignores_part() {
            std::future::pending::<()>().await;
        }
        match self.0.record(Service::S3, operation) {
            Some(Failure::Internal) => Err(s3_error!(InternalError, "injected by the test")),
            Some(Failure::Throttled) => Err(s3_error!(SlowDown, "injected by the test")),
            None => Ok(()),
        }
    }
}
