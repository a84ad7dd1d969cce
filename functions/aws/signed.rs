//! Calls of services that need no client of their own: a signed request of the AWS JSON 1.1 protocol, and its answer.

use std::error::Error;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use aws_credential_types::provider::ProvideCredentials as _;
use aws_sigv4::http_request::{SignableBody, SignableRequest, SigningSettings, sign};
use aws_sigv4::sign::v4::SigningParams;
use aws_types::SdkConfig;
use aws_types::service_config::ServiceConfigKey;
use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::Value;
use stopover::errors::{Failure, StoreError};
use stopover::identity::partition::Partition;
use stopover::values::crypto::http_client;
use stopover::values::time::Clock;

use crate::SHORT_CALLS;

type Source = Box<dyn Error + Send + Sync>;

/// The pause before the second and last attempt.
const PAUSE: Duration = Duration::from_millis(200);

/// An operation of a service.
#[derive(Debug)]
pub(crate) struct Operation {
    /// What IAM asks for, the operation itself first; the part before the colon is the name that requests are signed
    /// for. `tests/template.rs` compares these with the template.
    pub(crate) actions: &'static [&'static str],
    /// `X-Amz-Target`.
    pub(crate) target: &'static str,
    /// The name of the service in `AWS_ENDPOINT_URL_<NAME>`, as the SDKs have it.
    pub(crate) service: &'static str,
    /// What its host begins with; the region follows.
    pub(crate) host: &'static str,
}

/// Why a call brought nothing.
#[derive(Debug)]
pub(crate) struct CallError {
    /// The code of the service. Empty: it did not answer, or not like itself.
    pub(crate) code: String,
    /// What it means to the core.
    pub(crate) error: StoreError,
}

/// Signs with the credentials of the functions.
#[derive(Clone, Debug)]
pub(crate) struct SignedCalls {
    aws: SdkConfig,
    /// Made with the first call: most instances make none.
    http: Arc<OnceLock<reqwest::Client>>,
}

/// An answer other than 200. Services spell the second field in both ways.
#[derive(Deserialize, Default)]
struct Refusal {
    #[serde(rename = "__type", default)]
    kind: String,
    #[serde(alias = "Message", default)]
    message: String,
}

impl SignedCalls {
    pub(crate) fn new(aws: SdkConfig) -> Self {
        Self { aws, http: Arc::default() }
    }

    /// The region of the functions.
    pub(crate) fn region(&self) -> &str {
        self.aws.region().map_or("us-east-1", |region| region.as_ref())
    }

    /// Calls the service in a region. What may pass (throttling, 5xx, no answer) is tried once more.
    pub(crate) async fn call<T: DeserializeOwned>(
        &self,
        operation: &Operation,
        region: &str,
        request: &Value,
    ) -> Result<T, CallError> {
        let [of_attempt, in_all] = SHORT_CALLS;
        let late = || Err(operation.unanswered("it took too long", None));
        let attempt = async || {
            let answered = tokio::time::timeout(of_attempt, self.attempt(operation, region, request)).await;
            answered.unwrap_or_else(|_| late())
        };
        let asked = async {
            match attempt().await {
                Err(CallError { error: StoreError::Unavailable(_), .. }) => {
                    tokio::time::sleep(PAUSE).await;
                    attempt().await
                }
                answered => answered,
            }
        };
        tokio::time::timeout(in_all, asked).await.unwrap_or_else(|_| late())
    }

    async fn attempt<T: DeserializeOwned>(
        &self,
        operation: &Operation,
        region: &str,
        request: &Value,
    ) -> Result<T, CallError> {
        let request = self.sign(operation, region, request.to_string()).await?;
        let unanswered = |error: reqwest::Error| operation.unanswered("no answer", Some(error.without_url().into()));
        let answer = self.client(operation)?.execute(request).await.map_err(unanswered)?;
        let status = answer.status();
        let body = answer.bytes().await.map_err(unanswered)?;
        if status.is_success() {
            // What serde says may repeat what it has read, which may be a secret.
            let text = operation.told("the answer has not the fields that it should have");
            return serde_json::from_slice(&body)
                .map_err(|_| CallError::without_code(StoreError::Corrupt(text.into())));
        }
        let refusal: Refusal = serde_json::from_slice(&body).unwrap_or_default();
        // com.amazonaws.service#Code, or the code alone.
        let code = refusal.kind.rsplit('#').next().unwrap_or_default().to_owned();
        let text = operation.told(&format!("{} {code}: {}", status.as_u16(), refusal.message)).into();
        let passes = status.is_server_error() || ["Throttl", "TooMany", "Limit"].iter().any(|word| code.contains(word));
        Err(CallError { code, error: if passes { StoreError::Unavailable(text) } else { StoreError::Refused(text) } })
    }

