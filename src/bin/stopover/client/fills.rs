//! `stopover fills` and `stopover fills retry`.

use stopover::operate::fills::FillReport;

use super::Client;

impl Client {
    /// What has not succeeded.
    pub(super) async fn listed_fills(&self) -> anyhow::Result<FillReport> {
        self.ask(self.http.get(self.url("fills"))).await
    }

    /// One line for each fill that has not succeeded: its state, and why it failed; and for each image.
    pub(crate) async fn fills(&self) -> anyhow::Result<String> {
        let FillReport { mut fills, images, more } = self.listed_fills().await?;
        fills.sort_by(|one, other| (&one.repository, one.size).cmp(&(&other.repository, other.size)));
        if fills.is_empty() && images.is_empty() {
            return Ok("nothing is being filled, and nothing was given up\n".into());
        }
        let lines = fills.iter().map(ToString::to_string).chain(images.iter().map(ToString::to_string));
        let lines: Vec<String> = lines.collect();
        if more > 0 {
            eprintln!("{more} more are not shown");
        }
        Ok(lines.join("\n") + "\n")
    }

    /// Requests everything again that was given up.
    pub(crate) async fn retry_fills(&self) -> anyhow::Result<String> {
        #[derive(serde::Deserialize)]
        struct Retried {
            retried: usize,
        }
        let Retried { retried } = self.ask(self.http.post(self.url("fills/retry"))).await?;
        Ok(format!("fills tried again: {retried}\n"))
    }
}
