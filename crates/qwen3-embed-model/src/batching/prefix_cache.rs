//! The prefix cache: keys and values of the tokens with which texts begin, kept from call to call.
//!
//! A prefix is kept if several texts of a batch begin with it, or if a text begins with the same tokens as a text of an
//! earlier call. For the second case, the cache remembers the tokens of a few earlier texts.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, PoisonError};
#[cfg(not(all(test, shuttle)))]
use std::sync::{Mutex, MutexGuard};

use candle_core::Tensor;
// In `shuttle_tests`, a scheduler decides which thread gets the lock.
#[cfg(all(test, shuttle))]
use shuttle::sync::{Mutex, MutexGuard};

/// A sequence of tokens with which texts begin, and its keys and values.
#[derive(Debug)]
pub(crate) struct Prefix {
    pub(crate) tokens: Vec<u32>,
    /// The keys and values of each layer, with the shape [tokens, 2 · K · D].
    pub(crate) layers: Vec<Tensor>,
}

/// A cache of limited size with the most recently used prefixes. It may be used by several threads.
#[derive(Debug)]
pub(crate) struct PrefixCache {
    /// The size in bytes. With 0, nothing is kept.
    capacity: usize,
    bytes_per_token: usize,
    state: Mutex<State>,
    hits: AtomicU64,
    tokens_saved: AtomicU64,
}

#[derive(Debug, Default)]
struct State {
    /// In the order of their last use, the most recent one last.
    prefixes: Vec<Arc<Prefix>>,
    /// The first tokens of texts of earlier calls.
    earlier: VecDeque<Arc<[u32]>>,
}

/// A snapshot of the contents of the cache.
#[derive(Debug, Default)]
pub(crate) struct Known {
    prefixes: Vec<Arc<Prefix>>,
    earlier: Vec<Arc<[u32]>>,
}

/// The largest number of prefixes in the cache. With this limit, the search for a prefix is fast.
const MAX_PREFIXES: usize = 256;

/// The largest number of earlier texts that are remembered.
const MAX_EARLIER_TEXTS: usize = 32;

impl PrefixCache {
    /// An empty cache of `capacity` bytes. A token of a prefix needs `bytes_per_token`.
    pub(crate) fn new(capacity: usize, bytes_per_token: usize) -> Self {
        let (hits, tokens_saved) = Default::default();
        Self { capacity, bytes_per_token, state: Mutex::default(), hits, tokens_saved }
    }

    /// The largest number of tokens in a prefix. A prefix may use half of the cache.
    pub(crate) fn max_tokens(&self) -> usize {
        self.capacity / 2 / self.bytes_per_token.max(1)
    }

    /// A snapshot of the contents.
    pub(crate) fn known(&self) -> Known {
        let state = self.state();
        Known { prefixes: state.prefixes.clone(), earlier: state.earlier.iter().cloned().collect() }
    }

    /// Counts a use of the first `n_tokens` tokens of a prefix, and makes the prefix the most recently used.
    pub(crate) fn note_use(&self, prefix: &Arc<Prefix>, n_tokens: usize) {
        self.hits.fetch_add(1, Relaxed);
        self.tokens_saved.fetch_add(n_tokens as u64, Relaxed);
        let prefixes = &mut self.state().prefixes;
        if let Some(idx) = prefixes.iter().position(|other| Arc::ptr_eq(other, prefix)) {
            prefixes[idx..].rotate_left(1);
        }
    }

