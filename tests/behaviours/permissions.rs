//! What is stored is shown only as long as upstream shows it. Each test is the attack, or what must not get worse for it.

use std::time::Duration;

use futures_util::future::join_all;
use http::{Method, StatusCode};
use stopover::config::Cold;
use support::on_both_columns;
use support::scripted::{Fault, ScriptedImage};
use support::world::{Answer, Column, World};

on_both_columns!(
    permission_that_is_lost_upstream_is_lost_here_too,
    what_upstream_does_not_have_any_more_is_not_shown_and_the_rest_is,
    a_refusal_counts_at_once_for_all_of_a_repository,
    permission_outlasts_an_outage_as_long_as_stale,
    a_thousand_pulls_after_permission_has_ended_cost_one_question,
    what_is_public_is_never_asked_about_again,
    whoever_keeps_asking_for_what_is_not_shown_any_more_pays_for_it,
    what_is_shown_is_no_miss_however_much_of_it_is_due_at_once,
    a_private_repository_that_is_gone_is_asked_for_nothing_more,
    a_permission_that_takes_a_whole_manifest_to_show_is_a_pull,
);

pub(super) const HERE: &str = "10.1.2.3";
pub(super) const LAYER: &[u8] = b"the secret layer, long enough to stop in the middle of";
/// Only callers from here may pull below `private/`.
const HERE_ONLY: &str = "[access]\nanonymous = true\n\
    [[policy]]\nnetworks = [\"10.1.2.0/24\"]\nwhat = [\"test.local/private/*\"]\nallow = true\n\
    [[policy]]\nwhat = [\"test.local/private/*\"]\nallow = false";
pub(super) const PRIVATE: &str =
    "[rules.\"test.local/private\"]\ncredentials = { username = \"me\", password_env = \"TEST_SECRET\" }";

/// A world with something private, by the policy or because of our credentials.
pub(super) async fn world(column: Column, cold: Cold, settings: &str, upstream: &str) -> World {
    let settings = format!("{settings}\n{HERE_ONLY}");
    World::plan(column).cold(cold).settings(&settings).upstream(upstream).start().await
}

pub(super) fn blob(name: &str, image: &ScriptedImage) -> String {
    format!("/v2/test.local/{name}/blobs/{}", image.blobs[1].0)
}

pub(super) async fn pull_here(world: &World, name: &str) {
    let answer = world.get_from(HERE, &format!("/v2/test.local/{name}/manifests/1")).await;
    assert_eq!(answer.status, StatusCode::OK, "{answer:?}");
}

/// Whether an answer shows bytes, or where they are, or that they are there.
pub(super) fn shows(answer: &Answer) -> bool {
    answer.status.is_success() || answer.status.is_redirection() || answer.bytes().as_ref() == LAYER
}

const LASTING: &str = "fresh = \"1d\"\nstale = \"3h\"\npermission = \"1h\"";

/// A private image of which everything is stored, and everything that can be asked of it.
async fn stored(column: Column) -> (World, ScriptedImage, Vec<(Method, String)>) {
    let world = world(column, Cold::Wait, LASTING, PRIVATE).await;
    let image = world.upstream.image("private/app", "1", &[LAYER]);
    world.upstream.tags("private/app", &["1"]);
    let there = "/v2/test.local/private/app";
    let by_digest = format!("{there}/manifests/{}", image.digest);
    let paths = [format!("{there}/manifests/1"), by_digest, blob("private/app", &image)];
    let heads = paths.iter().map(|path| (Method::HEAD, path.clone()));
    let gets = paths.iter().cloned().chain([format!("{there}/tags/list")]).map(|path| (Method::GET, path));
    let everything: Vec<(Method, String)> = heads.chain(gets).collect();
    for _ in 0..2 {
        for (method, path) in &everything {
            assert!(shows(&here(&world, method, path).await), "{method} {path}");
        }
        world.settled().await;
    }
    world.upstream.forget_requests();
    (world, image, everything)
}

