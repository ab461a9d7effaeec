//! Computes a block of queries: scores, softmax and weighted sums, one block of keys after the other.

use std::cell::Cell;
use std::ops::Range;

use super::plan::{AttentionCall, KEY_BLOCK, KeyValuePart, PackedKeyValues, QueryTask};
use crate::cpu::scalar::FloatScalar;
use crate::cpu::simd::{Simd, SimdOp};
use crate::cpu::tile::{Operands, Prefetch, RowSink, TileKernel, multiply_panel, panel_columns};
use crate::cpu::vector::{convert, load_part, store_part};

/// Computes a task. `kernel` multiplies queries with keys, and weights with values.
#[derive(Clone, Copy)]
pub(super) struct Attend<'a, K: TileKernel> {
    pub(super) kernel: K,
    pub(super) call: &'a AttentionCall<'a>,
    pub(super) parts: &'a [KeyValuePart],
    pub(super) task: &'a QueryTask,
    pub(super) packed: &'a PackedKeyValues<K::Left>,
}

impl<T: FloatScalar, K: TileKernel<Left = T, Right = T>> SimdOp for Attend<'_, K> {
    type Output = ();
    const USES_MATRICES: bool = K::USES_MATRICES;

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        const { assert!(KEY_BLOCK.is_multiple_of(panel_columns::<S>())) };
        // The buffers are moved out of the thread-local variable and moved back at the end. `LocalKey::with` needs a
        // closure, and a closure may be compiled without the target features of this function.
        let mut rows = BUFFERS_OF_THREAD.take();
        let heads = self.call.heads;
        let n_rows = self.task.n_queries * heads.group();
        let width = heads.head_dim.next_multiple_of(panel_columns::<S>());
        let end = self.seen_end(self.task.n_queries - 1);
        rows.reserve(n_rows, width, heads.head_dim);
        take_queries(s, &self, n_rows, &mut rows);
        for start in (0..end).step_by(KEY_BLOCK) {
            let keys = start..(start + KEY_BLOCK).min(end);
            score(s, &self, &keys, n_rows, &mut rows);
            softmax(s, &self, &keys, n_rows, &mut rows);
            accumulate(s, &self, &keys, n_rows, width, &mut rows);
        }
        s.release_matrices();
        write(s, &self, n_rows, width, &rows);
        BUFFERS_OF_THREAD.set(rows);
    }
}

impl<'a, K: TileKernel> Attend<'a, K> {
    fn part(&self) -> &'a KeyValuePart {
        &self.parts[self.task.part]
    }

    /// The position after the last key that a query of the task sees.
    fn seen_end(&self, query: usize) -> usize {
        self.call.batch.seen_from(self.part().segment, self.task.first + query).end
    }

    /// The part that has the block of keys from position `start` on, and its packed keys and values. It is the part of
    /// the task, or of a segment that the task's segment continues.
    fn holder(&self, start: usize) -> (&'a KeyValuePart, &'a [K::Left], &'a [K::Left]) {
        let AttentionCall { batch, heads, columns, depth, .. } = *self.call;
        let mut part = self.part();
        while start < part.first {
            let parent = batch.segment(part.segment).parent.expect("a text begins at position 0");
            part = &self.parts[parent * heads.n_kv_heads + part.kv_head];
        }
        let keys = &self.packed.keys[part.keys..][..part.key_size(heads, columns)];
        let n_values = part.value_size(heads, columns, depth);
        (part, keys, &self.packed.values[part.values..][..n_values])
    }
}

/// Buffers of a task. Each has an entry for each row of the task. Buffers only grow, and contain values of earlier
/// tasks.
#[derive(Default)]
struct Buffers {
    /// [rows, D]: the queries, in the type in which they are multiplied (f32 or bf16). The distance between rows is the
    /// distance of rows of f32 values, so rows of bf16 values use the first half of their memory.
    queries: Vec<f32>,
    /// [rows, KEY_BLOCK]: the scores, later overwritten with their exponentials in the type in which these are
    /// multiplied.
    scores: Vec<f32>,
    /// [rows, D rounded up to whole panels]: the weighted sums of values so far.
    sums: Vec<f32>,
    /// The largest score so far.
    max: Vec<f32>,
    /// The sum of the exponentials so far.
    total: Vec<f32>,
    /// The factor with which the weighted sums so far are multiplied before the values of the block are added.
    rescale: Vec<f32>,
}

thread_local! {
    static BUFFERS_OF_THREAD: Cell<Buffers> = Cell::default();
}

/// The distance between rows, in values of `T`, where each row has room for `width` f32.
const fn stride_in<T>(width: usize) -> usize {
    width * (size_of::<f32>() / size_of::<T>())
}

