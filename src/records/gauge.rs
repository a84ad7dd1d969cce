//! The quota that an upstream last reported, its breakers, and what may therefore be asked of it: decided from the
//! gauge and the time alone, no I/O, no clock.
//!
//! One gauge is of an upstream as a whole. What is asked of it, and each repository, has breakers of its own in memory,
//! by the same rules: [`Outcome::scope`] says which of them an outcome is about.

use std::fmt;
use std::time::Duration;

use http::HeaderMap;
use serde::{Deserialize, Serialize};

use crate::errors::{Limit, UpstreamError};
use crate::values::time::Timestamp;

/// Failures in a row after which the breaker of an upstream that still answers opens. If it does not answer at all, the
/// breaker opens at once: each attempt costs a client seconds.
const PATIENCE: u32 = 3;
/// The first pause after an outage; each further failure doubles it.
const FIRST_PAUSE: Duration = Duration::from_secs(5);
const LONGEST_PAUSE: Duration = Duration::from_mins(1);
/// How long the pull limit of Docker Hub is taken to last: its answer does not say (the window is six hours, but
/// slides).
const PULL_LIMIT_PAUSE: Duration = Duration::from_mins(15);
/// How long any other limit is taken to last where the answer does not say.
const RATE_LIMIT_PAUSE: Duration = Duration::from_mins(1);
/// How long one caller may probe an upstream while the breaker stays open for all others.
pub(crate) const PROBE: Duration = Duration::from_secs(10);

/// The kind of a request to an upstream.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Kind {
    /// The digest of a tag: free at Docker Hub, and still answered when the quota is used up.
    Head,
    /// A manifest: what quotas count.
    Manifest,
    /// A blob, or the URL that it redirects to: free at Docker Hub.
    Blob,
    /// A list of tags or of referrers: free at Docker Hub.
    List,
}

/// The state of one upstream as one credential sees it.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub struct Gauge {
    /// The quota that it last reported; `None`: it reports none (no limit applies).
    pub quota: Option<Quota>,
    /// An earlier reading in the same window, to compute a rate.
    pub earlier: Option<Reading>,
    /// The breaker of the quota: while it is open, no manifest is fetched.
    pub manifests: Option<Break>,
    /// The breaker of outages and of limits on requests: while it is open, nothing is asked.
    pub requests: Option<Break>,
}

/// The quota headers of an answer (Docker Hub, "Pull rate limit").
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Quota {
    /// Pulls in a window.
    pub limit: u64,
    /// What was left, and when.
    pub reading: Reading,
    /// Length of the window in seconds.
    pub window_seconds: u64,
    /// Whose quota: an address, or the id of an account.
    pub source: Option<String>,
}

/// How much quota was left at a time.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Reading {
    /// Pulls that were left.
    pub remaining: u64,
    /// When upstream said so.
    pub at: Timestamp,
}

/// A breaker: "do not ask until then".
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Break {
    /// When the failures or the limit began.
    pub since: Timestamp,
    /// Until when no request is sent; after that one caller probes.
    pub until: Timestamp,
    /// Failures in a row. The breaker opens at `PATIENCE` of them.
    pub failures: u32,
    /// What happened last.
    pub cause: Cause,
}

impl Break {
    /// Whether there were so many failures that upstream is not asked.
    pub fn is_open(&self) -> bool {
        self.failures >= PATIENCE
    }
}

/// Why an upstream is not asked.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Cause {
    /// It limits us.
    Limited(Limit),
    /// It fails, in these words.
    Failing(String),
}

impl fmt::Display for Cause {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Limited(limit) => write!(formatter, "upstream limits our {limit}"),
            Self::Failing(reason) => formatter.write_str(reason),
        }
    }
}

/// Whether a request may be sent.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Permit {
    /// Yes.
    Go,
    /// By one caller: the one whose conditional write puts this gauge over the one that was read.
    Probe(Gauge),
    /// No: this breaker is open.
    Closed(Break),
}

