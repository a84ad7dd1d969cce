//! What the functions' own role may ask AWS for, besides storage: logins to ECR, secrets, and the accounts of an
//! organisation.

use async_trait::async_trait;
use aws_types::SdkConfig;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde::Deserialize;
use serde_json::{Value, json};
use stopover::config::{Ecr, StoredSecret};
use stopover::errors::StoreError;
use stopover::identity::partition::Partition;
use stopover::ports::{Cloud, IssuedLogin, Result, SecretVersion};
use stopover::values::secret::Secret;
use stopover::values::time::Timestamp;

use crate::signed::{Operation, SignedCalls};

const ECR_LOGIN: Operation = Operation {
    actions: &["ecr:GetAuthorizationToken"],
    target: "AmazonEC2ContainerRegistry_V20150921.GetAuthorizationToken",
    service: "ECR",
    host: "api.ecr",
};
const ECR_PUBLIC_LOGIN: Operation = Operation {
    actions: &["ecr-public:GetAuthorizationToken", "sts:GetServiceBearerToken"],
    target: "SpencerFrontendService.GetAuthorizationToken",
    service: "ECR PUBLIC",
    host: "api.ecr-public",
};
/// The only region that issues logins to ECR Public.
const ECR_PUBLIC_REGION: &str = "us-east-1";
const GET_SECRET: Operation = Operation {
    actions: &["secretsmanager:GetSecretValue"],
    target: "secretsmanager.GetSecretValue",
    service: "Secrets Manager",
    host: "secretsmanager",
};
/// It answers the management account of the organisation, and delegated administrators.
const DESCRIBE_ACCOUNT: Operation = Operation {
    actions: &["organizations:DescribeAccount"],
    target: "AWSOrganizationsV20161128.DescribeAccount",
    service: "Organizations",
    host: "organizations",
};

/// [`Cloud`] by signed calls.
#[derive(Clone, Debug)]
pub struct OwnRole(SignedCalls);

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Authorization {
    authorization_token: Secret,
    expires_at: f64,
}

/// What `SecretString` is of this call; binary secrets have none.
#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct SecretValue {
    secret_string: Secret,
}

impl OwnRole {
    /// The role whose credentials this configuration has.
    pub fn of(aws: SdkConfig) -> Self {
        Self::new(SignedCalls::new(aws))
    }

    pub(crate) fn new(calls: SignedCalls) -> Self {
        Self(calls)
    }

    async fn authorization(&self, registry: &Ecr) -> Result<Authorization> {
        let unknown = || StoreError::Corrupt("ecr:GetAuthorizationToken answered with no login".into());
        let (operation, region, place) = match registry {
            Ecr::Private { region } => (&ECR_LOGIN, region.as_str(), "/authorizationData/0"),
            Ecr::Public => (&ECR_PUBLIC_LOGIN, ECR_PUBLIC_REGION, "/authorizationData"),
        };
        let answer: Value = self.0.call(operation, region, &json!({})).await.map_err(|failed| failed.error)?;
        let data = answer.pointer(place).ok_or_else(unknown)?;
        Authorization::deserialize(data).map_err(|_| unknown())
    }
}

#[async_trait]
impl Cloud for OwnRole {
    async fn log_in(&self, registry: &Ecr) -> Result<IssuedLogin> {
        let Authorization { authorization_token, expires_at } = self.authorization(registry).await?;
        let pair = STANDARD.decode(authorization_token.as_str()).ok().and_then(|pair| String::from_utf8(pair).ok());
        let pair = pair.as_deref().and_then(|pair| pair.split_once(':'));
        let (username, password) =
            pair.ok_or_else(|| StoreError::Corrupt("the login that ECR issued is no user and password".into()))?;
        // The protocol writes times as seconds with a fraction; what is no such number is long past.
        let expires_at = Timestamp(std::time::Duration::try_from_secs_f64(expires_at).unwrap_or_default().as_secs());
        Ok(IssuedLogin { username: username.to_owned(), password: Secret::new(password), expires_at })
    }

    async fn secret(&self, secret: &StoredSecret, version: SecretVersion) -> Result<Option<Secret>> {
        let stage = match version {
            SecretVersion::Current => "AWSCURRENT",
            SecretVersion::Previous => "AWSPREVIOUS",
        };
        let request = json!({ "SecretId": secret.arn, "VersionStage": stage });
        let text = match self.0.call::<SecretValue>(&GET_SECRET, &secret.region, &request).await {
            Ok(value) => value.secret_string,
            // A secret that was never replaced has no previous version.
            Err(failed) if version == SecretVersion::Previous && failed.code == "ResourceNotFoundException" => {
                return Ok(None);
            }
            Err(failed) => return Err(failed.error),
        };
        let value = match &secret.key {
            None => Some(text),
            Some(key) => {
                let json = serde_json::from_str::<Value>(text.as_str()).ok();
                json.and_then(|json| Some(Secret::new(json.get(key)?.as_str()?)))
            }
        };
        match (value.filter(|value| !value.as_str().is_empty()), &secret.key) {
            (Some(value), _) => Ok(Some(value)),
            (None, None) => Err(StoreError::Corrupt("the secret is empty".into())),
            (None, Some(key)) => {
                let sentence = format!("the secret is no JSON object whose key {key:?} is a text");
                Err(StoreError::Corrupt(sentence.into()))
            }
        }
    }

    async fn is_member(&self, account: &str, organization: &str) -> Result<bool> {
        // Each partition has one endpoint.
        let region = match Partition::of(self.0.region()).unwrap_or_default() {
            Partition::Commercial => "us-east-1",
            Partition::China => "cn-northwest-1",
            Partition::Government => "us-gov-west-1",
        };
        let request = json!({ "AccountId": account });
        let described: Value = match self.0.call(&DESCRIBE_ACCOUNT, region, &request).await {
            Ok(described) => described,
            Err(failed) if failed.code == "AccountNotFoundException" => return Ok(false),
            Err(failed) => return Err(failed.error),
        };
        // arn:aws:organizations::<management account>:account/<organisation>/<account>
        let arn = described.pointer("/Account/Arn").and_then(Value::as_str).unwrap_or_default();
        let of = arn.split('/').nth(1);
        if let Some(other) = of.filter(|of| *of != organization) {
            tracing::warn!(organization = other, "access.iam.organization is not the organisation of this account");
        }
        Ok(of == Some(organization))
    }
}
