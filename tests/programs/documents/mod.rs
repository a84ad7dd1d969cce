//! README, SECURITY.md and docs/: what they name is there, what they show runs, and the reference is what the program has.

mod command_line;
mod commands;
mod configuration;
mod costs;
mod data_path;
mod first_configuration;
mod help;
mod http;
mod links;
mod outputs;
mod proofs;
mod watching;

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, ensure};

pub(crate) fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
}

/// All files below a directory that end like this, sorted.
fn files(directory: &Path, extension: &str) -> Result<Vec<PathBuf>> {
    let mut found = Vec::new();
    for entry in fs::read_dir(directory).with_context(|| directory.display().to_string())? {
        let path = entry?.path();
        if path.is_dir() {
            found.extend(files(&path, extension)?);
        } else if path.extension().is_some_and(|is| is == extension) {
            found.push(path);
        }
    }
    found.sort();
    Ok(found)
}

/// The text of all files below a directory that end like this.
fn sources(directory: &str, extension: &str) -> Result<String> {
    files(&root().join(directory), extension)?.iter().map(|path| Ok(fs::read_to_string(path)?)).collect()
}

/// Compares files of a directory with what they have to be. With `STOPOVER_WRITE_DOCS` set, writes them instead.
fn check_files(directory: &str, found: &[(String, String)]) -> Result<()> {
    let place = root().join(directory);
    if std::env::var_os("STOPOVER_WRITE_DOCS").is_some() {
        _ = fs::remove_dir_all(&place);
        fs::create_dir_all(&place)?;
        return found.iter().try_for_each(|(name, text)| Ok(fs::write(place.join(name), text)?));
    }
    let advice =
        "`STOPOVER_WRITE_DOCS=1 cargo test -p behaviours --test programs documents` writes it: read the difference";
    for (name, text) in found {
        let written = fs::read_to_string(place.join(name)).with_context(|| format!("{name}: {advice}"))?;
        ensure!(written == *text, "{directory}/{name} is another than\n{text}\n{advice}");
    }
    ensure!(files(&place, "txt")?.len() == found.len(), "{directory} has a file that is of nothing any more: {advice}");
    Ok(())
}

/// A text in Markdown.
struct Document {
    /// Where it is, from the top of the repository.
    path: PathBuf,
    text: String,
}

/// A fenced block.
struct Block {
    language: String,
    text: String,
}

impl Document {
    fn read(path: &str) -> Result<Self> {
        let text = fs::read_to_string(root().join(path)).with_context(|| path.to_owned())?;
        Ok(Self { path: path.into(), text })
    }

    /// Every document there is.
    fn all() -> Result<Vec<Self>> {
        let mut paths = vec![root().join("README.md"), root().join("SECURITY.md")];
        paths.extend(files(&root().join("docs"), "md")?);
        let read = |path: &PathBuf| {
            let path = path.strip_prefix(root())?;
            Self::read(path.to_str().context("a path that is not UTF-8")?)
        };
        paths.iter().map(read).collect()
    }

    fn name(&self) -> String {
        self.path.display().to_string()
    }

    /// Its lines, each with whether it belongs to a fenced block, fences too.
    fn lines(&self) -> impl Iterator<Item = (bool, &str)> {
        let mut fenced = false;
        self.text.lines().map(move |line| {
            let fence = line.trim_start().starts_with("```");
            let within = fenced || fence;
            fenced ^= fence;
            (within, line)
        })
    }

    fn blocks(&self) -> Vec<Block> {
        let mut blocks: Vec<Block> = Vec::new();
        let mut open = false;
        for (_, line) in self.lines().filter(|(fenced, _)| *fenced) {
            match (line.trim_start().strip_prefix("```"), blocks.last_mut()) {
                (Some(_), _) if open => open = false,
                (Some(language), _) => {
                    open = true;
                    blocks.push(Block { language: language.trim().to_owned(), text: String::new() });
                }
                (None, Some(block)) => block.text.extend([line, "\n"]),
                (None, None) => {}
            }
        }
        blocks
    }

    /// All that is outside of fenced blocks.
    fn prose(&self) -> String {
        self.lines().filter(|(fenced, _)| !fenced).flat_map(|(_, line)| [line, "\n"]).collect()
    }

    /// What stands between backticks in prose.
    fn spans(&self) -> Vec<String> {
        self.prose().split('`').skip(1).step_by(2).map(|span| span.replace('\n', " ")).collect()
    }

    /// The texts of its headings.
    fn headings(&self) -> Vec<&str> {
        self.lines().filter_map(|(fenced, line)| heading(line).filter(|_| !fenced)).collect()
    }

    /// What stands between a heading and the next one.
    fn section(&self, title: &str) -> Result<String> {
        let mut lines = self.lines().skip_while(|(fenced, line)| *fenced || heading(line) != Some(title));
        lines.next().with_context(|| format!("{} has no heading {title:?}", self.name()))?;
        let within = lines.take_while(|(fenced, line)| *fenced || heading(line).is_none());
        Ok(within.flat_map(|(_, line)| [line, "\n"]).collect())
    }
}

fn heading(line: &str) -> Option<&str> {
    let text = line.trim_start_matches('#');
    (text.len() < line.len()).then(|| text.strip_prefix(' ')).flatten().map(str::trim)
}

/// The rows of the tables in a text, without their heads: the cells of each.
fn rows(text: &str) -> Vec<Vec<String>> {
    let lines: Vec<&str> = text.lines().collect();
    let ruled = |line: &str| line.starts_with("| ---");
    let is_row = |at: &usize| {
        let next = lines.get(at + 1).copied().unwrap_or_default();
        lines[*at].starts_with('|') && !ruled(lines[*at]) && !ruled(next)
    };
    let cells = |at: usize| lines[at].trim_matches('|').split(" | ").map(|cell| cell.trim().to_owned()).collect();
    (0..lines.len()).filter(is_row).map(cells).collect()
}

/// The text between backticks with which a cell begins.
fn code(cell: &str) -> Option<&str> {
    cell.strip_prefix('`')?.split_once('`').map(|(code, _)| code)
}
