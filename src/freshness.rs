//! What may be done about a reference, decided from its record and the time alone: no I/O, no clock.

use std::time::Duration;

use serde::Deserialize;

use crate::oci::{Digest, Tag};
use crate::ports::{Lease, Observed, Previous, TagRecord};
use crate::time::Timestamp;

/// How long tags are fresh: by the longest pattern that matches, else by a default; some for ever.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct TagRules {
    /// How long a tag is fresh that no pattern matches.
    pub fresh: Duration,
    /// How long tags are fresh that match.
    pub patterns: Vec<(Pattern, Duration)>,
    /// Tags that never move: upstream is asked once.
    pub immutable: Vec<Pattern>,
}

impl TagRules {
    /// How long this tag is fresh. `None`: for ever.
    pub fn fresh(&self, tag: &Tag) -> Option<Duration> {
        if self.immutable.iter().any(|pattern| pattern.matches(tag.as_str())) {
            return None;
        }
        let matching = self.patterns.iter().filter(|(pattern, _)| pattern.matches(tag.as_str()));
        Some(matching.max_by_key(|(pattern, _)| pattern.0.len()).map_or(self.fresh, |(_, fresh)| *fresh))
    }
}

/// A pattern of tags: `*` stands for any characters, everything else for itself.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Debug, Deserialize)]
pub struct Pattern(String);

impl Pattern {
    /// The pattern as it is written.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// Whether the whole of `text` is what the pattern says.
    pub fn matches(&self, text: &str) -> bool {
        let mut parts = self.0.split('*');
        let Some(mut rest) = text.strip_prefix(parts.next().unwrap_or_default()) else { return false };
        let Some(last) = parts.next_back() else { return rest.is_empty() };
        for part in parts {
            // The earliest place is the best one: it leaves most to what follows.
            let Some((_, after)) = rest.split_once(part) else { return false };
            rest = after;
        }
        rest.ends_with(last)
    }
}

impl From<&str> for Pattern {
    fn from(text: &str) -> Self {
        Self(text.to_owned())
    }
}

/// How long one process may ask upstream while all others wait. Longer than every time-out of one question, so that it
/// runs out only when its holder is dead.
pub const LEASE: Duration = Duration::from_secs(20);

/// What may be done about a reference.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Decision<'a> {
    /// Serve this: upstream said it lately.
    Fresh(&'a Observed),
    /// Say that it is missing: upstream said so lately.
    Missing,
    /// Another process asks upstream: serve what is known, or wait for it.
    Held,
    /// Ask upstream, once this record is written over the one it was decided from.
    Ask(TagRecord),
}

/// The rule. `check`: the client wants upstream to be asked however fresh the record is.
pub fn decide<'a>(record: Option<&'a TagRecord>, owner: &str, check: bool, now: Timestamp) -> Decision<'a> {
    let lease = Lease { owner: owner.to_owned(), until: now.plus(LEASE) };
    let Some(record) = record else {
        return Decision::Ask(TagRecord {
            observed: None,
            previous: None,
            checked_at: now,
            fresh_until: now,
            lease: Some(lease),
        });
    };
    if !check && now < record.fresh_until {
        return record.observed.as_ref().map_or(Decision::Missing, Decision::Fresh);
    }
    match &record.lease {
        Some(held) if now < held.until => Decision::Held,
        _ => Decision::Ask(TagRecord { lease: Some(lease), ..record.clone() }),
    }
}

/// What upstream said last, newest first, as long as it said so no longer than `stale` ago. Nothing, where it said that
/// there is no such tag.
pub fn last_known(record: &TagRecord, stale: Duration, now: Timestamp) -> impl Iterator<Item = &Digest> {
    let observed = record.observed.iter().map(|observed| (&observed.digest, record.checked_at));
    let previous = record.previous.iter().map(|previous| (&previous.digest, previous.checked_at));
    let known = observed.chain(previous).take_while(|_| record.observed.is_some());
    known.filter(move |(_, checked_at)| now < checked_at.plus(stale)).map(|(digest, _)| digest)
}

/// The record after upstream has answered: `observed`, or that there is no such thing. `previous` is what to keep serving
/// should the manifest of `observed` turn out not to be available.
pub fn answered(observed: Option<Observed>, previous: Option<Previous>, fresh: Duration, now: Timestamp) -> TagRecord {
    TagRecord { observed, previous, checked_at: now, fresh_until: now.plus(fresh), lease: None }
}

