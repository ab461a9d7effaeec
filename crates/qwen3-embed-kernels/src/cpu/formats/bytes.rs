//! Weights in 8 bits and activations in 8 or 16 bits, for CPUs that multiply four pairs of bytes with one instruction.
//!
//! Weights and activations have a scale for each group of [`BYTE_GROUP`] values of `k`, or of 32 values if activations
//! have 16 bits. The instruction of x86 CPUs multiplies unsigned bytes with signed bytes, so a weight `w` from −127 to 127
//! is stored as `w + 128`. After each group of activations `a`, the correction for this offset is stored: `-128 · Σ a`.
//! The sum of the group begins with it:
//!
//! ```text
//! for each group of k:
//!     products[row] = -128 · Σ row[group]
//!     for each quad of the group:
//!         products[row] += row[quad] · panel[quad]       i8 · u8, in i32
//!     sums[row] += f32(products[row]) · (row's scale · panel's scales)
//! ```
//!
//! An activation in 16 bits is stored as two signed bytes, `a = 256 · high + low`. The high bytes of a group are
//! multiplied first, and their products are multiplied by 256 before the correction and the products of the low bytes are
//! added.
//!
//! Intermediate sums are at most 64 · 127 · (128 + 255) < 2^22 in magnitude, and the sum of a group is at most
//! 64 · 127² < 2^20, an integer that f32 represents exactly. With activations in 16 bits, in groups of 32, both are 129
//! times as large, so they are below 2^29, and a sum is rounded when it is converted to f32.
//!
//! The instruction of ARM CPUs multiplies signed bytes. There the offset of weights and the correction are zero. The
//! offset is [`IntOps::WEIGHT_OFFSET`](crate::cpu::simd::IntOps::WEIGHT_OFFSET).
//!
//! As in the format `int8`, the weights of some input features can have twice as many bits.

use std::hint::black_box;

use rayon::prelude::*;

use super::WeightFormat;
use super::groups::{
    WIDE_GROUP, WeightByte, group_size, pack_quantized, padded, panel_size, repack,
};
use crate::cpu::activations::{QuantizeBuffer, Quantized, Rows, Values};
use crate::cpu::aligned::Aligned;
use crate::cpu::arithmetic::Arithmetic;
use crate::cpu::dispatch::Kernels;
use crate::cpu::gemm::{GemmTask, MultiplyPanels};
use crate::cpu::packed::PackedWeight;
use crate::cpu::panels::{Layout, PanelGrid};
use crate::cpu::quantize::{GAP, largest_magnitude, rows_of};
use crate::cpu::rotation::{self, ROTATION, rotate};
use crate::cpu::scalar::{FloatScalar, IntScalar as _};
use crate::cpu::simd::{MATRIX_ROW_BYTES, MOST_MATRIX_ROWS, Simd, SimdOp, TileSums};
use crate::cpu::tile::{
    Prefetches, Tile, TileKernel, TileRows, block_words, each_word, multiply_word, panel_columns,
    with_rows,
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
        let panels = pack_quantized(BYTE_GROUP, grid, &[], read);
        Self::new(grid, BytesWeight { panels, n_bytes: 1, is_rotated, precise: Vec::new() })
    }
}

/// A weight in 8 bits, for activations in 8 or 16 bits.
#[derive(Debug)]
pub(super) struct BytesWeight {
    panels: Aligned<u8>,
    /// Bytes of an activation: 1 or 2.
    n_bytes: usize,
    /// Whether the weight is rotated. If so, activations are rotated too.
    is_rotated: bool,
    /// Input features whose weights have a second value.
    precise: Vec<usize>,
}

impl WeightByte for u8 {
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

impl BytesWeight {
    /// A weight that is packed in groups of [`WIDE_GROUP`] values, for activations of two bytes.
    pub(super) fn for_two_bytes(panels: Aligned<u8>, precise: Vec<usize>) -> Self {
        Self { panels, n_bytes: 2, is_rotated: false, precise }
    }

