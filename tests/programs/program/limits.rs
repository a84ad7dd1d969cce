//! What no client would send.

use std::time::Duration;

use anyhow::{Context as _, ensure};
use support::program::Installation;
use support::scripted::Scripted;
use support::world::DEADLINE;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

use super::{answers, without_upstream};

#[tokio::test]
async fn requests_that_no_client_of_http_would_send_are_refused_and_harm_nothing() -> anyhow::Result<()> {
    let upstream = Scripted::start()?;
    let installation = Installation::for_upstream(&upstream.url())?;
    let stopover = installation.start().await?;
    let long = |count: usize| "a".repeat(count).into_bytes();
    for (target, expected) in [
        (long(65_000), &["400"] as &[&str]),
        (long(70_000), &["414"]),
        (long(2_000_000), &["414", "431"]),
        (b"..".to_vec(), &["400"]),
        (b"\x00".to_vec(), &["400"]),
        ("\u{e9}".as_bytes().to_vec(), &["400"]),
        (b"\xc0\xaf".to_vec(), &["400"]),
        (b"\xff\xfe".to_vec(), &["400"]),
        (b"a\tb".to_vec(), &["400"]),
        (b"%00".to_vec(), &["400"]),
        (b"<>\"{}|\\^`".to_vec(), &["400"]),
    ] {
        let request =
            [b"GET /v2/test.local/", &target[..], b"/manifests/1 HTTP/1.1\r\nhost: localhost\r\n\r\n"].concat();
        let mut connection = TcpStream::connect(stopover.address()).await?;
        // A server that has read enough closes the connection while the rest is sent.
        let sent = connection.write_all(&request).await;
        let mut answer = [0; 12];
        let read = tokio::time::timeout(DEADLINE, connection.read_exact(&mut answer)).await.context("no answer")?;
        let shown = String::from_utf8_lossy(&target[..target.len().min(20)]).into_owned();
        read.with_context(|| format!("{shown}: {sent:?}"))?;
        let status = String::from_utf8_lossy(&answer[9..]).into_owned();
        ensure!(expected.contains(&status.as_str()), "{shown} of {} bytes: {status}", target.len());
    }
    ensure!(upstream.requests().is_empty() && !stopover.log().contains("panicked"), "{}", stopover.log());
    answers(&stopover).await
}

#[tokio::test]
async fn a_client_that_says_nothing_holds_no_connection_for_ever() -> anyhow::Result<()> {
    let stopover = without_upstream()?.start().await?;
    let mut connection = TcpStream::connect(stopover.address()).await?;
    let mut answer = Vec::new();
    // The cache waits for half a minute.
    let closed = tokio::time::timeout(Duration::from_mins(1), connection.read_to_end(&mut answer)).await;
    ensure!(closed.context("the connection is held for ever")?? == 0, "{}", String::from_utf8_lossy(&answer));
    answers(&stopover).await
}

#[tokio::test]
async fn heads_and_bodies_that_are_too_large_are_refused() -> anyhow::Result<()> {
    let stopover = without_upstream()?.start().await?;
    let lines = |count: usize| "x-line: 1\r\n".repeat(count);
    let long = |count: usize| format!("x-long: {}\r\n", "a".repeat(count));
    for (headers, status) in [
        (lines(90), "200"),
        (lines(101), "431"),
        (long(60_000), "200"),
        (long(200_000), "431"),
        (long(4_000_000), "431"),
    ] {
        let mut connection = TcpStream::connect(stopover.address()).await?;
        let request = format!("GET /v2/ HTTP/1.1\r\nhost: localhost\r\n{headers}\r\n");
        // Who has read enough closes the connection while the rest is sent.
        let sent = connection.write_all(request.as_bytes()).await;
        let mut answer = [0; 12];
        let read = tokio::time::timeout(DEADLINE, connection.read_exact(&mut answer)).await.context("no answer")?;
        read.with_context(|| format!("{} bytes: {sent:?}", headers.len()))?;
        ensure!(&answer[9..] == status.as_bytes(), "{} bytes: {}", headers.len(), String::from_utf8_lossy(&answer));
    }
    let client = stopover::values::crypto::http_client().no_proxy().build()?;
    for (path, most) in [("/token", 32 * 1024), ("/_stopover/prefetch", 1024 * 1024)] {
        let url = format!("http://{}{path}", stopover.address());
        let answer = client.post(url).body(vec![b'a'; most + 1]).send().await?;
        ensure!(answer.status() == 413, "{path}: {}", answer.status());
    }
    answers(&stopover).await
}
