//! Measures of retrieval. A matrix of similarities has one row for each query and one column for each candidate, and
//! the candidate that belongs to query i is candidate i.

use anyhow::Result;
use candle_core::{Device, Tensor};
use qwen3_embed::Embeddings;
use qwen3_embed_testing::vectors::{cosine, mean};

/// How many of the best candidates [`Agreement::tau`] compares.
const COMPARED_HITS: usize = 10;

/// How well the texts of one language find their translations in another language.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Direction {
    /// The languages of queries and candidates, such as `en-ko`.
    pub(super) name: String,
    /// The share of queries whose translation is the first hit.
    pub(super) recall: f64,
    /// The mean of 1 / rank of the translation.
    pub(super) mrr: f64,
}

/// How much the hits with one weight format agree with the hits in f32.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Agreement {
    /// The share of queries with the same first hit.
    pub(super) same_first: f64,
    /// The mean of Kendall's τ over the first ten hits in f32.
    pub(super) tau: f64,
    /// The smallest cosine between a text's vector and its vector in f32.
    pub(super) least_cosine: f64,
}

/// The vectors of the first `n` texts of each language.
pub(super) struct ByLanguage<'a> {
    pub(super) languages: &'a [&'a str],
    matrices: Vec<Tensor>,
}

impl<'a> ByLanguage<'a> {
    /// `embeddings` has all texts of the first language, then all texts of the next language, and so on. Vectors are
    /// cut to the first `dimensions` values.
    pub(super) fn new(
        embeddings: &Embeddings,
        languages: &'a [&'a str],
        n: usize,
        dimensions: usize,
    ) -> Result<Self> {
        let embeddings = embeddings.truncate(dimensions)?;
        let per_language =
            embeddings.as_slice().chunks_exact(embeddings.as_slice().len() / languages.len());
        let matrix = |values: &[f32]| {
            let n = n.min(values.len() / dimensions);
            Ok(Tensor::from_slice(&values[..n * dimensions], (n, dimensions), &Device::Cpu)?)
        };
        Ok(Self { languages, matrices: per_language.map(matrix).collect::<Result<_>>()? })
    }

    /// The similarities of each language's texts with each other language's texts in `candidates`.
    fn similarities(&self, candidates: &Self) -> Result<Vec<(String, Vec<Vec<f32>>)>> {
        let mut all = Vec::new();
        for (from, queries) in self.languages.iter().zip(&self.matrices) {
            for (to, documents) in candidates.languages.iter().zip(&candidates.matrices) {
                if from != to {
                    let similarities = queries.matmul(&documents.t()?)?.to_vec2()?;
                    all.push((format!("{from}-{to}"), similarities));
                }
            }
        }
        Ok(all)
    }
}

/// Retrieval in every direction between two languages.
pub(super) fn retrieval(queries: &ByLanguage, candidates: &ByLanguage) -> Result<Vec<Direction>> {
    let direction = |(name, similarities): (String, Vec<Vec<f32>>)| {
        let ranks = ranks(&similarities);
        let first: Vec<f64> = ranks.iter().map(|&rank| f64::from(rank == 1)).collect();
        let reciprocal: Vec<f64> = ranks.iter().map(|&rank| 1.0 / rank as f64).collect();
        Direction { name, recall: mean(&first), mrr: mean(&reciprocal) }
    };
    Ok(queries.similarities(candidates)?.into_iter().map(direction).collect())
}

/// Compares the hits of vectors with the hits of the vectors in f32.
pub(super) fn agreement(
    (embeddings, vectors): (&Embeddings, &ByLanguage),
    (exact_embeddings, exact): (&Embeddings, &ByLanguage),
) -> Result<Agreement> {
    let (mut same_first, mut taus) = (Vec::new(), Vec::new());
    for ((_, rows), (_, exact)) in
        vectors.similarities(vectors)?.iter().zip(exact.similarities(exact)?)
    {
        for (row, exact) in rows.iter().zip(&exact) {
            let hits = best(exact, COMPARED_HITS);
            same_first.push(f64::from(best(row, 1)[0] == hits[0]));
            taus.push(kendall_tau(&hits, row));
        }
    }
    let cosines = embeddings.iter().zip(exact_embeddings).map(|(row, exact)| cosine(row, exact));
    Ok(Agreement {
        same_first: mean(&same_first),
        tau: mean(&taus),
        least_cosine: cosines.fold(f64::INFINITY, f64::min),
    })
}

