//! All mistakes of a file at once, each with its line and what to write instead: what is wrong is put right, or left
//! out, and the rest is read again, until nothing is wrong.

use std::fmt;
use std::ops::Range;
use std::path::Path;

use serde::Deserialize as _;
use toml::Spanned;
use toml::de::{DeTable, DeValue, ValueDeserializer};

use super::ConfigError;
use super::advice::{better, example, nearest, plain, unquoted};
use super::file::File;

/// The most mistakes that are told at once.
const MOST: usize = 50;

/// The most times that a file is read.
const MOST_READS: usize = 4 * MOST;

/// One mistake of the file.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Mistake {
    /// Line and column, from one on.
    pub place: Option<(usize, usize)>,
    /// The key as the file spells it. Empty: the text cannot be read there.
    pub key: String,
    /// What is wrong with it, and what to write instead.
    pub message: String,
}

impl fmt::Display for Mistake {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { place, key, message } = self;
        if let Some((line, column)) = place {
            write!(formatter, "line {line}, column {column}: ")?;
        }
        if key.is_empty() { formatter.write_str(message) } else { write!(formatter, "{key}: {message}") }
    }
}

/// What `complete` makes of the file, or all its mistakes. `complete` is also told whether something of the file was
/// mended.
pub(super) fn read<T>(
    text: &str,
    path: &Path,
    complete: impl Fn(File, bool) -> Result<T, ConfigError>,
) -> Result<T, ConfigError> {
    let (table, broken) = DeTable::parse_recoverable(text);
    let (span, mut table) = (table.span(), DeValue::Table(table.into_inner()));
    let place = |error: &toml::de::Error| position(text, error.span().map_or(text.len(), |span| span.start));
    let mut broken: Vec<_> = broken.iter().map(|error| (place(error), error)).collect();
    broken.sort_by_key(|(place, _)| *place);
    // The others of a line follow from the first.
    broken.dedup_by_key(|((line, _), _)| *line);
    let mut mistakes: Vec<Mistake> = broken.iter().map(|(place, error)| of_syntax(error, *place, text)).collect();
    let broken: Vec<usize> = broken.iter().map(|((line, _), _)| *line).collect();
    let is_broken = |line: usize| {
        let tables = (1..=line).zip(text.lines()).filter(|(_, text)| text.starts_with('['));
        let table = tables.last().map_or(line, |(line, _)| line);
        broken.contains(&line) || broken.contains(&table)
    };
    let (mut mended, mut emptied): (Vec<Range<usize>>, Vec<Range<usize>>) = (Vec::new(), Vec::new());
    for _ in 0..MOST_READS {
        let mut entries = Vec::new();
        list(&table, "", &mended, &mut entries);
        let root = ValueDeserializer::from(Spanned::new(span.clone(), table.clone()));
        let Wrong { key, message, at, place, fix } = match File::deserialize(root) {
            Err(error) => Wrong::of_serde(&error, &entries, text),
            Ok(file) => match complete(file, !mistakes.is_empty()) {
                Ok(config) if mistakes.is_empty() => return Ok(config),
                Ok(_) => break,
                Err(ConfigError::Value { key, message }) => Wrong::of_value(key, message, &entries),
                Err(other) => return Err(other),
            },
        };
        let mistake = Mistake { place: at.map(|at| position(text, at)), key, message };
        // What is wrong where something was mended or is left out, or where the text is broken, is a consequence.
        let again = place.as_ref().is_some_and(|place| mended.contains(place));
        let lacks = !matches!(fix, Fix::Insert(..)) && place.as_ref().is_some_and(|place| emptied.contains(place));
        let is_broken = mistake.place.is_some_and(|(line, _)| is_broken(line));
        if !again && !lacks && !is_broken && !mistakes.contains(&mistake) {
            mistakes.push(mistake);
        }
        let fix = if again { Fix::Remove } else { fix };
        if matches!(fix, Fix::Remove)
            && let Some(left) = entries.iter().find(|entry| Some(&entry.place) == place.as_ref())
        {
            let holds = |entry: &&Entry| left.path.starts_with(&entry.path) && entry.path.len() < left.path.len();
            emptied.extend(entries.iter().filter(holds).map(|entry| entry.place.clone()));
        }
        if mistakes.len() == MOST || !fix.mend(&mut table, place.as_ref()) {
            break;
        }
        mended.extend(fix.is_final().then_some(place).flatten());
    }
    mistakes.sort_by_key(|mistake| mistake.place);
    Err(ConfigError::Mistakes { path: path.to_owned(), mistakes })
}

