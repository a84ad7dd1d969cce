//! The gauge of one upstream: consulted before it is asked, corrected afterwards, shared through the ledger.
//!
//! Requests go by what is in memory. The ledger is read and written beside that, one exchange at a time, and no request
//! waits for it longer than [`PATIENCE`]: a slow ledger must not stop an account's traffic.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use crate::errors::{Limit, StoreError, UpstreamError, chain};
use crate::ports::{Attempts, Ledger};
use crate::records::gauge::{Break, Cause, Gauge, Kind, Outcome, PROBE, Permit, Quota};
use crate::records::{GaugeKey, Versioned};
use crate::values::time::{Clock, Timestamp};

/// How long this process goes by what it last read: another may have learned more.
const READ_AGAIN: Duration = Duration::from_secs(2);
/// Readings of the quota are written this often at the most; breakers always.
const WRITE_AGAIN: Duration = Duration::from_secs(5);
/// How long a request waits for the ledger at the most.
const PATIENCE: Duration = Duration::from_secs(1);
/// How long the ledger is left alone after it failed or did not answer in time.
const REST: Duration = Duration::from_secs(2);
/// How many changes are kept for a ledger that takes none. More failures than that change no breaker any more.
const UNWRITTEN: usize = 16;

/// A gauge with its place in the ledger.
pub(super) struct Meter {
    key: GaugeKey,
    ledger: Arc<dyn Ledger>,
    clock: Clock,
    /// Locked for as long as it takes to look, never while the ledger is asked.
    known: Mutex<GaugeState>,
    /// Held by the exchange with the ledger that is under way, so that no older answer replaces a newer one.
    exchange: tokio::sync::Mutex<()>,
}

#[derive(Default)]
struct GaugeState {
    /// What the ledger had, and what this process has noted since.
    gauge: Gauge,
    version: Option<u64>,
    read_at: Option<Timestamp>,
    written_at: Option<Timestamp>,
    /// Until when a request of this process probes, whatever the ledger is found to have meanwhile.
    probes_until: Option<Timestamp>,
    /// Until when the ledger is left alone.
    rests_until: Option<Timestamp>,
    /// What has changed a breaker and is not in the ledger yet.
    unwritten: VecDeque<(Kind, Outcome, Timestamp)>,
}

impl GaugeState {
    fn rests(&self, now: Timestamp) -> bool {
        self.rests_until.is_some_and(|until| now < until)
    }

    fn may_write_quota(&self, now: Timestamp) -> bool {
        self.written_at.is_none_or(|at| now >= at.plus(WRITE_AGAIN))
    }

    /// Notes how asking ended. Whether the ledger should know of it.
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

    /// Takes over what others have written, under what this process has not written yet.
    fn take_over(&mut self, shared: Versioned<Gauge>) {
        self.version = Some(shared.version);
        let shared = shared.value.or_later(&self.gauge);
        self.gauge = self.unwritten.iter().fold(shared, |gauge, (kind, outcome, at)| gauge.after(*kind, outcome, *at));
    }
}

impl Meter {
    pub(super) fn new(key: GaugeKey, ledger: Arc<dyn Ledger>, clock: Clock) -> Self {
        Self { key, ledger, clock, known: Mutex::default(), exchange: tokio::sync::Mutex::default() }
    }

    /// Refuses what nobody waits for where little quota is left.
    pub(super) async fn spare(&self, reserve: u64) -> Result<(), UpstreamError> {
        self.refresh().await;
        if !self.known().gauge.is_in_reserve(reserve, self.clock.now()) {
            return Ok(());
        }
        let detail = format!("the last {reserve} pulls at {} are kept for clients who wait", self.key.upstream);
        Err(UpstreamError::Throttled { limit: Limit::Pulls, retry_after: None, detail })
    }

    /// The gauge as the ledger has it, or as this process has it while the ledger does not answer.
    pub(super) async fn gauge(&self) -> Gauge {
        self.exchange(self.read()).await;
        self.known().gauge.clone()
    }

