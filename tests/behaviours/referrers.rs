//! Referrers: by the API where upstream has it, by tag where it has not, and never an empty list out of ignorance.

use std::time::Duration;

use futures_util::StreamExt as _;
use http::{Method, StatusCode};
use serde_json::{Value, json};
use stopover::oci::{Algorithm, Digest};
use stopover::records::Entry;
use support::on_both_columns;
use support::scripted::{Fault, Login, Scripted};
use support::world::{Answer, Column, PASSWORD, World};

on_both_columns!(
    referrers_are_upstreams_own_where_it_has_the_api,
    an_upstream_without_the_api_is_asked_by_tag,
    an_upstream_known_to_be_without_the_api_is_asked_by_tag_only,
    what_docker_looks_up_with_every_pull_is_remembered_as_missing,
    looking_up_the_referrers_of_an_image_that_is_here_is_no_miss,
    referrers_are_never_empty_because_upstream_is_in_trouble,
    the_referrers_of_an_unknown_repository_are_no_empty_list,
    what_is_no_index_of_referrers_is_not_taken_for_one,
    asking_for_the_referrers_of_nothing_is_a_miss_and_leaves_nothing_behind,
    credentials_that_are_refused_do_not_mean_that_there_are_no_referrers,
    what_is_no_index_does_not_replace_the_referrers_that_are_kept,
    a_registry_that_takes_the_api_for_a_name_is_asked_by_tag,
    a_tag_that_is_the_subject_itself_lists_no_referrers,
    a_list_of_referrers_that_is_null_is_empty,
    referrers_are_passed_on_as_upstream_wrote_them,
);

const INDEX: &str = "application/vnd.oci.image.index.v1+json";
const FRESH: Duration = Duration::from_secs(331);

fn subject() -> Digest {
    Digest::of(Algorithm::Sha256, b"subject")
}

fn path(subject: &Digest) -> String {
    format!("/v2/test.local/a/referrers/{subject}")
}

fn descriptor(of: &str, artifact_type: &str) -> Value {
    json!({
        "mediaType": "application/vnd.oci.image.manifest.v1+json", "size": 7, "artifactType": artifact_type,
        "digest": Digest::of(Algorithm::Sha256, of.as_bytes()), "annotations": { "of": of }, "data": "e30=",
        "x-unknown": [1, { "two": null }],
    })
}

fn index(descriptors: &[Value]) -> String {
    json!({ "schemaVersion": 2, "mediaType": INDEX, "manifests": descriptors }).to_string()
}

/// The descriptors of an answer with referrers.
fn manifests(answer: &Answer) -> Vec<Value> {
    assert_eq!((answer.status, answer.header("content-type")), (StatusCode::OK, INDEX), "{answer:?}");
    assert_eq!(answer.header("content-length"), answer.bytes().len().to_string());
    assert_eq!(answer.header("oci-namespace"), "test.local");
    let body: Value = serde_json::from_slice(answer.bytes()).expect("an index is JSON");
    assert_eq!((&body["schemaVersion"], &body["mediaType"]), (&json!(2), &json!(INDEX)));
    serde_json::from_value(body["manifests"].clone()).expect("an index has manifests")
}

async fn referrers_are_upstreams_own_where_it_has_the_api(column: Column) {
    let world = World::on(column).await;
    let (signature, attestation) = (descriptor("s", "application/x-signature"), descriptor("b", "application/x+sbom"));
    let own = format!("/v2/a/referrers/{}", subject());
    let link = format!("<{own}?page=2>; rel=\"next\"");
    world.upstream.page(&own, INDEX, &index(std::slice::from_ref(&signature)), Some(&link));
    world.upstream.page(&format!("{own}?page=2"), INDEX, &index(std::slice::from_ref(&attestation)), None);
    let answer = world.get(&path(&subject())).await;
    assert_eq!(manifests(&answer), [signature.clone(), attestation.clone()], "with every field");
    assert_eq!((answer.header("x-stopover"), answer.header("oci-filters-applied")), ("miss", ""));
    let head = world.head(&path(&subject())).await;
    assert_eq!((head.status, head.header("content-length")), (StatusCode::OK, answer.header("content-length")));
    assert!(head.bytes().is_empty());
    for (filter, expected) in [
        ("application/x-signature", vec![signature.clone()]),
        ("application%2Fx%2Bsbom", vec![attestation.clone()]),
        ("application/x+sbom", vec![attestation.clone()]),
        ("application/none", vec![]),
    ] {
        let answer = world.get(&format!("{}?artifactType={filter}", path(&subject()))).await;
        assert_eq!(manifests(&answer), expected, "{filter}");
        assert_eq!(answer.header("oci-filters-applied"), "artifactType");
        assert_eq!(answer.header("x-stopover"), "hit");
    }
    assert_eq!(world.upstream.requests().len(), 2, "two pages, once");
    assert_eq!(world.upstream.requests()[0].headers["accept"], INDEX);
    world.upstream.page(&own, INDEX, &index(&[]), None);
    world.clock.advance(FRESH);
    assert_eq!(manifests(&world.get(&path(&subject())).await).len(), 0, "what is referred to may change at any time");
    assert_eq!(world.upstream.count("/manifests/"), 0);
}

