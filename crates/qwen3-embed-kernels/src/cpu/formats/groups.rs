//! Packing of 8-bit weights in groups, for the formats `int8` and `bytes`.
//!
//! For each group of values of `k`, a panel has the values of all columns, followed by the scales of all columns, in
//! f32.

use crate::cpu::aligned::Aligned;
use crate::cpu::panels::PanelGrid;
use crate::cpu::scalar::Scalar;

/// A byte that represents an 8-bit weight.
pub(super) trait WeightByte: Scalar {
    /// The byte of a weight from −127 to 127. `offset` is the kernel set's
    /// [`IntOps::WEIGHT_OFFSET`](crate::cpu::simd::IntOps::WEIGHT_OFFSET).
    fn from_weight(weight: i8, offset: u8) -> Self;
    /// The weight that a byte represents.
    fn weight(self, offset: u8) -> i8;
    /// Stores one byte of an f32 scale, unchanged.
    fn from_bits(bits: u8) -> Self;
    /// Returns one byte of an f32 scale that [`from_bits`](Self::from_bits) stored.
    fn bits(self) -> u8;
}

/// Values of `k` that share a scale of weights for activations in 16 bits.
pub(super) const WIDE_GROUP: usize = 32;

/// The largest group of any format.
const MAX_GROUP: usize = 64;

/// Bytes in a panel of a group of `group` values of `k`.
pub(super) const fn group_size(group: usize, columns: usize) -> usize {
    (group + size_of::<f32>()) * columns
}

/// Values of `k` in a panel: the values of `n_in` features, and the second values of `n_precise` features (see
/// [`GroupedRow::quantize`]). Each number is rounded up to whole groups.
pub(super) fn padded(group: usize, n_in: usize, n_precise: usize) -> usize {
    n_in.next_multiple_of(group) + n_precise.next_multiple_of(group)
}

/// Bytes in a panel that has `n_k` values of `k`.
pub(super) fn panel_size(group: usize, grid: PanelGrid, n_k: usize) -> usize {
    n_k / group * group_size(group, grid.panel_columns())
}

/// A row of a weight: 8-bit values, padded with zeros to whole groups, and a scale for each group.
pub(super) struct GroupedRow<'a> {
    pub(super) values: &'a mut [i8],
    pub(super) scales: &'a mut [f32],
}

impl GroupedRow<'_> {
    /// Quantizes a row in groups of `group` values. For the features `precise`, the differences between the weights and
    /// the quantized weights are quantized too. These *second values* follow the row.
    fn quantize(&mut self, group: usize, weights: &[f32], precise: &[usize]) {
        let (values, second_values) =
            self.values.split_at_mut(weights.len().next_multiple_of(group));
        let (scales, second_scales) = self.scales.split_at_mut(values.len() / group);
        let groups = values.chunks_exact_mut(group).zip(&mut *scales);
        for ((values, scale), weights) in groups.zip(weights.chunks(group)) {
            *scale = quantize_group(weights, values);
        }
        let mut remainders = [0f32; MAX_GROUP];
        let remainders = &mut remainders[..group];
        let groups = second_values.chunks_exact_mut(group).zip(second_scales);
        for ((second_values, second_scale), precise) in groups.zip(precise.chunks(group)) {
            remainders.fill(0.0);
            for (remainder, &k) in remainders.iter_mut().zip(precise) {
                *remainder = weights[k] - f32::from(values[k]) * scales[k / group];
            }
            *second_scale = quantize_group(remainders, second_values);
        }
    }
}

/// Writes a group of weights as integer multiples of a scale, and returns the scale. If a weight is not finite, the
/// scale is NaN, so that results with this weight are NaN too.
fn quantize_group(weights: &[f32], values: &mut [i8]) -> f32 {
    // Magnitudes have the same order as their bits, and values that are not finite are above all finite values.
    let magnitude = |w: &f32| (w.to_bits() & 0x7fff_ffff) as i32;
    let largest = weights.iter().fold(0, |largest, w| largest.max(magnitude(w)));
    let largest = f32::from_bits(largest as u32);
    if !largest.is_finite() {
        values.fill(1);
        return f32::NAN;
    }
    let scale = largest / 127.0;
    // If the scale is subnormal or zero, all values become zero.
    let inverse = if scale < f32::MIN_POSITIVE { 0.0 } else { 127.0 / largest };
    for (value, weight) in values.iter_mut().zip(weights) {
        // The sum with 1.5 · 2^23 has no bits for a fraction. Its lowest eight bits are the nearest integer.
        *value = (weight * inverse + 12_582_912.0).to_bits() as i8;
    }
    scale
}

