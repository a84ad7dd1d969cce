//! What commands print: results on standard output, as text for people or as JSON for programs. What else there is to say
//! goes to standard error.

use std::io::{ErrorKind, Write as _};
use std::mem::replace;

use serde::Serialize;
use serde_json::{Map, Value};

/// What reads the output has read enough, as `head` does: no failure, and the end.
#[derive(thiserror::Error, Debug)]
#[error("nothing reads the output any more")]
pub(crate) struct ReadEnough;

/// Prints a part of the results.
pub(crate) fn print(text: &str) -> anyhow::Result<()> {
    match std::io::stdout().write_all(text.as_bytes()) {
        Err(error) if error.kind() == ErrorKind::BrokenPipe => Err(ReadEnough.into()),
        written => Ok(written?),
    }
}

/// A line for each of them.
pub(crate) fn lines(of: impl IntoIterator<Item = impl ToString>) -> String {
    of.into_iter().map(|one| one.to_string() + "\n").collect()
}

/// How results are printed.
#[derive(clap::Args, Clone, Copy, Default)]
pub(crate) struct Output {
    /// Print JSON, with the fields of the answers of the cache
    #[arg(long, global = true)]
    json: bool,
}

impl Output {
    /// Prints a result: these words, or all its fields.
    pub(crate) fn show<T: Serialize>(self, result: &T, words: impl FnOnce(&T) -> String) -> anyhow::Result<()> {
        print(&if self.json { serde_json::to_string_pretty(result)? + "\n" } else { words(result) })
    }

    /// Results that are printed one by one: in JSON they are a list of this name.
    pub(crate) fn list(self, name: &str) -> List {
        List { before: self.json.then(|| format!("{{\"{name}\":[\n")) }
    }
}

/// Results that are printed as soon as they are there, and held no longer.
pub(crate) struct List {
    /// What stands before the next result in JSON. `None`: they are printed in words.
    before: Option<String>,
}

impl List {
    /// Prints more results: these words, or all their fields, a result a line.
    pub(crate) fn add<T: Serialize>(
        &mut self,
        results: &[T],
        words: impl FnOnce(&[T]) -> String,
    ) -> anyhow::Result<()> {
        let Some(before) = &mut self.before else { return print(&words(results)) };
        let mut text = String::new();
        for result in results {
            text.push_str(&replace(before, ",\n".to_owned()));
            text.push_str(&serde_json::to_string(result)?);
        }
        print(&text)
    }

    /// Prints what there is to say of all of them: these words, or these fields behind the list.
    pub(crate) fn end(self, fields: Value, words: impl FnOnce() -> String) -> anyhow::Result<()> {
        let Some(before) = self.before else { return print(&words()) };
        let fields: Map<String, Value> = serde_json::from_value(fields)?;
        let fields: Vec<String> = fields.iter().map(|(name, value)| format!(",\"{name}\":{value}")).collect();
        print(&format!("{}]{}}}\n", before.trim_start_matches(','), fields.concat()))
    }
}
