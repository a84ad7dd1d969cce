//! Calls about many items at once, repeated until DynamoDB has processed all of them.

use std::time::Duration;

use aws_sdk_dynamodb::types::{KeysAndAttributes, PutRequest, WriteRequest};
use stopover::errors::{Failure, StoreError};
use stopover::ports::Result;

use crate::DynamoLedger;
use crate::failure::store_error;
use crate::format;
use crate::item::Item;

/// How many items `BatchWriteItem` takes.
pub(crate) const BATCH_ITEMS: usize = 25;

/// How many keys `BatchGetItem` takes.
pub(crate) const BATCH_KEYS: usize = 100;

/// How often the rest of a batch is sent. DynamoDB returns unprocessed items when it throttles a part of a batch; the
/// pauses between (50 ms, doubling) add up to 1.5 s, well inside the time a client waits for headers.
const BATCH_ATTEMPTS: u32 = 6;

impl DynamoLedger {
    /// Writes at most [`BATCH_ITEMS`] items with different keys.
    pub(crate) async fn put_batch(&self, items: Vec<Item>) -> Result<()> {
        let put = |item| {
            let built = PutRequest::builder().set_item(Some(item)).build();
            built.map_err(|error| StoreError::Corrupt(Failure::because("an item to be written", error)))
        };
        let mut undone = Vec::with_capacity(items.len());
        for item in items {
            undone.push(WriteRequest::builder().put_request(put(item)?).build());
        }
        for attempt in 0..BATCH_ATTEMPTS {
            pause_before(attempt).await;
            let request = self.client.batch_write_item().request_items(&self.table, undone);
            let answer = request.send().await.map_err(|error| store_error("BatchWriteItem", error))?;
            undone = answer.unprocessed_items.unwrap_or_default().remove(&self.table).unwrap_or_default();
            if undone.is_empty() {
                return Ok(());
            }
        }
        Err(StoreError::Unavailable(format!("BatchWriteItem: {} items were left undone", undone.len()).into()))
    }

    /// Reads several items in one round trip. The order is not that of the keys.
    pub(crate) async fn get_batch(&self, keys: Vec<Item>, consistent: bool) -> Result<Vec<Item>> {
        let builder = KeysAndAttributes::builder().set_keys(Some(keys)).consistent_read(consistent);
        let mut missing =
            builder.build().map_err(|error| StoreError::Corrupt(Failure::because("keys to be read", error)))?;
        let mut found = Vec::new();
        for attempt in 0..BATCH_ATTEMPTS {
            pause_before(attempt).await;
            let request = self.client.batch_get_item().request_items(&self.table, missing);
            let answer = request.send().await.map_err(|error| store_error("BatchGetItem", error))?;
            for item in answer.responses.unwrap_or_default().remove(&self.table).unwrap_or_default() {
                found.push(format::known(item)?);
            }
            match answer.unprocessed_keys.unwrap_or_default().remove(&self.table) {
                Some(rest) if !rest.keys().is_empty() => missing = rest,
                _ => return Ok(found),
            }
        }
        Err(StoreError::Unavailable("BatchGetItem: keys were left unread".into()))
    }
}

async fn pause_before(attempt: u32) {
    if attempt > 0 {
        tokio::time::sleep(Duration::from_millis(50) * 2_u32.pow(attempt - 1)).await;
    }
}
