//! Identifies the caller of a request: anonymous, a robot, an AWS identity, an `OpenID` identity, or the holder of one
//! of our tokens.

use std::sync::Arc;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;

use super::keys::Keys;
use super::oidc::Issuers;
use super::organization::Members;
use super::robots::RobotLogins;
use super::sts::Sts;
use super::token::Holder;
use super::web::Web;
use crate::config::AccessConfig;
use crate::errors::AccessError;
use crate::identity::{IAM_USER, OIDC_USER, Peer, Principal, RobotName};
use crate::ports::{Cloud, Ledger};
use crate::values::time::Clock;

/// The longest `Authorization` that is parsed, in bytes.
const LONGEST_AUTHORIZATION: usize = 16 * 1024;

/// What a request says about its caller.
#[derive(Clone, Copy, Default)]
pub(crate) struct Asking<'a> {
    /// The value of `Authorization`.
    pub(crate) authorization: Option<&'a str>,
    /// The peer that sent the request.
    pub(crate) source: Peer,
}

/// The identity that a caller claims, not yet verified. It is parsed, so it is safe to log.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) enum ClaimedIdentity {
    /// A robot of this name.
    Robot(RobotName),
    /// An AWS identity.
    Iam,
    /// An identity of an `OpenID` Connect issuer.
    Oidc,
}

impl ClaimedIdentity {
    /// The identity that a user name claims. `None`: it can name no identity, whatever the configuration says.
    pub(crate) fn of(user: &str) -> Option<Self> {
        match user {
            IAM_USER => Some(Self::Iam),
            OIDC_USER => Some(Self::Oidc),
            _ => user.parse().ok().map(Self::Robot),
        }
    }
}

impl std::fmt::Display for ClaimedIdentity {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Robot(name) => write!(formatter, "robot:{name}"),
            Self::Iam => formatter.write_str(IAM_USER),
            Self::Oidc => formatter.write_str(OIDC_USER),
        }
    }
}

impl<'a> Asking<'a> {
    /// The identity that the user name in `Authorization` claims.
    pub(crate) fn login(&self) -> Option<ClaimedIdentity> {
        match self.credentials().ok()? {
            PresentedCredentials::Secret(user, _) => ClaimedIdentity::of(&user),
            PresentedCredentials::None | PresentedCredentials::Token(_) => None,
        }
    }

    /// The refresh token of a robot that logs in: its own name and secret, as `Authorization` encodes them. It
    /// therefore ends when the secret does, and does not depend on the keys that sign tokens. Other callers get none,
    /// because their credentials are valid for minutes only.
    pub(crate) fn refresh_token(&self) -> Option<&'a str> {
        let Some(ClaimedIdentity::Robot(_)) = self.login() else { return None };
        self.authorization?.split_once(' ').map(|(_, pair)| pair.trim())
    }

    fn credentials(&self) -> Result<PresentedCredentials<'a>, AccessError> {
        let Some(authorization) = self.authorization else { return Ok(PresentedCredentials::None) };
        if authorization.len() > LONGEST_AUTHORIZATION {
            return Err(AccessError::WrongCredentials("Authorization is too long"));
        }
        let (scheme, rest) = authorization.split_once(' ').unwrap_or((authorization, ""));
        if scheme.eq_ignore_ascii_case("bearer") {
            // What Homebrew sends where it has no token.
            if rest.trim() == "QQ==" {
                return Ok(PresentedCredentials::None);
            }
            return Ok(PresentedCredentials::Token(rest.trim()));
        }
        let basic = Some(rest).filter(|_| scheme.eq_ignore_ascii_case("basic"));
        let pair =
            basic.and_then(|pair| STANDARD.decode(pair.trim()).ok()).and_then(|pair| String::from_utf8(pair).ok());
        let pair = pair.as_deref().and_then(|pair| pair.split_once(':'));
        let (user, secret) = pair.ok_or(AccessError::WrongCredentials("Authorization is neither Bearer nor Basic"))?;
        Ok(PresentedCredentials::Secret(user.to_owned(), secret.to_owned()))
    }
}

/// The credentials in `Authorization` (RFC 6750, section 2.1; RFC 7617, section 2).
enum PresentedCredentials<'a> {
    None,
    Token(&'a str),
    Secret(String, String),
}

/// The authentication of one cache.
pub(crate) struct Access {
    pub(crate) config: AccessConfig,
    /// `None`: no login is configured, so no tokens are issued.
    keys: Option<Keys>,
    robots: RobotLogins,
    iam: Option<Sts>,
    issuers: Issuers,
}

