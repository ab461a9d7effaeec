//! Models behind a queue: what a server, or any program with many callers, puts between them and a model.

mod embed;
mod queue;
mod request;
mod score;

use std::sync::Arc;
use std::time::{Duration, Instant};
use std::{fmt, thread};

use futures_channel::oneshot;

pub use self::embed::{EmbedOptions, Embedded, Prompt, Texts};
pub use self::queue::ServiceState;
use self::queue::{Job, Queue};
pub use self::request::Timings;
use self::request::{Completed, Request, Row};
pub use self::score::{ScoreOptions, Scored};
use crate::engine::check;
use crate::{Error, Result};

/// Settings of a [`Service`].
#[derive(Clone)]
pub struct ServiceOptions {
    /// Tokens that are computed together, at least 1; a longer text is computed alone. More make better
    /// use of the machine, fewer let a text wait for less. Default: 1024. What the model computes
    /// together, see [`EmbedderBuilder::batch_tokens`](crate::EmbedderBuilder::batch_tokens), bounds it.
    pub batch_tokens: usize,
    /// A request is refused while so many texts wait, at least 1. Should be a few times what one request
    /// usually has: less, and a large one has the small ones refused that come while its texts wait.
    /// Default: 16384.
    pub max_waiting_texts: usize,
    /// Threads that tokenize, beside those that compute, 1 to 1024. Default: one for each core.
    pub tokenizer_threads: usize,
    /// Called behind every batch.
    pub on_batch: Option<OnBatch>,
}

/// What is called behind a batch, on the thread that computes: it should not take long.
pub type OnBatch = Arc<dyn Fn(&BatchReport) + Send + Sync>;

/// What a batch was.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BatchReport {
    /// Texts in it.
    pub n_texts: usize,
    /// Their tokens, those that were not computed because texts share them included.
    pub n_tokens: usize,
    /// How long it took.
    pub compute: Duration,
}

impl Default for ServiceOptions {
    fn default() -> Self {
        Self {
            batch_tokens: 1024,
            max_waiting_texts: 16384,
            tokenizer_threads: thread::available_parallelism().map_or(1, usize::from).min(1024),
            on_batch: None,
        }
    }
}

impl fmt::Debug for ServiceOptions {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ServiceOptions")
            .field("batch_tokens", &self.batch_tokens)
            .field("max_waiting_texts", &self.max_waiting_texts)
            .field("tokenizer_threads", &self.tokenizer_threads)
            .finish_non_exhaustive()
    }
}

/// A model that many callers use at once: their texts are computed together, in batches, by one thread,
/// and no caller keeps the others waiting.
///
/// Its methods are `async` and need no particular runtime: tokenizing and computing happen on threads of
/// the service. A clone is another handle to the same model.
///
/// - *Batches* are made of the texts that wait, up to [`ServiceOptions::batch_tokens`]. A caller's vectors
///   do not depend on what else is in a batch, bit for bit on the processor.
/// - *Fair*: texts are taken from the request that has had the fewest tokens so far, so that one with
///   thousands of texts delays one with a single text by no more than a batch.
/// - *Bounded*: while [`ServiceOptions::max_waiting_texts`] wait, requests are refused with
///   [`Error::ServiceFull`], which says when to try again. A request that is accepted may have any number.
/// - *Cancelled* when the future is dropped: texts that are in no batch yet are not computed.
///
/// # Examples
///
/// ```
/// use qwen3_embed::{EmbedOptions, Embedder, Prompt, ServiceOptions, Texts};
///
/// # let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/../../fixtures/models/wide");
/// # futures_executor::block_on(async {
/// let service = Embedder::builder(folder).build()?.into_service(ServiceOptions::default())?;
///
/// let texts = Texts::from(vec!["What is the capital of China?".to_owned()]);
/// let options = EmbedOptions { prompt: Prompt::Query, ..EmbedOptions::default() };
/// let embedded = service.embed(texts, options).await?;
/// assert_eq!(embedded.embeddings.rows(), 1);
///
/// service.drain().await;
/// # Ok::<(), qwen3_embed::Error>(())
/// # }).unwrap();
/// ```
#[derive(Debug)]
pub struct Service<M> {
    handle: Arc<Handle<M>>,
}

#[derive(Debug)]
struct Handle<M> {
    model: Arc<M>,
    queue: Arc<Queue>,
    tokenizing: rayon::ThreadPool,
}

impl<M> Clone for Service<M> {
    fn clone(&self) -> Self {
        Self { handle: Arc::clone(&self.handle) }
    }
}

impl<M> Drop for Handle<M> {
    fn drop(&mut self) {
        // No handle is left, and so no caller: the thread ends.
        drop(self.queue.drain());
    }
}

impl<M> Service<M> {
    /// The model.
    pub fn model(&self) -> &M {
        &self.handle.model
    }

    /// Where the service is in its life. It is the truth: when the thread that computes ends, for whatever
    /// reason, the service is [`Stopped`](ServiceState::Stopped).
    pub fn state(&self) -> ServiceState {
        self.handle.queue.state()
    }

    /// Texts that wait to be computed.
    pub fn waiting_texts(&self) -> usize {
        self.handle.queue.n_texts()
    }

