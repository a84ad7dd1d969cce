//! Who a request is from: anonymous callers, robots, identities of AWS and of `OpenID` issuers, tokens of ours.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use quick_cache::sync::Cache as MemoryCache;
use sha2::{Digest as _, Sha256};
use tokio::sync::Semaphore;
use url::Url;

use super::oidc::Issuers;
use super::policy::Decision;
use super::robot::SecretHash;
use super::sts::Sts;
use super::token::TokenKeys;
use super::web::{Unreachable, Web};
use super::{IAM_USER, OIDC_USER, Principal, RobotName, Source};
use crate::config::AccessConfig;
use crate::oci::Repository;
use crate::ports::{Ledger, StoreError};
use crate::time::{Clock, Timestamp};

/// How many wrong secrets an address may send for one name, and for all names together, before it has to wait.
const FREE_ATTEMPTS: (u32, u32) = (3, 30);
const FIRST_PAUSE: Duration = Duration::from_secs(2);
const LONGEST_PAUSE: Duration = Duration::from_mins(5);
/// How long after a pause wrong secrets are forgotten.
const FORGIVEN: Duration = Duration::from_mins(15);
/// Above this many callers with wrong secrets, those whose pause is over are forgotten.
const MANY_ATTEMPTS: usize = 10_000;
/// How many secrets are compared at once: each takes 19 MiB and a processor.
const COMPARED_AT_ONCE: usize = 2;
/// The most bytes of a robot's secret; ours have 52.
const LONGEST_SECRET: usize = 256;
/// The most bytes of an `Authorization` that is looked at.
const LONGEST_AUTHORIZATION: usize = 16 * 1024;

/// What a request says of who sends it.
#[derive(Clone, Copy, Default)]
pub struct Asking<'a> {
    /// The value of `Authorization`.
    pub authorization: Option<&'a str>,
    /// Where it comes from.
    pub source: Source,
}

/// Why somebody is not let in.
#[derive(Debug, Clone, thiserror::Error)]
pub enum AccessError {
    /// They did not say who they are, and may not be nobody.
    #[error("say who you are: log in to this cache")]
    NoCredentials,
    /// They may not be nobody here, and there is no way to say who they are.
    #[error(
        "this cache answers no callers from your address; [access] in its stopover.toml says whom it answers: \
         `anonymous = [\"<network>\"]`, or logins"
    )]
    NobodyHere,
    /// The user name or the secret is wrong.
    #[error("the user name or the secret is wrong, or has expired")]
    WrongCredentials,
    /// The token is not valid.
    #[error("the token is not valid, or not any more")]
    InvalidToken,
    /// Too many wrong secrets.
    #[error("too many wrong secrets; try again later")]
    TooManyAttempts {
        /// When.
        retry_after: Duration,
    },
    /// Whoever they are, they are not among those who are let in.
    #[error("{0} is not let in; [access] in the stopover.toml of this cache says who is")]
    NotLetIn(String),
    /// Who they are cannot be found out now: whoever knows is in trouble.
    #[error("who you are cannot be found out now: {0}")]
    Unreachable(#[from] Unreachable),
    /// Who they are cannot be found out now.
    #[error(transparent)]
    Store(#[from] StoreError),
}

impl<'a> Asking<'a> {
    fn credentials(&self) -> Result<Credentials<'a>, AccessError> {
        let Some(authorization) = self.authorization else { return Ok(Credentials::None) };
        if authorization.len() > LONGEST_AUTHORIZATION {
            return Err(AccessError::WrongCredentials);
        }
        let (scheme, rest) = authorization.split_once(' ').unwrap_or((authorization, ""));
        if scheme.eq_ignore_ascii_case("bearer") {
            return Ok(Credentials::Token(rest.trim()));
        }
        let basic = Some(rest).filter(|_| scheme.eq_ignore_ascii_case("basic"));
        let pair =
            basic.and_then(|pair| STANDARD.decode(pair.trim()).ok()).and_then(|pair| String::from_utf8(pair).ok());
        let pair = pair.as_deref().and_then(|pair| pair.split_once(':'));
        let (user, secret) = pair.ok_or(AccessError::WrongCredentials)?;
        Ok(Credentials::Secret(user.to_owned(), secret.to_owned()))
    }
}

