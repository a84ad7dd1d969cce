//! Sections of documents that a test run makes.

use std::path::Path;
use std::sync::{Mutex, PoisonError};

use anyhow::{Context, ensure};

/// What each client can do.
pub const CLIENTS: &str = "docs/reference/clients.md";
/// What AWS is asked, and what it costs.
pub const COSTS: &str = "docs/explanation/costs.md";

/// Tests run side by side, and each has its own section of a file.
static WRITING: Mutex<()> = Mutex::new(());

/// Compares the section under this heading with what a run has found. With `STOPOVER_WRITE_DOCS` set, writes that instead.
///
/// # Errors
/// The file has no such section, or says something else.
pub fn check(document: &str, heading: &str, found: &str) -> anyhow::Result<()> {
    let _guard = WRITING.lock().unwrap_or_else(PoisonError::into_inner);
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("..").join(document);
    let text = std::fs::read_to_string(&path).with_context(|| document.to_owned())?;
    let title = format!("## {heading}\n\n");
    let start = text.find(&title).with_context(|| format!("{document} has no section {heading:?}"))? + title.len();
    // A section that is still empty ends with the line break that begins it.
    let end = text[start - 1..].find("\n## ").map_or(text.len(), |length| start - 1 + length);
    let written = text.get(start..end).unwrap_or_default().trim_end();
    let found = found.trim_end();
    if std::env::var_os("STOPOVER_WRITE_DOCS").is_some() {
        let changed = format!("{}{found}\n{}", &text[..start], &text[end..]);
        return std::fs::write(&path, changed).with_context(|| document.to_owned());
    }
    let advice = "STOPOVER_WRITE_DOCS=1 cargo test -p behaviours --test clients --test functions --test programs";
    ensure!(
        written == found,
        "the section {heading:?} of {document} says\n{written}\n\nbut the run found\n{found}\n\n`{advice}` writes that"
    );
    Ok(())
}

/// A table in Markdown, with numbered reasons below it.
#[derive(Default)]
pub struct Table {
    lines: Vec<String>,
    reasons: Vec<&'static str>,
}

/// What a run has found.
#[derive(Clone, Copy)]
pub enum Cell {
    /// The pull passes.
    Pass,
    /// The client cannot do that, for this reason.
    Cannot(&'static str),
    /// Something else.
    Says(&'static str),
}

impl Table {
    /// A table without rows.
    pub fn new(columns: &[&str]) -> Self {
        let mut this = Self::default();
        this.lines.push(format!("| {} |", columns.join(" | ")));
        this.lines.push(format!("|{}", " --- |".repeat(columns.len())));
        this
    }

    /// Adds a row.
    pub fn row(&mut self, name: &str, cells: &[Cell]) {
        let mut line = vec![name.to_owned()];
        for cell in cells {
            line.push(match cell {
                Cell::Pass => "passes".to_owned(),
                Cell::Says(text) => (*text).to_owned(),
                Cell::Cannot(reason) => {
                    let known = self.reasons.iter().position(|known| known == reason);
                    let number = known.unwrap_or_else(|| {
                        self.reasons.push(reason);
                        self.reasons.len() - 1
                    });
                    format!("client cannot ({})", number + 1)
                }
            });
        }
        self.lines.push(format!("| {} |", line.join(" | ")));
    }

    /// The table, and the reasons below it.
    pub fn render(&self) -> String {
        let reasons = (1..).zip(&self.reasons).map(|(number, reason)| format!("{number}. {reason}\n"));
        let reasons: String = reasons.collect();
        let separator = if reasons.is_empty() { "" } else { "\n" };
        format!("{}\n{separator}{reasons}", self.lines.join("\n"))
    }
}
