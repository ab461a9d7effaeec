//! The queue under schedulers that decide which thread runs next, so that a test explores many interleavings.
//!
//! ```text
//! RUSTFLAGS="--cfg shuttle" cargo test --package qwen3-embed --lib shuttle
//! ```
//!
//! A scenario has a worker thread, some clients, and for each client a thread that tokenizes. The queue is drained while
//! they run or afterwards, or the worker thread ends early, as after a panic. A thread that waits forever is a deadlock,
//! which the scheduler reports. A failure prints its schedule, which `shuttle::replay` repeats.

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Instant;

use futures_channel::oneshot;
use shuttle::future::block_on;
use shuttle::rand::{Rng, thread_rng};
use shuttle::scheduler::{DfsScheduler, PctScheduler, RandomScheduler, Scheduler};
use shuttle::{Config, Runner, thread};

use super::queue::{Place, Queue, ServiceState};
use super::request::{Completed, Request};
use crate::Error;
use crate::embed_request::RowFormat;

/// The number of interleavings that each scheduler explores.
const N_INTERLEAVINGS: usize = 4000;

/// What a scenario consists of.
#[derive(Debug, Clone)]
struct Scenario {
    /// The requests of the clients.
    calls: Vec<Call>,
    max_texts: usize,
    budget: usize,
    end: End,
}

/// A request.
#[derive(Debug, Clone)]
struct Call {
    /// The number of tokens of each text.
    lengths: Vec<usize>,
    patience: Patience,
}

#[derive(Debug, Clone, Copy, PartialEq)]
enum Patience {
    /// The client waits for the result.
    Waits,
    /// The client drops its place while the texts are tokenized or computed.
    Leaves,
    /// The client drops its place before the texts are tokenized.
    LeavesAtOnce,
}

#[derive(Debug, Clone, Copy, PartialEq)]
enum End {
    /// The queue is drained after the clients have ended.
    DrainsLast,
    /// The queue is drained while the clients run.
    Drains,
    /// The worker thread ends after this number of batches.
    Stops(usize),
}

/// A text that the worker thread has received.
#[derive(Debug, Clone, Copy)]
struct Received {
    client: usize,
    index: usize,
    /// The number of the batch, starting at 1.
    batch: usize,
}

/// What became of a request.
#[derive(Debug)]
enum Outcome {
    Refused,
    /// The request was removed when this number of batches had been asked for.
    Removed(usize),
    Completed(Completed),
    /// The worker thread has ended.
    Failed,
}

/// A scenario while it runs. The locks of the standard library are no decision of the scheduler, because no thread
/// waits while it holds one.
struct Run {
    scenario: Scenario,
    queue: Arc<Queue>,
    /// The number of batches that the worker thread has asked for.
    n_asked: AtomicUsize,
    received: Mutex<Vec<Received>>,
    /// For each client, the number of batches that had been asked for when its texts were in the queue.
    filled: Mutex<Vec<Option<usize>>>,
    /// Whether [`Queue::drain`] has returned.
    is_draining: AtomicBool,
}

impl Run {
    /// Runs the threads, and checks what became of every request.
    fn run(scenario: Scenario) {
        let n_clients = scenario.calls.len();
        let run = Arc::new(Self {
            queue: Arc::new(Queue::new(scenario.max_texts)),
            n_asked: AtomicUsize::new(0),
            received: Mutex::default(),
            filled: Mutex::new(vec![None; n_clients]),
            is_draining: AtomicBool::new(false),
            scenario,
        });
        let spawn = |work: fn(&Arc<Self>)| {
            let run = Arc::clone(&run);
            thread::spawn(move || work(&run))
        };
        let worker = spawn(Self::work);
        let drain = (run.scenario.end == End::Drains).then(|| spawn(Self::drain));
        let clients: Vec<_> = (0..n_clients)
            .map(|client| {
                let run = Arc::clone(&run);
                thread::spawn(move || run.call(client))
            })
            .collect();
        let outcomes: Vec<Outcome> =
            clients.into_iter().map(|client| client.join().unwrap()).collect();
        match drain {
            Some(drain) => drain.join().unwrap(),
            None => run.drain(),
        }
        worker.join().unwrap();
        for (client, outcome) in outcomes.iter().enumerate() {
            run.check(client, outcome);
        }
        assert_eq!(run.queue.n_texts(), 0);
    }

