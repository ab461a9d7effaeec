use std::hint::black_box;

use super::activations::{BLOCK_ROW, CENTER, SCALE, SUMS};
use super::bits::{BLOCK, GROUPS};
use super::unpack::unpacked_size;
use crate::cpu::simd::{Simd, TileSums};
use crate::cpu::tile::{
    Tile, TileKernel, TileRows, each_word, multiply_word, panel_columns, with_rows,
};

/// i8 activations times weights that are unsigned integers of 4 to 6 bits. The products of `QUADS` quads are added
/// before the sum is scaled. If `CENTERED`, a weight is the integer minus 32.
#[derive(Clone, Copy)]
pub(super) struct BlocksKernel<const QUADS: usize, const CENTERED: bool>;

impl<const QUADS: usize, const CENTERED: bool> TileKernel for BlocksKernel<QUADS, CENTERED> {
    type Left = i8;
    type Right = u8;
    type Sums<S: Simd> = S::IntTile;
    const STEP: usize = 4;

    #[inline(always)]
    unsafe fn fill<S: Simd>(self, s: S, tile: &Tile<i8, u8>, sums: &mut [[S::V; 2]]) {
        // SAFETY: the caller's promise.
        with_rows!(<S::IntTile as TileSums<S::V>>::ROWS, sums, R => unsafe {
            self.sums::<S, R>(s, tile)
        });
    }
}

impl<const QUADS: usize, const CENTERED: bool> BlocksKernel<QUADS, CENTERED> {
    /// The sums of a tile of `R` rows.
    ///
    /// # Safety
    ///
    /// As of [`TileKernel::fill`].
    #[inline(always)]
    unsafe fn sums<S: Simd, const R: usize>(self, s: S, tile: &Tile<i8, u8>) -> [[S::V; 2]; R] {
        let columns = panel_columns::<S>();
        // The compiler would unroll a loop over a constant number of quads, and then have no registers left for sums.
        let n_quads = black_box(QUADS);
        let mut sums = [[s.splat(0.0); 2]; R];
        for block in 0..tile.n_k / BLOCK {
            // SAFETY: the caller's promise, for the blocks of every row and of the panel, and for the scales and sums
            // after the values of each block.
            unsafe {
                let rows = tile.rows(s);
                let at = block * BLOCK_ROW;
                let panel = tile.panel.add(block * unpacked_size(QUADS) * columns);
                let mut products = [[s.zeros(); 2]; R];
                for part in 0..BLOCK / (4 * QUADS) {
                    let partial = self.partial::<S, R>(s, tile, panel, block, part, n_quads);
                    let scales = load(s, panel.add((BLOCK + 4 * part) * columns));
                    for (products, partial) in products.iter_mut().zip(partial) {
                        products[0] = s.add_scaled(partial[0], scales[0], products[0]);
                        products[1] = s.add_scaled(partial[1], scales[1], products[1]);
                    }
                }
                let after = panel.add((BLOCK + BLOCK / QUADS) * columns);
                let minima = if CENTERED {
                    [[s.zeros(); 2]; R]
                } else {
                    minima::<S, R>(s, rows, at + SUMS, after)
                };
                let scales = after.add(2 * GROUPS * columns).cast::<f32>();
                let d = [s.load(scales), s.load(scales.add(S::LANES))];
                let minus_m = scales.add(columns);
                let minus_m = [s.load(minus_m), s.load(minus_m.add(S::LANES))];
                for row in 0..R {
                    let scale = rows.at(row, at + SCALE).cast::<f32>();
                    let scale = s.splat(scale.read_unaligned());
                    for i in 0..2 {
                        let mut sum = s.mul(s.scaled_to_f32(products[row][i]), d[i]);
                        if !CENTERED {
                            sum = s.mul_add(s.to_f32(minima[row][i]), minus_m[i], sum);
                        }
                        sums[row][i] = s.mul_add(sum, scale, sums[row][i]);
                    }
                }
            }
        }
        sums
    }

