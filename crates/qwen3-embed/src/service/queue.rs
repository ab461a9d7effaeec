//! The queue between callers and the worker thread.
//!
//! A request is a list of texts. The queue returns *batches*: as many texts as fit into a budget of tokens. Each text
//! is taken from the request that has received the fewest tokens so far (start-time fair queueing). The tokens that a
//! request has received are the tokens of its texts that were taken into batches.
//!
//! The count of a new request does not start at 0, but at the *virtual time*: the number of tokens that a request would
//! have received if it had always been in the queue and had always had an equal share. Whenever a text is taken, the
//! virtual time rises by `tokens / requests`. So a new request does not wait until the older requests are completed, it
//! gets no compensation for the time before it arrived, and a steady stream of new requests cannot starve an older
//! request.
//!
//! A text that does not fit into the rest of a batch is skipped, and is the first text of the next batch. A text with
//! more tokens than the budget is a batch by itself.

use std::collections::VecDeque;
use std::sync::{Arc, PoisonError};
use std::time::Duration;

use futures_channel::oneshot;

use super::request::Request;
use super::sync::{Condvar, Mutex, MutexGuard};
use crate::{Error, Result};

/// The state of a service.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ServiceState {
    /// Requests are accepted and computed.
    Running,
    /// New requests are refused. Accepted requests are computed.
    Draining,
    /// The worker thread has ended: after [`Service::drain`](super::Service::drain), or because a bug made it panic.
    Stopped,
}

/// A text in a batch.
#[derive(Debug)]
pub(super) struct QueuedText {
    pub(super) request: Arc<Request>,
    /// The index of the text in the request.
    pub(super) index: usize,
    pub(super) tokens: Vec<u32>,
}

/// See the [module's documentation](self).
#[derive(Debug)]
pub(super) struct Queue {
    inner: Mutex<Inner>,
    changed: Condvar,
    max_texts: usize,
}

#[derive(Debug)]
struct Inner {
    state: ServiceState,
    /// Whether the worker thread panics when it asks for the next batch.
    panics: bool,
    /// In the order of arrival.
    entries: Vec<Entry>,
    next_id: u64,
    /// See the [module's documentation](self). It is never below the count of the request from which the last text was
    /// taken.
    virtual_time: f64,
    /// A moving average of the time that one text takes.
    seconds_per_text: f64,
    /// The callers of [`Queue::drain`] that wait until the worker thread has ended.
    waiters: Vec<oneshot::Sender<()>>,
}

/// A request with texts that are not in a batch yet.
#[derive(Debug)]
struct Entry {
    id: u64,
    /// The number of texts that are not in a batch yet, tokenized or not.
    n_texts: usize,
    /// `None` until the request is tokenized.
    request: Option<Arc<Request>>,
    /// The index and the tokens of each text that is not in a batch yet.
    texts: VecDeque<(usize, Vec<u32>)>,
    /// The virtual time at which the request was put into the queue, plus the number of tokens that it has received
    /// since then.
    n_served: f64,
}

/// The place of a request in the queue. Dropping the place removes the rest of the request from the queue.
#[derive(Debug)]
pub(super) struct Place {
    queue: Arc<Queue>,
    id: u64,
}

impl Place {
    /// The id for [`Queue::fill`] and [`Queue::remove`].
    pub(super) fn id(&self) -> u64 {
        self.id
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.queue.remove(self.id);
    }
}

impl Queue {
    /// An empty queue that accepts requests while fewer than `max_texts` texts are waiting.
    pub(super) fn new(max_texts: usize) -> Self {
        let inner = Inner {
            state: ServiceState::Running,
            panics: false,
            entries: Vec::new(),
            next_id: 0,
            virtual_time: 0.0,
            seconds_per_text: 0.0,
            waiters: Vec::new(),
        };
        Self { inner: Mutex::new(inner), changed: Condvar::new(), max_texts }
    }

    pub(super) fn state(&self) -> ServiceState {
        self.lock().state
    }

    /// The number of texts that are not in a batch yet.
    pub(super) fn n_texts(&self) -> usize {
        self.lock().n_texts()
    }