/// How a request ended, as far as the gauge needs to know.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Outcome {
    /// With an answer, be it a 404.
    Answered,
    /// With a limit, and how long it lasts if upstream said so.
    Limited(Limit, Option<Duration>),
    /// With a failure, or (`silent`) with nothing at all.
    Failed {
        /// No connection, or no answer in time.
        silent: bool,
        /// What failed, in words.
        reason: String,
    },
}

/// What the trouble of an outcome is about: what one caller can provoke must not close an upstream for the others.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Scope {
    /// What was asked for: another tag, blob or list may well be answered.
    Question,
    /// All of its repository: a registry in between passes on the limits of where it copies from.
    Repository,
    /// The upstream: it answers, or limits our account.
    Upstream,
}

impl Outcome {
    /// Where it counts. Trouble of less than the upstream is trouble of the upstream only if its `/v2/` says so too.
    pub fn scope(&self) -> Scope {
        match self {
            Self::Answered | Self::Limited(Limit::Pulls | Limit::Login, _) => Scope::Upstream,
            Self::Limited(Limit::Requests, _) => Scope::Repository,
            Self::Failed { .. } => Scope::Question,
        }
    }

    /// The outcome of a request with this result.
    pub fn of<T>(result: &Result<T, UpstreamError>) -> Self {
        match result {
            Err(UpstreamError::Throttled { limit, retry_after, .. }) => Self::Limited(*limit, *retry_after),
            Err(UpstreamError::Unavailable { silent, reason }) => {
                Self::Failed { silent: *silent, reason: reason.clone() }
            }
            // Clients are told the reason, but not which hosts upstream uses.
            Err(UpstreamError::Elsewhere { silent, .. }) => {
                Self::Failed { silent: *silent, reason: "where it redirects to is unavailable".into() }
            }
            _ => Self::Answered,
        }
    }
}

impl Gauge {
    /// Whether a request of this kind may be sent now.
    pub fn permit(&self, kind: Kind, now: Timestamp) -> Permit {
        let mut probe = self.clone();
        let mut probes = false;
        let manifests = if kind == Kind::Manifest { probe.manifests.as_mut() } else { None };
        for broken in [probe.requests.as_mut(), manifests].into_iter().flatten() {
            if !broken.is_open() {
                continue;
            }
            if now < broken.until {
                return Permit::Closed(broken.clone());
            }
            broken.until = now.plus(PROBE);
            probes = true;
        }
        if probes { Permit::Probe(probe) } else { Permit::Go }
    }

    /// The gauge after a request of this kind.
    #[must_use]
    pub fn after(&self, kind: Kind, outcome: &Outcome, now: Timestamp) -> Self {
        let mut after = self.clone();
        let limited = |limit, pause: Option<Duration>, otherwise: Duration| Break {
            since: now,
            until: now.plus(pause.unwrap_or(otherwise)),
            failures: PATIENCE,
            cause: Cause::Limited(limit),
        };
        match outcome {
            Outcome::Answered => {
                after.requests = None;
                if kind == Kind::Manifest {
                    after.manifests = None;
                }
            }
            Outcome::Limited(Limit::Pulls, pause) => {
                after.manifests = Some(limited(Limit::Pulls, *pause, PULL_LIMIT_PAUSE));
            }
            Outcome::Limited(limit, pause) => after.requests = Some(limited(*limit, *pause, RATE_LIMIT_PAUSE)),
            Outcome::Failed { silent, reason } => {
                let before = self.requests.as_ref();
                let failures = before.map_or(0, |broken| broken.failures).saturating_add(1);
                let failures = if *silent { failures.max(PATIENCE) } else { failures };
                let doubled = FIRST_PAUSE.saturating_mul(1 << failures.saturating_sub(PATIENCE).min(10));
                after.requests = Some(Break {
                    since: before.map_or(now, |broken| broken.since),
                    until: now.plus(doubled.min(LONGEST_PAUSE)),
                    failures,
                    cause: Cause::Failing(reason.clone()),
                });
            }
        }
        after
    }

