//! What is in the cache: the bodies of `/_stopover/images` and `/_stopover/image`. Each is made of a bounded number of
//! reads, however much is stored.

mod found;

use std::collections::{BTreeSet, HashMap};

use serde::{Deserialize, Serialize};

use self::found::{Found, children_of};
use super::Operate;
use crate::errors::StoreError;
use crate::oci::{Digest, Reference, Repository, Tag};
use crate::ports::Section;
use crate::records::blob::NOTED;
use crate::records::{Holding, ReferenceKey, TagRecord};
use crate::values::time::Timestamp;

/// The most repositories of a page.
pub const MOST_REPOSITORIES: usize = 1000;
/// The most images of a page.
pub const MOST_IMAGES: usize = 10;
/// How many reads of [`MOST_REPOSITORIES`] a page may take, where the caller may not see most of them.
const READS: usize = 8;
/// Among how many tags pinned ones are looked for, and how many of them are looked into.
const MOST_TAGS: usize = 1000;
const MOST_PINNED: usize = 50;

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
    /// Its images: one for each tag, by name, without tags one for each manifest, by digest, or the one that was asked for.
    pub images: Vec<TaggedImage>,
    /// There was too much to look up: sizes and times are those of what was.
    pub partial: bool,
}

/// An image as a tag or a digest names it.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct TaggedImage {
    /// The tag. Absent where it has none, or was asked for by digest.
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
    /// Whether that is stored. Absent: it was not looked up.
    pub stored: Option<bool>,
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
    /// Whether its bytes are stored. Absent: it was not looked up.
    pub stored: Option<bool>,
    /// Whether another repository has it, as the last sweep has found, or another image of this answer.
    pub shared: bool,
}

