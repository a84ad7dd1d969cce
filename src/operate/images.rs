//! What is in the cache: the bodies of `/_stopover/images` and `/_stopover/image`. Each is made of a bounded number of
//! reads, however much is stored.

use std::collections::{BTreeSet, HashMap, HashSet};

use serde::{Deserialize, Serialize};

use super::Operate;
use crate::errors::StoreError;
use crate::oci::{Digest, Manifest, Reference, Repository, Tag};
use crate::ports::Section;
use crate::records::blob::NOTED;
use crate::records::{BlobRecord, BlobState, Holding, TagRecord};
use crate::values::text::excerpt;
use crate::values::time::Timestamp;

/// The most repositories of a page.
pub const MOST_REPOSITORIES: usize = 1000;
/// The most images of a page.
pub const MOST_IMAGES: usize = 10;
/// How many reads of [`MOST_REPOSITORIES`] a page may take, where the caller may not see most of them.
const READS: usize = 8;
/// How many manifests below indexes are looked up for a page, and how many blobs.
const MOST_CHILDREN: usize = 150;
const MOST_BLOBS: usize = 300;

/// The body of `GET /_stopover/images`.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub struct ImagesReport {
    /// Repositories of which something is stored, by name.
    pub repositories: Vec<RepositoryReport>,
    /// There was too much in between that the caller may not pull: what comes behind it is found with a longer `prefix`.
    pub cut: bool,
}

/// A repository in the list.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct RepositoryReport {
    /// `upstream/name`.
    pub repository: String,
    /// How many tags it has.
    pub tags: u64,
    /// Some of them.
    pub some_tags: Vec<Tag>,
    /// The bytes of its blobs, each once.
    pub bytes: u64,
    /// Those of them that other repositories have, too, as the last sweep has counted. Absent before the first one.
    pub shared_bytes: Option<u64>,
    /// When something of it was stored or, as the last sweep knows, pulled last, in seconds since the Unix epoch.
    pub used_at: u64,
    /// Whether a sweep has counted it since something was stored.
    pub counted: bool,
}

impl RepositoryReport {
    fn new(repository: &Repository, holding: Holding) -> Self {
        let Holding { tags, names, bytes, shared_bytes, used_at, counted } = holding;
        let repository = repository.to_string();
        Self { repository, tags, some_tags: names, bytes, shared_bytes, used_at: used_at.0, counted }
    }

    /// The bytes that no other repository has.
    pub fn own_bytes(&self) -> u64 {
        self.bytes.saturating_sub(self.shared_bytes.unwrap_or_default())
    }
}

/// The body of `GET /_stopover/image`.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct ImageReport {
    /// `upstream/name`.
    pub repository: String,
    /// Its images: one for each tag, by name, or the one that was asked for.
    pub images: Vec<TaggedImage>,
    /// There was too much to look up: what is not is said not to be stored.
    pub partial: bool,
}

/// An image as a tag or a digest names it.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct TaggedImage {
    /// The tag. Absent where it was asked for by digest.
    pub tag: Option<Tag>,
    /// What it is, as upstream last said.
    pub digest: Digest,
    /// Whether its manifest is stored.
    pub stored: bool,
    /// The media type of its manifest.
    pub media_type: Option<String>,
    /// The bytes of its blobs that are stored, each once.
    pub bytes: u64,
    /// Those of them that are shared.
    pub shared_bytes: u64,
    /// When it was last pulled, to the day, in seconds since the Unix epoch.
    pub used_at: Option<u64>,
    /// When upstream last said what the tag is.
    pub checked_at: Option<u64>,
    /// Until when upstream is not asked again.
    pub fresh_until: Option<u64>,
    /// When a sweep removes it, if it is not used again. Absent where nothing expires.
    pub expires_at: Option<u64>,
    /// Whether it stays, used or not.
    pub pinned: bool,
    /// What it consists of: one for each platform that its index names, or itself.
    pub platforms: Vec<PlatformReport>,
}

/// An image for one platform.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct PlatformReport {
    /// `os/architecture`, as an index names it.
    pub platform: Option<String>,
    /// The digest of its manifest.
    pub digest: Digest,
    /// Whether that is stored.
    pub stored: bool,
    /// When it was last pulled, to the day.
    pub used_at: Option<u64>,
    /// Its configuration, and its layers.
    pub layers: Vec<LayerReport>,
}

/// A blob of an image.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct LayerReport {
    /// Its digest.
    pub digest: Digest,
    /// Its length.
    pub bytes: u64,
    /// Whether its bytes are stored.
    pub stored: bool,
    /// Whether another repository has it, as the last sweep has found, or another image of this answer.
    pub shared: bool,
}

