//! S3, multipart uploads: complete only as listed, checked part by part, and gone when aborted.

use aws_sdk_s3::{
    Client,
    operation::complete_multipart_upload::builders::CompleteMultipartUploadFluentBuilder,
    primitives::ByteStream,
    types::{ChecksumAlgorithm, CompletedMultipartUpload, CompletedPart},
};
use futures_util::future::join_all;
use support::aws::Endpoints;

use super::s3::{refusal, refused, sha256};

const MIB: usize = 1024 * 1024;

struct Upload<'a> {
    client: Client,
    bucket: &'a str,
    id: String,
}

impl<'a> Upload<'a> {
    async fn begin(endpoints: &'a Endpoints) -> Self {
        let (client, bucket) = (endpoints.s3(), endpoints.bucket());
        let create = client.create_multipart_upload().bucket(bucket).key("large");
        let created = create.checksum_algorithm(ChecksumAlgorithm::Sha256).send().await.unwrap();
        Self { client, bucket, id: created.upload_id.unwrap() }
    }

    async fn part(&self, number: i32, content: &[u8]) -> CompletedPart {
        let part = self.client.upload_part().bucket(self.bucket).key("large").upload_id(&self.id).part_number(number);
        let part = part.body(ByteStream::from(content.to_vec())).checksum_sha256(sha256(content)).send().await.unwrap();
        let listed = CompletedPart::builder().part_number(number).checksum_sha256(sha256(content));
        listed.set_e_tag(part.e_tag).build()
    }

    fn completion(&self, parts: &[CompletedPart]) -> CompleteMultipartUploadFluentBuilder {
        let list = CompletedMultipartUpload::builder().set_parts(Some(parts.to_vec())).build();
        let complete = self.client.complete_multipart_upload().bucket(self.bucket).key("large").upload_id(&self.id);
        complete.if_none_match("*").multipart_upload(list)
    }
}

#[tokio::test]
async fn a_completed_upload_reads_back_across_its_parts() {
    let endpoints = Endpoints::start().await.unwrap();
    let upload = Upload::begin(&endpoints).await;
    let contents = [vec![1; 5 * MIB], vec![2; 5 * MIB + 3], vec![3; 7]];
    let mut parts = Vec::new();
    for (number, content) in (1..).zip(&contents) {
        parts.push(upload.part(number, content).await);
    }
    assert_eq!(endpoints.objects(), Vec::<String>::new());
    let completed = upload.completion(&parts).mpu_object_size(10 * 1024 * 1024 + 10).send().await.unwrap();
    assert!(completed.e_tag().unwrap().ends_with("-3\""));
    assert!(completed.checksum_sha256().unwrap().ends_with("-3"));
    assert_eq!(endpoints.multipart_uploads(), 0);

    let get = || upload.client.get_object().bucket(upload.bucket).key("large");
    let whole = get().send().await.unwrap().body.collect().await.unwrap().into_bytes();
    assert!(whole == contents.concat());
    let seam = format!("bytes={}-{}", 5 * MIB - 2, 5 * MIB + 1);
    assert_eq!(get().range(seam).send().await.unwrap().body.collect().await.unwrap().to_vec(), [1, 1, 2, 2]);
}

#[tokio::test]
async fn a_completion_that_is_not_exactly_right_is_refused_and_nothing_is_visible() {
    let endpoints = Endpoints::start().await.unwrap();
    let upload = Upload::begin(&endpoints).await;
    let (one, two) = (upload.part(1, &vec![1; 5 * MIB]).await, upload.part(2, b"last").await);
    let altered = |part: &CompletedPart| CompletedPart::builder().part_number(part.part_number().unwrap());
    let wrong_tag =
        altered(&two).e_tag("\"00000000000000000000000000000000\"").checksum_sha256(sha256(b"last")).build();
    let wrong_checksum = altered(&two).e_tag(two.e_tag().unwrap()).checksum_sha256(sha256(b"other")).build();
    let no_checksum = altered(&two).e_tag(two.e_tag().unwrap()).build();
    let unknown = CompletedPart::builder().part_number(3).e_tag(two.e_tag().unwrap()).build();
    for (parts, code) in [
        (vec![two.clone(), one.clone()], "InvalidPartOrder"),
        (vec![one.clone(), one.clone()], "InvalidPartOrder"),
        (vec![one.clone(), wrong_tag], "InvalidPart"),
        (vec![one.clone(), wrong_checksum], "InvalidPart"),
        (vec![one.clone(), no_checksum], "InvalidRequest"),
        (vec![one.clone(), two.clone(), unknown], "InvalidPart"),
    ] {
        assert_eq!(refusal(upload.completion(&parts).send().await), refused(400, code), "{parts:?}");
    }
    let parts = [one, two];
    let wrong_size = upload.completion(&parts).mpu_object_size(1).send().await;
    assert_eq!(refusal(wrong_size), refused(400, "InvalidRequest"));
    assert_eq!(endpoints.objects(), Vec::<String>::new());
    upload.completion(&parts).send().await.unwrap();
    assert_eq!(endpoints.objects(), ["large"]);
}

