//! Weights in f32 and in bf16, and kernels that multiply floating-point values and sum the products in f32.
//!
//! Panels are row-major [panels, steps of I, columns of a panel, values of a step]. A step is one value of `k` for f32,
//! and two values of `k` for bf16. The two values of a step, a pair, are side by side in each column of the panel. The
//! product of the second value of a pair is added first, because the instruction for pairs of bf16 does so. Matrix registers
//! add products of bf16 in another order: see [`MatrixOps`](crate::cpu::simd::MatrixOps).

use half::bf16;

use super::WeightFormat;
use crate::cpu::activations::Values;
use crate::cpu::aligned::Aligned;
use crate::cpu::dispatch::Kernels;
use crate::cpu::gemm::{GemmTask, MultiplyPanels};
use crate::cpu::packed::PackedWeight;
use crate::cpu::panels::{Layout, PanelGrid};
use crate::cpu::scalar::Scalar;
use crate::cpu::simd::{FloatOps, MATRIX_ROW_BYTES, Simd, TileSums};
use crate::cpu::tile::{
    RowWords, Tile, TileKernel, TileRows, block_words, each_word, multiply_word, panel_columns,
    with_rows,
};

impl PackedWeight {
    /// Packs a weight [O, I] in f32, in parallel on rayon's current pool. `read_row(o, row)` writes the `I` values of
    /// the row `o` of the weight.
    ///
    /// # Panics
    ///
    /// If O is odd with [`Layout::SwiGlu`].
    pub fn pack_f32(
        n_out: usize,
        n_in: usize,
        layout: Layout,
        read_row: impl Fn(usize, &mut [f32]) + Sync,
    ) -> Self {
        let grid = PanelGrid::new(n_out, n_in, layout, Kernels::current());
        Self::new(grid, F32Weight(pack(grid, read_row)))
    }

    /// Packs a weight [O, I] in bf16, in parallel on rayon's current pool. `read_row(o, row)` writes the `I` values of
    /// the row `o` of the weight.
    ///
    /// # Panics
    ///
    /// If O is odd with [`Layout::SwiGlu`].
    pub fn pack_bf16(
        n_out: usize,
        n_in: usize,
        layout: Layout,
        read_row: impl Fn(usize, &mut [bf16]) + Sync,
    ) -> Self {
        let grid = PanelGrid::new(n_out, n_in, layout, Kernels::current());
        Self::new(grid, Bf16Weight(pack(grid, read_row)))
    }
}

/// A weight in f32, for activations in f32.
#[derive(Debug)]
struct F32Weight(Aligned<f32>);

/// A weight in bf16, for activations in f32 or bf16.
#[derive(Debug)]
struct Bf16Weight(Aligned<bf16>);

impl WeightFormat for F32Weight {
    fn n_bytes(&self) -> usize {
        size_of_val(&self.0[..])
    }

    fn accepts_bf16(&self) -> bool {
        false
    }

    fn multiply(&self, kernels: &Kernels, task: &GemmTask<'_>) {
        let Values::F32(x) = task.x.values else { panic!("a weight in f32 needs f32 activations") };
        multiply(kernels, F32Kernel, x, &self.0, task);
    }

    fn repacked(&self, from: PanelGrid, to: PanelGrid) -> Box<dyn WeightFormat> {
        Box::new(Self(pack(to, |o, row| unpack_row(&self.0, from, o, row))))
    }
}

impl WeightFormat for Bf16Weight {
    fn n_bytes(&self) -> usize {
        size_of_val(&self.0[..])
    }

    fn multiply(&self, kernels: &Kernels, task: &GemmTask<'_>) {
        match task.x.values {
            Values::F32(x) => multiply(kernels, WidenedKernel, x, &self.0, task),
            Values::Bf16(x) => multiply(kernels, Bf16Kernel, x, &self.0, task),
            Values::Quantized(_) => panic!("a weight in bf16 needs f32 or bf16 activations"),
        }
    }

    fn repacked(&self, from: PanelGrid, to: PanelGrid) -> Box<dyn WeightFormat> {
        Box::new(Self(pack(to, |o, row| unpack_row(&self.0, from, o, row))))
    }
}

