use std::fmt;
use std::io;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::time::Duration;

use hyper::server::conn::http1;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::server::graceful::GracefulShutdown;
use hyper_util::service::TowerToHyperService;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio::time::{Instant, sleep, timeout_at};
use tokio_io_timeout::TimeoutStream;

use crate::{AppState, app};

/// How long a request's head may take, and how long a connection may be idle.
const HEAD_TIMEOUT: Duration = Duration::from_secs(60);

/// How long a client may take to read the next piece of an answer.
const WRITE_TIMEOUT: Duration = Duration::from_secs(60);

/// Connections that are open at once; further ones wait to be accepted.
const MAX_CONNECTIONS: usize = 8192;

/// How long no connection is accepted when the system has no file descriptor left.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

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
/// `drain_timeout`.
///
/// A client that is slow to send a request or to read its answer is cut off after a minute.
///
/// # Errors
///
/// [`Unfinished`] if the time was not enough.
pub async fn serve(
    listener: TcpListener,
    state: AppState,
    drain_timeout: Duration,
    shutdown: impl Future<Output = ()>,
) -> Result<(), Unfinished> {
    let router = app(state.clone());
    let connections = GracefulShutdown::new();
    let permits = Arc::new(Semaphore::new(MAX_CONNECTIONS));
    let mut shutdown = pin!(shutdown);
    loop {
        // The semaphore is never closed.
        let permit = Arc::clone(&permits).acquire_owned().await;
        let stream = tokio::select! {
            biased;
            () = &mut shutdown => break,
            accepted = listener.accept() => match accepted {
                Ok((stream, _)) => stream,
                Err(error) => {
                    pause_after(&error).await;
                    continue;
                }
            },
        };
        let service = TowerToHyperService::new(router.clone());
        let connection = http1().serve_connection(timed(stream), service);
        let connection = connections.watch(connection);
        tokio::spawn(async move {
            // A client that breaks off is no error of ours.
            if let Err(error) = connection.await {
                tracing::debug!("a connection ended: {error}");
            }
            drop(permit);
        });
    }
    state.announce_end();
    drop(listener);
    tracing::info!("finishing what was accepted");
    let deadline = Instant::now() + drain_timeout;
    let finish = async {
        // First the requests that have begun: their texts may not be queued yet.
        connections.shutdown().await;
        state.drain().await;
    };
    timeout_at(deadline, finish).await.map_err(|_| Unfinished { deadline: drain_timeout })
}

fn http1() -> http1::Builder {
    let mut builder = http1::Builder::new();
    builder.timer(TokioTimer::new()).header_read_timeout(HEAD_TIMEOUT);
    builder
}

/// A connection whose client does not read for ever.
fn timed(stream: TcpStream) -> TokioIo<Pin<Box<TimeoutStream<TcpStream>>>> {
    // A small answer goes out at once. Where the system cannot do that, it goes out a little later.
    let _ = stream.set_nodelay(true);
    let mut stream = TimeoutStream::new(stream);
    stream.set_write_timeout(Some(WRITE_TIMEOUT));
    TokioIo::new(Box::pin(stream))
}

/// An error of the connection concerns its client alone; others, such as too many open files, may pass.
async fn pause_after(error: &io::Error) {
    use io::ErrorKind::{ConnectionAborted, ConnectionRefused, ConnectionReset};
    if matches!(error.kind(), ConnectionAborted | ConnectionRefused | ConnectionReset) {
        return;
    }
    tracing::warn!("cannot accept a connection: {error}");
    sleep(ACCEPT_PAUSE).await;
}
