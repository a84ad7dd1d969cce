//! Servers of the tests: on 127.0.0.1, an ephemeral port, and a runtime of their own.

use std::{
    future::Future,
    net::{Ipv4Addr, SocketAddr},
    time::Duration,
};

use axum::{Router, serve::ListenerExt};
use tokio::{net::TcpListener, runtime::Runtime, task::JoinHandle};

/// Only blocking work can take time: it is short here, reads and writes of files.
const SHUTDOWN_LIMIT: Duration = Duration::from_secs(5);

/// A runtime beside the test's own, so that a blocking test cannot stall a server it talks to.
///
/// Dropping it ends everything on it at once, open connections included: nothing drains, and nothing is left
/// when the drop returns.
pub(crate) struct Loopback(Option<Runtime>);

impl Loopback {
    pub(crate) fn new(name: &str) -> std::io::Result<Self> {
        tokio::runtime::Builder::new_multi_thread()
            .worker_threads(2)
            .thread_name(name)
            .enable_all()
            .build()
            .map(|runtime| Self(Some(runtime)))
    }

    fn runtime(&self) -> &Runtime {
        self.0.as_ref().expect("only drop takes the runtime")
    }

    /// Reserves a port, for servers that need to know their own address.
    pub(crate) fn bind(&self) -> std::io::Result<(TcpListener, SocketAddr)> {
        let listener = std::net::TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?;
        listener.set_nonblocking(true)?;
        let address = listener.local_addr()?;
        let _context = self.runtime().enter();
        Ok((TcpListener::from_std(listener)?, address))
    }

    pub(crate) fn serve(&self, listener: TcpListener, router: Router) {
        // Without it a small answer waits 40 ms for the client's delayed acknowledgement.
        let listener = listener.tap_io(|stream| {
            let _ = stream.set_nodelay(true);
        });
        self.spawn(async move { axum::serve(listener, router).await });
    }

    pub(crate) fn spawn<F>(&self, future: F) -> JoinHandle<F::Output>
    where
        F: Future<Output: Send> + Send + 'static,
    {
        self.runtime().spawn(future)
    }
}

impl Drop for Loopback {
    fn drop(&mut self) {
        if let Some(runtime) = self.0.take() {
            // Asynchronous code may not wait for the end of a runtime, another thread may.
            let _ = std::thread::spawn(move || runtime.shutdown_timeout(SHUTDOWN_LIMIT)).join();
        }
    }
}
