//! What is in the cache, as `/_stopover/images` and `/_stopover/image` say it.

mod images;

use std::time::{Duration, Instant};

use futures_util::{StreamExt as _, stream};
use http::{Method, StatusCode};
use serde_json::{Value, json};
use stopover::oci::{Reference, Repository};
use stopover::pull::Want;
use stopover::records::{Holding, HoldingKey};
use stopover::values::time::Timestamp;
use support::aws::{EVERY_OPERATION, Service};
use support::guests::HERE;
use support::on_both_columns;
use support::world::{Answer, CREDENTIALS, Column, World};

on_both_columns!(
    what_is_stored_is_listed_at_once_and_counted_by_the_next_sweep,
    an_image_is_shown_with_its_platforms_layers_and_times,
    what_is_removed_is_listed_no_more,
    repositories_are_listed_page_by_page_by_upstream_and_by_prefix,
    a_caller_sees_what_it_may_pull_and_an_operator_all,
    a_page_of_the_list_costs_the_same_however_much_is_stored,
    what_a_caller_may_not_see_costs_few_reads,
    a_hit_writes_nothing_into_the_list,
);

const DAY: Duration = Duration::from_hours(24);

fn json(answer: &Answer) -> Value {
    assert_eq!(answer.status, StatusCode::OK, "{answer:?}");
    assert_eq!(answer.header("cache-control"), "no-store");
    serde_json::from_slice(answer.bytes()).expect("JSON")
}

async fn operate(world: &World, path: &str) -> Answer {
    world.operate(Method::GET, path, "").await
}

fn repository(text: &str) -> Repository {
    let (upstream, name) = text.split_once('/').expect("upstream/name");
    Repository { upstream: upstream.parse().unwrap(), name: name.parse().unwrap() }
}

async fn pull(world: &World, image: &str) {
    let (name, reference) = image.split_once(':').expect("a tag");
    let answer = world.get(&format!("/v2/test.local/{name}/manifests/{reference}")).await;
    assert_eq!(answer.status, StatusCode::OK, "{answer:?}");
    world.settled().await;
}

async fn what_is_stored_is_listed_at_once_and_counted_by_the_next_sweep(column: Column) {
    let world = World::on(column).await;
    assert_eq!(json(&world.get("/_stopover/images").await), json!({ "repositories": [], "cut": false }));
    let [one, two] = [("a/app", "1", &b"base"[..]), ("b", "2", b"base")]
        .map(|(name, tag, layer)| world.upstream.image(name, tag, &[layer, format!("of {name}").as_bytes()]));
    pull(&world, "a/app:1").await;
    // A tag that is asked for with HEAD is known.
    world.head("/v2/test.local/b/manifests/2").await;
    pull(&world, "b:2").await;
    let size =
        |image: &support::scripted::ScriptedImage| image.blobs.iter().map(|(_, bytes)| bytes.len()).sum::<usize>();
    let row = |name: &str, tag: &str, bytes: usize, shared: Option<usize>| {
        json!({
            "repository": format!("test.local/{name}"), "tags": 1, "some_tags": [tag], "bytes": bytes,
            "shared_bytes": shared, "used_at": world.clock.now(), "counted": shared.is_some(),
        })
    };
    let at_once = [row("a/app", "1", size(&one), None), row("b", "2", size(&two), None)];
    assert_eq!(json(&world.get("/_stopover/images").await)["repositories"], json!(at_once));
    world.cache.operate.sweep(false).await.unwrap();
    let counted = [row("a/app", "1", size(&one), Some(4)), row("b", "2", size(&two), Some(4))];
    assert_eq!(json(&world.get("/_stopover/images").await)["repositories"], json!(counted));
    let shown = json(&world.get("/_stopover/image?name=test.local/b:2").await);
    let layers = shown["images"][0]["platforms"][0]["layers"].as_array().unwrap().iter();
    assert_eq!(layers.map(|layer| layer["shared"] == true).collect::<Vec<_>>(), [false, true, false]);
    // Where nothing has changed nothing is written: the versions stay.
    let version = async || {
        world.cache.core.storage.ledger.get(&HoldingKey(&repository("test.local/b"))).await.unwrap().unwrap().version
    };
    let before = version().await;
    world.cache.operate.sweep(false).await.unwrap();
    assert_eq!(version().await, before);
}