/// Which images of a repository.
pub enum Wanted {
    /// This one.
    One(Reference),
    /// Those of its tags behind this one, so many at most.
    Tags(Option<Tag>, usize),
}

/// A page, and behind what the next one begins.
pub struct Paged<T, L> {
    /// The page.
    pub page: T,
    /// `None`: there is no more.
    pub next: Option<L>,
}

/// A reference, what upstream said of it, and what it is.
type Known = (Option<Tag>, Option<TagRecord>, Digest);

/// What was looked up for a page.
struct Found {
    manifests: HashMap<Digest, (Manifest, Timestamp)>,
    blobs: HashMap<Digest, BlobRecord>,
    /// Blobs that several images of the page name.
    shared: HashSet<Digest>,
}

impl Operate {
    /// A page of the repositories of a section that the caller sees.
    pub async fn images(
        &self,
        section: &Section,
        sees: impl Fn(&Repository) -> bool,
    ) -> Result<Paged<ImagesReport, String>, StoreError> {
        let (mut section, most, mut report) = (section.clone(), section.most, ImagesReport::default());
        section.most = most + 1;
        for _ in 0..READS {
            let read = self.core.ledger.holdings(&section).await?;
            let is_last = read.len() < section.most;
            section.after = read.last().map(|(repository, _)| repository.to_string());
            for (repository, holding) in read.into_iter().filter(|(repository, _)| sees(repository)) {
                if report.repositories.len() == most {
                    let next = report.repositories.last().map(|last| last.repository.clone());
                    return Ok(Paged { page: report, next });
                }
                report.repositories.push(RepositoryReport::new(&repository, holding));
            }
            if is_last {
                return Ok(Paged { page: report, next: None });
            }
            section.most = MOST_REPOSITORIES;
        }
        // Where the next page begins would name what the caller may not see.
        report.cut = true;
        Ok(Paged { page: report, next: None })
    }

    /// A page of the images of a repository, or one of them. `None`: nothing of it is known.
    pub async fn image(
        &self,
        repository: &Repository,
        wanted: Wanted,
    ) -> Result<Option<Paged<ImageReport, Tag>>, StoreError> {
        let (known, next) = self.known(repository, wanted).await?;
        let digests: BTreeSet<&Digest> = known.iter().map(|(.., digest)| digest).collect();
        let (found, partial) = self.look_up(repository, digests.into_iter().cloned().collect()).await?;
        let images: Vec<_> = known.into_iter().map(|known| self.describe(repository, known, &found)).collect();
        let is_known = !images.is_empty() || next.is_some();
        // An image that was asked for by digest is known only if it is stored.
        if !is_known || images.iter().all(|image| image.tag.is_none() && !image.stored) {
            return Ok(None);
        }
        let page = ImageReport { repository: repository.to_string(), images, partial };
        Ok(Some(Paged { page, next }))
    }

    async fn known(&self, repository: &Repository, wanted: Wanted) -> Result<(Vec<Known>, Option<Tag>), StoreError> {
        let named = |tag: Tag, record: TagRecord| {
            let digest = record.observed.as_ref().map(|observed| observed.digest.clone());
            digest.map(|digest| (Some(tag), Some(record), digest))
        };
        match wanted {
            Wanted::One(Reference::Digest(digest)) => Ok((vec![(None, None, digest)], None)),
            Wanted::One(Reference::Tag(tag)) => {
                let record = self.core.ledger.reference(repository, &Reference::Tag(tag.clone())).await?;
                Ok((record.and_then(|record| named(tag, record.value)).into_iter().collect(), None))
            }
            Wanted::Tags(after, most) => {
                let mut tags = self.core.ledger.tags(repository, after.as_ref(), most + 1).await?;
                let more = tags.len() > most;
                tags.truncate(most);
                let next = tags.last().filter(|_| more).map(|(tag, _)| tag.clone());
                // A tag that upstream has not is remembered, too.
                Ok((tags.into_iter().filter_map(|(tag, record)| named(tag, record)).collect(), next))
            }
        }
    }