    /// Whether `kind` may be asked. Of those who come when a pause is over, one gets a permit and probes.
    pub(super) async fn permit(&self, kind: Kind) -> Result<(), UpstreamError> {
        self.refresh().await;
        let now = self.clock.now();
        let permit = self.decide(kind);
        let permit = match permit {
            // That the ledger is in trouble is no reason not to ask upstream.
            Permit::Probe(_) if !self.known().rests(now) => self.exchange(self.probe(kind)).await.unwrap_or(Permit::Go),
            permit => permit,
        };
        match permit {
            Permit::Go | Permit::Probe(_) => Ok(()),
            Permit::Closed(broken) => Err(self.closed(&broken, now)),
        }
    }

    /// What may be asked as far as this process knows. From a probe on, its other requests leave upstream alone.
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

    /// Tells other processes that this one probes, unless one of them does.
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

    /// Corrects the gauge by how asking ended and by the quota that the answer named.
    pub(super) async fn note(&self, kind: Kind, outcome: &Outcome, quota: Option<Quota>) {
        let now = self.clock.now();
        let worth_writing = {
            let mut known = self.known();
            known.note(kind, outcome, quota, now) && !known.rests(now)
        };
        if worth_writing {
            self.exchange(self.write()).await;
        }
    }

    /// Learns what other processes have noted, unless that was done lately. While one request does, the others go by what
    /// is known; the first ones wait, because nothing is.
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

    /// Reads or writes the ledger, alone and within [`PATIENCE`]. `None`: it could not be.
    async fn exchange<T>(&self, work: impl Future<Output = Result<T, StoreError>>) -> Option<T> {
        let alone = async {
            let _alone = self.exchange.lock().await;
            work.await
        };
        let late = || StoreError::Unavailable(format!("no answer within {PATIENCE:?}").into());
        match tokio::time::timeout(PATIENCE, alone).await.unwrap_or_else(|_| Err(late())) {
            Ok(value) => Some(value),
            Err(error) => {
                self.known().rests_until = Some(self.clock.now().plus(REST));
                tracing::warn!(upstream.id = %self.key.upstream, error = %chain(&error), "this process goes by its own gauge");
                None
            }
        }
    }

    async fn read(&self) -> Result<(), StoreError> {
        let shared = self.ledger.gauge(&self.key).await?;
        let mut known = self.known();
        known.read_at = Some(self.clock.now());
        match shared {
            Some(shared) => known.take_over(shared),
            None => known.version = None,
        }
        Ok(())
    }

    async fn write(&self) -> Result<(), StoreError> {
        let mut attempts = Attempts::new();
        // The write before this one may have taken it along.
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

    /// Writes what is known. `false`: another process has written since it was read.
    async fn swap(&self) -> Result<bool, StoreError> {
        let (gauge, version, told) = {
            let known = self.known();
            (known.gauge.clone(), known.version, known.unwritten.len())
        };
        let Some(version) = self.ledger.swap_gauge(&self.key, version, &gauge).await? else { return Ok(false) };
        let mut known = self.known();
        let (now, told) = (self.clock.now(), told.min(known.unwritten.len()));
        known.unwritten.drain(..told);
        (known.version, known.read_at, known.written_at) = (Some(version), Some(now), Some(now));
        Ok(true)
    }

    fn known(&self) -> MutexGuard<'_, GaugeState> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What a client is told while an upstream is left alone: whose limit, since when, and what helps.
    fn closed(&self, broken: &Break, now: Timestamp) -> UpstreamError {
        let pause = broken.until.after(now).max(Duration::from_secs(1));
        let upstream = &self.key.upstream;
        let ago = now.after(broken.since).as_secs();
        match &broken.cause {
            Cause::Limited(Limit::Pulls) => {
                // Guests are told neither accounts nor addresses; `stopover quota` tells operators.
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
            Cause::Failing(reason) => UpstreamError::Unavailable {
                silent: false,
                reason: format!("{reason} (asked {ago} s ago, and again in {} s)", pause.as_secs()),
            },
        }
    }

    /// The same for the caller who has just run into a limit.
    pub(super) fn explained(&self, error: UpstreamError) -> UpstreamError {
        let known = self.known();
        let broken = match &error {
            UpstreamError::Throttled { limit: Limit::Pulls, .. } => known.gauge.manifests.as_ref(),
            UpstreamError::Throttled { .. } => known.gauge.requests.as_ref(),
            _ => None,
        };
        broken.map_or(error, |broken| self.closed(broken, self.clock.now()))
    }
}

#[cfg(test)]
mod tests;
