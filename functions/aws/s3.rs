//! Content in one S3 bucket: `blobs/<algorithm>/<first two hex>/<hex>`, written once, and in the same way below
//! `manifests/` what is too large for an item of the table.
//!
//! The function that the public may call writes manifests only. They are compared with their digests when they are read.
//! Blobs are compared as they are stored; clients read them from here.

use std::collections::HashSet;
use std::time::Duration;

use async_trait::async_trait;
use aws_sdk_s3::Client;
use aws_sdk_s3::operation::get_object::GetObjectError;
use aws_sdk_s3::presigning::PresigningConfig;
use aws_sdk_s3::primitives::{ByteStream, DateTime};
use aws_sdk_s3::types::Object;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use bytes::{Bytes, BytesMut};
use futures_util::future::BoxFuture;
use futures_util::stream::{self, BoxStream};
use futures_util::{FutureExt, StreamExt, TryStreamExt};
use stopover::errors::{Failure, StoreError};
use stopover::oci::{Algorithm, Digest, MAX_MANIFEST_BYTES};
use stopover::ports::{Blobs, Location, Progress, Result, StoredBlob, Upload};
use stopover::values::time::Timestamp;
use tokio::sync::watch;
use url::Url;

use crate::failure::{has_status, store_error};
use crate::multipart::Parts;

/// How long a presigned URL works: long enough to begin a download, shorter than the rest of the role's session.
const URL_LIFE: Duration = Duration::from_mins(15);

/// Blobs of up to this many bytes are sent in one request, which S3 checks against the digest itself.
pub(crate) const SINGLE_PUT_BYTES: u64 = 16 * 1024 * 1024;

/// How many lists are read at once: keys come in order, so a list has but one next page.
const LISTS: usize = 8;

/// The media type of every object, for S3 and for the client that follows the URL.
pub(crate) const CONTENT_TYPE: &str = "application/octet-stream";

/// [`Blobs`] in one bucket.
///
/// The role needs `s3:ListBucket` on the bucket: without it S3 answers 403 for an object that is not there, and absence
/// could not be told from a lack of permission.
#[derive(Debug, Clone)]
pub struct S3Blobs {
    pub(crate) client: Client,
    pub(crate) bucket: String,
}

impl S3Blobs {
    /// Blobs in `bucket`.
    pub fn new(client: Client, bucket: impl Into<String>) -> Self {
        Self { client, bucket: bucket.into() }
    }

    /// The URL at which S3 answers HEAD of a blob. A presigned URL is for one method.
    pub async fn locate_head(&self, digest: &Digest) -> Result<String> {
        let head = self.client.head_object().bucket(&self.bucket).key(key(digest));
        let presigned = head.presigned(url_life()?).await.map_err(|error| store_error("presigning", error))?;
        Ok(presigned.uri().to_owned())
    }

    /// The URL at which S3 sends a manifest that was too large for its item, with this media type.
    pub async fn locate_manifest(&self, digest: &Digest, media_type: &str) -> Result<String> {
        let is_elsewhere = matches!(self.length(manifest_key(digest)).await, Ok(None));
        let key = if is_elsewhere { key(digest) } else { manifest_key(digest) };
        let get = self.client.get_object().bucket(&self.bucket).key(key).response_content_type(media_type);
        let presigned = get.presigned(url_life()?).await.map_err(|error| store_error("presigning", error))?;
        Ok(presigned.uri().to_owned())
    }

    /// The length of an object in bytes. `None`: there is none.
    async fn length(&self, key: String) -> Result<Option<u64>> {
        match self.client.head_object().bucket(&self.bucket).key(key).send().await {
            Ok(answer) => Ok(answer.content_length().and_then(|length| u64::try_from(length).ok())),
            Err(error) if has_status(&error, 404) => Ok(None),
            Err(error) => Err(store_error("HeadObject", error)),
        }
    }

