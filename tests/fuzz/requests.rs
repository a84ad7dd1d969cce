//! What clients ask for.

use std::sync::Arc;

use fastrand::Rng;
use http::Method;
use stopover::config::{Cold, Config};
use stopover::local::Local;
use stopover::oci::{Operation, Page, Reference, Repository, Request};
use stopover::upstream::Upstreams;
use stopover::values::time::Clock;

use crate::generate::{changed_text, one};

const DIGEST: &str = "sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";
const COMPONENTS: &[&str] = &[
    "a",
    "library",
    "nginx",
    "docker.io",
    "ghcr.io",
    "index.docker.io",
    "test.local",
    "other",
    "team",
    "hub",
    "acme",
    "v2",
    "manifests",
    "blobs",
    "tags",
    "uploads",
    "..",
    ".",
    "%2e%2e",
    "%2F",
    "%252e",
    "A",
    "a..b",
    "a_b",
    "a--b",
    "é",
    "%C3%A9",
    "%ff",
    "%00",
    "",
    "x:5000",
    "registry-1.docker.io",
    "dockerhub",
];
const TEXTS: &[&str] = &[
    "/v2/",
    "/v2/library/nginx/manifests/latest",
    "/v2/docker.io/library/nginx/manifests/1.27",
    "/docker.io/v2/library/nginx/tags/list",
    "/v2/ghcr.io/acme/app/blobs/sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855",
    "/team/hub/v2/nginx/referrers/sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855",
    "/v2/a/blobs/uploads/",
    "/v2/_catalog",
];
const QUERIES: &[&str] =
    &["ns=docker.io", "ns=test.local&x=y", "n=10&last=v1", "artifactType=application/x%2Bjson", "ns=&ns=other", "n=-1"];
const WORDS: &[&str] = &[
    "/",
    "%2f",
    "%2F",
    "..",
    "%2e",
    "%252f",
    "/v2/",
    "/manifests/",
    "/blobs/",
    "/tags/list",
    "/referrers/",
    "sha256:",
    "sha512:",
    "library/",
    "docker.io/",
    "ns=",
    "&",
    "=",
    "%",
    "+",
    "@",
    ":",
    "a",
    "A",
    "\u{ff0e}",
    "\u{2215}",
    "?",
    "#",
    "\\",
    ";",
    "//",
];
const IMAGES: &[&str] = &[
    "nginx",
    "ghcr.io/acme/app:1.0",
    "registry.example.com:5000/a@sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855",
    "docker.io/library/nginx:1.27@sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855",
];
const SETTINGS: &str = "[upstreams.\"test.local\"]\nurl = \"http://127.0.0.1:1\"\naliases = [\"other\"]\n\
     [rules.\"team/hub\"]\nupstream = \"docker.io\"\npath = \"library\"\n\
     [rules.\"ghcr.io/acme\"]\nfresh = \"1m\"\n[rules.\"dockerhub\"]\nupstream = \"docker.io\"\n";

fn path(rng: &mut Rng) -> String {
    if rng.bool() {
        return changed_text(rng, TEXTS, WORDS);
    }
    let components = |rng: &mut Rng, most| {
        let components: Vec<&str> = (0..rng.usize(..=most)).map(|_| one(rng, COMPONENTS)).collect();
        components.join("/")
    };
    let (prefix, name) = (components(rng, 2), components(rng, 5));
    let prefix = if prefix.is_empty() { prefix } else { format!("/{prefix}") };
    let end = match rng.u8(..5) {
        0 => format!("blobs/{DIGEST}"),
        1 => "tags/list".to_owned(),
        2 => format!("referrers/{DIGEST}"),
        3 => format!("manifests/{DIGEST}"),
        _ => format!("manifests/{}", one(rng, COMPONENTS)),
    };
    format!("{prefix}/v2/{name}/{end}")
}

