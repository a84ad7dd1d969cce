//! The registry function: requests of API Gateway (HTTP API, payload 2.0, or REST API) answered by the core's router.

mod front;

use std::sync::Arc;

use aws::Site;
use axum::Router;
use axum::extract::{Request, State};
use axum::http::StatusCode;
use axum::http::header::{CONTENT_TYPE, RETRY_AFTER};
use axum::middleware::from_fn;
use axum::response::IntoResponse as _;
use lambda_http::tower::ServiceExt as _;
use lambda_runtime::tracing;
use stopover::oci::ErrorCode;

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<(), lambda_http::Error> {
    tracing::init_default_subscriber();
    let site = aws::connect(stopover::http::router).await?;
    let router = following(site).layer(from_fn(front::exact_path)).layer(from_fn(front::with_source));
    lambda_http::run(router).await
}

/// The router of the newest good configuration, whichever that is when a request comes.
fn following(site: Site<Router>) -> Router {
    let answer = async |State(site): State<Arc<Site<Router>>>, request: Request| {
        if let Ok(router) = site.current().await {
            return router.oneshot(request).await.into_response();
        }
        let message = "the configuration of this cache (STOPOVER_CONFIG_URI) cannot be used; its log says why";
        let headers = [(CONTENT_TYPE, "application/json"), (RETRY_AFTER, "10")];
        (StatusCode::SERVICE_UNAVAILABLE, headers, ErrorCode::Unavailable.body(message)).into_response()
    };
    Router::new().fallback(answer).with_state(Arc::new(site))
}
