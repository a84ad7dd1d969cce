//! The ledger in one DynamoDB table. The layout of items is in [`item`](crate::item); how they are read and written is
//! here.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, OnceLock};

use async_trait::async_trait;
use aws_sdk_dynamodb::Client;
use futures_util::stream::{self, BoxStream};
use futures_util::{StreamExt, TryStreamExt};
use serde::de::DeserializeOwned;
use stopover::errors::{Failure, StoreError};
use stopover::oci::{Descriptor, Digest, Manifest, Repository};
use stopover::ports::{Ledger, Records, Result};
use stopover::records::{
    BlobView, Entry, HoldingKey, ListKey, Listing, Member, ReferenceKey, Standing, StoredManifest, Versioned,
};
use stopover::values::time::{Clock, Timestamp};

use crate::S3Blobs;
use crate::batch::{BATCH_ITEMS, BATCH_KEYS};
use crate::conditional::Deletion;
use crate::failure::store_error;
use crate::format;
use crate::item::{self, Item, Kind, Placed};
use crate::remembered::Remembered;

/// The largest manifest kept in its item, in bytes. An item may have 400 KB, keys and attribute names included.
const MAX_INLINE_BYTES: usize = 350 * 1000;

/// How many batches of one manifest are written at the same time.
const BATCHES_AT_ONCE: usize = 4;

/// In how many segments a whole table is read at once: a segment has but one next page.
const SEGMENTS: i32 = 8;

/// [`Ledger`] on one table with the string keys `pk` and `sk`.
#[derive(Debug, Clone)]
pub struct DynamoLedger {
    pub(crate) client: Client,
    pub(crate) table: String,
    blobs: S3Blobs,
    /// Empty, unless this process remembers.
    remembered: Arc<OnceLock<Remembered>>,
}

impl DynamoLedger {
    /// A ledger in `table`. Manifests too large for an item become objects in `blobs`.
    pub fn new(client: Client, table: impl Into<String>, blobs: S3Blobs) -> Self {
        Self { client, table: table.into(), blobs, remembered: Arc::default() }
    }

    /// Has this process answer for a minute from memory which blobs are stored: for one that answers clients, and neither
    /// fills nor removes blobs.
    pub fn remember(&self) {
        self.remembered.get_or_init(Remembered::default);
    }

    fn forget(&self, digest: &Digest) {
        if let Some(remembered) = self.remembered.get() {
            remembered.forget(digest);
        }
    }

    pub(crate) async fn item(&self, key: Item, consistent: bool) -> Result<Option<Item>> {
        let request = self.client.get_item().table_name(&self.table).set_key(Some(key)).consistent_read(consistent);
        request.send().await.map_err(|error| store_error("GetItem", error))?.item.map(format::known).transpose()
    }

    /// The manifest in an item, or in the object that the item stands for. `None`: there is no such object.
    pub(crate) async fn parse_manifest(&self, digest: &Digest, mut item: Item) -> Result<Option<Manifest>> {
        let bytes = match item::take_bytes(&mut item)? {
            Some(bytes) => bytes,
            None => match self.blobs.read(digest, item::size(&item)?).await? {
                Some(bytes) => bytes,
                None => return Ok(None),
            },
        };
        if Digest::of(digest.algorithm(), &bytes) != *digest {
            return Err(StoreError::Corrupt(
                format!("the bytes stored as manifest {digest} have another digest").into(),
            ));
        }
        Ok(Some(Manifest { digest: digest.clone(), media_type: item::media_type(&item)?, bytes }))
    }

