//! What the program says about itself in the forms of others: completions, manual pages, a first configuration.

use std::fs::File;
use std::io::{ErrorKind, Write as _};
use std::path::Path;

use anyhow::{Context as _, bail};
use clap::CommandFactory as _;
use clap_complete::Shell;

use crate::arguments::Arguments;

/// Every key of `stopover.toml`: made of docs/reference/configuration.md by the test that compares them.
const CONFIGURATION: &str = include_str!("stopover.toml");

/// Writes a configuration in which every key stands as a comment. A file that is there stays as it is.
pub(crate) fn begin_configuration(path: &Path) -> anyhow::Result<()> {
    match File::create_new(path) {
        Ok(mut file) => Ok(file.write_all(CONFIGURATION.as_bytes())?),
        Err(error) if error.kind() == ErrorKind::AlreadyExists => {
            bail!("{} is there already: it stays as it is; name another file", path.display())
        }
        Err(error) => Err(error).with_context(|| format!("cannot write {}", path.display())),
    }
}

/// What has a shell complete the words of a command line.
pub(crate) fn complete(shell: Shell) -> anyhow::Result<String> {
    let mut text = Vec::new();
    clap_complete::generate(shell, &mut Arguments::command(), "stopover", &mut text);
    Ok(String::from_utf8(text)?)
}

/// The manual page of the program; or writes one for each command into a directory.
pub(crate) fn write(directory: Option<&Path>) -> anyhow::Result<String> {
    let command = Arguments::command();
    let Some(directory) = directory else {
        let mut text = Vec::new();
        clap_mangen::Man::new(command).render(&mut text)?;
        return Ok(String::from_utf8(text)?);
    };
    std::fs::create_dir_all(directory)
        .and_then(|()| clap_mangen::generate_to(command, directory))
        .with_context(|| format!("cannot write manual pages into {}", directory.display()))?;
    Ok(String::new())
}
