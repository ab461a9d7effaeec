//! The number types of matrix multiplications, and the peak rate of each.

use std::hint::black_box;

use half::bf16;

use super::simd::{MATRIX_ROW_BYTES, MOST_MATRIX_ROWS, MatrixBlock, Simd, SimdOp};

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
    /// 16-bit integer activations times 8-bit integer weights with one scale for each group of 32 input features of an
    /// output. Activations have one scale for each row, or for each such group in kernel sets that store an activation as
    /// two bytes.
    Int8,
    /// 8-bit integer activations times 8-bit integer weights, both with one scale for each group of
    /// [`BYTE_GROUP`](super::BYTE_GROUP) input features. On CPUs without an instruction that multiplies bytes, this
    /// is slower than [`Int8`](Self::Int8).
    Bytes,
    /// 8-bit integer activations with one scale for each block of [`BLOCK`](super::BLOCK) input features, times
    /// 4-bit to 6-bit integer weights: see [`Bits`](super::Bits).
    Blocks,
}

/// How a kernel set stores activations in 16 bits.
#[doc(hidden)]
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum WideActivations {
    /// As 16-bit integers, which are multiplied in pairs.
    Pairs,
    /// As two bytes, a high and a low one. Each is multiplied as bytes are.
    TwoBytes,
}

impl Arithmetic {
    /// All values, in the order of their declaration.
    pub const ALL: [Self; 5] = [Self::F32, Self::Bf16, Self::Int8, Self::Bytes, Self::Blocks];

    /// Whether activations are quantized to integers.
    pub fn is_integer(self) -> bool {
        matches!(self, Self::Int8 | Self::Bytes | Self::Blocks)
    }
}

/// Executes `n_rounds` multiply-adds on each of [`REGISTERS`] independent registers, without memory access, and returns
/// the number of operations. A multiply-add counts as two operations. With matrix registers, the operands are in the
/// first-level cache.
pub(super) struct MultiplyAdds {
    pub(super) n_rounds: usize,
    pub(super) arithmetic: Arithmetic,
}

/// Registers that are updated in each round.
const REGISTERS: usize = 12;

impl SimdOp for MultiplyAdds {
    type Output = f64;
    const USES_MATRICES: bool = true;

    #[inline(always)]
    fn run<S: Simd>(self, s: S) -> f64 {
        let Self { n_rounds, arithmetic } = self;
        let depth = match arithmetic {
            Arithmetic::F32 => 1,
            Arithmetic::Bf16 | Arithmetic::Int8 => 2,
            Arithmetic::Bytes | Arithmetic::Blocks => 4,
        };
        // The results are used, so that the compiler cannot remove the computation.
        match arithmetic {
            // Instructions for matrices of bytes have twice as many operations as those for bf16, and take as long.
            Arithmetic::Bf16 | Arithmetic::Bytes if S::HAS_MATRICES => {
                return matrix_products(s, n_rounds) * depth as f64 / 2.0;
            }
            Arithmetic::F32 | Arithmetic::Bf16 => {
                black_box(float_products(s, n_rounds, arithmetic));
            }
            Arithmetic::Int8 | Arithmetic::Bytes | Arithmetic::Blocks => {
                black_box(int_products(s, n_rounds, arithmetic));
            }
        }
        (2 * REGISTERS * depth * S::LANES * n_rounds) as f64
    }
}

/// Multiplies matrices of bf16 with matrix registers, and returns the number of operations, which is about the number of
/// operations of `n_rounds` multiply-adds of registers.
#[inline(always)]
fn matrix_products<S: Simd>(s: S, n_rounds: usize) -> f64 {
    const STEPS: usize = 8;
    const VALUES: usize = STEPS * MATRIX_ROW_BYTES / size_of::<bf16>();
    // All rows of activations are the same row.
    let row = black_box([bf16::ONE; VALUES]);
    let panel = black_box([[[bf16::ONE; 2]; VALUES]; MOST_LANES]);
    let block = MatrixBlock {
        rows: row.as_ptr(),
        stride: 0,
        panel: panel.as_ptr().cast(),
        n_steps: STEPS,
        ahead: row.as_ptr().cast(),
        ahead_step: 0,
    };
    const { assert!(S::LANES <= MOST_LANES) };
    let n_operations = 2 * MOST_MATRIX_ROWS * 2 * S::LANES * VALUES;
    let n_blocks = (2 * REGISTERS * S::LANES * n_rounds).div_ceil(n_operations);
    let mut sums = [[s.splat(0.0); 2]; MOST_MATRIX_ROWS];
    for _ in 0..n_blocks {
        // SAFETY: the row has `STEPS` steps, and the panel has as many values of `k` for 2 · LANES columns.
        unsafe { s.multiply_pairs(&block, &mut sums) };
        black_box(&sums);
    }
    s.release_matrices();
    (n_blocks * n_operations) as f64
}

/// The largest number of lanes of a register of any instruction set.
const MOST_LANES: usize = 16;

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