    /// Remembers the first tokens of texts.
    pub(crate) fn note_texts<'a>(&self, texts: impl Iterator<Item = &'a [u32]>) {
        let max_tokens = self.max_tokens();
        if max_tokens == 0 {
            return;
        }
        let earlier = &mut self.state().earlier;
        for text in texts {
            let text = &text[..text.len().min(max_tokens)];
            if earlier.iter().any(|other| **other == *text) {
                continue;
            }
            if earlier.len() == MAX_EARLIER_TEXTS {
                earlier.pop_front();
            }
            earlier.push_back(text.into());
        }
    }

    /// Adds a prefix. Prefixes in the cache with which the new prefix begins are removed. If the cache is full, the
    /// least recently used prefixes are removed.
    pub(crate) fn insert(&self, prefix: Prefix) {
        if prefix.tokens.is_empty() || prefix.tokens.len() > self.max_tokens() {
            return;
        }
        let prefixes = &mut self.state().prefixes;
        if prefixes.iter().any(|other| other.tokens.starts_with(&prefix.tokens)) {
            return;
        }
        prefixes.retain(|other| !prefix.tokens.starts_with(&other.tokens));
        prefixes.push(Arc::new(prefix));
        let (mut n_bytes, mut n_removed) = (self.bytes_of(prefixes), 0);
        while n_bytes > self.capacity || prefixes.len() - n_removed > MAX_PREFIXES {
            n_bytes -= self.bytes_of(&prefixes[n_removed..=n_removed]);
            n_removed += 1;
        }
        prefixes.drain(..n_removed);
    }

    /// The number of times that a prefix was used, the number of tokens that were not computed because of that, and the
    /// bytes of all prefixes.
    pub(crate) fn counts(&self) -> [u64; 3] {
        let bytes = self.bytes_of(&self.state().prefixes);
        [self.hits.load(Relaxed), self.tokens_saved.load(Relaxed), bytes as u64]
    }

    fn bytes_of(&self, prefixes: &[Arc<Prefix>]) -> usize {
        prefixes.iter().map(|prefix| prefix.tokens.len() * self.bytes_per_token).sum()
    }

    /// Locks the state. Poisoning is ignored, because no method panics while the state is inconsistent.
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Known {
    /// The prefix that has the most tokens in common with the beginning of a text, and the number of these tokens.
    pub(crate) fn longest(&self, tokens: &[u32]) -> Option<(&Arc<Prefix>, usize)> {
        let common = self.prefixes.iter().map(|prefix| (prefix, common(&prefix.tokens, tokens)));
        common.max_by_key(|&(_, n_tokens)| n_tokens)
    }

    /// The largest number of tokens that the beginning of a text has in common with an earlier text.
    pub(crate) fn seen(&self, tokens: &[u32]) -> usize {
        self.earlier.iter().map(|earlier| common(earlier, tokens)).max().unwrap_or(0)
    }
}

/// The number of tokens that the beginnings of two texts have in common.
pub(crate) fn common(a: &[u32], b: &[u32]) -> usize {
    a.iter().zip(b).take_while(|(a, b)| a == b).count()
}

#[cfg(test)]
#[cfg(shuttle)]
mod shuttle_tests {
    use shuttle::rand::{Rng, thread_rng};

    use super::*;

    /// The size of the cache in tokens. A prefix may have half of it.
    const CAPACITY: usize = 12;

    /// What a call of the model does with the cache: it takes a snapshot, uses a prefix of it, and adds another one.
    fn call(cache: &PrefixCache) -> u64 {
        let mut rng = thread_rng();
        let n_tokens = rng.gen_range(1..=CAPACITY / 2);
        let tokens: Vec<u32> = (0..n_tokens).map(|_| rng.gen_range(0..2)).collect();
        let known = cache.known();
        check(&known);
        let used = known.longest(&tokens).filter(|(_, n_tokens)| *n_tokens > 0);
        if let Some((prefix, n_tokens)) = used {
            assert_eq!(prefix.tokens[..n_tokens], tokens[..n_tokens]);
            cache.note_use(prefix, n_tokens);
        }
        cache.note_texts([tokens.as_slice()].into_iter());
        cache.insert(Prefix { tokens, layers: Vec::new() });
        u64::from(used.is_some())
    }

    /// Checks a snapshot: the prefixes fit into the cache, and none of them is the beginning of another one.
    fn check(known: &Known) {
        let lengths = known.prefixes.iter().map(|prefix| prefix.tokens.len());
        assert!(lengths.sum::<usize>() <= CAPACITY);
        for (i, a) in known.prefixes.iter().enumerate() {
            let mut others = known.prefixes[i + 1..].iter();
            let b =
                others.find(|b| b.tokens.starts_with(&a.tokens) || a.tokens.starts_with(&b.tokens));
            assert!(b.is_none(), "{a:?} and {b:?}");
        }
    }

