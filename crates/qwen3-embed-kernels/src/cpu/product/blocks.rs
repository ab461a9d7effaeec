//! Products of activations in 8 bits with weights in 4, 5 or 6, for processors that add products of bytes
//! in pairs.
//!
//! Both lie in blocks of [`BLOCK`] values of `k`. Those of weights are described by [`Bits`]; before the rows pass
//! a panel it is unpacked, once for all of them, into bytes that stay in the cache. Those of activations have one
//! scale, and behind it the sums that `m` and the offset of six bits are multiplied with.
//!
//! AVX2 adds the products of two bytes without a sign and two with one in 16 bits. With weights of four bits
//! that is at most 2 · 15 · 127, so that eight such pairs, those of 32 values, still fit in 16 bits, and of those
//! with five bits four. Six bits are a weight `q - 32`: sums that begin with `-32 · Σ a` end within
//! 32 · 127 · 8 < 2^15 after four pairs, and on the way they may wrap around.
//!
//! ```text
//! for each block of k:
//!     for each part of the block whose sums fit in 16 bits:
//!         for each quad of the part:
//!             few[row] += row[quad] · panel[quad]                            i8 · u8, in i16
//!         products[row] += few[row] · s                                      in i32
//!     minima[row] = the groups' Σ a · n                                      in i32
//!     sums[row] += (d · f32(products[row]) - m · f32(minima[row])) · row's scale
//! ```
//!
//! A block's products are at most 256 · 32 · 127 · 128 < 2^27 in magnitude, its minima 256 · 127 · 255 < 2^23.
//! Where an instruction adds the products of four bytes in 32 bits, `few` has 32 bits and the rest is the same.

use std::hint::black_box;

use super::{Product, Strided, Tile, panel_columns};
use crate::cpu::simd::Simd;

/// Values of `k` in a block, whose activations share a scale.
pub const BLOCK: usize = 256;

/// Values of `k` that share a minimum.
const GROUP: usize = 32;

