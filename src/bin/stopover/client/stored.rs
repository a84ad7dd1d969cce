//! `stopover ls`, `stopover inspect` and `stopover du`: what is in the cache.

use std::cmp::Reverse;
use std::collections::BTreeSet;
use std::fmt::Write as _;

use anyhow::{Context as _, bail};
use http::StatusCode;
use http::header::LINK;
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::json;
use stopover::operate::images::{ImageReport, ImagesReport, PlatformReport, RepositoryReport, TaggedImage};
use stopover::operate::report::Bytes;
use stopover::values::time::Timestamp;
use url::form_urlencoded::Serializer;

use super::Client;
use super::table::{Table, width};
use crate::output::lines;

/// What a repository takes.
#[derive(Serialize)]
struct Usage {
    repository: String,
    bytes: u64,
    shared_bytes: Option<u64>,
    own_bytes: u64,
    counted: bool,
}

impl Usage {
    fn of(report: &RepositoryReport) -> Self {
        let RepositoryReport { bytes, shared_bytes, counted, .. } = *report;
        let repository = report.repository.clone();
        Self { repository, bytes, shared_bytes, own_bytes: report.own_bytes(), counted }
    }

    fn row(&self) -> [String; 4] {
        [size(self.own_bytes), shared(self.shared_bytes), size(self.bytes), self.repository.clone()]
    }
}

/// The digits of a digest that are shown: as many as tell images apart.
const DIGITS: usize = 12;

impl Client {
    /// The repositories whose names begin like this, or the images of one. Each page is printed as soon as it is there.
    pub(crate) async fn list_stored(&self, what: Option<&str>, quiet: bool) -> anyhow::Result<()> {
        // `docker.io/` is the beginning of names, and no name.
        if let Some(name) = what.filter(|what| !what.ends_with('/'))
            && let Some(image) = self.stored_image(name).await?
        {
            return self.output.show(&image, |image| if quiet { image_names(image) } else { images(image) });
        }
        let mut list = self.output.list("repositories");
        let mut rows = Table::new(["REPOSITORY", "SIZE", "SHARED", "LAST USED", "TAGS"], width());
        let (mut is_empty, mut is_cut) = (true, false);
        let listed = self.each_page(what, |page| {
            is_cut |= page.cut;
            is_empty &= page.repositories.is_empty();
            list.add(&page.repositories, |page| match (quiet, page) {
                (true, page) => lines(page.iter().map(|one| &one.repository)),
                (false, []) => String::new(),
                (false, page) => rows.add(page.iter().map(row)),
            })
        });
        listed.await?;
        list.end(json!({ "cut": is_cut }), String::new)?;
        if is_empty && !quiet {
            eprintln!("nothing is stored{}", if what.is_some() { " that is called so" } else { " yet" });
        }
        note_cut(is_cut);
        Ok(())
    }

    /// One image, or all of a repository, down to the layers.
    pub(crate) async fn inspect(&self, name: &str, quiet: bool) -> anyhow::Result<()> {
        let Some(image) = self.stored_image(name).await? else {
            bail!("{name}: nothing is stored that is called so");
        };
        self.output.show(&image, |image| {
            if quiet {
                return image_names(image);
            }
            note_partial(image.partial);
            image.images.iter().map(|one| describe(image, one)).collect::<Vec<_>>().join("\n")
        })
    }

    /// What each repository takes, the largest first. All are read before the first is printed: little is held of each.
    pub(crate) async fn disk_usage(&self, prefix: Option<&str>, quiet: bool) -> anyhow::Result<()> {
        let (mut usage, mut is_cut) = (Vec::new(), false);
        let listed = self.each_page(prefix, |page| {
            is_cut |= page.cut;
            usage.extend(page.repositories.iter().map(Usage::of));
            Ok(())
        });
        listed.await?;
        note_cut(is_cut);
        usage.sort_by_key(|one| Reverse((one.own_bytes, one.bytes)));
        let own = usage.iter().map(|one| one.own_bytes).sum::<u64>();
        let mut list = self.output.list("repositories");
        let mut rows = Table::new(["OWN", "SHARED", "SIZE", "REPOSITORY"], width());
        for part in usage.chunks(1000) {
            list.add(part, |part| {
                if quiet {
                    return lines(part.iter().map(|one| &one.repository));
                }
                rows.add(part.iter().map(Usage::row))
            })?;
        }
        list.end(json!({ "own_bytes": own, "cut": is_cut }), || {
            if quiet {
                return String::new();
            }
            format!("\n{} in {} repositories, and once what they share\n", size(own), usage.len())
        })
    }

    /// Hands on each page of them.
    async fn each_page(
        &self,
        prefix: Option<&str>,
        mut take: impl FnMut(ImagesReport) -> anyhow::Result<()>,
    ) -> anyhow::Result<()> {
        let mut next = Some(query("images", &[("n", Some("1000")), ("prefix", prefix)]));
        while let Some(place) = next {
            let page: Option<ImagesReport>;
            (page, next) = self.page(&place).await?;
            take(page.context("that is no cache of this version")?)?;
        }
        Ok(())
    }

    /// All pages of an image. `None`: nothing of it is stored.
    async fn stored_image(&self, name: &str) -> anyhow::Result<Option<ImageReport>> {
        let (mut report, mut next) = self.page::<ImageReport>(&query("image", &[("name", Some(name))])).await?;
        while let (Some(report), Some(place)) = (&mut report, next) {
            let page: Option<ImageReport>;
            (page, next) = self.page(&place).await?;
            let Some(page) = page else { break };
            report.images.extend(page.images);
            report.partial |= page.partial;
        }
        Ok(report)
    }

