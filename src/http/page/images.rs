//! The view *Images*: repositories, and the images of one.

use http::StatusCode;

use super::html::Html;
use super::{Asked, View, date};
use crate::cache::Cache;
use crate::errors::StoreError;
use crate::http::access::Caller;
use crate::http::audit::Record;
use crate::http::images::Parameters;
use crate::oci::{Digest, Repository};
use crate::operate::images::{ImageReport, ImagesReport, LayerReport, PlatformReport, RepositoryReport, TaggedImage};
use crate::operate::report::Bytes;
use crate::ports::Section;

/// The most repositories of a page, whatever `n` says: the page stays small.
const MOST: usize = 100;
/// The most platforms and layers that are shown of all images of a page together.
const ROOM: usize = 600;

fn failed(status: StatusCode, said: impl std::fmt::Display) -> View {
    View::failed(status, "Images", said)
}

fn unavailable(error: StoreError) -> View {
    failed(StatusCode::SERVICE_UNAVAILABLE, error)
}

/// What the caller may see of what the parameters ask for.
pub(super) async fn view(asked: &Asked<'_>) -> View {
    let Asked { cache, caller, parameters, .. } = asked;
    let view =
        if parameters.get("name").is_some() { image(asked).await } else { list(cache, caller, parameters).await };
    view.unwrap_or_else(|failed| failed)
}

async fn list(cache: &Cache, caller: &Caller, parameters: &Parameters) -> Result<View, View> {
    let section = parameters.section().map_err(|said| failed(StatusCode::BAD_REQUEST, said))?;
    let section = Section { most: section.most.min(MOST), ..section };
    let sees = |repository: &Repository| caller.is_operator || caller.may_pull(cache, repository);
    let paged = cache.operate.images(&section, sees).await.map_err(unavailable)?;
    let next = paged.next.as_deref();
    Ok(View::new("Images", repositories(&paged.page, parameters.get("prefix"), next)))
}

fn repositories(report: &ImagesReport, prefix: Option<&str>, next: Option<&str>) -> Html {
    let mut html = Html::default();
    html.raw(
        "<form action=\"/\"><input type=\"hidden\" name=\"view\" value=\"images\"><label>Names that begin with <input \
              name=\"prefix\" autocapitalize=\"none\" spellcheck=\"false\" value=\"",
    );
    html.text(prefix.unwrap_or_default()).raw("\"></label> <button>Show</button></form>");
    if report.repositories.is_empty() {
        html.raw("<p class=\"calm\">Nothing is stored that is called so. What is pulled through this cache is listed here.</p>");
    } else {
        html.table(["Repository", "Size", "Shared", "Last used", "Tags"], report.repositories.iter().map(row));
    }
    if report.cut {
        html.raw("<p>There may be more: say what the names begin with that you may pull.</p>");
    }
    if let Some(last) = next {
        let query = [("view", "images"), ("prefix", prefix.unwrap_or_default()), ("last", last)];
        html.raw("<p>").link(&query, "More").raw("</p>");
    }
    html
}

fn row(repository: &RepositoryReport) -> [Html; 5] {
    let RepositoryReport { repository, tags, some_tags, bytes, shared_bytes, used_at, .. } = repository;
    let (mut name, mut tagged) = (Html::default(), Html::default());
    name.link(&[("view", "images"), ("name", repository)], repository);
    for tag in some_tags {
        tagged.text(tag).raw(" ");
    }
    let more = tags.saturating_sub(some_tags.len() as u64);
    if more > 0 {
        tagged.raw("and ").text(more).raw(" more");
    }
    let shared = shared_bytes.map_or_else(|| "not counted".into(), |bytes| Bytes(bytes).to_string());
    [name, Html::of(Bytes(*bytes)), Html::of(shared), Html::of(date(*used_at)), tagged]
}

async fn image(asked: &Asked<'_>) -> Result<View, View> {
    let Asked { cache, caller, parameters, .. } = asked;
    let wanted = parameters.wanted(cache, caller, &mut Record::default());
    let (repository, wanted) = wanted.map_err(|error| failed(error.answer().status, error))?;
    let (wanted, _) = parameters.behind(wanted).map_err(|said| failed(StatusCode::BAD_REQUEST, said))?;
    let paged = cache.operate.image(&repository, wanted).await.map_err(unavailable)?;
    let paged = paged.ok_or_else(|| failed(StatusCode::NOT_FOUND, "Nothing is stored that is called so."))?;
    let mut html = images(&paged.page, asked);
    if let (Some(last), Some(name)) = (&paged.next, parameters.get("name")) {
        let query = [("view", "images"), ("name", name), ("last", last.as_str())];
        html.raw("<p>").link(&query, "More").raw("</p>");
    }
    Ok(View::new(paged.page.repository, html))
}

