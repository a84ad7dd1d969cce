//! The fill queue of one process. Requests are written down first, so a restart continues with them.

use std::collections::hash_map::Entry;
use std::collections::{BTreeMap, HashMap};
use std::panic::AssertUnwindSafe;
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError, Weak};
use std::time::Duration;

use async_trait::async_trait;
use futures_util::FutureExt as _;
use tokio::sync::watch;
use tokio::time::Instant;

use super::board::{Board, Fill, Open, Phase, RequestedFill};
use super::images::Images;
use super::ledger::{EmbeddedLedger, WrittenFill};
use super::order::Order;
use crate::cache::Cache;
use crate::errors::{FillError, chain};
use crate::fill::Filled;
use crate::oci::{Digest, UpstreamId};
use crate::ports::{Fills, GivenUp, ImageJob, Job, Listed, Load, Progress, Requested, Result, Watched};
use crate::records::blob::CLAIM;
use crate::values::time::Clock;

/// How many fills run at once for which no client waits: each holds about a megabyte, and what it fetches ahead of that
/// counts against `fill_memory`.
const PLACES: usize = 16;
/// How long a fill that is to stop may wait for bytes in flight.
const WIND_DOWN: Duration = Duration::from_millis(500);
/// How long a failed fill rests before each retry; after the last one it is given up until it is requested again.
const RESTS: [Duration; 4] =
    [Duration::from_secs(1), Duration::from_secs(5), Duration::from_secs(30), Duration::from_mins(2)];
/// How long a fill that was given up is remembered, unless it is requested before.
const GIVEN_UP: Duration = Duration::from_hours(7 * 24);

/// The embedded queue. A waiting fill is an entry in memory; only running and resting fills are tasks.
pub struct Queue {
    ledger: Arc<EmbeddedLedger>,
    clock: Clock,
    cache: OnceLock<Weak<Cache>>,
    board: Mutex<Board>,
    /// How many fills are waiting, running or resting.
    open: watch::Sender<usize>,
    /// Set once the process is to stop: until when running fills may go on.
    stop_at: watch::Sender<Option<Instant>>,
}

/// What a task holds. `queue` is dropped before `_open`: once nothing is open, another process may take over the data
/// directory.
struct QueueHandle {
    queue: Arc<Queue>,
    _open: Open,
}

impl Queue {
    pub(super) fn new(ledger: Arc<EmbeddedLedger>, clock: Clock, limits: BTreeMap<UpstreamId, usize>) -> Self {
        Self {
            ledger,
            clock,
            cache: OnceLock::new(),
            board: Mutex::new(Board { fills: HashMap::new(), order: Order::new(PLACES, limits) }),
            open: watch::Sender::new(0),
            stop_at: watch::Sender::new(None),
        }
    }

    /// Begins to fill for `cache`, with what an earlier process left.
    pub(super) fn start(self: &Arc<Self>, cache: &Arc<Cache>) -> Result<()> {
        let _ = self.cache.set(Arc::downgrade(cache));
        let left = self.ledger.fills()?.into_iter().filter(|fill| fill.given_up.is_none());
        let left: Vec<Job> = left.map(|fill| fill.job).collect();
        if !left.is_empty() {
            tracing::info!(fills = left.len(), "going on with the fills of an earlier run");
        }
        self.enqueue(&mut self.board(), left);
        Ok(())
    }

    /// Waits until no fill is requested, running or resting.
    pub(super) async fn settled(&self) {
        let _ = self.open.subscribe().wait_for(|&open| open == 0).await;
    }

    /// Begins no more attempts, and gives running ones `grace` to end. Fills that do not end stay written down.
    pub(super) async fn stop(&self, grace: Duration) {
        self.stop_at.send_replace(Some(Instant::now() + grace));
        {
            let mut board = self.board();
            board.order.clear();
            board.fills.retain(|_, fill| match &fill.phase {
                Phase::Running => true,
                Phase::Waiting => false,
                Phase::Resting(task) => {
                    task.abort();
                    false
                }
            });
        }
        self.settled().await;
    }

    fn board(&self) -> MutexGuard<'_, Board> {
        self.board.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn stopping(&self) -> bool {
        self.stop_at.borrow().is_some()
    }

    fn held(self: &Arc<Self>) -> QueueHandle {
        QueueHandle { queue: Arc::clone(self), _open: Open::new(&self.open) }
    }

