use rayon::prelude::*;

use crate::vector::{dot, exact_dot, norm};
use crate::{Error, Result, normalize};

/// Vectors of one dimension, one row for each text.
///
/// # Examples
///
/// ```
/// use qwen3_embed::Embeddings;
///
/// let stored = Embeddings::new(vec![1.0, 0.0, 0.0, 1.0, 0.6, 0.8], 2)?;
/// assert_eq!((stored.rows(), stored.dim()), (3, 2));
/// assert_eq!(stored.row(2), [0.6, 0.8]);
///
/// let best = stored.top_k(&[0.0, 1.0], 2)?;
/// assert_eq!((best[0].index, best[1].index), (1, 2));
/// # Ok::<(), qwen3_embed::Error>(())
/// ```
#[derive(Debug, Clone, PartialEq)]
pub struct Embeddings {
    /// Row-major [rows, dim].
    values: Vec<f32>,
    dim: usize,
}

/// One result of [`Embeddings::top_k`].
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Hit {
    /// The row that was found.
    pub index: usize,
    /// Its cosine similarity to the query.
    pub score: f32,
}

impl Embeddings {
    /// Vectors that were stored elsewhere, row by row, of `dim` dimensions each. They need not be of
    /// unit length.
    ///
    /// # Errors
    ///
    /// [`Error::NotWholeRows`] if `dim` is 0 or does not divide the number of values;
    /// [`Error::NotFinite`] if a value is NaN or infinite.
    pub fn new(values: Vec<f32>, dim: usize) -> Result<Self> {
        if dim == 0 || !values.len().is_multiple_of(dim) {
            return Err(Error::NotWholeRows { n_values: values.len(), dim });
        }
        if let Some(at) = values.iter().position(|value| !value.is_finite()) {
            let (row, dimension, value) = (at / dim, at % dim, values[at]);
            return Err(Error::NotFinite { row, dimension, value });
        }
        Ok(Self { values, dim })
    }

    /// Number of vectors.
    pub fn rows(&self) -> usize {
        self.values.len() / self.dim
    }

    /// Number of dimensions of each vector.
    pub fn dim(&self) -> usize {
        self.dim
    }

    /// Whether there is no vector.
    pub fn is_empty(&self) -> bool {
        self.values.is_empty()
    }

    /// The vector at `index`.
    ///
    /// # Panics
    ///
    /// If `index` is not below [`rows`](Self::rows), as with a slice.
    pub fn row(&self, index: usize) -> &[f32] {
        &self.values[index * self.dim..][..self.dim]
    }

