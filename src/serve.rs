//! The program's own HTTP server: how much, and how slowly, a client may send before the cache looks at it.

use std::io;
use std::net::SocketAddr;
use std::pin::pin;
use std::time::Duration;

use axum::extract::ConnectInfo;
use axum::{Extension, Router};
use hyper::server::conn::http1::Builder;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::server::graceful::GracefulShutdown;
use hyper_util::service::TowerToHyperService;
use tokio::net::{TcpListener, TcpStream};

/// How long a client may take for the head of a request, and how long a connection may lie idle.
const HEAD: Duration = Duration::from_secs(30);

/// The most bytes of the head of a request (431), and what is read of a connection ahead of whoever wants it.
const MAX_HEAD: usize = 128 * 1024;

/// The most lines of a head (431): clients send about ten, proxies add as many.
const MAX_HEADERS: usize = 100;

/// Answers connections until `stop` is ready, and then those that have begun a request.
pub(crate) async fn run(listener: TcpListener, router: Router, stop: impl Future<Output = ()>) {
    let mut server = Builder::new();
    server.timer(TokioTimer::new()).header_read_timeout(HEAD).max_buf_size(MAX_HEAD).max_headers(MAX_HEADERS);
    let connections = GracefulShutdown::new();
    let mut stop = pin!(stop);
    loop {
        let (connection, address) = tokio::select! {
            accepted = accept(&listener) => accepted,
            () = &mut stop => break,
        };
        // Small answers must not wait for the acknowledgement of earlier ones.
        if let Err(error) = connection.set_nodelay(true) {
            tracing::debug!(%error, "TCP_NODELAY was refused");
        }
        let service = TowerToHyperService::new(router.clone().layer(Extension(ConnectInfo(address))));
        let answered = connections.watch(server.serve_connection(TokioIo::new(connection), service));
        tokio::spawn(async move {
            if let Err(error) = answered.await {
                tracing::debug!(caller = %address.ip(), %error, "a connection broke off");
            }
        });
    }
    drop(listener);
    connections.shutdown().await;
}

/// The next connection. Where there is no room for it (too many files are open), there will be once others have ended.
async fn accept(listener: &TcpListener) -> (TcpStream, SocketAddr) {
    use io::ErrorKind::{ConnectionAborted, ConnectionRefused, ConnectionReset};
    loop {
        match listener.accept().await {
            Ok(accepted) => return accepted,
            Err(error) if matches!(error.kind(), ConnectionAborted | ConnectionRefused | ConnectionReset) => {}
            Err(error) => {
                tracing::error!(%error, "no connection can be taken");
                tokio::time::sleep(Duration::from_secs(1)).await;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::future::pending;
    use std::path::Path;
    use std::sync::Arc;

    use stopover::config::{Cold, Config};
    use stopover::local::Local;
    use stopover::time::Clock;
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    use tokio::time::{Instant, timeout};

    use super::*;

    /// What comes back for these bytes until the connection is closed, and how long that takes. Time is paused: it passes
    /// once nothing else is to be done.
    async fn until_closed(server: SocketAddr, request: &str) -> (String, Duration) {
        let mut connection = TcpStream::connect(server).await.unwrap();
        let begun = Instant::now();
        connection.write_all(request.as_bytes()).await.unwrap();
        let mut answer = String::new();
        let closed = timeout(Duration::from_hours(1), connection.read_to_string(&mut answer)).await;
        closed.expect("the connection is held for ever").unwrap();
        (answer, begun.elapsed())
    }

    #[tokio::test(start_paused = true)]
    async fn heads_bodies_and_idle_connections_have_thirty_seconds() {
        let data = tempfile::tempdir().unwrap();
        let text = "[access]\nanonymous = true\nrobots = true";
        let mut config = Config::parse(text, Path::new("stopover.toml"), Cold::Follow, |_| unreachable!()).unwrap();
        config.data_dir = data.path().to_owned();
        let local = Local::open(config, Clock::default()).await.unwrap();
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let server = listener.local_addr().unwrap();
        let running = tokio::spawn(run(listener, stopover::http::router(Arc::clone(&local.cache)), pending()));
        let body = "HTTP/1.1\r\nhost: a\r\ncontent-length: 100\r\n\r\n{";
        for (request, answered) in [
            (String::new(), ""),
            ("GET /v2/ HTTP/1.1\r\nhost: a\r\nx-slow:".to_owned(), ""),
            (format!("POST /token {body}"), "HTTP/1.1 4"),
            (format!("POST /_stopover/prefetch {body}"), "HTTP/1.1 4"),
            ("GET /v2/ HTTP/1.1\r\nhost: a\r\n\r\n".to_owned(), "HTTP/1.1 401 "),
        ] {
            let (answer, after) = until_closed(server, &request).await;
            assert!(if answered.is_empty() { answer.is_empty() } else { answer.starts_with(answered) }, "{answer}");
            assert!((HEAD..HEAD + Duration::from_secs(1)).contains(&after), "{request:?}: after {after:?}");
        }
        running.abort();
        local.stop(Duration::ZERO).await;
    }
}
