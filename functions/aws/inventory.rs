//! What is stored, page by page. A page is one query: of the items that say what is stored of each repository, which are in
//! one partition in the order of their names, or of the tags of one repository.

use async_trait::async_trait;
use aws_sdk_dynamodb::types::AttributeValue;
use stopover::oci::{Digest, Manifest, Reference, Repository, Tag};
use stopover::ports::{Inventory, Result, Section};
use stopover::records::{Holding, TagRecord};
use stopover::values::time::Timestamp;

use crate::DynamoLedger;
use crate::batch::BATCH_KEYS;
use crate::failure::store_error;
use crate::format;
use crate::item::{self, Item, Kind};

/// Comes behind every character of a name or a tag.
const END: char = '~';
/// Comes before every character of a name or a tag, and behind the end of one.
const NEXT: char = '!';

impl DynamoLedger {
    /// The first `most` items of a partition whose sort keys lie in a range, both ends included.
    async fn query(&self, partition: String, from: String, to: String, most: usize) -> Result<Vec<Item>> {
        let (mut items, mut start) = (Vec::new(), None);
        while from < to && items.len() < most {
            let limit = i32::try_from(most - items.len()).unwrap_or(i32::MAX);
            let request = self
                .client
                .query()
                .table_name(&self.table)
                .key_condition_expression("#pk = :pk AND #sk BETWEEN :from AND :to")
                .expression_attribute_names("#pk", item::PARTITION)
                .expression_attribute_names("#sk", item::SORT)
                .expression_attribute_values(":pk", AttributeValue::S(partition.clone()))
                .expression_attribute_values(":from", AttributeValue::S(from.clone()))
                .expression_attribute_values(":to", AttributeValue::S(to.clone()))
                .set_exclusive_start_key(start)
                .limit(limit);
            let page = request.send().await.map_err(|error| store_error("Query", error))?;
            for item in page.items.unwrap_or_default() {
                items.push(format::known(item)?);
            }
            start = page.last_evaluated_key;
            if start.is_none() {
                break;
            }
        }
        Ok(items)
    }

    /// Reads items in batches.
    pub(crate) async fn get_all(&self, keys: Vec<Item>) -> Result<Vec<Item>> {
        let mut items = Vec::new();
        for batch in keys.chunks(BATCH_KEYS) {
            items.extend(self.get_batch(batch.to_vec(), false).await?);
        }
        Ok(items)
    }
}

#[async_trait]
impl Inventory for DynamoLedger {
    async fn holdings(&self, section: &Section) -> Result<Vec<(Repository, Holding)>> {
        let Section { prefix, after, most } = section;
        // A sort key has at least one character.
        let begin = if prefix.is_empty() { NEXT.to_string() } else { prefix.clone() };
        let from = after.as_ref().map_or(begin.clone(), |after| begin.max(format!("{after}{NEXT}")));
        let items = self.query(item::HOLDINGS.to_owned(), from, format!("{prefix}{END}"), *most).await?;
        let holding = |item: Item| -> Result<Option<_>> {
            let Kind::Holding(repository) = item::kind(&item)? else { return Ok(None) };
            Ok(Some((repository, item::parse_record(item)?)))
        };
        items.into_iter().filter_map(|item| holding(item).transpose()).collect()
    }

    async fn tags(&self, repository: &Repository, after: Option<&Tag>, most: usize) -> Result<Vec<(Tag, TagRecord)>> {
        let from = after.map_or_else(|| format!("tag#{NEXT}"), |after| format!("tag#{after}{NEXT}"));
        let items = self.query(item::partition(repository), from, format!("tag#{END}"), most).await?;
        let tag = |item: Item| -> Result<Option<_>> {
            let Kind::Reference(_, Reference::Tag(tag)) = item::kind(&item)? else { return Ok(None) };
            Ok(Some((tag, item::parse_record(item)?)))
        };
        items.into_iter().filter_map(|item| tag(item).transpose()).collect()
    }

    async fn digests(&self, repository: &Repository, after: Option<&Digest>, most: usize) -> Result<Vec<Digest>> {
        let from = after.map_or_else(|| format!("manifest#{NEXT}"), |after| format!("manifest#{after}{END}"));
        // Behind each may be the item of its last use.
        let items = self.query(item::partition(repository), from, format!("manifest#{END}"), 2 * most).await?;
        let digest = |item: Item| -> Result<Option<_>> {
            let Kind::Manifest(_, digest) = item::kind(&item)? else { return Ok(None) };
            Ok(Some(digest))
        };
        items.into_iter().filter_map(|item| digest(item).transpose()).take(most).collect()
    }

    async fn manifests(&self, repository: &Repository, digests: &[Digest]) -> Result<Vec<(Manifest, Timestamp)>> {
        let keys = digests
            .iter()
            .flat_map(|digest| [item::manifest_key(repository, digest), item::use_key(repository, digest)])
            .collect();
        let (mut found, mut uses) = (Vec::new(), Vec::new());
        for item in self.get_all(keys).await? {
            let used_at = item::used_at(&item)?;
            match item::kind(&item)? {
                Kind::Use(_, digest) => uses.push((digest, used_at)),
                Kind::Manifest(_, digest) => {
                    found.extend(self.parse_manifest(&digest, item).await?.map(|manifest| (manifest, used_at)));
                }
                _ => {}
            }
        }
        for (manifest, used_at) in &mut found {
            let noted = uses.iter().find(|(digest, _)| *digest == manifest.digest);
            *used_at = noted.map_or(*used_at, |(_, noted)| (*used_at).max(*noted));
        }
        Ok(found)
    }
}
