//! The program's own HTTP server: it limits connections, how much and how slowly a client may send before the cache
//! handles the request, and how long a client may leave an answer unread.

use std::convert::Infallible;
use std::panic::PanicHookInfo;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use axum::Router;
use axum::body::{Body, Bytes};
use axum::extract::ConnectInfo;
use futures_util::future::Either;
use hyper::body::{Frame, Incoming, SizeHint};
use hyper::server::conn::http1::Builder;
use hyper::service::{Service as _, service_fn};
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::server::graceful::GracefulShutdown;
use hyper_util::service::TowerToHyperService;
use pin_project_lite::pin_project;
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use stopover::cache::Cache;
use stopover::http::{FilePart, answer_pull};
use stopover::identity::Peer;
use stopover::local::{KEPT_OPEN, is_at_work};
use stopover::values::text::excerpt;
use tokio::runtime::Handle;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio_io_timeout::TimeoutWriter;
use tokio_util::sync::PollSemaphore;

use crate::listener::Listener;
use crate::sendfile::Outgoing;
use crate::slots::ConnectionSlots;
use crate::threads::Threads;

/// How long a client may take for the head of a request, and how long a connection may be idle.
const HEAD: Duration = Duration::from_secs(30);

/// The most bytes of the head of a request (431), and of what is read from a connection ahead of the handler.
const MAX_HEAD: usize = 128 * 1024;

/// How long a client may read nothing of its answer: clients unpack while they read.
const TAKE: Duration = Duration::from_mins(5);

/// The most connections at once.
const CONNECTIONS: usize = 4096;

/// The most connections of operators of this machine: beside those of clients, however many these have.
pub(crate) const OPERATORS: usize = 16;

/// The largest body that may be held for a client that does not read it: most answers are one such chunk.
const SMALL: u64 = 16 * 1024;

/// How many connections there may be: each may hold a blob open, and upstreams and storage need files too, beside those
/// that storage keeps open. First raises the soft limit of files to the hard one, as Go programs do: it is low only for
/// programs that use select(2).
pub(crate) fn most_connections() -> usize {
    let limit = getrlimit(Resource::Nofile);
    if let Err(error) = setrlimit(Resource::Nofile, Rlimit { current: limit.maximum, ..limit }) {
        tracing::debug!(%error, "the limit of open files could not be raised");
    }
    let files = getrlimit(Resource::Nofile).current.and_then(|files| usize::try_from(files).ok());
    files.map_or(CONNECTIONS, |files| (files.saturating_sub(KEPT_OPEN) / 3).clamp(1, CONNECTIONS))
}

/// Logs where something panicked. A panic costs one request, or one run of a background task.
pub(crate) fn log_panic(panic: &PanicHookInfo<'_>) {
    // Of the ledger's file: the error that it becomes says what to do.
    if is_at_work() {
        return;
    }
    let (place, reason) = (panic.location().map(tracing::field::display), panic.payload_as_str().unwrap_or_default());
    tracing::error!(place, reason = %excerpt(&reason), "a mistake of this program: it panicked");
}

/// Answers up to `most` connections at once until `stop` is ready, and then those that have begun a request.
///
/// What is asked of `cache` does not go through the router.
pub(crate) async fn run<L: Listener>(
    listener: L,
    router: Router,
    cache: Option<Arc<Cache>>,
    most: usize,
    threads: Threads,
    stop: impl Future<Output = ()>,
) {
    let mut server = Builder::new();
    // A head has at most 100 lines (431), as hyper has it by itself: clients send about ten, proxies add as many.
    server.timer(TokioTimer::new()).header_read_timeout(HEAD).max_buf_size(MAX_HEAD);
    // Files are sent in place of slices that must arrive as they are.
    server.writev(true);
    let server = Arc::new(server);
    let connections = GracefulShutdown::new();
    let slots = Arc::new(ConnectionSlots::new(most));
    let program = Handle::current();
    let mut stop = pin!(stop);
    loop {
        let (accepted, address, slot) = tokio::select! {
            accepted = slots.accept(&listener) => accepted,
            () = &mut stop => break,
        };
        let (router, cache, program) = (TowerToHyperService::new(router.clone()), cache.clone(), program.clone());
        let (server, watcher) = (Arc::clone(&server), connections.watcher());
        threads.spawn(async move {
            let connection = match L::connect(accepted) {
                Ok(connection) => connection,
                Err(error) => {
                    return tracing::debug!(caller = %address.ip(), %error, "a connection could not be served");
                }
            };
            let outgoing = L::outgoing(&connection);
            // Each request holds both: threads would write to the same two counts, and wait for each other's processor.
            let (cache, program) = (cache.map(Arc::new), Arc::new(program));
            let mut connection = TimeoutWriter::new(connection);
            connection.set_timeout(Some(TAKE));
            // No layer of the router, which would wrap each of its routes anew for each connection.
            let service = service_fn(move |mut request: hyper::Request<Incoming>| {
                let is_pull = request.uri().path().starts_with("/v2/");
                let answered = if let Some(cache) = cache.clone().filter(|_| is_pull) {
                    let peer = Peer::from(Some(address.ip()));
                    Either::Left(async move { Ok(answer_pull(&cache, peer, request.into_parts().0).await) })
                } else {
                    request.extensions_mut().insert(ConnectInfo(address));
                    L::mark(request.extensions_mut());
                    Either::Right(router.call(request))
                };
                Answering { program: program.clone(), outgoing: outgoing.clone(), answered }
            });
            let answered = server.serve_connection(TokioIo::new(Box::pin(connection)), service);
            if let Err(error) = watcher.watch(answered).await {
                tracing::debug!(caller = %address.ip(), %error, "a connection broke off");
            }
            drop(slot);
        });
    }
    drop(listener);
    connections.shutdown().await;
}

