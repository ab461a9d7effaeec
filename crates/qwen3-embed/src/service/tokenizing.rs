//! How the texts of requests become tokens: in pieces, so that a request with much text keeps those with less
//! waiting for no more than a piece of it, and is given up soon when its caller has gone.

use std::collections::VecDeque;
use std::ops::Range;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Instant;
use std::{fmt, vec};

use futures_channel::oneshot;

use super::queue::Queue;
use super::request::{Completed, Request, Row};
use crate::Result;

/// Bytes of a piece: a few milliseconds of work. A longer text is a piece by itself.
const PIECE: usize = 64 * 1024;

/// Threads whose jobs begin in the order in which they come. By itself rayon prefers what a thread has spawned
/// to what comes from elsewhere, so that a request's next piece would always be before another request.
pub(super) struct Threads {
    pool: rayon::ThreadPool,
    jobs: Mutex<VecDeque<Job>>,
}

type Job = Box<dyn FnOnce() + Send>;

impl Threads {
    pub(super) fn new(n_threads: usize) -> Result<Self> {
        let pool = rayon::ThreadPoolBuilder::new()
            .num_threads(n_threads)
            .thread_name(|n| format!("tokenize-{n}"))
            // Who waits for the tokens gets an error; the program goes on.
            .panic_handler(|_| {})
            .build()?;
        Ok(Self { pool, jobs: Mutex::default() })
    }

    /// Has a job done behind those that wait.
    fn spawn(self: &Arc<Self>, job: impl FnOnce() + Send + 'static) {
        self.lock().push_back(Box::new(job));
        let threads = Arc::clone(self);
        self.pool.spawn(move || {
            // There is one for every call.
            let first = threads.lock().pop_front();
            if let Some(job) = first {
                job();
            }
        });
    }

    fn lock(&self) -> MutexGuard<'_, VecDeque<Job>> {
        self.jobs.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl fmt::Debug for Threads {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Threads")
            .field("n", &self.pool.current_num_threads())
            .finish_non_exhaustive()
    }
}

/// A request whose texts become tokens.
pub(super) struct Tokenizing<M, E> {
    pub(super) threads: Arc<Threads>,
    pub(super) model: Arc<M>,
    pub(super) queue: Arc<Queue>,
    /// Its place in the queue.
    pub(super) id: u64,
    pub(super) row: Row,
    pub(super) arrived: Instant,
    pub(super) caller: oneshot::Sender<Result<Completed>>,
    /// Gives the tokens of some of its texts.
    pub(super) encode: E,
    pub(super) pieces: vec::IntoIter<Range<usize>>,
    pub(super) tokens: Vec<Vec<u32>>,
}

impl<M, E> Tokenizing<M, E>
where
    M: Send + Sync + 'static,
    E: FnMut(&M, Range<usize>) -> Result<Vec<Vec<u32>>> + Send + 'static,
{
    /// Has the next piece tokenized behind what waits, and so on; queues the request when there is none left.
    pub(super) fn go_on(mut self) {
        let Some(piece) = self.pieces.next() else {
            let request = Request::new(self.row, &self.tokens, self.arrived, self.caller);
            self.queue.fill(self.id, request, self.tokens);
            return;
        };
        let threads = Arc::clone(&self.threads);
        threads.spawn(move || {
            if self.caller.is_canceled() {
                return;
            }
            let first = piece.start;
            match (self.encode)(&self.model, piece) {
                Ok(tokens) => {
                    self.tokens.extend(tokens);
                    self.go_on();
                }
                Err(error) => {
                    self.queue.remove(self.id);
                    // The caller may have gone.
                    let _ = self.caller.send(Err(error.shift_text(first)));
                }
            }
        });
    }
}

/// The texts of each piece, given the bytes of each text.
pub(super) fn pieces(lengths: impl Iterator<Item = usize>) -> Vec<Range<usize>> {
    let (mut pieces, mut n_bytes): (Vec<Range<usize>>, _) = (Vec::new(), 0);
    for (text, length) in lengths.enumerate() {
        n_bytes += length;
        match pieces.last_mut() {
            Some(piece) if n_bytes <= PIECE => piece.end = text + 1,
            _ => {
                pieces.push(text..text + 1);
                n_bytes = length;
            }
        }
    }
    pieces
}
