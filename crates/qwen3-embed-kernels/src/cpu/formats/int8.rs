//! Weights in 8 bits for activations in 16 bits, summed in integers. See `bytes` for kernel sets whose activations in 16
//! bits are two bytes.
//!
//! A column of the weight has a scale for each group of [`GROUP`] values of `k`. A row of activations has one scale.
//! Products are summed exactly within a group, as i32, in pairs of values. The sum of a group is multiplied with the
//! scale of its column and added to the f32 sum:
//!
//! ```text
//! for each group of k:
//!     for each pair of the group:
//!         products[row] += row[pair] · panel[pair]       i16 · i8, in i32
//!     sums[row] += f32(products[row]) · scales[group]
//! ```
//!
//! The magnitude of an activation is below 2^15 and the magnitude of a weight is below 2^7, so the sum of a group of 32
//! products is below 2^27.
//!
//! Input features with the largest activations can have weights of twice as many bits. For these features, the
//! quantized remainders of the weights are stored after the last group, and the activations of these features are
//! repeated there.

use rayon::prelude::*;

use super::WeightFormat;
use super::bytes::BytesWeight;
use super::groups::{
    GroupedRow, WIDE_GROUP as GROUP, WeightByte, group_size, pack_groups, pack_quantized, padded,
    panel_size, repack,
};
use crate::cpu::activations::{QuantizeBuffer, Quantized, Rows, Values};
use crate::cpu::aligned::Aligned;
use crate::cpu::arithmetic::{Arithmetic, WideActivations};
use crate::cpu::dispatch::Kernels;
use crate::cpu::gemm::{GemmTask, MultiplyPanels};
use crate::cpu::packed::PackedWeight;
use crate::cpu::panels::{Layout, PanelGrid};
use crate::cpu::quantize::{GAP, multiples, rows_of};
use crate::cpu::simd::{Simd, SimdOp, TileSums};
use crate::cpu::tile::{
    Tile, TileKernel, block_words, each_word, multiply_word, panel_columns, with_rows,
};

impl PackedWeight {
    /// Packs a weight [O, I] in 8 bits for activations in 16 bits, in parallel on rayon's current pool.
    /// `read_row(o, row)` writes the `I` values of the row `o` of the weight. Each group of 32 of them becomes integers
    /// from −127 to 127 and a scale. The weights of the input features `precise`, which should be the features with the
    /// largest activations, get twice as many bits.
    ///
    /// # Panics
    ///
    /// If O is odd with [`Layout::SwiGlu`], or if a feature is not below I.
    pub fn pack_int8(
        n_out: usize,
        n_in: usize,
        layout: Layout,
        precise: &[usize],
        read_row: impl Fn(usize, &mut [f32]) + Sync,
    ) -> Self {
        let wide = Kernels::current().wide_activations();
        Self::pack_int8_for(wide, n_out, n_in, layout, precise, read_row)
    }

    /// As [`pack_int8`](Self::pack_int8), for kernel sets that store activations in 16 bits in this way.
    #[doc(hidden)]
    pub fn pack_int8_for(
        wide: WideActivations,
        n_out: usize,
        n_in: usize,
        layout: Layout,
        precise: &[usize],
        read_row: impl Fn(usize, &mut [f32]) + Sync,
    ) -> Self {
        assert!(precise.iter().all(|&k| k < n_in), "precise features are below I = {n_in}");
        let grid = PanelGrid::new(n_out, n_in, layout, Kernels::current());
        match wide {
            WideActivations::Pairs => {
                let panels = pack_quantized(GROUP, grid, precise, read_row);
                Self::new(grid, Int8Weight { panels, precise: precise.to_vec() })
            }
            WideActivations::TwoBytes => {
                let panels = pack_quantized(GROUP, grid, precise, read_row);
                Self::new(grid, BytesWeight::for_two_bytes(panels, precise.to_vec()))
            }
        }
    }

