//! Tiles of a matrix multiplication.
//!
//! A multiplication `left · right` sums over the index `k`: the input features of a linear layer, or in attention the
//! dimensions of a head or the keys. The right operand is packed into *panels*. A panel has as many columns as two
//! vector registers have lanes. Its values are stored in *steps* of one or a few values of `k`, and the values of a
//! step are contiguous for all columns. A *tile* is a few rows of the left operand times one panel:
//!
//! ```text
//! for each step of k:
//!     b0, b1 = panel[k]            two registers of columns
//!     for each row:
//!         a = row[k]               the same in every lane
//!         sums[row] += a · (b0, b1)
//! ```
//!
//! Every element of the result is one chain of multiply-adds from the first step to the last. So the result for a row
//! depends neither on the number of rows nor on the tile to which the row belongs.

use super::scalar::Scalar;
use super::simd::{MatrixBlock, Simd, TileSums};

/// Computes tiles: the types of the operands, and the instructions that multiply them.
pub(super) trait TileKernel: Copy {
    /// A value of the left operand.
    type Left: Scalar;
    /// A value of the right operand, in panels.
    type Right: Scalar;
    /// The sums of the largest tile.
    type Sums<S: Simd>: TileSums<S::V>;
    /// Values of `k` in a step. Each step prefetches one cache line.
    const STEP: usize;
    /// As [`SimdOp::USES_MATRICES`](super::simd::SimdOp::USES_MATRICES).
    const USES_MATRICES: bool = false;

    /// Writes the sums of a tile, which has as many rows as `sums` and at most `Self::Sums::<S>::ROWS`.
    ///
    /// # Safety
    ///
    /// Each row of the tile is valid for reading `n_k` values, and the panel for `n_k` values of each column, rounded
    /// up to whole steps.
    unsafe fn fill<S: Simd>(
        self,
        s: S,
        tile: &Tile<Self::Left, Self::Right>,
        sums: &mut [[S::V; 2]],
    );
}

/// Evaluates an expression with the number of rows as a constant, so that the sums stay in registers:
/// `with_rows!(most, sums, R => call)` evaluates `call`, which returns `[[S::V; 2]; R]`, and copies its value to
/// `sums`. Code for more than `most` rows is not generated.
macro_rules! with_rows {
    ($most:expr, $sums:expr, $rows:ident => $call:expr) => {
        with_rows!(@each $most, $sums, $rows, $call, 1 2 3 4 5 6 7 8 9 10 11 12)
    };
    (@each $most:expr, $sums:expr, $rows:ident, $call:expr, $($n:literal)*) => {{
        const { assert!($most <= $crate::cpu::tile::MOST_ROWS) };
        match $sums.len() {
            $($n if const { $n <= $most } => {
                const $rows: usize = $n;
                $sums.copy_from_slice(&$call);
            })*
            n => unreachable!("a tile of {n} rows"),
        }
    }};
}
pub(super) use with_rows;

/// Columns of a panel.
pub(super) const fn panel_columns<S: Simd>() -> usize {
    2 * S::LANES
}

/// Receives each finished row of a multiplication with a panel.
///
/// This is a trait and not a closure because the body of a closure is compiled without the target features of the
/// function around it, unless the closure happens to be inlined.
pub(super) trait RowSink<S: Simd> {
    /// Takes the two registers of row `row`. Implement it `#[inline(always)]`.
    fn take(&mut self, s: S, row: usize, sums: [S::V; 2]);
}

/// The operands of a multiplication with one panel.
pub(super) struct Operands<'a, L, R> {
    /// The first row.
    pub(super) rows: *const L,
    /// Values between the beginnings of two rows.
    pub(super) stride: usize,
    pub(super) n_rows: usize,
    pub(super) panel: &'a [R],
    pub(super) n_k: usize,
}

/// Memory to prefetch, in bytes. The addresses need not be valid.
pub(super) struct Prefetch {
    pub(super) start: *const u8,
    pub(super) size: usize,
}

impl Prefetch {
    /// The memory after a slice, of the same size as the slice.
    pub(super) fn after<T>(slice: &[T]) -> Self {
        Self { start: slice.as_ptr_range().end.cast(), size: size_of_val(slice) }
    }
}

