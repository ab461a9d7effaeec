//! Plans the batches of a call: which texts are in a batch, which of their tokens are computed, and which tokens texts
//! share.
//!
//! Texts are sorted by their tokens, so that texts with a common beginning are neighbors. Each text shares as many
//! tokens as possible with the text before it:
//!
//! ```text
//! for each text, in sorted order:
//!     n = the number of tokens at its beginning that the text before it has, too
//!     if a segment of the text before it contains position n, split the segment there
//!     g = the number of tokens after n that a prefix in the cache contains: their keys and values are given
//!     the tokens after n + g are computed, in a new segment
//! ```
//!
//! Very short segments would cost more than they save, so a shared segment has at least [`MIN_SHARED`] tokens.

use std::ops::Range;
use std::sync::Arc;

use qwen3_embed_kernels::cpu::KEY_BLOCK;
use qwen3_embed_kernels::{Ragged, Segment, SegmentKind};

use crate::Result;
use crate::batching::prefix_cache::{Known, Prefix, common};

/// The fewest tokens of a segment that exists because texts share it.
const MIN_SHARED: usize = 4;

/// The fewest tokens of a prefix that is put into the cache.
const MIN_KEPT: usize = 8;

/// A limit of the keys that attention packs more than once, as a multiple of the budget in tokens. Packed keys need
/// memory, too.
const MAX_REPEATED_PER_TOKEN: usize = 3;

/// The plan of one batch.
#[derive(Debug)]
pub(crate) struct Plan {
    pub(crate) batch: Ragged,
    /// The token id of each row that is computed.
    pub(crate) ids: Vec<u32>,
    /// For each text in the batch: its index in the call, and the index of its last token among the last tokens of the
    /// batch.
    pub(crate) texts: Vec<(usize, usize)>,
    /// The rows whose keys and values come from the prefix cache.
    pub(crate) given: Vec<Given>,
    /// The prefixes that are put into the cache.
    pub(crate) kept: Vec<Kept>,
}

/// Rows whose keys and values are copied from a prefix in the cache.
#[derive(Debug)]
pub(crate) struct Given {
    pub(crate) prefix: Arc<Prefix>,
    /// The tokens of the prefix.
    pub(crate) tokens: Range<usize>,
    /// The first of the rows.
    pub(crate) row: usize,
}

/// A prefix that is put into the cache.
#[derive(Debug)]
pub(crate) struct Kept {
    pub(crate) tokens: Vec<u32>,
    /// The row of each token.
    pub(crate) rows: Vec<usize>,
}

/// Plans the next batch without sharing: every token of every text is computed. The batch contains the texts from
/// `start` on whose tokens fit in `budget`, and at least one text, if any is left.
pub(crate) fn whole<T: AsRef<[u32]>>(texts: &[T], start: usize, budget: usize) -> Result<Plan> {
    let mut n_tokens = 0usize;
    let fitting = texts[start..].iter().take_while(|text| {
        n_tokens = n_tokens.saturating_add(text.as_ref().len());
        n_tokens <= budget
    });
    let end = (start + fitting.count().max(1)).min(texts.len());
    let lengths = texts[start..end].iter().map(|text| text.as_ref().len());
    Ok(Plan {
        batch: Ragged::from_lengths(lengths)?,
        ids: texts[start..end].iter().flat_map(|text| text.as_ref()).copied().collect(),
        texts: (start..end).zip(0..).collect(),
        given: Vec::new(),
        kept: Vec::new(),
    })
}

/// The indices of the texts, sorted by tokens, so that texts with a common beginning are neighbors.
pub(crate) fn order<T: AsRef<[u32]>>(texts: &[T]) -> Vec<usize> {
    let mut order: Vec<usize> = (0..texts.len()).collect();
    order.sort_by_key(|&text| texts[text].as_ref());
    order
}

/// Plans the next batch with sharing. The batch contains the first texts of `order` whose computed tokens fit in
/// `budget`, and at least one text. `known` is the contents of the prefix cache, and the prefixes that are put into the
/// cache have at most `max_kept` tokens.
///
/// Returns the plan and its number of texts.
pub(crate) fn shared<T: AsRef<[u32]>>(
    texts: &[T],
    order: &[usize],
    budget: usize,
    known: &Known,
    max_kept: usize,
) -> Result<(Plan, usize)> {
    let (nodes, path, ends) = Default::default();
    let mut forest = Forest { texts, nodes, path, ends, n_repeated: 0 };
    let mut n_tokens = 0;
    for (n, &text) in order.iter().enumerate() {
        let tokens = texts[text].as_ref();
        let (_, n_shared) = forest.fork(tokens);
        n_tokens += tokens.len() - n_shared;
        let n_repeated = forest.n_repeated + n_shared % KEY_BLOCK;
        let is_full =
            n_tokens > budget || n_repeated > budget.saturating_mul(MAX_REPEATED_PER_TOKEN);
        if n > 0 && is_full {
            break;
        }
        forest.push(text, known, max_kept);
    }
    let n_texts = forest.ends.len();
    Ok((forest.plan(max_kept)?, n_texts))
}

