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
//! On CPUs that multiply with one lane of a register, such as ARM, `a` is a lane of a register that has the values of
//! four steps: see [`multiply_word`].
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
    #[cfg_attr(not(target_arch = "x86_64"), expect(dead_code, reason = "only x86 has such sets"))]
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

/// Evaluates an expression for each word of a block: `each_word!(n, WORD => body)`, with the constant `WORD` from 0 to
/// `n - 1`. `n` is at most 8. See [`block_words`] for words and blocks.
macro_rules! each_word {
    ($n:expr, $word:ident => $body:expr) => {
        each_word!(@each $n, $word, $body, 0 1 2 3 4 5 6 7)
    };
    (@each $n:expr, $word:ident, $body:expr, $($i:literal)*) => {
        $(
            if const { $i < $n } {
                const $word: usize = $i;
                $body
            }
        )*
    };
}
pub(super) use each_word;

/// Words of each row whose code is generated together, for a step of `step_words` words. A *word* is four bytes: an
/// f32, a pair of 16-bit values, or a quad of bytes. Sets that load one word at a time have a loop over steps. Sets that
/// load several words at a time have a loop over two loads of each row, so that few instructions are left for the loop
/// itself. In debug builds, it is a loop over one load, because the checks of these builds make the code so large that
/// compilation would take minutes.
pub(super) const fn block_words<S: Simd>(step_words: usize) -> usize {
    match S::WORDS {
        1 => step_words,
        words if cfg!(debug_assertions) => words,
        words => 2 * words,
    }
}

/// Adds the products of a word of each row to the sums, which are an array of two registers for each row:
///
/// ```text
/// multiply_word!(S, s, sums, after = s.after(panel),
///     b(half) = the columns of a half of the panel,
///     a(row) = the values of a row,
///     sum = sum + a · b)
/// ```
///
/// With several words in a register, both halves of the panel are multiplied one after the other, because all rows have
/// a register for their words, and only two registers of the CPU are left for columns. The columns of a half are loaded
/// from a pointer that depends on the sums of the other half (see [`FloatOps::after`]), so that the compiler does not
/// load them earlier.
///
/// [`FloatOps::after`]: super::simd::FloatOps::after
macro_rules! multiply_word {
    ($set:ty, $s:ident, $sums:ident, after = $panel:ident.$after:ident,
        $b:ident($half:ident) = $load:expr, $a:ident($row:ident) = $left:expr, $sum:ident = $product:expr) => {
        if const { <$set>::WORDS == 1 } {
            let columns = [{ let $half = 0; $load }, { let $half = 1; $load }];
            for ($row, sums) in $sums.iter_mut().enumerate() {
                let $a = $left;
                sums[0] = { let ($b, $sum) = (columns[0], sums[0]); $product };
                sums[1] = { let ($b, $sum) = (columns[1], sums[1]); $product };
            }
        } else {
            multiply_word!(@half 0, $s, $sums, $panel, $after, $b, $half, $load, $a, $row, $left, $sum, $product);
            multiply_word!(@half 1, $s, $sums, $panel, $after, $b, $half, $load, $a, $row, $left, $sum, $product);
        }
    };
    (@half $n:literal, $s:ident, $sums:ident, $panel:ident, $after:ident, $b:ident, $half:ident,
        $load:expr, $a:ident, $row:ident, $left:expr, $sum:ident, $product:expr) => {
        let $b = { let $half = $n; $load };
        for ($row, sums) in $sums.iter_mut().enumerate() {
            let $a = $left;
            sums[$n] = { let $sum = sums[$n]; $product };
            $panel = $s.$after($panel, sums[$n]);
        }
    };
}
pub(super) use multiply_word;

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
    pub(super) unsafe fn rows<S: Simd>(&self, s: S) -> TileRows<L> {
        let (first, stride) = (self.first, self.stride);
        let mut anchors = [first; MOST_ROWS.div_ceil(APART)];
        for (i, anchor) in anchors.iter_mut().enumerate() {
            *anchor = s.opaque(first.wrapping_add(APART * i * stride));
        }
        TileRows { anchors, stride }
    }

    /// Prefetches a cache line every `n_steps` steps, from step `step` on.
    #[inline(always)]
    pub(super) fn prefetches(&self, step: usize, n_steps: usize) -> Prefetches {
        let next = self.ahead.wrapping_add(step * self.ahead_step);
        Prefetches { next, distance: n_steps * self.ahead_step }
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

/// Addresses to prefetch. An address that is increased needs fewer instructions than an address that is computed from
/// the number of the step.
pub(super) struct Prefetches {
    next: *const u8,
    distance: usize,
}

impl Prefetches {
    /// Prefetches the next cache line.
    #[inline(always)]
    pub(super) fn prefetch<S: Simd>(&mut self, s: S) {
        s.prefetch(self.next);
        self.next = self.next.wrapping_add(self.distance);
    }
}

/// The addresses of the rows of a tile, of which there are at most [`MOST_ROWS`].
#[derive(Clone, Copy)]
pub(super) struct TileRows<T> {
    /// The address of every [`APART`]th row.
    anchors: [*const T; MOST_ROWS.div_ceil(APART)],
    stride: usize,
}

/// Rows of a tile for each row whose address is kept. x86 CPUs address the two rows after it with the stride, without a
/// register for each row. ARM CPUs do not, and have registers for all rows.
const APART: usize = if cfg!(target_arch = "x86_64") { 3 } else { 1 };

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
        unsafe { self.anchors[row / APART].add(row % APART * self.stride).add(k) }
    }

    /// The words of the rows from value `k` on.
    #[inline(always)]
    pub(super) fn words<S: Simd>(self, s: S, k: usize) -> RowWords<T> {
        if const { S::WORDS == 1 } {
            return RowWords { rows: self, k };
        }
        let mut rows = self;
        for anchor in &mut rows.anchors {
            *anchor = s.opaque(anchor.wrapping_add(k));
        }
        RowWords { rows, k: 0 }
    }
}

