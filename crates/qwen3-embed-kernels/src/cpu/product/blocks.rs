//! Products of activations in 8 bits with weights in 4, 5 or 6, for processors that add products of bytes
//! in pairs.
//!
//! Weights lie in blocks of [`BLOCK`] values of `k`, see [`Bits`]. Before the rows pass a panel it is unpacked,
//! once for all of them, into bytes that stay in the cache. Activations have a scale for each group of
//! [`BLOCK_GROUP`] values.
//!
//! AVX2 adds the products of two bytes without a sign and two with one in 16 bits. With weights of four bits
//! that is at most 2 · 15 · 127, so that the eight pairs of a group still fit in 16 bits, and of those with
//! five bits four. Six bits are a weight `q - 32`: sums that begin with `-32 · Σ a` end within
//! 32 · 127 · 8 < 2^15 after four pairs, and on the way they may wrap around.
//!
//! ```text
//! for each block of k:
//!     for each group of the block:
//!         for each part of the group whose sums fit in 16 bits:
//!             for each quad of the part:
//!                 few[row] += row[quad] · panel[quad]                        i8 · u8, in i16
//!             products[row] += few[row] · s                                  in i32
//!         block[row] += f32(products[row]) · row's scale
//!         sums[row] += (-row's Σ a · row's scale) · (m·n)
//!     sums[row] += block[row] · d
//! ```
//!
//! A group's products are at most 32 · 32 · 127 · 128 < 2^24 in magnitude: whole numbers that f32 has. Where an
//! instruction adds the products of four bytes in 32 bits, `few` has 32 bits and the rest is the same.

use super::{Product, Strided, Tile, panel_columns};
use crate::cpu::simd::Simd;

/// Values of `k` in a block of weights.
pub const BLOCK: usize = 256;

/// Values of `k` whose activations share a scale.
pub const BLOCK_GROUP: usize = 32;

/// Groups in a block.
const GROUPS: usize = BLOCK / BLOCK_GROUP;

/// How weights of few bits are written: as whole numbers `q` without a sign, of which each block has scales `d`
/// and `m` and each group, beside them, whole numbers `s` and `n`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Bits {
    /// `d·s · q − m·n`, of `q` below 16, `s` below 128, and groups of 32.
    Four,
    /// `d·s · q − m·n`, of `q` below 32, `s` below 128, and groups of 32.
    Five,
    /// `d·s · (q − 32)`, of `q` below 64 and groups of 16.
    Six,
}

impl Bits {
    /// Values that share a scale `s`.
    pub fn group(self) -> usize {
        if self.has_minima() { 32 } else { 16 }
    }

    /// Whether there are `m` and `n`.
    pub(in crate::cpu) fn has_minima(self) -> bool {
        self != Self::Six
    }

    /// Bits of a value beyond the first four.
    pub(in crate::cpu) fn upper(self) -> usize {
        match self {
            Self::Four => 0,
            Self::Five => 1,
            Self::Six => 2,
        }
    }

    /// Bytes of a block of one column of a panel.
    pub(in crate::cpu) fn packed_size(self) -> usize {
        self.parts().iter().sum()
    }

    /// Bytes that a block of one column takes for four bits of each value, the others, `s`, `n`, `d` and `m`.
    /// A panel's block has them one behind the other, each of all columns.
    pub(in crate::cpu) fn parts(self) -> [usize; 6] {
        let (n_scales, has_minima) = (BLOCK / self.group(), usize::from(self.has_minima()));
        let values = [BLOCK * 4 / 8, BLOCK * self.upper() / 8];
        [values[0], values[1], n_scales, has_minima * n_scales, 4, has_minima * 4]
    }

    /// Bytes of an unpacked block of one column.
    fn unpacked_size(self) -> usize {
        match self {
            Self::Four => unpacked_size(8),
            Self::Five | Self::Six => unpacked_size(4),
        }
    }
}

/// Bytes of an unpacked block of one column, whose values, four side by side, are followed by `s` for each
/// part of so many quads, in the form that [`Simd::add_scaled`] takes, `m·n` for each group, and `d`.
const fn unpacked_size(quads: usize) -> usize {
    BLOCK + 4 * (BLOCK / (4 * quads) + GROUPS + 1)
}

/// Bytes of a row of `n_k` activations: groups of [`BLOCK_ROW_GROUP`].
pub(in crate::cpu) const fn block_row_size(n_k: usize) -> usize {
    n_k.div_ceil(BLOCK_GROUP) * BLOCK_ROW_GROUP
}

/// Where a group's scale is in a row, from the group's beginning on, an f32.
const SCALE: usize = BLOCK_GROUP;

/// Where `-Σ a` times the scale is, an f32.
const MINUS_SUM: usize = SCALE + size_of::<f32>();

/// Where -32 · Σ a is for each half of the group, in pairs of i16: of the first two values of each quad and of
/// the last two.
const CENTRE: usize = MINUS_SUM + size_of::<f32>();

