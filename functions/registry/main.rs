//! The registry function: requests of API Gateway (HTTP API, payload 2.0) answered by the core's router.

mod front;

use std::sync::Arc;

use axum::middleware::{from_fn, from_fn_with_state};
use lambda_runtime::tracing;

use front::AllowedCallers;

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<(), lambda_http::Error> {
    tracing::init_default_subscriber();
    let allowed = AllowedCallers::parse(&std::env::var("STOPOVER_ALLOWED_CIDRS").unwrap_or_default())?;
    let router = stopover::http::router(aws::connect().await?)
        .layer(from_fn(front::exact_path))
        .layer(from_fn_with_state(Arc::new(allowed), front::only_allowed));
    lambda_http::run(router).await
}
