//! A tile of a matrix product, kept in registers.
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
//! A step is one `k` for f32, and for bf16 a pair of them, which lie side by side in each column of
//! the panel. Every element is one chain of multiply-adds from the first step to the last (of a bf16
//! pair, the second comes first). A row's result therefore depends on neither the number of rows nor
//! the tile it is in.

use std::hint::black_box;
use std::sync::atomic::{Ordering, compiler_fence};

use half::bf16;

use super::simd::Simd;

/// A way to multiply: the types of the operands, and the instructions.
pub(super) trait Product: Copy {
    type S: Simd;
    type Left: Element;
    type Right: Element;

    fn simd(self) -> Self::S;

    /// Adds a step of `k`, `Right::DEPTH` of them, to the sums of each row.
    ///
    /// # Safety
    ///
    /// The rows are valid at `k` and the rest of its step, `panel` for the columns of a step.
    unsafe fn step<const R: usize>(
        self,
        rows: &Strided<Self::Left>,
        k: usize,
        panel: *const Self::Right,
        sums: &mut [[V<Self>; 2]; R],
    );

    /// Adds the last `k` where the number of them is no multiple of `Right::DEPTH`.
    ///
    /// # Safety
    ///
    /// As [`step`](Self::step), but the rows end at `k`.
    unsafe fn last<const R: usize>(
        self,
        rows: &Strided<Self::Left>,
        k: usize,
        panel: *const Self::Right,
        sums: &mut [[V<Self>; 2]; R],
    );
}

/// A register of a product.
pub(super) type V<P> = <<P as Product>::S as Simd>::V;

/// A type of values in memory.
///
/// # Safety
///
/// Every pattern of bits is a value, zeros are the value zero, and a value is at most as large, and as
/// strictly aligned, as f32.
pub(super) unsafe trait Element: Copy + Default + Send + Sync {
    /// Values of `k` side by side in a column of a panel.
    const DEPTH: usize;
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

// SAFETY: f32 is all of that.
unsafe impl Element for f32 {
    const DEPTH: usize = 1;

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

// SAFETY: bf16 is 16 bits, all of whose patterns are values.
unsafe impl Element for bf16 {
    const DEPTH: usize = 2;

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

/// Rows at equal distances.
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

/// f32 times f32.
#[derive(Clone, Copy)]
pub(super) struct F32<S>(pub(super) S);

impl<S: Simd> Product for F32<S> {
    type S = S;
    type Left = f32;
    type Right = f32;

    #[inline(always)]
    fn simd(self) -> S {
        self.0
    }

    #[inline(always)]
    unsafe fn step<const R: usize>(
        self,
        rows: &Strided<f32>,
        k: usize,
        panel: *const f32,
        sums: &mut [[S::V; 2]; R],
    ) {
        let s = self.0;
        // SAFETY: the caller's promise.
        unsafe {
            let b = [s.load(panel), s.load(panel.add(S::LANES))];
            for (row, sums) in sums.iter_mut().enumerate() {
                let a = s.splat(*rows.at(row, k));
                sums[0] = s.mul_add(a, b[0], sums[0]);
                sums[1] = s.mul_add(a, b[1], sums[1]);
            }
        }
    }

    #[inline(always)]
    unsafe fn last<const R: usize>(
        self,
        _: &Strided<f32>,
        _: usize,
        _: *const f32,
        _: &mut [[S::V; 2]; R],
    ) {
    }
}

/// f32 times bf16, which is widened in registers.
#[derive(Clone, Copy)]
pub(super) struct Widened<S>(pub(super) S);

impl<S: Simd> Product for Widened<S> {
    type S = S;
    type Left = f32;
    type Right = bf16;

    #[inline(always)]
    fn simd(self) -> S {
        self.0
    }

    #[inline(always)]
    unsafe fn step<const R: usize>(
        self,
        rows: &Strided<f32>,
        k: usize,
        panel: *const bf16,
        sums: &mut [[S::V; 2]; R],
    ) {
        let s = self.0;
        // SAFETY: the caller's promise.
        unsafe {
            self.last(rows, k, panel, sums);
            // Mixed with each other, the halves of a step would need more registers than there are,
            // and sums would go through memory: what comes next is not read before.
            compiler_fence(Ordering::SeqCst);
            let b = pairs(s, panel).map(|pairs| s.second(pairs));
            for (row, sums) in sums.iter_mut().enumerate() {
                let a = s.splat(*rows.at(row, k + 1));
                sums[0] = s.mul_add(a, b[0], sums[0]);
                sums[1] = s.mul_add(a, b[1], sums[1]);
            }
        }
    }

    #[inline(always)]
    unsafe fn last<const R: usize>(
        self,
        rows: &Strided<f32>,
        k: usize,
        panel: *const bf16,
        sums: &mut [[S::V; 2]; R],
    ) {
        let s = self.0;
        // SAFETY: the caller's promise.
        unsafe {
            let [b0, b1] = pairs(s, panel);
            let b = [s.first(b0), s.first(b1)];
            for (row, sums) in sums.iter_mut().enumerate() {
                let a = s.splat(*rows.at(row, k));
                sums[0] = s.mul_add(a, b[0], sums[0]);
                sums[1] = s.mul_add(a, b[1], sums[1]);
            }
        }
    }
}

/// bf16 times bf16, summed in f32.
#[derive(Clone, Copy)]
pub(super) struct Bf16<S>(pub(super) S);

impl<S: Simd> Product for Bf16<S> {
    type S = S;
    type Left = bf16;
    type Right = bf16;

    #[inline(always)]
    fn simd(self) -> S {
        self.0
    }

