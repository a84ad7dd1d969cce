//! Patterns of names and tags.

use serde::Deserialize;

/// A pattern of names or tags: `*` matches any characters, every other character itself.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Debug, Deserialize)]
pub struct Pattern(String);

impl Pattern {
    /// The pattern as it is written.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// Whether the pattern matches the whole of `text`.
    pub fn matches(&self, text: &str) -> bool {
        let mut parts = self.0.split('*');
        let Some(mut rest) = text.strip_prefix(parts.next().unwrap_or_default()) else { return false };
        let Some(last) = parts.next_back() else { return rest.is_empty() };
        for part in parts {
            // The earliest match is the best one: it leaves the most text to the parts that follow.
            let Some((_, after)) = rest.split_once(part) else { return false };
            rest = after;
        }
        rest.ends_with(last)
    }

    /// Whether it matches some text that begins so. What follows its first star can always be matched there.
    pub fn may_match_below(&self, begin: &str) -> bool {
        match self.0.split_once('*') {
            Some((head, _)) => head.starts_with(begin) || begin.starts_with(head),
            None => self.0.starts_with(begin),
        }
    }

    /// Whether it matches all that begins so.
    pub fn matches_all_below(&self, begin: &str) -> bool {
        self.0.strip_suffix('*').is_some_and(|_| self.matches(begin))
    }
}

impl From<&str> for Pattern {
    fn from(text: &str) -> Self {
        Self(text.to_owned())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

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
}
