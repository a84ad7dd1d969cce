//! What answers in the place of a cache, or does not.

use std::convert::Infallible;

use anyhow::ensure;
use axum::Router;
use axum::body::Body;
use axum::response::Response;
use http::{HeaderMap, Method, Request, StatusCode};
use serde_json::json;
use support::images::digest_of;
use support::node::Node;
use support::program::{Installation, UPSTREAM};
use support::tls::TlsServer;
use tokio::net::TcpListener;

use super::{Cache, Findings, examine, examine_server, nobody};

#[tokio::test]
async fn a_server_that_cannot_be_reached_fails_at_the_first_step_that_shows_it() -> anyhow::Result<()> {
    let found = examine_server("http://stopover.invalid:5000", "alpine").await?;
    found.fails_at("name", "stopover.invalid does not resolve")?;
    let found = examine_server("http://127.0.0.1:1", "alpine").await?;
    found.fails_at("connection", "nothing listens at 127.0.0.1 port 1")
}

#[tokio::test]
async fn certificates_of_an_unknown_authority_expired_and_for_another_name_are_told_apart() -> anyhow::Result<()> {
    let node = Node::new()?;
    let home = node.path("");
    TlsServer::certify(&home).await?;
    let expire = "openssl x509 -in good.pem -signkey key.pem -days -1 -out expired.pem";
    node.run("sh", &["-c", &format!("cd '{}' && {expire}", home.display())]).await?;
    let good = TlsServer::start(&home, "good.pem").await?;
    let expired = TlsServer::start(&home, "expired.pem").await?;
    let trusting = |certificate: &str| ("SSL_CERT_FILE", home.join(certificate).into_os_string());
    let untrusting = examine_server(&format!("https://127.0.0.1:{}", good.port()), "alpine").await?;
    untrusting.fails_at("tls", "an authority that this machine does not know")?;
    for (server, certificate, step, words) in [
        (format!("https://127.0.0.1:{}", expired.port()), "expired.pem", "tls", "has expired"),
        (format!("https://localhost:{}", good.port()), "good.pem", "tls", "for another name"),
        // Trusted: what fails is the page of openssl.
        (format!("https://127.0.0.1:{}", good.port()), "good.pem", "registry", "is no registry"),
    ] {
        let node = nobody()?.with(trusting(certificate));
        let found = examine(&node, &server, &[]).await?;
        found.fails_at(step, words)?;
    }
    // One that speaks plain HTTP.
    let cache = Cache::start().await?;
    let found = examine_server(&cache.server.replace("http:", "https:"), "alpine").await?;
    found.fails_at("tls", "does not speak TLS")
}

/// A server that gives these answers.
async fn serve(answer: impl Fn(&str) -> Response + Clone + Send + Sync + 'static) -> anyhow::Result<String> {
    let listener = TcpListener::bind("127.0.0.1:0").await?;
    let server = format!("http://{}", listener.local_addr()?);
    let router = Router::new().fallback(move |request: Request<Body>| {
        let answer = answer(request.uri().path());
        async move { answer }
    });
    tokio::spawn(axum::serve(listener, router).into_future());
    Ok(server)
}

fn respond(status: StatusCode, headers: &[(&str, &str)], body: impl Into<Body>) -> Response {
    let mut response = Response::builder().status(status);
    for (name, value) in headers {
        response = response.header(*name, *value);
    }
    response.body(body.into()).unwrap_or_default()
}

/// What a cache says of itself at `/v2/`.
const CACHE: [(&str, &str); 2] = [("docker-distribution-api-version", "registry/2.0"), ("x-stopover", "hit")];

#[tokio::test]
async fn a_server_that_accepts_connections_and_says_nothing_fails_within_seconds() -> anyhow::Result<()> {
    // Nobody accepts: the system does, and keeps what is sent.
    let listener = TcpListener::bind("127.0.0.1:0").await?;
    let address = listener.local_addr()?;
    let (tls, plain) = (format!("https://{address}"), format!("http://{address}"));
    let (tls, plain) = tokio::join!(examine_server(&tls, "alpine"), examine_server(&plain, "alpine"));
    tls?.fails_at("tls", "no answer within 10 s")?;
    plain?.fails_at("registry", "is not answered")
}

