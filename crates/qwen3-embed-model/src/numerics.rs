use candle_core::{DType, Device};
use qwen3_embed_kernels::cpu::Arithmetic;
use qwen3_embed_kernels::ops;

use crate::precision::Precision;

/// How a model is computed on a device. No other code makes this decision.
///
/// Linear layers pack their weights for [`precision`](Self::precision). With `Int8`, the format of each weight also
/// depends on its input, which a calibration shows while the layer is loaded.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Numerics {
    /// How weights are stored. Never [`Precision::Stored`].
    pub(crate) precision: Precision,
    /// The arithmetic of most matrix multiplications.
    pub(crate) arithmetic: Arithmetic,
    /// The arithmetic of matrix multiplications with 8-bit weights.
    pub(crate) int8: Arithmetic,
    /// The type of the activations between linear layers.
    pub(crate) activations: DType,
}

/// The types in which a checkpoint stores the weights of its layers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct StoredTypes {
    /// The precision of most weights.
    pub(crate) precision: Precision,
    /// Whether some weights are in blocks of 4 to 6 bits.
    pub(crate) has_blocks: bool,
}

impl Numerics {
    /// The fastest way to compute a model in this precision on this device.
    pub(crate) fn choose(precision: Precision, stored: StoredTypes, device: &Device) -> Self {
        let precision = match precision {
            Precision::Stored => stored.precision,
            precision => precision,
        };
        let (precision, arithmetic) = match (precision, ops::int8_arithmetic(device)) {
            (Precision::Int8, Some(_)) if stored.has_blocks => (precision, Arithmetic::Blocks),
            (Precision::Int8, Some(int8)) => (precision, int8),
            (Precision::Int8, None) | (Precision::Bf16, _) => {
                (Precision::Bf16, ops::bf16_arithmetic(device))
            }
            (Precision::F32 | Precision::Stored, _) => (precision, Arithmetic::F32),
        };
        Self::new(precision, arithmetic, device)
    }

    /// The way to compute a model with this arithmetic, which the precision must have, even if it is not the fastest.
    pub(crate) fn new(precision: Precision, arithmetic: Arithmetic, device: &Device) -> Self {
        let int8 = match arithmetic {
            Arithmetic::Int8 | Arithmetic::Bytes => arithmetic,
            _ => ops::int8_arithmetic(device).unwrap_or(arithmetic),
        };
        let activations = ops::activation_type(arithmetic);
        Self { precision, arithmetic, int8, activations }
    }

    /// Whether the format of weights depends on their inputs. `are_q8_0` says whether all weights are stored in Q8_0.
    pub(crate) fn needs_calibration(&self, are_q8_0: bool) -> bool {
        self.precision == Precision::Int8 && (self.arithmetic == Arithmetic::Bytes || !are_q8_0)
    }
}

#[cfg(test)]
mod tests {
    use qwen3_embed_kernels::cpu::Kernels;

    use super::*;

    #[test]
    fn stored_precision_depends_on_the_checkpoint_only() {
        for precision in [Precision::F32, Precision::Bf16, Precision::Int8] {
            let stored = StoredTypes { precision, has_blocks: false };
            let numerics = Numerics::choose(Precision::Stored, stored, &Device::Cpu);
            assert_eq!(numerics.precision, precision);
            assert_eq!(numerics, Numerics::choose(precision, stored, &Device::Cpu));
        }
    }

    #[test]
    fn arithmetic_is_the_fastest_of_the_kernel_set() {
        let kernels = Kernels::current();
        let choose = |precision, has_blocks| {
            let stored = StoredTypes { precision: Precision::Bf16, has_blocks };
            Numerics::choose(precision, stored, &Device::Cpu)
        };
        assert_eq!(choose(Precision::F32, true).arithmetic, Arithmetic::F32);
        assert_eq!(choose(Precision::Bf16, true).arithmetic, kernels.bf16_weights);
        assert_eq!(choose(Precision::Int8, false).arithmetic, kernels.int8_weights);
        let blocks = choose(Precision::Int8, true);
        assert_eq!((blocks.arithmetic, blocks.int8), (Arithmetic::Blocks, kernels.int8_weights));
    }
}
