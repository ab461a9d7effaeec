use std::fmt;
use std::str::FromStr;

use crate::{Error, Result};

/// The precision of weights and matrix multiplications.
///
/// The vectors of two precisions are similar and not equal, so an index should be searched with the precision with
/// which it was built.
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
    /// The precision in which the checkpoint stores most weights of its layers: `Bf16` for bf16 and f16, `F32` for f32,
    /// and `Int8` for the types of GGUF files with fewer than 16 bits.
    #[default]
    Stored,
    /// Weights and matrix multiplications in f32. A weight needs four bytes.
    F32,
    /// Weights in bf16, as in the published checkpoints. A weight needs two bytes.
    ///
    /// If the CPU has fast bf16 instructions, the activations of matrix multiplications and of attention are rounded to
    /// bf16, and sums are f32. Otherwise, matrix multiplications are computed in f32, as fast as with `F32`, and with
    /// the same result if the checkpoint is in bf16.
    Bf16,
    /// Matrix multiplications in integers, with weights in 8 bits or in the fewer bits in which a GGUF file stores
    /// them.
    ///
    /// - Weights of a GGUF file in Q4_K, Q5_K and Q6_K are used without conversion if little accuracy is lost with
    ///   activations in 8 bits and a scale for every 256 values.
    /// - Weights of a GGUF file in Q8_0 are used without conversion, with activations that are quantized to 16 bits for
    ///   each matrix multiplication. A weight needs a little more than one byte.
    /// - Other weights are multiplied by the weight of the norm before them and then rounded to 8 bits, with a scale
    ///   for every 32 values. The weights of the features with the largest activations have 16 bits.
    /// - On a CPU with VNNI, matrix multiplications that lose little accuracy with activations in 8 bits, directly or
    ///   after a rotation, use weights and activations in 8 bits with a scale for every 64 values. This is twice as
    ///   fast, and is done for Q8_0, too. If the CPU also has fast bf16 instructions, attention uses bf16.
    ///
    /// While the model is loaded, a few tokens pass through the layers and show how much accuracy is lost with
    /// activations in 8 bits. Norms and sums are f32, and token embeddings stay as they are stored.
    ///
    /// A CUDA device uses `Bf16` instead, for all types of GGUF files.
    Int8,
}

impl Precision {
    /// All values, in the order of their declaration.
    pub const ALL: [Self; 4] = [Self::Stored, Self::F32, Self::Bf16, Self::Int8];

    /// A short description, for help texts.
    pub fn description(self) -> &'static str {
        match self {
            Self::Stored => {
                "as in the checkpoint: bf16 (also for f16), f32, or int8 (for quantized GGUF files)"
            }
            Self::F32 => "exact, 4 bytes for each weight",
            Self::Bf16 => "2 bytes for each weight",
            Self::Int8 => "about 1 byte for each weight, or less for quantized GGUF files",
        }
    }

    /// Bytes of a weight of a linear layer, with its share of a scale. For `Int8` it is an upper bound: a scale for
    /// every 32 weights.
    pub(crate) fn bytes_per_weight(self) -> f64 {
        match self {
            Self::F32 => 4.0,
            Self::Bf16 => 2.0,
            Self::Int8 | Self::Stored => 1.0 + 4.0 / 32.0,
        }
    }
}

impl fmt::Display for Precision {
    /// Writes the name: `stored`, `f32`, `bf16` or `int8`.
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
        all.find(|precision| precision.to_string() == name).ok_or_else(|| Error::PrecisionName {
            expected: Self::ALL.map(|precision| format!("`{precision}`")).join(", "),
            got: name.to_owned(),
        })
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
            assert!(
                error.to_string().contains("expected one of `stored`, `f32`, `bf16`, `int8`, got"),
                "{error}"
            );
        }
    }
}