#[tokio::test]
async fn what_answers_in_the_place_of_a_cache_is_named() -> anyhow::Result<()> {
    for (status, words) in [
        (StatusCode::OK, "is no registry: it answers 200 OK with text/html"),
        (StatusCode::NOT_FOUND, "is no registry"),
        (StatusCode::UNAUTHORIZED, "asks for a login that is none of a Stopover"),
        (StatusCode::FORBIDDEN, "`anonymous` in [access]"),
        (StatusCode::BAD_GATEWAY, "answers 502"),
        (StatusCode::MOVED_PERMANENTLY, "the URL that it redirects to"),
    ] {
        let server = serve(move |_| respond(status, &[("content-type", "text/html")], "<html>")).await?;
        examine_server(&server, "alpine").await?.fails_at("registry", words)?;
    }
    Ok(())
}

#[tokio::test]
async fn a_pull_that_does_not_come_from_a_cache_or_with_other_bytes_fails() -> anyhow::Result<()> {
    let mut cache = Cache::start().await?;
    let found = examine_server(&cache.upstream.url(), &cache.image()).await?;
    found.fails_at("registry", "is a registry, but no Stopover")?;
    let manifest = cache.image.manifests.remove(0);
    for (corrupt, words) in [("/blobs/", "the blob sha256:"), ("/manifests/", "the manifest is not sha256:")] {
        let manifest = manifest.clone();
        let server = serve(move |path| {
            let change =
                |bytes: Vec<u8>| if path.contains(corrupt) { bytes.iter().map(|byte| !byte).collect() } else { bytes };
            if path.ends_with("/v2/") {
                respond(StatusCode::OK, &CACHE, "{}")
            } else if path.contains("/manifests/") {
                let kind = ("content-type", "application/vnd.oci.image.manifest.v1+json");
                let digest = ("docker-content-digest", manifest.digest.as_str());
                respond(StatusCode::OK, &[CACHE[1], kind, digest], change(manifest.bytes.clone()))
            } else {
                respond(StatusCode::OK, &CACHE, change(b"blob".to_vec()))
            }
        });
        examine_server(&server.await?, "a/b:1").await?.fails_at("pull", words)?;
    }
    // Unknown to the cache, and without its header.
    let found = examine_server(&cache.server, &format!("{UPSTREAM}/team/none:1")).await?;
    found.fails_at("pull", "404")?;
    let server = serve(|path| respond(StatusCode::OK, if path == "/v2/" { &CACHE } else { &[] }, "{}")).await?;
    examine_server(&server, "a/b:1").await?.fails_at("pull", "does not come from a Stopover")
}

/// A cache whose answers to HEAD pass a gateway, and the other ones too where `renames`.
async fn behind(gateway: fn(&mut HeaderMap), renames: bool) -> anyhow::Result<Findings> {
    let cache = Cache::start().await?;
    let listener = TcpListener::bind("127.0.0.1:0").await?;
    let server = format!("http://{}", listener.local_addr()?);
    let (client, behind) = (stopover::values::crypto::http_client().no_proxy().build()?, cache.server.clone());
    let router = Router::new().fallback(move |request: Request<Body>| {
        let (client, head) = (client.clone(), request.method() == Method::HEAD);
        let asked = client.request(request.method().clone(), format!("{behind}{}", request.uri()));
        async move {
            let answer = asked.headers(request.headers().clone()).send().await.expect("the cache answers");
            let (status, mut headers) = (answer.status(), answer.headers().clone());
            if head || renames {
                gateway(&mut headers);
            }
            // A stream has no length that the server would add by itself.
            (status, headers, Body::from_stream(answer.bytes_stream()))
        }
    });
    tokio::spawn(axum::serve(listener, router).into_future());
    examine_server(&server, &cache.image()).await
}

