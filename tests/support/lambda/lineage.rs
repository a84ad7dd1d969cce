//! The chain of invocations that an event is part of: Lambda counts them in `X-Amzn-Trace-Id`, which the SDKs send on, and
//! stops a function that invokes itself (Lambda developer guide, "recursive loop detection").

use std::path::Path;

use anyhow::Context as _;
use serde_yaml_ng::Value;

/// How many invocations a chain has at most: "approximately 16 times".
const MOST: u32 = 16;

/// What becomes of a function that invokes itself, as its property of this name says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RecursiveLoop {
    /// It goes on for as long as it likes.
    Allow,
    /// Its seventeenth event is not delivered: Lambda's default.
    Terminate,
}

impl RecursiveLoop {
    /// What `template.yaml` says of the filler.
    ///
    /// # Errors
    /// There is no such file, or no filler in it.
    pub fn of_template() -> anyhow::Result<Self> {
        let template = Path::new(env!("CARGO_MANIFEST_DIR")).join("../template.yaml");
        let template: Value = serde_yaml_ng::from_str(&std::fs::read_to_string(template)?)?;
        let properties = &template["Resources"]["FillerFunction"]["Properties"];
        properties.as_mapping().context("template.yaml has no filler")?;
        let allowed = properties["RecursiveLoop"] == "Allow";
        Ok(if allowed { Self::Allow } else { Self::Terminate })
    }

    /// The trace header of the invocation by an event that was sent with this one; none if Lambda stops the chain.
    pub(super) fn next(self, sent_with: Option<&str>) -> Option<String> {
        let number = sent_with.map_or(0, invocations) + 1;
        (number <= MOST || self == Self::Allow).then(|| trace_of(number))
    }
}

/// The trace header of the first invocation of a chain.
pub(super) fn first() -> String {
    trace_of(1)
}

/// The trace header of an invocation that is the one of this number in its chain.
pub fn trace_of(number: u32) -> String {
    format!("Root=1-00000000-000000000000000000000000;Parent=0000000000000000;Sampled=0;Lineage=1:5f0c0f17:{number}")
}

fn invocations(trace: &str) -> u32 {
    let lineage = trace.split(';').find_map(|part| part.strip_prefix("Lineage="));
    lineage.and_then(|lineage| lineage.rsplit(':').next()?.parse().ok()).unwrap_or_default()
}