/// The segments of a batch while texts are added to it.
struct Forest<'a, T> {
    texts: &'a [T],
    nodes: Vec<Node>,
    /// The segments of the last text, from its beginning to its end.
    path: Vec<usize>,
    /// The texts that were added, and the last segment of each.
    ends: Vec<(usize, usize)>,
    /// The number of keys that attention packs again, because a segment begins within a block of keys.
    n_repeated: usize,
}

/// A segment: tokens `start..end` of a text.
struct Node {
    text: usize,
    start: usize,
    end: usize,
    parent: Option<usize>,
    given: Option<Arc<Prefix>>,
    /// Whether a text ends here.
    is_text: bool,
    /// Whether several texts contain the segment.
    is_shared: bool,
}

impl<T: AsRef<[u32]>> Forest<'_, T> {
    /// The number of segments that the next text shares with the last text, and the number of tokens in them. The last
    /// of these segments may be shared in part.
    fn fork(&self, tokens: &[u32]) -> (usize, usize) {
        let last = self.ends.last().map_or(&[] as &[u32], |&(text, _)| self.texts[text].as_ref());
        let n = common(last, tokens);
        let depth = self.path.partition_point(|&node| self.nodes[node].start < n);
        match self.path[..depth].last().map(|&node| &self.nodes[node]) {
            None => (0, 0),
            Some(node) if n == node.end || n - node.start >= MIN_SHARED => (depth, n),
            Some(node) => (depth - 1, node.start),
        }
    }

    /// Adds the next text in sorted order.
    fn push(&mut self, text: usize, known: &Known, max_kept: usize) {
        let tokens = self.texts[text].as_ref();
        let (depth, mut n) = self.fork(tokens);
        let equal = n == tokens.len();
        self.path.truncate(depth);
        if let Some(&node) = self.path.last() {
            let node = if n < self.nodes[node].end { self.split(node, n) } else { node };
            self.nodes[node].is_shared |= !equal;
        }
        if equal && let Some(&node) = self.path.last() {
            self.ends.push((text, node));
            return;
        }
        // The last token is always computed, because the result is its hidden state.
        let most = tokens.len() - 1;
        if let Some((prefix, end)) = known.longest(&tokens[..most])
            && end >= n + MIN_SHARED
        {
            self.add(text, n..end, Some(prefix.clone()));
            n = end;
        }
        let end = known.seen(&tokens[..most]).min(max_kept);
        if end >= (n + MIN_SHARED).max(MIN_KEPT) {
            let node = self.add(text, n..end, None);
            self.nodes[node].is_shared = true;
            n = end;
        }
        let node = self.add(text, n..tokens.len(), None);
        self.nodes[node].is_text = true;
        self.ends.push((text, node));
    }

    /// Adds a segment to the end of the path.
    fn add(&mut self, text: usize, tokens: Range<usize>, given: Option<Arc<Prefix>>) -> usize {
        let parent = self.path.last().copied();
        let Range { start, end } = tokens;
        let (is_text, is_shared) = (false, false);
        self.n_repeated += start % KEY_BLOCK;
        self.nodes.push(Node { text, start, end, parent, given, is_text, is_shared });
        self.path.push(self.nodes.len() - 1);
        self.nodes.len() - 1
    }

    /// Splits the last segment of the path at position `at`. Returns the first part, which ends the path.
    fn split(&mut self, node: usize, at: usize) -> usize {
        let Node { text, start, .. } = self.nodes[node];
        let given = self.nodes[node].given.clone();
        self.path.pop();
        let first = self.add(text, start..at, given);
        (self.nodes[node].start, self.nodes[node].parent) = (at, Some(first));
        self.n_repeated = self.n_repeated - start % KEY_BLOCK + at % KEY_BLOCK;
        first
    }

    fn plan(&self, max_kept: usize) -> Result<Plan> {
        // Sorted by their first positions, every segment comes after its parent.
        let mut order: Vec<usize> = (0..self.nodes.len()).collect();
        order.sort_by_key(|&node| self.nodes[node].start);
        let mut segment_of = vec![0; order.len()];
        for (segment, &node) in order.iter().enumerate() {
            segment_of[node] = segment;
        }
        let batch = Ragged::from_segments(order.iter().map(|&node| {
            let node = &self.nodes[node];
            Segment {
                n_tokens: node.end - node.start,
                parent: node.parent.map(|parent| segment_of[parent]),
                kind: node.kind(),
            }
        }))?;
        let mut ids = vec![0; batch.n_tokens()];
        let mut given = Vec::new();
        for (segment, &node) in order.iter().enumerate() {
            let Node { text, start, end, .. } = self.nodes[node];
            if let Some(prefix) = &self.nodes[node].given {
                let (prefix, row) = (prefix.clone(), batch.row(segment, start));
                given.push(Given { prefix, tokens: start..end, row });
                continue;
            }
            for (position, &id) in (start..end).zip(&self.texts[text].as_ref()[start..end]) {
                ids[batch.row(segment, position) - batch.n_given()] = id;
            }
        }
        let first_last = batch.n_rows() - batch.n_last();
        let last_rows = batch.last_rows();
        let texts = self
            .ends
            .iter()
            .map(|&(text, node)| (text, last_rows[segment_of[node]] as usize - first_last))
            .collect();
        let kept = self.kept(&batch, &segment_of, max_kept);
        Ok(Plan { batch, ids, texts, given, kept })
    }

    /// The prefixes that are put into the cache: the longest prefixes that texts share. If they exceed the size of the
    /// cache, the prefixes that most texts share are chosen.
    fn kept(&self, batch: &Ragged, segment_of: &[usize], max_kept: usize) -> Vec<Kept> {
        let is_candidate = |node: &Node| node.is_shared && node.given.is_none();
        let mut is_continued = vec![false; self.nodes.len()];
        let mut n_texts = vec![0usize; self.nodes.len()];
        for node in self.nodes.iter().filter(|node| is_candidate(node)) {
            if let Some(parent) = node.parent {
                is_continued[parent] = true;
            }
        }
        for &(_, end) in &self.ends {
            let mut node = Some(end);
            while let Some(idx) = node {
                n_texts[idx] += 1;
                node = self.nodes[idx].parent;
            }
        }
        let mut longest: Vec<usize> = (0..self.nodes.len())
            .filter(|&idx| is_candidate(&self.nodes[idx]) && !is_continued[idx])
            .filter(|&idx| self.nodes[idx].end.min(max_kept) >= MIN_KEPT)
            .collect();
        longest.sort_by_key(|&idx| std::cmp::Reverse(n_texts[idx]));
        // `max_kept` tokens are half of the cache.
        let mut room = 2 * max_kept;
        let kept = longest.into_iter().map_while(|idx| {
            let n_tokens = self.nodes[idx].end.min(max_kept);
            room = room.checked_sub(n_tokens)?;
            let tokens = self.texts[self.nodes[idx].text].as_ref()[..n_tokens].to_vec();
            Some(Kept { tokens, rows: batch.path(segment_of[idx]).take(n_tokens).collect() })
        });
        kept.collect()
    }
}

