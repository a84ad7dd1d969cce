//! The operations of the service that the adapters use.

use std::sync::Arc;

use s3s::{
    S3, S3Request, S3Response, S3Result,
    dto::{
        AbortMultipartUploadInput, AbortMultipartUploadOutput, ChecksumAlgorithm, ChecksumMode, ChecksumType,
        CompleteMultipartUploadInput, CompleteMultipartUploadOutput, CreateMultipartUploadInput,
        CreateMultipartUploadOutput, DeleteObjectInput, DeleteObjectOutput, ETag, ETagCondition, GetObjectInput,
        GetObjectOutput, HeadObjectInput, HeadObjectOutput, ListMultipartUploadsInput, ListMultipartUploadsOutput,
        ListObjectsV2Input, ListObjectsV2Output, ListPartsInput, ListPartsOutput, MultipartUpload, PutObjectInput,
        PutObjectOutput, UploadPartInput, UploadPartOutput,
    },
    s3_error,
};

use super::{
    answers, body,
    store::{Completion, Description, Object, Part, Store},
};

/// The most entries of one page of any listing.
const PAGE: i32 = 1000;

pub(super) struct Operations(pub(super) Arc<Store>);

type Answer<T> = S3Result<S3Response<T>>;

#[async_trait::async_trait]
impl S3 for Operations {
    async fn put_object(&self, request: S3Request<PutObjectInput>) -> Answer<PutObjectOutput> {
        let S3Request { input, headers, trailing_headers: trailers, .. } = request;
        self.0.check_bucket(&input.bucket)?;
        let only_if_absent = only_if_absent(input.if_none_match.as_ref(), input.if_match.as_ref())?;
        let directory = self.0.directory();
        let received = body::receive(directory, input.body, input.content_length, &headers, trailers.as_ref()).await?;
        let description = Description { content_type: input.content_type, metadata: input.metadata };
        let object = Object::whole(description, received);
        let (etag, checksum) = (object.etag.clone(), object.checksum.clone());
        self.0.put(&input.key, object, only_if_absent)?;
        Ok(S3Response::new(PutObjectOutput {
            e_tag: Some(ETag::Strong(etag)),
            checksum_crc32: checksum.checksum_crc32,
            checksum_crc32c: checksum.checksum_crc32c,
            checksum_crc64nvme: checksum.checksum_crc64nvme,
            checksum_sha1: checksum.checksum_sha1,
            checksum_sha256: checksum.checksum_sha256,
            ..Default::default()
        }))
    }

    async fn get_object(&self, request: S3Request<GetObjectInput>) -> Answer<GetObjectOutput> {
        let input = request.input;
        self.0.check_bucket(&input.bucket)?;
        if input.if_match.is_some()
            || matches!(input.if_none_match, Some(ETagCondition::Any))
            || input.if_modified_since.is_some()
            || input.if_unmodified_since.is_some()
            || input.part_number.is_some()
            || input.version_id.is_some()
        {
            return Err(not_modelled());
        }
        let object = self.0.object(&input.key)?;
        if input.if_none_match == Some(ETagCondition::ETag(ETag::Strong(object.etag.clone()))) {
            return Err(s3_error!(NotModified));
        }
        let range = input.range.map_or(Ok(0..object.size), |range| range.check(object.size))?;
        let mut answer = if input.range.is_none() {
            answers::whole(&object, wants_checksum(input.checksum_mode.as_ref()))
        } else {
            answers::part(&object, &range)
        };
        answer.content_type = input.response_content_type.or(answer.content_type);
        answer.body = Some(body::send(&object.blobs, &range));
        Ok(S3Response::new(answer))
    }

    async fn head_object(&self, request: S3Request<HeadObjectInput>) -> Answer<HeadObjectOutput> {
        let input = request.input;
        self.0.check_bucket(&input.bucket)?;
        if input.if_match.is_some()
            || input.if_none_match.is_some()
            || input.if_modified_since.is_some()
            || input.if_unmodified_since.is_some()
            || input.part_number.is_some()
            || input.version_id.is_some()
            || input.range.is_some()
        {
            return Err(not_modelled());
        }
        let object = self.0.object(&input.key)?;
        let whole = answers::whole(&object, wants_checksum(input.checksum_mode.as_ref()));
        Ok(S3Response::new(answers::head(whole)))
    }

    async fn delete_object(&self, request: S3Request<DeleteObjectInput>) -> Answer<DeleteObjectOutput> {
        let input = request.input;
        self.0.check_bucket(&input.bucket)?;
        if input.if_match.is_some() || input.version_id.is_some() {
            return Err(not_modelled());
        }
        self.0.delete(&input.key);
        Ok(S3Response::new(DeleteObjectOutput::default()))
    }

