use half::bf16;

use super::block::BlockOps;
use super::float::TileSums;

/// Bytes of a row in a matrix register: 32 values of bf16, or 64 bytes.
pub(in crate::cpu) const MATRIX_ROW_BYTES: usize = 64;

/// The largest number of rows of a tile that is computed with matrix registers.
pub(in crate::cpu) const MOST_MATRIX_ROWS: usize = 32;

/// A few rows of activations, and a panel.
#[cfg_attr(not(target_arch = "x86_64"), expect(dead_code, reason = "only AMX prefetches"))]
pub(in crate::cpu) struct MatrixBlock<L, R> {
    /// The first row.
    pub(in crate::cpu) rows: *const L,
    /// Values between the beginnings of two rows.
    pub(in crate::cpu) stride: usize,
    pub(in crate::cpu) panel: *const R,
    /// The number of steps of [`MATRIX_ROW_BYTES`] bytes of each row.
    pub(in crate::cpu) n_steps: usize,
    /// The first address to prefetch, and the bytes from one address to the next. Each step prefetches 16 addresses.
    pub(in crate::cpu) ahead: *const u8,
    pub(in crate::cpu) ahead_step: usize,
}

/// Products of whole blocks of rows with a panel, for instruction sets with matrix registers, such as AMX.
///
/// The default methods compute the same results with vector registers. They define the order of additions, and are used
/// by the set that emulates AMX.
pub(in crate::cpu) trait MatrixOps: BlockOps {
    /// The sums of the largest tile of bf16 activations and bf16 weights.
    type Bf16Tile: TileSums<Self::V>;
    /// The sums of the largest tile of bytes and bytes.
    type BytesTile: TileSums<Self::V>;
    /// Whether tiles of bf16 and of bytes are computed by the methods of this trait. If not, the methods are not called.
    const HAS_MATRICES: bool;

    /// Multiplies pairs of bf16, and writes a sum for each row. For each step, one chain of multiply-adds sums the
    /// products of the first values of all pairs, and another chain sums the products of the second values. The sum of
    /// both is added to the sum of the row. Subnormal values may count as zero.
    ///
    /// # Safety
    ///
    /// Each row is valid for reading `n_steps` steps, and the panel for as many values of `k` of each column. There are
    /// from 1 to [`MOST_MATRIX_ROWS`] rows.
    #[inline(always)]
    unsafe fn multiply_pairs(self, block: &MatrixBlock<bf16, bf16>, sums: &mut [[Self::V; 2]]) {
        const VALUES: usize = MATRIX_ROW_BYTES / size_of::<bf16>();
        for (row, sums) in sums.iter_mut().enumerate() {
            *sums = [self.splat(0.0); 2];
            for step in 0..block.n_steps {
                let mut first = [self.splat(0.0); 2];
                let mut second = first;
                for k in (step * VALUES..(step + 1) * VALUES).step_by(2) {
                    // SAFETY: the caller's promise, for two values of the row, and for the pairs of all columns.
                    unsafe {
                        let a = block.rows.add(row * block.stride + k).cast::<[bf16; 2]>();
                        let [a0, a1] = a.read().map(|a| self.splat(a.to_f32()));
                        let pairs = block.panel.add(k * 2 * Self::LANES).cast::<f32>();
                        for i in 0..2 {
                            let b = self.load(pairs.add(i * Self::LANES));
                            first[i] = self.mul_add(a0, self.first(b), first[i]);
                            second[i] = self.mul_add(a1, self.second(b), second[i]);
                        }
                    }
                }
                for i in 0..2 {
                    sums[i] = self.add(sums[i], self.add(first[i], second[i]));
                }
            }
        }
    }

    /// Multiplies one step of quads of bytes, signed in the rows and unsigned in the panel, and writes the sum of the
    /// products for each row. `n_steps` is 1.
    ///
    /// # Safety
    ///
    /// Each row is valid for reading one step, and the panel for as many values of `k` of each column. There are from 1
    /// to [`MOST_MATRIX_ROWS`] rows.
    #[inline(always)]
    unsafe fn multiply_quads(self, block: &MatrixBlock<i8, u8>, products: &mut [[Self::I; 2]]) {
        for (row, products) in products.iter_mut().enumerate() {
            *products = [self.zeros(); 2];
            for k in (0..MATRIX_ROW_BYTES).step_by(4) {
                // SAFETY: the caller's promise, for four values of the row, and for the quads of all columns.
                unsafe {
                    let a = self.splat_quad(block.rows.add(row * block.stride + k));
                    let quads = block.panel.add(k * 2 * Self::LANES);
                    for (i, product) in products.iter_mut().enumerate() {
                        let b = self.load_quads(quads.add(i * 4 * Self::LANES));
                        *product = self.dot_quads(b, a, *product);
                    }
                }
            }
        }
    }

    /// Ends the use of matrix registers by this thread, so that the operating system need not save them. A kernel that
    /// calls the methods above calls this method when it has finished.
    #[inline(always)]
    fn release_matrices(self) {}
}