impl Node {
    fn kind(&self) -> SegmentKind {
        match (&self.given, self.is_text) {
            (Some(_), _) => SegmentKind::Given,
            (None, true) => SegmentKind::Text,
            (None, false) => SegmentKind::Inner,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Plans all texts as one batch, with an empty cache.
    fn plan(texts: &[&[u32]], max_kept: usize) -> Plan {
        let (plan, n_texts) =
            shared(texts, &order(texts), usize::MAX, &Known::default(), max_kept).unwrap();
        assert_eq!(n_texts, texts.len());
        plan
    }

    /// The tokens in the rows of a text, from its first segment to its last one.
    fn tokens_of(plan: &Plan, last: usize) -> Vec<u32> {
        let batch = &plan.batch;
        let row = batch.n_rows() - batch.n_last() + last;
        let segment = batch.last_rows().iter().position(|&end| end as usize == row).unwrap();
        batch.path(segment).map(|row| plan.ids[row - batch.n_given()]).collect()
    }

    #[test]
    fn rows_of_each_text_contain_its_tokens() {
        let texts: [&[u32]; 8] = [
            &[1, 2, 3, 4, 5, 6],
            &[1, 2, 3, 4, 5],
            &[1, 2, 3, 4, 5, 6],
            &[1, 2],
            &[9],
            &[1, 2, 3, 4, 7, 7, 7, 7, 7],
            &[1, 2, 3, 4, 7, 7, 7, 7, 8, 8],
            &[1],
        ];
        let plan = plan(&texts, 0);
        assert_eq!(plan.texts.len(), texts.len());
        for &(text, last) in &plan.texts {
            assert_eq!(tokens_of(&plan, last), texts[text]);
        }
        // The computed segments are 1, 2, 3 4 5, 6, 3 4 7 7 7 7 7 (sharing 3 4 would make a segment of two tokens), 8 8
        // and 9.
        assert_eq!(plan.ids.len(), 1 + 1 + 3 + 1 + 7 + 2 + 1);
        assert_eq!(plan.batch.n_last(), 7);
    }

    #[test]
    fn fills_batches_in_order_and_puts_a_long_text_into_its_own() {
        let batches = |lengths: &[usize], budget| -> Vec<usize> {
            let texts: Vec<Vec<u32>> = lengths.iter().map(|&n| vec![0; n]).collect();
            let (mut plans, mut start) = (Vec::new(), 0);
            while start < texts.len() {
                plans.push(whole(&texts, start, budget).unwrap());
                start += plans[plans.len() - 1].texts.len();
            }
            let in_order: Vec<usize> =
                plans.iter().flat_map(|plan| &plan.texts).map(|&(text, _)| text).collect();
            assert!(in_order.iter().copied().eq(0..texts.len()));
            plans.iter().map(|plan| plan.texts.len()).collect()
        };
        assert_eq!(batches(&[3, 3, 4, 1], 10), [3, 1]);
        assert_eq!(batches(&[10, 10], 10), [1, 1]);
        assert_eq!(batches(&[11, 1, 1, 12, 9], 10), [1, 2, 1, 1]);
        assert_eq!(batches(&[1, 1, 1], 1), [1, 1, 1]);
        assert!(batches(&[], 10).is_empty());
    }

    #[test]
    fn counts_only_computed_tokens_against_the_budget() {
        let n_batches = |texts: &[&[u32]], budget| {
            let order = order(texts);
            let (mut rest, mut batches) = (order.as_slice(), Vec::new());
            while !rest.is_empty() {
                let (plan, n) = shared(texts, rest, budget, &Known::default(), 0).unwrap();
                assert!(n == 1 || plan.ids.len() <= budget);
                batches.push(n);
                rest = &rest[n..];
            }
            batches
        };
        let texts: [&[u32]; 4] = [&[1, 1, 1], &[2, 2, 2], &[3, 3, 3, 3], &[4]];
        assert_eq!(n_batches(&texts, 10), [3, 1]);
        assert_eq!(n_batches(&texts, 1), [1, 1, 1, 1]);
        let equal: [&[u32]; 4] = [&[1; 9], &[1; 9], &[1; 9], &[1; 10]];
        assert_eq!(n_batches(&equal, 10), [4]);
        assert_eq!(n_batches(&equal, 9), [3, 1]);
        assert_eq!(n_batches(&[], 9), [0usize; 0]);
    }

    #[test]
    fn limits_the_keys_that_are_packed_again() {
        let text = |start: u32| [vec![1; KEY_BLOCK - 1], vec![start, 5, 6]].concat();
        let texts: Vec<Vec<u32>> = (10..1010).map(text).collect();
        let (budget, order) = (1000, order(&texts));
        let (plan, n_texts) = shared(&texts, &order, budget, &Known::default(), 0).unwrap();
        let batch = &plan.batch;
        let starts = (0..batch.n_segments()).map(|segment| batch.positions_of(segment).start);
        let n_repeated: usize = starts.map(|start| start % KEY_BLOCK).sum();
        assert_eq!(n_texts, MAX_REPEATED_PER_TOKEN * budget / (KEY_BLOCK - 1));
        assert!(n_repeated <= MAX_REPEATED_PER_TOKEN * budget, "{n_repeated}");
        // If texts share a whole block, no keys are packed again.
        let texts: Vec<Vec<u32>> = texts.iter().map(|text| [&[9], &text[..]].concat()).collect();
        let (_, n_texts) = shared(&texts, &order, budget, &Known::default(), 0).unwrap();
        assert_eq!(n_texts, (budget - KEY_BLOCK) / 3);
    }

    #[test]
    fn keeps_the_most_shared_prefixes_that_fit_in_the_cache() {
        let text = |prefix: u32, n: usize, last: u32| [vec![prefix; n], vec![last; 5]].concat();
        let texts = [
            text(1, 10, 50),
            text(1, 10, 51),
            text(2, 12, 50),
            text(2, 12, 51),
            text(2, 12, 52),
            text(3, 7, 50),
            text(3, 7, 51),
            text(4, 30, 50),
        ];
        let texts: Vec<&[u32]> = texts.iter().map(Vec::as_slice).collect();
        let kept = |max_kept| -> Vec<Vec<u32>> {
            plan(&texts, max_kept).kept.into_iter().map(|kept| kept.tokens).collect()
        };
        assert_eq!(kept(100), [vec![2; 12], vec![1; 10]]);
        assert_eq!(kept(12), [vec![2; 12], vec![1; 10]]);
        assert_eq!(kept(9), [vec![2; 9], vec![1; 9]]);
        assert!(kept(7).is_empty());
    }
}
