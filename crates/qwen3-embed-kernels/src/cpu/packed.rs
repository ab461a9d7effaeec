use std::ops::Range;

use rayon::prelude::*;

use super::activations::{QuantizeBuffer, Rows, RowsMut};
use super::dispatch::Kernels;
use super::formats::WeightFormat;
use super::gemm::{Epilogue, GemmTask};
use super::panels::PanelGrid;

/// The weight [O, I] of a linear layer, packed for a kernel set in one of several formats.
#[derive(Debug)]
pub struct PackedWeight {
    format: Box<dyn WeightFormat>,
    grid: PanelGrid,
    kernels: &'static Kernels,
}

impl PackedWeight {
    /// A weight that was packed for the current kernel set.
    pub(super) fn new(grid: PanelGrid, format: impl WeightFormat + 'static) -> Self {
        Self { format: Box::new(format), grid, kernels: Kernels::current() }
    }

    /// The same weight for another kernel set, for tests and benchmarks.
    ///
    /// # Panics
    ///
    /// If blocks with different bits would be in one panel of that set.
    #[doc(hidden)]
    pub fn repacked(&self, kernels: &'static Kernels) -> Self {
        let from = self.grid;
        let grid = PanelGrid::new(from.n_out, from.n_in, from.layout, kernels);
        Self { format: self.format.repacked(from, grid), grid, kernels }
    }

    /// Bytes of the packed weight.
    pub fn n_bytes(&self) -> usize {
        self.format.n_bytes()
    }

    /// Input features, I.
    pub fn n_in(&self) -> usize {
        self.grid.n_in
    }

    /// Output features, O.
    pub fn n_out(&self) -> usize {
        self.grid.n_out
    }

    /// Columns of the result: O, or O / 2 for [`Layout::SwiGlu`](super::Layout::SwiGlu).
    pub fn n_columns(&self) -> usize {
        self.grid.n_columns()
    }

    /// Whether activations may be bf16, not only f32.
    pub fn accepts_bf16(&self) -> bool {
        self.format.accepts_bf16()
    }

    /// Prepares activations for [`multiply`](Self::multiply), in parallel on rayon's current pool. If this weight is
    /// multiplied in integers, the activations are quantized into `buffer`. Otherwise `x` is returned. Values that
    /// share a scale with a value that is not finite get the scale NaN.
    ///
    /// # Shapes
    ///
    /// `x` is [T, I], in f32 or bf16.
    ///
    /// # Panics
    ///
    /// If `x` has another number of columns. The functions of [`ops`](crate::ops) return an error instead.
    pub fn quantize<'a>(&self, x: Rows<'a>, buffer: &'a mut QuantizeBuffer) -> Rows<'a> {
        assert_eq!(x.n_columns, self.n_in(), "x is [T, I]");
        self.format.quantize(self.kernels, x, buffer)
    }

    /// Multiplies: `out = x · wᵀ + bias`, or `out += …`, in parallel on rayon's current pool.
    ///
    /// # Shapes
    ///
    /// `x` is the result of [`quantize`](Self::quantize) for activations [T, I]; `out` is [T, columns] and `bias`, if
    /// any, is `[O]`.
    ///
    /// # Panics
    ///
    /// If a shape is different, if `x` is bf16 and the weight f32, or if `out` is bf16 and the epilogue is
    /// [`Epilogue::Add`]. The functions of [`ops`](crate::ops) return an error instead.
    pub fn multiply(
        &self,
        x: Rows<'_>,
        bias: Option<&[f32]>,
        out: &mut RowsMut<'_>,
        epilogue: Epilogue,
    ) {
        self.multiply_columns(x, 0..self.n_columns(), bias, out, epilogue);
    }

    /// As [`multiply`](Self::multiply), but computes only some columns of `out`. Whole panels are computed, so columns
    /// that share a panel with these columns are written too.
    ///
    /// # Panics
    ///
    /// As [`multiply`](Self::multiply), and if a column is beyond the columns of `out`.
    pub fn multiply_columns(
        &self,
        x: Rows<'_>,
        columns: Range<usize>,
        bias: Option<&[f32]>,
        out: &mut RowsMut<'_>,
        epilogue: Epilogue,
    ) {
        let Self { format, grid, kernels } = self;
        assert_eq!(x.n_columns, format.n_k(grid.n_in), "x is [T, I]");
        let shape = [x.n_rows, self.n_columns()];
        assert_eq!([out.n_rows, out.n_columns], shape, "out is [T, columns]");
        assert!(bias.is_none_or(|bias| bias.len() == grid.n_out), "bias is [O]");
        assert!(epilogue == Epilogue::Store || out.is_f32(), "results are added to f32 only");
        assert!(columns.end <= self.n_columns(), "the columns are columns of out");
        let block_rows = row_block(x.n_rows, kernels.tile_rows);
        let panels = grid.panels_of(columns);
        let n_panels = panels.len();
        let chunk = n_panels.div_ceil(4 * rayon::current_num_threads()).clamp(1, PANEL_CHUNK);
        let n_chunks = n_panels.div_ceil(chunk);
        let n_tasks = x.n_rows.div_ceil(block_rows) * n_chunks;
        let out = &*out;
        (0..n_tasks).into_par_iter().for_each(|task| {
            let (block, chunk_idx) = (task / n_chunks, task % n_chunks);
            let rows = block * block_rows..((block + 1) * block_rows).min(x.n_rows);
            let first = panels.start + chunk_idx * chunk;
            let panels = first..(first + chunk).min(panels.end);
            let task = GemmTask { x, bias, out, rows, panels, grid: *grid, epilogue };
            format.multiply(kernels, &task);
        });
    }
}

/// The largest number of panels in a task.
const PANEL_CHUNK: usize = 16;

/// The number of rows in a task, a multiple of `tile_rows`. Up to a limit, a task has all rows. Beyond the limit, the
/// rows are divided into blocks of about equal size. All rows of a block are multiplied with a panel while the panel is
/// in the CPU cache.
fn row_block(n_rows: usize, tile_rows: usize) -> usize {
    const MOST: usize = 192;
    let n_blocks = n_rows.div_ceil(MOST).max(1);
    n_rows.div_ceil(n_blocks).max(1).next_multiple_of(tile_rows)
}
