//! An upstream with one blob of any size, made as it is sent: in parts or whole, as fast as it is told, over connections
//! that break and places that expire. It counts every byte.

#![expect(clippy::missing_panics_doc, reason = "a panic is how a test fails")]

use std::net::SocketAddr;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use axum::Router;
use axum::body::Body;
use axum::extract::State;
use axum::response::Response;
use bytes::Bytes;
use futures_util::stream;
use http::{HeaderMap, Request, StatusCode, header};
use serde_json::json;
use stopover::oci::{Algorithm, Digest, Hasher, MediaType, Repository};
use stopover::ports::{Job, Priority};
use tokio::time::Instant;

use crate::loopback::Loopback;

/// The bytes differ from one block of this size to the next.
const BLOCK: u64 = 64 * 1024;

/// The upstream. Its id is `vast.local`; the blob is the only layer of `vast:1`.
pub struct Vast {
    address: SocketAddr,
    shared: Arc<Shared>,
    _loopback: Loopback,
}

/// How it behaves; may be changed at any time.
#[derive(Clone, Debug, Default)]
pub struct Manner {
    /// Range requests are answered with everything.
    pub no_parts: bool,
    /// What it says of the parts it sends instead of the truth: shifted by so many bytes.
    pub shifted: u64,
    /// Each answer breaks off after so many bytes.
    pub breaks_after: Option<u64>,
    /// Each connection gets so many bytes in a second.
    pub bytes_per_second: Option<u64>,
    /// The registry redirects to places that work for so many requests each.
    pub place_works_for: Option<usize>,
    /// A byte at this offset is wrong.
    pub wrong_at: Option<u64>,
    /// Bytes that follow the last one, without end.
    pub endless: bool,
    /// Nothing is sent beyond this offset until that changes.
    pub stalls_at: Option<u64>,
}

struct Shared {
    size: u64,
    digest: Digest,
    block: Bytes,
    manner: Mutex<Manner>,
    sent: AtomicU64,
    requests: AtomicUsize,
    asked: AtomicUsize,
    open: AtomicUsize,
    most_open: AtomicUsize,
}

impl Vast {
    /// An upstream whose blob has `size` bytes.
    pub fn start(size: u64, manner: Manner) -> anyhow::Result<Self> {
        let mut random = crate::Random::new(size);
        let mut block = vec![0; usize::try_from(BLOCK)?];
        random.fill(&mut block);
        let block = Bytes::from(block);
        let mut hasher = Hasher::new(Algorithm::Sha256);
        for number in 0..size.div_ceil(BLOCK) {
            let bytes = of_block(&block, number);
            let length = BLOCK.min(size - number * BLOCK);
            let mut left = usize::try_from(length)?;
            for bytes in bytes {
                let piece = bytes.slice(..bytes.len().min(left));
                left -= piece.len();
                hasher.update(&piece);
            }
        }
        let shared = Arc::new(Shared {
            size,
            digest: hasher.finish(),
            block,
            manner: Mutex::new(manner),
            sent: AtomicU64::new(0),
            requests: AtomicUsize::new(0),
            asked: AtomicUsize::new(0),
            open: AtomicUsize::new(0),
            most_open: AtomicUsize::new(0),
        });
        let loopback = Loopback::new("vast")?;
        let (listener, address) = loopback.bind()?;
        loopback.serve(listener, Router::new().fallback(answer).with_state((address, Arc::clone(&shared))));
        Ok(Self { address, shared, _loopback: loopback })
    }

    /// Scheme, host and port.
    pub fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    /// Its table in `stopover.toml`.
    pub fn table(&self) -> String {
        format!("[upstreams.\"vast.local\"]\nurl = \"{}\"\n", self.url())
    }

    /// The blob's digest.
    pub fn digest(&self) -> &Digest {
        &self.shared.digest
    }

    /// The fill of the blob.
    pub fn job(&self) -> Job {
        let upstream = "vast.local".parse().expect("it is an id");
        let repository = Repository { upstream, name: "vast".parse().expect("it is a name") };
        Job {
            repository,
            digest: self.shared.digest.clone(),
            size: self.shared.size,
            priority: Priority::Interactive,
            payer: None,
        }
    }

    /// Its manner, to be changed.
    pub fn manner(&self) -> MutexGuard<'_, Manner> {
        self.shared.manner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// How many bytes of the blob have been sent.
    pub fn sent(&self) -> u64 {
        self.shared.sent.load(Ordering::SeqCst)
    }

    /// How many requests for bytes were answered with bytes.
    pub fn requests(&self) -> usize {
        self.shared.requests.load(Ordering::SeqCst)
    }

    /// How often the registry was asked for the blob.
    pub fn asked(&self) -> usize {
        self.shared.asked.load(Ordering::SeqCst)
    }

    /// How many answers with bytes were under way at once, at the most.
    pub fn most_open(&self) -> usize {
        self.shared.most_open.load(Ordering::SeqCst)
    }
}

/// The bytes of a block: its number, then what all have in common.
fn of_block(block: &Bytes, number: u64) -> [Bytes; 2] {
    [Bytes::copy_from_slice(&number.to_be_bytes()), block.slice(8..)]
}

