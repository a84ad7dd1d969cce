//! The fill queue of one process. What was requested is written down first, so a restart goes on with it.

use std::collections::hash_map::Entry;
use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError, Weak};
use std::time::Duration;

use async_trait::async_trait;
use futures_util::FutureExt as _;
use tokio::sync::watch;
use tokio::task::AbortHandle;
use tokio::time::Instant;

use super::images::Images;
use super::ledger::{EmbeddedLedger, WrittenFill};
use super::order::Order;
use crate::Cache;
use crate::fill::{self, CLAIM, FillError, Filled};
use crate::oci::{Digest, UpstreamId};
use crate::ports::{Fills, GivenUp, ImageJob, Job, Progress, Requested, StoreError, Watched};

/// How many fills run at once that nobody waits for: each holds about a megabyte, and what it fetches ahead of that counts
/// against `fill_memory`.
const PLACES: usize = 16;
/// How long a fill that is to stop may wait for what is on its way.
const WIND_DOWN: Duration = Duration::from_millis(500);
/// How long a failed fill rests before it is tried again; after the last of them it is given up until it is asked for.
const RESTS: [Duration; 4] =
    [Duration::from_secs(1), Duration::from_secs(5), Duration::from_secs(30), Duration::from_mins(2)];

/// The embedded queue. What waits is an entry in memory; only what runs or rests is a task.
pub struct Queue {
    ledger: Arc<EmbeddedLedger>,
    cache: OnceLock<Weak<Cache>>,
    board: Mutex<Board>,
    /// How many fills are waiting, running or resting.
    open: watch::Sender<usize>,
    /// Set once the process is to stop: until when a running fill may go on.
    stop_at: watch::Sender<Option<Instant>>,
}

/// What is to be filled, from its request to its end.
struct Board {
    fills: HashMap<Digest, Fill>,
    /// Those that wait.
    order: Order,
}

struct Fill {
    job: Job,
    /// What was asked for while it ran. For another repository it is done then: that may have the blob where this one has
    /// not, and has to be shown it where this one was.
    again: Option<Job>,
    failures: usize,
    phase: Phase,
    _open: Open,
}

enum Phase {
    Waiting,
    Running(watch::Receiver<Progress>),
    /// Until this task wakes it.
    Resting(AbortHandle),
}

/// Counts as open until it is dropped.
struct Open(watch::Sender<usize>);

impl Open {
    fn new(open: &watch::Sender<usize>) -> Self {
        open.send_modify(|open| *open += 1);
        Self(open.clone())
    }
}

impl Drop for Open {
    fn drop(&mut self) {
        self.0.send_modify(|open| *open -= 1);
    }
}

/// What a task holds. The queue goes first: who waits until nothing is open may take over the data directory.
struct Held {
    queue: Arc<Queue>,
    _open: Open,
}

impl Queue {
    pub(super) fn new(ledger: Arc<EmbeddedLedger>, limits: BTreeMap<UpstreamId, usize>) -> Self {
        Self {
            ledger,
            cache: OnceLock::new(),
            board: Mutex::new(Board { fills: HashMap::new(), order: Order::new(PLACES, limits) }),
            open: watch::Sender::new(0),
            stop_at: watch::Sender::new(None),
        }
    }