    /// Accepts or refuses a request of `n_texts` texts. An accepted request gets a place.
    /// [`fill`](Self::fill) puts the texts into that place when they are tokenized.
    pub(super) fn admit(self: &Arc<Self>, n_texts: usize) -> Result<Place> {
        let mut inner = self.lock();
        match inner.state {
            ServiceState::Running => {}
            ServiceState::Draining => return Err(Error::ServiceDraining),
            ServiceState::Stopped => return Err(Error::ServiceStopped),
        }
        let n_waiting = inner.n_texts();
        // The size of the request itself does not count. Otherwise a request with more texts than the limit could never
        // be accepted.
        if n_waiting >= self.max_texts {
            let seconds = inner.seconds_per_text * (n_waiting + 1 - self.max_texts) as f64;
            let retry_after = Duration::try_from_secs_f64(seconds).unwrap_or(Duration::MAX);
            return Err(Error::ServiceFull { n_waiting, limit: self.max_texts, retry_after });
        }
        let id = inner.next_id;
        inner.next_id += 1;
        let (request, texts, n_served) = (None, VecDeque::new(), 0.0);
        inner.entries.push(Entry { id, n_texts, request, texts, n_served });
        Ok(Place { queue: Arc::clone(self), id })
    }

    /// Puts the texts of a request into its place, unless the place was dropped.
    pub(super) fn fill(&self, id: u64, request: Request, texts: Vec<Vec<u32>>) {
        let mut inner = self.lock();
        let virtual_time = inner.virtual_time;
        if let Some(entry) = inner.entries.iter_mut().find(|entry| entry.id == id) {
            entry.request = Some(Arc::new(request));
            entry.texts = texts.into_iter().enumerate().collect();
            entry.n_served = virtual_time;
            drop(inner);
            self.changed.notify_one();
        }
    }

    /// Removes the rest of a request.
    pub(super) fn remove(&self, id: u64) {
        let mut inner = self.lock();
        if let Some(at) = inner.entries.iter().position(|entry| entry.id == id) {
            let entry = inner.entries.remove(at);
            let is_draining = inner.state == ServiceState::Draining;
            drop(inner);
            // Freeing many texts takes time, so the lock is released first.
            drop(entry);
            if is_draining {
                self.changed.notify_one();
            }
        }
    }

    /// Waits for texts and takes as many as fit into `budget` tokens. Returns `None` when the queue is drained.
    pub(super) fn next_batch(&self, budget: usize) -> Option<Vec<QueuedText>> {
        let mut inner = self.lock();
        loop {
            assert!(!inner.panics, "a test made the worker thread panic");
            let batch = inner.take(budget);
            if !batch.is_empty() {
                return Some(batch);
            }
            if inner.state == ServiceState::Draining && inner.entries.is_empty() {
                return None;
            }
            inner = self.changed.wait(inner).unwrap_or_else(PoisonError::into_inner);
        }
    }

    /// Records how long a batch took.
    pub(super) fn computed(&self, n_texts: usize, seconds: f64) {
        const WEIGHT: f64 = 0.2;
        let mut inner = self.lock();
        let now = seconds / n_texts as f64;
        let before = if inner.seconds_per_text > 0.0 { inner.seconds_per_text } else { now };
        inner.seconds_per_text = (1.0 - WEIGHT) * before + WEIGHT * now;
    }

    /// Refuses requests from now on. The sender is dropped when the worker thread has ended.
    pub(super) fn drain(&self) -> oneshot::Receiver<()> {
        let (sender, receiver) = oneshot::channel();
        let mut inner = self.lock();
        if inner.state != ServiceState::Stopped {
            inner.state = ServiceState::Draining;
            inner.waiters.push(sender);
        }
        drop(inner);
        self.changed.notify_one();
        receiver
    }

    /// Ends the queue when the worker thread ends. All callers that are waiting get an error.
    pub(super) fn stop(&self) {
        let mut inner = self.lock();
        inner.state = ServiceState::Stopped;
        let (entries, waiters) = (inner.entries.split_off(0), inner.waiters.split_off(0));
        drop(inner);
        drop((entries, waiters));
    }