async fn here(world: &World, method: &Method, path: &str) -> Answer {
    world.send_from(HERE, method.clone(), path).await
}

async fn permission_that_is_lost_upstream_is_lost_here_too(column: Column) {
    let no_repository = r#"{"errors": [{"code": "NAME_UNKNOWN", "message": "no"}]}"#;
    for (status, body) in [(401, ""), (403, ""), (404, no_repository)] {
        let (world, _, everything) = stored(column).await;
        world.upstream.fault("/v2/private/", Fault::Status(status, vec![], body.into()));
        world.clock.advance(Duration::from_mins(59));
        for (method, path) in &everything {
            assert!(shows(&here(&world, method, path).await), "{status} {method} {path}");
        }
        assert!(world.upstream.requests().is_empty(), "upstream is left alone as long as permission lasts");
        world.clock.advance(Duration::from_mins(1));
        for round in 0..2 {
            for (method, path) in &everything {
                let answer = here(&world, method, path).await;
                assert!(
                    answer.status.is_client_error() && !shows(&answer),
                    "{round} {status} {method} {path}: {answer:?}"
                );
            }
        }
        // Given back, it is served at once: the refusal is not remembered.
        world.upstream.heal();
        let (method, path) = &everything[5];
        let answer = here(&world, method, path).await;
        assert!(shows(&answer) && answer.header("x-stopover") == "revalidated", "{status} {path}: {answer:?}");
    }
}

async fn what_upstream_does_not_have_any_more_is_not_shown_and_the_rest_is(column: Column) {
    let (world, image, _) = stored(column).await;
    world.clock.advance(Duration::from_hours(1));
    world.upstream.fault(image.blobs[1].0.as_str(), Fault::Status(404, vec![], String::new()));
    let config = format!("/v2/test.local/private/app/blobs/{}", image.blobs[0].0);
    let layer = blob("private/app", &image);
    let asked = (0..40).map(|number| here(&world, &Method::GET, if number % 2 == 0 { &layer } else { &config }));
    // Whoever asks first, each has the answer to its own question; once the repository has been shown, that will do.
    for (number, answer) in join_all(asked).await.into_iter().enumerate() {
        let allowed = [StatusCode::NOT_FOUND, StatusCode::OK, StatusCode::TEMPORARY_REDIRECT];
        assert!(allowed.contains(&answer.status), "{answer:?}");
        assert!(number % 2 == 0 || shows(&answer), "{answer:?}");
    }
    world.clock.advance(Duration::from_hours(1));
    assert_eq!(here(&world, &Method::GET, &layer).await.status, StatusCode::NOT_FOUND);
    assert!(shows(&here(&world, &Method::GET, &config).await));
}

async fn a_refusal_counts_at_once_for_all_of_a_repository(column: Column) {
    let (world, _, everything) = stored(column).await;
    world.upstream.fault("/v2/private/", Fault::Status(403, vec![], String::new()));
    let answer = world.get_with(HERE, "/v2/test.local/private/app/manifests/1", &[("cache-control", "no-cache")]).await;
    assert_eq!(answer.status, StatusCode::FORBIDDEN, "{answer:?}");
    // Neither is what upstream said before the refusal good for an outage.
    for fault in [Fault::Status(403, vec![], String::new()), Fault::Status(503, vec![], String::new())] {
        world.upstream.heal();
        world.upstream.fault("/v2/private/", fault);
        for (method, path) in &everything {
            assert!(!shows(&here(&world, method, path).await), "{method} {path}");
        }
    }
}

async fn permission_outlasts_an_outage_as_long_as_stale(column: Column) {
    let (world, _, everything) = stored(column).await;
    world.upstream.kill();
    for (hours, served) in [(1, "stale"), (1, "stale"), (1, "")] {
        world.clock.advance(Duration::from_hours(hours));
        for (method, path) in &everything {
            let answer = here(&world, method, path).await;
            assert_eq!(answer.header("x-stopover"), served, "{method} {path}: {answer:?}");
            if served.is_empty() {
                assert_eq!(answer.status, StatusCode::SERVICE_UNAVAILABLE, "{method} {path}");
            } else {
                assert!(shows(&answer) && answer.header("warning").starts_with("299"), "{method} {path}");
            }
        }
    }
}