    /// What is stored below keys that begin so.
    fn list_below(&self, prefix: String) -> BoxStream<'_, Result<StoredBlob>> {
        let pages = stream::try_unfold((prefix, Some(None)), move |(prefix, token)| async move {
            let Some(token) = token else { return Ok(None) };
            let request = self.client.list_objects_v2().bucket(&self.bucket).prefix(&prefix);
            let page = request.set_continuation_token(token).send().await;
            let page = page.map_err(|error| store_error("ListObjectsV2", error))?;
            let blobs = page.contents.unwrap_or_default().into_iter().filter_map(|object| listed(&object));
            let next = page.next_continuation_token.map(Some);
            Ok::<_, StoreError>(Some((stream::iter(blobs.map(Ok).collect::<Vec<_>>()), (prefix, next))))
        });
        pages.try_flatten().boxed()
    }

    /// The bytes of a manifest that was too large for its item. `None`: there is no such object.
    pub(crate) async fn read(&self, digest: &Digest, size: u64) -> Result<Option<Bytes>> {
        if size > MAX_MANIFEST_BYTES as u64 {
            return Err(StoreError::Corrupt(format!("manifest {digest} has {size} bytes").into()));
        }
        let mut found = None;
        // Versions before December 2026 stored manifests among the blobs.
        for key in [manifest_key(digest), key(digest)] {
            match self.client.get_object().bucket(&self.bucket).key(key).send().await {
                Ok(answer) => {
                    found = Some(answer);
                    break;
                }
                Err(error) if error.as_service_error().is_some_and(GetObjectError::is_no_such_key) => {}
                Err(error) => return Err(store_error("GetObject", error)),
            }
        }
        let Some(answer) = found else { return Ok(None) };
        if answer.content_length().and_then(|length| u64::try_from(length).ok()) != Some(size) {
            return Err(StoreError::Corrupt(
                format!("the object of manifest {digest} does not have {size} bytes").into(),
            ));
        }
        let bytes = answer
            .body
            .collect()
            .await
            .map_err(|error| StoreError::Unavailable(Failure::because("GetObject", error)))?;
        Ok(Some(bytes.into_bytes()))
    }

    /// Stores a manifest that is too large for its item.
    pub(crate) async fn write_manifest(&self, digest: &Digest, bytes: Bytes) -> Result<()> {
        self.write(&manifest_key(digest), digest, bytes).await
    }

    /// Stores bytes that match their digest in one request. Storing them twice changes nothing.
    async fn write(&self, key: &str, digest: &Digest, bytes: Bytes) -> Result<()> {
        // S3 compares the bytes with this checksum before the object becomes visible.
        let checksum = match digest.algorithm() {
            Algorithm::Sha256 => STANDARD.encode(digest.to_bytes()),
            Algorithm::Sha512 => checksum(&bytes),
        };
        // 409: another write of the same object is in progress, and S3 does not know yet how it ends.
        let mut conflicts = 0;
        loop {
            let put = self.client.put_object().bucket(&self.bucket).key(key).if_none_match("*");
            let put = put.content_type(CONTENT_TYPE).checksum_sha256(&checksum).body(ByteStream::from(bytes.clone()));
            match put.send().await {
                Ok(_) => return Ok(()),
                Err(error) if has_status(&error, 412) => return Ok(()),
                Err(error) if has_status(&error, 409) && conflicts == 0 => conflicts += 1,
                Err(error) => return Err(store_error("PutObject", error)),
            }
        }
    }
}

fn url_life() -> Result<PresigningConfig> {
    PresigningConfig::expires_in(URL_LIFE).map_err(|error| StoreError::Refused(Failure::because("presigning", error)))
}

/// The prefix of the keys of blobs.
pub(crate) const PREFIX: &str = "blobs/";
/// That of manifests.
const MANIFESTS: &str = "manifests/";

/// The key of a blob's object.
pub(crate) fn key(digest: &Digest) -> String {
    key_below(PREFIX, digest)
}

fn manifest_key(digest: &Digest) -> String {
    key_below(MANIFESTS, digest)
}

fn key_below(prefix: &str, digest: &Digest) -> String {
    format!("{prefix}{}/{}/{}", digest.algorithm().name(), digest.shard(), digest.hex())
}

/// The SHA-256 of `bytes` in the form of `x-amz-checksum-sha256`.
pub(crate) fn checksum(bytes: &[u8]) -> String {
    STANDARD.encode(Digest::of(Algorithm::Sha256, bytes).to_bytes())
}

#[async_trait]
impl Blobs for S3Blobs {
    async fn size(&self, digest: &Digest) -> Result<Option<u64>> {
        self.length(key(digest)).await
    }

