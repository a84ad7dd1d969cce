//! Writes and deletions of items under a condition, and what came of them.

use std::collections::hash_map::RandomState;
use std::hash::BuildHasher;

use aws_sdk_dynamodb::operation::delete_item::DeleteItemError;
use aws_sdk_dynamodb::operation::put_item::PutItemError;
use aws_sdk_dynamodb::operation::put_item::builders::PutItemFluentBuilder;
use aws_sdk_dynamodb::operation::update_item::UpdateItemError;
use aws_sdk_dynamodb::types::ReturnValuesOnConditionCheckFailure;
use serde::Serialize;
use stopover::oci::{Digest, Repository};
use stopover::ports::Result;
use stopover::values::time::Timestamp;

use crate::DynamoLedger;
use crate::failure::store_error;
use crate::format::{self, FORMAT, IS_KNOWN};
use crate::item::{self, Item};

/// What came of a deletion under a condition.
pub(crate) enum Deletion {
    Done,
    /// There is no such item.
    Absent,
    /// The item is not as it had to be.
    Differs,
}

impl DynamoLedger {
    /// Notes the use of a manifest, unless that was done lately, and returns when it was last used. Reads first, because a
    /// write is charged even where its condition fails.
    pub(crate) async fn note_use(
        &self,
        repository: &Repository,
        digest: &Digest,
        since: Timestamp,
        now: Timestamp,
    ) -> Result<Option<Timestamp>> {
        if let Some(noted) = self.item(item::use_key(repository, digest), false).await? {
            let used_at = item::used_at(&noted)?;
            if since <= used_at {
                return Ok(Some(used_at));
            }
            let known = "attribute_exists(#pk) AND #used_at < :since";
            if let Some(used_at) = self.write_use(repository, digest, known, since, now).await? {
                return Ok(Some(used_at));
            }
        }
        let stored = self
            .client
            .get_item()
            .table_name(&self.table)
            .set_key(Some(item::manifest_key(repository, digest)))
            .projection_expression("#pk, #sk, #used_at, #format")
            .expression_attribute_names("#sk", item::SORT)
            .expression_attribute_names("#format", FORMAT)
            .expression_attribute_names("#pk", item::PARTITION)
            .expression_attribute_names("#used_at", item::USED_AT)
            .consistent_read(true);
        let stored = stored.send().await.map_err(|error| store_error("GetItem", error))?.item;
        let Some(stored) = stored.map(format::known).transpose()? else { return Ok(None) };
        let stored_at = item::used_at(&stored)?;
        if since <= stored_at {
            return Ok(Some(stored_at));
        }
        let new = "attribute_not_exists(#pk) OR #used_at < :since";
        self.write_use(repository, digest, new, since, now).await
    }

    /// Writes a record if its item has the version `expected`, and returns the new one.
    ///
    /// The SDK sends a request again whose answer was lost, and then meets its own write: `mine` is how it knows it.
    pub(crate) async fn swap_item<T: Serialize + Sync>(
        &self,
        key: Item,
        expected: Option<u64>,
        record: &T,
    ) -> Result<Option<u64>> {
        let mine = RandomState::new().hash_one(expected);
        let put = self
            .client
            .put_item()
            .table_name(&self.table)
            .set_item(Some(item::record(key, record, mine)?))
            .expression_attribute_names("#version", item::VERSION)
            .expression_attribute_values(":mine", item::number(mine));
        let put = match expected {
            None => put
                .condition_expression("attribute_not_exists(#pk) OR #version = :mine")
                .expression_attribute_names("#pk", item::PARTITION),
            Some(expected) => put
                .condition_expression(format!("(#version = :expected AND {IS_KNOWN}) OR #version = :mine"))
                .expression_attribute_names("#format", FORMAT)
                .expression_attribute_values(":newest", format::newest())
                .expression_attribute_values(":expected", item::number(expected)),
        };
        Ok(put_if(put).await?.then_some(mine))
    }

