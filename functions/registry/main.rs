//! The registry function: requests of API Gateway (HTTP API, payload 2.0, or REST API) and of load balancers, answered by
//! the core's router.

mod event;
mod front;

use lambda_runtime::{Error, LambdaEvent, service_fn};

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<(), Error> {
    aws::log::start();
    let aws::Connected { cache, blobs, .. } = aws::connect().await?;
    let front = front::Front::new(stopover::http::router(cache), blobs);
    lambda_runtime::run(service_fn(|event: LambdaEvent<_>| Box::pin(front.answer(event)))).await
}
