//! Blobs of one upstream: where a client could fetch them, and their bytes, whole or in parts.

use std::pin::Pin;
use std::time::Duration;

use bytes::Bytes;
use futures_util::{Stream, StreamExt as _, TryStreamExt as _, stream};
use http::header::CONTENT_RANGE;
use http::{Method, StatusCode};
use tokio::time::{Instant, timeout};

use super::account::Optional;
use super::answer::{UpstreamResponse, timed, whole_size};
use super::client::Patience;
use super::send::{MAX_REDIRECTS, hop_ends, redirected_too_often};
use super::{Result, Upstream};
use crate::errors::UpstreamError;
use crate::oci::{Digest, MediaType, Name, Repository};
use crate::ports::SignedUrl;
use crate::records::gauge::Kind;

/// The time limit for the headers of a blob.
const BLOB_HEADER_TIMEOUT: Duration = Duration::from_secs(20);
/// The pause before the one retry after a broken connection.
const ONCE_MORE: Duration = Duration::from_millis(250);
/// The bytes that have to arrive within [`PATIENCE`], about 1 KiB a second: slower counts as silence.
pub(crate) const LEAST_BYTES: u64 = 32 * 1024;
const PATIENCE: Duration = Duration::from_secs(30);

/// The bytes of a blob as upstream sends them, not verified yet.
pub type BlobBody = Pin<Box<dyn Stream<Item = Result<Bytes>> + Send>>;

/// A blob that upstream has begun to send.
pub struct OpenBlob {
    /// The length of the whole blob in bytes, if upstream tells it.
    pub size: Option<u64>,
    /// Whether `body` is only the requested range. Otherwise it is the whole blob, even if a range was requested.
    pub partial: bool,
    /// The bytes.
    pub body: BlobBody,
    /// Where the bytes come from.
    pub place: BlobPlace,
}

/// The URL that served a blob, for further requests until it stops working.
#[derive(Clone, Debug)]
pub struct BlobPlace {
    pub(super) repository: Repository,
    url: SignedUrl,
}

/// The first and the last byte of the requested range.
pub type BytesWanted = (u64, u64);

/// Where a client could fetch a blob itself.
#[derive(Clone, Debug)]
pub enum BlobSource {
    /// At this URL, without our credentials.
    Public(SignedUrl),
    /// Only with our credentials.
    Private,
}

impl Upstream {
    /// Finds out where a client could fetch a blob itself, without fetching it.
    pub async fn blob_source(&self, name: &Name, digest: &Digest) -> Result<BlobSource> {
        self.metered(Kind::Blob, name, digest, timed(BLOB_HEADER_TIMEOUT, self.do_blob_source(name, digest))).await
    }

    async fn do_blob_source(&self, name: &Name, digest: &Digest) -> Result<BlobSource> {
        let ends_at = hop_ends(BLOB_HEADER_TIMEOUT);
        let mut url = self.endpoint(name, "blobs", digest);
        for _ in 0..=MAX_REDIRECTS {
            let answer = Box::pin(self.request(Method::GET, url, name, MediaType::ACCEPT, None, ends_at)).await?;
            match answer.redirect_target()? {
                // Only the API of a registry asks for a token; pkg.dev serves blobs from another path of the same host.
                Some(target) if !target.path().starts_with("/v2/") => {
                    self.clients.may_send_to(&target, self.config()).await?;
                    return Ok(BlobSource::Public(target.into()));
                }
                Some(target) => url = target,
                None => {
                    let answer = answer.succeeded(self.has_credentials()).await?;
                    let public = || BlobSource::Public(answer.url.into());
                    return Ok(if answer.authorized { BlobSource::Private } else { public() });
                }
            }
        }
        Err(redirected_too_often())
    }

    /// Opens a blob, or the requested range of it where upstream supports ranges. What fails before the first byte is
    /// asked for once more, because clients wait for that byte and some do not retry; and as a whole, because ranges are
    /// refused in many ways. The breaker counts both attempts as one.
    pub async fn open_blob(
        &self,
        name: &Name,
        digest: &Digest,
        wanted: Option<BytesWanted>,
        patience: Patience,
    ) -> Result<OpenBlob> {
        let repository = Repository { upstream: self.id().clone(), name: name.clone() };
        let place = BlobPlace { repository, url: self.endpoint(name, "blobs", digest).into() };
        let limit = if patience == Patience::Fill { self.config().first_byte } else { BLOB_HEADER_TIMEOUT };
        let (origin, account) = (&self.config().url, &self.account);
        let wanted = wanted.filter(|_| account.may_ask(Optional::Range, origin));
        let ends_at = hop_ends(limit);
        let opened = async {
            let error = match self.do_open_blob(&place, wanted, limit, ends_at).await {
                Err(error) if Instant::now() < ends_at => error,
                opened => return opened,
            };
            let pause = match &error {
                UpstreamError::Unavailable { silent: false, .. } => ONCE_MORE,
                UpstreamError::Unavailable { .. } | UpstreamError::Throttled { .. } => return Err(error),
                _ if wanted.is_some() => Duration::ZERO,
                _ => return Err(error),
            };
            tracing::debug!(blob.digest = %digest, %error, "asking upstream once more");
            tokio::time::sleep(pause).await;
            let opened = self.do_open_blob(&place, None, limit, ends_at).await;
            // 5xx may have been the trouble of a moment.
            if wanted.is_some() && opened.is_ok() && !error.is_trouble() {
                account.note_lack(Optional::Range, origin);
            }
            opened
        };
        self.metered(Kind::Blob, name, digest, timed(limit, opened)).await
    }

