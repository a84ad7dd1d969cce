//! The view *Images*: repositories, and the images of one.

use std::time::{Duration, UNIX_EPOCH};

use http::StatusCode;

use super::html::Html;
use super::sentence;
use crate::cache::Cache;
use crate::http::access::Caller;
use crate::http::audit::Record;
use crate::http::images::{Misunderstood, Parameters};
use crate::oci::Repository;
use crate::operate::images::{ImageReport, ImagesReport, PlatformReport, RepositoryReport, TaggedImage};
use crate::operate::report::Bytes;

/// A view: its status, its title and what it says.
pub(super) type View = (StatusCode, String, Html);

fn failed(status: StatusCode, said: impl std::fmt::Display) -> View {
    (status, "Images".to_owned(), sentence(said))
}

/// What the caller may see of what the parameters ask for.
pub(super) async fn view(cache: &Cache, caller: &Caller, parameters: &Parameters) -> View {
    if parameters.get("name").is_some() {
        image(cache, caller, parameters).await
    } else {
        list(cache, caller, parameters).await
    }
}

async fn list(cache: &Cache, caller: &Caller, parameters: &Parameters) -> View {
    let section = match parameters.section() {
        Ok(section) => section,
        Err(Misunderstood(said)) => return failed(StatusCode::BAD_REQUEST, said),
    };
    let sees = |repository: &Repository| caller.is_operator || caller.may_pull(cache, repository);
    match cache.operate.images(&section, sees).await {
        Ok(paged) => {
            let next = paged.next.as_deref();
            (StatusCode::OK, "Images".to_owned(), repositories(&paged.page, parameters.get("prefix"), next))
        }
        Err(error) => failed(StatusCode::SERVICE_UNAVAILABLE, error),
    }
}

fn repositories(report: &ImagesReport, prefix: Option<&str>, next: Option<&str>) -> Html {
    let mut html = Html::default();
    html.raw("<form action=\"/\"><label>Names that begin with <input name=\"prefix\" value=\"");
    html.text(prefix.unwrap_or_default()).raw("\"></label> <button>Show</button></form>");
    if report.repositories.is_empty() {
        html.raw("<p>Nothing is stored that is called so. What is pulled through this cache is listed here.</p>");
    } else {
        html.raw(
            "<table><thead><tr><th>Repository</th><th>Size</th><th>Shared</th><th>Last used</th><th>Tags</th></tr>",
        );
        html.raw("</thead><tbody>");
        for repository in &report.repositories {
            row(&mut html, repository);
        }
        html.raw("</tbody></table>");
    }
    if report.cut {
        html.raw("<p>There may be more: say what the names begin with that you may pull.</p>");
    }
    if let Some(last) = next {
        html.raw("<p>").link(&[("prefix", prefix.unwrap_or_default()), ("last", last)], "More").raw("</p>");
    }
    html
}

fn row(html: &mut Html, repository: &RepositoryReport) {
    let RepositoryReport { repository, tags, some_tags, bytes, shared_bytes, used_at, .. } = repository;
    html.raw("<tr><td>").link(&[("name", repository)], repository).raw("</td>").cell(Bytes(*bytes));
    html.cell(shared_bytes.map_or_else(|| "not counted".into(), |bytes| Bytes(bytes).to_string())).cell(date(*used_at));
    html.raw("<td>");
    for tag in some_tags {
        html.text(tag).raw(" ");
    }
    let more = tags.saturating_sub(some_tags.len() as u64);
    if more > 0 {
        html.raw("and ").text(more).raw(" more");
    }
    html.raw("</td></tr>");
}

async fn image(cache: &Cache, caller: &Caller, parameters: &Parameters) -> View {
    let asked = parameters.wanted(cache).and_then(|(repository, wanted)| {
        if !caller.is_operator {
            caller.check(cache, &repository, &mut Record::default())?;
        }
        Ok((repository, wanted))
    });
    let (repository, wanted) = match asked {
        Ok(asked) => asked,
        Err(error) => return failed(error.answer().status, error),
    };
    let wanted = match parameters.behind(wanted) {
        Ok((wanted, _)) => wanted,
        Err(Misunderstood(said)) => return failed(StatusCode::BAD_REQUEST, said),
    };
    match cache.operate.image(&repository, wanted).await {
        Ok(Some(paged)) => {
            let mut html = images(&paged.page);
            if let (Some(last), Some(name)) = (&paged.next, parameters.get("name")) {
                html.raw("<p>").link(&[("name", name), ("last", last.as_str())], "More").raw("</p>");
            }
            (StatusCode::OK, paged.page.repository, html)
        }
        Ok(None) => failed(StatusCode::NOT_FOUND, "Nothing is stored that is called so."),
        Err(error) => failed(StatusCode::SERVICE_UNAVAILABLE, error),
    }
}

fn images(report: &ImageReport) -> Html {
    let mut html = Html::default();
    for image in &report.images {
        let TaggedImage { tag, digest, bytes, shared_bytes, used_at, expires_at, pinned, platforms, .. } = image;
        html.raw("<h2>");
        if let Some(tag) = tag {
            html.text(tag);
        }
        html.raw("</h2><p><code>").text(digest).raw("</code></p><p>").text(Bytes(*bytes));
        html.raw(", of which ").text(Bytes(*shared_bytes)).raw(" shared; last used ");
        html.text(used_at.map_or_else(|| "never".into(), date)).raw("; expires ");
        let never = if *pinned { "never: it is pinned" } else { "never" };
        html.text(expires_at.map_or_else(|| never.to_owned(), date)).raw("</p>");
        for one in platforms {
            platform(&mut html, one);
        }
    }
    if report.partial {
        html.raw("<p>Not everything is looked up: ask for one image.</p>");
    }
    html
}

fn platform(html: &mut Html, PlatformReport { platform, digest, stored, layers, .. }: &PlatformReport) {
    html.raw("<h3>").text(platform.as_deref().unwrap_or("one platform"));
    html.raw(if *stored { "</h3><p><code>" } else { ", not stored</h3><p><code>" }).text(digest).raw("</code></p>");
    if layers.is_empty() {
        return;
    }
    html.raw("<table><thead><tr><th>Layer</th><th>Size</th><th>Stored</th><th>Shared</th></tr></thead><tbody>");
    for layer in layers {
        let yes = |it: bool| if it { "yes" } else { "no" };
        html.raw("<tr><td><code>").text(&layer.digest).raw("</code></td>").cell(Bytes(layer.bytes));
        html.cell(yes(layer.stored)).cell(yes(layer.shared)).raw("</tr>");
    }
    html.raw("</tbody></table>");
}

/// The last second of the year 9999, behind which there is no notation.
const LAST: u64 = 253_402_300_799;

/// A time for people to read.
fn date(at: u64) -> String {
    humantime::format_rfc3339_seconds(UNIX_EPOCH + Duration::from_secs(at.min(LAST))).to_string()
}
