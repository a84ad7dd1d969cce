//! `allow` and `deny`: which names of an upstream are answered.

use super::{ConfigError, value};
use crate::oci::Name;
use crate::values::pattern::Pattern;

/// Which names of an upstream are answered: those that match `allow`, or all where it is not given, and of these none
/// that matches `deny`.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct NameRules {
    pub(super) allow: Option<NamePatterns>,
    pub(super) deny: Option<NamePatterns>,
}

/// Patterns of names, and the key that they were read from.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct NamePatterns {
    key: String,
    patterns: Vec<Pattern>,
}

impl NameRules {
    /// The patterns that the file has, by the name of their key.
    pub fn patterns(&self) -> impl Iterator<Item = (&'static str, Vec<&str>)> {
        let given = [("allow", &self.allow), ("deny", &self.deny)].into_iter();
        given.filter_map(|(name, given)| Some((name, given.as_ref()?.patterns.iter().map(Pattern::as_str).collect())))
    }

    /// The key that refuses a name of a repository at the upstream. `None`: it is answered.
    pub fn refused_by(&self, name: &Name) -> Option<&str> {
        let deny = self.deny.as_ref().filter(|deny| deny.matches(name));
        let refuses = || self.allow.as_ref().filter(|allow| !allow.matches(name));
        deny.or_else(refuses).map(|patterns| patterns.key.as_str())
    }
}

impl NamePatterns {
    fn matches(&self, name: &Name) -> bool {
        self.patterns.iter().any(|pattern| pattern.matches(name.as_str()))
    }

    /// Refuses patterns that no name can match: `deny = ["nginx"]` would refuse nothing where all names have a slash,
    /// nor below a `path` that it does not begin with.
    pub(super) fn read(
        patterns: &[String],
        key: String,
        library: bool,
        path: Option<&Name>,
    ) -> Result<Self, ConfigError> {
        for (element, pattern) in (1..).zip(patterns) {
            let key = format!("{key}[{element}]");
            if !is_pattern_of_names(pattern) {
                return Err(value(key, format!("{pattern:?} is no pattern of names like \"acme/web*\"")));
            }
            if library && !pattern.contains(['/', '*']) {
                return Err(value(key, format!("every name there has a slash: write \"library/{pattern}\"")));
            }
            if let Some(path) = path
                && !may_match_below(pattern, path)
            {
                return Err(value(key, format!("{pattern:?} matches no name there: they begin with \"{path}/\"")));
            }
        }
        Ok(Self { key, patterns: patterns.iter().map(|pattern| pattern.as_str().into()).collect() })
    }
}

/// Whether a name may match a pattern: none has a tag, a digest, or a slash at its end.
pub(super) fn is_pattern_of_names(pattern: &str) -> bool {
    // A letter may stand beside every other character.
    pattern.replace('*', "a").parse::<Name>().is_ok()
}

/// Whether a pattern may match `path` itself or a name below it.
pub(super) fn may_match_below(pattern: &str, path: &Name) -> bool {
    pattern == path.as_str() || Pattern::from(pattern).may_match_below(&format!("{path}/"))
}