    /// The arithmetic for which activations are quantized.
    fn arithmetic(&self) -> Arithmetic {
        if self.n_bytes == 1 { Arithmetic::Bytes } else { Arithmetic::Int8 }
    }

    /// The number of values of `k` that share a scale.
    fn group(&self) -> usize {
        if self.n_bytes == 1 { BYTE_GROUP } else { WIDE_GROUP }
    }
}

impl WeightFormat for BytesWeight {
    fn n_bytes(&self) -> usize {
        self.panels.len()
    }

    fn n_k(&self, n_in: usize) -> usize {
        padded(self.group(), n_in, self.precise.len())
    }

    fn quantize<'a>(
        &self,
        kernels: &Kernels,
        x: Rows<'a>,
        buffer: &'a mut QuantizeBuffer,
    ) -> Rows<'a> {
        let Self { n_bytes, is_rotated, ref precise, .. } = *self;
        let n_k = self.n_k(x.n_columns);
        let row_size = n_k / self.group() * row_group(n_bytes, self.group());
        rows_of(&mut buffer.i8, x.n_rows, row_size).enumerate().for_each(|(i, out)| {
            let x = x.row(i);
            match n_bytes {
                1 => kernels.run(QuantizeRow::<1, BYTE_GROUP> { x, is_rotated, precise, out }),
                _ => kernels.run(QuantizeRow::<2, WIDE_GROUP> { x, is_rotated, precise, out }),
            }
        });
        let values = Values::Quantized(Quantized { arithmetic: self.arithmetic(), buffer });
        Rows { values, n_rows: x.n_rows, n_columns: n_k, stride: row_size + GAP }
    }

    fn multiply(&self, kernels: &Kernels, task: &GemmTask<'_>) {
        match self.n_bytes {
            1 => self.multiply_with(BytesKernel::<1, BYTE_GROUP>, kernels, task),
            _ => self.multiply_with(BytesKernel::<2, WIDE_GROUP>, kernels, task),
        }
    }

    fn repacked(&self, from: PanelGrid, to: PanelGrid) -> Box<dyn WeightFormat> {
        let Self { n_bytes, is_rotated, ref precise, .. } = *self;
        let panels = repack(&self.panels, self.group(), from, to, precise.len());
        Box::new(Self { panels, n_bytes, is_rotated, precise: precise.clone() })
    }
}

impl BytesWeight {
    fn multiply_with<const N_BYTES: usize, const GROUP: usize>(
        &self,
        kernel: BytesKernel<N_BYTES, GROUP>,
        kernels: &Kernels,
        task: &GemmTask<'_>,
    ) {
        kernels.run(MultiplyPanels {
            kernel,
            x: &task.x.quantized_for(self.arithmetic()).i8,
            panels: &self.panels,
            panel_size: panel_size(GROUP, task.grid, task.x.n_columns),
            row_scales: None,
            task,
        });
    }
}

/// The offset of the scale, an f32, in a group of a row of activations. Before it are the bytes of the activations, the
/// high bytes of all activations first.
const fn scale_at(n_bytes: usize, group: usize) -> usize {
    n_bytes * group
}

/// The offset of the correction, an i32.
const fn correction_at(n_bytes: usize, group: usize) -> usize {
    scale_at(n_bytes, group) + size_of::<f32>()
}

/// Bytes of a group of a row of activations.
const fn row_group(n_bytes: usize, group: usize) -> usize {
    correction_at(n_bytes, group) + size_of::<i32>()
}

/// The largest magnitude of an activation. With two bytes, it is the largest for which the high byte is at most 127.
const fn largest_activation(n_bytes: usize) -> f32 {
    if n_bytes == 1 { i8::LARGEST } else { 256.0 * 127.0 + 127.0 }
}

/// Quantizes a row in groups: the values of a group become multiples of its scale. The row is rotated first if
/// `is_rotated`. The values of the features `precise` are repeated from the next whole group on.
struct QuantizeRow<'a, const N_BYTES: usize, const GROUP: usize> {
    x: Values<'a>,
    is_rotated: bool,
    precise: &'a [usize],
    out: &'a mut [i8],
}

