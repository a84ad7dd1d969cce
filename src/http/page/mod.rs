//! The page at `/`: read-only, and whole without scripts. It shows a caller what `/_stopover/…` shows, and asks nothing else.

mod chart;
mod fills;
mod html;
mod images;
mod now;
mod risks;
mod setup;

use std::sync::{Arc, LazyLock};

use axum::Router;
use axum::body::Body;
use axum::extract::State;
use axum::response::{IntoResponse as _, Response};
use axum::routing::any;
use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use http::header::{
    ACCEPT, CACHE_CONTROL, CONTENT_SECURITY_POLICY, CONTENT_TYPE, HeaderValue, ORIGIN, REFERRER_POLICY,
    WWW_AUTHENTICATE, X_CONTENT_TYPE_OPTIONS,
};
use http::request::Parts;
use http::{Method, StatusCode};
use url::Host;

use super::access::{Caller, origin};
use super::audit::Record;
use super::images::Parameters;
use super::{FETCH_SITE, NO_STORE, answer};
use crate::cache::Cache;
use crate::errors::AccessError;
use crate::identity::Principal;
use crate::oci::{Algorithm, Digest};
use crate::values::time::Timestamp;
use html::Html;

/// The style of all views. Colours follow the settings of the browser.
const STYLE: &str = include_str!("style.css");
/// What moves what is live, and copies. The page says the same without it.
const SCRIPT: &str = include_str!("page.js");
/// The sign of the page in the tab of a browser, which would ask for one elsewhere.
const ICON: &str = "data:image/svg+xml,%3Csvg xmlns='http://www.w3.org/2000/svg' viewBox='0 0 16 16'%3E%3Crect width='16' \
                    height='16' rx='4' fill='%230b6e6e'/%3E%3Cpath d='M4 5h8M4 8h8M4 11h5' stroke='white' stroke-width='1.6' \
                    stroke-linecap='round'/%3E%3C/svg%3E";

/// Only this style, this script, and what the script asks of this host.
static POLICY: LazyLock<Option<HeaderValue>> = LazyLock::new(|| {
    let [style, script] = [STYLE, SCRIPT].map(|text| {
        let digest = Digest::of(Algorithm::Sha256, text.as_bytes());
        format!("'sha256-{}'", BASE64_STANDARD.encode(digest.to_bytes()))
    });
    let policy = format!(
        "default-src 'none'; style-src {style}; script-src {script}; connect-src 'self'; img-src data:; \
         form-action 'self'; base-uri 'none'; frame-ancestors 'none'"
    );
    HeaderValue::from_str(&policy).ok()
});

/// The views, in the order of the navigation: each by its name in `view`, and by its title.
const VIEWS: [(&str, &str); 5] =
    [("now", "Now"), ("images", "Images"), ("fills", "Fills"), ("risks", "Risks"), ("setup", "Set up a client")];

/// Who asks, and for what.
struct Asked<'a> {
    cache: &'a Cache,
    caller: &'a Caller,
    parameters: &'a Parameters,
    parts: &'a Parts,
}

impl Asked<'_> {
    /// The URL of this cache for clients on other machines. `None`: the browser is on this one.
    fn url_elsewhere(&self) -> Option<String> {
        let origin = origin(self.cache, self.parts)?;
        let url = url::Url::parse(&origin).ok()?;
        let is_here = match url.host()? {
            Host::Domain(name) => name == "localhost",
            Host::Ipv4(address) => address.is_loopback(),
            Host::Ipv6(address) => address.is_loopback(),
        };
        (!is_here).then_some(origin)
    }
}

/// What is shown.
struct View {
    status: StatusCode,
    title: String,
    body: Html,
    /// After how many seconds it is another one: what is live has the script ask again.
    every: Option<&'static str>,
}

impl View {
    fn new(title: impl Into<String>, body: Html) -> Self {
        Self { status: StatusCode::OK, title: title.into(), body, every: None }
    }

    /// A view that is a sentence.
    fn failed(status: StatusCode, title: &str, said: impl std::fmt::Display) -> Self {
        Self { status, ..Self::new(title, sentence(said)) }
    }
}

pub(super) fn routes() -> Router<Arc<Cache>> {
    Router::new().route("/", any(page))
}

/// Whether a person in a browser asks, by an address, a link, a form or the script of the page itself. Another page may
/// not: it would see nothing, but need no answer to make the cache work.
fn is_of_person(parts: &Parts) -> bool {
    let accepts = parts.headers.get(ACCEPT).and_then(|accept| accept.to_str().ok()).unwrap_or_default();
    let site = parts.headers.get(FETCH_SITE).map_or("none", |site| site.to_str().unwrap_or_default());
    parts.method == Method::GET
        && accepts.split(',').any(|one| one.split(';').next().is_some_and(|kind| kind.trim() == "text/html"))
        && matches!(site, "none" | "same-origin")
        && !parts.headers.contains_key(ORIGIN)
}