async fn an_image_is_shown_with_its_platforms_layers_and_times(column: Column) {
    let world = World::plan(column).settings("keep = \"30d\"\npin = [\"test.local/pinned:*\"]").start().await;
    let (index, images) = world.upstream.index("a", "1", &["linux/amd64", "linux/arm64"]);
    let stored = &images[0];
    let since = world.clock.now();
    pull(&world, "a:1").await;
    world.get(&format!("/v2/test.local/a/manifests/{}", stored.digest)).await;
    world.settled().await;
    let shown = json(&world.get("/_stopover/image?name=test.local/a:1").await);
    let image = &shown["images"][0];
    assert_eq!((&shown["repository"], &shown["partial"]), (&json!("test.local/a"), &json!(false)));
    assert_eq!((&image["tag"], &image["digest"], &image["stored"]), (&json!("1"), &json!(index), &json!(true)));
    let bytes: usize = stored.blobs.iter().map(|(_, bytes)| bytes.len()).sum();
    assert_eq!((&image["bytes"], &image["shared_bytes"]), (&json!(bytes), &json!(0)));
    assert_eq!((&image["used_at"], &image["checked_at"]), (&json!(since), &json!(since)));
    assert!(image["fresh_until"].as_u64() > image["checked_at"].as_u64(), "{image}");
    assert_eq!(image["expires_at"], json!(since.plus(31 * DAY)));
    let layers: Vec<_> = stored
        .blobs
        .iter()
        .map(|(digest, bytes)| json!({ "digest": digest, "bytes": bytes.len(), "stored": true, "shared": false }))
        .collect();
    assert_eq!(
        image["platforms"],
        json!([
            { "platform": "linux/amd64", "digest": stored.digest, "stored": true, "used_at": since, "layers": layers },
            { "platform": "linux/arm64", "digest": images[1].digest, "stored": false, "used_at": null, "layers": [] },
        ])
    );
    // By digest, without a tag; all tags of a repository, page by page; and what two of them share.
    let by_digest = json(&world.get(&format!("/_stopover/image?name=test.local/a@{}", stored.digest)).await);
    assert_eq!((&by_digest["images"][0]["tag"], &by_digest["images"][0]["bytes"]), (&Value::Null, &json!(bytes)));
    for tag in ["2", "3"] {
        world.upstream.image("a", tag, &[b"base", tag.as_bytes()]);
        pull(&world, &format!("a:{tag}")).await;
    }
    assert_eq!(world.get("/v2/test.local/a/manifests/none").await.status, StatusCode::NOT_FOUND);
    let tags = |shown: &Value| {
        let images = shown["images"].as_array().unwrap().iter();
        images.map(|image| image["tag"].as_str().unwrap().to_owned()).collect::<Vec<_>>()
    };
    let all = json(&world.get("/_stopover/image?name=test.local/a").await);
    assert_eq!(tags(&all), ["1", "2", "3"]);
    assert_eq!(all["images"][1]["shared_bytes"], json!(4));
    let first = world.get("/_stopover/image?name=test.local/a&n=2").await;
    assert_eq!(tags(&json(&first)), ["1", "2"]);
    assert_eq!(first.header("link"), "</_stopover/image?name=test.local%2Fa&n=2&last=2>; rel=\"next\"");
    let second = world.get("/_stopover/image?name=test.local%2Fa&n=2&last=2").await;
    assert_eq!((tags(&json(&second)), second.header("link")), (vec!["3".to_owned()], ""));
    world.upstream.image("pinned", "1", &[b"base"]);
    pull(&world, "pinned:1").await;
    let pinned = json(&world.get("/_stopover/image?name=test.local/pinned:1").await);
    assert_eq!((&pinned["images"][0]["pinned"], &pinned["images"][0]["expires_at"]), (&json!(true), &Value::Null));
    for (name, status) in [
        ("test.local/none", StatusCode::NOT_FOUND),
        ("test.local/a:none", StatusCode::NOT_FOUND),
        ("test.local/a@sha256:00", StatusCode::BAD_REQUEST),
        ("", StatusCode::BAD_REQUEST),
        ("unknown.test/a", StatusCode::NOT_FOUND),
        ("test.local/a&n=0", StatusCode::BAD_REQUEST),
        ("test.local/a&last=..", StatusCode::BAD_REQUEST),
    ] {
        assert_eq!(world.get(&format!("/_stopover/image?name={name}")).await.status, status, "{name}");
    }
}

