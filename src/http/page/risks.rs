//! The view *Risks*: what will hurt if nothing is done.

use std::time::Duration;

use super::html::Html;
use super::{Asked, View, date, fills, now, sentence};
use crate::errors::chain;
use crate::http::watch::events_seen_by;
use crate::journal::EventKind;
use crate::oci::{Repository, UpstreamId};
use crate::operate::fills::FillState;
use crate::operate::images::MOST_REPOSITORIES;
use crate::operate::status::EventReport;
use crate::ports::Section;
use crate::records::blob::NOTED;
use crate::values::time::Timestamp;

/// What expires within this time is shown.
const SOON: Duration = Duration::from_hours(7 * 24);
/// The most repositories and the most events that are shown.
const MOST: usize = 50;

pub(super) async fn view(asked: &Asked<'_>) -> View {
    let mut html = Html::default();
    upstreams(&mut html, asked).await;
    let events = events_seen_by(asked.cache, asked.caller).events;
    let (refused, others): (Vec<_>, Vec<_>) =
        events.into_iter().partition(|event| event.kind == EventKind::RefusedPull);
    html.raw("<h2>Refused pulls</h2>");
    add_events(&mut html, &refused, "No pull was refused because a quota or a budget is used up.");
    html.raw("<h2>Incomplete here</h2>");
    html.part(&incomplete(asked).await);
    html.raw("<h2>Expiring soon</h2>");
    html.part(&expiring(asked).await);
    html.raw("<h2>What has failed lately</h2>");
    add_events(&mut html, &others, "Nothing has failed since this process started.");
    View::new("Risks", html)
}

fn calm(said: &'static str) -> Html {
    let mut html = Html::default();
    html.raw("<p class=\"calm\">").raw(said).raw("</p>");
    html
}

async fn upstreams(html: &mut Html, asked: &Asked<'_>) {
    let Asked { cache, caller, .. } = asked;
    let sees = |upstream: &UpstreamId, private| caller.sees(cache, upstream, private);
    let quotas = cache.operate.quotas(caller.is_operator, sees).await;
    html.raw("<h2>Upstreams in trouble</h2>");
    let rows = quotas.iter().filter_map(|(upstream, account)| {
        let mut open = Html::default();
        now::breakers(&mut open, std::slice::from_ref(account)).then(|| [Html::of(upstream), open])
    });
    let rows: Vec<_> = rows.collect();
    if rows.is_empty() {
        html.part(&calm("All upstreams are asked."));
        return;
    }
    html.table(["Upstream", "State"], rows);
    html.raw("<p>What is stored is served on. Upstreams are asked again by themselves.</p>");
}

/// Blobs that were requested, and are not stored.
async fn incomplete(asked: &Asked<'_>) -> Html {
    match fills::of(asked).await {
        Ok(mut report) => {
            report.fills.retain(|fill| matches!(fill.state, FillState::Failed | FillState::Resting));
            if report.fills.is_empty() && report.images.is_empty() && report.more == 0 {
                return calm("No blob that was requested is missing.");
            }
            let mut html =
                sentence("These blobs were requested and are not stored. They come from upstream, if it has them.");
            fills::add(&mut html, &report, asked.cache.core.is_front());
            html
        }
        Err(said) => said,
    }
}

/// The repositories that a sweep removes next, if they are not used again.
async fn expiring(asked: &Asked<'_>) -> Html {
    let Asked { cache, caller, .. } = asked;
    let Some(keep) = cache.core.config.retention.keep else {
        return calm("Nothing expires: there is no <code>keep</code> in the configuration.");
    };
    let sees = |repository: &Repository| caller.is_operator || caller.may_pull(cache, repository);
    let section = Section { prefix: String::new(), after: None, most: MOST_REPOSITORIES };
    let paged = match cache.operate.images(&section, sees).await {
        Ok(paged) => paged,
        Err(error) => return sentence(chain(&error)),
    };
    let soon = cache.core.clock.now().plus(SOON);
    let mut rows: Vec<(Timestamp, &str)> = paged
        .page
        .repositories
        .iter()
        .map(|held| (Timestamp(held.used_at).plus(keep).plus(NOTED), held.repository.as_str()))
        .filter(|(expires_at, _)| *expires_at < soon)
        .collect();
    rows.sort_unstable();
    let mut html = Html::default();
    if rows.is_empty() {
        html.part(&calm("Nothing expires within a week."));
    } else {
        html.raw("<p>Not used for long. Pinned images stay; a pull keeps the others, too.</p>");
        let row = |(expires_at, repository): (Timestamp, &str)| {
            let mut name = Html::default();
            name.link(&[("view", "images"), ("name", repository)], repository);
            [name, Html::of(date(expires_at.0))]
        };
        html.table(["Repository", "Expires"], rows.into_iter().take(MOST).map(row));
    }
    if paged.next.is_some() || paged.page.cut {
        html.raw("<p>Not all repositories were looked at: those that come first by name.</p>");
    }
    html
}

fn add_events(html: &mut Html, events: &[EventReport], calm: &'static str) {
    if events.is_empty() {
        html.part(&self::calm(calm));
        return;
    }
    html.raw("<ul class=\"events\">");
    for event in events.iter().take(MOST) {
        add_event(html, event);
    }
    html.raw("</ul>");
}

fn add_event(html: &mut Html, event: &EventReport) {
    let (class, said) = match event.kind {
        EventKind::FailedFill => ("<li><span class=\"state warn\">", "a copy failed"),
        EventKind::BreakerOpened => ("<li><span class=\"state bad\">", "upstream not asked"),
        EventKind::BreakerClosed => ("<li><span class=\"state good\">", "upstream asked again"),
        EventKind::RefusedPull => ("<li><span class=\"state warn\">", "pull refused"),
        EventKind::ConfigurationError => ("<li><span class=\"state bad\">", "configuration wrong"),
    };
    html.raw(class).raw(said).raw("</span> ").text(date(event.at));
    if event.times > 1 {
        html.raw(", ").text(event.times).raw(" times since ").text(date(event.first_at));
    }
    html.raw("<br>");
    if let Some(place) = event.repository.as_ref().or(event.upstream.as_ref()) {
        html.raw("<b>").text(place).raw("</b> ");
    }
    if let Some(digest) = &event.digest {
        html.part(&Html::code(digest));
    }
    html.raw("<br>Why: ").text(&event.reason).raw("<br>To do: ").told(&event.advice).raw("</li>");
}
