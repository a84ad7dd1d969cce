//! Where requests may go, and what they may carry there.

use std::net::TcpListener;
use std::time::Duration;

use http::{Method, StatusCode};
use stopover::config::Cold;
use support::aws::{EVERY_OPERATION, Service};
use support::guests::basic;
use support::on_both_columns;
use support::scripted::{Fault, Login, Scripted};
use support::world::{Column, PASSWORD, World};

on_both_columns!(
    redirects_are_followed_without_our_credentials,
    a_redirect_into_the_private_network_is_refused,
    another_port_of_the_upstream_is_another_server,
    clients_are_not_sent_into_the_private_network,
    a_realm_in_the_private_network_gets_no_request,
    a_token_server_that_redirects_gets_our_credentials_nowhere,
    neither_tokens_nor_cookies_go_to_where_upstream_redirects,
    no_spelling_of_a_name_gets_around_a_rule,
    a_flood_of_ranges_is_one_fill_and_costs_each_client_one_answer,
    a_redirect_loop_is_refused,
    five_redirects_are_followed,
    a_token_realm_that_is_not_allowed_gets_no_request,
    a_private_blob_is_never_redirected_to_upstream,
);

const TAG: &str = "/v2/test.local/a/manifests/1";
const LOGIN: &str = "public = true\ncredentials = { username = \"me\", password_env = \"TEST_SECRET\" }";

fn redirect(url: String) -> Fault {
    Fault::Status(307, vec![("location", url)], String::new())
}

async fn redirects_are_followed_without_our_credentials(column: Column) {
    let world = World::plan(column).cold(Cold::Wait).upstream(LOGIN).start().await;
    world.upstream.require(Login::Basic("me".into(), PASSWORD.into()));
    let image = world.upstream.image("a", "1", &[b"layer"]);
    // The same host on another port is another origin.
    let elsewhere = Scripted::start().unwrap();
    let digest = &image.blobs[1].0;
    elsewhere.blob("cdn", digest, &image.blobs[1].1);
    let path = format!("/v2/cdn/blobs/{digest}");
    world.upstream.fault(&format!("blobs/{digest}"), redirect(format!("{}{path}?signature=secret", elsewhere.url())));
    world.get(TAG).await;
    assert_eq!(world.pull(&format!("/v2/test.local/a/blobs/{digest}")).await.bytes().as_ref(), b"layer");
    let seen = elsewhere.requests();
    assert_eq!(seen.len(), 1);
    assert!(!seen[0].headers.contains_key("authorization"));
}

/// Something inside the operator's network that must not be connected to.
struct Inside {
    listener: TcpListener,
    port: u16,
}

impl Inside {
    fn at(address: &str) -> Self {
        let listener = TcpListener::bind(address).expect("loopback has this address");
        listener.set_nonblocking(true).expect("it can be asked");
        let port = listener.local_addr().expect("it listens").port();
        Self { listener, port }
    }

    fn is_alone(&self) -> bool {
        self.listener.accept().is_err_and(|error| error.kind() == std::io::ErrorKind::WouldBlock)
    }
}

/// Ways to write the addresses of two that listen inside (`127.0.0.2`, `::1`), without a scheme.
fn spellings(four: u16, six: u16) -> Vec<String> {
    let hosts = "127.0.0.2 2130706434 0x7f000002 0x7f.2 0177.0.0.2 127.2 %31%32%37.0.0.2 127%2e0.0.2 [::ffff:127.0.0.2] \
         [::ffff:7f00:2] [0:0:0:0:0:FFFF:7F00:0002]";
    let v4 = hosts.split_whitespace().map(|host| format!("{host}:{four}"));
    let hosts = "[::1] [0:0:0:0:0:0:0:1] [::] localhost LOCALHOST";
    v4.chain(hosts.split_whitespace().map(|host| format!("{host}:{six}"))).collect()
}

/// Where clouds keep credentials, and what else is not public.
const ELSEWHERE_INSIDE: &str = "169.254.169.254 [fd00:ec2::254] 0xa9fea9fe 2852039166 [::ffff:169.254.169.254] \
     [::ffff:a9fe:a9fe] [::169.254.169.254] [64:ff9b::a9fe:a9fe] [64:ff9b:1::a9fe:a9fe] [2002:a9fe:a9fe::1] [2001::a9fe:a9fe] \
     [fe80::1] [fec0::1] [fc00::1] [ff02::1] 100.64.0.1 100.100.100.200 192.0.0.192 10.0.0.1 172.16.0.1 192.168.0.1 198.18.0.1 \
     240.0.0.1 255.255.255.255 224.0.0.1 0 0.0.0.0";

