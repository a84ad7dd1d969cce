//! `DynamoDB`, S3, SQS, ECR, Secrets Manager, SSM and Organizations in this process, strict where the adapters could be wrong.
//!
//! | service | made of | strict about |
//! | --- | --- | --- |
//! | `DynamoDB` | dynoxide | conditions, limits, transactions, as the service |
//! | S3 | s3s and [`s3`] | signatures, checksums before visibility, atomic `If-None-Match`, multipart rules |
//! | ECR | [`ecr`] | the region that a request is signed for |
//! | Secrets Manager, SSM | [`kept`] | what there is, and its versions |
//! | Organizations | [`organizations`] | which accounts there are |
//! | STS | [`sts`] | signatures, computed again; an STS of its own, for both columns |
//! | SQS | [`sqs`] | visibility, receipt handles, limits, redrive |
//!
//! None of them replicates late or drifts in time; [`Endpoints::fail_next`] makes outages, [`Endpoints::count_capacity`]
//! throttles as a partition of `DynamoDB` does, and [`Endpoints::guarded`] refuses what a role does not allow.

mod capacity;
mod dynamo;
mod ecr;
mod guard;
mod journal;
mod json;
mod kept;
mod organizations;
mod s3;
mod sqs;
pub mod sts;

use std::sync::Arc;

use anyhow::Context;
use aws_sdk_dynamodb::types::{AttributeDefinition, BillingMode, KeySchemaElement, KeyType, ScalarAttributeType};
use aws_sdk_s3::config::{BehaviorVersion, Region, SharedCredentialsProvider};
use aws_types::SdkConfig;
use aws_types::service_config::{LoadServiceConfig, ServiceConfigKey};

pub(crate) use self::sqs::Queues;
use self::{
    capacity::Capacity,
    journal::{Failure, Journal},
    s3::Store,
};
pub use self::{
    capacity::{PARTITION, Units},
    ecr::Logins,
    guard::{Guard, Role},
    journal::{EVERY_OPERATION, Service},
    kept::Kept,
    organizations::Organization,
    sqs::QueueSettings,
};
use crate::loopback::Loopback;
use crate::secrets;

const REGION: &str = "us-east-1";
const ACCOUNT: &str = "000000000000";
const ACCESS_KEY_ID: &str = "test-access-key";
const SECRET_ACCESS_KEY: &str = "test-secret-key";
const TABLE: &str = "stopover-ledger";
const BUCKET: &str = "stopover-blobs";

/// The services with a table, a bucket, a queue and its dead-letter queue. Dropping it ends them at once.
pub struct Endpoints {
    urls: Urls,
    journal: Arc<Journal>,
    capacity: Arc<Capacity>,
    store: Arc<Store>,
    queues: Arc<Queues>,
    logins: Logins,
    kept: Kept,
    organization: Organization,
    loopback: Loopback,
}

#[derive(Clone, Debug)]
struct Urls {
    dynamodb: String,
    s3: String,
    sqs: String,
    ecr: String,
    kept: String,
    organizations: String,
}

/// The service endpoints, found by the SDK where it looks for `AWS_ENDPOINT_URL_<SERVICE>`.
impl LoadServiceConfig for Urls {
    fn load_config(&self, key: ServiceConfigKey<'_>) -> Option<String> {
        match (key.env(), key.service_id()) {
            ("AWS_ENDPOINT_URL", "DynamoDB") => Some(self.dynamodb.clone()),
            ("AWS_ENDPOINT_URL", "S3") => Some(self.s3.clone()),
            ("AWS_ENDPOINT_URL", "SQS") => Some(self.sqs.clone()),
            ("AWS_ENDPOINT_URL", "Organizations") => Some(self.organizations.clone()),
            ("AWS_ENDPOINT_URL", "ECR" | "ECR PUBLIC") => Some(self.ecr.clone()),
            ("AWS_ENDPOINT_URL", "Secrets Manager" | "SSM") => Some(self.kept.clone()),
            _ => None,
        }
    }
}

/// The ARNs of the queues that are worked off: that of fills clients wait for, and that of the others.
pub(crate) fn queue_arns() -> [String; 2] {
    [sqs::QUEUE, sqs::BACKGROUND_QUEUE].map(sqs::arn)
}

/// An MD5 as S3 and SQS write it.
fn hex(md5: [u8; 16]) -> String {
    format!("{:032x}", u128::from_be_bytes(md5))
}