impl Buffers {
    /// Makes room for `n_rows` rows of `dim` dimensions whose sums have `width` columns.
    fn reserve(&mut self, n_rows: usize, width: usize, dim: usize) {
        for (buffer, length) in [
            (&mut self.queries, n_rows * dim),
            (&mut self.scores, n_rows * KEY_BLOCK),
            (&mut self.sums, n_rows * width),
            (&mut self.max, n_rows),
            (&mut self.total, n_rows),
            (&mut self.rescale, n_rows),
        ] {
            if buffer.len() < length {
                buffer.resize(length, 0.0);
            }
        }
        self.max[..n_rows].fill(f32::NEG_INFINITY);
        self.total[..n_rows].fill(0.0);
    }
}

/// The row in the batch, and the first column in this row, of the query in row `r` of the task. Row `r` is query
/// `r / group` for head `r % group` of the group.
#[inline(always)]
fn position<K: TileKernel>(block: &Attend<'_, K>, r: usize) -> (usize, usize) {
    let (heads, group) = (block.call.heads, block.call.heads.group());
    let KeyValuePart { segment, kv_head, .. } = *block.part();
    let head = kv_head * group + r % group;
    (block.call.batch.row(segment, block.task.first + r / group), head * heads.head_dim)
}

/// Copies the queries of the task, row by row.
#[inline(always)]
fn take_queries<S: Simd, K: TileKernel<Left: FloatScalar>>(
    s: S,
    block: &Attend<'_, K>,
    n_rows: usize,
    rows: &mut Buffers,
) {
    let heads = block.call.heads;
    let dim = heads.head_dim;
    for (r, out) in rows.queries[..n_rows * dim].chunks_exact_mut(dim).enumerate() {
        let (row, column) = position(block, r);
        let query = &block.call.qkv[row * heads.qkv_columns() + column..][..dim];
        // SAFETY: as `FloatScalar` and `Scalar` promise, neither the size nor the alignment of a value is greater than
        // that of f32, and every bit pattern is a value.
        let out = unsafe { std::slice::from_raw_parts_mut(out.as_mut_ptr().cast(), dim) };
        convert::<S, K::Left>(s, query, out);
    }
}

/// `scores = queries · keys`.
#[inline(always)]
fn score<S: Simd, T: FloatScalar, K: TileKernel<Left = T, Right = T>>(
    s: S,
    block: &Attend<'_, K>,
    keys: &Range<usize>,
    n_rows: usize,
    rows: &mut Buffers,
) {
    let (dim, columns) = (block.call.heads.head_dim, panel_columns::<S>());
    let (part, packed, _) = block.holder(keys.start);
    for column in (0..keys.len()).step_by(columns) {
        let panel = &packed[(keys.start - part.first + column) * dim..][..dim * columns];
        let operands = Operands {
            rows: rows.queries.as_ptr().cast(),
            stride: stride_in::<T>(dim),
            n_rows,
            panel,
            n_k: dim,
        };
        let (next, sink) =
            (Prefetch::after(panel), StoreScores { scores: &mut rows.scores, column });
        // SAFETY: there are as many rows of `dim` queries, and the panel is whole.
        unsafe { multiply_panel(s, block.kernel, &operands, next, sink) };
    }
}

/// Stores the scores of the keys from `column` of the block on.
struct StoreScores<'a> {
    scores: &'a mut [f32],
    column: usize,
}

impl<S: Simd> RowSink<S> for StoreScores<'_> {
    #[inline(always)]
    fn take(&mut self, s: S, row: usize, sums: [S::V; 2]) {
        let out = &mut self.scores[row * KEY_BLOCK + self.column..][..2 * S::LANES];
        store_part(s, &mut out[..S::LANES], sums[0]);
        store_part(s, &mut out[S::LANES..], sums[1]);
    }
}

/// Replaces the scores of the block by exponentials, and updates the maximum, the total and the `rescale` of each row.
#[inline(always)]
fn softmax<S: Simd, K: TileKernel<Left: FloatScalar>>(
    s: S,
    block: &Attend<'_, K>,
    keys: &Range<usize>,
    n_rows: usize,
    rows: &mut Buffers,
) {
    let (group, end) = (block.call.heads.group(), keys.len().next_multiple_of(block.call.depth));
    for r in 0..n_rows {
        let scores = &mut rows.scores[r * KEY_BLOCK..][..KEY_BLOCK];
        let seen = block.seen_end(r / group).saturating_sub(keys.start).min(keys.len());
        if seen == 0 {
            // The row sees no key of the block. With exponentials of zero, its sums stay unchanged.
            exponentials::<S, K::Left>(s, scores, 0, end, 0.0);
            rows.rescale[r] = 1.0;
            continue;
        }
        let old = rows.max[r];
        let max = largest(s, old, scores, seen);
        let total = exponentials::<S, K::Left>(s, scores, seen, end, max);
        // In the first block there are no sums to rescale.
        rows.rescale[r] = if keys.start == 0 { 0.0 } else { (old - max).exp() };
        rows.total[r] = rows.total[r] * rows.rescale[r] + total;
        rows.max[r] = max;
    }
}

