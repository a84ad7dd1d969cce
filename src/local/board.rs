//! The fills of the queue: which of them wait, run and rest, and which comes next.

use std::collections::{HashMap, VecDeque};
use std::time::Duration;

use tokio::sync::watch;
use tokio::task::AbortHandle;

use super::order::Order;
use crate::oci::{Digest, Repository};
use crate::ports::{Job, Load, Progress};
use crate::values::time::Timestamp;

/// The fills that are in the queue, from request to end.
pub(super) struct Board {
    pub(super) fills: HashMap<Digest, Fill>,
    /// The fills that wait, in the order of their turns.
    pub(super) order: Order,
}

/// How many fills of one caller are in the queue at once: those of four of the largest manifests. What is not filled
/// then is when a client asks for it.
const QUEUED_FOR_CALLER: usize = 4096;

impl Board {
    /// The jobs that the queue has room for: new ones of a caller only as many as it may have.
    pub(super) fn admitted(&self, jobs: &[Job]) -> Vec<Job> {
        let Some(payer) = jobs.iter().find_map(|job| job.payer) else { return jobs.to_vec() };
        let queued = self.fills.values().filter(|fill| fill.now.job.payer == Some(payer)).count();
        let mut room = QUEUED_FOR_CALLER.saturating_sub(queued);
        let mut admit = |job: &&Job| {
            let free = job.payer.is_none() || self.fills.contains_key(&job.digest);
            let admitted = free || room > 0;
            room = if free { room } else { room.saturating_sub(1) };
            admitted
        };
        jobs.iter().filter(|job| admit(job)).cloned().collect()
    }

    /// How many fills wait, run and rest.
    pub(super) fn load(&self) -> Load {
        let mut load = Load { oldest: self.fills.values().map(|fill| fill.since).min(), ..Load::default() };
        for fill in self.fills.values() {
            match fill.phase {
                Phase::Waiting => load.waiting += 1,
                Phase::Running => load.running += 1,
                Phase::Resting(_) => load.resting += 1,
            }
        }
        load
    }
}

pub(super) struct Fill {
    /// The request that waits, runs or rests.
    pub(super) now: RequestedFill,
    /// The requests of other repositories, in order. Each repository has its own: upstream may have the blob in one and
    /// not in the other, and permission that was proven for one is not proven for the other.
    pub(super) others: VecDeque<RequestedFill>,
    pub(super) phase: Phase,
    /// When it was requested first.
    pub(super) since: Timestamp,
    _open: Open,
}

/// The request of one repository.
pub(super) struct RequestedFill {
    pub(super) job: Job,
    /// How often it has failed in a row.
    pub(super) failures: usize,
    /// How long it rests after the last failure.
    pub(super) rest: Duration,
    pub(super) progress: watch::Sender<Progress>,
}

impl RequestedFill {
    pub(super) fn new(job: Job) -> Self {
        Self { job, failures: 0, rest: Duration::ZERO, progress: watch::Sender::new(Progress::Waiting) }
    }
}

impl Fill {
    /// A fill that waits.
    pub(super) fn new(job: Job, since: Timestamp, open: Open) -> Self {
        let (now, others) = (RequestedFill::new(job), VecDeque::new());
        Self { now, others, phase: Phase::Waiting, since, _open: open }
    }

    /// Takes out the request of a repository that is not the current one.
    fn take_other(&mut self, repository: &Repository) -> Option<RequestedFill> {
        let at = self.others.iter().position(|other| other.job.repository == *repository)?;
        self.others.remove(at)
    }

    /// Requests the blob again: the fill waits for its turn, unless it runs.
    pub(super) fn ask(&mut self, job: Job, order: &mut Order) {
        match &self.phase {
            Phase::Running if job.repository == self.now.job.repository => {
                self.now.job.priority = self.now.job.priority.min(job.priority);
                return;
            }
            Phase::Running => {
                match self.others.iter_mut().find(|other| other.job.repository == job.repository) {
                    Some(known) => {
                        let priority = known.job.priority.min(job.priority);
                        (known.job, known.failures) = (Job { priority, ..job }, 0);
                    }
                    None => self.others.push_back(RequestedFill::new(job)),
                }
                return;
            }
            Phase::Waiting => order.remove(&self.now.job),
            Phase::Resting(task) => task.abort(),
        }
        let priority = self.now.job.priority.min(job.priority);
        // The repository that asked last goes first: it can have the blob now. The requests of the others stay.
        if job.repository != self.now.job.repository {
            let asked = self.take_other(&job.repository).unwrap_or_else(|| RequestedFill::new(job.clone()));
            self.others.push_back(std::mem::replace(&mut self.now, asked));
        }
        (self.now.job, self.now.failures, self.phase) = (Job { priority, ..job }, 0, Phase::Waiting);
        order.insert(&self.now.job);
    }
}

pub(super) enum Phase {
    Waiting,
    Running,
    /// The fill rests until this task wakes it.
    Resting(AbortHandle),
}

/// Counts as open until it is dropped.
pub(super) struct Open(watch::Sender<usize>);

impl Open {
    pub(super) fn new(open: &watch::Sender<usize>) -> Self {
        open.send_modify(|open| *open += 1);
        Self(open.clone())
    }
}

impl Drop for Open {
    fn drop(&mut self) {
        self.0.send_modify(|open| *open -= 1);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::identity::Payer;
    use crate::oci::Algorithm;
    use crate::ports::Priority;

    fn job(number: usize, payer: Option<u8>) -> Job {
        Job {
            repository: Repository { upstream: "one.test".parse().unwrap(), name: "a".parse().unwrap() },
            digest: Digest::of(Algorithm::Sha256, &number.to_le_bytes()),
            size: 1,
            priority: Priority::Interactive,
            payer: payer.map(|payer| Payer::Principal([payer; 16])),
        }
    }

    #[test]
    fn a_caller_has_only_so_many_fills_in_the_queue() {
        let mut board = Board { fills: HashMap::new(), order: Order::new(1, std::collections::BTreeMap::new()) };
        let open = watch::Sender::new(0);
        for number in 0..QUEUED_FOR_CALLER - 2 {
            let fill = Fill::new(job(number, Some(1)), Timestamp(0), Open::new(&open));
            board.fills.insert(job(number, None).digest, fill);
        }
        let more: Vec<Job> = (0..3).map(|number| job(QUEUED_FOR_CALLER + number, Some(1))).collect();
        assert_eq!(board.admitted(&more), more[..2]);
        let known = [job(0, Some(1)), more[0].clone(), job(1, Some(1)), more[1].clone(), more[2].clone()];
        assert_eq!(board.admitted(&known), known[..4], "what is queued already takes no room");
        for others in [Some(2), None] {
            let jobs: Vec<Job> = (0..3).map(|number| job(QUEUED_FOR_CALLER + number, others)).collect();
            assert_eq!(board.admitted(&jobs), jobs);
        }
    }
}
