//! What documents give to watch a cache with: questions to its log, and a board of its metrics.

use std::collections::BTreeSet;
use std::process::Stdio;

use anyhow::{Context as _, Result, ensure};
use serde_json::Value;
use support::program::{Installation, Stopover, UPSTREAM};
use support::scripted::Scripted;
use tokio::process::Command;

use super::{Document, code, root, rows};

/// A cache that has been asked for two images, one of them twice.
async fn asked(installation: &Installation, upstream: &Scripted) -> Result<Stopover> {
    upstream.quota(100, 50);
    for name in ["a", "b"] {
        upstream.image(name, "v1", &[name.as_bytes()]);
    }
    let stopover = installation.start().await?;
    for name in ["a", "b", "a"] {
        let url = format!("http://{}/v2/{UPSTREAM}/{name}/manifests/v1", stopover.address());
        support::get(url).await?.error_for_status()?;
    }
    // Another thread reads the log: what comes before this is there once this is.
    support::get(format!("http://{}/v2/the-end", stopover.address())).await?;
    stopover.until_logged("/v2/the-end").await?;
    Ok(stopover)
}

#[tokio::test(flavor = "multi_thread")]
async fn who_pulls_an_image_is_found_in_the_log_as_the_document_says() -> Result<()> {
    let document = Document::read("docs/how-to/who-pulls.md")?;
    let blocks = document.blocks();
    let shown = |begin: &str| blocks.iter().map(|block| &block.text).find(|text| text.starts_with(begin));
    let serve = shown("stopover serve ").context("no way to record it")?;
    let filter = serve.split_whitespace().skip_while(|word| *word != "--log").nth(1).context("no filter")?;
    let upstream = Scripted::start()?;
    let installation = Installation::for_upstream(&upstream.url())?.logging(&format!("{filter},stopover::http=debug"));
    let stopover = asked(&installation, &upstream).await?;
    let place = tempfile::tempdir()?;
    std::fs::write(place.path().join("stopover.log"), stopover.log())?;
    let script = shown("jq ").context("no question")?.replace("docker.io/library/nginx", &format!("{UPSTREAM}/a"));
    let jq = Command::new("sh").args(["-ec", &script]).current_dir(&place).stdin(Stdio::null()).output().await?;
    let found = String::from_utf8_lossy(&jq.stdout).into_owned();
    ensure!(found.trim() == "2 anonymous\t127.0.0.1", "{found:?} {}", String::from_utf8_lossy(&jq.stderr));
    // Each field of the record is explained, as far as a pull has it.
    let log = stopover.log();
    let records = log.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok());
    let record = records.map(|line| line["fields"].clone()).find(|fields| fields["message"] == "decided");
    let record = record.context("no record")?;
    let section = document.section("What a record says")?;
    let told: BTreeSet<&str> = section.split('`').skip(1).step_by(2).collect();
    for name in record.as_object().context("fields")?.keys().filter(|name| *name != "message") {
        ensure!(told.contains(name.as_str()), "{name} of {record} is not explained");
    }
    ensure!(rows(&section).iter().all(|row| code(&row[0]).is_some()), "{section}");
    Ok(())
}

/// The names of metrics in a text.
fn metrics(text: &str) -> BTreeSet<&str> {
    let words = text.split(|letter: char| !letter.is_ascii_lowercase() && letter != '_');
    words.filter(|word| word.starts_with("stopover_")).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn every_metric_of_the_board_is_one_of_the_cache() -> Result<()> {
    let text = std::fs::read_to_string(root().join("packaging/grafana.json"))?;
    let board: Value = serde_json::from_str(&text)?;
    let upstream = Scripted::start()?;
    let installation = Installation::for_upstream(&upstream.url())?;
    let stopover = asked(&installation, &upstream).await?;
    // What the last sweep has found is there once there was one.
    let (status, said) = stopover.run(&["gc"]).await?;
    ensure!(status.success(), "{said}");
    let answer = support::get(format!("http://{}/_stopover/metrics", stopover.address())).await?;
    let counted = answer.error_for_status()?.text().await?;
    let known: BTreeSet<&str> = counted
        .lines()
        .filter(|line| !line.starts_with('#'))
        .flat_map(|line| metrics(line).into_iter().take(1))
        .collect();
    let panels = board["panels"].as_array().context("no panels")?;
    let mut shown = BTreeSet::new();
    for panel in panels {
        for target in panel["targets"].as_array().context("no targets")? {
            let named = metrics(target["expr"].as_str().context("no expression")?);
            ensure!(!named.is_empty(), "{target} names no metric");
            shown.extend(named);
        }
    }
    let variables = board["templating"]["list"].to_string();
    shown.extend(metrics(&variables));
    let unknown: Vec<_> = shown.difference(&known).collect();
    ensure!(unknown.is_empty() && shown.len() >= 12, "{unknown:?} are not in\n{counted}");
    let ids: BTreeSet<_> = panels.iter().map(|panel| panel["id"].to_string()).collect();
    ensure!(ids.len() == panels.len(), "two panels have one id: {ids:?}");
    Ok(())
}