    /// The entry of an item. `None`: the item is of another kind.
    async fn entry(&self, item: Item) -> Result<Option<Entry>> {
        let item = format::known(item)?;
        Ok(Some(match item::kind(&item)? {
            Kind::Reference(repository, reference) => {
                Entry::Reference { repository, reference, record: versioned(item)? }
            }
            Kind::Manifest(repository, digest) => {
                let used_at = item::used_at(&item)?;
                let bytes = if item.contains_key(item::BYTES) { item::size(&item)? } else { 0 };
                // A manifest without its bytes names nothing, and is stored again when it is asked for.
                let manifest = self.parse_manifest(&digest, item).await?;
                let names = manifest.map_or(Ok(Vec::new()), |manifest| manifest.references());
                let names = names
                    .map_err(|error| StoreError::Corrupt(Failure::because(format!("manifest {digest}"), error)))?;
                Entry::Manifest(StoredManifest { repository, digest, used_at, bytes, names })
            }
            // Without its manifest, which was removed while this was written.
            Kind::Use(repository, digest) => {
                let (used_at, bytes, names) = (item::used_at(&item)?, 0, Vec::new());
                Entry::Manifest(StoredManifest { repository, digest, used_at, bytes, names })
            }
            Kind::Membership(repository, digest) => {
                let Member { size, used_at, .. } = item::parse_membership(&item)?;
                Entry::Membership { repository, digest, size, used_at }
            }
            Kind::Listing(repository, key) => Entry::Listing { repository, key, stale_until: item::expires_at(&item)? },
            Kind::Holding(repository) => Entry::Holding { repository, record: versioned(item)? },
            Kind::Standing(repository) => Entry::Standing { repository, until: item::expires_at(&item)? },
            Kind::Blob(digest) => Entry::Blob { digest, record: versioned(item)? },
            Kind::Other => return Ok(None),
        }))
    }

    /// The entries of one segment of the table. A partition is in one segment, and so are a manifest and its use.
    fn segment(&self, segment: i32) -> BoxStream<'_, Result<Entry>> {
        let pages = stream::try_unfold(Some((None, None)), move |at| async move {
            let Some((start, last)) = at else { return Ok(None) };
            let (mut entries, next) = self.page(segment, start, last).await?;
            // The use of a manifest may be on the next page.
            let next = next.map(|next| (Some(next), entries.pop()));
            Ok(Some((stream::iter(entries), next)))
        });
        pages.try_flatten().boxed()
    }

    /// One page of a segment, and the key at which the next one begins. Eventually consistent, at half the price: an
    /// item that is read late is removed only if it is still as it was read. `last`: the last entry of the page before,
    /// whose use may be the first item of this one.
    async fn page(
        &self,
        segment: i32,
        start: Option<Item>,
        last: Option<Result<Entry>>,
    ) -> Result<(Vec<Result<Entry>>, Option<Item>)> {
        let request = self.client.scan().table_name(&self.table).segment(segment).total_segments(SEGMENTS);
        let page = request.set_exclusive_start_key(start).send().await.map_err(|error| store_error("Scan", error))?;
        let mut entries: Vec<Result<Entry>> = last.into_iter().collect();
        for item in page.items.unwrap_or_default() {
            let is_use = matches!(item::kind(&item), Ok(Kind::Use(..)));
            let entry = self.entry(item).await.transpose();
            match (entries.last_mut(), entry) {
                (Some(Ok(Entry::Manifest(manifest))), Some(Ok(Entry::Manifest(used))))
                    if (&manifest.repository, &manifest.digest) == (&used.repository, &used.digest) =>
                {
                    manifest.used_at = manifest.used_at.max(used.used_at);
                }
                // A manifest that cannot be read stays, and so does its use.
                (Some(Err(_)), Some(Ok(_))) if is_use => {}
                (_, entry) => entries.extend(entry),
            }
        }
        Ok((entries, page.last_evaluated_key))
    }
}

pub(crate) fn versioned<T: DeserializeOwned>(item: Item) -> Result<Versioned<T>> {
    Ok(Versioned { version: item::version(&item)?, value: item::parse_record(item)? })
}