async fn an_upstream_without_the_api_is_asked_by_tag(column: Column) {
    let elsewhere = Scripted::start().unwrap();
    let text = || vec![("content-type", "text/plain; charset=utf-8".to_owned())];
    for fault in [
        Fault::Status(404, text(), "404 page not found\n".into()),
        Fault::Status(405, vec![], String::new()),
        Fault::Status(501, vec![], String::new()),
        Fault::Status(400, vec![], String::new()),
        Fault::Status(403, vec![], String::new()),
        Fault::Status(303, vec![("location", format!("{}/-/v2/", elsewhere.url()))], String::new()),
        Fault::Status(307, vec![("location", format!("{}/-/v2/", elsewhere.url()))], String::new()),
        Fault::Status(200, vec![("content-type", "text/html".into())], "<html></html>".into()),
    ] {
        let world = World::on(column).await;
        world.upstream.fault("/referrers/", fault.clone());
        let found = descriptor("s", "application/x-signature");
        for algorithm in [Algorithm::Sha256, Algorithm::Sha512] {
            let subject = Digest::of(algorithm, b"signed");
            let tag = format!("{}-{}", algorithm.name(), &subject.hex()[..64]);
            world.upstream.manifest("a", &tag, INDEX, index(std::slice::from_ref(&found)).as_bytes());
            for _ in 0..2 {
                assert_eq!(manifests(&world.get(&path(&subject)).await), std::slice::from_ref(&found), "{fault:?}");
            }
            let answer = world.get(&format!("{}?artifactType=other", path(&subject))).await;
            assert_eq!((manifests(&answer).len(), answer.header("oci-filters-applied")), (0, "artifactType"));
            assert_eq!(world.upstream.count(&format!("/referrers/{subject}")), 1, "{fault:?}");
            assert_eq!(world.upstream.count(&format!("HEAD /v2/a/manifests/{tag}")), 1);
        }
        assert_eq!(world.upstream.count("GET /v2/a/manifests/"), 1, "one index under two tags");
    }
    assert!(elsewhere.requests().is_empty(), "no redirect was followed");
}

async fn an_upstream_known_to_be_without_the_api_is_asked_by_tag_only(column: Column) {
    let hub = Scripted::start().unwrap();
    let table = format!("[upstreams.\"docker.io\"]\nurl = \"{}\"\nalternates = []", hub.url());
    let world = World::plan(column).settings(&table).start().await;
    let path = format!("/v2/library/nginx/referrers/{}", subject());
    for _ in 0..2 {
        assert_eq!(world.get(&path).await.status, StatusCode::OK);
    }
    let asked: Vec<String> = hub.requests().into_iter().map(|seen| seen.line).collect();
    assert_eq!(asked, [format!("HEAD /v2/library/nginx/manifests/sha256-{}", subject().hex())]);
}

async fn what_docker_looks_up_with_every_pull_is_remembered_as_missing(column: Column) {
    let world = World::on(column).await;
    let image = world.upstream.image("a", "1", &[b"layer"]);
    // Docker 29: the manifest, its referrers, and the tag that they would be in.
    let pull = async || {
        let digest = &image.digest;
        assert_eq!(world.get(&format!("/v2/test.local/a/manifests/{digest}")).await.status, StatusCode::OK);
        assert_eq!(manifests(&world.get(&path(digest)).await).len(), 0);
        let tag = format!("/v2/test.local/a/manifests/sha256-{}", digest.hex());
        assert_eq!(world.head(&tag).await.status, StatusCode::NOT_FOUND);
        assert_eq!(world.get(&tag).await.status, StatusCode::NOT_FOUND);
    };
    pull().await;
    world.settled().await;
    assert_eq!((world.upstream.count("/referrers/"), world.upstream.count("manifests/sha256-")), (1, 1));
    world.upstream.forget_requests();
    pull().await;
    assert!(world.upstream.requests().is_empty(), "{:?}", world.upstream.requests());
}

