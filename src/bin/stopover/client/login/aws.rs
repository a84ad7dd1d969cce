//! The password of an AWS identity: finds credentials where AWS puts them, and signs one request with them.

use std::env;
use std::time::SystemTime;

use anyhow::{Context as _, bail, ensure};
use ring::hmac;
use serde::Deserialize;
use serde_json::Value;
use stopover::access::iam::SignedFields;
use stopover::identity::partition::sts_host;
use stopover::oci::{Algorithm, Digest, hexadecimal};
use stopover::values::time::Clock;
use url::{Host, Url, form_urlencoded};

/// Where ECS containers get their credentials if only a path is named.
const CONTAINER_HOST: &str = "http://169.254.170.2";
/// The metadata service of instances (`IMDSv2`).
const METADATA: &str = "http://169.254.169.254";

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct AwsCredentials {
    access_key_id: String,
    secret_access_key: String,
    #[serde(alias = "SessionToken")]
    token: Option<String>,
}

/// A password for the cache of that name, valid for a quarter of an hour.
pub(super) async fn password(service: &str) -> anyhow::Result<String> {
    let metadata = Metadata::new(super::metadata_client()?)?;
    let credentials = if let Some(credentials) = from_environment()? {
        credentials
    } else if let Some(credentials) = from_web_identity(&metadata).await? {
        credentials
    } else if let Some(credentials) = from_container(&metadata.http).await? {
        credentials
    } else {
        metadata.credentials().await.context(
            "there are no credentials of AWS: neither in the environment (AWS_ACCESS_KEY_ID …, or AWS_ROLE_ARN and \
             AWS_WEB_IDENTITY_TOKEN_FILE), nor of this container, nor of this instance. Where the AWS CLI has some: \
             eval \"$(aws configure export-credentials --format env)\"",
        )?
    };
    credentials.sign(&region(&metadata).await?, service, Clock::default().system_time()).map(|fields| fields.password())
}

async fn region(metadata: &Metadata) -> anyhow::Result<String> {
    match variable("AWS_REGION").or_else(|| variable("AWS_DEFAULT_REGION")) {
        Some(region) => Ok(region),
        None => metadata.text("placement/region").await.context("the region is not known: set AWS_REGION"),
    }
}

fn variable(name: &str) -> Option<String> {
    env::var(name).ok().filter(|value| !value.is_empty())
}

fn from_environment() -> anyhow::Result<Option<AwsCredentials>> {
    match (variable("AWS_ACCESS_KEY_ID"), variable("AWS_SECRET_ACCESS_KEY")) {
        (Some(access_key_id), Some(secret_access_key)) => {
            Ok(Some(AwsCredentials { access_key_id, secret_access_key, token: variable("AWS_SESSION_TOKEN") }))
        }
        (None, None) => Ok(None),
        _ => bail!("AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY belong together: one of them is not set"),
    }
}

/// Credentials of a role in exchange for a token: service accounts of EKS (AWS SDKs reference, "Assume role credential
/// provider"; STS, `AssumeRoleWithWebIdentity`). The request is not signed: the token is all that it needs.
async fn from_web_identity(metadata: &Metadata) -> anyhow::Result<Option<AwsCredentials>> {
    let Some(file) = variable("AWS_WEB_IDENTITY_TOKEN_FILE") else { return Ok(None) };
    let role = variable("AWS_ROLE_ARN")
        .context("AWS_WEB_IDENTITY_TOKEN_FILE and AWS_ROLE_ARN belong together: one of them is not set")?;
    let token = std::fs::read_to_string(&file).with_context(|| format!("cannot read {file}"))?;
    let endpoint = if let Some(endpoint) = variable("AWS_ENDPOINT_URL_STS") {
        endpoint
    } else {
        let region = region(metadata).await?;
        format!("https://{}/", sts_host(&region).with_context(|| format!("{region:?} is no region of AWS"))?)
    };
    let endpoint = Url::parse(&endpoint).context("AWS_ENDPOINT_URL_STS is no URL")?;
    let session = variable("AWS_ROLE_SESSION_NAME").unwrap_or_else(|| "stopover".to_owned());
    let form = form_urlencoded::Serializer::new(String::new())
        .append_pair("Action", "AssumeRoleWithWebIdentity")
        .append_pair("Version", "2011-06-15")
        .append_pair("RoleArn", &role)
        .append_pair("RoleSessionName", &session)
        .append_pair("WebIdentityToken", token.trim())
        .finish();
    let request = super::issuer_client()?.post(endpoint).header("accept", "application/json").body(form);
    let answer = request.header("content-type", "application/x-www-form-urlencoded").send().await;
    let refused = || format!("STS gives no credentials of {role}");
    let answer = answer.map_err(reqwest::Error::without_url).with_context(refused)?;
    let (status, body) = (answer.status(), answer.text().await.with_context(refused)?);
    // The answer of STS to a refused request names no secret, and is the only hint.
    let told: String = body.chars().take(500).collect();
    ensure!(status.is_success(), "{}: {status} {told}", refused());
    let path = "/AssumeRoleWithWebIdentityResponse/AssumeRoleWithWebIdentityResult/Credentials";
    let assumed = serde_json::from_str(&body)
        .and_then(|answer: Value| serde_json::from_value(answer.pointer(path).cloned().unwrap_or_default()));
    assumed.map(Some).context("the answer of STS has another form")
}