/// The rank of each query's candidate, from 1. Other candidates with the same similarity count as better.
fn ranks(similarities: &[Vec<f32>]) -> Vec<usize> {
    let rank = |(query, row): (usize, &Vec<f32>)| {
        row.iter().filter(|&&similarity| similarity >= row[query]).count()
    };
    similarities.iter().enumerate().map(rank).collect()
}

/// The indices of the `k` largest values, the largest first.
fn best(row: &[f32], k: usize) -> Vec<usize> {
    let mut order: Vec<usize> = (0..row.len()).collect();
    let largest_first = |a: &usize, b: &usize| row[*b].total_cmp(&row[*a]).then(a.cmp(b));
    if k < order.len() {
        order.select_nth_unstable_by(k, largest_first);
        order.truncate(k);
    }
    order.sort_unstable_by(largest_first);
    order
}

/// Kendall's τ between the order of `hits` and the order of their values in `row`, the largest value first: 1 if the
/// orders are equal, −1 if they are opposite.
fn kendall_tau(hits: &[usize], row: &[f32]) -> f64 {
    let (mut sum, mut n_pairs) = (0.0, 0.0);
    for (idx, &better) in hits.iter().enumerate() {
        for &worse in &hits[idx + 1..] {
            let difference = row[better] - row[worse];
            sum += if difference == 0.0 { 0.0 } else { f64::from(difference.signum()) };
            n_pairs += 1.0;
        }
    }
    sum / n_pairs
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranks_count_candidates_that_are_at_least_as_similar() {
        let similarities = [vec![0.9, 0.1, 0.2], vec![0.5, 0.4, 0.3], vec![0.7, 0.7, 0.7]];
        assert_eq!(ranks(&similarities), [1, 2, 3]);
    }

    #[test]
    fn kendall_tau_is_one_for_equal_and_minus_one_for_opposite_orders() {
        let row = [0.1, 0.9, 0.5, 0.3];
        assert_eq!(best(&row, 3), [1, 2, 3]);
        assert_eq!(kendall_tau(&[1, 2, 3, 0], &row), 1.0);
        assert_eq!(kendall_tau(&[0, 3, 2, 1], &row), -1.0);
        // One of three pairs is in the opposite order.
        assert!((kendall_tau(&[2, 1, 3], &row) - 1.0 / 3.0).abs() < 1e-12);
    }

    #[test]
    fn recall_and_reciprocal_rank_of_known_vectors() {
        // In language `b`, the first two texts are exchanged.
        let (x, y, z) = ([1.0, 0.0, 0.0], [0.0, 1.0, 0.0], [0.05, 0.02, 1.0]);
        let slightly_x = [0.1, 1.0, 0.0];
        let rows: Vec<f32> = [x, y, z, slightly_x, [1.0, 0.1, 0.0], z].concat();
        let embeddings = Embeddings::new(rows, 3).unwrap();
        let vectors = ByLanguage::new(&embeddings, &["a", "b"], 3, 3).unwrap();
        let directions = retrieval(&vectors, &vectors).unwrap();
        assert_eq!(directions.len(), 2);
        for (direction, name) in directions.iter().zip(["a-b", "b-a"]) {
            assert_eq!(direction.name, name);
            assert!((direction.recall - 1.0 / 3.0).abs() < 1e-12, "{direction:?}");
            assert!((direction.mrr - 2.0 / 3.0).abs() < 1e-12, "{direction:?}");
        }
        // A single candidate is always the first hit.
        let cut = ByLanguage::new(&embeddings, &["a", "b"], 1, 2).unwrap();
        assert_eq!(retrieval(&cut, &cut).unwrap()[0].recall, 1.0);
        let same = agreement((&embeddings, &vectors), (&embeddings, &vectors)).unwrap();
        assert_eq!((same.same_first, same.tau), (1.0, 1.0));
        assert!((same.least_cosine - 1.0).abs() < 1e-12);
    }
}
