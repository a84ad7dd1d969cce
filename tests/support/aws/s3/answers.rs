//! What the service says about an object or a part.

use std::ops::Range;

use s3s::dto::{ChecksumType, ETag, GetObjectOutput, HeadObjectOutput, Object as ListedObject, Part as ListedPart};

use super::store::{Object, Part};

/// The headers of an answer with the whole object; with its checksum only if asked for.
pub(super) fn whole(object: &Object, with_checksum: bool) -> GetObjectOutput {
    let kind = if object.composite { ChecksumType::COMPOSITE } else { ChecksumType::FULL_OBJECT };
    let checksum = if with_checksum { object.checksum.clone() } else { <_>::default() };
    GetObjectOutput {
        content_length: Some(length(object.size)),
        checksum_crc32: checksum.checksum_crc32,
        checksum_crc32c: checksum.checksum_crc32c,
        checksum_crc64nvme: checksum.checksum_crc64nvme,
        checksum_sha1: checksum.checksum_sha1,
        checksum_sha256: checksum.checksum_sha256,
        checksum_type: with_checksum.then(|| ChecksumType::from_static(kind)),
        ..any(object)
    }
}

/// The headers of an answer with a part of the object: the checksum of the whole would mislead.
pub(super) fn part(object: &Object, range: &Range<u64>) -> GetObjectOutput {
    GetObjectOutput {
        content_length: Some(length(range.end - range.start)),
        content_range: Some(format!("bytes {}-{}/{}", range.start, range.end - 1, object.size)),
        ..any(object)
    }
}

fn any(object: &Object) -> GetObjectOutput {
    let content_type = object.description.content_type.clone();
    GetObjectOutput {
        accept_ranges: Some("bytes".to_owned()),
        content_type: Some(content_type.unwrap_or_else(|| "binary/octet-stream".to_owned())),
        e_tag: Some(ETag::Strong(object.etag.clone())),
        last_modified: Some(object.modified.into()),
        metadata: object.description.metadata.clone(),
        ..Default::default()
    }
}

/// The same headers without the bytes.
pub(super) fn head(whole: GetObjectOutput) -> HeadObjectOutput {
    HeadObjectOutput {
        accept_ranges: whole.accept_ranges,
        content_length: whole.content_length,
        content_type: whole.content_type,
        e_tag: whole.e_tag,
        last_modified: whole.last_modified,
        metadata: whole.metadata,
        checksum_crc32: whole.checksum_crc32,
        checksum_crc32c: whole.checksum_crc32c,
        checksum_crc64nvme: whole.checksum_crc64nvme,
        checksum_sha1: whole.checksum_sha1,
        checksum_sha256: whole.checksum_sha256,
        checksum_type: whole.checksum_type,
        ..Default::default()
    }
}

pub(super) fn listed(key: String, object: &Object) -> ListedObject {
    ListedObject {
        key: Some(key),
        size: Some(length(object.size)),
        e_tag: Some(ETag::Strong(object.etag.clone())),
        last_modified: Some(object.modified.into()),
        ..Default::default()
    }
}

pub(super) fn part_listed(number: i32, part: &Part) -> ListedPart {
    ListedPart {
        part_number: Some(number),
        e_tag: Some(ETag::Strong(part.etag())),
        size: Some(length(part.received.blob.size)),
        last_modified: Some(part.modified.into()),
        checksum_sha256: part.received.checksum.checksum_sha256.clone(),
        ..Default::default()
    }
}

fn length(bytes: u64) -> i64 {
    i64::try_from(bytes).unwrap_or(i64::MAX)
}
