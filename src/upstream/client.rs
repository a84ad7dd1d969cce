//! What one upstream is asked: tags, manifests, and its settings and its quota.

use std::sync::Arc;
use std::time::Duration;

use http::header::{CONTENT_LENGTH, CONTENT_TYPE};
use http::{Method, StatusCode};
use tokio::time::Instant;
use url::Url;

use super::Result;
use super::account::{Account, Heads};
use super::answer::{self, UpstreamResponse, own_media_type, read_limited, timed};
use super::guard::Clients;
use super::send::hop_ends;
use crate::config::{Cold, Deleted, UpstreamConfig};
use crate::errors::UpstreamError;
use crate::oci::{Algorithm, Digest, MAX_MANIFEST_BYTES, Manifest, MediaType, Name, Observed, Reference, UpstreamId};
use crate::records::GaugeKey;
use crate::records::gauge::Kind;
use crate::values::time::Clock;

const HEAD_TIMEOUT: Duration = Duration::from_secs(5);
/// The same where nothing is known: chained caches are slow, but they answer. Both are below the 30 s that clients wait
/// for headers.
const PATIENT_HEAD_TIMEOUT: Duration = Duration::from_secs(15);
const MANIFEST_TIMEOUT: Duration = Duration::from_secs(18);

/// How long an answer is waited for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Patience {
    /// Briefly: a client can be served what is known.
    Known,
    /// As long as a client waits: nothing is known.
    Client,
    /// As long as the configuration says: no client waits, or it is told to come back.
    Fill,
}

/// One upstream registry, or the part of it that a rule configures.
pub struct Upstream {
    pub(super) config: Arc<UpstreamConfig>,
    pub(super) account: Arc<Account>,
    pub(super) clients: Arc<Clients>,
    pub(super) clock: Clock,
}

impl Upstream {
    /// Its id.
    pub fn id(&self) -> &UpstreamId {
        &self.account.key.upstream
    }

    /// Its settings.
    pub fn config(&self) -> &UpstreamConfig {
        &self.config
    }

    /// The key of its quota gauge: the upstream and our credential.
    pub fn gauge_key(&self) -> &GaugeKey {
        &self.account.key
    }

    /// What a client gets for a blob of this upstream that is not stored yet.
    pub fn cold(&self) -> Cold {
        self.config.cold
    }

    /// Resolves a tag with HEAD, which costs no quota. `None`: this upstream tells the digest only with the manifest.
    pub async fn head_manifest(
        &self,
        name: &Name,
        reference: &Reference,
        patience: Patience,
    ) -> Result<Option<Observed>> {
        let limit = if patience == Patience::Known { HEAD_TIMEOUT } else { PATIENT_HEAD_TIMEOUT };
        if self.account.heads(name) == Some(Heads::Wrong) {
            return Ok(None);
        }
        let asked = self.do_head_manifest(name, reference, patience == Patience::Known, hop_ends(limit));
        let asked = self.metered(Kind::Head, name, reference, timed(limit, asked)).await;
        if matches!(asked, Ok(Some(_))) {
            self.account.note_heads(name, Heads::Right);
        }
        asked
    }

    async fn do_head_manifest(
        &self,
        name: &Name,
        reference: &Reference,
        known: bool,
        ends_at: Instant,
    ) -> Result<Option<Observed>> {
        let url = self.endpoint(name, "manifests", reference);
        let answer = self.send(Method::HEAD, url, name, MediaType::ACCEPT, None, ends_at).await?;
        // HEAD is refused as such, or the answer is a page: what it means only GET tells.
        if matches!(answer.response.status().as_u16(), 400 | 405 | 406 | 411 | 501)
            || (answer.response.status().is_client_error() && answer::is_page(answer.response.headers()))
        {
            return Ok(None);
        }
        let heads = self.account.heads(name);
        if Self::is_doubtful(&answer, known) && heads != Some(Heads::Right) {
            let doubted = Heads::Doubted(reference.clone());
            self.account.note_heads(name, doubted.clone());
            // Where a tag that is gone is served on, GET can wait until it is checked again.
            let waits = answer.response.status() == StatusCode::NOT_FOUND && self.config.deleted == Deleted::Serve;
            if !waits || heads == Some(doubted) {
                return Ok(None);
            }
        }
        let answer = answer.succeeded(self.has_credentials()).await?;
        let headers = answer.response.headers();
        let text = |name: &str| headers.get(name).and_then(|value| value.to_str().ok());
        let digest = text("docker-content-digest").and_then(|digest| digest.parse().ok());
        let media_type = text(CONTENT_TYPE.as_str()).and_then(|media_type| media_type.parse().ok());
        let size = text(CONTENT_LENGTH.as_str()).and_then(|size| size.parse().ok()).filter(|&size: &u64| size > 0);
        Ok(match (digest, media_type, size) {
            (Some(digest), Some(media_type), Some(size)) => Some(Observed { digest, media_type, size }),
            _ => None,
        })
    }

