//! The registry function: requests of API Gateway (HTTP API, payload 2.0, or REST API) and of load balancers, answered by
//! the core's router.

mod event;
mod front;

use lambda_runtime::{Error, LambdaEvent, service_fn, tracing};

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<(), Error> {
    tracing::init_default_subscriber();
    let (cache, blobs) = aws::connect().await?;
    let front = front::Front::new(stopover::http::router(cache), blobs);
    lambda_runtime::run(service_fn(|event: LambdaEvent<_>| Box::pin(front.answer(event)))).await
}