async fn a_thousand_pulls_after_permission_has_ended_cost_one_question(column: Column) {
    let (world, image, _) = stored(column).await;
    world.clock.advance(Duration::from_hours(1));
    world.upstream.fault("/v2/private/", Fault::Late(Duration::from_millis(300)));
    let paths = image.blobs.iter().map(|(digest, _)| format!("/v2/test.local/private/app/blobs/{digest}"));
    let paths: Vec<String> = paths.chain([format!("/v2/test.local/private/app/manifests/{}", image.digest)]).collect();
    let answers = join_all((0..1000).map(|number| world.get_from(HERE, &paths[number % paths.len()]))).await;
    let refused = answers.iter().find(|answer| !shows(answer));
    assert!(refused.is_none(), "{refused:?}");
    assert_eq!(world.upstream.requests().len(), 1);
    // Whatever is asked of upstream while it lasts keeps it going.
    world.upstream.heal();
    for _ in 0..4 {
        world.clock.advance(Duration::from_mins(40));
        let tag = "/v2/test.local/private/app/manifests/1";
        assert_eq!(world.get_with(HERE, tag, &[("cache-control", "no-cache")]).await.status, StatusCode::OK);
    }
    world.upstream.forget_requests();
    assert!(shows(&world.get_from(HERE, &paths[1]).await));
    assert!(world.upstream.requests().is_empty());
}

async fn what_is_shown_is_no_miss_however_much_of_it_is_due_at_once(column: Column) {
    let world = world(column, Cold::Wait, &format!("misses = 4\n{LASTING}"), PRIVATE).await;
    let names: Vec<String> = (0..12).map(|number| format!("private/app-{number}")).collect();
    for name in &names {
        world.upstream.image(name, "1", &[LAYER]);
        pull_here(&world, name).await;
    }
    world.settled().await;
    let no_answer = Fault::Status(503, vec![], String::new());
    for (fault, served) in [(None, "revalidated"), (Some(no_answer), "stale")] {
        world.clock.advance(Duration::from_hours(1));
        if let Some(fault) = fault {
            world.upstream.fault("/v2/private/", fault);
        }
        for name in &names {
            let answer = world.get_from(HERE, &format!("/v2/test.local/{name}/manifests/1")).await;
            assert_eq!((answer.status, answer.header("x-stopover")), (StatusCode::OK, served), "{name}: {answer:?}");
        }
    }
}

async fn what_is_public_is_never_asked_about_again(column: Column) {
    let world = world(column, Cold::Wait, LASTING, PRIVATE).await;
    let image = world.upstream.image("a", "1", &[LAYER]);
    world.upstream.tags("a", &["1"]);
    let paths = ["manifests/1".to_owned(), format!("manifests/{}", image.digest), "tags/list".to_owned()];
    let paths = paths.into_iter().chain([format!("blobs/{}", image.blobs[1].0)]);
    let paths: Vec<String> = paths.map(|rest| format!("/v2/test.local/a/{rest}")).collect();
    for path in &paths {
        assert!(shows(&world.get(path).await), "{path}");
    }
    world.settled().await;
    let layer = image.blobs[1].0.as_str();
    assert_eq!(world.upstream.count(layer), 1, "one fill");
    world.upstream.forget_requests();
    world.clock.advance(Duration::from_hours(20));
    for path in &paths {
        assert_eq!(world.get(path).await.header("x-stopover"), "hit", "{path}");
    }
    assert!(world.upstream.requests().is_empty());
}

const NO_REPOSITORY: &str = r#"{"errors": [{"code": "NAME_UNKNOWN", "message": "no"}]}"#;

