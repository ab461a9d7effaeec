use std::fmt;
use std::io;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use futures_util::FutureExt;
use hyper::server::conn::http1;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::server::graceful::GracefulShutdown;
use hyper_util::service::TowerToHyperService;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::{sleep, timeout};
use tokio_io_timeout::TimeoutStream;

use crate::{AppState, app};

/// Pause after `accept` has failed, for example because the process has no file descriptors left.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// How long the server waits for the first bytes of a new connection before it passes the connection to hyper.
const FIRST_BYTES: Duration = Duration::from_millis(500);

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
    /// Maximum number of open connections. Further connections are not accepted until another connection is closed.
    /// Default: 8192.
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
    let permits = options.max_connections.clamp(1, Semaphore::MAX_PERMITS);
    let server = Server {
        router: app(state.clone()),
        permits: Arc::new(Semaphore::new(permits)),
        connections: GracefulShutdown::new(),
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
    let Server { connections, options: ServeOptions { drain_timeout, .. }, .. } = server;
    let finish = async {
        // All connections finish before the queues are drained, because a request whose body is still being read has no
        // texts in a queue yet.
        connections.shutdown().await;
        state.drain().await;
    };
    timeout(drain_timeout, finish).await.map_err(|_| Unfinished { deadline: drain_timeout })
}

struct Server {
    router: Router,
    permits: Arc<Semaphore>,
    connections: GracefulShutdown,
    options: ServeOptions,
}

impl Server {
    /// Accepts one connection and serves it in a task.
    async fn accept(&self, listener: &TcpListener) {
        // The semaphore is never closed.
        let Ok(permit) = Arc::clone(&self.permits).acquire_owned().await else { return };
        match listener.accept().await {
            Ok((stream, _)) => self.begin(stream, permit),
            Err(error) if is_of_one_client(&error) => {}
            Err(error) => {
                tracing::warn!("cannot accept a connection: {error}");
                sleep(ACCEPT_PAUSE).await;
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
        let ServeOptions { write_timeout, keep_alive_timeout, .. } = self.options;
        let keep_alive_timeout = keep_alive_timeout.min(LONGEST_KEEP_ALIVE);
        let service = TowerToHyperService::new(self.router.clone());
        let watcher = self.connections.watcher();
        tokio::spawn(async move {
            // On shutdown, hyper closes connections that have received nothing. This wait lets the first request of a
            // connection arrive before that, so that the request is not lost.
            let _ = timeout(FIRST_BYTES, stream.readable()).await;
            let mut stream = TimeoutStream::new(stream);
            stream.set_write_timeout(Some(write_timeout));
            let mut connection = http1::Builder::new()
                .timer(TokioTimer::new())
                .header_read_timeout(keep_alive_timeout)
                .serve_connection(TokioIo::new(Box::pin(stream)), service);
            let ended = match (&mut connection).now_or_never() {
                Some(ended) => ended,
                None => watcher.watch(connection).await,
            };
            // Clients may disconnect at any time, so this is not logged as an error.
            if let Err(error) = ended {
                tracing::debug!("a connection ended: {error}");
            }
            drop(permit);
        });
    }
}

/// Whether an error of `accept` concerns one client only. Other errors, such as too many open files, affect every
/// client until their cause is removed.
fn is_of_one_client(error: &io::Error) -> bool {
    use io::ErrorKind::{ConnectionAborted, ConnectionRefused, ConnectionReset};
    matches!(error.kind(), ConnectionAborted | ConnectionRefused | ConnectionReset)
}