#[async_trait]
impl<K: Placed> Records<K> for DynamoLedger {
    /// Consistent, for half a read unit more: a stale version would lose the swap that follows, and a stale record would
    /// ask upstream again.
    async fn get(&self, key: &K) -> Result<Option<Versioned<K::Record>>> {
        self.item(key.item(), true).await?.map(versioned).transpose()
    }

    async fn get_all(&self, keys: &[K]) -> Result<Vec<(K, Versioned<K::Record>)>> {
        let mut found = Vec::new();
        for keys in keys.chunks(BATCH_KEYS) {
            let asked: Vec<(&K, Item)> = keys.iter().map(|key| (key, key.item())).collect();
            let items = asked.iter().map(|(_, item)| item.clone()).collect();
            for item in self.get_batch(items, !K::MANY_MAY_LAG).await? {
                let Some((key, _)) = asked.iter().find(|(_, key)| item::is_at(&item, key)) else { continue };
                found.push(((*key).clone(), versioned(item)?));
            }
        }
        Ok(found)
    }

    async fn swap(&self, key: &K, expected: Option<u64>, record: &K::Record) -> Result<Option<u64>> {
        if let Some((remembered, digest)) = self.remembered.get().zip(key.remembered()) {
            remembered.forget(digest);
        }
        self.swap_item(key.item(), expected, record).await
    }
}

#[async_trait]
impl Ledger for DynamoLedger {
    async fn standing(&self, repository: &Repository) -> Result<Option<Standing>> {
        self.item(item::standing_key(repository), true).await?.map(|item| item::parse_standing(&item)).transpose()
    }

    async fn put_standing(&self, repository: &Repository, standing: Standing) -> Result<()> {
        self.put(item::standing(repository, standing)).await
    }

    async fn listing(&self, repository: &Repository, key: &ListKey) -> Result<Option<Listing>> {
        self.item(item::listing_key(repository, key), true).await?.map(|item| item::parse_listing(&item)).transpose()
    }

    async fn put_listing(&self, repository: &Repository, key: &ListKey, listing: &Listing) -> Result<()> {
        self.put(item::listing(repository, key, listing)?).await
    }

    /// A manifest never changes, so the cheap read is right whenever it finds one. Only absence is asked for again,
    /// consistently: believing a lagging replica would cost a request of the upstream's quota.
    async fn manifest(&self, repository: &Repository, digest: &Digest) -> Result<Option<(Manifest, Timestamp)>> {
        let key = item::manifest_key(repository, digest);
        for consistent in [false, true] {
            let (mut found, mut used_at) = (None, Timestamp(0));
            for item in self.get_batch(vec![key.clone(), item::use_key(repository, digest)], consistent).await? {
                used_at = used_at.max(item::used_at(&item)?);
                found = found.or_else(|| item::is_at(&item, &key).then_some(item));
            }
            if let Some(item) = found {
                let manifest = self.parse_manifest(digest, item).await?;
                return Ok(manifest.map(|manifest| (manifest, used_at)));
            }
        }
        Ok(None)
    }

    async fn put_manifest(
        &self,
        repository: &Repository,
        manifest: &Manifest,
        members: &[Descriptor],
        keep_proofs: bool,
        now: Timestamp,
    ) -> Result<u64> {
        // A batch that names one key twice is refused.
        let distinct: BTreeMap<&Digest, u64> = members.iter().map(|member| (&member.digest, member.size)).collect();
        // A batch write replaces whole items, so `proven` is read first.
        let keys = distinct
            .keys()
            .filter(|_| keep_proofs)
            .map(|digest| item::membership_key(repository, digest))
            .collect::<Vec<_>>();
        let reads = keys.chunks(BATCH_KEYS).map(|batch| self.get_batch(batch.to_vec(), true)).collect::<Vec<_>>();
        let (mut proven, mut new_bytes) = (BTreeSet::new(), distinct.values().sum::<u64>());
        for known in stream::iter(reads).buffer_unordered(BATCHES_AT_ONCE).try_concat().await? {
            let Kind::Membership(_, digest) = item::kind(&known)? else { continue };
            new_bytes = new_bytes.saturating_sub(distinct.get(&digest).copied().unwrap_or_default());
            if item::parse_membership(&known)?.proven {
                proven.insert(digest);
            }
        }
        let items = distinct
            .into_iter()
            .map(|(digest, size)| {
                let member = Member { size, used_at: now, proven: proven.contains(digest) };
                item::membership(repository, digest, member)
            })
            .collect::<Vec<_>>();
        let batches = items.chunks(BATCH_ITEMS).map(|batch| self.put_batch(batch.to_vec())).collect::<Vec<_>>();
        stream::iter(batches).buffer_unordered(BATCHES_AT_ONCE).try_collect::<()>().await?;
        let inline = manifest.bytes.len() <= MAX_INLINE_BYTES;
        if !inline {
            self.blobs.write_manifest(&manifest.digest, manifest.bytes.clone()).await?;
        }
        self.put(item::manifest(repository, manifest, inline, now)).await?;
        Ok(new_bytes)
    }

