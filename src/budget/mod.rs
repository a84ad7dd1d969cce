//! Limits on what each caller may cause: requests for content that does not exist, manifests fetched from upstream, and
//! new bytes stored. A caller over budget is refused before upstream or storage is used, so that an unknown caller
//! cannot exhaust quota or storage. Serving stored content is free and is never refused for lack of a budget.
//!
//! The caller that starts a shared request is charged; callers that join it are not. Budgets are kept in memory, so
//! each process (each instance of a function) counts separately.

mod bill;
mod table;

pub use bill::Bill;

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::OwnedSemaphorePermit;

use crate::config::Limits;
use crate::errors::{Budget, OverBudget, PullError, UpstreamError};
use crate::identity::Payer;
use crate::oci::Digest;
use crate::ports::Job;
use crate::values::expiring::Expiring;
use crate::values::time::{Clock, Timestamp};

use table::{Account, Spent, Table};

/// The most accounts of one kind (networks, principals).
const ACCOUNTS: usize = 10_000;

/// How many requests of one caller that may turn out as misses run at once; further ones wait.
const AT_ONCE: u32 = 64;

/// How many blobs are remembered as paid for, and for how long: by then they are stored, or no client wants them any
/// more.
const PAID_BLOBS: usize = 50_000;
const PAID: Duration = Duration::from_hours(24);

/// The budgets of all callers.
pub(crate) struct Budgets {
    limits: Limits,
    clock: Clock,
    /// Apart from `principals`: a caller can come from as many networks as it likes, but cannot invent principals.
    networks: Mutex<Table>,
    principals: Mutex<Table>,
    /// The most new bytes that one account has ever had spent at a time: where surely enough are left, a hit takes no lock.
    fullest: AtomicU64,
    /// Blobs, by digest and size, that are paid for.
    paid: Expiring<(Digest, u64), ()>,
}

