//! Verifies signed AWS requests: we rebuild the request and send it to STS, which names the signer.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use http::StatusCode;
use http::header::{ACCEPT, HOST};
use serde_json::Value;
use sha2::{Digest as _, Sha256};

use super::iam::{SERVER_ID_HEADER, SIGNATURE_SECONDS, SignedFields};
use super::lane::{BUSY, Lane};
use super::organization::Members;
use super::web::Web;
use crate::config::IamConfig;
use crate::errors::{AccessError, Unreachable};
use crate::identity::{IamIdentity, Principal};
use crate::values::address::neighbourhood;
use crate::values::expiring::Expiring;
use crate::values::time::Clock;

/// How far the clock of a signer may be ahead of ours.
const AHEAD: Duration = Duration::from_mins(1);
/// How long STS is not asked again about an accepted signature: a revoked session keeps access for so long.
const KNOWN: Duration = Duration::from_mins(10);
/// How long STS is not asked again about a refused signature.
const REFUSED: Duration = Duration::from_mins(1);
/// How long the holder of an accepted key counts as known: longer than temporary credentials last.
const KEY_KNOWN: Duration = Duration::from_hours(24);
/// How many requests to STS run at once in each lane.
const ASKED_AT_ONCE: usize = 8;
/// How many requests may wait for STS: of all callers, and of one caller.
const MOST_WAITING: (usize, usize) = (256, 64);

/// Logins as an AWS identity.
pub(super) struct Sts {
    config: IamConfig,
    /// `Some` where accounts are let in because they belong to an organisation.
    members: Option<Members>,
    /// The server id that must have been signed.
    service: String,
    web: Web,
    clock: Clock,
    /// Accepted signers by SHA-256 of the password: STS is not asked again.
    known: Expiring<[u8; 32], IamIdentity>,
    /// Refusals, likewise. Kept apart, so that forgeries do not evict accepted signers.
    refused: Expiring<[u8; 32], AccessError>,
    /// Keys that were accepted, with the caller's network, where they count as known: the id of a key is no secret.
    accepted_keys: Expiring<(String, Option<IpAddr>), ()>,
    /// Unknown keys have a lane of their own, so that any number of forgeries does not delay known ones.
    unknown_keys: Lane,
    known_keys: Lane,
    /// How many requests each caller has under way.
    callers: Mutex<HashMap<Option<IpAddr>, usize>>,
}

/// A request of a caller, counted until it is dropped.
struct Counted<'a>(&'a Sts, Option<IpAddr>);

impl Drop for Counted<'_> {
    fn drop(&mut self) {
        let mut callers = self.0.callers.lock().unwrap_or_else(PoisonError::into_inner);
        match callers.get_mut(&self.1) {
            Some(count) if *count > 1 => *count -= 1,
            _ => drop(callers.remove(&self.1)),
        }
    }
}

impl Sts {
    pub(super) fn new(config: IamConfig, members: Option<Members>, service: String, web: Web, clock: Clock) -> Self {
        Self {
            config,
            members,
            service,
            web,
            known: Expiring::new(clock.clone(), 10_000),
            refused: Expiring::new(clock.clone(), 10_000),
            accepted_keys: Expiring::new(clock.clone(), 10_000),
            clock,
            unknown_keys: Lane::new(MOST_WAITING.0, ASKED_AT_ONCE),
            known_keys: Lane::new(MOST_WAITING.0, ASKED_AT_ONCE),
            callers: Mutex::default(),
        }
    }

