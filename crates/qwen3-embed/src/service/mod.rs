//! A model behind a queue, for a server or any other program with many concurrent callers.

mod embed;
mod queue;
mod request;
mod score;
#[cfg(test)]
#[cfg(shuttle)]
mod shuttle_tests;
mod sync;
mod tokenize;

use std::ops::Range;
use std::sync::Arc;
use std::time::{Duration, Instant};
use std::{fmt, thread};

use futures_channel::oneshot;
use qwen3_embed_model::Device;

pub use self::embed::Embedded;
pub use self::queue::ServiceState;
use self::queue::{Queue, QueuedText};
use self::request::Completed;
pub use self::request::Timings;
pub use self::score::Scored;
use self::tokenize::{TokenizerPool, UntokenizedRequest};
use crate::embed_request::RowFormat;
use crate::limits::{check_setting, service_batch_tokens};
use crate::{Error, Result};

/// Settings of a [`Service`], for [`Embedder::into_service`](crate::Embedder::into_service) and
/// [`Reranker::into_service`](crate::Reranker::into_service).
///
/// # Examples
///
/// ```
/// use qwen3_embed::ServiceOptions;
///
/// let options = ServiceOptions::new().batch_tokens(2048).max_waiting_texts(1000);
/// ```
#[derive(Clone)]
#[non_exhaustive]
pub struct ServiceOptions {
    /// The batch budget: see [`batch_tokens`](Self::batch_tokens).
    pub batch_tokens: usize,
    /// The size of the queue in texts: see [`max_waiting_texts`](Self::max_waiting_texts).
    pub max_waiting_texts: usize,
    /// The number of threads that tokenize: see [`tokenizer_threads`](Self::tokenizer_threads).
    pub tokenizer_threads: usize,
    /// A function that is called after each batch: see [`on_batch`](Self::on_batch).
    pub on_batch: Option<OnBatch>,
}

/// A function that a service calls after each batch, see [`ServiceOptions::on_batch`].
pub type OnBatch = Arc<dyn Fn(&BatchReport) + Send + Sync>;

/// Statistics of one batch, see [`ServiceOptions::on_batch`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub struct BatchReport {
    /// The number of texts in the batch.
    pub n_texts: usize,
    /// The number of tokens of these texts, including tokens that were not computed because they are part of a
    /// shared prefix.
    pub n_tokens: usize,
    /// The time that the computation of the batch took.
    pub compute: Duration,
}

impl ServiceOptions {
    /// The default settings for a model on the CPU.
    pub fn new() -> Self {
        Self::for_device(Device::Cpu)
    }

    /// The default settings for a model on this device.
    pub fn for_device(device: Device) -> Self {
        Self {
            batch_tokens: service_batch_tokens(device),
            max_waiting_texts: 16384,
            tokenizer_threads: thread::available_parallelism().map_or(1, usize::from).min(1024),
            on_batch: None,
        }
    }

    /// The batch budget: the maximum number of tokens that are computed together, at least 1. A text with more tokens
    /// is a batch by itself. A larger budget raises the throughput. A smaller budget lowers the latency, because a
    /// request that arrives while a batch is computed waits for the end of that batch. Default: 1024 on the CPU, 8192
    /// on a CUDA device. The model divides a larger batch into batches of
    /// [`EmbedderBuilder::batch_tokens`](crate::EmbedderBuilder::batch_tokens).
    pub fn batch_tokens(mut self, batch_tokens: usize) -> Self {
        self.batch_tokens = batch_tokens;
        self
    }

    /// The size of the queue in texts, at least 1. While this many texts wait, requests are refused with
    /// [`Error::ServiceFull`]. Choose a few times the number of texts of the largest request, because smaller requests
    /// are refused while the texts of a large one fill the queue. Default: 16384.
    pub fn max_waiting_texts(mut self, max_waiting_texts: usize) -> Self {
        self.max_waiting_texts = max_waiting_texts;
        self
    }

