//! Weights and activations in 8 bits, for CPUs that multiply four pairs of bytes with one instruction.
//!
//! Weights and activations have a scale for each group of [`BYTE_GROUP`] values of `k`. The instruction of x86 CPUs
//! multiplies unsigned bytes with signed bytes, so a weight `w` from −127 to 127 is stored as `w + 128`. After each
//! group of activations `a`, the correction for this offset is stored: `-128 · Σ a`. The sum of the group begins with
//! it:
//!
//! ```text
//! for each group of k:
//!     products[row] = -128 · Σ row[group]
//!     for each quad of the group:
//!         products[row] += row[quad] · panel[quad]       i8 · u8, in i32
//!     sums[row] += f32(products[row]) · (row's scale · panel's scales)
//! ```
//!
//! Intermediate sums are at most 64 · 127 · (128 + 255) < 2^22 in magnitude, and the sum of a group is at most
//! 64 · 127² < 2^20, an integer that f32 represents exactly.
//!
//! The instruction of ARM CPUs multiplies signed bytes. There the offset of weights and the correction are zero. The
//! offset is [`IntOps::WEIGHT_OFFSET`](crate::cpu::simd::IntOps::WEIGHT_OFFSET).

use std::hint::black_box;

use rayon::prelude::*;

use super::WeightFormat;
use super::groups::{WeightByte, group_size, pack_quantized, padded, panel_size, repack};
use crate::cpu::activations::{QuantizeBuffer, Quantized, Rows, Values};
use crate::cpu::aligned::Aligned;
use crate::cpu::arithmetic::Arithmetic;
use crate::cpu::dispatch::Kernels;
use crate::cpu::gemm::{GemmTask, MultiplyPanels};
use crate::cpu::packed::PackedWeight;
use crate::cpu::panels::{Layout, PanelGrid};
use crate::cpu::quantize::{GAP, largest_magnitude, rows_of};
use crate::cpu::rotation::{ROTATION, rotate, rotated};
use crate::cpu::scalar::{FloatScalar, IntScalar as _};
use crate::cpu::simd::{Simd, SimdOp, TileSums};
use crate::cpu::tile::{
    Tile, TileKernel, block_words, each_word, multiply_word, panel_columns, with_rows,
};
use crate::cpu::vector::{load_part, store_int_part};

/// Input features that share a scale in [`Arithmetic::Bytes`].
pub const BYTE_GROUP: usize = 64;

impl PackedWeight {
    /// Packs a weight [O, I] in 8 bits for activations in 8 bits, in parallel on rayon's current pool.
    /// `read_row(o, row)` writes the `I` values of the row `o` of the weight. Each group of [`BYTE_GROUP`] of them
    /// becomes integers from −127 to 127 and a scale. With `is_rotated`, weights and activations are
    /// [rotated](rotate) before they are quantized.
    ///
    /// # Panics
    ///
    /// If O is odd with [`Layout::SwiGlu`], or if `is_rotated` and I is not a multiple of [`ROTATION`].
    pub fn pack_bytes(
        n_out: usize,
        n_in: usize,
        layout: Layout,
        is_rotated: bool,
        read_row: impl Fn(usize, &mut [f32]) + Sync,
    ) -> Self {
        assert!(
            !is_rotated || n_in.is_multiple_of(ROTATION),
            "rotation needs I to be a multiple of {ROTATION}, got {n_in}"
        );
        let read = |o: usize, row: &mut [f32]| {
            read_row(o, row);
            if is_rotated {
                rotate(row);
            }
        };
        let grid = PanelGrid::new(n_out, n_in, layout, Kernels::current());
        Self::new(grid, BytesWeight { panels: pack_quantized(grid, &[], read), is_rotated })
    }
}

/// A weight in 8 bits, for activations in 8 bits.
#[derive(Debug)]
struct BytesWeight {
    panels: Aligned<u8>,
    /// Whether the weight is rotated. If so, activations are rotated too.
    is_rotated: bool,
}

impl WeightByte for u8 {
    const GROUP: usize = BYTE_GROUP;

    fn from_weight(weight: i8, offset: u8) -> Self {
        weight.cast_unsigned().wrapping_add(offset)
    }

    fn weight(self, offset: u8) -> i8 {
        self.wrapping_sub(offset).cast_signed()
    }

    fn from_bits(bits: u8) -> Self {
        bits
    }

    fn bits(self) -> u8 {
        self
    }
}

impl WeightFormat for BytesWeight {
    fn n_bytes(&self) -> usize {
        self.panels.len()
    }

    fn n_k(&self, n_in: usize) -> usize {
        padded::<u8>(n_in, 0)
    }