    /// The identity that made this password, if it is let in.
    pub(super) async fn identify(&self, password: &str, address: Option<IpAddr>) -> Result<IamIdentity, AccessError> {
        let fields = SignedFields::parse(password);
        let fields = fields.map_err(|_| AccessError::WrongCredentials("it has not the fields of a signed request"))?;
        let now = self.clock.now();
        let signed_at = fields.signed_at().ok_or(AccessError::WrongCredentials("its date is none"))?;
        if signed_at > now.plus(AHEAD) || now >= signed_at.plus(Duration::from_secs(SIGNATURE_SECONDS)) {
            return Err(AccessError::WrongCredentials("its signature has expired, or is not valid yet"));
        }
        if !fields.partition().is_some_and(|partition| self.config.admits_some_of(partition)) {
            return Err(AccessError::WrongCredentials("[access.iam] lets in nobody of its partition"));
        }
        let seen: [u8; 32] = Sha256::digest(password).into();
        if let Some(outcome) = self.remembered(&seen) {
            return outcome;
        }
        let caller = address.map(neighbourhood);
        let _counted = self.count(caller)?;
        let key = (fields.key_id().to_owned(), caller);
        let is_known = self.accepted_keys.get(&key).is_some();
        let _place = if is_known { &self.known_keys } else { &self.unknown_keys }.enter().await?;
        // Clients send one password several times at once.
        if let Some(outcome) = self.remembered(&seen) {
            return outcome;
        }
        let outcome = async { self.let_in(self.ask(&fields).await?).await }.await;
        match &outcome {
            Ok(identity) => {
                self.known.keep(seen, identity.clone(), KNOWN);
                self.accepted_keys.keep(key, (), KEY_KNOWN);
            }
            Err(refusal @ (AccessError::WrongCredentials(_) | AccessError::NotLetIn(_))) => {
                self.refused.keep(seen, refusal.clone(), REFUSED);
            }
            Err(_) => {}
        }
        outcome
    }

    /// Checks that an identity is let in. AWS Organizations is asked only where the configuration alone does not admit
    /// it.
    async fn let_in(&self, mut identity: IamIdentity) -> Result<IamIdentity, AccessError> {
        if let Some(members) = self.members.as_ref().filter(|_| !self.config.admits(&identity)) {
            identity.organization = members.organization_of(&identity.account).await?;
        }
        let let_in = self.config.admits(&identity);
        if let_in { Ok(identity) } else { Err(AccessError::NotLetIn(Principal::Iam(identity).to_string())) }
    }

    fn remembered(&self, seen: &[u8; 32]) -> Option<Result<IamIdentity, AccessError>> {
        self.known.get(seen).map(Ok).or_else(|| self.refused.get(seen).map(Err))
    }

    fn count(&self, caller: Option<IpAddr>) -> Result<Counted<'_>, AccessError> {
        let mut callers = self.callers.lock().unwrap_or_else(PoisonError::into_inner);
        let count = callers.entry(caller).or_insert(0);
        if *count >= MOST_WAITING.1 {
            return Err(BUSY);
        }
        *count += 1;
        Ok(Counted(self, caller))
    }

    async fn ask(&self, fields: &SignedFields) -> Result<IamIdentity, AccessError> {
        let request = fields.request(self.config.endpoint.as_ref()).zip(fields.host());
        let (url, host) = request.ok_or(AccessError::WrongCredentials("its region is none"))?;
        let complete = |request: reqwest::RequestBuilder| {
            let request = request.header(HOST, host).header(ACCEPT, "application/json");
            request.header(SERVER_ID_HEADER, &self.service)
        };
        let (status, body) = self.web.get(&url, complete).await?;
        if status == StatusCode::OK {
            let identity = fields.identity(&body);
            return identity.ok_or_else(|| Unreachable::new(&url, "answers with no identity").into());
        }
        // Throttling comes with 400 too (AWS query protocol, "Common Errors").
        let refusal: Value = serde_json::from_slice(&body).unwrap_or_default();
        let code = refusal.pointer("/Error/Code").and_then(Value::as_str).unwrap_or_default();
        let throttled = status == StatusCode::TOO_MANY_REQUESTS || code.starts_with("Throttl");
        if status.is_client_error() && !throttled {
            tracing::debug!(%status, code, "STS refuses a signature");
            return Err(AccessError::WrongCredentials("STS refuses its signature"));
        }
        Err(Unreachable::new(&url, format!("{status} {code}")).into())
    }
}
