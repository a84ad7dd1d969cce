//! What upstream is asked about a manifest, and what is heard.

use std::sync::Arc;

use super::decide::{Ask, Heard};
use super::{Pull, PulledManifest, Result, Want, WarmManifest};
use crate::budget::MissReservation;
use crate::errors::{Limit, PullError, UpstreamError};
use crate::oci::{Digest, Observed, Reference, Repository};
use crate::upstream::Patience;
use crate::values::served::Served;

impl Pull {
    /// Asks upstream. `known`: it has said before what the reference is.
    pub(super) async fn ask(
        self: &Arc<Self>,
        repository: &Repository,
        reference: &Reference,
        ask: Ask,
        known: bool,
        want: &Want,
    ) -> Heard {
        let heard = match (ask, reference) {
            (Ask::Head, _) => self.head(repository, reference, known).await,
            (Ask::GetByTag, _) => self.get_by_tag(repository, reference, want).await,
            (Ask::GetByDigest(digest), Reference::Tag(_)) => self.by_digest(repository, reference, digest, want).await,
            (Ask::GetByDigest(_), Reference::Digest(_)) => self.fetch(repository, reference, want).await.map(fetched),
        };
        heard.unwrap_or_else(Heard::from)
    }

    /// What upstream says with HEAD, which costs no quota.
    async fn head(&self, repository: &Repository, reference: &Reference, known: bool) -> Result<Heard> {
        let patience = if known { Patience::Known } else { Patience::Client };
        let named = self.core.upstreams.head_manifest(repository, reference, patience).await?;
        Ok(named.map_or(Heard::Unnamed, |observed| match reference {
            Reference::Tag(_) => Heard::Named(observed),
            // Whatever digest upstream names for a request by digest, the requested one counts.
            Reference::Digest(digest) => Heard::Named(Observed { digest: digest.clone(), ..observed }),
        }))
    }

    /// One GET: what the tag is, and its manifest.
    async fn get_by_tag(&self, repository: &Repository, tag: &Reference, want: &Want) -> Result<Heard> {
        match self.fetch(repository, tag, want).await {
            // HEAD still tells the digest, and that manifest may be stored, or an alternate may have it.
            Err(PullError::Upstream(error)) if error.limit() == Some(Limit::Pulls) && !want.head => {
                let named = self.core.upstreams.head_manifest(repository, tag, Patience::Client).await?;
                named.map(Heard::Named).ok_or(error.into())
            }
            manifest => Ok(fetched(manifest?)),
        }
    }

    /// The manifest of the digest that upstream says a tag is. Asked by its own key, so that callers by digest and
    /// callers by tag share one GET. Some upstreams have it by its tag only (spegel#1378, moby#41687). If upstream does
    /// not have it at all, that is an error of upstream and no caller's miss, because upstream named it itself.
    async fn by_digest(
        self: &Arc<Self>,
        repository: &Repository,
        tag: &Reference,
        digest: Digest,
        want: &Want,
    ) -> Result<Heard> {
        let want = Want { check: false, ..want.clone() };
        let by_digest = Reference::Digest(digest);
        let found = match self.share(repository, &by_digest, want.clone(), false, MissReservation::free()).await {
            Err(PullError::ManifestUnknown(_) | PullError::Upstream(UpstreamError::NoRepository)) => {
                self.fetch(repository, tag, &want).await.map(fetched)
            }
            Ok(PulledManifest { manifest: Some(manifest), served, .. }) => Ok(Heard::Sent(manifest, served)),
            // It is asked with GET.
            Ok(PulledManifest { manifest: None, .. }) => Err(PullError::NotYet),
            Err(error) => Err(error),
        };
        found.map_err(|error| match error {
            PullError::ManifestUnknown(_)
            | PullError::Upstream(UpstreamError::Missing | UpstreamError::NoRepository) => {
                UpstreamError::Invalid("a tag is a manifest that it does not have".into()).into()
            }
            error => error,
        })
    }
}

fn fetched(manifest: Arc<WarmManifest>) -> Heard {
    Heard::Sent(manifest, Served::Miss)
}
