//! What a page of images is made of: it is looked up all at once, as far as there is room.

use std::collections::{BTreeSet, HashMap, HashSet};

use super::{Known, LayerReport, PlatformReport};
use crate::errors::StoreError;
use crate::oci::{Digest, Manifest, Repository};
use crate::operate::Operate;
use crate::records::{BlobRecord, BlobState};
use crate::values::text::excerpt;
use crate::values::time::Timestamp;

/// How many manifests below indexes are looked up for a page, and how many blobs.
const MOST_CHILDREN: usize = 150;
const MOST_BLOBS: usize = 300;

/// What was looked up for a page.
pub(super) struct Found {
    /// All that was, found or not.
    asked: HashSet<Digest>,
    manifests: HashMap<Digest, (Manifest, Timestamp)>,
    blobs: HashMap<Digest, BlobRecord>,
    /// Blobs that several images of the page name.
    shared: HashSet<Digest>,
}

impl Operate {
    /// Looks up manifests, those below indexes, and the blobs of all: of as many images as there is room for. Says how many
    /// those are, and whether the first alone was too much.
    pub(super) async fn look_up(
        &self,
        repository: &Repository,
        known: &[Known],
    ) -> Result<(Found, usize, bool), StoreError> {
        let ledger = &self.core.storage.ledger;
        let digests: BTreeSet<Digest> = known.iter().map(|(.., digest)| digest.clone()).collect();
        let digests: Vec<Digest> = digests.into_iter().collect();
        let stored = ledger.manifests(repository, &digests).await?;
        let mut manifests: HashMap<Digest, _> =
            stored.into_iter().map(|found| (found.0.digest.clone(), found)).collect();
        let below = |digest: &Digest| -> Vec<Digest> {
            manifests.get(digest).map(|(manifest, _)| children_of(manifest).collect()).unwrap_or_default()
        };
        let below: Vec<Vec<Digest>> = known.iter().map(|(.., digest)| below(digest)).collect();
        let (children, fit, too_many) = fitting(below.iter(), MOST_CHILDREN);
        let found = if children.is_empty() { Vec::new() } else { ledger.manifests(repository, &children).await? };
        manifests.extend(found.into_iter().map(|found| (found.0.digest.clone(), found)));
        let blobs_of = |digest: &Digest| {
            let blobs = manifests.get(digest).map(|(manifest, _)| manifest.blobs().unwrap_or_default());
            blobs.unwrap_or_default().into_iter().map(|blob| blob.digest)
        };
        let (mut named, mut shared) = (HashSet::new(), HashSet::new());
        for blob in manifests.keys().flat_map(blobs_of) {
            if !named.insert(blob.clone()) {
                shared.insert(blob);
            }
        }
        let images = known.iter().zip(&below).take(fit);
        let of_images: Vec<Vec<Digest>> =
            images.map(|((.., digest), below)| below.iter().chain([digest]).flat_map(blobs_of).collect()).collect();
        let (wanted, fit, too_many_blobs) = fitting(of_images.iter(), MOST_BLOBS);
        let blobs = if wanted.is_empty() { Vec::new() } else { ledger.get_all(&wanted).await? };
        let blobs = blobs.into_iter().map(|(digest, record)| (digest, record.value)).collect();
        let asked = digests.into_iter().chain(children).chain(wanted).collect();
        Ok((Found { asked, manifests, blobs, shared }, fit, too_many || too_many_blobs))
    }
}

impl Found {
    /// A manifest, if it is stored.
    pub(super) fn manifest(&self, digest: &Digest) -> Option<&Manifest> {
        self.manifests.get(digest).map(|(manifest, _)| manifest)
    }

    /// When it was last pulled.
    pub(super) fn used_at(&self, digest: &Digest) -> Option<u64> {
        self.manifests.get(digest).map(|(_, used_at)| used_at.0)
    }

    /// What an image consists of, by the digest of its manifest.
    pub(super) fn platforms(&self, digest: &Digest) -> Vec<PlatformReport> {
        let Some(manifest) = self.manifest(digest) else { return Vec::new() };
        if !manifest.media_type.is_index() {
            return vec![self.platform(None, digest.clone())];
        }
        let children = manifest.children().unwrap_or_default().into_iter();
        let named = children.map(|child| (child.platform.map(|platform| excerpt(&platform)), child.digest));
        named.map(|(platform, digest)| self.platform(platform, digest)).collect()
    }

    fn platform(&self, platform: Option<String>, digest: Digest) -> PlatformReport {
        let manifest = self.manifest(&digest);
        let blobs = manifest.map(|manifest| manifest.blobs().unwrap_or_default()).unwrap_or_default();
        let layers = blobs.into_iter().map(|blob| {
            let record = self.blobs.get(&blob.digest);
            let is_stored = record.is_some_and(|record| matches!(record.state, BlobState::Stored { .. }));
            let stored = self.asked.contains(&blob.digest).then_some(is_stored);
            let shared = self.shared.contains(&blob.digest) || record.is_some_and(|record| record.shared);
            LayerReport { digest: blob.digest, bytes: blob.size, stored, shared }
        });
        let layers = layers.collect();
        let stored = self.asked.contains(&digest).then_some(manifest.is_some());
        PlatformReport { platform, stored, used_at: self.used_at(&digest), layers, digest }
    }
}

/// The manifests below an index.
pub(super) fn children_of(manifest: &Manifest) -> impl Iterator<Item = Digest> {
    manifest.children().unwrap_or_default().into_iter().map(|child| child.digest)
}

/// What lists name together: of as many lists as there is room for, of the first as much. Says also how many lists those are,
/// and whether the first has more.
fn fitting<'a>(lists: impl Iterator<Item = &'a Vec<Digest>>, most: usize) -> (Vec<Digest>, usize, bool) {
    let (mut all, mut fit) = (BTreeSet::new(), 0);
    for list in lists {
        let with: BTreeSet<&Digest> = all.iter().copied().chain(list).collect();
        let is_full = with.len() > most;
        if !is_full || fit == 0 {
            (all, fit) = (with, fit + 1);
        }
        if is_full {
            break;
        }
    }
    let too_many = all.len() > most;
    (all.into_iter().take(most).cloned().collect(), fit, too_many)
}
