//! Who is let in, and what they may pull. Each test is the attack, or what a client does that belongs here.

mod operators;
mod policy;
mod robots;
mod tokens;

use std::os::unix::fs::PermissionsExt as _;
use std::sync::Arc;
use std::time::Duration;

use axum::body::{Body, to_bytes};
use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use http::{Method, Request, StatusCode};
use serde_json::json;
use stopover::config::{Cold, Config};
use stopover::identity::Peer;
use stopover::local::Local;
use stopover::values::time::Clock;
use support::aws::{EVERY_OPERATION, Service};
use support::guests::{HERE, basic, get, robot};
use support::on_both_columns;
use support::scripted::{Login, Scripted};
use support::world::{Column, PASSWORD, World, open};
use tower::ServiceExt as _;

on_both_columns!(
    callers_may_be_nobody_everywhere_by_network_or_not_at_all,
    credentials_that_make_no_sense_are_refused,
    passwords_for_other_registries_are_refused_and_go_nowhere,
    where_nobody_can_log_in_credentials_are_not_looked_at,
    a_page_in_a_browser_has_nothing_pulled_or_stored,
    a_path_with_the_api_twice_is_answered_with_what_is_missing,
    the_token_that_homebrew_sends_is_none,
);

const TAG: &str = "/v2/test.local/a/manifests/1";
const ELSEWHERE: &str = "192.0.2.1";

/// A cache with these lines in `[access]` and behind it.
async fn world(column: Column, access: &str) -> World {
    with_upstream(column, access, "").await
}

async fn with_upstream(column: Column, access: &str, upstream: &str) -> World {
    let settings = format!("[access]\nsigning_keys = {{ env = \"TEST_KEYS\" }}\n{access}");
    let world = World::plan(column).cold(Cold::Wait).settings(&settings).upstream(upstream).start().await;
    if upstream.contains("credentials") {
        world.upstream.require(Login::Basic("me".into(), PASSWORD.into()));
    }
    world.upstream.image("a", "1", &[b"layer"]);
    world
}

fn calls(world: &World) -> Option<usize> {
    world.endpoints().map(|endpoints| endpoints.calls(Service::DynamoDb, EVERY_OPERATION))
}

async fn callers_may_be_nobody_everywhere_by_network_or_not_at_all(column: Column) {
    for (anonymous, here, elsewhere) in [
        ("true", StatusCode::OK, StatusCode::OK),
        ("[\"10.0.0.0/8\"]", StatusCode::OK, StatusCode::FORBIDDEN),
        ("[\"198.51.100.7\"]", StatusCode::FORBIDDEN, StatusCode::FORBIDDEN),
    ] {
        let world = world(column, &format!("anonymous = {anonymous}")).await;
        for (caller, expected) in [(HERE, here), ("::ffff:10.1.2.3", here), (ELSEWHERE, elsewhere)] {
            for path in ["/v2/", TAG] {
                let answer = get(&world, caller, path, "").await;
                assert_eq!(answer.status, expected, "{anonymous}, {caller}, {path}");
                assert_eq!(answer.header("www-authenticate"), "", "there is nothing to log in with");
            }
        }
        // Whose address is not known is in no network.
        assert_eq!(world.get(TAG).await.status, elsewhere, "{anonymous}");
    }
}

async fn credentials_that_make_no_sense_are_refused(column: Column) {
    let world = world(column, "anonymous = true\nrobots = true").await;
    let right = basic("ci", &robot(&world, "ci").await);
    let long = basic("ci", &"a".repeat(20_000));
    for authorization in
        ["Basic", "Basic ", "Basic ====", "Basic Y2k=", "Negotiate abc", "Digest a=b", "Basic /w==", &long]
    {
        let answer = get(&world, HERE, TAG, authorization).await;
        assert_eq!(answer.status, StatusCode::UNAUTHORIZED, "{authorization} is not taken for nobody");
    }
    let two = [("authorization", right.as_str()), ("authorization", right.as_str())];
    assert_eq!(world.send_with(HERE, Method::GET, TAG, &two).await.status, StatusCode::UNAUTHORIZED);
    assert_eq!(get(&world, HERE, TAG, &right).await.status, StatusCode::OK);
    assert_eq!(get(&world, HERE, TAG, &right.replace("Basic", "bAsIc")).await.status, StatusCode::OK);
}

