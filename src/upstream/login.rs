//! How we log in to an upstream.

use std::sync::Arc;
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use http::header::HeaderValue;
use tokio::sync::Mutex;

use super::Result;
use crate::config::{Credentials, Ecr, SecretSource, StoredSecret, UpstreamConfig};
use crate::errors::{StoreError, UpstreamError, chain};
use crate::ports::{Cloud, SecretVersion};
use crate::records::GaugeKey;
use crate::values::refreshing::Refreshing;
use crate::values::secret::Secret;
use crate::values::time::{Clock, Timestamp};

/// How we log in to one upstream.
pub(super) enum UpstreamLogin {
    Anonymous,
    /// With the configured credentials.
    Password(Credentials, Secret),
    /// With the configured user name, and the password that is kept for it.
    Stored(Credentials, StoredPassword),
    /// With credentials that the cloud issues, renewed before they expire.
    Issued(Issued),
}

/// A password in Secrets Manager.
pub(super) struct StoredPassword {
    secret: StoredSecret,
    /// `None`: this process only explains its configuration.
    cloud: Option<Arc<dyn Cloud>>,
    /// `Authorization` with it.
    kept: Refreshing<HeaderValue>,
}

/// Issued credentials for one registry of Amazon.
pub(super) struct Issued {
    registry: Ecr,
    cloud: Arc<dyn Cloud>,
    clock: Clock,
    /// Locked while credentials are issued: further callers wait for those.
    held: Mutex<Option<CachedLogin>>,
    /// Until then none are asked for where none are needed.
    without_until: Mutex<Timestamp>,
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
        issue: impl Future<Output = Result<Self>>,
    ) -> Result<HeaderValue> {
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

/// How long what is shown without a login too is asked for without one, after none was issued.
const WITHOUT: Duration = Duration::from_mins(10);
/// How long that login may take to be issued: a client waits.
const BRIEFLY: Duration = Duration::from_secs(2);
/// How long a password in Secrets Manager is used without reading it again, and while it cannot be read.
const FRESH: Duration = Duration::from_mins(5);
const USABLE: Duration = Duration::from_hours(24);

impl UpstreamLogin {
    /// The configured credentials, else those that are issued for this registry, else none.
    pub(super) fn new(config: &UpstreamConfig, cloud: Option<&Arc<dyn Cloud>>, clock: &Clock) -> Self {
        match (&config.credentials, &config.ecr, cloud.cloned()) {
            (Some(credentials), _, cloud) => match &credentials.password {
                SecretSource::Text(password) => Self::Password(credentials.clone(), password.clone()),
                SecretSource::Stored(secret) => {
                    let kept = Refreshing::new(clock.clone(), FRESH, USABLE);
                    Self::Stored(credentials.clone(), StoredPassword { secret: secret.clone(), cloud, kept })
                }
            },
            (None, Some(registry), Some(cloud)) => Self::Issued(Issued {
                registry: registry.clone(),
                cloud,
                clock: clock.clone(),
                held: Mutex::default(),
                without_until: Mutex::new(Timestamp(0)),
            }),
            (None, ..) => Self::Anonymous,
        }
    }

    /// The name of the account, for operators and for the key of its quota gauge.
    pub(super) fn name(&self) -> &str {
        match self {
            Self::Anonymous => GaugeKey::ANONYMOUS,
            Self::Password(credentials, _) | Self::Stored(credentials, _) => &credentials.username,
            Self::Issued(_) => "AWS",
        }
    }

    /// The configured credentials, if any.
    pub(super) fn credentials(&self) -> Option<&Credentials> {
        match self {
            Self::Password(credentials, _) | Self::Stored(credentials, _) => Some(credentials),
            Self::Anonymous | Self::Issued(_) => None,
        }
    }

    /// Whether upstream shows us no more than it shows to everybody.
    pub(super) fn is_anonymous(&self) -> bool {
        match self {
            Self::Anonymous => true,
            Self::Issued(issued) => issued.registry == Ecr::Public,
            Self::Password(..) | Self::Stored(..) => false,
        }
    }

    /// Whether refused credentials can be replaced.
    pub(super) fn renews(&self) -> bool {
        matches!(self, Self::Stored(..) | Self::Issued(_))
    }

    /// `Authorization` with user name and password (RFC 7617). `refused`: the value that upstream has just answered
    /// with 401.
    pub(super) async fn basic(&self, refused: Option<&HeaderValue>) -> Result<Option<HeaderValue>> {
        match self {
            Self::Anonymous => Ok(None),
            Self::Password(credentials, password) => basic(&credentials.username, password).map(Some),
            Self::Stored(credentials, password) => password.basic(&credentials.username, refused).await.map(Some),
            Self::Issued(issued) if issued.registry == Ecr::Public => Ok(issued.basic_if_issued(refused).await),
            Self::Issued(issued) => issued.basic(refused).await.map(Some),
        }
    }
}

impl StoredPassword {
    async fn basic(&self, username: &str, refused: Option<&HeaderValue>) -> Result<HeaderValue> {
        let read = async {
            let none = |what: &str| StoreError::Refused(what.into());
            let current = match &self.cloud {
                Some(cloud) => cloud.secret(&self.secret, SecretVersion::Current).await,
                None => Err(none("only the functions on AWS read Secrets Manager")),
            };
            let password = current.and_then(|password| password.ok_or_else(|| none("it has no current version")));
            let password = password.map_err(|error| {
                tracing::error!(secret = %self.secret, error = %chain(&error), "the password of an upstream cannot be read");
                // That it is refused is ours, not upstream's: what upstream has shown us still holds.
                let reason = "its password cannot be read (credentials.password_secret); the log of the cache says why";
                UpstreamError::failed(reason)
            })?;
            basic(username, &password)
        };
        self.kept.get(|last| Some(last) == refused, read).await
    }
}

impl Issued {
    async fn basic(&self, refused: Option<&HeaderValue>) -> Result<HeaderValue> {
        CachedLogin::or_renewed(&mut *self.held.lock().await, refused, &self.clock, self.issue()).await
    }

    /// `None`: none was issued, now or lately.
    async fn basic_if_issued(&self, refused: Option<&HeaderValue>) -> Option<HeaderValue> {
        let mut without_until = self.without_until.lock().await;
        if self.clock.now() < *without_until {
            return None;
        }
        let issued = tokio::time::timeout(BRIEFLY, self.basic(refused)).await.ok().and_then(Result::ok);
        if issued.is_none() {
            *without_until = self.clock.now().plus(WITHOUT);
        }
        issued
    }

    async fn issue(&self) -> Result<CachedLogin> {
        let issued = self.cloud.log_in(&self.registry).await.map_err(|error| {
            tracing::warn!(registry = ?self.registry, error = %chain(&error), "AWS issued no login to ECR");
            match error {
                StoreError::Unavailable(_) => UpstreamError::failed("AWS cannot be asked for a login now"),
                StoreError::Refused(_) | StoreError::Corrupt(_) => UpstreamError::Denied(
                    "AWS does not let this cache log in to that registry; its log says why".into(),
                ),
            }
        })?;
        let now = self.clock.now();
        let life = issued.expires_at.after(now);
        let authorization = basic(&issued.username, &issued.password)?;
        tracing::debug!(registry = ?self.registry, life_seconds = life.as_secs(), "logged in to ECR");
        Ok(CachedLogin::new(authorization, now, life))
    }
}

fn basic(username: &str, password: &Secret) -> Result<HeaderValue> {
    let pair = STANDARD.encode(format!("{username}:{}", password.as_str()));
    let mut value = HeaderValue::from_str(&format!("Basic {pair}"))
        .map_err(|_| UpstreamError::Denied("the configured credentials fit no header".into()))?;
    value.set_sensitive(true);
    Ok(value)
}
