//! Linear layers: activations times a weight that was packed once, at load.
//!
//! ```text
//! for each block of rows, for each chunk of panels       (split over the threads)
//!     for each panel of the chunk                        stays in the cache …
//!         for each tile of the block's rows              … while all rows pass
//!             sums = tile · panel
//!             epilogue(sums)                             store, add, or SwiGLU
//! ```

use half::bf16;
use rayon::prelude::*;

use super::Kernels;
use super::product::{Finish, Stored, panel_columns, tile, tile_rows};
use super::simd::Simd;

/// What is done with a product.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Epilogue {
    /// `out = x · wᵀ`
    Store,
    /// `out += x · wᵀ`
    Add,
}

/// How the rows of a weight go into panels.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Layout {
    /// Rows in order: the product has a column for each.
    Plain,
    /// The first half of the rows are SwiGLU's gates and the second half its ups. They are
    /// interleaved, and the product has a column `silu(gate) · up` for each pair.
    SwiGlu,
}

/// A weight matrix [O, I], packed for a kernel set.
#[derive(Debug, Clone)]
pub struct PackedWeight {
    panels: Panels,
    layout: Layout,
    n_out: usize,
    n_in: usize,
    kernels: &'static Kernels,
}

/// Panels in the type that they are stored in, row-major [panels, I, columns of a panel].
#[derive(Debug, Clone)]
enum Panels {
    F32(Vec<f32>),
    Bf16(Vec<bf16>),
}

impl PackedWeight {
    /// Packs a weight that is kept in f32; `read_row(o, row)` writes the weight's row `o`.
    pub fn pack_f32(
        n_out: usize,
        n_in: usize,
        layout: Layout,
        read_row: impl Fn(usize, &mut [f32]) + Sync,
    ) -> Self {
        let kernels = Kernels::best();
        let panels = Panels::F32(pack(n_out, n_in, layout, kernels.lanes, read_row));
        Self { panels, layout, n_out, n_in, kernels }
    }

    /// Packs a weight that is kept in bf16; `read_row(o, row)` writes the weight's row `o`.
    pub fn pack_bf16(
        n_out: usize,
        n_in: usize,
        layout: Layout,
        read_row: impl Fn(usize, &mut [bf16]) + Sync,
    ) -> Self {
        let kernels = Kernels::best();
        let panels = Panels::Bf16(pack(n_out, n_in, layout, kernels.lanes, read_row));
        Self { panels, layout, n_out, n_in, kernels }
    }

    /// The same weight for another kernel set, for tests and benchmarks.
    #[doc(hidden)]
    pub fn repacked(&self, kernels: &'static Kernels) -> Self {
        let (n_out, n_in, layout) = (self.n_out, self.n_in, self.layout);
        let panels = match &self.panels {
            Panels::F32(p) => Panels::F32(pack(n_out, n_in, layout, kernels.lanes, |o, row| {
                self.unpack_row(p, o, row);
            })),
            Panels::Bf16(p) => Panels::Bf16(pack(n_out, n_in, layout, kernels.lanes, |o, row| {
                self.unpack_row(p, o, row);
            })),
        };
        Self { panels, layout, n_out, n_in, kernels }
    }

    fn unpack_row<T: Copy>(&self, panels: &[T], o: usize, row: &mut [T]) {
        let columns = 2 * self.kernels.lanes;
        let place = place(o, self.n_out, self.layout, self.kernels.lanes);
        let panel = &panels[place / columns * self.n_in * columns..];
        for (k, value) in row.iter_mut().enumerate() {
            *value = panel[k * columns + place % columns];
        }
    }

    /// Input features, I.
    pub fn n_in(&self) -> usize {
        self.n_in
    }

    /// Output features, O.
    pub fn n_out(&self) -> usize {
        self.n_out
    }

    /// Columns of the product: O, or O / 2 for [`Layout::SwiGlu`].
    pub fn n_columns(&self) -> usize {
        match self.layout {
            Layout::Plain => self.n_out,
            Layout::SwiGlu => self.n_out / 2,
        }
    }

