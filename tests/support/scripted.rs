//! An upstream registry that does as it is told and counts every request.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use axum::Router;
use axum::body::Body;
use axum::extract::State;
use axum::response::Response;
use bytes::Bytes;
use futures_util::stream;
use http::{HeaderMap, HeaderValue, Method, Request, StatusCode, Uri, header};
use serde_json::json;
use stopover::oci::{Algorithm, Digest, MediaType};

use crate::images::{self, Blob, Destination};
use crate::loopback::Loopback;
use crate::secrets;

/// A scripted upstream. Dropping it cuts all connections.
pub struct Scripted {
    address: SocketAddr,
    script: Arc<Mutex<Script>>,
    loopback: Mutex<Option<Loopback>>,
}

#[derive(Default)]
struct Script {
    /// By path: `/v2/<name>/manifests/<reference>`, `/v2/<name>/blobs/<digest>`.
    content: HashMap<String, Content>,
    /// Pages of lists, by path and query.
    pages: HashMap<String, Page>,
    /// What the line of a request contains, what happens to it, and how often.
    faults: Vec<(String, Fault, usize)>,
    login: Option<Login>,
    quota: Option<(u64, u64)>,
    tokens: usize,
    requests: Vec<Seen>,
    /// Manifests sent, by digest.
    sent: HashMap<Digest, usize>,
}

#[derive(Clone)]
struct Content {
    media_type: String,
    bytes: Bytes,
    digest: Digest,
}

#[derive(Clone)]
struct Page {
    media_type: String,
    body: String,
    link: Option<String>,
}

/// A request as it arrived.
#[derive(Clone, Debug)]
pub struct Seen {
    /// Method and path, as `GET /v2/…`.
    pub line: String,
    /// Its query as it stands in the URL; empty where there is none.
    pub query: String,
    /// Its headers.
    pub headers: HeaderMap,
}

/// How upstream wants to be asked.
#[derive(Clone, Debug)]
pub enum Login {
    /// With this user name and password.
    Basic(String, String),
    /// With a token of its own token server, which gives one to anybody.
    Bearer,
    /// With a token of its own token server, which asks for this user name and password.
    BearerFor(String, String),
    /// With a token of a server elsewhere.
    BearerFrom(String),
    /// With a token of its own token server, and with this challenge for whoever has none (`None`: with no challenge). It
    /// is made of the upstream's URL, the path that was asked for, and whether some token was given.
    BearerSaying(fn(url: &str, path: &str, given: bool) -> Option<String>),
}

