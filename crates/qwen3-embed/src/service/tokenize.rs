//! Tokenization of requests in pieces.
//!
//! A request with much text is tokenized piece by piece. Other requests are tokenized between two pieces, and
//! tokenization stops soon after the caller has dropped the future.

use std::collections::VecDeque;
use std::ops::Range;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Instant;
use std::{fmt, vec};

use futures_channel::oneshot;

use super::queue::Queue;
use super::request::{Completed, Request};
use crate::Result;
use crate::embed_request::RowFormat;

/// The maximum size of a piece in bytes. Tokenizing a piece takes a few milliseconds. A longer text is a piece by
/// itself.
const PIECE: usize = 64 * 1024;

/// A thread pool that starts jobs in the order in which they were spawned.
///
/// A thread of a rayon pool starts the jobs that it has spawned itself before other jobs. Without this type, the next
/// piece of a request would always start before the first piece of another request.
pub(super) struct TokenizerPool {
    pool: rayon::ThreadPool,
    jobs: Mutex<VecDeque<Job>>,
}

type Job = Box<dyn FnOnce() + Send>;

impl TokenizerPool {
    pub(super) fn new(n_threads: usize) -> Result<Self> {
        let pool = rayon::ThreadPoolBuilder::new()
            .num_threads(n_threads)
            .thread_name(|n| format!("tokenize-{n}"))
            // A panic must not abort the process. The caller gets an error, because the panic drops the channel of the
            // job.
            .panic_handler(|_| {})
            .build()?;
        Ok(Self { pool, jobs: Mutex::default() })
    }

    /// Runs a job after the jobs that are waiting already.
    fn spawn(self: &Arc<Self>, job: impl FnOnce() + Send + 'static) {
        self.lock().push_back(Box::new(job));
        let this = Arc::clone(self);
        self.pool.spawn(move || {
            // There are as many of these closures as jobs, so that each one finds a job.
            let first = this.lock().pop_front();
            if let Some(job) = first {
                job();
            }
        });
    }

    fn lock(&self) -> MutexGuard<'_, VecDeque<Job>> {
        self.jobs.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl fmt::Debug for TokenizerPool {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("TokenizerPool")
            .field("n_threads", &self.pool.current_num_threads())
            .finish_non_exhaustive()
    }
}

/// A request that is not tokenized completely yet.
pub(super) struct UntokenizedRequest<M, E> {
    pub(super) pool: Arc<TokenizerPool>,
    pub(super) model: Arc<M>,
    pub(super) queue: Arc<Queue>,
    /// The id of the request's place in the queue.
    pub(super) id: u64,
    pub(super) row: RowFormat,
    pub(super) arrived: Instant,
    pub(super) caller: oneshot::Sender<Result<Completed>>,
    /// Tokenizes the texts in a range of indices. It is called with one piece after another.
    pub(super) encode: E,
    /// The pieces that are not tokenized yet.
    pub(super) pieces: vec::IntoIter<Range<usize>>,
    /// The tokens of the texts that are tokenized already.
    pub(super) tokens: Vec<Vec<u32>>,
}

impl<M, E> UntokenizedRequest<M, E>
where
    M: Send + Sync + 'static,
    E: FnMut(&M, Range<usize>) -> Result<Vec<Vec<u32>>> + Send + 'static,
{
    /// Tokenizes the pieces on the pool, one after another, and puts the request into the queue after the last one.
    pub(super) fn tokenize(mut self) {
        let Some(piece) = self.pieces.next() else {
            let request = Request::new(self.row, &self.tokens, self.arrived, self.caller);
            self.queue.fill(self.id, request, self.tokens);
            return;
        };
        let pool = Arc::clone(&self.pool);
        pool.spawn(move || {
            if self.caller.is_canceled() {
                return;
            }
            let first = piece.start;
            match (self.encode)(&self.model, piece) {
                Ok(tokens) => {
                    self.tokens.extend(tokens);
                    self.tokenize();
                }
                Err(error) => {
                    self.queue.remove(self.id);
                    // Sending fails if the caller has dropped its future.
                    let _ = self.caller.send(Err(error.map_text_index(|text| first + text)));
                }
            }
        });
    }
}

/// Divides texts into pieces, given the size of each text in bytes.
pub(super) fn pieces(sizes: impl Iterator<Item = usize>) -> Vec<Range<usize>> {
    let (mut pieces, mut n_bytes): (Vec<Range<usize>>, _) = (Vec::new(), 0);
    for (text, size) in sizes.enumerate() {
        n_bytes += size;
        match pieces.last_mut() {
            Some(piece) if n_bytes <= PIECE => piece.end = text + 1,
            _ => {
                pieces.push(text..text + 1);
                n_bytes = size;
            }
        }
    }
    pieces
}