/// Which images of a repository.
pub enum Wanted {
    /// This one.
    One(Reference),
    /// Those behind this one, so many at most.
    All(Option<Reference>, usize),
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
            let read = self.core.storage.ledger.holdings(&section).await?;
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
    ) -> Result<Option<Paged<ImageReport, Reference>>, StoreError> {
        // Behind a page that was shown there may be nothing but tags that upstream has not.
        let is_later = matches!(wanted, Wanted::All(Some(_), _));
        let is_pinned = match &wanted {
            Wanted::One(Reference::Digest(digest)) => self.is_pinned(repository, digest).await?,
            _ => false,
        };
        let (mut known, mut next) = self.known(repository, wanted).await?;
        let (found, fit, partial) = self.look_up(repository, &known).await?;
        if fit < known.len() {
            known.truncate(fit);
            next = known.last().map(named);
        }
        let images: Vec<_> =
            known.into_iter().map(|known| self.describe(repository, known, is_pinned, &found)).collect();
        // An image that was asked for by digest is known only if it is stored.
        let is_known = |image: &TaggedImage| image.tag.is_some() || image.stored;
        if !is_later && next.is_none() && !images.iter().any(is_known) {
            return Ok(None);
        }
        let page = ImageReport { repository: repository.to_string(), images, partial };
        Ok(Some(Paged { page, next }))
    }

    async fn known(
        &self,
        repository: &Repository,
        wanted: Wanted,
    ) -> Result<(Vec<Known>, Option<Reference>), StoreError> {
        let ledger = &self.core.storage.ledger;
        let tagged = |tag: Tag, record: TagRecord| {
            let digest = record.observed.as_ref().map(|observed| observed.digest.clone());
            digest.map(|digest| (Some(tag), Some(record), digest))
        };
        let (after, most) = match wanted {
            Wanted::One(Reference::Digest(digest)) => return Ok((vec![(None, None, digest)], None)),
            Wanted::One(Reference::Tag(tag)) => {
                let record = ledger.get(&ReferenceKey(repository, &Reference::Tag(tag.clone()))).await?;
                return Ok((record.and_then(|record| tagged(tag, record.value)).into_iter().collect(), None));
            }
            Wanted::All(Some(Reference::Digest(after)), most) => {
                return self.untagged(repository, Some(after), most).await;
            }
            Wanted::All(Some(Reference::Tag(after)), most) => (Some(after), most),
            Wanted::All(None, most) => (None, most),
        };
        let mut tags = ledger.tags(repository, after.as_ref(), most + 1).await?;
        let more = tags.len() > most;
        tags.truncate(most);
        let next = tags.last().filter(|_| more).map(|(tag, _)| Reference::Tag(tag.clone()));
        // A tag that upstream has not is remembered, too.
        let tags: Vec<_> = tags.into_iter().filter_map(|(tag, record)| tagged(tag, record)).collect();
        if after.is_none() && tags.is_empty() && next.is_none() {
            return self.untagged(repository, None, most).await;
        }
        Ok((tags, next))
    }

    /// The manifests of a repository of which no tag is known: they were pulled by digest.
    async fn untagged(
        &self,
        repository: &Repository,
        after: Option<Digest>,
        most: usize,
    ) -> Result<(Vec<Known>, Option<Reference>), StoreError> {
        let mut digests = self.core.storage.ledger.digests(repository, after.as_ref(), most + 1).await?;
        let more = digests.len() > most;
        digests.truncate(most);
        let next = digests.last().filter(|_| more).cloned().map(Reference::Digest);
        Ok((digests.into_iter().map(|digest| (None, None, digest)).collect(), next))
    }

    /// Whether a pinned tag keeps a manifest: its own, or one that its index names.
    async fn is_pinned(&self, repository: &Repository, digest: &Digest) -> Result<bool, StoreError> {
        if self.core.config.retention.pin.is_empty() {
            return Ok(false);
        }
        let tags = self.core.storage.ledger.tags(repository, None, MOST_TAGS).await?;
        let pinned = tags.into_iter().filter(|(tag, _)| self.is_pinned_tag(repository, tag));
        let pinned: BTreeSet<Digest> = pinned.filter_map(|(_, record)| Some(record.observed?.digest)).collect();
        if pinned.contains(digest) || pinned.is_empty() {
            return Ok(pinned.contains(digest));
        }
        let pinned: Vec<Digest> = pinned.into_iter().take(MOST_PINNED).collect();
        let indexes = self.core.storage.ledger.manifests(repository, &pinned).await?;
        Ok(indexes.iter().any(|(index, _)| children_of(index).any(|child| child == *digest)))
    }

    fn is_pinned_tag(&self, repository: &Repository, tag: &Tag) -> bool {
        let image = format!("{repository}:{tag}");
        self.core.config.retention.pin.iter().any(|pattern| pattern.matches(&image))
    }

    fn describe(
        &self,
        repository: &Repository,
        (tag, record, digest): Known,
        is_pinned: bool,
        found: &Found,
    ) -> TaggedImage {
        let manifest = found.manifest(&digest);
        let platforms = found.platforms(&digest);
        let used_at = found.used_at(&digest).max(platforms.iter().filter_map(|platform| platform.used_at).max());
        let pinned = is_pinned || tag.as_ref().is_some_and(|tag| self.is_pinned_tag(repository, tag));
        let expires_at = self.core.config.retention.keep.filter(|_| !pinned).and_then(|keep| {
            let used_at = used_at.or(record.as_ref().map(|record| record.checked_at.0))?;
            Some(Timestamp(used_at).plus(keep).plus(NOTED).0)
        });
        let blobs: HashMap<&Digest, &LayerReport> = platforms
            .iter()
            .flat_map(|platform| &platform.layers)
            .filter(|layer| layer.stored == Some(true))
            .map(|layer| (&layer.digest, layer))
            .collect();
        let (bytes, shared_bytes) = blobs.values().fold((0_u64, 0_u64), |(all, shared), layer| {
            (all.saturating_add(layer.bytes), shared.saturating_add(if layer.shared { layer.bytes } else { 0 }))
        });
        TaggedImage {
            stored: manifest.is_some(),
            media_type: manifest.map(|manifest| manifest.media_type.to_string()),
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

/// By what a page goes on behind an image.
fn named((tag, _, digest): &Known) -> Reference {
    tag.clone().map_or_else(|| Reference::Digest(digest.clone()), Reference::Tag)
}
