//! The page at `/`: for people in a browser, and nothing new for anything else.

use std::time::Duration;

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use http::{Method, StatusCode};
use serde_json::{Value, json};
use stopover::config::Config;
use stopover::oci::{Algorithm, Digest, MediaType, Reference, Repository};
use stopover::pull::Want;
use stopover::setup::{Mirror, MirroredUpstream, Target};
use support::aws::Service;
use support::guests::{HERE, basic, robot};
use support::on_both_columns;
use support::scripted::{Fault, Scripted};
use support::world::{Answer, Column, DEADLINE, World};

on_both_columns!(
    a_browser_sees_what_is_stored_without_a_script,
    what_is_no_browser_gets_at_the_root_what_it_got_before,
    what_upstream_wrote_is_no_markup_in_any_view,
    a_browser_logs_in_with_the_name_and_the_secret_of_a_robot,
    the_page_says_what_the_endpoints_say,
    fills_and_risks_show_a_caller_what_it_may_pull_and_an_operator_why,
    what_expires_within_a_week_is_a_risk,
    setting_up_a_client_shows_what_the_command_prints_for_this_endpoint,
    what_is_to_be_copied_works_where_it_is_pasted,
    what_is_advised_can_be_done_in_this_installation,
);

const BROWSER: (&str, &str) = ("accept", "text/html,application/xhtml+xml,*/*;q=0.8");
const TYPED: [(&str, &str); 2] = [BROWSER, ("sec-fetch-site", "none")];

/// How a policy names what stands between two marks of a page, of which there is one.
fn hashed(text: &str, begin: &str, end: &str) -> String {
    assert_eq!((text.matches(begin).count(), text.matches(end).count()), (1, 1), "{begin}: {text}");
    let inner = text.split_once(begin).and_then(|(_, rest)| rest.split_once(end)).expect("in this order").0;
    format!("'sha256-{}'", BASE64_STANDARD.encode(Digest::of(Algorithm::Sha256, inner.as_bytes()).to_bytes()))
}

/// The text of a view, and that nothing in it is loaded or runs but its one style and its one script, which are in it.
fn checked(answer: Answer) -> (Answer, String) {
    assert_eq!(answer.header("content-type"), "text/html; charset=utf-8", "{answer:?}");
    assert_eq!((answer.header("cache-control"), answer.header("referrer-policy")), ("no-store", "no-referrer"));
    let text = String::from_utf8(answer.bytes().to_vec()).expect("UTF-8");
    let (style, script) = (hashed(&text, "<style>", "</style>"), hashed(&text, "<script>", "</script>"));
    let policy = format!(
        "default-src 'none'; style-src {style}; script-src {script}; connect-src 'self'; img-src data:; \
         form-action 'self'; base-uri 'none'; frame-ancestors 'none'"
    );
    assert_eq!(answer.header("content-security-policy"), policy);
    assert_eq!((text.matches("<script").count(), text.matches("<style").count()), (1, 1), "{text}");
    assert!(!text.contains("style=") && !text.contains("src="), "{text}");
    (answer, text)
}

async fn view(world: &World, path: &str) -> (Answer, String) {
    checked(world.send(Method::GET, path, &TYPED).await)
}

/// What an operator sees.
async fn shown(world: &World, path: &str) -> String {
    checked(world.operate_with(path, &TYPED).await).1
}

async fn pull(world: &World, path: &str) {
    assert_eq!(world.get(&format!("/v2/test.local/{path}")).await.status, StatusCode::OK);
    world.settled().await;
}