fn images(report: &ImageReport, asked: &Asked<'_>) -> Html {
    let (mut html, mut room) = (Html::default(), ROOM);
    if report.images.is_empty() {
        html.raw("<p class=\"calm\">There are no more images.</p>");
    }
    if report.partial {
        html.raw("<p>There is more in this image than is looked up: ask for a platform by its digest.</p>");
    }
    for image in &report.images {
        tagged(&mut html, report, image);
        commands(&mut html, &report.repository, image, asked);
        for (number, one) in image.platforms.iter().enumerate() {
            if room == 0 {
                unshown(&mut html, image.platforms.len() - number, "platforms", &report.repository, &image.digest);
                break;
            }
            platform(&mut html, &report.repository, one, &mut room);
        }
    }
    html
}

/// Adds what there is to say of an image as a whole.
fn tagged(html: &mut Html, report: &ImageReport, image: &TaggedImage) {
    let TaggedImage { tag, digest, stored, bytes, shared_bytes, used_at, fresh_until, expires_at, pinned, .. } = image;
    html.raw("<h2>");
    match tag {
        Some(tag) => html.text(tag),
        None => html.raw("by digest"),
    };
    html.raw(if *stored { "</h2><p>" } else { ", not stored</h2><p>" }).part(&Html::code(digest)).raw("</p><p>");
    html.raw(if report.partial { "at least " } else { "" }).text(Bytes(*bytes));
    html.raw(", of which ").text(Bytes(*shared_bytes)).raw(" shared; last used ");
    html.text(used_at.map_or_else(|| "never".into(), date));
    if let Some(fresh_until) = fresh_until {
        html.raw("; fresh until ").text(date(*fresh_until));
    }
    let never = if *pinned { "never: it is pinned" } else { "never" };
    html.raw(if report.partial && expires_at.is_some() { "; expires not before " } else { "; expires " });
    html.text(expires_at.map_or_else(|| never.to_owned(), date)).raw("</p>");
}

/// Adds commands that can be given here, each for the place where it is copied to.
fn commands(html: &mut Html, repository: &str, image: &TaggedImage, asked: &Asked<'_>) {
    let (name, called) = match &image.tag {
        Some(tag) => (format!("{repository}:{tag}"), tag.to_string()),
        None => (format!("{repository}@{}", image.digest), image.digest.to_string()),
    };
    let server = asked.url_elsewhere().map_or_else(String::new, |origin| format!(" --server {origin}"));
    // What a digest is never changes, and another process purges on AWS.
    let refresh = image.tag.as_ref().map(|_| ("refresh", "stopover refresh"));
    let purge = (!asked.cache.core.is_front()).then_some(("purge", "stopover purge"));
    if refresh.is_none() && purge.is_none() {
        return;
    }
    html.raw("<details><summary>Commands for ").text(&called).raw("</summary>");
    for (does, command) in refresh.into_iter().chain(purge) {
        html.copyable(format_args!("Command to {does} {called}"), format_args!("{command} {name}{server}"));
    }
    if image.tag.is_some() {
        html.raw("<p>In <code>stopover.toml</code>, so that it never expires:</p>");
        html.copyable(format_args!("Pin of {called}"), format_args!("pin = [\"{name}\"]"));
    }
    html.raw("</details>");
}

/// Says how many more there are, and where they are shown.
fn unshown(html: &mut Html, count: usize, of: &'static str, repository: &str, digest: &Digest) {
    let name = format!("{repository}@{digest}");
    html.raw("<p>").text(count).raw(" more ").raw(of).raw(" are not shown: ");
    html.link(&[("view", "images"), ("name", &name)], "this alone").raw("</p>");
}

/// Adds what an image has for one platform, as far as there is room.
fn platform(html: &mut Html, repository: &str, one: &PlatformReport, room: &mut usize) {
    let PlatformReport { platform, digest, stored, layers, .. } = one;
    html.raw("<h3>").text(platform.as_deref().unwrap_or("one platform"));
    html.raw(match stored {
        Some(true) => "</h3><p>",
        Some(false) => ", not stored</h3><p>",
        None => ", not looked up</h3><p>",
    });
    html.part(&Html::code(digest)).raw("</p>");
    *room = room.saturating_sub(1);
    let shown = layers.len().min(*room);
    *room = room.saturating_sub(shown);
    let yes = |it: bool| if it { "yes" } else { "no" };
    if shown > 0 {
        let row = |LayerReport { digest, bytes, stored, shared }: &LayerReport| {
            let stored = stored.map_or("not looked up", yes);
            [Html::code(digest), Html::of(Bytes(*bytes)), Html::of(stored), Html::of(yes(*shared))]
        };
        html.table(["Layer", "Size", "Stored", "Shared"], layers.iter().take(shown).map(row));
    }
    if shown < layers.len() {
        unshown(html, layers.len() - shown, "layers", repository, digest);
    }
}
