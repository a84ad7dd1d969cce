//! An upstream as one credential sees it: shared by all parts of the upstream that use this credential.

use std::sync::{Arc, Mutex, PoisonError, RwLock};

use super::login::UpstreamLogin;
use super::meter::Meter;
use super::token::{Challenge, Tokens};
use super::trouble::Troubles;
use crate::config::UpstreamConfig;
use crate::oci::UpstreamId;
use crate::ports::Ledger;
use crate::records::GaugeKey;
use crate::records::gauge::Quota;
use crate::values::time::Clock;

pub(super) struct Account {
    pub(super) key: GaugeKey,
    pub(super) login: UpstreamLogin,
    pub(super) tokens: Tokens,
    /// Anonymous tokens for other registries that this upstream redirects to, which never see our credentials.
    pub(super) anonymous_tokens: Tokens,
    pub(super) meter: Meter,
    pub(super) troubles: Troubles,
    /// Learned from the first 401 and kept: the challenge after a refused token may name another realm (nvcr.io does
    /// that).
    challenge: RwLock<Option<Challenge>>,
    /// The quota in the latest answer, until the meter takes it.
    quota: Mutex<Option<Quota>>,
}

impl Account {
    pub(super) fn new(upstream: &UpstreamId, login: UpstreamLogin, clock: &Clock, ledger: &Arc<dyn Ledger>) -> Self {
        let key = GaugeKey { upstream: upstream.clone(), credential: login.name().to_owned() };
        Self {
            meter: Meter::new(key.clone(), Arc::clone(ledger), clock.clone()),
            troubles: Troubles::new(clock.clone()),
            tokens: Tokens::new(clock.clone()),
            anonymous_tokens: Tokens::new(clock.clone()),
            challenge: RwLock::default(),
            quota: Mutex::default(),
            key,
            login,
        }
    }

    /// Whether this is the account that a configuration of the upstream uses.
    pub(super) fn is_of(&self, upstream: &UpstreamId, config: &UpstreamConfig) -> bool {
        self.key.upstream == *upstream && self.login.credentials() == config.credentials.as_ref()
    }

    pub(super) fn challenge(&self) -> Option<Challenge> {
        self.challenge.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    pub(super) fn set_challenge(&self, challenge: Option<Challenge>) {
        *self.challenge.write().unwrap_or_else(PoisonError::into_inner) = challenge;
    }

    pub(super) fn note_quota(&self, quota: Quota) {
        *self.quota.lock().unwrap_or_else(PoisonError::into_inner) = Some(quota);
    }

    pub(super) fn take_quota(&self) -> Option<Quota> {
        self.quota.lock().unwrap_or_else(PoisonError::into_inner).take()
    }
}
