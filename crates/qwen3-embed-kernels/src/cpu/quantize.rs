//! The steps of quantizing activations that several weight formats have in common.
//!
//! Activations are rounded to multiples of a scale. Sixteen bits with one scale for each row are enough for a row with
//! outliers: next to a value that is 5,000 times as large as the others, the others still have six levels in each
//! direction. Eight bits need a scale for each small group of values, and groups without outliers.

use rayon::prelude::*;

use super::aligned::Aligned;
use super::scalar::{FloatScalar, IntScalar};
use super::simd::Simd;
use super::vector::{load_part, store_int_part};

/// Unused values between the end of a row and the beginning of the next row. Without them, the rows of a tile would
/// often be in the same set of the CPU cache and would evict each other.
pub(super) const GAP: usize = 32;

/// The least number of rows in a rayon task.
const MIN_ROWS: usize = 8;

/// The first `row_size` values of `n_rows` rows, which begin `row_size + GAP` values apart.
pub(super) fn rows_of<T: IntScalar>(
    values: &mut Aligned<T>,
    n_rows: usize,
    row_size: usize,
) -> impl IndexedParallelIterator<Item = &mut [T]> {
    let stride = row_size + GAP;
    values.reserve(n_rows * stride);
    let rows = values[..n_rows * stride].par_chunks_exact_mut(stride);
    rows.map(move |row| &mut row[..row_size]).with_min_len(MIN_ROWS)
}

/// Writes values as integer multiples of a scale, and returns the scale. The largest magnitude becomes
/// [`IntScalar::LARGEST`]. The scale is NaN if a value is not finite.
#[inline(always)]
pub(super) fn multiples<S: Simd, T: FloatScalar, I: IntScalar>(
    s: S,
    x: &[T],
    out: &mut [I],
) -> f32 {
    let mut nan = s.splat(0.0);
    let largest = largest_magnitude(s, x, &mut nan);
    let scale = largest / I::LARGEST;
    let inverse = if scale < f32::MIN_POSITIVE { 0.0 } else { I::LARGEST / largest };
    for (out, x) in out.chunks_mut(S::LANES).zip(x.chunks(S::LANES)) {
        store_int_part(s, out, s.mul(load_part(s, x), s.splat(inverse)));
    }
    scale + s.sum(nan)
}

/// The largest magnitude of some values. Makes lanes of `nan` NaN if a value is not finite.
#[inline(always)]
pub(super) fn largest_magnitude<S: Simd, T: FloatScalar>(s: S, x: &[T], nan: &mut S::V) -> f32 {
    let (mut largest, mut smallest) = (s.splat(0.0), s.splat(0.0));
    for part in x.chunks(S::LANES) {
        let part = load_part(s, part);
        largest = s.max(largest, part);
        smallest = s.min(smallest, part);
        // Zero times a value that is not finite is NaN.
        *nan = s.mul_add(part, s.splat(0.0), *nan);
    }
    s.largest(s.max(largest, s.sub(s.splat(0.0), smallest)))
}
