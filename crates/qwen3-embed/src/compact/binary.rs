use qwen3_embed_model::{Kernels, search};

use crate::search::{BLOCK, Hit, best};
use crate::{Embeddings, Error, Result};

/// Vectors of bits, which take 1/32 of the memory of [`Embeddings`].
///
/// A bit says whether a value is greater than 0. Eight bits are packed in a byte, the first in the highest bit, as by
/// NumPy's `packbits`. This is the format `ubinary` of sentence-transformers and of Cohere's API. If the number of
/// dimensions is not a multiple of 8, the last bits of each vector's last byte are 0.
///
/// Bits alone find less than full vectors. Search for several times as many candidates as needed, and choose the best of
/// them with [`Embeddings::rescore`]. The number depends on the model, and is larger for vectors with fewer dimensions: for
/// the bundled model, which has 256 dimensions, 40 candidates contain 95% of the ten best documents.
///
/// # Examples
///
/// ```
/// use qwen3_embed::Embeddings;
///
/// let documents = Embeddings::new(vec![1.0, -0.1, -1.0, 1.0, 0.6, 0.8], 2)?;
/// let stored = documents.to_binary();
/// assert_eq!(stored.as_slice(), [0b1000_0000, 0b0100_0000, 0b1100_0000]);
///
/// let query = [0.1, 1.0];
/// let best = documents.rescore(&query, &stored.top_k(&query, 8)?, 1)?;
/// assert_eq!(best[0].index, 2);
/// # Ok::<(), qwen3_embed::Error>(())
/// ```
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BinaryEmbeddings {
    /// Row-major [len, dimensions / 8, rounded up].
    bytes: Vec<u8>,
    dimensions: usize,
}

impl Embeddings {
    /// The signs of these vectors: a bit is 1 if the value is greater than 0.
    pub fn to_binary(&self) -> BinaryEmbeddings {
        BinaryEmbeddings {
            bytes: self.iter().flat_map(pack_signs).collect(),
            dimensions: self.dimensions(),
        }
    }
}

/// The signs of a vector as packed bits: a row of [`Embeddings::to_binary`].
///
/// # Examples
///
/// ```
/// assert_eq!(qwen3_embed::pack_signs(&[0.5, -0.5, 0.0, 1.0]), [0b1001_0000]);
/// ```
pub fn pack_signs(vector: &[f32]) -> Vec<u8> {
    packed(vector, |&value| value > 0.0).collect()
}

/// Packs a bit for each value.
fn packed<T>(values: &[T], is_set: impl Fn(&T) -> bool) -> impl Iterator<Item = u8> {
    let byte = move |values: &[T]| -> u8 {
        values.iter().enumerate().map(|(bit, value)| u8::from(is_set(value)) << (7 - bit)).sum()
    };
    values.chunks(8).map(byte)
}

impl BinaryEmbeddings {
    /// Makes embeddings from stored bits: `bytes` are the vectors one after another, with `dimensions` bits each, filled
    /// up with bits that are 0 to whole bytes.
    ///
    /// # Errors
    ///
    /// [`Error::NotWholeBitRows`] if `dimensions` is 0 or the bytes cannot be divided into vectors;
    /// [`Error::PaddingBits`] if a bit after the last dimension of a vector is 1.
    pub fn new(bytes: Vec<u8>, dimensions: usize) -> Result<Self> {
        let row_size = dimensions.div_ceil(8);
        if dimensions == 0 || !bytes.len().is_multiple_of(row_size) {
            return Err(Error::NotWholeBitRows { n_bytes: bytes.len(), dimensions });
        }
        if !dimensions.is_multiple_of(8) {
            let padding = 0xff >> (dimensions % 8);
            let mut last = bytes.iter().skip(row_size - 1).step_by(row_size);
            if let Some(row) = last.position(|byte| byte & padding != 0) {
                return Err(Error::PaddingBits { row, dimensions });
            }
        }
        Ok(Self { bytes, dimensions })
    }

    /// The number of vectors.
    pub fn len(&self) -> usize {
        self.bytes.len() / self.row_size()
    }

    /// Whether there are no vectors.
    pub fn is_empty(&self) -> bool {
        self.bytes.is_empty()
    }

    /// The number of dimensions of each vector, which is its number of bits.
    pub fn dimensions(&self) -> usize {
        self.dimensions
    }

    /// The bytes of the vector at `index`.
    ///
    /// # Panics
    ///
    /// If `index` is not below [`len`](Self::len).
    pub fn row(&self, index: usize) -> &[u8] {
        &self.bytes[index * self.row_size()..][..self.row_size()]
    }

    /// The bytes of all vectors, row-major.
    pub fn as_slice(&self) -> &[u8] {
        &self.bytes
    }

    /// The bytes of all vectors, row-major.
    pub fn into_vec(self) -> Vec<u8> {
        self.bytes
    }