/// Quantizes a weight and packs it, in parallel: `read_row(o, row)` writes the row `o` of the weight.
pub(super) fn pack_quantized<T: WeightByte>(
    group: usize,
    grid: PanelGrid,
    precise: &[usize],
    read_row: impl Fn(usize, &mut [f32]) + Sync,
) -> Aligned<T> {
    let room = || vec![0f32; grid.n_in];
    pack_groups(group, grid, precise.len(), room, |room, o, row| {
        read_row(o, room);
        row.quantize(group, room, precise);
    })
}

/// Packs 8-bit weights, in parallel: `read_row(room, o, row)` writes the row `o` of the weight. `room()` makes a buffer
/// for each thread.
pub(super) fn pack_groups<T: WeightByte, R: Send>(
    group: usize,
    grid: PanelGrid,
    n_precise: usize,
    room: impl Fn() -> R + Sync + Send,
    read_row: impl Fn(&mut R, usize, &mut GroupedRow<'_>) + Sync,
) -> Aligned<T> {
    let n_k = padded(group, grid.n_in, n_precise);
    let room = || (room(), vec![0i8; n_k], vec![0f32; n_k / group]);
    let (columns, depth) = (grid.panel_columns(), T::DEPTH);
    let panel_size = panel_size(group, grid, n_k);
    grid.fill(panel_size, room, |(room, values, scales), o, panel, column| {
        read_row(room, o, &mut GroupedRow { values, scales });
        let groups = panel.chunks_exact_mut(group_size(group, columns));
        for ((packed, values), scale) in groups.zip(values.chunks_exact(group)).zip(scales) {
            let (steps, scales) = packed.split_at_mut(group * columns);
            let steps = steps.chunks_exact_mut(depth * columns);
            for (step, values) in steps.zip(values.chunks_exact(depth)) {
                let step = &mut step[depth * column..][..depth];
                for (out, &value) in step.iter_mut().zip(values) {
                    *out = T::from_weight(value, grid.weight_offset);
                }
            }
            let bytes = scale.to_ne_bytes().map(T::from_bits);
            scales[bytes.len() * column..][..bytes.len()].copy_from_slice(&bytes);
        }
    })
}

/// Packs a packed weight for another kernel set.
pub(super) fn repack<T: WeightByte>(
    panels: &[T],
    group: usize,
    from: PanelGrid,
    to: PanelGrid,
    n_precise: usize,
) -> Aligned<T> {
    let read = |(): &mut (), o: usize, row: &mut GroupedRow<'_>| {
        unpack(panels, group, from, o, row);
    };
    pack_groups(group, to, n_precise, || (), read)
}

/// Reads the row `o` of a packed weight.
fn unpack<T: WeightByte>(
    panels: &[T],
    group: usize,
    grid: PanelGrid,
    o: usize,
    row: &mut GroupedRow<'_>,
) {
    let (columns, depth) = (grid.panel_columns(), T::DEPTH);
    let (panel, column) = grid.position(o);
    let panel_size = panel_size(group, grid, row.values.len());
    let groups = panels[panel * panel_size..].chunks_exact(group_size(group, columns));
    let values = row.values.chunks_exact_mut(group).zip(&mut *row.scales);
    for ((values, scale), packed) in values.zip(groups) {
        let (steps, scales) = packed.split_at(group * columns);
        let steps = steps.chunks_exact(depth * columns);
        for (values, step) in values.chunks_exact_mut(depth).zip(steps) {
            let step = &step[depth * column..][..depth];
            for (value, byte) in values.iter_mut().zip(step) {
                *value = byte.weight(grid.weight_offset);
            }
        }
        let bytes = &scales[size_of::<f32>() * column..];
        *scale = f32::from_ne_bytes(std::array::from_fn(|i| bytes[i].bits()));
    }
}
