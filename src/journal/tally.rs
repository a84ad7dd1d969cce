//! Sums of what all processes of a cache have counted, by the hour and by the day.

use std::collections::BTreeMap;
use std::fmt;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::Metric;
use crate::oci::UpstreamId;
use crate::values::time::Timestamp;

const HOUR: u64 = 60 * 60;
const DAY: u64 = 24 * HOUR;

/// How many hours and days are shown, those that are not over included.
const SHOWN_HOURS: u64 = 24;
const SHOWN_DAYS: u64 = 30;

/// How long sums are kept after their hour or day has begun.
const KEPT_HOURS: Duration = Duration::from_hours(2 * 24);
const KEPT_DAYS: Duration = Duration::from_hours(35 * 24);

/// An hour or a day of UTC, by its number since 1970.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub enum Slot {
    /// An hour.
    Hour(u64),
    /// A day.
    Day(u64),
}

impl Slot {
    /// The hour and the day of a time.
    pub const fn at(now: Timestamp) -> [Self; 2] {
        [Self::Hour(now.0 / HOUR), Self::Day(now.0 / DAY)]
    }

    /// The last 24 hours, the oldest first.
    pub fn hours_until(now: Timestamp) -> impl Iterator<Item = Self> {
        let last = now.0 / HOUR;
        (last.saturating_sub(SHOWN_HOURS - 1)..=last).map(Self::Hour)
    }

    /// The last 30 days, the oldest first.
    pub fn days_until(now: Timestamp) -> impl Iterator<Item = Self> {
        let last = now.0 / DAY;
        (last.saturating_sub(SHOWN_DAYS - 1)..=last).map(Self::Day)
    }

    /// When it begins.
    pub const fn begins_at(self) -> Timestamp {
        match self {
            Self::Hour(number) => Timestamp(number.saturating_mul(HOUR)),
            Self::Day(number) => Timestamp(number.saturating_mul(DAY)),
        }
    }

    /// What is written down so. `None`: no hour and no day.
    pub fn parse(text: &str) -> Option<Self> {
        let (kind, number) = text.split_once('#')?;
        let number = number.parse().ok()?;
        match kind {
            "hour" => Some(Self::Hour(number)),
            "day" => Some(Self::Day(number)),
            _ => None,
        }
    }

    /// When its sums may be forgotten.
    pub fn kept_until(self) -> Timestamp {
        self.begins_at().plus(if matches!(self, Self::Hour(_)) { KEPT_HOURS } else { KEPT_DAYS })
    }
}

/// How it is written down: `hour#500000`.
impl fmt::Display for Slot {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Hour(number) => write!(formatter, "hour#{number}"),
            Self::Day(number) => write!(formatter, "day#{number}"),
        }
    }
}

/// What was counted at each upstream. A sum that is not there is 0.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
#[serde(from = "BTreeMap<String, u64>", into = "BTreeMap<String, u64>")]
pub struct Tally(BTreeMap<UpstreamId, BTreeMap<Metric, u64>>);

impl Tally {
    /// Counts.
    pub fn add(&mut self, upstream: &UpstreamId, metric: Metric, count: u64) {
        if count > 0 {
            let sum = self.0.entry(upstream.clone()).or_default().entry(metric).or_default();
            *sum = sum.saturating_add(count);
        }
    }

    /// Adds what another one has.
    pub fn merge(&mut self, other: &Self) {
        for (upstream, metric, count) in other.sums() {
            self.add(upstream, metric, count);
        }
    }

    /// Takes away what another one has.
    pub(super) fn subtract(&mut self, other: &Self) {
        for (upstream, sums) in &mut self.0 {
            for (metric, sum) in sums.iter_mut() {
                *sum = sum.saturating_sub(other.get(upstream, *metric));
            }
            sums.retain(|_, sum| *sum > 0);
        }
        self.0.retain(|_, sums| !sums.is_empty());
    }

    /// What was counted at an upstream.
    pub fn get(&self, upstream: &UpstreamId, metric: Metric) -> u64 {
        self.0.get(upstream).and_then(|sums| sums.get(&metric)).copied().unwrap_or_default()
    }

    /// The sum over all upstreams.
    pub fn total(&self, metric: Metric) -> u64 {
        let counts = self.0.values().filter_map(|sums| sums.get(&metric));
        counts.fold(0, |total, count| total.saturating_add(*count))
    }

    /// The same without the upstreams that are not shown.
    #[must_use]
    pub fn shown(mut self, is_shown: impl Fn(&UpstreamId) -> bool) -> Self {
        self.0.retain(|upstream, _| is_shown(upstream));
        self
    }

