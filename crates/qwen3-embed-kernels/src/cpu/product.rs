//! A tile of a matrix product, kept in registers.
//!
//! The right operand lies in *panels*: the columns of a panel, two registers of them, side by side
//! for each `k`. A tile is a few rows of the left operand times one panel:
//!
//! ```text
//! for k in 0..K:
//!     b0, b1 = panel[k]            two registers of columns
//!     for each row:
//!         a = row[k]               one value in every lane
//!         sums[row] += a · (b0, b1)
//! ```
//!
//! Every element is one chain of multiply-adds from the first `k` to the last. A row's result
//! therefore depends on neither the number of rows nor the tile it is in.

use std::hint::black_box;

use half::bf16;

use super::simd::Simd;

/// A type that panels are stored in.
pub(super) trait Stored: Copy + Send + Sync {
    /// # Safety
    ///
    /// `p` is valid for reading `S::LANES` values.
    unsafe fn load<S: Simd>(s: S, p: *const Self) -> S::V;
}

impl Stored for f32 {
    #[inline(always)]
    unsafe fn load<S: Simd>(s: S, p: *const Self) -> S::V {
        // SAFETY: the caller's promise.
        unsafe { s.load(p) }
    }
}

impl Stored for bf16 {
    #[inline(always)]
    unsafe fn load<S: Simd>(s: S, p: *const Self) -> S::V {
        // SAFETY: the caller's promise.
        unsafe { s.load_bf16(p) }
    }
}

/// Columns of a panel.
pub(super) const fn panel_columns<S: Simd>() -> usize {
    2 * S::LANES
}

/// Rows of the next tile when `n_rows` are left: as even a share as whole tiles allow, because a
/// tile of few rows keeps the processor waiting for its sums.
#[inline(always)]
pub(super) fn tile_rows<S: Simd>(n_rows: usize) -> usize {
    n_rows.div_ceil(n_rows.div_ceil(S::ROWS))
}

/// Receives each finished row of a tile.
///
/// This is a trait and not a closure because a closure's body is compiled without the features of
/// the function around it, unless it happens to be inlined.
pub(super) trait Finish<S: Simd> {
    /// Takes the two registers of the tile's row `row`. Implement it `#[inline(always)]`.
    fn finish(&mut self, s: S, row: usize, sums: [S::V; 2]);
}

/// The product of `n_rows` rows, at most `S::ROWS`, with a panel of `n_k` rows.
///
/// # Safety
///
/// `row(i)` is valid for reading `n_k` values for every `i` below `n_rows`, and `panel` for
/// `n_k · panel_columns::<S>()`.
#[inline(always)]
pub(super) unsafe fn tile<S: Simd, B: Stored>(
    s: S,
    n_rows: usize,
    row: impl Fn(usize) -> *const f32,
    panel: *const B,
    n_k: usize,
    mut finish: impl Finish<S>,
) {
    // SAFETY: the caller's promise, for as many rows as there are.
    unsafe {
        match n_rows {
            1 => rows::<S, B, 1>(s, &row, panel, n_k, &mut finish),
            2 => rows::<S, B, 2>(s, &row, panel, n_k, &mut finish),
            3 => rows::<S, B, 3>(s, &row, panel, n_k, &mut finish),
            4 => rows::<S, B, 4>(s, &row, panel, n_k, &mut finish),
            5 => rows::<S, B, 5>(s, &row, panel, n_k, &mut finish),
            6 => rows::<S, B, 6>(s, &row, panel, n_k, &mut finish),
            _ => unreachable!("a tile of {n_rows} rows"),
        }
    }
}

/// # Safety
///
/// As [`tile`], with `R` rows.
#[inline(always)]
unsafe fn rows<S: Simd, B: Stored, const R: usize>(
    s: S,
    row: &impl Fn(usize) -> *const f32,
    panel: *const B,
    n_k: usize,
    finish: &mut impl Finish<S>,
) {
    let pointers: [*const f32; R] = std::array::from_fn(row);
    let mut sums = [[s.splat(0.0); 2]; R];
    for k in 0..n_k {
        // SAFETY: k < n_k, and the caller vouches for n_k rows of the panel and values of each row.
        unsafe {
            let at = panel.add(k * panel_columns::<S>());
            let b = [B::load(s, at), B::load(s, at.add(S::LANES))];
            for r in 0..R {
                let a = s.splat(*pointers[r].add(k));
                sums[r][0] = s.mul_add(a, b[0], sums[r][0]);
                sums[r][1] = s.mul_add(a, b[1], sums[r][1]);
            }
        }
    }
    for (r, sums) in sums.into_iter().enumerate() {
        finish.finish(s, r, sums);
    }
}

/// Multiply-adds on as many registers as a tile has sums, `n` times each: nothing but the processor's
/// arithmetic. Returns a value that depends on all of them.
#[inline(always)]
pub(super) fn multiply_adds<S: Simd>(s: S, n: usize) -> f32 {
    // Values that the compiler does not know, and another one in each register, so that it can
    // neither compute the result beforehand nor merge the registers.
    let start = black_box([[1.0; 2], [1.1; 2], [1.2; 2], [1.3; 2], [1.4; 2], [1.5; 2]]);
    let mut sums = [[s.splat(0.0); 2]; 6];
    for (sums, start) in sums.iter_mut().zip(start) {
        *sums = [s.splat(start[0]), s.splat(-start[1])];
    }
    let (a, b) = (s.splat(black_box(0.999)), s.splat(black_box(1e-3)));
    for _ in 0..n {
        for row in &mut sums {
            row[0] = s.mul_add(row[0], a, b);
            row[1] = s.mul_add(row[1], a, b);
        }
    }
    let mut total = s.splat(0.0);
    for row in sums {
        total = s.add(total, s.add(row[0], row[1]));
    }
    s.sum(total)
}
