//! The ledger in one file: which item is under which key of the [`Store`].
//!
//! The version of a manifest or a membership is its last use; that of a list, or of a fill that was given up, is when
//! it expires.

use std::collections::HashSet;
use std::error::Error;
use std::path::Path;

use async_trait::async_trait;
use bytes::Bytes;
use futures_util::future::try_join_all;
use futures_util::stream::{self, BoxStream, StreamExt as _, TryStreamExt as _};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use super::store::{Change, Store, corrupt, join, split};
use crate::errors::{Failure, StoreError, chain};
use crate::oci::{Descriptor, Digest, Manifest, Repository};
use crate::ports::{Attempts, ImageJob, Job, Ledger, Records, Result};
use crate::records::{
    BlobRecord, BlobState, BlobView, Entry, GaugeKey, HoldingKey, Key, ListKey, Listing, Member, ReferenceKey,
    RobotsKey, Standing, StoredManifest, TagRecord, Versioned,
};
use crate::values::time::Timestamp;

const BLOB: &str = "blob ";
const FILL: &str = "fill ";
pub(super) const HOLDING: &str = "holding ";
const IMAGE: &str = "image ";
const LIST: &str = "list ";
const MANIFEST: &str = "manifest ";
const MEMBER: &str = "member ";
const REFERENCE: &str = "reference ";
const STANDING: &str = "standing ";

/// In one allocation: hits make these keys.
fn scoped_key(kind: &str, Repository { upstream, name }: &Repository, rest: &str) -> String {
    [kind, upstream.as_str(), "/", name.as_str(), " ", rest].concat()
}

/// The key of a reference that begins like this.
pub(super) fn tag_key(repository: &Repository, begin: &str) -> String {
    scoped_key(REFERENCE, repository, begin)
}

fn standing_key(repository: &Repository) -> String {
    format!("{STANDING}{repository}")
}

/// The key of a record, in words of the file.
pub(super) trait Placed: Key {
    fn key(&self) -> String;
}

impl Placed for ReferenceKey<'_> {
    fn key(&self) -> String {
        tag_key(self.0, self.1.as_str())
    }
}

impl Placed for HoldingKey<'_> {
    fn key(&self) -> String {
        format!("{HOLDING}{}", self.0)
    }
}

impl Placed for Digest {
    fn key(&self) -> String {
        [BLOB, self.as_str()].concat()
    }
}

impl Placed for GaugeKey {
    fn key(&self) -> String {
        format!("gauge {} {}", self.upstream, self.credential)
    }
}

impl Placed for RobotsKey {
    fn key(&self) -> String {
        "robots".to_owned()
    }
}

#[async_trait]
impl<K: Placed> Records<K> for EmbeddedLedger {
    async fn get(&self, key: &K) -> Result<Option<Versioned<K::Record>>> {
        self.0.read_json(&key.key())
    }

    async fn get_all(&self, keys: &[K]) -> Result<Vec<(K, Versioned<K::Record>)>> {
        let read = |key: &K| Ok(self.0.read_json(&key.key())?.map(|record| (key.clone(), record)));
        keys.iter().filter_map(|key| read(key).transpose()).collect()
    }

    async fn swap(&self, key: &K, expected: Option<u64>, record: &K::Record) -> Result<Option<u64>> {
        self.0.swap(key.key(), expected, record).await
    }
}

/// Stands in the key of a list of tags where a list of referrers has its subject.
const TAGS: &str = "tags";

fn list_key(repository: &Repository, key: &ListKey) -> String {
    match key {
        ListKey::Tags => format!("{LIST}{repository} {TAGS}"),
        ListKey::Referrers(subject) => format!("{LIST}{repository} {subject}"),
    }
}

pub(super) fn manifests_key(repository: &Repository, begin: &str) -> String {
    scoped_key(MANIFEST, repository, begin)
}

fn manifest_key(repository: &Repository, digest: &Digest) -> String {
    manifests_key(repository, digest.as_str())
}

fn member_key(repository: &Repository, digest: &Digest) -> String {
    scoped_key(MEMBER, repository, digest.as_str())
}

fn fill_key(digest: &Digest) -> String {
    format!("{FILL}{digest}")
}

pub(super) fn image_key(image: &ImageJob) -> String {
    let platforms = serde_json::to_string(&image.platforms).unwrap_or_default();
    format!("{IMAGE}{} {} {:?} {platforms}", image.repository, image.reference, image.priority)
}

/// A requested fill as it is written down.
#[derive(Serialize, Deserialize)]
pub(super) struct WrittenFill {
    #[serde(flatten)]
    pub(super) job: Job,
    /// Why the fill was given up: it is tried again only on request.
    #[serde(default)]
    pub(super) given_up: Option<String>,
}

