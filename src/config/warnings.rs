//! What a configuration says and cannot mean: it is used all the same, and the operator is told.

use std::cell::LazyCell;

use super::names::may_match_below;
use super::{Config, DEFAULT_UPSTREAM, Places, UpstreamConfig};
use crate::identity::policy::Rule;
use crate::oci::{Name, Place, Platforms, Repository};
use crate::values::pattern::Pattern;

/// The architectures that images are built for, as Go calls them.
const ARCHITECTURES: [&str; 11] =
    ["386", "amd64", "arm", "arm64", "loong64", "mips64le", "ppc64le", "riscv64", "s390x", "wasm", "unknown"];

impl Config {
    /// Each with its key, as in [`ConfigError::Value`](super::ConfigError::Value).
    pub(super) fn doubts(&self) -> Vec<(String, String)> {
        let mut doubts = Vec::new();
        // Many files have neither pins nor schedules, and there are many names.
        let places = LazyCell::new(|| Places::new(&self.upstreams, &self.rules));
        for (number, pin) in (1..).zip(&self.retention.pin) {
            doubts.extend(self.pin(pin.as_str(), &places).map(|doubt| (format!("pin[{number}]"), doubt)));
        }
        for (id, settings) in &self.upstreams {
            let doubt = |(key, doubt)| (format!("upstreams.\"{id}\"{key}"), doubt);
            doubts.extend(self.settings_of(&Place::whole(id.clone()), settings).into_iter().map(doubt));
        }
        for (prefix, rule) in &self.rules {
            let Some(settings) = &rule.settings else { continue };
            let doubt = |(key, doubt)| (format!("rules.\"{prefix}\"{key}"), doubt);
            doubts.extend(self.settings_of(&rule.place, settings).into_iter().map(doubt));
        }
        for (number, schedule) in (1..).zip(&self.schedules) {
            for (element, image) in (1..).zip(&schedule.images) {
                let Some(name) = image.operation.name() else { continue };
                let doubt = self.scheduled(image.namespace.as_deref(), name, &places);
                doubts.extend(doubt.map(|doubt| (format!("schedule[{number}].images[{element}]"), doubt)));
            }
            doubts.extend(unbuilt(&schedule.platforms).map(|doubt| (format!("schedule[{number}].platforms"), doubt)));
        }
        let rules = self.access.as_ref().map_or(&[][..], |access| &access.policy.0);
        for (number, rule) in (1..).zip(rules) {
            if let Some(earlier) = rules.iter().take(number - 1).find(|earlier| covers(earlier, rule)) {
                let doubt =
                    format!("never decides: {} is about all that it is about; put it before that", earlier.name);
                doubts.push((format!("policy[{number}]"), doubt));
            }
        }
        doubts
    }

    fn settings_of(&self, place: &Place, settings: &UpstreamConfig) -> Vec<(&'static str, String)> {
        let mut doubts = Vec::new();
        let rules = self.access.as_ref().map_or(&[][..], |access| &access.policy.0);
        let may_allow = |rule: &&Rule| {
            rule.allow && (rule.what.is_empty() || rule.what.iter().any(|what| may_meet(what.as_str(), place)))
        };
        if settings.is_private() && !rules.iter().any(|rule| may_allow(&rule)) {
            let key = if settings.credentials.is_some() { ".credentials" } else { "" };
            let all = if place.path.is_some() { format!("{place}*") } else { format!("{place}/*") };
            let doubt = format!(
                "no caller may pull what is private there: write public = true for all callers that are let in, or \
                 [[policy]] with what = [{all:?}] and allow = true"
            );
            doubts.push((key, doubt));
        }
        let patterns: Vec<_> = settings.names.patterns().collect();
        let of = |wanted| patterns.iter().find(|(key, _)| *key == wanted).map(|(_, patterns)| patterns);
        let denies =
            |name: &str| of("deny").is_some_and(|deny| deny.iter().any(|deny| Pattern::from(*deny).matches(name)));
        let below = || place.path.as_ref().map_or_else(|| "*".to_owned(), |path| format!("{path}/*"));
        if of("deny").is_some() && denies(&below()) {
            doubts.push((".deny", "refuses all names there".into()));
        } else if of("allow").is_some_and(|allow| !allow.is_empty() && allow.iter().all(|allow| denies(allow))) {
            doubts.push((".deny", "refuses all names that allow lets through".into()));
        } else if let (Some(allow), Some(path)) = (of("allow"), &place.path)
            && !allow.iter().any(|allow| may_match_below(allow, path))
        {
            doubts.push(("", format!("allow = {allow:?} around it refuses all names there")));
        }
        let tags = settings.tags.immutable.iter().map(|tag| (".immutable", tag));
        for (key, tag) in tags.chain(settings.tags.patterns.iter().map(|(tag, _)| (".fresh", tag))) {
            if tag.as_str().contains(['/', ':', '@']) {
                let tag = tag.as_str();
                doubts.push((key, format!("{tag:?} is no pattern of tags, which have neither / nor : in them")));
            }
        }
        doubts
    }

