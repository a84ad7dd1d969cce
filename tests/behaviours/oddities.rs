//! What known registries do that others do not (src/config/profile.rs), each shown by a scripted upstream that does it.
//!
//! Elsewhere: Docker Hub's 401 for what does not exist (`tags.rs`), a missing digest (`tags.rs`), a limit in plain text
//! (`upstream_trouble.rs`).

use std::time::Duration;

use http::{Method, StatusCode};
use stopover::config::Cold;
use support::on_both_columns;
use support::scripted::{Fault, Login, Scripted};
use support::world::{Column, World};

on_both_columns!(
    blobs_are_pulled_where_upstream_refuses_head_of_them,
    a_relative_redirect_leads_to_the_same_host,
    a_manifest_is_followed_to_another_host,
    a_401_without_a_challenge_is_explained_by_the_ping,
    the_challenge_of_an_expired_token_leads_nowhere,
    the_scope_is_the_repository_unless_the_challenge_has_a_constant,
    the_service_is_passed_on_exactly_and_parameters_need_no_quotes,
    a_redirect_that_may_be_cached_for_a_year_is_passed_on_uncached,
    tokens_come_from_another_registry_where_that_is_allowed,
    the_registry_that_a_gateway_redirects_to_is_asked_as_a_stranger,
    a_realm_that_is_not_allowed_is_no_way_into_another_registry,
    a_token_is_understood_under_either_name_and_without_its_life,
    a_pause_of_microseconds_in_a_sentence_is_a_second,
    nothing_is_asked_for_or_answered_compressed,
    a_general_content_type_is_made_exact_by_the_manifest,
    a_manifest_that_is_compressed_all_the_same_is_refused_clearly,
);

const TAG: &str = "/v2/test.local/a/manifests/1";

