//! The documents name the tests that prove what they say: each of those must exist.

use anyhow::{Context as _, Result, ensure};

use super::{Document, rows, sources};

/// Whether a name is a sentence, as those of tests are. Names of metrics are long, too.
fn is_sentence(name: &str) -> bool {
    let is_metric =
        name.starts_with("stopover_") && ["_seconds", "_percent", "_total"].iter().any(|end| name.ends_with(end));
    let plain = name.bytes().all(|byte| byte == b'_' || byte.is_ascii_lowercase() || byte.is_ascii_digit());
    plain && !is_metric && name.matches('_').count() >= 3
}

#[test]
fn every_test_that_a_document_names_exists() -> Result<()> {
    let tests = ["tests", "src", "functions"].map(|directory| sources(directory, "rs"));
    let tests = tests.into_iter().collect::<Result<String>>()?;
    let mut named = 0;
    for document in Document::all()? {
        for name in document.spans().iter().filter(|span| is_sentence(span)) {
            ensure!(tests.contains(&format!("fn {name}(")), "{} names {name}, which is no test", document.name());
            named += 1;
        }
    }
    ensure!(named > 400, "the documents name their tests in backticks; {named} were found");
    Ok(())
}

#[test]
fn every_path_that_a_document_names_exists() -> Result<()> {
    let mut named = 0;
    for document in Document::all()? {
        for span in document.spans() {
            let of_repository =
                ["src/", "tests/", "functions/", "infra/", "docs/"].iter().any(|top| span.starts_with(top));
            if of_repository && !span.contains([' ', '*', '<', '…']) {
                ensure!(super::root().join(&span).exists(), "{} names {span}, which is not there", document.name());
                named += 1;
            }
        }
    }
    ensure!(named > 10, "{named} were found");
    Ok(())
}

#[test]
fn every_threat_has_a_test() -> Result<()> {
    let threats = rows(&Document::read("SECURITY.md")?.section("Threats")?);
    ensure!(threats.len() > 30, "the threats of the protocol, and ours");
    for cells in threats {
        let proof = cells.last().context("an empty row")?;
        let named = proof.split('`').skip(1).step_by(2).any(is_sentence);
        ensure!(cells.len() == 3 && named, "no test: {cells:?}");
    }
    Ok(())
}