fn multiply<K: TileKernel>(
    kernels: &Kernels,
    kernel: K,
    x: &[K::Left],
    panels: &[K::Right],
    task: &GemmTask<'_>,
) {
    let panel_size = panel_size::<K::Right>(task.grid);
    kernels.run(MultiplyPanels { kernel, x, panels, panel_size, row_scales: None, task });
}

/// Values in a panel.
fn panel_size<T: Scalar>(grid: PanelGrid) -> usize {
    grid.n_in.next_multiple_of(T::DEPTH) * grid.panel_columns()
}

/// The index in a panel of value `k` of `column`.
fn index_in_panel<T: Scalar>(grid: PanelGrid, column: usize, k: usize) -> usize {
    (k / T::DEPTH * grid.panel_columns() + column) * T::DEPTH + k % T::DEPTH
}

/// Packs panels, in parallel.
fn pack<T: Scalar>(grid: PanelGrid, read_row: impl Fn(usize, &mut [T]) + Sync) -> Aligned<T> {
    let room = || vec![T::default(); grid.n_in];
    grid.fill(panel_size::<T>(grid), room, |row, o, panel, column| {
        read_row(o, row);
        for (k, &value) in row.iter().enumerate() {
            panel[index_in_panel::<T>(grid, column, k)] = value;
        }
    })
}

/// Reads the row `o` of a packed weight.
fn unpack_row<T: Scalar>(panels: &[T], grid: PanelGrid, o: usize, row: &mut [T]) {
    let (panel, column) = grid.position(o);
    let panel = &panels[panel * panel_size::<T>(grid)..];
    for (k, value) in row.iter_mut().enumerate() {
        *value = panel[index_in_panel::<T>(grid, column, k)];
    }
}

/// A kernel in which each sum is one chain of multiply-adds in f32.
trait Chain: TileKernel {
    /// Adds the products of word `WORD` of a block of words (see [`block_words`]) to the sums of each row. `words` has
    /// the words of the rows, and `block` is the beginning of the block in the panel. Returns `block`.
    ///
    /// # Safety
    ///
    /// The rows are valid for the words, and `block` for the columns up to those of the word.
    unsafe fn add_word<S: Simd, const R: usize, const WORD: usize>(
        self,
        s: S,
        words: impl Words<S>,
        block: *const Self::Right,
        sums: &mut [[S::V; 2]; R],
    ) -> *const Self::Right;

    /// Adds the product of the last value of `k`, if the number of values is not a multiple of `Right::DEPTH`.
    ///
    /// # Safety
    ///
    /// Rows are valid at `k`, and `panel` for the columns of a step.
    #[inline(always)]
    unsafe fn last<S: Simd, const R: usize>(
        self,
        _: S,
        _: &TileRows<Self::Left>,
        _: usize,
        _: *const Self::Right,
        _: &mut [[S::V; 2]; R],
    ) {
        unreachable!("steps of one value of `k` leave no remainder")
    }
}

/// Loads words of the rows of a tile.
trait Words<S: Simd>: Copy {
    /// Loads word `WORD` of a row.
    ///
    /// # Safety
    ///
    /// The row has the word and the other words that are loaded together.
    unsafe fn load<const WORD: usize>(self, s: S, row: usize) -> S::V;
}

/// Loads the words together that fit in a register.
impl<S: Simd, L> Words<S> for &RowWords<L> {
    #[inline(always)]
    unsafe fn load<const WORD: usize>(self, s: S, row: usize) -> S::V {
        // SAFETY: the caller's promise.
        unsafe { s.load_words(self.at(s, row).cast()) }
    }
}

/// The words of a step at the end of the rows, where a register of words would be beyond the end.
#[derive(Clone, Copy)]
struct LastWords<'a, L>(&'a RowWords<L>);

/// Loads one word into every lane.
impl<S: Simd, L: Copy> Words<S> for LastWords<'_, L> {
    #[inline(always)]
    unsafe fn load<const WORD: usize>(self, s: S, row: usize) -> S::V {
        // SAFETY: the caller's promise.
        s.splat(unsafe { self.0.at(s, row).cast::<f32>().add(WORD).read_unaligned() })
    }
}

