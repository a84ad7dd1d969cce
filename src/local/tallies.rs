//! The sums of what was counted: one item for each hour and each day, of which a new one removes those that are over.

use async_trait::async_trait;

use super::EmbeddedLedger;
use super::store::Change;
use crate::journal::{Slot, Tally};
use crate::ports::{Attempts, Result, Tallies};
use crate::records::Versioned;

const TALLY: &str = "tally ";

fn key(slot: Slot) -> String {
    format!("{TALLY}{slot}")
}

impl EmbeddedLedger {
    /// Removes the sums that are over when this slot begins.
    fn forgotten(&self, begun: Slot) -> Result<Vec<Change>> {
        let known = self.0.scan::<Tally>(TALLY)?.into_iter().filter(|(key, _)| {
            let slot = key.strip_prefix(TALLY).and_then(Slot::parse);
            slot.is_some_and(|slot| slot.kept_until() <= begun.begins_at())
        });
        Ok(known.map(|(key, _)| Change::Remove(key)).collect())
    }
}

#[async_trait]
impl Tallies for EmbeddedLedger {
    async fn add_tally(&self, slot: Slot, tally: &Tally) -> Result<()> {
        let (key, mut attempts) = (key(slot), Attempts::new());
        loop {
            let known: Option<Versioned<Tally>> = self.0.read_json(&key)?;
            let mut changes = if known.is_none() { self.forgotten(slot)? } else { Vec::new() };
            let (expected, mut sums) =
                known.map_or((None, Tally::default()), |known| (Some(known.version), known.value));
            sums.merge(tally);
            changes.push(Change::put(key.clone(), expected.unwrap_or_default() + 1, &sums)?);
            if self.0.write(Some((key.clone(), expected)), changes).await? {
                return Ok(());
            }
            attempts.again().await?;
        }
    }

    async fn tallies(&self, slots: &[Slot]) -> Result<Vec<(Slot, Tally)>> {
        let read = |slot: &Slot| Ok(self.0.read_json(&key(*slot))?.map(|known: Versioned<Tally>| (*slot, known.value)));
        slots.iter().filter_map(|slot| read(slot).transpose()).collect()
    }
}
