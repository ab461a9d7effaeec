//! The threads that read, tokenize and compute.

use std::sync::Arc;
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::thread::{self, JoinHandle};

use anyhow::{Result, anyhow};
use qwen3_embed::{Embedder, Prompt};

use super::args::VectorFormat;
use super::compute::{Computed, compute, tokenize};
use super::input::{Batch, InputFile, ReadOptions, Reader};

/// The number of batches that wait between two threads.
const WAITING: usize = 2;

/// Threads that read, tokenize and compute, each one while the next one works on an earlier batch. They end when the
/// receiver is dropped, or with the process if they wait for standard input.
pub(super) struct Pipeline {
    /// The computed batches, in the order of the input. An error is the last element.
    pub(super) batches: Receiver<Result<Computed>>,
    threads: Vec<JoinHandle<()>>,
}

impl Pipeline {
    pub(super) fn start(
        files: Vec<InputFile>,
        options: ReadOptions,
        embedder: Arc<Embedder>,
        prompt: Prompt,
        format: VectorFormat,
    ) -> Self {
        let (to_tokenize, read) = sync_channel(WAITING);
        let (to_compute, tokenized) = sync_channel(WAITING);
        let (to_write, batches) = sync_channel(WAITING);
        let tokenizer = embedder.clone();
        let threads = vec![
            thread::spawn(move || {
                let mut reader = Reader::new(files, options);
                send_all(&to_tokenize, std::iter::from_fn(|| reader.next().transpose()));
            }),
            thread::spawn(move || {
                send_all(
                    &to_compute,
                    read.iter().map(|batch: Result<Batch>| {
                        let mut batch = batch?;
                        tokenize(&tokenizer, &prompt, &mut batch)?;
                        Ok(batch)
                    }),
                );
            }),
            thread::spawn(move || {
                let batches = tokenized.iter();
                send_all(&to_write, batches.map(|batch| compute(&embedder, batch?, format)));
            }),
        ];
        Self { batches, threads }
    }

    /// Waits for the threads. Call this when there are no more batches.
    ///
    /// # Errors
    ///
    /// If a thread has panicked, so that the batches are not complete.
    pub(super) fn join(self) -> Result<()> {
        drop(self.batches);
        for thread in self.threads {
            thread.join().map_err(|_| anyhow!("a thread has panicked"))?;
        }
        Ok(())
    }
}

/// Sends items up to the first error, or until the receiver is dropped.
fn send_all<T>(sender: &SyncSender<Result<T>>, items: impl Iterator<Item = Result<T>>) {
    for item in items {
        let is_last = item.is_err();
        if sender.send(item).is_err() || is_last {
            return;
        }
    }
}
