//! What a process has counted since it started, and what has failed in it lately: for metrics, events and the status.
//! It is in memory only, so that no pull costs a write.

mod event;
pub mod history;
mod metric;

pub use event::{Event, EventKind};
use history::Sample;
pub use metric::{Counters, Metric};

use std::collections::{HashMap, VecDeque};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

use crate::oci::UpstreamId;
use crate::values::time::{Clock, Timestamp};

/// The most events of one kind that are remembered: what happens often does not drive out the rest.
const MOST_OF_KIND: usize = 50;

/// The journal of a process.
pub struct Journal {
    clock: Clock,
    /// When the process started.
    pub started_at: Timestamp,
    /// By upstream of the configuration: there are no more of them, whatever callers ask for.
    of: HashMap<UpstreamId, Counters>,
    /// What belongs to none of them.
    other: Counters,
    events: Mutex<VecDeque<Event>>,
    samples: Mutex<VecDeque<Sample>>,
    is_misconfigured: AtomicBool,
}

impl Journal {
    /// An empty journal of these upstreams.
    pub fn new(upstreams: impl IntoIterator<Item = UpstreamId>, clock: Clock) -> Self {
        let of = upstreams.into_iter().map(|upstream| (upstream, Counters::default())).collect();
        let (started_at, other, events, samples) =
            (clock.now(), Counters::default(), Mutex::default(), Mutex::default());
        Self { clock, started_at, of, other, events, samples, is_misconfigured: AtomicBool::default() }
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

    /// Remembers what was counted until now, for a day. Called every [`history::EVERY`].
    pub fn sample(&self) {
        let sample = self.counted();
        history::add(&mut self.samples.lock().unwrap_or_else(PoisonError::into_inner), sample);
    }

    /// What was counted until each sample, and until now.
    pub fn history(&self) -> Vec<Sample> {
        let samples = self.samples.lock().unwrap_or_else(PoisonError::into_inner).clone();
        samples.into_iter().chain([self.counted()]).collect()
    }

    fn counted(&self) -> Sample {
        let used = self.of.iter().filter(|(_, counters)| !counters.is_empty());
        let counted = used.map(|(upstream, counters)| {
            let stored = [Metric::Hits, Metric::Revalidated, Metric::Stale].map(|metric| counters.get(metric));
            (upstream.clone(), stored.iter().sum(), counters.get(Metric::Misses))
        });
        Sample { at: self.clock.now(), counted: counted.collect() }
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
    fn a_day_of_samples_is_remembered_and_what_was_counted_since() {
        let clock = Clock::manual(Timestamp(1000));
        let journal = Journal::new(["a.test".parse().unwrap(), "b.test".parse().unwrap()], clock.clone());
        for _ in 0..2 * history::MOST {
            journal.of(Some(&"a.test".parse().unwrap())).add(Metric::Hits, 1);
            clock.advance(history::EVERY);
            journal.sample();
        }
        journal.of(Some(&"b.test".parse().unwrap())).add(Metric::Misses, 1);
        let samples = journal.history();
        assert_eq!(samples.len(), history::MOST + 1);
        let sums: Vec<_> = samples.iter().map(|sample| sample.sums(|_| true)).collect();
        assert_eq!((sums[0], sums[history::MOST - 1], sums[history::MOST]), ((97, 0), (192, 0), (192, 1)));
        assert_eq!(samples[history::MOST].sums(|upstream| upstream.as_str() != "b.test"), (192, 0));
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