/// The sums of a tile of `R` rows.
///
/// # Safety
///
/// As of [`TileKernel::fill`].
#[inline(always)]
unsafe fn chain<S: Simd, K: Chain, const R: usize>(
    s: S,
    kernel: K,
    tile: &Tile<K::Left, K::Right>,
) -> [[S::V; 2]; R] {
    let (depth, word_k) = (K::Right::DEPTH, word_k::<K>());
    let block_k = word_k * block_words::<S>(step_words::<K>());
    let columns = panel_columns::<S>();
    let Tile { mut panel, n_k, .. } = *tile;
    let mut sums = [[s.splat(0.0); 2]; R];
    // SAFETY: the caller's promise, for every `k` below n_k.
    unsafe {
        let rows = tile.rows(s);
        let mut words = rows.words(s, 0);
        let mut prefetches = tile.prefetches(0, block_k / depth);
        for _ in 0..n_k / block_k {
            prefetches.prefetch(s);
            each_word!(block_words::<S>(step_words::<K>()), WORD => {
                panel = kernel.add_word::<S, R, WORD>(s, &words, panel, &mut sums);
                if const { (WORD + 1).is_multiple_of(S::WORDS) } {
                    words.advance(s, word_k * S::WORDS, &sums);
                }
            });
            panel = panel.add(block_k * columns);
        }
        if const { S::WORDS > 1 } {
            for _ in 0..n_k % block_k / depth {
                each_word!(step_words::<K>(), WORD => {
                    let words = LastWords(&words);
                    panel = kernel.add_word::<S, R, WORD>(s, words, panel, &mut sums);
                });
                words.advance(s, depth, &sums);
                panel = panel.add(depth * columns);
            }
        }
        if n_k % depth != 0 {
            kernel.last(s, &rows, n_k - 1, panel, &mut sums);
        }
    }
    sums
}

/// Values of `k` in a word of a row.
const fn word_k<K: Chain>() -> usize {
    size_of::<f32>() / size_of::<K::Left>()
}

/// Words of a row in a step.
const fn step_words<K: Chain>() -> usize {
    K::Right::DEPTH / word_k::<K>()
}