impl Endpoints {
    /// Starts the services with the default [`QueueSettings`].
    pub async fn start() -> anyhow::Result<Self> {
        Self::start_with(QueueSettings::default()).await
    }

    /// Starts the services with a queue of these settings.
    pub async fn start_with(settings: QueueSettings) -> anyhow::Result<Self> {
        secrets::know("the secret key of the functions", SECRET_ACCESS_KEY);
        let loopback = Loopback::new("aws-endpoints")?;
        let journal = Arc::new(Journal::default());
        let store = Arc::new(Store::new(BUCKET)?);
        let capacity = Arc::new(Capacity::default());
        let (dynamodb, database) = dynamo::start(&loopback, Arc::clone(&journal), Arc::clone(&capacity))?;
        let s3 = s3::start(&loopback, &store, Arc::clone(&journal))?;
        let (sqs, queues) = sqs::start(&loopback, Arc::clone(&journal), settings)?;
        let (ecr, logins) = ecr::start(&loopback, Arc::clone(&journal))?;
        let (kept_at, kept) = kept::start(&loopback, Arc::clone(&journal))?;
        let (organizations, organization) = organizations::start(&loopback, Arc::clone(&journal))?;
        let urls = Urls { dynamodb, s3, sqs, ecr, kept: kept_at, organizations };
        let endpoints = Self { urls, journal, capacity, store, queues, logins, kept, organization, loopback };
        endpoints.create_table().await.context("cannot create the table")?;
        dynamo::index(&database).context("cannot index the table")?;
        Ok(endpoints)
    }

    async fn create_table(&self) -> anyhow::Result<()> {
        let mut request = self.dynamodb().create_table().table_name(TABLE).billing_mode(BillingMode::PayPerRequest);
        for (name, key_type) in [("pk", KeyType::Hash), ("sk", KeyType::Range)] {
            let attribute = AttributeDefinition::builder().attribute_name(name);
            request = request
                .attribute_definitions(attribute.attribute_type(ScalarAttributeType::S).build()?)
                .key_schema(KeySchemaElement::builder().attribute_name(name).key_type(key_type).build()?);
        }
        request.send().await?;
        Ok(())
    }

    /// Counts capacity units of the table from here on. With a limit, a partition refuses what exceeds it in a second.
    pub fn count_capacity(&self, limit: Option<Units>) {
        self.capacity.start(limit);
    }

    /// What the partitions whose key begins like this have served since.
    pub fn units(&self, beginning: &str) -> Units {
        self.capacity.units(beginning)
    }

    /// The name of the table, with the keys `pk` and `sk`.
    pub fn table(&self) -> &str {
        TABLE
    }

    /// The name of the bucket.
    pub fn bucket(&self) -> &str {
        BUCKET
    }

    /// The URL of the queue of fills.
    pub fn queue_url(&self) -> String {
        self.queues.url(sqs::QUEUE)
    }

    /// The URL of the queue of fills that nobody waits for.
    pub fn background_queue_url(&self) -> String {
        self.queues.url(sqs::BACKGROUND_QUEUE)
    }

    /// The URL of the queue that messages move to once they were received too often.
    pub fn dlq_url(&self) -> String {
        self.queues.url(sqs::DEAD_LETTER_QUEUE)
    }

    pub(crate) fn queues(&self) -> Arc<Queues> {
        Arc::clone(&self.queues)
    }

    /// What a function's process needs to find the services.
    pub fn environment(&self) -> Vec<(String, String)> {
        [
            ("AWS_ENDPOINT_URL_DYNAMODB", self.urls.dynamodb.as_str()),
            ("AWS_ENDPOINT_URL_S3", &self.urls.s3),
            ("AWS_ENDPOINT_URL_SQS", &self.urls.sqs),
            ("AWS_ENDPOINT_URL_ECR", &self.urls.ecr),
            ("AWS_ENDPOINT_URL_ECR_PUBLIC", &self.urls.ecr),
            ("AWS_ENDPOINT_URL_SECRETS_MANAGER", &self.urls.kept),
            ("AWS_ENDPOINT_URL_SSM", &self.urls.kept),
            ("AWS_ENDPOINT_URL_ORGANIZATIONS", &self.urls.organizations),
            ("AWS_REGION", REGION),
            ("AWS_ACCESS_KEY_ID", ACCESS_KEY_ID),
            ("AWS_SECRET_ACCESS_KEY", SECRET_ACCESS_KEY),
            ("STOPOVER_TABLE", TABLE),
            ("STOPOVER_BUCKET", BUCKET),
            ("STOPOVER_QUEUE_URL", &self.queue_url()),
            ("STOPOVER_BACKGROUND_QUEUE_URL", &self.background_queue_url()),
            ("STOPOVER_DEAD_QUEUE_URL", &self.dlq_url()),
        ]
        .map(|(name, value)| (name.to_owned(), value.to_owned()))
        .to_vec()
    }