async fn passwords_for_other_registries_are_refused_and_go_nowhere(column: Column) {
    let world = world(column, "anonymous = true\nrobots = true").await;
    let hub = basic("someone", "dckr_pat_of_someone");
    for path in ["/v2/", TAG, "/token?service=stopover"] {
        assert_eq!(get(&world, HERE, path, &hub).await.status, StatusCode::UNAUTHORIZED, "{path}");
    }
    let pulled = get(&world, HERE, TAG, "").await;
    assert_eq!(pulled.status, StatusCode::OK);
    world.settled().await;
    for seen in world.upstream.requests() {
        assert!(!format!("{seen:?}").contains("dckr_pat") && !seen.headers.contains_key("authorization"), "{seen:?}");
    }
    if let Some(data) = world.data() {
        for file in ["ledger.redb", "stopover.toml"] {
            let bytes = std::fs::read(data.join(file)).unwrap();
            let kept = |secret: &str| bytes.windows(secret.len()).any(|window| window == secret.as_bytes());
            assert!(!kept("dckr_pat") && !kept(hub.trim_start_matches("Basic ")), "{file}");
        }
    }
}

async fn where_nobody_can_log_in_credentials_are_not_looked_at(column: Column) {
    let world = world(column, "anonymous = [\"10.0.0.0/8\"]").await;
    for authorization in ["Bearer anything", "Basic Y2k6cGFzcw==", "nonsense"] {
        assert_eq!(get(&world, HERE, TAG, authorization).await.status, StatusCode::OK, "{authorization}");
        assert_eq!(get(&world, ELSEWHERE, TAG, authorization).await.status, StatusCode::FORBIDDEN, "{authorization}");
    }
    assert_eq!(get(&world, HERE, "/token", "").await.status, StatusCode::NOT_FOUND);
}

async fn a_page_in_a_browser_has_nothing_pulled_or_stored(column: Column) {
    let world = World::on(column).await;
    world.upstream.image("a", "1", &[b"layer"]);
    let body = json!({ "images": ["test.local/a:1"] }).to_string();
    for page in [
        ("origin", "https://evil.test"),
        ("origin", "null"),
        ("sec-fetch-site", "cross-site"),
        ("sec-fetch-site", "same-site"),
        ("sec-fetch-site", "same-origin"),
    ] {
        let headers = [page, ("content-type", "text/plain")];
        let answer = world.post_with(HERE, "/_stopover/prefetch", &headers, body.clone()).await;
        assert_eq!(answer.status, StatusCode::FORBIDDEN);
        for path in ["/v2/", TAG, "/v2/test.local/a/tags/list", "/_stopover/quota", "/token"] {
            assert_eq!(world.get_with(HERE, path, &[page]).await.status, StatusCode::FORBIDDEN, "{page:?} {path}");
        }
    }
    let typed = [("sec-fetch-site", "none")];
    assert_eq!(world.post_with(HERE, "/_stopover/prefetch", &typed, body.clone()).await.status, StatusCode::FORBIDDEN);
    assert!(world.upstream.requests().is_empty());
    assert_eq!(world.get_with(HERE, "/v2/", &typed).await.status, StatusCode::OK, "a person types the address");
    assert_eq!(world.post_from(HERE, "/_stopover/prefetch", body).await.status, StatusCode::ACCEPTED);
}

async fn a_path_with_the_api_twice_is_answered_with_what_is_missing(column: Column) {
    let world = World::on(column).await;
    world.upstream.image("a", "1", &[b"layer"]);
    world.upstream.image("v2/a", "1", &[b"layer"]);
    let forgotten = world.get("/v2/test.local/v2/b/manifests/1").await;
    assert_eq!(forgotten.status, StatusCode::NOT_FOUND);
    assert!(forgotten.error().1.contains("override_path = true"), "{:?}", forgotten.error());
    assert!(!world.get("/v2/test.local/b/manifests/1").await.error().1.contains("override_path"));
    assert_eq!(world.get("/v2/test.local/v2/a/manifests/1").await.status, StatusCode::OK, "there is such a name");
    assert_eq!(
        world.get("//v2/test.local/a/manifests/1").await.status,
        StatusCode::OK,
        "a mirror with a slash at its end"
    );
}

