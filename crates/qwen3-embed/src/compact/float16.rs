use half::f16;
use half::slice::HalfFloatSliceExt;
use qwen3_embed_model::{Kernels, search};

use crate::search::{BLOCK, Hit, best};
use crate::vector::ratio;
use crate::{Embeddings, Error, Result};

/// Vectors in 16-bit floating point, which take half of the memory of [`Embeddings`].
///
/// For vectors of unit length, a cosine changes by less than 0.001.
///
/// # Examples
///
/// ```
/// use qwen3_embed::Embeddings;
///
/// let stored = Embeddings::new(vec![1.0, 0.0, 0.0, 1.0, 0.6, 0.8], 2)?.to_f16();
/// let best = stored.top_k(&[0.0, 1.0], 2)?;
/// assert_eq!((best[0].index, best[1].index), (1, 2));
/// # Ok::<(), qwen3_embed::Error>(())
/// ```
#[derive(Debug, Clone, PartialEq)]
pub struct F16Embeddings {
    /// Row-major [len, dimensions].
    values: Vec<f16>,
    dimensions: usize,
}

impl Embeddings {
    /// These vectors in f16. Each value is rounded to the nearest f16 value. A value beyond ±65504, which is the range of
    /// f16, becomes 65504 or −65504.
    pub fn to_f16(&self) -> F16Embeddings {
        let mut values = vec![f16::ZERO; self.as_slice().len()];
        values.convert_from_f32_slice(self.as_slice());
        values.iter_mut().for_each(|value| *value = value.clamp(f16::MIN, f16::MAX));
        F16Embeddings { values, dimensions: self.dimensions() }
    }
}

impl F16Embeddings {
    /// Makes embeddings from stored vectors: `values` are the vectors one after another, with `dimensions` values each.
    /// The vectors need not be of unit length.
    ///
    /// # Errors
    ///
    /// [`Error::NotWholeRows`] if `dimensions` is 0 or does not divide the number of values;
    /// [`Error::NotFinite`] if a value is NaN or infinite.
    pub fn new(values: Vec<f16>, dimensions: usize) -> Result<Self> {
        if dimensions == 0 || !values.len().is_multiple_of(dimensions) {
            return Err(Error::NotWholeRows { n_values: values.len(), dimensions });
        }
        if let Some(at) = values.iter().position(|value| !value.is_finite()) {
            let (row, dimension, value) = (at / dimensions, at % dimensions, values[at].to_f32());
            return Err(Error::NotFinite { row, dimension, value });
        }
        Ok(Self { values, dimensions })
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

    /// The vector at `index`.
    ///
    /// # Panics
    ///
    /// If `index` is not below [`len`](Self::len).
    pub fn row(&self, index: usize) -> &[f16] {
        &self.values[index * self.dimensions..][..self.dimensions]
    }

    /// All values, row-major [len, dimensions].
    pub fn as_slice(&self) -> &[f16] {
        &self.values
    }

    /// All values, row-major [len, dimensions].
    pub fn into_vec(self) -> Vec<f16> {
        self.values
    }

    /// These vectors in f32. The values are the same.
    pub fn to_f32(&self) -> Embeddings {
        let mut values = vec![0.0; self.values.len()];
        self.values.convert_to_f32_slice(&mut values);
        Embeddings::of_rows(values, self.dimensions)
    }

    /// The `k` vectors with the largest cosine similarity to `query`, or all vectors if there are fewer. The largest
    /// similarity comes first, and vectors with equal similarities are in the order of their indices.
    ///
    /// # Errors
    ///
    /// [`Error::DimensionMismatch`] if `query` has another number of dimensions; [`Error::NotFinite`] if a value of
    /// `query` is NaN or infinite.
    pub fn top_k(&self, query: &[f32], k: usize) -> Result<Vec<Hit>> {
        let query = Embeddings::unit_query(query, self.dimensions)?;
        let kernels = Kernels::current();
        Ok(best(&self.values, self.dimensions, k, |_, rows, scores| {
            let mut products = [[0f32; 2]; BLOCK];
            let products = &mut products[..scores.len()];
            search::dots_f16(kernels, &query, rows, products);
            // The squared norm of a vector in f16 neither overflows nor underflows in f32.
            for (score, &products) in scores.iter_mut().zip(&*products) {
                *score = ratio(products);
            }
        }))
    }
}
