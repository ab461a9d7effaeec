use std::fmt;
use std::io;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use futures_util::FutureExt;
use http_body_util::BodyExt;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, watch};
use tokio::time::{sleep, timeout};
use tokio_io_timeout::TimeoutStream;
use tower::ServiceExt;

use crate::idle::{Connection, IdleConnections};
use crate::{AppState, app};

/// Pause after `accept` has failed, for example because the process has no file descriptors left.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// How long the server waits for the first bytes of a new connection before it passes the connection to hyper.
const FIRST_BYTES: Duration = Duration::from_millis(500);

/// Pause before another idle connection is closed.
const CLOSE_PAUSE: Duration = Duration::from_millis(100);

/// Upper bound of [`ServeOptions::keep_alive_timeout`]. hyper adds the timeout to the current time, which would
/// overflow with an arbitrary duration.
const LONGEST_KEEP_ALIVE: Duration = Duration::from_secs(365 * 24 * 60 * 60);

/// Settings of [`serve`]: timeouts and the number of connections.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ServeOptions {
    /// Time limit for finishing accepted requests after shutdown was requested. Default: 30 s.
    pub drain_timeout: Duration,
    /// How long an idle connection stays open, and how long the head of a request may take to arrive. At most a year.
    /// Default: 120 s.
    ///
    /// The timeout should be longer than the time for which clients and load balancers keep idle connections. Otherwise
    /// they may send a request on a connection that the server is closing, and the request is lost. Many clients and
    /// load balancers keep idle connections for 60 s, some for 90 s, and Google Cloud's load balancers for 600 s.
    pub keep_alive_timeout: Duration,
    /// How long the server waits for a client that does not read its response. Default: 60 s.
    pub write_timeout: Duration,
    /// Maximum number of open connections, at least 2. When it is reached, the connection that has been idle for the
    /// longest time is closed. If every connection has a request in progress, further connections wait. Default: 8192.
    pub max_connections: usize,
}

impl Default for ServeOptions {
    fn default() -> Self {
        Self {
            drain_timeout: Duration::from_secs(30),
            keep_alive_timeout: Duration::from_secs(120),
            write_timeout: Duration::from_secs(60),
            max_connections: 8192,
        }
    }
}

/// Error of [`serve`]: requests were not finished within [`ServeOptions::drain_timeout`].
#[derive(Debug)]
pub struct Unfinished {
    /// The drain timeout.
    pub deadline: Duration,
}

impl fmt::Display for Unfinished {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "requests were not finished within {:.0?}", self.deadline)
    }
}

impl std::error::Error for Unfinished {}

/// Serves requests until `shutdown` completes, and then shuts down gracefully.
///
/// During shutdown, `/readyz` returns 503, new connections are refused, and requests that have begun are finished, all
/// within [`ServeOptions::drain_timeout`].
///
/// # Errors
///
/// [`Unfinished`] if requests were not finished in time.
pub async fn serve(
    listener: TcpListener,
    state: AppState,
    options: ServeOptions,
    shutdown: impl Future<Output = ()>,
) -> Result<(), Unfinished> {
    // With one connection, the server would close it before its first request to have room for the next one.
    let permits = options.max_connections.clamp(2, Semaphore::MAX_PERMITS);
    let server = Server {
        router: app(state.clone()),
        permits: Arc::new(Semaphore::new(permits)),
        idle: IdleConnections::default(),
        stopping: watch::Sender::new(false),
        options,
    };
    let mut shutdown = pin!(shutdown);
    loop {
        tokio::select! {
            biased;
            () = &mut shutdown => break,
            () = server.accept(&listener) => {}
        }
    }
    state.announce_shutdown();
    server.accept_rest(listener);
    tracing::info!("shutting down: finishing accepted requests");
    let drain_timeout = server.options.drain_timeout;
    let finish = async {
        // All connections finish before the queues are drained, because a request whose body is still being read has no
        // texts in a queue yet.
        server.stop().await;
        state.drain().await;
    };
    timeout(drain_timeout, finish).await.map_err(|_| Unfinished { deadline: drain_timeout })
}

struct Server {
    router: Router,
    permits: Arc<Semaphore>,
    idle: IdleConnections,
    /// Whether the server is shutting down. Every connection has a receiver.
    stopping: watch::Sender<bool>,
    options: ServeOptions,
}

impl Server {
    /// Accepts one connection and serves it in a task.
    async fn accept(&self, listener: &TcpListener) {
        let permit = self.permit().await;
        match listener.accept().await {
            Ok((stream, _)) => self.begin(stream, permit),
            Err(error) if is_of_one_client(&error) => {}
            Err(error) => {
                tracing::warn!("cannot accept a connection: {error}");
                self.idle.close_longest();
                sleep(ACCEPT_PAUSE).await;
            }
        }
    }