    /// Opens another part of a blob at the URL of an earlier part, without asking the registry. A failure of that URL
    /// (a signed URL expires) says nothing about the blob.
    pub async fn open_again(&self, place: &BlobPlace, wanted: BytesWanted) -> Result<OpenBlob> {
        let limit = self.config().first_byte;
        let opened = timed(limit, self.do_open_blob(place, Some(wanted), limit, hop_ends(limit)));
        if place.url.expose().origin() == self.config().url.origin() {
            self.metered(Kind::Blob, &place.repository.name, place.url.expose().path(), opened).await
        } else {
            opened.await
        }
    }

    async fn do_open_blob(
        &self,
        place: &BlobPlace,
        wanted: Option<BytesWanted>,
        first_byte: Duration,
        ends_at: Instant,
    ) -> Result<OpenBlob> {
        let (name, url) = (&place.repository.name, place.url.expose().clone());
        let answer = self.send(Method::GET, url, name, MediaType::ACCEPT, wanted, ends_at).await?;
        let UpstreamResponse { response, url, .. } = answer.succeeded(self.has_credentials()).await?;
        let partial = response.status() == StatusCode::PARTIAL_CONTENT;
        let size = if partial {
            let range = response.headers().get(CONTENT_RANGE).and_then(|range| range.to_str().ok());
            let size = range.and_then(|range| whole_size(range, wanted?));
            Some(size.ok_or_else(|| UpstreamError::Invalid("it sent another range than it was asked for".into()))?)
        } else {
            response.content_length()
        };
        let body = hurried(Box::pin(response.bytes_stream().map_err(UpstreamError::from)), first_byte);
        Ok(OpenBlob { size, partial, body, place: BlobPlace { url: url.into(), ..place.clone() } })
    }
}

/// Ends the body with an error where upstream is too slow; its first byte may take longer. Only time spent waiting for upstream counts, not time that
/// the reader takes.
fn hurried(body: BlobBody, first_byte: Duration) -> BlobBody {
    let state = Some((body, 0, Duration::ZERO, first_byte.max(PATIENCE)));
    Box::pin(stream::unfold(state, async |state| {
        let (mut body, mut bytes, mut waited, patience) = state?;
        let begun = Instant::now();
        let Ok(chunk) = timeout(patience.saturating_sub(waited), body.next()).await else {
            let reason = format!("it sent {bytes} bytes in {} s", patience.as_secs());
            return Some((Err(UpstreamError::Unavailable { silent: true, reason }), None));
        };
        // The wait for the first byte is not that for those after it.
        waited = if patience > PATIENCE { Duration::ZERO } else { waited + begun.elapsed() };
        bytes += chunk.as_ref()?.as_ref().map_or(0, |chunk| chunk.len() as u64);
        if bytes >= LEAST_BYTES {
            (bytes, waited) = (0, Duration::ZERO);
        }
        chunk.map(|chunk| (chunk, Some((body, bytes, waited, PATIENCE))))
    }))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Reads a body of 256 KiB that brings so many bytes every so many seconds, to its end.
    async fn read(bytes: usize, seconds: u64) -> Result<usize> {
        const SIZE: usize = 256 * 1024;
        let pieces = vec![0; SIZE].chunks(bytes).map(Bytes::copy_from_slice).collect::<Vec<_>>();
        let body = stream::iter(pieces).then(move |piece| async move {
            tokio::time::sleep(Duration::from_secs(seconds)).await;
            Ok(piece)
        });
        hurried(Box::pin(body), Duration::ZERO).try_fold(0, async |read, piece| Ok(read + piece.len())).await
    }

    #[tokio::test(start_paused = true)]
    async fn a_body_that_is_slow_is_read_to_its_end_and_one_that_drips_is_not() {
        for (bytes, seconds) in [(256 * 1024, 29), (32 * 1024, 29), (2 * 1024, 1), (1100, 1)] {
            assert_eq!(read(bytes, seconds).await, Ok(256 * 1024), "{bytes} bytes in {seconds} s");
        }
        for (bytes, seconds) in [(256 * 1024, 31), (20 * 1024, 29), (1000, 1), (1, 1)] {
            let ended = read(bytes, seconds).await;
            let trouble = matches!(ended, Err(UpstreamError::Unavailable { silent: true, .. }));
            assert!(trouble, "{bytes} bytes in {seconds} s: {ended:?}");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn the_first_byte_may_take_longer_than_those_after_it() {
        let late = |seconds, then| {
            let piece = move |after| async move {
                tokio::time::sleep(Duration::from_secs(after)).await;
                Ok(Bytes::from_static(&[0; 1024]))
            };
            let body = stream::iter([seconds, then, 1]).then(piece);
            hurried(Box::pin(body), Duration::from_mins(2)).try_fold(0, async |read, piece| Ok(read + piece.len()))
        };
        assert_eq!(late(119, 28).await, Ok(3 * 1024));
        assert!(late(121, 1).await.is_err(), "longer than the configuration says");
        assert!(late(1, 31).await.is_err(), "the second one");
    }

    #[tokio::test(start_paused = true)]
    async fn that_nobody_reads_a_body_is_not_the_fault_of_upstream() {
        let body = stream::repeat(Ok(Bytes::from_static(&[0; 1024])));
        let mut body = hurried(Box::pin(body), Duration::ZERO);
        for _ in 0..100 {
            tokio::time::sleep(Duration::from_mins(1)).await;
            assert!(body.next().await.is_some_and(|piece| piece.is_ok()));
        }
    }
}
