//! The search for the best of many rows.

use std::cmp::Ordering;

use rayon::prelude::*;

/// One result of a search, such as [`Embeddings::top_k`](crate::Embeddings::top_k).
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Hit {
    /// The index of the row that was found.
    pub index: usize,
    /// The similarity of the row and the query, from −1 to 1. The search that returned the hit documents which
    /// similarity this is.
    pub score: f32,
}

/// The number of rows that a kernel compares in one call.
pub(crate) const BLOCK: usize = 64;

/// The least number of blocks that a thread searches.
const MIN_BLOCKS: usize = 4;

/// The `k` rows with the largest scores, the largest first. Rows with equal scores are in the order of their indices. So
/// the result does not depend on the number of threads.
///
/// `scores` gets the index of a row, this row and the following ones, at most [`BLOCK`] in total, and writes the score of
/// each. No score is NaN. Only candidates for the best rows are kept, not the scores of all rows.
pub(crate) fn best<T: Sync>(
    values: &[T],
    row_size: usize,
    k: usize,
    scores: impl Fn(usize, &[T], &mut [f32]) + Sync,
) -> Vec<Hit> {
    if k == 0 {
        return Vec::new();
    }
    let blocks = values.par_chunks(BLOCK * row_size).enumerate().with_min_len(MIN_BLOCKS);
    let candidates = blocks.fold(
        || Best::new(k),
        |mut best, (block, rows)| {
            let mut buffer = [0f32; BLOCK];
            let buffer = &mut buffer[..rows.len() / row_size];
            scores(block * BLOCK, rows, buffer);
            for (index, &score) in (block * BLOCK..).zip(&*buffer) {
                best.add(Hit { index, score });
            }
            best
        },
    );
    candidates.reduce(|| Best::new(k), Best::merge).sorted()
}

/// The best `k` hits, sorted by [`best_first`].
pub(crate) fn sorted(mut hits: Vec<Hit>, k: usize) -> Vec<Hit> {
    if k < hits.len() {
        hits.select_nth_unstable_by(k, best_first);
        hits.truncate(k);
    }
    hits.sort_unstable_by(best_first);
    hits
}

/// The order of hits: the largest score first, then the smallest index.
fn best_first(a: &Hit, b: &Hit) -> Ordering {
    b.score.partial_cmp(&a.score).unwrap_or(Ordering::Equal).then(a.index.cmp(&b.index))
}

/// Some hits, among them the best `k` of all hits that were added.
struct Best {
    k: usize,
    hits: Vec<Hit>,
    /// A hit that is not better than `k` others. Worse hits are not added.
    bound: Option<Hit>,
}

impl Best {
    fn new(k: usize) -> Self {
        Self { k, hits: Vec::new(), bound: None }
    }

    fn add(&mut self, hit: Hit) {
        if let Some(bound) = &self.bound
            && (hit.score < bound.score || best_first(bound, &hit).is_lt())
        {
            return;
        }
        self.hits.push(hit);
        // With twice as many hits as needed, the selection takes constant time for each hit.
        if self.hits.len() >= self.k.saturating_mul(2) {
            self.hits.select_nth_unstable_by(self.k - 1, best_first);
            self.hits.truncate(self.k);
            self.bound = self.hits.last().copied();
        }
    }

    fn merge(mut self, other: Self) -> Self {
        for hit in other.hits {
            self.add(hit);
        }
        self
    }

    fn sorted(self) -> Vec<Hit> {
        sorted(self.hits, self.k)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn best_rows_are_those_of_a_sort_with_any_number_of_threads() {
        // Many rows have equal scores.
        let values: Vec<u32> = (0..3000u32).map(|i| i.wrapping_mul(2_654_435_761) >> 24).collect();
        let mut expected: Vec<(usize, f32)> =
            values.iter().map(|&value| value as f32).enumerate().collect();
        expected.sort_by(|a, b| b.1.total_cmp(&a.1).then(a.0.cmp(&b.0)));
        for threads in 1..=4 {
            let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
            for k in [0, 1, 2, 10, 1000, 2999, 3000, 3001, usize::MAX] {
                let hits = pool.install(|| {
                    best(&values, 1, k, |first, rows, scores| {
                        assert_eq!(rows, &values[first..][..rows.len()]);
                        for (score, &value) in scores.iter_mut().zip(rows) {
                            *score = value as f32;
                        }
                    })
                });
                let hits: Vec<_> = hits.iter().map(|hit| (hit.index, hit.score)).collect();
                assert_eq!(hits, expected[..k.min(3000)], "k = {k}, {threads} threads");
            }
        }
    }
}