    /// The worker thread.
    fn work(self: &Arc<Self>) {
        let n_batches = match self.scenario.end {
            End::Stops(n_batches) => n_batches,
            _ => usize::MAX,
        };
        for number in 1..=n_batches {
            self.n_asked.store(number, Ordering::SeqCst);
            let Some(batch) = self.queue.next_batch(self.scenario.budget) else { break };
            let n_tokens: usize = batch.iter().map(|text| text.tokens.len()).sum();
            assert!(!batch.is_empty() && (batch.len() == 1 || n_tokens <= self.scenario.budget));
            for text in &batch {
                let client = text.tokens[0] as usize;
                let received = Received { client, index: text.index, batch: number };
                self.received.lock().unwrap().push(received);
                text.request.write(text.index, &[value(client, text.index)], Instant::now());
            }
            self.queue.computed(batch.len(), 1e-3);
        }
        self.queue.stop();
    }

    /// Drains the queue, and waits until that is done.
    fn drain(self: &Arc<Self>) {
        let drained = self.queue.drain();
        self.is_draining.store(true, Ordering::SeqCst);
        // The queue drops the sender.
        assert!(block_on(drained).is_err());
        assert_eq!(self.queue.state(), ServiceState::Stopped);
        assert_eq!(self.queue.n_texts(), 0);
        assert!(matches!(self.queue.admit(1).unwrap_err(), Error::ServiceStopped));
    }

    /// A client.
    fn call(self: &Arc<Self>, client: usize) -> Outcome {
        let Call { lengths, patience } = &self.scenario.calls[client];
        let Some(place) = self.admit(lengths.len()) else { return Outcome::Refused };
        let id = place.id();
        let (caller, rows) = oneshot::channel();
        let run = Arc::clone(self);
        let tokenize = move || {
            let texts: Vec<Vec<u32>> = run.scenario.calls[client]
                .lengths
                .iter()
                .map(|&n| vec![client as u32; n])
                .collect();
            let row = RowFormat { dimensions: 1, normalize: false };
            let request = Request::new(row, &texts, Instant::now(), caller);
            run.queue.fill(id, request, texts);
            run.filled.lock().unwrap()[client] = Some(run.n_asked.load(Ordering::SeqCst));
        };
        let remove = |place: Place| {
            drop(place);
            Outcome::Removed(self.n_asked.load(Ordering::SeqCst))
        };
        if *patience == Patience::LeavesAtOnce {
            let outcome = remove(place);
            tokenize();
            return outcome;
        }
        let tokenizer = thread::spawn(tokenize);
        let outcome = match patience {
            Patience::Waits => match block_on(rows) {
                Ok(completed) => Outcome::Completed(completed.unwrap()),
                Err(oneshot::Canceled) => Outcome::Failed,
            },
            _ => remove(place),
        };
        tokenizer.join().unwrap();
        outcome
    }

    /// The place of a request, or `None` if the request was refused for a good reason.
    fn admit(&self, n_texts: usize) -> Option<Place> {
        let (max_texts, end) = (self.scenario.max_texts, self.scenario.end);
        let was_draining = self.is_draining.load(Ordering::SeqCst);
        match self.queue.admit(n_texts) {
            Ok(place) => {
                assert!(!was_draining, "a request was accepted after the queue was drained");
                // A request is accepted only while fewer texts are waiting than the limit.
                let largest = self.scenario.calls.iter().map(|call| call.lengths.len()).max();
                let n_waiting = self.queue.n_texts();
                assert!(n_waiting < max_texts + largest.unwrap(), "{n_waiting} texts are waiting");
                Some(place)
            }
            Err(Error::ServiceFull { n_waiting, limit, .. }) => {
                assert!(limit == max_texts && n_waiting >= limit && !was_draining);
                None
            }
            Err(Error::ServiceDraining) => {
                assert_ne!(end, End::DrainsLast);
                None
            }
            Err(Error::ServiceStopped) => {
                assert_ne!(end, End::DrainsLast);
                None
            }
            Err(error) => panic!("{error}"),
        }
    }

