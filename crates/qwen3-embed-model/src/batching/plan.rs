//! Which tokens of a call are computed, in which batches.
//!
//! Texts are taken in the order of their tokens, so that those which begin alike come one after the
//! other. Each continues the one before it as far as they agree:
//!
//! ```text
//! for each text, in order:
//!     n = tokens in common with the text before            nothing is computed for them again
//!     end the segment of that text at n, if it goes on     what follows is a segment of its own
//!     g = more tokens that a kept prefix has               their keys and values are given
//!     the rest is computed
//! ```
//!
//! A segment of its own for every token that texts have in common would cost more than it saves: what
//! is shared has [`LEAST_SHARED`] tokens.

use std::ops::Range;
use std::sync::Arc;

use qwen3_embed_kernels::cpu::KEY_BLOCK;
use qwen3_embed_kernels::{Ragged, Segment, SegmentKind};

use crate::Result;
use crate::batching::prefix_cache::{Known, Prefix, common};

/// The fewest tokens that are a segment because texts share them.
const LEAST_SHARED: usize = 4;

/// The fewest tokens of a prefix that is kept for later calls.
const LEAST_KEPT: usize = 8;

/// Keys that attention may pack more than once, for each token that a batch may have: they take memory too.
const MOST_REPEATED: usize = 3;

/// One batch.
#[derive(Debug)]
pub(crate) struct Plan {
    pub(crate) batch: Ragged,
    /// The token of each row that is computed.
    pub(crate) ids: Vec<u32>,
    /// Texts of the call, and for each the number of its last token among those of the batch.
    pub(crate) texts: Vec<(usize, usize)>,
    /// Where the keys and values of given rows come from.
    pub(crate) given: Vec<Given>,
    /// What is to be kept.
    pub(crate) kept: Vec<Kept>,
}

/// Rows whose keys and values are known.
#[derive(Debug)]
pub(crate) struct Given {
    pub(crate) prefix: Arc<Prefix>,
    /// Which of its tokens.
    pub(crate) tokens: Range<usize>,
    /// The first row.
    pub(crate) row: usize,
}

/// A prefix that will be known to later calls.
#[derive(Debug)]
pub(crate) struct Kept {
    pub(crate) tokens: Vec<u32>,
    /// The row of each token.
    pub(crate) rows: Vec<usize>,
}

/// Plans the next batch of texts that are computed whole, all of their tokens: as many of those from
/// `start` on as have about `budget` tokens, at least one, if there is one.
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

/// The order in which texts that share their beginnings come one after the other.
pub(crate) fn order<T: AsRef<[u32]>>(texts: &[T]) -> Vec<usize> {
    let mut order: Vec<usize> = (0..texts.len()).collect();
    order.sort_by_key(|&text| texts[text].as_ref());
    order
}

/// Plans the next batch: as many of the texts that are left in `order` as take about `budget` tokens,
/// at least one. `known` is what earlier calls left, and prefixes of up to `max_kept` tokens are kept.
///
/// Returns the plan, and how many texts it has.
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
        let is_full = n_tokens > budget || n_repeated > budget.saturating_mul(MOST_REPEATED);
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
    /// The segments of the last text, from its beginning on.
    path: Vec<usize>,
    /// The texts so far, and the segment that each ends with.
    ends: Vec<(usize, usize)>,
    /// Keys that attention packs once more, because a segment begins within a block of them.
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
    /// Whether several texts have it.
    is_shared: bool,
}