impl<const N_BYTES: usize, const GROUP: usize> SimdOp for QuantizeRow<'_, N_BYTES, GROUP> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        match self.x {
            Values::F32(x) => self.quantize(s, x),
            Values::Bf16(x) => self.quantize(s, x),
            Values::Quantized(_) => unreachable!("`Rows::row` returns f32 or bf16"),
        }
    }
}

/// Groups that are quantized together.
const BATCH: usize = 16;

/// The largest number of values that are quantized together.
const MOST_VALUES: usize = BATCH * BYTE_GROUP;

impl<const N_BYTES: usize, const GROUP: usize> QuantizeRow<'_, N_BYTES, GROUP> {
    #[inline(always)]
    fn quantize<S: Simd, T: FloatScalar>(self, s: S, x: &[T]) {
        const { assert!((BATCH * GROUP).is_multiple_of(ROTATION) && GROUP <= BYTE_GROUP) };
        let n_values = BATCH * GROUP;
        let batch_size = BATCH * row_group(N_BYTES, GROUP);
        let row_size = x.len().div_ceil(GROUP) * row_group(N_BYTES, GROUP);
        let (row, repeated) = self.out.split_at_mut(row_size);
        for (x, out) in x.chunks(n_values).zip(row.chunks_mut(batch_size)) {
            if self.is_rotated {
                let mut rotated = [0f32; MOST_VALUES];
                let blocks = rotated.as_chunks_mut::<ROTATION>().0;
                for (x, block) in x.chunks_exact(ROTATION).zip(blocks) {
                    *block = rotation::rotated(s, x);
                }
                quantize_batch::<S, f32, N_BYTES, GROUP>(s, &rotated[..x.len()], out);
            } else {
                quantize_batch::<S, T, N_BYTES, GROUP>(s, x, out);
            }
        }
        let batches = self.precise.chunks(n_values).zip(repeated.chunks_mut(batch_size));
        for (precise, out) in batches {
            // Most rows have no precise features, so the buffer is not initialized for every row.
            let mut values = [T::default(); MOST_VALUES];
            for (value, &k) in values.iter_mut().zip(precise) {
                *value = x[k];
            }
            quantize_batch::<S, T, N_BYTES, GROUP>(s, &values[..precise.len()], out);
        }
    }
}

/// Quantizes at most [`BATCH`] groups in three passes, so that the CPU works on several groups at once: a group alone
/// is one long chain of a maximum over its values, two divisions, and the rounding of its values. The scales are NaN if
/// a value is not finite.
#[inline(always)]
fn quantize_batch<S: Simd, T: FloatScalar, const N_BYTES: usize, const GROUP: usize>(
    s: S,
    x: &[T],
    out: &mut [i8],
) {
    let (whole, rest) = x.as_chunks::<GROUP>();
    let mut padded = [T::default(); GROUP];
    padded[..rest.len()].copy_from_slice(rest);
    let n_groups = x.len().div_ceil(GROUP);
    let mut largest = [0f32; BATCH];
    let mut nan = s.splat(0.0);
    for (i, largest) in largest[..n_groups].iter_mut().enumerate() {
        *largest = largest_magnitude(s, whole.get(i).unwrap_or(&padded), &mut nan);
    }
    let nan = s.sum(nan);
    let most = const { largest_activation(N_BYTES) };
    let scales = largest.map(|largest| largest / most);
    let inverses = largest.map(|largest| most / largest);
    for (i, group) in out.chunks_exact_mut(row_group(N_BYTES, GROUP)).enumerate() {
        let (x, scale) = (whole.get(i).unwrap_or(&padded), scales[i]);
        let inverse = s.splat(if scale < f32::MIN_POSITIVE { 0.0 } else { inverses[i] });
        let mut sums = s.splat(0.0);
        let (values, after) = group.split_at_mut(scale_at(N_BYTES, GROUP));
        let (high_bytes, low_bytes) = values.split_at_mut((N_BYTES - 1) * GROUP);
        let mut high_bytes = high_bytes.chunks_exact_mut(S::LANES);
        for (low_bytes, x) in low_bytes.chunks_exact_mut(S::LANES).zip(x.chunks_exact(S::LANES)) {
            let rounded = s.round(s.mul(load_part(s, x), inverse));
            sums = s.add(sums, rounded);
            let mut low = rounded;
            if let Some(high_bytes) = high_bytes.next() {
                // The addition makes halves round up, so that the low byte is from −128 to 127.
                let high = s.mul_add(rounded, s.splat(1.0 / 256.0), s.splat(1.0 / 1024.0));
                let high = s.round(high);
                store_int_part(s, high_bytes, high);
                low = s.mul_add(high, s.splat(-256.0), rounded);
            }
            store_int_part(s, low_bytes, low);
        }
        // The sum of at most 64 integers below 2^15 is exact.
        let correction = (-f32::from(S::WEIGHT_OFFSET) * s.sum(sums)) as i32;
        let [scale, correction] = [(scale + nan).to_bits(), correction.cast_unsigned()];
        let (scale_bytes, correction_bytes) = after.split_at_mut(size_of::<f32>());
        scale_bytes.copy_from_slice(&scale.to_ne_bytes().map(u8::cast_signed));
        correction_bytes.copy_from_slice(&correction.to_ne_bytes().map(u8::cast_signed));
    }
}

