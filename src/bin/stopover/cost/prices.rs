//! What AWS asks for: list prices of us-east-1, without free tiers. The one place that has them.

/// When the prices were looked up.
pub(crate) const LOOKED_UP: &str = "2026-11-28";
/// Where they hold.
pub(crate) const REGION: &str = "us-east-1";

/// What a deployment pays for. A bill has its lines in this order.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub(crate) enum Item {
    Requests,
    Invocations,
    Compute,
    Reads,
    Writes,
    Gets,
    Puts,
    Storage,
    Messages,
    SecretCalls,
    Secrets,
    Logs,
    Alarms,
    Metrics,
    Dashboards,
}

/// A list price.
pub(crate) struct Price {
    pub(crate) service: &'static str,
    pub(crate) unit: &'static str,
    /// Dollars for `per` units.
    pub(crate) dollars: f64,
    pub(crate) per: f64,
    /// The page of AWS that says so.
    pub(crate) page: &'static str,
    /// Read in the words of AWS. Otherwise others have repeated it.
    pub(crate) read_at_aws: bool,
}

const MILLION: f64 = 1e6;

impl Item {
    pub(crate) const fn price(self) -> Price {
        let (service, page) = match self {
            Self::Requests => ("API Gateway", "https://aws.amazon.com/api-gateway/pricing/"),
            Self::Invocations | Self::Compute => ("Lambda", "https://aws.amazon.com/lambda/pricing/"),
            Self::Reads | Self::Writes => ("DynamoDB", "https://aws.amazon.com/dynamodb/pricing/on-demand/"),
            Self::Gets | Self::Puts | Self::Storage => ("S3", "https://aws.amazon.com/s3/pricing/"),
            Self::Messages => ("SQS", "https://aws.amazon.com/sqs/pricing/"),
            Self::SecretCalls | Self::Secrets => ("Secrets Manager", "https://aws.amazon.com/secrets-manager/pricing/"),
            Self::Logs | Self::Alarms | Self::Metrics | Self::Dashboards => {
                ("CloudWatch", "https://aws.amazon.com/cloudwatch/pricing/")
            }
        };
        let (unit, dollars, per) = match self {
            Self::Requests => ("requests of an HTTP API", 1.00, MILLION),
            Self::Invocations => ("invocations", 0.20, MILLION),
            Self::Compute => ("GB-seconds on arm64", 13.3334, MILLION),
            Self::Reads => ("read units", 0.125, MILLION),
            Self::Writes => ("write units", 0.625, MILLION),
            Self::Gets => ("requests like GET", 0.40, MILLION),
            Self::Puts => ("requests like PUT", 5.00, MILLION),
            Self::Storage => ("GB stored", 0.023, 1.0),
            Self::Messages => ("requests", 0.40, MILLION),
            Self::SecretCalls => ("calls", 5.00, MILLION),
            Self::Secrets => ("secrets", 0.40, 1.0),
            Self::Logs => ("GB of logs", 0.50, 1.0),
            Self::Alarms => ("metrics of alarms", 0.10, 1.0),
            Self::Metrics => ("metrics", 0.30, 1.0),
            Self::Dashboards => ("dashboards", 3.00, 1.0),
        };
        Price { service, unit, dollars, per, page, read_at_aws: matches!(self, Self::Requests) }
    }

    pub(crate) fn dollars(self, units: f64) -> f64 {
        let Price { dollars, per, .. } = self.price();
        units / per * dollars
    }

    /// What a call of this operation is charged as. `None`: it is not, or its units are.
    pub(crate) fn of_operation(operation: &str) -> Option<Self> {
        Some(match operation {
            "GetObject" | "HeadObject" => Self::Gets,
            "PutObject" | "CreateMultipartUpload" | "UploadPart" | "CompleteMultipartUpload" | "ListParts" => {
                Self::Puts
            }
            "SendMessage" | "SendMessageBatch" => Self::Messages,
            "GetSecretValue" => Self::SecretCalls,
            _ => return None,
        })
    }
}
