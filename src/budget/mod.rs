//! What each caller may have upstream asked for, and the cache store. Whoever keeps asking for what does not exist, pulls
//! manifests that nobody has pulled, or has new bytes stored, is stopped before that is done: a stranger uses up neither
//! quota nor patience nor storage. What is stored is nobody's expense, and is never refused for lack of a budget.
//!
//! Whoever begins pays; those who wait for the same answer do not. Kept in memory: each process has its own, so each
//! instance of a function counts for itself.

mod table;

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use quick_cache::sync::Cache as MemoryCache;
use tokio::sync::OwnedSemaphorePermit;

use crate::config::Limits;
use crate::errors::{Budget, OverBudget, PullError, UpstreamError};
use crate::identity::Payer;
use crate::oci::Digest;
use crate::ports::Job;
use crate::values::pull_counter::PullCounter;
use crate::values::time::{Clock, Timestamp};

use table::{Account, Spent, Table};

/// The most callers of a kind that have an account of their own.
const ACCOUNTS: usize = 10_000;

/// How many of one caller's questions about what may not exist are asked at once; the others wait for their turn.
const AT_ONCE: u32 = 64;

/// How many blobs are remembered as paid for, and for how long: until they are stored, or nobody wants them any more.
const PAID_BLOBS: usize = 50_000;
const PAID: Duration = Duration::from_hours(24);

/// The budgets of all callers.
pub(crate) struct Budgets {
    limits: Limits,
    clock: Clock,
    /// Apart from those of principals, of which nobody can have as many as they like.
    networks: Mutex<Table>,
    principals: Mutex<Table>,
    /// Until when a blob of this size is paid for.
    paid: MemoryCache<(Digest, u64), Timestamp>,
}

impl Budgets {
    pub(crate) fn new(limits: Limits, clock: Clock) -> Arc<Self> {
        let (networks, principals) = (Mutex::default(), Mutex::default());
        Arc::new(Self { limits, clock, networks, principals, paid: MemoryCache::new(PAID_BLOBS) })
    }

    fn table(&self, payer: Payer) -> MutexGuard<'_, Table> {
        let table = match payer {
            Payer::Network(_) => &self.networks,
            Payer::Principal(_) => &self.principals,
        };
        table.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn on_account<T>(&self, payer: Payer, act: impl FnOnce(&mut Account, Timestamp) -> T) -> T {
        let now = self.clock.now();
        act(self.table(payer).account(payer, &self.limits, now), now)
    }

    /// Takes `amount` from a budget, if there is so much.
    fn take(&self, payer: Option<Payer>, budget: Budget, amount: u64) -> Result<(), OverBudget> {
        self.with(payer, budget, amount, |spent, after| *spent = after)
    }

    /// Whether there is so much in a budget.
    fn check(&self, payer: Option<Payer>, budget: Budget, amount: u64) -> Result<(), OverBudget> {
        self.with(payer, budget, amount, |_, _| ())
    }

    /// What `act` makes of what is spent, and would be with `amount`, if there is so much.
    fn with(
        &self,
        payer: Option<Payer>,
        budget: Budget,
        amount: u64,
        act: impl FnOnce(&mut Spent, Spent),
    ) -> Result<(), OverBudget> {
        let Some(payer) = payer else { return Ok(()) };
        let most = self.limits.most(budget);
        let outcome = self.on_account(payer, |account, now| {
            let spent = account.of(budget);
            spent.with(amount, most, budget.window(), now).map(|after| act(spent, after))
        });
        outcome.map_err(|retry_after| OverBudget { budget, retry_after })
    }

    fn give_back(&self, payer: Option<Payer>, budget: Budget, amount: u64) {
        let Some(payer) = payer else { return };
        let most = self.limits.most(budget);
        self.on_account(payer, |account, now| account.of(budget).give_back(amount, most, budget.window(), now));
    }

