//! The fills of the queue: which of them wait, run and rest, and which comes next.

use std::collections::{HashMap, VecDeque};
use std::time::Duration;

use tokio::sync::watch;
use tokio::task::AbortHandle;

use super::order::Order;
use crate::oci::{Digest, Repository};
use crate::ports::{Job, Progress};

/// The fills that are in the queue, from request to end.
pub(super) struct Board {
    pub(super) fills: HashMap<Digest, Fill>,
    /// The fills that wait, in the order of their turns.
    pub(super) order: Order,
}

pub(super) struct Fill {
    /// The request that waits, runs or rests.
    pub(super) now: RequestedFill,
    /// The requests of other repositories, in order. Each repository has its own: upstream may have the blob in one and
    /// not in the other, and permission that was proven for one is not proven for the other.
    pub(super) others: VecDeque<RequestedFill>,
    pub(super) phase: Phase,
    pub(super) _open: Open,
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
