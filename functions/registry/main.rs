//! The registry function: requests of API Gateway (HTTP API, payload 2.0, or REST API) and of load balancers, answered by
//! the core's router.

mod event;
mod front;

use front::Front;
use lambda_runtime::{Error, LambdaEvent, service_fn};

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<(), Error> {
    aws::log::start();
    let site = aws::connect(stopover::http::router).await?;
    let front = Front::new(site.blobs().clone());
    // The router of the newest good configuration, whichever that is when a request comes.
    lambda_runtime::run(service_fn(async |event: LambdaEvent<_>| Box::pin(front.answer(site.current(), event)).await))
        .await
}