    /// The gauge after an answer with quota headers.
    #[must_use]
    pub fn with(&self, quota: Quota) -> Self {
        let before = self.quota.as_ref().map(|quota| quota.reading);
        let window_began = quota.reading.at.0.saturating_sub(quota.window_seconds);
        // A reading that rises is of another window, or another bucket: no rate spans the two.
        let refilled = before.is_none_or(|before| quota.reading.remaining > before.remaining);
        let earlier = match self.earlier.filter(|earlier| !refilled && earlier.at.0 >= window_began) {
            Some(earlier) => earlier,
            None => quota.reading,
        };
        Self { quota: Some(quota), earlier: Some(earlier), ..self.clone() }
    }

    /// This gauge with the reading of another, if that is later: not every reading is shared at once.
    #[must_use]
    pub fn or_later(self, other: &Self) -> Self {
        let at = |gauge: &Self| gauge.quota.as_ref().map(|quota| quota.reading.at);
        if at(other) < at(&self) {
            return self;
        }
        Self { quota: other.quota.clone(), earlier: other.earlier, ..self }
    }

    /// Whether so little quota is left that it is kept for clients who wait.
    pub fn is_in_reserve(&self, reserve: u64, now: Timestamp) -> bool {
        // A reading older than its window says nothing of the present one.
        let present = |quota: &&Quota| now < quota.reading.at.plus(Duration::from_secs(quota.window_seconds));
        self.quota.as_ref().filter(present).is_some_and(|quota| quota.reading.remaining <= reserve)
    }

    /// When the quota will be used up at the present rate, in words.
    pub fn forecast(&self, now: Timestamp) -> String {
        let (Some(quota), Some(earlier)) = (&self.quota, self.earlier) else {
            return "no limit was named".into();
        };
        if quota.reading.remaining == 0 {
            return "empty".into();
        }
        let spent = earlier.remaining.saturating_sub(quota.reading.remaining);
        let seconds = quota.reading.at.0.saturating_sub(earlier.at.0);
        if spent == 0 || seconds == 0 {
            return "not being used up".into();
        }
        let left = u128::from(quota.reading.remaining) * u128::from(seconds) / u128::from(spent);
        let passed = u128::from(now.0.saturating_sub(quota.reading.at.0));
        match left.saturating_sub(passed).div_ceil(60) {
            minutes if minutes > 48 * 60 => "lasts for days at the present rate".into(),
            minutes => format!("empty in about {minutes} min at the present rate"),
        }
    }
}

impl Quota {
    /// What is left, in percent of the window.
    pub fn percent(&self) -> u64 {
        self.reading.remaining.saturating_mul(100) / self.limit.max(1)
    }

