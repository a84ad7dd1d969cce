//! What `/_stopover/image` says of images without a tag, of more than is looked up, and of pins.

use std::collections::BTreeSet;

use http::StatusCode;
use serde_json::{Value, json};
use support::on_both_columns;
use support::world::{Column, World};

use super::pull;

on_both_columns!(
    an_image_that_was_pulled_by_digest_alone_is_shown,
    a_page_has_as_many_images_as_can_be_looked_up,
    what_is_not_looked_up_is_not_said_to_be_missing,
    a_last_page_without_an_image_is_empty_and_no_error,
    an_image_that_is_asked_for_by_digest_is_pinned_like_its_tag,
);

const BROWSER: [(&str, &str); 1] = [("accept", "text/html")];

async fn image(world: &World, query: &str) -> (Value, String) {
    let answer = world.get(&format!("/_stopover/image?name=test.local/{query}")).await;
    (super::json(&answer), answer.header("link").to_owned())
}

/// A member of each image.
fn each<'a>(shown: &'a Value, member: &str) -> Vec<&'a Value> {
    shown["images"].as_array().expect("a list").iter().map(|image| &image[member]).collect()
}

async fn pull_digest(world: &World, name: &str, digest: &str) {
    let answer = world.get(&format!("/v2/test.local/{name}/manifests/{digest}")).await;
    assert_eq!(answer.status, StatusCode::OK, "{answer:?}");
    world.settled().await;
}

async fn an_image_that_was_pulled_by_digest_alone_is_shown(column: Column) {
    let world = World::on(column).await;
    let mut digests = BTreeSet::new();
    for tag in ["1", "2", "3"] {
        let image = world.upstream.image("a", tag, &[tag.as_bytes()]);
        pull_digest(&world, "a", image.digest.as_str()).await;
        digests.insert(image.digest.to_string());
    }
    // A tag that upstream has not is remembered, and no image.
    assert_eq!(world.get("/v2/test.local/a/manifests/0").await.status, StatusCode::NOT_FOUND);
    let digests: Vec<Value> = digests.into_iter().map(Value::from).collect();
    let (shown, link) = image(&world, "a").await;
    assert_eq!((each(&shown, "digest"), each(&shown, "tag")), (digests.iter().collect(), vec![&Value::Null; 3]));
    assert_eq!((each(&shown, "stored"), link), (vec![&json!(true); 3], String::new()));
    let (first, link) = image(&world, "a&n=2").await;
    assert_eq!(each(&first, "digest"), digests[..2].iter().collect::<Vec<_>>());
    let last = digests[1].as_str().unwrap().replace(':', "%3A");
    assert_eq!(link, format!("</_stopover/image?name=test.local%2Fa&n=2&last={last}>; rel=\"next\""));
    let (second, link) = image(&world, &format!("a&n=2&last={last}")).await;
    assert_eq!((each(&second, "digest"), link), (vec![&digests[2]], String::new()));
    let page = world.send(http::Method::GET, "/?name=test.local/a", &BROWSER).await;
    let text = String::from_utf8_lossy(page.bytes());
    assert!(page.status == StatusCode::OK && text.contains(digests[2].as_str().unwrap()), "{text}");
    // Where there are tags they name what there is: most digests are those of parts.
    pull(&world, "a:2").await;
    assert_eq!(each(&image(&world, "a").await.0, "tag"), [&json!("2")]);
}

async fn a_page_has_as_many_images_as_can_be_looked_up(column: Column) {
    let world = World::on(column).await;
    let platforms: Vec<String> = (0..16).map(|number| format!("linux/p{number:02}")).collect();
    let platforms: Vec<&str> = platforms.iter().map(String::as_str).collect();
    let tags: Vec<String> = (0..10).map(|number| format!("v{number}")).collect();
    let mut stored = Vec::new();
    for tag in &tags {
        let (_, images) = world.upstream.index("a", tag, &platforms);
        pull(&world, &format!("a:{tag}")).await;
        stored.push(images[0].digest.to_string());
        pull_digest(&world, "a", images[0].digest.as_str()).await;
    }
    let (mut query, mut seen) = ("a".to_owned(), Vec::new());
    loop {
        let (shown, link) = image(&world, &query).await;
        assert_eq!(shown["partial"], false);
        for image in shown["images"].as_array().unwrap() {
            let parts = image["platforms"].as_array().unwrap();
            let there: Vec<_> =
                parts.iter().filter(|part| part["stored"] == true).map(|part| &part["digest"]).collect();
            assert_eq!(there, [&json!(stored[seen.len()])]);
            seen.push(image["tag"].as_str().unwrap().to_owned());
        }
        let Some((_, next)) = link.split_once("?name=test.local%2F") else { break };
        next.split_once('>').unwrap().0.clone_into(&mut query);
    }
    assert_eq!(seen, tags);
}

