use std::fmt;

use candle_core::Device;
use qwen3_embed_kernels::cpu::Arithmetic;
use qwen3_embed_kernels::ops;

/// How weights are kept and multiplied.
///
/// Vectors of different precisions are close to each other but not equal: an index should be searched with
/// the precision that it was made with.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
#[non_exhaustive]
pub enum Precision {
    /// As the checkpoint stores most of its layers' weights: `Bf16` for bf16 and f16, `F32` for f32, and
    /// `Int8` for the types of GGUF files that have fewer than 16 bits.
    #[default]
    Stored,
    /// Weights and products in f32: exact, four bytes for each weight.
    F32,
    /// Weights in bf16, as the published checkpoints store them: two bytes for each. Where the
    /// processor multiplies bf16, activations are rounded to bf16 for every product and attention,
    /// and sums are f32. Elsewhere products are in f32, with the same result as `F32` where the
    /// checkpoint is in bf16, and as fast.
    Bf16,
    /// Weights in 8 bits with a scale for every 32, and activations brought into 16 bits for every
    /// product: a little over one byte for each weight. Attention, norms and sums are f32, token
    /// embeddings as the checkpoint stores them. The weights of a GGUF file in Q8_0 are used as they
    /// are. Others are rounded, after the weight of the norm before them has become part of them; the
    /// features with the largest activations, which a few tokens that pass the layers while they are
    /// loaded show, then have weights of twice as many bits.
    ///
    /// Where the CPU multiplies bytes (VNNI), the same tokens show which products lose little with
    /// activations in 8 bits, as they are or rotated. Those have weights, in Q8_0 too, and activations in 8 bits
    /// with a scale for every 64, twice as fast. Where it multiplies bf16 as well, attention is in bf16.
    ///
    /// The weights of a GGUF file in Q4_K, Q5_K and Q6_K are used as they are, in their few bits, where the same
    /// tokens show that little is lost with activations in 8 bits and a scale for every 256.
    ///
    /// On a CUDA device this is `Bf16`, as it is for GGUF files in any type.
    Int8,
    /// `Bf16` where the processor multiplies bf16, being the more exact there though not the faster, unless
    /// the weights are stored in fewer bits; else `Int8`. On a CUDA device: `Bf16`.
    Auto,
}

impl Precision {
    /// How a device multiplies with weights of this precision, which is what
    /// [`resolve`](Self::resolve) has made of another.
    pub(crate) fn arithmetic_on(self, device: &Device) -> Arithmetic {
        match self {
            Self::Bf16 => ops::bf16_arithmetic(device),
            Self::Int8 => ops::int8_arithmetic(device).unwrap_or(Arithmetic::F32),
            Self::F32 | Self::Stored | Self::Auto => Arithmetic::F32,
        }
    }

    /// The precision itself if the device has it, or what [`Stored`](Self::Stored) or
    /// [`Auto`](Self::Auto) is for these weights.
    pub(crate) fn resolve(self, stored: Self, device: &Device) -> Self {
        let has_bf16 = ops::bf16_arithmetic(device) == Arithmetic::Bf16;
        let has_int8 = ops::int8_arithmetic(device).is_some();
        match self {
            Self::Stored => stored.resolve(stored, device),
            Self::Int8 | Self::Auto if !has_int8 => Self::Bf16,
            Self::Auto if has_bf16 && stored != Self::Int8 => Self::Bf16,
            Self::Auto => Self::Int8,
            precision => precision,
        }
    }
}

impl fmt::Display for Precision {
    /// `stored`, `f32`, `bf16`, `int8` or `auto`, as on the command line.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Stored => "stored",
            Self::F32 => "f32",
            Self::Bf16 => "bf16",
            Self::Int8 => "int8",
            Self::Auto => "auto",
        })
    }
}
