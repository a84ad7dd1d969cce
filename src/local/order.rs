//! Decides which fill runs next. Without I/O: it learns what waits and what has ended, and says what to begin.

use std::collections::{BTreeMap, BTreeSet, HashMap, VecDeque};
use std::hash::Hash;

use crate::identity::Payer;
use crate::oci::{Digest, Name, UpstreamId};
use crate::ports::{Job, Priority};

/// The fills that wait for a place, and the places that are taken.
///
/// The more urgent priority goes first; within it the upstream with the fewest running fills, so that a slow one holds
/// up no other; within that the repositories take turns, and each begins with its smallest blob: configurations come
/// before layers.
#[derive(Default)]
pub(super) struct Order {
    /// How many places there are.
    places: usize,
    /// How many places each upstream may take. One that is not configured any more has one: its fills are to fail.
    limits: BTreeMap<UpstreamId, usize>,
    taken: HashMap<UpstreamId, usize>,
    /// How many hurried fills run, by upstream.
    hurried: HashMap<UpstreamId, usize>,
    /// How many of them run for one caller.
    hurried_for: HashMap<Payer, usize>,
    lanes: BTreeMap<(Priority, UpstreamId), Lane>,
}

/// How many fills run at once without a place, because a client waits: each holds up to four connections and a file,
/// and with its client they stay below the 1,024 descriptors that a process may have.
const HURRIED: usize = 64;
/// How many of those one upstream may have: if it stalls, the others have as many.
const HURRIED_OF_UPSTREAM: usize = HURRIED / 2;
/// How many of those one caller may have: what it asks for may never come.
const HURRIED_FOR_CALLER: usize = HURRIED_OF_UPSTREAM / 2;

/// The fills of one priority and one upstream that wait.
#[derive(Default)]
struct Lane {
    /// The order of the repositories. Each is here once as long as `waiting` has it.
    turns: VecDeque<Name>,
    /// Fills by size. A repository with none left stays until its turn comes.
    waiting: HashMap<Name, BTreeSet<(u64, Digest)>>,
}

impl Lane {
    fn insert(&mut self, job: &Job) {
        let name = &job.repository.name;
        if !self.waiting.contains_key(name) {
            self.turns.push_back(name.clone());
        }
        self.waiting.entry(name.clone()).or_default().insert((job.size, job.digest.clone()));
    }

    fn remove(&mut self, job: &Job) {
        if let Some(waiting) = self.waiting.get_mut(&job.repository.name) {
            waiting.remove(&(job.size, job.digest.clone()));
        }
    }

    fn pop(&mut self) -> Option<Digest> {
        while let Some(name) = self.turns.pop_front() {
            if let Some((_, digest)) = self.waiting.get_mut(&name).and_then(BTreeSet::pop_first) {
                self.turns.push_back(name);
                return Some(digest);
            }
            self.waiting.remove(&name);
        }
        None
    }
}

impl Order {
    pub(super) fn new(places: usize, limits: BTreeMap<UpstreamId, usize>) -> Self {
        Self { places, limits, ..Self::default() }
    }

    /// Adds a fill that waits.
    pub(super) fn insert(&mut self, job: &Job) {
        self.lanes.entry((job.priority, job.repository.upstream.clone())).or_default().insert(job);
    }

    /// Takes out a fill that was inserted with this job.
    pub(super) fn remove(&mut self, job: &Job) {
        if let Some(lane) = self.lanes.get_mut(&(job.priority, job.repository.upstream.clone())) {
            lane.remove(job);
        }
    }

    /// Takes out all fills that wait.
    pub(super) fn clear(&mut self) {
        self.lanes.clear();
    }

    /// Takes out the next fill, which gets a place. `None`: no place is free, or no waiting fill may take one.
    pub(super) fn next(&mut self) -> Option<Digest> {
        if self.taken.values().sum::<usize>() >= self.places {
            return None;
        }
        loop {
            let free = |(priority, upstream): &(Priority, UpstreamId)| {
                let taken = self.taken.get(upstream).copied().unwrap_or(0);
                let limit = self.limits.get(upstream).copied().unwrap_or(1);
                (taken < limit).then(|| (*priority, taken, upstream.clone()))
            };
            let (priority, _, upstream) = self.lanes.keys().filter_map(free).min()?;
            let lane = (priority, upstream);
            if let Some(digest) = self.lanes.get_mut(&lane).and_then(Lane::pop) {
                *self.taken.entry(lane.1).or_default() += 1;
                return Some(digest);
            }
            self.lanes.remove(&lane);
        }
    }

