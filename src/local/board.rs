//! What is to be filled: what waits, runs and rests, and whose turn comes next.

use std::collections::{HashMap, VecDeque};
use std::time::Duration;

use tokio::sync::watch;
use tokio::task::AbortHandle;

use super::order::Order;
use crate::oci::{Digest, Repository};
use crate::ports::{Job, Progress};

/// What is to be filled, from its request to its end.
pub(super) struct Board {
    pub(super) fills: HashMap<Digest, Fill>,
    /// Those that wait.
    pub(super) order: Order,
}

pub(super) struct Fill {
    /// What waits, runs or rests.
    pub(super) now: RequestedFill,
    /// What comes after it, in order: each repository has its own, because it may have the blob where another has not, and
    /// has to be shown it where another was.
    pub(super) others: VecDeque<RequestedFill>,
    pub(super) phase: Phase,
    pub(super) _open: Open,
}

/// What one repository has asked for.
pub(super) struct RequestedFill {
    pub(super) job: Job,
    /// How often it has failed in a row.
    pub(super) failures: usize,
    /// How long it rests after the last of them.
    pub(super) rest: Duration,
    pub(super) progress: watch::Sender<Progress>,
}

impl RequestedFill {
    pub(super) fn new(job: Job) -> Self {
        Self { job, failures: 0, rest: Duration::ZERO, progress: watch::Sender::new(Progress::Waiting) }
    }
}

impl Fill {
    /// What a repository that does not come first has asked for.
    fn take_other(&mut self, repository: &Repository) -> Option<RequestedFill> {
        let at = self.others.iter().position(|other| other.job.repository == *repository)?;
        self.others.remove(at)
    }

    /// It is asked for again: it waits, unless it runs.
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
        // Whoever asked last is who can have it now. Nobody else's is lost.
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
    /// Until this task wakes it.
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
