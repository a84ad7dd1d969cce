//! docs/reference/endpoints.md and headers.md name every route and every header of the code.

use std::collections::BTreeSet;

use anyhow::{Context as _, Result, ensure};
use stopover::journal::Metric;

use super::{Document, root, rows, sources};

/// The texts that stand in quotes right behind `begin`.
fn quoted<'a>(sources: &'a str, begin: &str) -> BTreeSet<&'a str> {
    sources
        .split(begin)
        .skip(1)
        .filter_map(|rest| rest.strip_prefix('"')?.split_once('"').map(|(text, _)| text))
        .collect()
}

#[test]
fn the_reference_of_endpoints_has_every_route() -> Result<()> {
    let sources = sources("src/http", "rs")?;
    let routes = quoted(&sources, ".route(");
    ensure!(routes.len() >= 8, "{routes:?}");
    let document = Document::read("docs/reference/endpoints.md")?;
    let spans = document.spans();
    for route in &routes {
        let path = route.replace('{', "<").replace('}', ">");
        ensure!(spans.iter().any(|span| span.ends_with(&path)), "{} has no {path}", document.name());
    }
    let first = |row: &Vec<String>| row[0].trim_matches('`').split(' ').next_back().unwrap_or_default().to_owned();
    for path in rows(&document.section("Operations")?).iter().map(first) {
        let route = path.replace('<', "{").replace('>', "}");
        ensure!(routes.contains(route.as_str()), "{} has {path}, which is no route", document.name());
    }
    Ok(())
}

#[test]
fn the_openapi_document_has_every_route_of_the_operations_and_this_version() -> Result<()> {
    let document: serde_json::Value =
        serde_yaml_ng::from_str(&std::fs::read_to_string(root().join("docs/reference/openapi.yaml"))?)?;
    let paths = document["paths"].as_object().context("no paths")?;
    let sources = sources("src/http", "rs")?;
    let is_operation = |route: &&str| route.starts_with("/_stopover/");
    let routes = quoted(&sources, ".route(").into_iter().filter(is_operation);
    ensure!(paths.keys().map(String::as_str).collect::<BTreeSet<_>>() == routes.collect(), "{:?}", paths.keys());
    ensure!(document["info"]["version"] == env!("CARGO_PKG_VERSION"), "{}", document["info"]);
    Ok(())
}

#[test]
fn the_reference_of_headers_has_every_header_of_our_own() -> Result<()> {
    let sources = sources("src/http", "rs")?;
    let headers = quoted(&sources, "HeaderName::from_static(");
    ensure!(headers.len() >= 6, "{headers:?}");
    let document = Document::read("docs/reference/headers.md")?;
    let spans: Vec<String> = document.spans().iter().map(|span| span.to_lowercase()).collect();
    for header in headers {
        ensure!(spans.iter().any(|span| span.split(':').next() == Some(header)), "{} has no {header}", document.name());
    }
    Ok(())
}

#[test]
fn the_reference_of_endpoints_has_every_metric() -> Result<()> {
    let sources = sources("src/operate", "rs")?;
    let written = sources.split('"').filter(|text| text.starts_with("stopover_")).map(str::to_owned);
    let counted = Metric::BY_UPSTREAM.map(|(metric, _)| format!("{}_total", metric.in_prometheus()));
    let names: BTreeSet<String> = written.chain(counted).collect();
    ensure!(names.len() > 15, "{names:?}");
    let document = Document::read("docs/reference/endpoints.md")?;
    let spans = document.spans();
    for name in names {
        ensure!(spans.contains(&name), "{} has no {name}", document.name());
    }
    Ok(())
}
