//! Products of activations in 16 bits with weights in 8, summed in whole numbers.
//!
//! A weight's column has a scale for each group of [`GROUP`] values of `k`. Within a group, products
//! of pairs are summed as i32, exactly; a finished group is multiplied with its columns' scales and
//! added to the sums, which are f32:
//!
//! ```text
//! for each group of k:
//!     for each pair of the group:
//!         products[row] += row[pair] · panel[pair]       i16 · i8, in i32
//!     sums[row] += f32(products[row]) · scales[group]
//! ```
//!
//! An activation is at most 2^15 and a weight at most 2^7 in magnitude: a group's sum is below 2^27.

use super::{BYTE_GROUP, Element, Product, Tile, panel_columns};
use crate::cpu::simd::Simd;

/// Values of `k` that share a scale.
pub(in crate::cpu) const GROUP: usize = 32;

/// A byte as which panels keep a weight.
pub(in crate::cpu) trait Weight8: Element {
    /// Values of `k` that share a scale.
    const GROUP: usize;
    /// The byte of a weight from -127 to 127.
    fn of(weight: i8) -> Self;
    fn weight(self) -> i8;
    /// One of the bytes of a scale.
    fn from_bits(bits: u8) -> Self;
    fn bits(self) -> u8;
}

impl Weight8 for i8 {
    const GROUP: usize = GROUP;

    fn of(weight: i8) -> Self {
        weight
    }

    fn weight(self) -> i8 {
        self
    }

    fn from_bits(bits: u8) -> Self {
        bits.cast_signed()
    }

    fn bits(self) -> u8 {
        self.cast_unsigned()
    }
}

impl Weight8 for u8 {
    const GROUP: usize = BYTE_GROUP;

    fn of(weight: i8) -> Self {
        weight.cast_unsigned() ^ 128
    }

    fn weight(self) -> i8 {
        (self ^ 128).cast_signed()
    }

    fn from_bits(bits: u8) -> Self {
        bits
    }

    fn bits(self) -> u8 {
        self
    }
}

/// Bytes of a group in a panel: its values, and behind them the scales of its columns, in f32.
pub(in crate::cpu) const fn group_size<T: Weight8>(columns: usize) -> usize {
    (T::GROUP + size_of::<f32>()) * columns
}

/// i16 times i8.
#[derive(Clone, Copy)]
pub(in crate::cpu) struct Int8<S>(pub(in crate::cpu) S);

impl<S: Simd> Product for Int8<S> {
    type S = S;
    type Left = i16;
    type Right = i8;
    const STEP: usize = 2;
    const ROWS: usize = S::WHOLE_ROWS;

    #[inline(always)]
    fn simd(self) -> S {
        self.0
    }

    #[inline(always)]
    unsafe fn sums<const R: usize>(self, tile: &Tile<i16, i8>) -> [[S::V; 2]; R] {
        let s = self.0;
        let columns = panel_columns::<S>();
        let mut sums = [[s.splat(0.0); 2]; R];
        for group in 0..tile.n_k / GROUP {
            let mut products = [[s.no_products(); 2]; R];
            // SAFETY: the caller's promise: the group's pairs of every row and of the panel, and
            // behind those the columns' scales.
            unsafe {
                let rows = tile.rows();
                let panel = tile.panel.add(group * group_size::<i8>(columns));
                for k in (0..GROUP).step_by(Self::STEP) {
                    tile.fetch_ahead(s, (group * GROUP + k) / Self::STEP);
                    let pairs = panel.add(k * columns);
                    let b = [s.load_pairs(pairs), s.load_pairs(pairs.add(columns))];
                    for (row, products) in products.iter_mut().enumerate() {
                        let a = s.splat_pair(rows.at(row, group * GROUP + k));
                        products[0] = s.add_pair_products(a, b[0], products[0]);
                        products[1] = s.add_pair_products(a, b[1], products[1]);
                    }
                }
                let scales = panel.add(GROUP * columns).cast::<f32>();
                let scales = [s.load(scales), s.load(scales.add(S::LANES))];
                for (sums, products) in sums.iter_mut().zip(products) {
                    sums[0] = s.mul_add(s.float(products[0]), scales[0], sums[0]);
                    sums[1] = s.mul_add(s.float(products[1]), scales[1], sums[1]);
                }
            }
        }
        sums
    }
}
