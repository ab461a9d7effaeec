use std::mem;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use futures_channel::oneshot;

use crate::{Error, Result, normalize};

/// How long the stages of a request took.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Timings {
    /// From its arrival until its texts were tokens, waiting for a thread included.
    pub tokenize: Duration,
    /// From then until the first batch that one of them was in began.
    pub queue: Duration,
    /// From then until the last batch that one of them was in ended.
    pub compute: Duration,
}

/// A request whose texts are all computed.
#[derive(Debug, Default)]
pub(super) struct Completed {
    /// A row for each text.
    pub(super) values: Vec<f32>,
    /// Tokens of each text.
    pub(super) n_tokens: Vec<usize>,
    pub(super) timings: Timings,
}

/// What becomes of the row that the model gives for a text.
#[derive(Debug, Clone, Copy)]
pub(super) struct Row {
    /// How many of its values are kept.
    pub(super) width: usize,
    /// Whether it is brought to unit length then.
    pub(super) normalize: bool,
}

/// Who waits for a request's rows, and what there is of them.
#[derive(Debug)]
pub(super) struct Request {
    row: Row,
    progress: Mutex<Progress>,
}

#[derive(Debug)]
struct Progress {
    completed: Completed,
    n_missing: usize,
    tokenized: Instant,
    began: Option<Instant>,
    /// Taken when the request is done, or has failed.
    caller: Option<oneshot::Sender<Result<Completed>>>,
}

impl Request {
    /// A request that arrived at `arrived` and whose texts have just become tokens.
    pub(super) fn new(
        row: Row,
        texts: &[Vec<u32>],
        arrived: Instant,
        caller: oneshot::Sender<Result<Completed>>,
    ) -> Self {
        let timings = Timings { tokenize: arrived.elapsed(), ..Timings::default() };
        let completed = Completed {
            values: vec![0f32; texts.len() * row.width],
            n_tokens: texts.iter().map(Vec::len).collect(),
            timings,
        };
        let (n_missing, tokenized) = (texts.len(), Instant::now());
        let progress =
            Progress { completed, n_missing, tokenized, began: None, caller: Some(caller) };
        Self { row, progress: Mutex::new(progress) }
    }

    /// Takes the row of a text from a batch that began at `began`. With the last one the request is done.
    pub(super) fn write(&self, text: usize, row: &[f32], began: Instant) {
        let mut progress = self.progress.lock().unwrap_or_else(PoisonError::into_inner);
        let Row { width, normalize: is_normalized } = self.row;
        let values = &mut progress.completed.values[text * width..][..width];
        values.copy_from_slice(&row[..width]);
        if is_normalized {
            normalize(values);
        }
        let first = *progress.began.get_or_insert(began);
        progress.n_missing -= 1;
        if progress.n_missing == 0
            && let Some(caller) = progress.caller.take()
        {
            let mut completed = mem::take(&mut progress.completed);
            completed.timings.queue = first - progress.tokenized;
            completed.timings.compute = first.elapsed();
            // The caller may have gone.
            let _ = caller.send(Ok(completed));
        }
    }

    /// Ends the request with an error about the text of index `text`.
    pub(super) fn fail(&self, text: usize, mut error: Error) {
        if let Some(index) = error.text_mut() {
            *index = text;
        }
        let caller = self.progress.lock().unwrap_or_else(PoisonError::into_inner).caller.take();
        if let Some(caller) = caller {
            let _ = caller.send(Err(error));
        }
    }

    /// Whether nobody waits any more.
    pub(super) fn is_over(&self) -> bool {
        let progress = self.progress.lock().unwrap_or_else(PoisonError::into_inner);
        progress.caller.as_ref().is_none_or(oneshot::Sender::is_canceled)
    }
}