    /// The vectors, in order.
    pub fn iter(&self) -> std::slice::ChunksExact<'_, f32> {
        self.values.chunks_exact(self.dim)
    }

    /// All values, row-major [rows, dim].
    pub fn as_slice(&self) -> &[f32] {
        &self.values
    }

    /// All values, row-major [rows, dim].
    pub fn into_vec(self) -> Vec<f32> {
        self.values
    }

    /// The first `dim` values of each vector, brought to unit length.
    ///
    /// # Errors
    ///
    /// [`Error::Dimensions`] if `dim` is 0 or more than there are.
    pub fn truncate(&self, dim: usize) -> Result<Self> {
        if dim == 0 || dim > self.dim {
            return Err(Error::Dimensions { got: dim, min: 1, max: self.dim });
        }
        let values = self.iter().flat_map(|row| &row[..dim]).copied().collect();
        Ok(Self { values, dim }.normalized())
    }

    /// Every vector at unit length.
    fn normalized(mut self) -> Self {
        self.values.chunks_exact_mut(self.dim).for_each(normalize);
        self
    }

    /// The cosine similarity of every vector here with every vector of `other`: a matrix with a row
    /// for each vector here and a column for each vector there.
    ///
    /// # Errors
    ///
    /// [`Error::DimensionMismatch`] if the vectors are not of one dimension.
    pub fn similarity(&self, other: &Self) -> Result<Similarities> {
        self.check_dim(other.dim)?;
        let (rows, cols) = (self.rows(), other.rows());
        let mut values = vec![0f32; rows * cols];
        if cols > 0 {
            let norms: Vec<f64> = other.values.par_chunks(self.dim).map(norm).collect();
            let left = values.par_chunks_mut(cols).zip(self.values.par_chunks(self.dim));
            left.for_each(|(out, row)| {
                let row = unit(row);
                let right = other.values.par_chunks(self.dim).zip(&norms).with_min_len(ROWS);
                out.par_iter_mut()
                    .zip(right)
                    .for_each(|(out, (other, &norm))| *out = cosine_to(&row, other, norm));
            });
        }
        Ok(Similarities { values, rows, cols })
    }

    /// The `k` vectors most similar to `query` by cosine, best first; all of them if there are
    /// fewer. Equal scores keep their order.
    ///
    /// # Errors
    ///
    /// [`Error::DimensionMismatch`] if `query` is not of these vectors' dimension,
    /// [`Error::NotFinite`] if it has a value that is NaN or infinite.
    pub fn top_k(&self, query: &[f32], k: usize) -> Result<Vec<Hit>> {
        self.check_dim(query.len())?;
        let query = Self::new(query.to_vec(), self.dim)?;
        let query = unit(query.row(0));
        let rows = self.values.par_chunks(self.dim).enumerate().with_min_len(ROWS);
        let hit = |(index, row)| Hit { index, score: cosine_to(&query, row, norm(row)) };
        let mut hits: Vec<Hit> = rows.map(hit).collect();
        let best_first = |a: &Hit, b: &Hit| b.score.total_cmp(&a.score).then(a.index.cmp(&b.index));
        if k < hits.len() {
            hits.select_nth_unstable_by(k, best_first);
            hits.truncate(k);
        }
        hits.sort_unstable_by(best_first);
        Ok(hits)
    }

    fn check_dim(&self, right: usize) -> Result<()> {
        if self.dim == right {
            Ok(())
        } else {
            Err(Error::DimensionMismatch { left: self.dim, right })
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

/// Vectors at least that one thread compares.
const ROWS: usize = 256;

/// A copy at unit length.
fn unit(vector: &[f32]) -> Vec<f32> {
    let mut unit = vector.to_vec();
    normalize(&mut unit);
    unit
}

/// The cosine of a unit vector and another, whose length is `norm`.
fn cosine_to(unit: &[f32], other: &[f32], norm: f64) -> f32 {
    // Of lengths between these, products are far from overflow and from being rounded to nothing.
    let dot = if (1e-15..1e15).contains(&norm) {
        dot(unit, other).into()
    } else {
        exact_dot(unit, other)
    };
    // Rounding must not take it beyond 1.
    if norm > 0.0 { (dot / norm).clamp(-1.0, 1.0) as f32 } else { 0.0 }
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
    /// Number of rows: vectors on the left.
    pub fn rows(&self) -> usize {
        self.rows
    }

    /// Number of columns: vectors on the right.
    pub fn cols(&self) -> usize {
        self.cols
    }

    /// The similarity of the left vector `row` and the right vector `col`.
    ///
    /// # Panics
    ///
    /// If there is no such row or column.
    pub fn get(&self, row: usize, col: usize) -> f32 {
        self.row(row)[col]
    }

    /// The similarities of the left vector `row` with every right one.
    ///
    /// # Panics
    ///
    /// If there is no such row.
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

    /// Vectors with a pattern that repeats in no dimension.
    fn pattern(rows: usize, dim: usize) -> Embeddings {
        let values = (0..rows * dim).map(|i| ((i * i + 3 * i) % 101) as f32 - 50.0).collect();
        Embeddings::new(values, dim).unwrap()
    }

    #[test]
    fn similarity_is_the_cosine_of_every_pair() {
        let (left, mut right) = (pattern(5, 19), pattern(7, 19));
        // Lengths beyond what products in f32 have room for, and a vector without one.
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
    fn top_k_is_a_full_sort_cut_short() {
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
    fn equal_scores_keep_their_order() {
        let documents = Embeddings::new([1.0, 0.0].repeat(20), 2).unwrap();
        let hits = documents.top_k(&[1.0, 1.0], 5).unwrap();
        assert_eq!(hits.iter().map(|hit| hit.index).collect::<Vec<_>>(), [0, 1, 2, 3, 4]);
    }

    #[test]
    fn a_shortened_vector_is_cut_first_and_normalised_second() {
        let long = pattern(4, 16);
        for dim in 1..=16 {
            let short = long.truncate(dim).unwrap();
            assert_eq!((short.rows(), short.dim()), (4, dim));
            for (short, long) in short.iter().zip(&long) {
                let mut expected = long[..dim].to_vec();
                normalize(&mut expected);
                assert_eq!(short, expected);
            }
        }
        for dim in [0, 17] {
            let error = long.truncate(dim).unwrap_err();
            assert!(matches!(error, Error::Dimensions { min: 1, max: 16, .. }), "{error}");
        }
    }

    #[test]
    fn nothing_may_be_empty() {
        let none = Embeddings::new(Vec::new(), 4).unwrap();
        let some = pattern(2, 4);
        assert!(none.is_empty() && none.rows() == 0);
        assert!(none.similarity(&some).unwrap().as_slice().is_empty());
        assert!(some.similarity(&none).unwrap().row(1).is_empty());
        assert_eq!(none.top_k(&[1.0; 4], 3).unwrap(), []);
        assert_eq!(none.truncate(2).unwrap().rows(), 0);
    }

    #[test]
    fn damaged_vectors_are_refused() {
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