    /// The number of threads that tokenize, 1 to 1024. They are in addition to the threads that compute. Default: one
    /// for each core, or fewer if the CPU quota of the container is smaller.
    pub fn tokenizer_threads(mut self, tokenizer_threads: usize) -> Self {
        self.tokenizer_threads = tokenizer_threads;
        self
    }

    /// A function that is called after each batch, on the worker thread. The next batch waits until it returns.
    pub fn on_batch(mut self, on_batch: impl Fn(&BatchReport) + Send + Sync + 'static) -> Self {
        self.on_batch = Some(Arc::new(on_batch));
        self
    }
}

impl Default for ServiceOptions {
    fn default() -> Self {
        Self::new()
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

/// A model that many callers use concurrently. A worker thread computes the texts of all callers together, in
/// batches.
///
/// The methods are `async` and work with any async runtime, because a service tokenizes and computes on its own
/// threads. A clone is another handle to the same service.
///
/// - *Batches* are formed from the waiting texts, up to [`ServiceOptions::batch_tokens`]. On the CPU, the vector of a
///   text does not depend on the other texts in the batch: it is the same, bit for bit.
/// - *Fairness*: the next text is taken from the request of which the fewest tokens have been computed so far. A
///   request with thousands of texts delays a request with one text by no more than one batch. Tokenization alternates
///   between requests, too.
/// - *Limits*: while [`ServiceOptions::max_waiting_texts`] texts wait, requests are refused with
///   [`Error::ServiceFull`], which says when to try again. An accepted request may have any number of texts.
/// - *Cancellation*: if a caller drops the future, the rest of its texts is neither tokenized nor computed. Only the
///   texts in the current batch are still computed, and only the current piece of about 64 KiB of text is still
///   tokenized.
///
/// # Examples
///
/// ```
/// use qwen3_embed::{EmbedOptions, Embedder, Prompt, ServiceOptions};
///
/// # let model = qwen3_embed::Source::demo();
/// # futures_executor::block_on(async {
/// let service = Embedder::builder(model).build()?.into_service(ServiceOptions::new())?;
///
/// let options = EmbedOptions::new().prompt(Prompt::Query);
/// let embedded = service.embed(["What is the capital of China?"], options).await?;
/// assert_eq!(embedded.embeddings.len(), 1);
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
    tokenizer_pool: Arc<TokenizerPool>,
}

impl<M> Clone for Service<M> {
    fn clone(&self) -> Self {
        Self { handle: Arc::clone(&self.handle) }
    }
}

impl<M> Drop for Handle<M> {
    fn drop(&mut self) {
        // No handle is left, so there can be no more requests. Draining ends the worker thread.
        drop(self.queue.drain());
    }
}

impl<M> Service<M> {
    /// The model.
    pub fn model(&self) -> &M {
        &self.handle.model
    }

    /// The current state. It is [`Stopped`](ServiceState::Stopped) as soon as the worker thread has ended, even if the
    /// thread has panicked.
    pub fn state(&self) -> ServiceState {
        self.handle.queue.state()
    }

    /// The number of texts that wait to be computed.
    pub fn waiting_texts(&self) -> usize {
        self.handle.queue.n_texts()
    }

    /// Stops accepting requests. The returned future is ready when the accepted requests are completed. Dropping the
    /// future does not stop the draining.
    pub fn drain(&self) -> impl Future<Output = ()> + Send + use<M> {
        let drained = self.handle.queue.drain();
        async {
            // The queue drops the sender at the end, without sending anything.
            let _ = drained.await;
        }
    }

