//! `stopover fills` and `stopover fills retry`.

use serde::{Deserialize, Serialize};
use stopover::operate::fills::FillReport;

use super::Client;
use crate::output::lines;

/// The body of `POST /_stopover/fills/retry`.
#[derive(Serialize, Deserialize)]
struct Retried {
    retried: usize,
}

impl Client {
    /// What has not succeeded.
    pub(super) async fn listed_fills(&self) -> anyhow::Result<FillReport> {
        self.ask(self.http.get(self.url("fills"))).await
    }

    /// One line for each fill that has not succeeded: its state, and why it failed; and for each image.
    pub(crate) async fn fills(&self) -> anyhow::Result<()> {
        let mut report = self.listed_fills().await?;
        report.fills.sort_by(|one, other| (&one.repository, one.size).cmp(&(&other.repository, other.size)));
        if report.more > 0 {
            eprintln!("{} more are not shown", report.more);
        }
        self.output.show(&report, |FillReport { fills, images, .. }| {
            if fills.is_empty() && images.is_empty() {
                return "nothing is being filled, and nothing was given up\n".into();
            }
            lines(fills) + &lines(images)
        })
    }

    /// Requests everything again that was given up.
    pub(crate) async fn retry_fills(&self) -> anyhow::Result<()> {
        let retried: Retried = self.ask(self.http.post(self.url("fills/retry"))).await?;
        self.output.show(&retried, |Retried { retried }| format!("fills tried again: {retried}\n"))
    }
}
