//! The fill queue of one process. What was requested is written down first, so a restart goes on with it.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, OnceLock, PoisonError, Weak};
use std::time::Duration;

use async_trait::async_trait;
use tokio::sync::{Semaphore, watch};
use tokio::time::Instant;

use super::ledger::{EmbeddedLedger, WrittenFill};
use crate::Cache;
use crate::fill::{self, CLAIM, FillError, Filled};
use crate::oci::Digest;
use crate::ports::{Fills, GivenUp, Job, Progress, Requested, StoreError};

/// How many fills run at once that nobody waits for.
const AT_ONCE: usize = 4;
/// How long a failed fill rests before it is tried again; after the last of them it is given up until it is asked for.
const RESTS: [Duration; 4] =
    [Duration::from_secs(1), Duration::from_secs(5), Duration::from_secs(30), Duration::from_mins(2)];

/// The embedded queue.
pub struct Queue {
    ledger: Arc<EmbeddedLedger>,
    cache: OnceLock<Weak<Cache>>,
    running: Mutex<HashMap<Digest, Running>>,
    /// How many fills are requested, running or resting.
    open: watch::Sender<usize>,
    places: Semaphore,
    /// Set once the process is to stop: until when a running fill may go on.
    stop_at: watch::Sender<Option<Instant>>,
}

/// One attempt, from its request to its end.
struct Running {
    progress: watch::Receiver<Progress>,
    /// A client waits: it needs no place.
    urgent: watch::Sender<bool>,
}

impl Queue {
    pub(super) fn new(ledger: Arc<EmbeddedLedger>) -> Self {
        Self {
            ledger,
            cache: OnceLock::new(),
            running: Mutex::default(),
            open: watch::Sender::new(0),
            places: Semaphore::new(AT_ONCE),
            stop_at: watch::Sender::new(None),
        }
    }

    /// Begins to fill for `cache`, with what an earlier process left.
    pub(super) fn start(self: &Arc<Self>, cache: &Arc<Cache>) -> Result<(), StoreError> {
        let _ = self.cache.set(Arc::downgrade(cache));
        let left: Vec<Job> =
            self.ledger.fills()?.into_iter().filter(|fill| fill.given_up.is_none()).map(|fill| fill.job).collect();
        if !left.is_empty() {
            tracing::info!(fills = left.len(), "going on with the fills of an earlier run");
        }
        for job in left {
            self.begin(job, false, 0);
        }
        Ok(())
    }

    /// Waits until no fill is requested, running or resting.
    pub(super) async fn settled(&self) {
        let _ = self.open.subscribe().wait_for(|&open| open == 0).await;
    }

    /// Begins no more attempts, and gives the running ones `grace` to end. What does not end stays written down.
    pub(super) async fn stop(&self, grace: Duration) {
        self.stop_at.send_replace(Some(Instant::now() + grace));
        self.settled().await;
    }

    /// Joins the running attempt at a blob, or begins one.
    fn begin(self: &Arc<Self>, job: Job, urgent: bool, failures: usize) -> watch::Receiver<Progress> {
        let mut running = self.running.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(known) = running.get(&job.digest) {
            if urgent {
                known.urgent.send_replace(true);
            }
            return known.progress.clone();
        }
        let (progress, watched) = watch::channel(Progress::Waiting);
        let (urgency, hurried) = watch::channel(urgent);
        running.insert(job.digest.clone(), Running { progress: watched.clone(), urgent: urgency });
        self.open.send_modify(|open| *open += 1);
        let (queue, open) = (Arc::clone(self), self.open.clone());
        tokio::spawn(async move {
            let rest = queue.attempt(&job, &progress, hurried, failures).await;
            if let Some(rest) = rest {
                tokio::select! {
                    () = tokio::time::sleep(rest) => {
                        queue.begin(job, false, failures + 1);
                    }
                    () = queue.stopped(false) => {}
                }
            }
            // Whoever waits for the end may take over the data directory: nothing of it is held any more.
            drop(queue);
            open.send_modify(|open| *open -= 1);
        });
        watched
    }

    /// Makes one attempt, and says how long to rest before the next one, where there is to be one. Its outcome is told
    /// after it has left `running`, so that whoever asks again upon a failure begins a new attempt.
    async fn attempt(
        &self,
        job: &Job,
        progress: &watch::Sender<Progress>,
        mut hurried: watch::Receiver<bool>,
        failures: usize,
    ) -> Option<Duration> {
        let outcome = tokio::select! {
            outcome = async {
                let _place = tokio::select! {
                    place = self.places.acquire() => place.ok(),
                    _ = hurried.wait_for(|&urgent| urgent) => None,
                    () = self.stopped(false) => return None,
                };
                let cache = self.cache.get().and_then(Weak::upgrade)?;
                Some(fill::run(&cache, job, progress).await)
            } => outcome,
            () = self.stopped(true) => None,
        };
        let (end, rest) = match outcome {
            None => (None, None),
            Some(Ok(Filled::Stored | Filled::Already)) => (Some(Progress::Stored), None),
            Some(Ok(Filled::Claimed)) => (Some(Progress::Failed(FillError::ClaimLost)), Some(CLAIM)),
            Some(Err(error)) => {
                let rest = RESTS.get(failures).copied().filter(|_| error.may_pass());
                (Some(Progress::Failed(error)), rest)
            }
        };
        if rest.is_none() {
            let noted = match &end {
                None => Ok(()),
                Some(Progress::Failed(error)) => {
                    let given_up = Some(error.to_string());
                    self.ledger.put_fills([WrittenFill { job: job.clone(), given_up }]).await
                }
                Some(_) => self.ledger.remove_fill(&job.digest).await,
            };
            if let Err(error) = noted {
                tracing::warn!(blob.digest = %job.digest, %error, "a fill that ended is still written down as requested");
            }
        }
        self.running.lock().unwrap_or_else(PoisonError::into_inner).remove(&job.digest);
        if let Some(end) = end {
            progress.send_replace(end);
        }
        rest
    }

    /// Returns once the process is to stop; with `grace` only when the time for running fills is over as well.
    async fn stopped(&self, grace: bool) {
        let mut stop_at = self.stop_at.subscribe();
        let at = match stop_at.wait_for(Option::is_some).await {
            Ok(at) => *at,
            Err(_) => None,
        };
        if grace && let Some(at) = at {
            tokio::time::sleep_until(at).await;
        }
    }
}

#[async_trait]
impl Fills for Handle {
    async fn request(&self, jobs: &[Job]) -> Result<(), StoreError> {
        self.0.ledger.put_fills(jobs.iter().cloned().map(WrittenFill::from)).await?;
        for job in jobs {
            self.0.begin(job.clone(), false, 0);
        }
        Ok(())
    }

    async fn request_now(&self, job: &Job) -> Result<Option<watch::Receiver<Progress>>, StoreError> {
        self.0.ledger.put_fills([job.clone().into()]).await?;
        Ok(Some(self.0.begin(job.clone(), true, 0)))
    }

    async fn list(&self) -> Result<Vec<Requested>, StoreError> {
        let fills = self.0.ledger.fills()?;
        let running = self.0.running.lock().unwrap_or_else(PoisonError::into_inner);
        let requested = |WrittenFill { job, given_up }| {
            let written = match running.get(&job.digest).map(|running| running.progress.borrow().clone()) {
                Some(Progress::Growing { written, .. }) => written,
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
pub(super) struct Handle(pub(super) Arc<Queue>);