pin_project! {
    /// An answer on its way. Asynchronous blocks around one another would each move what is in them, 3 KiB of a pull.
    struct Answering<F> {
        // What a request begins, opens and waits for is there, whichever thread its connection has.
        program: Arc<Handle>,
        outgoing: Option<Outgoing>,
        #[pin]
        answered: F,
    }
}

impl<F: Future<Output = Result<hyper::Response<Body>, Infallible>>> Future for Answering<F> {
    type Output = Result<hyper::Response<OneByOne>, Infallible>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let this = self.project();
        let within = this.program.enter();
        let mut answer = ready!(this.answered.poll(cx))?;
        drop(within);
        if let Some((part, outgoing)) = answer.extensions_mut().remove::<FilePart>().zip(this.outgoing.take()) {
            *answer.body_mut() = outgoing.body(part);
        }
        Poll::Ready(Ok(answer.map(OneByOne::new)))
    }
}

/// A body whose next chunk is made once the one before is written: hyper would hold some of them for a client that does
/// not read.
struct OneByOne {
    body: Body,
    /// `None`: so small that it may be held as a whole.
    turns: Option<PollSemaphore>,
    turn: Option<OwnedSemaphorePermit>,
}

/// A chunk that is being written.
struct Chunk(Bytes, #[expect(dead_code, reason = "held")] Option<OwnedSemaphorePermit>);

impl AsRef<[u8]> for Chunk {
    fn as_ref(&self) -> &[u8] {
        &self.0
    }
}

impl OneByOne {
    fn new(body: Body) -> Self {
        let is_small = hyper::body::Body::size_hint(&body).exact().is_some_and(|bytes| bytes <= SMALL);
        let turns = (!is_small).then(|| PollSemaphore::new(Arc::new(Semaphore::new(1))));
        Self { body, turns, turn: None }
    }
}

impl hyper::body::Body for OneByOne {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, axum::Error>>> {
        let Self { body, turns, turn } = &mut *self;
        let Some(turns) = turns else { return Pin::new(body).poll_frame(cx) };
        if turn.is_none() {
            *turn = ready!(turns.poll_acquire(cx));
        }
        let frame = ready!(Pin::new(body).poll_frame(cx));
        let turn = turn.take();
        Poll::Ready(frame.map(|frame| Ok(frame?.map_data(|bytes| Bytes::from_owner(Chunk(bytes, turn))))))
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

#[cfg(test)]
mod tests {
    use std::future::pending;
    use std::io;
    use std::net::SocketAddr;
    use std::path::Path;
    use std::sync::Mutex;

    use axum::body::{Body, Bytes};
    use axum::routing::get;
    use futures_util::stream;
    use stopover::config::{Cold, Config};
    use stopover::http::LocalOperator;
    use stopover::local::Local;
    use stopover::values::time::Clock;
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    use tokio::net::{TcpListener, TcpStream, UnixListener, UnixStream};
    use tokio::time::{Instant, timeout};

    use super::*;

    /// What the server sends for these bytes until it closes the connection, and how long that takes. Time is paused:
    /// it passes once there is nothing else to do.
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
        let router = stopover::http::router(Arc::clone(&local.cache));
        let running =
            tokio::spawn(run(listener, router, Some(Arc::clone(&local.cache)), 9, Threads::current(), pending()));
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

    const ASKS: &[u8] = b"GET / HTTP/1.1\r\nhost: a\r\n\r\n";

    /// A server with slots for `most` connections.
    async fn serve(router: Router, most: usize) -> SocketAddr {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let server = listener.local_addr().unwrap();
        tokio::spawn(run(listener, router, None, most, Threads::current(), pending()));
        server
    }

    #[tokio::test(start_paused = true)]
    async fn a_client_that_takes_nothing_of_its_answer_holds_no_connection_for_ever() {
        let endless =
            || async { Body::from_stream(stream::repeat(Ok::<_, Infallible>(Bytes::from_static(&[0; 4096])))) };
        let server = serve(Router::new().fallback(endless), 9).await;
        let mut taken = vec![0; 32 << 20];
        let mut stuck = TcpStream::connect(server).await.unwrap();
        stuck.write_all(ASKS).await.unwrap();
        tokio::time::sleep(TAKE + Duration::from_secs(1)).await;
        let ended = stuck.read_exact(&mut taken).await.expect_err("there is no end of it");
        assert_eq!(ended.kind(), io::ErrorKind::UnexpectedEof, "what had been sent before");
    }

    /// A connection that has sent a request.
    async fn connect(server: SocketAddr) -> TcpStream {
        let mut connection = TcpStream::connect(server).await.unwrap();
        connection.write_all(ASKS).await.unwrap();
        connection
    }

    /// Whether the server answers; otherwise it closes the connection.
    async fn is_answered(connection: &mut TcpStream) -> bool {
        connection.read_u8().await.is_ok_and(|first| first == b'H')
    }

    /// Collects the log.
    #[derive(Clone, Default)]
    struct Log(Arc<Mutex<Vec<u8>>>);

    impl io::Write for Log {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0.lock().unwrap().extend_from_slice(bytes);
            Ok(bytes.len())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    async fn panics() -> &'static str {
        panic!("as planned")
    }

    #[tokio::test]
    async fn a_request_that_panics_costs_itself_and_the_log_says_where() {
        let log = Log::default();
        let writer = log.clone();
        let subscriber = tracing_subscriber::fmt().with_writer(move || writer.clone()).finish();
        let _logging = tracing::subscriber::set_default(subscriber);
        let router = Router::new()
            .route("/panics", get(panics))
            .route("/slow", get(async || tokio::time::sleep(Duration::from_millis(300)).await))
            .fallback(async || "here");
        let server = serve(router, 9).await;
        let mut slow = TcpStream::connect(server).await.unwrap();
        slow.write_all(b"GET /slow HTTP/1.1\r\nhost: a\r\n\r\n").await.unwrap();
        let before = std::panic::take_hook();
        std::panic::set_hook(Box::new(log_panic));
        for _ in 0..20 {
            let mut panics = TcpStream::connect(server).await.unwrap();
            panics.write_all(b"GET /panics HTTP/1.1\r\nhost: a\r\n\r\n").await.unwrap();
            assert!(!is_answered(&mut panics).await, "its connection ends");
            assert!(is_answered(&mut connect(server).await).await, "the next one is answered");
        }
        std::panic::set_hook(before);
        assert!(is_answered(&mut slow).await, "and so is one that was there before");
        let log = String::from_utf8(log.0.lock().unwrap().clone()).unwrap();
        assert_eq!(log.matches("it panicked").count(), 20, "{log}");
        assert!(log.contains("serve.rs:") && log.contains("as planned"), "{log}");
    }

    #[tokio::test]
    async fn a_request_is_an_operators_by_the_socket_that_it_came_over() {
        let marked = |request: axum::extract::Request| async move {
            let address = request.extensions().get::<ConnectInfo<SocketAddr>>().unwrap().0;
            format!("{} {}", request.extensions().get::<LocalOperator>().is_some(), address.ip())
        };
        let router = Router::new().fallback(marked);
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("a.sock");
        tokio::spawn(run(UnixListener::bind(&path).unwrap(), router.clone(), None, 9, Threads::current(), pending()));
        let asks = b"GET / HTTP/1.1\r\nhost: a\r\nconnection: close\r\n\r\n";
        let (mut over_socket, mut over_tcp) = (String::new(), String::new());
        let mut connection = UnixStream::connect(&path).await.unwrap();
        connection.write_all(asks).await.unwrap();
        connection.read_to_string(&mut over_socket).await.unwrap();
        let mut connection = TcpStream::connect(serve(router, 9).await).await.unwrap();
        connection.write_all(asks).await.unwrap();
        connection.read_to_string(&mut over_tcp).await.unwrap();
        assert!(over_socket.ends_with("\r\n\r\ntrue 127.0.0.1"), "{over_socket}");
        assert!(over_tcp.ends_with("\r\n\r\nfalse 127.0.0.1"), "{over_tcp}");
    }

    #[tokio::test]
    async fn connections_have_a_limit_and_whoever_comes_then_waits() {
        let server = serve(Router::new().fallback(async || "here"), 2).await;
        let (mut first, mut last) = (connect(server).await, connect(server).await);
        assert!(is_answered(&mut first).await && is_answered(&mut last).await);
        let mut waiting = connect(server).await;
        let answered = timeout(Duration::from_millis(300), is_answered(&mut waiting)).await;
        assert!(answered.is_err(), "there are two");
        drop(last);
        assert!(is_answered(&mut waiting).await, "another has gone");
    }
}