/// Groups in a block.
const GROUPS: usize = BLOCK / GROUP;

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
    pub fn packed_size(self) -> usize {
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
/// part of so many quads, in the form that [`Simd::add_scaled`] takes, `n` for each two groups, in 16 bits, `d`
/// and `m`.
const fn unpacked_size(quads: usize) -> usize {
    BLOCK + 4 * (BLOCK / (4 * quads) + GROUPS / 2 + 2)
}

/// Bytes of a row of `n_k` activations: [`BLOCK_ROW`] for each block.
pub(in crate::cpu) const fn block_row_size(n_k: usize) -> usize {
    n_k.div_ceil(BLOCK) * BLOCK_ROW
}

/// Where a block's scale is in a row, from the block's beginning on, an f32.
const SCALE: usize = BLOCK;

/// Where Σ a of each group is, an i16.
const SUMS: usize = SCALE + size_of::<f32>();

/// Where -32 · Σ a is of each half of a group, in pairs of i16: of the first two values of each quad, and of the
/// last two.
const CENTRE: usize = SUMS + GROUPS * size_of::<i16>();

/// Bytes of a block of a row.
pub(in crate::cpu) const BLOCK_ROW: usize = CENTRE + 2 * GROUPS * size_of::<[i16; 2]>();

/// i8 times whole numbers of few bits without a sign. `QUADS` of them are added before they are widened; if
/// `CENTRED` a weight is 32 less.
#[derive(Clone, Copy)]
pub(in crate::cpu) struct Blocks<S, const QUADS: usize, const CENTRED: bool>(pub(in crate::cpu) S);

impl<S: Simd, const QUADS: usize, const CENTRED: bool> Product for Blocks<S, QUADS, CENTRED> {
    type S = S;
    type Left = i8;
    type Right = u8;
    const STEP: usize = 4;
    const ROWS: usize = S::WHOLE_ROWS;

    #[inline(always)]
    fn simd(self) -> S {
        self.0
    }

    #[inline(always)]
    unsafe fn sums<const R: usize>(self, tile: &Tile<i8, u8>) -> [[S::V; 2]; R] {
        let s = self.0;
        let columns = panel_columns::<S>();
        // The compiler would unroll a loop over so few quads, and then has no registers left for sums.
        let n_quads = black_box(QUADS);
        let mut sums = [[s.splat(0.0); 2]; R];
        for block in 0..tile.n_k / BLOCK {
            // SAFETY: the caller's promise: the blocks of every row and of the panel, with what is behind
            // the values of each.
            unsafe {
                let rows = tile.rows();
                let at = block * BLOCK_ROW;
                let panel = tile.panel.add(block * unpacked_size(QUADS) * columns);
                let mut products = [[s.no_products(); 2]; R];
                for part in 0..BLOCK / (4 * QUADS) {
                    let few = self.few::<R>(tile, panel, block, part, n_quads);
                    let scales = load(s, panel.add((BLOCK + 4 * part) * columns));
                    for (products, few) in products.iter_mut().zip(few) {
                        products[0] = s.add_scaled(few[0], scales[0], products[0]);
                        products[1] = s.add_scaled(few[1], scales[1], products[1]);
                    }
                }
                let behind = panel.add((BLOCK + BLOCK / QUADS) * columns);
                let minima = if CENTRED {
                    [[s.no_products(); 2]; R]
                } else {
                    self.minima::<R>(rows, at + SUMS, behind)
                };
                let scales = behind.add(2 * GROUPS * columns).cast::<f32>();
                let d = [s.load(scales), s.load(scales.add(S::LANES))];
                let minus_m = scales.add(columns);
                let minus_m = [s.load(minus_m), s.load(minus_m.add(S::LANES))];
                for row in 0..R {
                    let scale = rows.at(row, at + SCALE).cast::<f32>();
                    let scale = s.splat(scale.read_unaligned());
                    for i in 0..2 {
                        let mut sum = s.mul(s.float(products[row][i]), d[i]);
                        if !CENTRED {
                            sum = s.mul_add(s.float(minima[row][i]), minus_m[i], sum);
                        }
                        sums[row][i] = s.mul_add(sum, scale, sums[row][i]);
                    }
                }
            }
        }
        sums
    }
}

impl<S: Simd, const QUADS: usize, const CENTRED: bool> Blocks<S, QUADS, CENTRED> {
    /// The sums of a part of a block, whose panel is `panel`. `n_quads` is `QUADS`.
    ///
    /// # Safety
    ///
    /// As [`Product::sums`]; the part is one of the block's.
    #[inline(always)]
    unsafe fn few<const R: usize>(
        self,
        tile: &Tile<i8, u8>,
        panel: *const u8,
        block: usize,
        part: usize,
        n_quads: usize,
    ) -> [[S::I; 2]; R] {
        let s = self.0;
        let columns = panel_columns::<S>();
        let mut few = [[s.no_products(); 2]; R];
        // SAFETY: the caller's promise.
        unsafe {
            let rows = tile.rows();
            let at = block * BLOCK_ROW;
            let panel = panel.add(4 * part * QUADS * columns);
            let mut quad = 0;
            if CENTRED {
                for (row, few) in few.iter_mut().enumerate() {
                    *few = [s.begin_few(s.splat_quad(rows.at(row, at + CENTRE + 4 * part))); 2];
                }
            } else {
                tile.fetch_ahead(s, block * BLOCK / 4 + part * QUADS);
                let b = load(s, panel);
                for (row, few) in few.iter_mut().enumerate() {
                    let a = s.splat_quad(rows.at(row, at + 4 * part * QUADS));
                    *few = [s.few(b[0], a), s.few(b[1], a)];
                }
                quad = 1;
            }
            while quad < n_quads {
                tile.fetch_ahead(s, block * BLOCK / 4 + part * QUADS + quad);
                let b = load(s, panel.add(4 * quad * columns));
                for (row, few) in few.iter_mut().enumerate() {
                    let a = s.splat_quad(rows.at(row, at + 4 * (part * QUADS + quad)));
                    few[0] = s.add_few(b[0], a, few[0]);
                    few[1] = s.add_few(b[1], a, few[1]);
                }
                quad += 1;
            }
        }
        few
    }

    /// The sums of a block's groups times the minima at `panel`.
    ///
    /// # Safety
    ///
    /// The sums are at `at` in each row.
    #[inline(always)]
    unsafe fn minima<const R: usize>(
        self,
        rows: Strided<i8>,
        at: usize,
        panel: *const u8,
    ) -> [[S::I; 2]; R] {
        let s = self.0;
        let mut minima = [[s.no_products(); 2]; R];
        for pair in 0..GROUPS / 2 {
            // SAFETY: the caller's promise.
            unsafe {
                let b = load(s, panel.add(4 * pair * panel_columns::<S>()));
                for (row, minima) in minima.iter_mut().enumerate() {
                    let a = s.splat_pair(rows.at(row, at + 4 * pair).cast());
                    minima[0] = s.add_pair_products(a, b[0], minima[0]);
                    minima[1] = s.add_pair_products(a, b[1], minima[1]);
                }
            }
        }
        minima
    }
}

/// Quads, or as many bytes of something else, of all columns of a panel.
///
/// # Safety
///
/// As [`Simd::load_quads`], twice.
#[inline(always)]
unsafe fn load<S: Simd>(s: S, p: *const u8) -> [S::I; 2] {
    // SAFETY: the caller's promise.
    unsafe { [s.load_quads(p), s.load_quads(p.add(4 * S::LANES))] }
}

/// Puts a block's scale behind it, and its sums.
#[inline(always)]
pub(in crate::cpu) fn finish_block(block: &mut [i8; BLOCK_ROW], scale: f32) {
    put(block, SCALE, scale.to_ne_bytes());
    for group in 0..GROUPS {
        let mut sum = 0;
        for half in 2 * group..2 * group + 2 {
            // Of the first two values of each quad, and of the last two.
            let mut sums = [0i32; 2];
            for quad in 4 * half..4 * half + 4 {
                sums[0] += i32::from(block[4 * quad]) + i32::from(block[4 * quad + 1]);
                sums[1] += i32::from(block[4 * quad + 2]) + i32::from(block[4 * quad + 3]);
            }
            sum += sums[0] + sums[1];
            for (i, sum) in sums.into_iter().enumerate() {
                // Beyond 16 bits only where the scale is not a number.
                put(block, CENTRE + 4 * half + 2 * i, ((-32 * sum) as i16).to_ne_bytes());
            }
        }
        put(block, SUMS + 2 * group, (sum as i16).to_ne_bytes());
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
    let n_parts = (bits.unpacked_size() - BLOCK) / 4 - GROUPS / 2 - 2;
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
    let (pairs, behind) = behind.split_at_mut(2 * GROUPS * columns);
    let minima = minima.chunks_exact(2 * columns);
    for (minima, pairs) in minima.zip(pairs.chunks_exact_mut(4 * columns)) {
        let (first, second) = minima.split_at(columns);
        let pairs = pairs.as_chunks_mut::<4>().0;
        for i in 0..columns {
            pairs[i] = [first[i], 0, second[i], 0];
        }
    }
    let (d_out, m_out) = behind.split_at_mut(4 * columns);
    d_out.copy_from_slice(d);
    for (out, m) in m_out.as_chunks_mut::<4>().0.iter_mut().zip(m.as_chunks::<4>().0) {
        *out = (-f32::from_ne_bytes(*m)).to_ne_bytes();
    }
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