    /// The upstreams at which something was counted.
    pub fn upstreams(&self) -> impl Iterator<Item = &UpstreamId> {
        self.0.keys()
    }

    /// Whether nothing was counted.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// The same in parts, each of so many sums at most.
    pub fn in_parts(&self, most: usize) -> Vec<Self> {
        let sums: Vec<_> = self.sums().collect();
        let part = |sums: &[(&UpstreamId, Metric, u64)]| {
            let mut part = Self::default();
            for (upstream, metric, count) in sums {
                part.add(upstream, *metric, *count);
            }
            part
        };
        sums.chunks(most.max(1)).map(part).collect()
    }

    /// Each sum by the name under which it is written down: `docker.io pulls_spent`.
    pub fn by_name(&self) -> impl Iterator<Item = (String, u64)> {
        self.sums().map(|(upstream, metric, sum)| (format!("{upstream} {}", metric.in_status()), sum))
    }

    /// The sums that have such names. What another release counts is left out.
    pub fn of_names<'a>(sums: impl IntoIterator<Item = (&'a str, u64)>) -> Self {
        let mut tally = Self::default();
        for (name, sum) in sums {
            let named = name
                .split_once(' ')
                .and_then(|(upstream, metric)| Some((upstream.parse().ok()?, Metric::named(metric)?)));
            if let Some((upstream, metric)) = named {
                tally.add(&upstream, metric, sum);
            }
        }
        tally
    }

    fn sums(&self) -> impl Iterator<Item = (&UpstreamId, Metric, u64)> {
        self.0.iter().flat_map(|(upstream, sums)| sums.iter().map(move |(metric, sum)| (upstream, *metric, *sum)))
    }
}

impl From<Tally> for BTreeMap<String, u64> {
    fn from(tally: Tally) -> Self {
        tally.by_name().collect()
    }
}

impl From<BTreeMap<String, u64>> for Tally {
    fn from(sums: BTreeMap<String, u64>) -> Self {
        Self::of_names(sums.iter().map(|(name, sum)| (name.as_str(), *sum)))
    }
}

#[cfg(test)]
mod tests {
    use super::Metric::{Hits, Misses, SavedBytes};
    use super::*;

    #[test]
    fn a_time_is_in_one_hour_and_one_day_that_are_kept_longer_than_they_are_shown() {
        let now = Timestamp(1_800_000_000);
        let [hour, day] = Slot::at(now);
        assert_eq!((hour, day), (Slot::Hour(500_000), Slot::Day(20_833)));
        assert_eq!(hour.begins_at(), now);
        let (hours, days): (Vec<_>, Vec<_>) = (Slot::hours_until(now).collect(), Slot::days_until(now).collect());
        assert_eq!((hours.len(), hours.last(), days.len(), days.last()), (24, Some(&hour), 30, Some(&day)));
        for slot in hours.iter().chain(&days) {
            assert!(now < slot.kept_until(), "{slot}");
            assert_eq!(Slot::parse(&slot.to_string()), Some(*slot));
        }
        for text in ["hour", "hour#", "hour#-1", "month#3", "day#3 ", ""] {
            assert_eq!(Slot::parse(text), None, "{text}");
        }
    }

    #[test]
    fn sums_are_added_taken_away_written_down_and_read_again() {
        let [a, b] = ["a.test", "b.test"].map(|id| id.parse::<UpstreamId>().unwrap());
        let mut tally = Tally::default();
        tally.add(&a, Hits, 3);
        tally.add(&b, Hits, 4);
        tally.add(&b, SavedBytes, u64::MAX);
        let mut sums = tally.clone();
        sums.merge(&tally);
        assert_eq!((sums.total(Hits), sums.get(&a, Hits), sums.total(Misses)), (14, 6, 0));
        assert_eq!(sums.clone().shown(|id| *id == b).total(Hits), 8);
        assert_eq!(sums.total(SavedBytes), u64::MAX, "it does not begin anew");
        let parts = sums.in_parts(2);
        assert_eq!(parts.len(), 2);
        for part in &parts {
            sums.subtract(part);
        }
        assert!(sums.is_empty() && sums.in_parts(2).is_empty());
        let text = serde_json::to_string(&tally).unwrap();
        assert!(text.contains("\"b.test hits\":4"), "{text}");
        assert_eq!(serde_json::from_str::<Tally>(&text).unwrap(), tally);
        let newer = "{\"a.test hits\":3,\"a.test of_a_newer_release\":1,\"no upstream\":1,\"hits\":1}";
        assert_eq!(serde_json::from_str::<Tally>(newer).unwrap().by_name().count(), 1);
    }
}
