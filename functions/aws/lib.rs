//! Stopover on AWS: DynamoDB, S3 and SQS behind the ports of the core, and the only place where they are put together.
//!
//! No type of the AWS SDK gets out of this library, except where an adapter is constructed.

mod attribute;
mod batch;
mod dynamo;
mod failure;
mod item;
pub mod log;
pub mod metrics;
mod multipart;
mod role;
mod s3;
mod settings;
mod signed;
mod sqs;

use std::sync::Arc;
use std::time::Duration;

use anyhow::ensure;
use aws_config::timeout::TimeoutConfig;
use aws_config::{BehaviorVersion, SdkConfig};
use aws_sdk_s3::config::{RequestChecksumCalculation, ResponseChecksumValidation};
use stopover::cache::Cache;
use stopover::config::{Cold, Config, SecretReference};
use stopover::values::time::Clock;

pub use dynamo::DynamoLedger;
pub use role::OwnRole;
pub use s3::S3Blobs;
pub use sqs::{Queues, Received, Request, SqsFills};

use settings::Settings;

/// Time-outs of calls that move a few kilobytes, for an attempt and in all. Three attempts and the pauses between fit
/// into the 30 seconds in which a client wants its headers.
const SHORT_CALLS: [Duration; 2] = [Duration::from_secs(5), Duration::from_secs(12)];

/// For one request to S3, which may carry a part of 64 MiB. The SDK gives up connections that stall long before.
const S3_ANSWERS: Duration = Duration::from_mins(2);

/// What the functions are made of.
pub struct Connected {
    /// The core and its adapters.
    pub cache: Arc<Cache>,
    /// The bucket: the registry redirects to more of it than the core does.
    pub blobs: S3Blobs,
    /// The queues, through which the filler continues fills.
    pub fills: SqsFills,
}

/// Reads the environment and joins the core and its adapters. It calls no service, except for credentials where the
/// environment has none.
///
/// Fails with a sentence for the operator where the environment or `stopover.toml` is wrong.
pub async fn connect() -> anyhow::Result<Connected> {
    let variable = |name: &str| std::env::var(name).ok();
    let settings = Settings::read(variable)?;
    let mut config = Config::load(settings.config.as_deref(), Cold::Redirect, |secret| read_secret(secret, variable))?;
    let access = config.access.get_or_insert(settings.access);
    if access.signing_keys.is_none() {
        access.signing_keys = settings.signing_keys;
    }
    if let Some(iam) = &mut access.iam {
        iam.partition = iam.partition.or(settings.partition);
        ensure!(
            iam.organization.is_none() || iam.partition == settings.partition,
            "access.iam.organization: an organisation is of the partition that this function runs in, and of no other"
        );
    }
    for (whose, settings) in config.settings() {
        ensure!(
            settings.cold != Cold::Follow,
            "{whose}: cold = \"follow\" needs fills in the same process; here it is \"redirect\" or \"wait\""
        );
    }
    ensure!(config.retention.max_size.is_none(), "max_size is for a cache on one machine; here keep says what stays");
    let aws = aws_config::defaults(BehaviorVersion::latest()).load().await;
    let blobs = S3Blobs::new(s3_client(&aws), settings.bucket);
    let ledger = DynamoLedger::new(dynamo_client(&aws), settings.table, blobs.clone());
    let fills = SqsFills::new(sqs_client(&aws), settings.queues);
    let role = Arc::new(OwnRole::new(aws));
    let (stored, ledger, queues) = (Arc::new(blobs.clone()), Arc::new(ledger), Arc::new(fills.clone()));
    let cache = Arc::new(Cache::new(config, Clock::default(), stored, ledger, queues, Some(role))?);
    Ok(Connected { cache, blobs, fills })
}

/// Secrets that are stored are read when they are needed.
fn read_secret(secret: SecretReference, variable: impl Fn(&str) -> Option<String>) -> Result<String, String> {
    if let SecretReference::Stored(_) = secret { Ok(String::new()) } else { secret.read(variable) }
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