/// Replaces the first `seen` scores by `exp(score − max)` and the scores from there to `end` by zero, in the type in
/// which they are multiplied with values. Returns the sum of the exponentials.
#[inline(always)]
fn exponentials<S: Simd, T: FloatScalar>(
    s: S,
    scores: &mut [f32],
    seen: usize,
    end: usize,
    max: f32,
) -> f32 {
    let lanes = S::LANES;
    let max = s.splat(max);
    let mut sums = s.splat(0.0);
    for start in (0..end).step_by(lanes) {
        let exp = match lanes.min(seen.saturating_sub(start)) {
            0 => s.splat(0.0),
            n => {
                let exp = s.exp(s.sub(load_part(s, &scores[start..]), max));
                if n == lanes { exp } else { s.keep(exp, n, 0.0) }
            }
        };
        sums = s.add(sums, exp);
        // SAFETY: there are whole registers of scores, because KEY_BLOCK is a multiple of the lanes of a register. An
        // exponential takes no more bytes than a score, as `FloatScalar` promises, so the store overwrites no score
        // that has not been read.
        unsafe { T::store(s, scores.as_mut_ptr().cast::<T>().add(start), exp) };
    }
    s.sum(sums)
}

/// The largest of `old` and the first `seen` scores. The length of `scores` is a multiple of the lanes of a register.
#[inline(always)]
fn largest<S: Simd>(s: S, old: f32, scores: &[f32], seen: usize) -> f32 {
    let mut max = s.splat(old);
    for start in (0..seen).step_by(S::LANES) {
        let part = load_part(s, &scores[start..]);
        let n = S::LANES.min(seen - start);
        max = s.max(max, if n == S::LANES { part } else { s.keep(part, n, f32::NEG_INFINITY) });
    }
    s.largest(max)
}

/// `sums = sums · rescale + exponentials · values`.
#[inline(always)]
fn accumulate<S: Simd, T: FloatScalar, K: TileKernel<Left = T, Right = T>>(
    s: S,
    block: &Attend<'_, K>,
    keys: &Range<usize>,
    n_rows: usize,
    width: usize,
    rows: &mut Buffers,
) {
    let (columns, depth) = (panel_columns::<S>(), block.call.depth);
    let (part, _, values) = block.holder(keys.start);
    let value_rows = part.n_tokens.next_multiple_of(depth);
    let n_k = keys.len().next_multiple_of(depth);
    for panel_idx in 0..width / columns {
        let start = (panel_idx * value_rows + keys.start - part.first) * columns;
        let panel = &values[start..][..n_k * columns];
        let operands = Operands {
            rows: rows.scores.as_ptr().cast(),
            stride: stride_in::<T>(KEY_BLOCK),
            n_rows,
            panel,
            n_k,
        };
        let sink = AddValues {
            sums: &mut rows.sums,
            width,
            column: panel_idx * columns,
            rescale: &rows.rescale,
            is_first: keys.start == 0,
        };
        // SAFETY: `exponentials` has written `n_k` values of each row of scores, and the panel has as many.
        unsafe { multiply_panel(s, block.kernel, &operands, Prefetch::after(panel), sink) };
    }
}

/// Rescales the weighted sums so far, from `column` on, and adds the weighted sums of the block.
struct AddValues<'a> {
    sums: &'a mut [f32],
    width: usize,
    column: usize,
    rescale: &'a [f32],
    /// Whether there are no sums so far.
    is_first: bool,
}

impl<S: Simd> RowSink<S> for AddValues<'_> {
    #[inline(always)]
    fn take(&mut self, s: S, row: usize, mut sums: [S::V; 2]) {
        let out = &mut self.sums[row * self.width + self.column..][..2 * S::LANES];
        if !self.is_first {
            let rescale = s.splat(self.rescale[row]);
            sums[0] = s.mul_add(load_part(s, out), rescale, sums[0]);
            sums[1] = s.mul_add(load_part(s, &out[S::LANES..]), rescale, sums[1]);
        }
        store_part(s, &mut out[..S::LANES], sums[0]);
        store_part(s, &mut out[S::LANES..], sums[1]);
    }
}

/// Divides the weighted sums by the totals and writes the result.
#[inline(always)]
fn write<S: Simd, K: TileKernel>(
    s: S,
    block: &Attend<'_, K>,
    n_rows: usize,
    width: usize,
    rows: &Buffers,
) {
    let dim = block.call.heads.head_dim;
    let first = block.call.batch.first_query(block.call.queries);
    for r in 0..n_rows {
        let (row, column) = position(block, r);
        let scale = s.splat(1.0 / rows.total[r]);
        let sums = &rows.sums[r * width..][..dim];
        for (d, sums) in (0..dim).step_by(S::LANES).zip(sums.chunks(S::LANES)) {
            let values = s.mul(load_part(s, sums), scale);
            // SAFETY: `out` has a row for each query and H · D columns, as `attention` has checked. `divide` gives the
            // heads of a group for a query to only one task.
            unsafe { block.call.out.store(s, row - first, column + d, column + dim, values) };
        }
    }
}
