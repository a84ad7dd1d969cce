//! Large blobs, in parts: memory stays at [`PARTS_AT_ONCE`] parts whatever the size, and nothing is visible before the
//! last step.

use std::sync::atomic::{AtomicBool, Ordering};

use aws_sdk_s3::primitives::ByteStream;
use aws_sdk_s3::types::{ChecksumAlgorithm, CompletedMultipartUpload, CompletedPart};
use bytes::{Bytes, BytesMut};
use futures_util::{Stream, StreamExt, TryStreamExt, future, stream};
use stopover::fill::FillError;
use stopover::oci::Digest;
use stopover::ports::{Blobs, Body, StoreError};

use crate::S3Blobs;
use crate::failure::{has_status, store_error};
use crate::s3::{CONTENT_TYPE, checksum, key};

/// The smallest part that is sent, in bytes. S3 takes no less than 5 MiB.
const PART_BYTES: u64 = 8 * 1024 * 1024;

/// How many parts S3 allows in one object.
const MAX_PARTS: u64 = 10_000;

/// How many parts are in memory, being collected or on their way.
const PARTS_AT_ONCE: usize = 3;

impl S3Blobs {
    /// Stores a blob in parts and completes the object once `body` has ended without an error.
    ///
    /// Whatever goes wrong, the upload is aborted. A future that is dropped half-way can abort nothing: the bucket's
    /// lifecycle rule for incomplete uploads removes those parts.
    pub(crate) async fn store_in_parts(&self, digest: &Digest, size: u64, body: Body) -> Result<(), FillError> {
        let key = key(digest);
        let create = self.client.create_multipart_upload().bucket(&self.bucket).key(&key);
        let create = create.content_type(CONTENT_TYPE).checksum_algorithm(ChecksumAlgorithm::Sha256);
        let created = create.send().await.map_err(|error| store_error("CreateMultipartUpload", &error))?;
        let upload = created.upload_id().ok_or_else(|| StoreError::Corrupt("an upload without an id".to_owned()))?;

        let published = match self.send_parts(&key, upload, size, body).await {
            Ok(parts) => self.complete(digest, upload, size, parts).await.map_err(FillError::from),
            Err(error) => Err(error),
        };
        if !matches!(published, Ok(true)) {
            self.abort(digest, upload).await;
        }
        published.map(drop)
    }

    /// Sends all parts, or stops at the first failure. Parts on their way are waited for even then: S3 keeps those that
    /// arrive after the upload was aborted.
    async fn send_parts(
        &self,
        key: &str,
        upload: &str,
        size: u64,
        body: Body,
    ) -> Result<Vec<CompletedPart>, FillError> {
        let failed = AtomicBool::new(false);
        let sent = parts(body, part_bytes(size))
            .take_while(|_| future::ready(!failed.load(Ordering::Relaxed)))
            .map(async |part| {
                let sent = match part {
                    Ok((number, bytes)) => self.send_part(key, upload, number, bytes).await,
                    Err(error) => Err(error),
                };
                failed.fetch_or(sent.is_err(), Ordering::Relaxed);
                sent
            })
            .buffer_unordered(PARTS_AT_ONCE);
        let sent: Vec<_> = sent.collect().await;
        let mut sent = sent.into_iter().collect::<Result<Vec<CompletedPart>, _>>()?;
        sent.sort_by_key(CompletedPart::part_number);
        Ok(sent)
    }

    async fn send_part(&self, key: &str, upload: &str, number: i32, bytes: Bytes) -> Result<CompletedPart, FillError> {
        let checksum = checksum(&bytes);
        let request = self.client.upload_part().bucket(&self.bucket).key(key).upload_id(upload).part_number(number);
        let request = request.checksum_sha256(&checksum).body(ByteStream::from(bytes));
        let sent = request.send().await.map_err(|error| store_error("UploadPart", &error))?;
        let part = CompletedPart::builder().part_number(number).checksum_sha256(checksum);
        Ok(part.set_e_tag(sent.e_tag).build())
    }

    /// Makes the object of the parts visible. `false`: it was there before, and these parts are not needed.
    async fn complete(
        &self,
        digest: &Digest,
        upload: &str,
        size: u64,
        parts: Vec<CompletedPart>,
    ) -> Result<bool, StoreError> {
        let request = self.client.complete_multipart_upload().bucket(&self.bucket).key(key(digest)).upload_id(upload);
        let request = request.if_none_match("*").mpu_object_size(i64::try_from(size).unwrap_or(i64::MAX));
        let request = request.multipart_upload(CompletedMultipartUpload::builder().set_parts(Some(parts)).build());
        let Err(error) = request.send().await else {
            return Ok(true);
        };
        // Another fill was first (412), or is publishing right now (409), or the answer to our own first attempt was lost
        // and the upload is gone (404): the object itself tells.
        match self.size(digest).await {
            Ok(Some(stored)) if stored == size => Ok(false),
            _ => Err(store_error("CompleteMultipartUpload", &error)),
        }
    }

    async fn abort(&self, digest: &Digest, upload: &str) {
        let request = self.client.abort_multipart_upload().bucket(&self.bucket).key(key(digest)).upload_id(upload);
        match request.send().await {
            Err(error) if !has_status(&error, 404) => {
                let error = store_error("AbortMultipartUpload", &error);
                tracing::warn!(blob.digest = %digest, %error, "the lifecycle rule has to remove an unfinished upload");
            }
            _ => {}
        }
    }
}

/// How large the parts of a blob of `size` bytes are.
fn part_bytes(size: u64) -> usize {
    usize::try_from(size.div_ceil(MAX_PARTS).max(PART_BYTES)).unwrap_or(usize::MAX)
}

/// Cuts a body into numbered parts of `part_bytes`, the last one smaller. The body's error ends them.
fn parts(body: Body, part_bytes: usize) -> impl Stream<Item = Result<(i32, Bytes), FillError>> {
    stream::try_unfold((body, Bytes::new(), 1), move |(mut body, mut rest, number)| async move {
        let mut part = BytesMut::with_capacity(part_bytes);
        while part.len() < part_bytes {
            if rest.is_empty() {
                match body.try_next().await? {
                    Some(chunk) => rest = chunk,
                    None => break,
                }
            }
            part.extend_from_slice(&rest.split_to(rest.len().min(part_bytes - part.len())));
        }
        Ok((!part.is_empty()).then(|| ((number, part.freeze()), (body, rest, number + 1))))
    })
}