/// Bytes of a group of a row.
pub(in crate::cpu) const BLOCK_ROW_GROUP: usize = CENTRE + 2 * size_of::<[i16; 2]>();

/// i8 times whole numbers of few bits without a sign. `QUADS` of them are added before they are widened; if
/// `CENTRED` a weight is 32 less.
#[derive(Clone, Copy)]
pub(in crate::cpu) struct Blocks<S, const QUADS: usize, const CENTRED: bool>(pub(in crate::cpu) S);

impl<S: Simd, const QUADS: usize, const CENTRED: bool> Product for Blocks<S, QUADS, CENTRED> {
    type S = S;
    type Left = i8;
    type Right = u8;
    const STEP: usize = 4;

    #[inline(always)]
    fn simd(self) -> S {
        self.0
    }

    #[inline(always)]
    unsafe fn sums<const R: usize>(self, tile: &Tile<i8, u8>) -> [[S::V; 2]; R] {
        let s = self.0;
        let columns = panel_columns::<S>();
        let mut sums = [[s.splat(0.0); 2]; R];
        for block in 0..tile.n_k / BLOCK {
            let mut of_block = [[s.splat(0.0); 2]; R];
            // SAFETY: the caller's promise: the block's groups of every row, with what is behind each, and
            // of the panel a block and what is behind its values.
            unsafe {
                let rows = tile.rows();
                let panel = tile.panel.add(block * unpacked_size(QUADS) * columns);
                for group in 0..GROUPS {
                    let products = self.products::<R>(tile, rows, panel, block * GROUPS + group);
                    let at = (block * GROUPS + group) * BLOCK_ROW_GROUP + SCALE;
                    for (row, (sums, products)) in of_block.iter_mut().zip(products).enumerate() {
                        let scale = s.splat(rows.at(row, at).cast::<f32>().read_unaligned());
                        sums[0] = s.mul_add(s.float(products[0]), scale, sums[0]);
                        sums[1] = s.mul_add(s.float(products[1]), scale, sums[1]);
                    }
                }
                let behind = panel.add((BLOCK + BLOCK / QUADS) * columns).cast::<f32>();
                if !CENTRED {
                    for group in 0..GROUPS {
                        let minima = behind.add(group * columns);
                        let minima = [s.load(minima), s.load(minima.add(S::LANES))];
                        let at = (block * GROUPS + group) * BLOCK_ROW_GROUP + MINUS_SUM;
                        for (row, sums) in sums.iter_mut().enumerate() {
                            let sum = s.splat(rows.at(row, at).cast::<f32>().read_unaligned());
                            sums[0] = s.mul_add(sum, minima[0], sums[0]);
                            sums[1] = s.mul_add(sum, minima[1], sums[1]);
                        }
                    }
                }
                let d = behind.add(GROUPS * columns);
                let d = [s.load(d), s.load(d.add(S::LANES))];
                for (sums, of_block) in sums.iter_mut().zip(of_block) {
                    sums[0] = s.mul_add(of_block[0], d[0], sums[0]);
                    sums[1] = s.mul_add(of_block[1], d[1], sums[1]);
                }
            }
        }
        sums
    }
}

impl<S: Simd, const QUADS: usize, const CENTRED: bool> Blocks<S, QUADS, CENTRED> {
    /// The products of a group, times `s`.
    ///
    /// # Safety
    ///
    /// As [`Product::sums`], of the rows and the block of the panel that have the group.
    #[inline(always)]
    unsafe fn products<const R: usize>(
        self,
        tile: &Tile<i8, u8>,
        rows: Strided<i8>,
        panel: *const u8,
        group: usize,
    ) -> [[S::I; 2]; R] {
        let s = self.0;
        let columns = panel_columns::<S>();
        let at = group * BLOCK_ROW_GROUP;
        let mut products = [[s.no_products(); 2]; R];
        for part in 0..BLOCK_GROUP / (4 * QUADS) {
            let mut few = [[s.no_products(); 2]; R];
            // SAFETY: the caller's promise.
            unsafe {
                if CENTRED {
                    for (row, few) in few.iter_mut().enumerate() {
                        let pair = rows.at(row, at + CENTRE + 4 * part);
                        *few = [s.begin_few(s.splat_quad(pair)); 2];
                    }
                }
                for quad in 0..QUADS {
                    let k = 4 * (part * QUADS + quad);
                    tile.fetch_ahead(s, (group * BLOCK_GROUP + k) / Self::STEP);
                    let quads = panel.add((group % GROUPS * BLOCK_GROUP + k) * columns);
                    let b = [s.load_quads(quads), s.load_quads(quads.add(4 * S::LANES))];
                    for (row, few) in few.iter_mut().enumerate() {
                        let a = s.splat_quad(rows.at(row, at + k));
                        few[0] = s.add_few(b[0], a, few[0]);
                        few[1] = s.add_few(b[1], a, few[1]);
                    }
                }
                let part = group % GROUPS * (BLOCK_GROUP / (4 * QUADS)) + part;
                let scales = panel.add((BLOCK + 4 * part) * columns);
                let scales = [s.load_quads(scales), s.load_quads(scales.add(4 * S::LANES))];
                for (products, few) in products.iter_mut().zip(few) {
                    products[0] = s.add_scaled(few[0], scales[0], products[0]);
                    products[1] = s.add_scaled(few[1], scales[1], products[1]);
                }
            }
        }
        products
    }
}