/// What `Authorization` has (RFC 6750, section 2.1; RFC 7617, section 2).
enum Credentials<'a> {
    None,
    Token(&'a str),
    Secret(String, String),
}

/// The gate of one cache.
pub struct Access {
    config: AccessConfig,
    /// `None`: tokens are not issued, because nobody has to log in.
    keys: Option<TokenKeys>,
    clock: Clock,
    ledger: Arc<dyn Ledger>,
    iam: Option<Sts>,
    issuers: Issuers,
    /// Secrets that were right, by what they were compared with: comparing takes long, on purpose.
    verified: MemoryCache<Verified, ()>,
    comparing: Arc<Semaphore>,
    attempts: Mutex<HashMap<Guesser, Attempts>>,
}

/// An address, and the name that it sends wrong secrets for; without it, all of them.
type Guesser = (Option<String>, Option<IpAddr>);

type Verified = (SecretHash, [u8; 32]);

struct Attempts {
    wrong: u32,
    /// The end of the pause after the last one.
    until: Timestamp,
}

/// Who is to wait after a wrong secret, and how many each of them may send before that.
fn guessers(user: &str, address: Option<IpAddr>) -> [(Guesser, u32); 2] {
    let address = address.map(|address| address.to_canonical());
    let user: String = user.chars().take(64).collect();
    [((Some(user), address), FREE_ATTEMPTS.0), ((None, address), FREE_ATTEMPTS.1)]
}

impl Access {
    /// The gate that a configuration describes.
    pub fn new(
        config: AccessConfig,
        keys: Option<TokenKeys>,
        clock: Clock,
        ledger: Arc<dyn Ledger>,
    ) -> Result<Self, reqwest::Error> {
        let web = Web::new()?;
        let issuers = Issuers::new(&config.oidc, &config.policy, &web, &clock);
        let iam = config.iam.clone().map(|iam| Sts::new(iam, config.service.clone(), web, clock.clone()));
        let (verified, comparing) = (MemoryCache::new(1000), Arc::new(Semaphore::new(COMPARED_AT_ONCE)));
        Ok(Self { config, keys, clock, ledger, iam, issuers, verified, comparing, attempts: Mutex::default() })
    }

    /// What tokens are for.
    pub fn service(&self) -> &str {
        &self.config.service
    }

    /// What clients call this cache, if the configuration says so.
    pub fn url(&self) -> Option<&Url> {
        self.config.url.as_ref()
    }

    /// How long a token is good for.
    pub fn token_life(&self) -> Duration {
        self.config.token_life
    }

    /// Whether there is any way to log in.
    pub fn has_logins(&self) -> bool {
        self.keys.is_some()
    }

    /// Who a request is from. Where nobody can log in, what it says of that is not looked at.
    pub async fn identify(&self, asking: Asking<'_>) -> Result<Principal, AccessError> {
        if !self.has_logins() {
            return self.anonymous(asking.source);
        }
        match asking.credentials()? {
            Credentials::None => self.anonymous(asking.source),
            Credentials::Token(token) => self.bearer(token, asking.source),
            Credentials::Secret(user, secret) => self.log_in(&user, &secret, asking.source).await,
        }
    }

    /// Who asks for a token. A token is not exchanged for a newer one: that would be good for ever.
    pub async fn identify_for_token(&self, asking: Asking<'_>) -> Result<Principal, AccessError> {
        match asking.credentials()? {
            Credentials::Token(_) => Err(AccessError::InvalidToken),
            Credentials::None | Credentials::Secret(..) => self.identify(asking).await,
        }
    }

    fn anonymous(&self, source: Source) -> Result<Principal, AccessError> {
        match self.config.anonymous.admits(source) {
            true => Ok(Principal::Anonymous),
            false if self.has_logins() => Err(AccessError::NoCredentials),
            false => Err(AccessError::NobodyHere),
        }
    }

    fn bearer(&self, token: &str, source: Source) -> Result<Principal, AccessError> {
        let keys = self.keys.as_ref().ok_or(AccessError::InvalidToken)?;
        match keys.verify(self.service(), token).map_err(|_| AccessError::InvalidToken)? {
            // A token of nobody is good where nobody needs one.
            Principal::Anonymous => self.anonymous(source).map_err(|_| AccessError::InvalidToken),
            principal => Ok(principal),
        }
    }