/// Everything that a request says, written again.
fn written(request: &Request) -> (String, String) {
    let prefix = request.prefix.as_ref().map(|prefix| format!("/{prefix}")).unwrap_or_default();
    let encoded = |name: &str, value: &str| {
        format!("{name}={}&", percent_encoding::utf8_percent_encode(value, percent_encoding::NON_ALPHANUMERIC))
    };
    let mut query = request.namespace.as_ref().map(|namespace| encoded("ns", namespace)).unwrap_or_default();
    let end = match &request.operation {
        Operation::Ping => String::new(),
        Operation::Manifest(name, reference) => format!("{name}/manifests/{reference}"),
        Operation::Blob(name, digest) => format!("{name}/blobs/{digest}"),
        Operation::Tags(name, Page { n, last }) => {
            query.extend(n.map(|n| format!("n={n}&")));
            query.extend(last.as_ref().map(|last| encoded("last", last)));
            format!("{name}/tags/list")
        }
        Operation::Referrers(name, digest, kind) => {
            query.extend(kind.as_ref().map(|kind| encoded("artifactType", kind)));
            format!("{name}/referrers/{digest}")
        }
    };
    (format!("{prefix}/v2/{end}"), query)
}

/// Each letter as a client may write it too, but for those that divide.
fn encoded(path: &str) -> String {
    path.bytes().map(|byte| if byte == b'/' { "/".to_owned() } else { format!("%{byte:02x}") }).collect()
}

fn is_canonical(Repository { upstream, name }: &Repository) -> bool {
    let plain = |byte: u8| matches!(byte, b'a'..=b'z' | b'0'..=b'9' | b'.' | b'_' | b'-');
    let component = |text: &str| !text.is_empty() && text.bytes().all(plain) && !text.contains("..");
    component(upstream.as_str()) && name.as_str().len() <= 255 && name.as_str().split('/').all(component)
}

/// Upstreams with aliases and rules; nothing of them is ever asked.
fn upstreams() -> Arc<Upstreams> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
    let data = tempfile::TempDir::new().expect("a directory");
    let parse = |text| Config::parse(text, data.path(), Cold::Follow, |_| Err("there are none".into()));
    let mut config = parse(SETTINGS).expect("they are right");
    data.path().clone_into(&mut config.data_dir);
    let upstreams = runtime.block_on(async {
        let local = Local::open(config.clone(), Clock::default()).await.expect("it is empty");
        let core = &local.cache.core;
        Upstreams::new(&config, (&Clock::default(), &core.journal), &core.storage.ledger, None)
    });
    Arc::new(upstreams.expect("they can be asked"))
}

#[test]
fn no_request_panics_or_means_two_repositories() {
    let upstreams = upstreams();
    super::run("requests", move |rng| {
        let path = path(rng);
        let query = rng.bool().then(|| changed_text(rng, QUERIES, WORDS));
        let method = if rng.u8(..8) == 0 { Method::HEAD } else { Method::GET };
        let Ok(request) = Request::parse(&method, &path, query.as_deref()) else { return false };
        let (path, query) = written(&request);
        assert_eq!(Request::parse(&method, &path, Some(&query)).as_ref(), Ok(&request), "as it is written");
        assert_eq!(Request::parse(&method, &encoded(&path), Some(&query)).as_ref(), Ok(&request), "encoded");
        let writes = Request::parse(&Method::PUT, &path, Some(&query));
        assert!(writes.is_err(), "{path} could be written");
        let Some(name) = request.operation.name() else { return true };
        let Ok(repository) = upstreams.locate(&request, name) else { return true };
        assert!(is_canonical(&repository), "{path} is {repository:?}");
        // What its key says is one repository, whatever that was called.
        let plain = Request::parse(&Method::GET, &format!("/v2/{repository}/manifests/1"), None).expect("a name");
        let again = plain.operation.name().map(|name| upstreams.locate(&plain, name));
        assert_eq!(again.and_then(Result::ok), Some(repository), "{path}?{query}");
        true
    });
}

#[test]
fn no_name_of_an_image_panics_or_means_two_images() {
    super::run("names of images", |rng| {
        let Ok(request) = Request::image(&changed_text(rng, IMAGES, WORDS)) else { return false };
        let Operation::Manifest(name, reference) = &request.operation else { panic!("{request:?} is no image") };
        let host = request.namespace.as_ref().map(|host| format!("{host}/")).unwrap_or_default();
        let divided = if matches!(reference, Reference::Tag(_)) { ':' } else { '@' };
        assert_eq!(Request::image(&format!("{host}{name}{divided}{reference}")).as_ref(), Ok(&request));
        true
    });
}