    /// Frees the place of a fill from this upstream.
    pub(super) fn leave(&mut self, upstream: &UpstreamId) {
        one_less(&mut self.taken, upstream);
    }

    /// Takes a waiting fill out, to run without a place. `false`: as many as may do run already, and the fill waits
    /// like the others.
    pub(super) fn hurry(&mut self, job: &Job) -> bool {
        let upstream = &job.repository.upstream;
        let of_upstream = self.hurried.get(upstream).copied().unwrap_or(0);
        let for_caller = job.payer.map_or(0, |payer| self.hurried_for.get(&payer).copied().unwrap_or(0));
        let full = of_upstream >= HURRIED_OF_UPSTREAM || self.hurried.values().sum::<usize>() >= HURRIED;
        if full || for_caller >= HURRIED_FOR_CALLER {
            return false;
        }
        self.remove(job);
        self.hurried.insert(upstream.clone(), of_upstream + 1);
        self.hurried_for.extend(job.payer.map(|payer| (payer, for_caller + 1)));
        true
    }

    /// Counts a hurried fill as ended.
    pub(super) fn leave_hurried(&mut self, job: &Job) {
        one_less(&mut self.hurried, &job.repository.upstream);
        if let Some(payer) = &job.payer {
            one_less(&mut self.hurried_for, payer);
        }
    }
}