    /// A caller's turn to ask for what may not exist. A miss is paid for ahead, so that those who ask for everything at
    /// once, or leave before the answer, get no further than others.
    pub(crate) async fn reserve_miss(self: &Arc<Self>, payer: Option<Payer>) -> Result<MissReservation, OverBudget> {
        let Some(payer) = payer else { return Ok(MissReservation::free()) };
        // Half of the budget, so that what does exist is not refused because much of it is asked for at once.
        let at_once = (self.limits.misses / 2).clamp(1, AT_ONCE);
        let turns = self.on_account(payer, |account, _| account.turns(at_once));
        let Ok(permit) = turns.acquire_owned().await else { return Ok(MissReservation::free()) };
        self.take(Some(payer), Budget::Misses, 1)?;
        Ok(MissReservation { paid: Some((Arc::clone(self), payer, permit)), sent: false })
    }

    /// Whether a manifest may be fetched on behalf of a caller.
    pub(crate) fn check_pull(&self, payer: Option<Payer>) -> Result<(), OverBudget> {
        self.check(payer, Budget::Pulls, 1)
    }

    /// Asks upstream for a manifest, if whoever wants it can pay. It costs nothing, and is counted for no request, unless
    /// upstream has sent one.
    pub(crate) async fn pay_pull<T>(
        &self,
        payer: Option<Payer>,
        spent: &PullCounter,
        question: impl Future<Output = Result<T, UpstreamError>>,
    ) -> Result<T, PullError> {
        self.take(payer, Budget::Pulls, 1)?;
        let answer = question.await;
        if matches!(answer, Ok(_) | Err(UpstreamError::Invalid(_))) {
            spent.note_manifest();
        } else {
            self.give_back(payer, Budget::Pulls, 1);
        }
        Ok(answer?)
    }

    /// Whether a blob may be stored on behalf of a caller. It is paid for as its manifest names it, once, by whoever is
    /// first, and whether or not it turns out to be stored already: to find that out costs more than it is worth.
    pub(crate) fn admit(&self, payer: Option<Payer>, job: &Job) -> Result<(), OverBudget> {
        if self.is_paid(&job.digest, job.size) {
            return Ok(());
        }
        self.take(payer, Budget::NewBytes, job.size)?;
        self.paid.insert((job.digest.clone(), job.size), self.clock.now().plus(PAID));
        Ok(())
    }

    /// Whether so many bytes may be stored that are not paid for.
    pub(crate) fn check_bytes(&self, payer: Option<Payer>, bytes: u64) -> Result<(), OverBudget> {
        self.check(payer, Budget::NewBytes, bytes)
    }

    /// Takes a miss for what the ledger is asked, which may turn out to have been for nothing.
    pub(crate) fn charge_miss(&self, payer: Option<Payer>) -> Result<(), OverBudget> {
        self.take(payer, Budget::Misses, 1)
    }

    /// It was not.
    pub(crate) fn refund_miss(&self, payer: Option<Payer>) {
        self.give_back(payer, Budget::Misses, 1);
    }

    /// Whether a blob of this size is paid for already.
    pub(crate) fn is_paid(&self, digest: &Digest, size: u64) -> bool {
        self.paid.get(&(digest.clone(), size)).is_some_and(|until| self.clock.now() < until)
    }
}

/// See [`Budgets::reserve_miss`]. Dropped before upstream was sent it costs nothing.
pub(crate) struct MissReservation {
    paid: Option<(Arc<Budgets>, Payer, OwnedSemaphorePermit)>,
    sent: bool,
}

impl MissReservation {
    /// Nobody's.
    pub(crate) fn free() -> Self {
        Self { paid: None, sent: false }
    }

    /// Upstream is sent now, and what becomes of it is a miss unless [`Self::settle`] says otherwise.
    pub(crate) fn mark_sent(&mut self) {
        self.sent = true;
    }

    /// Whether it was a miss after all.
    pub(crate) fn settle(mut self, miss: bool) {
        self.sent &= miss;
    }
}

impl Drop for MissReservation {
    fn drop(&mut self) {
        if let Some((budgets, payer, _)) = &self.paid
            && !self.sent
        {
            budgets.give_back(Some(*payer), Budget::Misses, 1);
        }
    }
}

#[cfg(test)]
mod tests;