impl Access {
    /// Builds the authentication that a configuration describes.
    pub(crate) fn new(
        config: AccessConfig,
        keys: Option<Keys>,
        clock: Clock,
        ledger: Arc<dyn Ledger>,
        cloud: Option<Arc<dyn Cloud>>,
    ) -> Self {
        let web = Web::default();
        let issuers = Issuers::new(&config.oidc, &config.policy, &web, &clock);
        let iam = config.iam.clone().map(|iam| {
            let id = iam.organization.clone();
            let members = id.zip(cloud).map(|(id, cloud)| Members::new(id, cloud, clock.clone()));
            Sts::new(iam, members, config.service.clone(), web, clock.clone())
        });
        Self { config, keys, robots: RobotLogins::new(clock, ledger), iam, issuers }
    }

    /// Whether any login is configured.
    pub(crate) fn has_logins(&self) -> bool {
        self.keys.is_some()
    }

    /// Whether robots may log in.
    pub(crate) fn lets_robots_in(&self) -> bool {
        self.config.robots
    }

    /// The caller of a request. Without a configured login `Authorization` is ignored.
    pub(crate) async fn identify(&self, asking: Asking<'_>) -> Result<Holder, AccessError> {
        if !self.has_logins() {
            return self.anonymous(asking.source);
        }
        match asking.credentials()? {
            PresentedCredentials::None => self.anonymous(asking.source),
            PresentedCredentials::Token(token) => self.bearer(token, asking.source).await,
            PresentedCredentials::Secret(user, secret) => self.log_in(&user, &secret, asking.source).await,
        }
    }

    /// The caller that asks for a token. A token is not exchanged for a newer one: it would never end.
    pub(crate) async fn identify_for_token(&self, asking: Asking<'_>) -> Result<Holder, AccessError> {
        match asking.credentials()? {
            PresentedCredentials::Token(_) => Err(AccessError::InvalidToken),
            PresentedCredentials::None | PresentedCredentials::Secret(..) => self.identify(asking).await,
        }
    }

    fn anonymous(&self, source: Peer) -> Result<Holder, AccessError> {
        match self.config.anonymous.admits(source) {
            true => Ok(Principal::Anonymous.into()),
            false if self.has_logins() => Err(AccessError::NoCredentials),
            false => Err(AccessError::NobodyHere),
        }
    }

    /// The holder of a token, if a login with the same identity would still be accepted.
    async fn bearer(&self, token: &str, source: Peer) -> Result<Holder, AccessError> {
        let keys = self.keys.as_ref().ok_or(AccessError::InvalidToken)?;
        let verified = keys.verify(&self.config.service, token).await?;
        let (holder, issued_at) = verified.ok_or(AccessError::InvalidToken)?;
        let let_in = match (&holder.principal, holder.secret) {
            // An anonymous token is good only where anonymous access is allowed.
            (principal, _) if self.config.not_let_in(principal, source).is_some() => false,
            (Principal::Robot(name), Some(secret)) => self.robots.is_let_in(name, secret, issued_at).await?,
            (Principal::Robot(_), None) => false,
            (Principal::Anonymous | Principal::Iam(_) | Principal::Oidc(_), _) => true,
        };
        if let_in { Ok(holder) } else { Err(AccessError::InvalidToken) }
    }

    /// The identity of a user name and secret.
    async fn log_in(&self, user: &str, secret: &str, source: Peer) -> Result<Holder, AccessError> {
        // Clients without credentials send empty ones to a registry that asks for some (containers/image).
        if user.is_empty() && secret.is_empty() {
            return self.anonymous(source);
        }
        match (user, &self.iam) {
            (IAM_USER, Some(sts)) => Ok(Principal::Iam(sts.identify(secret, source.address).await?).into()),
            (OIDC_USER, _) => Ok(Principal::Oidc(self.issuers.identify(secret).await?).into()),
            _ if self.config.robots => {
                let (name, secret) = self.robots.log_in(user, secret, source.address).await?;
                Ok(Holder { principal: Principal::Robot(name), secret: Some(secret) })
            }
            _ => Err(AccessError::WrongCredentials("access.robots is not true")),
        }
    }

    /// Issues a token to a caller that has logged in. `None`: there are no tokens here.
    pub(crate) async fn issue(&self, holder: &Holder) -> Result<Option<String>, AccessError> {
        let Some(keys) = &self.keys else { return Ok(None) };
        Ok(keys.issue(&self.config.service, holder, self.config.token_life).await?)
    }
}
