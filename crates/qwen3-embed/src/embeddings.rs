use qwen3_embed_model::{Kernels, search};
use rayon::prelude::*;

use crate::search::{BLOCK, Hit, best, sorted};
use crate::vector::{exact_dot, norm, ratio};
use crate::{Error, Result, normalize};

/// Vectors of the same number of dimensions, one row for each text.
///
/// Two `Embeddings` are equal if their vectors and their token counts are equal.
///
/// # Examples
///
/// ```
/// use qwen3_embed::Embeddings;
///
/// let stored = Embeddings::new(vec![1.0, 0.0, 0.0, 1.0, 0.6, 0.8], 2)?;
/// assert_eq!((stored.len(), stored.dimensions()), (3, 2));
/// assert_eq!(stored.row(2), [0.6, 0.8]);
///
/// let best = stored.top_k(&[0.0, 1.0], 2)?;
/// assert_eq!((best[0].index, best[1].index), (1, 2));
/// # Ok::<(), qwen3_embed::Error>(())
/// ```
#[derive(Debug, Clone, PartialEq)]
pub struct Embeddings {
    /// Row-major [len, dimensions].
    values: Vec<f32>,
    dimensions: usize,
    n_tokens: Vec<usize>,
}

impl Embeddings {
    /// Makes embeddings from stored vectors: `values` are the vectors one after another, with `dimensions` values
    /// each. The vectors need not be of unit length.
    ///
    /// # Errors
    ///
    /// [`Error::NotWholeRows`] if `dimensions` is 0 or does not divide the number of values;
    /// [`Error::NotFinite`] if a value is NaN or infinite.
    pub fn new(values: Vec<f32>, dimensions: usize) -> Result<Self> {
        if dimensions == 0 || !values.len().is_multiple_of(dimensions) {
            return Err(Error::NotWholeRows { n_values: values.len(), dimensions });
        }
        if let Some(at) = values.iter().position(|value| !value.is_finite()) {
            let (row, dimension, value) = (at / dimensions, at % dimensions, values[at]);
            return Err(Error::NotFinite { row, dimension, value });
        }
        Ok(Self { values, dimensions, n_tokens: Vec::new() })
    }

    /// The embeddings of texts with these numbers of tokens. The model has checked that `values` are finite.
    pub(crate) fn of_texts(values: Vec<f32>, dimensions: usize, n_tokens: Vec<usize>) -> Self {
        debug_assert_eq!(values.len(), dimensions * n_tokens.len());
        Self { values, dimensions, n_tokens }
    }

    /// Vectors without texts. The caller has checked that `values` are finite and whole rows.
    pub(crate) fn of_rows(values: Vec<f32>, dimensions: usize) -> Self {
        Self { values, dimensions, n_tokens: Vec::new() }
    }

    /// The number of vectors.
    pub fn len(&self) -> usize {
        self.values.len() / self.dimensions
    }

    /// Whether there are no vectors.
    pub fn is_empty(&self) -> bool {
        self.values.is_empty()
    }

    /// The number of dimensions of each vector.
    pub fn dimensions(&self) -> usize {
        self.dimensions
    }

    /// The number of tokens of each text, including its prompt and the end-of-text token. The slice is empty for
    /// vectors that were passed to [`new`](Self::new).
    pub fn n_tokens(&self) -> &[usize] {
        &self.n_tokens
    }

    /// The vector at `index`.
    ///
    /// # Panics
    ///
    /// If `index` is not below [`len`](Self::len).
    pub fn row(&self, index: usize) -> &[f32] {
        &self.values[index * self.dimensions..][..self.dimensions]
    }

