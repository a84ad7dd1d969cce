//! Large blobs, in parts: memory stays at [`PARTS_AT_ONCE`] parts whatever the size, nothing is visible before the last
//! step, and another process can continue an upload.

use std::collections::{BTreeMap, HashSet};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use aws_sdk_s3::primitives::{ByteStream, DateTime};
use aws_sdk_s3::types::{ChecksumAlgorithm, CompletedMultipartUpload, CompletedPart};
use bytes::{Bytes, BytesMut};
use futures_util::FutureExt;
use futures_util::future::{BoxFuture, Shared, join_all};
use serde::{Deserialize, Serialize};
use stopover::errors::{Failure, StoreError, chain};
use stopover::oci::{Algorithm, Digest, Hasher};
use stopover::ports::{Blobs, Result, Upload};
use stopover::values::time::Clock;
use tokio::task::AbortHandle;

use crate::S3Blobs;
use crate::failure::{has_status, store_error};
use crate::s3::{CONTENT_TYPE, PREFIX, checksum, key};

/// The size of a part, in bytes, unless the blob needs larger ones. S3 takes no less than 5 MiB.
const PART_BYTES: u64 = 8 * 1024 * 1024;

/// How many parts S3 allows in one object.
const MAX_PARTS: u64 = 10_000;

/// The largest part, in bytes: parts grow with their blob, but the size that a manifest claims must not take the memory
/// of the function.
const MAX_PART_BYTES: u64 = 64 * 1024 * 1024;

/// The largest blob, in bytes: 640 GiB.
const MAX_BLOB_BYTES: u64 = MAX_PARTS * MAX_PART_BYTES;

/// How many parts are in memory, being collected or in flight.
const PARTS_AT_ONCE: usize = 3;

/// A multipart upload of one blob.
pub(crate) struct Parts {
    blobs: S3Blobs,
    digest: Digest,
    size: u64,
    id: String,
    part_bytes: usize,
    /// The part that is being collected.
    collected: BytesMut,
    /// Buffers of parts that have arrived, for later parts: if each were allocated anew, not all memory would be given
    /// back.
    spare: Arc<Mutex<Vec<BytesMut>>>,
    next: i32,
    sent: Arc<Mutex<Sent>>,
    on_their_way: Vec<OnItsWay>,
}

/// A part in flight. S3 keeps no part that breaks off.
struct OnItsWay {
    number: i32,
    arrival: Shared<BoxFuture<'static, Result<()>>>,
    task: AbortHandle,
}

impl Drop for OnItsWay {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// The parts that S3 has, with the `ETag` and the checksum that completing the upload has to find there: it fails if a
/// fill without a claim has replaced one of them.
type Sent = BTreeMap<i32, CompletedPart>;

/// What a checkpoint stores of an upload.
#[derive(Serialize, Deserialize)]
struct Resume {
    id: String,
    /// The digest over the checksums of all parts, because 10,000 of those do not fit into an item of the ledger.
    parts: Digest,
}

impl Parts {
    pub(crate) async fn begin(blobs: &S3Blobs, digest: &Digest, size: u64) -> Result<Self> {
        if size > MAX_BLOB_BYTES {
            let message = format!("a blob of {size} bytes is more than {MAX_BLOB_BYTES}, the most that is stored");
            return Err(StoreError::Refused(message.into()));
        }
        let create = blobs.client.create_multipart_upload().bucket(&blobs.bucket).key(key(digest));
        let create = create.content_type(CONTENT_TYPE).checksum_algorithm(ChecksumAlgorithm::Sha256);
        let created = create.send().await.map_err(|error| store_error("CreateMultipartUpload", error))?;
        let id = created.upload_id.ok_or_else(|| StoreError::Corrupt("an upload without an id".into()))?;
        Ok(Self::new(blobs, digest, size, id, Sent::new()))
    }

    /// Continues an upload. `None`: the upload is gone, or its parts are not those of the checkpoint.
    pub(crate) async fn resume(
        blobs: &S3Blobs,
        digest: &Digest,
        size: u64,
        offset: u64,
        upload: &str,
    ) -> Result<Option<Self>> {
        let Ok(Resume { id, parts }) = serde_json::from_str(upload) else { return Ok(None) };
        let part_bytes = part_bytes(size);
        let Ok(count) = usize::try_from(offset / part_bytes) else { return Ok(None) };
        let Some(listed) = blobs.parts(digest, &id, count).await? else { return Ok(None) };
        let whole = listed.values().all(|(_, length)| u64::try_from(*length) == Ok(part_bytes));
        let sent: Sent = listed.into_iter().map(|(number, (part, _))| (number, part)).collect();
        let complete = sent.len() == count && sent.keys().copied().eq(1..=i32::try_from(count).unwrap_or(i32::MAX));
        if !offset.is_multiple_of(part_bytes) || !whole || !complete || fold(&sent) != parts {
            return Ok(None);
        }
        Ok(Some(Self::new(blobs, digest, size, id, sent)))
    }