async fn answer(State((address, shared)): State<(SocketAddr, Arc<Shared>)>, request: Request<Body>) -> Response {
    let path = request.uri().path();
    if path.contains("/manifests/") {
        return manifest(&shared);
    }
    let config = config();
    if path.ends_with(config.0.as_str()) {
        return respond(StatusCode::OK, &[], Body::from(config.1));
    }
    let manner = shared.manner.lock().unwrap_or_else(PoisonError::into_inner).clone();
    if !path.starts_with("/place/") {
        let asked = shared.asked.fetch_add(1, Ordering::SeqCst);
        if manner.place_works_for.is_some() {
            let place = format!("http://{address}/place/{asked}/0");
            return respond(StatusCode::TEMPORARY_REDIRECT, &[(header::LOCATION, place)], Body::empty());
        }
    } else if let Some(works_for) = manner.place_works_for
        && shared.requests.load(Ordering::SeqCst) >= works_for * shared.asked.load(Ordering::SeqCst)
    {
        return respond(StatusCode::FORBIDDEN, &[], Body::from("the signature has expired"));
    }
    shared.requests.fetch_add(1, Ordering::SeqCst);
    let whole = (0, shared.size.saturating_sub(1));
    match range(request.headers()).filter(|_| !manner.no_parts) {
        None => {
            let length = [(header::CONTENT_LENGTH, shared.size.to_string())];
            respond(StatusCode::OK, if manner.endless { &[] } else { &length }, body(&shared, whole, manner.clone()))
        }
        Some((first, last)) if first < shared.size => {
            let last = last.min(whole.1);
            let sent = format!("bytes {}-{}/{}", first + manner.shifted, last + manner.shifted, shared.size);
            let headers = [(header::CONTENT_RANGE, sent), (header::CONTENT_LENGTH, (last - first + 1).to_string())];
            respond(StatusCode::PARTIAL_CONTENT, &headers, body(&shared, (first, last), manner))
        }
        Some(_) => respond(StatusCode::RANGE_NOT_SATISFIABLE, &[], Body::empty()),
    }
}

fn config() -> (Digest, &'static str) {
    let config = "{\"architecture\":\"amd64\",\"os\":\"linux\"}";
    (Digest::of(Algorithm::Sha256, config.as_bytes()), config)
}

fn manifest(shared: &Shared) -> Response {
    let (config, text) = config();
    let describe = |digest: &Digest, size| json!({ "mediaType": "application/octet-stream", "digest": digest.as_str(), "size": size });
    let manifest = json!({
        "schemaVersion": 2, "mediaType": MediaType::OciManifest.as_str(),
        "config": describe(&config, text.len() as u64), "layers": [describe(&shared.digest, shared.size)],
    });
    let headers = [(header::CONTENT_TYPE, MediaType::OciManifest.as_str().to_owned())];
    respond(StatusCode::OK, &headers, Body::from(manifest.to_string()))
}

fn range(headers: &HeaderMap) -> Option<(u64, u64)> {
    let (first, last) = headers.get(header::RANGE)?.to_str().ok()?.strip_prefix("bytes=")?.split_once('-')?;
    Some((first.parse().ok()?, last.parse().unwrap_or(u64::MAX)))
}

/// One answer's bytes, counted from its beginning to its end.
struct Sending {
    shared: Arc<Shared>,
    manner: Manner,
    at: u64,
    end: u64,
    sent: u64,
    begun: Instant,
}

impl Drop for Sending {
    fn drop(&mut self) {
        self.shared.open.fetch_sub(1, Ordering::SeqCst);
    }
}

fn body(shared: &Arc<Shared>, (first, last): (u64, u64), manner: Manner) -> Body {
    let open = shared.open.fetch_add(1, Ordering::SeqCst) + 1;
    shared.most_open.fetch_max(open, Ordering::SeqCst);
    let end = if manner.endless { u64::MAX } else { last + 1 };
    let sending = Sending { shared: Arc::clone(shared), manner, at: first, end, sent: 0, begun: Instant::now() };
    Body::from_stream(stream::try_unfold(sending, async |mut sending| {
        let Some(bytes) = sending.next().await? else { return Ok(None) };
        Ok::<_, std::io::Error>(Some((bytes, sending)))
    }))
}

impl Sending {
    async fn next(&mut self) -> std::io::Result<Option<Bytes>> {
        if self.at >= self.end {
            return Ok(None);
        }
        if self.manner.breaks_after.is_some_and(|after| self.sent >= after) {
            return Err(std::io::Error::other("broken off"));
        }
        while self
            .shared
            .manner
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .stalls_at
            .is_some_and(|at| at <= self.at)
        {
            // The reason for this pause: the manner is plain data, so its change is polled.
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        if let Some(rate) = self.manner.bytes_per_second {
            let due = Duration::from_micros(self.sent.saturating_mul(1_000_000) / rate);
            tokio::time::sleep_until(self.begun + due).await;
        }
        let (number, offset) = (self.at / BLOCK, self.at % BLOCK);
        let [head, tail] = of_block(&self.shared.block, number);
        let offset = usize::try_from(offset).unwrap_or_default();
        let mut bytes = if offset < 8 { head.slice(offset..) } else { tail.slice(offset - 8..) };
        let left = (self.end - self.at).min(self.manner.breaks_after.map_or(u64::MAX, |after| after - self.sent));
        bytes.truncate(usize::try_from(left).unwrap_or(usize::MAX));
        if let Some(wrong) = self.manner.wrong_at
            && (self.at..self.at + bytes.len() as u64).contains(&wrong)
        {
            let mut changed = bytes.to_vec();
            changed[usize::try_from(wrong - self.at).unwrap_or_default()] ^= 1;
            bytes = changed.into();
        }
        let length = bytes.len() as u64;
        self.at += length;
        self.sent += length;
        self.shared.sent.fetch_add(length, Ordering::SeqCst);
        Ok(Some(bytes))
    }
}

fn respond(status: StatusCode, headers: &[(header::HeaderName, String)], body: Body) -> Response {
    let mut response = Response::new(body);
    *response.status_mut() = status;
    for (name, value) in headers {
        response.headers_mut().insert(name.clone(), value.parse().expect("it is a header"));
    }
    response
}