    /// Accepts no more requests from now on. What is returned is ready when those that were accepted are
    /// done, and need not be awaited.
    pub fn drain(&self) -> impl Future<Output = ()> + Send + use<M> {
        let drained = self.handle.queue.drain();
        async {
            // The sender is dropped at the end, and sends nothing.
            let _ = drained.await;
        }
    }

    /// Makes the thread that computes panic, as a bug would: for tests of what happens then.
    #[doc(hidden)]
    pub fn panic(&self) {
        self.handle.queue.panic();
    }
}

impl<M: Send + Sync + 'static> Service<M> {
    /// Has a request computed whose `n_texts` texts `prepare` turns into tokens.
    async fn run(
        &self,
        n_texts: usize,
        row: Row,
        prepare: impl FnOnce(&M) -> Result<Vec<Vec<u32>>> + Send + 'static,
    ) -> Result<Completed> {
        let arrived = Instant::now();
        if n_texts == 0 {
            return Ok(Completed::default());
        }
        // Removes from the queue what is left of the request when this future is dropped.
        let place = self.handle.queue.admit(n_texts)?;
        let (caller, completed) = oneshot::channel();
        let (model, queue) = (Arc::clone(&self.handle.model), Arc::clone(&self.handle.queue));
        let id = place.id();
        self.handle.tokenizing.spawn(move || {
            if caller.is_canceled() {
                return;
            }
            match prepare(&model) {
                Ok(texts) => queue.fill(id, Request::new(row, &texts, arrived, caller), texts),
                Err(error) => {
                    queue.remove(id);
                    // The caller may have gone.
                    let _ = caller.send(Err(error));
                }
            }
        });
        completed.await.unwrap_or(Err(Error::ServiceStopped))
    }
}

/// A model that gives a row of values for each text.
trait Compute: Send + Sync + 'static {
    /// Calls `write` with a text's index and its row, in any order.
    fn compute(
        &self,
        texts: &[&[u32]],
        write: &mut (dyn FnMut(usize, &[f32]) + Send),
    ) -> Result<()>;
}

/// Puts a model behind a queue.
fn start<M: Compute>(model: M, options: ServiceOptions) -> Result<Service<M>> {
    check("batch_tokens", options.batch_tokens, usize::MAX)?;
    check("max_waiting_texts", options.max_waiting_texts, usize::MAX)?;
    check("tokenizer_threads", options.tokenizer_threads, 1024)?;
    let tokenizing = rayon::ThreadPoolBuilder::new()
        .num_threads(options.tokenizer_threads)
        .thread_name(|n| format!("tokenize-{n}"))
        // Who waits for the tokens gets an error; the program goes on.
        .panic_handler(|_| {})
        .build()?;
    let (model, queue) = (Arc::new(model), Arc::new(Queue::new(options.max_waiting_texts)));
    let batcher = Batcher { model: Arc::clone(&model), queue: Arc::clone(&queue), options };
    let thread = thread::Builder::new().name("compute".to_owned());
    thread.spawn(move || batcher.run()).map_err(|source| Error::Thread { source })?;
    Ok(Service { handle: Arc::new(Handle { model, queue, tokenizing }) })
}

/// What runs on the thread that computes.
struct Batcher<M> {
    model: Arc<M>,
    queue: Arc<Queue>,
    options: ServiceOptions,
}

/// Says that nothing is computed any more, also when the thread panics.
struct Stop<'a>(&'a Queue);

impl Drop for Stop<'_> {
    fn drop(&mut self) {
        self.0.stop();
    }
}

impl<M: Compute> Batcher<M> {
    fn run(&self) {
        let _stop = Stop(&self.queue);
        while let Some(mut batch) = self.queue.next_batch(self.options.batch_tokens) {
            batch.retain(|job| !job.request.is_over());
            if !batch.is_empty() {
                self.compute(&batch);
            }
        }
    }

    fn compute(&self, batch: &[Job]) {
        let began = Instant::now();
        let mut is_done = vec![false; batch.len()];
        let texts: Vec<&[u32]> = batch.iter().map(|job| job.tokens.as_slice()).collect();
        let result = self.model.compute(&texts, &mut |at, row| {
            is_done[at] = true;
            batch[at].request.write(batch[at].text, row, began);
        });
        match result {
            Ok(()) => {}
            Err(error) if batch.len() == 1 => batch[0].request.fail(batch[0].text, error),
            // A text must not make those of other callers fail.
            Err(_) => {
                let rest = batch.iter().zip(is_done).filter(|(_, is_done)| !is_done);
                rest.for_each(|(job, _)| self.compute_alone(job, began));
            }
        }
        let n_tokens = texts.iter().map(|text| text.len()).sum();
        let report = BatchReport { n_texts: batch.len(), n_tokens, compute: began.elapsed() };
        self.queue.computed(report.n_texts, report.compute.as_secs_f64());
        if let Some(on_batch) = &self.options.on_batch {
            on_batch(&report);
        }
    }

    fn compute_alone(&self, job: &Job, began: Instant) {
        let write = &mut |_, row: &[f32]| job.request.write(job.text, row, began);
        if let Err(error) = self.model.compute(&[&job.tokens], write) {
            job.request.fail(job.text, error);
        }
    }
}