    fn new(blobs: &S3Blobs, digest: &Digest, size: u64, id: String, sent: Sent) -> Self {
        let next = sent.last_key_value().map_or(1, |(number, _)| number + 1);
        Self {
            blobs: blobs.clone(),
            digest: digest.clone(),
            size,
            id,
            part_bytes: usize::try_from(part_bytes(size)).unwrap_or(usize::MAX),
            collected: BytesMut::new(),
            spare: Arc::default(),
            next,
            sent: Arc::new(Mutex::new(sent)),
            on_their_way: Vec::new(),
        }
    }

    /// Sends the collected part.
    fn send_part(&mut self) {
        let (number, bytes) = (self.next, std::mem::take(&mut self.collected).freeze());
        self.next += 1;
        let (blobs, key, id, sent) = (self.blobs.clone(), key(&self.digest), self.id.clone(), Arc::clone(&self.sent));
        let spare = Arc::clone(&self.spare);
        let task = tokio::spawn(async move {
            let part = blobs.send_part(&key, &id, number, bytes.clone()).await?;
            spare.lock().unwrap_or_else(PoisonError::into_inner).extend(bytes.try_into_mut());
            sent.lock().unwrap_or_else(PoisonError::into_inner).insert(number, part);
            Ok(())
        });
        let ended = |ended: Result<_, tokio::task::JoinError>| {
            ended.unwrap_or_else(|error| {
                Err(StoreError::Unavailable(Failure::because("the task that sends a part", error)))
            })
        };
        let abort = task.abort_handle();
        self.on_their_way.push(OnItsWay { number, arrival: task.map(ended).boxed().shared(), task: abort });
    }

    /// Waits for all parts in flight, those that fail too: S3 keeps what arrives after an upload was aborted.
    async fn all_arrived(&mut self) -> Result<()> {
        let arrived = join_all(self.on_their_way.iter().map(|part| part.arrival.clone())).await;
        self.on_their_way.clear();
        arrived.into_iter().collect()
    }
}

#[async_trait]
impl Upload for Parts {
    fn unit(&self) -> u64 {
        self.part_bytes as u64
    }

    /// There is room in memory for the part that is collected next.
    async fn room(&mut self) -> Result<()> {
        while self.collected.is_empty() && self.on_their_way.len() >= PARTS_AT_ONCE {
            let arrivals = self.on_their_way.iter().map(|part| part.arrival.clone());
            let (arrived, index, _) = futures_util::future::select_all(arrivals).await;
            self.on_their_way.swap_remove(index);
            arrived?;
        }
        Ok(())
    }

    async fn write(&mut self, bytes: Bytes) -> Result<()> {
        if self.collected.is_empty() {
            let spare = self.spare.lock().unwrap_or_else(PoisonError::into_inner).pop();
            self.collected = spare.unwrap_or_else(|| BytesMut::with_capacity(self.part_bytes));
            self.collected.clear();
        }
        self.collected.extend_from_slice(&bytes);
        if self.collected.len() >= self.part_bytes {
            self.send_part();
        }
        Ok(())
    }

    fn arrived(&self) -> u64 {
        let sent = self.sent.lock().unwrap_or_else(PoisonError::into_inner);
        let count = sent.keys().zip(1..).take_while(|(number, expected)| *number == expected).count();
        count as u64 * self.unit()
    }

    fn checkpoint(&mut self, offset: u64) -> BoxFuture<'static, Result<String>> {
        let (sent, id, last) = (Arc::clone(&self.sent), self.id.clone(), offset / self.unit());
        let is_before = move |number: i32| u64::try_from(number).is_ok_and(|number| number <= last);
        let before = self.on_their_way.iter().filter(|part| is_before(part.number)).map(|part| part.arrival.clone());
        let before = join_all(before);
        async move {
            before.await.into_iter().collect::<Result<(), _>>()?;
            let sent = sent.lock().unwrap_or_else(PoisonError::into_inner).clone();
            let sent = sent.into_iter().filter(|(number, _)| is_before(*number)).collect();
            serde_json::to_string(&Resume { id, parts: fold(&sent) })
                .map_err(|error| StoreError::Corrupt(Failure::because("a checkpoint", error)))
        }
        .boxed()
    }

    /// Completes the upload, which makes the object visible, unless it was there before.
    async fn publish(&mut self) -> Result<()> {
        if !self.collected.is_empty() {
            self.send_part();
        }
        self.all_arrived().await?;
        let parts = self.sent.lock().unwrap_or_else(PoisonError::into_inner).values().cloned().collect();
        let request = self.blobs.client.complete_multipart_upload().bucket(&self.blobs.bucket).key(key(&self.digest));
        let request = request.upload_id(&self.id).if_none_match("*");
        let request = request.mpu_object_size(i64::try_from(self.size).unwrap_or(i64::MAX));
        let request = request.multipart_upload(CompletedMultipartUpload::builder().set_parts(Some(parts)).build());
        let Err(error) = request.send().await else {
            return Ok(());
        };
        // Another fill was first (412), or is publishing right now (409), or the answer to our own first attempt was
        // lost and the upload is gone (404): the object itself tells.
        match self.blobs.size(&self.digest).await {
            Ok(Some(stored)) if stored == self.size => {
                self.blobs.abort(&key(&self.digest), &self.id).await;
                Ok(())
            }
            _ => Err(store_error("CompleteMultipartUpload", error)),
        }
    }