    /// Who has this user name and secret.
    pub async fn log_in(&self, user: &str, secret: &str, source: Source) -> Result<Principal, AccessError> {
        // Clients without credentials send these to a registry that asks for some (containers/image).
        if user.is_empty() && secret.is_empty() {
            return self.anonymous(source);
        }
        match (user, &self.iam) {
            (IAM_USER, Some(sts)) => return sts.identify(secret).await.map(Principal::Iam),
            (OIDC_USER, _) => return self.issuers.identify(secret).await.map(Principal::Oidc),
            _ if !self.config.robots => return Err(AccessError::WrongCredentials),
            _ => {}
        }
        let guessers = guessers(user, source.address);
        self.check_attempts(&guessers)?;
        let name: Option<RobotName> = user.parse().ok();
        if let Some(name) = name.filter(|_| secret.len() <= LONGEST_SECRET)
            && self.is_secret_of(&name, secret).await?
        {
            self.attempts.lock().unwrap_or_else(PoisonError::into_inner).remove(&guessers[0].0);
            return Ok(Principal::Robot(name));
        }
        self.note_wrong(guessers);
        Err(AccessError::WrongCredentials)
    }

    async fn is_secret_of(&self, name: &RobotName, secret: &str) -> Result<bool, StoreError> {
        let robots = self.ledger.robots().await?.map(|robots| robots.value).unwrap_or_default();
        let mut hashes = robots.hashes(name, self.clock.now());
        let seen: [u8; 32] = Sha256::digest(secret).into();
        if hashes.iter().any(|hash| self.verified.get(&(hash.clone(), seen)).is_some()) {
            return Ok(true);
        }
        if hashes.is_empty() {
            hashes.push(SecretHash::of_nobody());
        }
        let secret = secret.to_owned();
        let unavailable = |error: String| StoreError::Unavailable(format!("no secret could be compared: {error}"));
        let place =
            Arc::clone(&self.comparing).acquire_owned().await.map_err(|error| unavailable(error.to_string()))?;
        // Comparing keeps a processor busy for long, and goes on when the client leaves.
        let compared = tokio::task::spawn_blocking(move || {
            let right = hashes.into_iter().find(|hash| hash.is_of(&secret));
            drop(place);
            right
        });
        let right = compared.await.map_err(|error| unavailable(error.to_string()))?;
        if let Some(hash) = &right {
            self.verified.insert((hash.clone(), seen), ());
        }
        Ok(right.is_some())
    }

    fn check_attempts(&self, guessers: &[(Guesser, u32)]) -> Result<(), AccessError> {
        let attempts = self.attempts.lock().unwrap_or_else(PoisonError::into_inner);
        let now = self.clock.now();
        let pauses = guessers.iter().filter_map(|(guesser, _)| attempts.get(guesser));
        match pauses.map(|attempts| attempts.until).max().filter(|until| now < *until) {
            Some(until) => Err(AccessError::TooManyAttempts { retry_after: until.after(now) }),
            None => Ok(()),
        }
    }

    fn note_wrong(&self, guessers: [(Guesser, u32); 2]) {
        let now = self.clock.now();
        let mut attempts = self.attempts.lock().unwrap_or_else(PoisonError::into_inner);
        if attempts.len() >= MANY_ATTEMPTS {
            attempts.retain(|_, attempts| now < attempts.until);
        }
        for (guesser, free) in guessers {
            let known = attempts.entry(guesser).or_insert(Attempts { wrong: 0, until: now });
            if known.until.plus(FORGIVEN) <= now {
                known.wrong = 0;
            }
            known.wrong += 1;
            let pause = known.wrong.checked_sub(free + 1).map(|more| FIRST_PAUSE.saturating_mul(1 << more.min(16)));
            known.until = now.plus(pause.unwrap_or_default().min(LONGEST_PAUSE));
        }
    }

    /// A token for somebody who has logged in.
    pub fn issue(&self, principal: &Principal) -> Option<String> {
        self.keys.as_ref()?.issue(self.service(), principal, self.token_life())
    }

    /// Whether somebody may pull from a repository. `private`: it is asked for with credentials of ours.
    pub fn decide(
        &self,
        principal: &Principal,
        address: Option<IpAddr>,
        repository: &Repository,
        private: bool,
    ) -> Decision<'_> {
        self.config.policy.decide(principal, address, repository, private)
    }
}