#[tokio::test]
async fn a_gateway_that_changes_what_head_says_is_found_and_the_front_to_use_is_named() -> anyhow::Result<()> {
    let drops = |headers: &mut HeaderMap| drop(headers.remove("content-length"));
    let counts = |headers: &mut HeaderMap| drop(headers.insert("content-length", 0.into()));
    let found = behind(counts, false).await?;
    found.fails_at("head", "tells 0 bytes, but GET sends")?;
    found.fails_at("head", "never a REST API or a function URL")?;
    behind(drops, false).await?.fails_at("head", "tells no length, on which Docker fails")?;
    let asks_with_get = |headers: &mut HeaderMap| {
        headers.remove("content-length");
        headers.remove("docker-content-digest");
    };
    behind(asks_with_get, false).await?.step("ok", "head", "clients ask with GET, which sends")?;
    behind(|_| {}, false).await?.step("ok", "head", "HEAD tells the")?;
    let renames = |headers: &mut HeaderMap| {
        if let Some(length) = headers.remove("content-length") {
            headers.insert("x-amzn-remapped-content-length", length);
        }
    };
    behind(renames, false).await?.fails_at("head", "renames headers that clients need (content-length)")?;
    let found = behind(renames, true).await?;
    found.fails_at("registry", "renames headers that clients need (content-length)")?;
    found.fails_at("registry", "never a REST API or a function URL")?;
    let challenge = [("x-amzn-remapped-www-authenticate", "Bearer realm=\"https://a/token\"")];
    let server = serve(move |_| respond(StatusCode::UNAUTHORIZED, &challenge, "")).await?;
    examine_server(&server, "a/b:1").await?.fails_at("registry", "renames headers that clients need (www-authenticate)")
}

#[tokio::test]
async fn a_refusal_is_quoted_with_what_helps_against_it() -> anyhow::Result<()> {
    let registry = serve(|_| respond(StatusCode::FORBIDDEN, &[], "")).await?;
    let basic = serve(|_| respond(StatusCode::UNAUTHORIZED, &[("www-authenticate", "Basic realm=\"a\"")], "")).await?;
    let node = Node::new()?;
    node.write("password", "secret")?;
    let login =
        format!("credentials = {{ username = \"me\", password_file = \"{}\" }}\n", node.path("password").display());
    let public = format!("{login}public = true\n");
    for (upstream, more, what, fix) in [
        (&registry, "deny = [\"team/*\"]\n", "in the configuration refuses it", "change that key (`allow` or `deny`)"),
        (&registry, &public, "403 Forbidden to our credentials", "correct the upstream's `credentials`"),
        (&registry, &login, "anonymous may not pull", "`stopover policy explain`"),
        (&basic, "", "none is configured", "give the upstream `credentials`"),
    ] {
        let text = format!("[upstreams.\"{UPSTREAM}\"]\nurl = \"{upstream}\"\n{more}");
        let installation = Installation::with_configuration(&text)?;
        let stopover = installation.start().await?;
        let server = format!("http://{}", stopover.address());
        let found = examine_server(&server, &format!("{UPSTREAM}/team/a:1")).await?;
        found.fails_at("pull", what)?;
        found.fails_at("pull", fix)?;
    }
    Ok(())
}

#[tokio::test]
async fn a_proxy_that_the_environment_names_is_said_to_be_one_and_not_used_on_the_machine_itself() -> anyhow::Result<()>
{
    let proxy = serve(|_| respond(StatusCode::FORBIDDEN, &[], "")).await?;
    let cache = Cache::start().await?;
    let with_proxy = |proxy: &str| anyhow::Ok(nobody()?.with(("http_proxy", proxy.into())));
    let found = examine(&with_proxy(&proxy)?, &cache.server, &["--image", &cache.image()]).await?;
    ensure!(found.well && !found.text.contains("proxy"), "{}", found.text);
    let named = "it is the proxy that this environment names for http://cache.invalid";
    let found = examine(&with_proxy(&proxy)?, "http://cache.invalid", &[]).await?;
    found.step("ok", "name", named)?;
    found.step("ok", "connection", proxy.trim_start_matches("http://"))?;
    found.fails_at("registry", named)?;
    found.fails_at("registry", "add the server to no_proxy")?;
    let found = examine(&with_proxy("http://127.0.0.1:1")?, "http://cache.invalid", &[]).await?;
    found.fails_at("connection", "nothing listens at 127.0.0.1 port 1; it is the proxy")?;
    let node = with_proxy(&proxy)?.with(("no_proxy", "cache.invalid".into()));
    examine(&node, "http://cache.invalid", &[]).await?.fails_at("name", "cache.invalid does not resolve")
}

