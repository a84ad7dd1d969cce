//! Others that carry the same content: asked when the upstream is out of quota or down, believed only by digest.

use http::StatusCode;
use stopover::config::Cold;
use support::on_both_columns;
use support::scripted::{Fault, Login, Scripted, ScriptedImage};
use support::world::{CREDENTIALS, Column, PASSWORD, World};

on_both_columns!(
    an_alternate_serves_by_digest_what_there_is_no_quota_for,
    an_alternate_serves_the_blobs_of_an_upstream_that_is_down,
    an_alternate_is_not_asked_what_a_tag_is_unless_the_rule_allows_it,
    an_alternate_that_lies_is_not_believed,
    an_alternate_is_not_asked_for_what_the_upstream_answers,
    a_private_alternate_shows_only_what_is_private_and_shared,
    an_alternate_that_the_policy_denies_is_not_asked_for_what_it_allows,
);

const TAG: &str = "/v2/test.local/library/a/manifests/1";
const LAYER: &[u8] = b"the bytes of a layer";

/// A world whose upstream has an alternate, which has the same image under another name.
async fn world(column: Column, rule: &str) -> (World, Scripted, ScriptedImage) {
    let other = Scripted::start().unwrap();
    let rules = format!(
        "alternates = [{{ upstream = \"other.local\", names = \"library/\", prefix = \"docker/library/\"{rule} }}]\n\
         [upstreams.\"other.local\"]\nurl = \"{}\"",
        other.url()
    );
    let world = World::plan(column).cold(Cold::Wait).upstream(&rules).start().await;
    let image = world.upstream.image("library/a", "1", &[LAYER]);
    other.manifest("docker/library/a", "1", "application/vnd.oci.image.manifest.v1+json", &image.manifest);
    for (digest, bytes) in &image.blobs {
        other.blob("docker/library/a", digest, bytes);
    }
    (world, other, image)
}

async fn an_alternate_serves_by_digest_what_there_is_no_quota_for(column: Column) {
    let (world, other, image) = world(column, "").await;
    world.upstream.quota(100, 0);
    assert_eq!(world.get(TAG).await.bytes(), &image.manifest);
    let by_digest = format!("GET /v2/docker/library/a/manifests/{}", image.digest);
    assert_eq!((other.count("/manifests/"), other.count(&by_digest)), (1, 1), "never by tag");
    assert_eq!(world.get(TAG).await.header("x-stopover"), "hit");
    // What is not an official image has no alternate.
    world.upstream.image("owner/b", "1", &[LAYER]);
    assert_eq!(world.get("/v2/test.local/owner/b/manifests/1").await.status, StatusCode::TOO_MANY_REQUESTS);
    assert_eq!(other.count("owner"), 0);
}

async fn an_alternate_serves_the_blobs_of_an_upstream_that_is_down(column: Column) {
    let (world, other, image) = world(column, "").await;
    world.upstream.fault("/blobs/", Fault::Status(503, vec![], String::new()));
    world.get(TAG).await;
    let layer = &image.blobs[1].0;
    assert_eq!(world.pull(&format!("/v2/test.local/library/a/blobs/{layer}")).await.bytes(), LAYER);
    assert_eq!(other.count(&format!("GET /v2/docker/library/a/blobs/{layer}")), 1);
}

async fn an_alternate_is_not_asked_what_a_tag_is_unless_the_rule_allows_it(column: Column) {
    let (world, other, _) = world(column, "").await;
    world.upstream.kill();
    assert_eq!(world.get(TAG).await.status, StatusCode::SERVICE_UNAVAILABLE);
    assert!(other.requests().is_empty());
    let (world, other, image) = self::world(column, ", tags = true").await;
    world.upstream.kill();
    assert_eq!(world.get(TAG).await.bytes(), &image.manifest);
    assert_eq!(other.count("GET /v2/docker/library/a/manifests/1"), 1);
}