/// Where a value stands that can be used and hardly means what was meant.
pub(super) fn warning(text: &str, (key, message): (String, String)) -> Mistake {
    let mut entries = Vec::new();
    let table = DeTable::parse(text).map_or_else(|_| DeTable::new(), Spanned::into_inner);
    let table = DeValue::Table(table);
    list(&table, "", &[], &mut entries);
    let Wrong { key, message, at, .. } = Wrong::of_value(key, message, &entries);
    Mistake { place: at.map(|at| position(text, at)), key, message }
}

/// Line and column of a byte.
fn position(text: &str, at: usize) -> (usize, usize) {
    let before = text.get(..at.min(text.len())).unwrap_or(text);
    let line = before.rsplit('\n').next().unwrap_or_default();
    (before.matches('\n').count() + 1, line.chars().count() + 1)
}

fn of_syntax(error: &toml::de::Error, place: (usize, usize), text: &str) -> Mistake {
    let written = text.lines().nth(place.0 - 1).unwrap_or_default().trim();
    let instead = |key: &str| example(key).map_or("\"…\"", |(_, example)| example);
    let is_key = |text: &str| !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_lowercase() || byte == b'_');
    let message = error.message().trim();
    let hint = match (written.split_once(':'), written.split_once('=').map(|(key, value)| (key.trim(), value))) {
        (Some((key, _)), None) if is_key(key) => {
            format!(" — this is TOML and not YAML: write {key} = {}", instead(key))
        }
        (_, Some((key, value))) if is_key(key) && !value.contains(['"', '\'', '[', '{']) => {
            format!(" — text stands between quotes: write {key} = {}", instead(key))
        }
        _ if message == "duplicate key" => " — it stands above already: join both".into(),
        _ if text.trim_start().starts_with('{') => {
            " — this is TOML and not JSON: write listen = \"127.0.0.1:5000\"".into()
        }
        _ if written.starts_with('[') => " — a table begins with a line like [upstreams.\"ghcr.io\"]".into(),
        _ => String::new(),
    };
    Mistake { place: Some(place), key: String::new(), message: format!("{message}{hint}") }
}

/// A key of the file or an element of a list, and its value.
struct Entry<'a> {
    path: String,
    place: Range<usize>,
    value: &'a Spanned<DeValue<'a>>,
}

/// Lists everything in a value, but not in what was mended: that has no places in the file.
fn list<'a>(value: &'a DeValue<'a>, path: &str, mended: &[Range<usize>], entries: &mut Vec<Entry<'a>>) {
    let mut add = |path: String, place: Range<usize>, value: &'a Spanned<DeValue<'a>>| {
        if !mended.contains(&place) {
            list(value.get_ref(), &path, mended, entries);
        }
        entries.push(Entry { path, place, value });
    };
    match value {
        DeValue::Table(table) => {
            let dot = if path.is_empty() { "" } else { "." };
            for (key, value) in table {
                let name = key.get_ref();
                let bare = name.bytes().all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b'-'));
                let name = if bare { name.to_string() } else { format!("{name:?}") };
                add(format!("{path}{dot}{name}"), key.span(), value);
            }
        }
        DeValue::Array(values) => {
            (1..).zip(values.iter()).for_each(|(number, value)| add(format!("{path}[{number}]"), value.span(), value));
        }
        _ => {}
    }
}

