//! A block of queries: scores, softmax and weighted sums, one block of keys after the other.

use std::cell::Cell;
use std::ops::Range;

use super::{Block, KEY_BLOCK, Part};
use crate::cpu::product::{Element, Finish, Float, Operands, Product, panel_columns, tiles};
use crate::cpu::simd::Simd;
use crate::cpu::vector::{convert, load_part, store_part};

/// What a task keeps for its rows. Buffers only grow, and are as a task before left them.
#[derive(Default)]
struct Buffers {
    /// [rows, D]: the queries, in the type that is multiplied, each row in the room for f32.
    queries: Vec<f32>,
    /// [rows, KEY_BLOCK]: scores, then in their place their exponentials in the type that is
    /// multiplied.
    scores: Vec<f32>,
    /// [rows, D rounded up to whole panels]: the weighted sums of values so far.
    sums: Vec<f32>,
    /// The largest score so far.
    max: Vec<f32>,
    /// The sum of the exponentials so far.
    total: Vec<f32>,
    /// What the sums of the block are to be multiplied with before the block is added.
    rescale: Vec<f32>,
}

thread_local! {
    static BUFFERS_OF_THREAD: Cell<Buffers> = Cell::default();
}

/// Computes a task.
#[inline(always)]
pub(in crate::cpu) fn attend<T: Float, P: Product<Left = T, Right = T>>(
    p: P,
    block: &Block<'_, T>,
) {
    const { assert!(KEY_BLOCK.is_multiple_of(panel_columns::<P::S>())) };
    // Taken and put back, because a closure would be compiled without this function's features.
    let mut rows = BUFFERS_OF_THREAD.take();
    let heads = block.call.heads;
    let n_rows = block.task.n_queries * heads.group();
    let width = heads.head_dim.next_multiple_of(panel_columns::<P::S>());
    let end = block.seen_from(block.task.n_queries - 1);
    rows.reserve(n_rows, width, heads.head_dim);
    take_queries(p, block, n_rows, &mut rows);
    for start in (0..end).step_by(KEY_BLOCK) {
        let keys = start..(start + KEY_BLOCK).min(end);
        score(p, block, &keys, n_rows, &mut rows);
        softmax(p, block, &keys, n_rows, &mut rows);
        accumulate(p, block, &keys, n_rows, width, &mut rows);
    }
    write(p.simd(), block, n_rows, width, &rows);
    BUFFERS_OF_THREAD.set(rows);
}

/// Elements from one row to the next where rows of a `T` lie in the room for `width` f32.
const fn stride_in<T>(width: usize) -> usize {
    width * (size_of::<f32>() / size_of::<T>())
}

impl Buffers {
    /// Makes room for `n_rows` rows of `dim` dimensions whose sums are `width` wide.
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

/// Where row `r` comes from, a row of the batch and a column: it is query `r / group` for head
/// `r % group` of the group.
#[inline(always)]
fn place<T: Float>(block: &Block<'_, T>, r: usize) -> (usize, usize) {
    let (heads, group) = (block.call.heads, block.call.heads.group());
    let Part { segment, kv_head, .. } = *block.part();
    let head = kv_head * group + r % group;
    (block.call.batch.row(segment, block.task.first + r / group), head * heads.head_dim)
}

/// Copies the task's queries, row by row.
#[inline(always)]
fn take_queries<P: Product<Left: Float>>(
    p: P,
    block: &Block<'_, P::Left>,
    n_rows: usize,
    rows: &mut Buffers,
) {
    let heads = block.call.heads;
    let dim = heads.head_dim;
    for (r, out) in rows.queries[..n_rows * dim].chunks_exact_mut(dim).enumerate() {
        let (row, column) = place(block, r);
        let query = &block.call.qkv[row * heads.qkv_columns() + column..][..dim];
        // SAFETY: as `Float` promises, a value is at most as large as f32 and as strictly aligned, and
        // every pattern of bits is one.
        let out = unsafe { std::slice::from_raw_parts_mut(out.as_mut_ptr().cast(), dim) };
        convert::<P::S, P::Left>(p.simd(), query, out);
    }
}

/// `scores = queries · keys`.
#[inline(always)]
fn score<P: Product<Right: Float>>(
    p: P,
    block: &Block<'_, P::Right>,
    keys: &Range<usize>,
    n_rows: usize,
    rows: &mut Buffers,
) {
    let (dim, columns) = (block.call.heads.head_dim, panel_columns::<P::S>());
    let (part, packed, _) = block.holder(keys.start);
    for column in (0..keys.len()).step_by(columns) {
        let panel = &packed[(keys.start - part.first + column) * dim..][..dim * columns];
        let operands = Operands {
            rows: rows.queries.as_ptr().cast(),
            stride: stride_in::<P::Left>(dim),
            n_rows,
            panel,
            n_k: dim,
        };
        // SAFETY: there are as many rows of `dim` queries, and `panel` is a whole one.
        unsafe { tiles(p, &operands, StoreScores { scores: &mut rows.scores, column }) };
    }
}

/// Stores scores from `column` of the block on.
struct StoreScores<'a> {
    scores: &'a mut [f32],
    column: usize,
}

