//! What the bucket holds. Every change is decided and made under one lock: that makes conditional writes atomic.

use std::{
    collections::{BTreeMap, HashMap},
    ops::Bound,
    path::Path,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::SystemTime,
};

use base64::{Engine, prelude::BASE64_STANDARD};
use md5::{Digest, Md5};
use s3s::{
    S3Result,
    dto::{Checksum, CompletedPart},
    s3_error,
};
use sha2::Sha256;

use super::{
    super::hex,
    body::{Blob, Received, value_of},
};

/// The least size of every part but the last, in bytes.
const MIN_PART: u64 = 5 * 1024 * 1024;

/// What the creator of an object says about it.
#[derive(Clone)]
pub(super) struct Description {
    pub(super) content_type: Option<String>,
    pub(super) metadata: Option<HashMap<String, String>>,
}

/// An object that clients can see.
pub(super) struct Object {
    pub(super) description: Description,
    pub(super) blobs: Vec<Arc<Blob>>,
    pub(super) size: u64,
    pub(super) etag: String,
    pub(super) checksum: Checksum,
    /// Of a multipart upload the checksum is one of the parts' checksums.
    pub(super) composite: bool,
    pub(super) modified: SystemTime,
}

impl Object {
    pub(super) fn whole(description: Description, received: Received) -> Self {
        Self {
            description,
            size: received.blob.size,
            blobs: vec![received.blob],
            etag: hex(received.md5),
            checksum: received.checksum,
            composite: false,
            modified: SystemTime::now(),
        }
    }
}

/// A multipart upload under way.
pub(super) struct Upload {
    pub(super) key: String,
    pub(super) description: Description,
    /// In lower case; every part must carry it, and the completion must repeat it.
    pub(super) algorithm: Option<String>,
    pub(super) initiated: SystemTime,
    pub(super) parts: BTreeMap<i32, Part>,
}

pub(super) struct Part {
    pub(super) received: Received,
    pub(super) modified: SystemTime,
}

impl Part {
    pub(super) fn etag(&self) -> String {
        hex(self.received.md5)
    }
}

/// How a multipart upload shall become an object.
pub(super) struct Completion {
    pub(super) parts: Vec<CompletedPart>,
    pub(super) size: Option<i64>,
    pub(super) checksum_sha256: Option<String>,
    pub(super) only_if_absent: bool,
}

#[derive(Default)]
struct Contents {
    objects: BTreeMap<String, Arc<Object>>,
    uploads: BTreeMap<String, Upload>,
    uploads_begun: u64,
}

/// One bucket: bytes in files of a temporary directory, everything else in memory.
pub(crate) struct Store {
    bucket: String,
    contents: Mutex<Contents>,
    // After the contents, whose files are removed one by one when they are dropped.
    directory: tempfile::TempDir,
}

impl Store {
    pub(crate) fn new(bucket: &str) -> std::io::Result<Self> {
        Ok(Self { bucket: bucket.to_owned(), contents: Mutex::default(), directory: tempfile::tempdir()? })
    }

    fn contents(&self) -> MutexGuard<'_, Contents> {
        self.contents.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn keys(&self) -> Vec<String> {
        self.contents().objects.keys().cloned().collect()
    }

    pub(crate) fn open_uploads(&self) -> usize {
        self.contents().uploads.len()
    }

    pub(crate) fn files(&self) -> std::io::Result<usize> {
        Ok(std::fs::read_dir(&self.directory)?.count())
    }

    pub(super) fn directory(&self) -> &Path {
        self.directory.path()
    }

    pub(super) fn check_bucket(&self, bucket: &str) -> S3Result<()> {
        if bucket == self.bucket { Ok(()) } else { Err(s3_error!(NoSuchBucket, "The specified bucket does not exist")) }
    }

    pub(super) fn object(&self, key: &str) -> S3Result<Arc<Object>> {
        let found = self.contents().objects.get(key).cloned();
        found.ok_or_else(|| s3_error!(NoSuchKey, "The specified key does not exist."))
    }

    pub(super) fn put(&self, key: &str, object: Object, only_if_absent: bool) -> S3Result<()> {
        self.contents().publish(key, object, only_if_absent)
    }

    pub(super) fn delete(&self, key: &str) {
        self.contents().objects.remove(key);
    }

    /// At most `most` objects after `after` whose keys begin with `prefix`, in order.
    pub(super) fn list(&self, prefix: &str, after: &str, most: usize) -> Vec<(String, Arc<Object>)> {
        let contents = self.contents();
        // Those that begin with a prefix follow each other.
        let from = if after < prefix { Bound::Included(prefix) } else { Bound::Excluded(after) };
        let matching = contents.objects.range::<str, _>((from, Bound::Unbounded));
        let matching = matching.take_while(|(key, _)| key.starts_with(prefix)).take(most);
        matching.map(|(key, object)| (key.clone(), Arc::clone(object))).collect()
    }

    pub(super) fn begin(&self, key: &str, description: Description, algorithm: Option<String>) -> String {
        let mut contents = self.contents();
        contents.uploads_begun += 1;
        let id = format!("upload-{:06}", contents.uploads_begun);
        let upload = Upload {
            key: key.to_owned(),
            description,
            algorithm,
            initiated: SystemTime::now(),
            parts: BTreeMap::new(),
        };
        contents.uploads.insert(id.clone(), upload);
        id
    }

    /// Reads an upload; `NoSuchUpload` if it is unknown, was completed or aborted, or is of another key.
    pub(super) fn with_upload<T>(&self, id: &str, key: &str, read: impl FnOnce(&mut Upload) -> T) -> S3Result<T> {
        self.contents().upload(id, key).map(read)
    }

