//! Stopover on AWS: DynamoDB, S3 and SQS behind the ports of the core, and the only place where they are put together.
//!
//! No type of the AWS SDK gets out of this library, except where an adapter is constructed.

mod attribute;
mod batch;
mod conditional;
mod configuration;
mod dynamo;
mod environment;
mod failure;
mod format;
mod inventory;
mod item;
mod lifecycle;
pub mod log;
pub mod metrics;
mod multipart;
mod places;
mod remembered;
mod role;
mod s3;
mod settings;
mod signed;
mod site;
mod sqs;
mod tallies;

use std::sync::Arc;
use std::time::Duration;

use aws_sdk_s3::config::timeout::TimeoutConfig;
use aws_sdk_s3::config::{RequestChecksumCalculation, ResponseChecksumValidation};
use aws_types::SdkConfig;
use stopover::cache::Cache;
use stopover::journal::Metric;
use stopover::values::time::Clock;

pub use dynamo::DynamoLedger;
pub use lifecycle::Extension;
pub use places::{PlaceRequest, Turn};
pub use role::OwnRole;
pub use s3::S3Blobs;
pub use settings::Wrong;
pub use site::Site;
pub use sqs::{Queues, Request, SqsFills};

/// Time-outs of calls that move a few kilobytes, for an attempt and in all. Three attempts and the pauses between fit
/// into the 30 seconds in which a client wants its headers.
const SHORT_CALLS: [Duration; 2] = [Duration::from_secs(5), Duration::from_secs(12)];

/// For one request to S3, which may carry a part of 64 MiB. The SDK gives up connections that stall long before.
const S3_ANSWERS: Duration = Duration::from_mins(2);

/// What `make` makes of the cache that the environment of this process describes. Why there is none is in the log.
pub async fn connect<T: Clone>(make: impl Fn(Arc<Cache>) -> T + Send + Sync + 'static) -> Result<Site<T>, Wrong> {
    let connected = async {
        let aws = environment::sdk_config().map_err(|error| Wrong::new("TLS", error))?;
        Site::connect(|name| std::env::var(name).ok(), aws, Clock::default(), make).await
    };
    connected.await.inspect_err(|wrong| {
        tracing::error!("the configuration is wrong, and no request is served: {wrong}");
        metrics::count(&[(Metric::ConfigurationErrors, 1)]);
    })
}

/// Returns once this process is to end, and what it has counted is written down.
pub async fn ended<T: Clone>(extension: Extension, site: &Result<Site<T>, Wrong>) {
    extension.ended().await;
    if let Ok(site) = site {
        site.write_counts().await;
    }
}

/// The client for a [`DynamoLedger`].
pub fn dynamo_client(aws: &SdkConfig) -> aws_sdk_dynamodb::Client {
    let config = aws_sdk_dynamodb::config::Builder::from(aws).timeout_config(short_calls());
    aws_sdk_dynamodb::Client::from_conf(config.build())
}

/// The client for [`SqsFills`].
pub fn sqs_client(aws: &SdkConfig) -> aws_sdk_sqs::Client {
    let config = aws_sdk_sqs::config::Builder::from(aws).timeout_config(short_calls());
    aws_sdk_sqs::Client::from_conf(config.build())
}

/// The client for [`S3Blobs`]: it adds no checksums to those that the adapter sends.
pub fn s3_client(aws: &SdkConfig) -> aws_sdk_s3::Client {
    let config = aws_sdk_s3::config::Builder::from(aws)
        .timeout_config(TimeoutConfig::builder().read_timeout(S3_ANSWERS).build())
        .request_checksum_calculation(RequestChecksumCalculation::WhenRequired)
        .response_checksum_validation(ResponseChecksumValidation::WhenRequired);
    aws_sdk_s3::Client::from_conf(config.build())
}

fn short_calls() -> TimeoutConfig {
    let [attempt, operation] = SHORT_CALLS;
    TimeoutConfig::builder().operation_attempt_timeout(attempt).operation_timeout(operation).build()
}
