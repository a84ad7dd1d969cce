//! `stopover gc` and `stopover purge`.

use std::time::Duration;

use serde_json::{Value, json};
use stopover::operate::report::SweepReport;

use super::Client;

/// How long it may take to read a large ledger and to remove most of it.
const PATIENCE: Duration = Duration::from_hours(1);

impl Client {
    /// Runs a sweep, and reports what it has removed, or would.
    pub(crate) async fn collect_garbage(&self, dry_run: bool) -> anyhow::Result<String> {
        let report = self.remove("gc", &json!({ "dry_run": dry_run })).await?;
        Ok(format!(
            "{report}{}",
            if dry_run { "nothing was changed: this is what a run without --dry-run does\n" } else { "" }
        ))
    }

    /// Removes an image, and reports what was removed with it.
    pub(crate) async fn purge(&self, image: &str) -> anyhow::Result<String> {
        self.remove("purge", &json!({ "image": image })).await.map(|report| report.to_string())
    }

    async fn remove(&self, what: &str, wanted: &Value) -> anyhow::Result<SweepReport> {
        self.ask(self.http.post(self.url(what)).timeout(PATIENCE).body(wanted.to_string())).await
    }
}