async fn a_redirect_into_the_private_network_is_refused(column: Column) {
    let world = World::plan(column).cold(Cold::Wait).settings("wait = \"2s\"").start().await;
    let image = world.upstream.image("a", "1", &[b"layer"]);
    let (four, six) = (Inside::at("127.0.0.2:0"), Inside::at("[::1]:0"));
    let hosts = spellings(four.port, six.port).into_iter();
    let hosts: Vec<String> = hosts.chain(ELSEWHERE_INSIDE.split_whitespace().map(str::to_owned)).collect();
    // Over HTTP none is asked, whatever its address is. What a name resolves to is for the operator's log.
    let plain = hosts.iter().map(|host| (format!("http://{host}"), "not https"));
    let is_name = |host: &str| host.to_ascii_lowercase().starts_with("localhost:");
    let refusal = |host: &str| if is_name(host) { "redirects to is unavailable" } else { "not a public address" };
    for (target, reason) in hosts.iter().map(|host| (format!("https://{host}"), refusal(host))).chain(plain) {
        world.upstream.fault("/v2/a/", redirect(format!("{target}/latest/meta-data/")));
        let answer = world.get(TAG).await;
        assert!(answer.status.is_server_error(), "{target}: {answer:?}");
        let (_, said) = answer.error();
        assert!(said.contains(reason), "{target}: {said}");
        world.upstream.heal();
        // What it said of itself before that must not have it be left alone.
        world.clock.advance(Duration::from_mins(10));
    }
    for target in [&format!("http://127.0.0.2:{}/", four.port), "file:///etc/passwd", "gopher://127.0.0.2/"] {
        world.upstream.fault("/v2/a/", redirect(target.to_owned()));
        for path in [TAG.to_owned(), format!("/v2/test.local/a/blobs/{}", image.blobs[1].0)] {
            let answer = world.get(&path).await;
            assert!(answer.status.is_server_error(), "{target} {path}: {answer:?}");
        }
        world.upstream.heal();
    }
    assert!(four.is_alone() && six.is_alone(), "somebody has connected");
    assert!(world.stored_blobs().await.is_empty());
}

/// The same host on another port, of which the operator has said nothing: neither asked nor handed to a client.
async fn another_port_of_the_upstream_is_another_server(column: Column) {
    let inside = Scripted::start().unwrap();
    inside.fault("/latest", Fault::Status(200, Vec::new(), "secret".into()));
    for cold in [Cold::Redirect, Cold::Wait] {
        // Only the first upstream trusts its whole host.
        let upstream = Scripted::start().unwrap();
        let image = upstream.image("a", "1", &[b"secre"]);
        let table = format!("wait = \"2s\"\n[upstreams.\"plain.local\"]\nurl = \"{}\"", upstream.url());
        let world = World::plan(column).cold(cold).settings(&table).start().await;
        let digest = &image.blobs[1].0;
        upstream.fault(&format!("blobs/{digest}"), redirect(format!("{}/latest/meta-data", inside.url())));
        let answer = world.get(&format!("/v2/plain.local/a/blobs/{digest}")).await;
        assert!(answer.status.is_server_error(), "{cold:?} {answer:?}");
        upstream.fault("/manifests/1", redirect(format!("{}/latest/meta-data", inside.url())));
        let answer = world.get("/v2/plain.local/a/manifests/1").await;
        assert_eq!(answer.status, StatusCode::BAD_GATEWAY);
        assert!(answer.error().1.contains("trusted_hosts"), "{answer:?}");
        world.settled().await;
    }
    assert!(inside.requests().is_empty(), "{:?}", inside.requests());
}

async fn clients_are_not_sent_into_the_private_network(column: Column) {
    let world = World::plan(column).cold(Cold::Redirect).start().await;
    for (number, target) in
        ["http://169.254.169.254/latest", "https://10.0.0.1/", "https://localhost:22/", "https://user:pw@1.1.1.1/evil"]
            .into_iter()
            .enumerate()
    {
        let image = world.upstream.image("a", "1", &[format!("layer {number}").as_bytes()]);
        let digest = &image.blobs[1].0;
        world.upstream.fault(&format!("blobs/{digest}"), redirect(target.to_owned()));
        let answer = world.get(&format!("/v2/test.local/a/blobs/{digest}")).await;
        assert!(answer.status.is_server_error(), "{target}: {answer:?}");
        assert_eq!(answer.header("location"), "", "{target}");
    }
}

async fn a_realm_in_the_private_network_gets_no_request(column: Column) {
    let (four, six) = (Inside::at("127.0.0.2:0"), Inside::at("[::1]:0"));
    for realm in spellings(four.port, six.port) {
        let world = World::plan(column).upstream(LOGIN).start().await;
        world.upstream.require(Login::BearerFrom(format!("http://{realm}/token")));
        world.upstream.image("a", "1", &[b"layer"]);
        let answer = world.get(TAG).await;
        assert_eq!(answer.status, StatusCode::BAD_GATEWAY, "{realm}: {answer:?}");
        assert!(answer.error().1.contains("token_realms"), "{realm}: {answer:?}");
    }
    assert!(four.is_alone() && six.is_alone(), "somebody has connected");
}