    /// Why a pin fits no image.
    fn pin(&self, pin: &str, places: &Places) -> Option<String> {
        let (start, star) = pin.split_once('*').map_or((pin, false), |(start, _)| (start, true));
        let ends_with_tag = |text: &str| text.rsplit('/').next().is_some_and(|last| last.contains(':'));
        if pin.contains('@') {
            return Some(format!("{pin:?} fits no image: pins are patterns of tags, like \"ghcr.io/acme/web:1.*\""));
        }
        if !star && !ends_with_tag(pin) {
            return Some(format!("{pin:?} fits no image: write \"{pin}:*\" for all its tags"));
        }
        let name = start.split(':').next().unwrap_or_default();
        let upstream = self.upstreams.iter().find(|(id, _)| {
            let beginning = format!("{id}/");
            start.starts_with(&beginning) || star && beginning.starts_with(start)
        });
        let right = match upstream {
            None => {
                let first = name.split('/').next().unwrap_or_default();
                match places.named(first) {
                    Some(place) => pin.replacen(first, place.upstream.as_str(), 1),
                    None if first.contains('.') && name.contains('/') => {
                        return Some(format!("{pin:?} fits no image: {first:?} is no configured upstream"));
                    }
                    None if name.contains('/') => format!("{DEFAULT_UPSTREAM}/{pin}"),
                    None => format!("{DEFAULT_UPSTREAM}/library/{pin}"),
                }
            }
            Some((id, settings)) if settings.library && start.contains(':') && name.matches('/').count() == 1 => {
                pin.replacen(&format!("{id}/"), &format!("{id}/library/"), 1)
            }
            Some(_) => return None,
        };
        Some(format!("{pin:?} fits no image: write {right:?}"))
    }

    /// Why the image of a schedule cannot be pulled.
    fn scheduled(&self, namespace: Option<&str>, name: &Name, places: &Places) -> Option<String> {
        let repository = match namespace {
            Some(host) => places.named(host).map(|place| place.join(name)),
            None => places.find(name).or_else(|| {
                let is_host = name.first() != name.as_str() && name.first().contains('.');
                let upstream = DEFAULT_UPSTREAM.parse().ok().filter(|_| !is_host)?;
                Some(Repository { upstream, name: name.clone() })
            }),
        };
        let Some(Repository { upstream, name }) = repository else {
            let host = namespace.unwrap_or_else(|| name.first());
            return Some(format!("{host:?} is no configured upstream: write [upstreams.\"{host}\"] for it"));
        };
        let whole = self.upstreams.get(&upstream)?;
        let name = if whole.library { name.in_library() } else { name };
        let rule = self.rule_at(&Place { upstream, path: Some(name.clone()) });
        let settings = rule.and_then(|prefix| self.rules.get(prefix)?.settings.as_ref()).unwrap_or(whole);
        settings.names.refused_by(&name).map(|key| format!("{key} refuses {name}"))
    }
}

/// Whether a pattern of repositories may match one in a place.
fn may_meet(pattern: &str, place: &Place) -> bool {
    let place = place.to_string();
    place.parse().is_ok_and(|place: Name| may_match_below(pattern, &place)) || pattern == place
}

/// Whether a rule matches all that a later one matches. A star of the later one counts as a letter.
fn covers(earlier: &Rule, later: &Rule) -> bool {
    let all = |wide: &[Pattern], narrow: &[Pattern]| {
        let is_within = |narrow: &Pattern| wide.iter().any(|wide| wide.matches(narrow.as_str()));
        wide.is_empty() || !narrow.is_empty() && narrow.iter().all(is_within)
    };
    let is_there = |narrow| earlier.networks.iter().any(|wide| wide.contains(narrow));
    let networks = earlier.networks.is_empty() || !later.networks.is_empty() && later.networks.iter().all(is_there);
    let claims = earlier.claims.iter().all(|claim| later.claims.iter().any(|other| other == claim));
    networks && claims && all(&earlier.who, &later.who) && all(&earlier.what, &later.what)
}

/// Why a platform of a list has no images.
fn unbuilt(platforms: &Platforms) -> Option<String> {
    let Platforms::Only(platforms) = platforms else { return None };
    platforms.iter().map(ToString::to_string).find_map(|platform| {
        let (system, rest) = platform.split_once('/')?;
        let architecture = rest.split('/').next().unwrap_or_default();
        if ARCHITECTURES.contains(&architecture) {
            return None;
        }
        let near = super::advice::nearest(architecture, ARCHITECTURES)?;
        Some(format!("no image is built for {platform:?}: did you mean \"{system}/{near}\"?"))
    })
}
