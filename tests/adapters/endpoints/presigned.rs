//! Presigned URLs: bound to method, object and time, and to be used alone.

use std::time::{Duration, SystemTime};

use aws_sdk_s3::{presigning::PresigningConfig, primitives::ByteStream};
use reqwest::{Client, StatusCode};
use support::aws::Endpoints;

async fn stored() -> Endpoints {
    let endpoints = Endpoints::start().await.unwrap();
    let put = endpoints.s3().put_object().bucket(endpoints.bucket()).key("blobs/1");
    put.body(ByteStream::from_static(b"0123456789")).send().await.unwrap();
    endpoints
}

async fn presigned(endpoints: &Endpoints, from: SystemTime) -> String {
    let lifetime = PresigningConfig::builder().start_time(from).expires_in(Duration::from_mins(1)).build().unwrap();
    let get = endpoints.s3().get_object().bucket(endpoints.bucket()).key("blobs/1");
    get.presigned(lifetime).await.unwrap().uri().to_owned()
}

fn client() -> Client {
    stopover::values::crypto::http_client().no_proxy().build().unwrap()
}

#[tokio::test]
async fn a_presigned_url_reads_the_object_whole_or_in_part() {
    let endpoints = stored().await;
    let url = presigned(&endpoints, SystemTime::now()).await;
    let whole = client().get(&url).send().await.unwrap();
    assert_eq!(whole.headers()["content-length"], "10");
    assert_eq!(whole.bytes().await.unwrap(), "0123456789");
    let part = client().get(&url).header("range", "bytes=8-").send().await.unwrap();
    assert_eq!(part.status(), StatusCode::PARTIAL_CONTENT);
    assert_eq!(part.headers()["content-range"], "bytes 8-9/10");
    assert_eq!(part.bytes().await.unwrap(), "89");
}

#[tokio::test]
async fn head_on_a_url_presigned_for_get_is_refused() {
    let endpoints = stored().await;
    let url = presigned(&endpoints, SystemTime::now()).await;
    assert_eq!(client().head(&url).send().await.unwrap().status(), StatusCode::FORBIDDEN);
}

#[tokio::test]
async fn an_expired_or_altered_url_is_refused() {
    let endpoints = stored().await;
    let expired = presigned(&endpoints, SystemTime::now() - Duration::from_hours(1)).await;
    let answer = client().get(&expired).send().await.unwrap();
    assert_eq!(answer.status(), StatusCode::FORBIDDEN);
    assert!(answer.text().await.unwrap().contains("Request has expired"));
    let url = presigned(&endpoints, SystemTime::now()).await;
    for altered in [
        url.replace("blobs/1", "blobs/2"),
        url.replace("X-Amz-Expires=60", "X-Amz-Expires=600"),
        format!("{url}&response-content-type=text%2Fhtml"),
    ] {
        assert_ne!(altered, url);
        assert_eq!(client().get(&altered).send().await.unwrap().status(), StatusCode::FORBIDDEN, "{altered}");
    }
}

#[tokio::test]
async fn a_presigned_url_with_an_authorization_header_is_refused() {
    let endpoints = stored().await;
    let url = presigned(&endpoints, SystemTime::now()).await;
    let answer = client().get(&url).header("authorization", "Bearer kept-across-the-redirect").send().await.unwrap();
    assert_eq!(answer.status(), StatusCode::BAD_REQUEST);
    let body = answer.text().await.unwrap();
    assert!(
        body.contains("<Code>InvalidArgument</Code>") && body.contains("Only one auth mechanism allowed"),
        "{body}"
    );
}