    /// If the process dies instead, the sweep aborts the upload, or the bucket's lifecycle rule for incomplete ones
    /// does.
    async fn discard(mut self: Box<Self>) {
        _ = self.all_arrived().await;
        self.blobs.abort(&key(&self.digest), &self.id).await;
    }
}

impl S3Blobs {
    async fn send_part(&self, key: &str, upload: &str, number: i32, bytes: Bytes) -> Result<CompletedPart> {
        let checksum = checksum(&bytes);
        let request = self.client.upload_part().bucket(&self.bucket).key(key).upload_id(upload).part_number(number);
        let request = request.checksum_sha256(&checksum).body(ByteStream::from(bytes));
        let sent = request.send().await.map_err(|error| store_error("UploadPart", error))?;
        let part = CompletedPart::builder().part_number(number).checksum_sha256(checksum);
        Ok(part.set_e_tag(sent.e_tag).build())
    }

    /// The first `count` parts of an upload and their lengths. `None`: there is no such upload.
    async fn parts(
        &self,
        digest: &Digest,
        upload: &str,
        count: usize,
    ) -> Result<Option<BTreeMap<i32, (CompletedPart, i64)>>> {
        let request = self.client.list_parts().bucket(&self.bucket).key(key(digest)).upload_id(upload);
        let mut pages = request.into_paginator().send();
        let mut parts = BTreeMap::new();
        while let Some(page) = pages.next().await {
            let page = match page {
                Ok(page) => page,
                Err(error) if has_status(&error, 404) => return Ok(None),
                Err(error) => return Err(store_error("ListParts", error)),
            };
            for part in page.parts.unwrap_or_default() {
                let (number, length) = (part.part_number.unwrap_or_default(), part.size.unwrap_or_default());
                if usize::try_from(number).is_ok_and(|number| number <= count) {
                    let listed = CompletedPart::builder().part_number(number);
                    let listed = listed.set_e_tag(part.e_tag).set_checksum_sha256(part.checksum_sha256);
                    parts.insert(number, (listed.build(), length));
                }
            }
            if parts.len() == count {
                break;
            }
        }
        Ok(Some(parts))
    }

    /// Aborts the uploads that are in none of these checkpoints and began longer than `idle` ago. Returns how many.
    pub(crate) async fn abandon_uploads(&self, known: &HashSet<String>, idle: Duration) -> Result<usize> {
        let known: HashSet<String> =
            known.iter().filter_map(|upload| Some(serde_json::from_str::<Resume>(upload).ok()?.id)).collect();
        // The system clock, because S3 has set the start times of the uploads.
        let before = Clock::default().system_time().checked_sub(idle).map(DateTime::from);
        let (mut key_marker, mut id_marker, mut abandoned) = (None, None, 0);
        loop {
            let list = self.client.list_multipart_uploads().bucket(&self.bucket).prefix(PREFIX);
            let list = list.set_key_marker(key_marker).set_upload_id_marker(id_marker);
            let page = list.send().await.map_err(|error| store_error("ListMultipartUploads", error))?;
            for upload in page.uploads.unwrap_or_default() {
                let (Some(key), Some(id)) = (upload.key, upload.upload_id) else { continue };
                let old = upload.initiated.zip(before).is_some_and(|(initiated, before)| initiated <= before);
                if old && !known.contains(&id) {
                    self.abort(&key, &id).await;
                    abandoned += 1;
                }
            }
            if page.is_truncated != Some(true) {
                return Ok(abandoned);
            }
            (key_marker, id_marker) = (page.next_key_marker, page.next_upload_id_marker);
        }
    }

    async fn abort(&self, key: &str, upload: &str) {
        let request = self.client.abort_multipart_upload().bucket(&self.bucket).key(key).upload_id(upload);
        match request.send().await {
            Err(error) if !has_status(&error, 404) => {
                let error = store_error("AbortMultipartUpload", error);
                tracing::warn!(object.key = key, error = %chain(&error), "the lifecycle rule has to remove an unfinished upload");
            }
            _ => {}
        }
    }
}

/// The size of the parts of a blob of `size` bytes.
fn part_bytes(size: u64) -> u64 {
    size.div_ceil(MAX_PARTS).max(PART_BYTES)
}

fn fold(sent: &Sent) -> Digest {
    let mut hasher = Hasher::new(Algorithm::Sha256);
    for part in sent.values() {
        hasher.update(part.checksum_sha256().unwrap_or_default().as_bytes());
        hasher.update(b"\n");
    }
    hasher.finish()
}
