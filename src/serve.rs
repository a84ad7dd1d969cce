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
