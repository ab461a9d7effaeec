use qwen3_embed_model::{Kernels, search};
use rayon::prelude::*;

use crate::search::{BLOCK, Hit, best};
use crate::{Embeddings, Error, Result};

/// Vectors of 8-bit integers, which take a quarter of the memory of [`Embeddings`].
///
/// A value of a vector is its integer times a scale: see [`Int8Scales`].
///
/// # Examples
///
/// ```
/// use qwen3_embed::{Embeddings, Int8Scales};
///
/// let documents = Embeddings::new(vec![1.0, 0.0, 0.0, 1.0, 0.6, 0.8], 2)?;
/// let stored = documents.to_int8(&Int8Scales::calibrate(&documents))?;
/// assert_eq!(stored.row(0), [127, 0]);
///
/// // The best of four times as many candidates as needed, by the vectors in f32.
/// let query = [0.1, 1.0];
/// let best = documents.rescore(&query, &stored.top_k(&query, 8)?, 2)?;
/// assert_eq!((best[0].index, best[1].index), (1, 2));
/// # Ok::<(), qwen3_embed::Error>(())
/// ```
#[derive(Debug, Clone, PartialEq)]
pub struct Int8Embeddings {
    /// Row-major [len, dimensions].
    values: Vec<i8>,
    dimensions: usize,
    scales: Int8Scales,
    /// The length of each vector, divided by the scale of the vector if there is one. 0 for zero vectors.
    norms: Vec<f64>,
}

/// The scales of [`Int8Embeddings`]: the numbers by which integers are multiplied. Scales are finite and not negative.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub enum Int8Scales {
    /// A scale for each dimension. Vectors that are added later use the same scales, so a database stores them once.
    PerDimension(Vec<f32>),
    /// A scale for each vector. No sample is needed. The cosine similarity does not depend on these scales, so a database
    /// that compares by the cosine need not store them.
    PerVector(Vec<f32>),
}

impl Int8Scales {
    /// A scale for each dimension, from a sample of vectors: the largest magnitude of the dimension becomes 127. Values of
    /// other vectors that are larger become 127, too. A few thousand vectors are enough. In a dimension that is 0 in all
    /// vectors of the sample, every value becomes 0.
    pub fn calibrate(sample: &Embeddings) -> Self {
        let mut largest = vec![0f32; sample.dimensions()];
        for row in sample {
            for (largest, value) in largest.iter_mut().zip(row) {
                *largest = largest.max(value.abs());
            }
        }
        Self::PerDimension(largest.into_iter().map(|largest| largest / LARGEST).collect())
    }

    /// A scale for each vector: its largest magnitude becomes 127.
    pub fn per_vector(embeddings: &Embeddings) -> Self {
        let rows = embeddings.as_slice().par_chunks(embeddings.dimensions());
        Self::PerVector(rows.map(scale_of).collect())
    }

    /// The scales.
    pub fn as_slice(&self) -> &[f32] {
        match self {
            Self::PerDimension(scales) | Self::PerVector(scales) => scales,
        }
    }

    /// Checks the number of scales and their values.
    fn check(&self, len: usize, dimensions: usize) -> Result<()> {
        let (scales, expected) = match self {
            Self::PerDimension(scales) => (scales, dimensions),
            Self::PerVector(scales) => (scales, len),
        };
        if scales.len() != expected {
            return Err(Error::Int8ScaleCount { got: scales.len(), expected });
        }
        match scales.iter().position(|scale| !scale.is_finite() || *scale < 0.0) {
            Some(index) => Err(Error::Int8Scale { index, got: scales[index] }),
            None => Ok(()),
        }
    }
}

/// A vector in 8-bit integers, and its scale: a row of [`Embeddings::to_int8_per_vector`]. The result is meaningful only if
/// the values are finite.
///
/// # Examples
///
/// ```
/// assert_eq!(qwen3_embed::quantize_int8(&[1.27, -0.01]), (vec![127, -1], 0.01));
/// ```
pub fn quantize_int8(vector: &[f32]) -> (Vec<i8>, f32) {
    let scale = scale_of(vector);
    (vector.iter().map(|&value| quantized(value, scale)).collect(), scale)
}

/// The scale with which the largest magnitude of a vector becomes 127.
fn scale_of(vector: &[f32]) -> f32 {
    vector.iter().fold(0f32, |largest, value| largest.max(value.abs())) / LARGEST
}

/// The largest magnitude of a quantized value.
const LARGEST: f32 = 127.0;

