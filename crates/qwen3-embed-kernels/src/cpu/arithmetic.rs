//! The number types of matrix multiplications, and the peak rate of each.

use std::hint::black_box;

use super::simd::{Simd, SimdOp};

/// The number types of a matrix multiplication: of its activations, of its weights, and of their sums.
///
/// Products of integers are summed exactly, as integers, within a group of input features that share a scale. The
/// scaled sums of the groups, and products of floating-point values, are summed in f32.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Arithmetic {
    /// f32 activations times weights in f32, or in bf16 that are widened to f32 in registers.
    F32,
    /// bf16 activations times bf16 weights.
    Bf16,
    /// 16-bit integer activations with one scale for each row, times 8-bit integer weights with one scale for each
    /// group of 32 input features of an output.
    Int8,
    /// 8-bit integer activations times 8-bit integer weights, both with one scale for each group of
    /// [`BYTE_GROUP`](super::BYTE_GROUP) input features. On CPUs without an instruction that multiplies bytes, this
    /// is slower than [`Int8`](Self::Int8).
    Bytes,
    /// 8-bit integer activations with one scale for each block of [`BLOCK`](super::BLOCK) input features, times
    /// 4-bit to 6-bit integer weights: see [`Bits`](super::Bits).
    Blocks,
}

impl Arithmetic {
    /// All values, in the order of their declaration.
    pub const ALL: [Self; 5] = [Self::F32, Self::Bf16, Self::Int8, Self::Bytes, Self::Blocks];

    /// Whether activations are quantized to integers.
    pub fn is_integer(self) -> bool {
        matches!(self, Self::Int8 | Self::Bytes | Self::Blocks)
    }
}

/// Executes `n_rounds` multiply-adds on each of [`REGISTERS`] independent registers, without memory access. The result
/// depends on all registers, so that the compiler cannot remove the computation.
pub(super) struct MultiplyAdds {
    pub(super) n_rounds: usize,
    pub(super) arithmetic: Arithmetic,
}

/// Registers that are updated in each round.
const REGISTERS: usize = 12;

impl MultiplyAdds {
    /// The number of operations with registers of `lanes` f32 values. A multiply-add counts as two operations.
    pub(super) fn n_operations(&self, lanes: usize) -> f64 {
        let depth = match self.arithmetic {
            Arithmetic::F32 => 1,
            Arithmetic::Bf16 | Arithmetic::Int8 => 2,
            Arithmetic::Bytes | Arithmetic::Blocks => 4,
        };
        (2 * REGISTERS * depth * lanes * self.n_rounds) as f64
    }
}

impl SimdOp for MultiplyAdds {
    type Output = f32;

    #[inline(always)]
    fn run<S: Simd>(self, s: S) -> f32 {
        match self.arithmetic {
            Arithmetic::F32 | Arithmetic::Bf16 => float_products(s, self.n_rounds, self.arithmetic),
            Arithmetic::Int8 | Arithmetic::Bytes | Arithmetic::Blocks => {
                int_products(s, self.n_rounds, self.arithmetic)
            }
        }
    }
}

/// Multiply-adds of f32 or of pairs of bf16.
#[inline(always)]
fn float_products<S: Simd>(s: S, n: usize, arithmetic: Arithmetic) -> f32 {
    // The compiler does not know these values, so it cannot compute the result in advance. Each register begins with a
    // different value, so the compiler cannot merge registers.
    let start = black_box([1.0, 1.1, 1.2, 1.3, 1.4, 1.5, 1.6, 1.7, 1.8, 1.9, 2.0, 2.1]);
    let mut sums = [s.splat(0.0); REGISTERS];
    for (sum, start) in sums.iter_mut().zip(start) {
        *sum = s.splat(start);
    }
    let (a, b) = (s.splat(black_box(0.999)), s.splat(black_box(1e-3)));
    if arithmetic == Arithmetic::F32 {
        for _ in 0..n {
            for sum in &mut sums {
                *sum = s.mul_add(*sum, a, b);
            }
        }
    } else {
        for _ in 0..n {
            for sum in &mut sums {
                *sum = s.dot_bf16(a, b, *sum);
            }
        }
    }
    let mut total = s.splat(0.0);
    for sum in sums {
        total = s.add(total, sum);
    }
    s.sum(total)
}

/// Multiply-adds of pairs of i16 or of quads of bytes.
#[inline(always)]
fn int_products<S: Simd>(s: S, n: usize, arithmetic: Arithmetic) -> f32 {
    let pairs = black_box([[1i16, 2], [3, 5], [7, 11], [13, 17], [19, 23], [29, 31]]);
    let mut sums = [s.zeros(); REGISTERS];
    for (i, sum) in sums.iter_mut().enumerate() {
        // SAFETY: the pointer is to a pair.
        *sum = unsafe { s.splat_pair(pairs[i % 6].as_ptr()) };
    }
    // Each sum is multiplied with its neighbor, whose value changes in every round.
    macro_rules! rounds {
        ($a:ident, $b:ident => $product:expr) => {
            for _ in 0..n {
                for i in 0..REGISTERS {
                    let ($a, $b) = (sums[i], sums[(i + 1) % REGISTERS]);
                    sums[i] = $product;
                }
            }
        };
    }
    match arithmetic {
        Arithmetic::Blocks => rounds!(a, b => s.add_block_dot(a, b, a)),
        Arithmetic::Bytes => rounds!(a, b => s.dot_quads(a, b, a)),
        _ => rounds!(a, b => s.dot_pairs_word::<0>(b, a, a)),
    }
    let mut total = s.splat(0.0);
    for sum in sums {
        total = s.add(total, s.to_f32(sum));
    }
    s.sum(total)
}