async fn whoever_keeps_asking_for_what_is_not_shown_any_more_pays_for_it(column: Column) {
    let gone = |status| Fault::Status(status, vec![], String::new());
    for (fault, text) in [(gone(403), "/v2/private/"), (gone(404), "sha256:")] {
        let settings = format!("{LASTING}\nmisses = 20");
        let world = world(column, Cold::Wait, &settings, PRIVATE).await;
        let image = world.upstream.image("private/app", "1", &[LAYER]);
        world.upstream.tags("private/app", &["1"]);
        let there = "/v2/test.local/private/app";
        let by_digest = format!("{there}/manifests/{}", image.digest);
        let referrers = format!("{there}/referrers/{}", image.digest);
        let mut paths = vec![by_digest, blob("private/app", &image)];
        if text == "/v2/private/" {
            paths.extend([format!("{there}/manifests/1"), format!("{there}/tags/list"), referrers]);
        }
        pull_here(&world, "private/app").await;
        for path in &paths {
            assert!(shows(&world.get_from(HERE, path).await), "{path}");
        }
        world.settled().await;
        // What is shown is no miss, however often it is due.
        for _ in 0..30 {
            world.clock.advance(Duration::from_hours(1));
            assert!(shows(&world.get_from(HERE, &paths[0]).await));
        }
        world.clock.advance(Duration::from_hours(1));
        world.upstream.fault(text, fault);
        world.upstream.forget_requests();
        let mut over = 0;
        for number in 0..200 {
            let answer = world.get_from(HERE, &paths[number % paths.len()]).await;
            assert!(!shows(&answer), "{text} {answer:?}");
            over += usize::from(answer.status == StatusCode::TOO_MANY_REQUESTS);
        }
        assert!(over > 100, "{text} {over}");
        assert!(world.upstream.requests().len() <= 2 * 20, "{text} {}", world.upstream.requests().len());
        let other = world.get_from("10.1.2.4", &paths[0]).await;
        assert!(other.status.is_client_error() && other.status != StatusCode::TOO_MANY_REQUESTS, "{other:?}");
    }
}

async fn a_private_repository_that_is_gone_is_asked_for_nothing_more(column: Column) {
    let (world, image, _) = stored(column).await;
    world.clock.advance(Duration::from_hours(1));
    world.upstream.fault("/v2/private/", Fault::Status(404, vec![], NO_REPOSITORY.into()));
    assert_eq!(here(&world, &Method::GET, &blob("private/app", &image)).await.error().0, "NAME_UNKNOWN");
    world.upstream.forget_requests();
    for path in ["manifests/2", "manifests/3"] {
        let answer = here(&world, &Method::GET, &format!("/v2/test.local/private/app/{path}")).await;
        assert_eq!(answer.error().0, "NAME_UNKNOWN");
    }
    assert!(world.upstream.requests().is_empty());
}

async fn a_permission_that_takes_a_whole_manifest_to_show_is_a_pull(column: Column) {
    let world = world(column, Cold::Wait, &format!("{LASTING}\npulls = 1"), PRIVATE).await;
    let image = world.upstream.image("private/app", "1", &[LAYER]);
    world.upstream.image("private/other", "1", &[LAYER]);
    pull_here(&world, "private/app").await;
    world.settled().await;
    world.clock.advance(Duration::from_hours(1));
    world.upstream.fault("HEAD /v2/private/", Fault::Status(405, vec![], String::new()));
    world.upstream.forget_requests();
    let by_digest = format!("/v2/test.local/private/app/manifests/{}", image.digest);
    assert!(shows(&world.get_from(HERE, &by_digest).await));
    assert_eq!(world.upstream.count("GET /v2/private/app/manifests/"), 1);
    let answer = world.get_from(HERE, "/v2/test.local/private/other/manifests/1").await;
    assert_eq!((answer.status, answer.header("retry-after")), (StatusCode::FORBIDDEN, "3600"), "{answer:?}");
    // Whoever has none left is not shown it on the strength of what is not known; everybody else is.
    world.clock.advance(Duration::from_mins(59));
    assert!(shows(&world.get_from(HERE, &by_digest).await), "it still lasts");
    assert_eq!(world.upstream.count("GET /v2/private/app/manifests/"), 1);
}