fn one_less<K: Hash + Eq>(counts: &mut HashMap<K, usize>, key: &K) {
    if let Some(count) = counts.get_mut(key) {
        *count = count.saturating_sub(1);
        if *count == 0 {
            counts.remove(key);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::oci::{Algorithm, Repository};

    fn order(places: usize, limit: usize) -> Order {
        let upstreams = ["one.test", "two.test"].map(|id| (id.parse().unwrap(), limit));
        Order::new(places, BTreeMap::from(upstreams))
    }

    /// A job of `upstream/name`, with a digest of its own.
    fn job(repository: &str, size: u64, priority: Priority) -> Job {
        let (upstream, name) = repository.split_once('/').unwrap();
        let repository = Repository { upstream: upstream.parse().unwrap(), name: name.parse().unwrap() };
        let digest = Digest::of(Algorithm::Sha256, format!("{repository} {size} {priority:?}").as_bytes());
        Job { repository, digest, size, priority, payer: None }
    }

    fn insert(order: &mut Order, jobs: &[Job]) {
        for job in jobs {
            order.insert(job);
        }
    }

    /// Begins and ends one fill after the other, and returns them in that order.
    fn one_by_one(order: &mut Order, jobs: &[Job]) -> Vec<(String, u64)> {
        insert(order, jobs);
        let mut begun = Vec::new();
        while let Some(digest) = order.next() {
            let job = jobs.iter().find(|job| job.digest == digest).unwrap();
            order.leave(&job.repository.upstream);
            begun.push((job.repository.name.to_string(), job.size));
        }
        begun
    }

    #[test]
    fn the_more_urgent_goes_first_then_repositories_take_turns_each_with_its_smallest_blob() {
        use Priority::{Interactive, Prefetch, Refresh};
        let jobs = [
            job("one.test/a", 1, Refresh),
            job("one.test/a", 30, Prefetch),
            job("one.test/a", 20, Prefetch),
            job("one.test/a", 10, Prefetch),
            job("one.test/b", 40, Prefetch),
            job("one.test/c", 50, Interactive),
        ];
        let begun = one_by_one(&mut order(1, 1), &jobs);
        let begun: Vec<(&str, u64)> = begun.iter().map(|(name, size)| (name.as_str(), *size)).collect();
        assert_eq!(begun, [("c", 50), ("a", 10), ("b", 40), ("a", 20), ("a", 30), ("a", 1)]);
    }

    #[test]
    fn no_upstream_takes_more_places_than_its_limit_nor_all_more_than_there_are() {
        let mut order = order(3, 2);
        let jobs: Vec<Job> = (0..10).map(|size| job("one.test/a", size, Priority::Interactive)).collect();
        insert(&mut order, &jobs);
        assert!(order.next().is_some() && order.next().is_some());
        assert_eq!(order.next(), None, "two at one upstream");
        let late = ["two.test/a", "two.test/b"].map(|name| job(name, 1, Priority::Refresh));
        insert(&mut order, &late);
        assert_eq!(order.next().as_ref(), Some(&late[0].digest), "another upstream has room");
        assert_eq!(order.next(), None, "three in all");
        order.leave(&late[0].repository.upstream);
        assert_eq!(order.next().as_ref(), Some(&late[1].digest));
        order.leave(&jobs[0].repository.upstream);
        assert_eq!(order.next().as_ref(), Some(&jobs[2].digest));
        order.insert(&job("unconfigured.test/a", 1, Priority::Interactive));
        order.clear();
        order.leave(&jobs[0].repository.upstream);
        assert_eq!(order.next(), None);
    }

    #[test]
    fn what_waits_can_be_taken_out_and_put_in_elsewhere() {
        let mut order = order(9, 9);
        let [background, other] = [2, 1].map(|size| job("one.test/a", size, Priority::Refresh));
        order.insert(&background);
        order.insert(&other);
        order.remove(&background);
        let raised = Job { priority: Priority::Interactive, ..background.clone() };
        order.insert(&raised);
        let begun: Vec<Digest> = std::iter::from_fn(|| order.next()).collect();
        assert_eq!(begun, [raised.digest, other.digest]);
    }

    #[test]
    fn so_many_fills_are_hurried_and_of_one_upstream_half_as_many() {
        let mut order = order(1, 1);
        let hurry = |order: &mut Order, upstream: &str| {
            (0..100).filter(|size| order.hurry(&job(&format!("{upstream}/a"), *size, Priority::Interactive))).count()
        };
        assert_eq!(hurry(&mut order, "one.test"), HURRIED / 2);
        assert_eq!(hurry(&mut order, "two.test"), HURRIED / 2);
        assert_eq!(hurry(&mut order, "three.test"), 0);
        order.leave_hurried(&job("one.test/a", 0, Priority::Interactive));
        assert_eq!(hurry(&mut order, "two.test"), 0);
        assert_eq!(hurry(&mut order, "three.test"), 1);
        let waits = job("one.test/a", 1, Priority::Interactive);
        order.insert(&waits);
        assert!(!order.hurry(&waits));
        assert_eq!(order.next(), Some(waits.digest), "it goes when it has a place");
    }

    #[test]
    fn twenty_thousand_fills_of_as_many_repositories_are_ordered_at_once() {
        let mut order = order(1, 1);
        let jobs: Vec<Job> =
            (0..20_000).map(|size| job(&format!("one.test/r{size}"), size, Priority::Refresh)).collect();
        insert(&mut order, &jobs);
        let mut begun = 0;
        while order.next().is_some() {
            assert_eq!(order.next(), None, "nobody is looked through while there is no place");
            order.leave(&jobs[0].repository.upstream);
            begun += 1;
        }
        assert_eq!(begun, jobs.len());
    }

    #[test]
    fn one_caller_hurries_only_half_of_what_its_upstream_may() {
        let mut order = order(1, 1);
        let payer = |number: u8| Some(Payer::Principal([number; 16]));
        let of = |size: u64, number| Job { payer: payer(number), ..job("one.test/a", size, Priority::Interactive) };
        let began = (0..100).filter(|&size| order.hurry(&of(size, 1))).count();
        assert_eq!(began, HURRIED_FOR_CALLER);
        assert!(order.hurry(&of(0, 2)), "another caller may");
        order.leave_hurried(&of(0, 1));
        assert!(order.hurry(&of(0, 1)) && !order.hurry(&of(1, 1)));
    }
}
