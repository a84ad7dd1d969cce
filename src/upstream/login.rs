//! How we log in to an upstream.

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use http::header::HeaderValue;
use tokio::sync::Mutex;

use crate::config::{Credentials, UpstreamConfig};
use crate::errors::UpstreamError;
use crate::records::GaugeKey;
use crate::values::time::{Clock, Timestamp};

/// Issues credentials that are valid for hours only.
#[async_trait]
pub trait Issuer: Send + Sync {
    /// Credentials for the private ECR registries of a region (ECR API, `GetAuthorizationToken`).
    /// [`UpstreamError::Denied`] if AWS refuses, [`UpstreamError::Unavailable`] if it does not answer.
    async fn ecr(&self, region: &str) -> Result<Issued, UpstreamError>;
}

/// Credentials that expire.
#[derive(Clone, Debug)]
pub struct Issued {
    /// User name and password.
    pub credentials: Credentials,
    /// When they expire.
    pub expires_at: Timestamp,
}

/// How we log in to one upstream.
pub(super) enum UpstreamLogin {
    Anonymous,
    /// With the configured credentials.
    Password(Credentials),
    /// With credentials that the cloud issues, renewed before they expire.
    Issued(IssuedLogin),
}

/// Issued credentials of one region.
pub(super) struct IssuedLogin {
    region: String,
    issuer: Arc<dyn Issuer>,
    clock: Clock,
    /// Locked while credentials are issued: further callers wait for those.
    held: Mutex<Option<CachedLogin>>,
}

/// A cached `Authorization`. It is renewed after 0.9 of its life; if that fails, it is used until it expires.
pub(super) struct CachedLogin {
    authorization: HeaderValue,
    renew_at: Timestamp,
    ends_at: Timestamp,
}

/// The pause after a failed renewal, in which the old value is used.
const RENEW_AGAIN: Duration = Duration::from_secs(10);

impl CachedLogin {
    pub(super) fn new(authorization: HeaderValue, now: Timestamp, life: Duration) -> Self {
        Self { authorization, renew_at: now.plus(life * 9 / 10), ends_at: now.plus(life) }
    }

    pub(super) fn has_ended(&self, now: Timestamp) -> bool {
        self.ends_at <= now
    }

    /// The cached value, or a new one if it is due for renewal or upstream has `refused` it.
    pub(super) async fn or_renewed(
        held: &mut Option<Self>,
        refused: Option<&HeaderValue>,
        clock: &Clock,
        issue: impl Future<Output = Result<Self, UpstreamError>>,
    ) -> Result<HeaderValue, UpstreamError> {
        held.take_if(|held| Some(&held.authorization) == refused || held.has_ended(clock.now()));
        if let Some(held) = &*held
            && clock.now() < held.renew_at
        {
            return Ok(held.authorization.clone());
        }
        match (issue.await, held.as_mut()) {
            (Ok(issued), _) => Ok(held.insert(issued).authorization.clone()),
            (Err(error), Some(held)) if error.is_trouble() && !held.has_ended(clock.now()) => {
                tracing::warn!(%error, "there is no new login or token: using the old one to its end");
                held.renew_at = clock.now().plus(RENEW_AGAIN);
                Ok(held.authorization.clone())
            }
            (Err(error), _) => {
                *held = None;
                Err(error)
            }
        }
    }
}

impl UpstreamLogin {
    /// The configured credentials, else those that are issued for this registry, else none.
    pub(super) fn new(config: &UpstreamConfig, issuer: Option<&Arc<dyn Issuer>>, clock: &Clock) -> Self {
        match (&config.credentials, &config.ecr_region, issuer) {
            (Some(credentials), ..) => Self::Password(credentials.clone()),
            (None, Some(region), Some(issuer)) => Self::Issued(IssuedLogin {
                region: region.clone(),
                issuer: Arc::clone(issuer),
                clock: clock.clone(),
                held: Mutex::default(),
            }),
            _ => Self::Anonymous,
        }
    }

    /// The name of the account, for operators and for the key of its quota gauge.
    pub(super) fn name(&self) -> &str {
        match self {
            Self::Anonymous => GaugeKey::ANONYMOUS,
            Self::Password(credentials) => &credentials.username,
            Self::Issued(_) => "AWS",
        }
    }

    /// The configured credentials, if any.
    pub(super) fn credentials(&self) -> Option<&Credentials> {
        match self {
            Self::Password(credentials) => Some(credentials),
            Self::Anonymous | Self::Issued(_) => None,
        }
    }

    pub(super) fn is_anonymous(&self) -> bool {
        matches!(self, Self::Anonymous)
    }

    /// Whether refused credentials can be replaced.
    pub(super) fn renews(&self) -> bool {
        matches!(self, Self::Issued(_))
    }

    /// `Authorization` with user name and password (RFC 7617). `refused`: the value that upstream has just answered
    /// with 401.
    pub(super) async fn basic(&self, refused: Option<&HeaderValue>) -> Result<Option<HeaderValue>, UpstreamError> {
        match self {
            Self::Anonymous => Ok(None),
            Self::Password(credentials) => basic(credentials).map(Some),
            Self::Issued(login) => login.basic(refused).await.map(Some),
        }
    }
}

impl IssuedLogin {
    async fn basic(&self, refused: Option<&HeaderValue>) -> Result<HeaderValue, UpstreamError> {
        CachedLogin::or_renewed(&mut *self.held.lock().await, refused, &self.clock, self.issue()).await
    }

    async fn issue(&self) -> Result<CachedLogin, UpstreamError> {
        let issued = self.issuer.ecr(&self.region).await?;
        let now = self.clock.now();
        let life = issued.expires_at.after(now);
        let authorization = basic(&issued.credentials)?;
        tracing::debug!(region = self.region, life_seconds = life.as_secs(), "logged in to private ECR");
        Ok(CachedLogin::new(authorization, now, life))
    }
}

fn basic(credentials: &Credentials) -> Result<HeaderValue, UpstreamError> {
    let pair = STANDARD.encode(format!("{}:{}", credentials.username, credentials.password.as_str()));
    let mut value = HeaderValue::from_str(&format!("Basic {pair}"))
        .map_err(|_| UpstreamError::Denied("the configured credentials fit no header".into()))?;
    value.set_sensitive(true);
    Ok(value)
}