    async fn locate(&self, digest: &Digest, _size: u64) -> Result<Option<Location>> {
        let get = self.client.get_object().bucket(&self.bucket).key(key(digest));
        let presigned = get.presigned(url_life()?).await.map_err(|error| store_error("presigning", error))?;
        let url = Url::parse(presigned.uri());
        let url = url.map_err(|error| StoreError::Refused(Failure::because("presigning", error)))?;
        Ok(Some(Location::Url(url.into())))
    }

    /// Clients cannot follow the fill: an object has no bytes before it is complete.
    async fn begin(&self, digest: &Digest, size: u64, _progress: &watch::Sender<Progress>) -> Result<Box<dyn Upload>> {
        if size > SINGLE_PUT_BYTES {
            return Ok(Box::new(Parts::begin(self, digest, size).await?));
        }
        let bytes = BytesMut::with_capacity(usize::try_from(size).unwrap_or_default());
        Ok(Box::new(Whole { blobs: self.clone(), digest: digest.clone(), bytes }))
    }

    async fn resume(
        &self,
        digest: &Digest,
        size: u64,
        offset: u64,
        upload: &str,
        _progress: &watch::Sender<Progress>,
    ) -> Result<Option<Box<dyn Upload>>> {
        let upload = Parts::resume(self, digest, size, offset, upload).await?;
        Ok(upload.map(|upload| Box::new(upload) as Box<dyn Upload>))
    }

    async fn abandon(&self, known: &HashSet<String>, idle: Duration) -> Result<usize> {
        self.abandon_uploads(known, idle).await
    }

    /// Lists the bucket in pages of a thousand. Manifests are few.
    fn list(&self) -> BoxStream<'_, Result<StoredBlob>> {
        let blobs = [Algorithm::Sha256, Algorithm::Sha512]
            .into_iter()
            .flat_map(|algorithm| (0..16).map(move |digit| format!("{PREFIX}{}/{digit:x}", algorithm.name())));
        stream::iter(blobs.chain([MANIFESTS.to_owned()]))
            .flat_map_unordered(LISTS, |prefix| self.list_below(prefix))
            .boxed()
    }

    async fn remove(&self, digest: &Digest) -> Result<()> {
        // The same bytes may be a manifest and a blob, and S3 says nothing where there is none.
        for key in [key(digest), manifest_key(digest)] {
            let request = self.client.delete_object().bucket(&self.bucket).key(key);
            request.send().await.map_err(|error| store_error("DeleteObject", error))?;
        }
        Ok(())
    }
}

/// The blob of an object. `None`: its key is not one of ours.
fn listed(object: &Object) -> Option<StoredBlob> {
    let named = object.key()?;
    let prefix = [PREFIX, MANIFESTS].into_iter().find(|prefix| named.starts_with(prefix))?;
    let (algorithm, path) = named.strip_prefix(prefix)?.split_once('/')?;
    let digest = format!("{algorithm}:{}", path.split_once('/')?.1).parse().ok();
    let digest = digest.filter(|digest| key_below(prefix, digest) == named)?;
    let modified = object.last_modified().map_or(0, DateTime::secs);
    let [size, modified] = [object.size()?, modified].map(|number| u64::try_from(number).unwrap_or_default());
    Some(StoredBlob { digest, size, modified: Timestamp(modified) })
}

/// A blob that one request stores. It has no checkpoints: to begin again takes no longer.
struct Whole {
    blobs: S3Blobs,
    digest: Digest,
    bytes: BytesMut,
}

#[async_trait]
impl Upload for Whole {
    fn unit(&self) -> u64 {
        u64::MAX
    }

    async fn write(&mut self, bytes: Bytes) -> Result<()> {
        self.bytes.extend_from_slice(&bytes);
        Ok(())
    }

    fn arrived(&self) -> u64 {
        0
    }

    fn checkpoint(&mut self, _: u64) -> BoxFuture<'static, Result<String>> {
        std::future::ready(Err(StoreError::Refused("a blob of one request has no checkpoints".into()))).boxed()
    }

    async fn publish(&mut self) -> Result<()> {
        self.blobs.write(&key(&self.digest), &self.digest, std::mem::take(&mut self.bytes).freeze()).await
    }

    async fn discard(self: Box<Self>) {}
}
