//! The registry function: requests of API Gateway (HTTP API, payload 2.0, or REST API) answered by the core's router.

mod front;

use axum::middleware::from_fn;
use lambda_runtime::tracing;

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<(), lambda_http::Error> {
    tracing::init_default_subscriber();
    let router = stopover::http::router(aws::connect().await?)
        .layer(from_fn(front::exact_path))
        .layer(from_fn(front::with_source));
    lambda_http::run(router).await
}
