//! What answers are otherwise than docs/reference/openapi.yaml says.

use std::io::Write as _;
use std::path::Path;
use std::process::{Command, Stdio};

use serde_json::{Value, json};

/// The document.
///
/// # Panics
///
/// If it is not there, or no YAML.
pub fn document() -> Value {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/reference/openapi.yaml");
    serde_yaml_ng::from_str(&std::fs::read_to_string(path).expect("the document")).expect("YAML")
}

/// Compares answers with schemas of the document: a line for each difference. Each has `what` it is, a `schema`, a `body`.
///
/// # Panics
///
/// If Python cannot do that.
pub fn differences(document: &Value, answers: &[Value]) -> String {
    let mut python = Command::new(crate::PYTHON);
    let python = python.args(["-c", include_str!("openapi.py")]).stdin(Stdio::piped()).stdout(Stdio::piped());
    let mut python = python.spawn().expect("Python");
    let given = json!({ "document": document, "answers": answers }).to_string();
    // One that has ended already says why by its status.
    _ = python.stdin.take().expect("its input").write_all(given.as_bytes());
    let output = python.wait_with_output().expect("an end");
    // The SAM CLI brings jsonschema along.
    assert!(output.status.success(), "openapi.py has failed; `make setup` installs what it needs into .venv");
    String::from_utf8(output.stdout).expect("text")
}
