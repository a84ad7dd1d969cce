//! `[rules."…"]`: the settings of the repositories below one place at an upstream, and another name of that place.

use std::collections::BTreeMap;
use std::sync::Arc;

use super::file::{PolicyTable, RuleTable};
use super::{ConfigError, ReadSecret, UpstreamConfig, advice, value};
use crate::oci::{Name, Place, Repository, UpstreamId};
use crate::values::ConfiguredMap;

/// One rule.
#[derive(Clone, Debug)]
pub struct Rule {
    /// The place that it is about.
    pub place: Place,
    /// All settings that apply there, if the rule has any of its own: the others are inherited from the enclosing rule
    /// with the longest path, else from the upstream.
    pub settings: Option<Arc<UpstreamConfig>>,
}

/// The names of all places. Each request looks some of them up.
pub struct Places {
    /// The ids of upstreams, their aliases and hosts.
    upstreams: ConfiguredMap<String, Place>,
    /// The prefixes of rules.
    rules: ConfiguredMap<String, Place>,
}

impl Places {
    /// A host that two upstreams have means the first one; ids and aliases take precedence over hosts.
    pub fn new(upstreams: &BTreeMap<UpstreamId, Arc<UpstreamConfig>>, rules: &BTreeMap<Name, Rule>) -> Self {
        let mut places = ConfiguredMap::default();
        let mut add = |text: &str, id: &UpstreamId| {
            if !places.contains_key(text) {
                places.insert(text.to_owned(), Place::whole(id.clone()));
            }
        };
        for id in upstreams.keys() {
            add(id.as_str(), id);
        }
        for (id, upstream) in upstreams {
            upstream.aliases.iter().for_each(|alias| add(alias, id));
        }
        for (id, upstream) in upstreams {
            if let Some(host) = upstream.url.host_str() {
                add(host, id);
                if let Some(port) = upstream.url.port_or_known_default() {
                    add(&[host, ":", &port.to_string()].concat(), id);
                }
            }
        }
        let rules = rules.iter().map(|(prefix, rule)| (prefix.to_string(), rule.place.clone()));
        Self { upstreams: places, rules: rules.collect() }
    }

    /// The place with this name.
    pub fn named(&self, text: &str) -> Option<&Place> {
        self.upstreams.get(text).or_else(|| self.rules.get(text))
    }

    /// Whether a name that begins like this may be at a place: `beginning` is a place's name, begins with one, or is
    /// the beginning of one.
    pub fn reach(&self, beginning: &Name) -> bool {
        let within = |place: &String| place.strip_prefix(beginning.as_str()).is_some_and(|rest| rest.starts_with('/'));
        let mut names = self.upstreams.keys().chain(self.rules.keys());
        self.named(beginning.as_str()).is_some() || self.find(beginning).is_some() || names.any(within)
    }

    /// The repository that a name means, if it begins with the name of a place: the longest such beginning counts.
    pub fn find(&self, name: &Name) -> Option<Repository> {
        // A whole name is a repository only where the place is more than an upstream.
        if let Some(Place { upstream, path: Some(path) }) = self.named(name.as_str()) {
            return Some(Repository { upstream: upstream.clone(), name: path.clone() });
        }
        name.beginnings().find_map(|prefix| Some(self.named(prefix)?.join(&name.after(prefix)?)))
    }

    /// Like [`Self::find`], for upstreams only: for a name that begins like a rule's prefix only by chance.
    pub fn find_upstream(&self, name: &Name) -> Option<Repository> {
        name.beginnings().find_map(|prefix| Some(self.upstreams.get(prefix)?.join(&name.after(prefix)?)))
    }
}

/// Reads the rules, each with what it inherits.
pub(super) fn read(
    tables: BTreeMap<Name, RuleTable>,
    upstreams: &BTreeMap<UpstreamId, Arc<UpstreamConfig>>,
    secret: ReadSecret,
) -> Result<BTreeMap<Name, Rule>, ConfigError> {
    if tables.is_empty() {
        return Ok(BTreeMap::new());
    }
    let places = Places::new(upstreams, &BTreeMap::new());
    let mut sorted = Vec::new();
    for (prefix, mut table) in tables {
        let policy = table.policy();
        sorted.push((place(&prefix, table, &places)?, prefix, policy));
    }
    // A rule is read before those that inherit from it.
    sorted.sort_by_key(|(place, ..)| place.depth());
    let mut rules: BTreeMap<Name, Rule> = BTreeMap::new();
    for (place, prefix, policy) in sorted {
        let section = format!("rules.\"{prefix}\"");
        let settings = if policy == PolicyTable::default() {
            None
        } else {
            let around = rules.values().filter(|rule| rule.settings.is_some() && rule.place.encloses(&place));
            let around = around.max_by_key(|rule| rule.place.depth()).and_then(|rule| rule.settings.as_deref());
            let inherited = around.or_else(|| upstreams.get(&place.upstream).map(Arc::as_ref));
            let mut settings = inherited.cloned().ok_or_else(|| value(&*section, "no upstream"))?;
            settings.set(policy, &format!("{section}."), place.path.as_ref(), secret)?;
            Some(Arc::new(settings))
        };
        let same = |(_, other): &(&Name, &Rule)| other.settings.is_some() && other.place == place;
        if settings.is_some()
            && let Some((other, _)) = rules.iter().find(same)
        {
            return Err(value(section, format!("has settings for {place}, and so has rules.\"{other}\"")));
        }
        rules.insert(prefix, Rule { place, settings });
    }
    Ok(rules)
}

fn place(prefix: &Name, table: RuleTable, places: &Places) -> Result<Place, ConfigError> {
    let key = |name: &str| format!("rules.\"{prefix}\".{name}");
    if let Some(known) = places.named(prefix.as_str()) {
        let message = format!("is the upstream itself: its settings belong into [upstreams.\"{}\"]", known.upstream);
        return Err(value(format!("rules.\"{prefix}\""), message));
    }
    if let Some(Repository { upstream, name }) = places.find(prefix) {
        for (given, name) in [(table.upstream.is_some(), "upstream"), (table.path.is_some(), "path")] {
            if given {
                return Err(value(key(name), format!("must not be given: the prefix begins with {upstream}")));
            }
        }
        return Ok(Place { upstream, path: Some(name) });
    }
    let Some(upstream) = table.upstream else {
        return Err(value(
            key("upstream"),
            "is required where the prefix does not begin with the id of an upstream: write upstream = \"docker.io\"",
        ));
    };
    if let Some(place) = places.named(&upstream) {
        return Ok(Place { path: table.path, ..place.clone() });
    }
    let near = advice::nearest(&upstream, places.upstreams.keys().map(String::as_str));
    let hint = near.map_or_else(String::new, |right| format!(" — did you mean {right:?}?"));
    Err(value(key("upstream"), format!("{upstream:?} is no configured upstream{hint}")))
}
