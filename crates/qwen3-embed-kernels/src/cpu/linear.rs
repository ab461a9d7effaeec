//! Linear layers: activations times a weight that was packed once, at load.
//!
//! ```text
//! for each block of rows, for each chunk of panels       (split over the threads)
//!     for each panel of the chunk                        stays in the cache …
//!         for each tile of the block's rows              … while all rows pass
//!             sums = tile · panel                        and the next panel is fetched
//!             epilogue(sums)                             scale, then store, add, or SwiGLU
//! ```

use std::cell::RefCell;
use std::ops::Range;

use rayon::prelude::*;

use super::activations::{Rows, RowsMut, Values};
use super::aligned::Aligned;
use super::blocks::BlockPanels;
use super::packed::{Layout, PackedWeight, Panels, Place};
use super::product::{
    Behind, Bits, Blocks, Finish, Operands, Product, tiles, tiles_before, unpack,
    unpacked_panel_size,
};
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
    /// `x` is [T, I], or what [`Quantised`](super::Quantised) has made of it for this weight; `out` is
    /// [T, columns] and `bias`, if any, is `[O]`.
    ///
    /// # Panics
    ///
    /// If they are not, if the weight does not multiply with what `x` is, or if something is to be
    /// added to bf16; `qwen3_embed_kernels::ops` checks before it calls.
    pub fn multiply(
        &self,
        x: Rows<'_>,
        bias: Option<&[f32]>,
        out: &mut RowsMut<'_>,
        epilogue: Epilogue,
    ) {
        self.multiply_columns(x, 0..self.n_columns(), bias, out, epilogue);
    }

    /// [Multiplies](Self::multiply) for some columns of `out`, and with them the other columns of
    /// their panels.
    ///
    /// # Panics
    ///
    /// As [`multiply`](Self::multiply), and if a column is not one of `out`.
    pub fn multiply_columns(
        &self,
        x: Rows<'_>,
        columns: Range<usize>,
        bias: Option<&[f32]>,
        out: &mut RowsMut<'_>,
        epilogue: Epilogue,
    ) {
        let place = self.place;
        let [n_k, panel_size] = self.panel_size();
        assert_eq!(x.n_columns, n_k, "x is [T, I]");
        assert_eq!(
            [out.n_rows, out.n_columns],
            [x.n_rows, self.n_columns()],
            "out is [T, columns]"
        );
        assert!(bias.is_none_or(|bias| bias.len() == place.n_out), "bias is [O]");
        assert!(epilogue == Epilogue::Store || out.is_f32(), "only f32 can be added to");
        let block_rows = row_block(x.n_rows, self.kernels.rows);
        assert!(columns.end <= self.n_columns(), "the columns are among those of out");
        let panels = place.panels_of(columns);
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
            let scales = match x.values {
                Values::Int16 { scales, .. } => Some(scales),
                _ => None,
            };
            let operands = Sizes { stride: x.stride, n_k, panel_size };
            let task = Task { operands, scales, bias, out, rows, panels, place, epilogue };
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
                    (Values::Int16 { values: x, .. }, Panels::Int8 { groups: panels, .. }) => {
                        (kernels.linear_int8)(&Call { x, panels, task });
                    }
                    (Values::Bytes(x), Panels::Bytes { groups: panels, .. }) => {
                        (kernels.linear_bytes)(&Call { x, panels, task });
                    }
                    (Values::Blocks(x), Panels::Blocks(panels)) => {
                        let mut unpacked = UNPACKED.take();
                        (kernels.linear_blocks)(&BlockCall { x, panels, task }, &mut unpacked);
                        UNPACKED.set(unpacked);
                    }
                    (x, _) => panic!("the weight does not multiply with {x:?}"),
                }
            }
        });
    }
}

thread_local! {
    /// Room for a panel of blocks, kept so that nothing is allocated anew.
    static UNPACKED: RefCell<Aligned<u8>> = RefCell::default();
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

/// Where the operands of a product are.
struct Sizes {
    /// Distance from one row of `x` to the next.
    stride: usize,
    /// Values of a row and of a column.
    n_k: usize,
    /// Elements of a panel.
    panel_size: usize,
}

/// One task of a product.
struct Task<'a> {
    operands: Sizes,
    /// What each row's sums are to be multiplied with.
    scales: Option<&'a [f32]>,
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
    let Sizes { stride, n_k, panel_size } = task.operands;
    for panel_idx in task.panels.clone() {
        let operands = Operands {
            rows: call.x[task.rows.start * stride..].as_ptr(),
            stride,
            n_rows: task.rows.len(),
            panel: &call.panels[panel_idx * panel_size..][..panel_size],
            n_k,
        };
        // SAFETY: `Rows::new` has checked that the rows are among the values of `x`, and the panel is
        // a whole one.
        unsafe { tiles(p, &operands, Write { task, panel_idx }) };
    }
}

/// What a task multiplies, if weights are in blocks.
pub(super) struct BlockCall<'a> {
    x: &'a [i8],
    panels: &'a BlockPanels,
    task: Task<'a>,
}

/// Computes a task's rows and panels of blocks, each of which is unpacked before.
#[inline(always)]
pub(super) fn multiply_blocks<S: Simd>(s: S, call: &BlockCall<'_>, unpacked: &mut Aligned<u8>) {
    let task = &call.task;
    for panel_idx in task.panels.clone() {
        let (bits, packed) = call.panels.panel(panel_idx);
        let size = unpacked_panel_size::<S>(bits, task.operands.n_k);
        unpacked.reserve(size);
        let panel = &mut unpacked[..size];
        unpack(s, bits, packed, panel);
        let behind = Behind { start: packed.as_ptr_range().end, size: packed.len() };
        match bits {
            Bits::Four => multiply_panel(Blocks::<S, 8, false>(s), call, panel_idx, panel, behind),
            Bits::Five => multiply_panel(Blocks::<S, 4, false>(s), call, panel_idx, panel, behind),
            Bits::Six => multiply_panel(Blocks::<S, 4, true>(s), call, panel_idx, panel, behind),
        }
    }
}

/// Computes a task's rows of an unpacked panel.
#[inline(always)]
fn multiply_panel<P: Product<Left = i8, Right = u8>>(
    p: P,
    call: &BlockCall<'_>,
    panel_idx: usize,
    panel: &[u8],
    behind: Behind,
) {
    let task = &call.task;
    let Sizes { stride, n_k, .. } = task.operands;
    let operands = Operands {
        rows: call.x[task.rows.start * stride..].as_ptr(),
        stride,
        n_rows: task.rows.len(),
        panel,
        n_k,
    };
    // SAFETY: `Rows::new` has checked that the rows are among the values of `x`, and the panel was
    // unpacked for all of them.
    unsafe { tiles_before(p, &operands, behind, Write { task, panel_idx }) };
}

/// The epilogue of a panel.
struct Write<'a> {
    task: &'a Task<'a>,
    panel_idx: usize,
}

impl<S: Simd> Finish<S> for Write<'_> {
    #[inline(always)]
    fn finish(&mut self, s: S, row: usize, sums: [S::V; 2]) {
        let row = self.task.rows.start + row;
        let sums = match self.task.scales {
            None => sums,
            Some(scales) => {
                let scale = s.splat(scales[row]);
                [s.mul(sums[0], scale), s.mul(sums[1], scale)]
            }
        };
        write(s, self.task, row, self.panel_idx, sums);
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
