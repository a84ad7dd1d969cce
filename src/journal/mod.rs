//! What a process has counted since it started, and what has failed in it lately: for metrics, events and the status.
//! It is in memory, so that no pull costs a write; what was counted is written down now and then, with what others have.

mod event;
mod metric;
mod tally;

pub use event::{Event, EventKind};
pub use metric::{Counters, Metric};
pub use tally::{Slot, Tally};

use std::collections::{BTreeMap, VecDeque};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

use crate::oci::UpstreamId;
use crate::values::ConfiguredMap;
use crate::values::time::{Clock, Timestamp};

/// The most events of one kind that are remembered: what happens often does not drive out the rest.
const MOST_OF_KIND: usize = 50;

/// The journal of a process.
pub struct Journal {
    clock: Clock,
    /// When the process started.
    pub started_at: Timestamp,
    /// By upstream of the configuration: there are no more of them, whatever callers ask for.
    of: ConfiguredMap<UpstreamId, Counters>,
    /// What belongs to none of them.
    other: Counters,
    events: Mutex<VecDeque<Event>>,
    unwritten: Mutex<BTreeMap<Slot, Tally>>,
    is_misconfigured: AtomicBool,
}

impl Journal {
    /// An empty journal of these upstreams.
    pub fn new(upstreams: impl IntoIterator<Item = UpstreamId>, clock: Clock) -> Self {
        let of = upstreams.into_iter().map(|upstream| (upstream, Counters::default())).collect();
        let (started_at, other, events, unwritten) =
            (clock.now(), Counters::default(), Mutex::default(), Mutex::default());
        Self { clock, started_at, of, other, events, unwritten, is_misconfigured: AtomicBool::default() }
    }

    /// The counters of an upstream, or those of what belongs to none.
    pub fn of(&self, upstream: Option<&UpstreamId>) -> &Counters {
        upstream.and_then(|upstream| self.of.get(upstream)).unwrap_or(&self.other)
    }

    /// The counters of each upstream, in no order.
    pub fn counters(&self) -> impl Iterator<Item = (&UpstreamId, &Counters)> {
        self.of.iter()
    }

    /// What was counted in all.
    pub fn total(&self, metric: Metric) -> u64 {
        self.of.values().chain([&self.other]).map(|counters| counters.get(metric)).sum()
    }

    /// Remembers an event. One like it becomes the same, which has happened once more.
    pub fn note(&self, event: Event) {
        let (now, mut events) = (self.clock.now(), self.events());
        let known = events.iter().position(|known| known.is_like(&event)).and_then(|at| events.remove(at));
        let (first_at, times) = known.map_or((now, 0), |known| (known.first_at, known.times));
        let event = Event { at: now, first_at, times: times + 1, ..event };
        let mut of_kind = events.iter().enumerate().filter(|(_, known)| known.kind == event.kind);
        let oldest = of_kind.next().map(|(at, _)| at);
        if of_kind.count() + 1 >= MOST_OF_KIND {
            oldest.and_then(|at| events.remove(at));
        }
        events.push_back(event);
    }

    /// The events that are remembered, the latest first.
    pub fn latest(&self) -> Vec<Event> {
        self.events().iter().rev().cloned().collect()
    }

    /// What was counted and is not written down, by the hours and days in which this was asked for.
    pub fn unwritten(&self) -> BTreeMap<Slot, Tally> {
        let (now, mut unwritten) = (self.clock.now(), self.tallies());
        for (upstream, counters) in &self.of {
            for (metric, _) in Metric::BY_UPSTREAM {
                let count = counters.take(metric);
                for slot in Slot::at(now) {
                    unwritten.entry(slot).or_default().add(upstream, metric, count);
                }
            }
        }
        // Where nothing could be written for long.
        unwritten.retain(|slot, tally| now < slot.kept_until() && !tally.is_empty());
        unwritten.clone()
    }

    /// Notes that these sums, or a part of them, are written down.
    pub fn note_written(&self, slot: Slot, written: &Tally) {
        if let Some(tally) = self.tallies().get_mut(&slot) {
            tally.subtract(written);
        }
    }

    fn tallies(&self) -> MutexGuard<'_, BTreeMap<Slot, Tally>> {
        self.unwritten.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Notes whether the configuration is wrong or cannot be read, so that the one before it is used: `why`.
    pub fn note_configuration(&self, why: Option<&str>) {
        let was = self.is_misconfigured.swap(why.is_some(), Ordering::Relaxed);
        if let Some(why) = why.filter(|_| !was) {
            self.note(Event::new(EventKind::ConfigurationError, &why));
        }
    }

