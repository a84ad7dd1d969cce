//! The page at `/`: read-only, without scripts. It shows a caller what `/_stopover/…` shows, and asks nothing else.

mod html;
mod images;

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

use super::access::Caller;
use super::audit::Record;
use super::images::Parameters;
use super::{NO_STORE, answer};
use crate::cache::Cache;
use crate::oci::{Algorithm, Digest};
use html::Html;

/// The style of all views. Colours follow the settings of the browser.
const STYLE: &str = include_str!("style.css");

/// Nothing but this style may be loaded, and nothing be sent anywhere else.
static POLICY: LazyLock<Option<HeaderValue>> = LazyLock::new(|| {
    let hash = BASE64_STANDARD.encode(Digest::of(Algorithm::Sha256, STYLE.as_bytes()).to_bytes());
    let policy = format!(
        "default-src 'none'; style-src 'sha256-{hash}'; form-action 'self'; base-uri 'none'; frame-ancestors 'none'"
    );
    HeaderValue::from_str(&policy).ok()
});

pub(super) fn routes() -> Router<Arc<Cache>> {
    Router::new().route("/", any(page))
}

/// Whether a person in a browser asks, by an address, a link or a form of the page itself. Another page may not: it would
/// see nothing, but need no answer to make the cache work.
fn is_of_person(parts: &Parts) -> bool {
    let accepts = parts.headers.get(ACCEPT).and_then(|accept| accept.to_str().ok()).unwrap_or_default();
    let site = parts.headers.get("sec-fetch-site").map_or("none", |site| site.to_str().unwrap_or_default());
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
    let caller = Caller::of(&cache, &parts, &mut record).await;
    record.operated(caller.as_ref().err());
    let (status, title, body) = match caller {
        Ok(caller) => images::view(&cache, &caller, &Parameters::of(&parts)).await,
        Err(error) => (error.answer().status, "No access".to_owned(), sentence(&error)),
    };
    let mut response = (status, [(CACHE_CONTROL, NO_STORE)], framed(&title, &body)).into_response();
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

/// The page around a view.
fn framed(title: &str, body: &Html) -> String {
    let mut page = Html::default();
    page.raw("<!doctype html>\n<html lang=\"en\"><head><meta charset=\"utf-8\"><title>").text(title);
    page.raw(" - Stopover</title><meta name=\"viewport\" content=\"width=device-width\"><style>").raw(STYLE);
    page.raw(
        "</style></head><body><header><strong>Stopover</strong><nav><a href=\"/\">Images</a></nav></header><main><h1>",
    );
    page.text(title).raw("</h1>").part(body).raw("</main></body></html>\n");
    page.finish()
}

/// A view that is a sentence.
fn sentence(said: impl std::fmt::Display) -> Html {
    let mut html = Html::default();
    html.raw("<p>").text(said).raw("</p>");
    html
}