    /// Writes an item, unless a newer release has written it in its own format.
    pub(crate) async fn put(&self, item: Item) -> Result<()> {
        let name = item::name(&item);
        let put = self
            .client
            .put_item()
            .table_name(&self.table)
            .set_item(Some(item))
            .condition_expression(IS_KNOWN)
            .expression_attribute_names("#format", FORMAT)
            .expression_attribute_values(":newest", format::newest());
        if put_if(put).await? { Ok(()) } else { Err(format::unknown(&name)) }
    }

    /// Writes the last use of a manifest under a condition, and returns when it was last used by then. `None`: there is no
    /// such item, and the condition wants one.
    async fn write_use(
        &self,
        repository: &Repository,
        digest: &Digest,
        condition: &str,
        since: Timestamp,
        now: Timestamp,
    ) -> Result<Option<Timestamp>> {
        let update = self
            .client
            .update_item()
            .table_name(&self.table)
            .set_key(Some(item::use_key(repository, digest)))
            .update_expression("SET #used_at = :now")
            .condition_expression(format!("({condition}) AND {IS_KNOWN}"))
            .expression_attribute_names("#pk", item::PARTITION)
            .expression_attribute_names("#used_at", item::USED_AT)
            .expression_attribute_names("#format", FORMAT)
            .expression_attribute_values(":newest", format::newest())
            .expression_attribute_values(":now", item::number(now.0))
            .expression_attribute_values(":since", item::number(since.0))
            // Tells an item that was written lately from one that does not exist.
            .return_values_on_condition_check_failure(ReturnValuesOnConditionCheckFailure::AllOld);
        match update.send().await {
            Ok(_) => Ok(Some(now)),
            Err(error) => match error.as_service_error() {
                Some(UpdateItemError::ConditionalCheckFailedException(failed)) => {
                    let noted = failed.item().cloned().map(format::known).transpose()?;
                    noted.as_ref().map(item::used_at).transpose()
                }
                _ => Err(store_error("UpdateItem", error)),
            },
        }
    }

    /// Deletes an item in which `name` is `seen`. A time of use may also be earlier, because that of a manifest is in two
    /// items, or be absent: an earlier version wrote none.
    pub(crate) async fn delete(&self, key: Item, name: &str, seen: u64) -> Result<Deletion> {
        let condition = if name == item::USED_AT {
            "attribute_exists(#pk) AND (attribute_not_exists(#seen) OR #seen <= :seen)"
        } else {
            "attribute_exists(#pk) AND #seen = :seen"
        };
        let delete = self
            .client
            .delete_item()
            .table_name(&self.table)
            .set_key(Some(key))
            .condition_expression(format!("{condition} AND {IS_KNOWN}"))
            .expression_attribute_names("#pk", item::PARTITION)
            .expression_attribute_names("#seen", name)
            .expression_attribute_names("#format", FORMAT)
            .expression_attribute_values(":newest", format::newest())
            .expression_attribute_values(":seen", item::number(seen))
            .return_values_on_condition_check_failure(ReturnValuesOnConditionCheckFailure::AllOld);
        match delete.send().await {
            Ok(_) => Ok(Deletion::Done),
            Err(error) => match error.as_service_error() {
                Some(DeleteItemError::ConditionalCheckFailedException(failed)) => {
                    Ok(if failed.item().is_some() { Deletion::Differs } else { Deletion::Absent })
                }
                _ => Err(store_error("DeleteItem", error)),
            },
        }
    }
}

/// Writes under a condition. `false`: it does not hold.
async fn put_if(put: PutItemFluentBuilder) -> Result<bool> {
    match put.send().await {
        Ok(_) => Ok(true),
        Err(error) if error.as_service_error().is_some_and(PutItemError::is_conditional_check_failed_exception) => {
            Ok(false)
        }
        Err(error) => Err(store_error("PutItem", error)),
    }
}