async fn a_token_server_that_redirects_gets_our_credentials_nowhere(column: Column) {
    let world = World::plan(column).upstream(LOGIN).start().await;
    let elsewhere = Scripted::start().unwrap();
    world.upstream.require(Login::Bearer);
    world.upstream.image("a", "1", &[b"layer"]);
    world.upstream.fault("GET /token", redirect(format!("{}/token", elsewhere.url())));
    let answer = world.get(TAG).await;
    assert!(answer.status.is_server_error(), "{answer:?}");
    assert_eq!(world.upstream.count("GET /token"), 1);
    assert!(elsewhere.requests().is_empty());
}

async fn neither_tokens_nor_cookies_go_to_where_upstream_redirects(column: Column) {
    let world = World::plan(column).cold(Cold::Wait).upstream(LOGIN).start().await;
    world.upstream.require(Login::Bearer);
    let image = world.upstream.image("a", "1", &[b"layer"]);
    let elsewhere = Scripted::start().unwrap();
    let (digest, bytes) = &image.blobs[1];
    elsewhere.blob("cdn", digest, bytes);
    let cookie = ("set-cookie", "session=of-the-upstream; Path=/".to_owned());
    let location = ("location", format!("{}/v2/cdn/blobs/{digest}", elsewhere.url()));
    world.upstream.fault(&format!("blobs/{digest}"), Fault::Status(307, vec![location, cookie], String::new()));
    let theirs = [
        ("cookie", "session=of-the-client"),
        ("authorization", "Basic b2YtdGhlOmNsaWVudA=="),
        ("x-forwarded-for", "::1"),
    ];
    for path in [TAG.to_owned(), format!("/v2/test.local/a/blobs/{digest}"), format!("/v2/test.local/a/blobs/{digest}")]
    {
        world.send(Method::GET, &path, &theirs).await;
    }
    world.settled().await;
    assert!(!elsewhere.requests().is_empty());
    for seen in elsewhere.requests() {
        assert!(!seen.headers.contains_key("authorization"), "{seen:?}");
    }
    let basic = basic("me", PASSWORD);
    for seen in world.upstream.requests().iter().chain(&elsewhere.requests()) {
        assert!(!seen.headers.contains_key("cookie") && !seen.headers.contains_key("x-forwarded-for"), "{seen:?}");
        let authorization = seen.headers.get("authorization").and_then(|value| value.to_str().ok());
        let ours = |value: &str| value.starts_with("Bearer token-") || value == basic;
        assert!(authorization.is_none_or(ours), "{seen:?}");
    }
}

async fn no_spelling_of_a_name_gets_around_a_rule(column: Column) {
    let access = "[access]\nanonymous = true\n[[policy]]\nwhat = [\"test.local/secret/*\"]\nallow = false";
    let world = World::plan(column).settings(access).start().await;
    world.upstream.image("secret/app", "1", &[b"layer"]);
    for name in "secret/app %73ecret/app secret%2fapp secret%2Fapp secret%252fapp SECRET/app Secret/App secret//app /secret/app \
         ./secret/app secret/./app x/../secret/app x/%2e%2e/secret/app x/%2E./secret/app x/%252e%252e/secret/app secret/app/ \
         secret/app%2f secret/app%00 secret%00/app secret/app%20 secret/app. secret\\app secret;x/app %EF%BD%93ecret/app \
         secr%D0%B5t/app library/../secret/app secret/app@sha256 secret%C0%AFapp"
        .split_whitespace()
    {
        for path in [
            format!("/v2/test.local/{name}/manifests/1"),
            format!("/test.local/v2/{name}/manifests/1"),
            format!("/v2/{name}/manifests/1?ns=test.local"),
            format!("/v2//test.local/{name}/manifests/1"),
            format!("//v2/test.local/{name}/manifests/1"),
            format!("/v2/test.local/{name}/manifests/1/"),
            format!("/v2/test.local/{name}/manifests//1"),
        ] {
            let answer = world.get(&path).await;
            assert!(answer.status.is_client_error(), "{path}: {answer:?}");
        }
    }
    assert!(world.upstream.requests().is_empty(), "{:?}", world.upstream.requests());
}

/// How many clients come at once.
const MANY: usize = 200;

