//! Tiles of a matrix product, kept in registers.
//!
//! The right operand lies in *panels*: the columns of a panel, two registers of them, side by side
//! for each step of `k`. A tile is a few rows of the left operand times one panel:
//!
//! ```text
//! for each step of k:
//!     b0, b1 = panel[k]            two registers of columns
//!     for each row:
//!         a = row[k]               the same in every lane
//!         sums[row] += a · (b0, b1)
//! ```
//!
//! Every element is one chain of multiply-adds from the first step to the last. A row's result
//! therefore depends on neither the number of rows nor the tile it is in.

use half::bf16;

use super::simd::Simd;

mod blocks;
mod bytes;
mod float;
mod int8;
mod peak;

pub use blocks::{BLOCK, Bits};
pub(super) use blocks::{
    BLOCK_ROW, Blocks, block_row_size, finish_block, parts_of, unpack, unpacked_panel_size,
};
pub use bytes::BYTE_GROUP;
pub(super) use bytes::{Bytes, ROW_GROUP, byte_row_size, finish_group};
pub(super) use float::{Bf16, F32, Widened};
pub(super) use int8::{GROUP, Int8, Weight8, group_size};
pub(super) use peak::multiply_adds;

/// A way to multiply: the types of the operands, and the instructions.
pub(super) trait Product: Copy {
    type S: Simd;
    type Left: Element;
    type Right: Element;
    /// Values of `k` in a step, which fetches a line of what comes behind the panel.
    const STEP: usize;
    /// The most rows of a tile.
    const ROWS: usize = Self::S::ROWS;

    fn simd(self) -> Self::S;

    /// The sums of a tile of `R` rows.
    ///
    /// # Safety
    ///
    /// Each row is valid for reading `n_k` values and the panel for `n_k` of its columns, rounded up
    /// to whole steps.
    unsafe fn sums<const R: usize>(self, tile: &Tile<Self::Left, Self::Right>)
    -> [[V<Self>; 2]; R];
}

/// A register of a product.
pub(super) type V<P> = <<P as Product>::S as Simd>::V;

/// A type of values in memory.
///
/// # Safety
///
/// Every pattern of bits is a value, and zeros are the value zero.
pub(super) unsafe trait Element: Copy + Default + Send + Sync {
    /// Values of `k` side by side in a column of a panel.
    const DEPTH: usize;
}

// SAFETY: f32 is all of that.
unsafe impl Element for f32 {
    const DEPTH: usize = 1;
}

// SAFETY: bf16 is 16 bits, all of whose patterns are values.
unsafe impl Element for bf16 {
    const DEPTH: usize = 2;
}

// SAFETY: i8 is all of that.
unsafe impl Element for i8 {
    const DEPTH: usize = 2;
}

// SAFETY: u8 is all of that.
unsafe impl Element for u8 {
    const DEPTH: usize = 4;
}

// SAFETY: i16 is all of that.
unsafe impl Element for i16 {
    const DEPTH: usize = 2;
}

/// A type of values that registers of f32 are read from and written as.
///
/// # Safety
///
/// A value is at most as large, and as strictly aligned, as f32.
pub(super) unsafe trait Float: Element {
    /// # Safety
    ///
    /// `p` is valid for reading `S::LANES` values.
    unsafe fn load<S: Simd>(s: S, p: *const Self) -> S::V;
    /// # Safety
    ///
    /// `p` is valid for writing `S::LANES` values.
    unsafe fn store<S: Simd>(s: S, p: *mut Self, x: S::V);
    /// Writes a step of `S::LANES` columns: the values of `first` for the first `k` of the step, and of
    /// `second` for the second, if a step has two.
    ///
    /// # Safety
    ///
    /// `p` is valid for writing `S::LANES · DEPTH` values.
    unsafe fn store_step<S: Simd>(s: S, p: *mut Self, first: S::V, second: S::V);
}

// SAFETY: f32 is.
unsafe impl Float for f32 {
    #[inline(always)]
    unsafe fn load<S: Simd>(s: S, p: *const Self) -> S::V {
        // SAFETY: the caller's promise.
        unsafe { s.load(p) }
    }

    #[inline(always)]
    unsafe fn store<S: Simd>(s: S, p: *mut Self, x: S::V) {
        // SAFETY: the caller's promise.
        unsafe { s.store(p, x) }
    }

