//! One task of a matrix multiplication: a block of rows of activations times a few panels of a weight. See `tile` for
//! panels and tiles.
//!
//! ```text
//! for each block of rows, for each chunk of panels       (a task; tasks are split over the threads)
//!     for each panel of the chunk                        stays in the cache …
//!         for each tile of the block's rows              … while all rows are multiplied with it
//!             sums = tile · panel                        and the next panel is prefetched
//!             epilogue(sums)                             scale, then store, add, or SwiGLU
//! ```

use std::ops::Range;

use super::activations::{Rows, RowsMut};
use super::panels::{Layout, PanelGrid};
use super::simd::{Simd, SimdOp};
use super::tile::{self, Operands, Prefetch, RowSink, TileKernel};
use super::vector::load_part;

/// How the result of a matrix multiplication is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Epilogue {
    /// `out = x · wᵀ`
    Store,
    /// `out += x · wᵀ`
    Add,
}

/// One task. No task that runs at the same time has the same rows and panels.
pub(super) struct GemmTask<'a> {
    /// The activations, with as many columns as the weight format reads.
    pub(super) x: Rows<'a>,
    pub(super) bias: Option<&'a [f32]>,
    pub(super) out: &'a RowsMut<'a>,
    pub(super) rows: Range<usize>,
    pub(super) panels: Range<usize>,
    pub(super) grid: PanelGrid,
    pub(super) epilogue: Epilogue,
}

/// Computes a task with a tile kernel.
pub(super) struct MultiplyPanels<'a, K: TileKernel> {
    pub(super) kernel: K,
    /// The values of the task's activations.
    pub(super) x: &'a [K::Left],
    /// All panels of the weight.
    pub(super) panels: &'a [K::Right],
    /// Number of values in a panel.
    pub(super) panel_size: usize,
    /// A factor for the sums of each row.
    pub(super) row_scales: Option<&'a [f32]>,
    pub(super) task: &'a GemmTask<'a>,
}

impl<K: TileKernel> SimdOp for MultiplyPanels<'_, K> {
    type Output = ();
    const USES_MATRICES: bool = K::USES_MATRICES;

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let Self { kernel, x, panels, panel_size, row_scales, task } = self;
        for panel_idx in task.panels.clone() {
            let panel = &panels[panel_idx * panel_size..][..panel_size];
            let next = Prefetch::after(panel);
            // SAFETY: the rows of the activations were checked when `Rows` was made, and the panel is whole.
            unsafe { task.multiply_panel(s, kernel, x, (panel_idx, panel), next, row_scales) };
        }
        s.release_matrices();
    }
}

impl GemmTask<'_> {
    /// Multiplies the task's rows with one panel, and prefetches `next` at the same time. `x` has the values of all
    /// activations.
    ///
    /// # Safety
    ///
    /// The rows and the panel are valid for `kernel`: see [`TileKernel::fill`].
    #[inline(always)]
    pub(super) unsafe fn multiply_panel<S: Simd, K: TileKernel>(
        &self,
        s: S,
        kernel: K,
        x: &[K::Left],
        (panel_idx, panel): (usize, &[K::Right]),
        next: Prefetch,
        row_scales: Option<&[f32]>,
    ) {
        let operands = Operands {
            rows: x[self.rows.start * self.x.stride..].as_ptr(),
            stride: self.x.stride,
            n_rows: self.rows.len(),
            panel,
            n_k: self.x.n_columns,
        };
        let sink = WriteOutput { task: self, row_scales, panel_idx };
        // SAFETY: the caller's promise.
        unsafe { tile::multiply_panel(s, kernel, &operands, next, sink) };
    }
}

/// The epilogue of a panel.
struct WriteOutput<'a> {
    task: &'a GemmTask<'a>,
    row_scales: Option<&'a [f32]>,
    panel_idx: usize,
}

impl<S: Simd> RowSink<S> for WriteOutput<'_> {
    #[inline(always)]
    fn take(&mut self, s: S, row: usize, sums: [S::V; 2]) {
        let row = self.task.rows.start + row;
        let sums = match self.row_scales {
            None => sums,
            Some(scales) => {
                let scale = s.splat(scales[row]);
                [s.mul(sums[0], scale), s.mul(sums[1], scale)]
            }
        };
        write(s, self.task, row, self.panel_idx, sums);
    }
}

/// Writes one row of one panel.
#[inline(always)]
fn write<S: Simd>(s: S, task: &GemmTask<'_>, row: usize, panel_idx: usize, sums: [S::V; 2]) {
    let n_columns = task.out.n_columns;
    match task.grid.layout {
        Layout::Plain => {
            let column = panel_idx * 2 * S::LANES;
            put(s, task, row, column, add_bias(s, task, column, n_columns, sums[0]));
            let column = column + S::LANES;
            if column < n_columns {
                put(s, task, row, column, add_bias(s, task, column, n_columns, sums[1]));
            }
        }
        Layout::SwiGlu => {
            let column = panel_idx * S::LANES;
            let gate = add_bias(s, task, column, n_columns, sums[0]);
            let up = add_bias(s, task, n_columns + column, task.grid.n_out, sums[1]);
            let sigmoid = s.add(s.splat(1.0), s.exp(s.sub(s.splat(0.0), gate)));
            put(s, task, row, column, s.mul(s.div(gate, sigmoid), up));
        }
    }
}

/// Adds the bias of the outputs from `o` up to the output before `end`.
#[inline(always)]
fn add_bias<S: Simd>(s: S, task: &GemmTask<'_>, o: usize, end: usize, sums: S::V) -> S::V {
    match task.bias {
        None => sums,
        Some(bias) => s.add(sums, load_part(s, &bias[o..end])),
    }
}

/// Stores or adds a register at `row` and `column` of the result, up to the last column.
#[inline(always)]
fn put<S: Simd>(s: S, task: &GemmTask<'_>, row: usize, column: usize, values: S::V) {
    // SAFETY: the row is one of the task's rows, and the columns from `column` on are in the task's panels.
    // `PackedWeight::multiply_columns` has checked the shape of `out`, and gives no other task the same rows and
    // panels.
    unsafe {
        match task.epilogue {
            Epilogue::Store => task.out.store(s, row, column, task.out.n_columns, values),
            Epilogue::Add => task.out.add(s, row, column, values),
        }
    }
}