async fn a_flood_of_ranges_is_one_fill_and_costs_each_client_one_answer(column: Column) {
    let world = World::on(column).await;
    let layer: Vec<u8> = (0..100_000_u32).flat_map(u32::to_le_bytes).collect();
    let image = world.upstream.image("a", "1", &[&layer]);
    world.get(TAG).await;
    let path = format!("/v2/test.local/a/blobs/{}", image.blobs[1].0);
    let flood = async || {
        let ranges: Vec<String> = (0..MANY).map(|number| format!("bytes={}-", number * 1000)).collect();
        let asked = ranges.iter().map(async |range| world.get_with("192.0.2.1", &path, &[("range", range)]).await);
        futures_util::future::join_all(asked).await
    };
    let expected = if column == Column::Aws { StatusCode::TEMPORARY_REDIRECT } else { StatusCode::PARTIAL_CONTENT };
    for answer in flood().await {
        assert_eq!(answer.status, expected, "{answer:?}");
    }
    world.settled().await;
    let downloads = |world: &World| world.upstream.count(&format!("GET /v2/a/blobs/{}", image.blobs[1].0));
    let cold = downloads(&world);
    if let Some(endpoints) = world.endpoints() {
        // Before a blob is stored, upstream is also asked where clients are to be redirected.
        let uploads = ["PutObject", "CreateMultipartUpload"].map(|call| endpoints.calls(Service::S3, call));
        assert_eq!(uploads.iter().sum::<usize>(), image.blobs.len(), "each blob is filled once");
    } else {
        assert_eq!(cold, 1);
    }
    let looked_up = world.endpoints().map(|endpoints| endpoints.calls(Service::DynamoDb, EVERY_OPERATION));
    for (number, answer) in flood().await.into_iter().enumerate() {
        if column == Column::Embedded {
            assert_eq!(answer.status, StatusCode::PARTIAL_CONTENT, "{answer:?}");
            assert_eq!(answer.bytes().as_ref(), &layer[number * 1000..]);
        } else {
            assert_eq!(answer.status, StatusCode::TEMPORARY_REDIRECT, "the bucket has the work: {answer:?}");
        }
    }
    assert_eq!(downloads(&world), cold, "what is stored costs upstream nothing");
    if let (Some(endpoints), Some(before)) = (world.endpoints(), looked_up) {
        let calls = endpoints.calls(Service::DynamoDb, EVERY_OPERATION) - before;
        assert!(calls <= 4 * MANY, "{calls} calls of the ledger");
    }
    // Thousands of ranges in one request are the whole once, not each of them.
    let ranges: Vec<String> = (0..5000).map(|number| format!("{number}-")).collect();
    let all = [("range", &*format!("bytes={}", ranges.join(",")))];
    let answer = world.send_with("192.0.2.1", Method::GET, &path, &all).await;
    if column == Column::Embedded {
        assert_eq!((answer.status, answer.bytes().as_ref()), (StatusCode::OK, &*layer));
    }
}

async fn a_redirect_loop_is_refused(column: Column) {
    let world = World::on(column).await;
    world.upstream.fault("/manifests/", redirect("/v2/a/manifests/again".to_owned()));
    assert_eq!(world.get(TAG).await.status, StatusCode::BAD_GATEWAY);
    assert_eq!(world.upstream.requests().len(), 6, "the request and five redirects");
}

async fn five_redirects_are_followed(column: Column) {
    let world = World::on(column).await;
    let image = world.upstream.image("a", "hop5", &[b"layer"]);
    for hop in 0..5 {
        world.upstream.fault(&format!("/manifests/hop{hop}"), redirect(format!("/v2/a/manifests/hop{}", hop + 1)));
    }
    let answer = world.get("/v2/test.local/a/manifests/hop0").await;
    assert_eq!(answer.header("docker-content-digest"), image.digest.as_str());
}

async fn a_token_realm_that_is_not_allowed_gets_no_request(column: Column) {
    let world = World::plan(column).upstream(LOGIN).start().await;
    let elsewhere = Scripted::start().unwrap();
    world.upstream.require(Login::BearerFrom(format!("{}/token", elsewhere.url())));
    world.upstream.image("a", "1", &[b"layer"]);
    let answer = world.get(TAG).await;
    assert_eq!(answer.status, StatusCode::BAD_GATEWAY);
    assert!(answer.error().1.contains("token_realms"), "{:?}", answer.error());
    assert!(elsewhere.requests().is_empty());
}

async fn a_private_blob_is_never_redirected_to_upstream(column: Column) {
    let world = World::plan(column).cold(Cold::Redirect).upstream(LOGIN).start().await;
    world.upstream.require(Login::Basic("me".into(), PASSWORD.into()));
    let image = world.upstream.image("a", "1", &[b"layer"]);
    world.get(TAG).await;
    let answer = world.get(&format!("/v2/test.local/a/blobs/{}", image.blobs[1].0)).await;
    assert!(!answer.header("location").starts_with(&world.upstream.url()), "{answer:?}");
    assert_eq!(world.pull(&format!("/v2/test.local/a/blobs/{}", image.blobs[1].0)).await.bytes().as_ref(), b"layer");
}