    fn quantize<'a>(
        &self,
        kernels: &Kernels,
        x: Rows<'a>,
        buffer: &'a mut QuantizeBuffer,
    ) -> Rows<'a> {
        let (n_k, is_rotated) = (self.n_k(x.n_columns), self.is_rotated);
        let row_size = n_k / BYTE_GROUP * ROW_GROUP;
        rows_of(&mut buffer.i8, x.n_rows, row_size).enumerate().for_each(|(i, out)| {
            kernels.run(QuantizeRow { x: x.row(i), is_rotated, out });
        });
        let values = Values::Quantized(Quantized { arithmetic: Arithmetic::Bytes, buffer });
        Rows { values, n_rows: x.n_rows, n_columns: n_k, stride: row_size + GAP }
    }

    fn multiply(&self, kernels: &Kernels, task: &GemmTask<'_>) {
        kernels.run(MultiplyPanels {
            kernel: BytesKernel,
            x: &task.x.quantized_for(Arithmetic::Bytes).i8,
            panels: &self.panels,
            panel_size: panel_size::<u8>(task.grid, task.x.n_columns),
            row_scales: None,
            task,
        });
    }

    fn repacked(&self, from: PanelGrid, to: PanelGrid) -> Box<dyn WeightFormat> {
        let panels = repack(&self.panels, from, to, 0);
        Box::new(Self { panels, is_rotated: self.is_rotated })
    }
}

/// The offset of the scale, an f32, in a group of a row of activations.
const SCALE: usize = BYTE_GROUP;

/// The offset of the correction, an i32.
const CORRECTION: usize = SCALE + size_of::<f32>();

/// Bytes of a group of a row of activations.
const ROW_GROUP: usize = CORRECTION + size_of::<i32>();

/// Quantizes a row in groups: the values of a group become multiples of its scale. The row is rotated first if
/// `is_rotated`.
struct QuantizeRow<'a> {
    x: Values<'a>,
    is_rotated: bool,
    out: &'a mut [i8],
}

impl SimdOp for QuantizeRow<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        match (self.x, self.is_rotated) {
            (Values::F32(x), false) => quantize_groups(s, x, self.out),
            (Values::Bf16(x), false) => quantize_groups(s, x, self.out),
            (Values::F32(x), true) => quantize_rotated_groups(s, x, self.out),
            (Values::Bf16(x), true) => quantize_rotated_groups(s, x, self.out),
            (Values::Quantized(_), _) => unreachable!("`Rows::row` returns f32 or bf16"),
        }
    }
}

/// Groups that are quantized together.
const BATCH: usize = 16;

/// Rotates a row and then does [`quantize_groups`]. The length of the row is a multiple of [`ROTATION`].
#[inline(always)]
fn quantize_rotated_groups<S: Simd, T: FloatScalar>(s: S, x: &[T], out: &mut [i8]) {
    const { assert!((BATCH * BYTE_GROUP).is_multiple_of(ROTATION)) };
    let mut buffer = [0f32; BATCH * BYTE_GROUP];
    for (x, out) in x.chunks(BATCH * BYTE_GROUP).zip(out.chunks_mut(BATCH * ROW_GROUP)) {
        let blocks = buffer.as_chunks_mut::<ROTATION>().0;
        for (x, block) in x.chunks_exact(ROTATION).zip(blocks) {
            *block = rotated(s, x);
        }
        quantize_batch(s, &buffer[..x.len()], out);
    }
}

#[inline(always)]
fn quantize_groups<S: Simd, T: FloatScalar>(s: S, x: &[T], out: &mut [i8]) {
    for (x, out) in x.chunks(BATCH * BYTE_GROUP).zip(out.chunks_mut(BATCH * ROW_GROUP)) {
        quantize_batch(s, x, out);
    }
}

