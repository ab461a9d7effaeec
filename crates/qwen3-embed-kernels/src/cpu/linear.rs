//! Linear layers: activations times a weight that was packed once, at load.
//!
//! ```text
//! for each block of rows, for each chunk of panels       (split over the threads)
//!     for each panel of the chunk                        stays in the cache …
//!         for each tile of the block's rows              … while all rows pass
//!             sums = tile · panel                        and the next panel is fetched
//!             epilogue(sums)                             store, add, or SwiGLU
//! ```

use std::ops::Range;

use rayon::prelude::*;

use super::activations::{Arithmetic, Rows, RowsMut, Values};
use super::packed::{Layout, PackedWeight, Panels, Place};
use super::product::{Element, Finish, Operands, Product, tile, tile_rows};
use super::simd::Simd;
use super::vector::load_part;

/// What is done with a product.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Epilogue {
    /// `out = x · wᵀ`
    Store,
    /// `out += x · wᵀ`
    Add,
}

impl PackedWeight {
    /// Multiplies: `out = x · wᵀ + bias`, or `out += …`, in parallel on rayon's current pool.
    ///
    /// # Shapes
    ///
    /// `x` is [T, I], `out` is [T, columns] and `bias`, if any, is `[O]`.
    ///
    /// # Panics
    ///
    /// If they are not, if `x` is bf16 and the weight is not, or if something is to be added to
    /// bf16; `qwen3_embed_kernels::ops` checks before it calls.
    pub fn multiply(
        &self,
        x: Rows<'_>,
        bias: Option<&[f32]>,
        out: &mut RowsMut<'_>,
        epilogue: Epilogue,
    ) {
        let place = self.place;
        assert_eq!(x.n_columns, place.n_in, "x is [T, I]");
        assert_eq!(
            [out.n_rows, out.n_columns],
            [x.n_rows, self.n_columns()],
            "out is [T, columns]"
        );
        assert!(bias.is_none_or(|bias| bias.len() == place.n_out), "bias is [O]");
        assert!(
            epilogue == Epilogue::Store || out.arithmetic() == Arithmetic::F32,
            "only f32 can be added to"
        );
        let block_rows = row_block(x.n_rows, self.kernels.rows);
        let n_panels = place.n_panels();
        let chunk = n_panels.div_ceil(4 * rayon::current_num_threads()).clamp(1, PANEL_CHUNK);
        let n_chunks = n_panels.div_ceil(chunk);
        let n_tasks = x.n_rows.div_ceil(block_rows) * n_chunks;
        let out = &*out;
        (0..n_tasks).into_par_iter().for_each(|task| {
            let (block, chunk_idx) = (task / n_chunks, task % n_chunks);
            let rows = block * block_rows..((block + 1) * block_rows).min(x.n_rows);
            let panels = chunk_idx * chunk..((chunk_idx + 1) * chunk).min(n_panels);
            let task = Task { stride: x.stride, bias, out, rows, panels, place, epilogue };
            let kernels = self.kernels;
            // SAFETY: the table's instructions are there, as for every table. `Rows::new` has checked
            // that the rows are among the values.
            unsafe {
                match (x.values, &self.panels) {
                    (Values::F32(x), Panels::F32(panels)) => {
                        (kernels.linear_f32)(&Call { x, panels, task });
                    }
                    (Values::F32(x), Panels::Bf16(panels)) => {
                        (kernels.linear_widened)(&Call { x, panels, task });
                    }
                    (Values::Bf16(x), Panels::Bf16(panels)) => {
                        (kernels.linear_bf16)(&Call { x, panels, task });
                    }
                    (Values::Bf16(_), Panels::F32(_)) => unreachable!("bf16 times f32"),
                }
            }
        });
    }
}

/// Panels that a task takes at most.
const PANEL_CHUNK: usize = 16;

/// Rows that pass over a panel while it is in the cache: all of them up to a limit, above it in
/// blocks of about equal size, whole tiles each.
fn row_block(n_rows: usize, tile_rows: usize) -> usize {
    const MOST: usize = 192;
    let n_blocks = n_rows.div_ceil(MOST).max(1);
    n_rows.div_ceil(n_blocks).max(1).next_multiple_of(tile_rows)
}

