//! How the ledger's values are stored in the table: the one place where keys and attribute names are written.
//!
//! | item | `pk` | `sk` | attributes |
//! | --- | --- | --- | --- |
//! | tag record | `repo#<upstream>/<name>` | `tag#<tag>`, of a digest `fetch#<digest>` | the fields of [`TagRecord`], `version` |
//! | standing | same | `standing` | `shown_at` unless it is absent, and `expires_at`, after which DynamoDB deletes it |
//! | list | same | `tags`, `referrers#<digest>` | `list` as JSON, `fresh_until`, and `expires_at` as above |
//! | manifest | same | `manifest#<digest>` | `media_type`, `size`, `used_at` when it was stored, and `bytes` unless they are an object |
//! | its last use | same | `manifest#<digest>#used` | `used_at`; there is none before it is used on another day |
//! | membership | same | `blob#<digest>` | `size`, `used_at`, and `proven` where it is |
//! | what is stored of a repository | `holdings` | `<upstream>/<name>` | the fields of [`Holding`], `version` |
//! | blob record | `blob#<digest>` | `blob` | the fields of [`BlobRecord`], `version` |
//! | robots | `robots` | `robots` | the fields of [`Robots`], `version` |
//! | the configuration that was good last | `configuration` | `configuration` | `text`, `version` |
//! | sums of what was counted | `tallies` | `hour#<number>`, `day#<number>` since 1970 | `<upstream> <metric>` each, and `expires_at` as above |
//! | gauge | `upstream#<id>` | `gauge#<credential>` | the fields of [`Gauge`], `version` |
//! | places of fills | same | `fills` | the fields of `Places`, `version` |
//!
//! The last use of a manifest is an item of its own, because a write costs by the size of the whole item, even where its
//! condition fails. It is the next one after its manifest's, and a scan reads both together.
//!
//! Records keep the field names of the core, so that a field added there needs no change here. What needs one is of
//! another [`format`](crate::format), which is an attribute of any item.
//!
//! [`Holding`]: stopover::records::Holding
//! [`TagRecord`]: stopover::records::TagRecord
//! [`BlobRecord`]: stopover::records::BlobRecord
//! [`Robots`]: stopover::records::robot::Robots
//! [`Gauge`]: stopover::records::gauge::Gauge

use std::collections::HashMap;
use std::str::FromStr;

use aws_sdk_dynamodb::primitives::Blob;
use aws_sdk_dynamodb::types::AttributeValue;
use bytes::Bytes;
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::Value;
use stopover::errors::{Failure, StoreError};
use stopover::journal::Slot;
use stopover::oci::{Digest, Manifest, MediaType, Reference, Repository, UpstreamId};
use stopover::ports::Result;
use stopover::records::{GaugeKey, HoldingKey, Key, ListKey, Listing, Member, ReferenceKey, RobotsKey, Standing};
use stopover::values::time::Timestamp;

use crate::attribute::{attribute, value};

/// An item, or the key of one: values by attribute name.
pub(crate) type Item = HashMap<String, AttributeValue>;

/// The partition key.
pub(crate) const PARTITION: &str = "pk";
/// The sort key.
pub(crate) const SORT: &str = "sk";
/// What a conditional write compares: a number drawn anew for every write.
pub(crate) const VERSION: &str = "version";
/// The partition of what is stored of each repository.
pub(crate) const HOLDINGS: &str = "holdings";
/// The sort key of a standing: what upstream said of a repository as a whole.
const STANDING: &str = "standing";
/// The last part of the sort key of a manifest's last use.
const USE: &str = "used";
const SHOWN_AT: &str = "shown_at";
const PROVEN: &str = "proven";
const MEDIA_TYPE: &str = "media_type";
const SIZE: &str = "size";
/// When a manifest or a membership was last used. Takes the place of a version in those.
pub(crate) const USED_AT: &str = "used_at";
/// The bytes of a manifest, unless they are an object.
pub(crate) const BYTES: &str = "bytes";
const LIST: &str = "list";
const FRESH_UNTIL: &str = "fresh_until";
/// When DynamoDB may delete an item. Takes the place of a version in lists and standings.
pub(crate) const EXPIRES_AT: &str = "expires_at";