impl Budgets {
    pub(crate) fn new(limits: Limits, clock: Clock) -> Arc<Self> {
        let (networks, principals) = (Mutex::default(), Mutex::default());
        let paid = Expiring::new(clock.clone(), PAID_BLOBS);
        Arc::new(Self { limits, clock, networks, principals, fullest: AtomicU64::new(0), paid })
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

    /// Charges `amount` to a budget, if that much is left.
    fn take(&self, payer: Option<Payer>, budget: Budget, amount: u64) -> Result<(), OverBudget> {
        self.with(payer, budget, amount, |spent, after| *spent = after)
    }

    /// Checks that `amount` is left in a budget, without charging it.
    fn check(&self, payer: Option<Payer>, budget: Budget, amount: u64) -> Result<(), OverBudget> {
        self.with(payer, budget, amount, |_, _| ())
    }

    /// If `amount` is left, calls `act` with what is spent now and what would be spent after it.
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

    /// Charges a miss in advance for a request that may turn out as one, and waits while too many of the caller's are
    /// under way. Charging in advance means that a caller gains nothing by asking for everything at once or by leaving
    /// early.
    pub(crate) async fn reserve_miss(self: &Arc<Self>, payer: Option<Payer>) -> Result<MissReservation, OverBudget> {
        let Some(payer) = payer else { return Ok(MissReservation::free()) };
        // At most half of the budget, so that many simultaneous requests for content that exists are not refused.
        let at_once = (self.limits.misses / 2).clamp(1, AT_ONCE);
        let slots = self.on_account(payer, |account, _| account.miss_slots(at_once));
        let Ok(permit) = slots.acquire_owned().await else { return Ok(MissReservation::free()) };
        self.take(Some(payer), Budget::Misses, 1)?;
        Ok(MissReservation { paid: Some((Arc::clone(self), payer, permit)), ..MissReservation::free() })
    }

    /// Checks that a caller may have upstream asked for something that may not be there.
    pub(crate) fn check_miss(&self, payer: Option<Payer>) -> Result<(), OverBudget> {
        self.check(payer, Budget::Misses, 1)
    }

    /// Checks that a caller may have a manifest fetched from upstream.
    pub(crate) fn check_pull(&self, payer: Option<Payer>) -> Result<(), OverBudget> {
        self.check(payer, Budget::Pulls, 1)
    }

    /// Asks upstream for a manifest and charges the caller for it. Charged and counted only if upstream sent a manifest,
    /// valid or not.
    pub(crate) async fn pay_pull<T>(
        &self,
        bill: &Bill,
        question: impl Future<Output = Result<T, UpstreamError>>,
    ) -> Result<T, PullError> {
        self.take(bill.payer, Budget::Pulls, 1)?;
        let mut charge = PullCharge { budgets: self, payer: bill.payer, is_due: false };
        let answer = question.await;
        charge.is_due = matches!(answer, Ok(_) | Err(UpstreamError::Invalid(_)));
        if charge.is_due {
            bill.spent.note_manifest();
        }
        Ok(answer?)
    }

    /// Charges the caller that a fill is for. A blob is charged once, when its manifest names it, to the
    /// first caller, even if it is stored already: to find that out would cost more than it saves.
    pub(crate) fn admit(&self, job: &Job) -> Result<(), OverBudget> {
        if self.is_paid(&job.digest, job.size) {
            return Ok(());
        }
        self.pay_bytes(job.payer, job.size)?;
        self.paid.keep((job.digest.clone(), job.size), (), PAID);
        Ok(())
    }

    /// Charges a caller for bytes that are to be stored.
    pub(crate) fn pay_bytes(&self, payer: Option<Payer>, bytes: u64) -> Result<(), OverBudget> {
        self.with(payer, Budget::NewBytes, bytes, |spent, after| {
            self.fullest.fetch_max(after.amount(Budget::NewBytes.window()), Ordering::Relaxed);
            *spent = after;
        })
    }

    /// Checks that a caller has this many bytes left for blobs that are not paid for yet.
    pub(crate) fn check_bytes(&self, payer: Option<Payer>, bytes: u64) -> Result<(), OverBudget> {
        if self.fullest.load(Ordering::Relaxed).saturating_add(bytes) <= self.limits.new_bytes {
            return Ok(());
        }
        self.check(payer, Budget::NewBytes, bytes)
    }

    /// Charges a miss for a fill that was in vain.
    pub(crate) fn charge_miss(&self, payer: Option<Payer>) -> Result<(), OverBudget> {
        self.take(payer, Budget::Misses, 1)
    }

    /// Whether a blob of this size is paid for already.
    pub(crate) fn is_paid(&self, digest: &Digest, size: u64) -> bool {
        self.paid.get(&(digest.clone(), size)).is_some()
    }
}

/// A miss charged in advance by [`Budgets::reserve_miss`]. Dropping it before [`Self::mark_sent`] refunds the miss.
pub(crate) struct MissReservation {
    paid: Option<(Arc<Budgets>, Payer, OwnedSemaphorePermit)>,
    sent: bool,
    /// It stays charged once sent, whatever comes of it.
    is_kept: bool,
}

impl MissReservation {
    /// A reservation that charges no caller.
    pub(crate) fn free() -> Self {
        Self { paid: None, sent: false, is_kept: false }
    }

    /// Charges for the question itself, whatever the answer is.
    pub(crate) fn keep_once_sent(&mut self) {
        self.is_kept = true;
    }

    /// Upstream is asked now. From here on the miss stays charged unless [`Self::settle`] refunds it.
    pub(crate) fn mark_sent(&mut self) {
        self.sent = true;
    }

    /// Ends the reservation: the miss stays charged if the request was sent, and `miss` is true or it is kept; otherwise
    /// it is refunded.
    pub(crate) fn settle(mut self, miss: bool) {
        self.sent &= miss || self.is_kept;
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

/// A pull charged in advance. Dropped before it is due, also because its caller waits no longer, it is given back.
struct PullCharge<'a> {
    budgets: &'a Budgets,
    payer: Option<Payer>,
    is_due: bool,
}

impl Drop for PullCharge<'_> {
    fn drop(&mut self) {
        if !self.is_due {
            self.budgets.give_back(self.payer, Budget::Pulls, 1);
        }
    }
}

#[cfg(test)]
mod tests;