    async fn touch_manifest(
        &self,
        repository: &Repository,
        digest: &Digest,
        since: Timestamp,
        now: Timestamp,
    ) -> Result<Option<Timestamp>> {
        self.note_use(repository, digest, since, now).await
    }

    async fn blob(&self, repository: &Repository, digest: &Digest) -> Result<BlobView> {
        let (remembered, now) = (self.remembered.get(), Clock::default().now());
        if let Some(view) = remembered.and_then(|remembered| remembered.get(repository, digest, now)) {
            return Ok(view);
        }
        let (membership, record) = (item::membership_key(repository, digest), digest.item());
        let mut view = BlobView { member: None, record: None };
        for item in self.get_batch(vec![membership.clone(), record], true).await? {
            if item::is_at(&item, &membership) {
                view.member = Some(item::parse_membership(&item)?);
            } else {
                view.record = Some(versioned(item)?);
            }
        }
        if let Some(remembered) = remembered {
            remembered.note(repository, digest, &view, now);
        }
        Ok(view)
    }

    async fn put_membership(&self, repository: &Repository, digest: &Digest, member: Member) -> Result<()> {
        self.forget(digest);
        self.put(item::membership(repository, digest, member)).await
    }

    fn entries(&self) -> BoxStream<'_, Result<Entry>> {
        stream::select_all((0..SEGMENTS).map(|segment| self.segment(segment))).boxed()
    }

    async fn remove(&self, entry: &Entry) -> Result<bool> {
        let (key, name, seen) = match entry {
            Entry::Reference { repository, reference, record } => {
                (ReferenceKey(repository, reference).item(), item::VERSION, record.version)
            }
            Entry::Manifest(StoredManifest { repository, digest, used_at, .. }) => {
                // A use that is noted after this finds no item, and then none of the manifest or a new one.
                let noted = self.delete(item::use_key(repository, digest), item::USED_AT, used_at.0).await?;
                if matches!(noted, Deletion::Differs) {
                    return Ok(false);
                }
                let stored = self.delete(item::manifest_key(repository, digest), item::USED_AT, used_at.0).await?;
                return Ok(matches!((stored, noted), (Deletion::Done, _) | (Deletion::Absent, Deletion::Done)));
            }
            Entry::Holding { repository, record } => (HoldingKey(repository).item(), item::VERSION, record.version),
            Entry::Membership { repository, digest, used_at, .. } => {
                (item::membership_key(repository, digest), item::USED_AT, used_at.0)
            }
            Entry::Listing { repository, key, stale_until } => {
                (item::listing_key(repository, key), item::EXPIRES_AT, stale_until.0)
            }
            Entry::Standing { repository, until } => (item::standing_key(repository), item::EXPIRES_AT, until.0),
            Entry::Blob { digest, record } => (digest.item(), item::VERSION, record.version),
        };
        Ok(matches!(self.delete(key, name, seen).await?, Deletion::Done))
    }
}
