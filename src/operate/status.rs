//! What a cache is doing, and what has failed in it lately: the bodies of `/_stopover/status` and `/_stopover/events`.

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};

use super::Operate;
use super::health::Health;
use super::report::{FOR_OPERATORS, LastSweep, QuotaReport};
use super::tallies::{self, Period, hit_percent};
use crate::journal::{Counters, Event, EventKind, Metric, Slot, Tally};
use crate::oci::UpstreamId;
use crate::records::gauge::Gauge;
use crate::upstream::Upstream;
use crate::values::text::without_addresses;

/// What was counted, by the names of the metrics: `hits`, `pulls_spent` and so on.
pub type Counts = BTreeMap<String, u64>;

/// The body of `GET /_stopover/status`.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct StatusReport {
    /// The version of the program.
    pub version: String,
    /// Seconds since the process started.
    pub uptime_seconds: u64,
    /// Whether clients are answered, and what is wrong.
    #[serde(flatten)]
    pub health: Health,
    /// What this process has counted since it started, at all upstreams that are shown.
    pub counts: Counts,
    /// How many requests of a hundred were answered with what is stored; absent before the first one.
    pub hit_percent: Option<u64>,
    /// What all processes have counted in the last 24 hours. Absent while that cannot be read.
    pub day: Option<Period>,
    /// What all processes have counted in the last 30 days. Absent as above.
    pub month: Option<Period>,
    /// The upstreams that something is known of.
    pub upstreams: Vec<UpstreamStatus>,
    /// The fills of this process. Absent unless an operator asks, and where other processes fill.
    pub fills: Option<FillCounts>,
    /// What the last sweep of this process has found. Absent unless an operator asks, and before the first one.
    pub last_sweep: Option<LastSweep>,
}

/// An upstream in a status.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct UpstreamStatus {
    /// Its id.
    pub upstream: String,
    /// What this process has counted since it started. Empty where the caller may not pull all of the upstream.
    pub counts: Counts,
    /// What all processes have counted in the last 24 hours. Absent while that cannot be read, and where `counts` is empty.
    pub day: Option<Counts>,
    /// What all processes have counted in the last 30 days. Absent as above.
    pub month: Option<Counts>,
    /// Quota and breakers, for each account of ours.
    pub accounts: Vec<QuotaReport>,
}

impl UpstreamStatus {
    /// Whether nothing is known of it: it was not asked, and has named no quota.
    pub fn is_idle(&self) -> bool {
        let is_silent = |account: &QuotaReport| account.remaining.is_none() && account.breakers.is_empty();
        let mut counts = self.month.iter().chain([&self.counts]);
        counts.all(|counts| counts.values().all(|count| *count == 0)) && self.accounts.iter().all(is_silent)
    }
}

/// How many fills have not ended well.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct FillCounts {
    /// Fills that copy.
    pub running: usize,
    /// Fills that wait for a place.
    pub waiting: usize,
    /// Fills that are tried again after a failure.
    pub resting: usize,
    /// Fills that were given up.
    pub failed: usize,
    /// How long ago the oldest that has not ended was requested.
    pub oldest_age_seconds: Option<u64>,
}

/// One event as a caller sees it.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct EventReport {
    /// When it happened last, in seconds since the Unix epoch.
    pub at: u64,
    /// When it happened first.
    pub first_at: u64,
    /// How often it has happened.
    pub times: u64,
    /// What has happened.
    pub kind: EventKind,
    /// The upstream that it is about.
    pub upstream: Option<String>,
    /// The repository that it is about, as `upstream/name`.
    pub repository: Option<String>,
    /// The blob that it is about.
    pub digest: Option<String>,
    /// Why it happened.
    pub reason: String,
    /// What to do about it.
    pub advice: String,
}

/// The body of `GET /_stopover/events`.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct EventsReport {
    /// The events that are remembered, the latest first.
    pub events: Vec<EventReport>,
}

impl From<Event> for EventReport {
    fn from(event: Event) -> Self {
        Self {
            at: event.at.0,
            first_at: event.first_at.0,
            times: event.times,
            kind: event.kind,
            upstream: event.upstream.map(|upstream| upstream.to_string()),
            repository: event.repository.map(|repository| repository.to_string()),
            digest: event.digest.map(|digest| digest.to_string()),
            reason: event.reason,
            advice: event.kind.advice().to_owned(),
        }
    }
}

impl EventReport {
    /// Leaves out what only operators may see: addresses, and the error texts of upstreams.
    #[must_use]
    pub fn for_callers(self) -> Self {
        let reason = match self.kind {
            EventKind::RefusedPull => without_addresses(&self.reason),
            _ => FOR_OPERATORS.into(),
        };
        Self { reason, ..self }
    }
}

