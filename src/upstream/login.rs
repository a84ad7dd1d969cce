//! How we log in at an upstream.

use std::sync::Arc;

use async_trait::async_trait;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use http::header::HeaderValue;
use tokio::sync::Mutex;

use super::UpstreamError;
use crate::config::{Credentials, UpstreamConfig};
use crate::time::{Clock, Timestamp};

/// Issues credentials that live for hours only.
#[async_trait]
pub trait Issuer: Send + Sync {
    /// Credentials for the private ECR registries of a region (ECR API, `GetAuthorizationToken`). Refused is
    /// [`UpstreamError::Denied`], for now not to be had [`UpstreamError::Unavailable`].
    async fn ecr(&self, region: &str) -> Result<Issued, UpstreamError>;
}

/// Credentials with an end.
#[derive(Clone, Debug)]
pub struct Issued {
    /// The credentials.
    pub credentials: Credentials,
    /// When they end.
    pub expires_at: Timestamp,
}

/// How we log in at one upstream.
pub(super) enum Login {
    Anonymous,
    /// As the configuration says.
    Password(Credentials),
    /// As the cloud says, for as long as it says.
    Issued(Lease),
}

/// Issued credentials, until 0.9 of their life has passed.
pub(super) struct Lease {
    region: String,
    issuer: Arc<dyn Issuer>,
    clock: Clock,
    /// Whoever comes while credentials are issued waits for those.
    held: Mutex<Option<Held>>,
}

struct Held {
    authorization: HeaderValue,
    renew_at: Timestamp,
}

impl Login {
    /// Configured credentials, else those that are issued for this registry, else none.
    pub(super) fn new(config: &UpstreamConfig, issuer: Option<&Arc<dyn Issuer>>, clock: &Clock) -> Self {
        match (&config.credentials, &config.ecr_region, issuer) {
            (Some(credentials), ..) => Self::Password(credentials.clone()),
            (None, Some(region), Some(issuer)) => Self::Issued(Lease {
                region: region.clone(),
                issuer: Arc::clone(issuer),
                clock: clock.clone(),
                held: Mutex::default(),
            }),
            _ => Self::Anonymous,
        }
    }

    /// The name of the account, for people and for the gauge of its quota.
    pub(super) fn name(&self) -> &str {
        match self {
            Self::Anonymous => "anonymous",
            Self::Password(credentials) => &credentials.username,
            Self::Issued(_) => "AWS",
        }
    }

    /// The credentials that are configured.
    pub(super) fn credentials(&self) -> Option<&Credentials> {
        match self {
            Self::Password(credentials) => Some(credentials),
            Self::Anonymous | Self::Issued(_) => None,
        }
    }

    pub(super) fn is_anonymous(&self) -> bool {
        matches!(self, Self::Anonymous)
    }

    /// Whether what was refused can be replaced.
    pub(super) fn renews(&self) -> bool {
        matches!(self, Self::Issued(_))
    }

    /// User name and password as `Authorization` has them (RFC 7617). `refused`: what upstream has just answered with 401.
    pub(super) async fn basic(&self, refused: Option<&HeaderValue>) -> Result<Option<HeaderValue>, UpstreamError> {
        match self {
            Self::Anonymous => Ok(None),
            Self::Password(credentials) => basic(credentials).map(Some),
            Self::Issued(lease) => lease.basic(refused).await.map(Some),
        }
    }
}

impl Lease {
    async fn basic(&self, refused: Option<&HeaderValue>) -> Result<HeaderValue, UpstreamError> {
        let mut held = self.held.lock().await;
        match &*held {
            Some(held) if self.clock.now() < held.renew_at && Some(&held.authorization) != refused => {
                return Ok(held.authorization.clone());
            }
            _ => {}
        }
        *held = None;
        let issued = self.issuer.ecr(&self.region).await?;
        let now = self.clock.now();
        let life = issued.expires_at.after(now);
        let authorization = basic(&issued.credentials)?;
        tracing::debug!(region = self.region, life_seconds = life.as_secs(), "logged in to private ECR");
        Ok(held.insert(Held { authorization, renew_at: now.plus(life.mul_f64(0.9)) }).authorization.clone())
    }
}

fn basic(credentials: &Credentials) -> Result<HeaderValue, UpstreamError> {
    let pair = STANDARD.encode(format!("{}:{}", credentials.username, credentials.password));
    let mut value = HeaderValue::from_str(&format!("Basic {pair}"))
        .map_err(|_| UpstreamError::Denied("the configured credentials fit no header".into()))?;
    value.set_sensitive(true);
    Ok(value)
}
