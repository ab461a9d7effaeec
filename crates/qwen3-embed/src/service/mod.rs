//! Models behind a queue: what a server, or any program with many callers, puts between them and a model.

mod embed;
mod queue;
mod request;
mod score;
mod tokenizing;

use std::ops::Range;
use std::sync::Arc;
use std::time::{Duration, Instant};
use std::{fmt, thread};

use futures_channel::oneshot;

pub use self::embed::{EmbedOptions, Embedded, Prompt, Texts};
pub use self::queue::ServiceState;
use self::queue::{Job, Queue};
pub use self::request::Timings;
use self::request::{Completed, Row};
pub use self::score::{ScoreOptions, Scored};
use self::tokenizing::{Threads, Tokenizing};
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
    /// Threads that tokenize, beside those that compute, 1 to 1024. Default: one for each core, or as many as the
    /// CPU quota of the container allows.
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
///   thousands of texts delays one with a single text by no more than a batch. They become tokens in turns too.
/// - *Bounded*: while [`ServiceOptions::max_waiting_texts`] wait, requests are refused with
///   [`Error::ServiceFull`], which says when to try again. A request that is accepted may have any number.
/// - *Cancelled* when the future is dropped: texts that are in no batch yet are not computed, and those that are
///   no tokens yet are not tokenized, but for the 64 KiB that are being tokenized.
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
    tokenizing: Arc<Threads>,
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
    /// Has a request computed whose texts `encode` turns into tokens, piece by piece.
    async fn run(
        &self,
        pieces: Vec<Range<usize>>,
        row: Row,
        encode: impl FnMut(&M, Range<usize>) -> Result<Vec<Vec<u32>>> + Send + 'static,
    ) -> Result<Completed> {
        let arrived = Instant::now();
        let Some(&Range { end: n_texts, .. }) = pieces.last() else {
            return Ok(Completed::default());
        };
        let Handle { model, queue, tokenizing } = &*self.handle;
        // Removes from the queue what is left of the request when this future is dropped.
        let place = queue.admit(n_texts)?;
        let (caller, completed) = oneshot::channel();
        Tokenizing {
            threads: Arc::clone(tokenizing),
            model: Arc::clone(model),
            queue: Arc::clone(queue),
            id: place.id(),
            row,
            arrived,
            caller,
            encode,
            pieces: pieces.into_iter(),
            tokens: Vec::with_capacity(n_texts),
        }
        .go_on();
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
    let tokenizing = Arc::new(Threads::new(options.tokenizer_threads)?);
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

#[cfg(test)]
mod tests {
    use std::pin::pin;
    use std::sync::{Mutex, mpsc};
    use std::task::{Context, Waker};

    use futures_executor::block_on;

    use super::tokenizing::pieces;
    use super::*;

    /// Gives every text a zero.
    struct Zeros;

    impl Compute for Zeros {
        fn compute(
            &self,
            texts: &[&[u32]],
            write: &mut (dyn FnMut(usize, &[f32]) + Send),
        ) -> Result<()> {
            (0..texts.len()).for_each(|text| write(text, &[0.0]));
            Ok(())
        }
    }

    const ROW: Row = Row { width: 1, normalize: false };

    /// A service with a single thread that tokenizes.
    fn service() -> Service<Zeros> {
        start(Zeros, ServiceOptions { tokenizer_threads: 1, ..ServiceOptions::default() }).unwrap()
    }

    type Log = Arc<Mutex<Vec<(&'static str, Range<usize>)>>>;

    /// Notes whose texts are tokenized, and waits for leave before the first.
    fn noting(
        log: &Log,
        who: &'static str,
        leave: mpsc::Receiver<()>,
    ) -> impl FnMut(&Zeros, Range<usize>) -> Result<Vec<Vec<u32>>> + Send + 'static {
        let log = Arc::clone(log);
        move |_, texts| {
            // Only the first time: then the other end has gone.
            let _ = leave.recv();
            log.lock().unwrap().push((who, texts.clone()));
            Ok(texts.map(|text| vec![text as u32]).collect())
        }
    }

    #[test]
    fn requests_become_tokens_in_turns() {
        let (service, log, (go, leave)) = (service(), Log::default(), mpsc::channel());
        let texts = pieces([40_000, 20_000, 10_000, 100_000, 1, 2].into_iter());
        let mut large = pin!(service.run(texts, ROW, noting(&log, "large", leave)));
        let mut context = Context::from_waker(Waker::noop());
        assert!(large.as_mut().poll(&mut context).is_pending());
        let small = noting(&log, "small", mpsc::channel().1);
        let mut small = pin!(service.run(pieces([1].into_iter()), ROW, small));
        assert!(small.as_mut().poll(&mut context).is_pending());
        drop(go);
        assert_eq!(block_on(small).unwrap().n_tokens, [1]);
        assert_eq!(block_on(large).unwrap().n_tokens, [1; 6]);
        let expected =
            [("large", 0..2), ("small", 0..1), ("large", 2..3), ("large", 3..4), ("large", 4..6)];
        assert_eq!(*log.lock().unwrap(), expected);
    }

    #[test]
    fn texts_of_a_caller_who_has_gone_are_not_tokenized() {
        let (service, log, (go, leave)) = (service(), Log::default(), mpsc::channel());
        let mut context = Context::from_waker(Waker::noop());
        {
            let texts = vec![0..1, 1..2, 2..3];
            let large = pin!(service.run(texts, ROW, noting(&log, "large", leave)));
            assert!(large.poll(&mut context).is_pending());
            // One is begun.
            go.send(()).unwrap();
            while log.lock().unwrap().is_empty() {
                thread::yield_now();
            }
        }
        drop(go);
        // The second has its turn behind what there would be of the large one's last text.
        for _ in 0..2 {
            let small = noting(&log, "small", mpsc::channel().1);
            block_on(service.run(pieces([1].into_iter()), ROW, small)).unwrap();
        }
        // The large one's second text may have begun before it went.
        let n_large = log.lock().unwrap().iter().filter(|(who, _)| *who == "large").count();
        assert!((1..=2).contains(&n_large), "{n_large}");
    }

    #[test]
    fn an_error_names_the_text_of_the_request() {
        let encode = |_: &Zeros, texts: Range<usize>| {
            let error = Error::TextTooLong { text: 0, n_tokens: 1, max_tokens: 0 };
            if texts.contains(&2) { Err(error) } else { Ok(vec![vec![0]; texts.len()]) }
        };
        let error = block_on(service().run(vec![0..2, 2..4], ROW, encode)).unwrap_err();
        assert!(matches!(error, Error::TextTooLong { text: 2, .. }), "{error:?}");
    }
}