    /// The partial sums of a part of a block. `panel` is the beginning of the block in the panel. `n_quads` is `QUADS`.
    ///
    /// # Safety
    ///
    /// As of [`TileKernel::fill`]; the block has the part.
    #[inline(always)]
    unsafe fn partial<S: Simd, const R: usize>(
        self,
        s: S,
        tile: &Tile<i8, u8>,
        panel: *const u8,
        block: usize,
        part: usize,
        n_quads: usize,
    ) -> [[S::I; 2]; R] {
        let columns = panel_columns::<S>();
        let mut partial = [[s.zeros(); 2]; R];
        // SAFETY: the caller's promise.
        unsafe {
            let rows = tile.rows(s);
            let at = block * BLOCK_ROW;
            let mut panel = panel.add(4 * part * QUADS * columns);
            let mut words = rows.words(s, at + 4 * part * QUADS);
            let mut quad = 0;
            if CENTERED {
                for (row, partial) in partial.iter_mut().enumerate() {
                    let pair = s.splat_quad(rows.at(row, at + CENTER + 4 * part));
                    *partial = [s.begin_block_dot(pair); 2];
                }
            } else if const { S::WORDS == 1 } {
                tile.prefetch(s, block * BLOCK / 4 + part * QUADS);
                let b = load(s, panel);
                for (row, partial) in partial.iter_mut().enumerate() {
                    let a = s.load_quad_words(words.at(s, row));
                    *partial = [s.block_dot(b[0], a), s.block_dot(b[1], a)];
                }
                words.advance_after_products(s, 4, &partial);
                panel = panel.add(4 * columns);
                quad = 1;
            }
            while quad < n_quads {
                tile.prefetch(s, block * BLOCK / 4 + part * QUADS + quad);
                each_word!(S::WORDS, WORD => {
                    multiply_word!(
                        S,
                        s,
                        partial,
                        after = panel.after_products,
                        b(half) = s.load_quads(panel.add(4 * (2 * WORD + half) * S::LANES)),
                        a(row) = s.load_quad_words(words.at(s, row)),
                        sum = s.add_block_dot_word::<WORD>(b, a, sum)
                    );
                });
                words.advance_after_products(s, 4 * S::WORDS, &partial);
                panel = panel.add(4 * S::WORDS * columns);
                quad += S::WORDS;
            }
        }
        partial
    }
}

/// The sums of activations of the groups of a block, at `at` in each row, times the minima `n` of the groups, at
/// `panel`.
///
/// # Safety
///
/// The rows are valid at `at` for the sums, and `panel` for the minima of a block.
#[inline(always)]
unsafe fn minima<S: Simd, const R: usize>(
    s: S,
    rows: TileRows<i8>,
    at: usize,
    mut panel: *const u8,
) -> [[S::I; 2]; R] {
    let mut minima = [[s.zeros(); 2]; R];
    for pair in (0..GROUPS / 2).step_by(S::WORDS) {
        // SAFETY: the caller's promise.
        unsafe {
            each_word!(S::WORDS, WORD => {
                multiply_word!(
                    S,
                    s,
                    minima,
                    after = panel.after_products,
                    b(half) = s.load_wide_pairs(panel.add(4 * (2 * WORD + half) * S::LANES).cast()),
                    a(row) = s.load_pair_words(rows.at(row, at + 4 * pair).cast()),
                    sum = s.dot_pairs_word::<WORD>(a, b, sum)
                );
            });
            panel = panel.add(4 * S::WORDS * panel_columns::<S>());
        }
    }
    minima
}

/// Loads four bytes for each column of a panel.
///
/// # Safety
///
/// `p` is valid for reading them.
#[inline(always)]
unsafe fn load<S: Simd>(s: S, p: *const u8) -> [S::I; 2] {
    // SAFETY: the caller's promise.
    unsafe { [s.load_quads(p), s.load_quads(p.add(4 * S::LANES))] }
}