/// The key of a record, as an item.
pub(crate) trait Placed: Key {
    /// Many at once are read at half the price, and may be as they were a second ago.
    const MANY_MAY_LAG: bool = false;

    fn item(&self) -> Item;

    /// The blob whose view is out of date once the record is written.
    fn remembered(&self) -> Option<&Digest> {
        None
    }
}

impl Placed for ReferenceKey<'_> {
    fn item(&self) -> Item {
        let sort = match self.1 {
            Reference::Tag(tag) => format!("tag#{tag}"),
            Reference::Digest(digest) => format!("fetch#{digest}"),
        };
        key(format!("repo#{}", self.0), sort)
    }
}

impl Placed for HoldingKey<'_> {
    fn item(&self) -> Item {
        key("holdings".to_owned(), self.0.to_string())
    }
}

impl Placed for Digest {
    const MANY_MAY_LAG: bool = true;

    fn item(&self) -> Item {
        key(format!("blob#{self}"), "blob".to_owned())
    }

    fn remembered(&self) -> Option<&Digest> {
        Some(self)
    }
}

impl Placed for RobotsKey {
    fn item(&self) -> Item {
        key("robots".to_owned(), "robots".to_owned())
    }
}

impl Placed for GaugeKey {
    fn item(&self) -> Item {
        key(format!("upstream#{}", self.upstream), format!("gauge#{}", self.credential))
    }
}

/// The partition of a repository.
pub(crate) fn partition(repository: &Repository) -> String {
    format!("repo#{repository}")
}

/// The key of a standing.
pub(crate) fn standing_key(repository: &Repository) -> Item {
    key(format!("repo#{repository}"), STANDING.to_owned())
}

/// The item of a standing.
pub(crate) fn standing(repository: &Repository, standing: Standing) -> Item {
    let mut item = standing_key(repository);
    item.insert(EXPIRES_AT.to_owned(), number(standing.until().0));
    if let Standing::Shown { at, .. } = standing {
        item.insert(SHOWN_AT.to_owned(), number(at.0));
    }
    item
}

/// The standing in an item.
pub(crate) fn parse_standing(item: &Item) -> Result<Standing> {
    let until = expires_at(item)?;
    if !item.contains_key(SHOWN_AT) {
        return Ok(Standing::Absent { until });
    }
    Ok(Standing::Shown { at: parse_number(item, SHOWN_AT).map(Timestamp)?, until })
}

/// When an item expires: DynamoDB deletes it some time later.
pub(crate) fn expires_at(item: &Item) -> Result<Timestamp> {
    parse_number(item, EXPIRES_AT).map(Timestamp)
}

/// The key of a list.
pub(crate) fn listing_key(repository: &Repository, list: &ListKey) -> Item {
    let sort = match list {
        ListKey::Tags => "tags".to_owned(),
        ListKey::Referrers(subject) => format!("referrers#{subject}"),
    };
    key(format!("repo#{repository}"), sort)
}

/// The item of a list. The list itself is text: its content is upstream's, and may be nested deeper than attributes.
pub(crate) fn listing(repository: &Repository, key: &ListKey, listing: &Listing) -> Result<Item> {
    let list = serde_json::to_string(&listing.list).map_err(|error| corrupt(LIST, error))?;
    let mut item = listing_key(repository, key);
    item.insert(LIST.to_owned(), AttributeValue::S(list));
    item.insert(FRESH_UNTIL.to_owned(), number(listing.fresh_until.0));
    item.insert(EXPIRES_AT.to_owned(), number(listing.stale_until.0));
    Ok(item)
}

/// The list in an item.
pub(crate) fn parse_listing(item: &Item) -> Result<Listing> {
    let list = serde_json::from_str(text(item, LIST)?).map_err(|error| corrupt(LIST, error))?;
    let fresh_until = parse_number(item, FRESH_UNTIL).map(Timestamp)?;
    Ok(Listing { list, fresh_until, stale_until: expires_at(item)? })
}