    /// Makes the worker thread panic, as a bug would. For tests.
    #[doc(hidden)]
    pub fn panic(&self) {
        self.handle.queue.panic();
    }
}

impl<M: Send + Sync + 'static> Service<M> {
    /// Computes a request whose texts are tokenized by `encode`, piece by piece.
    async fn run(
        &self,
        pieces: Vec<Range<usize>>,
        row: RowFormat,
        encode: impl FnMut(&M, Range<usize>) -> Result<Vec<Vec<u32>>> + Send + 'static,
    ) -> Result<Completed> {
        let arrived = Instant::now();
        let Some(&Range { end: n_texts, .. }) = pieces.last() else {
            return Ok(Completed::default());
        };
        let Handle { model, queue, tokenizer_pool } = &*self.handle;
        // If this future is dropped, dropping the place removes the rest of the request from the queue.
        let place = queue.admit(n_texts)?;
        let (caller, completed) = oneshot::channel();
        let request = UntokenizedRequest {
            pool: Arc::clone(tokenizer_pool),
            model: Arc::clone(model),
            queue: Arc::clone(queue),
            id: place.id(),
            row,
            arrived,
            caller,
            encode,
            pieces: pieces.into_iter(),
            tokens: Vec::with_capacity(n_texts),
        };
        request.tokenize();
        completed.await.unwrap_or(Err(Error::ServiceStopped))
    }
}

/// A model that computes one row of values for each text.
trait Compute: Send + Sync + 'static {
    /// Calls `write` with the index of each text and its row, in any order.
    fn compute(
        &self,
        texts: &[&[u32]],
        write: &mut (dyn FnMut(usize, &[f32]) + Send),
    ) -> Result<()>;
}

/// Starts the threads of a service.
fn start<M: Compute>(model: M, options: ServiceOptions) -> Result<Service<M>> {
    check_setting("batch_tokens", options.batch_tokens, usize::MAX)?;
    check_setting("max_waiting_texts", options.max_waiting_texts, usize::MAX)?;
    check_setting("tokenizer_threads", options.tokenizer_threads, 1024)?;
    let tokenizer_pool = Arc::new(TokenizerPool::new(options.tokenizer_threads)?);
    let (model, queue) = (Arc::new(model), Arc::new(Queue::new(options.max_waiting_texts)));
    let worker = Worker { model: Arc::clone(&model), queue: Arc::clone(&queue), options };
    let thread = thread::Builder::new().name("compute".to_owned());
    thread.spawn(move || worker.run()).map_err(|source| Error::Thread { source })?;
    Ok(Service { handle: Arc::new(Handle { model, queue, tokenizer_pool }) })
}

/// The worker thread, which computes batches.
struct Worker<M> {
    model: Arc<M>,
    queue: Arc<Queue>,
    options: ServiceOptions,
}

/// Stops the queue when the worker thread ends, even if it panics.
struct StopOnDrop<'a>(&'a Queue);

impl Drop for StopOnDrop<'_> {
    fn drop(&mut self) {
        self.0.stop();
    }
}

impl<M: Compute> Worker<M> {
    fn run(&self) {
        let _stop = StopOnDrop(&self.queue);
        while let Some(mut batch) = self.queue.next_batch(self.options.batch_tokens) {
            batch.retain(|text| !text.request.is_over());
            if !batch.is_empty() {
                self.compute(&batch);
            }
        }
    }

    fn compute(&self, batch: &[QueuedText]) {
        let began = Instant::now();
        let mut is_done = vec![false; batch.len()];
        let texts: Vec<&[u32]> = batch.iter().map(|text| text.tokens.as_slice()).collect();
        let result = self.model.compute(&texts, &mut |at, row| {
            is_done[at] = true;
            batch[at].request.write(batch[at].index, row, began);
        });
        match result {
            Ok(()) => {}
            Err(error) if batch.len() == 1 => batch[0].request.fail(batch[0].index, error),
            // An error about one text must not make the other texts fail, so each text is computed by itself.
            Err(_) => {
                let rest = batch.iter().zip(is_done).filter(|(_, is_done)| !is_done);
                rest.for_each(|(text, _)| self.compute_alone(text, began));
            }
        }
        let n_tokens = texts.iter().map(|text| text.len()).sum();
        let report = BatchReport { n_texts: batch.len(), n_tokens, compute: began.elapsed() };
        self.queue.computed(report.n_texts, report.compute.as_secs_f64());
        if let Some(on_batch) = &self.options.on_batch {
            on_batch(&report);
        }
    }

