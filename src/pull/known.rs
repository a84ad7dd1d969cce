//! What is known without asking upstream: records, stored manifests, and what upstream said last.

use std::sync::Arc;

use super::decide::{Allowed, Facts, Found, Heard, Turn};
use super::warm::{ManifestKey, WarmManifest};
use super::{Pull, PulledManifest, Result, Want};
use crate::config::Deleted;
use crate::errors::PullError;
use crate::oci::{Digest, Observed, Reference, Repository};
use crate::records::{ReferenceKey, tag};
use crate::upstream::Evidence;
use crate::values::served::Served;

impl Pull {
    /// What is known before anything is asked, with as few reads as it takes: for a digest that is stored its manifest,
    /// else what upstream said before.
    pub(super) async fn known_facts(
        &self,
        repository: &Repository,
        reference: &Reference,
        want: &Want,
    ) -> Result<Facts> {
        let mut facts = Facts::new(reference, want);
        if let Reference::Digest(digest) = reference {
            facts.stored = self.stored(repository, digest).await?.into();
            if let Found::Yes(_) = facts.stored {
                facts.permission_due = self.membership.permission_is_due(repository).await?;
                return Ok(facts);
            }
        }
        // A check reads it when its turn has come.
        if !want.check {
            self.read_record(repository, &mut facts).await?;
            // Upstream may not show the tag to us any more.
            facts.permission_due = facts.observed().is_some() && self.membership.permission_is_due(repository).await?;
            facts.absent =
                facts.observed().is_none() && self.core.upstreams.standings.check_known_absent(repository).is_err();
        }
        Ok(facts)
    }

    /// Reads what upstream said before.
    pub(super) async fn read_record(&self, repository: &Repository, facts: &mut Facts) -> Result<()> {
        let record = self.core.storage.ledger.get(&ReferenceKey(repository, &facts.reference)).await?;
        facts.record = record.map(|record| record.value);
        Ok(())
    }

    /// The manifest, or for HEAD what is known of it: a manifest in memory has the headers of its answers.
    pub(super) fn pulled(&self, repository: &Repository, facts: &Facts, served: Served) -> Result<PulledManifest> {
        let sent = if let Heard::Sent(manifest, _) = &facts.heard { Some(manifest) } else { facts.stored.manifest() };
        if let Some(manifest) = sent {
            return Ok(PulledManifest::new(Arc::clone(manifest), served));
        }
        let heard = facts.heard.observed();
        let observed = heard.as_ref().or_else(|| facts.observed()).ok_or(PullError::NotYet)?;
        Ok(match self.memory.warm.get(ManifestKey(repository, &observed.digest)) {
            Some(manifest) => PulledManifest::new(manifest, served),
            None => PulledManifest { observed: observed.clone(), manifest: None, served },
        })
    }

    /// Has upstream asked whether it still shows us a stored manifest.
    pub(super) async fn ask_permission(&self, repository: &Repository, facts: &Facts, want: &Want) -> Result<Heard> {
        let manifest = facts.stored.manifest().ok_or(PullError::NotYet)?;
        let evidence = Evidence::Manifest(manifest.digest.clone());
        let served = self.membership.check_permission(repository, evidence, &want.bill).await?;
        Ok(Heard::Sent(Arc::clone(manifest), served))
    }

    /// Has upstream asked, where that is due, whether it still shows us what a tag that it calls missing was. If not, that is not
    /// served.
    pub(super) async fn ask_if_hidden(
        self: &Arc<Self>,
        repository: &Repository,
        facts: &mut Facts,
        want: &Want,
    ) -> Result<()> {
        if let Some(known) = facts.last_known.manifest() {
            let evidence = Evidence::Manifest(known.digest.clone());
            let asked = self.membership.check_permission(repository, evidence, &want.bill.without_payer()).await;
            facts.is_not_hidden = match asked {
                Ok(_) => true,
                Err(PullError::ManifestUnknown(_)) => false,
                Err(PullError::Upstream(error)) if !error.is_trouble() => false,
                Err(error) => return Err(error),
            };
        }
        if !facts.is_not_hidden {
            facts.last_known = Found::No;
        }
        Ok(())
    }

    /// What upstream said last, if that is stored and not too old.
    pub(super) async fn last_known(&self, repository: &Repository, facts: &Facts) -> Result<Option<Arc<WarmManifest>>> {
        let Some(record) = &facts.record else { return Ok(None) };
        let upstream = self.core.upstreams.get(repository)?;
        if !self.membership.may_be_stale(repository).await? {
            return Ok(None);
        }
        for digest in tag::last_known(record, upstream.config().stale, self.core.clock.now()) {
            if let Some(manifest) = self.stored(repository, digest).await? {
                return Ok(Some(manifest));
            }
        }
        Ok(None)
    }

    /// A manifest stored for this repository, from memory if this process has served it before.
    pub(super) async fn stored(&self, repository: &Repository, digest: &Digest) -> Result<Option<Arc<WarmManifest>>> {
        if let Some(manifest) = self.memory.warm.get(ManifestKey(repository, digest)) {
            return Ok(Some(manifest));
        }
        let Some((manifest, used_at)) = self.core.storage.ledger.manifest(repository, digest).await? else {
            return Ok(None);
        };
        self.noted_manifest(repository, digest, used_at);
        Ok(Some(self.memory.warm.add(repository, Arc::new(WarmManifest::new(manifest)))))
    }
}

impl Facts {
    pub(super) fn new(reference: &Reference, want: &Want) -> Self {
        Self {
            reference: reference.clone(),
            record: None,
            stored: Found::Unknown,
            last_known: Found::Unknown,
            heard: Heard::Nothing,
            head: want.head,
            check: want.check,
            permission_due: false,
            absent: false,
            deleted: Deleted::Missing,
            is_not_hidden: false,
            breaker_known: false,
            budget: Allowed::Unknown,
            turn: Turn::Caller,
            late: false,
        }
    }

    /// What upstream said before.
    pub(super) fn observed(&self) -> Option<&Observed> {
        self.record.as_ref()?.observed.as_ref()
    }

    /// Upstream has answered: what was looked for before is about something else.
    pub(super) fn hear(&mut self, heard: Heard) {
        (self.heard, self.stored, self.last_known) = (heard, Found::Unknown, Found::Unknown);
        self.is_not_hidden = false;
    }

    /// What upstream said last.
    pub(super) fn stale(&self, repository: &Repository) -> Result<PulledManifest> {
        if let Heard::Trouble(error) = &self.heard {
            let reference = &self.reference;
            tracing::warn!(%repository, %reference, %error, "upstream is in trouble: serving what it said last");
        }
        let manifest = self.last_known.manifest().ok_or(PullError::NotYet)?;
        Ok(PulledManifest::new(Arc::clone(manifest), Served::Stale))
    }
}

impl PulledManifest {
    fn new(manifest: Arc<WarmManifest>, served: Served) -> Self {
        Self { observed: Observed::of(&manifest), manifest: Some(manifest), served }
    }
}
