//! `stopover gc` and `stopover purge`.

use std::time::Duration;

use serde_json::{Value, json};
use stopover::operate::report::SweepReport;

use super::Client;

/// How long it may take to read a large ledger and to remove most of it.
const PATIENCE: Duration = Duration::from_hours(1);

/// There was nothing to purge.
#[derive(Debug, thiserror::Error)]
#[error(
    "nothing is stored of {image}: nothing was removed{}",
    if *unreadable > 0 { "; items of the ledger cannot be read, see the log" } else { "" }
)]
pub(crate) struct NothingStored {
    image: String,
    /// How many items of the ledger could not be read: it may be one of them.
    unreadable: usize,
}

impl Client {
    /// Runs a sweep, and reports what it has removed, or would.
    pub(crate) async fn collect_garbage(&self, dry_run: bool) -> anyhow::Result<()> {
        let report = self.remove("gc", &json!({ "dry_run": dry_run })).await?;
        let note = if dry_run { "nothing was changed: this is what a run without --dry-run does\n" } else { "" };
        self.output.show(&report, |report| format!("{report}{note}"))
    }

    /// Removes an image, and reports what was removed with it. Fails with [`NothingStored`] if nothing was.
    pub(crate) async fn purge(&self, image: &str) -> anyhow::Result<()> {
        let report = self.remove("purge", &json!({ "image": image })).await?;
        let is_nothing = report.tags == 0 && report.manifests.is_empty();
        self.output.show(&report, |report| if is_nothing { String::new() } else { report.to_string() })?;
        if is_nothing {
            return Err(NothingStored { image: image.to_owned(), unreadable: report.unreadable }.into());
        }
        Ok(())
    }

    async fn remove(&self, what: &str, wanted: &Value) -> anyhow::Result<SweepReport> {
        self.ask(self.http.post(self.url(what)).timeout(PATIENCE).body(wanted.to_string())).await
    }
}