/// The embedded ledger.
pub struct EmbeddedLedger(pub(super) Store);

impl EmbeddedLedger {
    /// Opens or creates the ledger. Fails if another process has it open.
    pub fn open(path: &Path) -> anyhow::Result<Self> {
        Store::open(path).map(Self)
    }

    /// Releases every claim and every lease. Only for the process that has just taken the data directory.
    pub(super) async fn release_claims(&self) -> Result<()> {
        let mut changes = Vec::new();
        self.0.each(BLOB, |key, Versioned { value, version }: Versioned<BlobRecord>| {
            if matches!(value.state, BlobState::Claimed { .. } | BlobState::Removing { .. }) {
                changes.push(Change::put(key, version + 1, &BlobRecord { state: BlobState::Absent, ..value })?);
            }
            Ok(())
        })?;
        self.0.each(REFERENCE, |key, Versioned { value, version }: Versioned<TagRecord>| {
            if value.lease.is_some() {
                changes.push(Change::put(key, version + 1, &TagRecord { lease: None, ..value })?);
            }
            Ok(())
        })?;
        // On a full disk they end by themselves.
        if !changes.is_empty()
            && let Err(error) = self.0.write(None, changes).await
        {
            tracing::warn!(error = %chain(&error), "claims and leases of an earlier process end only when their time is over");
        }
        Ok(())
    }

    fn member(&self, repository: &Repository, digest: &Digest) -> Result<Option<Member>> {
        let written: Option<Versioned<WrittenMember>> = self.0.read_json(&member_key(repository, digest))?;
        Ok(written.map(|Versioned { value, version }| value.member(version)))
    }

    /// The uploads that have a checkpoint.
    pub(super) fn checkpoints(&self) -> Result<HashSet<String>> {
        let mut uploads = HashSet::new();
        self.0.each(BLOB, |_, record: Versioned<BlobRecord>| {
            uploads.extend(record.value.checkpoint.map(|known| known.upload));
            Ok(())
        })?;
        Ok(uploads)
    }

    /// The fills that were requested and have not succeeded.
    pub(super) fn fills(&self) -> Result<Vec<WrittenFill>> {
        Ok(self.0.scan::<WrittenFill>(FILL)?.into_iter().map(|(_, fill)| fill.value).collect())
    }

    /// Writes fills down as they are now.
    pub(super) async fn put_fills(&self, fills: impl IntoIterator<Item = WrittenFill>) -> Result<()> {
        let put = |fill: WrittenFill| Change::put(fill_key(&fill.job.digest), 0, &fill);
        self.0.write(None, fills.into_iter().map(put).collect::<Result<_, _>>()?).await.map(|_| ())
    }

    /// Writes down until when a fill counts as given up, and why.
    pub(super) async fn give_up(&self, job: Job, reason: String, until: Timestamp) -> Result<()> {
        let put = Change::put(fill_key(&job.digest), until.0, &WrittenFill { job, given_up: Some(reason) })?;
        self.0.write(None, vec![put]).await.map(drop)
    }

    /// Removes the fills that no longer count as given up, unless they are requested again.
    pub(super) async fn forget_given_up(&self, now: Timestamp) -> Result<()> {
        let over = self.0.scan::<WrittenFill>(FILL)?.into_iter();
        let over = over.filter(|(_, fill)| fill.value.given_up.is_some() && fill.version <= now.0);
        let forget =
            over.map(|(key, fill)| self.0.write(Some((key.clone(), Some(fill.version))), vec![Change::Remove(key)]));
        try_join_all(forget).await.map(drop)
    }

    /// The images that were requested and have not ended.
    pub(super) fn requested_images(&self) -> Result<Vec<ImageJob>> {
        Ok(self.0.scan::<ImageJob>(IMAGE)?.into_iter().map(|(_, image)| image.value).collect())
    }

    /// Writes requested images down.
    pub(super) async fn put_images(&self, images: &[ImageJob]) -> Result<()> {
        let put = |image: &ImageJob| Change::put(image_key(image), 0, image);
        self.0.write(None, images.iter().map(put).collect::<Result<_, _>>()?).await.map(|_| ())
    }

    /// Removes a requested image that has ended.
    pub(super) async fn remove_image(&self, image: &ImageJob) -> Result<()> {
        self.0.write(None, vec![Change::Remove(image_key(image))]).await.map(|_| ())
    }

    /// Removes a requested fill that has succeeded.
    pub(super) async fn remove_fill(&self, digest: &Digest) -> Result<()> {
        self.0.write(None, vec![Change::Remove(fill_key(digest))]).await.map(|_| ())
    }
}

/// A membership as it is written down: its size, tagged if upstream has proven it.
#[derive(Clone, Copy, Serialize, Deserialize)]
#[serde(untagged)]
enum WrittenMember {
    Named(u64),
    Proven { proven: u64 },
}