    /// Queues the jobs that do not run, and begins those whose turn it is. A job that is requested again keeps the more
    /// urgent of its priorities, and rests no longer.
    fn enqueue(self: &Arc<Self>, board: &mut Board, jobs: impl IntoIterator<Item = Job>) {
        if self.stopping() {
            return;
        }
        let Board { fills, order } = &mut *board;
        for job in jobs {
            match fills.entry(job.digest.clone()) {
                Entry::Occupied(known) => known.into_mut().ask(job, order),
                Entry::Vacant(free) => {
                    order.insert(&job);
                    free.insert(Fill::new(job, self.clock.now(), Open::new(&self.open)));
                }
            }
        }
        self.begin_next(board);
    }

    /// Joins the running attempt at a blob, or begins one at once because a client waits. If too many were begun like
    /// this, the fill waits for a place.
    fn hurry(self: &Arc<Self>, job: &Job) -> Watched {
        let mut board = self.board();
        self.enqueue(&mut board, [job.clone()]);
        let Board { fills, order } = &mut *board;
        let Some(fill) = fills.get_mut(&job.digest) else {
            // The process is stopping: the client that waits learns that no fill runs.
            let progress = watch::channel(Progress::Waiting).1;
            return Watched { repository: job.repository.clone(), progress };
        };
        if matches!(fill.phase, Phase::Waiting) && order.hurry(&fill.now.job) {
            self.begin(fill, false);
        }
        Watched { repository: fill.now.job.repository.clone(), progress: fill.now.progress.subscribe() }
    }

    fn begin_next(self: &Arc<Self>, board: &mut Board) {
        while let Some(digest) = board.order.next() {
            if let Some(fill) = board.fills.get_mut(&digest) {
                self.begin(fill, true);
            }
        }
    }

    /// Begins an attempt at a fill, in a place of its upstream or, if a client waits, without one.
    fn begin(self: &Arc<Self>, fill: &mut Fill, placed: bool) {
        fill.phase = Phase::Running;
        tokio::spawn(self.held().attempt(fill.now.job.clone(), fill.now.progress.clone(), placed));
    }

    /// Continues after an attempt with the request that has failed least: that of another repository, if one came
    /// meanwhile. `rest`: the attempted request is retried after it, unless it is made again before.
    fn go_on(self: &Arc<Self>, board: &mut Board, digest: &Digest, rest: Option<Duration>) {
        let Board { fills, order } = &mut *board;
        let Some(fill) = fills.get_mut(digest) else { return };
        if let Some(rest) = rest {
            let failures = fill.now.failures + 1;
            fill.others.push_back(RequestedFill { failures, rest, ..RequestedFill::new(fill.now.job.clone()) });
        }
        let next = fill.others.iter().enumerate().min_by_key(|(_, other)| other.failures).map(|(at, _)| at);
        let Some(next) = next.and_then(|at| fill.others.remove(at)).filter(|_| !self.stopping()) else {
            fills.remove(digest);
            return;
        };
        fill.phase = if next.failures == 0 {
            order.insert(&next.job);
            Phase::Waiting
        } else {
            Phase::Resting(tokio::spawn(self.held().rest(digest.clone(), next.rest)).abort_handle())
        };
        fill.now = next;
    }

    /// Returns once the process is to stop and the time for running fills is over.
    async fn stopped(&self) {
        let mut stop_at = self.stop_at.subscribe();
        let at = stop_at.wait_for(Option::is_some).await.map_or(None, |at| *at);
        if let Some(at) = at {
            tokio::time::sleep_until(at).await;
        }
    }

    /// Writes requested fills down, each with the most urgent priority it was requested with.
    async fn write(&self, jobs: &[Job]) -> Result<()> {
        let written = {
            let fills = &self.board().fills;
            let written = |job: &Job| {
                let known = fills.get(&job.digest).map_or(job.priority, |fill| fill.now.job.priority);
                let job = Job { priority: job.priority.min(known), ..job.clone() };
                WrittenFill { job, given_up: None }
            };
            jobs.iter().map(written).collect::<Vec<_>>()
        };
        self.ledger.put_fills(written).await
    }
}