    fn client(&self, operation: &Operation) -> Result<&reqwest::Client, CallError> {
        if let Some(client) = self.http.get() {
            return Ok(client);
        }
        let client = http_client().redirect(reqwest::redirect::Policy::none()).build();
        let client = client.map_err(|error| operation.refused("no HTTP client", error))?;
        Ok(self.http.get_or_init(|| client))
    }

    async fn sign(&self, operation: &Operation, region: &str, body: String) -> Result<reqwest::Request, CallError> {
        let url = self.endpoint(operation, region);
        let request = http::Request::post(&url)
            .header("content-type", "application/x-amz-json-1.1")
            .header("x-amz-target", operation.target)
            .body(body);
        let mut request = request.map_err(|error| operation.refused("the request", error))?;
        let provider = self.aws.credentials_provider();
        let provider = provider.ok_or_else(|| operation.refused("credentials", "there are none"))?;
        let credentials = provider.provide_credentials().await;
        let identity = credentials.map_err(|error| operation.unanswered("credentials", Some(error.into())))?.into();
        let parameters = SigningParams::builder()
            .identity(&identity)
            .region(region)
            .name(operation.signing_name())
            .time(Clock::default().system_time())
            .settings(SigningSettings::default())
            .build()
            .map_err(|error| operation.refused("the signature", error))?;
        let headers = request.headers().iter().filter_map(|(name, value)| Some((name.as_str(), value.to_str().ok()?)));
        let signable =
            SignableRequest::new("POST", url.as_str(), headers, SignableBody::Bytes(request.body().as_bytes()));
        let signed = signable.and_then(|signable| sign(signable, &parameters.into()));
        let (instructions, _) = signed.map_err(|error| operation.refused("the signature", error))?.into_parts();
        instructions.apply_to_request_http1x(&mut request);
        request.try_into().map_err(|error| operation.refused("the request", error))
    }

    /// As the SDKs find it: `AWS_ENDPOINT_URL_<SERVICE>`, then `AWS_ENDPOINT_URL`, then the public host of the region.
    fn endpoint(&self, operation: &Operation, region: &str) -> String {
        let key = ServiceConfigKey::builder().service_id(operation.service);
        let key = key.env("AWS_ENDPOINT_URL").profile("endpoint_url").build().ok();
        let named = key.and_then(|key| self.aws.service_config()?.load_config(key));
        let named = named.or_else(|| self.aws.endpoint_url().map(str::to_owned)).filter(|url| !url.is_empty());
        named.unwrap_or_else(|| {
            let end = Partition::of(region).unwrap_or_default().host_end();
            format!("https://{}.{region}.{end}/", operation.host)
        })
    }
}

impl Operation {
    fn signing_name(&self) -> &'static str {
        self.actions.first().and_then(|action| action.split(':').next()).unwrap_or_default()
    }

    fn told(&self, what: &str) -> String {
        format!("{}: {what}", self.actions.first().unwrap_or(&self.target))
    }

    fn unanswered(&self, what: &str, source: Option<Source>) -> CallError {
        let what = self.told(what);
        CallError::without_code(StoreError::Unavailable(match source {
            Some(source) => Failure::because(what, source),
            None => what.into(),
        }))
    }

    fn refused(&self, what: &str, source: impl Into<Source>) -> CallError {
        CallError::without_code(StoreError::Refused(Failure::because(self.told(what), source)))
    }
}

impl CallError {
    fn without_code(error: StoreError) -> Self {
        Self { code: String::new(), error }
    }
}