impl Embeddings {
    /// These vectors in 8-bit integers: each value is divided by its scale, rounded to the nearest integer, and limited to
    /// −127 to 127.
    ///
    /// # Errors
    ///
    /// [`Error::Int8ScaleCount`] if the number of scales is not the number of dimensions or vectors;
    /// [`Error::Int8Scale`] if a scale is negative, NaN or infinite.
    pub fn to_int8(&self, scales: &Int8Scales) -> Result<Int8Embeddings> {
        let dimensions = self.dimensions();
        scales.check(self.len(), dimensions)?;
        let mut values = vec![0i8; self.as_slice().len()];
        let rows = self.as_slice().par_chunks(dimensions);
        let rows = values.par_chunks_mut(dimensions).zip(rows).enumerate();
        rows.for_each(|(index, (out, row))| match scales {
            Int8Scales::PerDimension(scales) => {
                for ((out, &value), &scale) in out.iter_mut().zip(row).zip(scales) {
                    *out = quantized(value, scale);
                }
            }
            Int8Scales::PerVector(scales) => {
                let scale = scales[index];
                out.iter_mut().zip(row).for_each(|(out, &value)| *out = quantized(value, scale));
            }
        });
        Int8Embeddings::new(values, dimensions, scales.clone())
    }

    /// These vectors in 8-bit integers, with a scale for each vector: the value with the largest magnitude becomes 127 or
    /// −127.
    pub fn to_int8_per_vector(&self) -> Int8Embeddings {
        let scales = Int8Scales::per_vector(self);
        self.to_int8(&scales).expect("there is a finite scale for each vector")
    }
}

/// The nearest integer to `value / scale`, ties to even, from −127 to 127. 0 if the scale is 0.
fn quantized(value: f32, scale: f32) -> i8 {
    if scale == 0.0 {
        return 0;
    }
    // Adding and taking away 1.5 · 2^23 leaves no bits for a fraction.
    ((value / scale).clamp(-LARGEST, LARGEST) + 12_582_912.0 - 12_582_912.0) as i8
}

