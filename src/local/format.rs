//! The format of a data directory: what a release has to know to read it.
//!
//! The file `format` has its number, and the release that brought it. A directory without the file is of the first
//! format. A new format takes two releases: the first one reads it, the next one writes it, and its number before
//! anything else of it. So a way back by one release reads everything.

use std::path::Path;

use anyhow::{Context as _, bail};

use super::{ELSEWHERE, made_once};
use crate::values::secret::OTHERS_WRITE;
use crate::values::text::excerpt;

/// The newest format that this release reads, and the one of the directories that it makes.
const NEWEST: u64 = 1;

/// This release, in words.
const RELEASE: &str = concat!("stopover ", env!("CARGO_PKG_VERSION"));

/// Refuses a directory of a format that this release does not know, and writes the format into one that has none.
pub(super) fn check(data: &Path) -> anyhow::Result<()> {
    let path = data.join("format");
    let text = made_once(&path, OTHERS_WRITE, || Some(format!("{NEWEST} {RELEASE}\n")))?;
    let (number, release) = text.trim_end().split_once(' ').unwrap_or((text.trim_end(), "a release without a name"));
    let format: u64 = number.parse().with_context(|| {
        format!("{} does not begin with a number: restore it from a copy of the directory", path.display())
    })?;
    if format > NEWEST {
        bail!(
            "the data directory {} has format {format}, which {} has written, and {RELEASE} reads formats up to {NEWEST}; \
             nothing in it was changed: start that release or a newer one, restore a copy from before the upgrade, or \
             {ELSEWHERE}",
            data.display(),
            excerpt(&release)
        );
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    #[test]
    fn a_directory_without_a_format_is_of_the_first_one_and_one_of_a_newer_release_is_refused() {
        let data = tempfile::tempdir().unwrap();
        let path = data.path().join("format");
        let checked = || check(data.path()).map_err(|error| format!("{error:#}"));
        assert_eq!(checked(), Ok(()));
        assert_eq!(fs::read_to_string(&path).unwrap(), format!("{NEWEST} {RELEASE}\n"));
        fs::write(&path, "1 stopover 0.1.0\n").unwrap();
        assert_eq!((checked(), fs::read_to_string(&path).unwrap().as_str()), (Ok(()), "1 stopover 0.1.0\n"));
        for (written, expected) in [
            ("2 stopover 9.1.0\n", "has format 2, which stopover 9.1.0 has written"),
            ("2", "has format 2, which a release without a name has written"),
            ("", "does not begin with a number: restore it"),
            ("one stopover 0.1.0", "does not begin with a number: restore it"),
        ] {
            fs::write(&path, written).unwrap();
            let refused = checked().unwrap_err();
            assert!(refused.contains(expected) && refused.contains(&data.path().display().to_string()), "{refused}");
            assert_eq!(fs::read_to_string(&path).unwrap(), written, "it stays as it is");
        }
    }
}
