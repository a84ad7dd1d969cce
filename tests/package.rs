//! What `make package` leaves for a deployment: programs that start where Lambda starts them, and are no larger than they
//! have to be.

use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, ensure};

const FUNCTIONS: [&str; 2] = ["RegistryFunction", "FillerFunction"];

/// How large a program may be: each start of a function loads it. They have some 11 MiB.
const MOST_BYTES: usize = 16 * 1024 * 1024;

/// The program of a function: where `sam build` leaves it, or below `STOPOVER_BOOTSTRAPS`.
fn program(function: &str) -> Result<(PathBuf, Vec<u8>)> {
    let packages = std::env::var_os("STOPOVER_BOOTSTRAPS")
        .map_or_else(|| Path::new(env!("CARGO_MANIFEST_DIR")).join("../.aws-sam/build"), PathBuf::from);
    let path = packages.join(function).join("bootstrap");
    let program = std::fs::read(&path).with_context(|| format!("{}: run `make package`", path.display()))?;
    Ok((path, program))
}

/// Amazon Linux 2023 has glibc 2.34; a program linked against a newer one does not start there.
#[test]
fn the_built_functions_run_on_amazon_linux_2023() -> Result<()> {
    for function in FUNCTIONS {
        let (path, program) = program(function)?;
        let text = String::from_utf8_lossy(&program);
        let newest = text
            .split("GLIBC_2.")
            .skip(1)
            .filter_map(|rest| rest.split(|letter: char| !letter.is_ascii_digit()).next()?.parse::<u32>().ok())
            .max()
            .with_context(|| format!("{} names no glibc version", path.display()))?;
        assert!(newest <= 34, "{function} needs glibc 2.{newest}");
    }
    Ok(())
}

#[test]
fn the_built_functions_are_small_and_have_no_debug_information() -> Result<()> {
    for function in FUNCTIONS {
        let (path, program) = program(function)?;
        let debug = program.windows(b".debug_info\0".len()).any(|window| window == b".debug_info\0");
        ensure!(!debug, "{} has debug information", path.display());
        ensure!(program.len() <= MOST_BYTES, "{} has {} bytes", path.display(), program.len());
    }
    Ok(())
}