/// The key of a manifest.
pub(crate) fn manifest_key(repository: &Repository, digest: &Digest) -> Item {
    key(format!("repo#{repository}"), format!("manifest#{digest}"))
}

/// The key of a manifest's last use.
pub(crate) fn use_key(repository: &Repository, digest: &Digest) -> Item {
    key(format!("repo#{repository}"), format!("manifest#{digest}#{USE}"))
}

/// The key of a membership.
pub(crate) fn membership_key(repository: &Repository, digest: &Digest) -> Item {
    key(format!("repo#{repository}"), format!("blob#{digest}"))
}

/// The key of the configuration that was good last.
pub(crate) fn configuration_key() -> Item {
    key("configuration".to_owned(), "configuration".to_owned())
}

/// The key of the sums of an hour or a day.
pub(crate) fn tally_key(slot: Slot) -> Item {
    key("tallies".to_owned(), slot.to_string())
}

/// The key of the places of the fills of an upstream.
pub(crate) fn places_key(upstream: &UpstreamId) -> Item {
    key(format!("upstream#{upstream}"), "fills".to_owned())
}

fn key(partition: String, sort: String) -> Item {
    Item::from([(PARTITION.to_owned(), AttributeValue::S(partition)), (SORT.to_owned(), AttributeValue::S(sort))])
}

/// The key of an item in words.
pub(crate) fn name(item: &Item) -> String {
    let text = |name: &str| item.get(name).and_then(|value| value.as_s().ok()).map_or("?", String::as_str);
    format!("{} {}", text(PARTITION), text(SORT))
}

/// Whether `item` is the one that `key` names.
pub(crate) fn is_at(item: &Item, key: &Item) -> bool {
    [PARTITION, SORT].iter().all(|name| item.get(*name) == key.get(*name))
}

/// The item of a membership.
pub(crate) fn membership(repository: &Repository, digest: &Digest, member: Member) -> Item {
    let mut item = membership_key(repository, digest);
    item.insert(SIZE.to_owned(), number(member.size));
    item.insert(USED_AT.to_owned(), number(member.used_at.0));
    if member.proven {
        item.insert(PROVEN.to_owned(), AttributeValue::Bool(true));
    }
    item
}

/// The membership in an item.
pub(crate) fn parse_membership(item: &Item) -> Result<Member> {
    let proven = matches!(item.get(PROVEN), Some(AttributeValue::Bool(true)));
    Ok(Member { size: size(item)?, used_at: used_at(item)?, proven })
}

/// When a manifest or a membership was last used. An item of an earlier version has no such attribute and reads as 0.
pub(crate) fn used_at(item: &Item) -> Result<Timestamp> {
    if item.contains_key(USED_AT) { parse_number(item, USED_AT).map(Timestamp) } else { Ok(Timestamp(0)) }
}

/// The kinds of ledger entries.
pub(crate) enum Kind {
    Reference(Repository, Reference),
    Manifest(Repository, Digest),
    /// The last use of a manifest.
    Use(Repository, Digest),
    Membership(Repository, Digest),
    Listing(Repository, ListKey),
    Standing(Repository),
    Holding(Repository),
    Blob(Digest),
    Other,
}

/// The kind of an item, by its key.
pub(crate) fn kind(item: &Item) -> Result<Kind> {
    let (partition, sort) = (text(item, PARTITION)?, text(item, SORT)?);
    let digest = |text: &str| Digest::from_str(text).map_err(|error| corrupt(sort, error));
    if let Some(text) = partition.strip_prefix("blob#") {
        return Ok(Kind::Blob(text.parse().map_err(|error| corrupt(partition, error))?));
    }
    let whole = if partition == HOLDINGS { Some(sort) } else { partition.strip_prefix("repo#") };
    let Some((upstream, name)) = whole.and_then(|whole| whole.split_once('/')) else {
        return Ok(Kind::Other);
    };
    let upstream = upstream.parse().map_err(|error| corrupt(partition, error))?;
    let repository = Repository { upstream, name: name.parse().map_err(|error| corrupt(partition, error))? };
    if partition == HOLDINGS {
        return Ok(Kind::Holding(repository));
    }
    Ok(match sort.split_once('#') {
        Some(("tag", tag)) => {
            Kind::Reference(repository, Reference::Tag(tag.parse().map_err(|error| corrupt(partition, error))?))
        }
        Some(("fetch", text)) => Kind::Reference(repository, Reference::Digest(digest(text)?)),
        Some(("manifest", text)) => match text.split_once('#') {
            None => Kind::Manifest(repository, digest(text)?),
            Some((text, USE)) => Kind::Use(repository, digest(text)?),
            Some(_) => Kind::Other,
        },
        Some(("blob", text)) => Kind::Membership(repository, digest(text)?),
        Some(("referrers", text)) => Kind::Listing(repository, ListKey::Referrers(digest(text)?)),
        None if sort == "tags" => Kind::Listing(repository, ListKey::Tags),
        None if sort == STANDING => Kind::Standing(repository),
        _ => Kind::Other,
    })
}