/// Multiplies all rows with a panel, tile by tile, and prefetches `next` at the same time.
///
/// # Safety
///
/// Each row is valid for reading `n_k` values, and the panel has `n_k` values in each column, rounded up to whole
/// steps.
#[inline(always)]
pub(super) unsafe fn multiply_panel<S: Simd, K: TileKernel>(
    s: S,
    kernel: K,
    operands: &Operands<'_, K::Left, K::Right>,
    next: Prefetch,
    mut sink: impl RowSink<S>,
) {
    let Operands { rows, stride, n_rows, panel, n_k } = *operands;
    let most_rows = K::Sums::<S>::ROWS;
    let n_tiles = n_rows.div_ceil(most_rows).max(1);
    let steps = n_k.div_ceil(K::STEP).max(1);
    let ahead_step = next.size.div_ceil(n_tiles * steps);
    let mut ahead = next.start;
    // Sums are passed through memory, so that the code of the sink is generated once and not for each number of rows.
    let mut sums = K::Sums::<S>::filled(s.splat(0.0));
    let mut row = 0;
    while row < n_rows {
        let n = tile_rows(n_rows - row, most_rows);
        let first = rows.wrapping_add(row * stride);
        let tile = Tile { first, stride, panel: panel.as_ptr(), n_k, ahead, ahead_step };
        // SAFETY: the caller's promise, for the rows from `row` on.
        unsafe { kernel.fill(s, &tile, &mut sums.as_mut()[..n]) };
        for (i, sums) in sums.as_mut()[..n].iter().enumerate() {
            sink.take(s, row + i, *sums);
        }
        ahead = ahead.wrapping_add(ahead_step * steps);
        row += n;
    }
}

/// Rows of the next tile when `n_rows` are left. The rows are divided evenly over the tiles, because the CPU would wait
/// for the latency of multiply-adds in a tile of few rows.
#[inline(always)]
fn tile_rows(n_rows: usize, most: usize) -> usize {
    n_rows.div_ceil(n_rows.div_ceil(most))
}

/// A few rows and a panel.
#[derive(Clone, Copy)]
pub(super) struct Tile<L, R> {
    /// The first row.
    first: *const L,
    /// Values between the beginnings of two rows.
    stride: usize,
    pub(super) panel: *const R,
    pub(super) n_k: usize,
    /// The first address to prefetch, and the bytes from the address for one step to the address for the next.
    ahead: *const u8,
    ahead_step: usize,
}

impl<L, R> Tile<L, R> {
    /// The addresses of the rows.
    ///
    /// # Safety
    ///
    /// Only rows of the tile are accessed through the result.
    #[inline(always)]
    pub(super) unsafe fn rows(&self) -> TileRows<L> {
        let (first, stride) = (self.first, self.stride);
        let every_third = std::array::from_fn(|i| first.wrapping_add(3 * i * stride));
        TileRows { every_third, stride }
    }

    /// The row `row` alone.
    #[inline(always)]
    pub(super) fn row(&self, row: usize) -> Self {
        let &Self { first, stride, panel, n_k, ahead, ahead_step } = self;
        Self { first: first.wrapping_add(row * stride), stride, panel, n_k, ahead, ahead_step }
    }

    /// The values of the rows from `at` on, and a part of the panel, as the operands of `n_steps` steps of matrix
    /// registers. `first_step` is the number of these steps before the first.
    #[inline(always)]
    pub(super) fn matrix_block(
        &self,
        at: usize,
        panel: *const R,
        first_step: usize,
        n_steps: usize,
    ) -> MatrixBlock<L, R> {
        let (rows, ahead_step) = (self.first.wrapping_add(at), self.ahead_step);
        let ahead = self.ahead.wrapping_add(16 * first_step * ahead_step);
        MatrixBlock { rows, stride: self.stride, panel, n_steps, ahead, ahead_step }
    }

    /// Prefetches the cache line of step `step`.
    #[inline(always)]
    pub(super) fn prefetch<S: Simd>(&self, s: S, step: usize) {
        s.prefetch(self.ahead.wrapping_add(step * self.ahead_step));
    }
}

/// The addresses of the rows of a tile, of which there are at most [`MOST_ROWS`].
#[derive(Clone, Copy)]
pub(super) struct TileRows<T> {
    /// The address of every third row. CPUs address the two rows after it with the stride, without a register for each
    /// row.
    every_third: [*const T; MOST_ROWS.div_ceil(3)],
    stride: usize,
}

/// The largest number of rows of a tile whose sums are in registers.
pub(super) const MOST_ROWS: usize = 12;

impl<T> TileRows<T> {
    /// The address of value `k` of row `row`.
    ///
    /// # Safety
    ///
    /// Row `row` is valid at `k`.
    #[inline(always)]
    pub(super) unsafe fn at(&self, row: usize, k: usize) -> *const T {
        // SAFETY: the caller's promise.
        unsafe { self.every_third[row / 3].add(row % 3 * self.stride).add(k) }
    }
}