fn respond(status: u16, headers: &[(&'static str, &str)], body: &str) -> Fault {
    let headers = headers.iter().map(|&(name, value)| (name, value.to_owned())).collect();
    Fault::Status(status, headers, body.to_owned())
}

/// public.ecr.aws
async fn blobs_are_pulled_where_upstream_refuses_head_of_them(column: Column) {
    let world = World::plan(column).cold(Cold::Wait).start().await;
    let image = world.upstream.image("a", "1", &[b"layer"]);
    world.upstream.fault("HEAD /v2/a/blobs/", respond(401, &[], ""));
    let (digest, layer) = &image.blobs[1];
    let path = format!("/v2/test.local/a/blobs/{digest}");
    // Nobody has asked for its manifest yet, so upstream has to say whether it is there.
    let head = world.head(&path).await;
    assert_eq!((head.status, head.header("content-length")), (StatusCode::OK, "5"));
    assert_eq!(world.pull(&path).await.bytes(), layer);
    assert_eq!(world.upstream.count("HEAD"), 0);
}

/// pkg.dev: the bytes are at the registry's own host, but not part of its API.
async fn a_relative_redirect_leads_to_the_same_host(column: Column) {
    for cold in [Cold::Redirect, Cold::Wait] {
        let world = World::plan(column).cold(cold).start().await;
        world.upstream.require(Login::Bearer);
        let image = world.upstream.image("a", "1", &[b"layer"]);
        let digest = &image.blobs[1].0;
        world.upstream.fault(
            &format!("GET /v2/a/blobs/{digest}"),
            respond(302, &[("location", "/artifacts-downloads/a/layer?token=x")], ""),
        );
        world.upstream.fault("GET /artifacts-downloads/a/layer", respond(200, &[], "layer"));
        let path = format!("/v2/test.local/a/blobs/{digest}");
        let answer = world.get(&path).await;
        if cold == Cold::Redirect {
            let target = format!("{}/artifacts-downloads/a/layer?token=x", world.upstream.url());
            assert_eq!((answer.status, answer.header("location")), (StatusCode::TEMPORARY_REDIRECT, &*target));
        }
        assert_eq!(world.pull(&path).await.bytes().as_ref(), b"layer");
        world.settled().await;
        assert!(world.stored_blobs().await.contains(&digest.to_string()), "the fill came through too");
    }
}

/// registry.k8s.io
async fn a_manifest_is_followed_to_another_host(column: Column) {
    let world = World::on(column).await;
    let elsewhere = Scripted::start().unwrap();
    let image = elsewhere.image("images/a", "1", &[b"layer"]);
    for reference in ["1".to_owned(), image.digest.to_string()] {
        let target = format!("{}/v2/images/a/manifests/{reference}", elsewhere.url());
        world.upstream.fault(&format!("/v2/a/manifests/{reference}"), respond(307, &[("location", &target)], ""));
    }
    assert_eq!(world.get(TAG).await.bytes(), &image.manifest);
    world.clock.advance(Duration::from_hours(1));
    assert_eq!(world.get(TAG).await.header("x-stopover"), "revalidated");
    let moved = elsewhere.image("images/a", "1", &[b"moved"]);
    let target = format!("{}/v2/images/a/manifests/{}", elsewhere.url(), moved.digest);
    world.upstream.fault(&format!("/v2/a/manifests/{}", moved.digest), respond(307, &[("location", &target)], ""));
    world.clock.advance(Duration::from_hours(1));
    assert_eq!(world.get(TAG).await.bytes(), &moved.manifest);
    assert_eq!((elsewhere.count("HEAD"), elsewhere.count("GET")), (2, 2));
}

/// pkg.dev
async fn a_401_without_a_challenge_is_explained_by_the_ping(column: Column) {
    let world = World::on(column).await;
    world.upstream.require(Login::BearerSaying(|url, path, _| {
        (path == "/v2/").then(|| format!("Bearer realm=\"{url}/token\",service=\"pkg\""))
    }));
    let image = world.upstream.image("a", "1", &[b"layer"]);
    assert_eq!(world.get(TAG).await.bytes(), &image.manifest);
    world.settled().await;
    world.upstream.forget_tokens();
    world.clock.advance(Duration::from_hours(1));
    assert_eq!(world.get(TAG).await.header("x-stopover"), "revalidated");
    assert_eq!(world.upstream.requests().iter().filter(|seen| seen.line == "GET /v2/").count(), 1);
}

/// nvcr.io
async fn the_challenge_of_an_expired_token_leads_nowhere(column: Column) {
    let world = World::on(column).await;
    world.upstream.require(Login::BearerSaying(|url, _, given| {
        Some(if given {
            format!("Bearer realm=\"{url}/authn\",service=\"registry\",error=\"invalid_token\"")
        } else {
            format!("Bearer realm=\"{url}/token\",scope=\"repository:a:pull\"")
        })
    }));
    world.upstream.image("a", "1", &[b"layer"]);
    assert_eq!(world.get(TAG).await.status, StatusCode::OK);
    world.settled().await;
    // Refused before its time, and after it.
    for pause in [Duration::from_secs(0), Duration::from_hours(1)] {
        world.upstream.forget_tokens();
        world.clock.advance(pause);
        let answer = world.send(Method::GET, TAG, &[("cache-control", "no-cache")]).await;
        assert_eq!(answer.header("x-stopover"), "revalidated");
    }
    assert_eq!((world.upstream.count("/authn"), world.upstream.count("/token")), (0, 3));
}

/// ghcr.io has a placeholder, and public.ecr.aws a constant that is no repository.
async fn the_scope_is_the_repository_unless_the_challenge_has_a_constant(column: Column) {
    let placeholder: fn(&str, &str, bool) -> Option<String> =
        |url, _, _| Some(format!("Bearer realm=\"{url}/token\",scope=\"repository:user/image:pull\""));
    let constant: fn(&str, &str, bool) -> Option<String> =
        |url, _, _| Some(format!("Bearer realm=\"{url}/token\",scope=\"aws\""));
    let none: fn(&str, &str, bool) -> Option<String> = |url, _, _| Some(format!("Bearer realm=\"{url}/token\""));
    let both = ["scope=repository%3Aa%3Apull", "scope=repository%3Ab%2Fc%3Apull"].as_slice();
    for (challenge, scopes) in [(placeholder, both), (constant, &["scope=aws"]), (none, both)] {
        let world = World::on(column).await;
        world.upstream.require(Login::BearerSaying(challenge));
        for name in ["a", "b/c"] {
            world.upstream.image(name, "1", &[b"layer"]);
            assert_eq!(world.get(&format!("/v2/test.local/{name}/manifests/1")).await.status, StatusCode::OK);
            world.settled().await;
        }
        let asked = world.upstream.requests();
        let asked: Vec<&str> =
            asked.iter().filter(|seen| seen.line == "GET /token").map(|seen| seen.query.as_str()).collect();
        assert_eq!(asked, scopes, "one token a scope");
    }
}

/// Docker Hub grants nothing for another service than it named; nvcr.io has sent parameters without quotes.
async fn the_service_is_passed_on_exactly_and_parameters_need_no_quotes(column: Column) {
    let quoted: fn(&str, &str, bool) -> Option<String> =
        |url, _, _| Some(format!("Bearer realm=\"{url}/token?of=a%20b\",service=\"Reg.docker.io, \\\"x\\\" & y\""));
    let unquoted: fn(&str, &str, bool) -> Option<String> =
        |url, _, _| Some(format!("bearer REALM=\"{url}/token\", service=registry.docker.io, scope=whatever"));
    for (challenge, expected) in [
        (quoted, "of=a%20b&service=Reg.docker.io%2C+%22x%22+%26+y&scope=repository%3Aa%3Apull"),
        (unquoted, "service=registry.docker.io&scope=whatever"),
    ] {
        let world = World::on(column).await;
        world.upstream.require(Login::BearerSaying(challenge));
        world.upstream.image("a", "1", &[b"layer"]);
        assert_eq!(world.get(TAG).await.status, StatusCode::OK);
        let token = world.upstream.requests().into_iter().find(|seen| seen.line == "GET /token").unwrap();
        assert_eq!(token.query, expected);
    }
}

/// quay.io
async fn a_redirect_that_may_be_cached_for_a_year_is_passed_on_uncached(column: Column) {
    let world = World::plan(column).cold(Cold::Redirect).start().await;
    let image = world.upstream.image("a", "1", &[b"layer"]);
    let elsewhere = Scripted::start().unwrap();
    let (digest, layer) = &image.blobs[1];
    elsewhere.blob("cdn", digest, layer);
    // Or the fill that the manifest requested may be done before the blob is asked for.
    elsewhere.fault("/cdn/", Fault::Stalled);
    let target = format!("{}/v2/cdn/blobs/{digest}?Signature=x", elsewhere.url());
    let headers = [("location", target.as_str()), ("cache-control", "max-age=31536000")];
    world.upstream.fault(&format!("blobs/{digest}"), respond(302, &headers, ""));
    world.get(TAG).await;
    let answer = world.get(&format!("/v2/test.local/a/blobs/{digest}")).await;
    assert_eq!((answer.status, answer.header("location")), (StatusCode::TEMPORARY_REDIRECT, &*target));
    assert_eq!(answer.header("cache-control"), "no-store");
    elsewhere.heal();
}

/// lscr.io, whose tokens ghcr.io issues.
async fn tokens_come_from_another_registry_where_that_is_allowed(column: Column) {
    let elsewhere = Scripted::start().unwrap();
    let realms = format!("token_realms = [\"{}\"]", elsewhere.url());
    let world = World::plan(column).upstream(&realms).start().await;
    world.upstream.require(Login::BearerFrom(format!("{}/token", elsewhere.url())));
    let image = world.upstream.image("a", "1", &[b"layer"]);
    assert_eq!(world.get(TAG).await.bytes(), &image.manifest);
    world.settled().await;
    assert_eq!((elsewhere.count("GET /token"), world.upstream.count("/token")), (1, 0));
}

/// A gateway that redirects everything into the API of `elsewhere`, where `a` is called `images/a`.
fn redirect_into(world: &World, elsewhere: &Scripted, references: &[String]) {
    for path in references {
        let target = format!("{}/v2/images/a/{path}", elsewhere.url());
        world.upstream.fault(&format!("/v2/a/{path}"), respond(307, &[("location", &target)], ""));
    }
}

/// lscr.io, before ghcr.io: which wants a token of its own, and never sees what we are at the gateway.
async fn the_registry_that_a_gateway_redirects_to_is_asked_as_a_stranger(column: Column) {
    for (cold, direct) in [(Cold::Wait, true), (Cold::Redirect, true), (Cold::Redirect, false)] {
        let elsewhere = Scripted::start().unwrap();
        elsewhere.require(Login::Bearer);
        let image = elsewhere.image("images/a", "1", &[b"layer"]);
        let settings = format!(
            "token_realms = [\"{}\"]\npublic = true\n\
             credentials = {{ username = \"me\", password_env = \"TEST_SECRET\" }}",
            elsewhere.url()
        );
        let world = World::plan(column).cold(cold).upstream(&settings).start().await;
        let layer = &image.blobs[1].0;
        let mut paths = vec!["manifests/1".to_owned(), format!("manifests/{}", image.digest)];
        paths.extend(image.blobs.iter().map(|(digest, _)| format!("blobs/{digest}")));
        redirect_into(&world, &elsewhere, &paths);
        let cdn = Scripted::start().unwrap();
        cdn.fault("/cdn", respond(200, &[], "layer"));
        let signed = format!("{}/cdn?signature=x", cdn.url());
        if !direct {
            elsewhere.fault(&format!("/blobs/{layer}"), respond(307, &[("location", &signed)], ""));
        }
        let path = format!("/v2/test.local/a/blobs/{layer}");
        let answer = world.get(&path).await;
        if !direct {
            assert_eq!((answer.status, answer.header("location")), (StatusCode::TEMPORARY_REDIRECT, &*signed));
        }
        assert!(!answer.header("location").starts_with(&elsewhere.url()), "the client has no token: {answer:?}");
        assert_eq!(world.pull(&path).await.bytes().as_ref(), b"layer", "{cold:?}");
        assert_eq!(world.get(TAG).await.bytes(), &image.manifest);
        world.settled().await;
        elsewhere.forget_tokens();
        world.clock.advance(Duration::from_mins(6));
        assert_eq!(world.get(TAG).await.header("x-stopover"), "revalidated", "{cold:?}");
        let asked = elsewhere.requests();
        let tokens: Vec<_> = asked.iter().filter(|seen| seen.line == "GET /token").collect();
        assert_eq!(tokens.len(), 2, "{cold:?}: one, and one after that was over");
        for seen in &asked {
            let authorization = seen.headers.get("authorization").map(|value| value.to_str().unwrap());
            assert!(authorization.is_none_or(|value| value.starts_with("Bearer token-")), "{}", seen.line);
        }
        assert_eq!(tokens[0].query, "service=scripted&scope=repository%3Aimages%2Fa%3Apull");
    }
}

async fn a_realm_that_is_not_allowed_is_no_way_into_another_registry(column: Column) {
    let elsewhere = Scripted::start().unwrap();
    elsewhere.require(Login::Bearer);
    elsewhere.image("images/a", "1", &[b"layer"]);
    let world = World::on(column).await;
    redirect_into(&world, &elsewhere, &["manifests/1".to_owned()]);
    assert_eq!(world.get(TAG).await.status, StatusCode::NOT_FOUND);
    assert_eq!((elsewhere.count("/token"), elsewhere.count("/manifests/1")), (0, 1));
}

/// The token specification has `token`, OAuth 2 `access_token`, and some send only one; without `expires_in` it is a minute.
async fn a_token_is_understood_under_either_name_and_without_its_life(column: Column) {
    for body in
        ["{\"token\":\"token-0\"}", "{\"access_token\":\"token-0\"}", "{\"access_token\":\"token-0\",\"token\":null}"]
    {
        let world = World::on(column).await;
        world.upstream.require(Login::Bearer);
        world.upstream.fault("/token", respond(200, &[], body));
        let tokens = async |tag: &str| {
            world.upstream.image("a", tag, &[b"layer"]);
            let answer = world.get(&format!("/v2/test.local/a/manifests/{tag}")).await;
            assert_eq!(answer.status, StatusCode::OK, "{body}");
            world.settled().await;
            world.upstream.count("/token")
        };
        assert_eq!(tokens("1").await, 1);
        world.clock.advance(Duration::from_secs(53));
        assert_eq!(tokens("2").await, 1, "{body}");
        world.clock.advance(Duration::from_secs(1));
        assert_eq!(tokens("3").await, 2, "0.9 of 60 seconds have passed");
    }
}

/// ghcr.io
async fn a_pause_of_microseconds_in_a_sentence_is_a_second(column: Column) {
    for (sentence, expected) in [
        ("retry-after: 880.092µs, allowed: 44000/minute", "1"),
        ("Retry-After: 12.5s, allowed: 44000/minute", "13"),
        ("retry-after: 99999999999s", "86400"),
        ("retry-after: 1..5s", "60"),
        ("retry-after: µs", "60"),
        ("retry-after: 5", "60"),
        ("retry-after: 5 parsecs", "60"),
        ("retry-after:", "60"),
    ] {
        let world = World::on(column).await;
        let image = world.upstream.image("a", "1", &[b"layer"]);
        let body = format!("{{\"errors\":[{{\"code\":\"TOOMANYREQUESTS\",\"message\":\"{sentence}\"}}]}}");
        world.upstream.fault("/v2/a/", respond(429, &[], &body));
        let answer = world.get(TAG).await;
        assert_eq!(
            (answer.status, answer.header("retry-after")),
            (StatusCode::TOO_MANY_REQUESTS, expected),
            "{sentence}"
        );
        world.upstream.heal();
        world.clock.advance(Duration::from_secs(expected.parse().unwrap()));
        assert_eq!(world.get(TAG).await.bytes(), &image.manifest, "{sentence}");
    }
}

/// Red Hat's registries compress configurations unless they are asked not to, and clients hash what arrives.
async fn nothing_is_asked_for_or_answered_compressed(column: Column) {
    let world = World::plan(column).cold(Cold::Wait).start().await;
    let image = world.upstream.image("a", "1", &[b"layer"]);
    let gzip = [("accept-encoding", "gzip, br, zstd")];
    let answer = world.send(Method::GET, TAG, &gzip).await;
    assert_eq!((answer.header("content-encoding"), answer.bytes()), ("", &image.manifest));
    for (digest, bytes) in &image.blobs {
        let path = format!("/v2/test.local/a/blobs/{digest}");
        assert_eq!(world.send(Method::GET, &path, &gzip).await.header("content-encoding"), "");
        assert_eq!(world.pull(&path).await.bytes(), bytes);
    }
    world.clock.advance(Duration::from_hours(1));
    assert_eq!(world.get(TAG).await.header("x-stopover"), "revalidated");
    let asked = world.upstream.requests();
    assert!(asked.len() >= 4, "{asked:?}");
    for seen in asked {
        assert_eq!(seen.headers["accept-encoding"], "identity", "{}", seen.line);
    }
}

/// quay#1310
async fn a_manifest_that_is_compressed_all_the_same_is_refused_clearly(column: Column) {
    let world = World::on(column).await;
    world.upstream.image("a", "1", &[b"layer"]);
    let gzip = vec![0x1f, 0x8b, 8, 0, 0, 0, 0, 0, 0, 3];
    world.upstream.fault("/manifests/1", Fault::Body(gzip, vec![("content-encoding", "gzip".to_owned())]));
    let answer = world.get(TAG).await;
    assert_eq!(answer.status, StatusCode::BAD_GATEWAY);
    assert!(answer.error().1.contains("compressed"), "{answer:?}");
}

/// Some send every manifest as JSON, or as octets.
async fn a_general_content_type_is_made_exact_by_the_manifest(column: Column) {
    for general in ["application/json", "application/octet-stream", "text/plain; charset=utf-8", ""] {
        let world = World::on(column).await;
        let image = world.upstream.image("a", "1", &[b"layer"]);
        world.upstream.fault("/manifests/", Fault::Headers(vec![("content-type", general.to_owned())]));
        for answer in [world.head(TAG).await, world.get(TAG).await] {
            assert_eq!(answer.header("content-type"), "application/vnd.oci.image.manifest.v1+json", "{general}");
            assert_eq!(answer.header("docker-content-digest"), image.digest.as_str());
        }
        world.clock.advance(Duration::from_hours(1));
        assert_eq!(world.get(TAG).await.bytes(), &image.manifest);
    }
}