    #[inline(always)]
    unsafe fn store_step<S: Simd>(s: S, p: *mut Self, first: S::V, _: S::V) {
        // SAFETY: the caller's promise.
        unsafe { s.store(p, first) }
    }
}

// SAFETY: bf16 is half as large.
unsafe impl Float for bf16 {
    #[inline(always)]
    unsafe fn load<S: Simd>(s: S, p: *const Self) -> S::V {
        // SAFETY: the caller's promise.
        unsafe { s.load_bf16(p) }
    }

    #[inline(always)]
    unsafe fn store<S: Simd>(s: S, p: *mut Self, x: S::V) {
        // SAFETY: the caller's promise.
        unsafe { s.store_bf16(p, x) }
    }

    #[inline(always)]
    unsafe fn store_step<S: Simd>(s: S, p: *mut Self, first: S::V, second: S::V) {
        // SAFETY: the caller's promise: LANES pairs.
        unsafe { s.store(p.cast(), s.pair(first, second)) }
    }
}

/// A type of whole numbers that activations are brought into.
///
/// # Safety
///
/// As of [`Float`].
pub(super) unsafe trait Whole: Element {
    /// The largest magnitude that is used.
    const LARGEST: f32;
    /// Writes the nearest whole numbers, none of which is beyond [`LARGEST`](Self::LARGEST).
    ///
    /// # Safety
    ///
    /// `p` is valid for writing `S::LANES` values.
    unsafe fn store<S: Simd>(s: S, p: *mut Self, x: S::V);
}

// SAFETY: i16 is half as large.
unsafe impl Whole for i16 {
    const LARGEST: f32 = i16::MAX as f32;

    #[inline(always)]
    unsafe fn store<S: Simd>(s: S, p: *mut Self, x: S::V) {
        // SAFETY: the caller's promise.
        unsafe { s.store_i16(p, x) }
    }
}

// SAFETY: i8 is a quarter as large.
unsafe impl Whole for i8 {
    const LARGEST: f32 = i8::MAX as f32;

    #[inline(always)]
    unsafe fn store<S: Simd>(s: S, p: *mut Self, x: S::V) {
        // SAFETY: the caller's promise.
        unsafe { s.store_i8(p, x) }
    }
}

/// Columns of a panel.
pub(super) const fn panel_columns<S: Simd>() -> usize {
    2 * S::LANES
}

/// Receives each finished row of a product with a panel.
///
/// This is a trait and not a closure because a closure's body is compiled without the features of
/// the function around it, unless it happens to be inlined.
pub(super) trait Finish<S: Simd> {
    /// Takes the two registers of row `row`. Implement it `#[inline(always)]`.
    fn finish(&mut self, s: S, row: usize, sums: [S::V; 2]);
}

/// The operands of a product with one panel.
pub(super) struct Operands<'a, L, R> {
    /// The first row, how far apart rows are, and how many there are.
    pub(super) rows: *const L,
    pub(super) stride: usize,
    pub(super) n_rows: usize,
    pub(super) panel: &'a [R],
    pub(super) n_k: usize,
}

/// The product of all rows with a panel, tile by tile. Each tile fetches its share of what lies
/// behind the panel: most often the next one.
///
/// # Safety
///
/// Each row is valid for reading `n_k` values, and the panel has `n_k` of its columns, rounded up to
/// whole steps.
#[inline(always)]
pub(super) unsafe fn tiles<P: Product>(
    p: P,
    operands: &Operands<'_, P::Left, P::Right>,
    finish: impl Finish<P::S>,
) {
    let panel = operands.panel;
    let behind = Behind { start: panel.as_ptr_range().end.cast(), size: size_of_val(panel) };
    // SAFETY: the caller's promise.
    unsafe { tiles_before(p, operands, behind, finish) }
}

/// What is needed after a product: so many bytes.
pub(super) struct Behind {
    pub(super) start: *const u8,
    pub(super) size: usize,
}