/// What happens instead of the right answer, to requests whose line contains a text.
#[derive(Clone, Debug)]
pub enum Fault {
    /// This status, with these headers and this body.
    Status(u16, Vec<(&'static str, String)>, String),
    /// The right headers, then the connection breaks off in the middle of the body.
    Truncated,
    /// Other bytes of the same length.
    Corrupt,
    /// The right bytes, and these headers instead of the right ones (an empty value removes one).
    Headers(Vec<(&'static str, String)>),
    /// Other bytes with these headers.
    Body(Vec<u8>, Vec<(&'static str, String)>),
    /// No answer at all until the client gives up.
    Silent,
    /// The right answer after this time.
    Late(Duration),
    /// The body stops in the middle and goes on when [`Scripted::heal`] is called.
    Stalled,
}

/// An image that a scripted upstream has.
#[derive(Clone, Debug)]
pub struct ScriptedImage {
    /// Repository name at upstream.
    pub name: String,
    /// The manifest's digest.
    pub digest: Digest,
    /// The manifest's bytes.
    pub manifest: Bytes,
    /// Its configuration and layers.
    pub blobs: Vec<(Digest, Bytes)>,
}

impl Scripted {
    /// Starts an empty upstream that answers anybody.
    pub fn start() -> anyhow::Result<Self> {
        let loopback = Loopback::new("upstream")?;
        let (listener, address) = loopback.bind()?;
        let script = Arc::new(Mutex::new(Script::default()));
        let state = (address, Arc::clone(&script));
        loopback.serve(listener, Router::new().fallback(answer).with_state(state));
        Ok(Self { address, script, loopback: Mutex::new(Some(loopback)) })
    }

    fn script(&self) -> MutexGuard<'_, Script> {
        self.script.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Scheme, host and port.
    pub fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    /// Ends it: from now on its port refuses.
    pub fn kill(&self) {
        drop(self.loopback.lock().unwrap_or_else(PoisonError::into_inner).take());
    }

    /// Asks for a login from now on.
    pub fn require(&self, login: Login) {
        self.script().login = Some(login);
    }

    /// Counts manifest GETs as Docker Hub does: `limit` in a window, of which `remaining` are left. HEAD and blobs are free.
    pub fn quota(&self, limit: u64, remaining: u64) {
        self.script().quota = Some((limit, remaining));
    }

    /// Refuses every token issued so far.
    pub fn forget_tokens(&self) {
        self.script().tokens += 1;
    }

    /// Puts an image of a configuration and `layers` under a tag.
    pub fn image(&self, name: &str, tag: &str, layers: &[&[u8]]) -> ScriptedImage {
        let config = json!({ "architecture": "amd64", "os": "linux", "of": format!("{name}:{tag}") }).to_string();
        let mut blobs = vec![Bytes::from(config)];
        blobs.extend(layers.iter().map(|layer| Bytes::copy_from_slice(layer)));
        let blobs: Vec<(Digest, Bytes)> =
            blobs.into_iter().map(|bytes| (Digest::of(Algorithm::Sha256, &bytes), bytes)).collect();
        let describe = |(digest, bytes): &(Digest, Bytes)| json!({ "mediaType": "application/octet-stream", "digest": digest.as_str(), "size": bytes.len() });
        let manifest = json!({
            "schemaVersion": 2, "mediaType": MediaType::OciManifest.as_str(),
            "config": describe(&blobs[0]), "layers": blobs[1..].iter().map(describe).collect::<Vec<_>>(),
        });
        let manifest = Bytes::from(manifest.to_string());
        for (digest, bytes) in &blobs {
            self.blob(name, digest, bytes);
        }
        let digest = self.manifest(name, tag, MediaType::OciManifest.as_str(), &manifest);
        ScriptedImage { name: name.to_owned(), digest, manifest, blobs }
    }

    /// Puts an index under a tag, of an image for each of these platforms (`linux/arm/v7`) with a layer of its own.
    pub fn index(&self, name: &str, tag: &str, platforms: &[&str]) -> (Digest, Vec<ScriptedImage>) {
        let images: Vec<ScriptedImage> = platforms
            .iter()
            .map(|platform| {
                let tag = format!("{tag}-{}", platform.replace('/', "-"));
                let image = self.image(name, &tag, &[format!("layer of {name}:{tag}").as_bytes()]);
                self.delete_tag(name, &tag);
                image
            })
            .collect();
        let children = platforms.iter().zip(&images).map(|(platform, image)| {
            let mut parts = platform.split('/');
            json!({
                "mediaType": MediaType::OciManifest.as_str(), "digest": image.digest, "size": image.manifest.len(),
                "platform": { "os": parts.next(), "architecture": parts.next(), "variant": parts.next() },
            })
        });
        let index = json!({ "schemaVersion": 2, "manifests": children.collect::<Vec<_>>() }).to_string();
        (self.manifest(name, tag, MediaType::OciIndex.as_str(), index.as_bytes()), images)
    }

    /// Puts a manifest under a tag and under its digest.
    pub fn manifest(&self, name: &str, tag: &str, media_type: &str, bytes: &[u8]) -> Digest {
        self.manifest_by(Algorithm::Sha256, name, tag, media_type, bytes)
    }

    /// The same, with a digest of this algorithm.
    pub fn manifest_by(&self, algorithm: Algorithm, name: &str, tag: &str, media_type: &str, bytes: &[u8]) -> Digest {
        let digest = Digest::of(algorithm, bytes);
        let content =
            Content { media_type: media_type.to_owned(), bytes: Bytes::copy_from_slice(bytes), digest: digest.clone() };
        let mut script = self.script();
        script.content.insert(format!("/v2/{name}/manifests/{tag}"), content.clone());
        script.content.insert(format!("/v2/{name}/manifests/{digest}"), content);
        digest
    }

    /// Puts a blob.
    pub fn blob(&self, name: &str, digest: &Digest, bytes: &Bytes) {
        let content =
            Content { media_type: "application/octet-stream".into(), bytes: bytes.clone(), digest: digest.clone() };
        self.script().content.insert(format!("/v2/{name}/blobs/{digest}"), content);
    }

    /// Answers a path, with this query where it has one, with a page of a list; `link` is its `Link` header.
    pub fn page(&self, path: &str, media_type: &str, body: &str, link: Option<&str>) {
        let page = Page { media_type: media_type.to_owned(), body: body.to_owned(), link: link.map(str::to_owned) };
        self.script().pages.insert(path.to_owned(), page);
    }

    /// Has these tags in this order, all on one page whatever is asked for, as Docker's registry does.
    pub fn tags(&self, name: &str, tags: &[&str]) {
        let body = json!({ "name": name, "tags": tags }).to_string();
        self.page(&format!("/v2/{name}/tags/list"), "application/json", &body, None);
    }

    /// Deletes a tag; its manifest stays.
    pub fn delete_tag(&self, name: &str, tag: &str) {
        self.script().content.remove(&format!("/v2/{name}/manifests/{tag}"));
    }

    /// Whether a tag is this digest.
    pub fn has(&self, name: &str, tag: &str, digest: Option<&Digest>) -> bool {
        let script = self.script();
        let content = script.content.get(&format!("/v2/{name}/manifests/{tag}"));
        content.is_some_and(|content| Some(&content.digest) == digest)
    }

    /// How often a manifest was sent, whatever it was asked for by.
    pub fn served_by_get(&self, digest: &Digest) -> usize {
        self.script().sent.get(digest).copied().unwrap_or_default()
    }

    /// From now on does `fault` to every request whose line (`GET /v2/…`) contains `text`.
    pub fn fault(&self, text: &str, fault: Fault) {
        self.fault_times(text, usize::MAX, fault);
    }

    /// Does `fault` to the next so many of these requests.
    pub fn fault_times(&self, text: &str, times: usize, fault: Fault) {
        self.script().faults.push((text.to_owned(), fault, times));
    }

    /// Takes back every fault.
    pub fn heal(&self) {
        self.script().faults.clear();
    }

    /// Every request so far.
    pub fn requests(&self) -> Vec<Seen> {
        self.script().requests.clone()
    }

    /// How many requests so far had a line that contains `text`.
    pub fn count(&self, text: &str) -> usize {
        self.script().requests.iter().filter(|seen| seen.line.contains(text)).count()
    }

    /// Forgets the requests so far.
    pub fn forget_requests(&self) {
        self.script().requests.clear();
    }
}

#[async_trait]
impl Destination for Scripted {
    async fn put_blob(&self, name: &str, blob: &Blob, content: images::Content) -> anyhow::Result<()> {
        let bytes: Vec<u8> = content.flatten().collect();
        self.blob(name, &blob.digest.parse()?, &bytes.into());
        Ok(())
    }

    async fn put_manifest(&self, name: &str, reference: &str, kind: &str, bytes: &[u8]) -> anyhow::Result<()> {
        self.manifest(name, reference, kind, bytes);
        Ok(())
    }
}

type Shared = (SocketAddr, Arc<Mutex<Script>>);

async fn answer(State((address, script)): State<Shared>, request: Request<Body>) -> Response {
    secrets::know_authorization("our login at an upstream", request.headers());
    let line = format!("{} {}", request.method(), request.uri().path());
    let (fault, refusal, content, page, quota) = {
        let mut script = script.lock().unwrap_or_else(PoisonError::into_inner);
        let query = request.uri().query().unwrap_or_default().to_owned();
        script.requests.push(Seen { line: line.clone(), query, headers: request.headers().clone() });
        let fault = script.faults.iter_mut().find(|(text, _, left)| *left > 0 && line.contains(text.as_str()));
        let fault = fault.map(|(_, fault, left)| {
            *left -= 1;
            fault.clone()
        });
        let content = script.content.get(request.uri().path()).cloned();
        let whole = request.uri().path_and_query().map_or("", |whole| whole.as_str());
        let page = script.pages.get(whole).or_else(|| script.pages.get(request.uri().path())).cloned();
        let refusal = refuse(&script, address, request.uri(), request.headers());
        let counts = request.uri().path().contains("/manifests/") && refusal.is_none();
        let quota = script.quota.as_mut().filter(|_| counts).map(|(limit, remaining)| {
            let allowed = request.method() == Method::HEAD || *remaining > 0;
            if allowed && request.method() == Method::GET {
                *remaining -= 1;
            }
            (*limit, *remaining, allowed)
        });
        (fault, refusal, content, page, quota)
    };
    if let Some(Fault::Status(status, headers, body)) = fault {
        let locations = headers.iter().filter(|(name, _)| *name == "location");
        locations.for_each(|(_, url)| secrets::know_query("where an upstream redirects to", url));
        return respond(status, &headers, Body::from(body));
    }
    if matches!(fault, Some(Fault::Silent)) {
        std::future::pending::<()>().await;
    }
    if let Some(Fault::Late(time)) = fault {
        tokio::time::sleep(time).await;
    }
    if let Some(refusal) = refusal {
        return refusal;
    }
    if request.uri().path() == "/v2/" {
        return respond(200, &[], Body::from("{}"));
    }
    let limits = quota.map_or_else(Vec::new, |(limit, remaining, _)| {
        vec![
            ("ratelimit-limit", format!("{limit};w=21600")),
            ("ratelimit-remaining", format!("{remaining};w=21600")),
            ("docker-ratelimit-source", "192.0.2.1".to_owned()),
        ]
    });
    if quota.is_some_and(|(.., allowed)| !allowed) {
        let message = "You have reached your unauthenticated pull rate limit.";
        let body = json!({ "errors": [{ "code": "TOOMANYREQUESTS", "message": message }] }).to_string();
        return respond(429, &limits, Body::from(body));
    }
    if let Some(Page { media_type, body, link }) = page {
        let mut headers = vec![("content-type", media_type)];
        headers.extend(link.map(|link| ("link", link)));
        return respond(200, &headers, Body::from(body));
    }
    let Some(content) = content else {
        let body = json!({ "errors": [{ "code": "MANIFEST_UNKNOWN", "message": "unknown" }] }).to_string();
        return respond(404, &[("content-type", "application/json".into())], Body::from(body));
    };
    if request.method() == Method::GET && request.uri().path().contains("/manifests/") {
        let mut script = script.lock().unwrap_or_else(PoisonError::into_inner);
        *script.sent.entry(content.digest.clone()).or_default() += 1;
    }
    let mut response = serve(&script, &line, request.method() == Method::HEAD, content, fault);
    for (name, value) in limits {
        response.headers_mut().insert(name, value.parse().expect("a number is a header"));
    }
    response
}

fn serve(script: &Arc<Mutex<Script>>, line: &str, head: bool, content: Content, fault: Option<Fault>) -> Response {
    let mut headers = vec![
        ("content-type", content.media_type.clone()),
        ("content-length", content.bytes.len().to_string()),
        ("docker-content-digest", content.digest.to_string()),
    ];
    let half = content.bytes.slice(..content.bytes.len() / 2);
    let body = match fault {
        Some(Fault::Truncated) if !head => {
            let broken: Result<Bytes, _> = Err(std::io::Error::other("broken off"));
            Body::from_stream(stream::iter([Ok(half), broken]))
        }
        Some(Fault::Stalled) if !head => {
            let rest = content.bytes.slice(half.len()..);
            let (script, line) = (Arc::clone(script), line.to_owned());
            let healed = async move {
                let stalled = || {
                    let script = script.lock().unwrap_or_else(PoisonError::into_inner);
                    script.faults.iter().any(|(text, ..)| line.contains(text))
                };
                while stalled() {
                    // The reason for this pause: the script is plain data, so its change is polled.
                    tokio::time::sleep(Duration::from_millis(5)).await;
                }
                Ok::<_, std::io::Error>(rest)
            };
            Body::from_stream(futures_util::StreamExt::chain(stream::iter([Ok(half)]), stream::once(healed)))
        }
        Some(Fault::Corrupt) => {
            let mut bytes = content.bytes.to_vec();
            if let Some(last) = bytes.last_mut() {
                *last ^= 1;
            }
            Body::from(bytes)
        }
        Some(Fault::Headers(changed)) => {
            change(&mut headers, changed);
            Body::from(content.bytes)
        }
        Some(Fault::Body(bytes, changed)) => {
            headers[1].1 = bytes.len().to_string();
            change(&mut headers, changed);
            Body::from(bytes)
        }
        _ => Body::from(content.bytes),
    };
    respond(200, &headers, if head { Body::empty() } else { body })
}

fn change(headers: &mut Vec<(&'static str, String)>, changed: Vec<(&'static str, String)>) {
    for (name, value) in changed {
        headers.retain(|(known, _)| *known != name);
        if !value.is_empty() {
            headers.push((name, value));
        }
    }
}

/// The challenge or the token, where the request is about either.
fn refuse(script: &Script, address: SocketAddr, uri: &Uri, headers: &HeaderMap) -> Option<Response> {
    let token = format!("token-{}", script.tokens);
    secrets::know("a token of an upstream", &format!("Bearer {token}"));
    let given = headers.get(header::AUTHORIZATION).and_then(|value| value.to_str().ok());
    if uri.path() == "/token" {
        if let Some(Login::BearerFor(user, password)) = &script.login
            && given != Some(&basic(user, password))
        {
            return Some(respond(401, &[("content-type", "application/json".into())], Body::from("{}")));
        }
        let body = json!({ "token": token, "expires_in": 300 }).to_string();
        return Some(respond(200, &[("content-type", "application/json".into())], Body::from(body)));
    }
    let url = format!("http://{address}");
    let (expected, challenge) = match script.login.as_ref()? {
        Login::Basic(user, password) => (basic(user, password), Some("Basic realm=\"scripted\"".to_owned())),
        Login::Bearer | Login::BearerFor(..) => (format!("Bearer {token}"), Some(bearer(&format!("{url}/token")))),
        Login::BearerFrom(realm) => (format!("Bearer {token}"), Some(bearer(realm))),
        Login::BearerSaying(challenge) => (format!("Bearer {token}"), challenge(&url, uri.path(), given.is_some())),
    };
    let challenge: Vec<_> = challenge.map(|challenge| ("www-authenticate", challenge)).into_iter().collect();
    (given != Some(&expected)).then(|| respond(401, &challenge, Body::empty()))
}

fn basic(user: &str, password: &str) -> String {
    use base64::Engine as _;
    format!("Basic {}", base64::engine::general_purpose::STANDARD.encode(format!("{user}:{password}")))
}

fn bearer(realm: &str) -> String {
    format!("Bearer realm=\"{realm}\",service=\"scripted\",scope=\"repository:placeholder:pull\"")
}

fn respond(status: u16, headers: &[(&'static str, String)], body: Body) -> Response {
    let mut response = Response::new(body);
    *response.status_mut() = StatusCode::from_u16(status).expect("a test names a real status");
    for (name, value) in headers {
        // Not only what HTTP allows: a hostile upstream sends any bytes.
        let value = HeaderValue::from_bytes(value.as_bytes()).expect("a test names a real header");
        response.headers_mut().insert(*name, value);
    }
    response
}