/// One mistake, and what makes the rest readable.
struct Wrong {
    key: String,
    message: String,
    /// Where the message points to.
    at: Option<usize>,
    /// What is mended. `None`: the file as a whole.
    place: Option<Range<usize>>,
    fix: Fix,
}

impl Wrong {
    /// What serde says, in the words of the file.
    fn of_serde(error: &toml::de::Error, entries: &[Entry], text: &str) -> Self {
        let at = error.span().map(|span| span.start);
        let message = plain(error.message().trim());
        let length = |entry: &Entry| {
            let spans = [entry.place.clone(), entry.value.span()].into_iter();
            spans.filter(|span| at.is_some_and(|at| span.contains(&at))).map(|span| span.len()).min()
        };
        let entry = entries.iter().filter_map(|entry| Some((length(entry)?, entry))).min_by_key(|(length, _)| *length);
        let Some((_, entry)) = entry else {
            return Self { key: String::new(), message, at, place: None, fix: Fix::Remove };
        };
        let (key, instead) = (entry.path.clone(), example(&entry.path));
        let (around, name) = key.rsplit_once('.').unwrap_or(("", &key));
        let (hint, fix, place) = if let Some(rest) = message.strip_prefix("unknown field `") {
            let mut quoted = rest.split('`').step_by(2);
            let (wrong, known): (_, Vec<&str>) = (quoted.next().unwrap_or_default(), quoted.collect());
            let parent = entries.iter().find(|entry| entry.path == around);
            if let (Some(parent), Some(id)) = (parent, unquoted(around, name, entry.value.get_ref())) {
                (format!("a name with dots stands between quotes: write [{id}]"), Fix::Remove, &parent.place)
            } else {
                let (hint, right) = better(wrong, &known);
                let at = |name: &str| format!("{around}.{name}").trim_start_matches('.').to_owned();
                let right = right.filter(|right| entries.iter().all(|entry| entry.path != at(right)));
                (hint, right.map_or(Fix::Remove, Fix::Rename), &entry.place)
            }
        } else if let Some(rest) = message.strip_prefix("unknown variant `") {
            let mut quoted = rest.split('`').step_by(2);
            let near = nearest(quoted.next().unwrap_or_default(), quoted);
            (near.map_or_else(String::new, |right| format!("did you mean `{right}`?")), Fix::to(instead), &entry.place)
        } else if let Some(rest) = message.strip_prefix("missing field `") {
            let missing = example(&format!("{key}.{}", rest.trim_end_matches('`')));
            let hint = missing.map_or_else(String::new, |(name, example)| format!("write {name} = {example}"));
            (hint, missing.map_or(Fix::Remove, |(name, example)| Fix::Insert(name, example)), &entry.place)
        } else {
            let written =
                text.get(entry.value.span()).filter(|text| text.starts_with('"') && !text.contains(['@', '\n']));
            let (is_list, is_advised) = (message.contains("expected a list"), message.contains("write "));
            let hint = match (written, instead) {
                _ if is_list && matches!(name, "schedule" | "policy") => format!("write [[{name}]]"),
                _ if matches!(name, "upstreams" | "rules") => format!("write [{name}.\"ghcr.io\"]"),
                (Some(written), Some((_, list))) if is_list && list.starts_with("[\"") => {
                    format!("write {name} = [{written}]")
                }
                (_, Some((_, example))) if !is_advised => format!("write {name} = {example}"),
                _ => String::new(),
            };
            (hint, Fix::to(instead), &entry.place)
        };
        // The list of all keys is of no use beside the right one.
        let message = if message.starts_with("unknown field") && !hint.is_empty() {
            message.split(',').next().unwrap_or_default().to_owned()
        } else {
            message.clone()
        };
        let message = if hint.is_empty() { message } else { format!("{message} — {hint}") };
        Self { place: Some(place.clone()), key, message, at, fix }
    }

