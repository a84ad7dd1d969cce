//! The documents name the tests that prove what they say: each of those must exist.

use std::fs;
use std::path::{Path, PathBuf};

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
}

fn sources(directory: &Path, text: &mut String) {
    for entry in fs::read_dir(directory).expect("the tests are there") {
        let path = entry.expect("the tests are there").path();
        if path.is_dir() {
            sources(&path, text);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            text.push_str(&fs::read_to_string(path).expect("sources are text"));
        }
    }
}

#[test]
fn every_test_that_a_document_names_exists() {
    let mut tests = String::new();
    sources(&root().join("tests"), &mut tests);
    sources(&root().join("src"), &mut tests);
    sources(&root().join("functions"), &mut tests);
    let mut named = 0;
    for document in ["README.md", "SECURITY.md", "docs/explanation/behaviour.md"] {
        let text = fs::read_to_string(root().join(document)).expect(document);
        for name in text.split('`').skip(1).step_by(2) {
            let sentence = name.bytes().all(|byte| byte == b'_' || byte.is_ascii_lowercase() || byte.is_ascii_digit());
            if sentence && name.matches('_').count() >= 3 {
                assert!(tests.contains(&format!("fn {name}(")), "{document} names {name}, which is no test");
                named += 1;
            }
        }
    }
    assert!(named > 20, "the documents name their tests in backticks");
}

#[test]
fn every_threat_has_a_test() {
    let text = fs::read_to_string(root().join("SECURITY.md")).expect("it is there");
    let (_, threats) = text.split_once("| --- | --- | --- |").expect("there is a table");
    let rows: Vec<&str> = threats.lines().filter(|line| line.starts_with('|')).collect();
    assert!(rows.len() > 30, "the threats of the protocol, and ours");
    for row in rows {
        let cells: Vec<&str> = row.trim_matches('|').split(" | ").collect();
        let named = cells.last().is_some_and(|cell| cell.split('`').skip(1).step_by(2).any(|name| name.contains('_')));
        assert!(cells.len() == 3 && named, "no test: {row}");
    }
}
