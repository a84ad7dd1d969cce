//! The accounts of callers, of which there are never more than a fixed number.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::Semaphore;

use super::ACCOUNTS;
use crate::config::Limits;
use crate::errors::Budget;
use crate::identity::Payer;
use crate::values::time::Timestamp;

/// One account for each caller who has spent something lately. Where there are too many, newcomers share one: to forget
/// somebody instead would give whoever has many addresses a full budget again and again.
#[derive(Default)]
pub(super) struct Table {
    accounts: HashMap<Payer, Account>,
    newcomers: Account,
    /// When those who have everything back were forgotten: at most once a second, because all have to be looked at.
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
    turns: Option<Arc<Semaphore>>,
}

impl Account {
    pub(super) fn of(&mut self, budget: Budget) -> &mut Spent {
        match budget {
            Budget::Misses => &mut self.misses,
            Budget::Pulls => &mut self.pulls,
            Budget::NewBytes => &mut self.new_bytes,
        }
    }

    pub(super) fn turns(&mut self, at_once: u32) -> Arc<Semaphore> {
        Arc::clone(self.turns.get_or_insert_with(|| Arc::new(Semaphore::new(at_once as usize))))
    }

    /// Whether it is as good as a new one: all is given back, and nobody waits for a turn or has one.
    fn is_idle(&self, limits: &Limits, now: Timestamp) -> bool {
        let spent = [(Budget::Misses, &self.misses), (Budget::Pulls, &self.pulls), (Budget::NewBytes, &self.new_bytes)];
        spent.into_iter().all(|(budget, spent)| spent.now(limits.most(budget), now) == 0)
            && self.turns.as_ref().is_none_or(|turns| Arc::strong_count(turns) == 1)
    }
}

/// What is spent of a budget and not given back yet, times the seconds of its window: each second gives back as much as
/// the budget holds, so that nothing is lost to rounding.
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

    /// What is spent once `amount` is, if there is so much; otherwise how long that takes. What never fits can be had in no
    /// time at all, so a full window is said of it.
    pub(super) fn with(&self, amount: u64, most: u64, window: u64, now: Timestamp) -> Result<Self, Duration> {
        let parts = |amount: u64| u128::from(amount) * u128::from(window);
        let after = self.now(most, now) + parts(amount);
        if after > parts(most) {
            let seconds = (after - parts(most)).div_ceil(u128::from(most.max(1)));
            return Err(Duration::from_secs(u64::try_from(seconds).unwrap_or(window).min(window)));
        }
        Ok(Self { parts: after, at: Some(now) })
    }

    pub(super) fn give_back(&mut self, amount: u64, most: u64, window: u64, now: Timestamp) {
        let left = self.now(most, now).saturating_sub(u128::from(amount) * u128::from(window));
        *self = Self { parts: left, at: Some(now) };
    }
}