    /// Packs a weight [O, I] that is already quantized to 8 bits with a scale for every 32 values, for activations in
    /// 16 bits, in parallel on rayon's current pool. `read_row(o, values, scales)` writes the `I` values and the scales
    /// of the row `o` of the weight.
    ///
    /// # Panics
    ///
    /// If O is odd with [`Layout::SwiGlu`].
    pub fn pack_q8(
        n_out: usize,
        n_in: usize,
        layout: Layout,
        read_row: impl Fn(usize, &mut [i8], &mut [f32]) + Sync,
    ) -> Self {
        Self::pack_q8_for(Kernels::current().wide_activations(), n_out, n_in, layout, read_row)
    }

    /// As [`pack_q8`](Self::pack_q8), for kernel sets that store activations in 16 bits in this way.
    #[doc(hidden)]
    pub fn pack_q8_for(
        wide: WideActivations,
        n_out: usize,
        n_in: usize,
        layout: Layout,
        read_row: impl Fn(usize, &mut [i8], &mut [f32]) + Sync,
    ) -> Self {
        let read = |(): &mut (), o: usize, row: &mut GroupedRow<'_>| {
            read_row(o, &mut row.values[..n_in], row.scales);
        };
        let grid = PanelGrid::new(n_out, n_in, layout, Kernels::current());
        match wide {
            WideActivations::Pairs => {
                let panels = pack_groups(GROUP, grid, 0, || (), read);
                Self::new(grid, Int8Weight { panels, precise: Vec::new() })
            }
            WideActivations::TwoBytes => {
                let panels = pack_groups(GROUP, grid, 0, || (), read);
                Self::new(grid, BytesWeight::for_two_bytes(panels, Vec::new()))
            }
        }
    }
}

/// A weight in 8 bits, for activations in 16 bits that are [pairs](WideActivations::Pairs).
#[derive(Debug)]
struct Int8Weight {
    panels: Aligned<i8>,
    /// Input features whose weights have a second value.
    precise: Vec<usize>,
}

impl WeightByte for i8 {
    fn from_weight(weight: i8, _: u8) -> Self {
        weight
    }

    fn weight(self, _: u8) -> i8 {
        self
    }

    fn from_bits(bits: u8) -> Self {
        bits.cast_signed()
    }

    fn bits(self) -> u8 {
        self.cast_unsigned()
    }
}

impl WeightFormat for Int8Weight {
    fn n_bytes(&self) -> usize {
        self.panels.len()
    }

    fn n_k(&self, n_in: usize) -> usize {
        padded(GROUP, n_in, self.precise.len())
    }

    fn quantize<'a>(
        &self,
        kernels: &Kernels,
        x: Rows<'a>,
        buffer: &'a mut QuantizeBuffer,
    ) -> Rows<'a> {
        let n_k = self.n_k(x.n_columns);
        let QuantizeBuffer { i16, scales, .. } = &mut *buffer;
        scales.resize(scales.len().max(x.n_rows), 0.0);
        let rows = rows_of(i16, x.n_rows, n_k).zip(&mut scales[..x.n_rows]).enumerate();
        rows.for_each(|(i, (out, scale))| {
            *scale = kernels.run(QuantizeRow { x: x.row(i), precise: &self.precise, out });
        });
        let values = Values::Quantized(Quantized { arithmetic: Arithmetic::Int8, buffer });
        Rows { values, n_rows: x.n_rows, n_columns: n_k, stride: n_k + GAP }
    }

    fn multiply(&self, kernels: &Kernels, task: &GemmTask<'_>) {
        let QuantizeBuffer { i16, scales, .. } = task.x.quantized_for(Arithmetic::Int8);
        kernels.run(MultiplyPanels {
            kernel: Int8Kernel,
            x: i16,
            panels: &self.panels,
            panel_size: panel_size(GROUP, task.grid, task.x.n_columns),
            row_scales: Some(scales),
            task,
        });
    }

    fn repacked(&self, from: PanelGrid, to: PanelGrid) -> Box<dyn WeightFormat> {
        let panels = repack(&self.panels, GROUP, from, to, self.precise.len());
        Box::new(Self { panels, precise: self.precise.clone() })
    }
}