/// Quantizes at most [`BATCH`] groups in three passes, so that the CPU works on several groups at once: a group alone
/// is one long chain of a maximum over its values, two divisions, and the rounding of its values. The scales are NaN if
/// a value is not finite.
#[inline(always)]
fn quantize_batch<S: Simd, T: FloatScalar>(s: S, x: &[T], out: &mut [i8]) {
    let (whole, rest) = x.as_chunks::<BYTE_GROUP>();
    let mut padded = [T::default(); BYTE_GROUP];
    padded[..rest.len()].copy_from_slice(rest);
    let n_groups = x.len().div_ceil(BYTE_GROUP);
    let mut largest = [0f32; BATCH];
    let mut nan = s.splat(0.0);
    for (i, largest) in largest[..n_groups].iter_mut().enumerate() {
        *largest = largest_magnitude(s, whole.get(i).unwrap_or(&padded), &mut nan);
    }
    let nan = s.sum(nan);
    let scales = largest.map(|largest| largest / i8::LARGEST);
    let inverses = largest.map(|largest| i8::LARGEST / largest);
    for (i, group) in out.as_chunks_mut::<ROW_GROUP>().0.iter_mut().enumerate() {
        let (x, scale) = (whole.get(i).unwrap_or(&padded), scales[i]);
        let inverse = s.splat(if scale < f32::MIN_POSITIVE { 0.0 } else { inverses[i] });
        let mut sums = s.splat(0.0);
        let (values, after) = group.split_at_mut(BYTE_GROUP);
        for (values, x) in values.chunks_exact_mut(S::LANES).zip(x.chunks_exact(S::LANES)) {
            let rounded = s.round(s.mul(load_part(s, x), inverse));
            store_int_part(s, values, rounded);
            sums = s.add(sums, rounded);
        }
        // The sum of 64 integers below 128 is exact.
        let correction = (-f32::from(S::WEIGHT_OFFSET) * s.sum(sums)) as i32;
        let [scale, correction] = [(scale + nan).to_bits(), correction.cast_unsigned()];
        let (scale_bytes, correction_bytes) = after.split_at_mut(size_of::<f32>());
        scale_bytes.copy_from_slice(&scale.to_ne_bytes().map(u8::cast_signed));
        correction_bytes.copy_from_slice(&correction.to_ne_bytes().map(u8::cast_signed));
    }
}

/// i8 activations times u8 weights.
#[derive(Clone, Copy)]
struct BytesKernel;

impl TileKernel for BytesKernel {
    type Left = i8;
    type Right = u8;
    type Sums<S: Simd> = S::IntTile;
    const STEP: usize = 4;

    #[inline(always)]
    unsafe fn fill<S: Simd>(self, s: S, tile: &Tile<i8, u8>, sums: &mut [[S::V; 2]]) {
        // SAFETY: the caller's promise.
        with_rows!(<S::IntTile as TileSums<S::V>>::ROWS, sums, R => unsafe {
            bytes_sums::<S, R>(s, tile)
        });
    }
}

/// The sums of a tile of `R` rows.
///
/// # Safety
///
/// As of [`TileKernel::fill`].
#[inline(always)]
unsafe fn bytes_sums<S: Simd, const R: usize>(s: S, tile: &Tile<i8, u8>) -> [[S::V; 2]; R] {
    const STEPS: usize = BYTE_GROUP / 4;
    let columns = panel_columns::<S>();
    // The compiler would replace the counter of a loop over two blocks by flags, which need more instructions.
    let n_steps = if const { S::WORDS == 1 } { STEPS } else { black_box(STEPS) };
    let mut sums = [[s.splat(0.0); 2]; R];
    for group in 0..tile.n_k / BYTE_GROUP {
        let mut products = [[s.zeros(); 2]; R];
        // SAFETY: the caller's promise, for the quads of the group in every row and in the panel, and for the scales
        // and corrections after them.
        unsafe {
            let rows = tile.rows(s);
            let at = group * ROW_GROUP;
            let mut words = rows.words(s, at);
            let mut panel = tile.panel.add(group * group_size::<u8>(columns));
            if const { S::WEIGHT_OFFSET != 0 } {
                for (row, products) in products.iter_mut().enumerate() {
                    let correction = rows.at(row, at + CORRECTION).cast::<i32>();
                    *products = [s.splat_i32(correction.read_unaligned()); 2];
                }
            }
            let mut prefetches = tile.prefetches(group * STEPS, block_words::<S>(1));
            for _ in 0..n_steps / block_words::<S>(1) {
                prefetches.prefetch(s);
                each_word!(block_words::<S>(1), WORD => {
                    multiply_word!(
                        S,
                        s,
                        products,
                        after = panel.after_products,
                        b(half) = s.load_quads(panel.add(4 * (2 * WORD + half) * S::LANES)),
                        a(row) = s.load_quad_words(words.at(s, row)),
                        sum = s.dot_quads_word::<WORD>(b, a, sum)
                    );
                    if const { (WORD + 1).is_multiple_of(S::WORDS) } {
                        words.advance_after_products(s, 4 * S::WORDS, &products);
                    }
                });
                panel = panel.add(4 * block_words::<S>(1) * columns);
            }
            let scales = panel.cast::<f32>();
            let scales = [s.load(scales), s.load(scales.add(S::LANES))];
            for (row, (sums, products)) in sums.iter_mut().zip(products).enumerate() {
                let scale = rows.at(row, at + SCALE).cast::<f32>();
                let scale = s.splat(scale.read_unaligned());
                let scales = [s.mul(scales[0], scale), s.mul(scales[1], scale)];
                sums[0] = s.mul_add(s.to_f32(products[0]), scales[0], sums[0]);
                sums[1] = s.mul_add(s.to_f32(products[1]), scales[1], sums[1]);
            }
        }
    }
    sums
}
