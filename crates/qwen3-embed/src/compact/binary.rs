use qwen3_embed_model::{Kernels, search};

use crate::search::{BLOCK, Hit, best};
use crate::{Embeddings, Error, Result};

/// Vectors of bits, which take 1/32 of the memory of [`Embeddings`].
///
/// A bit says whether a value is greater than 0. Eight bits are packed in a byte, the first in the highest bit, as by
/// NumPy's `packbits`. This is the format `ubinary` of sentence-transformers and of Cohere's API. If the number of
/// dimensions is not a multiple of 8, the last bits of each vector's last byte are 0.
///
/// Bits alone find less than full vectors. Search for many more candidates than needed, and choose the best of them with
/// [`Embeddings::rescore`]. The number depends on the model, and is larger for vectors with fewer dimensions: for the
/// bundled model, which has 256 dimensions, 40 candidates contain 83% of the ten best documents, and 160 candidates contain
/// 96%.
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
            bytes: self.iter().flat_map(packed).collect(),
            dimensions: self.dimensions(),
        }
    }
}

/// The bits of a vector, packed in bytes.
fn packed(row: &[f32]) -> impl Iterator<Item = u8> {
    let byte = |values: &[f32]| {
        let bits =
            values.iter().enumerate().map(|(bit, &value)| u8::from(value > 0.0) << (7 - bit));
        bits.fold(0, |byte, bit| byte | bit)
    };
    row.chunks(8).map(byte)
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

    /// The `k` vectors whose bits differ least from those of `query`, or all vectors if there are fewer. The best vector
    /// comes first, and vectors with the same number of different bits are in the order of their indices.
    ///
    /// A score is `1 − 2 · distance / dimensions`, where the distance is the number of bits that differ. This is the cosine
    /// of the signs: 1 if all signs of the query and of the vector are equal, 0 if half of them are, and −1 if none is.
    ///
    /// # Errors
    ///
    /// [`Error::DimensionMismatch`] if `query` has another number of dimensions; [`Error::NotFinite`] if a value of
    /// `query` is NaN or infinite.
    pub fn top_k(&self, query: &[f32], k: usize) -> Result<Vec<Hit>> {
        Embeddings::check_query(query, self.dimensions)?;
        let query: Vec<u8> = packed(query).collect();
        let (kernels, dimensions) = (Kernels::current(), self.dimensions as f32);
        Ok(best(&self.bytes, query.len(), k, |_, rows, scores| {
            let mut distances = [0; BLOCK];
            let distances = &mut distances[..scores.len()];
            search::hamming(kernels, &query, rows, distances);
            for (score, &distance) in scores.iter_mut().zip(&*distances) {
                *score = 1.0 - 2.0 * distance as f32 / dimensions;
            }
        }))
    }

    /// The bytes of a vector.
    fn row_size(&self) -> usize {
        self.dimensions.div_ceil(8)
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
