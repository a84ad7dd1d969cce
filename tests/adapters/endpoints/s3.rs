//! S3, single objects: nothing becomes visible before it proved right, and at most one conditional writer wins.

use std::time::Duration;

use aws_sdk_s3::{
    Client,
    error::{ProvideErrorMetadata, SdkError},
    presigning::PresigningConfig,
    primitives::ByteStream,
};
use base64::{Engine, prelude::BASE64_STANDARD};
use futures_util::future::join_all;
use sha2::{Digest, Sha256};
use support::aws::{EVERY_OPERATION, Endpoints, Service};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

pub(crate) fn sha256(bytes: &[u8]) -> String {
    BASE64_STANDARD.encode(Sha256::digest(bytes))
}

/// The HTTP status and the error code of a refused call.
pub(crate) fn refusal<T, E>(result: Result<T, SdkError<E>>) -> (u16, String)
where
    SdkError<E>: ProvideErrorMetadata,
{
    let Err(error) = result else { panic!("the call was not refused") };
    let status = error.raw_response().map_or(0, |response| response.status().as_u16());
    (status, error.code().unwrap_or_default().to_owned())
}

pub(crate) fn refused(status: u16, code: &str) -> (u16, String) {
    (status, code.to_owned())
}

async fn read(client: &Client, bucket: &str, key: &str, range: Option<&str>) -> Vec<u8> {
    let answer = client.get_object().bucket(bucket).key(key).set_range(range.map(str::to_owned)).send().await.unwrap();
    answer.body.collect().await.unwrap().to_vec()
}

#[tokio::test]
async fn bytes_with_a_wrong_checksum_are_never_visible() {
    let endpoints = Endpoints::start().await.unwrap();
    let client = endpoints.s3();
    let put = client.put_object().bucket(endpoints.bucket()).key("blob").body(ByteStream::from_static(b"tampered"));
    let put = put.checksum_sha256(sha256(b"promised")).send().await;
    assert_eq!(refusal(put), refused(400, "BadDigest"));
    assert_eq!(endpoints.objects(), Vec::<String>::new());
    assert_eq!(endpoints.stored_files().unwrap(), 0);
}

#[tokio::test]
async fn a_stored_object_reads_back_with_its_checksum_and_headers() {
    let endpoints = Endpoints::start().await.unwrap();
    let (client, bucket) = (endpoints.s3(), endpoints.bucket());
    let put = client.put_object().bucket(bucket).key("a/b").body(ByteStream::from_static(b"some bytes"));
    let put =
        put.checksum_sha256(sha256(b"some bytes")).content_type("application/x").metadata("upstream", "docker.io");
    put.send().await.unwrap();
    let head = client.head_object().bucket(bucket).key("a/b");
    let head = head.checksum_mode(aws_sdk_s3::types::ChecksumMode::Enabled).send().await.unwrap();
    assert_eq!(head.content_length(), Some(10));
    assert_eq!(head.content_type(), Some("application/x"));
    assert_eq!(head.checksum_sha256(), Some(sha256(b"some bytes").as_str()));
    assert_eq!(head.metadata().unwrap()["upstream"], "docker.io");
    assert_eq!(read(&client, bucket, "a/b", None).await, b"some bytes");
    assert_eq!(endpoints.objects(), ["a/b"]);
}

#[tokio::test]
async fn a_body_streamed_with_a_trailing_checksum_is_stored_whole() {
    let endpoints = Endpoints::start().await.unwrap();
    let (client, bucket) = (endpoints.s3(), endpoints.bucket());
    let content: Vec<u8> = (0..3_000_000_u32).map(|n| n.to_le_bytes()[0]).collect();
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), &content).unwrap();
    let body = ByteStream::from_path(file.path()).await.unwrap();
    client.put_object().bucket(bucket).key("streamed").body(body).send().await.unwrap();
    assert_eq!(read(&client, bucket, "streamed", None).await, content);
}

