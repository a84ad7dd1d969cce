use std::future::pending;
use std::io::Write as _;

use axum::Router;
use axum::response::Response;
use http::Uri;
use http::header::{CONTENT_LENGTH, HeaderValue};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpSocket};

use super::*;

const PLAIN: &str = "of no file";

/// Answers `/<first>/<end>` with that part of a file, and any other path with [`PLAIN`].
fn parts_of(file: Arc<File>) -> Router {
    Router::new().fallback(async move |uri: Uri| {
        let ends = uri.path().trim_start_matches('/').split_once('/');
        let ends = ends.and_then(|(first, end)| Some((first.parse().ok()?, end.parse().ok()?)));
        let Some((first, end)) = ends else { return Response::new(Body::from(PLAIN)) };
        let mut answer = Response::new(Body::empty());
        answer.headers_mut().insert(CONTENT_LENGTH, HeaderValue::from(end - first));
        answer.extensions_mut().insert(StoredPart { file, first, end });
        answer
    })
}

/// What a client gets that asks for all paths at once, and takes little at a time.
async fn ask(file: Arc<File>, paths: &[&str], lengths: impl Iterator<Item = usize>) -> Vec<Vec<u8>> {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let server = listener.local_addr().unwrap();
    tokio::spawn(crate::serve::run(listener, parts_of(file), None, 9, pending()));
    let client = TcpSocket::new_v4().unwrap();
    client.set_recv_buffer_size(16 * 1024).unwrap();
    let mut client = client.connect(server).await.unwrap();
    let requests = paths.iter().map(|path| ["GET ", path, " HTTP/1.1\r\nhost: a\r\n\r\n"].concat()).collect::<String>();
    client.write_all(requests.as_bytes()).await.unwrap();
    let mut answers = Vec::new();
    for length in lengths {
        let mut head = Vec::new();
        while !head.ends_with(b"\r\n\r\n") {
            head.push(client.read_u8().await.unwrap());
        }
        let mut body = vec![0; length];
        client.read_exact(&mut body).await.unwrap();
        answers.push(body);
    }
    answers
}

#[tokio::test]
async fn a_client_gets_the_bytes_of_the_file_and_never_those_that_stand_for_them() {
    let content: Vec<u8> = (1..=250).cycle().take(3 * MOST + 123).collect();
    let mut file = tempfile::tempfile().unwrap();
    file.write_all(&content).unwrap();
    let all = content.len();
    let parts = [(0, all), (0, 0), (5, 300_000), (MOST - 1, MOST + 1), (all - 1, all), (0, 0), (1, all - 1), (0, MOST)];
    let path = |&(first, end): &(usize, usize)| if end == 0 { "/v2/".to_owned() } else { format!("/{first}/{end}") };
    let paths: Vec<String> = parts.iter().map(path).collect();
    let paths: Vec<&str> = paths.iter().map(String::as_str).collect();
    let length = |&(first, end): &(usize, usize)| if end == 0 { PLAIN.len() } else { end - first };
    let answers = ask(Arc::new(file), &paths, parts.iter().map(length)).await;
    for (answer, (first, end)) in answers.iter().zip(parts) {
        let expected = if end == 0 { PLAIN.as_bytes() } else { &content[first..end] };
        assert!(answer == expected, "{first} to {end}");
    }
    assert_eq!(answers.len(), parts.len());
}
