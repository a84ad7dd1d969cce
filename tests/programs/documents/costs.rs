//! docs/explanation/costs.md shows the bill that `stopover cost` computes.

use anyhow::{Context as _, Result, ensure};
use serde_json::Value;
use support::document;
use support::program::run;

async fn bill(arguments: &[&str]) -> Result<Value> {
    let (status, text) = run(&[&["cost", "--json"], arguments].concat()).await?;
    ensure!(status.success(), "{text}");
    Ok(serde_json::from_str(&text)?)
}

fn line<'a>(bill: &'a Value, unit: &str) -> Result<&'a Value> {
    let mut lines = bill["lines"].as_array().context("no lines")?.iter();
    lines.find(|line| line["unit"] == unit).with_context(|| format!("no {unit}: {bill}"))
}

#[tokio::test]
async fn the_bill_in_the_document_is_what_the_program_computes() -> Result<()> {
    let (status, text) = run(&["cost"]).await?;
    ensure!(status.success(), "{text}");
    document::check(document::COSTS, "A million cold and a million warm pulls", &format!("```text\n{text}```\n"))
}

#[tokio::test]
async fn a_bill_is_units_times_prices_and_each_request_is_in_it() -> Result<()> {
    let whole = bill(&["--cold", "2M", "--warm", "3M", "--layers", "4"]).await?;
    let mut sum = 0.0;
    for line in whole["lines"].as_array().context("no lines")? {
        let number = |value: &Value| value.as_f64().with_context(|| format!("no number: {line}"));
        let (price, dollars) = (&line["price"], number(&line["dollars"])?);
        let expected = number(&line["units"])? / number(&price["per"])? * number(&price["dollars"])?;
        ensure!((dollars - expected).abs() < 1e-6 && dollars >= 0.0, "{line}");
        ensure!(price["page"].as_str().is_some_and(|page| page.starts_with("https://aws.amazon.com/")), "{line}");
        sum += dollars;
    }
    ensure!((whole["dollars"].as_f64().context("no sum")? - sum).abs() < 1e-6, "{whole}");
    // HEAD of a tag, an index, a manifest, and five blobs.
    let requests = |bill: &Value| {
        line(bill, "requests of an HTTP API").and_then(|line| line["units"].as_f64().context("no units"))
    };
    ensure!((requests(&whole)? - 5e6 * 8.0).abs() < 1.0, "{whole}");
    let login = bill(&["--cold", "2M", "--warm", "3M", "--layers", "4", "--login"]).await?;
    ensure!((requests(&login)? - 5e6 * 10.0).abs() < 1.0, "{login}");

    let idle = bill(&["--cold", "0", "--warm", "0", "--stored", "0"]).await?;
    for unit in ["requests of an HTTP API", "read units", "write units", "GB stored"] {
        ensure!(line(&idle, unit).map_or(true, |line| line["units"] == 0.0), "{unit}: {idle}");
    }
    for wrong in [["--cold", "-"], ["--layers", "0"], ["--size", "1MiB"], ["--warm", "many"]] {
        let (status, text) = run(&["cost", wrong[0], wrong[1]]).await?;
        ensure!(!status.success() && text.contains(wrong[0].trim_start_matches('-')), "{wrong:?}: {text}");
    }
    Ok(())
}
