//! Products of floating-point values, summed in f32.
//!
//! A step is one `k` for f32, and for bf16 a pair of them, which lie side by side in each column of
//! the panel. Of a pair, the second is added first, as the processor's instruction does it.

use half::bf16;

use super::{Element, Product, Strided, Tile, V, panel_columns};
use crate::cpu::simd::Simd;

/// A product whose sums are one chain of multiply-adds in f32.
trait Chain: Product {
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
    #[inline(always)]
    unsafe fn last<const R: usize>(
        self,
        _: &Strided<Self::Left>,
        _: usize,
        _: *const Self::Right,
        _: &mut [[V<Self>; 2]; R],
    ) {
        unreachable!("a step of one k leaves none over")
    }
}

/// The sums of a tile.
///
/// # Safety
///
/// As [`Product::sums`].
#[inline(always)]
unsafe fn chain<P: Chain, const R: usize>(p: P, tile: &Tile<P::Left, P::Right>) -> [[V<P>; 2]; R] {
    let s = p.simd();
    let depth = P::Right::DEPTH;
    let step = depth * panel_columns::<P::S>();
    let Tile { panel, n_k, .. } = *tile;
    let mut sums = [[s.splat(0.0); 2]; R];
    // SAFETY: the caller's promise: every `k` below n_k, of every row, and of the panel.
    unsafe {
        let rows = tile.rows();
        for i in 0..n_k / depth {
            tile.fetch_ahead(s, i);
            p.step(&rows, i * depth, panel.add(i * step), &mut sums);
        }
        if n_k % depth != 0 {
            p.last(&rows, n_k - 1, panel.add(n_k / depth * step), &mut sums);
        }
    }
    sums
}

/// Adds value `k` of each row times two registers of columns.
///
/// # Safety
///
/// The rows are valid at `k`.
#[inline(always)]
unsafe fn add_products<S: Simd, const R: usize>(
    s: S,
    rows: &Strided<f32>,
    k: usize,
    b: [S::V; 2],
    sums: &mut [[S::V; 2]; R],
) {
    for (row, sums) in sums.iter_mut().enumerate() {
        // SAFETY: the caller's promise.
        let a = s.splat(unsafe { *rows.at(row, k) });
        sums[0] = s.mul_add(a, b[0], sums[0]);
        sums[1] = s.mul_add(a, b[1], sums[1]);
    }
}

/// f32 times f32.
#[derive(Clone, Copy)]
pub(in crate::cpu) struct F32<S>(pub(in crate::cpu) S);

impl<S: Simd> Product for F32<S> {
    type S = S;
    type Left = f32;
    type Right = f32;
    const STEP: usize = f32::DEPTH;

    #[inline(always)]
    fn simd(self) -> S {
        self.0
    }

    #[inline(always)]
    unsafe fn sums<const R: usize>(self, tile: &Tile<f32, f32>) -> [[S::V; 2]; R] {
        // SAFETY: the caller's promise.
        unsafe { chain(self, tile) }
    }
}

impl<S: Simd> Chain for F32<S> {
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
            add_products(s, rows, k, b, sums);
        }
    }
}

/// f32 times bf16, which is widened in registers.
#[derive(Clone, Copy)]
pub(in crate::cpu) struct Widened<S>(pub(in crate::cpu) S);

impl<S: Simd> Product for Widened<S> {
    type S = S;
    type Left = f32;
    type Right = bf16;
    const STEP: usize = bf16::DEPTH;

    #[inline(always)]
    fn simd(self) -> S {
        self.0
    }

    #[inline(always)]
    unsafe fn sums<const R: usize>(self, tile: &Tile<f32, bf16>) -> [[S::V; 2]; R] {
        // SAFETY: the caller's promise.
        unsafe { chain(self, tile) }
    }
}

impl<S: Simd> Chain for Widened<S> {
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
            // and sums would go through memory: the second comes after the last sums of the first.
            let panel = s.after(panel, sums[R - 1][1]);
            let b = pairs(s, panel).map(|pairs| s.second(pairs));
            add_products(s, rows, k + 1, b, sums);
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
            add_products(s, rows, k, [s.first(b0), s.first(b1)], sums);
        }
    }
}

/// bf16 times bf16, summed in f32.
#[derive(Clone, Copy)]
pub(in crate::cpu) struct Bf16<S>(pub(in crate::cpu) S);

impl<S: Simd> Product for Bf16<S> {
    type S = S;
    type Left = bf16;
    type Right = bf16;
    const STEP: usize = bf16::DEPTH;

    #[inline(always)]
    fn simd(self) -> S {
        self.0
    }

    #[inline(always)]
    unsafe fn sums<const R: usize>(self, tile: &Tile<bf16, bf16>) -> [[S::V; 2]; R] {
        // SAFETY: the caller's promise.
        unsafe { chain(self, tile) }
    }
}

impl<S: Simd> Chain for Bf16<S> {
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