#[tokio::test]
async fn no_answer_is_read_without_end_or_printed_as_it_comes() -> anyhow::Result<()> {
    let endless = || Body::from_stream(futures_util::stream::repeat(Ok::<_, Infallible>(vec![b' '; 1 << 16])));
    let manifest = [
        ("x-stopover", "hit"),
        ("content-type", "application/vnd.oci.image.manifest.v1+json"),
        ("docker-content-digest", "sha256:0000000000000000000000000000000000000000000000000000000000000000"),
    ];
    let error = |message: &str| Body::from(json!({"errors": [{"message": message}]}).to_string());
    for (status, body, words) in [
        (StatusCode::OK, None, "the manifest has more than 4.1 MB"),
        (StatusCode::BAD_GATEWAY, None, "502 Bad Gateway: no reason was given"),
        (StatusCode::BAD_GATEWAY, Some("\u{1b}[2J\r\nok    pull: fine\u{9b}"), "502 Bad Gateway: [2J"),
        (StatusCode::FORBIDDEN, Some("no"), "403 Forbidden: no"),
        (StatusCode::FORBIDDEN, Some("no"), "what is in front of the cache refuses"),
    ] {
        let server = serve(move |path| {
            if path.ends_with("/v2/") {
                return respond(StatusCode::OK, &CACHE, "{}");
            }
            respond(status, &manifest, body.map_or_else(endless, error))
        });
        let found = examine_server(&server.await?, "a/b:1").await?;
        found.fails_at("pull", words)?;
        ensure!(!found.text.contains(|c: char| c.is_control() && c != '\n'), "{:?}", found.text);
        ensure!(!found.text.contains("\nok    pull"), "{}", found.text);
    }
    Ok(())
}

#[tokio::test]
async fn blobs_are_followed_to_where_they_are_redirected() -> anyhow::Result<()> {
    const BLOB: &str = "{}";
    let storage = serve(|_| respond(StatusCode::OK, &[], BLOB)).await?.replace("127.0.0.1", "localhost");
    for (target, verdict, words) in [
        (storage, "ok", "from localhost"),
        ("http://localhost:1".to_owned(), "FAIL", "localhost did not answer to the end"),
    ] {
        let descriptor =
            |kind: &str| json!({"mediaType": kind, "digest": digest_of(BLOB.as_bytes()), "size": BLOB.len()});
        let manifest =
            json!({"schemaVersion": 2, "config": descriptor("a/b"), "layers": [descriptor("c/d")]}).to_string();
        let server = serve(move |path| {
            let kind = ("content-type", "application/vnd.oci.image.manifest.v1+json");
            let digest = digest_of(manifest.as_bytes());
            if path.contains("/blobs/") {
                respond(StatusCode::TEMPORARY_REDIRECT, &[("location", &format!("{target}/x?secret"))], "")
            } else if path.contains("/manifests/") {
                let headers = [("x-stopover", "hit"), kind, ("docker-content-digest", &digest)];
                respond(StatusCode::OK, &headers, manifest.clone())
            } else {
                respond(StatusCode::OK, &CACHE, "{}")
            }
        });
        let found = examine_server(&server.await?, "a/b:1").await?;
        found.step(verdict, "pull", words)?;
        ensure!(!found.text.contains("secret"), "the URL of a blob is shown:\n{}", found.text);
    }
    Ok(())
}