/// Quantizes a row to multiples of its scale, and returns the scale. The values of the features `precise` are repeated
/// in `out`, from the next whole group on. The rest of each group is zero.
struct QuantizeRow<'a> {
    x: Values<'a>,
    precise: &'a [usize],
    out: &'a mut [i16],
}

impl SimdOp for QuantizeRow<'_> {
    type Output = f32;

    #[inline(always)]
    fn run<S: Simd>(self, s: S) -> f32 {
        let Self { x, precise, out } = self;
        let n_in = match x {
            Values::F32(x) => x.len(),
            Values::Bf16(x) => x.len(),
            Values::Quantized(_) => unreachable!("`Rows::row` returns f32 or bf16"),
        };
        let (row, repeated) = out.split_at_mut(n_in.next_multiple_of(GROUP));
        let (row, padding) = row.split_at_mut(n_in);
        padding.fill(0);
        repeated.fill(0);
        let scale = match x {
            Values::F32(x) => multiples(s, x, row),
            Values::Bf16(x) => multiples(s, x, row),
            Values::Quantized(_) => unreachable!("`Rows::row` returns f32 or bf16"),
        };
        for (out, &k) in repeated.iter_mut().zip(precise) {
            *out = row[k];
        }
        scale
    }
}

/// i16 activations times i8 weights.
#[derive(Clone, Copy)]
struct Int8Kernel;

impl TileKernel for Int8Kernel {
    type Left = i16;
    type Right = i8;
    type Sums<S: Simd> = S::PairTile;
    const STEP: usize = 2;

    #[inline(always)]
    unsafe fn fill<S: Simd>(self, s: S, tile: &Tile<i16, i8>, sums: &mut [[S::V; 2]]) {
        // SAFETY: the caller's promise.
        with_rows!(<S::PairTile as TileSums<S::V>>::ROWS, sums, R => unsafe {
            int8_sums::<S, R>(s, tile)
        });
    }
}

/// The sums of a tile of `R` rows.
///
/// # Safety
///
/// As of [`TileKernel::fill`].
#[inline(always)]
unsafe fn int8_sums<S: Simd, const R: usize>(s: S, tile: &Tile<i16, i8>) -> [[S::V; 2]; R] {
    const STEPS: usize = GROUP / 2;
    let columns = panel_columns::<S>();
    let mut sums = [[s.splat(0.0); 2]; R];
    for group in 0..tile.n_k / GROUP {
        let mut products = [[s.zeros(); 2]; R];
        // SAFETY: the caller's promise, for the pairs of the group in every row and in the panel, and for the scales of
        // the columns after them.
        unsafe {
            let mut words = tile.rows(s).words(s, group * GROUP);
            let mut panel = tile.panel.add(group * group_size(GROUP, columns));
            let mut prefetches = tile.prefetches(group * STEPS, block_words::<S>(1));
            for _ in 0..STEPS / block_words::<S>(1) {
                prefetches.prefetch(s);
                each_word!(block_words::<S>(1), WORD => {
                    multiply_word!(
                        S,
                        s,
                        products,
                        after = panel.after_products,
                        b(half) = s.load_pairs(panel.add((2 * WORD + half) * columns)),
                        a(row) = s.load_pair_words(words.at(s, row)),
                        sum = s.dot_pairs_word::<WORD>(a, b, sum)
                    );
                    if const { (WORD + 1).is_multiple_of(S::WORDS) } {
                        words.advance_after_products(s, 2 * S::WORDS, &products);
                    }
                });
                panel = panel.add(2 * block_words::<S>(1) * columns);
            }
            let scales = panel.cast::<f32>();
            let scales = [s.load(scales), s.load(scales.add(S::LANES))];
            for (sums, products) in sums.iter_mut().zip(products) {
                sums[0] = s.mul_add(s.to_f32(products[0]), scales[0], sums[0]);
                sums[1] = s.mul_add(s.to_f32(products[1]), scales[1], sums[1]);
            }
        }
    }
    sums
}
