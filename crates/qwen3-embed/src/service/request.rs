use std::mem;
use std::sync::PoisonError;
use std::time::{Duration, Instant};

use futures_channel::oneshot;

use super::sync::Mutex;
use crate::embed_request::RowFormat;
use crate::{Error, Result};

/// How long the stages of a request took.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Timings {
    /// From the arrival of the request until all its texts were tokenized, including the wait for a thread.
    pub tokenize: Duration,
    /// From the end of tokenization until the start of the first batch with a text of the request.
    pub queue: Duration,
    /// From the start of that first batch until the end of the last batch with a text of the request.
    pub compute: Duration,
}

/// The result of a request.
#[derive(Debug, Default)]
pub(super) struct Completed {
    /// One row for each text.
    pub(super) values: Vec<f32>,
    /// The number of tokens of each text.
    pub(super) n_tokens: Vec<usize>,
    pub(super) timings: Timings,
}

/// A tokenized request, with the rows that have been computed so far.
#[derive(Debug)]
pub(super) struct Request {
    row: RowFormat,
    progress: Mutex<Progress>,
}

#[derive(Debug)]
struct Progress {
    completed: Completed,
    n_missing: usize,
    tokenized: Instant,
    /// The start of the first batch with a text of the request.
    began: Option<Instant>,
    /// `None` after the request has completed or failed.
    caller: Option<oneshot::Sender<Result<Completed>>>,
}

impl Request {
    /// A request that arrived at `arrived` and has just been tokenized.
    pub(super) fn new(
        row: RowFormat,
        texts: &[Vec<u32>],
        arrived: Instant,
        caller: oneshot::Sender<Result<Completed>>,
    ) -> Self {
        let timings = Timings { tokenize: arrived.elapsed(), ..Timings::default() };
        let completed = Completed {
            values: vec![0f32; texts.len() * row.dimensions],
            n_tokens: texts.iter().map(Vec::len).collect(),
            timings,
        };
        let (n_missing, tokenized) = (texts.len(), Instant::now());
        let progress =
            Progress { completed, n_missing, tokenized, began: None, caller: Some(caller) };
        Self { row, progress: Mutex::new(progress) }
    }

    /// Stores the row of a text from a batch that began at `began`. The last row completes the request.
    pub(super) fn write(&self, text: usize, row: &[f32], began: Instant) {
        let mut progress = self.progress.lock().unwrap_or_else(PoisonError::into_inner);
        let dimensions = self.row.dimensions;
        self.row.write(row, &mut progress.completed.values[text * dimensions..][..dimensions]);
        let first = *progress.began.get_or_insert(began);
        progress.n_missing -= 1;
        if progress.n_missing == 0
            && let Some(caller) = progress.caller.take()
        {
            let mut completed = mem::take(&mut progress.completed);
            completed.timings.queue = first - progress.tokenized;
            completed.timings.compute = first.elapsed();
            // Sending fails if the caller has dropped its future.
            let _ = caller.send(Ok(completed));
        }
    }

    /// Fails the request with an error about the text of index `text`.
    pub(super) fn fail(&self, text: usize, error: Error) {
        let caller = self.progress.lock().unwrap_or_else(PoisonError::into_inner).caller.take();
        if let Some(caller) = caller {
            let _ = caller.send(Err(error.map_text_index(|_| text)));
        }
    }

    /// Whether no caller waits for the request: it has completed or failed, or the caller has dropped its future.
    pub(super) fn is_over(&self) -> bool {
        let progress = self.progress.lock().unwrap_or_else(PoisonError::into_inner);
        progress.caller.as_ref().is_none_or(oneshot::Sender::is_canceled)
    }
}
