//! Whose account a pull goes on.

use crate::identity::Payer;
use crate::values::pull_counter::PullCounter;

/// Who pays for what a pull has upstream asked for and has stored, and what upstream has sent for it.
#[derive(Clone, Debug)]
pub struct Bill {
    /// The caller that is charged. `None`: no caller is.
    pub payer: Option<Payer>,
    /// Counts what upstream sends for it.
    pub spent: PullCounter,
}

impl Bill {
    /// No caller is charged, and nothing is counted.
    pub const FREE: Self = Self { payer: None, spent: PullCounter::UNCOUNTED };

    /// The same where no caller is charged: what is sent is counted.
    pub(crate) fn without_payer(&self) -> Self {
        Self { payer: None, spent: self.spent.clone() }
    }
}