    /// These vectors in f32: 1 for a bit that is 1, and −1 for a bit that is 0.
    pub fn to_f32(&self) -> Embeddings {
        let sign =
            |row: &[u8], i: usize| if row[i / 8] >> (7 - i % 8) & 1 == 1 { 1.0 } else { -1.0 };
        let mut values = Vec::with_capacity(self.len() * self.dimensions);
        for row in self.bytes.chunks_exact(self.row_size()) {
            values.extend((0..self.dimensions).map(|i| sign(row, i)));
        }
        Embeddings::of_rows(values, self.dimensions)
    }

    /// The `k` vectors with the largest cosine similarity to `query`, or all vectors if there are fewer. The largest
    /// similarity comes first, and vectors with equal similarities are in the order of their indices.
    ///
    /// A score is the cosine of the query and of the vector of [`to_f32`](Self::to_f32). For this, the query is rounded to
    /// the 32 odd integers from −31 to 31, with one scale. The magnitudes of the query's values count, so this finds more
    /// than a comparison of bits with bits, which [`hamming`] computes.
    ///
    /// # Errors
    ///
    /// [`Error::DimensionMismatch`] if `query` has another number of dimensions; [`Error::NotFinite`] if a value of
    /// `query` is NaN or infinite.
    pub fn top_k(&self, query: &[f32], k: usize) -> Result<Vec<Hit>> {
        Embeddings::check_query(query, self.dimensions)?;
        let (kernels, query) = (Kernels::current(), Query::new(query));
        let dimensions = self.dimensions as i32;
        Ok(best(&self.bytes, self.row_size(), k, |_, rows, scores| {
            let mut dots = [0i32; BLOCK];
            let mut distances = [0; BLOCK];
            let distances = &mut distances[..scores.len()];
            for (exponent, plane) in query.planes.iter().enumerate() {
                search::hamming(kernels, plane, rows, distances);
                for (dot, &distance) in dots.iter_mut().zip(&*distances) {
                    // The dot product of two vectors of −1 and 1.
                    *dot += (dimensions - 2 * distance as i32) << exponent;
                }
            }
            for (score, &dot) in scores.iter_mut().zip(&dots) {
                *score = (query.scale * f64::from(dot)).clamp(-1.0, 1.0) as f32;
            }
        }))
    }

    /// The bytes of a vector.
    fn row_size(&self) -> usize {
        self.dimensions.div_ceil(8)
    }
}

/// The number of planes of a [`Query`]. Each takes as much time as a comparison of bits with bits. With four, a search with
/// the bundled model finds less, and with six not more.
const N_PLANES: usize = 5;

/// A query in odd integers. An integer is a sum of −1 or 1, −2 or 2, −4 or 4, and so on.
struct Query {
    /// The signs of the terms of each size, as packed bits. The smallest terms come first.
    planes: [Vec<u8>; N_PLANES],
    /// The factor that turns the dot product of the integers and a vector of −1 and 1 into the cosine. 0 if the query is a
    /// zero vector.
    scale: f64,
}

impl Query {
    fn new(values: &[f32]) -> Self {
        const MOST: f32 = ((1 << N_PLANES) - 1) as f32;
        let largest = values.iter().fold(0f32, |largest, value| largest.max(value.abs()));
        // The integer is 2 · level − MOST. A bit of the level is the sign of a term.
        let level = |&value: &f32| ((value / largest + 1.0) * (MOST / 2.0)).round() as u8;
        let levels: Vec<u8> =
            if largest > 0.0 { values.iter().map(level).collect() } else { vec![0; values.len()] };
        let planes =
            std::array::from_fn(|plane| packed(&levels, |level| level >> plane & 1 == 1).collect());
        let integer = |level: &u8| 2.0 * f64::from(*level) - f64::from(MOST);
        let norm: f64 = levels.iter().map(|level| integer(level).powi(2)).sum::<f64>().sqrt();
        let scale = if largest > 0.0 { 1.0 / (norm * (values.len() as f64).sqrt()) } else { 0.0 };
        Self { planes, scale }
    }
}

/// The Hamming distance between two vectors of packed bits: the number of bits in which they differ.
///
/// # Errors
///
/// [`Error::DimensionMismatch`] if the vectors have different numbers of bytes.
///
/// # Examples
///
/// ```
/// assert_eq!(qwen3_embed::hamming(&[0b1000_0001, 0xff], &[0b0000_0001, 0xf0])?, 5);
/// # Ok::<(), qwen3_embed::Error>(())
/// ```
pub fn hamming(a: &[u8], b: &[u8]) -> Result<u32> {
    if a.len() != b.len() {
        return Err(Error::DimensionMismatch { left: 8 * a.len(), right: 8 * b.len() });
    }
    let mut distance = [0];
    if !a.is_empty() {
        search::hamming(Kernels::current(), a, b, &mut distance);
    }
    Ok(distance[0])
}
