//! The threads that serve connections. Beside threads that divide connections evenly they give 1.2 to 1.3 times as many small
//! answers with 16 connections, and about as many with 256: on two processors, of which the client had one (docs/explanation/benchmarks.md).

use std::future::pending;
use std::io;
use std::num::NonZeroUsize;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use tokio::runtime::{Builder, Handle};

/// How long a thread is watched before its load is judged anew.
const LATELY: Duration = Duration::from_millis(50);

/// How many connections more than the others the first thread may have: of those that come at once none shows yet how much
/// it will ask for, and none moves later. As many as the clients of one node open.
const AHEAD: usize = 16;

/// Threads with an event loop each. A connection stays with one of them, so that no other thread is woken for what it
/// reads and writes.
#[derive(Clone)]
pub(crate) struct Threads {
    all: Vec<Thread>,
    load_of_first: Arc<Mutex<Load>>,
}

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
            let handle = runtime.handle().clone();
            std::thread::Builder::new()
                .name("connections".to_owned())
                .spawn(move || runtime.block_on(pending::<()>()))?;
            Ok(handle)
        };
        (0..count.get()).map(start).collect::<io::Result<_>>().map(Self::of)
    }

    /// None but those of the runtime that this is called in.
    #[cfg(test)]
    pub(crate) fn current() -> Self {
        Self::of(vec![Handle::current()])
    }

    fn of(runtimes: Vec<Handle>) -> Self {
        let thread = |runtime| Thread { runtime, connections: Arc::default() };
        let load = Load { since: Instant::now(), busy: Duration::ZERO, is_high: false };
        Self { all: runtimes.into_iter().map(thread).collect(), load_of_first: Arc::new(Mutex::new(load)) }
    }

    /// Serves a connection: where there are the fewest, but by the first thread as long as that has time and is not far ahead.
    /// One that works finds more to do each time that it looks, and sleeps less; others are not woken for little.
    pub(crate) fn spawn(&self, connection: impl Future<Output = ()> + Send + 'static) {
        let has_time = |first: &&Thread| {
            let busy = first.runtime.metrics().worker_total_busy_duration(0);
            let mut load = self.load_of_first.lock().unwrap_or_else(PoisonError::into_inner);
            load.note(busy, Instant::now());
            !load.is_high
        };
        let count = |thread: &Thread| Arc::strong_count(&thread.connections);
        let Some(fewest) = self.all.iter().min_by_key(|thread| count(thread)) else { return };
        let first = self.all.first().filter(|first| count(first) < count(fewest) + AHEAD);
        let thread = first.filter(has_time).unwrap_or(fewest);
        let counted = Arc::clone(&thread.connections);
        thread.runtime.spawn(async move {
            connection.await;
            drop(counted);
        });
    }
}

/// How busy a thread is.
struct Load {
    since: Instant,
    /// For how long it had been, then.
    busy: Duration,
    /// Whether it was busy for more than half of the time before.
    is_high: bool,
}

impl Load {
    fn note(&mut self, busy: Duration, now: Instant) {
        let passed = now.saturating_duration_since(self.since);
        if passed >= LATELY {
            *self = Self { since: now, busy, is_high: busy.saturating_sub(self.busy) > passed / 2 };
        }
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
            // Work: the thread does nothing else meanwhile.
            thread::sleep(LATELY * 2);
            let answering = id();
            format!("{answering} {}", tokio::spawn(async move { id() }).await.unwrap())
        };
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let (server, started) =
            (listener.local_addr().unwrap(), Threads::start(NonZeroUsize::new(2).unwrap()).unwrap());
        tokio::spawn(crate::serve::run(listener, Router::new().fallback(both), None, 9, started, pending()));
        let program = tokio::spawn(async move { id() }).await.unwrap();
        let mut one = TcpStream::connect(server).await.unwrap();
        let of_one = threads(&mut one).await;
        // A slow machine may take longer to connect than the thread has worked.
        let another = async {
            loop {
                threads(&mut one).await;
                let mut other = TcpStream::connect(server).await.unwrap();
                let of_other = threads(&mut other).await;
                if of_other.0 != of_one.0 {
                    break (other, of_other);
                }
            }
        };
        let another = tokio::time::timeout(Duration::from_secs(30), another).await;
        let (mut other, of_other) = another.expect("a second thread serves once the first works");
        assert!(![&of_one.0, &of_other.0].contains(&&program));
        assert_eq!([&of_one.1, &of_other.1], [&program; 2]);
        assert_eq!((threads(&mut one).await, threads(&mut other).await), (of_one, of_other));
    }

    #[test]
    fn a_load_is_high_when_more_than_half_of_the_time_was_work_of_late() {
        let begun = Instant::now();
        let mut load = Load { since: begun, busy: Duration::ZERO, is_high: false };
        for (after, busy, is_high) in [(1, 1, false), (100, 51, true), (120, 51, true), (200, 100, false)] {
            load.note(Duration::from_millis(busy), begun + Duration::from_millis(after));
            assert_eq!(load.is_high, is_high, "after {after} ms");
        }
    }

    #[tokio::test]
    async fn one_thread_serves_all_as_long_as_it_has_time_and_then_each_as_many() {
        let threads = Threads::start(NonZeroUsize::new(3).unwrap()).unwrap();
        let counts = || threads.all.iter().map(|thread| Arc::strong_count(&thread.connections) - 1).collect::<Vec<_>>();
        for _ in 0..4 {
            threads.spawn(pending());
        }
        assert_eq!(counts(), [4, 0, 0]);
        let mut burst = Vec::new();
        for _ in 0..33 {
            let (end, ended) = tokio::sync::oneshot::channel::<()>();
            threads.spawn(async move { _ = ended.await });
            burst.push(end);
        }
        assert_eq!(counts(), [4 + 19, 7, 7]);
        drop(burst);
        while counts() != [4, 0, 0] {
            tokio::task::yield_now().await;
        }
        let load = Load { since: Instant::now() + Duration::from_hours(1), busy: Duration::ZERO, is_high: true };
        *threads.load_of_first.lock().unwrap() = load;
        for _ in 0..11 {
            threads.spawn(pending());
        }
        assert_eq!(counts(), [5, 5, 5]);
    }
}