/// [`tiles`], which fetch something else.
///
/// # Safety
///
/// As for [`tiles`].
#[inline(always)]
pub(super) unsafe fn tiles_before<P: Product>(
    p: P,
    operands: &Operands<'_, P::Left, P::Right>,
    behind: Behind,
    mut finish: impl Finish<P::S>,
) {
    let Operands { rows, stride, n_rows, panel, n_k } = *operands;
    let s = p.simd();
    let n_tiles = n_rows.div_ceil(P::ROWS).max(1);
    let steps = n_k.div_ceil(P::STEP).max(1);
    let ahead_step = behind.size.div_ceil(n_tiles * steps);
    let mut ahead = behind.start;
    // The epilogue is code for one row, not for each row of each height of tile.
    let mut sums = [[s.splat(0.0); 2]; MAX_ROWS];
    let mut row = 0;
    while row < n_rows {
        let n = tile_rows(n_rows - row, P::ROWS);
        let first = rows.wrapping_add(row * stride);
        // SAFETY: the caller's promise, for the rows from `row` on.
        unsafe {
            let panel = panel.as_ptr();
            let tile = Tile { first, stride, panel, n_k, ahead, ahead_step };
            tile_sums(p, n, &tile, &mut sums);
        }
        for (i, sums) in sums[..n].iter().enumerate() {
            finish.finish(s, row + i, *sums);
        }
        ahead = ahead.wrapping_add(ahead_step * steps);
        row += n;
    }
}

/// Rows of the next tile when `n_rows` are left: as even a share as whole tiles allow, because a
/// tile of few rows keeps the processor waiting for its sums.
#[inline(always)]
fn tile_rows(n_rows: usize, most: usize) -> usize {
    n_rows.div_ceil(n_rows.div_ceil(most))
}

/// A few rows and a panel.
#[derive(Clone, Copy)]
pub(super) struct Tile<L, R> {
    /// The first row, and how far apart rows are.
    first: *const L,
    stride: usize,
    panel: *const R,
    n_k: usize,
    /// What will be needed after this tile: each step fetches the line there and moves on by so many
    /// bytes.
    ahead: *const u8,
    ahead_step: usize,
}

impl<L, R> Tile<L, R> {
    /// # Safety
    ///
    /// As many rows as are used are valid.
    #[inline(always)]
    unsafe fn rows(&self) -> Strided<L> {
        // SAFETY: the caller's promise.
        unsafe { Strided::new(self.first, self.stride) }
    }

    /// Fetches what step `step` is to fetch.
    #[inline(always)]
    fn fetch_ahead<S: Simd>(&self, s: S, step: usize) {
        s.prefetch(self.ahead.wrapping_add(step * self.ahead_step));
    }
}

/// The sums of a tile of `n_rows` rows, at most `P::ROWS`.
///
/// # Safety
///
/// As [`Product::sums`], with `n_rows` rows.
#[inline(always)]
unsafe fn tile_sums<P: Product>(
    p: P,
    n_rows: usize,
    tile: &Tile<P::Left, P::Right>,
    out: &mut [[V<P>; 2]; MAX_ROWS],
) {
    const { assert!(P::ROWS <= MAX_ROWS) };
    /// Computes the sums for the number of rows, and is compiled for no more than a tile can have.
    macro_rules! of_rows {
        ($($n:literal)*) => {
            match n_rows {
                $($n if const { $n <= P::ROWS } => {
                    // SAFETY: the caller's promise, for as many rows as there are.
                    let sums = unsafe { p.sums::<$n>(tile) };
                    out[..$n].copy_from_slice(&sums);
                })*
                _ => unreachable!("a tile of {n_rows} rows"),
            }
        };
    }
    of_rows!(1 2 3 4 5 6 7 8 9 10 11 12);
}

/// Rows at equal distances.
#[derive(Clone, Copy)]
pub(super) struct Strided<T> {
    /// Every third row: with them and the distance, processors address all rows without a register
    /// for each.
    every_third: [*const T; MAX_ROWS.div_ceil(3)],
    stride: usize,
}

impl<T> Strided<T> {
    /// # Safety
    ///
    /// As many rows as are used are valid.
    #[inline(always)]
    unsafe fn new(first: *const T, stride: usize) -> Self {
        Self { every_third: std::array::from_fn(|i| first.wrapping_add(3 * i * stride)), stride }
    }

    /// # Safety
    ///
    /// Row `row` is valid at `k`.
    #[inline(always)]
    unsafe fn at(&self, row: usize, k: usize) -> *const T {
        // SAFETY: the caller's promise.
        unsafe { self.every_third[row / 3].add(row % 3 * self.stride).add(k) }
    }
}

/// Rows of the largest tile of any kernel set.
const MAX_ROWS: usize = 12;