async fn the_token_that_homebrew_sends_is_none(column: Column) {
    let world = world(column, "anonymous = true\nrobots = true\n").await;
    let with = async |token: &str| world.get_with(HERE, TAG, &[("authorization", token)]).await.status;
    assert_eq!(with("Bearer QQ==").await, StatusCode::OK);
    assert_eq!(with("Bearer QQ=").await, StatusCode::UNAUTHORIZED);
    let closed = self::world(column, "robots = true\n").await;
    let answer = closed.get_with(HERE, TAG, &[("authorization", "Bearer QQ==")]).await;
    assert_eq!(answer.status, StatusCode::UNAUTHORIZED);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn secrets_of_the_program_are_made_once_and_only_their_owner_may_read_them() {
    let data = tempfile::TempDir::new().unwrap();
    let settings = "[access]\nrobots = true\n[upstreams.\"test.local\"]\nurl = \"http://127.0.0.1:1\"\n";
    let keys = data.path().join("signing_keys");
    let mut seen = Vec::new();
    for _ in 0..2 {
        let local = open(data.path(), settings).await;
        assert_eq!(std::fs::metadata(&keys).unwrap().permissions().mode() & 0o777, 0o600);
        seen.push(std::fs::read_to_string(&keys).unwrap());
        local.stop(Duration::ZERO).await;
    }
    assert_eq!(seen[0], seen[1], "tokens are good after a restart");
    // A directory that is made is for its owner; what somebody has given to others stays so.
    let (made, given) = (data.path().join("new/data"), data.path().join("given"));
    std::fs::create_dir(&given).unwrap();
    std::fs::set_permissions(&given, std::fs::Permissions::from_mode(0o755)).unwrap();
    for (directory, mode) in [(&made, 0o700), (&given, 0o755)] {
        let config = Config::load(None, Cold::Follow, |secret| secret.read(|_| None)).unwrap();
        let config = Config { data_dir: directory.clone(), ..config };
        Local::open(config, Clock::default()).await.unwrap().stop(Duration::ZERO).await;
        assert_eq!(std::fs::metadata(directory).unwrap().permissions().mode() & 0o777, mode);
    }
    assert_eq!(BASE64_STANDARD.decode(seen[0].trim()).unwrap().len(), 32);
    // Where nobody can log in there are none.
    let other = tempfile::TempDir::new().unwrap();
    open(other.path(), "[access]\nanonymous = true\n").await.stop(Duration::ZERO).await;
    assert!(!other.path().join("signing_keys").exists());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn secrets_and_directories_that_others_own_or_may_write_are_refused() {
    let begun = async |data: &std::path::Path| {
        let file = std::path::Path::new("stopover.toml");
        let settings = "[access]\nrobots = true";
        let config = Config::parse(settings, file, Cold::Follow, |secret| secret.read(|_| None)).unwrap();
        let config = Config { data_dir: data.to_owned(), ..config };
        match Local::open(config, Clock::default()).await {
            Ok(local) => {
                local.stop(Duration::ZERO).await;
                String::new()
            }
            Err(error) => format!("{error:#}"),
        }
    };
    let data = tempfile::TempDir::new().unwrap();
    assert_eq!(begun(data.path()).await, "");
    let secret = data.path().join("signing_keys");
    let set = |path: &std::path::Path, mode| {
        std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode)).unwrap();
    };
    for (path, mode, right, advice) in [
        (secret.as_path(), 0o666, 0o600, "chmod go= "),
        (&secret, 0o640, 0o600, "chmod go= "),
        (data.path(), 0o777, 0o700, "chmod go-w "),
        (data.path(), 0o770, 0o700, "chmod go-w "),
    ] {
        set(path, mode);
        let error = begun(data.path()).await;
        assert!(error.contains(advice) && error.contains(&path.display().to_string()), "{mode:o}: {error}");
        set(path, right);
        assert_eq!(begun(data.path()).await, "");
    }
    let password = data.path().join("password");
    std::fs::write(&password, "s3cret").unwrap();
    for (mode, read) in [(0o644, true), (0o400, true), (0o646, false), (0o664, false)] {
        set(&password, mode);
        assert_eq!(stopover::config::SecretReference::File(&password).read(|_| None).is_ok(), read, "{mode:o}");
    }
    // In a sticky directory, as a new tmpfs is one, others cannot replace what is ours.
    set(data.path(), 0o1777);
    assert_eq!(begun(data.path()).await, "");
    // Only root may give a file away.
    let give = |path: &std::path::Path, user| std::os::unix::fs::chown(path, Some(user), None).is_ok();
    if give(&secret, 65_534) {
        for mode in [0o1777, 0o700] {
            set(data.path(), mode);
            assert!(begun(data.path()).await.contains("user 65534 owns"), "{mode:o}");
        }
        assert!(give(&secret, 0));
        // But they can put a ledger there before ours is.
        set(data.path(), 0o1777);
        let theirs = data.path().join("theirs");
        std::fs::write(&theirs, "").unwrap();
        assert!(give(&theirs, 65_534));
        assert!(begun(data.path()).await.contains("user 65534 owns"));
    }
}

