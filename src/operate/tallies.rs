//! What all processes of a cache have counted together: each writes down its own now and then, so that no pull costs a
//! write, and any of them shows the sums.

use std::collections::BTreeMap;
use std::time::Duration;

use futures_util::stream::{self, StreamExt as _};
use serde::{Deserialize, Serialize};

use super::Operate;
use super::status::Counts;
use crate::errors::{StoreError, beside, chain};
use crate::journal::{Metric, Slot, Tally};
use crate::oci::UpstreamId;
use crate::ports::{MOST_SUMS, in_time};
use crate::values::time::Timestamp;

/// How often a process writes down what it has counted where an answer waits for that: two writes.
const EVERY: Duration = Duration::from_mins(1);

/// How long storage may take: an answer waits for it.
const PATIENCE: Duration = Duration::from_secs(2);

/// How long sums that were read are good for: what shows them asks again and again.
const FRESH: Duration = Duration::from_secs(10);

/// How many slots are written at once. There are two, the hour and the day, unless nothing could be written for a while.
const AT_ONCE: usize = 4;

/// What was counted lately, in all processes.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Period {
    /// What was counted at all upstreams that are shown.
    pub counts: Counts,
    /// How many requests of a hundred were answered with what is stored; absent before the first one.
    pub hit_percent: Option<u64>,
    /// The hours or days, the oldest first.
    pub steps: Vec<Step>,
}

/// How the requests of an hour or of a day were answered.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Step {
    /// When it begins, in seconds since the Unix epoch.
    pub at: u64,
    /// With what is stored.
    pub stored: u64,
    /// Otherwise.
    pub missed: u64,
}

/// What was read of the sums, and when they were written.
#[derive(Default)]
pub(super) struct Sums {
    /// When this process began to write last.
    written_at: Option<Timestamp>,
    /// `None` in it: they could not be read.
    read: Option<(Timestamp, Option<Tallied>)>,
}

/// The sums by hours and days.
#[derive(Clone)]
pub(super) struct Tallied(BTreeMap<Slot, Tally>);

impl Tallied {
    /// The same without the upstreams that are not shown.
    pub(super) fn shown(self, is_shown: impl Fn(&UpstreamId) -> bool) -> Self {
        Self(self.0.into_iter().map(|(slot, tally)| (slot, tally.shown(&is_shown))).collect())
    }

    /// The sums of these hours or days by upstream, and what a report says of them.
    pub(super) fn sum(&self, slots: impl Iterator<Item = Slot>) -> (Tally, Period) {
        let (mut sums, mut steps, none) = (Tally::default(), Vec::new(), Tally::default());
        for slot in slots {
            let tally = self.0.get(&slot).unwrap_or(&none);
            sums.merge(tally);
            let stored = Metric::STORED.map(|metric| tally.total(metric)).iter().sum();
            steps.push(Step { at: slot.begins_at().0, stored, missed: tally.total(Metric::Misses) });
        }
        let total = |metric| sums.total(metric);
        let period = Period { counts: counts(total), hit_percent: hit_percent(total), steps };
        (sums, period)
    }
}

/// What is counted by upstream, by the names of the metrics.
pub(super) fn counts(count: impl Fn(Metric) -> u64) -> Counts {
    Metric::BY_UPSTREAM.into_iter().map(|(metric, _)| (metric.in_status(), count(metric))).collect()
}

/// How many requests of a hundred were answered with what is stored; none before the first one.
pub(super) fn hit_percent(count: impl Fn(Metric) -> u64) -> Option<u64> {
    let stored: u64 = Metric::STORED.map(&count).iter().sum();
    (stored * 100).checked_div(stored + count(Metric::Misses))
}

impl Operate {
    /// Writes down what this process has counted since it last did. What cannot be written is kept for the next time.
    pub async fn write_counts(&self) {
        self.write_down(&mut *self.sums.lock().await).await;
    }

    /// The same, unless it was done less than a minute ago, or another request does it. For a process that runs only while
    /// it answers.
    pub async fn write_counts_if_due(&self) {
        let Ok(mut sums) = self.sums.try_lock() else { return };
        let last = sums.written_at.unwrap_or(self.core.journal.started_at);
        if last.plus(EVERY) <= self.core.clock.now() {
            self.write_down(&mut sums).await;
        }
    }

