//! What the environment of a function tells the SDK. Lambda sets the region and the credentials of the function's role.

use std::env;

use aws_credential_types::Credentials;
use aws_credential_types::provider::SharedCredentialsProvider;
use aws_sdk_s3::config::{BehaviorVersion, Region};
use aws_smithy_http_client::tls::rustls_provider::CryptoMode;
use aws_smithy_http_client::tls::{Provider, TlsContext, TrustStore};
use aws_types::SdkConfig;
use aws_types::service_config::{LoadServiceConfig, ServiceConfigKey};

/// The authorities that AWS's services are certified by. Reading those of a whole system takes longer than all else that a
/// function does as it starts.
const AMAZON: &str = include_str!("amazon-roots.pem");

/// Where services are, if not at their public hosts.
#[derive(Debug)]
struct Endpoints;

/// In place of `aws-config`, whose other sources (profiles, roles to assume, metadata of machines) no function has: its
/// code would be loaded at each start.
///
/// # Errors
///
/// If TLS cannot be had.
pub(crate) fn sdk_config() -> anyhow::Result<SdkConfig> {
    let config = SdkConfig::builder().behavior_version(BehaviorVersion::latest());
    let https = aws_smithy_http_client::Builder::new().tls_provider(Provider::Rustls(CryptoMode::Ring));
    let https = https.tls_context(TlsContext::builder().with_trust_store(trusted()).build()?).build_https();
    let mut config =
        config.region(variable("AWS_REGION").map(Region::new)).service_config(Endpoints).http_client(https);
    config.set_endpoint_url(variable("AWS_ENDPOINT_URL")).set_credentials_provider(credentials());
    Ok(config.build())
}

/// Amazon's authorities; where the environment names a file or a directory of certificates, as OpenSSL reads it, those.
fn trusted() -> TrustStore {
    if ["SSL_CERT_FILE", "SSL_CERT_DIR"].into_iter().any(|name| variable(name).is_some()) {
        return TrustStore::default();
    }
    TrustStore::empty().with_pem_certificate(AMAZON)
}

fn credentials() -> Option<SharedCredentialsProvider> {
    let (id, secret) = (variable("AWS_ACCESS_KEY_ID")?, variable("AWS_SECRET_ACCESS_KEY")?);
    let credentials = Credentials::new(id, secret, variable("AWS_SESSION_TOKEN"), None, "environment");
    Some(SharedCredentialsProvider::new(credentials))
}

impl LoadServiceConfig for Endpoints {
    /// `AWS_ENDPOINT_URL_<SERVICE>`, as the SDKs and tools of AWS have it ("Service-specific endpoints").
    fn load_config(&self, key: ServiceConfigKey<'_>) -> Option<String> {
        variable(&format!("{}_{}", key.env(), key.service_id().replace(' ', "_").to_uppercase()))
    }
}

fn variable(name: &str) -> Option<String> {
    env::var(name).ok().filter(|value| !value.is_empty())
}
