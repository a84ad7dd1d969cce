//! The help of each command is as it was last read by a person: tests/fixtures/help has it.

use std::ffi::OsStr;

use anyhow::{Result, ensure};
use support::program::output;

use super::check_files;
use super::command_line::Help;

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
    check_files(DIRECTORY, &printed().await?)
}
