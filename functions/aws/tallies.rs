//! The sums of what was counted: one item for each hour and each day, to which every process adds, and which DynamoDB
//! deletes.

use async_trait::async_trait;
use aws_sdk_dynamodb::types::AttributeValue;
use stopover::journal::{Slot, Tally};
use stopover::ports::{Result, Tallies};

use crate::DynamoLedger;
use crate::failure::store_error;
use crate::format::{self, FORMAT, IS_KNOWN};
use crate::item::{self, Item};

/// The slot and the sums of an item.
fn sums(item: &Item) -> Option<(Slot, Tally)> {
    let slot = Slot::parse(item.get(item::SORT)?.as_s().ok()?)?;
    let sum = |(name, value): (&'_ String, &AttributeValue)| Some((name.clone(), value.as_n().ok()?.parse().ok()?));
    let sums: Vec<(String, u64)> = item.iter().filter_map(sum).collect();
    Some((slot, Tally::of_names(sums.iter().map(|(name, sum)| (name.as_str(), *sum)))))
}

#[async_trait]
impl Tallies for DynamoLedger {
    async fn add_tally(&self, slot: Slot, tally: &Tally) -> Result<()> {
        let mut update = self
            .client
            .update_item()
            .table_name(&self.table)
            .set_key(Some(item::tally_key(slot)))
            .condition_expression(IS_KNOWN)
            .expression_attribute_names("#format", FORMAT)
            .expression_attribute_names("#until", item::EXPIRES_AT)
            .expression_attribute_values(":newest", format::newest())
            .expression_attribute_values(":until", item::number(slot.kept_until().0));
        let mut added = Vec::new();
        for (number, (name, sum)) in tally.by_name().enumerate() {
            added.push(format!("#{number} :{number}"));
            update = update
                .expression_attribute_names(format!("#{number}"), name)
                .expression_attribute_values(format!(":{number}"), item::number(sum));
        }
        let added = if added.is_empty() { String::new() } else { format!(" ADD {}", added.join(", ")) };
        let update = update.update_expression(format!("SET #until = :until{added}"));
        update.send().await.map(drop).map_err(|error| store_error("UpdateItem", error))
    }

    async fn tallies(&self, slots: &[Slot]) -> Result<Vec<(Slot, Tally)>> {
        let items = self.get_all(slots.iter().map(|slot| item::tally_key(*slot)).collect()).await?;
        Ok(items.iter().filter_map(sums).collect())
    }
}
