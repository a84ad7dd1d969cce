//! How long tags are fresh.

use std::time::Duration;

use crate::oci::Tag;
use crate::values::pattern::Pattern;

/// How long tags are fresh: by the longest pattern that matches, else by a default; some for ever.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct TagRules {
    /// How long a tag is fresh that no pattern matches.
    pub fresh: Duration,
    /// How long tags are fresh that match a pattern.
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
        Some(matching.max_by_key(|(pattern, _)| pattern.as_str().len()).map_or(self.fresh, |(_, fresh)| *fresh))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

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
}