impl Int8Embeddings {
    /// Makes embeddings from stored integers: `values` are the vectors one after another, with `dimensions` integers each.
    ///
    /// # Errors
    ///
    /// [`Error::NotWholeRows`] if `dimensions` is 0 or does not divide the number of values;
    /// [`Error::Int8ScaleCount`] if the number of scales is not the number of dimensions or vectors;
    /// [`Error::Int8Scale`] if a scale is negative, NaN or infinite.
    pub fn new(values: Vec<i8>, dimensions: usize, scales: Int8Scales) -> Result<Self> {
        if dimensions == 0 || !values.len().is_multiple_of(dimensions) {
            return Err(Error::NotWholeRows { n_values: values.len(), dimensions });
        }
        scales.check(values.len() / dimensions, dimensions)?;
        let squares: Option<Vec<f64>> = match &scales {
            Int8Scales::PerDimension(scales) => {
                Some(scales.iter().map(|&scale| f64::from(scale).powi(2)).collect())
            }
            Int8Scales::PerVector(_) => None,
        };
        let norm = |(index, row): (usize, &[i8])| match (&squares, &scales) {
            (None, Int8Scales::PerVector(scales)) if scales[index] == 0.0 => 0.0,
            (None, _) => row.iter().map(|&v| f64::from(v).powi(2)).sum::<f64>().sqrt(),
            (Some(squares), _) => {
                let terms =
                    row.iter().zip(squares).map(|(&v, square)| f64::from(v).powi(2) * square);
                terms.sum::<f64>().sqrt()
            }
        };
        let norms = values.par_chunks(dimensions).enumerate().map(norm).collect();
        Ok(Self { values, dimensions, scales, norms })
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

    /// The scales.
    pub fn scales(&self) -> &Int8Scales {
        &self.scales
    }

    /// The integers of the vector at `index`.
    ///
    /// # Panics
    ///
    /// If `index` is not below [`len`](Self::len).
    pub fn row(&self, index: usize) -> &[i8] {
        &self.values[index * self.dimensions..][..self.dimensions]
    }

    /// All integers, row-major [len, dimensions].
    pub fn as_slice(&self) -> &[i8] {
        &self.values
    }

    /// All integers, row-major [len, dimensions].
    pub fn into_vec(self) -> Vec<i8> {
        self.values
    }

    /// These vectors in f32: each integer times its scale.
    pub fn to_f32(&self) -> Embeddings {
        let mut values = Vec::with_capacity(self.values.len());
        // A product that would be infinite becomes the largest f32.
        let product = |(&v, &scale): (&i8, &f32)| (f32::from(v) * scale).clamp(f32::MIN, f32::MAX);
        for (index, row) in self.values.chunks_exact(self.dimensions).enumerate() {
            match &self.scales {
                Int8Scales::PerDimension(scales) => {
                    values.extend(row.iter().zip(scales).map(product))
                }
                Int8Scales::PerVector(scales) => {
                    values.extend(row.iter().map(|v| product((v, &scales[index]))));
                }
            }
        }
        Embeddings::of_rows(values, self.dimensions)
    }

    /// The `k` vectors with the largest cosine similarity to `query`, or all vectors if there are fewer. The largest
    /// similarity comes first, and vectors with equal similarities are in the order of their indices.
    ///
    /// A score is the cosine of the query and of the vector of [`to_f32`](Self::to_f32). For this, the query is quantized,
    /// too, to about 16 bits with one scale. This changes a cosine by about 10⁻⁵ if the dimensions have similar scales. It
    /// changes the cosine more for a vector that is 0 in the dimensions with the largest scales: by up to about 10⁻⁵ times
    /// the ratio of the largest scale to the scales of the vector's other dimensions.
    ///
    /// # Errors
    ///
    /// [`Error::DimensionMismatch`] if `query` has another number of dimensions; [`Error::NotFinite`] if a value of
    /// `query` is NaN or infinite.
    pub fn top_k(&self, query: &[f32], k: usize) -> Result<Vec<Hit>> {
        let query = Embeddings::unit_query(query, self.dimensions)?;
        let query = match &self.scales {
            // query · (scale · v) = (query · scale) · v, so the scales are multiplied once.
            Int8Scales::PerDimension(scales) => {
                let products =
                    query.iter().zip(scales).map(|(&q, &scale)| f64::from(q) * f64::from(scale));
                Query::new(&products.collect::<Vec<_>>())
            }
            Int8Scales::PerVector(_) => {
                Query::new(&query.into_iter().map(f64::from).collect::<Vec<_>>())
            }
        };
        let kernels = Kernels::current();
        Ok(best(&self.values, self.dimensions, k, |first, rows, scores| {
            let mut dots = [0; BLOCK];
            let dots = &mut dots[..scores.len()];
            search::dots_int8(kernels, &query.values, rows, dots);
            for ((score, &dot), &norm) in scores.iter_mut().zip(&*dots).zip(&self.norms[first..]) {
                let cosine = query.scale * f64::from(dot) / norm;
                // Rounding must not take the result out of the range from −1 to 1.
                *score = if norm > 0.0 { cosine.clamp(-1.0, 1.0) as f32 } else { 0.0 };
            }
        }))
    }
}

/// A query in 16-bit integers.
struct Query {
    values: Vec<i16>,
    scale: f64,
}

impl Query {
    /// Rounds values to multiples of the smallest scale with which no integer overflows, and with which the dot product
    /// with a vector of 8-bit integers does not overflow.
    fn new(values: &[f64]) -> Self {
        let (largest, sum) = values.iter().fold((0f64, 0f64), |(largest, sum), value| {
            (largest.max(value.abs()), sum + value.abs())
        });
        // Rounding at most doubles the magnitude of a value, and with it the sum of all magnitudes.
        let scale = (largest / f64::from(i16::MAX)).max(sum / f64::from(search::LARGEST_QUERY / 2));
        let round = |value: &f64| if scale > 0.0 { (value / scale).round() as i16 } else { 0 };
        Self { values: values.iter().map(round).collect(), scale }
    }
}

/// The dot product of two vectors of 8-bit integers. It is exact for up to 131,071 dimensions. Beyond, it is limited to the
/// range of i32.
///
/// # Errors
///
/// [`Error::DimensionMismatch`] if the vectors have different numbers of dimensions.
///
/// # Examples
///
/// ```
/// assert_eq!(qwen3_embed::dot_int8(&[1, -2, 127], &[3, 4, -128])?, -16261);
/// # Ok::<(), qwen3_embed::Error>(())
/// ```
pub fn dot_int8(a: &[i8], b: &[i8]) -> Result<i32> {
    if a.len() != b.len() {
        return Err(Error::DimensionMismatch { left: a.len(), right: b.len() });
    }
    // The sum of a part does not overflow.
    const PART: usize = 1 << 16;
    let part = |(a, b): (&[i8], &[i8])| -> i32 {
        a.iter().zip(b).map(|(&a, &b)| i32::from(a) * i32::from(b)).sum()
    };
    let sum: i64 = a.chunks(PART).zip(b.chunks(PART)).map(|parts| i64::from(part(parts))).sum();
    Ok(sum.clamp(i32::MIN.into(), i32::MAX.into()) as i32)
}