    /// Iterates over the vectors.
    pub fn iter(&self) -> std::slice::ChunksExact<'_, f32> {
        self.values.chunks_exact(self.dimensions)
    }

    /// All values, row-major [len, dimensions].
    pub fn as_slice(&self) -> &[f32] {
        &self.values
    }

    /// All values, row-major [len, dimensions].
    pub fn into_vec(self) -> Vec<f32> {
        self.values
    }

    /// The first `dimensions` values of each vector, normalized to unit length.
    ///
    /// # Errors
    ///
    /// [`Error::Dimensions`] if `dimensions` is 0 or more than the vectors have.
    pub fn truncate(&self, dimensions: usize) -> Result<Self> {
        if dimensions == 0 || dimensions > self.dimensions {
            return Err(Error::Dimensions { got: dimensions, min: 1, max: self.dimensions });
        }
        let mut values: Vec<f32> =
            self.iter().flat_map(|row| &row[..dimensions]).copied().collect();
        values.chunks_exact_mut(dimensions).for_each(normalize);
        Ok(Self { values, dimensions, n_tokens: self.n_tokens.clone() })
    }

    /// The cosine similarity of each of these vectors with each vector of `other`: a matrix with one row for each of
    /// these vectors and one column for each vector of `other`.
    ///
    /// # Errors
    ///
    /// [`Error::DimensionMismatch`] if the vectors have different numbers of dimensions.
    pub fn similarity(&self, other: &Self) -> Result<Similarities> {
        if self.dimensions != other.dimensions {
            let (left, right) = (self.dimensions, other.dimensions);
            return Err(Error::DimensionMismatch { left, right });
        }
        let (rows, cols, dimensions) = (self.len(), other.len(), self.dimensions);
        let mut values = vec![0f32; rows * cols];
        if cols > 0 {
            let left = values.par_chunks_mut(cols).zip(self.values.par_chunks(dimensions));
            left.for_each(|(out, row)| {
                let row = unit(row);
                let right = other.values.par_chunks(BLOCK * dimensions);
                let blocks = out.par_chunks_mut(BLOCK).zip(right).with_min_len(MIN_BLOCKS);
                blocks.for_each(|(out, rows)| cosines(&row, rows, out));
            });
        }
        Ok(Similarities { values, rows, cols })
    }

    /// The `k` vectors with the largest cosine similarity to `query`, or all vectors if there are fewer. The largest
    /// similarity comes first, and vectors with equal similarities are in the order of their indices.
    ///
    /// # Errors
    ///
    /// [`Error::DimensionMismatch`] if `query` has another number of dimensions; [`Error::NotFinite`] if a value of
    /// `query` is NaN or infinite.
    pub fn top_k(&self, query: &[f32], k: usize) -> Result<Vec<Hit>> {
        let query = Self::unit_query(query, self.dimensions)?;
        Ok(best(&self.values, self.dimensions, k, |_, rows, out| cosines(&query, rows, out)))
    }

    /// The `k` of the `candidates` with the largest cosine similarity to `query`, or all candidates if there are fewer,
    /// sorted as by [`top_k`](Self::top_k). The scores of the candidates are not used.
    ///
    /// Use this after a search in vectors with fewer bits, such as [`BinaryEmbeddings`](crate::BinaryEmbeddings): search
    /// for several times as many candidates as needed, and choose the best of them by the full vectors.
    ///
    /// # Errors
    ///
    /// [`Error::DimensionMismatch`] if `query` has another number of dimensions; [`Error::NotFinite`] if a value of
    /// `query` is NaN or infinite; [`Error::NoSuchRow`] if the index of a candidate is not below [`len`](Self::len).
    pub fn rescore(&self, query: &[f32], candidates: &[Hit], k: usize) -> Result<Vec<Hit>> {
        let query = Self::unit_query(query, self.dimensions)?;
        let mut hits = Vec::with_capacity(candidates.len());
        for &Hit { index, .. } in candidates {
            if index >= self.len() {
                return Err(Error::NoSuchRow { index, len: self.len() });
            }
            let mut score = [0.0];
            cosines(&query, self.row(index), &mut score);
            hits.push(Hit { index, score: score[0] });
        }
        Ok(sorted(hits, k))
    }

    /// The query, normalized to unit length.
    pub(crate) fn unit_query(query: &[f32], dimensions: usize) -> Result<Vec<f32>> {
        Self::check_query(query, dimensions)?;
        Ok(unit(query))
    }

    /// Checks the query of a search in vectors with `dimensions`.
    pub(crate) fn check_query(query: &[f32], dimensions: usize) -> Result<()> {
        if dimensions != query.len() {
            return Err(Error::DimensionMismatch { left: dimensions, right: query.len() });
        }
        match query.iter().position(|value| !value.is_finite()) {
            Some(dimension) => Err(Error::NotFinite { row: 0, dimension, value: query[dimension] }),
            None => Ok(()),
        }
    }
}

