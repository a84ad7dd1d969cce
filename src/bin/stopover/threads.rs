//! The threads that serve connections.

use std::future::{pending, poll_fn};
use std::io;
use std::pin::pin;
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
    /// One for each processor, until the process ends.
    pub(crate) fn start() -> io::Result<Self> {
        let processors = std::thread::available_parallelism()?.get();
        let start = |_| {
            // Each thread that has read a file keeps the memory of a buffer.
            let runtime = Builder::new_current_thread().enable_all().max_blocking_threads(8).build()?;
            let thread = Thread { runtime: runtime.handle().clone(), connections: Arc::default() };
            std::thread::Builder::new()
                .name("connections".to_owned())
                .spawn(move || runtime.block_on(pending::<()>()))?;
            Ok(thread)
        };
        (0..processors).map(start).collect::<io::Result<_>>().map(Self)
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

/// Polls a future within a runtime that is not its thread's: what the future spawns, opens and waits for is there.
pub(crate) async fn inside<F: Future>(runtime: Handle, future: F) -> F::Output {
    let mut future = pin!(future);
    poll_fn(|cx| {
        let _inside = runtime.enter();
        future.as_mut().poll(cx)
    })
    .await
}