/// Implements [`TileKernel`] for a [`Chain`].
macro_rules! chain_kernel {
    ($(#[$doc:meta])* $kernel:ident, $left:ty, $right:ty, $tile:ident) => {
        $(#[$doc])*
        #[derive(Clone, Copy)]
        pub(in crate::cpu) struct $kernel;

        impl TileKernel for $kernel {
            type Left = $left;
            type Right = $right;
            type Sums<S: Simd> = S::$tile;
            const STEP: usize = <$right>::DEPTH;

            #[inline(always)]
            unsafe fn fill<S: Simd>(
                self,
                s: S,
                tile: &Tile<$left, $right>,
                sums: &mut [[S::V; 2]],
            ) {
                // SAFETY: the caller's promise.
                with_rows!(<S::$tile as TileSums<S::V>>::ROWS, sums, R => unsafe {
                    chain::<S, Self, R>(s, self, tile)
                });
            }
        }
    };
}

chain_kernel! {
    /// f32 times f32.
    F32Kernel, f32, f32, FloatTile
}

/// f32 activations times bf16 weights, which are widened to f32 in registers.
#[derive(Clone, Copy)]
pub(in crate::cpu) struct WidenedKernel;

impl TileKernel for WidenedKernel {
    type Left = f32;
    type Right = bf16;
    type Sums<S: Simd> = S::WidenedTile;
    const STEP: usize = bf16::DEPTH;

    #[inline(always)]
    unsafe fn fill<S: Simd>(self, s: S, tile: &Tile<f32, bf16>, sums: &mut [[S::V; 2]]) {
        // SAFETY: the caller's promise.
        with_rows!(<S::WidenedTile as TileSums<S::V>>::ROWS, sums, R => unsafe {
            if const { S::WORDS == 1 } {
                widened_chain::<S, R>(s, tile)
            } else {
                chain::<S, Self, R>(s, self, tile)
            }
        });
    }
}

/// [`chain`] of [`WidenedKernel`] for instruction sets that load one word of a row at a time. The general loop is a fifth
/// slower with AVX-512.
///
/// # Safety
///
/// As of [`TileKernel::fill`].
#[inline(always)]
unsafe fn widened_chain<S: Simd, const R: usize>(s: S, tile: &Tile<f32, bf16>) -> [[S::V; 2]; R] {
    let step = 2 * panel_columns::<S>();
    let Tile { panel, n_k, .. } = *tile;
    let mut sums = [[s.splat(0.0); 2]; R];
    // SAFETY: the caller's promise, for every `k` below n_k.
    unsafe {
        let rows = tile.rows(s);
        for i in 0..n_k / 2 {
            tile.prefetch(s, i);
            let panel = panel.add(i * step);
            WidenedKernel.last(s, &rows, 2 * i, panel, &mut sums);
            // If the compiler interleaved both halves of the step, they would need more registers than the CPU has, and
            // sums would be spilled to memory. Therefore the second half depends on the last sum of the first half.
            let panel = s.after(panel, sums[R - 1][1]);
            let b = [load_pairs(s, panel, 0, 0), load_pairs(s, panel, 0, 1)];
            let b = b.map(|pairs| s.second(pairs));
            for (row, sums) in sums.iter_mut().enumerate() {
                let a = s.splat(*rows.at(row, 2 * i + 1));
                sums[0] = s.mul_add(a, b[0], sums[0]);
                sums[1] = s.mul_add(a, b[1], sums[1]);
            }
        }
        if n_k % 2 != 0 {
            WidenedKernel.last(s, &rows, n_k - 1, panel.add(n_k / 2 * step), &mut sums);
        }
    }
    sums
}

/// bf16 times bf16, summed in f32.
#[derive(Clone, Copy)]
pub(in crate::cpu) struct Bf16Kernel;

impl TileKernel for Bf16Kernel {
    type Left = bf16;
    type Right = bf16;
    type Sums<S: Simd> = S::Bf16Tile;
    const STEP: usize = bf16::DEPTH;
    const USES_MATRICES: bool = true;

    #[inline(always)]
    unsafe fn fill<S: Simd>(self, s: S, tile: &Tile<bf16, bf16>, sums: &mut [[S::V; 2]]) {
        // SAFETY: the caller's promise.
        unsafe {
            if S::HAS_MATRICES {
                return matrix_sums(s, tile, sums);
            }
            with_rows!(<S::FloatTile as TileSums<S::V>>::ROWS, sums, R => {
                chain::<S, Self, R>(s, self, tile)
            });
        }
    }
}

/// The sums of a tile with matrix registers. The pairs after the last whole step are added to the sums as by
/// [`Bf16Kernel`] without matrix registers.
///
/// # Safety
///
/// As of [`TileKernel::fill`].
#[inline(always)]
unsafe fn matrix_sums<S: Simd>(s: S, tile: &Tile<bf16, bf16>, sums: &mut [[S::V; 2]]) {
    const VALUES: usize = MATRIX_ROW_BYTES / size_of::<bf16>();
    let (columns, n_k) = (panel_columns::<S>(), tile.n_k);
    let n_steps = n_k / VALUES;
    // SAFETY: the caller's promise.
    unsafe {
        s.multiply_pairs(&tile.matrix_block(0, tile.panel, 0, n_steps), sums);
        for (row, sums) in sums.iter_mut().enumerate() {
            let rows = tile.row(row).rows(s);
            let mut sum = [*sums];
            for k in (n_steps * VALUES..n_k).step_by(2) {
                let panel = tile.panel.add(k * columns);
                if k + 1 < n_k {
                    let words = rows.words(s, k);
                    Bf16Kernel.add_word::<S, 1, 0>(s, &words, panel, &mut sum);
                } else {
                    Bf16Kernel.last(s, &rows, k, panel, &mut sum);
                }
            }
            [*sums] = sum;
        }
    }
}

impl Chain for F32Kernel {
    #[inline(always)]
    unsafe fn add_word<S: Simd, const R: usize, const WORD: usize>(
        self,
        s: S,
        words: impl Words<S>,
        mut block: *const f32,
        sums: &mut [[S::V; 2]; R],
    ) -> *const f32 {
        // SAFETY: the caller's promise.
        unsafe {
            multiply_word!(
                S,
                s,
                sums,
                after = block.after,
                b(half) = s.load(block.add((2 * WORD + half) * S::LANES)),
                a(row) = words.load::<WORD>(s, row),
                sum = s.mul_add_word::<WORD>(a, b, sum)
            );
        }
        block
    }
}

impl Chain for WidenedKernel {
    #[inline(always)]
    unsafe fn add_word<S: Simd, const R: usize, const WORD: usize>(
        self,
        s: S,
        words: impl Words<S>,
        mut block: *const bf16,
        sums: &mut [[S::V; 2]; R],
    ) -> *const bf16 {
        // SAFETY: the caller's promise.
        unsafe {
            multiply_word!(
                S,
                s,
                sums,
                after = block.after,
                b(half) = {
                    let pairs = load_pairs(s, block, WORD / 2, half);
                    if const { WORD.is_multiple_of(2) } { s.first(pairs) } else { s.second(pairs) }
                },
                a(row) = words.load::<WORD>(s, row),
                sum = s.mul_add_word::<WORD>(a, b, sum)
            );
        }
        block
    }

    #[inline(always)]
    unsafe fn last<S: Simd, const R: usize>(
        self,
        s: S,
        rows: &TileRows<f32>,
        k: usize,
        panel: *const bf16,
        sums: &mut [[S::V; 2]; R],
    ) {
        // SAFETY: the caller's promise.
        unsafe {
            let b = [load_pairs(s, panel, 0, 0), load_pairs(s, panel, 0, 1)];
            for (row, sums) in sums.iter_mut().enumerate() {
                let a = s.splat(*rows.at(row, k));
                sums[0] = s.mul_add(a, s.first(b[0]), sums[0]);
                sums[1] = s.mul_add(a, s.first(b[1]), sums[1]);
            }
        }
    }
}

impl Chain for Bf16Kernel {
    #[inline(always)]
    unsafe fn add_word<S: Simd, const R: usize, const WORD: usize>(
        self,
        s: S,
        words: impl Words<S>,
        mut block: *const bf16,
        sums: &mut [[S::V; 2]; R],
    ) -> *const bf16 {
        // SAFETY: the caller's promise.
        unsafe {
            multiply_word!(
                S,
                s,
                sums,
                after = block.after,
                b(half) = load_pairs(s, block, WORD, half),
                a(row) = words.load::<WORD>(s, row),
                sum = s.dot_bf16_word::<WORD>(a, b, sum)
            );
        }
        block
    }

    #[inline(always)]
    unsafe fn last<S: Simd, const R: usize>(
        self,
        s: S,
        rows: &TileRows<bf16>,
        k: usize,
        panel: *const bf16,
        sums: &mut [[S::V; 2]; R],
    ) {
        // SAFETY: the caller's promise.
        unsafe {
            let b = [load_pairs(s, panel, 0, 0), load_pairs(s, panel, 0, 1)];
            for (row, sums) in sums.iter_mut().enumerate() {
                // A pair whose second value is zero.
                let a = s.splat(f32::from_bits((*rows.at(row, k)).to_bits().into()));
                sums[0] = s.dot_bf16(a, b[0], sums[0]);
                sums[1] = s.dot_bf16(a, b[1], sums[1]);
            }
        }
    }
}

/// Loads a half of the columns of a step of a panel of bf16 pairs: a register with a pair in each lane. `block` is step
/// 0.
///
/// # Safety
///
/// `block` is valid for the columns of the steps up to `step`.
#[inline(always)]
unsafe fn load_pairs<S: FloatOps>(s: S, block: *const bf16, step: usize, half: usize) -> S::V {
    // SAFETY: the caller's promise: twice LANES pairs for each step.
    unsafe { s.load(block.cast::<f32>().add((2 * step + half) * S::LANES)) }
}
