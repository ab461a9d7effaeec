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

use super::{Product, Tile, panel_columns};
use crate::cpu::simd::Simd;

/// Values of `k` that share a scale.
pub(in crate::cpu) const GROUP: usize = 32;

/// Bytes of a group in a panel: its values, and behind them the scales of its columns, in f32.
pub(in crate::cpu) const fn group_size(columns: usize) -> usize {
    (GROUP + size_of::<f32>()) * columns
}

/// i16 times i8.
#[derive(Clone, Copy)]
pub(in crate::cpu) struct Int8<S>(pub(in crate::cpu) S);

impl<S: Simd> Product for Int8<S> {
    type S = S;
    type Left = i16;
    type Right = i8;
    const STEP: usize = 2;

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
                let panel = tile.panel.add(group * group_size(columns));
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