    /// Checks the texts of a client that the worker thread has received, and the result of the request.
    fn check(&self, client: usize, outcome: &Outcome) {
        let n_texts = self.scenario.calls[client].lengths.len();
        let received = self.received.lock().unwrap();
        let received: Vec<&Received> =
            received.iter().filter(|text| text.client == client).collect();
        // No text is received twice, and the order is that of the request.
        assert!(received.iter().map(|text| text.index).eq(0..received.len()), "{received:?}");
        match outcome {
            Outcome::Refused => assert!(received.is_empty()),
            Outcome::Removed(n_asked) => {
                assert!(received.iter().all(|text| text.batch <= *n_asked), "{received:?}");
            }
            Outcome::Completed(completed) => {
                assert_eq!(received.len(), n_texts);
                let expected: Vec<f32> = (0..n_texts).map(|index| value(client, index)).collect();
                assert_eq!(completed.values, expected);
                assert_eq!(completed.n_tokens, self.scenario.calls[client].lengths);
            }
            Outcome::Failed => assert!(matches!(self.scenario.end, End::Stops(_))),
        }
        // In each round over all requests, one text of a request with short texts is taken.
        let is_fair = self.scenario.budget >= FAIR_BUDGET;
        let filled = self.filled.lock().unwrap()[client];
        if let (true, Some(filled), Some(first)) = (is_fair, filled, received.first()) {
            assert!(first.batch <= filled + 1, "{} after {filled} batches", first.batch);
        }
    }
}

/// The result of a text.
fn value(client: usize, index: usize) -> f32 {
    (100 * client + index) as f32
}

/// A budget with room for two texts of one token of each client, so that a new request is in the next batch.
const FAIR_BUDGET: usize = 2 * MAX_CLIENTS;

const MAX_CLIENTS: usize = 4;

/// A scenario whose random numbers the scheduler chooses.
fn random_scenario() -> Scenario {
    let mut rng = thread_rng();
    let is_fair = rng.gen_bool(0.5);
    let max_length = if is_fair { 1 } else { 4 };
    let call = |rng: &mut shuttle::rand::rngs::ThreadRng| {
        let n_texts = if rng.gen_bool(0.3) { 40 } else { rng.gen_range(1..4) };
        let lengths = (0..n_texts).map(|_| rng.gen_range(1..=max_length)).collect();
        let patiences = [Patience::Waits, Patience::Leaves, Patience::LeavesAtOnce];
        Call { lengths, patience: patiences[[0, 0, 1, 2][rng.gen_range(0..4)]] }
    };
    let n_clients = rng.gen_range(1..=MAX_CLIENTS);
    Scenario {
        calls: (0..n_clients).map(|_| call(&mut rng)).collect(),
        max_texts: rng.gen_range(1..8),
        budget: if is_fair { FAIR_BUDGET } else { rng.gen_range(1..6) },
        end: match rng.gen_range(0..4) {
            0 => End::DrainsLast,
            1 => End::Stops(rng.gen_range(0..4)),
            _ => End::Drains,
        },
    }
}

fn explore(
    scheduler: impl Scheduler + 'static,
    scenario: impl Fn() -> Scenario + Send + Sync + 'static,
) {
    let mut config = Config::new();
    // Messages of failures are formatted on the stacks of the threads.
    config.stack_size = 1 << 18;
    let n_explored = Runner::new(scheduler, config).run(move || Run::run(scenario()));
    println!("{n_explored} interleavings");
}

#[test]
fn every_request_is_completed_removed_or_failed_in_random_interleavings() {
    explore(RandomScheduler::new(N_INTERLEAVINGS), random_scenario);
}

/// This scheduler gives threads random priorities, and changes them a few times. It finds interleavings in which a thread
/// is not scheduled for a long time.
#[test]
fn every_request_is_completed_removed_or_failed_with_random_priorities() {
    for n_changes in 1..=4 {
        explore(PctScheduler::new(n_changes, N_INTERLEAVINGS / 4), random_scenario);
    }
}

/// All interleavings of small scenarios, or the first of them.
#[test]
fn every_request_is_completed_removed_or_failed_in_systematic_interleavings() {
    let call = |n_texts, patience| Call { lengths: vec![1; n_texts], patience };
    let one = |patience| vec![call(2, patience)];
    let two = vec![call(1, Patience::Waits), call(2, Patience::Leaves)];
    for (calls, end) in [
        (one(Patience::Waits), End::Drains),
        (one(Patience::Leaves), End::Drains),
        (one(Patience::LeavesAtOnce), End::Drains),
        (one(Patience::Waits), End::Stops(1)),
        (two, End::DrainsLast),
    ] {
        let scenario = Scenario { calls, max_texts: 2, budget: 1, end };
        let scheduler = DfsScheduler::new(Some(N_INTERLEAVINGS), false);
        explore(scheduler, move || scenario.clone());
    }
}