#[tokio::test]
async fn a_body_of_another_length_than_declared_is_never_visible() {
    let endpoints = Endpoints::start().await.unwrap();
    let (client, bucket) = (endpoints.s3(), endpoints.bucket());
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), vec![1; 100_000]).unwrap();
    for declared in ["99999", "100001"] {
        let body = ByteStream::from_path(file.path()).await.unwrap();
        let put = client.put_object().bucket(bucket).key("odd").body(body).customize();
        let put = put.mutate_request(move |request| {
            request.headers_mut().insert("x-amz-decoded-content-length", declared);
        });
        assert_eq!(refusal(put.send().await), refused(400, "IncompleteBody"), "{declared}");
    }
    assert_eq!(endpoints.objects(), Vec::<String>::new());
    assert_eq!(endpoints.stored_files().unwrap(), 0);
}

#[tokio::test]
async fn a_body_cut_short_is_never_visible() {
    let endpoints = Endpoints::start().await.unwrap();
    let client = endpoints.s3();
    let lifetime = PresigningConfig::expires_in(Duration::from_mins(1)).unwrap();
    let put = client.put_object().bucket(endpoints.bucket()).key("short").presigned(lifetime).await.unwrap();
    let uri: http::Uri = put.uri().parse().unwrap();
    let authority = uri.authority().unwrap().as_str();
    let mut connection = tokio::net::TcpStream::connect(authority).await.unwrap();
    let head = format!(
        "PUT {} HTTP/1.1\r\nhost: {authority}\r\ncontent-length: 10\r\n\r\nhalf",
        uri.path_and_query().unwrap()
    );
    connection.write_all(head.as_bytes()).await.unwrap();
    connection.shutdown().await.unwrap();
    let mut answer = String::new();
    connection.read_to_string(&mut answer).await.unwrap();
    assert!(!answer.starts_with("HTTP/1.1 2"), "{answer}");
    assert_eq!(endpoints.calls(Service::S3, "PutObject"), 1);
    assert_eq!(endpoints.objects(), Vec::<String>::new());
    assert_eq!(endpoints.stored_files().unwrap(), 0);
}

#[tokio::test]
async fn one_of_many_racing_writers_wins() {
    let endpoints = Endpoints::start().await.unwrap();
    let (client, bucket) = (endpoints.s3(), endpoints.bucket());
    let writes = (0..32_u8).map(|writer| {
        let put = client.put_object().bucket(bucket).key("contested").if_none_match("*");
        async move { (writer, put.body(ByteStream::from(vec![writer; 1000])).send().await) }
    });
    let (won, lost): (Vec<_>, Vec<_>) = join_all(writes).await.into_iter().partition(|(_, write)| write.is_ok());
    assert_eq!(won.len(), 1);
    for (_, write) in lost {
        assert_eq!(refusal(write), refused(412, "PreconditionFailed"));
    }
    assert_eq!(read(&client, bucket, "contested", None).await, vec![won[0].0; 1000]);
    assert_eq!(endpoints.stored_files().unwrap(), 1);
}

#[tokio::test]
async fn ranges_are_answered_as_asked() {
    let endpoints = Endpoints::start().await.unwrap();
    let (client, bucket) = (endpoints.s3(), endpoints.bucket());
    client.put_object().bucket(bucket).key("k").body(ByteStream::from_static(b"0123456789")).send().await.unwrap();
    for (range, expected) in [("bytes=2-4", "234"), ("bytes=7-", "789"), ("bytes=-2", "89"), ("bytes=8-99", "89")] {
        assert_eq!(read(&client, bucket, "k", Some(range)).await, expected.as_bytes(), "{range}");
    }
    let answer = client.get_object().bucket(bucket).key("k").range("bytes=7-").send().await.unwrap();
    assert_eq!(answer.content_range(), Some("bytes 7-9/10"));
    let beyond = client.get_object().bucket(bucket).key("k").range("bytes=10-").send().await;
    assert_eq!(refusal(beyond), refused(416, "InvalidRange"));
}

