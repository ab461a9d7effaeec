//! The queue between callers and the thread that computes.
//!
//! Requests are lists of texts. The queue hands out *batches*: as many texts as fit into a budget of tokens,
//! taken one at a time, each from the request that has had the fewest tokens so far. A request that comes
//! later begins at the *level*: what a request would have had that had always been there and had its share of
//! the tokens, which rises by `tokens / requests` with every text that is taken. So it neither waits for long
//! ones nor makes up for the time before it came, and those that are there are not overtaken for ever by ones
//! that keep coming (start-time fair queueing). A text that does not fit is passed over for others, and is
//! the first of the next batch, alone if it is longer than the budget.

use std::collections::VecDeque;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use futures_channel::oneshot;

use super::request::Request;
use crate::{Error, Result};

/// Where a service is in its life.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ServiceState {
    /// Requests are accepted and computed.
    Running,
    /// No request is accepted; those that were are computed.
    Draining,
    /// The thread that computes has ended: after [`Service::drain`](super::Service::drain), or because of
    /// a bug that made it panic.
    Stopped,
}

/// A text in a batch.
#[derive(Debug)]
pub(super) struct Job {
    pub(super) request: Arc<Request>,
    /// Its index in the request.
    pub(super) text: usize,
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
    /// Makes the thread that computes panic.
    panics: bool,
    /// In the order in which they came.
    entries: Vec<Entry>,
    next_id: u64,
    /// Where a request begins that comes now, in tokens. Never below what the request had from which the last
    /// text was taken.
    level: f64,
    /// A moving average.
    seconds_per_text: f64,
    /// Who waits for the end.
    waiters: Vec<oneshot::Sender<()>>,
}

/// A request with texts that are in no batch yet.
#[derive(Debug)]
struct Entry {
    id: u64,
    /// Texts that are in no batch yet, tokenized or not.
    n_texts: usize,
    /// `None` until they are tokenized.
    request: Option<Arc<Request>>,
    texts: VecDeque<(usize, Vec<u32>)>,
    /// The level at which it began, and the tokens that it has had since.
    n_served: f64,
}

/// A request's place in the queue. What is still there of the request is removed with it.
#[derive(Debug)]
pub(super) struct Place {
    queue: Arc<Queue>,
    id: u64,
}

impl Place {
    /// By which [`Queue::fill`] finds it.
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
    /// An empty queue that accepts requests while no more than `max_texts` are waiting.
    pub(super) fn new(max_texts: usize) -> Self {
        let inner = Inner {
            state: ServiceState::Running,
            panics: false,
            entries: Vec::new(),
            next_id: 0,
            level: 0.0,
            seconds_per_text: 0.0,
            waiters: Vec::new(),
        };
        Self { inner: Mutex::new(inner), changed: Condvar::new(), max_texts }
    }

    pub(super) fn state(&self) -> ServiceState {
        self.lock().state
    }

    /// Texts that are in no batch yet.
    pub(super) fn n_texts(&self) -> usize {
        self.lock().n_texts()
    }