impl Operate {
    /// The metrics that this process counts by upstream, each with what it says.
    pub(super) fn counted(&self) -> impl Iterator<Item = (Metric, &'static str)> {
        let is_front = self.core.is_front();
        Metric::BY_UPSTREAM.into_iter().filter(move |(metric, _)| !(is_front && metric.is_of_fills()))
    }

    /// Quota and breakers of the upstreams that the caller sees, for each account of ours. `all`: as operators see them.
    pub async fn quotas(&self, all: bool, sees: impl Fn(&UpstreamId, bool) -> bool) -> Vec<(UpstreamId, QuotaReport)> {
        let now = self.core.clock.now();
        let gauges = self.core.upstreams.gauges().await.into_iter();
        // A rule may make a part of a public upstream private, or ask it with another login.
        let gauges = gauges.filter(|(upstream, _)| sees(upstream.id(), upstream.config().is_private()));
        let report = |(upstream, gauge): (&Upstream, Gauge)| {
            let report = QuotaReport::new(upstream, &gauge, now);
            (upstream.id().clone(), if all { report } else { report.for_callers() })
        };
        gauges.map(report).collect()
    }

    /// What this process does, and what all of them have counted. `all`: as operators see it. `sees`: the upstreams whose
    /// state the caller sees; the flag says whether one is private. `sees_counts`: those whose counts it sees.
    pub async fn status(
        &self,
        all: bool,
        sees: impl Fn(&UpstreamId, bool) -> bool,
        sees_counts: impl Fn(&UpstreamId) -> bool,
    ) -> StatusReport {
        let (core, now) = (&self.core, self.core.clock.now());
        let mut accounts: BTreeMap<UpstreamId, Vec<QuotaReport>> = BTreeMap::new();
        for (upstream, report) in self.quotas(all, &sees).await {
            accounts.entry(upstream).or_default().push(report);
        }
        // An upstream that is no longer configured is shown to no caller: whether it was private is not known any more.
        let is_shown = |upstream: &UpstreamId| core.config.upstreams.contains_key(upstream) && sees_counts(upstream);
        let tallied = self.tallied().await.map(|tallied| tallied.shown(is_shown));
        let day = tallied.as_ref().map(|tallied| tallied.sum(Slot::hours_until(now)));
        let month = tallied.as_ref().map(|tallied| tallied.sum(Slot::days_until(now)));
        let counters: BTreeMap<_, _> = core.journal.counters().filter(|(upstream, _)| is_shown(upstream)).collect();
        let counts = |of: &[&Counters]| -> Counts {
            let sum = |metric| of.iter().map(|counters| counters.get(metric)).sum();
            self.counted().map(|(metric, _)| (metric.in_status(), sum(metric))).collect()
        };
        let used = counters.iter().filter(|(_, counters)| !counters.is_empty()).map(|(upstream, _)| *upstream);
        let counted = day.iter().chain(&month).flat_map(|(sums, _)| sums.upstreams());
        let known: BTreeSet<&UpstreamId> = used.chain(accounts.keys()).chain(counted).collect();
        let of = |summed: &Option<(Tally, Period)>, upstream: &UpstreamId| {
            let (sums, _) = summed.as_ref().filter(|_| is_shown(upstream))?;
            Some(tallies::counts(|metric| sums.get(upstream, metric)))
        };
        let upstreams = known.into_iter().map(|upstream| UpstreamStatus {
            upstream: upstream.to_string(),
            counts: counters.get(upstream).map(|counters| counts(&[counters])).unwrap_or_default(),
            day: of(&day, upstream),
            month: of(&month, upstream),
            accounts: accounts.get(upstream).cloned().unwrap_or_default(),
        });
        let (upstreams, counts) = (upstreams.collect(), counts(&counters.values().copied().collect::<Vec<_>>()));
        StatusReport {
            version: env!("CARGO_PKG_VERSION").to_owned(),
            uptime_seconds: now.after(core.journal.started_at).as_secs(),
            health: self.health().await,
            hit_percent: hit_percent(|metric| counts.get(&metric.in_status()).copied().unwrap_or_default()),
            counts,
            day: day.map(|(_, period)| period),
            month: month.map(|(_, period)| period),
            upstreams,
            fills: if all { self.fill_counts().await } else { None },
            last_sweep: self.last_sweep().filter(|_| all),
        }
    }

    async fn fill_counts(&self) -> Option<FillCounts> {
        let load = self.core.storage.fills.load()?;
        let listed = self.core.storage.fills.list().await.ok()?;
        let failed = listed.fills.iter().filter(|fill| fill.given_up.is_some()).count() + listed.images.len();
        let oldest_age_seconds = load.oldest.map(|oldest| self.core.clock.now().after(oldest).as_secs());
        let (running, waiting, resting) = (load.running, load.waiting, load.resting);
        Some(FillCounts { running, waiting, resting, failed, oldest_age_seconds })
    }
}
