//! The view *Fills*: what is being copied, and what has failed.

use http::StatusCode;

use super::html::Html;
use super::{Asked, View, sentence};
use crate::errors::chain;
use crate::http::operator::{MOST_FILLS, fills_seen_by};
use crate::operate::fills::{ELSEWHERE, FillReport, FillState, FillStatus};
use crate::operate::report::Bytes;

/// The fills of repositories that the caller may pull from, for operators all.
pub(super) async fn of(Asked { cache, caller, .. }: &Asked<'_>) -> Result<FillReport, Html> {
    let report = fills_seen_by(cache, caller, MOST_FILLS).await;
    report.map_err(|error| if cache.core.is_front() { said(ELSEWHERE) } else { sentence(chain(&error)) })
}

/// A sentence of this program.
fn said(sentence: &str) -> Html {
    let mut html = Html::default();
    html.raw("<p>").told(sentence).raw("</p>");
    html
}

pub(super) async fn view(asked: &Asked<'_>) -> View {
    let mut report = match of(asked).await {
        Ok(found) => found,
        Err(body) => return View { status: StatusCode::SERVICE_UNAVAILABLE, ..View::new("Fills", body) },
    };
    report.fills.sort_by_key(|fill| (fill.state, fill.repository.clone(), fill.size));
    let mut html = Html::default();
    let open = report.fills.iter().any(|fill| fill.state < FillState::Resting);
    if report.fills.is_empty() && report.images.is_empty() {
        html.raw("<p class=\"calm\">Nothing is being copied, and nothing was given up.</p>");
    }
    add(&mut html, &report, asked.cache.core.is_front());
    // What moves is asked for again soon, and what is new a little later.
    View { every: Some(if open { "1" } else { "5" }), ..View::new("Fills", html) }
}

/// Adds the table of fills, the images that were given up, and how many there are besides.
pub(super) fn add(html: &mut Html, report: &FillReport, is_front: bool) {
    if !report.fills.is_empty() {
        html.table(["Repository", "State", "Progress", "Why", "Blob"], report.fills.iter().map(row));
    }
    if !report.images.is_empty() {
        html.raw("<h2>Images that were given up</h2><ul>");
        for image in &report.images {
            html.raw("<li><code>").text(&image.image).raw("</code></li>");
        }
        html.raw("</ul>");
    }
    if report.more > 0 {
        html.raw("<p>").text(report.more).raw(" more are not shown.</p>");
    }
    let failed = |fill: &FillStatus| fill.state == FillState::Failed;
    if report.fills.iter().any(|fill| fill.state == FillState::Resting) {
        html.raw("<p>What rests is tried again by itself.</p>");
    }
    if report.fills.iter().any(failed) || !report.images.is_empty() {
        html.raw(if is_front {
            "<p>What was given up is tried again by the filler function, invoked with <code>{\"fills\": \"retry\"}</code>.</p>"
        } else {
            "<p>What was given up is tried again by <code>stopover fills retry</code>.</p>"
        });
    }
}

fn row(fill: &FillStatus) -> [Html; 5] {
    let (state, class) = match fill.state {
        FillState::Running => ("running", "<span class=\"state good\">"),
        FillState::Waiting => ("waiting", "<span class=\"state\">"),
        FillState::Resting => ("resting", "<span class=\"state warn\">"),
        FillState::Failed => ("given up", "<span class=\"state bad\">"),
        FillState::Stored => ("stored", "<span class=\"state\">"),
    };
    let mut marked = Html::default();
    marked.raw(class).raw(state).raw("</span>");
    let mut progress = Html::default();
    let percent = fill.written.saturating_mul(100).checked_div(fill.size).unwrap_or_default();
    progress.raw("<progress max=\"100\" value=\"").text(percent).raw("\" aria-label=\"Progress of ").text(&fill.digest);
    progress.raw("\"></progress> ").text(Bytes(fill.written)).raw(" of ").text(Bytes(fill.size));
    let why = match (&fill.failure, fill.attempts) {
        (Some(failure), attempts) => Html::of(format_args!("attempt {attempts}: {failure}")),
        (None, _) => Html::default(),
    };
    [Html::of(fill.repository.as_deref().unwrap_or_default()), marked, progress, why, Html::code(&fill.digest)]
}
