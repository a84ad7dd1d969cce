//! Logins to private ECR registries.

use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};

use async_trait::async_trait;
use aws_config::{Region, SdkConfig};
use aws_sdk_ecr::Client;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use stopover::config::Credentials;
use stopover::errors::{StoreError, UpstreamError, chain};
use stopover::upstream::{Issued, Issuer};
use stopover::values::secret::Secret;
use stopover::values::time::Timestamp;

use crate::failure::store_error;
use crate::short_calls;

/// Logins with the function's own role: it needs `ecr:GetAuthorizationToken`, and permission to pull from the
/// repositories.
#[derive(Debug)]
pub struct EcrLogins {
    aws: SdkConfig,
    /// A registry takes the tokens of its own region.
    clients: Mutex<HashMap<String, Client>>,
}

impl EcrLogins {
    /// Logins with these AWS credentials, whatever the region of the configuration.
    pub fn new(aws: SdkConfig) -> Self {
        Self { aws, clients: Mutex::default() }
    }

    fn client(&self, region: &str) -> Client {
        let mut clients = self.clients.lock().unwrap_or_else(PoisonError::into_inner);
        let connect = || {
            let config = aws_sdk_ecr::config::Builder::from(&self.aws);
            Client::from_conf(config.region(Region::new(region.to_owned())).timeout_config(short_calls()).build())
        };
        clients.entry(region.to_owned()).or_insert_with(connect).clone()
    }
}

#[async_trait]
impl Issuer for EcrLogins {
    async fn ecr(&self, region: &str) -> Result<Issued, UpstreamError> {
        let answer = self.client(region).get_authorization_token().send().await;
        let answer = answer.map_err(|error| {
            let error = store_error("ecr:GetAuthorizationToken", error);
            // The AWS error names roles and accounts, which are not for clients.
            tracing::warn!(region, error = %chain(&error), "AWS issued no login to private ECR");
            match error {
                StoreError::Unavailable(_) => {
                    let reason = "AWS cannot be asked for a login now".into();
                    UpstreamError::Unavailable { silent: false, reason }
                }
                StoreError::Refused(_) | StoreError::Corrupt(_) => UpstreamError::Denied(
                    "AWS does not let this cache log in to that registry; its log says why".into(),
                ),
            }
        })?;
        let issued = answer.authorization_data().first().and_then(|data| {
            let pair = STANDARD.decode(data.authorization_token()?).ok()?;
            let (username, password) = std::str::from_utf8(&pair).ok()?.split_once(':')?;
            let credentials = Credentials { username: username.to_owned(), password: Secret::new(password) };
            let expires_at = Timestamp(u64::try_from(data.expires_at()?.secs()).ok()?);
            Some(Issued { credentials, expires_at })
        });
        issued.ok_or_else(|| {
            UpstreamError::Invalid("ecr:GetAuthorizationToken answered with no user and password".into())
        })
    }
}