    #[test]
    fn prefix_cache_is_consistent_in_random_interleavings() {
        let check = || {
            let cache = Arc::new(PrefixCache::new(CAPACITY, 1));
            let threads: Vec<_> = (0..3)
                .map(|_| {
                    let cache = Arc::clone(&cache);
                    shuttle::thread::spawn(move || (0..4).map(|_| call(&cache)).sum::<u64>())
                })
                .collect();
            let n_used: u64 = threads.into_iter().map(|thread| thread.join().unwrap()).sum();
            check(&cache.known());
            let [hits, _, n_bytes] = cache.counts();
            assert_eq!(hits, n_used);
            assert!(n_bytes as usize <= CAPACITY);
        };
        shuttle::check_random(check, 3000);
    }
}

#[cfg(test)]
#[cfg(not(shuttle))]
mod tests {
    use super::*;

    fn insert(cache: &PrefixCache, tokens: &[u32]) {
        cache.insert(Prefix { tokens: tokens.to_vec(), layers: Vec::new() });
    }

    fn kept(cache: &PrefixCache) -> Vec<Vec<u32>> {
        cache.known().prefixes.iter().map(|prefix| prefix.tokens.clone()).collect()
    }

    #[test]
    fn removes_the_least_recently_used_prefix() {
        let cache = PrefixCache::new(60, 10);
        assert_eq!(cache.max_tokens(), 3);
        for tokens in [[1, 1], [2, 2], [3, 3]] {
            insert(&cache, &tokens);
        }
        let first = cache.known().prefixes[0].clone();
        cache.note_use(&first, 2);
        insert(&cache, &[4]);
        assert_eq!(kept(&cache), [vec![3, 3], vec![1, 1], vec![4]]);
        insert(&cache, &[5, 5, 5]);
        assert_eq!(kept(&cache), [vec![1, 1], vec![4], vec![5, 5, 5]]);
        assert_eq!(cache.counts(), [1, 2, 60]);
        // These are not added: too long, empty, the beginning of another prefix, or already in the cache.
        for tokens in [&[6, 6, 6, 6][..], &[], &[5, 5], &[4]] {
            insert(&cache, tokens);
        }
        assert_eq!(cache.counts()[2], 60);
        // A longer prefix replaces its beginning.
        insert(&cache, &[4, 4]);
        assert_eq!(kept(&cache), [vec![5, 5, 5], vec![4, 4]]);
    }

    #[test]
    fn removes_no_more_than_needed_if_both_limits_are_exceeded() {
        let cache = PrefixCache::new(600, 1);
        for i in 0..MAX_PREFIXES as u32 {
            insert(&cache, &[i, i]);
        }
        // 612 bytes, of which the six least recently used prefixes have 12.
        insert(&cache, &[u32::MAX; 100]);
        assert_eq!(kept(&cache).len(), MAX_PREFIXES + 1 - 6);
        assert_eq!(cache.counts()[2], 600);
    }

    #[test]
    fn keeps_nothing_with_a_size_of_zero() {
        let cache = PrefixCache::new(0, 10);
        insert(&cache, &[1]);
        cache.note_texts([&[1, 2][..]].into_iter());
        assert!(kept(&cache).is_empty());
        assert_eq!(cache.known().seen(&[1, 2]), 0);
    }

    #[test]
    fn limits_the_number_of_prefixes_and_texts() {
        let cache = PrefixCache::new(1 << 20, 1);
        for i in 0..1000 {
            insert(&cache, &[i]);
            cache.note_texts([&[i, 7][..], &[i, 7]].into_iter());
        }
        let known = cache.known();
        assert_eq!([known.prefixes.len(), known.earlier.len()], [MAX_PREFIXES, MAX_EARLIER_TEXTS]);
        assert_eq!(known.longest(&[999, 5]).unwrap().1, 1);
        assert_eq!([known.seen(&[999, 7, 8]), known.seen(&[0, 7])], [2, 0]);
    }
}