async fn what_is_removed_is_listed_no_more(column: Column) {
    let world = World::plan(column).settings("keep = \"30d\"").start().await;
    for (name, tag) in [("a", "1"), ("a", "2"), ("b", "1")] {
        world.upstream.image(name, tag, &[b"base", format!("{name}{tag}").as_bytes()]);
        pull(&world, &format!("{name}:{tag}")).await;
    }
    world.cache.operate.sweep(false).await.unwrap();
    let listed = async || {
        let listed = json(&world.get("/_stopover/images").await);
        let rows = listed["repositories"].as_array().unwrap().iter();
        rows.map(|row| format!("{} {} {}", row["repository"], row["some_tags"], row["shared_bytes"]))
            .collect::<Vec<_>>()
    };
    assert_eq!(listed().await, [r#""test.local/a" ["2","1"] 4"#, r#""test.local/b" ["1"] 4"#]);
    let body = json!({ "image": "test.local/a:1" }).to_string();
    assert_eq!(world.operate(Method::POST, "/_stopover/purge", body).await.status, StatusCode::OK);
    assert_eq!(listed().await, [r#""test.local/a" ["2"] 4"#, r#""test.local/b" ["1"] 4"#]);
    world.clock.advance(20 * DAY);
    pull(&world, "b:1").await;
    world.clock.advance(20 * DAY);
    world.cache.operate.sweep(false).await.unwrap();
    assert_eq!(listed().await, [r#""test.local/b" ["1"] 0"#]);
}

async fn put(world: &World, names: impl Iterator<Item = String>) {
    let put = names.map(|name| async move {
        let holding = Holding::nothing().with_tag(&"latest".parse().unwrap(), Timestamp(7)).with_bytes(7, Timestamp(7));
        let written = world.cache.core.storage.ledger.swap(&HoldingKey(&repository(&name)), None, &holding).await;
        written.unwrap().expect("it is new");
    });
    // As many as one commit takes.
    stream::iter(put).buffer_unordered(256).collect::<Vec<()>>().await;
}

fn names(answer: &Answer) -> Vec<String> {
    let listed = json(answer);
    let rows = listed["repositories"].as_array().unwrap().iter();
    rows.map(|row| row["repository"].as_str().unwrap().to_owned()).collect()
}

async fn repositories_are_listed_page_by_page_by_upstream_and_by_prefix(column: Column) {
    let world = World::on(column).await;
    let all =
        ["docker.io/library/a", "docker.io/library/b", "docker.io/other", "ghcr.io/a/b", "ghcr.io/a/c", "quay.io/a"];
    put(&world, all.iter().map(|&name| name.to_owned())).await;
    for (query, expected) in [
        ("", &all[..]),
        ("upstream=docker.io", &all[..3]),
        ("upstream=docker.io&prefix=library/", &all[..2]),
        ("prefix=ghcr.io/a/", &all[3..5]),
        ("prefix=ghcr.io%2fa%2Fb", &all[3..4]),
        ("prefix=nothing", &all[..0]),
        ("last=docker.io/other&n=2", &all[3..5]),
        ("other=ignored&n=", &all[..]),
    ] {
        assert_eq!(names(&operate(&world, &format!("/_stopover/images?{query}")).await), expected, "{query}");
    }
    let (mut place, mut found) = (Some("/_stopover/images?n=2&upstream=ghcr.io".to_owned()), Vec::new());
    let mut pages = 0;
    while let Some(next) = place {
        let page = operate(&world, &next).await;
        found.extend(names(&page));
        let link = page.header("link").strip_prefix('<').and_then(|link| link.strip_suffix(">; rel=\"next\""));
        (place, pages) = (link.map(str::to_owned), pages + 1);
    }
    assert_eq!(
        (&found[..], pages),
        (&all.map(str::to_owned)[3..5], 1),
        "a page that is full is the last if nothing follows"
    );
    let first = operate(&world, "/_stopover/images?n=1&prefix=ghcr.io/").await;
    let link = "</_stopover/images?prefix=ghcr.io%2F&n=1&last=ghcr.io%2Fa%2Fb>; rel=\"next\"";
    assert_eq!(first.header("link"), link);
    for wrong in ["n=0", "n=-1", "n=x", "prefix=A", "prefix=%1b[2J", "last=%22", "upstream=a/b"] {
        let refused = operate(&world, &format!("/_stopover/images?{wrong}")).await;
        assert_eq!(refused.status, StatusCode::BAD_REQUEST, "{wrong}");
        assert!(!refused.bytes().contains(&0x1b), "{refused:?}");
    }
}

async fn a_caller_sees_what_it_may_pull_and_an_operator_all(column: Column) {
    let access = "[access]\nanonymous = true\n[[policy]]\nwhat = [\"test.local/secret/*\"]\nallow = false\n";
    let rule = format!("[upstreams.\"private.test\"]\nurl = \"https://private.test\"\n{CREDENTIALS}");
    let world = World::plan(column).settings(access).upstream(&rule).start().await;
    for name in ["open", "secret/app"] {
        world.upstream.image(name, "1", &[name.as_bytes()]);
        let reference = Reference::Tag("1".parse().unwrap());
        world.cache.pull.manifest(&repository(&format!("test.local/{name}")), &reference, Want::GET).await.unwrap();
    }
    put(&world, ["gone.test/a", "private.test/a"].map(str::to_owned).into_iter()).await;
    let images = "/_stopover/images";
    assert_eq!(names(&world.get(images).await), ["test.local/open"]);
    let all = ["gone.test/a", "private.test/a", "test.local/open", "test.local/secret/app"];
    assert_eq!(names(&operate(&world, images).await), all);
    for (name, guest, operator) in
        [("open", StatusCode::OK, StatusCode::OK), ("secret/app", StatusCode::FORBIDDEN, StatusCode::OK)]
    {
        let path = format!("/_stopover/image?name=test.local/{name}:1");
        assert_eq!(world.get(&path).await.status, guest, "{name}");
        assert_eq!(operate(&world, &path).await.status, operator, "{name}");
    }
    // No name of what is hidden is where a page ends.
    put(&world, (0..40).map(|number| format!("test.local/secret/{number}"))).await;
    let page = world.get("/_stopover/images?n=1").await;
    assert_eq!((names(&page), page.header("link")), (vec!["test.local/open".to_owned()], ""));
}

/// More than some pages have.
const FEW: usize = 1_000;

async fn a_page_of_the_list_costs_the_same_however_much_is_stored(column: Column) {
    let world = World::on(column).await;
    // The stand-in takes minutes to write as many. What a query reads is what it returns, whatever else there is.
    let many = if column == Column::Aws { 4 * FEW } else { 100_000 };
    let name = |number: usize| format!("test.local/{:03}/app-{number:06}", number % 500);
    put(&world, (0..FEW).map(name)).await;
    let page = "/_stopover/images?n=100&last=test.local/250/a";
    let fastest = async || {
        let mut fastest = Duration::MAX;
        for _ in 0..20 {
            let begun = Instant::now();
            assert_eq!(names(&world.get(page).await).len(), 100);
            fastest = fastest.min(begun.elapsed());
        }
        fastest
    };
    let before = fastest().await;
    put(&world, (FEW..many).map(name)).await;
    let calls = || world.endpoints().map(|endpoints| endpoints.calls(Service::DynamoDb, EVERY_OPERATION));
    let asked = calls();
    let after = fastest().await;
    if let (Some(asked), Some(now)) = (asked, calls()) {
        assert_eq!(now - asked, 20, "one query for each page");
        let asked = calls().unwrap();
        assert_eq!(names(&operate(&world, "/_stopover/images?n=1000").await).len(), 1000);
        assert!(calls().unwrap() - asked <= 10);
    } else {
        assert!(after < 5 * before, "{after:?} with {many} repositories, {before:?} with {FEW}");
    }
}

/// The most calls of DynamoDB for a first page.
const MOST_CALLS: usize = 10;

async fn what_a_caller_may_not_see_costs_few_reads(column: Column) {
    let access = "[access]\nanonymous = true\n[[policy]]\nwhat = [\"test.local/secret/*\"]\nallow = false\n";
    let world = World::plan(column).settings(access).start().await;
    // The stand-in takes milliseconds for each. A query reads a thousand.
    let (hidden, is_cut) = if column == Column::Aws { (1_500, false) } else { (9_000, true) };
    put(&world, (0..hidden).map(|number| format!("test.local/secret/{number:06}"))).await;
    put(&world, ["test.local/zoo".to_owned()].into_iter()).await;
    let calls = || world.endpoints().map_or(0, |endpoints| endpoints.calls(Service::DynamoDb, EVERY_OPERATION));
    for path in ["/_stopover/images", "/_stopover/image?name=test.local/zoo", "/?view=images", "/", "/?view=risks"] {
        let before = calls();
        let answer = world.get_with(HERE, path, &[("accept", "text/html"), ("host", "127.0.0.1:5000")]).await;
        assert!(answer.status == StatusCode::OK || path.contains("zoo"), "{path}: {answer:?}");
        eprintln!("{column:?}, {path}: {} calls", calls() - before);
        assert!(calls() - before <= MOST_CALLS, "{path}: {} calls", calls() - before);
    }
    let page = json(&world.get("/_stopover/images").await);
    assert_eq!((page["cut"] == true, page["repositories"].as_array().unwrap().is_empty()), (is_cut, is_cut), "{page}");
    assert_eq!(names(&world.get("/_stopover/images?prefix=test.local/z").await), ["test.local/zoo"]);
}

async fn a_hit_writes_nothing_into_the_list(column: Column) {
    let world = World::on(column).await;
    world.upstream.image("a", "1", &[b"layer"]);
    pull(&world, "a:1").await;
    let written =
        async || world.cache.core.storage.ledger.get(&HoldingKey(&repository("test.local/a"))).await.unwrap().unwrap();
    let before = written().await;
    for _ in 0..3 {
        world.clock.advance(2 * DAY);
        pull(&world, "a:1").await;
        world.head("/v2/test.local/a/manifests/1").await;
    }
    assert_eq!(written().await, before);
}
