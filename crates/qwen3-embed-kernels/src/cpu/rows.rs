//! Operations on one row at a time.

use super::activations::RowsMut;
use super::simd::{Simd, SimdOp};
use super::vector::{load_part, store_part};

/// `out[row] = x / sqrt(mean(x²) + eps) · weight`.
pub(super) struct RmsNorm<'a> {
    x: &'a [f32],
    weight: &'a [f32],
    eps: f32,
    out: &'a RowsMut<'a>,
    row: usize,
}

impl<'a> RmsNorm<'a> {
    /// The normalization of `x`, to be written to row `row` of `out`.
    ///
    /// # Safety
    ///
    /// `x` and `weight` have as many values as `out` has columns, `out` has the row, and no other task accesses the
    /// row.
    pub(super) unsafe fn new(
        x: &'a [f32],
        weight: &'a [f32],
        eps: f32,
        out: &'a RowsMut<'a>,
        row: usize,
    ) -> Self {
        Self { x, weight, eps, out, row }
    }
}

impl SimdOp for RmsNorm<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let Self { x, weight, eps, out, row } = self;
        let scale = s.splat(inverse_rms(s, x, eps));
        let parts = x.chunks(S::LANES).zip(weight.chunks(S::LANES));
        for (column, (x, weight)) in (0..x.len()).step_by(S::LANES).zip(parts) {
            let normed = s.mul(s.mul(load_part(s, x), scale), load_part(s, weight));
            // SAFETY: the caller of `new` promised that the row exists and that no other task accesses it.
            unsafe { out.store(s, row, column, out.n_columns, normed) };
        }
    }
}

/// Per-head RMSNorm and RoPE of the heads of one token, in place.
pub(super) struct QkNormRope<'a> {
    pub(super) heads: &'a mut [f32],
    pub(super) weight: &'a [f32],
    pub(super) eps: f32,
    /// Cosines for the position of the token.
    pub(super) cos: &'a [f32],
    /// Sines for the position of the token.
    pub(super) sin: &'a [f32],
}

impl SimdOp for QkNormRope<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let Self { heads, weight, eps, cos, sin } = self;
        let half = weight.len() / 2;
        let (weight_low, weight_high) = weight.split_at(half);
        for head in heads.chunks_exact_mut(weight.len()) {
            let scale = s.splat(inverse_rms(s, head, eps));
            let (low, high) = head.split_at_mut(half);
            for start in (0..half).step_by(S::LANES) {
                let part = start..(start + S::LANES).min(half);
                let (cos, sin) =
                    (load_part(s, &cos[part.clone()]), load_part(s, &sin[part.clone()]));
                let a = s.mul(load_part(s, &low[part.clone()]), scale);
                let b = s.mul(load_part(s, &high[part.clone()]), scale);
                let a = s.mul(a, load_part(s, &weight_low[part.clone()]));
                let b = s.mul(b, load_part(s, &weight_high[part.clone()]));
                let rotated = s.sub(s.mul(a, cos), s.mul(b, sin));
                store_part(s, &mut low[part.clone()], rotated);
                store_part(s, &mut high[part], s.mul_add(b, cos, s.mul(a, sin)));
            }
        }
    }
}

/// `1 / sqrt(mean(x²) + eps)`.
#[inline(always)]
fn inverse_rms<S: Simd>(s: S, x: &[f32], eps: f32) -> f32 {
    // Four independent sums, so that the CPU does not wait for the latency of each addition. They stay in registers
    // only if all indices are constants.
    let mut squares = [s.splat(0.0); 4];
    let mut blocks = x.chunks_exact(4 * S::LANES);
    for block in &mut blocks {
        for (i, squares) in squares.iter_mut().enumerate() {
            let part = load_part(s, &block[i * S::LANES..][..S::LANES]);
            *squares = s.mul_add(part, part, *squares);
        }
    }
    let rest = blocks.remainder();
    for (i, squares) in squares.iter_mut().enumerate() {
        if let Some(part) = rest.get(i * S::LANES..) {
            let part = load_part(s, part);
            *squares = s.mul_add(part, part, *squares);
        }
    }
    let squares = s.add(s.add(squares[0], squares[1]), s.add(squares[2], squares[3]));
    1.0 / (s.sum(squares) / x.len() as f32 + eps).sqrt()
}
