//! Unpacks a panel into bytes that the tile kernel reads. The unpacked panel stays in the CPU cache while all rows are
//! multiplied with it.

use super::bits::{BLOCK, Bits, GROUPS};
use crate::cpu::simd::Simd;
use crate::cpu::tile::panel_columns;

/// Bytes of one column of an unpacked block, if sums are scaled after `quads` quads of values. The block has the
/// values, one byte each and the four values of a quad side by side; `s` for each of these sums, as
/// [`BlockOps::scale_word`] represents it; `n` of each group, in 16 bits, with two groups side by side; and `d` and
/// `−m`.
///
/// [`BlockOps::scale_word`]: crate::cpu::simd::BlockOps::scale_word
pub(super) const fn unpacked_size(quads: usize) -> usize {
    BLOCK + 4 * (BLOCK / (4 * quads) + GROUPS / 2 + 2)
}

/// Bytes of an unpacked panel of `n_k` values.
pub(super) fn unpacked_panel_size<S: Simd>(bits: Bits, n_k: usize) -> usize {
    n_k / BLOCK * unpacked_size(bits.quads()) * panel_columns::<S>()
}

/// Unpacks a panel, block by block.
#[inline(always)]
pub(super) fn unpack<S: Simd>(s: S, bits: Bits, packed: &[u8], out: &mut [u8]) {
    let columns = panel_columns::<S>();
    let blocks = packed.chunks_exact(bits.packed_size() * columns);
    for (packed, out) in blocks.zip(out.chunks_exact_mut(unpacked_size(bits.quads()) * columns)) {
        unpack_block(s, bits, packed, out);
    }
}

/// [`unpack`] for a block.
#[inline(always)]
fn unpack_block<S: Simd>(_: S, bits: Bits, packed: &[u8], out: &mut [u8]) {
    let columns = panel_columns::<S>();
    let step = 4 * columns;
    let [nibbles, upper, scales, minima, d, m] = bits.split(columns, packed);
    let (values, after) = out.split_at_mut(BLOCK * columns);
    // A byte has the lowest four bits of a value and, above them, the lowest four bits of the value at the same place
    // of the next quad.
    for (nibbles, pair) in nibbles.chunks_exact(step).zip(values.chunks_exact_mut(2 * step)) {
        let (first, second) = pair.split_at_mut(step);
        for i in 0..step {
            first[i] = nibbles[i] & 15;
            second[i] = nibbles[i] >> 4;
        }
    }
    // A byte has the upper bits of the values at the same place of eight quads (5 bits) or four quads (6 bits).
    match bits {
        Bits::Four => {}
        Bits::Five => add_upper::<1>(upper, values, step),
        Bits::Six => add_upper::<2>(upper, values, step),
    }
    let n_parts = BLOCK / (4 * bits.quads());
    let (words, after) = after.split_at_mut(4 * n_parts * columns);
    let per_scale = n_parts * bits.group() / BLOCK;
    for (scales, words) in
        scales.chunks_exact(columns).zip(words.chunks_exact_mut(4 * per_scale * columns))
    {
        for words in words.chunks_exact_mut(4 * columns) {
            let words = words.as_chunks_mut::<4>().0;
            for i in 0..columns {
                words[i] = S::scale_word(scales[i].cast_signed()).to_ne_bytes();
            }
        }
    }
    let (pairs, after) = after.split_at_mut(2 * GROUPS * columns);
    let minima = minima.chunks_exact(2 * columns);
    for (minima, pairs) in minima.zip(pairs.chunks_exact_mut(4 * columns)) {
        let (first, second) = minima.split_at(columns);
        let pairs = pairs.as_chunks_mut::<4>().0;
        for i in 0..columns {
            pairs[i] = [first[i], 0, second[i], 0];
        }
    }
    let (d_out, m_out) = after.split_at_mut(4 * columns);
    d_out.copy_from_slice(d);
    for (out, m) in m_out.as_chunks_mut::<4>().0.iter_mut().zip(m.as_chunks::<4>().0) {
        *out = (-f32::from_ne_bytes(*m)).to_ne_bytes();
    }
}

/// Adds the upper `N` bits to values.
#[inline(always)]
fn add_upper<const N: usize>(upper: &[u8], values: &mut [u8], step: usize) {
    let quads = values.chunks_exact_mut(8 / N * step);
    for (upper, quads) in upper.chunks_exact(step).zip(quads) {
        for (quad, values) in quads.chunks_exact_mut(step).enumerate() {
            for i in 0..step {
                values[i] |= (upper[i] >> (N * quad) & ((1 << N) - 1)) << 4;
            }
        }
    }
}