async fn looking_up_the_referrers_of_an_image_that_is_here_is_no_miss(column: Column) {
    let world = World::plan(column).settings("misses = 1").start().await;
    let images = ["1", "2", "3"].map(|tag| world.upstream.image("a", tag, &[tag.as_bytes()]));
    let get = async |path: String| world.get_from("192.0.2.1", &path).await.status;
    for image in &images {
        assert_eq!(get(format!("/v2/test.local/a/manifests/{}", image.digest)).await, StatusCode::OK);
        assert_eq!(get(path(&image.digest)).await, StatusCode::OK);
    }
    // Of what nobody has pulled it is a guess.
    assert_eq!(get(path(&subject())).await, StatusCode::OK);
    assert_eq!(get(path(&Digest::of(Algorithm::Sha256, b"another"))).await, StatusCode::TOO_MANY_REQUESTS);
}

async fn referrers_are_never_empty_because_upstream_is_in_trouble(column: Column) {
    for (status, own) in [(503, true), (503, false), (429, true), (429, false)] {
        let world = World::on(column).await;
        let found = descriptor("s", "application/x-signature");
        let known = Digest::of(Algorithm::Sha256, b"known");
        if own {
            let body = index(std::slice::from_ref(&found));
            world.upstream.page(&format!("/v2/a/referrers/{known}"), INDEX, &body, None);
        } else {
            let tag = format!("sha256-{}", known.hex());
            world.upstream.manifest("a", &tag, INDEX, index(std::slice::from_ref(&found)).as_bytes());
        }
        assert_eq!(manifests(&world.get(&path(&known)).await), std::slice::from_ref(&found));
        // Where there is no API, trouble with the tag alone is trouble too.
        world.upstream.fault(if own { "/v2/" } else { "/manifests/" }, Fault::Status(status, vec![], String::new()));
        world.clock.advance(FRESH);
        let answer = world.get(&path(&known)).await;
        assert_eq!((manifests(&answer), answer.header("x-stopover")), (vec![found], "stale"));
        assert!(answer.header("warning").starts_with("299"));
        let answer = world.get(&path(&subject())).await;
        assert_eq!(answer.status, status, "{answer:?}");
        assert!(!answer.header("retry-after").is_empty());
        world.upstream.heal();
        world.clock.advance(Duration::from_mins(2));
        assert_eq!(manifests(&world.get(&path(&subject())).await).len(), 0, "no failure is remembered");
    }
}

async fn the_referrers_of_an_unknown_repository_are_no_empty_list(column: Column) {
    let world = World::on(column).await;
    let unknown = "{\"errors\":[{\"code\":\"NAME_UNKNOWN\"}]}".to_owned();
    world.upstream.fault("/v2/a/", Fault::Status(404, vec![], unknown));
    // As Docker Hub says it.
    let hidden = World::on(column).await;
    hidden.upstream.require(Login::Bearer);
    hidden.upstream.fault("/v2/a/", Fault::Status(401, vec![], String::new()));
    for world in [&world, &hidden] {
        for method in [Method::GET, Method::HEAD, Method::GET] {
            let answer = world.send(method.clone(), &path(&subject()), &[]).await;
            assert_eq!(answer.status, StatusCode::NOT_FOUND, "{answer:?}");
            assert!(method == Method::HEAD || answer.error().0 == "NAME_UNKNOWN", "{answer:?}");
        }
    }
    assert_eq!(world.upstream.requests().len(), 2, "the tag decides, and it is remembered");
    let asked = hidden.upstream.count("/v2/a/");
    hidden.get(&path(&subject())).await;
    assert_eq!(hidden.upstream.count("/v2/a/"), asked);
}

async fn what_is_no_index_of_referrers_is_not_taken_for_one(column: Column) {
    let world = World::on(column).await;
    // An image under the tag that would list referrers.
    let tag = format!("sha256-{}", subject().hex());
    world.upstream.image("a", &tag, &[b"layer"]);
    assert_eq!(manifests(&world.get(&path(&subject())).await).len(), 0);
    let other = Digest::of(Algorithm::Sha256, b"other");
    for body in ["", "[]", "{}", "{\"manifests\":{}}", "{\"manifests\":[1]}"] {
        world.upstream.page(&format!("/v2/a/referrers/{other}"), INDEX, body, None);
        let answer = world.get(&path(&other)).await;
        assert_eq!(answer.status, StatusCode::BAD_GATEWAY, "{body}");
    }
}

