//! Where the program takes connections: of clients over TCP, of operators of this machine over a Unix socket.

use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::time::Duration;

use http::Extensions;
use rustix::process::geteuid;
use stopover::http::LocalOperator;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, TcpStream, UnixListener, UnixStream};

use crate::sendfile::{FileSender, Outgoing};

/// Where connections are taken.
pub(crate) trait Listener: Sync {
    /// A connection that no thread serves yet.
    type Accepted: Send + 'static;
    type Connection: AsyncRead + AsyncWrite + Send + 'static;

    /// The next connection, and the address that it is from.
    fn next(&self) -> impl Future<Output = io::Result<(Self::Accepted, SocketAddr)>> + Send;

    /// A connection of the thread that calls this.
    fn connect(accepted: Self::Accepted) -> io::Result<Self::Connection>;

    /// Marks a request that came this way.
    fn mark(request: &mut Extensions);

    /// Where a connection is told which file to send, if it can.
    fn outgoing(_: &Self::Connection) -> Option<Outgoing> {
        None
    }
}

impl Listener for TcpListener {
    type Accepted = std::net::TcpStream;
    type Connection = FileSender;

    async fn next(&self) -> io::Result<(Self::Accepted, SocketAddr)> {
        let (connection, address) = self.accept().await?;
        // A small answer must not wait until the client acknowledges the one before (Nagle's algorithm).
        if let Err(error) = connection.set_nodelay(true) {
            tracing::debug!(%error, "TCP_NODELAY was refused");
        }
        Ok((connection.into_std()?, address))
    }

    fn connect(accepted: Self::Accepted) -> io::Result<FileSender> {
        TcpStream::from_std(accepted).map(FileSender::new)
    }

    fn mark(_: &mut Extensions) {}

    fn outgoing(connection: &FileSender) -> Option<Outgoing> {
        Some(connection.outgoing.clone())
    }
}

impl Listener for UnixListener {
    type Accepted = std::os::unix::net::UnixStream;
    type Connection = UnixStream;

    async fn next(&self) -> io::Result<(Self::Accepted, SocketAddr)> {
        let (connection, _) = self.accept().await?;
        // The mode of the socket says so, too, but not until it has one, and not if it was changed.
        let user = connection.peer_cred()?.uid();
        if user != 0 && user != geteuid().as_raw() {
            tracing::warn!(user, "another user than that of this process was refused as its operator");
            return Err(io::ErrorKind::ConnectionRefused.into());
        }
        Ok((connection.into_std()?, SocketAddr::from((Ipv4Addr::LOCALHOST, 0))))
    }

    fn connect(accepted: Self::Accepted) -> io::Result<UnixStream> {
        UnixStream::from_std(accepted)
    }

    fn mark(request: &mut Extensions) {
        request.insert(LocalOperator);
    }
}

/// The next connection. If the process has too many files open, waits until other connections have ended.
pub(crate) async fn accept<L: Listener>(listener: &L) -> (L::Accepted, SocketAddr) {
    use io::ErrorKind::{ConnectionAborted, ConnectionRefused, ConnectionReset};
    loop {
        match listener.next().await {
            Ok(accepted) => return accepted,
            Err(error) if matches!(error.kind(), ConnectionAborted | ConnectionRefused | ConnectionReset) => {}
            Err(error) => {
                tracing::error!(%error, "no connection can be taken");
                tokio::time::sleep(Duration::from_secs(1)).await;
            }
        }
    }
}
