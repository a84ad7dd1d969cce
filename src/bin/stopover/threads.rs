//! The threads that serve connections: 1.2 to 1.3 times as many small answers with 16 connections as where the threads of
//! one runtime take tasks from each other, 1.05 with 256.

use std::future::pending;
use std::io;
use std::num::NonZeroUsize;
use std::sync::Arc;

use tokio::runtime::{Builder, Handle};

/// Threads with an event loop each. A connection stays with one of them, so that no other thread is woken for what it
/// reads and writes.
#[derive(Clone)]
pub(crate) struct Threads(Vec<Thread>);

#[derive(Clone)]
struct Thread {
    runtime: Handle,
    /// Has a clone for each connection.
    connections: Arc<()>,
}

impl Threads {
    /// So many, until the process ends.
    pub(crate) fn start(count: NonZeroUsize) -> io::Result<Self> {
        let start = |_| {
            // Each thread that has read a file keeps the memory of a buffer.
            let runtime = Builder::new_current_thread().enable_all().max_blocking_threads(8).build()?;
            let thread = Thread { runtime: runtime.handle().clone(), connections: Arc::default() };
            std::thread::Builder::new()
                .name("connections".to_owned())
                .spawn(move || runtime.block_on(pending::<()>()))?;
            Ok(thread)
        };
        (0..count.get()).map(start).collect::<io::Result<_>>().map(Self)
    }

    /// None but those of the runtime that this is called in.
    #[cfg(test)]
    pub(crate) fn current() -> Self {
        Self(vec![Thread { runtime: Handle::current(), connections: Arc::default() }])
    }

    /// Serves a connection where there are the fewest.
    pub(crate) fn spawn(&self, connection: impl Future<Output = ()> + Send + 'static) {
        let Some(thread) = self.0.iter().min_by_key(|thread| Arc::strong_count(&thread.connections)) else { return };
        let counted = Arc::clone(&thread.connections);
        thread.runtime.spawn(async move {
            connection.await;
            drop(counted);
        });
    }
}

#[cfg(test)]
mod tests {
    use std::thread;

    use axum::Router;
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    use tokio::net::{TcpListener, TcpStream};

    use super::*;

    /// The threads that answer a request, and that run what it spawns.
    async fn threads(connection: &mut TcpStream) -> (String, String) {
        connection.write_all(b"GET / HTTP/1.1\r\nhost: a\r\n\r\n").await.unwrap();
        let mut answer = [0; 512];
        let length = connection.read(&mut answer).await.unwrap();
        let answer = String::from_utf8_lossy(&answer[..length]).into_owned();
        let (answering, spawned) = answer.split_once("\r\n\r\n").unwrap().1.split_once(' ').unwrap();
        (answering.to_owned(), spawned.to_owned())
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 1)]
    async fn a_connection_stays_with_one_thread_and_what_its_requests_begin_is_of_the_program() {
        let id = || format!("{:?}", thread::current().id());
        let both = move || async move {
            let answering = id();
            format!("{answering} {}", tokio::spawn(async move { id() }).await.unwrap())
        };
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let (server, started) =
            (listener.local_addr().unwrap(), Threads::start(NonZeroUsize::new(2).unwrap()).unwrap());
        tokio::spawn(crate::serve::run(listener, Router::new().fallback(both), None, 9, started, pending()));
        let program = tokio::spawn(async move { id() }).await.unwrap();
        let (mut one, mut other) =
            (TcpStream::connect(server).await.unwrap(), TcpStream::connect(server).await.unwrap());
        let (of_one, of_other) = (threads(&mut one).await, threads(&mut other).await);
        assert!(of_one.0 != of_other.0 && ![&of_one.0, &of_other.0].contains(&&program));
        assert_eq!([&of_one.1, &of_other.1], [&program; 2]);
        assert_eq!((threads(&mut one).await, threads(&mut other).await), (of_one, of_other));
    }
}