    /// Takes a place for a request of `n_texts`, or refuses it.
    pub(super) fn admit(self: &Arc<Self>, n_texts: usize) -> Result<Place> {
        let mut inner = self.lock();
        match inner.state {
            ServiceState::Running => {}
            ServiceState::Draining => return Err(Error::ServiceDraining),
            ServiceState::Stopped => return Err(Error::ServiceStopped),
        }
        let n_waiting = inner.n_texts();
        // One request may be larger than the whole limit, and still has to be served.
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

    /// Puts a request's texts into its place, if that is still there.
    pub(super) fn fill(&self, id: u64, request: Request, texts: Vec<Vec<u32>>) {
        let mut inner = self.lock();
        let level = inner.level;
        if let Some(entry) = inner.entries.iter_mut().find(|entry| entry.id == id) {
            entry.request = Some(Arc::new(request));
            entry.texts = texts.into_iter().enumerate().collect();
            entry.n_served = level;
            drop(inner);
            self.changed.notify_one();
        }
    }

    /// Removes what is left of a request.
    pub(super) fn remove(&self, id: u64) {
        let mut inner = self.lock();
        if let Some(at) = inner.entries.iter().position(|entry| entry.id == id) {
            let entry = inner.entries.remove(at);
            let is_draining = inner.state == ServiceState::Draining;
            drop(inner);
            // Its texts may be many: not under the lock.
            drop(entry);
            if is_draining {
                self.changed.notify_one();
            }
        }
    }

    /// Waits for texts and takes as many as fit into `budget` tokens; `None` when the queue is drained.
    pub(super) fn next_batch(&self, budget: usize) -> Option<Vec<Job>> {
        let mut inner = self.lock();
        loop {
            assert!(!inner.panics, "asked to");
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

    /// Notes how long a batch took.
    pub(super) fn computed(&self, n_texts: usize, seconds: f64) {
        const WEIGHT: f64 = 0.2;
        let mut inner = self.lock();
        let now = seconds / n_texts as f64;
        let before = if inner.seconds_per_text > 0.0 { inner.seconds_per_text } else { now };
        inner.seconds_per_text = (1.0 - WEIGHT) * before + WEIGHT * now;
    }

    /// Accepts no more requests, and says when the last is done.
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

    /// Nothing will be computed any more: whoever waits gets to know.
    pub(super) fn stop(&self) {
        let mut inner = self.lock();
        inner.state = ServiceState::Stopped;
        let (entries, waiters) = (inner.entries.split_off(0), inner.waiters.split_off(0));
        drop(inner);
        drop((entries, waiters));
    }

    /// Makes the thread that computes panic when it comes back for its next batch.
    pub(super) fn panic(&self) {
        self.lock().panics = true;
        self.changed.notify_one();
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        // Every change is whole when something panics: the only panic is that of `next_batch`.
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Inner {
    fn n_texts(&self) -> usize {
        self.entries.iter().map(|entry| entry.n_texts).sum()
    }

    fn take(&mut self, budget: usize) -> Vec<Job> {
        let mut batch = Vec::new();
        let mut left = budget;
        let mut n_ready = self.entries.iter().filter(|entry| !entry.texts.is_empty()).count();
        while let Some(at) = self.next(if batch.is_empty() { usize::MAX } else { left }) {
            let entry = &mut self.entries[at];
            let (Some((text, tokens)), Some(request)) = (entry.texts.pop_front(), &entry.request)
            else {
                break;
            };
            let request = Arc::clone(request);
            let n_tokens = tokens.len() as f64;
            self.level = entry.n_served.max(self.level) + n_tokens / n_ready as f64;
            entry.n_served += n_tokens;
            entry.n_texts -= 1;
            if entry.texts.is_empty() {
                self.entries.remove(at);
                n_ready -= 1;
            }
            left = left.saturating_sub(tokens.len());
            batch.push(Job { request, text, tokens });
        }
        batch
    }

    /// The entry whose turn it is among those whose next text has at most `left` tokens.
    fn next(&self, left: usize) -> Option<usize> {
        let entries = self.entries.iter().enumerate();
        let fits = |entry: &Entry| entry.texts.front().is_some_and(|text| text.1.len() <= left);
        let ready = entries.filter(|(_, entry)| fits(entry));
        // Of equals the first, which came first.
        Some(ready.min_by(|(_, a), (_, b)| a.n_served.total_cmp(&b.n_served))?.0)
    }
}

#[cfg(test)]
mod tests {
    use std::time::Instant;

    use super::super::ServiceOptions;
    use super::super::request::Row;
    use super::*;

    /// The queue's requests as their callers see them.
    struct Caller {
        place: Place,
        rows: oneshot::Receiver<Result<super::super::request::Completed>>,
    }

    /// Has a request with texts of so many tokens accepted.
    fn ask(queue: &Arc<Queue>, lengths: &[usize]) -> Caller {
        let place = queue.admit(lengths.len()).unwrap();
        let texts: Vec<Vec<u32>> = lengths.iter().map(|&n| vec![0; n]).collect();
        let (caller, rows) = oneshot::channel();
        let row = Row { width: 1, normalize: false };
        queue.fill(place.id(), Request::new(row, &texts, Instant::now(), caller), texts);
        Caller { place, rows }
    }

    /// The lengths of the next batch's texts.
    fn batch(queue: &Queue, budget: usize) -> Vec<usize> {
        queue.next_batch(budget).unwrap().iter().map(|job| job.tokens.len()).collect()
    }

    #[test]
    fn batches_fill_the_budget_and_leave_nothing_out() {
        let queue = Arc::new(Queue::new(100));
        let _caller = ask(&queue, &[4, 4, 3, 5, 9, 1]);
        assert_eq!(queue.n_texts(), 6);
        assert_eq!(batch(&queue, 10), [4, 4]);
        assert_eq!(batch(&queue, 10), [3, 5]);
        assert_eq!(batch(&queue, 10), [9, 1]);
        assert_eq!(queue.n_texts(), 0);
    }

    #[test]
    fn a_request_that_comes_later_is_in_the_next_batch() {
        let queue = Arc::new(Queue::new(10_000));
        let _many = ask(&queue, &[5; 1000]);
        for _ in 0..10 {
            assert_eq!(batch(&queue, 20), [5; 4]);
        }
        let _one = ask(&queue, &[7]);
        assert!(batch(&queue, 20).contains(&7));
        assert_eq!(batch(&queue, 20), [5; 4]);
    }

    #[test]
    fn requests_share_by_tokens_and_none_makes_up_for_the_time_before_it_came() {
        let queue = Arc::new(Queue::new(10_000));
        let _long = ask(&queue, &[30; 100]);
        for _ in 0..10 {
            assert_eq!(batch(&queue, 60), [30, 30]);
        }
        let _short = ask(&queue, &[1; 1000]);
        let batches: Vec<Vec<usize>> = (0..20).map(|_| batch(&queue, 60)).collect();
        let n_tokens = |length| batches.iter().flatten().filter(|&&n| n == length).count() * length;
        let (long, short) = (n_tokens(30), n_tokens(1));
        assert!(long.abs_diff(short) <= 60, "{long} tokens of the one, {short} of the other");
    }

    #[test]
    fn requests_that_keep_coming_do_not_overtake_those_with_more_texts_for_ever() {
        const N_RIVALS: usize = 24;
        const LENGTH: usize = 300;
        for n_texts in [2, 20] {
            let queue = Arc::new(Queue::new(10_000));
            let mut rivals: Vec<Caller> = (0..N_RIVALS).map(|_| ask(&queue, &[LENGTH])).collect();
            // As soon as a rival has its row, it comes again.
            let mut serve = || {
                let jobs = queue.next_batch(3 * LENGTH).unwrap();
                for job in &jobs {
                    job.request.write(job.text, &[0.0], Instant::now());
                }
                for rival in &mut rivals {
                    if !matches!(rival.rows.try_recv(), Ok(None)) {
                        *rival = ask(&queue, &[LENGTH]);
                    }
                }
                jobs.len()
            };
            (0..10).for_each(|_| assert_eq!(serve(), 3));
            let mut caller = ask(&queue, &vec![LENGTH; n_texts]);
            let mut n_served = 0;
            while matches!(caller.rows.try_recv(), Ok(None)) && n_served < 10_000 {
                n_served += serve();
            }
            // One of its texts in a round of all.
            let round = N_RIVALS + 1;
            let expected = (n_texts - 1) * round..(n_texts + 1) * round;
            assert!(expected.contains(&n_served), "{n_texts} texts among {n_served}");
        }
    }

    #[test]
    fn a_text_over_the_budget_goes_alone_and_does_not_starve() {
        let queue = Arc::new(Queue::new(10_000));
        let _long = ask(&queue, &[500, 500]);
        let _short = ask(&queue, &[2; 1000]);
        assert_eq!(batch(&queue, 10), [500]);
        // The others have their turn until they have had as much.
        for _ in 0..50 {
            assert_eq!(batch(&queue, 10), [2; 5]);
        }
        assert_eq!(batch(&queue, 10), [500]);
    }

    #[test]
    fn a_text_that_does_not_fit_any_more_is_the_first_of_the_next_batch() {
        let queue = Arc::new(Queue::new(100));
        let _first = ask(&queue, &[6]);
        let _second = ask(&queue, &[7]);
        let _third = ask(&queue, &[2, 2, 2]);
        assert_eq!(batch(&queue, 10), [6, 2, 2]);
        assert_eq!(batch(&queue, 10), [7, 2]);
    }

    #[test]
    fn the_limit_counts_what_waits_and_never_refuses_a_large_request_alone() {
        let queue = Arc::new(Queue::new(3));
        let large = ask(&queue, &[1; 50]);
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
        // One place is free when one text is done.
        assert_eq!(retry_after, Duration::from_secs(4));
    }

    #[test]
    fn by_default_a_large_request_leaves_room_for_small_ones() {
        let queue = Arc::new(Queue::new(ServiceOptions::default().max_waiting_texts));
        // As many texts as OpenAI lets a request have.
        let _large = ask(&queue, &[1; 2048]);
        let _small = ask(&queue, &[1]);
    }

    #[test]
    fn what_is_left_of_a_request_whose_caller_has_gone_is_not_handed_out() {
        let queue = Arc::new(Queue::new(100));
        let first = ask(&queue, &[3; 5]);
        let _second = ask(&queue, &[4; 2]);
        assert_eq!(batch(&queue, 7), [3, 4]);
        drop(first.place);
        assert_eq!(queue.n_texts(), 1);
        assert_eq!(batch(&queue, 100), [4]);
    }

    #[test]
    fn a_queue_that_drains_hands_out_the_rest_and_then_ends() {
        let queue = Arc::new(Queue::new(100));
        let _caller = ask(&queue, &[1, 1]);
        let tokenizing = queue.admit(1).unwrap();
        let mut drained = queue.drain();
        assert!(matches!(queue.admit(1).unwrap_err(), Error::ServiceDraining));
        assert_eq!(batch(&queue, 1), [1]);
        assert_eq!(batch(&queue, 1), [1]);
        // Waits for what is still tokenized.
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
    fn whoever_waits_when_the_queue_stops_gets_to_know() {
        let queue = Arc::new(Queue::new(100));
        let mut caller = ask(&queue, &[1]);
        assert!(caller.rows.try_recv().unwrap().is_none());
        queue.stop();
        assert!(caller.rows.try_recv().is_err());
        assert_eq!(queue.state(), ServiceState::Stopped);
    }
}
