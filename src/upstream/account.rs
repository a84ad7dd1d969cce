//! An upstream as one credential sees it: shared by all parts of the upstream that use this credential.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock};
use std::time::Duration;

use quick_cache::sync::Cache as MemoryCache;
use url::Url;

use super::guard;
use super::login::UpstreamLogin;
use super::meter::Meter;
use super::token::{Challenge, Tokens};
use super::trouble::Troubles;
use crate::config::UpstreamConfig;
use crate::journal::{Journal, Metric};
use crate::oci::{Name, Reference, UpstreamId};
use crate::ports::Ledger;
use crate::records::GaugeKey;
use crate::records::gauge::{Break, Kind, Quota};
use crate::values::expiring::Expiring;
use crate::values::time::Clock;

/// The most repositories and origins whose ways are remembered. What is forgotten is learned again.
const REMEMBERED: usize = 1000;
/// How long an origin is asked without what it failed at: that may have been the trouble of a moment.
const LACKING: Duration = Duration::from_mins(10);

/// What a registry may offer, or do badly: it is asked again without it then.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub(super) enum Optional {
    /// A part of a blob.
    Range,
    /// The length of a page of tags.
    PageLength,
}

/// Whether the answers to HEAD of the manifests of a repository are right.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) enum Heads {
    Right,
    /// HEAD was refused for this, and GET has not been asked yet.
    Doubted(Reference),
    /// HEAD was refused where GET is answered.
    Wrong,
}

/// What this process has learned of an upstream, as one credential sees it.
pub struct UpstreamNews<'a> {
    /// Its id in the configuration.
    pub upstream: &'a UpstreamId,
    /// How many manifests it has sent: what quotas count.
    pub pulls: u64,
    /// The quota that it has named last. `None`: it has named none since.
    pub quota: Option<Quota>,
    /// The breaker that is open now.
    pub broken: Option<Break>,
}

pub(super) struct Account {
    journal: Arc<Journal>,
    pub(super) key: GaugeKey,
    pub(super) login: UpstreamLogin,
    pub(super) tokens: Tokens,
    /// Anonymous tokens for other registries that this upstream redirects to, which never see our credentials.
    pub(super) anonymous_tokens: Tokens,
    pub(super) meter: Meter,
    pub(super) troubles: Troubles,
    /// Learned from a 401 to a request without a token: the challenge after a refused token may name another realm
    /// (nvcr.io does that). The repositories of some registries have different ones.
    challenges: MemoryCache<Name, Challenge>,
    /// The one learned last, for repositories that have not been asked for yet.
    latest: RwLock<Option<Challenge>>,
    /// What an origin does badly: it is not asked for that.
    lacks: Expiring<(Optional, String), ()>,
    /// By repository: what one caller can have upstream refuse says nothing of the others'.
    heads: Expiring<Name, Heads>,
    /// The quota in the latest answer, until the meter takes it.
    quota: Mutex<Option<Quota>>,
    news: Mutex<News>,
}

/// What this process has learned of an upstream since that was last taken.
#[derive(Default)]
struct News {
    pulls: u64,
    quota: Option<Quota>,
}

impl Account {
    pub(super) fn new(
        upstream: &UpstreamId,
        login: UpstreamLogin,
        (clock, journal): (&Clock, &Arc<Journal>),
        ledger: &Arc<dyn Ledger>,
    ) -> Self {
        let key = GaugeKey { upstream: upstream.clone(), credential: login.name().to_owned() };
        Self {
            meter: Meter::new(key.clone(), Arc::clone(ledger), clock.clone(), Arc::clone(journal)),
            troubles: Troubles::new(clock.clone()),
            tokens: Tokens::new(clock.clone()),
            anonymous_tokens: Tokens::new(clock.clone()),
            challenges: MemoryCache::new(REMEMBERED),
            latest: RwLock::default(),
            lacks: Expiring::new(clock.clone(), REMEMBERED),
            heads: Expiring::new(clock.clone(), REMEMBERED),
            quota: Mutex::default(),
            news: Mutex::default(),
            journal: Arc::clone(journal),
            key,
            login,
        }
    }

    /// Whether this is the account that a configuration of the upstream uses.
    pub(super) fn is_of(&self, upstream: &UpstreamId, config: &UpstreamConfig) -> bool {
        self.key.upstream == *upstream && self.login.credentials() == config.credentials.as_ref()
    }

    pub(super) fn challenge(&self, name: &Name) -> Option<Challenge> {
        let latest = || self.latest.read().unwrap_or_else(PoisonError::into_inner).clone();
        self.challenges.get(name).or_else(latest)
    }

    pub(super) fn set_challenge(&self, name: &Name, challenge: &Challenge) {
        self.challenges.insert(name.clone(), challenge.clone());
        *self.latest.write().unwrap_or_else(PoisonError::into_inner) = Some(challenge.clone());
    }

    /// Whether `origin` may be asked for something optional.
    pub(super) fn may_ask(&self, optional: Optional, origin: &Url) -> bool {
        self.lacks.get(&(optional, guard::origin(origin))).is_none()
    }

    /// Notes that `origin` failed when it was asked for something optional, and not without it.
    pub(super) fn note_lack(&self, optional: Optional, origin: &Url) {
        self.lacks.keep((optional, guard::origin(origin)), (), LACKING);
    }

    /// What is known of the answers to HEAD in a repository.
    pub(super) fn heads(&self, name: &Name) -> Option<Heads> {
        self.heads.get(name)
    }

    pub(super) fn note_heads(&self, name: &Name, heads: Heads) {
        self.heads.keep(name.clone(), heads, LACKING);
    }

    pub(super) fn note_quota(&self, quota: Quota) {
        self.news().quota = Some(quota.clone());
        *self.quota.lock().unwrap_or_else(PoisonError::into_inner) = Some(quota);
    }

    /// Notes that upstream has sent a manifest, which is what quotas count.
    pub(super) fn note_pull(&self) {
        self.news().pulls += 1;
        self.journal.of(Some(&self.key.upstream)).add(Metric::PullsSpent, 1);
    }

    /// What is new since this was last called.
    pub(super) fn take_news(&self) -> UpstreamNews<'_> {
        let News { pulls, quota } = std::mem::take(&mut *self.news());
        let broken = self.meter.open_breaker(Kind::Manifest);
        UpstreamNews { upstream: &self.key.upstream, pulls, quota, broken }
    }

    fn news(&self) -> MutexGuard<'_, News> {
        self.news.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn take_quota(&self) -> Option<Quota> {
        self.quota.lock().unwrap_or_else(PoisonError::into_inner).take()
    }
}