/// The next words of the rows of a tile, which [`FloatOps::load_words`] loads together.
///
/// [`FloatOps::load_words`]: super::simd::FloatOps::load_words
#[derive(Clone, Copy)]
pub(super) struct RowWords<T> {
    /// With one word in a register, the rows. With several words, the addresses of the next words, which are in a
    /// register for each row: loads that increment an address need no instruction for it.
    rows: TileRows<T>,
    k: usize,
}

impl<T> RowWords<T> {
    /// The address of the next words of row `row`.
    ///
    /// # Safety
    ///
    /// The row is valid there.
    #[inline(always)]
    pub(super) unsafe fn at<S: Simd>(&self, _: S, row: usize) -> *const T {
        if const { S::WORDS == 1 } {
            // SAFETY: the caller's promise.
            return unsafe { self.rows.at(row, self.k) };
        }
        self.rows.anchors[row]
    }

    /// Goes on by `n` values of each row. The new addresses depend on the sums of the rows (see [`FloatOps::after`]), so
    /// that the next words are not loaded while the registers for words are in use.
    ///
    /// [`FloatOps::after`]: super::simd::FloatOps::after
    #[inline(always)]
    pub(super) fn advance<S: Simd, const R: usize>(
        &mut self,
        s: S,
        n: usize,
        sums: &[[S::V; 2]; R],
    ) {
        if const { S::WORDS == 1 } {
            self.k += n;
            return;
        }
        for (anchor, sums) in self.rows.anchors.iter_mut().zip(sums) {
            *anchor = s.after(anchor.wrapping_add(n), sums[1]);
        }
    }

    /// [`advance`](Self::advance) after sums of integers.
    #[inline(always)]
    pub(super) fn advance_after_products<S: Simd, const R: usize>(
        &mut self,
        s: S,
        n: usize,
        sums: &[[S::I; 2]; R],
    ) {
        if const { S::WORDS == 1 } {
            self.k += n;
            return;
        }
        for (anchor, sums) in self.rows.anchors.iter_mut().zip(sums) {
            *anchor = s.after_products(anchor.wrapping_add(n), sums[1]);
        }
    }
}
