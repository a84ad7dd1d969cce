//! The view *Set up a client*: what `stopover setup` prints, for this endpoint.

use http::StatusCode;

use super::html::Html;
use super::{Asked, View};
use crate::config::DEFAULT_UPSTREAM;
use crate::http::access::origin;
use crate::setup::{Mirror, MirroredUpstream, Target};

const TITLE: &str = "Set up a client";

/// Scheme, host and port by which the browser has found this cache, or that are configured.
fn mirror(asked: &Asked<'_>) -> Option<Mirror> {
    let origin = origin(asked.cache, asked.parts)?;
    let (scheme, host) = origin.split_once("://")?;
    Some(Mirror { is_plain: scheme == "http", host: host.to_owned() })
}

pub(super) fn view(asked: &Asked<'_>) -> View {
    let target = asked.parameters.get("client").map(Target::named);
    if target == Some(None) {
        return View::failed(StatusCode::NOT_FOUND, TITLE, "No client is known that is called so.");
    }
    let Some(mirror) = mirror(asked) else {
        return View::failed(StatusCode::BAD_REQUEST, TITLE, "This cache does not know by which name it was asked.");
    };
    let config = &asked.cache.core.config;
    let is_shown = |upstream: &MirroredUpstream| asked.caller.sees_upstream(asked.cache, &upstream.id);
    let upstreams: Vec<MirroredUpstream> = MirroredUpstream::all(config).filter(is_shown).collect();
    let (title, mut html) = match target.flatten() {
        Some(target) => (format!("Set up {}", target.name()), of(target, &mirror, &upstreams)),
        None => (TITLE.to_owned(), choice(&mirror, &upstreams)),
    };
    if mirror.is_plain && asked.cache.access.config.url.is_none() && asked.url_elsewhere().is_some() {
        html.raw(
            "<p>Whether a proxy ends TLS in front of this cache is not seen from here. Where one does, the operator sets \
             <code>url</code> in <code>[access]</code> to the address that clients use, and it is shown here.</p>",
        );
    }
    View::new(title, html)
}

fn choice(mirror: &Mirror, upstreams: &[MirroredUpstream]) -> Html {
    let mut html = Html::default();
    html.raw("<p>Any image can be pulled by a name that begins with this cache, with nothing to configure:</p>");
    let is_default = |upstream: &MirroredUpstream| upstream.id.as_str() == DEFAULT_UPSTREAM;
    if upstreams.iter().any(is_default) {
        let name = format_args!("docker pull {}/{DEFAULT_UPSTREAM}/library/alpine:latest", mirror.host);
        html.copyable("A first pull", name);
    } else if let Some(MirroredUpstream { id, .. }) = upstreams.first() {
        html.copyable("A pull", format_args!("docker pull {}/{id}/NAME:TAG", mirror.host));
    }
    html.raw("<p>Or have a client ask this cache first, for images under the names that they have already:</p>");
    html.table(
        ["Client", "What is shown"],
        Target::ALL.map(|target| {
            let mut link = Html::default();
            link.link(&[("view", "setup"), ("client", target.name())], target.name());
            [link, Html::of(target.place())]
        }),
    );
    html
}

fn of(target: Target, mirror: &Mirror, upstreams: &[MirroredUpstream]) -> Html {
    let mut html = Html::default();
    html.raw("<p>")
        .text(target.place())
        .raw(". For <code>")
        .text(mirror)
        .raw(
            "</code>, the name by which this page was \
        found; for another one: <code>stopover setup ",
        )
        .text(target.name())
        .raw(" --server URL</code>.</p>");
    let (configuration, advice) = (target.configuration(mirror, upstreams), target.advice(mirror, upstreams));
    if configuration.is_empty() {
        html.raw("<p>There is nothing to configure.</p>");
    } else {
        html.copyable(format_args!("Configuration of {}", target.name()), configuration);
    }
    if !advice.is_empty() {
        html.raw("<h2>By hand</h2>").lines("By hand", advice);
    }
    html.raw("<p><a href=\"/?view=setup\">Other clients</a></p>");
    html
}