/// A page whose name means 127.0.0.1 the next time it is asked for (DNS rebinding): to its browser this is the page's own
/// server, whose answers it may read.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn without_a_word_about_access_a_page_whose_name_leads_here_reads_nothing() {
    let (data, upstream) = (tempfile::TempDir::new().unwrap(), Scripted::start().unwrap());
    upstream.image("a", "1", &[b"layer"]);
    let local = open(data.path(), &format!("[upstreams.\"test.local\"]\nurl = \"{}\"\n", upstream.url())).await;
    let router = stopover::http::router(Arc::clone(&local.cache));
    let ask = async |method: &Method, path: &str, hosts: &[&str]| {
        let request = Request::builder().method(method).uri(path).extension(Peer::from("127.0.0.1".parse().ok()));
        let request = hosts.iter().fold(request, |request, host| request.header("host", *host));
        let response = router.clone().oneshot(request.body(Body::from("{\"images\": []}")).unwrap()).await.unwrap();
        let (status, body) = (response.status(), to_bytes(response.into_body(), 10_000).await.unwrap());
        (status, String::from_utf8(body.to_vec()).unwrap())
    };
    let asked = [(Method::GET, "/v2/"), (Method::GET, TAG), (Method::GET, "/_stopover/quota")];
    let asked = [&asked[..], &[(Method::POST, "/_stopover/prefetch")]].concat();
    for host in [
        "evil.test",
        "evil.test:5000",
        "localhost.evil.test",
        "cache.localhost",
        "127.0.0.1.evil.test",
        "10.0.0.1:5000",
        "[::2]",
        "a b",
    ] {
        for (method, path) in &asked {
            for hosts in [&[host][..], &["127.0.0.1", host]] {
                let (status, body) = ask(method, path, hosts).await;
                assert_eq!(status, StatusCode::MISDIRECTED_REQUEST, "{hosts:?} {path}: {body}");
                assert!(body.contains("\"DENIED\"") && body.contains("[access]"), "{body}");
            }
        }
    }
    assert!(upstream.requests().is_empty());
    for host in ["127.0.0.1:5000", "127.0.0.2", "LocalHost:5000", "localhost.", "[::1]:5000", "[::ffff:127.0.0.1]"] {
        for (method, path) in &asked {
            let (status, body) = ask(method, path, &[host]).await;
            assert!(status.is_success(), "{host} {path}: {status} {body}");
        }
    }
    // Whoever says in [access] who is let in decides what the cache is called.
    local.stop(Duration::ZERO).await;
    let data = tempfile::TempDir::new().unwrap();
    let local = open(data.path(), "[access]\nanonymous = [\"127.0.0.0/8\"]\n").await;
    let request = Request::get("/v2/").header("host", "cache.test").extension(Peer::from("127.0.0.1".parse().ok()));
    let response = stopover::http::router(Arc::clone(&local.cache)).oneshot(request.body(Body::empty()).unwrap()).await;
    assert_eq!(response.unwrap().status(), StatusCode::OK);
    local.stop(Duration::ZERO).await;
}