    /// Reads every open upload, in the order they began.
    pub(super) fn uploads<T>(&self, read: impl Fn(&str, &Upload) -> T) -> Vec<T> {
        self.contents().uploads.iter().map(|(id, upload)| read(id, upload)).collect()
    }

    pub(super) fn abort(&self, id: &str, key: &str) -> S3Result<()> {
        let mut contents = self.contents();
        contents.upload(id, key)?;
        contents.uploads.remove(id);
        Ok(())
    }

    pub(super) fn complete(&self, id: &str, key: &str, completion: &Completion) -> S3Result<Arc<Object>> {
        let mut contents = self.contents();
        let object = assemble(contents.upload(id, key)?, completion)?;
        contents.publish(key, object, completion.only_if_absent)?;
        contents.uploads.remove(id);
        contents.objects.get(key).cloned().ok_or_else(|| s3_error!(InternalError))
    }
}

impl Contents {
    fn publish(&mut self, key: &str, object: Object, only_if_absent: bool) -> S3Result<()> {
        if only_if_absent && self.objects.contains_key(key) {
            return Err(s3_error!(PreconditionFailed, "At least one of the pre-conditions you specified did not hold"));
        }
        self.objects.insert(key.to_owned(), Arc::new(object));
        Ok(())
    }

    fn upload(&mut self, id: &str, key: &str) -> S3Result<&mut Upload> {
        self.uploads.get_mut(id).filter(|upload| upload.key == key).ok_or_else(|| {
            s3_error!(NoSuchUpload, "The specified multipart upload does not exist. The upload ID may be invalid, or the upload may have been aborted or completed.")
        })
    }
}

/// The object that the listed parts make, if the list is right.
fn assemble(upload: &Upload, completion: &Completion) -> S3Result<Object> {
    if completion.parts.is_empty() {
        return Err(s3_error!(MalformedXML, "You must specify at least one part"));
    }
    if !completion.parts.is_sorted_by(|one, next| one.part_number < next.part_number) {
        return Err(s3_error!(InvalidPartOrder, "The list of parts was not in ascending order."));
    }
    let parts = completion.parts.iter().map(|listed| matching(upload, listed)).collect::<S3Result<Vec<_>>>()?;
    if parts.iter().rev().skip(1).any(|part| part.received.blob.size < MIN_PART) {
        return Err(s3_error!(EntityTooSmall, "Your proposed upload is smaller than the minimum allowed size"));
    }
    let size = parts.iter().map(|part| part.received.blob.size).sum();
    if completion.size.is_some_and(|said| u64::try_from(said) != Ok(size)) {
        return Err(s3_error!(
            InvalidRequest,
            "The provided 'x-amz-mp-object-size' header does not match what was computed"
        ));
    }
    let mut checksum = Checksum::default();
    if upload.algorithm.as_deref() == Some("sha256") {
        checksum.checksum_sha256 = Some(composite_sha256(&parts)?);
    }
    if completion.checksum_sha256.is_some() && completion.checksum_sha256 != checksum.checksum_sha256 {
        return Err(s3_error!(BadDigest, "The sha256 you specified did not match the calculated checksum."));
    }
    let mut etag = Md5::new();
    for part in &parts {
        etag.update(part.received.md5);
    }
    Ok(Object {
        description: upload.description.clone(),
        etag: format!("{}-{}", hex(etag.finalize().into()), parts.len()),
        blobs: parts.iter().map(|part| Arc::clone(&part.received.blob)).collect(),
        size,
        checksum,
        composite: true,
        modified: SystemTime::now(),
    })
}

/// The part that a completion lists, if number, `ETag` and checksum are those of the uploaded one.
fn matching<'a>(upload: &'a Upload, listed: &CompletedPart) -> S3Result<&'a Part> {
    let invalid = || {
        s3_error!(
            InvalidPart,
            "One or more of the specified parts could not be found. The part may not have been uploaded, or the specified entity tag may not match the part's entity tag."
        )
    };
    let part = listed.part_number.and_then(|number| upload.parts.get(&number)).ok_or_else(invalid)?;
    if listed.e_tag.as_ref().map(s3s::dto::ETag::value) != Some(&part.etag()) {
        return Err(invalid());
    }
    let said = [
        ("crc32", &listed.checksum_crc32),
        ("crc32c", &listed.checksum_crc32c),
        ("crc64nvme", &listed.checksum_crc64nvme),
        ("sha1", &listed.checksum_sha1),
        ("sha256", &listed.checksum_sha256),
    ];
    for (algorithm, said) in said {
        match said {
            Some(said) if value_of(&part.received.checksum, algorithm) != Some(said) => {
                return Err(invalid());
            }
            None if upload.algorithm.as_deref() == Some(algorithm) => {
                return Err(s3_error!(
                    InvalidRequest,
                    "The upload was created using a {algorithm} checksum. The complete request must include the checksum for each part."
                ));
            }
            _ => {}
        }
    }
    Ok(part)
}

/// The SHA-256 of the parts' SHA-256s, as the service writes it: base64, a dash, the number of parts.
fn composite_sha256(parts: &[&Part]) -> S3Result<String> {
    let mut digest = Sha256::new();
    for part in parts {
        let of_part = value_of(&part.received.checksum, "sha256").and_then(|value| BASE64_STANDARD.decode(value).ok());
        digest.update(of_part.ok_or_else(|| s3_error!(InternalError, "a part has no checksum"))?);
    }
    Ok(format!("{}-{}", BASE64_STANDARD.encode(digest.finalize()), parts.len()))
}