    /// Looks up manifests, those below indexes, and the blobs of all. The flag: it was too much.
    async fn look_up(&self, repository: &Repository, digests: Vec<Digest>) -> Result<(Found, bool), StoreError> {
        let ledger = &self.core.ledger;
        let stored = ledger.manifests(repository, &digests).await?;
        let children: BTreeSet<Digest> = stored.iter().flat_map(|(manifest, _)| children_of(manifest)).collect();
        let mut partial = children.len() > MOST_CHILDREN;
        let children: Vec<Digest> = children.into_iter().take(MOST_CHILDREN).collect();
        let below = if children.is_empty() { Vec::new() } else { ledger.manifests(repository, &children).await? };
        let (mut blobs, mut shared) = (HashSet::new(), HashSet::new());
        let manifests: HashMap<Digest, _> =
            stored.into_iter().chain(below).map(|found| (found.0.digest.clone(), found)).collect();
        for (manifest, _) in manifests.values() {
            for blob in manifest.blobs().unwrap_or_default() {
                if !blobs.insert(blob.digest.clone()) {
                    shared.insert(blob.digest);
                }
            }
        }
        partial |= blobs.len() > MOST_BLOBS;
        let blobs: Vec<Digest> = blobs.into_iter().take(MOST_BLOBS).collect();
        let blobs = if blobs.is_empty() { Vec::new() } else { ledger.blobs(&blobs).await? };
        Ok((Found { manifests, blobs: blobs.into_iter().collect(), shared }, partial))
    }

    fn describe(&self, repository: &Repository, (tag, record, digest): Known, found: &Found) -> TaggedImage {
        let manifest = found.manifests.get(&digest);
        let platforms = found.platforms(&digest);
        let used_at = found.used_at(&digest).max(platforms.iter().filter_map(|platform| platform.used_at).max());
        let retention = &self.core.config.retention;
        let image = tag.as_ref().map(|tag| format!("{repository}:{tag}"));
        let pinned = image.is_some_and(|image| retention.pin.iter().any(|pattern| pattern.matches(&image)));
        let expires_at = retention.keep.filter(|_| !pinned).and_then(|keep| {
            let used_at = used_at.or(record.as_ref().map(|record| record.checked_at.0))?;
            Some(Timestamp(used_at).plus(keep).plus(NOTED).0)
        });
        let blobs: HashMap<&Digest, &LayerReport> = platforms
            .iter()
            .flat_map(|platform| &platform.layers)
            .filter(|layer| layer.stored)
            .map(|layer| (&layer.digest, layer))
            .collect();
        let (bytes, shared_bytes) = blobs.values().fold((0_u64, 0_u64), |(all, shared), layer| {
            (all.saturating_add(layer.bytes), shared.saturating_add(if layer.shared { layer.bytes } else { 0 }))
        });
        TaggedImage {
            stored: manifest.is_some(),
            media_type: manifest.map(|(manifest, _)| manifest.media_type.to_string()),
            bytes,
            shared_bytes,
            used_at,
            checked_at: record.as_ref().map(|record| record.checked_at.0),
            fresh_until: record.as_ref().map(|record| record.fresh_until.0),
            expires_at,
            pinned,
            platforms,
            tag,
            digest,
        }
    }
}

impl Found {
    fn used_at(&self, digest: &Digest) -> Option<u64> {
        self.manifests.get(digest).map(|(_, used_at)| used_at.0)
    }

    /// What an image consists of, by the digest of its manifest.
    fn platforms(&self, digest: &Digest) -> Vec<PlatformReport> {
        let Some((manifest, _)) = self.manifests.get(digest) else { return Vec::new() };
        if !manifest.media_type.is_index() {
            return vec![self.platform(None, digest.clone())];
        }
        let children = manifest.children().unwrap_or_default().into_iter();
        let named = children.map(|child| (child.platform.map(|platform| excerpt(&platform)), child.digest));
        named.map(|(platform, digest)| self.platform(platform, digest)).collect()
    }

    fn platform(&self, platform: Option<String>, digest: Digest) -> PlatformReport {
        let manifest = self.manifests.get(&digest).map(|(manifest, _)| manifest);
        let blobs = manifest.map(|manifest| manifest.blobs().unwrap_or_default()).unwrap_or_default();
        let layers = blobs.into_iter().map(|blob| {
            let record = self.blobs.get(&blob.digest);
            let stored = record.is_some_and(|record| matches!(record.state, BlobState::Stored { .. }));
            let shared = self.shared.contains(&blob.digest) || record.is_some_and(|record| record.shared);
            LayerReport { digest: blob.digest, bytes: blob.size, stored, shared }
        });
        let layers = layers.collect();
        PlatformReport { platform, stored: manifest.is_some(), used_at: self.used_at(&digest), layers, digest }
    }
}

/// The manifests below an index.
fn children_of(manifest: &Manifest) -> impl Iterator<Item = Digest> {
    manifest.children().unwrap_or_default().into_iter().map(|child| child.digest)
}