    fn compute_alone(&self, text: &QueuedText, began: Instant) {
        let write = &mut |_, row: &[f32]| text.request.write(text.index, row, began);
        if let Err(error) = self.model.compute(&[&text.tokens], write) {
            text.request.fail(text.index, error);
        }
    }
}

#[cfg(test)]
#[cfg(not(shuttle))]
mod tests {
    use std::pin::pin;
    use std::sync::{Mutex, mpsc};
    use std::task::{Context, Waker};

    use futures_executor::block_on;

    use super::tokenize::pieces;
    use super::*;

    /// A model that computes a zero for every text.
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

    const ROW: RowFormat = RowFormat { dimensions: 1, normalize: false };

    /// A service with one thread that tokenizes.
    fn service() -> Service<Zeros> {
        start(Zeros, ServiceOptions::new().tokenizer_threads(1)).unwrap()
    }

    type Log = Arc<Mutex<Vec<(&'static str, Range<usize>)>>>;

    /// A tokenize function that writes into the log which texts of which caller are tokenized. Its first call waits for
    /// a message from `start`.
    fn logging(
        log: &Log,
        who: &'static str,
        start: mpsc::Receiver<()>,
    ) -> impl FnMut(&Zeros, Range<usize>) -> Result<Vec<Vec<u32>>> + Send + 'static {
        let log = Arc::clone(log);
        move |_, texts| {
            // Later calls do not wait, because the sender has been dropped.
            let _ = start.recv();
            log.lock().unwrap().push((who, texts.clone()));
            Ok(texts.map(|text| vec![text as u32]).collect())
        }
    }

    #[test]
    fn tokenizes_requests_in_turns() {
        let (service, log, (go, start)) = (service(), Log::default(), mpsc::channel());
        let texts = pieces([40_000, 20_000, 10_000, 100_000, 1, 2].into_iter());
        let mut large = pin!(service.run(texts, ROW, logging(&log, "large", start)));
        let mut context = Context::from_waker(Waker::noop());
        assert!(large.as_mut().poll(&mut context).is_pending());
        let small = logging(&log, "small", mpsc::channel().1);
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
    fn stops_tokenizing_when_the_future_is_dropped() {
        let (service, log, (go, start)) = (service(), Log::default(), mpsc::channel());
        let mut context = Context::from_waker(Waker::noop());
        {
            let texts = vec![0..1, 1..2, 2..3];
            let large = pin!(service.run(texts, ROW, logging(&log, "large", start)));
            assert!(large.poll(&mut context).is_pending());
            // The first text is being tokenized.
            go.send(()).unwrap();
            while log.lock().unwrap().is_empty() {
                thread::yield_now();
            }
        }
        drop(go);
        // If the large request were still tokenized, all its texts would be tokenized before the second small request.
        for _ in 0..2 {
            let small = logging(&log, "small", mpsc::channel().1);
            block_on(service.run(pieces([1].into_iter()), ROW, small)).unwrap();
        }
        // The second text of the large request may have started before its future was dropped.
        let n_large = log.lock().unwrap().iter().filter(|(who, _)| *who == "large").count();
        assert!((1..=2).contains(&n_large), "{n_large}");
    }

    #[test]
    fn errors_contain_the_index_of_the_text_in_the_request() {
        let encode = |_: &Zeros, texts: Range<usize>| {
            let error = Error::TextTooLong { text: 0, n_tokens: 1, max_tokens: 0 };
            if texts.contains(&2) { Err(error) } else { Ok(vec![vec![0]; texts.len()]) }
        };
        let error = block_on(service().run(vec![0..2, 2..4], ROW, encode)).unwrap_err();
        assert!(matches!(error, Error::TextTooLong { text: 2, .. }), "{error:?}");
    }
}
