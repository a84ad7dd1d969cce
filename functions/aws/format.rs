//! The format of an item: what a release has to know to read it.
//!
//! Functions of two releases share the table while one takes the place of the other, and after a way back. So each item
//! that a release writes in another way than the first one did carries its format, and a release that does not know that
//! format neither reads, overwrites nor deletes the item. Without the attribute it is 1, which costs no byte.
//!
//! - A field with a default is no new format: it is ignored where it is not known.
//! - A new format takes two releases. The first one reads it, the next one writes it: a way back by one release reads all.
//! - Memberships keep their format, because a batch of writes has no conditions. Another one would have another sort key,
//!   which is of no kind that this release knows.

use aws_sdk_dynamodb::types::AttributeValue;
use stopover::errors::StoreError;
use stopover::ports::Result;

use crate::item::{self, Item};

/// The attribute.
pub(crate) const FORMAT: &str = "format";

/// The newest format that this release reads.
const NEWEST: u64 = 1;

/// The condition that there is no item, or one that this release reads: `#format` is [`FORMAT`], and `:newest` [`newest`].
pub(crate) const IS_KNOWN: &str = "(attribute_not_exists(#format) OR #format <= :newest)";

/// See [`IS_KNOWN`].
pub(crate) fn newest() -> AttributeValue {
    item::number(NEWEST)
}

/// The item, if this release reads its format.
pub(crate) fn known(item: Item) -> Result<Item> {
    match item.get(FORMAT) {
        None => Ok(item),
        Some(AttributeValue::N(digits)) if digits.parse().is_ok_and(|format: u64| format <= NEWEST) => Ok(item),
        Some(_) => Err(unknown(&item::name(&item))),
    }
}

/// The item with this name has a format that this release does not read.
pub(crate) fn unknown(name: &str) -> StoreError {
    let sentence = format!(
        "a newer release has written {name} in a format of its own (attribute {FORMAT}), and stopover {} reads formats up to \
         {NEWEST}: deploy that release, or a newer one",
        env!("CARGO_PKG_VERSION")
    );
    StoreError::Corrupt(sentence.into())
}
