//! Which connections have no request in progress. A server that has reached its limit of connections closes the one that
//! has been idle for the longest time.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::Notify;

/// The number of a connection that is not idle.
const BUSY: u64 = u64::MAX;

/// The idle connections of a server.
#[derive(Clone, Default)]
pub(crate) struct IdleConnections(Arc<Mutex<Idle>>);

#[derive(Default)]
struct Idle {
    /// How often a connection has become idle.
    n: u64,
    /// By number: connections that became idle earlier have lower numbers.
    connections: BTreeMap<u64, Arc<Notify>>,
}

impl IdleConnections {
    /// Adds a new connection.
    pub(crate) fn add(&self) -> Arc<Connection> {
        let connection =
            Connection { idle: self.clone(), number: BUSY.into(), close: Arc::default() };
        connection.begin_idling();
        Arc::new(connection)
    }

    /// Asks the connection that has been idle for the longest time to close. Does nothing if no connection is idle.
    pub(crate) fn close_longest(&self) {
        if let Some((_, close)) = self.lock().connections.pop_first() {
            close.notify_one();
        }
    }

    fn lock(&self) -> MutexGuard<'_, Idle> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// An open connection.
pub(crate) struct Connection {
    idle: IdleConnections,
    /// The number in [`Idle::connections`], or [`BUSY`]. It is changed only while `idle` is locked.
    number: AtomicU64,
    close: Arc<Notify>,
}

impl Connection {
    /// Begins a request. The connection is idle again when the result is dropped.
    pub(crate) fn begin_request(self: &Arc<Self>) -> Request {
        self.end_idling();
        Request(Arc::clone(self))
    }

    /// Whether a request is in progress.
    pub(crate) fn is_busy(&self) -> bool {
        self.number.load(Ordering::Relaxed) == BUSY
    }

    /// Waits until the connection should be closed.
    pub(crate) async fn should_close(&self) {
        self.close.notified().await;
    }

    fn begin_idling(&self) {
        let mut idle = self.idle.lock();
        let number = idle.n;
        idle.n += 1;
        idle.connections.insert(number, Arc::clone(&self.close));
        self.number.store(number, Ordering::Relaxed);
    }

    fn end_idling(&self) {
        let mut idle = self.idle.lock();
        idle.connections.remove(&self.number.swap(BUSY, Ordering::Relaxed));
    }
}

impl Drop for Connection {
    fn drop(&mut self) {
        self.end_idling();
    }
}

/// A request in progress.
pub(crate) struct Request(Arc<Connection>);

impl Drop for Request {
    fn drop(&mut self) {
        self.0.begin_idling();
    }
}

#[cfg(test)]
mod tests {
    use futures_util::FutureExt;

    use super::*;

    /// The positions of the connections that should close, after `n` times of [`IdleConnections::close_longest`].
    fn closed(idle: &IdleConnections, connections: &[Arc<Connection>], n: usize) -> Vec<usize> {
        (0..n).for_each(|_| idle.close_longest());
        let is_closed = |&i: &usize| connections[i].should_close().now_or_never().is_some();
        (0..connections.len()).filter(is_closed).collect()
    }

    #[test]
    fn closes_the_longest_idle_connections_first_and_none_with_a_request() {
        let idle = IdleConnections::default();
        let connections: Vec<_> = (0..5).map(|_| idle.add()).collect();
        let in_progress = connections[1].begin_request();
        drop(connections[0].begin_request());
        assert!(connections[1].is_busy() && !connections[0].is_busy());
        assert_eq!(closed(&idle, &connections, 1), [2]);
        assert_eq!(closed(&idle, &connections, 2), [3, 4]);
        assert_eq!(closed(&idle, &connections, 10), [0]);
        assert!(closed(&idle, &connections, 10).is_empty());
        drop(in_progress);
        assert_eq!(closed(&idle, &connections, 1), [1]);
    }

    #[test]
    fn forgets_connections_that_have_ended() {
        let idle = IdleConnections::default();
        let request = idle.add().begin_request();
        drop(idle.add());
        drop(request);
        assert!(idle.lock().connections.is_empty());
    }
}