    async fn list_objects_v2(&self, request: S3Request<ListObjectsV2Input>) -> Answer<ListObjectsV2Output> {
        let input = request.input;
        self.0.check_bucket(&input.bucket)?;
        if input.delimiter.is_some() || input.encoding_type.is_some() {
            return Err(not_modelled());
        }
        let after = input.continuation_token.as_ref().or(input.start_after.as_ref());
        let page = page(input.max_keys)?;
        let (prefix, after) = (input.prefix.as_deref().unwrap_or(""), after.map_or("", String::as_str));
        let mut found = self.0.list(prefix, after, page + 1);
        let truncated = found.len() > page;
        found.truncate(page);
        Ok(S3Response::new(ListObjectsV2Output {
            name: Some(input.bucket),
            prefix: input.prefix,
            continuation_token: input.continuation_token,
            start_after: input.start_after,
            max_keys: Some(input.max_keys.unwrap_or(PAGE)),
            key_count: Some(i32::try_from(found.len()).unwrap_or(PAGE)),
            is_truncated: Some(truncated),
            next_continuation_token: found.last().filter(|_| truncated).map(|(key, _)| key.clone()),
            contents: Some(found.into_iter().map(|(key, object)| answers::listed(key, &object)).collect()),
            ..Default::default()
        }))
    }

    async fn create_multipart_upload(
        &self,
        request: S3Request<CreateMultipartUploadInput>,
    ) -> Answer<CreateMultipartUploadOutput> {
        let input = request.input;
        self.0.check_bucket(&input.bucket)?;
        let algorithm = input.checksum_algorithm.as_ref().map(|name| name.as_str().to_lowercase());
        let full = input.checksum_type.as_ref().is_some_and(|kind| kind.as_str() == ChecksumType::FULL_OBJECT);
        if full && matches!(algorithm.as_deref(), Some("sha1" | "sha256")) {
            return Err(s3_error!(
                InvalidRequest,
                "The FULL_OBJECT checksum type cannot be used with the {} checksum algorithm.",
                algorithm.unwrap_or_default()
            ));
        }
        let description = Description { content_type: input.content_type, metadata: input.metadata };
        let id = self.0.begin(&input.key, description, algorithm);
        Ok(S3Response::new(CreateMultipartUploadOutput {
            bucket: Some(input.bucket),
            key: Some(input.key),
            upload_id: Some(id),
            checksum_algorithm: input.checksum_algorithm,
            ..Default::default()
        }))
    }

    async fn upload_part(&self, request: S3Request<UploadPartInput>) -> Answer<UploadPartOutput> {
        let S3Request { input, headers, trailing_headers: trailers, .. } = request;
        self.0.check_bucket(&input.bucket)?;
        if !(1..=10_000).contains(&input.part_number) {
            return Err(s3_error!(InvalidArgument, "Part number must be an integer between 1 and 10000, inclusive"));
        }
        let algorithm = self.0.with_upload(&input.upload_id, &input.key, |upload| upload.algorithm.clone())?;
        let directory = self.0.directory();
        let received = body::receive(directory, input.body, input.content_length, &headers, trailers.as_ref()).await?;
        if let Some(algorithm) = algorithm
            && body::value_of(&received.checksum, &algorithm).is_none()
        {
            return Err(s3_error!(
                InvalidRequest,
                "Checksum Type mismatch occurred, expected checksum Type: {algorithm}"
            ));
        }
        let checksum = received.checksum.clone();
        let part = Part { received, modified: std::time::SystemTime::now() };
        let etag = part.etag();
        self.0.with_upload(&input.upload_id, &input.key, |upload| upload.parts.insert(input.part_number, part))?;
        Ok(S3Response::new(UploadPartOutput {
            e_tag: Some(ETag::Strong(etag)),
            checksum_crc32: checksum.checksum_crc32,
            checksum_crc32c: checksum.checksum_crc32c,
            checksum_crc64nvme: checksum.checksum_crc64nvme,
            checksum_sha1: checksum.checksum_sha1,
            checksum_sha256: checksum.checksum_sha256,
            ..Default::default()
        }))
    }