/// What a task multiplies.
pub(super) struct Call<'a, L, R> {
    /// From the first row on.
    x: &'a [L],
    /// All panels of the weight.
    panels: &'a [R],
    task: Task<'a>,
}

/// One task of a product.
struct Task<'a> {
    /// Distance from one row of `x` to the next.
    stride: usize,
    bias: Option<&'a [f32]>,
    out: &'a RowsMut<'a>,
    rows: Range<usize>,
    panels: Range<usize>,
    place: Place,
    epilogue: Epilogue,
}

/// Computes a task's rows and panels.
#[inline(always)]
pub(super) fn multiply<P: Product>(p: P, call: &Call<'_, P::Left, P::Right>) {
    let task = &call.task;
    let panel_size = task.place.panel_size::<P::Right>();
    let steps = task.place.n_in.div_ceil(P::Right::DEPTH).max(1);
    for panel_idx in task.panels.clone() {
        let panel = &call.panels[panel_idx * panel_size..][..panel_size];
        let n_tiles = task.rows.len().div_ceil(P::S::ROWS);
        // Each tile fetches its share of the next panel.
        let ahead_step = size_of_val(panel).div_ceil(n_tiles * steps);
        let mut ahead = panel.as_ptr_range().end.cast::<u8>();
        let mut row = task.rows.start;
        while row < task.rows.end {
            let n_rows = tile_rows::<P::S>(task.rows.end - row);
            let x = &call.x[row * task.stride..];
            let operands = Operands {
                rows: x.as_ptr(),
                stride: task.stride,
                panel: panel.as_ptr(),
                n_k: task.place.n_in,
                ahead,
                ahead_step,
            };
            // SAFETY: `Rows::new` has checked that the rows are among the values of `x`, and
            // `panel` is a whole one.
            unsafe { tile(p, n_rows, &operands, Write { task, row, panel_idx }) };
            ahead = ahead.wrapping_add(ahead_step * steps);
            row += n_rows;
        }
    }
}

/// The epilogue of a tile whose first row is `row`.
struct Write<'a> {
    task: &'a Task<'a>,
    row: usize,
    panel_idx: usize,
}

impl<S: Simd> Finish<S> for Write<'_> {
    #[inline(always)]
    fn finish(&mut self, s: S, row: usize, sums: [S::V; 2]) {
        write(s, self.task, self.row + row, self.panel_idx, sums);
    }
}

/// The epilogue of one row of one panel.
#[inline(always)]
fn write<S: Simd>(s: S, task: &Task<'_>, row: usize, panel_idx: usize, sums: [S::V; 2]) {
    let n_columns = task.out.n_columns;
    match task.place.layout {
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
            let up = add_bias(s, task, n_columns + column, task.place.n_out, sums[1]);
            let sigmoid = s.add(s.splat(1.0), s.exp(s.sub(s.splat(0.0), gate)));
            put(s, task, row, column, s.mul(s.div(gate, sigmoid), up));
        }
    }
}

/// Adds the bias of the outputs from `o` on, of which none is at or beyond `end`.
#[inline(always)]
fn add_bias<S: Simd>(s: S, task: &Task<'_>, o: usize, end: usize, sums: S::V) -> S::V {
    match task.bias {
        None => sums,
        Some(bias) => s.add(sums, load_part(s, &bias[o..end])),
    }
}

/// Writes a register to `out` at `row` and `column`, as much of it as there are columns.
#[inline(always)]
fn put<S: Simd>(s: S, task: &Task<'_>, row: usize, column: usize, values: S::V) {
    // SAFETY: the row is one of this task's and the columns from `column` on are its panel's;
    // `PackedWeight::multiply` checks `out` for both, and gives no other task the same.
    unsafe {
        match task.epilogue {
            Epilogue::Store => task.out.store(s, row, column, task.out.n_columns, values),
            Epilogue::Add => task.out.add(s, row, column, values),
        }
    }
}
