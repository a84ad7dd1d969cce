//! The accounts of callers: a bounded number.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::Semaphore;

use super::ACCOUNTS;
use crate::config::Limits;
use crate::errors::Budget;
use crate::identity::Payer;
use crate::values::time::Timestamp;

/// One account for each caller with recent spending. When the table is full, new callers share one account. Evicting
/// accounts instead would give a caller with many addresses a full budget again and again.
#[derive(Default)]
pub(super) struct Table {
    accounts: HashMap<Payer, Account>,
    newcomers: Account,
    /// When idle accounts were last removed: at most once a second, because that looks at all of them.
    swept_at: Option<Timestamp>,
}

impl Table {
    pub(super) fn account(&mut self, payer: Payer, limits: &Limits, now: Timestamp) -> &mut Account {
        if self.accounts.len() >= ACCOUNTS && !self.accounts.contains_key(&payer) {
            if self.swept_at != Some(now) {
                self.swept_at = Some(now);
                self.accounts.retain(|_, account| !account.is_idle(limits, now));
            }
            if self.accounts.len() >= ACCOUNTS {
                return &mut self.newcomers;
            }
        }
        self.accounts.entry(payer).or_default()
    }

    #[cfg(test)]
    pub(super) fn len(&self) -> usize {
        self.accounts.len()
    }
}

/// What one caller has spent of each budget.
#[derive(Default)]
pub(super) struct Account {
    misses: Spent,
    pulls: Spent,
    new_bytes: Spent,
    miss_slots: Option<Arc<Semaphore>>,
}

impl Account {
    pub(super) fn of(&mut self, budget: Budget) -> &mut Spent {
        match budget {
            Budget::Misses => &mut self.misses,
            Budget::Pulls => &mut self.pulls,
            Budget::NewBytes => &mut self.new_bytes,
        }
    }

    pub(super) fn miss_slots(&mut self, at_once: u32) -> Arc<Semaphore> {
        Arc::clone(self.miss_slots.get_or_insert_with(|| Arc::new(Semaphore::new(at_once as usize))))
    }

    /// Whether it is the same as a new account: nothing is spent, and no request waits or is under way.
    fn is_idle(&self, limits: &Limits, now: Timestamp) -> bool {
        let spent = [(Budget::Misses, &self.misses), (Budget::Pulls, &self.pulls), (Budget::NewBytes, &self.new_bytes)];
        spent.into_iter().all(|(budget, spent)| spent.now(limits.most(budget), now) == 0)
            && self.miss_slots.as_ref().is_none_or(|slots| Arc::strong_count(slots) == 1)
    }
}

/// What is spent and not yet given back, multiplied by the seconds of the budget's window. Each second gives back as
/// much as the budget holds, so nothing is lost to rounding.
#[derive(Default)]
pub(super) struct Spent {
    parts: u128,
    at: Option<Timestamp>,
}

impl Spent {
    fn now(&self, most: u64, now: Timestamp) -> u128 {
        let seconds = self.at.map_or(0, |at| now.after(at).as_secs());
        self.parts.saturating_sub(u128::from(seconds) * u128::from(most))
    }

    /// What is spent after `amount` more, if that fits. Otherwise how long until it fits; a full window if it never
    /// does.
    pub(super) fn with(&self, amount: u64, most: u64, window: u64, now: Timestamp) -> Result<Self, Duration> {
        let parts = |amount: u64| u128::from(amount) * u128::from(window);
        let after = self.now(most, now) + parts(amount);
        if after > parts(most) {
            let seconds = (after - parts(most)).div_ceil(u128::from(most.max(1)));
            return Err(Duration::from_secs(u64::try_from(seconds).unwrap_or(window).min(window)));
        }
        Ok(Self { parts: after, at: Some(now) })
    }

    /// What was spent when it was last changed, and so the most that is spent now.
    pub(super) fn amount(&self, window: u64) -> u64 {
        u64::try_from(self.parts.div_ceil(u128::from(window))).unwrap_or(u64::MAX)
    }

    pub(super) fn give_back(&mut self, amount: u64, most: u64, window: u64, now: Timestamp) {
        let left = self.now(most, now).saturating_sub(u128::from(amount) * u128::from(window));
        *self = Self { parts: left, at: Some(now) };
    }
}
