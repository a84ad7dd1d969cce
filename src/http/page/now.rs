//! The view *Now*: what the cache does, in the numbers of `/_stopover/status`.

use std::time::Duration;

use super::html::Html;
use super::{Asked, View, chart, date};
use crate::http::watch::status_seen_by;
use crate::operate::report::{Bytes, QuotaReport};
use crate::operate::status::{Counts, StatusReport, UpstreamStatus};
use crate::operate::tallies::Period;
use crate::values::time::written;

pub(super) async fn view(asked: &Asked<'_>) -> View {
    let status = status_seen_by(asked.cache, asked.caller).await;
    let mut html = Html::default();
    readiness(&mut html, &status);
    numbers(&mut html, &status);
    if let (Some(day), Some(month)) = (&status.day, &status.month) {
        chart::add(&mut html, day, "hour");
        chart::add(&mut html, month, "day");
    }
    html.raw("<h2>Upstreams</h2>");
    let (idle, asked): (Vec<_>, Vec<_>) = status.upstreams.iter().partition(|upstream| upstream.is_idle());
    if asked.is_empty() {
        html.raw(
            "<p class=\"calm\">Nothing was asked for yet. <a href=\"/?view=setup\">Set up a client</a> to pull through \
                  this cache.</p>",
        );
    } else {
        let head = ["Upstream", "From the cache", "Misses", "Pulls spent", "Pulls saved", "Quota left", "State"];
        html.table(head, asked.into_iter().map(row));
        if !idle.is_empty() {
            html.raw("<p class=\"calm\">").text(idle.len()).raw(" more were not asked for anything yet.</p>");
        }
    }
    // On AWS each view is a call of a function and three of the table.
    View { every: Some("30"), ..View::new("Now", html) }
}

fn count(counts: &Counts, name: &str) -> u64 {
    counts.get(name).copied().unwrap_or_default()
}

fn readiness(html: &mut Html, status: &StatusReport) {
    html.raw(if status.health.ready {
        "<p><span class=\"state good\">ready</span> "
    } else {
        "<p><span class=\"state bad\">not ready</span> "
    });
    html.raw("Version ").text(&status.version).raw(", up ").text(written(Duration::from_secs(status.uptime_seconds)));
    html.raw(match status.day {
        Some(_) => ". Numbers are of the last 24 hours, and of the last 30 days where that is said.</p>",
        None => ". What all processes have counted cannot be read now: numbers are of this one since it started.</p>",
    });
    for reason in &status.health.reasons {
        html.raw("<p class=\"note bad\">").text(reason).raw("</p>");
    }
}

/// A number, what it counts, and what more there is to say.
fn number(html: &mut Html, name: &'static str, value: impl std::fmt::Display, said: impl std::fmt::Display) {
    html.raw("<div><dt>")
        .raw(name)
        .raw("</dt><dd><b>")
        .text(value)
        .raw("</b><span>")
        .text(said)
        .raw("</span></dd></div>");
}

/// What was counted in the last day; as long as that cannot be read, in this process.
fn counted(status: &StatusReport) -> (&Counts, Option<u64>) {
    let here = (&status.counts, status.hit_percent);
    status.day.as_ref().map_or(here, |day| (&day.counts, day.hit_percent))
}

fn percent(percent: Option<u64>) -> String {
    percent.map_or_else(|| "none yet".into(), |percent| format!("{percent} %"))
}