async fn what_is_not_looked_up_is_not_said_to_be_missing(column: Column) {
    let world = World::on(column).await;
    let platforms: Vec<String> = (0..160).map(|number| format!("linux/p{number:03}")).collect();
    let platforms: Vec<&str> = platforms.iter().map(String::as_str).collect();
    let (_, images) = world.upstream.index("a", "1", &platforms);
    pull(&world, "a:1").await;
    for image in &images[155..] {
        pull_digest(&world, "a", image.digest.as_str()).await;
    }
    let (shown, _) = image(&world, "a:1").await;
    let stored: Vec<_> = shown["images"][0]["platforms"].as_array().unwrap().iter().map(|one| &one["stored"]).collect();
    let count = |state: Value| stored.iter().filter(|stored| ***stored == state).count();
    assert_eq!((&shown["partial"], count(Value::Null)), (&json!(true), 10));
    for one in shown["images"][0]["platforms"].as_array().unwrap().iter().skip(155) {
        assert_ne!(one["stored"], false, "it is stored: {one}");
    }
    let page = world.send(http::Method::GET, "/?name=test.local/a:1", &BROWSER).await;
    let text = String::from_utf8_lossy(page.bytes());
    assert_eq!(
        (text.matches(", not stored<").count(), text.matches(", not looked up<").count()),
        (count(json!(false)), 10)
    );
    assert!(text.contains("at least"), "{text}");
    let (small, _) = image(&world, &format!("a@{}", images[159].digest)).await;
    assert_eq!((&small["partial"], each(&small, "stored")), (&json!(false), vec![&json!(true)]));
}

async fn a_last_page_without_an_image_is_empty_and_no_error(column: Column) {
    let world = World::on(column).await;
    world.upstream.image("a", "1", &[b"layer"]);
    pull(&world, "a:1").await;
    assert_eq!(world.get("/v2/test.local/a/manifests/2").await.status, StatusCode::NOT_FOUND);
    let (first, link) = image(&world, "a&n=1").await;
    assert_eq!((each(&first, "tag"), link.contains("&last=1>")), (vec![&json!("1")], true));
    let (last, link) = image(&world, "a&n=1&last=1").await;
    assert_eq!((&last["images"], link.as_str()), (&json!([]), ""));
    let page = world.send(http::Method::GET, "/?name=test.local/a&last=1", &BROWSER).await;
    assert_eq!(page.status, StatusCode::OK);
    // What is asked for by its name is there, or not.
    assert_eq!(world.get("/_stopover/image?name=test.local/a:2").await.status, StatusCode::NOT_FOUND);
}

async fn an_image_that_is_asked_for_by_digest_is_pinned_like_its_tag(column: Column) {
    let world = World::plan(column).settings("keep = \"30d\"\npin = [\"test.local/a:pinned*\"]").start().await;
    let (index, images) = world.upstream.index("a", "pinned", &["linux/amd64", "linux/arm64"]);
    pull(&world, "a:pinned").await;
    for image in &images {
        pull_digest(&world, "a", image.digest.as_str()).await;
    }
    let single = world.upstream.image("a", "pinned-too", &[b"layer"]);
    let other = world.upstream.image("a", "other", &[b"another layer"]);
    for tag in ["pinned-too", "other"] {
        pull(&world, &format!("a:{tag}")).await;
    }
    for (name, expected) in [
        (format!("a@{index}"), true),
        (format!("a@{}", images[1].digest), true),
        (format!("a@{}", single.digest), true),
        (format!("a@{}", other.digest), false),
        ("a:other".to_owned(), false),
    ] {
        let (shown, _) = image(&world, &name).await;
        assert_eq!((each(&shown, "pinned"), &shown["partial"]), (vec![&json!(expected)], &json!(false)), "{name}");
        assert_eq!(each(&shown, "expires_at")[0].is_null(), expected, "{name}");
    }
}
