//! What upstreams send.

use std::collections::BTreeSet;

use bytes::Bytes;
use fastrand::Rng;
use http::header::{LINK, WWW_AUTHENTICATE};
use http::{HeaderMap, HeaderValue};
use stopover::oci::{Algorithm, Descriptors, Digest, Manifest, MediaType, Page, Tag, Tags};
use stopover::upstream::{
    Challenge, IssuedToken, next_page, own_media_type, referrers_in, retry_after_in, tags_in, whole_size,
};
use url::Url;

use crate::generate::{changed, changed_text};

const CHALLENGES: &[&str] = &[
    "Bearer realm=\"https://auth.docker.io/token\",service=\"registry.docker.io\",scope=\"repository:a/b:pull\"",
    "Basic realm=\"x\", Bearer realm=\"https://ghcr.io/token\",service=ghcr.io,error=\"invalid_token\"",
    "Negotiate abc==, Digest realm=\"a\\\"b\", nonce=\"c\", Basic realm=d",
    "Bearer realm=\"https://r.test/token?account=a&service=b\", scope=\"aws\"",
];
const HEADER_WORDS: &[&str] = &[
    "\"",
    "\\",
    ",",
    "=",
    " ",
    "\t",
    "Bearer ",
    "Basic ",
    "bEARER ",
    "realm=",
    "service=\"a,b\"",
    "scope=\"\"",
    "==",
    ";",
    "realm=\"http://[::1]/\"",
    "realm=\"file:///etc/passwd\"",
    "\\\"",
    "realm=\"//\"",
    "error=\"",
    "\u{e9}",
    "@",
    "#",
    "%00",
];
const MANIFESTS: &[&str] = &[
    "{\"schemaVersion\":2,\"mediaType\":\"application/vnd.oci.image.manifest.v1+json\",\"config\":{\"mediaType\":\"x\",\
      \"digest\":\"sha256:aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa\",\"size\":1},\"layers\":[\
      {\"digest\":\"sha256:bbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbb\",\"size\":2,\"urls\":[\"https://a\"]}]}",
    "{\"schemaVersion\":2,\"manifests\":[{\"mediaType\":\"x\",\"size\":3,\"platform\":{\"os\":\"linux\",\"architecture\":\"arm\",\
      \"variant\":\"v7\"},\"digest\":\"sha256:cccccccccccccccccccccccccccccccccccccccccccccccccccccccccccccccc\"},{}]}",
    "{\"schemaVersion\":2,\"config\":null,\"layers\":null,\"manifests\":[{\"digest\":null,\"platform\":{\"os\":null,\
      \"architecture\":null}},{\"digest\":\"sha256:cccccccccccccccccccccccccccccccccccccccccccccccccccccccccccccccc\",\
      \"artifactType\":\"application/x\"}]}",
    "{\"manifests\":null}",
];
const BODIES: &[&str] = &[
    "{\"name\":\"a/b\",\"tags\":[\"latest\",\"1.0\",\"v1\",\"\",\"not a tag\"]}",
    "{\"name\":\"a\",\"tags\":null}",
    "{\"token\":\"eyJhbGciOiJSUzI1NiJ9.e30.c2ln\",\"expires_in\":300,\"issued_at\":\"2027-01-15T08:00:00Z\"}",
    "{\"access_token\":\"abc\",\"token\":null}",
    "{\"token\":\"\",\"access_token\":\"abc\",\"expires_in\":\"36000.5\"}",
    "{\"errors\":[{\"code\":\"TOOMANYREQUESTS\",\"message\":\"retry-after: 880.092µs, allowed: 44000/minute\"}]}",
    "{\"mediaType\":\"application/vnd.oci.image.index.v1+json\",\"manifests\":[{\"digest\":\"x\"}]}",
    "{\"manifests\":null}",
];
const JSON_WORDS: &[&str] = &[
    "{",
    "}",
    "[",
    "]",
    "\"",
    ":",
    ",",
    "null",
    "true",
    "0",
    "-1",
    "1e999",
    "18446744073709551616",
    "\\u0000",
    "\\ud800",
    "{\"a\":",
    "\"digest\":\"md5:abc\"",
    "\"size\":-1",
    "\"size\":1.5",
    "sha512:",
    "\"urls\":[]",
    "\"manifests\":[]",
    "\"tags\":[]",
    "\u{feff}",
    "\"expires_in\":0",
    "\"expires_in\":18446744073709551615",
    "\"token\":\"a\\nb\"",
    "retry-after: 1e9s",
    "retry-after: 99999999999h",
    "retry-after: .",
    "\"layers\":",
    "\"config\":",
    "[[[[[[[[[[[[[[[[",
];
const LINKS: &[&str] = &[
    "</v2/a/tags/list?last=b&n=2>; rel=\"next\"",
    "<https://r.test/v2/a/tags/list?last=b>;rel=next, </first>; rel=\"first\"",
    "<https://evil.test/v2/>; rel=\"next\"",
    "<http://internal:5000/v2/a/tags/list?last=b>; rel='next'",
];
const RANGES: &[&str] =
    &["bytes 0-99/1000", "bytes 900-999/1000", "bytes 0-0/1", "bytes */10", "bytes 0-18446744073709551615/*"];

/// Bytes that a header can have.
fn header(mut bytes: Vec<u8>) -> HeaderValue {
    bytes.iter_mut().filter(|byte| byte.is_ascii_control() && **byte != b'\t').for_each(|byte| *byte = b' ');
    HeaderValue::from_bytes(&bytes).expect("nothing else is forbidden")
}

