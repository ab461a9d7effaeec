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

/// How long no connection is accepted when the system has no file descriptor left.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// How long a new connection may be silent when the server ends, without being closed for it.
const FIRST_BYTES: Duration = Duration::from_millis(50);

/// The longest time for which a connection is kept open without a request: hyper adds this time to the
/// current one, and the sum of a clock and an arbitrary duration may overflow.
const LONGEST_KEEP_ALIVE: Duration = Duration::from_secs(365 * 24 * 60 * 60);

/// How connections are served.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ServeOptions {
    /// How long requests have to finish when the server is told to end. Default: 30 s.
    pub drain_timeout: Duration,
    /// How long a connection is kept open without a request, and how long the head of a request may take to
    /// arrive. It has to be longer than the time for which clients and load balancers keep idle connections:
    /// otherwise they send requests on connections that the server is closing. Many keep them for 60 s, some
    /// for 90 s, and Google Cloud's load balancers for 600 s. At most a year. Default: 120 s.
    pub keep_alive_timeout: Duration,
    /// How long a client may take to read the next piece of an answer. Default: 60 s.
    pub write_timeout: Duration,
    /// Connections that are open at once; further ones wait to be accepted. Default: 8192.
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

/// Requests were not finished in time.
#[derive(Debug)]
pub struct Unfinished {
    /// The time that there was.
    pub deadline: Duration,
}

impl fmt::Display for Unfinished {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "requests were not finished within {:.0?}", self.deadline)
    }
}

impl std::error::Error for Unfinished {}

/// Answers requests until `shutdown` is ready. From then on `/readyz` says that the end is near, no connection
/// is accepted, requests that have begun are answered, and what is queued is computed, all within
/// [`ServeOptions::drain_timeout`].
///
/// # Errors
///
/// [`Unfinished`] if the time was not enough.
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
    state.announce_end();
    server.accept_rest(listener);
    tracing::info!("finishing what was accepted");
    let Server { connections, options: ServeOptions { drain_timeout, .. }, .. } = server;
    let finish = async {
        // First the requests that have begun: their texts may not be queued yet.
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
    /// Accepts a connection and has it served.
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

    /// Accepts the clients that are connected as far as the system is concerned, and may have sent a request;
    /// further ones are refused.
    fn accept_rest(&self, listener: TcpListener) {
        // The system is asked itself: what tokio has not heard of yet, it says is not there.
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

    /// Has a connection served.
    fn begin(&self, stream: TcpStream, permit: OwnedSemaphorePermit) {
        // A small answer goes out at once. Where the system cannot do that, it goes out a little later.
        let _ = stream.set_nodelay(true);
        let ServeOptions { write_timeout, keep_alive_timeout, .. } = self.options;
        let keep_alive_timeout = keep_alive_timeout.min(LONGEST_KEEP_ALIVE);
        let service = TowerToHyperService::new(self.router.clone());
        let watcher = self.connections.watcher();
        tokio::spawn(async move {
            // When the server ends, a connection is closed on which nothing was seen yet. Its first request may
            // be there, or be on its way: it is looked for before the end is.
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
            // A client that breaks off is no error of ours.
            if let Err(error) = ended {
                tracing::debug!("a connection ended: {error}");
            }
            drop(permit);
        });
    }
}

/// Whether an error concerns the client alone that would have been connected; others, such as too many open
/// files, may pass.
fn is_of_one_client(error: &io::Error) -> bool {
    use io::ErrorKind::{ConnectionAborted, ConnectionRefused, ConnectionReset};
    matches!(error.kind(), ConnectionAborted | ConnectionRefused | ConnectionReset)
}