    async fn complete_multipart_upload(
        &self,
        request: S3Request<CompleteMultipartUploadInput>,
    ) -> Answer<CompleteMultipartUploadOutput> {
        let input = request.input;
        self.0.check_bucket(&input.bucket)?;
        let completion = Completion {
            parts: input.multipart_upload.and_then(|list| list.parts).unwrap_or_default(),
            size: input.mpu_object_size,
            checksum_sha256: input.checksum_sha256,
            only_if_absent: only_if_absent(input.if_none_match.as_ref(), input.if_match.as_ref())?,
        };
        let object = self.0.complete(&input.upload_id, &input.key, &completion)?;
        Ok(S3Response::new(CompleteMultipartUploadOutput {
            bucket: Some(input.bucket),
            key: Some(input.key),
            e_tag: Some(ETag::Strong(object.etag.clone())),
            checksum_sha256: object.checksum.checksum_sha256.clone(),
            ..Default::default()
        }))
    }

    async fn abort_multipart_upload(
        &self,
        request: S3Request<AbortMultipartUploadInput>,
    ) -> Answer<AbortMultipartUploadOutput> {
        self.0.check_bucket(&request.input.bucket)?;
        self.0.abort(&request.input.upload_id, &request.input.key)?;
        Ok(S3Response::new(AbortMultipartUploadOutput::default()))
    }

    async fn list_multipart_uploads(
        &self,
        request: S3Request<ListMultipartUploadsInput>,
    ) -> Answer<ListMultipartUploadsOutput> {
        let input = request.input;
        self.0.check_bucket(&input.bucket)?;
        if input.delimiter.is_some() || input.key_marker.is_some() || input.upload_id_marker.is_some() {
            return Err(not_modelled());
        }
        let prefix = input.prefix.clone().unwrap_or_default();
        let mut uploads = self.0.uploads(|id, upload| MultipartUpload {
            key: Some(upload.key.clone()),
            upload_id: Some(id.to_owned()),
            initiated: Some(upload.initiated.into()),
            checksum_algorithm: upload.algorithm.as_ref().map(|name| ChecksumAlgorithm::from(name.to_uppercase())),
            ..Default::default()
        });
        uploads.retain(|upload| upload.key.as_ref().is_some_and(|key| key.starts_with(&prefix)));
        if uploads.len() > page(input.max_uploads)? {
            return Err(not_modelled());
        }
        uploads.sort_by(|one, other| one.key.cmp(&other.key));
        Ok(S3Response::new(ListMultipartUploadsOutput {
            bucket: Some(input.bucket),
            prefix: input.prefix,
            max_uploads: Some(input.max_uploads.unwrap_or(PAGE)),
            is_truncated: Some(false),
            uploads: Some(uploads),
            ..Default::default()
        }))
    }

    async fn list_parts(&self, request: S3Request<ListPartsInput>) -> Answer<ListPartsOutput> {
        let input = request.input;
        self.0.check_bucket(&input.bucket)?;
        let after = input.part_number_marker.unwrap_or(0);
        let mut parts = self.0.with_upload(&input.upload_id, &input.key, |upload| {
            let parts = upload.parts.iter().filter(|(number, _)| **number > after);
            parts.map(|(number, part)| answers::part_listed(*number, part)).collect::<Vec<_>>()
        })?;
        let page = page(input.max_parts)?;
        let truncated = parts.len() > page;
        parts.truncate(page);
        Ok(S3Response::new(ListPartsOutput {
            bucket: Some(input.bucket),
            key: Some(input.key),
            upload_id: Some(input.upload_id),
            max_parts: Some(input.max_parts.unwrap_or(PAGE)),
            is_truncated: Some(truncated),
            next_part_number_marker: parts.last().filter(|_| truncated).and_then(|part| part.part_number),
            parts: Some(parts),
            ..Default::default()
        }))
    }
}

/// `If-None-Match: *` is the one condition on writes that is modelled.
fn only_if_absent(if_none_match: Option<&ETagCondition>, if_match: Option<&ETagCondition>) -> S3Result<bool> {
    match (if_none_match, if_match) {
        (None, None) => Ok(false),
        (Some(ETagCondition::Any), None) => Ok(true),
        _ => Err(not_modelled()),
    }
}

fn not_modelled() -> s3s::S3Error {
    s3_error!(NotImplemented, "A header you provided implies functionality that is not implemented")
}

fn page(asked: Option<i32>) -> S3Result<usize> {
    usize::try_from(asked.unwrap_or(PAGE).min(PAGE)).map_err(|error| s3_error!(error, InvalidArgument))
}

fn wants_checksum(mode: Option<&ChecksumMode>) -> bool {
    mode.is_some_and(|mode| mode.as_str() == ChecksumMode::ENABLED)
}
