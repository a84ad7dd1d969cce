//! What `make package` leaves for a deployment: programs that start where Lambda starts them, and are no larger than they
//! have to be.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, ensure};

const FUNCTIONS: [&str; 2] = ["RegistryFunction", "FillerFunction"];

/// How large a program may be: each start of a function loads it. They have 8.5 and 7.9 MB.
const MOST_BYTES: usize = 9_000_000;
/// How large its zip may be, which is what Lambda fetches. They have 4.1 and 3.8 MB.
const MOST_ZIPPED: usize = 4_500_000;

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

/// The field `e_machine` of an ELF header. A program of the other architecture ends with "exec format error" at each start.
#[test]
fn the_built_functions_are_of_the_architecture_that_is_deployed() -> Result<()> {
    let environment = std::env::var("STOPOVER_CONFIG_ENV").context("STOPOVER_CONFIG_ENV: run `make package`")?;
    let samconfig = std::fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("../samconfig.toml"))?;
    let samconfig: toml::Table = samconfig.parse()?;
    let overrides =
        samconfig.get(&environment).and_then(|all| all.get("global")?.get("parameters")?.get("parameter_overrides"));
    let overrides = overrides.and_then(toml::Value::as_array).context("samconfig.toml has no such environment")?;
    let mut deployed = overrides.iter().filter_map(|text| text.as_str()?.strip_prefix("Architecture="));
    let machine: u16 = match deployed.next() {
        Some("x86_64") => 62,
        Some("arm64") => 183,
        other => anyhow::bail!("samconfig.toml deploys {other:?}"),
    };
    for function in FUNCTIONS {
        let (path, program) = program(function)?;
        ensure!(program.starts_with(b"\x7fELF"), "{} is no program of Linux", path.display());
        let built = program.get(18..20).and_then(|bytes| bytes.try_into().ok()).map(u16::from_le_bytes);
        ensure!(built == Some(machine), "{} is of machine {built:?}, {environment} deploys {machine}", path.display());
    }
    Ok(())
}

/// What those who deploy without Rust need.
#[test]
fn a_release_has_the_zips_that_its_template_names_and_their_checksums() -> Result<()> {
    let environment = std::env::var("STOPOVER_CONFIG_ENV").context("STOPOVER_CONFIG_ENV: run `make package`")?;
    let release = Path::new(env!("CARGO_MANIFEST_DIR")).join("../.aws-sam/release");
    let read = |name: &str| std::fs::read(release.join(name)).with_context(|| format!("no {name}: run `make package`"));
    let template = String::from_utf8(read("template.json")?)?;
    ensure!(!template.contains("AWS::Serverless"), "SAM would still have to transform it");
    let sums_name = format!("SHA256SUMS-functions-{environment}");
    let sums = String::from_utf8(read(&sums_name)?)?;
    for name in ["registry-${Architecture}.zip", "filler-${Architecture}.zip", "configuration.zip"] {
        ensure!(template.contains(&format!("${{PackagePrefix}}{name}")), "the template has no {name}");
        let zip = read(&name.replace("${Architecture}", &environment))?;
        ensure!(zip.starts_with(b"PK\x03\x04"), "{name} is no zip");
        ensure!(zip.len() <= MOST_ZIPPED, "{name} has {} bytes", zip.len());
    }
    let mut check = std::process::Command::new("sha256sum");
    let checked = check.args(["--check", "--strict", "--status", &sums_name]).current_dir(&release).status()?;
    ensure!(checked.success(), "not all files have the sums of {sums_name}");
    let summed: BTreeSet<String> =
        sums.lines().filter_map(|line| line.split_once("  ")).map(|(_, name)| name.to_owned()).collect();
    let mut there = BTreeSet::new();
    for entry in std::fs::read_dir(&release)? {
        there.insert(entry?.file_name().to_string_lossy().into_owned());
    }
    ensure!(there.remove(&sums_name) && there == summed, "what there is, {there:?}, has sums of {summed:?}");
    // Both machines' files are attached to one release, beside those of `make dist`.
    let of_all = ["configuration.zip", "template.json"];
    let apart = |name: &String| name.contains(&environment) || of_all.contains(&name.as_str());
    ensure!(summed.iter().all(apart), "the other architecture has one of these too: {summed:?}");
    let materials: serde_json::Value = serde_json::from_slice(&read(&format!("sbom-functions-{environment}.json"))?)?;
    let components = materials["components"].as_array().context("no components")?;
    for name in ["stopover", "aws-sdk-s3", "rustls"] {
        ensure!(components.iter().any(|component| component["name"] == name), "{name} is not in it");
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
