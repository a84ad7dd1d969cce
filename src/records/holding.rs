//! What is stored of a repository, in numbers: the list of images is made of these records, and of nothing else.

use serde::{Deserialize, Serialize};

use super::blob::NOTED;
use crate::oci::Tag;
use crate::values::time::Timestamp;

/// How many tags a record names: a page of records is read at once.
const NAMED: usize = 8;

/// What is stored of a repository. Written when something of it is stored that was not, and by a sweep that has counted
/// something else; never by a pull of what is stored.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Holding {
    /// How many tags it has.
    pub tags: u64,
    /// Some of them, the last to be stored first.
    pub names: Vec<Tag>,
    /// The bytes of its blobs, each once. What was stored since the last count may be in it twice.
    pub bytes: u64,
    /// Those of them that other repositories have, too; none before the first count.
    pub shared_bytes: Option<u64>,
    /// When something of it was last used, as far as the last count and what was stored since know.
    pub used_at: Timestamp,
    /// Whether a sweep has counted it, and nothing was stored since.
    pub counted: bool,
}

impl Holding {
    /// Nothing yet.
    pub fn nothing() -> Self {
        let (names, used_at) = (Vec::new(), Timestamp(0));
        Self { tags: 0, names, bytes: 0, shared_bytes: None, used_at, counted: false }
    }

    /// The record once this tag is known, too. One that is named already is not counted again.
    #[must_use]
    pub fn with_tag(mut self, tag: &Tag, now: Timestamp) -> Self {
        if self.names.contains(tag) {
            return self;
        }
        self.names.insert(0, tag.clone());
        self.names.truncate(NAMED);
        Self { tags: self.tags + 1, ..self.grown(0, now) }
    }

    /// The record once so many more bytes belong to it. Where there are none it stays as it is for a day: it costs no write.
    #[must_use]
    pub fn with_bytes(self, bytes: u64, now: Timestamp) -> Self {
        if bytes == 0 && self.used_at >= now.minus(NOTED) { self } else { self.grown(bytes, now) }
    }

    fn grown(self, bytes: u64, now: Timestamp) -> Self {
        let (bytes, used_at) = (self.bytes.saturating_add(bytes), self.used_at.max(now));
        Self { bytes, used_at, counted: false, ..self }
    }

    /// Whether this record need not be written again once a sweep has counted what is in the other one.
    pub fn says(&self, counted: &Self) -> bool {
        // Of many tags it may name others.
        let known = |tag: &Tag| self.tags > NAMED as u64 || counted.names.contains(tag);
        let named = self.names.len() == counted.names.len() && self.names.iter().all(known);
        named && Self { names: counted.names.clone(), ..self.clone() } == *counted
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_record_counts_what_is_stored_and_names_the_last_tags() {
        let tag = |number: u64| format!("v{number}").parse::<Tag>().unwrap();
        let mut holding = Holding::nothing();
        for number in 0..20 {
            holding = holding.with_tag(&tag(number), Timestamp(number)).with_bytes(5, Timestamp(1));
            assert_eq!(holding.clone().with_tag(&tag(number), Timestamp(99)), holding, "it is known");
        }
        assert_eq!((holding.tags, holding.bytes, holding.used_at), (20, 100, Timestamp(19)));
        assert_eq!((holding.names.len(), &holding.names[0]), (NAMED, &tag(19)));
        let counted = Holding { counted: true, shared_bytes: Some(3), ..holding.clone() };
        assert!(!holding.says(&counted) && counted.says(&counted));
        assert!(!counted.clone().with_bytes(1, Timestamp(0)).says(&counted));
        let day = NOTED.as_secs();
        assert_eq!(
            counted.clone().with_bytes(0, Timestamp(19 + day)),
            counted,
            "nothing is new, and it was used today"
        );
        assert_eq!(counted.clone().with_bytes(0, Timestamp(20 + day)).used_at, Timestamp(20 + day));
    }
}