impl<S: Simd> Finish<S> for StoreScores<'_> {
    #[inline(always)]
    fn finish(&mut self, s: S, row: usize, sums: [S::V; 2]) {
        let out = &mut self.scores[row * KEY_BLOCK + self.column..][..2 * S::LANES];
        store_part(s, &mut out[..S::LANES], sums[0]);
        store_part(s, &mut out[S::LANES..], sums[1]);
    }
}

/// Turns the block's scores into exponentials, and notes how far the maximum moved.
#[inline(always)]
fn softmax<P: Product<Left: Float>>(
    p: P,
    block: &Block<'_, P::Left>,
    keys: &Range<usize>,
    n_rows: usize,
    rows: &mut Buffers,
) {
    let group = block.call.heads.group();
    for r in 0..n_rows {
        let scores = &mut rows.scores[r * KEY_BLOCK..][..KEY_BLOCK];
        let seen = block.seen_from(r / group).saturating_sub(keys.start).min(keys.len());
        if seen == 0 {
            // Nothing to add: zeros times finite values leave the sums as they are.
            exponentials(p, scores, 0, keys.len(), 0.0);
            rows.rescale[r] = 1.0;
            continue;
        }
        let old = rows.max[r];
        let max = largest(p.simd(), old, scores, seen);
        let total = exponentials(p, scores, seen, keys.len(), max);
        // In the first block there is nothing to rescale.
        rows.rescale[r] = if keys.start == 0 { 0.0 } else { (old - max).exp() };
        rows.total[r] = rows.total[r] * rows.rescale[r] + total;
        rows.max[r] = max;
    }
}

/// Replaces the first `seen` scores by `exp(score − max)` and the others by zero, in the type that is
/// multiplied, and returns their sum.
#[inline(always)]
fn exponentials<P: Product<Left: Float>>(
    p: P,
    scores: &mut [f32],
    seen: usize,
    end: usize,
    max: f32,
) -> f32 {
    let (s, lanes) = (p.simd(), P::S::LANES);
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
        // SAFETY: scores are whole registers, as KEY_BLOCK is; an exponential is no larger than a
        // score, as `Float` promises, so that it overwrites none that is still to be read.
        unsafe { P::Left::store(s, scores.as_mut_ptr().cast::<P::Left>().add(start), exp) };
    }
    s.sum(sums)
}

/// The largest of `old` and the first `seen` scores, of which there are whole registers.
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
fn accumulate<P: Product<Right: Float>>(
    p: P,
    block: &Block<'_, P::Right>,
    keys: &Range<usize>,
    n_rows: usize,
    width: usize,
    rows: &mut Buffers,
) {
    let columns = panel_columns::<P::S>();
    let depth = P::Right::DEPTH;
    let (part, _, values) = block.holder(keys.start);
    let value_rows = part.n_tokens.next_multiple_of(depth);
    for panel_idx in 0..width / columns {
        let start = (panel_idx * value_rows + keys.start - part.first) * columns;
        let panel = &values[start..][..keys.len().next_multiple_of(depth) * columns];
        let operands = Operands {
            rows: rows.scores.as_ptr().cast(),
            stride: stride_in::<P::Left>(KEY_BLOCK),
            n_rows,
            panel,
            n_k: keys.len(),
        };
        let finish = AddValues {
            sums: &mut rows.sums,
            width,
            column: panel_idx * columns,
            rescale: &rows.rescale,
            is_first: keys.start == 0,
        };
        // SAFETY: `exponentials` has written keys.len() values of each row of scores, and `panel` has
        // as many of its rows.
        unsafe { tiles(p, &operands, finish) };
    }
}

/// Rescales the sums so far, from `column` on, and adds the block's.
struct AddValues<'a> {
    sums: &'a mut [f32],
    width: usize,
    column: usize,
    rescale: &'a [f32],
    /// Whether there are no sums so far.
    is_first: bool,
}

impl<S: Simd> Finish<S> for AddValues<'_> {
    #[inline(always)]
    fn finish(&mut self, s: S, row: usize, mut sums: [S::V; 2]) {
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

/// Divides the sums by the totals and writes them out.
#[inline(always)]
fn write<S: Simd, T: Float>(
    s: S,
    block: &Block<'_, T>,
    n_rows: usize,
    width: usize,
    rows: &Buffers,
) {
    let dim = block.call.heads.head_dim;
    let first = block.call.batch.first_query(block.call.queries);
    for r in 0..n_rows {
        let (row, column) = place(block, r);
        let scale = s.splat(1.0 / rows.total[r]);
        let sums = &rows.sums[r * width..][..dim];
        for (d, sums) in (0..dim).step_by(S::LANES).zip(sums.chunks(S::LANES)) {
            let values = s.mul(load_part(s, sums), scale);
            // SAFETY: `out` has a row for each query and H · D columns, checked by `attention`;
            // `divide` gives the heads of a group for a query to one task alone.
            unsafe { block.call.out.store(s, row - first, column + d, column + dim, values) };
        }
    }
}
