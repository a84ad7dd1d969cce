//! The gauge of one upstream: consulted before a request, updated afterwards, shared through the ledger.
//!
//! Requests use the gauge in memory. The ledger is read and written by one exchange at a time, and no request waits for
//! it longer than [`PATIENCE`]: a slow ledger must not stop an account's traffic.

use std::collections::{HashMap, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use super::Result;
use crate::errors::{Limit, StoreError, UpstreamError, chain};
use crate::journal::{Event, EventKind, Journal};
use crate::ports::{Attempts, Ledger, in_time};
use crate::records::gauge::{Break, Cause, Gauge, Kind, Outcome, PROBE, Permit, Quota};
use crate::records::{GaugeKey, Versioned};
use crate::values::time::{Clock, Timestamp};

/// How long this process uses what it last read from the ledger, before it reads what other processes have learned.
const READ_AGAIN: Duration = Duration::from_secs(2);
/// Readings of the quota are written at most this often; changes of a breaker always.
const WRITE_AGAIN: Duration = Duration::from_secs(5);
/// The longest that a request waits for the ledger.
const PATIENCE: Duration = Duration::from_secs(1);
/// How long the ledger is not used after it failed or did not answer in time.
const REST: Duration = Duration::from_secs(2);
/// How many changes of a breaker are kept until the ledger takes them. More failures than that do not change it
/// further.
const UNWRITTEN: usize = 16;

/// A gauge with its place in the ledger.
pub(super) struct Meter {
    key: GaugeKey,
    ledger: Arc<dyn Ledger>,
    clock: Clock,
    journal: Arc<Journal>,
    /// Locked for short reads and writes in memory, never while the ledger is asked.
    known: Mutex<GaugeState>,
    /// Held by the exchange with the ledger that is under way, so that no older answer replaces a newer one.
    exchange: tokio::sync::Mutex<()>,
}

#[derive(Default)]
struct GaugeState {
    /// What the ledger had, with what this process has noted since.
    gauge: Gauge,
    version: Option<u64>,
    read_at: Option<Timestamp>,
    written_at: Option<Timestamp>,
    /// Until when a request of this process probes, whatever the ledger says meanwhile.
    probes_until: Option<Timestamp>,
    /// The ledger is not used before.
    rests_until: Option<Timestamp>,
    /// Outcomes that changed a breaker and are not in the ledger yet.
    unwritten: VecDeque<(Kind, Outcome, Timestamp)>,
}

impl GaugeState {
    fn rests(&self, now: Timestamp) -> bool {
        self.rests_until.is_some_and(|until| now < until)
    }

    fn may_write_quota(&self, now: Timestamp) -> bool {
        self.written_at.is_none_or(|at| now >= at.plus(WRITE_AGAIN))
    }

    /// Notes the outcome of a request. Returns whether the ledger should be written.
    fn note(&mut self, kind: Kind, outcome: &Outcome, quota: Option<Quota>, now: Timestamp) -> bool {
        let mut after = self.gauge.after(kind, outcome, now);
        if (&after.requests, &after.manifests) != (&self.gauge.requests, &self.gauge.manifests) {
            if self.unwritten.len() == UNWRITTEN {
                self.unwritten.pop_front();
            }
            self.unwritten.push_back((kind, outcome.clone(), now));
        }
        if let Some(quota) = quota {
            after = after.with(quota);
        }
        let changed = after != self.gauge;
        self.gauge = after;
        self.probes_until = None;
        !self.unwritten.is_empty() || (changed && self.may_write_quota(now))
    }

    /// Takes over what other processes have written, and applies again what this process has not written yet.
    fn take_over(&mut self, shared: Versioned<Gauge>) {
        self.version = Some(shared.version);
        let shared = shared.value.or_later(&self.gauge);
        self.gauge = self.unwritten.iter().fold(shared, |gauge, (kind, outcome, at)| gauge.after(*kind, outcome, *at));
    }
}

impl Meter {
    pub(super) fn new(key: GaugeKey, ledger: Arc<dyn Ledger>, clock: Clock, journal: Arc<Journal>) -> Self {
        Self { key, ledger, clock, journal, known: Mutex::default(), exchange: tokio::sync::Mutex::default() }
    }

    /// Refuses a background request when only the reserve of the quota is left.
    pub(super) async fn spare(&self, reserve: u64) -> Result<()> {
        self.refresh().await;
        if !self.known().gauge.is_in_reserve(reserve, self.clock.now()) {
            return Ok(());
        }
        let detail = format!("the last {reserve} pulls at {} are kept for clients who wait", self.key.upstream);
        Err(UpstreamError::Throttled { limit: Limit::Pulls, retry_after: None, detail }.left_alone())
    }

    /// Reads what the ledger has of all of these, at once and within [`PATIENCE`]. One whose exchange is under way is left
    /// to that; while the ledger does not answer, all of them go by what is in memory, and it is left alone for a while.
    pub(super) async fn read_all(meters: &[&Self]) {
        let asked = meters.iter().filter(|meter| !meter.known().rests(meter.clock.now()));
        let idle: Vec<_> = asked.filter_map(|meter| Some((*meter, meter.exchange.try_lock().ok()?))).collect();
        let Some((first, _)) = idle.first() else { return };
        let keys: Vec<GaugeKey> = idle.iter().map(|(meter, _)| meter.key.clone()).collect();
        match in_time(PATIENCE, first.ledger.get_all(&keys)).await {
            Ok(shared) => {
                let mut shared: HashMap<GaugeKey, Versioned<Gauge>> = shared.into_iter().collect();
                for (meter, _) in &idle {
                    meter.learn(shared.remove(&meter.key));
                }
            }
            Err(error) => {
                for (meter, _) in &idle {
                    meter.rest();
                }
                tracing::warn!(error = %chain(&error), "this process goes by its own gauges");
            }
        }
    }

    /// Permits a request of this kind, unless a breaker is open. When a pause is over, one request gets a permit and
    /// probes: `true`.
    pub(super) async fn permit(&self, kind: Kind) -> Result<bool> {
        self.refresh().await;
        let now = self.clock.now();
        let permit = self.decide(kind);
        let probes = matches!(permit, Permit::Probe(_));
        let permit = match permit {
            // A ledger in trouble is no reason not to ask upstream.
            Permit::Probe(_) if !self.known().rests(now) => self.exchange(self.probe(kind)).await.unwrap_or(Permit::Go),
            permit => permit,
        };
        match permit {
            Permit::Closed(broken) => Err(self.closed(&broken, now)),
            Permit::Go | Permit::Probe(_) => Ok(probes),
        }
    }

    /// Refuses what would be refused now whatever is asked, and takes no permit.
    pub(super) async fn check_breaker(&self) -> Result<()> {
        self.refresh().await;
        // HEAD is refused by the breaker of all requests only.
        self.open_breaker(Kind::Head).map_or(Ok(()), |broken| Err(self.closed(&broken, self.clock.now())))
    }

    /// The breaker that is open now for requests of this kind, as far as this process knows.
    pub(super) fn open_breaker(&self, kind: Kind) -> Option<Break> {
        match self.known().gauge.permit(kind, self.clock.now()) {
            Permit::Closed(broken) => Some(broken),
            Permit::Go | Permit::Probe(_) => None,
        }
    }

    /// The permit by the gauge in memory. While a request probes, other requests of this process are refused.
    fn decide(&self, kind: Kind) -> Permit {
        let (mut known, now) = (self.known(), self.clock.now());
        match known.gauge.permit(kind, now) {
            Permit::Probe(probing) if known.probes_until.is_some_and(|until| now < until) => probing.permit(kind, now),
            Permit::Probe(probing) => {
                known.probes_until = Some(now.plus(PROBE));
                Permit::Probe(probing)
            }
            permit => permit,
        }
    }

    /// Tells other processes that this one probes, unless another one does already.
    async fn probe(&self, kind: Kind) -> Result<Permit, StoreError> {
        let mut attempts = Attempts::new();
        loop {
            {
                let mut known = self.known();
                match known.gauge.permit(kind, self.clock.now()) {
                    Permit::Probe(probing) => known.gauge = probing,
                    permit => {
                        known.probes_until = None;
                        return Ok(permit);
                    }
                }
            }
            if self.swap().await? {
                return Ok(Permit::Go);
            }
            self.read().await?;
            attempts.again().await?;
        }
    }

    /// Updates the gauge with the outcome of a request and the quota in its answer.
    pub(super) async fn note(&self, kind: Kind, outcome: &Outcome, quota: Option<Quota>) {
        let now = self.clock.now();
        let worth_writing = {
            let mut known = self.known();
            let before = known.gauge.clone();
            let worth_writing = known.note(kind, outcome, quota, now) && !known.rests(now);
            self.tell(&before, &known.gauge);
            worth_writing
        };
        if worth_writing {
            self.exchange(self.write()).await;
        }
    }

    /// Notes as an event that a breaker has opened or closed.
    fn tell(&self, before: &Gauge, after: &Gauge) {
        let breakers = [
            ("no manifests are asked for", "manifests are asked for again", &before.manifests, &after.manifests),
            ("nothing is asked for", "upstream is asked again", &before.requests, &after.requests),
        ];
        for (opened, closed, before, after) in breakers {
            let event = match (before.as_ref().is_some_and(Break::is_open), after) {
                (false, Some(broken)) if broken.is_open() => {
                    Event::new(EventKind::BreakerOpened, &format!("{opened}: {}", broken.cause))
                }
                (true, None) => Event::new(EventKind::BreakerClosed, &closed),
                _ => continue,
            };
            self.journal.note(event.at_upstream(&self.key.upstream));
        }
    }

    /// The gauge as far as this process knows.
    pub(super) fn known_gauge(&self) -> Gauge {
        self.known().gauge.clone()
    }

    /// Reads what other processes have noted, unless that was done recently. While one request reads, others use the
    /// gauge in memory; before the first read they wait, because there is none.
    async fn refresh(&self) {
        let now = self.clock.now();
        let is_first = {
            let mut known = self.known();
            if known.rests(now) || known.read_at.is_some_and(|at| now < at.plus(READ_AGAIN)) {
                return;
            }
            let is_first = known.read_at.is_none();
            known.read_at = known.read_at.map(|_| now);
            is_first
        };
        self.exchange(async {
            if is_first && self.known().read_at.is_some() {
                return Ok(());
            }
            self.read().await
        })
        .await;
    }

    /// Reads or writes the ledger, alone and within [`PATIENCE`]. `None`: that failed or took too long.
    async fn exchange<T>(&self, work: impl Future<Output = Result<T, StoreError>>) -> Option<T> {
        let alone = async {
            let _alone = self.exchange.lock().await;
            work.await
        };
        match in_time(PATIENCE, alone).await {
            Ok(value) => Some(value),
            Err(error) => {
                self.rest();
                tracing::warn!(upstream.id = %self.key.upstream, error = %chain(&error), "this process goes by its own gauge");
                None
            }
        }
    }

    async fn read(&self) -> Result<(), StoreError> {
        let shared = self.ledger.get(&self.key).await?;
        self.learn(shared);
        Ok(())
    }

    /// Takes over what the ledger has.
    fn learn(&self, shared: Option<Versioned<Gauge>>) {
        let mut known = self.known();
        known.read_at = Some(self.clock.now());
        match shared {
            Some(shared) => known.take_over(shared),
            None => known.version = None,
        }
    }

    /// Leaves the ledger alone for a while.
    fn rest(&self) {
        self.known().rests_until = Some(self.clock.now().plus(REST));
    }

    async fn write(&self) -> Result<(), StoreError> {
        let mut attempts = Attempts::new();
        // The previous write may have included it.
        while self.has_something_to_write() && !self.swap().await? {
            self.read().await?;
            attempts.again().await?;
        }
        Ok(())
    }

    fn has_something_to_write(&self) -> bool {
        let known = self.known();
        !known.unwritten.is_empty() || known.may_write_quota(self.clock.now())
    }

    /// Writes the gauge in memory. `false`: another process has written since it was read.
    async fn swap(&self) -> Result<bool, StoreError> {
        let (gauge, version, told) = {
            let known = self.known();
            (known.gauge.clone(), known.version, known.unwritten.len())
        };
        let Some(version) = self.ledger.swap(&self.key, version, &gauge).await? else { return Ok(false) };
        let mut known = self.known();
        let (now, told) = (self.clock.now(), told.min(known.unwritten.len()));
        known.unwritten.drain(..told);
        (known.version, known.read_at, known.written_at) = (Some(version), Some(now), Some(now));
        Ok(true)
    }

    fn known(&self) -> MutexGuard<'_, GaugeState> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The error for a client while something is not asked: which limit, since when, and what helps.
    pub(super) fn closed(&self, broken: &Break, now: Timestamp) -> UpstreamError {
        self.because(broken, now).left_alone()
    }

    fn because(&self, broken: &Break, now: Timestamp) -> UpstreamError {
        let pause = broken.until.after(now).max(Duration::from_secs(1));
        let upstream = &self.key.upstream;
        let ago = now.after(broken.since).as_secs();
        match &broken.cause {
            Cause::Limited(Limit::Pulls) => {
                // Clients are not shown accounts or addresses; `stopover quota` shows them to operators.
                let ours = if self.key.is_anonymous() { "anonymous pull quota" } else { "pull quota of our account" };
                let detail = format!(
                    "the {ours} at {upstream} was seen empty {ago} s ago; what was pulled before still pulls, and \
                     credentials of an account with more quota help"
                );
                UpstreamError::Throttled { limit: Limit::Pulls, retry_after: Some(pause), detail }
            }
            Cause::Limited(limit) => {
                let detail =
                    format!("{upstream} has been limiting our {limit} for {ago} s; what was pulled before still pulls");
                UpstreamError::Throttled { limit: *limit, retry_after: Some(pause), detail }
            }
            Cause::Failing(reason) => {
                UpstreamError::failed(format!("{reason} (asked {ago} s ago, and again in {} s)", pause.as_secs()))
            }
        }
    }

    /// Adds the same explanation to the error of the request that has just hit a limit.
    pub(super) fn explained(&self, error: UpstreamError) -> UpstreamError {
        let known = self.known();
        let breakers = [&known.gauge.manifests, &known.gauge.requests].into_iter().flatten();
        let broken =
            error.limit().and_then(|limit| breakers.into_iter().find(|known| known.cause == Cause::Limited(limit)));
        broken.map_or(error, |broken| self.because(broken, self.clock.now()))
    }
}

#[cfg(test)]
mod tests;