/// The record after upstream has said that a tag is gone which is to be served on: it is not asked about for `missing`,
/// and what it was stays known as long as it may be stale.
pub fn served_on(record: &TagRecord, stale: Duration, missing: Duration, now: Timestamp) -> TagRecord {
    let fresh_until = now.plus(missing).min(record.checked_at.plus(stale));
    TagRecord { fresh_until, lease: None, ..record.clone() }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::oci::{Algorithm, MediaType};

    const NOW: Timestamp = Timestamp(1_000_000);

    fn record(fresh_until: u64, lease_until: Option<u64>) -> TagRecord {
        let digest = Digest::of(Algorithm::Sha256, b"manifest");
        TagRecord {
            observed: Some(Observed { digest, media_type: MediaType::OciIndex, size: 8 }),
            previous: Some(Previous {
                digest: Digest::of(Algorithm::Sha256, b"previous"),
                checked_at: Timestamp(NOW.0 - 150),
            }),
            checked_at: Timestamp(NOW.0 - 100),
            fresh_until: Timestamp(fresh_until),
            lease: lease_until.map(|until| Lease { owner: "other".into(), until: Timestamp(until) }),
        }
    }

    #[test]
    fn a_fresh_record_is_served_whoever_holds_its_lease() {
        let fresh = record(NOW.0 + 1, Some(NOW.0 + 1));
        assert_eq!(decide(Some(&fresh), "me", false, NOW), Decision::Fresh(fresh.observed.as_ref().unwrap()));
        let missing = TagRecord { observed: None, ..fresh };
        assert!(
            matches!(decide(Some(&record(NOW.0 + 1, None)), "me", true, NOW), Decision::Ask(_)),
            "it was asked for"
        );
        assert_eq!(decide(Some(&missing), "me", false, NOW), Decision::Missing);
    }

    #[test]
    fn the_longest_pattern_that_matches_says_how_long_a_tag_is_fresh() {
        let minutes = Duration::from_mins;
        let rules = TagRules {
            fresh: minutes(5),
            patterns: vec![("*".into(), minutes(6)), ("v*".into(), minutes(7)), ("v*-rc*".into(), minutes(8))],
            immutable: vec!["*-final".into()],
        };
        let fresh = |tag: &str| rules.fresh(&tag.parse().unwrap());
        assert_eq!(fresh("latest"), Some(minutes(6)));
        assert_eq!(fresh("v1"), Some(minutes(7)));
        assert_eq!(fresh("v1-rc1"), Some(minutes(8)));
        assert_eq!(fresh("v1-final"), None);
        assert_eq!(TagRules { patterns: vec![], ..rules.clone() }.fresh(&"v1".parse().unwrap()), Some(minutes(5)));
    }

    #[test]
    fn a_star_stands_for_any_characters_and_everything_else_for_itself() {
        for (pattern, text) in [
            ("*", ""),
            ("*", "a"),
            ("a*", "a"),
            ("a*c", "abbc"),
            ("*b*b", "abbb"),
            ("a", "a"),
            ("1.*.*", "1.2.3"),
            ("**", "x"),
        ] {
            assert!(Pattern::from(pattern).matches(text), "{pattern} {text}");
        }
        for (pattern, text) in
            [("", "a"), ("a", "ab"), ("a*", "ba"), ("*c", "cb"), ("a*a", "a"), ("*b*b", "ab"), ("1.*.*", "1.2")]
        {
            assert!(!Pattern::from(pattern).matches(text), "{pattern} {text}");
        }
    }

    #[test]
    fn one_asks_while_its_lease_runs_and_another_takes_over_after_it() {
        assert_eq!(decide(Some(&record(NOW.0, Some(NOW.0 + 1))), "me", false, NOW), Decision::Held);
        for free in [None, Some(record(NOW.0, None)), Some(record(NOW.0, Some(NOW.0)))] {
            let Decision::Ask(leased) = decide(free.as_ref(), "me", false, NOW) else { panic!("{free:?}") };
            assert_eq!(leased.lease, Some(Lease { owner: "me".into(), until: NOW.plus(LEASE) }));
            assert_eq!(leased.observed, free.and_then(|record| record.observed), "nothing known is lost");
            assert!(NOW >= leased.fresh_until, "a lease makes nothing fresh");
        }
    }

    #[test]
    fn what_was_said_last_is_used_only_as_long_as_it_may_be_stale() {
        let record = record(0, None);
        let stale = Duration::from_secs(100);
        assert_eq!(last_known(&record, stale, Timestamp(NOW.0 - 51)).count(), 2);
        assert_eq!(last_known(&record, stale, Timestamp(NOW.0 - 50)).count(), 1, "each by its own age");
        assert_eq!(last_known(&record, stale, Timestamp(NOW.0 - 1)).count(), 1);
        assert_eq!(last_known(&record, stale, NOW).count(), 0);
        let deleted = TagRecord { observed: None, ..record };
        assert_eq!(last_known(&deleted, stale, Timestamp(NOW.0 - 51)).count(), 0, "what it was is not what it is");
    }
}
