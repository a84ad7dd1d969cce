//! The registry function: requests of API Gateway (HTTP API, payload 2.0, or REST API) answered by the core's router.

mod front;

use axum::middleware::from_fn;

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<(), lambda_http::Error> {
    aws::log::start();
    let (cache, _) = aws::connect().await?;
    let router = stopover::http::router(cache)
        .layer(from_fn(front::exact_path))
        .layer(from_fn(front::with_source))
        .layer(from_fn(aws::metrics::count_answer));
    lambda_http::run(router).await
}