#[tokio::test]
async fn only_the_last_part_may_be_small() {
    let endpoints = Endpoints::start().await.unwrap();
    let upload = Upload::begin(&endpoints).await;
    let parts = [upload.part(1, &vec![1; 5 * MIB - 1]).await, upload.part(2, b"last").await];
    assert_eq!(refusal(upload.completion(&parts).send().await), refused(400, "EntityTooSmall"));
}

#[tokio::test]
async fn a_part_with_a_wrong_checksum_or_none_is_not_taken() {
    let endpoints = Endpoints::start().await.unwrap();
    let upload = Upload::begin(&endpoints).await;
    let part = || upload.client.upload_part().bucket(upload.bucket).key("large").upload_id(&upload.id).part_number(1);
    let wrong = part().body(ByteStream::from_static(b"tampered")).checksum_sha256(sha256(b"promised")).send().await;
    assert_eq!(refusal(wrong), refused(400, "BadDigest"));
    let other = part().body(ByteStream::from_static(b"x")).checksum_algorithm(ChecksumAlgorithm::Crc32).send().await;
    assert_eq!(refusal(other), refused(400, "InvalidRequest"));
    let listed = upload.client.list_parts().bucket(upload.bucket).key("large").upload_id(&upload.id).send().await;
    assert_eq!(listed.unwrap().parts().len(), 0);
    assert_eq!(endpoints.stored_files().unwrap(), 0);
}

#[tokio::test]
async fn an_aborted_upload_leaves_nothing() {
    let endpoints = Endpoints::start().await.unwrap();
    let upload = Upload::begin(&endpoints).await;
    let part = upload.part(1, b"only").await;
    let listed = upload.client.list_multipart_uploads().bucket(upload.bucket).send().await.unwrap();
    assert_eq!(listed.uploads()[0].upload_id(), Some(upload.id.as_str()));
    assert_eq!((endpoints.multipart_uploads(), endpoints.stored_files().unwrap()), (1, 1));
    let abort = upload.client.abort_multipart_upload().bucket(upload.bucket).key("large").upload_id(&upload.id);
    abort.clone().send().await.unwrap();
    assert_eq!((endpoints.multipart_uploads(), endpoints.stored_files().unwrap()), (0, 0));
    assert_eq!(refusal(abort.send().await), refused(404, "NoSuchUpload"));
    assert_eq!(refusal(upload.completion(&[part]).send().await), refused(404, "NoSuchUpload"));
}

#[tokio::test]
async fn one_of_many_racing_completions_wins() {
    let endpoints = Endpoints::start().await.unwrap();
    let mut prepared = Vec::new();
    for content in 0..8_u8 {
        let upload = Upload::begin(&endpoints).await;
        let parts = [upload.part(1, &[content]).await];
        prepared.push(upload.completion(&parts));
    }
    let completions = join_all(prepared.into_iter().map(CompleteMultipartUploadFluentBuilder::send)).await;
    let (won, lost): (Vec<_>, Vec<_>) = completions.into_iter().partition(Result::is_ok);
    assert_eq!(won.len(), 1);
    for completion in lost {
        assert_eq!(refusal(completion), refused(412, "PreconditionFailed"));
    }
    assert_eq!(endpoints.multipart_uploads(), 7);
}
