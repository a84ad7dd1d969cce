//! The page at `/`: for people in a browser, and nothing new for anything else.

use http::{Method, StatusCode};
use serde_json::json;
use stopover::oci::MediaType;
use support::guests::{HERE, basic, robot};
use support::on_both_columns;
use support::scripted::Scripted;
use support::world::{Answer, Column, World};

on_both_columns!(
    a_browser_sees_what_is_stored_without_a_script,
    what_is_no_browser_gets_at_the_root_what_it_got_before,
    what_upstream_wrote_is_no_markup,
    a_browser_logs_in_with_the_name_and_the_secret_of_a_robot,
);

const BROWSER: (&str, &str) = ("accept", "text/html,application/xhtml+xml,*/*;q=0.8");

async fn view(world: &World, path: &str) -> (Answer, String) {
    let answer = world.send(Method::GET, path, &[BROWSER, ("sec-fetch-site", "none")]).await;
    assert_eq!(answer.header("content-type"), "text/html; charset=utf-8", "{answer:?}");
    assert_eq!((answer.header("cache-control"), answer.header("referrer-policy")), ("no-store", "no-referrer"));
    let policy = answer.header("content-security-policy");
    assert!(policy.starts_with("default-src 'none'; style-src 'sha256-") && !policy.contains("unsafe"), "{policy}");
    let text = String::from_utf8(answer.bytes().to_vec()).expect("UTF-8");
    assert!(!text.contains("<script") && !text.contains("style=") && !text.contains("src="), "{text}");
    (answer, text)
}

async fn pull(world: &World, path: &str) {
    assert_eq!(world.get(&format!("/v2/test.local/{path}")).await.status, StatusCode::OK);
    world.settled().await;
}

async fn a_browser_sees_what_is_stored_without_a_script(column: Column) {
    let world = World::on(column).await;
    let (answer, text) = view(&world, "/").await;
    assert!(answer.status == StatusCode::OK && text.contains("Nothing is stored"), "{text}");
    let image = world.upstream.image("team/app", "v1", &[b"layer"]);
    pull(&world, "team/app/manifests/v1").await;
    let (_, text) = view(&world, "/").await;
    assert!(text.contains("<a href=\"/?name=test.local%2Fteam%2Fapp\">test.local/team/app</a>"), "{text}");
    let (_, text) = view(&world, "/?name=test.local%2Fteam%2Fapp").await;
    for (digest, _) in &image.blobs {
        assert!(text.contains(digest.as_str()), "{text}");
    }
    assert!(view(&world, "/?prefix=other").await.1.contains("Nothing is stored"));
    for (path, status) in [("/?n=0", StatusCode::BAD_REQUEST), ("/?name=test.local/none", StatusCode::NOT_FOUND)] {
        assert_eq!(view(&world, path).await.0.status, status, "{path}");
    }
}

async fn what_is_no_browser_gets_at_the_root_what_it_got_before(column: Column) {
    let world = World::on(column).await;
    for (method, headers, status) in [
        (Method::GET, &[][..], StatusCode::NOT_FOUND),
        (Method::GET, &[("accept", "*/*")], StatusCode::NOT_FOUND),
        (Method::HEAD, &[BROWSER], StatusCode::NOT_FOUND),
        (Method::POST, &[BROWSER], StatusCode::NOT_FOUND),
        (Method::GET, &[BROWSER, ("sec-fetch-site", "cross-site")], StatusCode::FORBIDDEN),
        (Method::GET, &[BROWSER, ("origin", "https://evil.test")], StatusCode::FORBIDDEN),
    ] {
        let answer = world.send(method.clone(), "/", headers).await;
        assert_eq!(
            (answer.status, answer.header("content-type")),
            (status, "application/json"),
            "{method} {headers:?}"
        );
    }
}

/// An index whose platform is markup.
fn hostile(upstream: &Scripted) {
    let markup = "<script>alert('1')</script>\"onload=x \u{202e}";
    let platform = json!({ "os": markup, "architecture": markup });
    let image = upstream.image("a", "part", &[b"layer"]);
    let child = json!({ "digest": image.digest, "size": image.manifest.len(), "platform": platform });
    let index = json!({ "schemaVersion": 2, "manifests": [child], "annotations": { markup: markup } }).to_string();
    upstream.manifest("a", "v1", MediaType::OciIndex.as_str(), index.as_bytes());
}

async fn what_upstream_wrote_is_no_markup(column: Column) {
    let world = World::on(column).await;
    hostile(&world.upstream);
    pull(&world, "a/manifests/v1").await;
    let (_, text) = view(&world, "/?name=test.local/a").await;
    assert!(text.contains("&lt;script&gt;") && !text.contains('\u{202e}'), "{text}");
    let (_, text) = view(&world, "/?prefix=%22%3E%3Cscript%3E").await;
    assert!(text.contains("is the beginning of upstream/name"), "{text}");
}

async fn a_browser_logs_in_with_the_name_and_the_secret_of_a_robot(column: Column) {
    let access = "[access]\nsigning_keys = { env = \"TEST_KEYS\" }\nrobots = true\n";
    let world = World::plan(column).settings(access).start().await;
    let (refused, _) = view(&world, "/").await;
    assert_eq!(refused.status, StatusCode::UNAUTHORIZED);
    assert_eq!(refused.header("www-authenticate"), "Basic realm=\"stopover\", charset=\"UTF-8\"");
    let login = basic("ci", &robot(&world, "ci").await);
    let answer = world.get_with(HERE, "/", &[BROWSER, ("authorization", &login)]).await;
    assert_eq!(answer.status, StatusCode::OK, "{answer:?}");
}
