//! The registry function: requests of API Gateway (HTTP API, payload 2.0, or REST API) and of load balancers, answered by
//! the core's router.

mod event;
mod front;

use std::sync::Arc;

use aws::Extension;
use aws::metrics::{count_upstreams, has_cost};
use axum::Router;
use axum::middleware::map_response;
use axum::response::Response;
use front::Front;
use lambda_runtime::{Error, LambdaEvent, service_fn};
use stopover::cache::Cache;

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<(), Error> {
    aws::log::start();
    let (site, extension) = tokio::join!(aws::connect(router), Extension::register());
    if let Ok(site) = &site {
        site.ledger.remember();
    }
    let front = Front::new(site.as_ref().ok().map(|site| site.blobs.clone()));
    // The router of the newest good configuration, whichever that is when a request comes. A process without one answers,
    // too: to end would make it start again and again, and tell clients nothing.
    let current = async || match &site {
        Ok(site) => site.current().await,
        Err(wrong) => Err(wrong.clone()),
    };
    let answer = async |event: LambdaEvent<_>| Box::pin(front.answer(current(), event)).await;
    tokio::select! {
        ran = lambda_runtime::run(service_fn(answer)) => ran,
        () = aws::ended(extension, &site) => Ok(()),
    }
}

/// The core's router. What an answer has cost at upstreams is counted before the answer is passed on, and once a minute what
/// was counted is written down: after that the process may be frozen.
fn router(cache: Arc<Cache>) -> Router {
    stopover::http::router(Arc::clone(&cache)).layer(map_response(move |answer: Response| {
        count_upstreams(&cache.core.upstreams, has_cost(&answer));
        let cache = Arc::clone(&cache);
        async move {
            cache.operate.write_counts_if_due().await;
            answer
        }
    }))
}