/// Activations of `N_BYTES` signed bytes times u8 weights.
#[derive(Clone, Copy)]
struct BytesKernel<const N_BYTES: usize, const GROUP: usize>;

impl<const N_BYTES: usize, const GROUP: usize> TileKernel for BytesKernel<N_BYTES, GROUP> {
    type Left = i8;
    type Right = u8;
    type Sums<S: Simd> = S::BytesTile;
    const STEP: usize = 4;
    const USES_MATRICES: bool = N_BYTES == 1;

    #[inline(always)]
    unsafe fn fill<S: Simd>(self, s: S, tile: &Tile<i8, u8>, sums: &mut [[S::V; 2]]) {
        // SAFETY: the caller's promise.
        unsafe {
            if S::HAS_MATRICES {
                return matrix_sums(s, tile, sums);
            }
            with_rows!(<S::IntTile as TileSums<S::V>>::ROWS, sums, R => {
                bytes_sums::<S, R, N_BYTES, GROUP>(s, tile)
            });
        }
    }
}

/// The sums of a tile of activations in 8 bits, where matrix registers sum the products of each group. They are equal to
/// [`bytes_sums`], bit for bit.
///
/// # Safety
///
/// As of [`TileKernel::fill`].
#[inline(always)]
unsafe fn matrix_sums<S: Simd>(s: S, tile: &Tile<i8, u8>, sums: &mut [[S::V; 2]]) {
    const GROUP: usize = BYTE_GROUP;
    const { assert!(GROUP == MATRIX_ROW_BYTES) };
    let columns = panel_columns::<S>();
    sums.fill([s.splat(0.0); 2]);
    let mut products = [[s.zeros(); 2]; MOST_MATRIX_ROWS];
    let products = &mut products[..sums.len()];
    for group in 0..tile.n_k / GROUP {
        // SAFETY: as in `bytes_sums`.
        unsafe {
            let at = group * row_group(1, GROUP);
            let panel = tile.panel.add(group * group_size(GROUP, columns));
            s.multiply_quads(&tile.matrix_block(at, panel, group, 1), products);
            let scales = panel.add(GROUP * columns).cast::<f32>();
            let scales = [s.load(scales), s.load(scales.add(S::LANES))];
            for (row, (sums, products)) in sums.iter_mut().zip(&*products).enumerate() {
                let rows = tile.row(row).rows(s);
                let correction = rows.at(0, at + correction_at(1, GROUP)).cast::<i32>();
                let correction = s.splat_i32(correction.read_unaligned());
                let scale = rows.at(0, at + scale_at(1, GROUP)).cast::<f32>();
                let scale = s.splat(scale.read_unaligned());
                for i in 0..2 {
                    let product = s.to_f32(s.add_i32(products[i], correction));
                    sums[i] = s.mul_add(product, s.mul(scales[i], scale), sums[i]);
                }
            }
        }
    }
}