#[tokio::test]
async fn what_is_not_there_is_said_to_be_missing() {
    let endpoints = Endpoints::start().await.unwrap();
    let (client, bucket) = (endpoints.s3(), endpoints.bucket());
    assert_eq!(refusal(client.get_object().bucket(bucket).key("none").send().await), refused(404, "NoSuchKey"));
    assert_eq!(refusal(client.head_object().bucket(bucket).key("none").send().await).0, 404);
    assert_eq!(refusal(client.get_object().bucket("elsewhere").key("none").send().await), refused(404, "NoSuchBucket"));
    client.delete_object().bucket(bucket).key("none").send().await.unwrap();
}

#[tokio::test]
async fn a_listing_goes_on_page_by_page() {
    let endpoints = Endpoints::start().await.unwrap();
    let (client, bucket) = (endpoints.s3(), endpoints.bucket());
    for key in ["blobs/1", "blobs/2", "blobs/3", "other"] {
        client.put_object().bucket(bucket).key(key).body(ByteStream::from_static(b"x")).send().await.unwrap();
    }
    let mut pages = client.list_objects_v2().bucket(bucket).prefix("blobs/").into_paginator().page_size(2).send();
    let mut listed = Vec::new();
    while let Some(page) = pages.next().await {
        listed.push(page.unwrap().contents().iter().map(|object| object.key().unwrap().to_owned()).collect::<Vec<_>>());
    }
    assert_eq!(listed, [vec!["blobs/1", "blobs/2"], vec!["blobs/3"]]);
    client.delete_object().bucket(bucket).key("blobs/2").send().await.unwrap();
    assert_eq!(endpoints.objects(), ["blobs/1", "blobs/3", "other"]);
    assert_eq!(endpoints.stored_files().unwrap(), 3);
}

#[tokio::test]
async fn a_wrong_secret_or_none_is_refused() {
    let endpoints = Endpoints::start().await.unwrap();
    let stranger = Client::new(&endpoints.sdk_config_signed_with("guessed"));
    let read = stranger.get_object().bucket(endpoints.bucket()).key("k").send().await;
    assert_eq!(refusal(read), refused(403, "SignatureDoesNotMatch"));
    let url = environment(&endpoints, "AWS_ENDPOINT_URL_S3");
    let anonymous = support::http().get(format!("{url}/{}/k", endpoints.bucket())).send().await.unwrap();
    assert_eq!(anonymous.status(), 403);
    assert!(anonymous.text().await.unwrap().contains("<Code>AccessDenied</Code>"));
}

fn environment(endpoints: &Endpoints, name: &str) -> String {
    endpoints.environment().into_iter().find(|(key, _)| key == name).unwrap().1
}

#[tokio::test]
async fn an_injected_outage_is_seen_by_the_client_and_ends() {
    let endpoints = Endpoints::start().await.unwrap();
    let (client, bucket) = (endpoints.s3(), endpoints.bucket());
    endpoints.fail_next(Service::S3, EVERY_OPERATION, usize::MAX);
    assert_eq!(refusal(client.get_object().bucket(bucket).key("k").send().await), refused(500, "InternalError"));
    endpoints.heal();
    endpoints.throttle_next(Service::S3, "GetObject", 3);
    assert_eq!(refusal(client.get_object().bucket(bucket).key("k").send().await), refused(503, "SlowDown"));
    assert_eq!(refusal(client.get_object().bucket(bucket).key("k").send().await), refused(404, "NoSuchKey"));
}

#[tokio::test]
async fn a_condition_that_is_not_modelled_is_refused_not_ignored() {
    let endpoints = Endpoints::start().await.unwrap();
    let (client, bucket) = (endpoints.s3(), endpoints.bucket());
    let put = client.put_object().bucket(bucket).key("k").if_match("\"0123\"").body(ByteStream::from_static(b"x"));
    assert_eq!(refusal(put.send().await), refused(501, "NotImplemented"));
    assert_eq!(endpoints.objects(), Vec::<String>::new());
}
