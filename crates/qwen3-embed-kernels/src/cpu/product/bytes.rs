//! Products of activations and weights in 8 bits, for processors that multiply four pairs of bytes at once.
//!
//! Both have a scale for each group of [`BYTE_GROUP`] values of `k`. The instruction takes bytes without a
//! sign times bytes with one: a weight `w`, from -127 to 127, is stored as `w + 128`. Behind a group of
//! activations `a` lies what this adds, `-128 · Σ a`, and the group's sums begin with it:
//!
//! ```text
//! for each group of k:
//!     products[row] = -128 · Σ row[group]
//!     for each quad of the group:
//!         products[row] += row[quad] · panel[quad]       i8 · u8, in i32
//!     sums[row] += f32(products[row]) · (row's scale · panel's scales)
//! ```
//!
//! Of the sums on the way none is beyond 64 · 127 · (128 + 255) < 2^22 in magnitude, and a finished one is at
//! most 64 · 127² < 2^20: whole numbers that f32 has.

use super::{Product, Tile, panel_columns};
use crate::cpu::product::int8::group_size;
use crate::cpu::simd::Simd;

/// Values of `k` that share a scale.
pub const BYTE_GROUP: usize = 64;

/// Bytes of a row of `n_k` activations: in groups, each followed by its scale, an f32, and its correction,
/// an i32.
pub(in crate::cpu) const fn byte_row_size(n_k: usize) -> usize {
    n_k.div_ceil(BYTE_GROUP) * ROW_GROUP
}

/// Where a group's scale is in a row, from the group's beginning on.
const SCALE: usize = BYTE_GROUP;

/// Where its correction is.
const CORRECTION: usize = SCALE + size_of::<f32>();

/// Bytes of a group of a row.
pub(in crate::cpu) const ROW_GROUP: usize = CORRECTION + size_of::<i32>();

/// i8 times u8.
#[derive(Clone, Copy)]
pub(in crate::cpu) struct Bytes<S>(pub(in crate::cpu) S);

impl<S: Simd> Product for Bytes<S> {
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
        let mut sums = [[s.splat(0.0); 2]; R];
        for group in 0..tile.n_k / BYTE_GROUP {
            let mut products = [[s.no_products(); 2]; R];
            // SAFETY: the caller's promise: the group's quads of every row and of the panel, and
            // behind those what belongs to a group.
            unsafe {
                let rows = tile.rows();
                let at = group * ROW_GROUP;
                let panel = tile.panel.add(group * group_size::<u8>(columns));
                for (row, products) in products.iter_mut().enumerate() {
                    let correction = rows.at(row, at + CORRECTION).cast::<i32>();
                    *products = [s.splat_i32(correction.read_unaligned()); 2];
                }
                for k in (0..BYTE_GROUP).step_by(Self::STEP) {
                    tile.fetch_ahead(s, (group * BYTE_GROUP + k) / Self::STEP);
                    let quads = panel.add(k * columns);
                    let b = [s.load_quads(quads), s.load_quads(quads.add(4 * S::LANES))];
                    for (row, products) in products.iter_mut().enumerate() {
                        let a = s.splat_quad(rows.at(row, at + k));
                        products[0] = s.add_quad_products(b[0], a, products[0]);
                        products[1] = s.add_quad_products(b[1], a, products[1]);
                    }
                }
                let scales = panel.add(BYTE_GROUP * columns).cast::<f32>();
                let scales = [s.load(scales), s.load(scales.add(S::LANES))];
                for (row, (sums, products)) in sums.iter_mut().zip(products).enumerate() {
                    let scale = rows.at(row, at + SCALE).cast::<f32>();
                    let scale = s.splat(scale.read_unaligned());
                    let scales = [s.mul(scales[0], scale), s.mul(scales[1], scale)];
                    sums[0] = s.mul_add(s.float(products[0]), scales[0], sums[0]);
                    sums[1] = s.mul_add(s.float(products[1]), scales[1], sums[1]);
                }
            }
        }
        sums
    }
}

/// Puts a group's scale, and its correction, behind it.
#[inline(always)]
pub(in crate::cpu) fn finish_group(group: &mut [i8; ROW_GROUP], scale: f32) {
    let mut sum = 0;
    for &value in &group[..BYTE_GROUP] {
        sum += i32::from(value);
    }
    let [scale, correction] = [scale.to_bits(), (-128 * sum) as u32];
    group[SCALE..CORRECTION].copy_from_slice(&scale.to_ne_bytes().map(|byte| byte as i8));
    group[CORRECTION..].copy_from_slice(&correction.to_ne_bytes().map(|byte| byte as i8));
}