    /// The SDK's configuration: any client made from it finds its own service.
    pub fn sdk_config(&self) -> SdkConfig {
        self.sdk_config_signed_with(SECRET_ACCESS_KEY)
    }

    /// As [`Self::sdk_config`], but signing with this secret: the services must refuse a wrong one.
    pub fn sdk_config_signed_with(&self, secret: &str) -> SdkConfig {
        let credentials = aws_sdk_s3::config::Credentials::new(ACCESS_KEY_ID, secret, None, None, "tests");
        SdkConfig::builder()
            .behavior_version(BehaviorVersion::latest())
            .region(Region::from_static(REGION))
            .credentials_provider(SharedCredentialsProvider::new(credentials))
            .service_config(self.urls.clone())
            .http_client(aws_smithy_http_client::Builder::new().build_http())
            .build()
    }

    /// A client of the table's service.
    pub fn dynamodb(&self) -> aws_sdk_dynamodb::Client {
        aws_sdk_dynamodb::Client::new(&self.sdk_config())
    }

    /// A client of the bucket's service.
    pub fn s3(&self) -> aws_sdk_s3::Client {
        aws_sdk_s3::Client::new(&self.sdk_config())
    }

    /// A client of the queues' service.
    pub fn sqs(&self) -> aws_sdk_sqs::Client {
        aws_sdk_sqs::Client::new(&self.sdk_config())
    }

    /// The organisation of the functions' account.
    pub fn organization(&self) -> &Organization {
        &self.organization
    }

    /// What Secrets Manager and the Parameter Store keep.
    pub fn kept(&self) -> &Kept {
        &self.kept
    }

    /// The passwords that ECR issues.
    pub fn logins(&self) -> &Logins {
        &self.logins
    }

    /// The keys of the objects that a client can see, in order.
    pub fn objects(&self) -> Vec<String> {
        self.store.keys()
    }

    /// The number of multipart uploads that were neither completed nor aborted.
    pub fn multipart_uploads(&self) -> usize {
        self.store.open_uploads()
    }

    /// The number of files behind objects and parts; what nobody can reach must not stay on disk.
    pub fn stored_files(&self) -> std::io::Result<usize> {
        self.store.files()
    }

    /// The number of messages in the queues of fills: waiting, delayed or in flight.
    pub fn queued_messages(&self) -> usize {
        self.queues.len(sqs::QUEUE) + self.queues.len(sqs::BACKGROUND_QUEUE)
    }

    /// The number of messages in the dead-letter queue.
    pub fn dead_messages(&self) -> usize {
        self.queues.len(sqs::DEAD_LETTER_QUEUE)
    }

    /// How often the operation was called, refused calls included; [`EVERY_OPERATION`] counts all of the service.
    pub fn calls(&self, service: Service, operation: &str) -> usize {
        self.journal.calls(service, operation)
    }

    /// The operations of every call of a service so far, in order.
    pub fn operations(&self) -> Vec<String> {
        self.journal.operations()
    }

    /// The next `count` calls of the operation (or of [`EVERY_OPERATION`]) answer 500.
    ///
    /// The SDK makes three attempts by default: count three for each call that shall fail.
    pub fn fail_next(&self, service: Service, operation: &str, count: usize) {
        self.journal.fail_next(service, operation, Failure::Internal, count);
    }

    /// The next `count` calls of the operation are throttled in the service's own words.
    pub fn throttle_next(&self, service: Service, operation: &str, count: usize) {
        self.journal.fail_next(service, operation, Failure::Throttled, count);
    }

    /// S3 answers so many parts of uploads, and takes those after them without a word.
    pub fn answer_parts(&self, count: usize) {
        self.journal.answer_parts(count);
    }

    /// Takes back every fault that is still to come.
    pub fn heal(&self) {
        self.journal.heal();
    }
}