    async fn write_down(&self, sums: &mut Sums) {
        let (journal, ledger) = (&self.core.journal, &self.core.storage.ledger);
        let unwritten = journal.unwritten();
        sums.written_at = Some(self.core.clock.now());
        if unwritten.is_empty() {
            return;
        }
        sums.read = None;
        let mut writes = Vec::new();
        for (slot, tally) in unwritten {
            writes.extend(tally.in_parts(MOST_SUMS).into_iter().map(|part| async move {
                ledger.add_tally(slot, &part).await?;
                journal.note_written(slot, &part);
                Ok(())
            }));
        }
        let written = async {
            let written: Vec<Result<(), StoreError>> = stream::iter(writes).buffer_unordered(AT_ONCE).collect().await;
            written.into_iter().collect::<Result<(), _>>()
        };
        beside(in_time(PATIENCE, written).await, "what was counted");
    }

    /// What all processes have counted lately, up to now in this one. `None`: what others have counted cannot be read.
    pub(super) async fn tallied(&self) -> Option<Tallied> {
        let mut sums = self.sums.lock().await;
        let now = self.core.clock.now();
        if sums.read.as_ref().is_none_or(|(at, _)| at.plus(FRESH) <= now) {
            let slots: Vec<Slot> = Slot::hours_until(now).chain(Slot::days_until(now)).collect();
            let read = in_time(PATIENCE, self.core.storage.ledger.tallies(&slots)).await;
            let told = |error: &StoreError| tracing::warn!(error = %chain(error), "what was counted cannot be read");
            let read = read.map(|read| Tallied(read.into_iter().collect()));
            sums.read = Some((now, read.inspect_err(told).ok()));
        }
        let mut tallied = sums.read.as_ref()?.1.clone()?;
        for (slot, tally) in self.core.journal.unwritten() {
            tallied.0.entry(slot).or_default().merge(&tally);
        }
        Some(tallied)
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::Ordering;

    use super::*;
    use crate::ports::Tallies as _;
    use crate::ports::troubled::Troubled;
    use crate::values::time::Clock;

    const NOW: Timestamp = Timestamp(1_800_000_000);

    #[tokio::test]
    async fn what_could_not_be_written_is_written_once() {
        let directory = tempfile::tempdir().unwrap();
        let (cache, ledger) = Troubled::cache(directory.path(), &Clock::manual(NOW));
        let upstream = "docker.io".parse().unwrap();
        let slots = Slot::at(NOW);
        let hits = async || {
            let tallies = ledger.tallies(&slots).await.unwrap();
            tallies.iter().map(|(_, tally)| tally.total(Metric::Hits)).collect::<Vec<_>>()
        };
        cache.core.journal.of(Some(&upstream)).add(Metric::Hits, 2);
        // One of both: which, is not said.
        ledger.overtaken.store(1, Ordering::SeqCst);
        cache.operate.write_counts().await;
        assert_eq!(hits().await, [2]);
        cache.core.journal.of(Some(&upstream)).add(Metric::Hits, 1);
        cache.operate.write_counts().await;
        cache.operate.write_counts().await;
        assert_eq!(hits().await, [3, 3]);
        let sum = |period: &Option<Period>| period.as_ref().map(|period| period.counts["hits"]);
        let status = cache.operate.status(true, |_, _| true, |_| true).await;
        assert_eq!((sum(&status.day), sum(&status.month)), (Some(3), Some(3)));
    }

    #[tokio::test(start_paused = true)]
    async fn a_ledger_that_does_not_answer_makes_no_status_wait_for_long() {
        let directory = tempfile::tempdir().unwrap();
        let (cache, ledger) = Troubled::cache(directory.path(), &Clock::manual(NOW));
        ledger.silent.store(true, Ordering::SeqCst);
        let begun = tokio::time::Instant::now();
        for _ in 0..10 {
            assert!(cache.operate.tallied().await.is_none());
        }
        assert_eq!(begun.elapsed(), PATIENCE, "one waits for all of them");
    }
}