async fn asking_for_the_referrers_of_nothing_is_a_miss_and_leaves_nothing_behind(column: Column) {
    let world = World::plan(column).settings("misses = 2").start().await;
    let subjects = [b"1", b"2", b"3"].map(|bytes| Digest::of(Algorithm::Sha256, bytes));
    for (subject, status) in subjects.iter().zip([StatusCode::OK, StatusCode::OK, StatusCode::TOO_MANY_REQUESTS]) {
        world.upstream.page(&format!("/v2/a/referrers/{subject}"), INDEX, &index(&[]), None);
        assert_eq!(world.get_from("192.0.2.1", &path(subject)).await.status, status);
    }
    assert_eq!(world.get_from("192.0.2.1", &path(&subjects[0])).await.header("x-stopover"), "hit", "no miss");
    world.clock.advance(FRESH);
    world.cache.operate.sweep(false).await.unwrap();
    let entries: Vec<_> =
        world.cache.core.storage.ledger.entries().map(|entry| entry.expect("it can be read")).collect().await;
    assert!(!entries.iter().any(|entry| matches!(entry, Entry::Listing { .. })), "{entries:?}");
}

async fn credentials_that_are_refused_do_not_mean_that_there_are_no_referrers(column: Column) {
    let login = "public = true\ncredentials = { username = \"me\", password_env = \"TEST_SECRET\" }";
    let world = World::plan(column).upstream(login).start().await;
    world.upstream.require(Login::Basic("me".into(), PASSWORD.into()));
    let signed = index(&[descriptor("s", "application/x-signature")]);
    world.upstream.page(&format!("/v2/a/referrers/{}", subject()), INDEX, &signed, None);
    let get = async || world.get(&path(&subject())).await;
    assert_eq!(manifests(&get().await).len(), 1);
    world.clock.advance(FRESH);
    world.upstream.fault("/referrers/", Fault::Status(403, vec![], String::new()));
    let answer = get().await;
    assert_eq!((answer.status, answer.error().0.as_str()), (StatusCode::FORBIDDEN, "DENIED"));
}

async fn what_is_no_index_does_not_replace_the_referrers_that_are_kept(column: Column) {
    let html = vec![("content-type", "text/html".to_owned())];
    let page = |link: &str| {
        let headers = vec![("content-type", INDEX.to_owned()), ("link", link.to_owned())];
        Fault::Status(200, headers, index(&[]))
    };
    // Neither on the first page nor on a later one; there 404 is no way to say that there is no API either.
    for fault in [
        Fault::Status(200, html.clone(), "<html></html>".into()),
        page("</v2/a/referrers-none>; rel=\"next\""),
        page("</v2/a/html>; rel=\"next\""),
    ] {
        let world = World::on(column).await;
        world.upstream.page("/v2/a/html", "text/html", "<html></html>", None);
        let found = descriptor("s", "application/x-signature");
        let own = format!("/v2/a/referrers/{}", subject());
        world.upstream.page(&own, INDEX, &index(std::slice::from_ref(&found)), None);
        assert_eq!(manifests(&world.get(&path(&subject())).await), std::slice::from_ref(&found));
        world.upstream.fault("/referrers/", fault.clone());
        for _ in 0..2 {
            world.clock.advance(FRESH);
            let answer = world.get(&path(&subject())).await;
            assert_eq!(manifests(&answer), std::slice::from_ref(&found), "{fault:?}");
            assert_eq!(answer.header("x-stopover"), "stale", "{fault:?}");
        }
        world.upstream.heal();
        assert_eq!(world.get(&path(&subject())).await.header("x-stopover"), "miss", "{fault:?}");
    }
}