    #[inline(always)]
    unsafe fn step<const R: usize>(
        self,
        rows: &Strided<bf16>,
        k: usize,
        panel: *const bf16,
        sums: &mut [[S::V; 2]; R],
    ) {
        let s = self.0;
        // SAFETY: the caller's promise.
        unsafe {
            let b = pairs(s, panel);
            for (row, sums) in sums.iter_mut().enumerate() {
                let a = s.splat(rows.at(row, k).cast::<f32>().read_unaligned());
                sums[0] = s.dot_pairs(a, b[0], sums[0]);
                sums[1] = s.dot_pairs(a, b[1], sums[1]);
            }
        }
    }

    #[inline(always)]
    unsafe fn last<const R: usize>(
        self,
        rows: &Strided<bf16>,
        k: usize,
        panel: *const bf16,
        sums: &mut [[S::V; 2]; R],
    ) {
        let s = self.0;
        // SAFETY: the caller's promise.
        unsafe {
            let b = pairs(s, panel);
            for (row, sums) in sums.iter_mut().enumerate() {
                // A pair whose second value is zero.
                let a = s.splat(f32::from_bits((*rows.at(row, k)).to_bits().into()));
                sums[0] = s.dot_pairs(a, b[0], sums[0]);
                sums[1] = s.dot_pairs(a, b[1], sums[1]);
            }
        }
    }
}

/// A step of a panel of bf16 pairs: two registers, a pair in each lane.
///
/// # Safety
///
/// `panel` is valid for the columns of a step.
#[inline(always)]
unsafe fn pairs<S: Simd>(s: S, panel: *const bf16) -> [S::V; 2] {
    // SAFETY: the caller's promise: LANES pairs, twice.
    unsafe { [s.load(panel.cast()), s.load(panel.cast::<f32>().add(S::LANES))] }
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

/// The operands of a tile.
pub(super) struct Operands<L, R> {
    /// The first row, and how far apart rows are.
    pub(super) rows: *const L,
    pub(super) stride: usize,
    pub(super) panel: *const R,
    pub(super) n_k: usize,
    /// What will be needed after this tile: each step fetches the line there and moves on by so many
    /// bytes.
    pub(super) ahead: *const u8,
    pub(super) ahead_step: usize,
}

/// The product of `n_rows` rows, at most `S::ROWS`, with a panel.
///
/// # Safety
///
/// Each row is valid for reading `n_k` values and `panel` for `n_k` of its columns, rounded up to
/// whole steps.
#[inline(always)]
pub(super) unsafe fn tile<P: Product>(
    p: P,
    n_rows: usize,
    operands: &Operands<P::Left, P::Right>,
    mut finish: impl Finish<P::S>,
) {
    let s = p.simd();
    const { assert!(P::S::ROWS <= MAX_ROWS) };
    // The epilogue is code for one row, not for each row of each height of tile.
    let mut sums = [[s.splat(0.0); 2]; MAX_ROWS];
    /// Calls `rows` for the number of rows, and is compiled for no more than a tile can have.
    macro_rules! of_rows {
        ($($n:literal)*) => {
            match n_rows {
                $($n if const { $n <= P::S::ROWS } => {
                    // SAFETY: the caller's promise, for as many rows as there are.
                    unsafe { rows::<P, $n>(p, operands, &mut sums) }
                })*
                _ => unreachable!("a tile of {n_rows} rows"),
            }
        };
    }
    of_rows!(1 2 3 4 5 6 7 8 9 10 11 12);
    for (row, sums) in sums[..n_rows].iter().enumerate() {
        finish.finish(s, row, *sums);
    }
}

/// Computes, and writes, the first `R` rows of `out`.
///
/// # Safety
///
/// As [`tile`], with `R` rows.
#[inline(always)]
unsafe fn rows<P: Product, const R: usize>(
    p: P,
    operands: &Operands<P::Left, P::Right>,
    out: &mut [[V<P>; 2]; MAX_ROWS],
) {
    let s = p.simd();
    let depth = P::Right::DEPTH;
    let step = depth * panel_columns::<P::S>();
    let Operands { n_k, panel, .. } = *operands;
    let mut sums = [[s.splat(0.0); 2]; R];
    // SAFETY: the caller's promise: every `k` below n_k, of every row, and of the panel.
    unsafe {
        let rows = Strided::new(operands.rows, operands.stride);
        for i in 0..n_k / depth {
            s.prefetch(operands.ahead.wrapping_add(i * operands.ahead_step));
            p.step(&rows, i * depth, panel.add(i * step), &mut sums);
        }
        if n_k % depth != 0 {
            p.last(&rows, n_k - 1, panel.add(n_k / depth * step), &mut sums);
        }
    }
    out[..R].copy_from_slice(&sums);
}

/// Operations of a processor that does nothing but a product's arithmetic: those of a tile of
/// registers, `n` times each. Returns a value that depends on all of them.
#[inline(always)]
pub(super) fn multiply_adds<S: Simd>(s: S, n: usize, pairs: bool) -> f32 {
    // Values that the compiler does not know, and another one in each register, so that it can
    // neither compute the result beforehand nor merge the registers.
    let start = black_box([1.0, 1.1, 1.2, 1.3, 1.4, 1.5, 1.6, 1.7, 1.8, 1.9, 2.0, 2.1]);
    let mut sums = [s.splat(0.0); 12];
    for (sum, start) in sums.iter_mut().zip(start) {
        *sum = s.splat(start);
    }
    let (a, b) = (s.splat(black_box(0.999)), s.splat(black_box(1e-3)));
    for _ in 0..n {
        for sum in &mut sums {
            *sum = if pairs { s.dot_pairs(a, b, *sum) } else { s.mul_add(*sum, a, b) };
        }
    }
    let mut total = s.splat(0.0);
    for sum in sums {
        total = s.add(total, sum);
    }
    s.sum(total)
}
