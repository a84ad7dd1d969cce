//! The help of each command is as it was last read by a person: tests/fixtures/help has it.

use std::ffi::OsStr;

use anyhow::{Context as _, Result, ensure};
use support::program::output;

use super::command_line::Help;
use super::{files, root};

const DIRECTORY: &str = "tests/fixtures/help";

/// `--help` of every command, with the name of its file.
async fn printed() -> Result<Vec<(String, String)>> {
    let mut left = vec![Vec::new()];
    let mut printed = Vec::new();
    while let Some(command) = left.pop() {
        let words: Vec<&str> = command.iter().map(String::as_str).chain(["--help"]).collect();
        let help = output(&words, &[("COLUMNS", OsStr::new("100"))]).await?;
        ensure!(help.status.success(), "{words:?}: {}", String::from_utf8_lossy(&help.stderr));
        let name = [&["stopover".to_owned()], &command[..]].concat().join("-") + ".txt";
        printed.push((name, String::from_utf8(help.stdout)?));
        let below = Help::of(&command).await?.commands;
        left.extend(below.into_iter().map(|name| [&command[..], &[name]].concat()));
    }
    Ok(printed)
}

#[tokio::test]
async fn the_help_of_every_command_is_as_it_was_read_last() -> Result<()> {
    let (directory, printed) = (root().join(DIRECTORY), printed().await?);
    if std::env::var_os("STOPOVER_WRITE_DOCS").is_some() {
        _ = std::fs::remove_dir_all(&directory);
        std::fs::create_dir_all(&directory)?;
        return printed.iter().try_for_each(|(name, text)| Ok(std::fs::write(directory.join(name), text)?));
    }
    let advice =
        "`STOPOVER_WRITE_DOCS=1 cargo test -p behaviours --test programs documents` writes it: read the difference";
    for (name, text) in &printed {
        let written = std::fs::read_to_string(directory.join(name)).with_context(|| format!("{name}: {advice}"))?;
        ensure!(written == *text, "{DIRECTORY}/{name} is another than\n{text}\n{advice}");
    }
    ensure!(
        files(&directory, "txt")?.len() == printed.len(),
        "{DIRECTORY} has the help of a command that is gone: {advice}"
    );
    Ok(())
}
