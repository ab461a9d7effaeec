//! Activations in 16 bits or in 8.
//!
//! A weight in 8 bits multiplies rows of i16, each with a scale in f32, or rows of bytes, in groups with a
//! scale each. Sixteen bits are enough for a row with outliers: beside a value 5,000 times the others,
//! those still have six levels each way. Eight are not.

use rayon::prelude::*;

use super::activations::{Rows, Values};
use super::aligned::Aligned;
use super::packed::{PackedWeight, Panels};
use super::product::{
    BLOCK, BLOCK_ROW, BYTE_GROUP, Float, GROUP, ROW_GROUP, Whole, block_row_size, byte_row_size,
    finish_block, finish_group,
};
use super::rotation::{ROTATION, rotated};
use super::simd::Simd;
use super::vector::{load_part, store_part, store_whole_part};

/// Rows of activations in 16 bits or in 8, kept from call to call so that nothing is allocated anew.
#[derive(Debug, Default)]
pub struct Quantised {
    values: Aligned<i16>,
    scales: Vec<f32>,
    bytes: Aligned<i8>,
}

/// Values between one row and the next, so that the rows of a tile are spread over the cache.
const GAP: usize = 32;

/// Rows that are worth a task of their own.
const MIN_ROWS: usize = 8;

impl Quantised {
    /// Brings rows into the bits that `weight`, which is in 8 or fewer, multiplies, in parallel on rayon's current
    /// pool. What shares a scale with a value that is not finite gets a scale that is NaN.
    ///
    /// # Shapes
    ///
    /// `x` is [T, I] in f32 or bf16, and so is the result, but for I: it has what this weight needs.
    ///
    /// # Panics
    ///
    /// If `x` is not, or the weight is in more bits; `qwen3_embed_kernels::ops` checks before it calls.
    pub fn quantise(&mut self, weight: &PackedWeight, x: Rows<'_>) -> Rows<'_> {
        assert_eq!(x.n_columns, weight.n_in(), "x is [T, I]");
        let ([n_k, _], kernels) = (weight.panel_size(), weight.kernels);
        let row = |row| x.row(row).expect("activations in f32 or bf16");
        let (values, stride) = match &weight.panels {
            Panels::Int8 { precise, .. } => {
                let stride = n_k + GAP;
                self.scales.resize(self.scales.len().max(x.n_rows), 0.0);
                let scales = &mut self.scales[..x.n_rows];
                let rows = rows_of(&mut self.values, x.n_rows, stride).zip(scales).enumerate();
                rows.with_min_len(MIN_ROWS).for_each(|(i, (out, scale))| {
                    // SAFETY: the table's instructions are there, as for every table.
                    *scale = unsafe { (kernels.quantise_int8)(row(i), precise, &mut out[..n_k]) };
                });
                (Values::Int16 { values: &self.values, scales: &self.scales }, stride)
            }
            &Panels::Bytes { is_rotated, .. } => {
                let row_size = byte_row_size(n_k);
                let stride = row_size + GAP;
                let rows = rows_of(&mut self.bytes, x.n_rows, stride).enumerate();
                rows.with_min_len(MIN_ROWS).for_each(|(i, out)| {
                    // SAFETY: as above.
                    unsafe { (kernels.quantise_bytes)(row(i), is_rotated, &mut out[..row_size]) };
                });
                (Values::Bytes(&self.bytes), stride)
            }
            Panels::Blocks(panels) => {
                let (row_size, columns) = (block_row_size(n_k), panels.columns.as_deref());
                let stride = row_size + GAP;
                let rows = rows_of(&mut self.bytes, x.n_rows, stride).enumerate();
                rows.with_min_len(MIN_ROWS).for_each(|(i, out)| {
                    // SAFETY: as above.
                    unsafe { (kernels.quantise_blocks)(row(i), columns, &mut out[..row_size]) };
                });
                (Values::Blocks(&self.bytes), stride)
            }
            Panels::F32(_) | Panels::Bf16(_) => panic!("a weight in 8 bits or fewer"),
        };
        Rows::new(values, [x.n_rows, n_k], stride)
    }
}

/// Room for rows that begin `stride` values apart.
fn rows_of<T: Whole>(
    values: &mut Aligned<T>,
    n_rows: usize,
    stride: usize,
) -> rayon::slice::ChunksExactMut<'_, T> {
    values.reserve(n_rows * stride);
    values[..n_rows * stride].par_chunks_exact_mut(stride)
}

