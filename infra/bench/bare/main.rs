//! A server that does nothing but answer from memory, with the headers of this cache: what hyper itself costs.
//!
//! `bare PORT MANIFEST BLOB`: two files, the second one for paths of blobs.

use std::convert::Infallible;
use std::net::Ipv4Addr;

use bytes::Bytes;
use http::header::{CONTENT_TYPE, ETAG, HeaderName, HeaderValue};
use http::{Request, Response};
use http_body_util::Full;
use hyper::body::Incoming;
use hyper::server::conn::http1::Builder;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use tokio::net::TcpListener;

const DIGEST: &str = "sha256:0000000000000000000000000000000000000000000000000000000000000000";
const HEADERS: [(HeaderName, &str); 6] = [
    (HeaderName::from_static("oci-namespace"), "test.local"),
    (HeaderName::from_static("x-stopover"), "hit"),
    (HeaderName::from_static("docker-content-digest"), DIGEST),
    (ETAG, DIGEST),
    (HeaderName::from_static("docker-distribution-api-version"), "registry/2.0"),
    (CONTENT_TYPE, "application/vnd.oci.image.manifest.v1+json"),
];

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [port, manifest, blob] = arguments.as_slice() else { anyhow::bail!("bare PORT MANIFEST BLOB") };
    let (manifest, blob) = (Bytes::from(std::fs::read(manifest)?), Bytes::from(std::fs::read(blob)?));
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, port.parse()?)).await?;
    loop {
        let (connection, _) = listener.accept().await?;
        connection.set_nodelay(true)?;
        let (manifest, blob) = (manifest.clone(), blob.clone());
        let service = service_fn(move |request: Request<Incoming>| {
            let content = if request.uri().path().contains("/blobs/") { &blob } else { &manifest };
            let mut answer = Response::new(Full::new(content.clone()));
            let headers = HEADERS.into_iter().map(|(name, value)| (name, HeaderValue::from_static(value)));
            answer.headers_mut().extend(headers);
            async { Ok::<_, Infallible>(answer) }
        });
        tokio::spawn(async move { Builder::new().serve_connection(TokioIo::new(connection), service).await });
    }
}
