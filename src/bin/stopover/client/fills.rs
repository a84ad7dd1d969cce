//! `stopover fills` and `stopover fills retry`.

use stopover::operate::report::FillStatus;

use super::Client;

impl Client {
    /// The fills that have not succeeded.
    pub(super) async fn listed_fills(&self) -> anyhow::Result<Vec<FillStatus>> {
        #[derive(serde::Deserialize)]
        struct Fills {
            fills: Vec<FillStatus>,
        }
        let Fills { fills } = self.ask_as_operator(self.http.get(self.url("fills"))).await?;
        Ok(fills)
    }

    /// One line for each fill that has not succeeded: its state, and why it failed.
    pub(crate) async fn fills(&self) -> anyhow::Result<String> {
        let mut fills = self.listed_fills().await?;
        fills.sort_by(|one, other| (&one.repository, one.size).cmp(&(&other.repository, other.size)));
        if fills.is_empty() {
            return Ok("nothing is being filled, and nothing was given up\n".into());
        }
        let lines: Vec<String> = fills.iter().map(ToString::to_string).collect();
        Ok(lines.join("\n") + "\n")
    }

    /// Requests all fills again that were given up.
    pub(crate) async fn retry_fills(&self) -> anyhow::Result<String> {
        #[derive(serde::Deserialize)]
        struct Retried {
            retried: usize,
        }
        let Retried { retried } = self.ask_as_operator(self.http.post(self.url("fills/retry"))).await?;
        Ok(format!("fills tried again: {retried}\n"))
    }
}