    /// Makes the worker thread panic when it asks for the next batch.
    pub(super) fn panic(&self) {
        self.lock().panics = true;
        self.changed.notify_one();
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        // A poisoned lock still guards a consistent queue: the only panic under the lock is in `next_batch`, before
        // the queue is changed.
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Inner {
    fn n_texts(&self) -> usize {
        self.entries.iter().map(|entry| entry.n_texts).sum()
    }

    /// Takes the texts of a batch.
    fn take(&mut self, budget: usize) -> Vec<QueuedText> {
        let mut batch = Vec::new();
        let mut left = budget;
        let mut n_ready = self.entries.iter().filter(|entry| !entry.texts.is_empty()).count();
        while let Some(at) = self.next(if batch.is_empty() { usize::MAX } else { left }) {
            let entry = &mut self.entries[at];
            let (Some((index, tokens)), Some(request)) = (entry.texts.pop_front(), &entry.request)
            else {
                break;
            };
            let request = Arc::clone(request);
            let n_tokens = tokens.len() as f64;
            self.virtual_time = entry.n_served.max(self.virtual_time) + n_tokens / n_ready as f64;
            entry.n_served += n_tokens;
            entry.n_texts -= 1;
            if entry.texts.is_empty() {
                self.entries.remove(at);
                n_ready -= 1;
            }
            left = left.saturating_sub(tokens.len());
            batch.push(QueuedText { request, index, tokens });
        }
        batch
    }

    /// The index of the entry that has received the fewest tokens, among the entries whose next text has at most `left`
    /// tokens. If several entries have received equally few tokens, the oldest of them is chosen.
    fn next(&self, left: usize) -> Option<usize> {
        let entries = self.entries.iter().enumerate();
        let fits = |entry: &Entry| entry.texts.front().is_some_and(|text| text.1.len() <= left);
        let ready = entries.filter(|(_, entry)| fits(entry));
        Some(ready.min_by(|(_, a), (_, b)| a.n_served.total_cmp(&b.n_served))?.0)
    }
}

#[cfg(test)]
#[cfg(not(shuttle))]
mod tests {
    use std::time::Instant;

    use super::super::ServiceOptions;
    use super::*;
    use crate::embed_request::RowFormat;

    /// A request as its caller sees it.
    struct Caller {
        place: Place,
        rows: oneshot::Receiver<Result<super::super::request::Completed>>,
    }

    /// Puts a request with texts of these numbers of tokens into the queue.
    fn request(queue: &Arc<Queue>, lengths: &[usize]) -> Caller {
        let place = queue.admit(lengths.len()).unwrap();
        let texts: Vec<Vec<u32>> = lengths.iter().map(|&n| vec![0; n]).collect();
        let (caller, rows) = oneshot::channel();
        let row = RowFormat { dimensions: 1, normalize: false };
        queue.fill(place.id(), Request::new(row, &texts, Instant::now(), caller), texts);
        Caller { place, rows }
    }

    /// The numbers of tokens of the texts in the next batch.
    fn batch(queue: &Queue, budget: usize) -> Vec<usize> {
        queue.next_batch(budget).unwrap().iter().map(|text| text.tokens.len()).collect()
    }

    #[test]
    fn batches_fill_the_budget_and_contain_every_text() {
        let queue = Arc::new(Queue::new(100));
        let _caller = request(&queue, &[4, 4, 3, 5, 9, 1]);
        assert_eq!(queue.n_texts(), 6);
        assert_eq!(batch(&queue, 10), [4, 4]);
        assert_eq!(batch(&queue, 10), [3, 5]);
        assert_eq!(batch(&queue, 10), [9, 1]);
        assert_eq!(queue.n_texts(), 0);
    }

    #[test]
    fn a_new_request_is_in_the_next_batch() {
        let queue = Arc::new(Queue::new(10_000));
        let _many = request(&queue, &[5; 1000]);
        for _ in 0..10 {
            assert_eq!(batch(&queue, 20), [5; 4]);
        }
        let _one = request(&queue, &[7]);
        assert!(batch(&queue, 20).contains(&7));
        assert_eq!(batch(&queue, 20), [5; 4]);
    }

    #[test]
    fn requests_get_equal_shares_of_tokens_from_their_arrival_on() {
        let queue = Arc::new(Queue::new(10_000));
        let _long = request(&queue, &[30; 100]);
        for _ in 0..10 {
            assert_eq!(batch(&queue, 60), [30, 30]);
        }
        let _short = request(&queue, &[1; 1000]);
        let batches: Vec<Vec<usize>> = (0..20).map(|_| batch(&queue, 60)).collect();
        let n_tokens = |length| batches.iter().flatten().filter(|&&n| n == length).count() * length;
        let (long, short) = (n_tokens(30), n_tokens(1));
        assert!(
            long.abs_diff(short) <= 60,
            "{long} tokens of the long texts, {short} of the short ones"
        );
    }

    #[test]
    fn a_stream_of_new_requests_does_not_starve_a_request_with_several_texts() {
        const N_RIVALS: usize = 24;
        const LENGTH: usize = 300;
        for n_texts in [2, 20] {
            let queue = Arc::new(Queue::new(10_000));
            let mut rivals: Vec<Caller> =
                (0..N_RIVALS).map(|_| request(&queue, &[LENGTH])).collect();
            // As soon as the request of a rival is completed, the rival sends a new one.
            let mut serve = || {
                let texts = queue.next_batch(3 * LENGTH).unwrap();
                for text in &texts {
                    text.request.write(text.index, &[0.0], Instant::now());
                }
                for rival in &mut rivals {
                    if !matches!(rival.rows.try_recv(), Ok(None)) {
                        *rival = request(&queue, &[LENGTH]);
                    }
                }
                texts.len()
            };
            (0..10).for_each(|_| assert_eq!(serve(), 3));
            let mut caller = request(&queue, &vec![LENGTH; n_texts]);
            let mut n_served = 0;
            while matches!(caller.rows.try_recv(), Ok(None)) && n_served < 10_000 {
                n_served += serve();
            }
            // In each round over all requests, one text of this request is taken.
            let round = N_RIVALS + 1;
            let expected = (n_texts - 1) * round..(n_texts + 1) * round;
            assert!(expected.contains(&n_served), "{n_texts} texts among {n_served}");
        }
    }

    #[test]
    fn a_text_over_the_budget_is_a_batch_by_itself_and_does_not_starve() {
        let queue = Arc::new(Queue::new(10_000));
        let _long = request(&queue, &[500, 500]);
        let _short = request(&queue, &[2; 1000]);
        assert_eq!(batch(&queue, 10), [500]);
        // Short texts are taken until their request has received 500 tokens, too.
        for _ in 0..50 {
            assert_eq!(batch(&queue, 10), [2; 5]);
        }
        assert_eq!(batch(&queue, 10), [500]);
    }

    #[test]
    fn a_text_that_does_not_fit_is_the_first_of_the_next_batch() {
        let queue = Arc::new(Queue::new(100));
        let _first = request(&queue, &[6]);
        let _second = request(&queue, &[7]);
        let _third = request(&queue, &[2, 2, 2]);
        assert_eq!(batch(&queue, 10), [6, 2, 2]);
        assert_eq!(batch(&queue, 10), [7, 2]);
    }

    #[test]
    fn the_limit_counts_waiting_texts_and_not_the_size_of_the_request() {
        let queue = Arc::new(Queue::new(3));
        let large = request(&queue, &[1; 50]);
        let error = queue.admit(1).unwrap_err();
        assert!(matches!(error, Error::ServiceFull { n_waiting: 50, limit: 3, .. }), "{error:?}");
        drop(large.place);
        assert_eq!(queue.n_texts(), 0);
        let _places: Vec<Place> = (0..3).map(|_| queue.admit(1).unwrap()).collect();
        queue.computed(2, 8.0);
        let error = queue.admit(1).unwrap_err();
        let Error::ServiceFull { n_waiting: 3, limit: 3, retry_after } = error else {
            panic!("{error:?}")
        };
        // One text has to be computed until there is room, and each text took 4 seconds.
        assert_eq!(retry_after, Duration::from_secs(4));
    }

    #[test]
    fn the_default_limit_has_room_for_small_requests_beside_a_large_one() {
        let queue = Arc::new(Queue::new(ServiceOptions::new().max_waiting_texts));
        // The maximum number of texts in a request to the embeddings API of OpenAI.
        let _large = request(&queue, &[1; 2048]);
        let _small = request(&queue, &[1]);
    }

    #[test]
    fn dropping_a_place_removes_the_rest_of_the_request() {
        let queue = Arc::new(Queue::new(100));
        let first = request(&queue, &[3; 5]);
        let _second = request(&queue, &[4; 2]);
        assert_eq!(batch(&queue, 7), [3, 4]);
        drop(first.place);
        assert_eq!(queue.n_texts(), 1);
        assert_eq!(batch(&queue, 100), [4]);
    }

    #[test]
    fn a_draining_queue_returns_accepted_requests_and_then_ends() {
        let queue = Arc::new(Queue::new(100));
        let _caller = request(&queue, &[1, 1]);
        let tokenizing = queue.admit(1).unwrap();
        let mut drained = queue.drain();
        assert!(matches!(queue.admit(1).unwrap_err(), Error::ServiceDraining));
        assert_eq!(batch(&queue, 1), [1]);
        assert_eq!(batch(&queue, 1), [1]);
        // The queue waits for requests that are still being tokenized.
        let ending = std::thread::spawn({
            let queue = Arc::clone(&queue);
            move || queue.next_batch(1).is_none()
        });
        drop(tokenizing);
        assert!(ending.join().unwrap());
        assert!(drained.try_recv().unwrap().is_none());
        queue.stop();
        assert!(drained.try_recv().is_err());
        assert!(matches!(queue.admit(1).unwrap_err(), Error::ServiceStopped));
    }

    #[test]
    fn callers_get_an_error_when_the_queue_stops() {
        let queue = Arc::new(Queue::new(100));
        let mut caller = request(&queue, &[1]);
        assert!(caller.rows.try_recv().unwrap().is_none());
        queue.stop();
        assert!(caller.rows.try_recv().is_err());
        assert_eq!(queue.state(), ServiceState::Stopped);
    }
}