    /// Waits until a connection may be accepted. Closes idle connections if there are too many connections.
    async fn permit(&self) -> OwnedSemaphorePermit {
        loop {
            if let Ok(permit) = Arc::clone(&self.permits).try_acquire_owned() {
                return permit;
            }
            self.idle.close_longest();
            let permit = Arc::clone(&self.permits).acquire_owned();
            // The semaphore is never closed.
            if let Ok(Ok(permit)) = timeout(CLOSE_PAUSE, permit).await {
                return permit;
            }
        }
    }

    /// Accepts the connections that are in the listener's backlog, and closes the listener. The operating system has
    /// already established these connections, so their clients may have sent requests.
    fn accept_rest(&self, listener: TcpListener) {
        // The standard library's listener is used, because tokio's listener reports no connection before its reactor
        // has run.
        let Ok(listener) = listener.into_std() else { return };
        while let Ok(permit) = Arc::clone(&self.permits).try_acquire_owned() {
            let accepted = listener.accept().and_then(|(stream, _)| {
                stream.set_nonblocking(true)?;
                TcpStream::from_std(stream)
            });
            match accepted {
                Ok(stream) => self.begin(stream, permit),
                Err(error) if is_of_one_client(&error) => {}
                Err(_) => return,
            }
        }
    }

    /// Serves a connection in a task.
    fn begin(&self, stream: TcpStream, permit: OwnedSemaphorePermit) {
        // Small responses are sent without delay. An error is ignored, because it only means that they are sent later.
        let _ = stream.set_nodelay(true);
        let (router, options) = (self.router.clone(), self.options.clone());
        let (connection, stopping) = (self.idle.add(), self.stopping.subscribe());
        tokio::spawn(async move {
            let _permit = permit;
            // On shutdown, hyper closes connections that have received nothing. This wait lets the first request of a
            // connection arrive before that, so that the request is not lost. `readable` would not do: it may complete
            // although there is nothing to read.
            let mut byte = [0];
            tokio::select! {
                biased;
                _ = timeout(FIRST_BYTES, stream.peek(&mut byte)) => {}
                () = connection.should_close() => return,
            }
            // Clients may disconnect at any time, so this is not logged as an error.
            if let Err(error) = run(stream, router, &options, &connection, stopping).await {
                tracing::debug!("a connection ended: {error}");
            }
        });
    }

    /// Waits until every connection has finished its request and is closed.
    async fn stop(&self) {
        self.stopping.send_replace(true);
        self.stopping.closed().await;
    }
}

/// Serves the requests of a connection until the client closes it, until it should close because it is idle, or until
/// the server is shutting down.
async fn run(
    stream: TcpStream,
    router: Router,
    options: &ServeOptions,
    connection: &Arc<Connection>,
    mut stopping: watch::Receiver<bool>,
) -> hyper::Result<()> {
    let mut stream = TimeoutStream::new(stream);
    stream.set_write_timeout(Some(options.write_timeout));
    let service = service_fn(|request| {
        let in_progress = connection.begin_request();
        let response = router.clone().oneshot(request);
        async {
            let response = response.await;
            // The request ends when the body of its response is dropped.
            response.map(|response| {
                response.map(|body| {
                    body.map_frame(move |frame| {
                        let _ = &in_progress;
                        frame
                    })
                })
            })
        }
    });
    let mut http = pin!(
        http1::Builder::new()
            .timer(TokioTimer::new())
            .header_read_timeout(options.keep_alive_timeout.min(LONGEST_KEEP_ALIVE))
            .serve_connection(TokioIo::new(Box::pin(stream)), service)
    );
    let stop = async {
        let _ = stopping.wait_for(|stopping| *stopping).await;
    };
    tokio::select! {
        // A request that has already arrived begins before the connection is closed.
        biased;
        ended = &mut http => return ended,
        () = stop => http.as_mut().graceful_shutdown(),
        () = connection.should_close() => {
            http.as_mut().graceful_shutdown();
            // A request may have begun in the meantime.
            let ended = (&mut http).now_or_never();
            if ended.is_some() || !connection.is_busy() {
                return ended.unwrap_or(Ok(()));
            }
        }
    }
    http.await
}

/// Whether an error of `accept` concerns one client only. Other errors, such as too many open files, affect every
/// client until their cause is removed.
fn is_of_one_client(error: &io::Error) -> bool {
    use io::ErrorKind::{ConnectionAborted, ConnectionRefused, ConnectionReset};
    matches!(error.kind(), ConnectionAborted | ConnectionRefused | ConnectionReset)
}