    /// Whether the configuration is wrong or cannot be read.
    pub fn is_misconfigured(&self) -> bool {
        self.is_misconfigured.load(Ordering::Relaxed)
    }

    fn events(&self) -> MutexGuard<'_, VecDeque<Event>> {
        self.events.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::oci::Repository;

    fn repository(name: &str) -> Repository {
        Repository { upstream: "a.test".parse().unwrap(), name: name.parse().unwrap() }
    }

    #[test]
    fn what_happens_again_is_one_event_and_what_happens_often_drives_out_only_its_own_kind() {
        let clock = Clock::manual(Timestamp(1000));
        let journal = Journal::new(["a.test".parse().unwrap()], clock.clone());
        journal.note(Event::new(EventKind::BreakerOpened, &"503").at_upstream(&repository("a").upstream));
        for number in 0..3 * MOST_OF_KIND {
            clock.advance(Duration::from_secs(1));
            journal
                .note(Event::new(EventKind::RefusedPull, &"empty").in_repository(&repository(&format!("r{number}"))));
        }
        let latest = journal.latest();
        assert_eq!(latest.len(), MOST_OF_KIND + 1);
        assert_eq!((latest[0].at, latest[0].times), (Timestamp(1150), 1));
        assert_eq!(latest[MOST_OF_KIND].kind, EventKind::BreakerOpened);
        clock.advance(Duration::from_mins(1));
        journal.note(Event::new(EventKind::BreakerOpened, &"a\nb").at_upstream(&repository("a").upstream));
        let Event { at, first_at, times, reason, .. } = &journal.latest()[0];
        let expected = (Timestamp(1210), Timestamp(1000), 2, "a\\nb");
        assert_eq!((*at, *first_at, *times, reason.as_str()), expected);
        assert_eq!(journal.latest().len(), MOST_OF_KIND + 1);
    }

    #[test]
    fn what_is_counted_is_unwritten_until_it_is_noted_and_then_only_what_is_new() {
        let clock = Clock::manual(Timestamp(1_800_000_000));
        let journal = Journal::new(["a.test".parse().unwrap(), "b.test".parse().unwrap()], clock.clone());
        let a = "a.test".parse().unwrap();
        let sums = |journal: &Journal| {
            let unwritten = journal.unwritten().into_iter();
            unwritten.map(|(slot, tally)| (slot, tally.total(Metric::Hits))).collect::<Vec<_>>()
        };
        assert_eq!(sums(&journal), []);
        journal.of(Some(&a)).add(Metric::Hits, 3);
        let [hour, day] = Slot::at(clock.now());
        assert_eq!(sums(&journal), [(hour, 3), (day, 3)]);
        assert_eq!(sums(&journal), [(hour, 3), (day, 3)], "it was not written");
        clock.advance(Duration::from_hours(1));
        journal.of(Some(&a)).add(Metric::Hits, 4);
        let [next, _] = Slot::at(clock.now());
        assert_eq!(sums(&journal), [(hour, 3), (next, 4), (day, 7)]);
        let mut two = Tally::default();
        two.add(&a, Metric::Hits, 2);
        journal.note_written(hour, &two);
        journal.note_written(day, &journal.unwritten()[&day]);
        assert_eq!(sums(&journal), [(hour, 1), (next, 4)]);
        journal.of(Some(&a)).add(Metric::Hits, 1);
        assert_eq!(sums(&journal), [(hour, 1), (next, 5), (day, 1)]);
        clock.advance(Duration::from_hours(24 * 2));
        assert_eq!(sums(&journal), [(day, 1)], "hours as old as that are not shown");
    }

    #[test]
    fn what_belongs_to_no_upstream_of_the_configuration_has_no_counters_of_its_own() {
        let journal = Journal::new(["a.test".parse().unwrap()], Clock::default());
        for upstream in ["a.test", "b.test", "c.test"] {
            journal.of(Some(&upstream.parse().unwrap())).add(Metric::Failed, 1);
        }
        journal.of(None).add(Metric::Failed, 1);
        let counted: Vec<u64> = journal.counters().map(|(_, counters)| counters.get(Metric::Failed)).collect();
        assert_eq!((counted, journal.total(Metric::Failed), journal.total(Metric::Hits)), (vec![1], 4, 0));
    }
}