async fn page(State(cache): State<Arc<Cache>>, request: http::Request<Body>) -> Response {
    let (parts, body) = request.into_parts();
    if !is_of_person(&parts) {
        return answer(State(cache), http::Request::from_parts(parts, body)).await;
    }
    let mut record = Record::of_operation(&parts);
    let parameters = Parameters::of(&parts);
    let caller = Caller::of(&cache, &parts, &mut record).await;
    // Where anonymous callers are let in, a browser is asked for a login only if that is wanted.
    let nameless = |caller: &Caller| !caller.is_operator && caller.principal == Principal::Anonymous;
    let lets_robots_in = cache.access.lets_robots_in();
    let caller = caller.and_then(|caller| match parameters.get("login") {
        Some(_) if lets_robots_in && nameless(&caller) => Err(AccessError::NoCredentials.into()),
        _ => Ok(caller),
    });
    record.operated(caller.as_ref().err());
    let (name, view) = match &caller {
        Ok(caller) => {
            let asked = Asked { cache: &cache, caller, parameters: &parameters, parts: &parts };
            let name =
                parameters.get("view").unwrap_or(if parameters.get("name").is_some() { "images" } else { "now" });
            (name, view(name, &asked).await)
        }
        Err(error) => ("", View::failed(error.answer().status, "No access", error)),
    };
    let status = view.status;
    let mut footer = Html::default();
    if let Ok(caller) = &caller {
        sign(&mut footer, caller, lets_robots_in && nameless(caller));
    }
    let html = framed(name, &view, &footer);
    let mut response = (status, [(CACHE_CONTROL, NO_STORE)], html).into_response();
    let headers = response.headers_mut();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static("text/html; charset=utf-8"));
    headers.insert(X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
    headers.insert(REFERRER_POLICY, HeaderValue::from_static("no-referrer"));
    headers.extend(POLICY.clone().map(|policy| (CONTENT_SECURITY_POLICY, policy)));
    if status == StatusCode::UNAUTHORIZED {
        // Browsers know no tokens: they ask for the name and the secret of a robot.
        headers.insert(WWW_AUTHENTICATE, HeaderValue::from_static("Basic realm=\"stopover\", charset=\"UTF-8\""));
    }
    response
}

async fn view(name: &str, asked: &Asked<'_>) -> View {
    match name {
        "now" => now::view(asked).await,
        "images" => images::view(asked).await,
        "fills" => fills::view(asked).await,
        "risks" => risks::view(asked).await,
        "setup" => setup::view(asked),
        _ => View::failed(StatusCode::NOT_FOUND, "No such view", "This page has no view that is called so."),
    }
}

/// The page around a view.
fn framed(name: &str, View { title, body, every, .. }: &View, footer: &Html) -> String {
    let mut page = Html::default();
    page.raw("<!doctype html>\n<html lang=\"en\"><head><meta charset=\"utf-8\"><title>").text(title);
    page.raw(" - Stopover</title><meta name=\"viewport\" content=\"width=device-width, initial-scale=1\"><style>");
    page.raw(STYLE).raw("</style><link rel=\"icon\" href=\"").raw(ICON).raw("\"></head><body>");
    page.raw("<a class=\"skip\" href=\"#main\">To the content</a>");
    page.raw("<header><strong>Stopover</strong><nav aria-label=\"Views\">");
    for (view, title) in VIEWS {
        page.raw(if view == name { "<a aria-current=\"page\" href=\"/?view=" } else { "<a href=\"/?view=" });
        page.raw(view).raw("\">").raw(title).raw("</a>");
    }
    page.raw("</nav></header><main id=\"main\" tabindex=\"-1\"><h1>").text(title).raw("</h1><div");
    if let Some(seconds) = every {
        page.raw(" id=\"live\" data-every=\"").raw(seconds).raw("\"");
    }
    page.raw(">").part(body).raw("</div></main>");
    page.part(footer);
    // In the page, which is whole with one request.
    page.raw("<script>").raw(SCRIPT).raw("</script></body></html>\n");
    page.finish()
}

/// Says as whom the caller sees it, and where others log in.
fn sign(html: &mut Html, caller: &Caller, may_log_in: bool) {
    html.raw("<footer>").text(&caller.principal);
    html.raw(if caller.is_operator {
        ", an operator: sees everything."
    } else {
        ": sees what it may pull; what upstreams say of failures is for operators."
    });
    if may_log_in {
        html.raw(" <a href=\"/?login=yes\">Log in</a> with the name and the secret of a robot.");
    }
    html.raw("</footer>");
}

/// A paragraph.
fn sentence(said: impl std::fmt::Display) -> Html {
    let mut html = Html::default();
    html.raw("<p>").text(said).raw("</p>");
    html
}

/// A time for people to read, to the minute.
fn date(at: u64) -> String {
    let second = Timestamp(at).date().to_string();
    format!("{} UTC", second.replace('T', " ").chars().take(16).collect::<String>())
}