    /// A value that cannot be used. `key`: where it stands, like `policy[1].who` in the first rule of the policy.
    fn of_value(key: String, message: String, entries: &[Entry]) -> Self {
        // A name may be written with quotes or without.
        let wanted = key.replace('"', "");
        let rest = |entry: &Entry| {
            let rest = wanted.strip_prefix(&entry.path.replace('"', ""))?.to_owned();
            (rest.is_empty() || rest.starts_with(['.', '['])).then_some(rest)
        };
        let found = entries.iter().filter_map(|entry| Some((rest(entry)?, entry))).min_by_key(|(rest, _)| rest.len());
        let Some((rest, entry)) = found else { return Self { key, message, at: None, place: None, fix: Fix::Remove } };
        let is_table = entry.value.get_ref().is_table();
        let at = Some(if is_table { entry.place.start } else { entry.value.span().start });
        let (place, fix) = match example(&wanted) {
            _ if key == "policy" => {
                (None, example("access").map_or(Fix::Remove, |(name, text)| Fix::Insert(name, text)))
            }
            Some((name, example)) if is_table && rest == format!(".{name}") => {
                (Some(entry.place.clone()), Fix::Insert(name, example))
            }
            _ => (Some(entry.place.clone()), Fix::to(example(&entry.path))),
        };
        Self { key, message, at, place, fix }
    }
}

/// What makes a file readable that has a mistake.
enum Fix {
    /// It is left out.
    Remove,
    /// The key is called like this.
    Rename(String),
    /// Something else stands there.
    Replace(&'static str),
    /// The table has this key too.
    Insert(&'static str, &'static str),
}

impl Fix {
    fn to(example: Option<(&'static str, &'static str)>) -> Self {
        example.map_or(Self::Remove, |(_, example)| Self::Replace(example))
    }

    /// Whether nothing of what stood there is left to have another mistake.
    const fn is_final(&self) -> bool {
        matches!(self, Self::Remove | Self::Replace(_))
    }

    /// Mends what stands at a place. `false`: there is no such place.
    fn mend(&self, value: &mut DeValue, place: Option<&Range<usize>>) -> bool {
        let Some(place) = place else { return matches!(self, Self::Insert(..)) && self.change(value, 0) };
        match value {
            DeValue::Table(table) => {
                let Some(mut key) = table.keys().find(|key| key.span() == *place).cloned() else {
                    return table.iter_mut().any(|(_, value)| self.mend(value.get_mut(), Some(place)));
                };
                let value = table.remove(&key);
                if let (Some(mut value), true) = (value, !matches!(self, Self::Remove)) {
                    if let Self::Rename(name) = self {
                        *key.get_mut() = name.clone().into();
                    }
                    self.change(value.get_mut(), place.end);
                    table.insert(key, value);
                }
                true
            }
            DeValue::Array(values) => match values.iter_mut().find(|value| value.span() == *place) {
                Some(value) if matches!(self, Self::Insert(..)) => self.change(value.get_mut(), place.end),
                Some(_) => {
                    *values = values.iter().filter(|value| value.span() != *place).cloned().collect();
                    true
                }
                None => values.iter_mut().any(|value| self.mend(value.get_mut(), Some(place))),
            },
            _ => false,
        }
    }

    fn change(&self, value: &mut DeValue, end: usize) -> bool {
        let parsed = |text: &'static str| DeValue::parse(text).map_or(DeValue::Boolean(true), Spanned::into_inner);
        match (self, value) {
            (Self::Insert(name, example), DeValue::Table(table)) => {
                let at = || end..end;
                table.insert(Spanned::new(at(), (*name).into()), Spanned::new(at(), parsed(example)));
            }
            (Self::Replace(example), value) => *value = parsed(example),
            // What has another name is likely to be written otherwise too.
            (Self::Rename(name), value) if !value.is_table() && !value.is_array() => {
                if let Some((_, example)) = example(name) {
                    *value = parsed(example);
                }
            }
            _ => return false,
        }
        true
    }
}