/// The sums of a tile of `R` rows.
///
/// # Safety
///
/// As of [`TileKernel::fill`].
#[inline(always)]
unsafe fn bytes_sums<S: Simd, const R: usize, const N_BYTES: usize, const GROUP: usize>(
    s: S,
    tile: &Tile<i8, u8>,
) -> [[S::V; 2]; R] {
    let columns = panel_columns::<S>();
    let mut sums = [[s.splat(0.0); 2]; R];
    for group in 0..tile.n_k / GROUP {
        let mut products = [[s.zeros(); 2]; R];
        // SAFETY: the caller's promise, for the quads of the group in every row and in the panel, and for the scales
        // and corrections after them.
        unsafe {
            let rows = tile.rows(s);
            let at = group * row_group(N_BYTES, GROUP);
            let panel = tile.panel.add(group * group_size(GROUP, columns));
            if N_BYTES == 2 {
                add_quads::<S, R, GROUP>(s, &rows, at, panel, None, &mut products);
            }
            for (row, products) in products.iter_mut().enumerate() {
                let mut correction = s.zeros();
                if const { S::WEIGHT_OFFSET != 0 } {
                    let stored = rows.at(row, at + correction_at(N_BYTES, GROUP)).cast::<i32>();
                    correction = s.splat_i32(stored.read_unaligned());
                }
                *products = match N_BYTES {
                    1 => [correction; 2],
                    _ => products.map(|high| s.add_i32(s.times_256(high), correction)),
                };
            }
            let low = at + (N_BYTES - 1) * GROUP;
            let prefetches = Some(tile.prefetches(group * GROUP / 4, block_words::<S>(1)));
            let panel = add_quads::<S, R, GROUP>(s, &rows, low, panel, prefetches, &mut products);
            let scales = panel.cast::<f32>();
            let scales = [s.load(scales), s.load(scales.add(S::LANES))];
            for (row, (sums, products)) in sums.iter_mut().zip(products).enumerate() {
                let scale = rows.at(row, at + scale_at(N_BYTES, GROUP)).cast::<f32>();
                let scale = s.splat(scale.read_unaligned());
                let scales = [s.mul(scales[0], scale), s.mul(scales[1], scale)];
                sums[0] = s.mul_add(s.to_f32(products[0]), scales[0], sums[0]);
                sums[1] = s.mul_add(s.to_f32(products[1]), scales[1], sums[1]);
            }
        }
    }
    sums
}

/// Adds the products of a group to `products`, for the bytes from `at` on of each row. Returns the end of the quads in the
/// panel.
///
/// # Safety
///
/// The rows are valid for the bytes, and `panel` for the quads of a group.
#[inline(always)]
unsafe fn add_quads<S: Simd, const R: usize, const GROUP: usize>(
    s: S,
    rows: &TileRows<i8>,
    at: usize,
    mut panel: *const u8,
    mut prefetches: Option<Prefetches>,
    products: &mut [[S::I; 2]; R],
) -> *const u8 {
    // The compiler would replace the counter of a loop over two blocks by flags, which need more instructions.
    let n_steps = if const { S::WORDS == 1 } { GROUP / 4 } else { black_box(GROUP / 4) };
    let mut words = rows.words(s, at);
    for _ in 0..n_steps / block_words::<S>(1) {
        if let Some(prefetches) = &mut prefetches {
            prefetches.prefetch(s);
        }
        // SAFETY: the caller's promise.
        unsafe {
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
                    words.advance_after_products(s, 4 * S::WORDS, products);
                }
            });
            panel = panel.add(4 * block_words::<S>(1) * panel_columns::<S>());
        }
    }
    panel
}