async fn an_alternate_that_lies_is_not_believed(column: Column) {
    let (world, other, _) = world(column, "").await;
    world.upstream.quota(100, 0);
    other.fault("/manifests/", Fault::Corrupt);
    assert_eq!(world.get(TAG).await.status, StatusCode::TOO_MANY_REQUESTS);
    assert_eq!(other.count("/manifests/"), 1);
}

async fn an_alternate_is_not_asked_for_what_the_upstream_answers(column: Column) {
    let (world, other, _) = world(column, "").await;
    assert_eq!(world.get(TAG).await.status, StatusCode::OK);
    assert_eq!(world.get("/v2/test.local/library/a/manifests/none").await.status, StatusCode::NOT_FOUND);
    world.settled().await;
    assert!(other.requests().is_empty());
}

/// What an upstream that limits us answers for a manifest by digest that an alternate has, below `team/` where everybody
/// may pull; and how often the alternate was asked.
async fn asked_elsewhere(column: Column, there: &str, upstream: &str, access: &str) -> (StatusCode, usize) {
    let other = Scripted::start().unwrap();
    if there == CREDENTIALS {
        other.require(Login::Basic("me".into(), PASSWORD.into()));
    }
    let image = other.image("team/a", "1", &[LAYER]);
    let upstream =
        upstream.replace("OTHER", &format!("[upstreams.\"other.local\"]\nurl = \"{}\"\n{there}", other.url()));
    let settings = format!("[access]\nanonymous = true\n{access}");
    let world = World::plan(column).cold(Cold::Wait).settings(&settings).upstream(&upstream).start().await;
    world.upstream.fault("/v2/", Fault::Status(429, vec![], String::new()));
    let answer = world.get(&format!("/v2/test.local/team/a/manifests/{}", image.digest)).await;
    (answer.status, other.count("/manifests/"))
}

async fn a_private_alternate_shows_only_what_is_private_and_shared(column: Column) {
    let allowed = "[[policy]]\nwhat = [\"test.local/team/*\"]\nallow = true";
    for (private_here, shared, expected) in [
        (true, true, StatusCode::OK),
        (true, false, StatusCode::TOO_MANY_REQUESTS),
        (false, true, StatusCode::TOO_MANY_REQUESTS),
        (false, false, StatusCode::TOO_MANY_REQUESTS),
    ] {
        // By a rule: where it is the whole upstream, the configuration is refused.
        let here = if private_here { format!("[rules.\"test.local/team\"]\n{CREDENTIALS}") } else { String::new() };
        let upstream = format!("alternates = [{{ upstream = \"other.local\", shared = {shared} }}]\nOTHER\n{here}");
        let (status, asked) = asked_elsewhere(column, CREDENTIALS, &upstream, allowed).await;
        assert_eq!((status, asked > 0), (expected, expected == StatusCode::OK), "{private_here} {shared}");
    }
}

async fn an_alternate_that_the_policy_denies_is_not_asked_for_what_it_allows(column: Column) {
    let upstream = "alternates = [{ upstream = \"other.local\" }]\nOTHER";
    let denied = "[[policy]]\nwhat = [\"other.local/*\"]\nallow = false";
    assert_eq!(asked_elsewhere(column, "", upstream, denied).await, (StatusCode::TOO_MANY_REQUESTS, 0));
    // Nor where another rule denies it to others.
    let others = "[[policy]]\nwhat = [\"test.local/*\"]\nnetworks = [\"10.1.2.0/24\"]\nallow = false";
    let both = format!("{others}\n{denied}");
    assert_eq!(asked_elsewhere(column, "", upstream, &both).await, (StatusCode::TOO_MANY_REQUESTS, 0));
    // A rule that denies whatever no other allows says nothing of the alternate in particular.
    let last = "[[policy]]\nwhat = [\"test.local/*\"]\nallow = true\n[[policy]]\nallow = false";
    assert_eq!(asked_elsewhere(column, "", upstream, last).await, (StatusCode::OK, 1));
}
