//! Sums of what all processes of a cache have counted, by the hour and by the day.

use std::collections::BTreeMap;
use std::fmt;
use std::str::FromStr;
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

/// What is no hour and no day.
#[derive(thiserror::Error, Debug)]
#[error("no hour and no day")]
pub struct NoSlot;

impl FromStr for Slot {
    type Err = NoSlot;

    fn from_str(text: &str) -> Result<Self, NoSlot> {
        let (kind, number) = text.split_once('#').ok_or(NoSlot)?;
        let number = number.parse().map_err(|_| NoSlot)?;
        match kind {
            "hour" => Ok(Self::Hour(number)),
            "day" => Ok(Self::Day(number)),
            _ => Err(NoSlot),
        }
    }
}

/// What was counted at each upstream. A sum that is not there is 0.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
#[serde(from = "BTreeMap<String, u64>", into = "BTreeMap<String, u64>")]
pub struct Tally(BTreeMap<(UpstreamId, Metric), u64>);

impl Tally {
    /// Counts.
    pub fn add(&mut self, upstream: &UpstreamId, metric: Metric, count: u64) {
        let sum = self.0.entry((upstream.clone(), metric)).or_default();
        *sum = sum.saturating_add(count);
    }

    /// Adds what another one has.
    pub fn merge(&mut self, other: &Self) {
        for ((upstream, metric), count) in &other.0 {
            self.add(upstream, *metric, *count);
        }
    }

    /// Takes away what another one has.
    pub(super) fn subtract(&mut self, other: &Self) {
        for (key, sum) in &mut self.0 {
            *sum = sum.saturating_sub(other.0.get(key).copied().unwrap_or_default());
        }
        self.0.retain(|_, sum| *sum > 0);
    }

    /// The sum over the upstreams that are shown.
    pub fn sum(&self, metric: Metric, is_shown: impl Fn(&UpstreamId) -> bool) -> u64 {
        let shown = self.0.iter().filter(|((upstream, counted), _)| *counted == metric && is_shown(upstream));
        shown.fold(0, |sum, (_, count)| sum.saturating_add(*count))
    }

    /// The upstreams at which something was counted.
    pub fn upstreams(&self) -> impl Iterator<Item = &UpstreamId> {
        self.0.keys().map(|(upstream, _)| upstream)
    }

    /// Whether nothing was counted.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// The same in parts, each of so many sums at most.
    pub fn in_parts(self, most: usize) -> impl Iterator<Item = Self> {
        let mut sums = self.0.into_iter().peekable();
        std::iter::from_fn(move || {
            sums.peek()?;
            Some(Self(sums.by_ref().take(most.max(1)).collect()))
        })
    }

    /// Each sum by the name under which it is written down: `docker.io pulls_spent`.
    pub fn by_name(&self) -> impl Iterator<Item = (String, u64)> {
        self.0.iter().map(|((upstream, metric), sum)| (format!("{upstream} {}", metric.in_status()), *sum))
    }

    /// The sums that have such names. What another release counts is left out.
    pub fn of_names<'a>(sums: impl IntoIterator<Item = (&'a str, u64)>) -> Self {
        let named = |(name, sum): (&str, u64)| {
            let (upstream, metric) = name.split_once(' ')?;
            Some(((upstream.parse().ok()?, Metric::named(metric)?), sum))
        };
        Self(sums.into_iter().filter_map(named).collect())
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
            assert_eq!(slot.to_string().parse::<Slot>().ok(), Some(*slot));
        }
        for text in ["hour", "hour#", "hour#-1", "month#3", "day#3 ", ""] {
            assert!(text.parse::<Slot>().is_err(), "{text}");
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
        assert_eq!((sums.sum(Hits, |_| true), sums.sum(Hits, |id| *id == a), sums.sum(Misses, |_| true)), (14, 6, 0));
        assert_eq!(sums.sum(SavedBytes, |_| true), u64::MAX, "it does not begin anew");
        let parts: Vec<Tally> = sums.clone().in_parts(2).collect();
        assert_eq!(parts.len(), 2);
        for part in &parts {
            sums.subtract(part);
        }
        assert!(sums.is_empty() && sums.in_parts(2).next().is_none());
        let text = serde_json::to_string(&tally).unwrap();
        assert!(text.contains("\"b.test hits\":4"), "{text}");
        assert_eq!(serde_json::from_str::<Tally>(&text).unwrap(), tally);
        let newer = "{\"a.test hits\":3,\"a.test of_a_newer_release\":1,\"no upstream\":1,\"hits\":1}";
        assert_eq!(serde_json::from_str::<Tally>(newer).unwrap().by_name().count(), 1);
    }
}