    /// Whether GET may be answered where HEAD is refused. What a registry says of a tag that it has never shown is its
    /// word: a GET for each tag that does not exist would be too many.
    fn is_doubtful(answer: &UpstreamResponse, known: bool) -> bool {
        let json = answer.response.headers().get(CONTENT_TYPE).is_some_and(|text| text.as_bytes().ends_with(b"json"));
        match answer.response.status() {
            StatusCode::FORBIDDEN => true,
            StatusCode::NOT_FOUND => known || !json,
            StatusCode::UNAUTHORIZED => known,
            _ => false,
        }
    }

    /// Fetches a manifest and verifies its digest: the requested one, or the one that the answer names.
    ///
    /// `background`: no client waits for it, so the reserve of the quota is left alone.
    pub async fn get_manifest(&self, name: &Name, reference: &Reference, background: bool) -> Result<Manifest> {
        if background {
            self.account.meter.spare(self.config.reserve).await?;
        }
        let asked = self.do_get_manifest(name, reference, hop_ends(MANIFEST_TIMEOUT));
        let fetched = self.metered(Kind::Manifest, name, reference, timed(MANIFEST_TIMEOUT, asked)).await;
        if self.account.heads(name) == Some(Heads::Doubted(reference.clone())) {
            match &fetched {
                Ok(_) => self.account.note_heads(name, Heads::Wrong),
                Err(UpstreamError::Missing | UpstreamError::NoRepository | UpstreamError::Denied(_)) => {
                    self.account.note_heads(name, Heads::Right);
                }
                Err(_) => {}
            }
        }
        fetched
    }

    async fn do_get_manifest(&self, name: &Name, reference: &Reference, ends_at: Instant) -> Result<Manifest> {
        let url = self.endpoint(name, "manifests", reference);
        let answer = self.send(Method::GET, url, name, MediaType::ACCEPT, None, ends_at).await?;
        let answer = answer.succeeded(self.has_credentials()).await?;
        self.account.note_pull();
        let headers = answer.response.headers();
        let header = |name: &str| headers.get(name).and_then(|value| value.to_str().ok()).unwrap_or_default();
        let content_type = header(CONTENT_TYPE.as_str()).to_owned();
        let named = header("docker-content-digest").parse::<Digest>().ok();
        let bytes = read_limited(answer.response, MAX_MANIFEST_BYTES).await?;
        let expected = match reference {
            Reference::Digest(digest) => Some(digest.clone()),
            Reference::Tag(_) => named,
        };
        let algorithm = expected.as_ref().map_or(Algorithm::Sha256, Digest::algorithm);
        let digest = Digest::of(algorithm, &bytes);
        if bytes.starts_with(b"\x1f\x8b") {
            let reason = "it compressed a manifest, though it was asked for it as it is (Accept-Encoding: identity)";
            return Err(UpstreamError::Invalid(reason.into()));
        }
        if let Some(expected) = expected
            && expected != digest
        {
            return Err(UpstreamError::Invalid(format!("the manifest {expected} has the digest {digest}")));
        }
        let invalid = |error: crate::oci::InvalidManifest| UpstreamError::Invalid(error.to_string());
        let media_type = match content_type.parse() {
            Ok(media_type) => media_type,
            // Some registries send a general type for everything; then the body names its own.
            Err(error) => own_media_type(&content_type, &bytes).ok_or_else(|| invalid(error))?,
        };
        Manifest::new(digest, media_type, bytes).map_err(invalid)
    }

    pub(super) fn has_credentials(&self) -> bool {
        !self.account.login.is_anonymous()
    }

    pub(super) fn endpoint(&self, name: &Name, kind: &str, reference: impl std::fmt::Display) -> Url {
        let mut url = self.config.url.clone();
        // Names, tags and digests contain no character that a path would have to escape.
        url.set_path(&format!("/v2/{name}/{kind}/{reference}"));
        url
    }
}