impl WrittenMember {
    fn member(self, version: u64) -> Member {
        let (size, proven) = match self {
            Self::Named(size) => (size, false),
            Self::Proven { proven: size } => (size, true),
        };
        Member { size, used_at: Timestamp(version), proven }
    }
}

fn put_member(repository: &Repository, digest: &Digest, member: Member) -> Result<Change> {
    let Member { size, used_at, proven } = member;
    let written = if proven { WrittenMember::Proven { proven: size } } else { WrittenMember::Named(size) };
    Change::put(member_key(repository, digest), used_at.0, &written)
}

/// Parses the media type, a line feed, and the bytes, which are not copied.
fn parse_manifest(digest: Digest, value: &Bytes) -> Result<Manifest> {
    let end = value.iter().position(|&byte| byte == b'\n').ok_or_else(|| corrupt("a manifest without type"))?;
    let (media_type, bytes) = (value.slice(..end), value.slice(end + 1..));
    let media_type = std::str::from_utf8(&media_type).map_err(corrupt)?.parse().map_err(corrupt)?;
    Ok(Manifest { digest, media_type, bytes })
}

fn unreadable(key: &str, error: impl Into<Box<dyn Error + Send + Sync>>) -> StoreError {
    StoreError::Corrupt(Failure::because(format!("ledger: {key}"), error))
}

/// The repository that this part of a key names.
pub(super) fn repository_in(key: &str, text: &str) -> Result<Repository> {
    let (upstream, name) = text.split_once('/').ok_or_else(|| unreadable(key, "no upstream"))?;
    let upstream = upstream.parse().map_err(|error| unreadable(key, error))?;
    Ok(Repository { upstream, name: name.parse().map_err(|error| unreadable(key, error))? })
}

/// The record in an item.
fn record<T: DeserializeOwned>(key: &str, item: &[u8]) -> Result<Versioned<T>> {
    let (version, value) = split(item)?;
    let value = serde_json::from_slice(value).map_err(|error| unreadable(key, error))?;
    Ok(Versioned { value, version })
}

/// The entry of an item. `None`: the item is of another kind.
fn entry(key: &str, item: &[u8]) -> Result<Option<Entry>> {
    let (version, value) = split(item)?;
    let repository = |text: &str| repository_in(key, text);
    let scoped = |rest: &str| -> Result<(Repository, String)> {
        let (text, rest) = rest.split_once(' ').ok_or_else(|| unreadable(key, "no repository"))?;
        Ok((repository(text)?, rest.to_owned()))
    };
    let digest = |text: &str| text.parse::<Digest>().map_err(|error| unreadable(key, error));
    let entry = if let Some(rest) = key.strip_prefix(REFERENCE) {
        let (repository, reference) = scoped(rest)?;
        let reference = reference.parse().map_err(|error| unreadable(key, error))?;
        Entry::Reference { repository, reference, record: record(key, item)? }
    } else if let Some(rest) = key.strip_prefix(MANIFEST) {
        let (repository, text) = scoped(rest)?;
        let digest = digest(&text)?;
        let manifest = parse_manifest(digest.clone(), &Bytes::copy_from_slice(value))?;
        let names = manifest.references().map_err(|error| unreadable(key, error))?;
        let (used_at, bytes) = (Timestamp(version), manifest.bytes.len() as u64);
        Entry::Manifest(StoredManifest { repository, digest, used_at, bytes, names })
    } else if let Some(rest) = key.strip_prefix(MEMBER) {
        let (repository, text) = scoped(rest)?;
        let Member { size, used_at, .. } = record::<WrittenMember>(key, item)?.value.member(version);
        Entry::Membership { repository, digest: digest(&text)?, size, used_at }
    } else if let Some(rest) = key.strip_prefix(LIST) {
        let (repository, text) = scoped(rest)?;
        let key = if text == TAGS { ListKey::Tags } else { ListKey::Referrers(digest(&text)?) };
        Entry::Listing { repository, key, stale_until: Timestamp(version) }
    } else if let Some(text) = key.strip_prefix(HOLDING) {
        Entry::Holding { record: record(key, item)?, repository: repository(text)? }
    } else if let Some(text) = key.strip_prefix(STANDING) {
        Entry::Standing { repository: repository(text)?, until: Timestamp(version) }
    } else if let Some(text) = key.strip_prefix(BLOB) {
        Entry::Blob { record: record(key, item)?, digest: digest(text)? }
    } else {
        return Ok(None);
    };
    Ok(Some(entry))
}