impl QueueHandle {
    /// Makes one attempt. Waiters learn the outcome after the fill has left the board, so that a client that asks again
    /// after a failure begins a new attempt.
    async fn attempt(self, job: Job, progress: watch::Sender<Progress>, placed: bool) {
        let queue = &self.queue;
        let outcome = match queue.cache.get().and_then(Weak::upgrade) {
            Some(cache) => {
                let run = cache.fill.run(&job, &progress, queue.stopped().map(|()| WIND_DOWN));
                // Even if it panics, the place is given back and the waiters are told.
                Some(AssertUnwindSafe(run).catch_unwind().await.unwrap_or(Err(FillError::Panicked)))
            }
            None => None,
        };
        // `None`: neither done nor given up; the fill stays written down as requested.
        let end = match outcome {
            None | Some(Ok(Filled::Parked { .. })) => None,
            Some(Ok(Filled::Stored | Filled::Already)) => Some(Ok(())),
            Some(Ok(Filled::Claimed)) => Some(Err((FillError::ClaimLost, Some(CLAIM)))),
            Some(Err(error)) => {
                let failures = queue.board().fills.get(&job.digest).map_or(0, |fill| fill.now.failures);
                let rest = RESTS.get(failures).copied().filter(|_| error.may_pass());
                Some(Err((error, rest)))
            }
        };
        {
            let mut board = queue.board();
            if placed {
                board.order.leave(&job.repository.upstream);
            } else {
                board.order.leave_hurried(&job);
            }
            match &end {
                None => _ = board.fills.remove(&job.digest),
                Some(end) => queue.go_on(&mut board, &job.digest, end.as_ref().err().and_then(|(_, rest)| *rest)),
            }
            if !queue.stopping() {
                queue.begin_next(&mut board);
            }
        }
        // After the fill has left the board: a request that comes from here on is written down later than this.
        let noted = match &end {
            // The blob was requested again meanwhile, and that is written down.
            Some(_) if queue.board().fills.contains_key(&job.digest) => Ok(()),
            Some(Ok(())) => queue.ledger.remove_fill(&job.digest).await,
            Some(Err((error, None))) => {
                queue.ledger.give_up(job.clone(), chain(error), queue.clock.now().plus(GIVEN_UP)).await
            }
            None | Some(Err((_, Some(_)))) => Ok(()),
        };
        if let Err(error) = noted {
            tracing::warn!(blob.digest = %job.digest, error = %chain(&error), "a fill that ended is still written down as requested");
        }
        match end {
            None => {}
            Some(Ok(())) => _ = progress.send_replace(Progress::Stored),
            Some(Err((error, _))) => _ = progress.send_replace(Progress::Failed(error)),
        }
    }

    async fn rest(self, digest: Digest, rest: Duration) {
        tokio::time::sleep(rest).await;
        let mut board = self.queue.board();
        let Board { fills, order } = &mut *board;
        // A task that has woken up already cannot be aborted any more.
        if let Some(fill) = fills.get_mut(&digest)
            && matches!(&fill.phase, Phase::Resting(task) if task.id() == tokio::task::id())
        {
            fill.phase = Phase::Waiting;
            order.insert(&fill.now.job);
            self.queue.begin_next(&mut board);
        }
    }
}

#[async_trait]
impl Fills for Handle {
    async fn request(&self, jobs: &[Job]) -> Result<()> {
        let jobs = self.0.board().admitted(jobs);
        self.0.write(&jobs).await?;
        self.0.enqueue(&mut self.0.board(), jobs);
        Ok(())
    }

    async fn request_images(&self, images: &[ImageJob]) -> Result<()> {
        self.1.request(images).await
    }

    async fn request_now(&self, job: &Job) -> Result<Option<Watched>> {
        self.0.write(std::slice::from_ref(job)).await?;
        Ok(Some(self.0.hurry(job)))
    }

    async fn list(&self) -> Result<Listed> {
        let fills = self.0.ledger.fills()?;
        let board = self.0.board();
        let requested = |WrittenFill { job, given_up }| {
            let fill = board.fills.get(&job.digest);
            let written = match fill.map(|fill| fill.now.progress.borrow()).as_deref() {
                Some(Progress::Growing { written, .. }) => *written,
                _ => 0,
            };
            let runs_here = fill.is_some_and(|fill| matches!(fill.phase, Phase::Running));
            Requested { job, runs_here, written, given_up: given_up.map(|reason| GivenUp { reason: Some(reason) }) }
        };
        Ok(Listed { fills: fills.into_iter().map(requested).collect(), images: Vec::new() })
    }

    fn load(&self) -> Option<Load> {
        Some(self.0.board().load())
    }

    async fn retry(&self) -> Result<usize> {
        let given_up = self.0.ledger.fills()?.into_iter().filter(|fill| fill.given_up.is_some());
        let jobs: Vec<Job> = given_up.map(|fill| Job { payer: None, ..fill.job }).collect();
        self.request(&jobs).await?;
        Ok(jobs.len())
    }
}

/// The queue as the core sees it.
pub(super) struct Handle(pub(super) Arc<Queue>, pub(super) Arc<Images>);