    /// Reads `ratelimit-limit: 100;w=21600`, `ratelimit-remaining: 76;w=21600` and `docker-ratelimit-source`. Headers
    /// of another form count as absent.
    pub fn read(headers: &HeaderMap, now: Timestamp) -> Option<Self> {
        let text = |name: &str| headers.get(name)?.to_str().ok();
        let number = |name: &str| text(name)?.split(';').next()?.trim().parse::<u64>().ok();
        let window = |name: &str| text(name)?.split(';').find_map(|part| part.trim().strip_prefix("w="))?.parse().ok();
        let (limit, remaining) = (number("ratelimit-limit")?, number("ratelimit-remaining")?);
        Some(Self {
            limit,
            reading: Reading { remaining: remaining.min(limit), at: now },
            window_seconds: window("ratelimit-limit").unwrap_or(6 * 3600).min(31 * 24 * 3600),
            source: text("docker-ratelimit-source").map(|source| source.chars().take(80).collect()),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: Timestamp = Timestamp(1_000_000);

    fn failed(silent: bool) -> Outcome {
        Outcome::Failed { silent, reason: "503".into() }
    }

    fn later(seconds: u64) -> Timestamp {
        Timestamp(NOW.0 + seconds)
    }

    #[test]
    fn an_upstream_that_fails_three_times_in_a_row_is_left_alone_and_one_that_is_silent_at_once() {
        let mut gauge = Gauge::default();
        for _ in 0..2 {
            gauge = gauge.after(Kind::Head, &failed(false), NOW);
            assert_eq!(gauge.permit(Kind::Manifest, NOW), Permit::Go);
        }
        assert_eq!(gauge.after(Kind::Head, &Outcome::Answered, NOW), Gauge::default(), "an answer forgives");
        for broken in
            [gauge.after(Kind::Blob, &failed(false), NOW), Gauge::default().after(Kind::Head, &failed(true), NOW)]
        {
            for kind in [Kind::Head, Kind::Manifest, Kind::Blob, Kind::List] {
                assert!(matches!(broken.permit(kind, later(4)), Permit::Closed(_)));
                assert!(matches!(broken.permit(kind, later(5)), Permit::Probe(_)));
            }
        }
    }

    /// Whatever upstream says: what its trouble is about, whether the caller that asked pays a miss, whether what was
    /// said before still holds, and whether it is refused.
    #[test]
    fn an_outcome_is_trouble_of_what_was_asked_for_of_its_repository_or_of_the_upstream() {
        use UpstreamError::{Denied, Elsewhere, Invalid, Missing, NoRepository, Throttled, Unavailable};
        let unavailable = |silent| Unavailable { silent, reason: "503".into() };
        let elsewhere = |silent| Elsewhere { silent, reason: "503".into() };
        let throttled = |limit| Throttled { limit, retry_after: None, detail: String::new() };
        for (error, scope, trouble, refusal) in [
            (Missing, Scope::Upstream, false, false),
            (NoRepository, Scope::Upstream, false, true),
            (Denied("no".into()), Scope::Upstream, false, true),
            (Invalid("a page".into()), Scope::Upstream, false, false),
            (elsewhere(true), Scope::Question, true, false),
            (elsewhere(false), Scope::Question, true, false),
            (unavailable(true), Scope::Question, true, false),
            (unavailable(false), Scope::Question, true, false),
            (throttled(Limit::Requests), Scope::Repository, true, false),
            (throttled(Limit::Pulls), Scope::Upstream, true, false),
            (throttled(Limit::Login), Scope::Upstream, true, false),
        ] {
            let outcome = Outcome::of::<()>(&Err(error.clone()));
            assert_eq!((outcome.scope(), error.is_trouble(), error.is_refusal()), (scope, trouble, refusal), "{error}");
            assert_eq!((error.is_miss(), error.clone().left_alone().is_miss()), (true, false), "{error}");
        }
        assert_eq!(Outcome::of(&Ok::<_, UpstreamError>(())).scope(), Scope::Upstream);
    }

    #[test]
    fn one_caller_probes_while_the_others_leave_it_alone_and_each_failure_doubles_the_pause() {
        let mut gauge = Gauge::default().after(Kind::Head, &failed(true), NOW);
        let Permit::Probe(probing) = gauge.permit(Kind::Head, later(5)) else { panic!("{gauge:?}") };
        assert!(matches!(probing.permit(Kind::Head, later(5)), Permit::Closed(_)));
        assert!(matches!(probing.permit(Kind::Head, later(15)), Permit::Probe(_)), "a probe that died is replaced");
        let mut pauses = Vec::new();
        for _ in 0..6 {
            pauses.push(gauge.requests.as_ref().unwrap().until.0 - NOW.0);
            gauge = gauge.after(Kind::Head, &failed(true), NOW);
        }
        assert_eq!(pauses, [5, 10, 20, 40, 60, 60]);
    }

    #[test]
    fn the_pull_limit_stops_manifests_and_nothing_else() {
        let limited = Outcome::Limited(Limit::Pulls, None);
        let gauge = Gauge::default().after(Kind::Manifest, &limited, NOW);
        assert!(matches!(gauge.permit(Kind::Manifest, later(899)), Permit::Closed(_)));
        for kind in [Kind::Head, Kind::Blob, Kind::List] {
            assert_eq!(gauge.permit(kind, NOW), Permit::Go);
        }
        let gauge = gauge.after(Kind::Head, &Outcome::Answered, NOW);
        assert!(matches!(gauge.permit(Kind::Manifest, NOW), Permit::Closed(_)), "a HEAD says nothing of it");
        let gauge = gauge.after(Kind::Manifest, &Outcome::Answered, later(900));
        assert_eq!(gauge.permit(Kind::Manifest, later(900)), Permit::Go);
    }

    #[test]
    fn other_limits_stop_everything_for_as_long_as_they_say() {
        for limit in [Limit::Requests, Limit::Login] {
            let outcome = Outcome::Limited(limit, Some(Duration::from_secs(7)));
            let gauge = Gauge::default().after(Kind::Head, &outcome, NOW);
            assert!(matches!(gauge.permit(Kind::Blob, later(6)), Permit::Closed(_)));
            assert!(matches!(gauge.permit(Kind::Blob, later(7)), Permit::Probe(_)));
        }
    }

    fn quota(limit: &str, remaining: &str) -> Option<Quota> {
        let mut headers = HeaderMap::new();
        headers.insert("ratelimit-limit", limit.parse().unwrap());
        headers.insert("ratelimit-remaining", remaining.parse().unwrap());
        headers.insert("docker-ratelimit-source", "192.0.2.1".parse().unwrap());
        Quota::read(&headers, NOW)
    }

    #[test]
    fn quota_headers_are_read_and_nonsense_says_nothing() {
        let read = quota("100;w=21600", "76;w=21600").unwrap();
        assert_eq!((read.limit, read.reading.remaining, read.window_seconds), (100, 76, 21600));
        assert_eq!(read.source.as_deref(), Some("192.0.2.1"));
        assert_eq!(quota("100", "7").unwrap().window_seconds, 21600);
        assert_eq!(quota("100;w=1", "7000").unwrap().reading.remaining, 100, "never more than the limit");
        for (limit, remaining) in
            [("100", "-1"), ("", "5"), ("many", "5"), ("99999999999999999999999", "5"), (";w=5", "5")]
        {
            assert_eq!(quota(limit, remaining), None, "{limit} {remaining}");
        }
    }

    #[test]
    fn a_later_reading_is_kept_over_one_that_was_shared_before() {
        let reading = |remaining, at| Quota { reading: Reading { remaining, at }, ..quota("100", "0").unwrap() };
        let (shared, own) = (Gauge::default().with(reading(9, NOW)), Gauge::default().with(reading(8, NOW)));
        let failing = shared.after(Kind::Head, &failed(true), NOW);
        assert_eq!(failing.clone().or_later(&own), Gauge { requests: failing.requests, ..own.clone() });
        let later = Gauge::default().with(reading(7, later(1)));
        assert_eq!(later.clone().or_later(&own), later);
        assert_eq!(shared.clone().or_later(&Gauge::default()), shared);
    }

    #[test]
    fn a_reserve_is_kept_as_long_as_the_reading_means_the_present_window() {
        let gauge = Gauge::default().with(quota("100;w=60", "10").unwrap());
        assert!(gauge.is_in_reserve(10, later(59)));
        assert!(!gauge.is_in_reserve(9, later(59)));
        assert!(!gauge.is_in_reserve(10, later(60)));
        assert!(!Gauge::default().is_in_reserve(10, NOW), "no limit was named");
    }

    #[test]
    fn the_forecast_is_the_rate_since_an_earlier_reading_of_the_window() {
        let reading = |remaining, at| Quota { reading: Reading { remaining, at }, ..quota("100", "0").unwrap() };
        let gauge = Gauge::default();
        assert_eq!(gauge.forecast(NOW), "no limit was named");
        let gauge = gauge.with(reading(90, NOW));
        assert_eq!(gauge.forecast(NOW), "not being used up");
        let gauge = gauge.with(reading(60, later(3600)));
        assert_eq!(gauge.forecast(later(3600)), "empty in about 120 min at the present rate");
        assert_eq!(gauge.forecast(later(3600 + 1800)), "empty in about 90 min at the present rate");
        let refilled = gauge.with(reading(100, later(7200)));
        assert_eq!(refilled.forecast(later(7200)), "not being used up");
        assert_eq!(gauge.with(reading(0, later(7200))).forecast(later(7200)), "empty");
    }
}
