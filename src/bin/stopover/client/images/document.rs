//! Documents of YAML, JSON and TOML, whatever they are for.

use anyhow::Context as _;
use serde::Deserialize as _;
use serde_yaml_ng::Value;

use super::written::{is_hidden, replace};

/// Reads the documents of a text. `None`: its first line begins none. JSON may have comments, and a document a line.
pub(super) fn parse(text: &str) -> Option<anyhow::Result<Vec<Value>>> {
    // A line of templates alone is no value, but what decides about the lines around it.
    let is_flow =
        |line: &&str| line.contains(is_hidden) && line.chars().all(|letter| is_hidden(letter) || letter == ' ');
    let lines = text.lines().map(|line| if is_flow(&line) { "" } else { line });
    let text = lines.collect::<Vec<_>>().join("\n");
    // Editors write comments into JSON. What stands between quotes is none.
    let json = Some(&text).filter(|text| text.trim_start().starts_with(['{', '[', '/']));
    let json = json.map(|json| replace(json, r#"("(?:\\.|[^"\\])*")|//.*|/\*(?s:.*?)\*/"#, "$1"));
    let json = json.filter(|json| json.trim_start().starts_with(['{', '[']));
    let documents = json
        .as_ref()
        .and_then(|json| serde_json::Deserializer::from_str(json).into_iter().collect::<Result<Vec<Value>, _>>().ok());
    if let Some(documents) = documents.or_else(|| toml::from_str(&text).ok().map(|document| vec![document])) {
        return Some(Ok(documents));
    }
    let first = text.lines().map(str::trim).find(|line| !line.is_empty() && !line.starts_with('#'))?;
    let key = first.split_once(": ").map(|(key, _)| key).or_else(|| first.strip_suffix(':'));
    let is_key = |key: &str| key.starts_with(['"', '\'']) || !key.contains(char::is_whitespace);
    let begins = ["- ", "---", "%", "!", "&", "? "].iter().any(|begin| first.starts_with(begin));
    if json.is_none() && !begins && !key.is_some_and(is_key) {
        return None;
    }
    let documents = serde_yaml_ng::Deserializer::from_str(json.as_ref().unwrap_or(&text)).map(|document| {
        let mut value = Value::deserialize(document)?;
        value.apply_merge()?;
        Ok(value)
    });
    let documents =
        documents.collect::<Result<_, serde_yaml_ng::Error>>().context("is no YAML or JSON that can be read");
    // Sections of settings begin with a bracket, too.
    if documents.is_err() && first.starts_with('[') { None } else { Some(documents) }
}

/// The lines of a text that name images: the parsers give no positions.
pub(super) struct Lines<'a> {
    text: &'a str,
    /// Where the last one was found: they are looked for in their order.
    from: usize,
}

impl<'a> Lines<'a> {
    pub(super) fn of(text: &'a str) -> Self {
        Self { text, from: 0 }
    }

    /// The line that has this value of this key.
    pub(super) fn find(&mut self, key: &str, value: &str) -> Option<usize> {
        let value = value.lines().next().filter(|value| !value.is_empty())?;
        let find = |from: usize, key: &str| {
            self.text.get(from..)?.match_indices(value).map(|(at, _)| from + at).find(|at| {
                let line = self.text.get(..*at).and_then(|before| before.rsplit('\n').next()).unwrap_or_default();
                line.contains(key) && !line.trim_start().starts_with('#')
            })
        };
        let at = find(self.from, key).or_else(|| find(0, key)).or_else(|| find(0, ""))?;
        self.from = at + value.len();
        Some(self.text.get(..at)?.matches('\n').count() + 1)
    }
}
