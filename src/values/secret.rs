//! Secrets, which are kept out of logs.

use std::fs::{File, Metadata};
use std::io::{self, Read as _};
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;
use std::{fmt, fs};

use serde::{Deserialize, Serialize};

/// A secret text. `Debug` hides it, so it stays out of logs.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Secret(String);

impl Secret {
    /// Marks a text as secret.
    pub fn new(text: impl Into<String>) -> Self {
        Self(text.into())
    }

    /// The text itself.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

/// The permissions by which others than its owner write a file, and by which they use it at all.
pub(crate) const OTHERS_WRITE: u32 = 0o022;
#[cfg(feature = "local")]
pub(crate) const OTHERS_USE: u32 = 0o077;

/// Reads a secret, unless another user may have written it (`StrictModes` of `sshd_config(5)`).
pub(crate) fn read_own(path: &Path, denied: u32) -> io::Result<String> {
    let mut file = File::open(path)?;
    refuse_of_others(path, &file.metadata()?, denied)?;
    let mut text = String::new();
    file.read_to_string(&mut text)?;
    Ok(text)
}

/// Refuses what belongs to a user other than this process's and root, or what has a permission that is `denied`.
pub(crate) fn refuse_of_others(path: &Path, file: &Metadata, denied: u32) -> io::Result<()> {
    let path = path.display();
    // The owner of its entry is the effective user of a process (proc(5)).
    let us = fs::metadata("/proc/self").map_or(file.uid(), |process| process.uid());
    if ![us, 0].contains(&file.uid()) {
        let message = format!("user {} owns {path} and may have written it: chown {us} {path}", file.uid());
        return Err(io::Error::other(message));
    }
    let (rights, change) = if denied & 0o055 == 0 { ("write", "go-w") } else { ("read or write", "go=") };
    match file.mode() & denied {
        0 => Ok(()),
        _ => Err(io::Error::other(format!("others than its owner may {rights} {path}: chmod {change} {path}"))),
    }
}

/// 256 random bits, too many to guess. `None`: the system gave no randomness.
pub(crate) fn random() -> Option<[u8; 32]> {
    let mut bytes = [0; 32];
    getrandom::fill(&mut bytes).ok()?;
    Some(bytes)
}

impl fmt::Debug for Secret {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("secret")
    }
}
