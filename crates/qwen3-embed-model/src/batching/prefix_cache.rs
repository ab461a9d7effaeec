//! Keys and values of what texts begin with, kept from call to call.
//!
//! What is worth keeping shows in two ways: texts of one batch begin with it, or a text begins as one
//! of an earlier call did. The second is why the tokens of a few earlier texts are remembered.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use candle_core::Tensor;

/// The keys and values of the tokens that texts begin with.
#[derive(Debug)]
pub(crate) struct Prefix {
    pub(crate) tokens: Vec<u32>,
    /// For each layer, [tokens, 2 · K · D].
    pub(crate) layers: Vec<Tensor>,
}

/// Prefixes that were used last, of limited size. Callers share it.
#[derive(Debug)]
pub(crate) struct PrefixCache {
    /// In bytes; nothing is kept at zero.
    capacity: usize,
    bytes_per_token: usize,
    state: Mutex<State>,
    hits: AtomicU64,
    tokens_saved: AtomicU64,
}

#[derive(Debug, Default)]
struct State {
    /// The one that was used last comes last.
    prefixes: Vec<Arc<Prefix>>,
    /// What texts of earlier calls began with.
    earlier: VecDeque<Arc<[u32]>>,
}

/// What a cache had when it was looked at.
#[derive(Debug, Default)]
pub(crate) struct Known {
    prefixes: Vec<Arc<Prefix>>,
    earlier: Vec<Arc<[u32]>>,
}

/// Prefixes at most, so that looking through them takes no time.
const MOST_PREFIXES: usize = 256;

/// Earlier texts that are remembered.
const MOST_EARLIER: usize = 32;

impl PrefixCache {
    /// An empty cache of so many bytes for prefixes that take so many for each token.
    pub(crate) fn new(capacity: usize, bytes_per_token: usize) -> Self {
        let (hits, tokens_saved) = Default::default();
        Self { capacity, bytes_per_token, state: Mutex::default(), hits, tokens_saved }
    }

    /// The most tokens of a prefix: one may take half of the cache.
    pub(crate) fn max_tokens(&self) -> usize {
        self.capacity / 2 / self.bytes_per_token.max(1)
    }

    /// What there is now.
    pub(crate) fn known(&self) -> Known {
        let state = self.state();
        Known { prefixes: state.prefixes.clone(), earlier: state.earlier.iter().cloned().collect() }
    }

    /// Notes that the first tokens of a prefix were used.
    pub(crate) fn note_use(&self, prefix: &Arc<Prefix>, n_tokens: usize) {
        self.hits.fetch_add(1, Relaxed);
        self.tokens_saved.fetch_add(n_tokens as u64, Relaxed);
        let prefixes = &mut self.state().prefixes;
        if let Some(idx) = prefixes.iter().position(|other| Arc::ptr_eq(other, prefix)) {
            prefixes[idx..].rotate_left(1);
        }
    }

    /// Remembers what texts began with.
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
            if earlier.len() == MOST_EARLIER {
                earlier.pop_front();
            }
            earlier.push_back(text.into());
        }
    }

    /// Adds a prefix. One that it continues, or that has no room beside it, makes way, those that were
    /// not used for longest first.
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
        let mut excess = self.bytes_of(prefixes).saturating_sub(self.capacity);
        let mut n_removed = prefixes.len().saturating_sub(MOST_PREFIXES);
        for prefix in prefixes.iter() {
            if excess == 0 {
                break;
            }
            n_removed += 1;
            excess = excess.saturating_sub(self.bytes_of(std::slice::from_ref(prefix)));
        }
        prefixes.drain(..n_removed.min(prefixes.len()));
    }

    /// Times that a prefix was used, tokens that were not computed for that, and bytes that the
    /// prefixes take.
    pub(crate) fn counts(&self) -> [u64; 3] {
        let bytes = self.bytes_of(&self.state().prefixes);
        [self.hits.load(Relaxed), self.tokens_saved.load(Relaxed), bytes as u64]
    }

    fn bytes_of(&self, prefixes: &[Arc<Prefix>]) -> usize {
        prefixes.iter().map(|prefix| prefix.tokens.len() * self.bytes_per_token).sum()
    }

    /// A poisoned lock holds whole prefixes nevertheless: nothing in here panics half-way.
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Known {
    /// The prefix that has most of the first tokens of a text, and how many.
    pub(crate) fn longest(&self, tokens: &[u32]) -> Option<(&Arc<Prefix>, usize)> {
        let common = self.prefixes.iter().map(|prefix| (prefix, common(&prefix.tokens, tokens)));
        common.max_by_key(|&(_, n_tokens)| n_tokens)
    }

    /// How many tokens a text has in common with the beginning of an earlier one.
    pub(crate) fn seen(&self, tokens: &[u32]) -> usize {
        self.earlier.iter().map(|earlier| common(earlier, tokens)).max().unwrap_or(0)
    }
}

/// How many tokens two texts begin with together.
pub(crate) fn common(a: &[u32], b: &[u32]) -> usize {
    a.iter().zip(b).take_while(|(a, b)| a == b).count()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn insert(cache: &PrefixCache, tokens: &[u32]) {
        cache.insert(Prefix { tokens: tokens.to_vec(), layers: Vec::new() });
    }

    fn kept(cache: &PrefixCache) -> Vec<Vec<u32>> {
        cache.known().prefixes.iter().map(|prefix| prefix.tokens.clone()).collect()
    }

    #[test]
    fn the_prefix_that_was_not_used_for_longest_makes_way() {
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
        // Too long, too short, or there already.
        for tokens in [&[6, 6, 6, 6][..], &[], &[5, 5], &[4]] {
            insert(&cache, tokens);
        }
        assert_eq!(cache.counts()[2], 60);
        // One that it continues makes way for it.
        insert(&cache, &[4, 4]);
        assert_eq!(kept(&cache), [vec![5, 5, 5], vec![4, 4]]);
    }

    #[test]
    fn without_room_nothing_is_kept() {
        let cache = PrefixCache::new(0, 10);
        insert(&cache, &[1]);
        cache.note_texts([&[1, 2][..]].into_iter());
        assert!(kept(&cache).is_empty());
        assert_eq!(cache.known().seen(&[1, 2]), 0);
    }

    #[test]
    fn no_more_prefixes_and_texts_are_kept_than_can_be_looked_through() {
        let cache = PrefixCache::new(1 << 20, 1);
        for i in 0..1000 {
            insert(&cache, &[i]);
            cache.note_texts([&[i, 7][..], &[i, 7]].into_iter());
        }
        let known = cache.known();
        assert_eq!([known.prefixes.len(), known.earlier.len()], [MOST_PREFIXES, MOST_EARLIER]);
        assert_eq!(known.longest(&[999, 5]).unwrap().1, 1);
        assert_eq!([known.seen(&[999, 7, 8]), known.seen(&[0, 7])], [2, 0]);
    }
}