/// Credentials of a container: ECS, `CodeBuild`, EKS Pod Identity (AWS SDKs reference, "Container credential
/// provider").
async fn from_container(http: &reqwest::Client) -> anyhow::Result<Option<AwsCredentials>> {
    let relative = variable("AWS_CONTAINER_CREDENTIALS_RELATIVE_URI").map(|path| format!("{CONTAINER_HOST}{path}"));
    let Some(url) = relative.or_else(|| variable("AWS_CONTAINER_CREDENTIALS_FULL_URI")) else { return Ok(None) };
    let url = Url::parse(&url).context("AWS_CONTAINER_CREDENTIALS_… is no URL")?;
    ensure!(is_of_a_container(&url), "AWS_CONTAINER_CREDENTIALS_… leads to another host than AWS has for containers");
    let token = match variable("AWS_CONTAINER_AUTHORIZATION_TOKEN_FILE") {
        Some(file) => Some(std::fs::read_to_string(&file).with_context(|| format!("cannot read {file}"))?),
        None => variable("AWS_CONTAINER_AUTHORIZATION_TOKEN"),
    };
    let mut request = http.get(url);
    if let Some(token) = token {
        request = request.header("authorization", token.trim());
    }
    let credentials = async { serde_json::from_str(&text(request).await?).context("the answer has another form") };
    credentials.await.map(Some).context("the credentials of this container cannot be had")
}

/// Whether credentials may be fetched from this URL: over TLS, from this machine, or from the addresses of ECS and EKS.
fn is_of_a_container(url: &Url) -> bool {
    let host = match url.host() {
        Some(Host::Ipv4(address)) => {
            address.is_loopback() || ["169.254.170.2", "169.254.170.23"].contains(&url.host_str().unwrap_or_default())
        }
        Some(Host::Ipv6(address)) => address.is_loopback() || url.host_str() == Some("[fd00:ec2::23]"),
        Some(Host::Domain(_)) | None => false,
    };
    url.scheme() == "https" || (url.scheme() == "http" && host)
}

/// The metadata service of an instance (`IMDSv2`). Each request carries a session token, which keeps out callers that
/// can only make the instance forward a request.
struct Metadata {
    http: reqwest::Client,
    endpoint: String,
}

impl Metadata {
    fn new(http: reqwest::Client) -> anyhow::Result<Self> {
        let endpoint = variable("AWS_EC2_METADATA_SERVICE_ENDPOINT").unwrap_or_else(|| METADATA.to_owned());
        Url::parse(&endpoint).context("AWS_EC2_METADATA_SERVICE_ENDPOINT is no URL")?;
        Ok(Self { http, endpoint: endpoint.trim_end_matches('/').to_owned() })
    }

    async fn credentials(&self) -> anyhow::Result<AwsCredentials> {
        let roles = self.text("iam/security-credentials/").await.context("this instance has no role")?;
        let role = roles.lines().next().context("this instance has no role")?;
        Ok(serde_json::from_str(&self.text(&format!("iam/security-credentials/{role}")).await?)?)
    }

    async fn text(&self, what: &str) -> anyhow::Result<String> {
        ensure!(variable("AWS_EC2_METADATA_DISABLED").as_deref() != Some("true"), "AWS_EC2_METADATA_DISABLED is true");
        let token = self.http.put(format!("{}/latest/api/token", self.endpoint));
        let token = text(token.header("x-aws-ec2-metadata-token-ttl-seconds", "60")).await?;
        let request = self.http.get(format!("{}/latest/meta-data/{what}", self.endpoint));
        text(request.header("x-aws-ec2-metadata-token", token)).await
    }
}

async fn text(request: reqwest::RequestBuilder) -> anyhow::Result<String> {
    let answer = request.send().await?.error_for_status()?;
    Ok(answer.text().await?)
}

impl AwsCredentials {
    /// Signs `GetCallerIdentity` for a cache (AWS, "Signature Version 4 for API requests", by query parameters).
    fn sign(&self, region: &str, service: &str, at: SystemTime) -> anyhow::Result<SignedFields> {
        let date = humantime::format_rfc3339_seconds(at).to_string().replace(['-', ':'], "");
        let day = date.get(..8).unwrap_or_default();
        let scope = format!("{day}/{region}/sts/aws4_request");
        let credential = format!("{}/{scope}", self.access_key_id);
        let fields = |signature: &str| {
            SignedFields::new(region, &credential, &date, self.token.as_deref(), signature)
                .context("the credentials or the region of AWS have a form that AWS does not give them")
        };
        let canonical = fields(&"0".repeat(64))?.canonical_request(service).context("that cannot be signed")?;
        let hash = Digest::of(Algorithm::Sha256, canonical.as_bytes());
        let to_sign = format!("AWS4-HMAC-SHA256\n{date}\n{scope}\n{}", hash.hex());
        let mut key = format!("AWS4{}", self.secret_access_key).into_bytes();
        for part in [day, region, "sts", "aws4_request", &to_sign] {
            key = hmac::sign(&hmac::Key::new(hmac::HMAC_SHA256, &key), part.as_bytes()).as_ref().to_vec();
        }
        fields(&hexadecimal(&key))
    }
}