    /// One page, and where the next one is. `None`: there is no such thing.
    async fn page<T: DeserializeOwned>(&self, place: &str) -> anyhow::Result<(Option<T>, Option<String>)> {
        let answer = self.send(self.http.get(format!("{}{place}", self.server))).await?;
        if answer.status() == StatusCode::NOT_FOUND {
            return Ok((None, None));
        }
        let link = answer.headers().get(LINK).and_then(|link| link.to_str().ok());
        let next = link.and_then(|link| link.strip_prefix('<')?.split_once('>')).map(|(next, _)| next.to_owned());
        // Logins go to this cache, and nowhere else.
        let next = next.filter(|next| next.starts_with("/_stopover/"));
        Ok((Some(Self::read(answer).await?), next))
    }
}

/// The path and query of a question.
fn query(of: &str, parameters: &[(&str, Option<&str>)]) -> String {
    // A plus stands for itself in the cache's queries, and a space is in no name.
    let given = parameters.iter().filter_map(|(name, value)| Some((name, (*value)?)));
    format!("/_stopover/{of}?{}", Serializer::new(String::new()).extend_pairs(given).finish())
}

/// Says beside the results that they may not be all.
fn note_cut(is_cut: bool) {
    if is_cut {
        eprintln!("there may be more: name the beginning of what you may pull");
    }
}

/// A line of the list.
fn row(repository: &RepositoryReport) -> [String; 5] {
    let RepositoryReport { tags, some_tags, .. } = repository;
    let mut named = some_tags.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ");
    if *tags > some_tags.len() as u64 {
        let _ = write!(named, " and {} more", tags - some_tags.len() as u64);
    }
    let used_at = day(Some(repository.used_at));
    [repository.repository.clone(), size(repository.bytes), shared(repository.shared_bytes), used_at, named]
}

fn image_names(image: &ImageReport) -> String {
    lines(image.images.iter().map(|one| name(&image.repository, one)))
}

/// A table of the images of a repository.
fn images(image: &ImageReport) -> String {
    let row = |one: &TaggedImage| {
        let platforms: BTreeSet<&str> = one
            .platforms
            .iter()
            .filter(|platform| platform.stored == Some(true))
            .filter_map(|platform| platform.platform.as_deref())
            .collect();
        let tag = one.tag.as_ref().map(ToString::to_string).unwrap_or_default();
        let platforms = platforms.into_iter().collect::<Vec<_>>().join(", ");
        let size = format!("{}{}", at_least(image.partial), size(one.bytes));
        [tag, short(&one.digest), size, day(one.used_at), expires(one, image.partial), platforms]
    };
    let head = ["TAG", "DIGEST", "SIZE", "LAST USED", "EXPIRES", "PLATFORMS"];
    let text = Table::new(head, width()).add(image.images.iter().map(row));
    note_partial(image.partial);
    format!("{}\n\n{text}", image.repository)
}

fn name(repository: &str, image: &TaggedImage) -> String {
    match &image.tag {
        Some(tag) => format!("{repository}:{tag}"),
        None => format!("{repository}@{}", image.digest),
    }
}

fn describe(ImageReport { repository, partial, .. }: &ImageReport, image: &TaggedImage) -> String {
    let mut text = format!("{}\n", name(repository, image));
    let mut line = |name: &str, value: String| {
        let _ = writeln!(text, "  {name:12}{value}");
    };
    let stored = if image.stored { "" } else { " (not stored)" };
    line("digest", format!("{}{stored}", image.digest));
    line("size", format!("{}{}, of which {} shared", at_least(*partial), size(image.bytes), size(image.shared_bytes)));
    line("last used", day(image.used_at));
    if image.checked_at.is_some() {
        line("checked", day(image.checked_at));
        line("fresh until", day(image.fresh_until));
    }
    line("expires", expires(image, *partial));
    for platform in &image.platforms {
        let PlatformReport { digest, stored, layers, .. } = platform;
        let known = platform.platform.as_deref().unwrap_or("one platform");
        let stored = match missing(*stored) {
            None => format!("last used {}", day(platform.used_at)),
            Some(missing) => missing.to_owned(),
        };
        let _ = writeln!(text, "\n  {known}  {digest}, {stored}");
        for layer in layers {
            let stored = missing(layer.stored).map_or_else(String::new, |missing| format!(", {missing}"));
            let shared = if layer.shared { ", shared" } else { "" };
            let _ = writeln!(text, "    {}  {}{shared}{stored}", layer.digest, size(layer.bytes));
        }
    }
    text
}

/// What there is to say of what is not known to be stored.
fn missing(stored: Option<bool>) -> Option<&'static str> {
    match stored {
        Some(true) => None,
        Some(false) => Some("not stored"),
        None => Some("not looked up"),
    }
}

fn at_least(is_partial: bool) -> &'static str {
    if is_partial { "at least " } else { "" }
}

/// Says beside the results that they are not all.
fn note_partial(is_partial: bool) {
    if is_partial {
        eprintln!("there is more in an image than is looked up: ask for a platform by its digest");
    }
}

fn short(digest: &stopover::oci::Digest) -> String {
    digest.hex().chars().take(DIGITS).collect()
}

fn size(bytes: u64) -> String {
    Bytes(bytes).to_string()
}

fn shared(bytes: Option<u64>) -> String {
    bytes.map_or_else(|| "not counted".into(), size)
}

fn day(at: Option<u64>) -> String {
    at.filter(|at| *at > 0).map_or_else(|| "not known".into(), |at| Timestamp(at).date().to_string())
}

fn expires(image: &TaggedImage, is_partial: bool) -> String {
    match image.expires_at {
        Some(at) => format!("{}{}", if is_partial { "not before " } else { "" }, day(Some(at))),
        None if image.pinned => "never: pinned".into(),
        None => "never".into(),
    }
}