/// The length in bytes of an item's blob or manifest.
pub(crate) fn size(item: &Item) -> Result<u64> {
    parse_number(item, SIZE)
}

/// The item of a manifest, with its bytes or without.
pub(crate) fn manifest(repository: &Repository, manifest: &Manifest, inline: bool, now: Timestamp) -> Item {
    let mut item = manifest_key(repository, &manifest.digest);
    item.insert(MEDIA_TYPE.to_owned(), AttributeValue::S(manifest.media_type.to_string()));
    item.insert(SIZE.to_owned(), number(manifest.bytes.len() as u64));
    item.insert(USED_AT.to_owned(), number(now.0));
    if inline {
        item.insert(BYTES.to_owned(), AttributeValue::B(Blob::new(manifest.bytes.as_ref())));
    }
    item
}

/// The media type of a manifest's item.
pub(crate) fn media_type(item: &Item) -> Result<MediaType> {
    MediaType::from_str(text(item, MEDIA_TYPE)?).map_err(|error| corrupt(MEDIA_TYPE, error))
}

/// Takes the bytes out of a manifest's item. `None`: they are an object.
pub(crate) fn take_bytes(item: &mut Item) -> Result<Option<Bytes>> {
    match item.remove(BYTES) {
        None => Ok(None),
        Some(AttributeValue::B(blob)) => Ok(Some(blob.into_inner().into())),
        Some(_) => Err(corrupt(BYTES, "not binary")),
    }
}

/// The item of a record: its fields, and the version that the next write has to name.
pub(crate) fn record(key: Item, record: &impl Serialize, version: u64) -> Result<Item> {
    let Ok(Value::Object(fields)) = serde_json::to_value(record) else {
        return Err(StoreError::Corrupt("a record is not a structure with named fields".into()));
    };
    let mut item = key;
    item.extend(fields.into_iter().filter(|(_, value)| !value.is_null()).map(|(name, value)| (name, attribute(value))));
    item.insert(VERSION.to_owned(), number(version));
    Ok(item)
}

/// The version of a record's item.
pub(crate) fn version(item: &Item) -> Result<u64> {
    parse_number(item, VERSION)
}

/// The record in an item. Unknown attributes are ignored: a newer version may have written them.
pub(crate) fn parse_record<T: DeserializeOwned>(item: Item) -> Result<T> {
    let fields = item.into_iter().map(|(name, attribute)| Ok((name, value(attribute)?))).collect::<Result<_, _>>()?;
    serde_json::from_value(Value::Object(fields))
        .map_err(|error| StoreError::Corrupt(Failure::because("a record", error)))
}

/// A number as an attribute.
pub(crate) fn number(number: u64) -> AttributeValue {
    AttributeValue::N(number.to_string())
}

fn parse_number(item: &Item, name: &str) -> Result<u64> {
    match item.get(name) {
        Some(AttributeValue::N(digits)) => digits.parse().map_err(|error| corrupt(name, error)),
        _ => Err(corrupt(name, "not a number")),
    }
}

fn text<'a>(item: &'a Item, name: &str) -> Result<&'a str> {
    match item.get(name) {
        Some(AttributeValue::S(text)) => Ok(text),
        _ => Err(corrupt(name, "not a string")),
    }
}