fn numbers(html: &mut Html, status: &StatusReport) {
    let (counts, hit_percent) = counted(status);
    let of = |name: &str| count(counts, name);
    // Behind each number is what it was in a month.
    let month = |said: fn(&Period) -> String| {
        status.month.as_ref().map_or_else(String::new, |month| format!("; in 30 days {}", said(month)))
    };
    html.raw("<dl class=\"numbers\">");
    let [hits, revalidated, stale, misses] = ["hits", "revalidated", "stale", "misses"].map(of);
    let requests = format!("{hits} hits, {revalidated} revalidated, {stale} stale, {misses} misses");
    let requests = requests + &month(|month| percent(month.hit_percent));
    number(html, "Answered from the cache", percent(hit_percent), requests);
    let spent = format!("{} spent: manifests that upstreams have sent", of("pulls_spent"));
    let spent = spent + &month(|month| format!("{} saved", count(&month.counts, "pulls_saved")));
    number(html, "Pulls saved", of("pulls_saved"), spent);
    let saved = month(|month| Bytes(count(&month.counts, "saved_bytes")).to_string());
    number(html, "Bytes saved", Bytes(of("saved_bytes")), format!("of blobs that were stored before{saved}"));
    // Other processes may copy.
    if counts.contains_key("fills") {
        let copied = format!("{} blobs; failed attempts: {}", of("fills"), of("failed_fills"));
        let copied = copied + &month(|month| Bytes(count(&month.counts, "filled_bytes")).to_string());
        number(html, "Copied from upstreams", Bytes(of("filled_bytes")), copied);
    }
    if let Some(fills) = &status.fills {
        let oldest = fills
            .oldest_age_seconds
            .map_or_else(String::new, |age| format!(", the oldest for {}", written(Duration::from_secs(age))));
        let said = format!("{} waiting, {} resting, {} given up{oldest}", fills.waiting, fills.resting, fills.failed);
        number(html, "Fills that run", fills.running, said);
    }
    if let Some(swept) = &status.last_sweep {
        let said = format!("at the last sweep, {}, which freed {}", date(swept.at.0), Bytes(swept.freed_bytes));
        number(html, "Stored", Bytes(swept.kept_bytes), said);
    }
    let failed = format!("with 429; {} failed with 5xx", of("failed"));
    number(html, "Requests refused", of("refused"), failed);
    html.raw("</dl>");
}

fn row(upstream: &UpstreamStatus) -> [Html; 7] {
    let UpstreamStatus { upstream, counts, accounts, day, .. } = upstream;
    let counts = day.as_ref().unwrap_or(counts);
    // Those of an upstream of which the caller may pull a part are not shown.
    let shown = |sum: u64| if counts.is_empty() { Html::default() } else { Html::of(sum) };
    let stored = ["hits", "revalidated", "stale"].map(|name| count(counts, name)).iter().sum();
    let mut quotas = Html::default();
    for account in accounts {
        quota(&mut quotas, account);
    }
    let mut state = Html::default();
    if !breakers(&mut state, accounts) {
        state.raw("<span class=\"state good\">asked</span>");
    }
    let [misses, spent, saved] = ["misses", "pulls_spent", "pulls_saved"].map(|name| shown(count(counts, name)));
    [Html::of(upstream), shown(stored), misses, spent, saved, quotas, state]
}

fn quota(html: &mut Html, account: &QuotaReport) {
    html.raw("<div>");
    if let Some(credential) = &account.credential {
        html.text(credential).raw(": ");
    }
    if let (Some(remaining), Some(limit), Some(window)) = (account.remaining, account.limit, account.window_seconds) {
        html.raw("<meter min=\"0\" max=\"").text(limit).raw("\" low=\"").text(limit / 5).raw("\" value=\"");
        html.text(remaining).raw("\" aria-label=\"Quota left\"></meter> ").text(remaining).raw(" of ").text(limit);
        html.raw(" in ").text(window.div_ceil(3600)).raw(" h, ");
    }
    html.text(&account.forecast).raw("</div>");
}

/// Adds the breakers that are open. Whether there are any.
pub(super) fn breakers(html: &mut Html, accounts: &[QuotaReport]) -> bool {
    let mut open = accounts.iter().flat_map(|account| &account.breakers).peekable();
    let is_open = open.peek().is_some();
    for breaker in open {
        html.raw("<div><span class=\"state bad\">").text(&breaker.stops).raw(" not asked</span> for ");
        html.text(written(Duration::from_secs(breaker.seconds_left))).raw(": ").text(&breaker.cause).raw("</div>");
    }
    is_open
}
