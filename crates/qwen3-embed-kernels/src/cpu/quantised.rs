//! Activations in 16 bits.
//!
//! A weight in 8 bits multiplies rows of i16, each with a scale in f32. Sixteen bits are enough for a
//! row with outliers: beside a value 5,000 times the others, those still have six levels each way.

use rayon::prelude::*;

use super::activations::{Rows, Values};
use super::aligned::Aligned;
use super::packed::{PackedWeight, Panels};
use super::product::GROUP;
use super::simd::Simd;
use super::vector::{load_part, store_i16_part};

/// Rows of activations in 16 bits, kept from call to call so that nothing is allocated anew.
#[derive(Debug, Default)]
pub struct Quantised {
    values: Aligned<i16>,
    scales: Vec<f32>,
}

/// The largest magnitude of an activation in 16 bits.
const LARGEST: f32 = i16::MAX as f32;

/// Values between one row and the next, so that the rows of a tile are spread over the cache.
const GAP: usize = 32;

/// Rows that are worth a task of their own.
const MIN_ROWS: usize = 8;

impl Quantised {
    /// Brings rows into 16 bits as `weight`, which is in 8 bits, multiplies them, in parallel on rayon's
    /// current pool. A row with a value that is not finite gets a scale that is NaN.
    ///
    /// # Shapes
    ///
    /// `x` is [T, I] in f32, and so is the result, but for I: it has what this weight needs.
    ///
    /// # Panics
    ///
    /// If `x` is not, or the weight is not in 8 bits; `qwen3_embed_kernels::ops` checks before it calls.
    pub fn quantise(&mut self, weight: &PackedWeight, x: Rows<'_>) -> Rows<'_> {
        let (Panels::Int8 { precise, .. }, Values::F32(values)) = (&weight.panels, x.values) else {
            panic!("f32 activations for a weight in 8 bits");
        };
        assert_eq!(x.n_columns, weight.n_in(), "x is [T, I]");
        let [n_k, _] = weight.panel_size();
        let stride = n_k + GAP;
        self.values.reserve(x.n_rows * stride);
        self.scales.resize(self.scales.len().max(x.n_rows), 0.0);
        let rows = self.values[..x.n_rows * stride].par_chunks_exact_mut(stride);
        let rows = rows.zip(&mut self.scales[..x.n_rows]).enumerate().with_min_len(MIN_ROWS);
        rows.for_each(|(row, (out, scale))| {
            let x = &values[row * x.stride..][..x.n_columns];
            // SAFETY: the table's instructions are there, as for every table.
            *scale = unsafe { (weight.kernels.quantise)(x, precise, &mut out[..n_k]) };
        });
        let values = Values::Int16 { values: &self.values, scales: &self.scales };
        Rows::new(values, [x.n_rows, n_k], stride)
    }
}

/// Writes a row as multiples of its scale, which is returned. Behind the row, from the next whole group
/// on, come the values at `precise` once more; the rest of the groups is zero.
#[inline(always)]
pub(super) fn quantise<S: Simd>(s: S, x: &[f32], precise: &[usize], out: &mut [i16]) -> f32 {
    let (mut largest, mut smallest) = (s.splat(0.0), s.splat(0.0));
    // Zero times what is not finite is NaN.
    let mut nan = s.splat(0.0);
    for part in x.chunks(S::LANES) {
        let part = load_part(s, part);
        largest = s.max(largest, part);
        smallest = s.min(smallest, part);
        nan = s.mul_add(part, s.splat(0.0), nan);
    }
    let largest = s.largest(s.max(largest, s.sub(s.splat(0.0), smallest)));
    let scale = largest / LARGEST;
    let inverse = if scale < f32::MIN_POSITIVE { 0.0 } else { LARGEST / largest };
    let (row, behind) = out.split_at_mut(x.len().next_multiple_of(GROUP));
    let (row, beyond) = row.split_at_mut(x.len());
    beyond.fill(0);
    behind.fill(0);
    for (out, x) in row.chunks_mut(S::LANES).zip(x.chunks(S::LANES)) {
        store_i16_part(s, out, s.mul(load_part(s, x), s.splat(inverse)));
    }
    for (out, &k) in behind.iter_mut().zip(precise) {
        *out = row[k];
    }
    scale + s.sum(nan)
}