impl<T: AsRef<[u32]>> Forest<'_, T> {
    /// How many segments of the last text the next one has too, the last of them perhaps in part, and
    /// how many tokens.
    fn fork(&self, tokens: &[u32]) -> (usize, usize) {
        let last = self.ends.last().map_or(&[] as &[u32], |&(text, _)| self.texts[text].as_ref());
        let n = common(last, tokens);
        let depth = self.path.partition_point(|&node| self.nodes[node].start < n);
        match self.path[..depth].last().map(|&node| &self.nodes[node]) {
            None => (0, 0),
            Some(node) if n == node.end || n - node.start >= LEAST_SHARED => (depth, n),
            Some(node) => (depth - 1, node.start),
        }
    }

    /// Adds the next text in order.
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
        // The last token is computed in any case.
        let most = tokens.len() - 1;
        if let Some((prefix, end)) = known.longest(&tokens[..most])
            && end >= n + LEAST_SHARED
        {
            self.add(text, n..end, Some(prefix.clone()));
            n = end;
        }
        let end = known.seen(&tokens[..most]).min(max_kept);
        if end >= (n + LEAST_SHARED).max(LEAST_KEPT) {
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

    /// Ends the last segment of the path at position `at`, and has another continue it.
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
        // What a segment continues begins before it does.
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

    /// What is worth keeping: the longest of what texts share, what most texts have first, and no more
    /// than the cache has room for.
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
            .filter(|&idx| self.nodes[idx].end.min(max_kept) >= LEAST_KEPT)
            .collect();
        longest.sort_by_key(|&idx| std::cmp::Reverse(n_texts[idx]));
        // A prefix may take half of the cache.
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

    /// Texts in order, in one batch, with nothing known.
    fn plan(texts: &[&[u32]], max_kept: usize) -> Plan {
        let (plan, n_texts) =
            shared(texts, &order(texts), usize::MAX, &Known::default(), max_kept).unwrap();
        assert_eq!(n_texts, texts.len());
        plan
    }

    /// The tokens from the beginning of a text's path to its end, as the rows of the batch have them.
    fn tokens_of(plan: &Plan, last: usize) -> Vec<u32> {
        let batch = &plan.batch;
        let row = batch.n_rows() - batch.n_last() + last;
        let segment = batch.last_rows().iter().position(|&end| end as usize == row).unwrap();
        batch.path(segment).map(|row| plan.ids[row - batch.n_given()]).collect()
    }

    #[test]
    fn every_text_lies_along_its_path() {
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
        // Each goes on where the one before ends, 1 2 3 4 7 … behind 1 2, because 3 4 alone are too few,
        // and 8 8 behind the 7s, which the other shares.
        assert_eq!(plan.ids.len(), 1 + 1 + 3 + 1 + 7 + 2 + 1);
        assert_eq!(plan.batch.n_last(), 7);
    }

    #[test]
    fn batches_of_whole_texts_are_filled_in_order_and_a_long_text_goes_alone() {
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
    fn batches_have_as_many_tokens_as_are_computed() {
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
    fn batches_do_not_repeat_many_keys() {
        let text = |start: u32| [vec![1; KEY_BLOCK - 1], vec![start, 5, 6]].concat();
        let texts: Vec<Vec<u32>> = (10..1010).map(text).collect();
        let (budget, order) = (1000, order(&texts));
        let (plan, n_texts) = shared(&texts, &order, budget, &Known::default(), 0).unwrap();
        let batch = &plan.batch;
        let starts = (0..batch.n_segments()).map(|segment| batch.positions_of(segment).start);
        let n_repeated: usize = starts.map(|start| start % KEY_BLOCK).sum();
        assert_eq!(n_texts, MOST_REPEATED * budget / (KEY_BLOCK - 1));
        assert!(n_repeated <= MOST_REPEATED * budget, "{n_repeated}");
        // Where a whole block is shared, nothing is repeated.
        let texts: Vec<Vec<u32>> = texts.iter().map(|text| [&[9], &text[..]].concat()).collect();
        let (_, n_texts) = shared(&texts, &order, budget, &Known::default(), 0).unwrap();
        assert_eq!(n_texts, (budget - KEY_BLOCK) / 3);
    }

    #[test]
    fn what_most_texts_share_is_kept_as_far_as_there_is_room() {
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
