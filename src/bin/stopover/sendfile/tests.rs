use std::future::{pending, poll_fn};
use std::io::{Seek as _, Write as _};
use std::time::Duration;

use axum::Router;
use axum::response::Response;
use http::Uri;
use http::header::{CONTENT_LENGTH, HeaderValue};
use stopover::errors::FillError;
use stopover::ports::Progress;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpSocket};
use tokio::sync::watch;

use super::*;
use crate::threads::Threads;

const PLAIN: &str = "of no file";

/// Answers `/<first>/<end>` with that part of a file, and any other path with [`PLAIN`].
fn parts_of(file: Arc<File>) -> Router {
    Router::new().fallback(async move |uri: Uri| {
        let ends = uri.path().trim_start_matches('/').split_once('/');
        let ends = ends.and_then(|(first, end)| Some((first.parse().ok()?, end.parse().ok()?)));
        let Some((first, end)) = ends else { return Response::new(Body::from(PLAIN)) };
        let mut answer = Response::new(Body::empty());
        answer.headers_mut().insert(CONTENT_LENGTH, HeaderValue::from(end - first));
        answer.extensions_mut().insert(FilePart::stored(file, first..end));
        answer
    })
}

/// What a client gets that asks for all paths at once, and takes little at a time.
async fn ask(file: Arc<File>, paths: &[&str], lengths: impl Iterator<Item = usize>) -> Vec<Vec<u8>> {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let server = listener.local_addr().unwrap();
    tokio::spawn(crate::serve::run(listener, parts_of(file), None, 9, Threads::current(), pending()));
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

#[tokio::test]
async fn a_client_that_follows_a_fill_gets_what_is_written_and_the_last_byte_once_the_whole_is_right() {
    let content: Vec<u8> = (1..=250).cycle().take(2 * MOST).collect();
    let (file, size) = (Arc::new(tempfile::tempfile().unwrap()), content.len() as u64);
    let growing = |written, verified| Progress::Growing { file: Arc::clone(&file), written, size, verified };
    for verified in [true, false] {
        let (told, progress) = watch::channel(Progress::Waiting);
        let part = FilePart::growing(Arc::clone(&file), 0..size, progress, size);
        let router = Router::new().fallback(async move || {
            let mut answer = Response::new(Body::empty());
            answer.headers_mut().insert(CONTENT_LENGTH, HeaderValue::from(size));
            answer.extensions_mut().insert(part);
            answer
        });
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let mut client = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
        tokio::spawn(crate::serve::run(listener, router, None, 9, Threads::current(), pending()));
        client.write_all(b"GET / HTTP/1.1\r\nhost: a\r\n\r\n").await.unwrap();
        while client.read_u8().await.unwrap() != b'\n' || client.read_u16().await.unwrap() != 0x0d0a {}
        let mut got = Vec::new();
        for end in [1, 1000, MOST + 1, 2 * MOST] {
            (&*file).write_all(&content[got.len()..end]).unwrap();
            told.send_replace(growing(end as u64, false));
            let mut next = vec![0; end.min(content.len() - 1) - got.len()];
            client.read_exact(&mut next).await.unwrap();
            got.extend(next);
        }
        let waiting = tokio::time::timeout(Duration::from_millis(100), client.read_u8()).await;
        assert!(waiting.is_err(), "the last byte has to wait");
        told.send_replace(if verified { growing(size, true) } else { Progress::Failed(FillError::ClaimLost) });
        let ended = client.read_u8().await;
        assert_eq!(ended.ok(), verified.then(|| *content.last().unwrap()));
        assert!(got == content[..content.len() - 1]);
        (&*file).rewind().unwrap();
    }
}

#[tokio::test]
async fn other_connections_have_their_turn_however_quickly_a_client_reads() {
    let file = Arc::new(tempfile::tempfile().unwrap());
    file.set_len(MOST as u64).unwrap();
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let mut sender = FileSender::new(TcpStream::connect(listener.local_addr().unwrap()).await.unwrap());
    let mut client = listener.accept().await.unwrap().0.into_std().unwrap();
    client.set_nonblocking(false).unwrap();
    let reading = std::thread::spawn(move || io::copy(&mut client, &mut io::sink()).unwrap());
    let (mut in_turn, mut longest) = (0, 0);
    for _ in 0..64 {
        *sender.outgoing.0.lock().unwrap() = Some((Arc::clone(&file), 0, MOST));
        let mut unsent = MOST;
        poll_fn(|cx| {
            while unsent > 0 {
                let Poll::Ready(sent) = Pin::new(&mut sender).poll_write(cx, &STAND_IN[..unsent]) else {
                    in_turn = 0;
                    return Poll::Pending;
                };
                let sent = sent.unwrap();
                (unsent, in_turn) = (unsent - sent, in_turn + sent);
                longest = longest.max(in_turn);
            }
            Poll::Ready(())
        })
        .await;
    }
    drop(sender);
    assert_eq!(reading.join().unwrap(), 64 * MOST as u64);
    assert!(longest < TURN + MOST, "{longest}");
}
