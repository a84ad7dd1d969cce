//! `stopover status`, `stopover health` and `stopover events`.

use std::fmt::Write as _;
use std::time::Duration;

use anyhow::{Context as _, ensure};
use stopover::operate::Health;
use stopover::operate::report::Bytes;
use stopover::operate::status::{Counts, EventReport, EventsReport, StatusReport, UpstreamStatus};
use stopover::values::time::{Timestamp, written};

use super::table::{Table, width};
use super::{Client, said};

/// How long a probe waits: the cache gives its storage less than a second.
const PROBE: Duration = Duration::from_secs(3);

impl Client {
    /// What the cache does. Fails if it is not ready, once that is printed.
    pub(crate) async fn status(&self) -> anyhow::Result<()> {
        let status: StatusReport = self.ask(self.http.get(self.url("status"))).await?;
        self.output.show(&status, |status| describe(status, width()))?;
        readiness(&status.health)
    }

    /// Whether the cache is ready, for which no login is needed. Fails if it is not.
    pub(crate) async fn health(&self) -> anyhow::Result<()> {
        // Not ready is 503, with the same body.
        let answer = self.send(self.http.get(self.url("health/ready")).timeout(PROBE)).await?;
        let health = said(&answer.bytes().await?).and_then(serde_json::from_value);
        let health = health.context("that is no cache of this version")?;
        self.output.show(&health, |Health { ready, reasons }| match (ready, &reasons[..]) {
            (false, _) => String::new(),
            (true, []) => "ready\n".into(),
            (true, reasons) => format!("ready: {}\n", reasons.join("; ")),
        })?;
        readiness(&health)
    }

    /// What has failed lately.
    pub(crate) async fn events(&self) -> anyhow::Result<()> {
        let report: EventsReport = self.ask(self.http.get(self.url("events"))).await?;
        self.output.show(&report, |EventsReport { events, .. }| match &events[..] {
            [] => "nothing has failed since the cache was started\n".into(),
            events => events.iter().map(told).collect(),
        })
    }
}

/// Fails if the cache is not ready.
fn readiness(health: &Health) -> anyhow::Result<()> {
    ensure!(health.ready, "the cache is not ready: {}", health.reasons.join("; "));
    Ok(())
}

/// One event, with why it happened and what to do.
fn told(event: &EventReport) -> String {
    let kind = serde_json::to_value(event.kind).ok().and_then(|kind| Some(kind.as_str()?.replace('_', " ")));
    let mut line = format!("{}  {}", Timestamp(event.at).date(), kind.unwrap_or_default());
    if let Some(place) = event.repository.as_ref().or(event.upstream.as_ref()) {
        let _ = write!(line, "  {place}");
    }
    if let Some(digest) = &event.digest {
        let _ = write!(line, "@{digest}");
    }
    if event.times > 1 {
        let _ = write!(line, "  {} times since {}", event.times, Timestamp(event.first_at).date());
    }
    format!("{line}\n  why: {}\n  do:  {}\n", event.reason, event.advice)
}

fn describe(status: &StatusReport, width: Option<usize>) -> String {
    let (counts, hit_percent, when) = match &status.day {
        Some(day) => (&day.counts, day.hit_percent, "in the last 24 hours, by all processes"),
        None => (&status.counts, status.hit_percent, "by this process, since it started"),
    };
    let count = |name: &str| count(counts, name);
    let ready = if status.health.ready { "ready" } else { "not ready" };
    let up = written(Duration::from_secs(status.uptime_seconds));
    let mut text = format!("stopover  {}, up {up}, {ready}\n", status.version);
    for reason in &status.health.reasons {
        let _ = writeln!(text, "problem   {reason}");
    }
    let stored =
        |percent: Option<u64>| percent.map_or("none yet".into(), |percent| format!("{percent}% from the cache"));
    let _ = writeln!(text, "counted   {when}");
    let _ = writeln!(
        text,
        "requests  {}: {} hits, {} revalidated, {} stale, {} misses; {} refused, {} failed",
        stored(hit_percent),
        count("hits"),
        count("revalidated"),
        count("stale"),
        count("misses"),
        count("refused"),
        count("failed")
    );
    let _ = writeln!(text, "pulls     {} spent, {} saved", count("pulls_spent"), count("pulls_saved"));
    let _ = write!(text, "bytes     {} saved", Bytes(count("saved_bytes")));
    // Other processes may copy.
    if let Some(fills) = counts.get("fills") {
        let _ = write!(text, "; {fills} blobs of {} copied", Bytes(count("filled_bytes")));
    }
    text.push('\n');
    if let Some(month) = &status.month {
        let [pulls, bytes] = ["pulls_saved", "saved_bytes"].map(|name| self::count(&month.counts, name));
        let _ = writeln!(text, "30 days   {}; {pulls} pulls and {} saved", stored(month.hit_percent), Bytes(bytes));
    }
    if let Some(fills) = &status.fills {
        let _ = write!(text, "fills     {} running, {} waiting", fills.running, fills.waiting);
        let _ = write!(text, ", {} resting, {} given up", fills.resting, fills.failed);
        if let Some(age) = fills.oldest_age_seconds {
            let _ = write!(text, ", the oldest for {}", written(Duration::from_secs(age)));
        }
        text.push('\n');
    }
    if let Some(swept) = &status.last_sweep {
        let at = swept.at.date();
        let _ = writeln!(
            text,
            "stored    {} at the last sweep, {at}, which freed {}",
            Bytes(swept.kept_bytes),
            Bytes(swept.freed_bytes)
        );
    }
    let mut rows = status.upstreams.iter().filter(|upstream| !upstream.is_idle()).map(row).peekable();
    if rows.peek().is_some() {
        let head = ["UPSTREAM", "STORED", "MISSES", "SPENT", "SAVED", "QUOTA LEFT", "STATE"];
        text = text + "\n" + &Table::new(head, width).add(rows);
    }
    text
}

fn count(counts: &Counts, name: &str) -> u64 {
    counts.get(name).copied().unwrap_or_default()
}

/// The row of an upstream.
fn row(upstream: &UpstreamStatus) -> [String; 7] {
    let UpstreamStatus { upstream, counts, accounts, day, .. } = upstream;
    let counts = day.as_ref().unwrap_or(counts);
    let quotas = accounts.iter().filter_map(|account| Some(format!("{} of {}", account.remaining?, account.limit?)));
    let quotas: Vec<String> = quotas.collect();
    let breakers = accounts.iter().flat_map(|account| &account.breakers);
    let states: Vec<String> = breakers
        .map(|breaker| format!("{} not asked for {} s: {}", breaker.stops, breaker.seconds_left, breaker.cause))
        .collect();
    // Those of an upstream of which the caller may pull a part are not shown.
    let shown = |sum: u64| if counts.is_empty() { String::new() } else { sum.to_string() };
    let stored = ["hits", "revalidated", "stale"].map(|name| count(counts, name)).iter().sum();
    let [misses, spent, saved] = ["misses", "pulls_spent", "pulls_saved"].map(|name| shown(count(counts, name)));
    let state = if states.is_empty() { "asked".into() } else { states.join("; ") };
    [upstream.clone(), shown(stored), misses, spent, saved, quotas.join(", "), state]
}