#[async_trait]
impl Ledger for EmbeddedLedger {
    async fn standing(&self, repository: &Repository) -> Result<Option<Standing>> {
        Ok(self.0.read_json(&standing_key(repository))?.map(|standing| standing.value))
    }

    async fn put_standing(&self, repository: &Repository, standing: Standing) -> Result<()> {
        let put = Change::put(standing_key(repository), standing.until().0, &standing)?;
        self.0.write(None, vec![put]).await.map(drop)
    }

    async fn listing(&self, repository: &Repository, key: &ListKey) -> Result<Option<Listing>> {
        Ok(self.0.read_json(&list_key(repository, key))?.map(|listing| listing.value))
    }

    async fn put_listing(&self, repository: &Repository, key: &ListKey, listing: &Listing) -> Result<()> {
        let put = Change::put(list_key(repository, key), listing.stale_until.0, listing)?;
        self.0.write(None, vec![put]).await.map(drop)
    }

    async fn manifest(&self, repository: &Repository, digest: &Digest) -> Result<Option<(Manifest, Timestamp)>> {
        self.0.read(&manifest_key(repository, digest), |used_at, value| {
            Ok((parse_manifest(digest.clone(), &value)?, Timestamp(used_at)))
        })
    }

    async fn put_manifest(
        &self,
        repository: &Repository,
        manifest: &Manifest,
        members: &[Descriptor],
        keep_proofs: bool,
        now: Timestamp,
    ) -> Result<u64> {
        let (mut changes, mut new_bytes) = (Vec::with_capacity(members.len() + 1), 0);
        for blob in members {
            let known = self.member(repository, &blob.digest)?;
            let proven = keep_proofs && known.is_some_and(|member| member.proven);
            new_bytes += if known.is_none() { blob.size } else { 0 };
            changes.push(put_member(repository, &blob.digest, Member { size: blob.size, used_at: now, proven })?);
        }
        let start = join(now.0, &[manifest.media_type.as_str().as_bytes(), b"\n"].concat());
        changes.push(Change::PutShared(manifest_key(repository, &manifest.digest), start, manifest.bytes.clone()));
        self.0.write(None, changes).await.map(|_| new_bytes)
    }

    async fn touch_manifest(
        &self,
        repository: &Repository,
        digest: &Digest,
        since: Timestamp,
        now: Timestamp,
    ) -> Result<Option<Timestamp>> {
        let key = manifest_key(repository, digest);
        let mut attempts = Attempts::new();
        loop {
            let Some((version, value)) = self.0.read(&key, |version, value| Ok((version, value)))? else {
                return Ok(None);
            };
            if version >= since.0 {
                return Ok(Some(Timestamp(version)));
            }
            let changes = vec![Change::PutShared(key.clone(), join(now.0, b""), value)];
            if self.0.write(Some((key.clone(), Some(version))), changes).await? {
                return Ok(Some(now));
            }
            attempts.again().await?;
        }
    }

    async fn blob(&self, repository: &Repository, digest: &Digest) -> Result<BlobView> {
        Ok(BlobView { member: self.member(repository, digest)?, record: self.0.read_json(&digest.key())? })
    }

    async fn put_membership(&self, repository: &Repository, digest: &Digest, member: Member) -> Result<()> {
        self.0.write(None, vec![put_member(repository, digest, member)?]).await.map(|_| ())
    }

    fn entries(&self) -> BoxStream<'_, Result<Entry>> {
        let pages = stream::try_unfold(String::new(), move |after| async move {
            // A page is read at once: others have their turn between two of them.
            tokio::task::yield_now().await;
            let items = self.0.scan_after(&after)?;
            let Some((last, _)) = items.last().cloned() else { return Ok(None) };
            let entries = items.iter().filter_map(|(key, item)| entry(key, item).transpose()).collect::<Vec<_>>();
            Ok(Some((stream::iter(entries), last)))
        });
        pages.try_flatten().boxed()
    }

    async fn remove(&self, entry: &Entry) -> Result<bool> {
        let (key, version) = match entry {
            Entry::Reference { repository, reference, record } => {
                (ReferenceKey(repository, reference).key(), record.version)
            }
            Entry::Manifest(manifest) => (manifest_key(&manifest.repository, &manifest.digest), manifest.used_at.0),
            Entry::Membership { repository, digest, used_at, .. } => (member_key(repository, digest), used_at.0),
            Entry::Holding { repository, record } => (HoldingKey(repository).key(), record.version),
            Entry::Listing { repository, key, stale_until } => (list_key(repository, key), stale_until.0),
            Entry::Standing { repository, until } => (standing_key(repository), until.0),
            Entry::Blob { digest, record } => (digest.key(), record.version),
        };
        self.0.write(Some((key.clone(), Some(version))), vec![Change::Remove(key)]).await
    }
}

#[cfg(test)]
mod tests;