/// A challenge as we would write it.
fn written(challenge: &Challenge) -> String {
    let Challenge::Bearer { realm, service, scope } = challenge else { return "Basic realm=\"x\"".to_owned() };
    let quoted = |text: &str| text.replace('\\', "\\\\").replace('"', "\\\"");
    let parameter = |name: &str, value: &Option<String>| {
        value.as_ref().map(|value| format!(",{name}=\"{}\"", quoted(value))).unwrap_or_default()
    };
    let (service, scope) = (parameter("service", service), parameter("scope", scope));
    format!("Bearer realm=\"{}\"{service}{scope}", quoted(realm.as_str()))
}

#[test]
fn no_challenge_panics_or_means_two_realms() {
    super::run("challenges", |rng| {
        let mut headers = HeaderMap::new();
        for _ in 0..=rng.usize(..2) {
            headers.append(WWW_AUTHENTICATE, header(changed(rng, CHALLENGES, HEADER_WORDS)));
        }
        let Some(challenge) = Challenge::parse(&headers) else { return false };
        let written = written(&challenge);
        let headers = HeaderMap::from_iter([(WWW_AUTHENTICATE, written.parse().expect("it came as a header"))]);
        assert_eq!(Challenge::parse(&headers).as_ref(), Some(&challenge), "{written}");
        true
    });
}

fn manifest(rng: &mut Rng) -> bool {
    let bytes = Bytes::from(changed(rng, MANIFESTS, JSON_WORDS));
    let kinds = [MediaType::OciManifest, MediaType::OciIndex, MediaType::DockerManifest, MediaType::DockerList];
    let kind = rng.choice(kinds).expect("there are four");
    let (digest, length) = (Digest::of(Algorithm::Sha256, b"not looked at here"), bytes.len());
    let Ok(manifest) = Manifest::new(digest, kind, bytes) else { return false };
    // A digest has 71 bytes, so a small manifest cannot make us remember much.
    let references = manifest.references().expect("it was accepted");
    assert!(references.len() <= length / 71, "{references:?}");
    if let Ok(blobs) = manifest.blobs() {
        let different: BTreeSet<_> = blobs.iter().map(|blob| blob.digest.as_str()).collect();
        assert_eq!(different.len(), blobs.len(), "each once");
        assert!(blobs.iter().all(|blob| references.contains(&blob.digest)));
    }
    let children = manifest.children().expect("it was accepted");
    assert!(children.iter().all(|child| references.contains(&child.digest)));
    if let Ok(descriptors) = manifest.descriptors() {
        assert!(descriptors.json().len() <= length, "a part of its bytes");
    }
    let other = if kind.is_index() { MediaType::OciManifest } else { MediaType::OciIndex };
    let both = Manifest::new(manifest.digest.clone(), other, manifest.bytes.clone());
    assert!(both.is_err(), "no document is an image and an index");
    let again = Manifest::new(manifest.digest.clone(), kind, manifest.bytes.clone());
    assert_eq!(again.as_ref(), Ok(&manifest));
    true
}

fn body(rng: &mut Rng) -> bool {
    let body = Bytes::from(changed(rng, BODIES, JSON_WORDS));
    if let Ok(tags) = tags_in(&body).map(Tags::from) {
        assert!(tags.json().len() <= body.len(), "{tags:?}");
        assert!(tags.iter().is_sorted_by(|one, next| one < next), "{tags:?}");
        let page = serde_json::json!({ "tags": tags }).to_string();
        assert_eq!(tags_in(page.as_bytes()).map(Tags::from).as_ref(), Ok(&tags));
        for tag in tags.iter() {
            assert!(tag.parse::<Tag>().is_ok());
            let (rest, _) = tags.page(&Page { n: None, last: Some(tag.to_owned()) });
            assert!(rest.iter().eq(tags.iter().skip_while(|before| *before <= tag)), "after {tag:?} in {tags:?}");
        }
    }
    if let Ok(referrers) = referrers_in(&body) {
        assert!(referrers.json().len() <= body.len());
        let text = std::str::from_utf8(referrers.json()).expect("JSON is UTF-8");
        assert_eq!(serde_json::from_str(text).ok().as_ref(), Some(&referrers), "it is served as it was sent");
        let selected: Vec<u8> = referrers.clone().of_type("application/x").json().flatten().collect();
        assert!(selected.len() + 2 <= referrers.json().len());
        assert!(serde_json::from_slice::<Descriptors>(&[b"[", &selected[..], b"]"].concat()).is_ok());
    }
    if let Ok(IssuedToken { authorization, life }) = IssuedToken::parse(&body) {
        assert!(authorization.is_sensitive() && authorization.as_bytes().starts_with(b"Bearer "));
        assert!((1..=12 * 3600).contains(&life.as_secs()), "{life:?}");
    }
    let text = String::from_utf8_lossy(&body);
    if let Some(pause) = retry_after_in(&text) {
        assert!((1..=86_400).contains(&pause.as_secs()), "{pause:?}");
    }
    own_media_type("application/json", &body).is_some()
}

fn headers(rng: &mut Rng) -> bool {
    let url = Url::parse("https://r.test/v2/a/tags/list?n=2").expect("a URL");
    let headers = HeaderMap::from_iter([(LINK, header(changed(rng, LINKS, HEADER_WORDS)))]);
    if let Ok(Some(next)) = next_page(&headers, &url) {
        assert_eq!(next.origin(), url.origin());
    }
    let range = changed_text(rng, RANGES, &["-", "/", "*", "0", "18446744073709551615", "bytes ", " ", "+1"]);
    let wanted = (0, rng.u64(..2000));
    let size = whole_size(&range, wanted);
    assert!(size.is_none_or(|size| size > 0), "{range}");
    size.is_some()
}

#[test]
fn no_answer_of_an_upstream_panics_or_grows() {
    super::run("answers", |rng| match rng.u8(..8) {
        0..4 => manifest(rng),
        4..7 => body(rng),
        _ => headers(rng),
    });
}