    /// Multiplies: `out = x · wᵀ + bias`, or `out += …`, in parallel on rayon's current pool.
    ///
    /// # Shapes
    ///
    /// `x` is [T, I], `out` is [T, columns] and `bias`, if any, is `[O]`.
    ///
    /// # Panics
    ///
    /// If they are not; `qwen3_embed_kernels::ops` checks before it calls.
    pub fn multiply(&self, x: &[f32], bias: Option<&[f32]>, out: &mut [f32], epilogue: Epilogue) {
        let n_rows = x.len() / self.n_in;
        assert_eq!(x.len(), n_rows * self.n_in, "x is [T, I]");
        assert_eq!(out.len(), n_rows * self.n_columns(), "out is [T, columns]");
        assert!(bias.is_none_or(|bias| bias.len() == self.n_out), "bias is [O]");
        let out = Shared(out.as_mut_ptr());
        let block_rows = row_block(n_rows, self.kernels.rows);
        let columns = 2 * self.kernels.lanes;
        let n_panels = match self.layout {
            Layout::Plain => self.n_out.div_ceil(columns),
            Layout::SwiGlu => self.n_columns().div_ceil(self.kernels.lanes),
        };
        let chunk = n_panels.div_ceil(4 * rayon::current_num_threads()).clamp(1, PANEL_CHUNK);
        let n_chunks = n_panels.div_ceil(chunk);
        let n_tasks = n_rows.div_ceil(block_rows) * n_chunks;
        (0..n_tasks).into_par_iter().for_each(|task| {
            let (block, chunk_idx) = (task / n_chunks, task % n_chunks);
            let rows = block * block_rows..((block + 1) * block_rows).min(n_rows);
            let panels = chunk_idx * chunk..((chunk_idx + 1) * chunk).min(n_panels);
            let call = Call {
                x,
                bias,
                out: &out,
                rows,
                panels,
                n_in: self.n_in,
                n_out: self.n_out,
                n_columns: self.n_columns(),
                layout: self.layout,
                epilogue,
            };
            // SAFETY: the table's instructions are there, as for every table.
            unsafe {
                match &self.panels {
                    Panels::F32(panels) => (self.kernels.linear_f32)(&call, panels),
                    Panels::Bf16(panels) => (self.kernels.linear_bf16)(&call, panels),
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

/// Where row `o` of a weight lies: its column, counted over all panels.
fn place(o: usize, n_out: usize, layout: Layout, lanes: usize) -> usize {
    match layout {
        Layout::Plain => o,
        Layout::SwiGlu => {
            let (half, o) = (o / (n_out / 2), o % (n_out / 2));
            o / lanes * 2 * lanes + half * lanes + o % lanes
        }
    }
}

/// Fills the panels of a weight, in parallel. What is beyond the last row is zero.
fn pack<T: Copy + Default + Send + Sync>(
    n_out: usize,
    n_in: usize,
    layout: Layout,
    lanes: usize,
    read_row: impl Fn(usize, &mut [T]) + Sync,
) -> Vec<T> {
    let columns = 2 * lanes;
    let last = (0..n_out).map(|o| place(o, n_out, layout, lanes)).max();
    let n_panels = last.map_or(0, |last| last / columns + 1);
    // The weight's row at each column of all panels.
    let mut row_at = vec![None; n_panels * columns];
    for o in 0..n_out {
        row_at[place(o, n_out, layout, lanes)] = Some(o);
    }
    let mut panels = vec![T::default(); n_panels * columns * n_in];
    let each = panels.par_chunks_mut((columns * n_in).max(1)).zip(row_at.par_chunks(columns));
    each.for_each_init(
        || vec![T::default(); n_in],
        |row, (panel, row_at)| {
            for (column, o) in row_at.iter().enumerate() {
                if let Some(o) = *o {
                    read_row(o, row);
                    for (k, &value) in row.iter().enumerate() {
                        panel[k * columns + column] = value;
                    }
                }
            }
        },
    );
    panels
}

/// An output that tasks write disjoint parts of.
pub(super) struct Shared(pub(super) *mut f32);

// SAFETY: the tasks that share one write to disjoint elements, as `multiply` and `attend` divide
// them.
unsafe impl Sync for Shared {}
// SAFETY: as above.
unsafe impl Send for Shared {}

/// One task of a product.
pub(super) struct Call<'a> {
    x: &'a [f32],
    bias: Option<&'a [f32]>,
    out: &'a Shared,
    rows: std::ops::Range<usize>,
    panels: std::ops::Range<usize>,
    n_in: usize,
    n_out: usize,
    n_columns: usize,
    layout: Layout,
    epilogue: Epilogue,
}

/// Computes a task's rows and panels.
#[inline(always)]
pub(super) fn multiply<S: Simd, B: Stored>(s: S, call: &Call<'_>, panels: &[B]) {
    let columns = panel_columns::<S>();
    for panel in call.panels.clone() {
        let weights = &panels[panel * call.n_in * columns..][..call.n_in * columns];
        let mut row = call.rows.start;
        while row < call.rows.end {
            let n_rows = tile_rows::<S>(call.rows.end - row);
            let x = &call.x[row * call.n_in..][..n_rows * call.n_in];
            // SAFETY: `x` has n_rows rows of n_in values and `weights` is a whole panel.
            unsafe {
                let pointer = |r: usize| x.as_ptr().add(r * call.n_in);
                tile(s, n_rows, pointer, weights.as_ptr(), call.n_in, Write { call, row, panel });
            }
            row += n_rows;
        }
    }
}

/// The epilogue of a tile whose first row is `row`.
struct Write<'a> {
    call: &'a Call<'a>,
    row: usize,
    panel: usize,
}

impl<S: Simd> Finish<S> for Write<'_> {
    #[inline(always)]
    fn finish(&mut self, s: S, row: usize, sums: [S::V; 2]) {
        write(s, self.call, self.row + row, self.panel, sums);
    }
}

/// The epilogue of one row of one panel.
#[inline(always)]
fn write<S: Simd>(s: S, call: &Call<'_>, row: usize, panel: usize, sums: [S::V; 2]) {
    match call.layout {
        Layout::Plain => {
            let column = panel * 2 * S::LANES;
            for (half, sums) in sums.into_iter().enumerate() {
                let column = column + half * S::LANES;
                if column < call.n_columns {
                    let sums = add_bias(s, call, column, call.n_columns, sums);
                    put(s, call, row, column, sums);
                }
            }
        }
        Layout::SwiGlu => {
            let column = panel * S::LANES;
            let gate = add_bias(s, call, column, call.n_columns, sums[0]);
            let up = add_bias(s, call, call.n_columns + column, call.n_out, sums[1]);
            let sigmoid = s.add(s.splat(1.0), s.exp(s.sub(s.splat(0.0), gate)));
            put(s, call, row, column, s.mul(s.div(gate, sigmoid), up));
        }
    }
}

/// Adds the bias of the outputs from `o` on, of which none is at or beyond `end`.
#[inline(always)]
fn add_bias<S: Simd>(s: S, call: &Call<'_>, o: usize, end: usize, sums: S::V) -> S::V {
    match call.bias {
        None => sums,
        Some(bias) => s.add(sums, load_part(s, &bias[o..end])),
    }
}

/// Writes a register to `out` at `row` and `column`, as much of it as there are columns.
#[inline(always)]
fn put<S: Simd>(s: S, call: &Call<'_>, row: usize, column: usize, values: S::V) {
    let n = S::LANES.min(call.n_columns - column);
    // SAFETY: the row is one of this task's and the columns from `column` on are its panel's, within
    // `out`: [T, columns] is checked by `PackedWeight::multiply`. No other task touches them, so that
    // the slice is the only reference to them.
    let out =
        unsafe { std::slice::from_raw_parts_mut(call.out.0.add(row * call.n_columns + column), n) };
    let values = match call.epilogue {
        Epilogue::Store => values,
        Epilogue::Add => s.add(load_part(s, out), values),
    };
    store_part(s, out, values);
}

/// The first values of a slice, zeros where it is shorter than a register.
#[inline(always)]
pub(super) fn load_part<S: Simd>(s: S, values: &[f32]) -> S::V {
    if values.len() >= S::LANES {
        // SAFETY: the length was just checked.
        return unsafe { s.load(values.as_ptr()) };
    }
    let mut padded = [0f32; MAX_LANES];
    padded[..values.len()].copy_from_slice(values);
    // SAFETY: `padded` has as many values as any register.
    unsafe { s.load(padded.as_ptr()) }
}

/// Writes a register to a slice, as much of it as fits.
#[inline(always)]
pub(super) fn store_part<S: Simd>(s: S, out: &mut [f32], values: S::V) {
    if out.len() >= S::LANES {
        // SAFETY: the length was just checked.
        return unsafe { s.store(out.as_mut_ptr(), values) };
    }
    let mut padded = [0f32; MAX_LANES];
    // SAFETY: `padded` has as many values as any register.
    unsafe { s.store(padded.as_mut_ptr(), values) };
    out.copy_from_slice(&padded[..out.len()]);
}

/// Lanes of the widest register of any kernel set.
const MAX_LANES: usize = 16;
