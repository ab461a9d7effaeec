use std::fmt;

use candle_core::Device;
use qwen3_embed_kernels::cpu::Arithmetic;
use qwen3_embed_kernels::ops;

/// The precision of weights and matrix multiplications.
///
/// The vectors of two precisions are similar and not equal, so an index should be searched with the precision with
/// which it was built.
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
    /// Weights in 8 bits with a scale for every 32 values, and activations that are quantized to 16 bits for each
    /// matrix multiplication. A weight needs a little more than one byte. Attention, norms and sums are f32, and token
    /// embeddings stay as they are stored.
    ///
    /// The weights of a GGUF file in Q8_0 are used without conversion. Other weights are multiplied by the weight of
    /// the norm before them and then rounded. While the model is loaded, a few tokens pass through the layers and show
    /// which features have the largest activations. The weights of these features have 16 bits.
    ///
    /// On a CPU with VNNI, the same tokens show which matrix multiplications lose little accuracy with activations in
    /// 8 bits, directly or after a rotation. These use weights and activations in 8 bits with a scale for every 64
    /// values, which is twice as fast, also for Q8_0. If the CPU has fast bf16 instructions, too, attention uses bf16.
    ///
    /// The weights of a GGUF file in Q4_K, Q5_K and Q6_K are used without conversion if the same tokens show that
    /// little accuracy is lost with activations in 8 bits and a scale for every 256 values.
    ///
    /// A CUDA device uses `Bf16` instead, for all types of GGUF files.
    Int8,
    /// `Int8`, except on a CPU with fast bf16 instructions: `Bf16`, which is more accurate and not faster, unless the
    /// weights are stored in fewer than 16 bits. On a CUDA device: `Bf16`.
    Auto,
}

impl Precision {
    /// The arithmetic of matrix multiplications on a device. The precision must come from [`resolve`](Self::resolve).
    pub(crate) fn arithmetic_on(self, device: &Device) -> Arithmetic {
        match self {
            Self::Bf16 => ops::bf16_arithmetic(device),
            Self::Int8 => ops::int8_arithmetic(device).unwrap_or(Arithmetic::F32),
            Self::F32 | Self::Stored | Self::Auto => Arithmetic::F32,
        }
    }

    /// The precision that is used on a device: replaces [`Stored`](Self::Stored) and [`Auto`](Self::Auto), and `Int8`
    /// if the device does not support it. `stored` is the precision of the stored weights.
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
    /// Writes `stored`, `f32`, `bf16`, `int8` or `auto`, the names on the command line.
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