impl<'a> IntoIterator for &'a Embeddings {
    type Item = &'a [f32];
    type IntoIter = std::slice::ChunksExact<'a, f32>;

    fn into_iter(self) -> Self::IntoIter {
        self.iter()
    }
}

/// The least number of blocks of vectors that one thread compares.
const MIN_BLOCKS: usize = 4;

/// A copy of the vector, normalized to unit length.
fn unit(vector: &[f32]) -> Vec<f32> {
    let mut unit = vector.to_vec();
    normalize(&mut unit);
    unit
}

/// The cosine similarity of a unit vector with each of at most [`BLOCK`] rows.
fn cosines(unit: &[f32], rows: &[f32], out: &mut [f32]) {
    let mut products = [[0f32; 2]; BLOCK];
    let products = &mut products[..out.len()];
    search::dots_f32(Kernels::current(), unit, rows, products);
    for (out, &products) in out.iter_mut().zip(&*products) {
        *out = ratio(products);
    }
    for ((row, out), [_, square]) in rows.chunks_exact(unit.len()).zip(out).zip(products) {
        // For lengths in this range, the sums in f32 neither overflow nor underflow.
        if !(1e-30..1e30).contains(square) {
            let norm = norm(row);
            let cosine = exact_dot(unit, row) / norm;
            *out = if norm > 0.0 { cosine.clamp(-1.0, 1.0) as f32 } else { 0.0 };
        }
    }
}

/// A matrix of cosine similarities, see [`Embeddings::similarity`].
#[derive(Debug, Clone, PartialEq)]
pub struct Similarities {
    /// Row-major [rows, cols].
    values: Vec<f32>,
    rows: usize,
    cols: usize,
}

impl Similarities {
    /// The number of rows: the number of vectors on the left.
    pub fn rows(&self) -> usize {
        self.rows
    }

    /// The number of columns: the number of vectors on the right.
    pub fn cols(&self) -> usize {
        self.cols
    }

    /// The similarity of the left vector `row` and the right vector `col`.
    ///
    /// # Panics
    ///
    /// If `row` or `col` is out of range.
    pub fn get(&self, row: usize, col: usize) -> f32 {
        self.row(row)[col]
    }

    /// The similarities of the left vector `row` with every right vector.
    ///
    /// # Panics
    ///
    /// If `row` is out of range.
    pub fn row(&self, row: usize) -> &[f32] {
        assert!(row < self.rows, "row {row} of a matrix of {} rows", self.rows);
        &self.values[row * self.cols..][..self.cols]
    }

    /// All values, row-major [rows, cols].
    pub fn as_slice(&self) -> &[f32] {
        &self.values
    }
}

#[cfg(test)]
mod tests {
    use approx::assert_abs_diff_eq;

    use super::*;
    use crate::cosine;

    /// Vectors that differ from each other in every dimension.
    fn pattern(rows: usize, dimensions: usize) -> Embeddings {
        let values =
            (0..rows * dimensions).map(|i| ((i * i + 3 * i) % 101) as f32 - 50.0).collect();
        Embeddings::new(values, dimensions).unwrap()
    }

    #[test]
    fn similarity_is_the_cosine_of_every_pair() {
        let (left, mut right) = (pattern(5, 19), pattern(7, 19));
        // Vectors so long or so short that a dot product in f32 overflows or underflows, and a zero vector.
        for (row, scale) in [(1, 1e36), (2, 1e-38), (3, 0.0)] {
            right.values[row * 19..][..19].iter_mut().for_each(|v| *v *= scale);
        }
        let matrix = left.similarity(&right).unwrap();
        assert_eq!((matrix.rows(), matrix.cols()), (5, 7));
        for i in 0..5 {
            for j in 0..7 {
                let expected = cosine(left.row(i), right.row(j)).unwrap();
                assert_abs_diff_eq!(matrix.get(i, j), expected, epsilon = 1e-6);
            }
        }
    }

