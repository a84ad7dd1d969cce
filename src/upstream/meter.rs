//! The gauge of one upstream: consulted before it is asked, corrected afterwards, shared through the ledger.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::Mutex;

use crate::errors::{Limit, StoreError, UpstreamError};
use crate::ports::Ledger;
use crate::records::gauge::{Break, Cause, Gauge, Kind, Outcome, Permit, Quota};
use crate::records::{GaugeKey, Versioned};
use crate::values::time::{Clock, Timestamp};

/// How long this process goes by what it last read: another may have learned more.
const READ_AGAIN: Duration = Duration::from_secs(2);
/// Readings of the quota are written this often at the most; breakers always.
const WRITE_AGAIN: Duration = Duration::from_secs(5);
/// How often a write is tried that others overtake.
const ATTEMPTS: usize = 5;

/// A gauge with its place in the ledger.
pub(super) struct Meter {
    key: GaugeKey,
    ledger: Arc<dyn Ledger>,
    clock: Clock,
    known: Mutex<Known>,
}

#[derive(Default)]
struct Known {
    gauge: Gauge,
    version: Option<u64>,
    read_at: Option<Timestamp>,
    written_at: Option<Timestamp>,
}

impl Meter {
    pub(super) fn new(key: GaugeKey, ledger: Arc<dyn Ledger>, clock: Clock) -> Self {
        Self { key, ledger, clock, known: Mutex::default() }
    }

    /// Refuses what nobody waits for where little quota is left.
    pub(super) async fn spare(&self, reserve: u64) -> Result<(), UpstreamError> {
        let mut known = self.known.lock().await;
        self.read(&mut known, READ_AGAIN).await;
        if !known.gauge.is_in_reserve(reserve, self.clock.now()) {
            return Ok(());
        }
        let detail = format!("the last {reserve} pulls at {} are kept for clients who wait", self.key.upstream);
        Err(UpstreamError::Throttled { limit: Limit::Pulls, retry_after: None, detail })
    }

    /// The gauge as the ledger has it.
    pub(super) async fn gauge(&self) -> Gauge {
        let mut known = self.known.lock().await;
        self.read(&mut known, Duration::ZERO).await;
        known.gauge.clone()
    }

    /// Whether `kind` may be asked. Of those who come when a pause is over, one gets a permit and probes.
    pub(super) async fn permit(&self, kind: Kind) -> Result<(), UpstreamError> {
        let mut known = self.known.lock().await;
        self.read(&mut known, READ_AGAIN).await;
        let now = self.clock.now();
        match known.gauge.permit(kind, now) {
            Permit::Go => Ok(()),
            Permit::Closed(broken) => Err(self.closed(&broken, now)),
            Permit::Probe(probing) => {
                match self.ledger.swap_gauge(&self.key, known.version, &probing).await {
                    Ok(Some(version)) => {
                        known.gauge = probing;
                        known.version = Some(version);
                        Ok(())
                    }
                    // Another process probes, and has written until when.
                    Ok(None) => {
                        self.read(&mut known, Duration::ZERO).await;
                        let broken = [known.gauge.requests.as_ref(), known.gauge.manifests.as_ref()];
                        broken.into_iter().flatten().next().map_or(Ok(()), |broken| Err(self.closed(broken, now)))
                    }
                    // That the ledger is in trouble is no reason not to ask upstream.
                    Err(error) => {
                        self.complain(&error);
                        Ok(())
                    }
                }
            }
        }
    }

    /// Corrects the gauge by how asking ended and by the quota that the answer named.
    pub(super) async fn note(&self, kind: Kind, outcome: &Outcome, quota: Option<Quota>) {
        let mut known = self.known.lock().await;
        for _ in 0..ATTEMPTS {
            let now = self.clock.now();
            let mut after = known.gauge.after(kind, outcome, now);
            if let Some(quota) = quota.clone() {
                after = after.with(quota);
            }
            let breakers = |gauge: &Gauge| (gauge.requests.clone(), gauge.manifests.clone());
            let urgent = breakers(&after) != breakers(&known.gauge);
            let due = known.written_at.is_none_or(|at| now >= at.plus(WRITE_AGAIN));
            let worth_writing = urgent || (due && after != known.gauge);
            if !worth_writing {
                known.gauge = after;
                return;
            }
            match self.ledger.swap_gauge(&self.key, known.version, &after).await {
                Ok(Some(version)) => {
                    *known = Known { gauge: after, version: Some(version), read_at: Some(now), written_at: Some(now) };
                    return;
                }
                Ok(None) => self.read(&mut known, Duration::ZERO).await,
                Err(error) => {
                    self.complain(&error);
                    known.gauge = after;
                    return;
                }
            }
        }
    }

    async fn read(&self, known: &mut Known, age: Duration) {
        let now = self.clock.now();
        if known.read_at.is_some_and(|at| now < at.plus(age)) {
            return;
        }
        match self.ledger.gauge(&self.key).await {
            Ok(Some(Versioned { value, version })) => {
                known.gauge = value.or_later(&known.gauge);
                known.version = Some(version);
            }
            Ok(None) => {}
            Err(error) => self.complain(&error),
        }
        known.read_at = Some(now);
    }

    fn complain(&self, error: &StoreError) {
        tracing::warn!(upstream.id = %self.key.upstream, %error, "this process goes by its own gauge");
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
    pub(super) async fn explained(&self, error: UpstreamError) -> UpstreamError {
        let known = self.known.lock().await;
        let broken = match &error {
            UpstreamError::Throttled { limit: Limit::Pulls, .. } => known.gauge.manifests.as_ref(),
            UpstreamError::Throttled { .. } => known.gauge.requests.as_ref(),
            _ => None,
        };
        broken.map_or(error, |broken| self.closed(broken, self.clock.now()))
    }
}