async fn a_browser_sees_what_is_stored_without_a_script(column: Column) {
    let world = World::on(column).await;
    let (answer, text) = view(&world, "/?view=images").await;
    assert!(answer.status == StatusCode::OK && text.contains("Nothing is stored"), "{text}");
    let image = world.upstream.image("team/app", "v1", &[b"layer"]);
    pull(&world, "team/app/manifests/v1").await;
    let (_, text) = view(&world, "/?view=images").await;
    assert!(
        text.contains("<a href=\"/?view=images&amp;name=test.local%2Fteam%2Fapp\">test.local/team/app</a>"),
        "{text}"
    );
    let (_, text) = view(&world, "/?name=test.local%2Fteam%2Fapp").await;
    for (digest, _) in &image.blobs {
        assert!(text.contains(digest.as_str()), "{text}");
    }
    assert!(view(&world, "/?view=images&prefix=other").await.1.contains("Nothing is stored"));
    for (path, status) in [
        ("/?view=images&n=0", StatusCode::BAD_REQUEST),
        ("/?name=test.local/none", StatusCode::NOT_FOUND),
        ("/?view=none", StatusCode::NOT_FOUND),
        ("/?view=setup&client=none", StatusCode::NOT_FOUND),
    ] {
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

/// What is markup in a name, a label, an error.
const MARKUP: &str = "<script>alert('1')</script><img src=x onerror=alert(1)>";

/// The operator's view, once it says this.
async fn until_shown(world: &World, path: &str, text: &str) -> String {
    let shown = async {
        loop {
            let seen = shown(world, path).await;
            if seen.contains(text) {
                return seen;
            }
            // The reason for this pause: no test is told when a fill fails, so the page is asked.
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    tokio::time::timeout(DEADLINE, shown).await.unwrap_or_else(|_| panic!("{path} never says {text}"))
}

async fn what_upstream_wrote_is_no_markup_in_any_view(column: Column) {
    let world = World::on(column).await;
    hostile(&world.upstream);
    pull(&world, "a/manifests/v1").await;
    let (_, text) = view(&world, "/?name=test.local/a").await;
    assert!(text.contains("&lt;script&gt;") && !text.contains('\u{202e}'), "{text}");
    let (_, text) = view(&world, "/?view=images&prefix=%22%3E%3Cscript%3E").await;
    assert!(text.contains("is the beginning of upstream/name"), "{text}");
    // In the challenge, the body and the reason of what fails, and in a quota.
    let image = world.upstream.image("b", "v1", &[b"another layer"]);
    let (layer, body) = (image.blobs[1].0.as_str(), json!({ "errors": [{ "code": MARKUP, "message": MARKUP }] }));
    world.upstream.fault(layer, Fault::Status(403, vec![("www-authenticate", MARKUP.into())], body.to_string()));
    assert_eq!(world.get("/v2/test.local/b/manifests/v1").await.status, StatusCode::OK);
    until_shown(&world, "/?view=risks", "a copy failed").await;
    for path in ["/", "/?view=fills", "/?view=risks", "/?view=setup", "/?view=setup&client=docker"] {
        for text in [shown(&world, path).await, view(&world, path).await.1] {
            assert!(!text.contains("<img") && !text.contains("alert('1')"), "{path}: {text}");
        }
    }
}

fn number<'a>(text: &'a str, name: &str) -> &'a str {
    let rest = text.split_once(name).unwrap_or_else(|| panic!("no {name}: {text}")).1;
    rest.split_once("<b>").and_then(|(_, rest)| rest.split_once("</b>")).expect("a number").0
}

async fn the_page_says_what_the_endpoints_say(column: Column) {
    let world = World::on(column).await;
    let (_, text) = view(&world, "/").await;
    assert!(text.contains("none yet") && text.contains("ready"), "{text}");
    assert!(!text.contains("<svg"), "nothing was counted yet: {text}");
    world.upstream.quota(100, 21);
    world.upstream.image("a", "1", &[b"layer"]);
    for _ in 0..4 {
        world.get("/v2/test.local/a/manifests/1").await;
    }
    world.settled().await;
    let status = world.operate(Method::GET, "/_stopover/status", "").await;
    let status: Value = serde_json::from_slice(status.bytes()).expect("JSON");
    let text = shown(&world, "/").await;
    assert_eq!(number(&text, "Answered from the cache"), format!("{} %", status["hit_percent"]));
    assert_eq!(number(&text, "Pulls saved"), status["day"]["counts"]["pulls_saved"].to_string());
    assert!(!number(&text, "Copied from upstreams").starts_with('0') && text.contains("Bytes saved"), "{text}");
    for each in ["24 hours", "30 days"] {
        assert!(text.contains(&format!("aria-label=\"Requests of the last {each}: at most 4 in one\"")), "{text}");
    }
    assert!(text.contains("20 of 100 in 6 h") && text.contains("<div>anonymous: "), "{text}");
    assert!(!view(&world, "/").await.1.contains("<div>anonymous: "), "accounts are for operators");
    world.upstream.quota(100, 0);
    world.upstream.image("b", "1", &[b"another layer"]);
    assert_eq!(world.get("/v2/test.local/b/manifests/1").await.status, StatusCode::TOO_MANY_REQUESTS);
    let text = shown(&world, "/?view=risks").await;
    assert!(text.contains("manifests not asked") && text.contains("<b>test.local/b</b>"), "{text}");
}

async fn fills_and_risks_show_a_caller_what_it_may_pull_and_an_operator_why(column: Column) {
    let access = "[access]\nanonymous = true\n[[policy]]\nwhat = [\"test.local/secret/*\"]\nallow = false\n";
    let world = World::plan(column).settings(access).start().await;
    assert!(view(&world, "/?view=fills").await.1.contains("Nothing is being copied"));
    for name in ["open/app", "secret/app"] {
        let image = world.upstream.image(name, "1", &[name.as_bytes()]);
        world.upstream.fault(image.blobs[1].0.as_str(), Fault::Status(404, vec![], String::new()));
        let name = name.parse().expect("a name");
        let repository = Repository { upstream: "test.local".parse().expect("an id"), name };
        let tag = Reference::Tag("1".parse().expect("a tag"));
        world.cache.pull.manifest(&repository, &tag, Want::GET).await.expect("a manifest");
        world.settled().await;
    }
    let risks = until_shown(&world, "/?view=risks", "<b>test.local/secret/app</b>").await;
    assert!(risks.contains("<b>test.local/open/app</b>") && risks.contains("upstream does not have it"), "{risks}");
    let (_, risks) = view(&world, "/?view=risks").await;
    assert!(risks.contains("<b>test.local/open/app</b>") && !risks.contains("secret/app"), "{risks}");
    assert!(risks.contains("the operator of this cache sees why") && !risks.contains("does not have it"), "{risks}");
    if column == Column::Embedded {
        let fills = shown(&world, "/?view=fills").await;
        assert!(
            fills.contains("given up") && fills.contains("does not have it") && fills.contains("secret/app"),
            "{fills}"
        );
        let (_, fills) = view(&world, "/?view=fills").await;
        assert!(fills.contains("given up") && fills.contains("test.local/open/app"), "{fills}");
        assert!(!fills.contains("does not have it") && !fills.contains("secret/app"), "{fills}");
        // The endpoint says the same.
        let of = |answer: Answer| -> Value { serde_json::from_slice(answer.bytes()).expect("JSON") };
        let all = of(world.operate(Method::GET, "/_stopover/fills", "").await);
        assert_eq!((all["fills"].as_array().map(Vec::len), &all["more"]), (Some(2), &json!(0)), "{all}");
        let seen = of(world.get("/_stopover/fills").await);
        let [fill] = &seen["fills"].as_array().expect("a list")[..] else { panic!("{seen}") };
        assert_eq!(fill["repository"], "test.local/open/app");
        assert_eq!(fill["failure"], "the operator of this cache sees why");
    }
}

async fn what_expires_within_a_week_is_a_risk(column: Column) {
    let day = Duration::from_hours(24);
    let world = World::plan(column).settings("keep = \"30d\"\n").start().await;
    world.upstream.image("a", "1", &[b"layer"]);
    pull(&world, "a/manifests/1").await;
    assert!(view(&world, "/?view=risks").await.1.contains("Nothing expires within a week"));
    world.clock.advance(25 * day);
    let (_, text) = view(&world, "/?view=risks").await;
    assert!(text.contains("<a href=\"/?view=images&amp;name=test.local%2Fa\">test.local/a</a>"), "{text}");
}

async fn setting_up_a_client_shows_what_the_command_prints_for_this_endpoint(column: Column) {
    let world = World::on(column).await;
    let headers = [BROWSER, ("host", "127.0.0.1:5000")];
    let text = checked(world.operate_with("/?view=setup", &headers).await).1;
    for target in Target::ALL {
        assert!(text.contains(&format!("/?view=setup&amp;client={}\"", target.name())), "{text}");
    }
    let config: &Config = &world.cache.core.config;
    let upstreams: Vec<MirroredUpstream> = MirroredUpstream::all(config).collect();
    let mirror = Mirror { is_plain: true, host: "127.0.0.1:5000".into() };
    for target in Target::ALL {
        let path = format!("/?view=setup&client={}", target.name());
        let text = checked(world.operate_with(&path, &headers).await).1;
        let text = text.replace("&lt;", "<").replace("&gt;", ">").replace("&quot;", "\"").replace("&#39;", "'");
        let text = text.replace("&amp;", "&");
        for printed in [target.configuration(&mirror, &upstreams), target.advice(&mirror, &upstreams)] {
            assert!(text.contains(&printed), "{target:?}\n{printed}\n{text}");
        }
    }
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
    // Without robots there is no name and no secret to ask for.
    let issuer =
        "[access.oidc.ci]\nissuer = \"https://issuer.test\"\naudience = \"stopover\"\nclaims = { owner = \"1\" }\n";
    let open = "[access]\nsigning_keys = { env = \"TEST_KEYS\" }\nanonymous = true\n";
    let without = World::plan(column).settings(&format!("{open}{issuer}")).start().await;
    for path in ["/", "/?login=yes"] {
        let (open, text) = view(&without, path).await;
        assert!(open.status == StatusCode::OK && !text.contains("robot"), "{text}");
    }
    // Where anonymous callers are let in, a login is asked for only if that is wanted.
    let world = World::plan(column).settings(&format!("{access}anonymous = true\n")).start().await;
    let (open, text) = view(&world, "/").await;
    assert!(open.status == StatusCode::OK && text.contains("href=\"/?login=yes\""), "{text}");
    assert_eq!(view(&world, "/?login=yes").await.0.status, StatusCode::UNAUTHORIZED);
    let login = basic("ci", &robot(&world, "ci").await);
    let answer = world.get_with(HERE, "/?login=yes", &[BROWSER, ("authorization", &login)]).await;
    assert!(answer.status == StatusCode::OK && checked(answer).1.contains("<footer>robot:ci: sees what"));
}

async fn what_is_to_be_copied_works_where_it_is_pasted(column: Column) {
    let world = World::on(column).await;
    let image = world.upstream.image("a", "1", &[b"layer"]);
    pull(&world, "a/manifests/1").await;
    let by_digest = world.upstream.image("b", "1", &[b"another layer"]);
    pull(&world, &format!("b/manifests/{}", by_digest.digest)).await;
    let there = [BROWSER, ("host", "cache.example.com:5000")];
    let (here, here_too) = ([BROWSER, ("host", "127.0.0.1:5000")], [BROWSER, ("host", "localhost")]);
    for (headers, server) in [(&there, " --server http://cache.example.com:5000"), (&here, ""), (&here_too, "")] {
        let of = async |name: &str| checked(world.send(Method::GET, &format!("/?name={name}"), headers).await).1;
        let text = of("test.local/a").await;
        assert!(text.contains(&format!(">stopover refresh test.local/a:1{server}\n<")), "{text}");
        let text = of(&format!("test.local/b@{}", by_digest.digest)).await;
        let purge = format!(">stopover purge test.local/b@{}{server}\n<", by_digest.digest);
        assert_eq!(text.contains(&purge), column == Column::Embedded, "nothing purges on AWS: {text}");
        assert!(!text.contains("stopover refresh") && !text.contains("pin ="), "a digest never changes: {text}");
        let text = of(&format!("test.local/a@{}", image.digest)).await;
        assert!(!text.contains("stopover refresh"), "{text}");
        // Whether a proxy ends TLS is not seen from behind it.
        let text = checked(world.send(Method::GET, "/?view=setup&client=docker", headers).await).1;
        assert_eq!(text.contains("<code>url</code> in <code>[access]</code>"), !server.is_empty(), "{text}");
    }
    let world = World::plan(column).settings("[access]\nanonymous = true\nurl = \"https://cr.test\"\n").start().await;
    let text = checked(world.send(Method::GET, "/?view=setup&client=docker", &there).await).1;
    assert!(text.contains("https://cr.test") && !text.contains("<code>url</code>"), "{text}");
}

async fn what_is_advised_can_be_done_in_this_installation(column: Column) {
    let world = World::on(column).await;
    world.upstream.image("a", "1", &[b"layer"]);
    pull(&world, "a/manifests/1").await;
    let text = shown(&world, "/?name=test.local/a").await;
    assert!(text.contains("stopover refresh"), "{text}");
    assert_eq!(text.contains("stopover purge"), column == Column::Embedded, "{text}");
    // On AWS the role of the function that answers clients may not read the queues.
    let Some(endpoints) = world.endpoints() else { return };
    for path in ["/?view=fills", "/?view=risks"] {
        endpoints.fail_next(Service::Sqs, "ReceiveMessage", 100);
        let text = shown(&world, path).await;
        endpoints.heal();
        assert!(text.contains("{&quot;fills&quot;: &quot;list&quot;}") && !text.contains("stopover fills"), "{text}");
    }
    endpoints.fail_next(Service::Sqs, "ReceiveMessage", 100);
    let answer = world.operate(Method::GET, "/_stopover/fills", "").await;
    endpoints.heal();
    let said = String::from_utf8_lossy(answer.bytes());
    assert!(answer.status == StatusCode::SERVICE_UNAVAILABLE && said.contains("filler function"), "{said}");
}