fn corrupt(name: &str, reason: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> StoreError {
    StoreError::Corrupt(Failure::because(format!("attribute {name}"), reason))
}

#[cfg(test)]
mod tests {
    use stopover::oci::{Algorithm, Observed};
    use stopover::records::{BlobRecord, BlobState, Checkpoint, Lease, Previous, TagRecord};

    use super::*;

    fn digest() -> Digest {
        Digest::of(Algorithm::Sha256, b"content")
    }

    fn repository() -> Repository {
        Repository { upstream: "docker.io".parse().unwrap(), name: "library/nginx".parse().unwrap() }
    }

    fn round_trip<T: Serialize + DeserializeOwned + PartialEq + std::fmt::Debug>(written: &T) -> Item {
        let item = record(digest().item(), written, 7).unwrap();
        assert_eq!(version(&item).unwrap(), 7);
        assert_eq!(parse_record::<T>(item.clone()).unwrap(), *written);
        item
    }

    #[test]
    fn keys_are_those_of_the_design() {
        let expected = |partition: &str, sort: &str| key(partition.to_owned(), sort.to_owned());
        assert_eq!(
            ReferenceKey(&repository(), &"1.27".parse().unwrap()).item(),
            expected("repo#docker.io/library/nginx", "tag#1.27")
        );
        let (manifest, member) = (format!("manifest#{}", digest()), format!("blob#{}", digest()));
        assert_eq!(manifest_key(&repository(), &digest()), expected("repo#docker.io/library/nginx", &manifest));
        assert_eq!(membership_key(&repository(), &digest()), expected("repo#docker.io/library/nginx", &member));
        assert_eq!(digest().item(), expected(&member, "blob"));
        let referrers = format!("referrers#{}", digest());
        assert_eq!(listing_key(&repository(), &ListKey::Tags), expected("repo#docker.io/library/nginx", "tags"));
        let key = ListKey::Referrers(digest());
        assert_eq!(listing_key(&repository(), &key), expected("repo#docker.io/library/nginx", &referrers));
    }

    #[test]
    fn every_record_comes_back_as_it_was_written() {
        for state in [
            BlobState::Absent,
            BlobState::Claimed { owner: "one".to_owned(), until: Timestamp(u64::MAX) },
            BlobState::Removing { until: Timestamp(1) },
            BlobState::Stored { size: 0 },
        ] {
            round_trip(&BlobRecord {
                state,
                attempts: u32::MAX,
                failure: Some("why".to_owned()),
                checkpoint: Some(Checkpoint {
                    offset: 1,
                    hash: "00".to_owned(),
                    upload: "id".to_owned(),
                    upstream: Some(repository().upstream),
                }),
                used_at: Some(Timestamp(9)),
                open: true,
                shared: true,
            });
        }
        let observed = Observed { digest: digest(), media_type: MediaType::OciIndex, size: 1 << 40 };
        let record = TagRecord {
            observed: Some(observed),
            previous: Some(Previous { digest: digest(), checked_at: Timestamp(0) }),
            checked_at: Timestamp(1),
            fresh_until: Timestamp(2),
            lease: Some(Lease { owner: "one".to_owned(), until: Timestamp(3) }),
        };
        round_trip(&record);
        let missing = TagRecord { observed: None, previous: None, lease: None, ..record };
        assert!(!round_trip(&missing).contains_key("observed"), "an absent field takes no room");
    }

    #[test]
    fn an_item_that_was_not_written_by_us_is_corrupt_and_not_absent() {
        let mut item = record(digest().item(), &BlobRecord::new(BlobState::Absent), 1).unwrap();
        item.insert("attempts".to_owned(), AttributeValue::S("many".to_owned()));
        assert!(matches!(parse_record::<BlobRecord>(item.clone()), Err(StoreError::Corrupt(_))));
        item.remove(VERSION);
        assert!(matches!(version(&item), Err(StoreError::Corrupt(_))));
        assert!(matches!(size(&item), Err(StoreError::Corrupt(_))));
        assert!(matches!(media_type(&item), Err(StoreError::Corrupt(_))));
    }
}
