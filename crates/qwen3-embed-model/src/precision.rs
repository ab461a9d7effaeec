use std::fmt;
use std::str::FromStr;

use crate::{Error, Result};

/// How weights are stored in memory and multiplied.
///
/// Vectors of different precisions are close to each other but not equal. Search an index with the precision with which
/// it was built.
///
/// # Examples
///
/// ```
/// use qwen3_embed_model::Precision;
///
/// assert_eq!("bf16".parse::<Precision>()?, Precision::Bf16);
/// assert_eq!("auto".parse::<Precision>()?, Precision::Stored);
/// assert_eq!(Precision::Stored.to_string(), "stored");
/// # Ok::<(), qwen3_embed_model::Error>(())
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
#[non_exhaustive]
pub enum Precision {
    /// The precision in which the checkpoint stores most weights of its layers: [`Bf16`](Self::Bf16) for bf16 and f16,
    /// [`F32`](Self::F32) for f32, and [`Int8`](Self::Int8) for the types of GGUF files with fewer than 16 bits.
    #[default]
    Stored,
    /// Weights and products in f32: exact, four bytes for each weight.
    F32,
    /// Weights in bf16, as the published checkpoints store them: two bytes for each weight.
    ///
    /// On CPUs that multiply bf16 faster than f32, activations are rounded to bf16 for every product and for attention,
    /// and sums are f32. On other CPUs products are in f32: as fast as `F32`, and with the same result if the checkpoint
    /// is in bf16.
    Bf16,
    /// Integer products, of weights in 8 bits or in the fewer bits in which a GGUF file stores them.
    ///
    /// - Weights in Q4_K, Q5_K and Q6_K are used without conversion where activations in 8 bits lose little.
    /// - Weights in Q8_0 are used without conversion, with activations in 16 bits. They take a little over one byte.
    /// - Other weights are rounded to 8 bits with a scale for every 32 weights, after the weight of the norm before them
    ///   was multiplied into them. Input features with the largest activations have weights of 16 bits.
    /// - On CPUs that multiply bytes (VNNI), activations and weights are in 8 bits with a scale for every 64 values where
    ///   that loses little, twice as fast. Attention is in bf16 on CPUs that multiply bf16 fast too.
    ///
    /// A few tokens that pass the layers while the model is loaded show how much activations in 8 bits lose. Norms and
    /// sums are f32, and token embeddings stay as the checkpoint stores them.
    ///
    /// On a CUDA device this is `Bf16`, for GGUF files of any type too.
    Int8,
}

impl Precision {
    /// All values, in the order of their declaration.
    pub const ALL: [Self; 4] = [Self::Stored, Self::F32, Self::Bf16, Self::Int8];

    /// Bytes of a weight of a linear layer, with its share of a scale. For `Int8` it is an upper bound: a scale for every
    /// 32 weights.
    pub(crate) fn bytes_per_weight(self) -> f64 {
        match self {
            Self::F32 => 4.0,
            Self::Bf16 => 2.0,
            Self::Int8 | Self::Stored => 1.0 + 4.0 / 32.0,
        }
    }
}

impl fmt::Display for Precision {
    /// `stored`, `f32`, `bf16` or `int8`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Stored => "stored",
            Self::F32 => "f32",
            Self::Bf16 => "bf16",
            Self::Int8 => "int8",
        })
    }
}

impl FromStr for Precision {
    type Err = Error;

    /// Parses the names that [`Display`](fmt::Display) writes, and `auto` as another name for `stored`, which is the
    /// meaning of `dtype="auto"` in transformers and SGLang.
    fn from_str(name: &str) -> Result<Self> {
        if name == "auto" {
            return Ok(Self::Stored);
        }
        let mut all = Self::ALL.into_iter();
        all.find(|precision| precision.to_string() == name)
            .ok_or_else(|| Error::PrecisionName { got: name.to_owned() })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parses_the_names_that_it_prints() {
        for precision in Precision::ALL {
            assert_eq!(precision.to_string().parse::<Precision>().unwrap(), precision);
        }
        assert_eq!("auto".parse::<Precision>().unwrap(), Precision::Stored);
    }

    #[test]
    fn rejects_unknown_names() {
        for name in ["", "F32", "float32", "int4"] {
            let error = name.parse::<Precision>().unwrap_err();
            assert!(error.to_string().contains("stored, f32, bf16 or int8"), "{error}");
        }
    }
}