/// Puts a group's scale behind it, and what its sums are needed for.
#[inline(always)]
pub(in crate::cpu) fn finish_block_group(group: &mut [i8; BLOCK_ROW_GROUP], scale: f32) {
    // Of each half, the first two values of all quads and the last two.
    let mut sums = [[0i32; 2]; 2];
    for (half, sums) in sums.iter_mut().enumerate() {
        for quad in 0..4 {
            let at = 16 * half + 4 * quad;
            sums[0] += i32::from(group[at]) + i32::from(group[at + 1]);
            sums[1] += i32::from(group[at + 2]) + i32::from(group[at + 3]);
        }
    }
    let sum = sums[0][0] + sums[0][1] + sums[1][0] + sums[1][1];
    put(group, SCALE, scale.to_ne_bytes());
    put(group, MINUS_SUM, (-(sum as f32) * scale).to_ne_bytes());
    for (i, sum) in sums.into_iter().flatten().enumerate() {
        // Beyond 16 bits only where the scale is not a number.
        put(group, CENTRE + 2 * i, ((-32 * sum) as i16).to_ne_bytes());
    }
}

#[inline(always)]
fn put<const N: usize>(group: &mut [i8], at: usize, bytes: [u8; N]) {
    group[at..at + N].copy_from_slice(&bytes.map(u8::cast_signed));
}

/// Unpacks a panel, block by block, for the product of its bits.
#[inline(always)]
pub(in crate::cpu) fn unpack<S: Simd>(s: S, bits: Bits, packed: &[u8], out: &mut [u8]) {
    let columns = panel_columns::<S>();
    let blocks = packed.chunks_exact(bits.packed_size() * columns);
    for (packed, out) in blocks.zip(out.chunks_exact_mut(bits.unpacked_size() * columns)) {
        unpack_block(s, bits, packed, out);
    }
}

/// Bytes of an unpacked panel of `n_k` values.
pub(in crate::cpu) fn unpacked_panel_size<S: Simd>(bits: Bits, n_k: usize) -> usize {
    n_k / BLOCK * bits.unpacked_size() * panel_columns::<S>()
}

/// A block's parts, each of all columns.
pub(in crate::cpu) fn parts_of(bits: Bits, columns: usize, block: &[u8]) -> [&[u8]; 6] {
    let mut rest = block;
    bits.parts().map(|size| {
        let (part, behind) = rest.split_at(size * columns);
        rest = behind;
        part
    })
}

/// [`unpack`] for a block.
#[inline(always)]
fn unpack_block<S: Simd>(_: S, bits: Bits, packed: &[u8], out: &mut [u8]) {
    let columns = panel_columns::<S>();
    let step = 4 * columns;
    let [nibbles, upper, scales, minima, d, m] = parts_of(bits, columns, packed);
    let (values, behind) = out.split_at_mut(BLOCK * columns);
    // A byte has the lower bits of a value and, above, those of the value in the quad that follows.
    for (nibbles, pair) in nibbles.chunks_exact(step).zip(values.chunks_exact_mut(2 * step)) {
        let (first, second) = pair.split_at_mut(step);
        for i in 0..step {
            first[i] = nibbles[i] & 15;
            second[i] = nibbles[i] >> 4;
        }
    }
    // A byte has the upper bits of the values of eight or four quads.
    match bits {
        Bits::Four => {}
        Bits::Five => add_upper::<1>(upper, values, step),
        Bits::Six => add_upper::<2>(upper, values, step),
    }
    let n_parts = (bits.unpacked_size() - BLOCK) / 4 - GROUPS - 1;
    let (words, behind) = behind.split_at_mut(4 * n_parts * columns);
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
    let (unpacked, d_out) = behind.split_at_mut(4 * GROUPS * columns);
    let m = m.as_chunks::<4>().0;
    for (minima, out) in
        minima.chunks_exact(columns).zip(unpacked.chunks_exact_mut(4 * columns))
    {
        let out = out.as_chunks_mut::<4>().0;
        for i in 0..columns {
            out[i] = (f32::from_ne_bytes(m[i]) * f32::from(minima[i])).to_ne_bytes();
        }
    }
    d_out.copy_from_slice(d);
}

/// Adds the upper `N` bits of values.
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