    /// Begins to fill for `cache`, with what an earlier process left.
    pub(super) fn start(self: &Arc<Self>, cache: &Arc<Cache>) -> Result<(), StoreError> {
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

    /// Begins no more attempts, and gives the running ones `grace` to end. What does not end stays written down.
    pub(super) async fn stop(&self, grace: Duration) {
        self.stop_at.send_replace(Some(Instant::now() + grace));
        {
            let mut board = self.board();
            board.order.clear();
            board.fills.retain(|_, fill| match &fill.phase {
                Phase::Running(_) => true,
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

    fn held(self: &Arc<Self>) -> Held {
        Held { queue: Arc::clone(self), _open: Open::new(&self.open) }
    }

    /// Lets fills wait for a place, unless they run, and begins those whose turn it is. A job that is asked for again keeps
    /// the more urgent of its priorities, and rests no longer.
    fn enqueue(self: &Arc<Self>, board: &mut Board, jobs: impl IntoIterator<Item = Job>) {
        if self.stopping() {
            return;
        }
        for job in jobs {
            let (fill, known) = match board.fills.entry(job.digest.clone()) {
                Entry::Occupied(known) => (known.into_mut(), true),
                Entry::Vacant(free) => {
                    let job = job.clone();
                    let phase = Phase::Waiting;
                    let fill = Fill { job, again: None, failures: 0, phase, _open: Open::new(&self.open) };
                    (free.insert(fill), false)
                }
            };
            let waited = known.then(|| fill.job.clone());
            let latest = Job { priority: fill.job.priority.min(job.priority), ..job };
            if let Phase::Running(_) = &fill.phase {
                fill.job.priority = latest.priority;
                if latest.repository != fill.job.repository {
                    fill.again = Some(latest);
                }
                continue;
            }
            // Whoever asked last is who can have it now.
            fill.job = latest;
            match (&fill.phase, waited) {
                (Phase::Waiting, Some(waited)) => board.order.remove(&waited),
                (Phase::Waiting, None) | (Phase::Running(_), _) => {}
                (Phase::Resting(task), _) => {
                    task.abort();
                    (fill.failures, fill.phase) = (0, Phase::Waiting);
                }
            }
            board.order.insert(&fill.job);
        }
        self.begin_next(board);
    }

    /// Joins the running attempt at a blob, or begins one at once: a client waits.
    fn hurry(self: &Arc<Self>, job: &Job) -> Watched {
        let mut board = self.board();
        self.enqueue(&mut board, [job.clone()]);
        let Board { fills, order } = &mut *board;
        match fills.get_mut(&job.digest) {
            Some(Fill { phase: Phase::Running(progress), job, .. }) => {
                Watched { repository: job.repository.clone(), progress: progress.clone() }
            }
            Some(fill) => {
                order.remove(&fill.job);
                Watched { repository: fill.job.repository.clone(), progress: self.begin(fill, false) }
            }
            // The process is stopping: whoever waits learns that nobody works on it.
            None => {
                let progress = watch::channel(Progress::Waiting).1;
                Watched { repository: job.repository.clone(), progress }
            }
        }
    }

    fn begin_next(self: &Arc<Self>, board: &mut Board) {
        while let Some(digest) = board.order.next() {
            if let Some(fill) = board.fills.get_mut(&digest) {
                self.begin(fill, true);
            }
        }
    }

    /// Begins an attempt at a fill, in a place of its upstream or (a client waits) without one.
    fn begin(self: &Arc<Self>, fill: &mut Fill, placed: bool) -> watch::Receiver<Progress> {
        let (progress, watched) = watch::channel(Progress::Waiting);
        fill.phase = Phase::Running(watched.clone());
        tokio::spawn(self.held().attempt(fill.job.clone(), progress, placed));
        watched
    }

    /// Lets a fill wait again after a while, unless somebody asks for it before.
    fn rest(self: &Arc<Self>, board: &mut Board, digest: &Digest, rest: Duration) {
        if let Some(fill) = board.fills.get_mut(digest) {
            fill.failures += 1;
            fill.phase = Phase::Resting(tokio::spawn(self.held().rest(digest.clone(), rest)).abort_handle());
        }
    }

    /// Returns once the process is to stop and the time for running fills is over.
    async fn stopped(&self) {
        let mut stop_at = self.stop_at.subscribe();
        let at = stop_at.wait_for(Option::is_some).await.map_or(None, |at| *at);
        if let Some(at) = at {
            tokio::time::sleep_until(at).await;
        }
    }

    /// Writes requested fills down, each with the most urgent priority it was asked for with.
    async fn write(&self, jobs: &[Job]) -> Result<(), StoreError> {
        let written = {
            let fills = &self.board().fills;
            let written = |job: &Job| {
                let known = fills.get(&job.digest).map_or(job.priority, |fill| fill.job.priority);
                WrittenFill::from(Job { priority: job.priority.min(known), ..job.clone() })
            };
            jobs.iter().map(written).collect::<Vec<_>>()
        };
        self.ledger.put_fills(written).await
    }
}

impl Held {
    /// Makes one attempt. Its outcome is told after it has left the board, so that whoever asks again upon a failure
    /// begins a new attempt.
    async fn attempt(self, job: Job, progress: watch::Sender<Progress>, placed: bool) {
        let queue = &self.queue;
        let outcome = match queue.cache.get().and_then(Weak::upgrade) {
            Some(cache) => Some(fill::run(&cache, &job, &progress, queue.stopped().map(|()| WIND_DOWN)).await),
            None => None,
        };
        // `None`: it is neither done nor given up, and stays written down as requested.
        let end = match outcome {
            None | Some(Ok(Filled::Parked { .. })) => None,
            Some(Ok(Filled::Stored | Filled::Already)) => Some(Ok(())),
            Some(Ok(Filled::Claimed)) => Some(Err((FillError::ClaimLost, Some(CLAIM)))),
            Some(Err(error)) => {
                let failures = queue.board().fills.get(&job.digest).map_or(0, |fill| fill.failures);
                let rest = RESTS.get(failures).copied().filter(|_| error.may_pass());
                Some(Err((error, rest)))
            }
        };
        {
            let mut board = queue.board();
            if placed {
                board.order.leave(&job.repository.upstream);
            }
            let again = board.fills.get_mut(&job.digest).and_then(|fill| fill.again.take()).filter(|_| end.is_some());
            match &end {
                Some(Err((_, Some(rest)))) if again.is_none() && !queue.stopping() => {
                    queue.rest(&mut board, &job.digest, *rest);
                }
                _ => _ = board.fills.remove(&job.digest),
            }
            if !queue.stopping() {
                queue.enqueue(&mut board, again);
            }
        }
        // After it has left the board: whoever asks from here on writes its request down later than this.
        let noted = match &end {
            // Somebody asked meanwhile, and that is written down.
            Some(_) if queue.board().fills.contains_key(&job.digest) => Ok(()),
            Some(Ok(())) => queue.ledger.remove_fill(&job.digest).await,
            Some(Err((error, None))) => {
                let given_up = Some(error.to_string());
                queue.ledger.put_fills([WrittenFill { job: job.clone(), given_up }]).await
            }
            None | Some(Err((_, Some(_)))) => Ok(()),
        };
        if let Err(error) = noted {
            tracing::warn!(blob.digest = %job.digest, %error, "a fill that ended is still written down as requested");
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
        // Aborting comes too late for a task that has woken up already.
        if let Some(fill) = fills.get_mut(&digest)
            && matches!(&fill.phase, Phase::Resting(task) if task.id() == tokio::task::id())
        {
            fill.phase = Phase::Waiting;
            order.insert(&fill.job);
            self.queue.begin_next(&mut board);
        }
    }
}

#[async_trait]
impl Fills for Handle {
    async fn request(&self, jobs: &[Job]) -> Result<(), StoreError> {
        self.0.write(jobs).await?;
        self.0.enqueue(&mut self.0.board(), jobs.iter().cloned());
        Ok(())
    }

    async fn request_images(&self, images: &[ImageJob]) -> Result<(), StoreError> {
        self.1.request(images).await
    }

    async fn request_now(&self, job: &Job) -> Result<Option<Watched>, StoreError> {
        self.0.write(std::slice::from_ref(job)).await?;
        Ok(Some(self.0.hurry(job)))
    }

    async fn list(&self) -> Result<Vec<Requested>, StoreError> {
        let fills = self.0.ledger.fills()?;
        let board = self.0.board();
        let requested = |WrittenFill { job, given_up }| {
            let written = match board.fills.get(&job.digest).map(|fill| &fill.phase) {
                Some(Phase::Running(progress)) => match &*progress.borrow() {
                    Progress::Growing { written, .. } => *written,
                    _ => 0,
                },
                _ => 0,
            };
            Requested { job, written, given_up: given_up.map(|reason| GivenUp { reason: Some(reason) }) }
        };
        Ok(fills.into_iter().map(requested).collect())
    }

    async fn retry(&self) -> Result<usize, StoreError> {
        let given_up = self.0.ledger.fills()?.into_iter().filter(|fill| fill.given_up.is_some());
        let jobs: Vec<Job> = given_up.map(|fill| fill.job).collect();
        self.request(&jobs).await?;
        Ok(jobs.len())
    }
}

/// The queue as the core sees it.
pub(super) struct Handle(pub(super) Arc<Queue>, pub(super) Arc<Images>);
