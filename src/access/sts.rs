//! Who has signed: STS is asked, with a request of our own making.

use std::time::Duration;

use http::StatusCode;
use http::header::{ACCEPT, HOST};
use quick_cache::sync::Cache as MemoryCache;
use serde::Deserialize;
use sha2::{Digest as _, Sha256};

use super::iam::{SERVER_ID_HEADER, SIGNATURE_SECONDS, SignedFields};
use super::web::{Unreachable, Web};
use super::{AccessError, IamIdentity, Principal};
use crate::config::IamConfig;
use crate::time::{Clock, Timestamp};

/// How far the clock of a signer may be ahead of ours.
const AHEAD: Duration = Duration::from_mins(1);
/// How long STS is not asked again about one signature, if that is good for so long: what a revoked session still has.
const KNOWN: Duration = Duration::from_mins(10);

/// The way in for identities of AWS.
pub(super) struct Sts {
    config: IamConfig,
    /// What must have been signed as our name.
    service: String,
    web: Web,
    clock: Clock,
    /// Who has signed, by SHA-256 of the password, and until when that is not asked again.
    known: MemoryCache<[u8; 32], (IamIdentity, Timestamp)>,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Refusal {
    error: RefusalError,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct RefusalError {
    code: String,
}

impl Sts {
    pub(super) fn new(config: IamConfig, service: String, web: Web, clock: Clock) -> Self {
        Self { config, service, web, clock, known: MemoryCache::new(10_000) }
    }

    /// Who has made this password, if they are let in.
    pub(super) async fn identify(&self, password: &str) -> Result<IamIdentity, AccessError> {
        let fields = SignedFields::parse(password).map_err(|_| AccessError::WrongCredentials)?;
        let now = self.clock.now();
        let signed_at = fields.signed_at().ok_or(AccessError::WrongCredentials)?;
        if signed_at > now.plus(AHEAD) || now >= signed_at.plus(Duration::from_secs(SIGNATURE_SECONDS)) {
            return Err(AccessError::WrongCredentials);
        }
        let seen: [u8; 32] = Sha256::digest(password).into();
        let known = self.known.get(&seen).filter(|(_, until)| now < *until);
        let identity = if let Some((identity, _)) = known {
            identity
        } else {
            let identity = self.ask(&fields).await?;
            self.known.insert(seen, (identity.clone(), now.plus(KNOWN)));
            identity
        };
        let let_in = self.config.accounts.contains(&identity.account)
            || self.config.roles.iter().any(|pattern| pattern.matches(&identity.arn));
        if let_in { Ok(identity) } else { Err(AccessError::NotLetIn(Principal::Iam(identity).to_string())) }
    }

    async fn ask(&self, fields: &SignedFields) -> Result<IamIdentity, AccessError> {
        let url = fields.request(self.config.endpoint.as_ref()).ok_or(AccessError::WrongCredentials)?;
        let complete = |request: reqwest::RequestBuilder| {
            let request = request.header(HOST, fields.host()).header(ACCEPT, "application/json");
            request.header(SERVER_ID_HEADER, &self.service)
        };
        let (status, body) = self.web.get(&url, complete).await?;
        if status == StatusCode::OK {
            let identity = IamIdentity::from_answer(&body);
            return identity.ok_or_else(|| Unreachable::new(&url, "answers with no identity").into());
        }
        // Throttling comes with 400 too (AWS query protocol, "Common Errors").
        let code = serde_json::from_slice(&body).map_or(String::new(), |refusal: Refusal| refusal.error.code);
        let throttled = status == StatusCode::TOO_MANY_REQUESTS || code.starts_with("Throttl");
        if status.is_client_error() && !throttled {
            tracing::debug!(%status, code, "STS refuses a signature");
            return Err(AccessError::WrongCredentials);
        }
        Err(Unreachable::new(&url, format!("{status} {code}")).into())
    }
}