async fn a_registry_that_takes_the_api_for_a_name_is_asked_by_tag(column: Column) {
    let world = World::plan(column).settings("misses = 1").start().await;
    let unknown = "{\"errors\":[{\"code\":\"NAME_UNKNOWN\"}]}".to_owned();
    world.upstream.fault("/referrers/", Fault::Status(404, vec![], unknown));
    let found = descriptor("s", "application/x-signature");
    let tag = format!("sha256-{}", subject().hex());
    world.upstream.manifest("a", &tag, INDEX, index(std::slice::from_ref(&found)).as_bytes());
    let image = world.upstream.image("a", "1", &[b"layer"]);
    for (subject, expected) in [(subject(), vec![found]), (Digest::of(Algorithm::Sha256, b"unsigned"), vec![])] {
        for _ in 0..3 {
            assert_eq!(manifests(&world.get_from("192.0.2.1", &path(&subject)).await), expected);
        }
        assert_eq!(world.upstream.count(&format!("/referrers/{subject}")), 1);
        assert_eq!(world.upstream.count(&format!("/manifests/sha256-{}", subject.hex())), 1);
    }
    assert_eq!(world.get("/v2/test.local/a/manifests/1").await.bytes(), &image.manifest, "the repository is there");
}

async fn a_tag_that_is_the_subject_itself_lists_no_referrers(column: Column) {
    let world = World::on(column).await;
    let (subject, _) = world.upstream.index("a", "1", &["linux/amd64", "linux/arm64"]);
    let manifest = world.get("/v2/test.local/a/manifests/1").await.bytes().clone();
    // As registry.gitlab.com answers: a tag like a digest is taken for the digest.
    let tag = format!("sha256-{}", subject.hex());
    world.upstream.manifest("a", &tag, INDEX, &manifest);
    world.upstream.forget_requests();
    for path in [path(&subject), format!("{}?artifactType=application/x", path(&subject)), path(&subject)] {
        assert_eq!(manifests(&world.get(&path).await).len(), 0);
    }
    assert_eq!(world.upstream.count("GET /v2/a/manifests/"), 0, "HEAD says which manifest it is");
    // Also where it is asked for by GET only.
    let unstored = Digest::of(Algorithm::Sha256, index(&[descriptor("s", "x")]).as_bytes());
    let tag = format!("sha256-{}", unstored.hex());
    world.upstream.manifest("a", &tag, INDEX, index(&[descriptor("s", "x")]).as_bytes());
    world.upstream.fault("HEAD", Fault::Status(405, vec![], String::new()));
    assert_eq!(manifests(&world.get(&path(&unstored)).await).len(), 0);
}

async fn a_list_of_referrers_that_is_null_is_empty(column: Column) {
    let world = World::on(column).await;
    let null = json!({ "schemaVersion": 2, "mediaType": INDEX, "manifests": null }).to_string();
    let [own, by_tag] = ["own", "by tag"].map(|text| Digest::of(Algorithm::Sha256, text.as_bytes()));
    world.upstream.page(&format!("/v2/a/referrers/{own}"), INDEX, &null, None);
    world.upstream.manifest("a", &format!("sha256-{}", by_tag.hex()), INDEX, null.as_bytes());
    for subject in [own, by_tag] {
        for query in ["", "?artifactType=application/x"] {
            assert_eq!(manifests(&world.get(&format!("{}{query}", path(&subject))).await).len(), 0);
        }
    }
}

async fn referrers_are_passed_on_as_upstream_wrote_them(column: Column) {
    let world = World::on(column).await;
    let digest = Digest::of(Algorithm::Sha256, b"s");
    // What a parser of JSON would write in another way, refuse, or take for the end.
    let odd = format!(
        "{{ \"digest\" : \"{digest}\", \"size\":1, \"artifactType\":\"a\\u002fb\", \"n\": 1.50e+3000, \"x\": \"\\ud800]\" }}"
    );
    let body = format!("{{\"manifests\" : [{{}},\n {odd} ], \"schemaVersion\":2}}");
    let [own, by_tag] = ["own", "by tag"].map(|text| Digest::of(Algorithm::Sha256, text.as_bytes()));
    world.upstream.page(&format!("/v2/a/referrers/{own}"), INDEX, &body, None);
    world.upstream.manifest("a", &format!("sha256-{}", by_tag.hex()), INDEX, body.as_bytes());
    for subject in [own, by_tag] {
        for (query, array) in [("", format!("[{{}},\n {odd} ]")), ("?artifactType=a%2Fb", format!("[{odd}]"))] {
            let expected = format!("{{\"schemaVersion\":2,\"mediaType\":\"{INDEX}\",\"manifests\":{array}}}");
            for _ in 0..2 {
                let answer = world.get(&format!("{}{query}", path(&subject))).await;
                assert_eq!((answer.status, answer.bytes().as_ref()), (StatusCode::OK, expected.as_bytes()));
            }
        }
    }
}