/// Writes a row as multiples of its scale, which is returned. Behind the row, from the next whole group
/// on, come the values at `precise` once more; the rest of the groups is zero.
#[inline(always)]
pub(super) fn quantise_int8<S: Simd>(
    s: S,
    x: Values<'_>,
    precise: &[usize],
    out: &mut [i16],
) -> f32 {
    let n_in = x.len();
    let (row, behind) = out.split_at_mut(n_in.next_multiple_of(GROUP));
    let (row, beyond) = row.split_at_mut(n_in);
    beyond.fill(0);
    behind.fill(0);
    let scale = match x {
        Values::F32(x) => multiples(s, x, row),
        Values::Bf16(x) => multiples(s, x, row),
        _ => unreachable!("a row of f32 or bf16"),
    };
    for (out, &k) in behind.iter_mut().zip(precise) {
        *out = row[k];
    }
    scale
}

/// Writes a row in groups, each as multiples of the scale behind it, of the row itself or of what it is rotated.
#[inline(always)]
pub(super) fn quantise_bytes<S: Simd>(s: S, x: Values<'_>, is_rotated: bool, out: &mut [i8]) {
    match (x, is_rotated) {
        (Values::F32(x), false) => byte_groups(s, x, out),
        (Values::Bf16(x), false) => byte_groups(s, x, out),
        (Values::F32(x), true) => rotated_byte_groups(s, x, out),
        (Values::Bf16(x), true) => rotated_byte_groups(s, x, out),
        _ => unreachable!("a row of f32 or bf16"),
    }
}

/// [`byte_groups`] of a row that is whole blocks of [`ROTATION`], rotated.
#[inline(always)]
fn rotated_byte_groups<S: Simd, T: Float>(s: S, x: &[T], out: &mut [i8]) {
    let blocks = out.chunks_exact_mut(byte_row_size(ROTATION));
    for (x, out) in x.chunks_exact(ROTATION).zip(blocks) {
        byte_groups(s, &rotated(s, x), out);
    }
}

/// [`quantise_bytes`] of a type.
#[inline(always)]
fn byte_groups<S: Simd, T: Float>(s: S, x: &[T], out: &mut [i8]) {
    for (x, group) in x.chunks(BYTE_GROUP).zip(out.as_chunks_mut::<ROW_GROUP>().0) {
        let (values, beyond) = group.split_at_mut(x.len());
        beyond.fill(0);
        let scale = multiples(s, x, values);
        finish_group(group, scale);
    }
}

/// Writes a row, times `columns` if there are any, in blocks, each as multiples of the scale behind it. The row
/// is whole blocks.
#[inline(always)]
pub(super) fn quantise_blocks<S: Simd>(
    s: S,
    x: Values<'_>,
    columns: Option<&[f32]>,
    out: &mut [i8],
) {
    match x {
        Values::F32(x) => blocks(s, x, columns, out),
        Values::Bf16(x) => blocks(s, x, columns, out),
        _ => unreachable!("a row of f32 or bf16"),
    }
}

/// [`quantise_blocks`] of a type.
#[inline(always)]
fn blocks<S: Simd, T: Float>(s: S, x: &[T], columns: Option<&[f32]>, out: &mut [i8]) {
    let blocks = x.chunks_exact(BLOCK).zip(out.as_chunks_mut::<BLOCK_ROW>().0);
    for (i, (x, block)) in blocks.enumerate() {
        let scale = match columns {
            None => multiples(s, x, &mut block[..BLOCK]),
            Some(columns) => {
                let columns = &columns[i * BLOCK..][..BLOCK];
                let mut products = [0f32; BLOCK];
                for at in (0..BLOCK).step_by(S::LANES) {
                    let product = s.mul(load_part(s, &x[at..]), load_part(s, &columns[at..]));
                    store_part(s, &mut products[at..], product);
                }
                multiples(s, &products, &mut block[..BLOCK])
            }
        };
        finish_block(block, scale);
    }
}

/// Writes values as multiples of a scale, which is returned: so large that the largest magnitude becomes
/// the largest that `W` has, and NaN if a value is not finite.
#[inline(always)]
fn multiples<S: Simd, T: Float, W: Whole>(s: S, x: &[T], out: &mut [W]) -> f32 {
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
    let scale = largest / W::LARGEST;
    let inverse = if scale < f32::MIN_POSITIVE { 0.0 } else { W::LARGEST / largest };
    for (out, x) in out.chunks_mut(S::LANES).zip(x.chunks(S::LANES)) {
        store_whole_part(s, out, s.mul(load_part(s, x), s.splat(inverse)));
    }
    scale + s.sum(nan)
}