    #[test]
    fn top_k_returns_the_first_k_of_all_sorted_by_similarity() {
        let documents = pattern(50, 8);
        let query = pattern(3, 8);
        let mut all: Vec<(usize, f32)> =
            query.similarity(&documents).unwrap().row(2).iter().copied().enumerate().collect();
        all.sort_by(|a, b| b.1.total_cmp(&a.1));
        for k in [0, 1, 7, 49, 50, 51, usize::MAX] {
            let hits = documents.top_k(query.row(2), k).unwrap();
            let hits: Vec<_> = hits.iter().map(|hit| (hit.index, hit.score)).collect();
            assert_eq!(hits, all[..k.min(50)], "k = {k}");
        }
    }

    #[test]
    fn rescore_sorts_candidates_by_their_cosines() {
        let documents = pattern(50, 8);
        let query = pattern(1, 8);
        let all = documents.top_k(query.row(0), 50).unwrap();
        // The worst candidates first, with wrong scores.
        let candidates: Vec<Hit> =
            all[10..40].iter().rev().map(|hit| Hit { score: 0.5, ..*hit }).collect();
        for k in [0, 1, 7, 30, 31] {
            let hits = documents.rescore(query.row(0), &candidates, k).unwrap();
            assert_eq!(hits, all[10..10 + k.min(30)], "k = {k}");
        }
        let missing = [Hit { index: 50, score: 1.0 }];
        let error = documents.rescore(query.row(0), &missing, 1).unwrap_err();
        assert!(matches!(error, Error::NoSuchRow { index: 50, len: 50 }), "{error}");
    }

    #[test]
    fn top_k_keeps_the_order_of_equal_similarities() {
        let documents = Embeddings::new([1.0, 0.0].repeat(20), 2).unwrap();
        let hits = documents.top_k(&[1.0, 1.0], 5).unwrap();
        assert_eq!(hits.iter().map(|hit| hit.index).collect::<Vec<_>>(), [0, 1, 2, 3, 4]);
    }

    #[test]
    fn truncate_cuts_first_and_normalizes_second() {
        let long = pattern(4, 16);
        for dimensions in 1..=16 {
            let short = long.truncate(dimensions).unwrap();
            assert_eq!((short.len(), short.dimensions()), (4, dimensions));
            for (short, long) in short.iter().zip(&long) {
                let mut expected = long[..dimensions].to_vec();
                normalize(&mut expected);
                assert_eq!(short, expected);
            }
        }
        for dimensions in [0, 17] {
            let error = long.truncate(dimensions).unwrap_err();
            assert!(matches!(error, Error::Dimensions { min: 1, max: 16, .. }), "{error}");
        }
    }

    #[test]
    fn supports_empty_embeddings() {
        let none = Embeddings::new(Vec::new(), 4).unwrap();
        let some = pattern(2, 4);
        assert!(none.is_empty() && !some.is_empty());
        assert!(none.similarity(&some).unwrap().as_slice().is_empty());
        assert!(some.similarity(&none).unwrap().row(1).is_empty());
        assert_eq!(none.top_k(&[1.0; 4], 3).unwrap(), []);
        assert_eq!(none.truncate(2).unwrap().len(), 0);
    }

    #[test]
    fn rejects_partial_rows_non_finite_values_and_other_dimensions() {
        assert!(matches!(Embeddings::new(vec![1.0; 5], 2), Err(Error::NotWholeRows { .. })));
        assert!(matches!(Embeddings::new(Vec::new(), 0), Err(Error::NotWholeRows { .. })));
        let nan = Embeddings::new(vec![1.0, 1.0, 1.0, f32::NAN], 2);
        assert!(matches!(nan, Err(Error::NotFinite { row: 1, dimension: 1, .. })));
        let some = pattern(2, 4);
        assert!(matches!(some.top_k(&[1.0], 1), Err(Error::DimensionMismatch { .. })));
        assert!(matches!(some.top_k(&[f32::INFINITY; 4], 1), Err(Error::NotFinite { .. })));
        assert!(matches!(some.similarity(&pattern(1, 3)), Err(Error::DimensionMismatch { .. })));
    }
}
